// SPDX-License-Identifier: GPL-2.0

//! The decisions of a group that follows latency: how many slots each path has. No kernel types in
//! here.
//!
//! # What is measured
//!
//! Each CPU sums up, for each path and each class of I/O sizes, how many I/Os have ended and how long
//! they took. Ten times a second somebody [`look`](Law::look)s at what was added since. A class's
//! *reference* is the harmonic mean of what an I/O of that class takes on the paths in service. What
//! a path's I/Os took in all, divided by what as many I/Os of the same classes take at the reference, is
//! how slow the path is, its *ratio*. So a path that happens to get the large I/Os is not slow for it.
//!
//! The harmonic mean, as one fast path among a few slow ones pulls it down to its own time, and one slow
//! path hardly moves it; and unlike the least, it is not lower with more paths whose times differ by
//! chance only.
//!
//! A mean that is part of the reference is over the path's last 16 I/Os of the class at least, where there
//! were so many, as the harmonic mean of a few is too low; unless those before were another path's, by a
//! factor of 4.
//!
//! # What follows
//!
//! A path's weight is its own weight times 2 to the power of -`lowered` / 16. A path that is slow is
//! lowered further, one that is fast is raised, in steps, until it is neither, is up again, or is down at
//! its *floor*. So a path that is slow in itself ends up with no more I/O than it takes to notice when
//! it is fast again. One that is slow because of the I/O that it gets ends up with as much as it can take.
//!
//! - Slow is a ratio above 1.25 (1 + 2 / sqrt(n)), fast one below 1.125 (1 + 1 / sqrt(n)), for n I/Os.
//!   Times that differ by chance, even by as much as they are long, lower hardly anything.
//! - A decision takes 4 I/Os of the path, 2 after two looks, 1 after ten. To raise a path one is
//!   enough that takes no longer than the reference.
//! - Steps double, from a quarter of an octave to two octaves: up or down all the way takes six
//!   looks. But a path that goes down steps halfway to where it was fast last, and one that goes up halfway
//!   to where it was slow last, by an eighth of an octave at least, until it learns otherwise there.
//!   (Between too little and too much I/O for a busy path there is hardly anything: a little more than it
//!   can take, and a queue builds up until all I/O waits in it. Steps in proportion to the ratio
//!   swing around that point without end; these close in on it.)
//! - A slow path whose ratio has fallen by an eighth since the last decision is left as it is, since its
//!   queue becomes shorter; a fast one whose ratio has risen by an eighth, likewise, but for one that
//!   takes less than half of the reference.
//! - After a decision a path is left as it is for as long as its I/Os take, at most four looks: those from
//!   before say nothing of the new weight.
//! - The floor is 8 I/Os per second, of the group's rate; at most an eighth of the path's own weight. And a
//!   slot.
//! - A path that has ended nothing while its share of what the others have ended would be 16 I/Os is slow.
//!
//! # Paths that are far
//!
//! Where distance counts there is a law for the CPUs of each node. A path's *detour* is how much further it is
//! than the nearest one, as a factor; its I/Os count as if they took that much longer. It is *far* while
//! one that is nearer is in service. It begins at its floor. It is compared with the near ones alone, and without a
//! margin: it is lowered while it takes longer than they do and raised while it does not. A near one is
//! slow for what the near ones take, or all, whichever is less.

use core::mem;

/// How often to look, in milliseconds. A busy path's mean means something then; and six looks, all the
/// way up or down, are well within a second.
pub(crate) const PERIOD_MS: u32 = 100;
/// After so many looks in a row in which no I/O has ended, there is no need to look until one does.
pub(crate) const IDLE_LOOKS: u32 = 10;

/// The classes of sizes: to 8 KiB, to 32 KiB, to 128 KiB, above.
pub(crate) const CLASSES: usize = 4;

/// How long an I/O took, as part of a sum: in units of 64 ns, at most half a minute.
const UNIT_NS_SHIFT: u32 = 6;
const MAX_UNITS: u64 = (30 * 1_000_000_000) >> UNIT_NS_SHIFT;
/// Above the time, the number of I/Os. Between two looks there is room for 2,300 of the longest I/Os, and
/// for 16 million in all.
const COUNT_SHIFT: u32 = 40;

/// Of a path that ends so many I/Os from one look to the next, one in eight is timed: reading the clock is
/// the dearest part.
const MANY: u32 = 400;
const MANY_SHIFT: u32 = 3;

/// How far weights are lowered is counted in 16ths of an octave.
const OCTAVE: u32 = 16;
const MIN_STEP: u32 = OCTAVE / 8;
const FIRST_STEP: u32 = OCTAVE / 4;
const MAX_STEP: u32 = 2 * OCTAVE;
/// Of a thousandth nothing is left in a schedule of a thousand slots.
const MAX_LOWERED: u32 = 10 * OCTAVE;

/// I/Os per second that a path gets however slow it is.
const PROBES: u64 = 8;
/// But no more than this part of its own weight.
const MOST_PROBES: u64 = 8;

/// How many I/Os a decision takes, if the path has waited for so many looks.
const ENOUGH: [(u32, u32); 3] = [(4, 1), (2, 2), (1, 10)];
/// By how many I/Os at least a mean is part of the reference, once there were so many.
const MEAN: u32 = 16;
/// How many I/Os a path misses before it counts as slow.
const MISSED: u64 = 16;
/// For how many looks a mean is part of the reference.
const FRESH: u32 = 20;

/// How long a look is, in units of time, and for how many a path is left alone at most after a step.
const LOOK_UNITS: u64 = (PERIOD_MS as u64 * 1_000_000) >> UNIT_NS_SHIFT;
const MAX_REST: u32 = 4;

/// A ratio of 1.
const ONE: u64 = 256;
/// The firmware's distances are 10 to 254.
const MAX_DETOUR: u64 = 32 * ONE;

/// The class of an I/O of this size.
#[inline]
pub(crate) fn class(nr_bytes: usize) -> usize {
    // One comparison each, and no jump.
    usize::from(nr_bytes > 8 << 10)
        + usize::from(nr_bytes > 32 << 10)
        + usize::from(nr_bytes > 128 << 10)
}

/// What an I/O that took so long adds to the sum of its class, if it stands for `1 << shift` of them. The sum
/// wraps around.
#[inline]
pub(crate) fn sample(ns: u64, shift: u32) -> u64 {
    (1 << COUNT_SHIFT | (ns >> UNIT_NS_SHIFT).min(MAX_UNITS)) << shift
}

/// Whether an I/O that has started at this time, on whatever clock, is one of those of which one in
/// `1 << shift` is timed. By a product (Knuth's multiplicative hashing), for a clock may go in steps.
#[inline]
pub(crate) fn is_timed(start_ns: u64, shift: u32) -> bool {
    (start_ns.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) >> (32 - shift) == 0
}

/// How many slots a schedule has whose paths have `own` slots by their own weights: a multiple of that,
/// so that weights that are not lowered come out exactly.
pub(crate) fn slots(paths: usize, own: usize) -> usize {
    let wanted = if paths <= 64 { 1024 } else { 4096 };
    own * (wanted / own.max(1)).max(1)
}

/// Which way a path went last.
#[derive(Clone, Copy, Default, PartialEq, Debug)]
enum Course {
    #[default]
    Up,
    Down,
}

/// What is known about a path.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Gauge {
    /// The slots that it has when nothing is lowered.
    own: u32,
    /// How much more its I/Os count, in 256ths.
    detour: u32,
    /// The slots that it has.
    slots: u32,
    /// How far its weight is lowered.
    lowered: u32,
    /// The last step.
    step: u32,
    /// How far it was lowered when it was slow last, and when it was fast, unless what came later
    /// contradicts that.
    slow_at: Option<u32>,
    fast_at: Option<u32>,
    /// Each class's sum, as it was seen last.
    seen: [u64; CLASSES],
    /// The I/Os that have ended since the last look, and before it since the one before.
    ended: u32,
    ended_before: u32,
    /// Each class's I/Os since the last decision, and how long they took.
    ios: [u32; CLASSES],
    time: [u64; CLASSES],
    /// Each class's mean time of an I/O, by the last 16 or more; and for how many looks to believe it.
    mean: [u64; CLASSES],
    fresh: [u32; CLASSES],
    /// The same at the last decision, and by how many.
    past_mean: [u64; CLASSES],
    past_ios: [u32; CLASSES],
    /// Its ratio at the last decision.
    ratio: u64,
    /// Looks since the last decision.
    waited: u32,
    /// For how many looks it is left as it is, until the I/Os from before the last step have ended.
    rest: u32,
    /// I/Os that should have ended since the last one that did, times all slots.
    missed: u64,
}

impl Gauge {
    /// The path has `own` slots by its own weight, and is so far where the nearest one is at
    /// `nearest`. Nothing was measured yet.
    pub(crate) fn begin(&mut self, own: u32, distance: u32, nearest: u32) {
        let detour = u64::from(distance) * ONE / u64::from(nearest.max(1));
        self.own = own;
        self.detour = detour.clamp(ONE, MAX_DETOUR) as u32;
        self.slots = own;
        self.lowered = 0;
        self.step = 0;
    }

    /// The slots that it has.
    pub(crate) fn slots(&self) -> u32 {
        self.slots
    }

    /// Reads the sum of a class.
    pub(crate) fn read(&mut self, class: usize, sum: u64) {
        let added = sum.wrapping_sub(self.seen[class]);
        let ios = (added >> COUNT_SHIFT) as u32;
        self.seen[class] = sum;
        self.ended = self.ended.saturating_add(ios);
        self.ios[class] = self.ios[class].saturating_add(ios);
        let took = (added & ((1 << COUNT_SHIFT) - 1)) * u64::from(self.detour) / ONE;
        self.time[class] = self.time[class].saturating_add(took);
        if ios > 0 {
            self.fresh[class] = FRESH;
            let (past, now) = (self.past(class), self.ios[class]);
            let time = u64::from(past) * self.past_mean[class] + self.time[class];
            self.mean[class] = (time / (u64::from(past) + u64::from(now)).max(1)).max(1);
        }
    }

    /// How many I/Os before the last decision count for the mean, beside those since.
    fn past(&self, class: usize) -> u32 {
        self.past_ios[class].min(MEAN.saturating_sub(self.ios[class]))
    }

    /// What an I/O takes, in nanoseconds, by the last of each class; 0 when nothing is known.
    pub(crate) fn latency_ns(&self) -> u64 {
        let classes = self.mean.iter().filter(|&&mean| mean > 0).count() as u64;
        let sum: u64 = self.mean.iter().sum();
        ((sum / classes.max(1)) << UNIT_NS_SHIFT) * ONE / u64::from(self.detour.max(1))
    }

    /// Of how many I/Os one is timed, as a power of two.
    pub(crate) fn timed_shift(&self) -> u32 {
        match self.ended_before >= MANY {
            true => MANY_SHIFT,
            false => 0,
        }
    }

    /// Its weight: for each slot of its own, 65,536 at most.
    fn weight(&self) -> u64 {
        /// 65536 times 2 to the power of -n / 16.
        const POWERS: [u32; OCTAVE as usize] = [
            65536, 62757, 60097, 57549, 55109, 52772, 50535, 48393, 46341, 44376, 42495, 40693,
            38968, 37316, 35734, 34219,
        ];
        let power = POWERS[(self.lowered % OCTAVE) as usize] >> (self.lowered / OCTAVE);
        u64::from(self.own) * u64::from(power)
    }

    fn has_missed(&self, slots: u64) -> bool {
        self.missed >= MISSED * slots
    }

    /// Begins with the next decision.
    fn forget(&mut self) {
        for class in 0..CLASSES {
            let ios = self.ios[class];
            if ios > 0 {
                let mean = self.time[class] / u64::from(ios.max(1));
                let past = self.past_mean[class];
                if mean > 4 * past || 4 * mean < past {
                    // It is another path now.
                    self.mean[class] = mean.max(1);
                    self.past_ios[class] = ios.min(MEAN);
                } else {
                    self.past_ios[class] = (self.past(class).saturating_add(ios)).min(MEAN);
                }
                self.past_mean[class] = self.mean[class];
            }
        }
        self.ios = [0; CLASSES];
        self.time = [0; CLASSES];
        self.waited = 0;
        self.missed = 0;
    }

    /// Whether it is to go down or up, if either, by what an I/O of each class takes.
    fn decide(&mut self, reference: &Reference, is_far: bool, slots: u64) -> Option<Course> {
        if self.has_missed(slots) {
            self.forget();
            return Some(Course::Down);
        }
        if self.rest > 0 {
            self.rest -= 1;
            self.forget();
            return None;
        }
        self.waited += 1;
        let ios = self
            .ios
            .iter()
            .fold(0u32, |sum, &ios| sum.saturating_add(ios));
        let is_enough = ENOUGH
            .iter()
            .any(|&(enough, looks)| ios >= enough && self.waited >= looks);
        if ios == 0 {
            return None;
        }

        let took: u64 = self.time.iter().sum();
        let expected: u64 = self
            .ios
            .iter()
            .enumerate()
            .map(|(class, &ios)| u64::from(ios) * reference.of(class, is_far))
            .sum();
        let ratio = took.saturating_mul(ONE) / expected.max(1);
        if !is_enough {
            if self.lowered == 0 || ratio >= ONE {
                return None;
            }
            self.ratio = ratio;
            self.forget();
            return Some(Course::Up);
        }
        // 16 times the square root.
        let root = (u64::from(ios) << 8).isqrt().max(1);
        let margin = |least: u64, times: u64| match is_far {
            true => ONE,
            false => least + times * 16 * least / root,
        };
        let slow = margin(ONE * 5 / 4, 2);
        let fast = margin(ONE * 9 / 8, 1);
        let before = mem::replace(&mut self.ratio, ratio);
        let looks = (took / u64::from(ios)) / LOOK_UNITS;
        self.rest = (looks as u32).min(MAX_REST);
        self.forget();
        if ratio > slow {
            // What has queued up on it goes on to be slow for a while.
            (ratio > before - before / 8).then_some(Course::Down)
        } else if ratio < fast {
            (ratio < before + before / 8 || ratio < ONE / 2).then_some(Course::Up)
        } else {
            None
        }
    }

    /// Takes a step.
    fn go(&mut self, course: Course) {
        let here = self.lowered;
        let limit = match course {
            Course::Down => {
                self.slow_at = Some(here);
                self.fast_at = self.fast_at.filter(|&there| there > here);
                self.fast_at
            }
            Course::Up => {
                self.fast_at = Some(here);
                self.slow_at = self.slow_at.filter(|&there| there < here);
                self.slow_at
            }
        };
        self.step = match limit {
            Some(there) => (there.abs_diff(here) / 2).clamp(MIN_STEP, MAX_STEP),
            None if here == 0 => FIRST_STEP,
            None => (2 * self.step).min(MAX_STEP),
        };
        self.lowered = match course {
            Course::Down => (here + self.step).min(MAX_LOWERED),
            Course::Up => here.saturating_sub(self.step),
        };
    }
}

/// What an I/O of each class takes; 0 where nothing is known.
struct Reference {
    all: [u64; CLASSES],
    near: [u64; CLASSES],
}

impl Reference {
    /// For a path that is far, or near.
    fn of(&self, class: usize, is_far: bool) -> u64 {
        match (self.near[class], self.all[class]) {
            (0, all) => all,
            (near, all) if !is_far => near.min(all),
            (near, _) => near,
        }
    }
}

/// What is known about a group, or what the CPUs of a node do with it.
#[derive(Default)]
pub(crate) struct Law {
    /// I/Os per second, of late.
    rate: u64,
    /// How many looks in a row have seen no I/O.
    idle: u32,
}

impl Law {
    /// Gives far paths as few slots as there can be, until something is known.
    pub(crate) fn begin(paths: &mut [Gauge]) {
        for path in paths.iter_mut() {
            if u64::from(path.detour) > ONE {
                path.lowered = MAX_LOWERED;
                path.step = MAX_STEP;
            }
        }
        let slots = paths.iter().map(|path| u64::from(path.own)).sum();
        Self::share_out(paths, slots);
    }

    /// Looks at the paths, all of whose sums were just read, and gives each its slots: as many in all as
    /// when nothing is lowered. Returns whether any has others than before.
    pub(crate) fn look(
        &mut self,
        paths: &mut [Gauge],
        is_in_service: impl Fn(usize) -> bool,
    ) -> bool {
        let slots: u64 = paths.iter().map(|path| u64::from(path.own)).sum();
        let ended: u64 = paths.iter().map(|path| u64::from(path.ended)).sum();
        if ended > 0 {
            self.idle = 0;
            let rate = ended * 1000 / u64::from(PERIOD_MS);
            self.rate = rate.min((self.rate + rate) / 2);
        } else {
            self.idle = self.idle.saturating_add(1);
        }

        for (index, path) in paths.iter_mut().enumerate() {
            if !is_in_service(index) {
                path.forget();
            } else if path.ended > 0 {
                path.missed = 0;
            } else {
                path.missed += ended * u64::from(path.slots);
            }
            path.ended_before = mem::take(&mut path.ended);
        }

        let in_service = (0..paths.len()).filter(|&index| is_in_service(index));
        let least = in_service.map(|index| paths[index].detour).min();
        let is_far = |path: &Gauge| Some(path.detour) != least;
        let reference = Reference {
            all: Self::reference(paths, &is_in_service, slots),
            near: Self::reference(
                paths,
                &|index| is_in_service(index) && !is_far(&paths[index]),
                slots,
            ),
        };
        for (index, path) in paths.iter_mut().enumerate() {
            if is_in_service(index) {
                if let Some(course) = path.decide(&reference, is_far(path), slots) {
                    path.go(course);
                }
            }
            for fresh in &mut path.fresh {
                *fresh = fresh.saturating_sub(1);
            }
        }

        Self::raise(paths, &is_in_service);
        if self.idle == 0 {
            self.keep_floor(paths, slots);
        }
        Self::share_out(paths, slots)
    }

    /// Whether nothing has happened for so long that nothing needs to be looked at.
    pub(crate) fn is_idle(&self) -> bool {
        self.idle >= IDLE_LOOKS
    }

    /// What an I/O of each class takes: the harmonic mean over the paths.
    fn reference(
        paths: &[Gauge],
        is_in_service: &impl Fn(usize) -> bool,
        slots: u64,
    ) -> [u64; CLASSES] {
        let mut reference = [0; CLASSES];
        for (class, reference) in reference.iter_mut().enumerate() {
            let (mut known, mut inverse) = (0, 0);
            for (index, path) in paths.iter().enumerate() {
                if is_in_service(index)
                    && path.mean[class] > 0
                    && path.fresh[class] > 0
                    && !path.has_missed(slots)
                {
                    known += 1;
                    inverse += (1 << COUNT_SHIFT) / path.mean[class].max(1);
                }
            }
            if known > 0 {
                *reference = ((known << COUNT_SHIFT) / inverse.max(1)).max(1);
            }
        }
        reference
    }

    /// The paths in service of which most is left are as if nothing was lowered.
    fn raise(paths: &mut [Gauge], is_in_service: &impl Fn(usize) -> bool) {
        let in_service = |index: &usize| is_in_service(*index);
        let least = (0..paths.len())
            .filter(in_service)
            .map(|index| paths[index].lowered)
            .min()
            .unwrap_or(0);
        if least > 0 {
            for index in (0..paths.len()).filter(in_service) {
                let path = &mut paths[index];
                path.lowered -= least;
                for there in [&mut path.slow_at, &mut path.fast_at].into_iter().flatten() {
                    *there = there.saturating_sub(least);
                }
            }
        }
    }

    /// Lowers no path by so much that it would get too little I/O to notice that it is fast.
    fn keep_floor(&self, paths: &mut [Gauge], slots: u64) {
        // In powers of two, so that it is the same for a while.
        let rate = self.rate.max(1).next_power_of_two().max(1);
        let whole: u64 = paths.iter().map(Gauge::weight).sum();
        for path in paths {
            let most = (u64::from(path.own) << 16) / MOST_PROBES;
            let floor = (whole * PROBES / rate).max(whole / slots.max(1)).min(most);
            while path.lowered > 0 && path.weight() < floor {
                path.lowered -= 1;
                // From there, up at full speed.
                path.step = MAX_STEP;
            }
        }
    }

    /// Shares out the slots by weight, at least one each.
    fn share_out(paths: &mut [Gauge], slots: u64) -> bool {
        let is_even = paths.iter().all(|path| path.lowered == 0);
        let whole = paths.iter().map(Gauge::weight).sum::<u64>().max(1);
        let room = slots - paths.len() as u64;
        let (mut carry, mut has_changed) = (0, false);
        for path in paths {
            carry += path.weight() * room;
            let count = if is_even {
                path.own
            } else {
                1 + (carry / whole) as u32
            };
            carry %= whole;
            has_changed |= path.slots != count;
            path.slots = count;
        }
        has_changed
    }
}
