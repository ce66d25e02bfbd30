// SPDX-License-Identifier: GPL-2.0

//! How much goes in or out of the balloon next. Plain integers: also compiled and tested on the
//! host (`selftests/unit`).
//!
//! The host counts in units of 4 KiB, whatever the guest's page size is. What is in units says so.

/// The size of a unit, as a shift (`VIRTIO_BALLOON_PFN_SHIFT`).
pub(crate) const UNIT_SHIFT: u32 = 12;

/// How many units go through a queue at once (`VIRTIO_BALLOON_ARRAY_PFNS_MAX`).
pub(crate) const BATCH_UNITS: usize = 256;

/// The balloon leaves at least this much available to the guest, in bytes, or an eighth of its
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
    /// Put so many pages in.
    Inflate(usize),
    /// Take so many pages out.
    Deflate(usize),
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

/// The step from one size to another, in pages. `batch` is at least 1.
pub(crate) fn next_step(target: u64, size: u64, batch: usize) -> Step {
    let pages = |difference: u64| usize::try_from(difference).unwrap_or(batch).min(batch);
    match target.checked_sub(size) {
        Some(0) => Step::Rest,
        Some(missing) => Step::Inflate(pages(missing)),
        None => Step::Deflate(pages(size - target)),
    }
}

/// How many more pages the balloon may take before the guest gets too little. All in bytes but the
/// result: `total` is the guest's memory with that in the balloon, `available` what it could have
/// without swapping.
pub(crate) fn room_pages(available: u64, total: u64, page_shift: u32) -> u64 {
    let reserve = if total / 8 < RESERVE {
        total / 8
    } else {
        RESERVE
    };
    available.saturating_sub(reserve) >> page_shift
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
