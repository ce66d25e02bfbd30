// SPDX-License-Identifier: GPL-2.0

//! The limits of a device, and which I/O is let through when.
//!
//! An I/O is subject to up to four limits: I/Os and bytes, in its direction and in total. It may
//! leave when all of them let it, and is charged to all of them.
//!
//! The capacity of a group is kept by the same code: limits in total, of a device that all members
//! share.
//!
//! Nothing here but integers: tested on the host (`selftests/unit`).

use super::{
    atomic::AtomicU64,
    gcra::{
        Limit,
        Now,
        TICKS_PER_MS,
        TICKS_PER_NS, //
    },
    settings::Settings,
    Direction, //
};

/// What an I/O is charged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Charge {
    /// I/Os that the device makes of it.
    pub(crate) ios: u32,
    /// Bytes.
    pub(crate) bytes: u32,
}

/// The limits of one device. Any of its methods may be called at any time on any CPU.
pub(crate) struct Limits {
    /// I/Os and bytes: in total, of reads, of writes.
    limits: [Limit; 6],
    /// Which of them are set: a bit for each.
    set: AtomicU64,
    burst: AtomicU64,
    /// So many bytes count as an I/O. 0: every I/O is one.
    io_size: AtomicU64,
}

/// Those in total, among [`Limits::set`].
const TOTAL: u64 = 0b11;
/// Those of reads. Those of writes follow.
const READ: u64 = 0b1100;

/// Some of the limits that an I/O is subject to.
#[derive(Clone, Copy)]
pub(crate) struct Subset(u64);

impl Subset {
    /// None at all.
    #[inline]
    pub(crate) fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Those that come before this one.
    fn before(self, which: usize) -> Self {
        Self(self.0 & ((1 << which) - 1))
    }
}

impl Iterator for Subset {
    type Item = usize;

    #[inline]
    fn next(&mut self) -> Option<usize> {
        let first = self.0.trailing_zeros() as usize;
        self.0 &= self.0.wrapping_sub(1);
        (first < 6).then_some(first)
    }
}

impl Limits {
    /// No limits at all.
    pub(crate) fn new() -> Self {
        Self {
            limits: core::array::from_fn(|_| Limit::new()),
            set: AtomicU64::new(0),
            burst: AtomicU64::new(0),
            io_size: AtomicU64::new(0),
        }
    }

    /// Changes the limits. What was charged beyond the burst at another rate is forgiven.
    pub(crate) fn apply(&self, settings: &Settings, now: u64) {
        let burst = settings.burst_ms * TICKS_PER_MS;
        self.burst.store(burst);
        self.io_size.store(settings.io_size);
        let rates = [
            settings.iops,
            settings.bps,
            settings.read_iops,
            settings.read_bps,
            settings.write_iops,
            settings.write_bps,
        ];
        let mut set = 0;
        for (which, (limit, rate)) in self.limits.iter().zip(rates).enumerate() {
            limit.set_rate(rate);
            limit.forgive(burst, now);
            set |= u64::from(limit.is_set()) << which;
        }
        self.set.store(set);
    }

    /// By how much of what is idle it may be exceeded later, in ticks.
    pub(crate) fn burst(&self) -> u64 {
        self.burst.load()
    }

    /// Is there a limit on both directions together?
    #[inline]
    pub(crate) fn are_shared(&self) -> bool {
        self.set.load() & TOTAL != 0
    }

    /// The limits that an I/O in this direction is subject to.
    #[inline]
    pub(crate) fn on(&self, direction: Direction) -> Subset {
        Subset(self.set.load() & (TOTAL | READ << (2 * direction as u32)))
    }

    /// What an I/O costs by each of those limits, as far as it costs anything.
    #[inline]
    fn costs(&self, on: Subset, charge: Charge) -> impl Iterator<Item = (usize, &Limit, u64)> {
        let ios = self.count(charge);
        on.filter_map(move |which| {
            let limit = &self.limits[which];
            let units = if which % 2 == 0 { ios } else { charge.bytes };
            let cost = limit.cost(units);
            (cost != 0).then_some((which, limit, cost))
        })
    }

    /// How many I/Os it counts as: those that the device makes of it, or those that its size makes.
    #[inline]
    pub(crate) fn count(&self, charge: Charge) -> u32 {
        match self.io_size.load() {
            0 => charge.ios,
            size => charge
                .ios
                .max(u64::from(charge.bytes).div_ceil(size) as u32),
        }
    }

    /// Charges an I/O if these limits let it leave now.
    #[inline]
    pub(crate) fn try_charge(&self, on: Subset, charge: Charge, now: impl Into<Now>) -> bool {
        let now = now.into();
        let burst = self.burst.load();
        for (which, limit, cost) in self.costs(on, charge) {
            if !limit.try_charge(cost, burst, now) {
                self.refund(on.before(which), charge);
                return false;
            }
        }
        true
    }

    /// When an I/O may leave, as things stand.
    #[inline]
    pub(crate) fn eligible(&self, direction: Direction, charge: Charge) -> u64 {
        let burst = self.burst.load();
        self.costs(self.on(direction), charge)
            .map(|(_, limit, cost)| limit.eligible(cost, burst))
            .max()
            .unwrap_or(0)
    }

    /// Charges an I/O whatever comes.
    pub(crate) fn charge(&self, direction: Direction, charge: Charge, now: u64) {
        for (_, limit, cost) in self.costs(self.on(direction), charge) {
            limit.charge(cost, now);
        }
    }

    /// Takes back a charge.
    #[cold]
    pub(crate) fn refund(&self, on: Subset, charge: Charge) {
        for (_, limit, cost) in self.costs(on, charge) {
            limit.refund(cost);
        }
    }

    /// Charges an I/O that waited and leaves now: as of the time `due` at which it should have left,
    /// so that being late costs nothing. Of what a stall of more than the burst kept back, no more
    /// than one I/O is made up for: the rest is lost, rather than set loose on the device at once.
    #[inline]
    pub(crate) fn charge_held(&self, direction: Direction, charge: Charge, due: u64, now: u64) {
        for (_, limit, cost) in self.costs(self.on(direction), charge) {
            limit.charge(cost, due.max(now.saturating_sub(cost)).min(now));
        }
    }
}

/// What is to be done next with the I/Os that wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// None waits.
    Nothing,
    /// The first one in this direction leaves. It might have from this time on, in ticks.
    Release(Direction, u64),
    /// None may leave before this time, in ticks.
    Wait(u64),
}

/// Decides on what waits: `eligible` has, for each direction, when the first I/O may leave. When both
/// may, they take turns: what waits in one direction does not wait for all that waits in the other.
pub(crate) fn next(eligible: [Option<u64>; 2], last: Direction, now: u64) -> Next {
    let other = match last {
        Direction::Read => Direction::Write,
        Direction::Write => Direction::Read,
    };
    for direction in [other, last] {
        match eligible[direction as usize] {
            Some(time) if time <= now => return Next::Release(direction, time),
            _ => {}
        }
    }
    match eligible.into_iter().flatten().min() {
        Some(time) => Next::Wait(time),
        None => Next::Nothing,
    }
}

/// Ticks as nanoseconds, rounded up: a timer must not fire early.
pub(crate) fn ticks_to_ns(ticks: u64) -> u64 {
    ticks.div_ceil(TICKS_PER_NS)
}
