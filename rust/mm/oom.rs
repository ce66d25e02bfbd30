// SPDX-License-Identifier: GPL-2.0

//! Memory that can be had when there is none, before the OOM killer looks for a victim.
//!
//! 1. Implement [`OutOfMemory`] for what has memory to give.
//! 2. Keep a [`Registration`] of it.
//!
//! | C | here |
//! | --- | --- |
//! | `struct notifier_block` and what contains it | [`Registration`] |
//! | `notifier_call` | [`OutOfMemory::give`] |
//! | `register_oom_notifier`, `unregister_oom_notifier` | [`Registration::new`], drop |
//!
//! C header: `include/linux/oom.h`

use crate::{
    bindings,
    module::InUse, //
};
use kernel::{
    container_of,
    ffi,
    prelude::*,
    sync::Arc,
    types::Opaque, //
};

/// Has memory to give.
pub trait OutOfMemory: Send + Sync + 'static {
    /// Frees some memory, and returns how many pages. When somebody has freed any, the allocation is
    /// tried again and nothing is killed.
    ///
    /// Process context, below any allocation that may sleep, one at a time in the system. It must
    /// neither allocate memory nor wait for somebody who does.
    fn give(&self) -> usize;
}

/// Keeps somebody registered who has memory to give.
///
/// # Invariants
///
/// `block` is registered.
#[pin_data(PinnedDrop)]
pub struct Registration<T: OutOfMemory> {
    giver: Arc<T>,
    #[pin]
    block: Opaque<bindings::notifier_block>,
    _in_use: InUse,
}

// SAFETY: It can be unregistered by any thread.
unsafe impl<T: OutOfMemory> Send for Registration<T> {}
// SAFETY: There is nothing to do with a reference.
unsafe impl<T: OutOfMemory> Sync for Registration<T> {}

impl<T: OutOfMemory> Registration<T> {
    /// Registers somebody, to be asked after those of a higher priority. Process context.
    pub fn new(giver: Arc<T>, priority: i32) -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            giver,
            _in_use: InUse::new(),
            // INVARIANT: Registered when it succeeds. Last: it may be called at once.
            block <- Opaque::try_ffi_init(|slot: *mut bindings::notifier_block| {
                // SAFETY: `slot` is valid for writes, stays in place, and is unregistered before it
                // goes.
                unsafe {
                    slot.write(pin_init::zeroed());
                    (*slot).notifier_call = Some(Self::callback);
                    (*slot).priority = priority;
                    kernel::error::to_result(bindings::register_oom_notifier(slot))
                }
            }),
        })
    }

    /// # Safety
    ///
    /// Only to be called by the notifier chain, with the `block` of a `Registration<T>` and a pointer
    /// to the number of pages that were freed, which is the caller's.
    unsafe extern "C" fn callback(
        block: *mut bindings::notifier_block,
        _action: ffi::c_ulong,
        freed: *mut ffi::c_void,
    ) -> ffi::c_int {
        // CAST: `Opaque` is a transparent wrapper.
        let block = block.cast::<Opaque<bindings::notifier_block>>();
        // SAFETY: `block` is the field of a `Registration<T>` whose other fields were initialised
        // before it was registered, and which lives until it is unregistered.
        let giver = unsafe { &(*container_of!(block, Self, block)).giver };
        let pages = giver.give();
        // SAFETY: By the requirements of this function.
        unsafe { *freed.cast::<ffi::c_ulong>() += pages };
        bindings::NOTIFY_OK as ffi::c_int
    }
}

#[pinned_drop]
impl<T: OutOfMemory> PinnedDrop for Registration<T> {
    fn drop(self: Pin<&mut Self>) {
        // SAFETY: By the type invariants. Waits for a call that is under way.
        unsafe { bindings::unregister_oom_notifier(self.block.get()) };
    }
}
