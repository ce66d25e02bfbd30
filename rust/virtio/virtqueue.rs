// SPDX-License-Identifier: GPL-2.0

//! Virtqueues, and the buffers that a driver lends to its device through them.
//!
//! C header: `include/linux/virtio.h`

use super::wait::WaitQueue;
use crate::{
    bindings,
    compat::{
        new_spinlock_irq,
        SpinLockIrq, //
    }, //
};
use core::{
    marker::PhantomData,
    ptr, //
};
use kernel::{
    ffi,
    fmt,
    prelude::*,
    sync::Arc,
    time::{
        msecs_to_jiffies,
        Delta, //
    },
    types::{
        ForeignOwnable,
        Opaque, //
    }, //
};

/// Which side writes to a buffer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Direction {
    /// The device reads the buffer.
    ToDevice,
    /// The device writes to the buffer.
    FromDevice,
}

/// Memory that a driver can lend to its device: one contiguous part of the kernel's linear map.
///
/// The queue owns the buffer from [`VirtQueue::add`] until the device has used it or the queue is
/// deleted, whichever comes first, and touches it in no way in between. So nothing is required of
/// the implementer: what [`bytes`](Self::bytes) returns stays valid as long as nobody else has the
/// buffer.
pub trait Buffer: Send + 'static {
    /// Which side writes.
    const DIRECTION: Direction;

    /// What the device reads or may write. Memory out of the linear map (`vmalloc`, a stack, a
    /// `static` of a module) is refused by [`VirtQueue::add`].
    fn bytes(&mut self) -> &mut [u8];
}

/// Memory that a driver can lend to its device, of one part or several. Drivers implement [`Buffer`];
/// what else there is comes from where the memory does ([`mm`](crate::mm)).
///
/// # Safety
///
/// What [`lend`](Self::lend) describes stays valid, and nobody touches it, from then on until
/// something is done with the value again, or it is dropped.
pub unsafe trait Lend: Send + 'static {
    /// Which side writes.
    fn direction(&self) -> Direction;

    /// Calls a function with a scatter-gather list of the parts, and how many there are: 1 or more.
    ///
    /// # Errors
    ///
    /// [`EINVAL`] for memory that a device cannot be lent.
    fn lend<R>(
        &mut self,
        f: impl FnOnce(*mut bindings::scatterlist, ffi::c_uint) -> R,
    ) -> Result<R>;

    /// How many bytes there are.
    fn size(&mut self) -> usize;
}

// SAFETY: The implementer of `Buffer` returns the same memory each time: it has no way to
// return any that somebody else has.
unsafe impl<B: Buffer> Lend for B {
    fn direction(&self) -> Direction {
        B::DIRECTION
    }

    fn lend<R>(
        &mut self,
        f: impl FnOnce(*mut bindings::scatterlist, ffi::c_uint) -> R,
    ) -> Result<R> {
        let bytes = self.bytes();
        let (start, len) = (bytes.as_mut_ptr().cast::<ffi::c_void>(), bytes.len());
        let len = ffi::c_uint::try_from(len).map_err(|_| EINVAL)?;
        // SAFETY: Only looks at the addresses.
        if !unsafe { bindings::ferrule_sg_mappable(start, len) } {
            return Err(EINVAL);
        }
        let sg = Opaque::<bindings::scatterlist>::uninit();
        // SAFETY: `sg` is valid for writes, and the memory is part of the linear map.
        unsafe { bindings::sg_init_one(sg.get(), start, len) };
        Ok(f(sg.get(), 1))
    }

    fn size(&mut self) -> usize {
        self.bytes().len()
    }
}

/// One of two kinds of memory, for a queue that carries both.
pub enum Either<A, B> {
    /// The one.
    First(A),
    /// The other.
    Second(B),
}

// SAFETY: By the requirements of both.
unsafe impl<A: Lend, B: Lend> Lend for Either<A, B> {
    fn direction(&self) -> Direction {
        match self {
            Self::First(one) => one.direction(),
            Self::Second(other) => other.direction(),
        }
    }

    fn lend<R>(
        &mut self,
        f: impl FnOnce(*mut bindings::scatterlist, ffi::c_uint) -> R,
    ) -> Result<R> {
        match self {
            Self::First(one) => one.lend(f),
            Self::Second(other) => other.lend(f),
        }
    }

    fn size(&mut self) -> usize {
        match self {
            Self::First(one) => one.size(),
            Self::Second(other) => other.size(),
        }
    }
}

/// A buffer that the device has used.
pub struct Used<B> {
    /// The buffer.
    pub buffer: KBox<B>,
    /// How many bytes of it the device says that it has written; never more than the buffer has,
    /// and 0 for one that the device only reads.
    pub written: usize,
}

/// A buffer that could not be added, and why.
pub struct AddError<B> {
    /// Why: [`ENOSPC`] the queue is full, [`ENODEV`] the queue is deleted, [`EIO`] the device is
    /// broken, [`EINVAL`] memory that a device cannot be lent.
    pub error: Error,
    /// The buffer.
    pub buffer: KBox<B>,
}

impl<B> fmt::Debug for AddError<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl<B> From<AddError<B>> for Error {
    fn from(refused: AddError<B>) -> Error {
        refused.error
    }
}

/// What is called when the device has used buffers of a queue.
pub trait Handler: Send + Sync {
    /// Called in hard interrupt context, once for any number of buffers.
    fn used(&self);
}

/// What an interrupt of a queue does.
pub enum Notify {
    /// Nothing, and the device is asked for no interrupts.
    Never,
    /// Wakes [`VirtQueue::wait`]. There are none but while somebody waits, for which there may be one
    /// at a time.
    Waiters,
    /// Calls a function, then wakes [`VirtQueue::wait`].
    Handler(Arc<dyn Handler>),
}

/// A queue that [`find_vqs`](super::Device::find_vqs) has to find.
pub struct QueueInfo {
    pub(super) name: &'static CStr,
    pub(super) notify: Notify,
}

impl QueueInfo {
    /// A queue with the name that `/proc/interrupts` shows.
    pub const fn new(name: &'static CStr, notify: Notify) -> Self {
        Self { name, notify }
    }
}

/// The queues that a device was found to have, before they are told apart by what they carry.
pub struct Queues(Arc<QueueSet>);

impl Queues {
    pub(super) fn new(set: Arc<QueueSet>) -> Self {
        Self(set)
    }

    /// Takes the queue number `index` of those asked for, to carry buffers of type `B`.
    ///
    /// # Errors
    ///
    /// [`EINVAL`] when there is no such queue, [`EBUSY`] when it was taken before.
    pub fn take<B: Lend>(&self, index: usize) -> Result<VirtQueue<B>> {
        let slot = self.0.slot(index).ok_or(EINVAL)?;
        let mut state = slot.state.lock();
        if state.release.is_some() {
            return Err(EBUSY);
        }
        // INVARIANT: This is the first `VirtQueue` of the queue, so it carries nothing yet.
        state.release = Some(release::<B>);
        if state.handler.is_none() && !state.vq.is_null() {
            // SAFETY: `vq` is valid and the lock serialises its use.
            unsafe { bindings::virtqueue_disable_cb(state.vq) };
        }
        drop(state);
        Ok(VirtQueue {
            set: self.0.clone(),
            index,
            _buffer: PhantomData,
        })
    }
}

/// A queue that carries buffers of type `B`.
///
/// Its functions can be called from any context but where they say otherwise, also after the queue
/// is deleted: they then return [`ENODEV`].
///
/// # Invariants
///
/// `set` has a slot `index`, and this is the only `VirtQueue` that there was and will be for it.
pub struct VirtQueue<B: Lend> {
    set: Arc<QueueSet>,
    index: usize,
    _buffer: PhantomData<fn(KBox<B>) -> KBox<B>>,
}

impl<B: Lend> VirtQueue<B> {
    fn slot(&self) -> &Slot {
        // By the type invariants there is one.
        self.set.slot(self.index).unwrap()
    }

    /// Lends a buffer to the device. It does not look for it before a [`kick`](Self::kick).
    pub fn add(&self, buffer: KBox<B>) -> Result<(), AddError<B>> {
        let token = buffer.into_foreign();
        // SAFETY: Nobody else has the buffer yet.
        let lent = unsafe { &mut *token.cast::<B>() };
        let direction = lent.direction();
        let added = lent.lend(|sg, count| {
            let state = self.slot().state.lock();
            if state.vq.is_null() {
                return (Err(ENODEV), state);
            }
            let add = match direction {
                Direction::ToDevice => bindings::virtqueue_add_outbuf,
                Direction::FromDevice => bindings::virtqueue_add_inbuf,
            };
            // SAFETY: `vq` is valid and the lock serialises its use. The memory stays valid and is
            // touched by nobody else until the token comes back, since the queue owns it now. It
            // cannot come back before the lock is released, which is after `lend` has returned and
            // `lent` is not used any more.
            let added = kernel::error::to_result(unsafe {
                add(state.vq, sg, count, token, bindings::GFP_ATOMIC)
            });
            (added, state)
        });
        let added = added.and_then(|(added, _locked)| added);
        added.map_err(|error| AddError {
            error,
            // SAFETY: The queue did not take the token, which is from `into_foreign` above.
            buffer: unsafe { KBox::from_foreign(token) },
        })
    }

    /// Tells the device to look at the queue.
    ///
    /// # Errors
    ///
    /// [`EIO`] when the device is broken, [`ENODEV`] when the queue is deleted.
    pub fn kick(&self) -> Result {
        let state = self.slot().state.lock();
        if state.vq.is_null() {
            return Err(ENODEV);
        }
        // SAFETY: `vq` is valid and the lock serialises its use.
        if unsafe { bindings::virtqueue_kick(state.vq) } {
            Ok(())
        } else {
            Err(EIO)
        }
    }

    /// Tells the device to look at the queue, whether or not there is anything new in it and whether
    /// or not the device wants to be told: for one that may have missed a [kick](Self::kick). Any
    /// context.
    ///
    /// # Errors
    ///
    /// [`EIO`] when the device is broken, [`ENODEV`] when the queue is deleted.
    pub fn notify(&self) -> Result {
        let state = self.slot().state.lock();
        if state.vq.is_null() {
            return Err(ENODEV);
        }
        // SAFETY: `vq` is valid: it is not deleted while the lock is held.
        if unsafe { bindings::virtqueue_notify(state.vq) } {
            Ok(())
        } else {
            Err(EIO)
        }
    }

    /// Takes back a buffer that the device has used, if there is one.
    ///
    /// # Errors
    ///
    /// [`EIO`] when the device is broken (it answered nonsense, or was taken out),
    /// [`ENODEV`] when the queue is deleted.
    pub fn get(&self) -> Result<Option<Used<B>>> {
        let mut written = 0;
        let state = self.slot().state.lock();
        if state.vq.is_null() {
            return Err(ENODEV);
        }
        // SAFETY: `vq` is valid and the lock serialises its use.
        let token = unsafe { bindings::virtqueue_get_buf(state.vq, &mut written) };
        if token.is_null() {
            // SAFETY: As above.
            return if unsafe { bindings::virtqueue_is_broken(state.vq) } {
                Err(EIO)
            } else {
                Ok(None)
            };
        }
        drop(state);
        // SAFETY: By the invariants of `State` every token of this queue is from
        // `KBox::<B>::into_foreign`, and the queue gives each back once.
        let mut buffer = unsafe { KBox::<B>::from_foreign(token) };
        // The length is what the device says: do not believe it.
        let written = match buffer.direction() {
            Direction::ToDevice => 0,
            Direction::FromDevice => (written as usize).min(buffer.size()),
        };
        Ok(Some(Used { buffer, written }))
    }

    /// Waits for a buffer that the device has used, at most for `timeout`. Process context.
    ///
    /// Needs a queue with [`Notify::Waiters`] or [`Notify::Handler`]. Returns `Ok(None)` when the
    /// time is over. Deleting the queue ends the wait; a device that is taken out does not, it only
    /// shows after `timeout`. So wait in steps.
    ///
    /// # Errors
    ///
    /// Those of [`get`](Self::get).
    pub fn wait(&self, timeout: Delta) -> Result<Option<Used<B>>> {
        self.wait_until(timeout, || self.get().transpose())
            .transpose()
    }

    /// Waits until `ready` returns something, at most for `timeout`. It is asked after each
    /// interrupt of the queue, when its handler has returned, and when the queue is deleted. Process
    /// context; `ready` must not sleep.
    pub fn wait_until<R>(&self, timeout: Delta, mut ready: impl FnMut() -> Option<R>) -> Option<R> {
        let timeout = msecs_to_jiffies(timeout.as_millis().clamp(1, i32::MAX.into()) as u32);
        if self.slot().state.lock().handler.is_some() {
            return self.slot().used.wait(timeout, ready);
        }
        let result = self.slot().used.wait(timeout, || {
            ready().or_else(|| match self.enable_notify() {
                // What was used before that has caused no interrupt.
                Ok(false) => ready(),
                _ => None,
            })
        });
        // A queue that is deleted has none.
        let _ = self.disable_notify();
        result
    }

    /// Asks the device for no interrupts: a hint.
    pub fn disable_notify(&self) -> Result {
        let state = self.slot().state.lock();
        if state.vq.is_null() {
            return Err(ENODEV);
        }
        // SAFETY: `vq` is valid and the lock serialises its use.
        unsafe { bindings::virtqueue_disable_cb(state.vq) };
        Ok(())
    }

    /// Asks the device for interrupts again. Returns false when there are used buffers by now,
    /// for which no interrupt may come.
    pub fn enable_notify(&self) -> Result<bool> {
        let state = self.slot().state.lock();
        if state.vq.is_null() {
            return Err(ENODEV);
        }
        // SAFETY: `vq` is valid and the lock serialises its use.
        Ok(unsafe { bindings::virtqueue_enable_cb(state.vq) })
    }

    /// How many entries the queue has.
    pub fn size(&self) -> Result<usize> {
        let state = self.slot().state.lock();
        if state.vq.is_null() {
            return Err(ENODEV);
        }
        // SAFETY: `vq` is valid.
        Ok(unsafe { bindings::virtqueue_get_vring_size(state.vq) } as usize)
    }
}

/// The queues of a device from `find_vqs` on. They outlive `del_vqs`, as empty shells.
pub(super) struct QueueSet {
    // Queues that were not asked for have none.
    slots: KVec<Option<Pin<KBox<Slot>>>>,
}

/// A queue.
#[pin_data]
struct Slot {
    /// The number that the device knows the queue by.
    number: ffi::c_uint,
    /// Taken in any context; serialises all use of the virtqueue. Nothing is called with it but the
    /// virtio core.
    #[pin]
    state: SpinLockIrq<State>,
    #[pin]
    used: WaitQueue,
}

/// # Invariants
///
/// - `vq` is null or a valid virtqueue, which is used under the slot's lock only.
/// - Each token in `vq` is the `into_foreign()` of a `KBox<B>`, and `release` drops such a one. No
///   token is in a `vq` without `release`.
struct State {
    vq: *mut bindings::virtqueue,
    release: Option<unsafe fn(*mut ffi::c_void)>,
    handler: Option<Arc<dyn Handler>>,
}

// SAFETY: A virtqueue can be used from any thread, and the buffers in it are `Send`.
unsafe impl Send for State {}

/// Drops a buffer that a queue owned.
///
/// # Safety
///
/// `token` is the `into_foreign()` of a `KBox<B>`, and nobody else has it.
unsafe fn release<B: Lend>(token: *mut ffi::c_void) {
    // SAFETY: By the requirements of this function.
    drop(unsafe { KBox::<B>::from_foreign(token) });
}

impl QueueSet {
    fn slot(&self, index: usize) -> Option<&Slot> {
        self.slots.get(index)?.as_deref()
    }

    fn slots(&self) -> impl Iterator<Item = &Slot> {
        self.slots.iter().flatten().map(|slot| &**slot)
    }

    /// Finds the queues of a device.
    ///
    /// # Safety
    ///
    /// `vdev` is a bound virtio device without queues. [`delete`](Self::delete) has to be called
    /// before it is unbound.
    pub(super) unsafe fn find<const N: usize>(
        vdev: *mut bindings::virtio_device,
        infos: [Option<QueueInfo>; N],
        callback: unsafe extern "C" fn(*mut bindings::virtqueue),
    ) -> Result<Arc<Self>> {
        let mut raw_infos: [bindings::virtqueue_info; N] =
            core::array::from_fn(|_| pin_init::zeroed());
        for (raw, info) in raw_infos.iter_mut().zip(&infos) {
            if let Some(info) = info {
                raw.name = info.name.as_char_ptr();
                if !matches!(info.notify, Notify::Never) {
                    raw.callback = Some(callback);
                }
            }
        }
        let mut set = Self {
            slots: KVec::with_capacity(N, GFP_KERNEL)?,
        };
        for info in infos {
            let slot = match info {
                Some(info) => Some(KBox::pin_init(Slot::new(info.notify), GFP_KERNEL)?),
                None => None,
            };
            set.slots.push(slot, GFP_KERNEL)?;
        }

        let mut vqs = [ptr::null_mut(); N];
        // SAFETY: `vdev` is valid by the requirements of this function; both arrays have `N`
        // elements.
        kernel::error::to_result(unsafe {
            bindings::ferrule_virtio_find_vqs(
                vdev,
                N as ffi::c_uint,
                vqs.as_mut_ptr(),
                raw_infos.as_mut_ptr(),
            )
        })?;

        for (slot, &vq) in set.slots.iter_mut().zip(&vqs) {
            let Some(slot) = slot else { continue };
            let slot = slot.as_mut().project();
            if vq.is_null() {
                continue;
            }
            // SAFETY: `find_vqs` returned a valid virtqueue.
            *slot.number = unsafe { (*vq).index };
            // INVARIANT: The virtqueue is valid and empty.
            slot.state.lock().vq = vq;
        }
        Arc::new(set, GFP_KERNEL).map_err(|error| {
            // SAFETY: The queues were found above, nobody else knows them, and the device was not
            // told to use them.
            unsafe { bindings::ferrule_virtio_del_vqs(vdev) };
            error.into()
        })
    }

    /// Resets the device, drops what is in the queues and deletes them. Process context.
    ///
    /// # Safety
    ///
    /// The queues were found for `vdev`, which is still bound.
    pub(super) unsafe fn delete(&self, vdev: *mut bindings::virtio_device) {
        // A device may be wedged by a kick after its reset: let there be none. The handlers may own
        // what has this queue, so they have to go; when no interrupt can have them any more.
        let mut taken = [const { (ptr::null_mut(), None, None) }; MAX_QUEUES];
        for (taken, slot) in taken.iter_mut().zip(self.slots()) {
            let mut state = slot.state.lock();
            // INVARIANT: Null. What the queue carries is dropped below.
            let vq = core::mem::replace(&mut state.vq, ptr::null_mut());
            *taken = (vq, state.release, state.handler.take());
        }
        // SAFETY: `vdev` is valid by the requirements of this function.
        unsafe { bindings::virtio_reset_device(vdev) };
        for &(vq, release, _) in taken.iter().filter(|(vq, ..)| !vq.is_null()) {
            loop {
                // SAFETY: `vq` is valid until `del_vqs` below, its device is reset, and nobody else
                // has it since it was taken out of the slot.
                let token = unsafe { bindings::virtqueue_detach_unused_buf(vq) };
                if token.is_null() {
                    break;
                }
                if let Some(release) = release {
                    // SAFETY: The token was in this queue, so by the invariants of `State` it is
                    // one that `release` can drop.
                    unsafe { release(token) };
                }
            }
        }
        // SAFETY: `vdev` is valid, and nobody has a pointer to its virtqueues any more.
        unsafe { bindings::ferrule_virtio_del_vqs(vdev) };
        for slot in self.slots() {
            slot.used.wake();
        }
    }

    /// Called in hard interrupt context for the queue that the device knows as `number`.
    pub(super) fn interrupt(&self, number: ffi::c_uint) {
        if let Some(slot) = self.slots().find(|slot| slot.number == number) {
            // Not the last reference: `delete` keeps one until this has returned.
            let handler = slot.state.lock().handler.clone();
            if let Some(handler) = handler {
                handler.used();
            }
            // After it: it may have what is waited for.
            slot.used.wake();
        }
    }
}

/// How many queues a device may have here.
pub(super) const MAX_QUEUES: usize = 8;

impl Slot {
    fn new(notify: Notify) -> impl PinInit<Self> {
        pin_init!(Self {
            // No queue has it.
            number: ffi::c_uint::MAX,
            // INVARIANT: There is no virtqueue yet.
            state <- new_spinlock_irq!(State {
                vq: ptr::null_mut(),
                release: None,
                handler: match notify {
                    Notify::Handler(handler) => Some(handler),
                    Notify::Never | Notify::Waiters => None,
                },
            }, "virtqueue"),
            used <- WaitQueue::new(c"virtqueue", kernel::static_lock_class!()),
        })
    }
}
