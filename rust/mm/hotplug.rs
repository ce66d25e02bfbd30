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
    notifier::{
        self,
        Chain, //
    }, //
};
use core::ops::Range;
use kernel::{
    ffi,
    prelude::*,
    sync::Arc, //
};

/// Has memory that nobody else can move.
pub trait Offline: Send + Sync + 'static {
    /// The memory of these page frame numbers is about to go offline, and nobody can allocate it any more.
    /// What is freed of it stays free. It may not go offline after all.
    ///
    /// Process context, with memory hotplug locked.
    fn going(&self, pfns: Range<u64>);
}

/// The notifier chain of memory hotplug.
pub struct Hotplug(());

// SAFETY: A chain of `drivers/base/memory.c`, a blocking one. Without memory hotplug nobody is called.
unsafe impl<T: Offline> Chain<T> for Hotplug {
    unsafe fn register(block: *mut bindings::notifier_block) -> ffi::c_int {
        // SAFETY: By the requirements of this function.
        unsafe { bindings::ferrule_register_memory_notifier(block) }
    }

    unsafe fn unregister(block: *mut bindings::notifier_block) {
        // SAFETY: By the requirements of this function.
        unsafe { bindings::ferrule_unregister_memory_notifier(block) }
    }

    unsafe fn tell(who: &T, event: ffi::c_ulong, data: *mut ffi::c_void) {
        let mut first = 0;
        // SAFETY: By the requirements of this function; `first` is valid for writes.
        let count = unsafe { bindings::ferrule_going_offline(event, data, &mut first) };
        if count > 0 {
            who.going(first as u64..first as u64 + count as u64);
        }
    }
}

/// Keeps somebody registered who has such memory.
///
/// Nobody is told if memory cannot go offline (`CONFIG_MEMORY_HOTPLUG`).
pub type Registration<T> = notifier::Registration<T, Hotplug>;

impl<T: Offline> Registration<T> {
    /// Registers somebody. Process context.
    pub fn new(owner: Arc<T>) -> impl PinInit<Self, Error> {
        Self::with_priority(owner, 0)
    }
}
