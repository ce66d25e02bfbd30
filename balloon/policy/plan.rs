// SPDX-License-Identifier: GPL-2.0

//! How much goes in or out of the balloon next. Plain integers: also compiled and tested on the
//! host (`selftests/unit`).
//!
//! The host counts in units of 4 KiB, whatever the guest's page size is. What is in units says so.

/// The size of a unit, as a shift (`VIRTIO_BALLOON_PFN_SHIFT`).
pub(crate) const UNIT_SHIFT: u32 = 12;

/// How many units go through a queue at once (`VIRTIO_BALLOON_ARRAY_PFNS_MAX`).
pub(crate) const BATCH_UNITS: usize = 256;

/// What the balloon leaves available to the guest if nobody says otherwise, in bytes: or an eighth of its
/// memory if that is less.
pub(crate) const RESERVE: u64 = 64 << 20;

/// How units and guest pages relate.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Units {
    // Shifts: what cannot divide by zero needs no code for it.
    page_shift: u32,
}

/// What to do next. Counts are in guest pages, and never 0.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Step {
    /// The balloon has its size.
    Rest,
    /// The guest has no memory to spare.
    Wait,
    /// Put so many pages in.
    Inflate(u64),
    /// Take so many pages out.
    Deflate(u64),
}

/// The guest's memory, in bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Memory {
    /// What it could have without swapping.
    pub(crate) available: u64,
    /// All of it, with that in the balloon.
    pub(crate) total: u64,
}

/// Decides where the balloon goes, between what the host wants and what the guest needs.
#[derive(Debug)]
pub(crate) struct Plan {
    /// What the guest keeps available, in bytes. 0: [`RESERVE`].
    min_available: u64,
    /// Whether the balloon shrinks when the guest has less than that.
    gives_back: bool,
    /// The guest had less memory than it needs. The balloon does not grow again until it has clearly
    /// more.
    is_short: bool,
    /// How long growth pauses since the guest swaps, in milliseconds.
    pause: u32,
}

/// How long growth pauses when the guest swaps, at first and at most, in milliseconds.
const PAUSE: (u32, u32) = (1000, 16000);

impl Plan {
    /// The guest keeps `min_available_mb` MiB, or if that is 0 what is usual.
    /// `may_shrink`: the host lets the balloon shrink when the guest needs memory. Whoever
    /// names a number means it, so then it shrinks in any case.
    pub(crate) const fn new(min_available_mb: u32, may_shrink: bool) -> Self {
        Self {
            min_available: (min_available_mb as u64) << 20,
            gives_back: may_shrink || min_available_mb > 0,
            is_short: false,
            pause: 0,
        }
    }

    /// Whether the guest's memory has to be watched when the balloon has its size.
    pub(crate) const fn gives_back(&self) -> bool {
        self.gives_back
    }

    /// What the guest keeps, in bytes, of so much memory.
    pub(crate) const fn reserve(&self, total: u64) -> u64 {
        match self.min_available {
            0 if total / 8 < RESERVE => total / 8,
            0 => RESERVE,
            min_available => min_available,
        }
    }

    /// The guest has less memory than it needs.
    pub(crate) fn is_short_of_memory(&mut self) {
        self.is_short = true;
    }

    /// The next step from one size to another, in pages.
    pub(crate) fn next(&mut self, target: u64, size: u64, memory: Memory, page_shift: u32) -> Step {
        let reserve = self.reserve(memory.total);
        if self.gives_back && size > 0 && memory.available < reserve {
            // Somewhat more, or it would have to do it again at once.
            let missing = (reserve + reserve / 8 - memory.available) >> page_shift;
            self.is_short = true;
            return Step::Deflate(missing.max(1).max(size.saturating_sub(target)).min(size));
        }
        if size > target {
            return Step::Deflate(size - target);
        }
        if size == target {
            self.is_short = false;
            return Step::Rest;
        }
        let margin = if self.is_short { reserve / 4 } else { 0 };
        let spare = memory.available.saturating_sub(reserve + margin) >> page_shift;
        self.is_short = spare == 0;
        if spare == 0 {
            Step::Wait
        } else {
            Step::Inflate(spare.min(target - size))
        }
    }

    /// The balloon took pages, while so many others were written to swap. Returns how long it had
    /// better pause, in milliseconds.
    pub(crate) fn pause_after(&mut self, taken: u64, swapped: u64) -> Option<u32> {
        if swapped <= taken / 16 {
            self.pause = 0;
            return None;
        }
        self.pause = (self.pause * 2).clamp(PAUSE.0, PAUSE.1);
        Some(self.pause)
    }
}

/// Divides pages among nodes, in proportion to what each has free.
#[derive(Debug)]
pub(crate) struct Shares {
    wanted: u64,
    /// The free pages of all nodes, and of those so far.
    free: u64,
    seen: u64,
    given: u64,
}

impl Shares {
    /// So many pages, out of so many free ones: their product should fit in 64 bits.
    pub(crate) const fn new(wanted: u64, free: u64) -> Self {
        Self {
            wanted,
            free,
            seen: 0,
            given: 0,
        }
    }

    /// How many come from the next node, which has so many free pages. The sum is what is wanted, to the
    /// page, when all that is free was seen; never more.
    pub(crate) fn next(&mut self, free: u64) -> u64 {
        self.seen = (self.seen + free).min(self.free);
        let upto = self
            .wanted
            .saturating_mul(self.seen)
            .checked_div(self.free)
            .map_or(0, |pages| pages.min(self.wanted));
        let share = upto.saturating_sub(self.given);
        self.given += share;
        share
    }
}

impl Units {
    /// For guest pages of `1 << page_shift` bytes: from 4 KiB to 1 MiB.
    pub(crate) const fn new(page_shift: u32) -> Self {
        Self {
            page_shift: page_shift.saturating_sub(UNIT_SHIFT),
        }
    }

    /// The most pages that one message has room for.
    pub(crate) const fn batch_pages(self) -> usize {
        BATCH_UNITS >> self.page_shift
    }

    /// The size that the host wants, in pages: rounded up, or the balloon would go up and down for
    /// ever.
    pub(crate) const fn target_pages(self, target_units: u32) -> u64 {
        (target_units as u64 + (1 << self.page_shift) - 1) >> self.page_shift
    }

    /// A size in units, as the host is told. It stops at the greatest that can be told.
    pub(crate) const fn in_units(self, pages: u64) -> u32 {
        if pages > (u32::MAX >> self.page_shift) as u64 {
            u32::MAX
        } else {
            (pages as u32) << self.page_shift
        }
    }

    /// The units of a page, by their frame numbers; [`None`] when the frame number is too large for
    /// the protocol (beyond 16 TiB).
    pub(crate) fn of_page(self, pfn: u64) -> Option<impl Iterator<Item = u32>> {
        let last = u32::MAX >> self.page_shift;
        let pfn = u32::try_from(pfn).ok().filter(|&pfn| pfn <= last)?;
        let first = pfn << self.page_shift;
        Some(first..=first + ((1 << self.page_shift) - 1))
    }
}

/// The order of the smallest block: what is taken in smaller pieces is taken by the page, which can
/// be migrated.
pub(crate) const MIN_ORDER: u32 = 4;

/// The largest order of a block that is not more than so many pages, if there is one that is not too
/// small.
pub(crate) const fn block_order(pages: usize, max_order: u32) -> Option<u32> {
    if pages >> MIN_ORDER == 0 {
        return None;
    }
    let order = pages.ilog2();
    Some(if order < max_order { order } else { max_order })
}
