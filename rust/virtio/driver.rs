// SPDX-License-Identifier: GPL-2.0

//! Virtio drivers and their registration.
//!
//! C header: `include/linux/virtio.h`

use super::{
    device::Link,
    Device,
    Feature,
    Offer, //
};
use crate::bindings;
use core::{
    mem::{
        offset_of,
        size_of, //
    },
    ptr, //
};
use kernel::{
    container_of,
    debugfs,
    device::{
        Core, //
        CoreInternal,
    },
    device_id::{
        self,
        RawDeviceId, //
    },
    driver,
    error::{
        from_result,
        to_result,
        VTABLE_DEFAULT_ERROR, //
    },
    ffi,
    prelude::*,
    types::{
        ForeignOwnable,
        Opaque, //
    }, //
};

/// A virtio driver. See [the module](super) for the steps to take.
///
/// All callbacks but [`config_changed`](Self::config_changed) are called in process context, and
/// never two at a time for a device.
#[vtable]
pub trait Driver: Sized {
    /// The driver's data of a device. Its parts may be shared with work and interrupt handlers.
    type Data: Send + Sync + 'static;

    /// The features that the driver asks for. See [`virtio_features!`](crate::virtio_features).
    type Feature: Feature;

    /// The devices that the driver is for. See
    /// [`virtio_device_table!`](crate::virtio_device_table).
    const ID_TABLE: IdTable;

    /// Looks at what the device offers, and may decline some of it.
    fn validate(offer: &mut Offer<'_>) -> Result {
        let _ = offer;
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// Starts to drive a device. When it fails the device is reset and its queues are deleted.
    fn probe(dev: &Device<Core<'_>>) -> impl PinInit<Self::Data, Error>;

    /// Stops driving a device, which is still alive and has its queues. Then it is reset, its
    /// queues are deleted and the data is dropped, in this order.
    ///
    /// The device may be gone in fact (it was taken out) or never answer: do not wait for
    /// it without a limit.
    fn unbind(dev: &Device<Core<'_>>, data: Pin<&Self::Data>);

    /// The device's configuration has changed. Hard interrupt context; not called before `probe`
    /// has returned and after `unbind` or `freeze` is called. The configuration space cannot be
    /// read here: have that done by work.
    fn config_changed(data: Pin<&Self::Data>) {
        let _ = data;
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// The system goes to sleep. Freezable work is frozen already, unless an
    /// [`EarlyFreezer`](super::EarlyFreezer) calls this. The device has to be without queues when
    /// this returns: see [`Device::delete_vqs`].
    fn freeze(dev: &Device<Core<'_>>, data: Pin<&Self::Data>) -> Result {
        let _ = (dev, data);
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// The system is awake again. The device is reset, and has the same features as before.
    fn restore(dev: &Device<Core<'_>>, data: Pin<&Self::Data>) -> Result {
        let _ = (dev, data);
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// The system shuts down or starts another kernel. Stops what the driver does by itself; the
    /// adapter then breaks and resets the device. The driver stays bound.
    fn shutdown(dev: &Device<Core<'_>>, data: Pin<&Self::Data>) {
        let _ = (dev, data);
        build_error!(VTABLE_DEFAULT_ERROR)
    }
}

/// Adapts a [`Driver`] to `struct virtio_driver`, for [`driver::Registration`].
pub struct Adapter<T: Driver>(T);

/// A `struct virtio_driver`, and what else there is once for a driver.
#[doc(hidden)]
#[repr(C)]
#[derive(Default)]
pub struct Registered {
    vdrv: bindings::virtio_driver,
    /// While it is registered.
    debugfs: Option<debugfs::Dir>,
}

impl Registered {
    /// The driver's directory in debugfs.
    ///
    /// # Safety
    ///
    /// `vdev` is a valid device that is being bound, bound or being unbound by an [`Adapter`].
    pub(super) unsafe fn debugfs_of(vdev: *mut bindings::virtio_device) -> Option<debugfs::Dir> {
        // SAFETY: By the requirements of this function its driver is one that `register` has
        // registered, and stays so. `debugfs` does not change meanwhile.
        unsafe {
            let vdrv = container_of!((*vdev).dev.driver, bindings::virtio_driver, driver);
            (*container_of!(vdrv, Registered, vdrv)).debugfs.clone()
        }
    }
}

// SAFETY:
// - `Registered` has the layout of a C type, and a `struct device_driver` at `DEVICE_DRIVER_OFFSET`.
// - The driver core finds no private data after `remove`: it is dropped there, before the virtio
//   core looks whether the device was reset.
unsafe impl<T: Driver> driver::DriverLayout for Adapter<T> {
    type DriverType = Registered;
    type DriverData<'bound> = T::Data;
    const DEVICE_DRIVER_OFFSET: usize = offset_of!(Self::DriverType, vdrv.driver);
}

// SAFETY: `unregister` is valid for what `register` has registered.
unsafe impl<T: Driver> driver::RegistrationOps for Adapter<T> {
    unsafe fn register(
        registered: &Opaque<Self::DriverType>,
        name: &'static CStr,
        module: &'static ThisModule,
    ) -> Result {
        // SAFETY: By the requirements of this function it is valid.
        let vdrv = unsafe { &raw mut (*registered.get()).vdrv };
        // SAFETY: The fields of a `virtio_driver` can be set before it is registered.
        unsafe {
            (*registered.get()).debugfs = Some(debugfs::Dir::new(name));
            (*vdrv).driver.name = name.as_char_ptr();
            // CAST: `DeviceId` has the layout of `virtio_device_id`.
            (*vdrv).id_table = T::ID_TABLE.as_ptr().cast();
            (*vdrv).feature_table = T::Feature::TABLE.as_ptr();
            (*vdrv).feature_table_size = T::Feature::TABLE.len() as ffi::c_uint;
            (*vdrv).probe = Some(Self::probe_callback);
            (*vdrv).remove = Some(Self::remove_callback);
            if T::HAS_VALIDATE {
                (*vdrv).validate = Some(Self::validate_callback);
            }
            if T::HAS_CONFIG_CHANGED {
                (*vdrv).config_changed = Some(Self::config_changed_callback);
            }
            if T::HAS_FREEZE {
                (*vdrv).freeze = Some(Self::freeze_callback);
            }
            if T::HAS_RESTORE {
                (*vdrv).restore = Some(Self::restore_callback);
            }
            if T::HAS_SHUTDOWN {
                (*vdrv).shutdown = Some(Self::shutdown_callback);
            }
        }

        // SAFETY: `vdrv` is initialised and stays in place until `unregister`.
        to_result(unsafe { bindings::__register_virtio_driver(vdrv, module.as_ptr()) }).inspect_err(
            // SAFETY: As above. Nobody else has it when it is not registered.
            |_| drop(unsafe { (*registered.get()).debugfs.take() }),
        )
    }

    unsafe fn unregister(registered: &Opaque<Self::DriverType>) {
        // SAFETY: By the requirements of this function the driver is registered. Nobody has it
        // afterwards.
        unsafe {
            bindings::unregister_virtio_driver(&raw mut (*registered.get()).vdrv);
            drop((*registered.get()).debugfs.take());
        }
    }
}

impl<T: Driver> Adapter<T> {
    /// # Safety
    ///
    /// `vdev` is a valid device in one of the driver's callbacks, for the lifetime `'a`.
    unsafe fn device<'a>(vdev: *mut bindings::virtio_device) -> &'a Device<CoreInternal<'a>> {
        // SAFETY: By the requirements of this function. CAST: `Device` is a transparent wrapper.
        unsafe { &*vdev.cast() }
    }

    /// # Safety
    ///
    /// `dev` was bound by `probe_callback`, and `remove_callback` is not done with it.
    unsafe fn data<'a>(dev: &'a Device<CoreInternal<'_>>) -> Pin<&'a T::Data> {
        // SAFETY: `probe_callback` has stored data of this type, which is there until
        // `remove_callback` drops it.
        unsafe { dev.as_ref().drvdata_borrow::<T::Data>() }
    }

    /// # Safety
    ///
    /// To be called by the virtio core, with a device whose features are not final.
    unsafe extern "C" fn validate_callback(vdev: *mut bindings::virtio_device) -> ffi::c_int {
        // SAFETY: By the requirements of this function.
        let mut offer = unsafe { Offer::new(vdev) };
        from_result(|| T::validate(&mut offer).map(|()| 0))
    }

    /// # Safety
    ///
    /// To be called by the virtio core, with a device that is being bound.
    unsafe extern "C" fn probe_callback(vdev: *mut bindings::virtio_device) -> ffi::c_int {
        from_result(|| {
            // SAFETY: The device is being bound and has no link, since its last driver is gone.
            unsafe { Link::bind(vdev) }?;
            // SAFETY: By the requirements of this function.
            //
            // INVARIANT: The device has a link now.
            let dev = unsafe { Self::device(vdev) };
            dev.as_ref().set_drvdata(T::probe(dev)).inspect_err(|_| {
                dev.delete_vqs();
                // SAFETY: The queues are deleted, and nobody uses the device any more.
                unsafe { Link::unbind(vdev) };
            })?;
            // SAFETY: The device has its link. The driver core has locked it.
            unsafe { Link::borrow(vdev) }.set_ready(true);
            Ok(0)
        })
    }

    /// # Safety
    ///
    /// To be called by the virtio core, once, after `probe_callback` has succeeded.
    unsafe extern "C" fn remove_callback(vdev: *mut bindings::virtio_device) {
        // SAFETY: By the requirements of this function.
        let dev = unsafe { Self::device(vdev) };
        // SAFETY: The device has its link. The driver core has locked it.
        unsafe { Link::borrow(vdev) }.set_ready(false);
        // SAFETY: As above.
        T::unbind(dev, unsafe { Self::data(dev) });
        dev.delete_vqs();
        // SAFETY: The queues are deleted, and nobody uses the device any more.
        unsafe { Link::unbind(vdev) };

        // SAFETY: The device is valid. The data was stored by `probe_callback`, and is taken out
        // here, where nobody borrows it any more: the virtio core calls nothing back after this.
        drop(unsafe {
            let raw = &raw mut (*vdev).dev;
            let data = bindings::dev_get_drvdata(raw);
            bindings::dev_set_drvdata(raw, ptr::null_mut());
            Pin::<KBox<T::Data>>::from_foreign(data)
        });
    }

    /// # Safety
    ///
    /// To be called by the virtio core, with a device that is bound, while it does not call
    /// `remove_callback`.
    unsafe extern "C" fn config_changed_callback(vdev: *mut bindings::virtio_device) {
        // SAFETY: By the requirements of this function.
        let dev = unsafe { Self::device(vdev) };
        // SAFETY: As above. The core calls this only between the end of `probe` and `remove`.
        T::config_changed(unsafe { Self::data(dev) });
    }

    /// # Safety
    ///
    /// As for `config_changed_callback`.
    unsafe extern "C" fn freeze_callback(vdev: *mut bindings::virtio_device) -> ffi::c_int {
        // SAFETY: By the requirements of this function.
        let dev = unsafe { Self::device(vdev) };
        // SAFETY: The device is bound, so it has its link.
        let link = unsafe { Link::borrow(vdev) };
        if link.is_frozen() {
            // An `EarlyFreezer` was here.
            return 0;
        }
        from_result(|| {
            // SAFETY: As above.
            T::freeze(dev, unsafe { Self::data(dev) })?;
            link.set_frozen(true);
            Ok(0)
        })
    }

    /// # Safety
    ///
    /// As for `config_changed_callback`.
    unsafe extern "C" fn restore_callback(vdev: *mut bindings::virtio_device) -> ffi::c_int {
        // SAFETY: By the requirements of this function.
        let dev = unsafe { Self::device(vdev) };
        // SAFETY: The device is bound, so it has its link.
        unsafe { Link::borrow(vdev) }.set_frozen(false);
        // SAFETY: As above.
        from_result(|| T::restore(dev, unsafe { Self::data(dev) }).map(|()| 0))
    }

    /// # Safety
    ///
    /// As for `config_changed_callback`.
    unsafe extern "C" fn shutdown_callback(vdev: *mut bindings::virtio_device) {
        // SAFETY: By the requirements of this function.
        let dev = unsafe { Self::device(vdev) };
        // SAFETY: As above.
        T::shutdown(dev, unsafe { Self::data(dev) });
        // SAFETY: The device is valid.
        unsafe { bindings::virtio_device_shutdown(vdev) };
    }
}

/// Declares a kernel module that is one virtio driver.
///
/// Takes what `module!` takes, with the [`Driver`](crate::virtio::Driver) as its `type`, first.
///
/// ```ignore
/// module_virtio_driver! {
///     type: MyDriver,
///     name: "my_driver",
///     authors: ["..."],
///     description: "...",
///     license: "GPL",
/// }
/// ```
#[macro_export]
macro_rules! module_virtio_driver {
    (type: $driver:ty, $($f:tt)*) => {
        #[::kernel::prelude::pin_data]
        struct DriverModule {
            #[pin]
            _driver: ::kernel::driver::Registration<$crate::virtio::Adapter<$driver>>,
            // Last, to be dropped last.
            _unloading: $crate::module::Unloading,
        }

        impl ::kernel::InPlaceModule for DriverModule {
            fn init(
                module: &'static ::kernel::ThisModule,
            ) -> impl ::kernel::prelude::PinInit<Self, ::kernel::error::Error> {
                ::kernel::try_pin_init!(Self {
                    // SAFETY: This is the `init` of the module, and its first step. Nothing is
                    // registered by way of the `Loading`. What is made first is dropped last.
                    _unloading: unsafe { $crate::module::begin() }?.1,
                    _driver <- ::kernel::driver::Registration::new(
                        <Self as ::kernel::ModuleMetadata>::NAME,
                        module,
                    ),
                })
            }
        }

        ::kernel::prelude::module! {
            type: DriverModule,
            $($f)*
        }
    };
}
pub use module_virtio_driver;

/// Which devices a driver is for (`struct virtio_device_id`).
#[repr(C)]
#[derive(Clone, Copy)]
pub struct DeviceId {
    device: u32,
    vendor: u32,
}

impl DeviceId {
    /// A memory balloon.
    pub const BALLOON: Self = Self::new(bindings::VIRTIO_ID_BALLOON);

    /// All devices of an ID, whoever their vendor is.
    pub const fn new(device: u32) -> Self {
        Self {
            device,
            // VIRTIO_DEV_ANY_ID
            vendor: u32::MAX,
        }
    }
}

kernel::static_assert!(
    offset_of!(DeviceId, device) == offset_of!(bindings::virtio_device_id, device)
        && offset_of!(DeviceId, vendor) == offset_of!(bindings::virtio_device_id, vendor)
        && size_of::<DeviceId>() == size_of::<bindings::virtio_device_id>()
);

// SAFETY: The raw type is the type itself.
unsafe impl RawDeviceId for DeviceId {
    type RawType = Self;
}

/// The type of a driver's table of devices.
pub type IdTable = &'static dyn device_id::IdTable<DeviceId, ()>;

/// Declares a table of devices, which also makes `modprobe` find the module for them.
///
/// ```ignore
/// virtio_device_table!(ID_TABLE, [virtio::DeviceId::BALLOON]);
/// ```
#[macro_export]
macro_rules! virtio_device_table {
    ($name:ident, [$($id:expr),* $(,)?]) => {
        $crate::__device_table!("virtio", $crate::virtio::DeviceId, $name, [$($id),*]);
    };
}
pub use virtio_device_table;
