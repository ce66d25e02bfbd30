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
    module::InUse, //
};
use kernel::{
    container_of,
    ffi,
    prelude::*,
    sync::Arc,
    types::Opaque, //
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

/// Keeps somebody registered who has something to do before the system sleeps.
///
/// Nobody is told if the kernel cannot sleep (`CONFIG_PM_SLEEP`).
///
/// # Invariants
///
/// `block` is registered.
#[pin_data(PinnedDrop)]
pub struct Registration<T: Sleeper> {
    sleeper: Arc<T>,
    #[pin]
    block: Opaque<bindings::notifier_block>,
    _in_use: InUse,
}

// SAFETY: It can be unregistered by any thread.
unsafe impl<T: Sleeper> Send for Registration<T> {}
// SAFETY: There is nothing to do with a reference.
unsafe impl<T: Sleeper> Sync for Registration<T> {}

impl<T: Sleeper> Registration<T> {
    /// Registers somebody. Process context.
    pub fn new(sleeper: Arc<T>) -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            sleeper,
            _in_use: InUse::new(),
            // INVARIANT: Registered when it succeeds. Last: it may be called at once.
            block <- Opaque::try_ffi_init(|slot: *mut bindings::notifier_block| {
                // SAFETY: `slot` is valid for writes, stays in place, and is unregistered before it
                // goes.
                unsafe {
                    slot.write(pin_init::zeroed());
                    (*slot).notifier_call = Some(Self::callback);
                    kernel::error::to_result(bindings::ferrule_register_pm_notifier(slot))
                }
            }),
        })
    }

    /// # Safety
    ///
    /// Only to be called by the notifier chain, with the `block` of a `Registration<T>`.
    unsafe extern "C" fn callback(
        block: *mut bindings::notifier_block,
        event: ffi::c_ulong,
        _data: *mut ffi::c_void,
    ) -> ffi::c_int {
        // CAST: `Opaque` is a transparent wrapper.
        let block = block.cast::<Opaque<bindings::notifier_block>>();
        // SAFETY: `block` is the field of a `Registration<T>` whose other fields were initialised
        // before it was registered, and which lives until it is unregistered.
        let sleeper = unsafe { &(*container_of!(block, Self, block)).sleeper };
        match event as u32 {
            bindings::PM_SUSPEND_PREPARE
            | bindings::PM_HIBERNATION_PREPARE
            | bindings::PM_RESTORE_PREPARE => sleeper.prepare(),
            bindings::PM_POST_SUSPEND
            | bindings::PM_POST_HIBERNATION
            | bindings::PM_POST_RESTORE => sleeper.complete(),
            _ => return bindings::NOTIFY_DONE as ffi::c_int,
        }
        bindings::NOTIFY_OK as ffi::c_int
    }
}

#[pinned_drop]
impl<T: Sleeper> PinnedDrop for Registration<T> {
    fn drop(self: Pin<&mut Self>) {
        // SAFETY: By the type invariants. Waits for a call that is under way.
        unsafe { bindings::ferrule_unregister_pm_notifier(self.block.get()) };
    }
}
