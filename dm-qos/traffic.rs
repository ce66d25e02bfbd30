// SPDX-License-Identifier: GPL-2.0

//! Counters of what leaves for the device.

use super::{
    policy::limits::Charge,
    Direction, //
};
use ferrule::percpu::PerCpuCounters;
use kernel::{
    new_mutex,
    prelude::*,
    sync::Mutex, //
};

/// I/Os and bytes for each direction, then what ran ahead of the limits for each.
const COUNTERS: usize = 6;
const AHEAD: usize = 4;

/// I/Os that left for the device since the last reset.
#[pin_data]
pub(crate) struct Traffic {
    counters: PerCpuCounters<COUNTERS>,
    /// What the counters were at the last reset. They cannot be set back while others count.
    #[pin]
    base: Mutex<[u64; COUNTERS]>,
}

impl Traffic {
    pub(crate) fn new() -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            counters: PerCpuCounters::new()?,
            base <- new_mutex!([0; COUNTERS]),
        })
    }

    /// Any context.
    #[inline]
    pub(crate) fn count(&self, direction: Direction, charge: Charge) {
        let first = 2 * direction as usize;
        self.counters
            .add_two(first, [charge.ios.into(), charge.bytes.into()]);
    }

    /// Counts an I/O that ran ahead of the limits. Any context.
    #[cold]
    pub(crate) fn count_ahead(&self, direction: Direction) {
        self.counters.add(AHEAD + direction as usize, 1);
    }

    fn sums(&self) -> [u64; COUNTERS] {
        core::array::from_fn(|which| self.counters.sum(which))
    }

    pub(crate) fn reset(&self) {
        let mut base = self.base.lock();
        *base = self.sums();
    }

    fn since_reset(&self) -> [u64; COUNTERS] {
        let base = self.base.lock();
        let sums = self.sums();
        core::array::from_fn(|which| sums[which].wrapping_sub(base[which]))
    }

    /// I/Os and bytes of a direction.
    pub(crate) fn of(&self, direction: Direction) -> (u64, u64) {
        let counts = self.since_reset();
        let first = 2 * direction as usize;
        (counts[first], counts[first + 1])
    }

    /// How many of a direction ran ahead of the limits.
    pub(crate) fn ahead(&self, direction: Direction) -> u64 {
        self.since_reset()[AHEAD + direction as usize]
    }
}
