// SPDX-License-Identifier: GPL-2.0

//! Being called by one of the kernel's notifier chains.
//!
//! What a chain tells, and whom, is in the modules of the chains: [`crate::mm::hotplug`], [`crate::mm::oom`],
//! [`crate::power`]. Each has a trait to implement for who is told, and a [`Registration`].
//!
//! C header: [`include/linux/notifier.h`](srctree/include/linux/notifier.h)

use crate::{
    bindings,
    module::InUse, //
};
use core::marker::PhantomData;
use kernel::{
    container_of,
    ffi,
    prelude::*,
    sync::Arc,
    types::Opaque, //
};

/// A notifier chain, as one who is told by it sees it.
///
/// # Safety
///
/// - What `register` returned 0 for is called until `unregister` returns, and not after that.
/// - It is called in process context, with what [`tell`](Self::tell) requires.
pub unsafe trait Chain<T>: 'static {
    /// Registers a notifier. Process context. Returns 0 or an error number.
    ///
    /// # Safety
    ///
    /// It is initialised, and stays where it is until it is unregistered.
    unsafe fn register(block: *mut bindings::notifier_block) -> ffi::c_int;

    /// Unregisters it. Waits for a call that is under way. Process context.
    ///
    /// # Safety
    ///
    /// It is registered.
    unsafe fn unregister(block: *mut bindings::notifier_block);

    /// Tells `who` of an event.
    ///
    /// # Safety
    ///
    /// `event` and `data` are what this chain calls with.
    unsafe fn tell(who: &T, event: ffi::c_ulong, data: *mut ffi::c_void);
}

/// Keeps somebody registered whom a chain tells.
///
/// # Invariants
///
/// `block` is registered.
#[pin_data(PinnedDrop)]
pub struct Registration<T: Send + Sync + 'static, C: Chain<T>> {
    who: Arc<T>,
    #[pin]
    block: Opaque<bindings::notifier_block>,
    _in_use: InUse,
    _chain: PhantomData<C>,
}

// SAFETY: It can be unregistered by any thread, and who is told is `Send` and `Sync`.
unsafe impl<T: Send + Sync + 'static, C: Chain<T>> Send for Registration<T, C> {}
// SAFETY: There is nothing to do with a reference.
unsafe impl<T: Send + Sync + 'static, C: Chain<T>> Sync for Registration<T, C> {}

impl<T: Send + Sync + 'static, C: Chain<T>> Registration<T, C> {
    /// Registers somebody, to be told after those of a higher priority. Process context.
    pub(crate) fn with_priority(who: Arc<T>, priority: i32) -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            who,
            _in_use: InUse::new(),
            _chain: PhantomData,
            // INVARIANT: Registered when it succeeds. Last: it may be called at once.
            block <- Opaque::try_ffi_init(|slot: *mut bindings::notifier_block| {
                // SAFETY: `slot` is valid for writes, stays in place, and is unregistered before it
                // goes.
                unsafe {
                    slot.write(pin_init::zeroed());
                    (*slot).notifier_call = Some(Self::callback);
                    (*slot).priority = priority;
                    kernel::error::to_result(C::register(slot))
                }
            }),
        })
    }

    /// # Safety
    ///
    /// Only to be called by the chain, with the `block` of a `Registration<T, C>`.
    unsafe extern "C" fn callback(
        block: *mut bindings::notifier_block,
        event: ffi::c_ulong,
        data: *mut ffi::c_void,
    ) -> ffi::c_int {
        // CAST: `Opaque` is a transparent wrapper.
        let block = block.cast::<Opaque<bindings::notifier_block>>();
        // SAFETY: `block` is the field of a `Registration<T, C>` whose other fields were initialised
        // before it was registered, and which lives until it is unregistered.
        let who = unsafe { &(*container_of!(block, Self, block)).who };
        // SAFETY: The chain calls.
        unsafe { C::tell(who, event, data) };
        bindings::NOTIFY_OK as ffi::c_int
    }
}

#[pinned_drop]
impl<T: Send + Sync + 'static, C: Chain<T>> PinnedDrop for Registration<T, C> {
    fn drop(self: Pin<&mut Self>) {
        // SAFETY: By the type invariants.
        unsafe { C::unregister(self.block.get()) };
    }
}
