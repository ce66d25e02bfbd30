// SPDX-License-Identifier: GPL-2.0

//! How much goes in or out of the balloon next. Plain integers: also compiled and tested on the
//! host (`selftests/unit`).
//!
//! The host counts in units of 4 KiB, whatever the guest's page size is. What is in units says so.

use core::mem;

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
    /// See for so many milliseconds what the guest does of its own.
    Look(u32),
    /// Growth did harm: see for so many milliseconds whether that ends.
    Pause(u32),
    /// Put so many pages in, which are free.
    Inflate(u64),
    /// Put so many pages in, for which others have to be reclaimed; then see for [`WINDOW`] what comes
    /// of it.
    Reclaim(u64),
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
    /// What is free beyond the high watermarks: nothing is reclaimed for it.
    pub(crate) spare: u64,
}

/// What reclaim has done to the guest until now, in pages since boot.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Harm {
    /// What was read again after it had been reclaimed.
    pub(crate) refaulted: u64,
    /// What was written to swap.
    pub(crate) swapped: u64,
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
    strain: Strain,
}

impl Plan {
    /// The guest keeps `min_available_mb` MiB, or if that is 0 what is usual.
    /// `may_shrink`: the host lets the balloon shrink when the guest needs memory. Whoever
    /// names a number means it, so then it shrinks in any case.
    pub(crate) const fn new(min_available_mb: u32, may_shrink: bool) -> Self {
        Self {
            min_available: (min_available_mb as u64) << 20,
            gives_back: may_shrink || min_available_mb > 0,
            is_short: false,
            strain: Strain::new(),
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

    /// So many pages were put in after [`Step::Reclaim`].
    pub(crate) fn has_reclaimed(&mut self, pages: u64) {
        self.strain.taken += pages;
        self.strain.owed += pages;
    }

    /// The next step from one size to another, in pages. `now`, in milliseconds, and `harm` grow from
    /// call to call.
    pub(crate) fn next(
        &mut self,
        target: u64,
        size: u64,
        memory: Memory,
        (now, harm): (u64, Harm),
        page_shift: u32,
    ) -> Step {
        let refaulted = self.strain.look(now, harm);
        let reserve = self.reserve(memory.total);
        if self.gives_back && size > 0 && memory.available < reserve {
            // Somewhat more, or it would have to do it again at once.
            let missing = (reserve + reserve / 8 - memory.available) >> page_shift;
            self.is_short = true;
            return Step::Deflate(missing.max(1).max(size.saturating_sub(target)).min(size));
        }
        if size > target {
            self.strain = Strain::new();
            return Step::Deflate(size - target);
        }
        if self.gives_back {
            let back = refaulted.min(self.strain.owed).min(size);
            if back > 0 {
                self.strain.owed -= back;
                return Step::Deflate(back);
            }
        }
        if size == target {
            self.is_short = false;
            if !self.gives_back || self.strain.is_calm(now) {
                self.strain = Strain::new();
            }
            return Step::Rest;
        }
        let margin = if self.is_short { reserve / 4 } else { 0 };
        let available = memory.available.saturating_sub(reserve + margin) >> page_shift;
        self.is_short = available == 0;
        if available == 0 {
            return Step::Wait;
        }
        // What is free has been given back, or the guest is about to use it.
        if let Some(pause) = self.strain.held(now) {
            return pause;
        }
        let wanted = available.min(target - size);
        let spare = memory.spare >> page_shift;
        if spare >= wanted.min(SPARE >> page_shift) && !self.strain.is_careful() {
            return Step::Inflate(match wanted <= spare {
                true => wanted,
                false => whole_pieces(spare, page_shift),
            });
        }
        if self.strain.is_calm(now) {
            self.strain = Strain::new();
        }
        if let Some(step) = self.strain.look_first(now, harm) {
            return step;
        }
        let total = memory.total >> page_shift;
        let most = most_by_reclaim(available, total, page_shift);
        let pages = wanted.min(self.strain.share(now, most, wanted, page_shift));
        if pages == 0 {
            return Step::Look(WINDOW);
        }
        if spare < pages {
            return Step::Reclaim(pages);
        }
        // The guest may miss it all the same.
        self.has_reclaimed(pages);
        Step::Inflate(pages)
    }
}

/// Less than this is not worth a step, in bytes.
const LEAST: u64 = 1 << 20;

/// What is reclaimed is taken by pieces of this size, in bytes: a huge page.
const PIECE: u64 = 2 << 20;

/// Less than this is not taken without reclaim, in bytes, if more is wanted: memory is compacted when so
/// much is free.
const SPARE: u64 = 2 * PIECE;

/// How long growth pauses when it does harm, at first and at most, in milliseconds.
const PAUSE: (u64, u64) = (1000, 64000);

/// How long it is seen what comes of a step that reclaims, in milliseconds.
pub(crate) const WINDOW: u32 = 100;

/// How long it is seen what the guest does of its own, before the first such step, in milliseconds.
const USUAL: u64 = 500;

/// So long without harm is the end of what the balloon may have done, in milliseconds.
const CALM: u64 = 300_000;

/// So many pages in a [`WINDOW`], beyond what is usual and a sixteenth of what was taken, are no harm yet.
const NOISE: u64 = 64;

/// A step that reclaims takes this part of what is available beyond the reserve at most. The guest has to
/// have the time to show that it needs it.
const SHARE: u64 = 32;

/// And this part of it, times the part that it is of all memory: the less is left, the likelier it is
/// that it is needed.
const SHARE_OF_PART: u64 = 16;

/// What the balloon's growth does to the guest when it goes by reclaim: which is when nothing is free
/// beyond the watermarks. Then the guest reads again what it needs and has lost, or writes to
/// swap; both only count beyond what it did before the balloon grew.
#[derive(Debug)]
struct Strain {
    usual: Usual,
    /// When the window began, and what had been done until then.
    began: u64,
    before: Harm,
    /// What growth took in it, in pages.
    taken: u64,
    /// What growth took by reclaim, and has not given back.
    owed: u64,
    /// What the last steps left of their shares, in pages.
    saved: u64,
    /// The most that the next step takes, in pages. 0: a [`SHARE`].
    stride: u64,
    /// How long growth pauses when it does harm, and until when.
    pause: u64,
    until: u64,
    /// When growth took something by reclaim last, or did harm.
    last: u64,
}

/// How much is refaulted without the balloon, in pages a second.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Usual {
    Unknown,
    /// The window is for that.
    Measured,
    Known(u64),
}

impl Strain {
    const fn new() -> Self {
        Self {
            usual: Usual::Unknown,
            began: 0,
            before: Harm {
                refaulted: 0,
                swapped: 0,
            },
            taken: 0,
            owed: 0,
            saved: 0,
            stride: 0,
            pause: 0,
            until: 0,
            last: 0,
        }
    }

    fn begin(&mut self, now: u64, harm: Harm) {
        self.began = now;
        self.before = harm;
        self.taken = 0;
    }

    fn since(&self, harm: Harm) -> Harm {
        // The kernel's counters may overflow.
        Harm {
            refaulted: harm.refaulted.saturating_sub(self.before.refaulted),
            swapped: harm.swapped.saturating_sub(self.before.swapped),
        }
    }

    /// Looks at a window that has passed. Returns how many pages were refaulted in it on the balloon's
    /// account.
    fn look(&mut self, now: u64, harm: Harm) -> u64 {
        let passed = now.saturating_sub(self.began);
        let Usual::Known(usual) = self.usual else {
            return 0;
        };
        if passed < WINDOW.into() {
            return 0;
        }
        let done = self.since(harm);
        // Twice what is usual is no news.
        let allowed = NOISE + self.taken / 16 + usual.saturating_mul(passed) / 500;
        let refaulted = done.refaulted.saturating_sub(allowed);
        if refaulted > 0 || done.swapped > NOISE + self.taken / 16 {
            self.pause = (self.pause * 2).max(PAUSE.0).min(PAUSE.1);
            self.until = now + self.pause;
            self.last = now;
            self.stride = 1;
        } else if self.taken > 0 {
            // It may be as fast again as it was, by and by.
            self.stride = self.stride.saturating_mul(2);
        }
        self.begin(now, harm);
        refaulted
    }

    /// Nothing has happened for long.
    fn is_calm(&self, now: u64) -> bool {
        now.saturating_sub(self.last) >= CALM
    }

    /// Growth did harm not long ago.
    const fn is_careful(&self) -> bool {
        self.stride > 0
    }

    /// A pause, if growth did harm. What becomes of the guest is seen meanwhile.
    fn held(&self, now: u64) -> Option<Step> {
        let left = self.until.saturating_sub(now).min(PAUSE.0) as u32;
        (left > 0).then_some(Step::Pause(left))
    }

    /// Before the first step that reclaims: what the guest does of its own.
    fn look_first(&mut self, now: u64, harm: Harm) -> Option<Step> {
        if self.usual == Usual::Unknown {
            self.usual = Usual::Measured;
            self.last = now;
            self.begin(now, harm);
        }
        if self.usual == Usual::Measured {
            let passed = now.saturating_sub(self.began);
            if passed < USUAL {
                return Some(Step::Look((USUAL - passed) as u32));
            }
            let refaulted = self.since(harm).refaulted.saturating_mul(1000);
            self.usual = Usual::Known(refaulted.checked_div(passed).unwrap_or(0));
            self.begin(now, harm);
        }
        None
    }

    /// How many pages the next step takes at most, if it may take `most` of so many that are wanted: 0 if
    /// that is not yet a whole piece.
    fn share(&mut self, now: u64, most: u64, wanted: u64, page_shift: u32) -> u64 {
        self.last = now;
        let least = LEAST >> page_shift;
        let share = most + mem::take(&mut self.saved);
        let stride = self.stride.saturating_mul(least);
        if self.stride == 0 || stride > share {
            self.stride = 0;
            let pieces = whole_pieces(share, page_shift);
            if wanted > pieces {
                self.saved = share - pieces;
                return pieces;
            }
            return share;
        }
        // Harm shows late.
        self.until = now + PAUSE.0;
        stride
    }
}

/// How many pages a step that reclaims takes, of so many available ones and so many in all.
fn most_by_reclaim(available: u64, total: u64, page_shift: u32) -> u64 {
    let part = (available / SHARE_OF_PART).saturating_mul(available) / total.max(1);
    part.min(available / SHARE).max(LEAST >> page_shift)
}

/// So many pages, less what is not a whole piece.
const fn whole_pieces(pages: u64, page_shift: u32) -> u64 {
    let bytes = pages << page_shift;
    (bytes - bytes % PIECE) >> page_shift
}

/// Whether memory is compacted for whole page blocks, before smaller pieces are taken.
///
/// Where that fails several times in a row, some memory goes in smaller pieces before the next attempt:
/// as much as a page block, and twice as much after each further failure.
#[derive(Debug)]
pub(crate) struct Compaction {
    failures: u32,
    /// How many pages go in smaller pieces before the next attempt.
    smaller: usize,
}

/// So many failures in a row are by chance.
const CHANCE: u32 = 3;

/// How often the memory that goes in smaller pieces is doubled.
const DOUBLED: u32 = 5;

impl Compaction {
    pub(crate) const fn new() -> Self {
        Self {
            failures: 0,
            smaller: 0,
        }
    }

    /// How many pages go in smaller pieces before the next attempt. 0: it is to be made.
    pub(crate) const fn smaller(&self) -> usize {
        self.smaller
    }

    /// Whether kswapd is to be woken if the next attempt fails: at each step of the doubling, not for ever.
    ///
    /// Where it finds nothing to reclaim several times (`MAX_RECLAIM_RETRIES` in mm/internal.h), it stops
    /// until somebody else has reclaimed.
    pub(crate) const fn wakes_kswapd(&self) -> bool {
        let failures = self.failures + 1;
        failures >= CHANCE && failures <= CHANCE + DOUBLED
    }

    /// So many pages went in smaller pieces.
    pub(crate) fn took_smaller(&mut self, pages: usize) {
        self.smaller = self.smaller.saturating_sub(pages);
    }

    /// An attempt got a page block, of so many pages, or did not.
    pub(crate) fn has_ended(&mut self, got: bool, page_block: usize) {
        if got {
            *self = Self::new();
            return;
        }
        self.failures = self.failures.saturating_add(1);
        if self.failures >= CHANCE {
            self.smaller = page_block << (self.failures - CHANCE).min(DOUBLED);
        }
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

/// The largest order of a block that is not more than so many pages, if there is one that is neither too
/// small nor too large.
pub(crate) const fn block_order(pages: usize, least: u32, most: u32) -> Option<u32> {
    match pages.checked_ilog2() {
        Some(order) if order >= least && most >= least => {
            Some(if order < most { order } else { most })
        }
        _ => None,
    }
}
