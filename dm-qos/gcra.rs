// SPDX-License-Identifier: GPL-2.0

//! One limit: so many units (I/Os or bytes) per second, kept by the generic cell rate algorithm.
//!
//! # Model
//!
//! A limit of `r` units per second grants a unit every `1/r` seconds. Its whole state is one number,
//! `due`: the time at which everything that was let through so far has been paid for. An I/O that
//! costs `c` (its units times `1/r`) moves `due` by `c`, from where it is or, when that is in the past,
//! from now:
//!
//! ```text
//! due' = max(due, now) + c
//! ```
//!
//! An idle device saves up credit: I/Os may run ahead of what is paid for by up to `burst`, a time. An
//! I/O that is larger than the whole burst passes once everything before it is paid for. So it
//! may leave from
//!
//! ```text
//! eligible = due - max(0, burst - c)
//! ```
//!
//! on. Charging an I/O as of the time at which it was eligible, and not as of the later time at which
//! some timer got around to it, keeps the rate exact however late timers are.
//!
//! # Units
//!
//! Time is in *ticks*, sixteenths of a nanosecond since some epoch, in 64 bits: 36 years. The cost of
//! one unit is kept in ticks times 2^30, rounded once, and the cost of an I/O is rounded to a tick,
//! so that a limit of 30,000 a second is off by less than one in a million.
//!
//! Nothing here but integers: tested on the host (`selftests/unit`), with loom as to concurrency.

use super::atomic::AtomicU64;

/// Ticks in a nanosecond.
pub(crate) const TICKS_PER_NS: u64 = 16;
/// Ticks in a microsecond.
pub(crate) const TICKS_PER_US: u64 = 1_000 * TICKS_PER_NS;
/// Ticks in a millisecond.
pub(crate) const TICKS_PER_MS: u64 = 1_000_000 * TICKS_PER_NS;
/// Ticks in a second.
pub(crate) const TICKS_PER_S: u64 = 1_000_000_000 * TICKS_PER_NS;

/// Fractional bits of [`Rate::unit`].
const SHIFT: u32 = 30;

/// So many units per second, kept as what one of them costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rate {
    /// In ticks times `2^SHIFT`. 0: there is no rate.
    unit: u64,
}

impl Rate {
    /// `rate` units per second; 0: none. One too high to be told from none is none.
    pub(crate) const fn new(rate: u64) -> Self {
        let unit = match rate {
            0 => 0,
            // Not above 2^64: there are 16e9 ticks in a second, which is less than 2^34.
            rate => ((TICKS_PER_S << SHIFT) + rate / 2) / rate,
        };
        Self { unit }
    }

    /// Is there a rate?
    #[inline]
    pub(crate) const fn is_set(self) -> bool {
        self.unit != 0
    }

    /// What `units` cost, in ticks. 0 when there is no rate.
    #[inline]
    pub(crate) fn cost(self, units: u32) -> u64 {
        if units == 1 {
            // By far the most, when I/Os are counted.
            return (self.unit >> SHIFT) + (self.unit >> (SHIFT - 1) & 1);
        }
        // `unit * units >> SHIFT`, rounded, without 128-bit numbers, which the kernel has not.
        let (unit, units) = (self.unit, u64::from(units));
        let low = (unit & 0xffff_ffff) * units + (1 << (SHIFT - 1));
        let high = (unit >> 32) * units;
        // Half an age and more is never.
        if high >= 1 << 60 {
            return u64::MAX / 4;
        }
        (high << (32 - SHIFT)).saturating_add(low >> SHIFT)
    }
}

/// The present, as far as it is known.
///
/// An I/O is let through when it may leave at the earliest that it can be, and is charged as of the
/// latest. That is on the safe side: it may be found too early, though it is not, but never the other
/// way around.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Now {
    earliest: u64,
    latest: u64,
}

impl Now {
    /// This time, in ticks.
    #[inline]
    pub(crate) const fn at(time: u64) -> Self {
        Self::between(time, time)
    }

    /// A time between these two, in ticks.
    #[inline]
    pub(crate) const fn between(earliest: u64, latest: u64) -> Self {
        Self { earliest, latest }
    }
}

impl From<u64> for Now {
    #[inline]
    fn from(time: u64) -> Self {
        Self::at(time)
    }
}

/// One limit. See the module's description.
pub(crate) struct Limit {
    /// The [`Rate`]'s unit. 0: there is no limit.
    unit: AtomicU64,
    /// When all that passed is paid for, in ticks.
    due: AtomicU64,
}

impl Limit {
    /// No limit, with all its credit.
    pub(crate) fn new() -> Self {
        Self {
            unit: AtomicU64::new(0),
            due: AtomicU64::new(0),
        }
    }

    /// Changes the limit to `rate` units per second; 0: none.
    pub(crate) fn set_rate(&self, rate: u64) {
        self.unit.store(Rate::new(rate).unit);
    }

    #[inline]
    fn rate(&self) -> Rate {
        Rate {
            unit: self.unit.load(),
        }
    }

    /// Is there a limit?
    #[inline]
    pub(crate) fn is_set(&self) -> bool {
        self.rate().is_set()
    }

    /// What `units` cost, in ticks. 0 when there is no limit.
    #[inline]
    pub(crate) fn cost(&self, units: u32) -> u64 {
        self.rate().cost(units)
    }

    /// When an I/O of this cost may leave.
    #[inline]
    pub(crate) fn eligible(&self, cost: u64, burst: u64) -> u64 {
        self.due.load().saturating_sub(burst.saturating_sub(cost))
    }

    /// Charges an I/O if it may leave now.
    #[inline]
    pub(crate) fn try_charge(&self, cost: u64, burst: u64, now: impl Into<Now>) -> bool {
        let Now { earliest, latest } = now.into();
        let ahead = earliest.wrapping_add(burst.saturating_sub(cost));
        let mut due = self.due.load();
        loop {
            let from = due.max(latest);
            if from > ahead {
                return false;
            }
            // No sum of two of these comes near an age, which is 2^64.
            match self.due.compare_exchange(due, from.wrapping_add(cost)) {
                Ok(_) => return true,
                Err(current) => due = current,
            }
        }
    }

    /// Charges an I/O whatever comes, as of `at`.
    pub(crate) fn charge(&self, cost: u64, at: u64) {
        self.update(|due| due.max(at).saturating_add(cost));
    }

    /// Takes back a charge.
    pub(crate) fn refund(&self, cost: u64) {
        self.update(|due| due.saturating_sub(cost));
    }

    /// Forgives debt beyond the burst: what was charged at another rate is not held against those
    /// who come now.
    pub(crate) fn forgive(&self, burst: u64, now: u64) {
        self.update(|due| due.min(now.saturating_add(burst)));
    }

    fn update(&self, change: impl Fn(u64) -> u64) {
        let mut due = self.due.load();
        while let Err(current) = self.due.compare_exchange(due, change(due)) {
            due = current;
        }
    }
}
