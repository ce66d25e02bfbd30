// SPDX-License-Identifier: GPL-2.0

//! Waiting for a device.

use crate::bindings;
use core::ptr;
use kernel::{
    ffi,
    prelude::*,
    sync::LockClassKey,
    time::Jiffies,
    types::Opaque, //
};

/// A `wait_queue_head`.
///
/// [`kernel::sync::CondVar`] has no uninterruptible wait with a time limit, which a driver needs:
/// a signal for the task that happens to wait says nothing about the device.
#[pin_data]
pub(crate) struct WaitQueue {
    #[pin]
    head: Opaque<bindings::wait_queue_head>,
}

// SAFETY: A `wait_queue_head` can be used from any thread.
unsafe impl Send for WaitQueue {}
// SAFETY: The functions of a `wait_queue_head` synchronise themselves.
unsafe impl Sync for WaitQueue {}

impl WaitQueue {
    pub(crate) fn new(name: &'static CStr, key: Pin<&'static LockClassKey>) -> impl PinInit<Self> {
        pin_init!(Self {
            head <- Opaque::ffi_init(|slot| {
                // SAFETY: `slot` is valid for writes; the name and the key live for ever.
                unsafe { bindings::__init_waitqueue_head(slot, name.as_char_ptr(), key.as_ptr()) }
            }),
        })
    }

    /// Wakes all waiters. Any context.
    pub(crate) fn wake(&self) {
        // SAFETY: `head` is initialised.
        unsafe { bindings::__wake_up(self.head.get(), bindings::TASK_NORMAL, 0, ptr::null_mut()) };
    }

    /// Waits until `ready` returns something, at most for `timeout`. Process context.
    ///
    /// The wait is idle: it counts neither as load nor as a hung task, since it depends on the
    /// host. `ready` is called with the task marked as sleeping, so it must not sleep.
    pub(crate) fn wait<R>(
        &self,
        timeout: Jiffies,
        mut ready: impl FnMut() -> Option<R>,
    ) -> Option<R> {
        if let Some(result) = ready() {
            return Some(result);
        }

        let wait = Opaque::<bindings::wait_queue_entry>::uninit();
        // SAFETY: `wait` is valid for writes.
        unsafe { bindings::init_wait(wait.get()) };

        let mut left = timeout.try_into().unwrap_or(ffi::c_long::MAX);
        let result = loop {
            // SAFETY: Both are initialised, and `wait` is taken off the queue below.
            unsafe {
                bindings::prepare_to_wait(
                    self.head.get(),
                    wait.get(),
                    bindings::TASK_IDLE as ffi::c_int,
                )
            };
            let result = ready();
            if result.is_some() || left == 0 {
                break result;
            }
            // SAFETY: The caller may sleep.
            left = unsafe { bindings::schedule_timeout(left) };
        };
        // SAFETY: Both are initialised.
        unsafe { bindings::finish_wait(self.head.get(), wait.get()) };
        result
    }
}
