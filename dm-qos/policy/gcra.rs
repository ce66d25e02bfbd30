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

/// What takes half an age.
const NEVER: u64 = u64::MAX / 4;

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

    /// A rate at which units cost so many times as much.
    pub(crate) const fn slowed(self, times: u64) -> Self {
        Self {
            unit: self.unit.saturating_mul(times),
        }
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
        let cost = u128::from(self.unit) * u128::from(units);
        let cost = cost.wrapping_add(1 << (SHIFT - 1)) >> SHIFT;
        match cost >> 62 {
            0 => cost as u64,
            _ => NEVER,
        }
    }
}

/// The present, as far as it is known.
///
/// An I/O is let through when it may leave at the earliest that it can be, and is charged as of the
/// latest. That is on the safe side: it may be found too early, though it is not, but never the other
/// way around.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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

/// `a * b / c`, rounded down, or the most there is. The kernel has no 128-bit division.
fn mul_div(a: u64, b: u64, c: u64) -> u64 {
    const LOW: u64 = 0xffff_ffff;
    let (middle, carry) = ((a >> 32) * (b & LOW)).overflowing_add((a & LOW) * (b >> 32));
    let (low, low_carry) = ((a & LOW) * (b & LOW)).overflowing_add(middle << 32);
    let high =
        (a >> 32) * (b >> 32) + (middle >> 32) + (u64::from(carry) << 32) + u64::from(low_carry);
    if high >= c {
        return u64::MAX;
    }
    let (mut rest, mut quotient) = (high, 0);
    for bit in (0..64).rev() {
        let is_beyond = rest >> 63 != 0;
        rest = rest << 1 | (low >> bit & 1);
        quotient <<= 1;
        if is_beyond || rest >= c {
            rest = rest.wrapping_sub(c);
            quotient |= 1;
        }
    }
    quotient
}

/// One limit. See the module's description.
pub(crate) struct Limit {
    /// The [`Rate`]'s unit. 0: there is no limit.
    unit: AtomicU64,
    /// What it was when there was a limit last: by that, `due` is to be read.
    known: AtomicU64,
    /// In ticks.
    burst: AtomicU64,
    /// When all that passed is paid for, in ticks.
    due: AtomicU64,
}

impl Limit {
    /// No limit, with all its credit.
    pub(crate) fn new() -> Self {
        Self {
            unit: AtomicU64::new(0),
            known: AtomicU64::new(0),
            burst: AtomicU64::new(0),
            due: AtomicU64::new(0),
        }
    }

    /// Changes the rate and the burst, in ticks. Whoever changes limits does so one at a time.
    ///
    /// What passed so far remains accounted for: credit and debt are the same number of I/Os or bytes
    /// as before (or less credit, where the new burst has no room for it). So nobody gets more
    /// by changing a limit, back and forth however often, than by the larger of the two.
    pub(crate) fn change(&self, rate: Rate, burst: u64, now: u64) {
        let (known, before) = (self.known.load(), self.burst.load());
        self.unit.store(rate.unit);
        self.burst.store(burst);
        if !rate.is_set() {
            return;
        }
        self.known.store(rate.unit);
        if known == 0 {
            // There never was one: all of the credit is there.
        } else if known != rate.unit || before != burst {
            self.convert((known, before), now);
        }
    }

    /// Goes on where another limit is: as if that one had been changed. Not while anything is charged to
    /// this one.
    pub(crate) fn go_on_from(&self, other: &Limit, now: u64) {
        let known = other.known.load();
        if known != 0 && self.is_set() {
            self.due.store(other.due.load());
            self.convert((known, other.burst.load()), now);
        }
    }

    /// What `due` says of units that cost so much, with this burst, becomes the same of units that
    /// cost what they do now.
    fn convert(&self, (from, before): (u64, u64), now: u64) {
        let (to, burst) = (self.known.load(), self.burst.load());
        let (empty, full) = (now.saturating_add(before), now.saturating_add(burst));
        self.update(|due| match due.checked_sub(empty) {
            Some(debt) => full.saturating_add(mul_div(debt, to, from).min(NEVER)),
            // Who was idle for longer has no more credit than the burst.
            None => full - mul_div((empty - due).min(before), to, from).min(burst),
        });
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
    pub(crate) fn eligible(&self, cost: u64) -> u64 {
        let ahead = self.burst.load().saturating_sub(cost);
        self.due.load().saturating_sub(ahead)
    }

    /// Charges an I/O if it may leave now.
    #[inline]
    pub(crate) fn try_charge(&self, cost: u64, now: impl Into<Now>) -> bool {
        let Now { earliest, latest } = now.into();
        let ahead = earliest.wrapping_add(self.burst.load().saturating_sub(cost));
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

    /// Charges an I/O whatever comes, as of `at`, but so that no more than `most` is left to be paid
    /// for after that.
    pub(crate) fn charge_up_to(&self, cost: u64, at: u64, most: u64) {
        self.update(|due| {
            let most = at.saturating_add(most);
            due.max(at).saturating_add(cost).min(due.max(most))
        });
    }

    /// How long it takes until all that passed is paid for, in ticks.
    pub(crate) fn debt(&self, now: u64) -> u64 {
        match self.is_set() {
            true => self.due.load().saturating_sub(now),
            false => 0,
        }
    }

    fn update(&self, change: impl Fn(u64) -> u64) {
        let mut due = self.due.load();
        while let Err(current) = self.due.compare_exchange(due, change(due)) {
            due = current;
        }
    }
}
