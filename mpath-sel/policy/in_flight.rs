// SPDX-License-Identifier: GPL-2.0

//! What is in flight on each path, as far as a CPU knows. No kernel types in here.
//!
//! Each CPU has a word for each path, with a count: 1 is added when it starts an I/O and taken when one ends on
//! it. When one has ended, it is seen whether the path of the CPU's next turn has more in flight, by its slots,
//! than the one after it ([`has_more`]). If so, that turn is passed over (`rotation::after_turn`). So what is in
//! flight stays in proportion to the slots, as far as turns that are near each other allow, also
//! while a path stands still for a moment, for which [`Law`](super::latency::Law) is too slow.
//!
//! That is so where an I/O ends on the CPU that has started it. Where it ends on another one a count goes
//! below 0 sooner or later: an I/O has strayed. Then no turn is passed over until [`Trust`] has seen enough looks
//! without. A count may also stay too high, which nobody sees. So counts begin anew every few seconds, in another
//! *round*: I/Os that were started before it are not counted when they end.

/// A word: above the count, the round that it is of.
const COUNT_BITS: u32 = 16;
/// What no count is: the one below 0.
const MOST: u32 = (1 << COUNT_BITS) - 1;

/// For how many looks a round lasts: longer than most I/Os take.
const ROUND: u32 = 30;
/// How many looks without a stray it takes until counts are trusted again.
const CLEAN: u32 = 10;
/// A path that has less than this part of another's slots has all its turns: they are how it is noticed
/// that it is fast.
const RARE: u64 = 8;

/// The round in which counts began, and whether they can be relied on.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) struct Round(pub(crate) u32);

impl Round {
    const IS_TRUSTED: u32 = 1 << COUNT_BITS;

    /// The first one.
    pub(crate) const FIRST: Self = Self(Self::IS_TRUSTED);

    const fn next(self, begins: bool, is_trusted: bool) -> Self {
        let number = self.0.wrapping_add(begins as u32) & MOST;
        match is_trusted {
            true => Self(number | Self::IS_TRUSTED),
            false => Self(number),
        }
    }

    /// Whether turns are passed over by what is in flight.
    #[inline]
    pub(crate) const fn is_trusted(self) -> bool {
        self.0 & Self::IS_TRUSTED != 0
    }

    /// A word of this round.
    const fn word(self, count: u32) -> u32 {
        self.0 << COUNT_BITS | count
    }

    /// Whether a word is of this round, and not below 0.
    #[inline]
    pub(crate) const fn is_right(self, word: u32) -> bool {
        word ^ self.word(0) < MOST
    }

    /// What takes the place of a word that is not right, with so many I/Os.
    pub(crate) const fn mended(self, word: u32, count: u32) -> u32 {
        match self.is_right(word) {
            // Somebody else was faster.
            true => word,
            false => self.word(count),
        }
    }

    /// How many I/Os are in flight, by a word: none that is known of if it is not right.
    #[inline]
    pub(crate) const fn count(self, word: u32) -> u32 {
        match self.is_right(word) {
            true => word ^ self.word(0),
            false => 0,
        }
    }
}

/// Finds out whether I/Os end where they were started.
pub(crate) struct Trust {
    round: Round,
    /// Looks since the round began, and since an I/O strayed.
    looks: u32,
    clean: u32,
}

impl Default for Trust {
    fn default() -> Self {
        Self {
            round: Round::FIRST,
            looks: 0,
            clean: CLEAN,
        }
    }
}

impl Trust {
    /// Looks again; an I/O `has_strayed` since the last time. Returns the round, and whether it begins now.
    pub(crate) fn look(&mut self, has_strayed: bool) -> (Round, bool) {
        // One that was on its way to its path when the round began looks like a stray.
        let has_strayed = has_strayed && self.looks > 0;
        self.looks += 1;
        self.clean = match has_strayed {
            true => 0,
            false => (self.clean + 1).min(CLEAN),
        };
        let begins = has_strayed || self.looks >= ROUND;
        if begins {
            self.looks = 0;
        }
        self.round = self.round.next(begins, self.clean == CLEAN);
        (self.round, begins)
    }
}

/// Whether a path with this count, and so many slots, has as much by its slots as another one would have
/// with one I/O more.
#[inline]
pub(crate) const fn has_more((count, slots): (u32, u32), (other, other_slots): (u32, u32)) -> bool {
    let (slots, other_slots) = (slots as u64, other_slots as u64);
    count as u64 * other_slots >= (other as u64 + 1) * slots && slots * RARE >= other_slots
}
