// SPDX-License-Identifier: GPL-2.0

//! Being told that the system is about to sleep, while everything still runs.
//!
//! 1. Implement [`Sleeper`] for what has to be done before the tasks are frozen, and work with them.
//! 2. Keep a [`Registration`] of it.
//!
//! | C | here |
//! | --- | --- |
//! | `struct notifier_block` and what contains it | [`Registration`] |
//! | `PM_SUSPEND_PREPARE`, `PM_HIBERNATION_PREPARE`, `PM_RESTORE_PREPARE` | [`Sleeper::prepare`] |
//! | `PM_POST_SUSPEND`, `PM_POST_HIBERNATION`, `PM_POST_RESTORE` | [`Sleeper::complete`] |
//! | `register_pm_notifier`, `unregister_pm_notifier` | [`Registration::new`], drop |
//!
//! C header: `include/linux/suspend.h`

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

/// Has something to do before the system sleeps.
pub trait Sleeper: Send + Sync + 'static {
    /// The system is about to sleep, be it in RAM or on disk: soon the tasks will be frozen, and then
    /// the devices.
    ///
    /// Process context; with the notifiers locked, so that no [`Registration`] can be made or dropped.
    fn prepare(&self);

    /// It sleeps no more, or did not at all: the devices and tasks are as usual. Context as of
    /// [`prepare`](Self::prepare).
    fn complete(&self);
}

/// The notifier chain of power management.
pub struct Power(());

// SAFETY: A chain of `kernel/power/main.c`, a blocking one. Where the kernel cannot sleep nobody is called.
unsafe impl<T: Sleeper> Chain<T> for Power {
    unsafe fn register(block: *mut bindings::notifier_block) -> ffi::c_int {
        // SAFETY: By the requirements of this function.
        unsafe { bindings::ferrule_register_pm_notifier(block) }
    }

    unsafe fn unregister(block: *mut bindings::notifier_block) {
        // SAFETY: By the requirements of this function.
        unsafe { bindings::ferrule_unregister_pm_notifier(block) };
    }

    unsafe fn tell(who: &T, event: ffi::c_ulong, _data: *mut ffi::c_void) {
        match event as u32 {
            bindings::PM_SUSPEND_PREPARE
            | bindings::PM_HIBERNATION_PREPARE
            | bindings::PM_RESTORE_PREPARE => who.prepare(),
            bindings::PM_POST_SUSPEND
            | bindings::PM_POST_HIBERNATION
            | bindings::PM_POST_RESTORE => who.complete(),
            _ => {}
        }
    }
}

/// Keeps somebody registered who has something to do before the system sleeps.
///
/// Nobody is told if the kernel cannot sleep (`CONFIG_PM_SLEEP`).
pub type Registration<T> = notifier::Registration<T, Power>;

impl<T: Sleeper> Registration<T> {
    /// Registers somebody. Process context.
    pub fn new(sleeper: Arc<T>) -> impl PinInit<Self, Error> {
        Self::with_priority(sleeper, 0)
    }
}
