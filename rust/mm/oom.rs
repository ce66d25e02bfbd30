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
    notifier::{
        self,
        Chain, //
    }, //
};
use kernel::{
    ffi,
    prelude::*,
    sync::Arc, //
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

/// The notifier chain of the OOM killer.
pub struct Oom(());

// SAFETY: A chain of `mm/oom_kill.c`, a blocking one.
unsafe impl<T: OutOfMemory> Chain<T> for Oom {
    unsafe fn register(block: *mut bindings::notifier_block) -> ffi::c_int {
        // SAFETY: By the requirements of this function.
        unsafe { bindings::register_oom_notifier(block) }
    }

    unsafe fn unregister(block: *mut bindings::notifier_block) {
        // SAFETY: By the requirements of this function.
        unsafe { bindings::unregister_oom_notifier(block) };
    }

    unsafe fn tell(who: &T, _event: ffi::c_ulong, freed: *mut ffi::c_void) {
        let pages = who.give();
        // SAFETY: By the requirements of this function it is the number of pages that were freed, which
        // is the caller's.
        unsafe { *freed.cast::<ffi::c_ulong>() += pages };
    }
}

/// Keeps somebody registered who has memory to give.
pub type Registration<T> = notifier::Registration<T, Oom>;

impl<T: OutOfMemory> Registration<T> {
    /// Registers somebody, to be asked after those of a higher priority. Process context.
    pub fn new(giver: Arc<T>, priority: i32) -> impl PinInit<Self, Error> {
        Self::with_priority(giver, priority)
    }
}
