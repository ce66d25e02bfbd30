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
//! The order is that of the chairman assignment problem (R. Tijdeman, 1980). With n paths, weight
//! w_i of a sum W, and x_i(k) the number of slots that path i has among the first k, it keeps
//!
//! ```text
//! | x_i(k) - k w_i / W |  <=  1 - 1 / (2n - 2)      for each i and k
//! ```
//!
//! which is the best possible bound. In the k-th slot it puts, among the paths whose share has
//! come up to 1/(2n-2) of their next turn, the one whose next turn is the first that would be too
//! late.
//!
//! # Failed paths
//!
//! Beside the schedule there is a table of *hops*: for each slot, the first slot at or after it
//! (cyclically) whose path is in service, and which path that is. To select is to look up the
//! cursor's hop and to put the cursor behind it, so a failed path costs nothing and the others keep
//! taking turns in proportion to their weights: its share does not all fall to its successor.
//! Failing and reinstating a path rewrites the table in place, slot by slot. Whoever selects
//! meanwhile sees for each slot either what was right before or what is right now.

use super::cell::Cell;

/// The most paths: as many as `dm-multipath` allows in a priority group.
pub(crate) const MAX_PATHS: usize = 1024;
/// The most slots of a schedule. Weights whose sum is greater are scaled down to it.
pub(crate) const MAX_SLOTS: usize = 16384;

/// In a schedule: no path. In a list of jobs: the end.
const NO_PATH: u16 = u16::MAX;
/// As a hop: no path is in service.
const NOWHERE: u32 = u32::MAX;

/// What is known about a path while the schedule is made.
#[derive(Clone, Copy, Default)]
pub(crate) struct Job {
    /// How many slots it is to have.
    slots: u32,
    /// How many it has got.
    done: u32,
    /// The next path that becomes eligible in the same slot.
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
/// `jobs` must be as long as `weights`, which may have at most [`MAX_PATHS`] elements, none 0.
pub(crate) fn share_out(weights: &[u16], jobs: &mut [Job]) -> usize {
    let divisor = weights.iter().fold(0, |d, &w| gcd(d, u32::from(w))).max(1);
    let sum: u64 = weights
        .iter()
        .map(|&w| u64::from(u32::from(w) / divisor))
        .sum();
    // Rounding, and the one slot that each gets at least, add at most one for each path.
    let room = MAX_SLOTS.saturating_sub(weights.len()) as u64;
    let mut total = 0;

    for (job, &weight) in jobs.iter_mut().zip(weights) {
        let weight = u32::from(weight) / divisor;
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

/// Makes the schedule. `order` must have the length that [`share_out`] returned for `jobs`.
pub(crate) fn make_schedule(order: &mut [u16], jobs: &mut [Job]) {
    if jobs.len() < 2 {
        order.fill(0);
        return;
    }

    let mut eligible = Eligible {
        len: 0,
        twice: 2 * (jobs.len() as u64 - 1),
    };
    // Slots that are not filled yet hold the list of the paths that become eligible there.
    order.fill(NO_PATH);
    for path in 0..jobs.len() {
        eligible.enter(path as u16, 0, order, jobs);
    }
    for slot in 0..order.len() {
        let mut path = order[slot];
        while path != NO_PATH {
            eligible.push(path, jobs);
            path = jobs[usize::from(path)].link;
        }
        order[slot] = eligible.pop(jobs);
        if let Some(job) = jobs.get_mut(usize::from(order[slot])) {
            job.done += 1;
            if job.done < job.slots {
                eligible.enter(order[slot], slot + 1, order, jobs);
            }
        }
    }
}

/// The paths that may have the next slot: a binary heap in `jobs[..len].heap`, the most urgent
/// path first.
struct Eligible {
    len: usize,
    /// `2n - 2` for n paths: times are kept as multiples of `1 / (2n - 2)`.
    twice: u64,
}

impl Eligible {
    /// Puts the path on the list of the slot, `now` or later, from which its next turn is eligible.
    fn enter(&mut self, path: u16, now: usize, order: &mut [u16], jobs: &mut [Job]) {
        let job = &mut jobs[usize::from(path)];
        // The first k, counted from 1, for which k w / W - done >= 1 / (2n - 2).
        let whole = order.len() as u64;
        let first = ((u64::from(job.done) * self.twice + 1) * whole)
            .div_ceil(self.twice * u64::from(job.slots));
        let slot = (first.saturating_sub(1) as usize).max(now);

        // A turn that is never eligible within the schedule does not exist: the last one of each
        // path is eligible 1 - 1 / (2n - 2) turns before the end.
        if let Some(list) = order.get_mut(slot) {
            job.link = *list;
            *list = path;
        }
    }

    /// Whether `a`'s next turn is due before `b`'s: compares (done + 1 - 1 / (2n - 2)) / slots.
    fn before(&self, a: u16, b: u16, jobs: &[Job]) -> bool {
        let due = |path: u16, other: u16| {
            let (job, other) = (&jobs[usize::from(path)], &jobs[usize::from(other)]);
            (u64::from(job.done + 1) * self.twice - 1) * u64::from(other.slots)
        };
        (due(a, b), a) < (due(b, a), b)
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

/// Writes the table of hops for the paths that are in service. `hops` is as long as `order`.
///
/// May run while others [`select`], but not twice at the same time.
pub(crate) fn make_hops(order: &[u16], hops: &[Cell], is_in_service: impl Fn(usize) -> bool) {
    let mut hop = NOWHERE;

    // Backwards; the first round finds what the last slots hop to, over the end.
    for round in 0..2 {
        for (slot, &path) in order.iter().enumerate().rev() {
            if is_in_service(usize::from(path)) {
                hop = u32::from(path) << 16 | slot as u32;
            }
            if round == 1 {
                hops[slot].store(hop);
            }
        }
    }
}

/// Chooses the path for which it is the turn, and moves `cursor` on. Neither waits nor loops.
///
/// A cursor may be shared: then two that select at the same moment may choose the same path.
#[inline]
pub(crate) fn select(hops: &[Cell], cursor: &Cell) -> Option<usize> {
    let hop = hops.get(cursor.load() as usize).or(hops.first())?.load();
    if hop == NOWHERE {
        return None;
    }

    let next = (hop & 0xffff) + 1;
    cursor.store(if next as usize == hops.len() { 0 } else { next });
    Some((hop >> 16) as usize)
}
