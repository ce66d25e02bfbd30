// SPDX-License-Identifier: GPL-2.0

//! Staying awake while a device has something for the guest to do.
//!
//! C header: `include/linux/pm_wakeup.h`

use super::Device;
use crate::{
    bindings,
    compat::{
        new_spinlock_irq,
        SpinLockIrq, //
    }, //
};
use kernel::{
    device,
    prelude::*,
    sync::aref::ARef, //
};

/// The wakeup source of a virtio device, which keeps the system from going to sleep while there is
/// work to be done for it. It does so only when that is enabled for the device (`power/wakeup` in
/// sysfs).
///
/// It counts no calls: what wakes is a set of reasons, each a bit of the driver's choice, so that
/// something that comes up again while it is being handled is not lost.
#[pin_data(PinnedDrop)]
pub struct WakeupSource {
    dev: ARef<device::Device>,
    /// Taken in any context, for a moment. Inside it the power management core locks what it needs.
    #[pin]
    state: SpinLockIrq<State>,
}

struct State {
    reasons: u32,
    is_awake: bool,
}

impl WakeupSource {
    /// Makes the device able to wake the system up (`device_set_wakeup_capable`); it stays so, with
    /// what was set in sysfs, for the next driver. Process context.
    pub fn new(dev: &Device<device::Core<'_>>) -> impl PinInit<Self, Error> {
        let dev: ARef<device::Device> = dev.as_ref().into();
        // SAFETY: The device is valid.
        unsafe { bindings::ferrule_device_set_wakeup_capable(raw(&dev)) };
        try_pin_init!(Self {
            dev,
            state <- new_spinlock_irq!(State { reasons: 0, is_awake: false }, "virtio_wakeup"),
        })
    }

    /// Something has to be done: the system stays awake. Any context.
    pub fn raise(&self, reason: u32) {
        let mut state = self.state.lock();
        state.reasons |= reason;
        if !state.is_awake {
            state.is_awake = true;
            // SAFETY: The device is valid.
            unsafe { bindings::ferrule_pm_stay_awake(raw(&self.dev)) };
        }
    }

    /// It is about to be done: from now on it would be a new one. Any context.
    pub fn begin(&self, reason: u32) {
        self.state.lock().reasons &= !reason;
    }

    /// It is done: the system may sleep unless there are other reasons. Any context.
    pub fn end(&self) {
        let mut state = self.state.lock();
        if state.reasons == 0 {
            self.relax(&mut state);
        }
    }

    /// There is nothing to be done any more. Any context.
    pub fn clear(&self) {
        let mut state = self.state.lock();
        state.reasons = 0;
        self.relax(&mut state);
    }

    fn relax(&self, state: &mut State) {
        if state.is_awake {
            state.is_awake = false;
            // SAFETY: The device is valid.
            unsafe { bindings::ferrule_pm_relax(raw(&self.dev)) };
        }
    }
}

#[pinned_drop]
impl PinnedDrop for WakeupSource {
    fn drop(self: Pin<&mut Self>) {
        self.clear();
    }
}

fn raw(dev: &device::Device) -> *mut bindings::device {
    // CAST: `device::Device` is a transparent wrapper.
    core::ptr::from_ref(dev).cast_mut().cast()
}
