// SPDX-License-Identifier: GPL-2.0

//! Freezing a device before the system would.

use super::{
    device::Link,
    Device, //
};
use crate::bindings;
use kernel::{
    error::to_result,
    prelude::*,
    sync::{
        aref::ARef,
        Arc, //
    },
    time::{
        delay::fsleep,
        Delta, //
    }, //
};

/// Freezes a device while everything still runs, and restores it: for a driver for which something
/// waits that has to be frozen, and that only a reset of the device ends.
///
/// [`Driver::freeze`](super::Driver::freeze) is called then, and not once more by the system; and
/// [`Driver::restore`](super::Driver::restore) by whoever comes first. To be kept, and used in
/// [`Sleeper::prepare`](crate::power::Sleeper::prepare) and
/// [`complete`](crate::power::Sleeper::complete), where the system itself does neither.
pub struct EarlyFreezer {
    dev: ARef<Device>,
    link: Arc<Link>,
}

impl EarlyFreezer {
    pub(super) fn new(dev: ARef<Device>, link: Arc<Link>) -> Self {
        Self { dev, link }
    }

    /// Freezes the device. Process context, with no lock that a callback of the driver takes.
    ///
    /// # Errors
    ///
    /// Those of the driver; [`ENODEV`] and nothing done when `probe` has not returned, or `unbind` is
    /// called: so that may wait for the caller. [`EOPNOTSUPP`] without `CONFIG_PM_SLEEP`.
    pub fn freeze(&self) -> Result {
        self.with_locked(|vdev| {
            // SAFETY: The device is valid, bound and locked, and none of its driver's callbacks runs.
            to_result(unsafe { bindings::ferrule_virtio_freeze(vdev) })
        })
    }

    /// Restores the device if it is frozen. Context and errors as of [`freeze`](Self::freeze).
    pub fn restore(&self) -> Result {
        if !self.link.is_frozen() {
            return Ok(());
        }
        self.with_locked(|vdev| {
            if !self.link.is_frozen() {
                return Ok(());
            }
            // SAFETY: As in `freeze`.
            to_result(unsafe { bindings::ferrule_virtio_restore(vdev) })
        })
    }

    /// Calls a function with the device bound and locked, as the driver core has it for callbacks.
    fn with_locked(&self, f: impl FnOnce(*mut bindings::virtio_device) -> Result) -> Result {
        let vdev = self.dev.as_raw();
        loop {
            // Who unbinds the device has locked it, and may wait for us.
            if !self.link.is_ready() {
                return Err(ENODEV);
            }
            // SAFETY: The device is valid as long as there is a reference.
            if unsafe { bindings::ferrule_virtio_trylock(vdev) } {
                break;
            }
            fsleep(Delta::from_millis(1));
        }
        let result = if self.link.is_ready() {
            f(vdev)
        } else {
            Err(ENODEV)
        };
        // SAFETY: It was locked above.
        unsafe { bindings::ferrule_virtio_unlock(vdev) };
        result
    }
}
