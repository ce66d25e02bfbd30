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

/// What has left for the device in one direction since the last reset.
#[derive(Clone, Copy)]
pub(crate) struct Counts {
    pub(crate) ios: u64,
    pub(crate) bytes: u64,
    /// How many of the I/Os ran ahead of the limits.
    pub(crate) ahead: u64,
}

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

    /// For each direction, all of one moment. Process context.
    pub(crate) fn counts(&self) -> [Counts; 2] {
        let base = self.base.lock();
        let sums = self.sums();
        let since_reset = |which: usize| sums[which].wrapping_sub(base[which]);
        [Direction::Read, Direction::Write].map(|direction| {
            let which = direction as usize;
            Counts {
                ios: since_reset(2 * which),
                bytes: since_reset(2 * which + 1),
                ahead: since_reset(AHEAD + which),
            }
        })
    }
}
