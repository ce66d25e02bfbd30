// SPDX-License-Identifier: GPL-2.0

//! How many I/Os of a device wait: what others look at before they pass.
//!
//! Order within a direction is kept because an I/O counts until it was submitted. Who finds that none
//! counts any more also finds that all were submitted.

use super::{
    atomic::AtomicU64,
    Direction, //
};

/// See the module's description.
pub(crate) struct Waiting {
    /// Of each direction: those that are held, or being submitted after having been.
    ios: [AtomicU64; 2],
    /// Those of them that are urgent, until they are taken out to be submitted.
    urgent: AtomicU64,
}

impl Waiting {
    /// Nothing waits.
    pub(crate) fn new() -> Self {
        Self {
            ios: [AtomicU64::new(0), AtomicU64::new(0)],
            urgent: AtomicU64::new(0),
        }
    }

    /// How many wait in a direction.
    #[inline]
    pub(crate) fn of(&self, direction: Direction) -> u64 {
        // Pairs with `leave`.
        self.ios[direction as usize].load_acquire()
    }

    /// Does nothing wait?
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        let [reads, writes] = &self.ios;
        // Pairs with `leave`.
        reads.load_acquire() | writes.load_acquire() == 0
    }

    /// Does anything wait that is urgent?
    pub(crate) fn has_urgent(&self) -> bool {
        self.urgent.load() != 0
    }

    /// An I/O waits from now on.
    pub(crate) fn begin(&self, direction: Direction, is_urgent: bool) {
        self.ios[direction as usize].add(1);
        if is_urgent {
            self.urgent.add(1);
        }
    }

    /// An I/O was taken out to be submitted.
    pub(crate) fn take_out(&self, is_urgent: bool) {
        if is_urgent {
            self.urgent.sub(1);
        }
    }

    /// So many that were taken out have been submitted.
    pub(crate) fn leave(&self, direction: Direction, count: u64) {
        // Whoever sees that sees what was done to submit them.
        self.ios[direction as usize].sub_release(count);
    }
}
