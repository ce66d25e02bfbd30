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
        Rate,
        TICKS_PER_MS,
        TICKS_PER_NS, //
    },
    settings::Settings,
    Direction, //
};

/// What is urgent (metadata) may have this part of each limit for certain, one in so many, whatever
/// else waits.
pub(crate) const AHEAD_PART: u64 = 2;
/// And so much of that at once, in ticks,
pub(crate) const AHEAD: u64 = 1000 * TICKS_PER_MS;
/// or so many I/Os, if that is more: to find a file takes some.
pub(crate) const AHEAD_IOS: u32 = 16;
/// Of this size, where bytes are limited.
const LEAST_IO: u32 = 4096;

/// The limits of a device, as [`Limits::set`] takes them.
fn rates(settings: &Settings) -> [Rate; 6] {
    [
        settings.iops,
        settings.bps,
        settings.read_iops,
        settings.read_bps,
        settings.write_iops,
        settings.write_bps,
    ]
    .map(Rate::new)
}

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
    /// I/Os and bytes, in pairs: in total, of reads, of writes.
    limits: [[Limit; 2]; 3],
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
            limits: core::array::from_fn(|_| [Limit::new(), Limit::new()]),
            set: AtomicU64::new(0),
            burst: AtomicU64::new(0),
            io_size: AtomicU64::new(0),
        }
    }

    /// Changes the limits of I/Os and bytes, in total, of reads, of writes; 0: none. Those that remain
    /// as they are go on as if nothing had been said; see [`Limit::change`] for the others.
    ///
    /// The burst, in ticks, has room for so many I/Os at least, of [`LEAST_IO`] bytes.
    fn set(&self, rates: [Rate; 6], (burst, least): (u64, u32), io_size: u64, now: u64) {
        self.io_size.store(io_size);
        for (which, (limit, rate)) in self.all().zip(rates).enumerate() {
            let units = if which % 2 == 0 {
                least
            } else {
                least * LEAST_IO
            };
            limit.change(rate, burst.max(rate.cost(units)), now);
        }
        self.burst.store(burst);
        self.restore();
    }

    fn all(&self) -> impl Iterator<Item = &Limit> {
        self.limits.as_flattened().iter()
    }

    #[inline]
    fn limit(&self, which: usize) -> &Limit {
        &self.limits[which / 2][which % 2]
    }

    /// No limit applies until [`Self::restore`]. What is charged is as it was.
    pub(crate) fn lift(&self) {
        self.set.store(0);
    }

    /// All limits apply again. One at a time with [`Self::set`] and its like.
    pub(crate) fn restore(&self) {
        let set = self.all().enumerate();
        let set = set.map(|(which, limit)| u64::from(limit.is_set()) << which);
        self.set.store(set.sum());
    }

    /// As [`Self::set`], with the limits of a device.
    pub(crate) fn apply(&self, settings: &Settings, now: u64) {
        let burst = settings.burst_ms * TICKS_PER_MS;
        self.set(rates(settings), (burst, 0), settings.io_size, now);
    }

    /// As [`Self::set`]: how far what is urgent may run ahead of the limits of a device.
    pub(crate) fn apply_ahead(&self, settings: &Settings, now: u64) {
        let parts = rates(settings).map(|rate| rate.slowed(AHEAD_PART));
        self.set(parts, (AHEAD, AHEAD_IOS), settings.io_size, now);
    }

    /// As [`Self::set`]: how far it may run ahead of so many I/Os and bytes per second.
    pub(crate) fn apply_part(&self, iops: u64, bps: u64, now: u64) {
        let rates = [iops, bps, 0, 0, 0, 0].map(|rate| Rate::new(rate).slowed(AHEAD_PART));
        self.set(rates, (AHEAD, AHEAD_IOS), 0, now);
    }

    /// Goes on where the limits of another table of the same device are. Not while anything is charged
    /// to these.
    pub(crate) fn go_on_from(&self, other: &Limits, now: u64) {
        for (limit, other) in self.all().zip(other.all()) {
            limit.go_on_from(other, now);
        }
    }

    /// How long it takes until all that passed is paid for, as far as it concerns a direction, in ticks.
    pub(crate) fn debt(&self, direction: Direction, now: u64) -> u64 {
        let debts = self.on(direction).map(|which| self.limit(which).debt(now));
        debts.max().unwrap_or(0)
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
            let limit = self.limit(which);
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
    ///
    /// Each I/O comes here: it takes what [`Self::costs`] says without the detour of an iterator.
    #[inline(always)]
    pub(crate) fn try_charge(&self, on: Subset, charge: Charge, now: impl Into<Now>) -> bool {
        let now = now.into();
        let ios = self.count(charge);
        let mut bit = 1;
        for [of_ios, of_bytes] in &self.limits {
            if on.0 < bit {
                break;
            }
            for (limit, units) in [(of_ios, ios), (of_bytes, charge.bytes)] {
                if on.0 & bit != 0 {
                    let cost = limit.cost(units);
                    if cost != 0 && !limit.try_charge(cost, now) {
                        self.refund(Subset(on.0 & (bit - 1)), charge);
                        return false;
                    }
                }
                bit <<= 1;
            }
        }
        true
    }

    /// When an I/O may leave, as things stand.
    #[inline]
    pub(crate) fn eligible(&self, direction: Direction, charge: Charge) -> u64 {
        self.costs(self.on(direction), charge)
            .map(|(_, limit, cost)| limit.eligible(cost))
            .max()
            .unwrap_or(0)
    }

    /// Charges an I/O whatever comes.
    pub(crate) fn charge(&self, direction: Direction, charge: Charge, now: u64) {
        for (_, limit, cost) in self.costs(self.on(direction), charge) {
            limit.charge(cost, now);
        }
    }

    /// As [`Self::charge_held`], but so that no more than `most` is left to be paid for (or this I/O,
    /// where that is more).
    pub(crate) fn charge_up_to(
        &self,
        direction: Direction,
        charge: Charge,
        due: u64,
        now: u64,
        most: u64,
    ) {
        for (_, limit, cost) in self.costs(self.on(direction), charge) {
            let at = due.max(now.saturating_sub(cost)).min(now);
            limit.charge_up_to(cost, at, most.max(cost));
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

/// When the first I/Os of one direction may leave.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Waiting {
    /// The first of the ordinary ones: as the limits have it.
    pub(crate) ordinary: Option<u64>,
    /// The first of the urgent ones: as the limits have it, and ahead of them.
    pub(crate) urgent: Option<(u64, u64)>,
}

/// An I/O that leaves: the first of its kind in its direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Choice {
    pub(crate) direction: Direction,
    pub(crate) is_urgent: bool,
    /// It is not the limits that let it leave, but what is set apart for the urgent.
    pub(crate) is_ahead: bool,
    /// From when on it might have left, in ticks.
    pub(crate) due: u64,
}

/// What is to be done next with the I/Os that wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// None waits.
    Nothing,
    /// This one leaves.
    Release(Choice),
    /// None may leave before this time, in ticks.
    Wait(u64),
}

/// Decides on what waits, for each direction.
///
/// The urgent goes first as far as a part of the limits is set apart for it. What the limits let leave
/// beside that is for the ordinary, as long as any waits, so that neither can starve the other. When
/// both directions may, they take turns: what waits in one does not wait for all that waits in the other.
pub(crate) fn next(waiting: [Waiting; 2], last: Direction, now: u64) -> Next {
    let other = match last {
        Direction::Read => Direction::Write,
        Direction::Write => Direction::Read,
    };
    let first = |is_urgent, is_ahead, eligible: fn(&Waiting) -> Option<u64>| {
        [other, last].into_iter().find_map(|direction| {
            let due = eligible(&waiting[direction as usize]).filter(|due| *due <= now)?;
            Some(Choice {
                direction,
                is_urgent,
                is_ahead,
                due,
            })
        })
    };
    let ahead = || first(true, true, |one| Some(one.urgent?.1));
    let urgent = || first(true, false, |one| Some(one.urgent?.0));
    let ordinary = || first(false, false, |one| one.ordinary);

    let choice = if waiting.iter().any(|one| one.ordinary.is_some()) {
        ahead().or_else(ordinary).or_else(urgent)
    } else {
        urgent().or_else(ahead)
    };
    if let Some(choice) = choice {
        return Next::Release(choice);
    }
    let times = waiting.iter().flat_map(|one| {
        let urgent = one.urgent.map(|(limits, ahead)| limits.min(ahead));
        [one.ordinary, urgent]
    });
    match times.flatten().min() {
        Some(time) => Next::Wait(time),
        None => Next::Nothing,
    }
}

/// Ticks as nanoseconds, rounded up: a timer must not fire early.
pub(crate) fn ticks_to_ns(ticks: u64) -> u64 {
    ticks.div_ceil(TICKS_PER_NS)
}
