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
    total: PerUnit,
    each: [PerUnit; 2],
    burst: AtomicU64,
    /// So many bytes count as an I/O. 0: every I/O is one.
    io_size: AtomicU64,
    /// What is limited, for those who want to know that first: a bit for each direction, and
    /// [`SHARED`].
    limited: AtomicU64,
}

/// There is a limit on both directions together.
const SHARED: u64 = 1 << 2;

struct PerUnit {
    ios: Limit,
    bytes: Limit,
}

impl PerUnit {
    fn new() -> Self {
        Self {
            ios: Limit::new(),
            bytes: Limit::new(),
        }
    }
}

impl Limits {
    /// No limits at all.
    pub(crate) fn new() -> Self {
        Self {
            total: PerUnit::new(),
            each: [PerUnit::new(), PerUnit::new()],
            burst: AtomicU64::new(0),
            io_size: AtomicU64::new(0),
            limited: AtomicU64::new(0),
        }
    }

    /// Changes the limits. What was charged beyond the burst at another rate is forgiven.
    pub(crate) fn apply(&self, settings: &Settings, now: u64) {
        let burst = settings.burst_ms * TICKS_PER_MS;
        self.burst.store(burst);
        self.io_size.store(settings.io_size);
        let [read, write] = &self.each;
        for (limit, rate) in [
            (&self.total.ios, settings.iops),
            (&self.total.bytes, settings.bps),
            (&read.ios, settings.read_iops),
            (&read.bytes, settings.read_bps),
            (&write.ios, settings.write_iops),
            (&write.bytes, settings.write_bps),
        ] {
            limit.set_rate(rate);
            limit.forgive(burst, now);
        }
        let mut limited = 0;
        for (bits, unit) in [(SHARED | 3, &self.total), (1, read), (2, write)] {
            if unit.ios.is_set() || unit.bytes.is_set() {
                limited |= bits;
            }
        }
        self.limited.store(limited);
    }

    /// Is there a limit on both directions together?
    #[inline]
    pub(crate) fn are_shared(&self) -> bool {
        self.limited.load() & SHARED != 0
    }

    /// Is there a limit that concerns this direction?
    #[inline]
    pub(crate) fn concern(&self, direction: Direction) -> bool {
        self.limited.load() & (1 << direction as u32) != 0
    }

    /// The limits that an I/O is subject to, each with the units that it is charged there.
    #[inline]
    fn units(&self, direction: Direction, charge: Charge) -> [(&Limit, u32); 4] {
        let each = &self.each[direction as usize];
        let ios = self.count(charge);
        [
            (&self.total.ios, ios),
            (&each.ios, ios),
            (&self.total.bytes, charge.bytes),
            (&each.bytes, charge.bytes),
        ]
    }

    /// The same, with what it costs there, where it costs anything.
    #[inline]
    fn costs(&self, direction: Direction, charge: Charge) -> impl Iterator<Item = (&Limit, u64)> {
        self.units(direction, charge)
            .into_iter()
            .map(|(limit, units)| (limit, limit.cost(units)))
            .filter(|&(_, cost)| cost != 0)
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

    /// Charges an I/O if it may leave now.
    #[inline]
    pub(crate) fn try_charge(&self, direction: Direction, charge: Charge, now: u64) -> bool {
        let units = self.units(direction, charge);
        let burst = self.burst.load();
        for (done, &(limit, units_here)) in units.iter().enumerate() {
            let cost = limit.cost(units_here);
            if cost != 0 && !limit.try_charge(cost, burst, now) {
                for &(limit, units) in &units[..done] {
                    limit.refund(limit.cost(units));
                }
                return false;
            }
        }
        true
    }

    /// When an I/O may leave, as things stand.
    pub(crate) fn eligible(&self, direction: Direction, charge: Charge) -> u64 {
        let burst = self.burst.load();
        self.costs(direction, charge)
            .map(|(limit, cost)| limit.eligible(cost, burst))
            .max()
            .unwrap_or(0)
    }

    /// Charges an I/O whatever comes.
    pub(crate) fn charge(&self, direction: Direction, charge: Charge, now: u64) {
        for (limit, cost) in self.costs(direction, charge) {
            limit.charge(cost, now);
        }
    }

    /// Takes back a charge.
    pub(crate) fn refund(&self, direction: Direction, charge: Charge) {
        for (limit, cost) in self.costs(direction, charge) {
            limit.refund(cost);
        }
    }

    /// Charges an I/O that waited since `since` and leaves now: as of the time at which it should
    /// have left, so that being late costs nothing. Of what a stall of more than the burst kept back,
    /// no more than one I/O is made up for: the rest is lost, rather than set loose on the device at
    /// once.
    pub(crate) fn charge_held(&self, direction: Direction, charge: Charge, since: u64, now: u64) {
        let at = self.eligible(direction, charge).max(since);
        for (limit, cost) in self.costs(direction, charge) {
            limit.charge(cost, at.max(now.saturating_sub(cost)).min(now));
        }
    }
}

/// What is to be done next with the I/Os that wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// None waits.
    Nothing,
    /// The first one in this direction leaves.
    Release(Direction),
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
        if eligible[direction as usize].is_some_and(|time| time <= now) {
            return Next::Release(direction);
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
