// SPDX-License-Identifier: GPL-2.0

//! The decisions of the round robin: which path comes when. No kernel types in here.
//!
//! # The schedule
//!
//! A priority group's paths take turns in a fixed cyclic *schedule*, a list of slots each of which
//! names a path. A path has as many slots as its weight, after the weights were divided by their
//! greatest common divisor; equal weights give one slot each. The slots of a path are spread out:
//! weights 3:1 give a a b a.
//!
//! How well they are spread is a matter of *windows*: of any N slots in a row, wherever they begin,
//! a path should have its share, N w / W for weight w of a sum W, and no more than one I/O more or
//! less. Let
//!
//! ```text
//! d_i(k) = x_i(k) - k w_i / W
//! ```
//!
//! be how far path i, which has x_i(k) of the first k slots, is ahead of its share. What a window
//! has too many or too few is the difference of two of these, so the range of d_i, from its least
//! to its greatest, bounds all windows. A schedule that keeps each d_i within a given range
//! `[low_i, low_i + range]` is a matter of deadlines: each turn has a first slot, before which d_i
//! would exceed the range, and a last one, after which it would fall below. Giving each slot to the
//! path, among those whose turn may come, whose last slot is the nearest, finds a schedule if there
//! is one.
//!
//! - With all ranges alike, -x to x where x = 1 - 1 / (2n - 2) for n paths, there always is one
//!   (the chairman assignment problem; R. Tijdeman, 1980). So no window is off by more than
//!   2 - 1 / (n - 1): for two paths that is 1.
//! - With ranges that are apart from each other there often is one for a smaller range. 1 is not
//!   always possible: no order of the weights 5:4:2 keeps all windows to it. What is the least for
//!   given weights nobody knows how to tell in reasonable time. So [`make_schedule`] tries a few
//!   ways to spread the ranges, for a limited time, and falls back to Tijdeman's.
//!
//! # Failed paths
//!
//! Beside the schedule there is a table of *hops*: for each slot, the first slot at or after it
//! (cyclically) whose path is in service, as which path that is and where to go on. To select is
//! to look up the cursor's hop and to put the cursor where it says, so a failed path costs nothing
//! and the others keep taking turns in proportion to their weights: its share does not all fall to
//! its successor. Failing and reinstating a path rewrites the table in place, slot by slot. Whoever
//! selects meanwhile sees for each slot either what was right before or what is right now.
//!
//! Where paths are nearer to some CPUs than to others there is a *section* of the table for each
//! node, which hops over paths that are too far from it ([`nearest`]). A cursor stays in the section that it
//! began in.

use super::cell::Cell;

/// The most paths: as many as `dm-multipath` allows in a priority group.
pub(crate) const MAX_PATHS: usize = 1024;
/// The most slots of a schedule. Weights whose sum is greater are scaled down to it.
///
/// All of them are rewritten when a path fails, with interrupts off, and all are read in turn by
/// each CPU: their hops take up half of a first-level cache.
pub(crate) const MAX_SLOTS: usize = 4096;

/// Up to so many paths a schedule is made whenever a path is added, and a better one is looked for.
/// With more, that would take too long: one is made once, when the first path is selected.
pub(crate) const MAX_EAGER: usize = 24;
/// How many slots, divided by the number of paths, to fill in search of a better schedule. A
/// schedule is made as often as there are paths.
const SEARCH: u32 = 1 << 16;

/// The most sections.
pub(crate) const MAX_SECTIONS: usize = (1 << SLOT_BITS) / MAX_SLOTS;

/// In a schedule or a hop: no path. In a list of jobs: the end.
const NO_PATH: u16 = (1 << PATH_BITS) - 1;

/// How much of a hop is the slot, and how much the path.
const SLOT_BITS: u32 = 21;
const PATH_BITS: u32 = u32::BITS - SLOT_BITS;

/// What is known about a path while the schedule is made.
#[derive(Clone, Copy, Default)]
pub(crate) struct Job {
    /// How many slots it is to have.
    slots: u32,
    /// How many it has got.
    done: u32,
    /// How much of its range is below 0, in units of one turn by all slots.
    below: u32,
    /// The slot by which it has to have its next turn.
    due: u32,
    /// The next path whose turn may come from the same slot on.
    link: u16,
    /// Not this path's: the heap of eligible paths is kept in this field of the first elements.
    heap: u16,
}

fn gcd(mut a: u32, mut b: u32) -> u32 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

/// Shares out the slots: for each path its weight by the common divisor, or in proportion to that
/// if the sum is more than [`MAX_SLOTS`], but at least one. Returns the sum.
///
/// `jobs` must be as long as `weights`, which may have at most [`MAX_PATHS`] elements. A weight of 0
/// is as 1.
pub(crate) fn share_out(weights: &[u32], jobs: &mut [Job]) -> usize {
    let weights = weights.iter().map(|&weight| weight.max(1));
    let divisor = weights.clone().fold(0, gcd).max(1);
    let sum: u64 = weights.clone().map(|w| u64::from(w / divisor)).sum();
    // Rounding, and the one slot that each gets at least, add at most one for each path.
    let room = MAX_SLOTS.saturating_sub(jobs.len()) as u64;
    let mut total = 0;

    for (job, weight) in jobs.iter_mut().zip(weights) {
        let weight = weight / divisor;
        let slots = if sum <= MAX_SLOTS as u64 {
            weight
        } else {
            ((u64::from(weight) * room + sum / 2) / sum).max(1) as u32
        };
        *job = Job {
            slots,
            ..Job::default()
        };
        total += slots as usize;
    }
    total
}

/// How the paths' ranges lie: how much of each is below 0.
#[derive(Clone, Copy)]
enum Spread {
    /// Half of it.
    Alike,
    /// Less for the first paths, more for the last, in even steps.
    Even,
    /// By chance, which is a different one, but always the same, for each number.
    Mixed(u32),
}

/// A number that looks random: shifts and products, as in any integer hash.
fn mixed(a: u32, b: u32) -> u32 {
    let mut x = (a + 1).wrapping_mul(0x9e37_79b9) ^ b.wrapping_mul(0x85eb_ca6b);
    for factor in [0x2c1b_3c6d, 0x297a_2d39] {
        x = (x ^ x >> 15).wrapping_mul(factor);
    }
    x ^ x >> 15
}

impl Spread {
    fn all() -> impl Iterator<Item = Self> {
        [Spread::Alike, Spread::Even]
            .into_iter()
            .chain((0..64).map(Spread::Mixed))
    }

    fn below(self, range: u32, path: usize, paths: usize) -> u32 {
        let (range, path, paths) = (u64::from(range), path as u64, paths as u64);
        let below = match self {
            Spread::Alike => range / 2,
            Spread::Even => range * (2 * path + 1) / (2 * paths).max(1),
            Spread::Mixed(number) => (range * u64::from(mixed(path as u32, number))) >> 32,
        };
        below as u32
    }
}

/// Gives each path so many slots, instead of what [`share_out`] would.
pub(crate) fn set_slots(jobs: &mut [Job], slots: impl Iterator<Item = u32>) {
    for (job, slots) in jobs.iter_mut().zip(slots) {
        *job = Job {
            slots,
            ..Job::default()
        };
    }
}

/// Gives each path `factor` times the slots.
pub(crate) fn multiply_slots(jobs: &mut [Job], factor: u32) {
    for job in jobs {
        job.slots *= factor;
    }
}

impl Job {
    /// How many slots the path has.
    pub(crate) fn slots(&self) -> u32 {
        self.slots
    }
}

/// How much time a schedule is worth.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Effort {
    /// It stays for long: a better one is looked for.
    Search,
    /// It is soon replaced by another.
    Once,
}

/// Makes the schedule. `order` must be as long as `jobs` have slots in all.
///
/// Returns how far a window may be off, by its bound: that many turns divided by all slots. It is
/// at most as many as there are slots (1 I/O) if that is known to be possible.
pub(crate) fn make_schedule(order: &mut [u16], jobs: &mut [Job], effort: Effort) -> u32 {
    let (whole, paths) = (order.len() as u32, jobs.len() as u32);
    if jobs.iter().all(|job| job.slots <= 1) {
        // One turn each.
        for (path, slot) in order.iter_mut().enumerate() {
            *slot = path as u16;
        }
        return whole.saturating_sub(1);
    }
    if paths < 2 {
        order.fill(0);
        return 0;
    }

    // Tijdeman's, which is always possible.
    let half = whole - whole.div_ceil((2 * paths - 2).max(1));
    let mut best = (2 * half, Spread::Alike);
    let mut too_small = whole - 1;
    let mut range = whole;
    let mut budget = match effort {
        Effort::Search if jobs.len() <= MAX_EAGER => SEARCH / paths + 2 * whole,
        _ => 0,
    };

    while budget > 0 && best.0.saturating_sub(too_small) > (whole / 64).max(1) {
        // What there is no time left to try counts as impossible.
        let found = Spread::all().find(|&spread| {
            if budget == 0 {
                return false;
            }
            let filled = fill(order, jobs, range, spread);
            budget = budget.saturating_sub(paths + filled);
            filled == whole
        });
        match found {
            Some(spread) => best = (range, spread),
            None => too_small = range,
        }
        range = too_small + (best.0 - too_small) / 2;
    }
    let (range, spread) = best;
    fill(order, jobs, range, spread);
    range
}

/// Tries to make a schedule that keeps each path within its range. Returns how many slots it could
/// fill: if not all, there is none.
fn fill(order: &mut [u16], jobs: &mut [Job], range: u32, spread: Spread) -> u32 {
    let paths = jobs.len();
    let mut eligible = Eligible { len: 0, range };

    // Slots that are not filled yet hold the list of the paths whose turn may come from there on.
    order.fill(NO_PATH);
    for path in 0..paths {
        jobs[path].done = 0;
        jobs[path].below = spread.below(range, path, paths);
        eligible.enter(path as u16, 0, order, jobs);
    }
    for slot in 0..order.len() {
        let mut path = order[slot];
        while path != NO_PATH {
            eligible.push(path, jobs);
            path = jobs[usize::from(path)].link;
        }
        let path = eligible.pop(jobs);
        match jobs.get_mut(usize::from(path)) {
            Some(job) if job.due >= slot as u32 => job.done += 1,
            _ => return slot as u32,
        }
        order[slot] = path;
        if jobs[usize::from(path)].done < jobs[usize::from(path)].slots {
            eligible.enter(path, slot + 1, order, jobs);
        }
    }
    order.len() as u32
}

/// The paths that may have the next slot: a binary heap in `jobs[..len].heap`, the most urgent
/// path first.
struct Eligible {
    len: usize,
    range: u32,
}

impl Eligible {
    /// Puts the path on the list of the slot, `now` or later, from which on it may have its next
    /// turn.
    fn enter(&mut self, path: u16, now: usize, order: &mut [u16], jobs: &mut [Job]) {
        let job = &mut jobs[usize::from(path)];
        let whole = order.len() as u32;
        let slots = job.slots.max(1);

        // With the turn, d is (done + 1) whole - (slot + 1) slots: not above the range.
        let above = ((job.done + 1) * whole).saturating_sub(self.range - job.below);
        let slot = (above.div_ceil(slots).saturating_sub(1) as usize).max(now);
        // Without it, d is done whole - (slot + 1) slots: not below it, up to the slot before.
        job.due = (job.done * whole + job.below) / slots;

        // A turn that may not come within the schedule leaves a slot without a path.
        if let Some(list) = order.get_mut(slot) {
            job.link = *list;
            *list = path;
        }
    }

    /// Whether `a`'s turn is due before `b`'s.
    fn before(&self, a: u16, b: u16, jobs: &[Job]) -> bool {
        (jobs[usize::from(a)].due, a) < (jobs[usize::from(b)].due, b)
    }

    fn push(&mut self, path: u16, jobs: &mut [Job]) {
        let mut at = self.len;
        self.len += 1;
        while at > 0 {
            let parent = (at - 1) / 2;
            if !self.before(path, jobs[parent].heap, jobs) {
                break;
            }
            jobs[at].heap = jobs[parent].heap;
            at = parent;
        }
        jobs[at].heap = path;
    }

    /// Takes the most urgent path, [`NO_PATH`] if there is none.
    fn pop(&mut self, jobs: &mut [Job]) -> u16 {
        if self.len == 0 {
            return NO_PATH;
        }
        self.len -= 1;
        let first = jobs[0].heap;
        let last = jobs[self.len].heap;
        let mut at = 0;
        loop {
            let mut child = 2 * at + 1;
            if child >= self.len {
                break;
            }
            if child + 1 < self.len && self.before(jobs[child + 1].heap, jobs[child].heap, jobs) {
                child += 1;
            }
            if !self.before(jobs[child].heap, last, jobs) {
                break;
            }
            jobs[at].heap = jobs[child].heap;
            at = child;
        }
        jobs[at].heap = last;
        first
    }
}

/// A slot's hop: the path, and the slot to go on with.
fn hop(path: u16, next: usize) -> u32 {
    u32::from(path) << SLOT_BITS | next as u32
}

/// The hop of a slot of a schedule that is not made yet.
pub(crate) fn no_hop(slot: usize) -> Cell {
    Cell::new(hop(NO_PATH, slot))
}

/// Writes a section of the table of hops, for the paths that are in service. `hops` is as long as
/// `order`; the section begins with the slot `begin` of the table.
///
/// May run while others [`select`], but not twice at the same time.
pub(crate) fn make_hops(
    order: &[u16],
    hops: &[Cell],
    begin: usize,
    is_in_service: impl Fn(usize) -> bool,
) {
    let works = |path: u16| is_in_service(usize::from(path));

    // What the last slots hop to, over the end.
    let Some(first) = order.iter().position(|&path| works(path)) else {
        for (slot, at) in (begin..).zip(hops) {
            at.store(hop(NO_PATH, slot));
        }
        return;
    };
    let after = if first + 1 < order.len() {
        begin + first + 1
    } else {
        begin
    };
    let mut found = hop(order[first], after);
    let mut next = begin;
    for (slot, (&path, at)) in order.iter().zip(hops).enumerate().rev() {
        if works(path) {
            found = hop(path, next);
        }
        at.store(found);
        next = begin + slot;
    }
}

/// How far the nearest path in service is; `distances` are all paths'.
pub(crate) fn nearest(distances: &[u32], is_in_service: impl Fn(usize) -> bool) -> Option<u32> {
    let in_service = (distances.iter().enumerate()).filter(|&(path, _)| is_in_service(path));
    in_service.map(|(_, &distance)| distance).min()
}

/// Where the cursor of a CPU begins in its section: the CPUs are spread over it, so that they do not
/// march from path to path in step, whichever of the possible ones there are.
pub(crate) fn first_slot(cpu: u32, slots: usize) -> u32 {
    // The bits of 0, 1, 2, ... in reverse: 0, 1/2, 1/4, 3/4, 1/8, ... of the way.
    ((u64::from(cpu.reverse_bits()) * slots as u64) >> 32) as u32
}

/// Chooses the path for which it is the turn at `cursor`. Returns where the cursor goes, and the
/// path's index; if no path is in service, an index that none has. Neither waits nor loops.
#[inline]
pub(crate) fn select(hops: &[Cell], cursor: u32) -> (u32, usize) {
    match hops.get(cursor as usize) {
        Some(hop) => {
            let hop = hop.load();
            (hop & ((1 << SLOT_BITS) - 1), (hop >> SLOT_BITS) as usize)
        }
        // There are no paths, or never was such a cursor.
        None => (0, usize::from(NO_PATH)),
    }
}

/// How many turns of one path are passed over at once, at most.
const MOST_PASSED: usize = 4;

/// Where the cursor goes when the turn at `cursor`, and those that the same path has right after it, are
/// passed over: if `is_to_be` says so of that path and the next one. Does not wait.
#[inline]
pub(crate) fn after_turn(
    hops: &[Cell],
    cursor: u32,
    is_to_be: impl Fn(usize, usize) -> bool,
) -> Option<u32> {
    let (mut next, path) = select(hops, cursor);
    for _ in 0..MOST_PASSED {
        let (after, other) = select(hops, next);
        if other != path {
            return is_to_be(path, other).then_some(next);
        }
        next = after;
    }
    None
}
