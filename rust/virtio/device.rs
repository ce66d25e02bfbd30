// SPDX-License-Identifier: GPL-2.0

//! A virtio device, and what a driver keeps of it.
//!
//! C header: `include/linux/virtio.h`

use super::{
    driver::Registered,
    virtqueue::{
        QueueSet,
        MAX_QUEUES, //
    },
    ByteOrder,
    Config,
    EarlyFreezer,
    Feature,
    Features,
    Layout,
    QueueInfo,
    Queues,
    TransportFeature, //
};
use crate::{
    bindings,
    compat::{
        new_spinlock_irq,
        SpinLockIrq, //
    }, //
};
use core::{
    marker::PhantomData,
    mem::offset_of,
    ptr::NonNull, //
};
use kernel::{
    debugfs,
    device,
    new_mutex,
    prelude::*,
    sync::{
        aref::AlwaysRefCounted,
        atomic::{
            Atomic,
            Relaxed, //
        },
        Arc,
        ArcBorrow,
        Mutex, //
    },
    types::Opaque, //
};

/// A virtio device (`struct virtio_device`).
///
/// # Invariants
///
/// A [`Device`] represents a valid `struct virtio_device` created by the C portion of the kernel.
/// One with the context [`device::Core`] or [`device::CoreInternal`] is being bound, bound or being
/// unbound by an [`Adapter`](super::Adapter), and its `priv` is an `Arc<Link>` for that long.
#[repr(transparent)]
pub struct Device<Ctx: device::DeviceContext = device::Normal>(
    Opaque<bindings::virtio_device>,
    PhantomData<Ctx>,
);

impl<Ctx: device::DeviceContext> Device<Ctx> {
    pub(super) fn as_raw(&self) -> *mut bindings::virtio_device {
        self.0.get()
    }

    /// The virtio device ID, such as 5 for a memory balloon.
    pub fn id(&self) -> u32 {
        // SAFETY: By the type invariants the device is valid; its id does not change.
        unsafe { (*self.as_raw()).id.device }
    }
}

/// Functions of a device in its driver's callbacks. Process context only.
impl Device<device::Core<'_>> {
    /// The features that were negotiated.
    pub fn features<F: Feature>(&self) -> Features<F> {
        // SAFETY: By the type invariants the device is valid.
        unsafe { features(self.as_raw()) }
    }

    /// The byte order of what goes through the queues.
    pub fn byte_order(&self) -> ByteOrder {
        // SAFETY: By the type invariants the device is valid.
        if unsafe { bindings::ferrule_virtio_is_little_endian(self.as_raw()) } {
            ByteOrder::Little
        } else {
            ByteOrder::Native
        }
    }

    /// Access to the configuration space, to keep.
    ///
    /// # Errors
    ///
    /// [`EINVAL`] when the device is not of the type that has this layout.
    pub fn config<L: Layout>(&self) -> Result<Config<L>> {
        Config::new(self.id(), self.link().into()).ok_or(EINVAL)
    }

    /// The directory of the driver in debugfs, which all its devices share. [`None`] without debugfs.
    pub fn driver_debugfs(&self) -> Option<debugfs::Dir> {
        // SAFETY: By the type invariants the device is bound by an `Adapter`, or being so.
        unsafe { Registered::debugfs_of(self.as_raw()) }
    }

    /// Finds the device's queues. Those that are [`None`], because their feature was not
    /// negotiated, are left out.
    ///
    /// # Errors
    ///
    /// [`EBUSY`] when the device has its queues already, [`ENOENT`] and others from the transport
    /// when it lacks one.
    pub fn find_vqs<const N: usize>(&self, infos: [Option<QueueInfo>; N]) -> Result<Queues> {
        const { assert!(N <= MAX_QUEUES) };
        let link = self.link();
        if link.queues.lock().is_some() {
            return Err(EBUSY);
        }
        // SAFETY: By the type invariants the device is bound. It has no queues, as just seen; and
        // no others come up, since callbacks with a `Core` device exclude each other. The adapter
        // calls `delete_vqs` before the device is unbound.
        let set = unsafe { QueueSet::find(self.as_raw(), infos, super::used_callback) }?;
        *link.queues.lock() = Some(set.clone());
        Ok(Queues::new(set))
    }

    /// Tells the device that the driver is ready (`virtio_device_ready`). To be called when queues
    /// are used before `probe` or `restore` returns; otherwise the virtio core does it.
    pub fn ready(&self) {
        // SAFETY: By the type invariants the device is valid.
        unsafe { bindings::ferrule_virtio_device_ready(self.as_raw()) };
    }

    /// Resets the device and deletes its queues, dropping every buffer in them.
    ///
    /// After it the device accesses no memory of the guest and calls nothing back. The adapter does
    /// it by itself when `probe` fails and after `unbind`. A driver does it in `freeze`, and
    /// where it may only free memory after the device has stopped.
    pub fn delete_vqs(&self) {
        let set = self.link().queues.lock().take();
        match set {
            // SAFETY: The queues are this device's, which is bound by the type invariants.
            Some(set) => unsafe { set.delete(self.as_raw()) },
            // SAFETY: By the type invariants the device is valid and bound.
            None => unsafe { bindings::virtio_reset_device(self.as_raw()) },
        }
    }

    /// What freezes the device before the system does, to keep.
    pub fn early_freezer(&self) -> EarlyFreezer {
        EarlyFreezer::new(self.into(), self.link().into())
    }

    fn link(&self) -> ArcBorrow<'_, Link> {
        // SAFETY: By the type invariants `priv` is an `Arc<Link>`, at least as long as this
        // reference exists.
        unsafe { Link::borrow(self.as_raw()) }
    }
}

/// # Safety
///
/// `vdev` is a valid device whose features are settled, or being so by the caller.
unsafe fn features<F: Feature>(vdev: *const bindings::virtio_device) -> Features<F> {
    Features::new((0..128).fold(0, |bits, bit| {
        // SAFETY: By the requirements of this function.
        bits | u128::from(unsafe { bindings::ferrule_virtio_test_bit(vdev, bit) }) << bit
    }))
}

/// What a driver may change before it is asked to probe: see
/// [`Driver::validate`](super::Driver::validate).
///
/// # Invariants
///
/// `vdev` is a valid device for the lifetime `'a`, whose features are not final.
pub struct Offer<'a> {
    vdev: *mut bindings::virtio_device,
    _device: PhantomData<&'a mut bindings::virtio_device>,
}

impl Offer<'_> {
    /// # Safety
    ///
    /// `vdev` is a valid device for as long as the value is used, whose features are not final.
    pub(super) unsafe fn new(vdev: *mut bindings::virtio_device) -> Self {
        // INVARIANT: By the requirements of this function.
        Self {
            vdev,
            _device: PhantomData,
        }
    }

    /// What the device offers of what the driver asks for.
    pub fn features<F: Feature>(&self) -> Features<F> {
        // SAFETY: By the type invariants.
        unsafe { features(self.vdev) }
    }

    /// Does not negotiate a feature.
    pub fn clear<F: Feature>(&mut self, feature: F) {
        // SAFETY: By the type invariants.
        unsafe { bindings::ferrule_virtio_clear_bit(self.vdev, feature.bit()) };
    }

    /// Does not negotiate a feature of the transport.
    pub fn clear_transport(&mut self, feature: TransportFeature) {
        // SAFETY: By the type invariants.
        unsafe { bindings::ferrule_virtio_clear_bit(self.vdev, feature as u32) };
    }
}

// SAFETY: `Device` is a transparent wrapper of `struct virtio_device`, which has its
// `struct device` at this offset.
unsafe impl<Ctx: device::DeviceContext> device::AsBusDevice<Ctx> for Device<Ctx> {
    const OFFSET: usize = offset_of!(bindings::virtio_device, dev);
}

// SAFETY: `Device` is a transparent wrapper of a type that does not depend on its generic argument.
kernel::impl_device_context_deref!(unsafe { Device });
kernel::impl_device_context_into_aref!(Device);

impl<Ctx: device::DeviceContext> AsRef<device::Device<Ctx>> for Device<Ctx> {
    fn as_ref(&self) -> &device::Device<Ctx> {
        // SAFETY: By the type invariants the device is valid.
        let dev = unsafe { &raw mut (*self.as_raw()).dev };
        // SAFETY: `dev` is the device's `struct device`, which lives as long.
        unsafe { device::Device::from_raw(dev) }
    }
}

// SAFETY: Devices are always reference-counted.
unsafe impl AlwaysRefCounted for Device {
    fn inc_ref(&self) {
        // SAFETY: A shared reference shows that the count is not zero.
        unsafe { bindings::get_device(&raw mut (*self.as_raw()).dev) };
    }

    unsafe fn dec_ref(obj: NonNull<Self>) {
        // CAST: `Device` is a transparent wrapper.
        let vdev: *mut bindings::virtio_device = obj.cast().as_ptr();
        // SAFETY: By the requirements of this function the count is not zero.
        unsafe { bindings::put_device(&raw mut (*vdev).dev) };
    }
}

// SAFETY: A `Device` is always reference-counted and can be released from any thread.
unsafe impl Send for Device {}
// SAFETY: `struct virtio_device` synchronises what can be used of it through `&Device`.
unsafe impl Sync for Device {}

/// What connects a bound device with what its driver keeps of it. It is the device's `priv`.
#[pin_data]
pub(super) struct Link {
    /// The device, and null once it is unbound. Sleeps; taken around each access to the
    /// configuration space, so that unbinding waits for it. No other lock is taken with it.
    #[pin]
    device: Mutex<BoundDevice>,
    /// The queues. Taken in any context, for a moment; no other lock is taken with it.
    #[pin]
    queues: SpinLockIrq<Option<Arc<QueueSet>>>,
    /// `probe` has returned, and `unbind` is not called yet. Changes with the device locked.
    is_ready: Atomic<bool>,
    /// `freeze` has returned, and `restore` is not called yet. Changes while the driver core, or who
    /// has locked the device, keeps other callbacks out.
    is_frozen: Atomic<bool>,
}

/// # Invariants
///
/// The device is bound, or it is [`None`].
struct BoundDevice(Option<NonNull<bindings::virtio_device>>);

// SAFETY: A bound virtio device can be used from any thread.
unsafe impl Send for BoundDevice {}

impl Link {
    /// Makes the link of a device, stores it in `priv`.
    ///
    /// # Safety
    ///
    /// `vdev` is a valid device, which is being bound and has no link. [`unbind`](Self::unbind) is
    /// called before it is unbound.
    pub(super) unsafe fn bind(vdev: *mut bindings::virtio_device) -> Result {
        let link = Arc::pin_init(
            pin_init!(Self {
                // INVARIANT: The device is bound by the requirements of this function.
                device <- new_mutex!(BoundDevice(NonNull::new(vdev)), "virtio_link"),
                queues <- new_spinlock_irq!(None, "virtio_queues"),
                is_ready: Atomic::new(false),
                is_frozen: Atomic::new(false),
            }),
            GFP_KERNEL,
        )?;
        // SAFETY: The device is valid, and `priv` is its driver's.
        unsafe { (*vdev).priv_ = Arc::into_raw(link).cast_mut().cast() };
        Ok(())
    }

    /// Ends what drivers can do through their [`Config`]; waits for those who are at it.
    ///
    /// # Safety
    ///
    /// `vdev` has a link, which nobody borrows. Its queues are deleted.
    pub(super) unsafe fn unbind(vdev: *mut bindings::virtio_device) {
        // SAFETY: By the requirements `priv` is from `bind`. It is taken out here.
        let link = unsafe {
            let link = Arc::from_raw((*vdev).priv_.cast::<Self>().cast_const());
            (*vdev).priv_ = core::ptr::null_mut();
            link
        };
        // INVARIANT: `None`.
        link.device.lock().0 = None;
    }

    /// # Safety
    ///
    /// `vdev` is valid and has a link for at least the lifetime `'a`.
    pub(super) unsafe fn borrow<'a>(vdev: *mut bindings::virtio_device) -> ArcBorrow<'a, Self> {
        // SAFETY: By the requirements, and since `bind` stored it.
        unsafe { ArcBorrow::from_raw((*vdev).priv_.cast::<Self>().cast_const()) }
    }

    /// Calls a function with the device while it is bound.
    pub(super) fn with_device<R>(
        &self,
        f: impl FnOnce(*mut bindings::virtio_device) -> Result<R>,
    ) -> Result<R> {
        let device = self.device.lock();
        f(device.0.ok_or(ENODEV)?.as_ptr())
    }

    pub(super) fn is_ready(&self) -> bool {
        self.is_ready.load(Relaxed)
    }

    pub(super) fn set_ready(&self, is_ready: bool) {
        self.is_ready.store(is_ready, Relaxed);
    }

    pub(super) fn is_frozen(&self) -> bool {
        self.is_frozen.load(Relaxed)
    }

    pub(super) fn set_frozen(&self, is_frozen: bool) {
        self.is_frozen.store(is_frozen, Relaxed);
    }

    /// Passes on an interrupt of a queue.
    ///
    /// # Safety
    ///
    /// Only to be called by the virtio core, with a queue that [`Device::find_vqs`] found.
    pub(super) unsafe fn interrupt(vq: *mut bindings::virtqueue) {
        // SAFETY: The virtio core calls this with a valid queue of a valid device.
        let (vdev, number) = unsafe { ((*vq).vdev, (*vq).index) };
        // SAFETY: A device that has queues has a link: `unbind` comes after their deletion, which
        // waits for this function.
        let link = unsafe { Self::borrow(vdev) };
        let set = link.queues.lock().clone();
        if let Some(set) = set {
            set.interrupt(number);
        }
    }
}
