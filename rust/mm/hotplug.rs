// SPDX-License-Identifier: GPL-2.0

//! Memory that is about to go offline.
//!
//! 1. Implement [`Offline`] for what has memory that nobody can move, and mark that memory as offline
//!    (`PageOffline`): memory management counts on its owner then.
//! 2. Keep a [`Registration`] of it.
//!
//! | C | here |
//! | --- | --- |
//! | `struct notifier_block` and what contains it | [`Registration`] |
//! | `MEM_GOING_OFFLINE`, `struct memory_notify` | [`Offline::going`] |
//! | `register_memory_notifier`, `unregister_memory_notifier` | [`Registration::new`], drop |
//!
//! C header: `include/linux/memory.h`

use crate::{
    bindings,
    module::InUse, //
};
use core::ops::Range;
use kernel::{
    container_of,
    ffi,
    prelude::*,
    sync::Arc,
    types::Opaque, //
};

/// Has memory that nobody else can move.
pub trait Offline: Send + Sync + 'static {
    /// The memory of these page frame numbers is about to go offline, and nobody can allocate it any more.
    /// What is freed of it stays free. It may not go offline after all.
    ///
    /// Process context, with memory hotplug locked.
    fn going(&self, pfns: Range<u64>);
}

/// Keeps somebody registered who has such memory.
///
/// Nobody is told if memory cannot go offline (`CONFIG_MEMORY_HOTPLUG`).
///
/// # Invariants
///
/// `block` is registered.
#[pin_data(PinnedDrop)]
pub struct Registration<T: Offline> {
    owner: Arc<T>,
    #[pin]
    block: Opaque<bindings::notifier_block>,
    _in_use: InUse,
}

// SAFETY: It can be unregistered by any thread.
unsafe impl<T: Offline> Send for Registration<T> {}
// SAFETY: There is nothing to do with a reference.
unsafe impl<T: Offline> Sync for Registration<T> {}

impl<T: Offline> Registration<T> {
    /// Registers somebody. Process context.
    pub fn new(owner: Arc<T>) -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            owner,
            _in_use: InUse::new(),
            // INVARIANT: Registered when it succeeds. Last: it may be called at once.
            block <- Opaque::try_ffi_init(|slot: *mut bindings::notifier_block| {
                // SAFETY: `slot` is valid for writes, stays in place, and is unregistered before it
                // goes.
                unsafe {
                    slot.write(pin_init::zeroed());
                    (*slot).notifier_call = Some(Self::callback);
                    kernel::error::to_result(bindings::ferrule_register_memory_notifier(slot))
                }
            }),
        })
    }

    /// # Safety
    ///
    /// Only to be called by the notifier chain of memory hotplug, with the `block` of a
    /// `Registration<T>`, and what belongs to the event.
    unsafe extern "C" fn callback(
        block: *mut bindings::notifier_block,
        event: ffi::c_ulong,
        data: *mut ffi::c_void,
    ) -> ffi::c_int {
        // CAST: `Opaque` is a transparent wrapper.
        let block = block.cast::<Opaque<bindings::notifier_block>>();
        // SAFETY: `block` is the field of a `Registration<T>` whose other fields were initialised
        // before it was registered, and which lives until it is unregistered.
        let owner = unsafe { &(*container_of!(block, Self, block)).owner };
        let mut first = 0;
        // SAFETY: By the requirements of this function; `first` is valid for writes.
        let count = unsafe { bindings::ferrule_going_offline(event, data, &mut first) };
        if count > 0 {
            owner.going(first as u64..first as u64 + count as u64);
        }
        bindings::NOTIFY_OK as ffi::c_int
    }
}

#[pinned_drop]
impl<T: Offline> PinnedDrop for Registration<T> {
    fn drop(self: Pin<&mut Self>) {
        // SAFETY: By the type invariants. Waits for a call that is under way.
        unsafe { bindings::ferrule_unregister_memory_notifier(self.block.get()) };
    }
}
