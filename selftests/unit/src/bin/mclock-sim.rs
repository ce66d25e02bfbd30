// SPDX-License-Identifier: GPL-2.0

//! Simulates a dm-qos group: a disk of a fixed number of I/Os per second and a fixed depth, and
//! members with random reservations, weights, limits and habits, which all begin at the same time.
//!
//!     mclock-sim [members [seconds [seed]]]
//!
//! Prints one JSON object; times are processor time. Half of the members always have I/O waiting,
//! some do from time to time, and some issue single I/Os. 70 % of the disk is reserved.
//!
//! `windows` are the windows of 100 ms (longer where less than 40 I/Os per second are reserved)
//! that the scheduler looked at by itself, in which a member had I/O waiting throughout, and
//! `missed` those with less than what was reserved, less one I/O or 1 %. `windows_recounted` and
//! `missed_recounted` are the simulator's own count, in windows of 100 ms of the group. Share
//! errors are those of the members that always wait, against a max-min division in each tenth of a
//! second; those that are to get less than 100 I/Os in the whole run are left out, as one I/O is
//! more than 1 % there.

use gcra::{Limit, Rate, TICKS_PER_MS, TICKS_PER_S};
use mclock::{Capacity, Cost, Next, Promise, Scheduler, Slot, Storage, WINDOW};
use std::{cmp::Reverse, collections::BinaryHeap, env, fs, hint::black_box, process::exit};

mod primitives {
    pub(crate) use std::sync::atomic::{fence, AtomicU64, Ordering};
}
#[path = "../atomic.rs"]
#[allow(dead_code)]
mod atomic;
#[path = "../../../../dm-qos/policy/gcra.rs"]
#[allow(dead_code)]
mod gcra;
#[path = "../../../../dm-qos/policy/heap.rs"]
#[allow(dead_code)]
mod heap;
#[path = "../../../../dm-qos/policy/mclock.rs"]
#[allow(dead_code)]
mod mclock;
#[path = "../store.rs"]
#[allow(dead_code)]
mod store;

/// What the disk can do.
const IOPS: u64 = 200_000;
const DEPTH: u64 = 64;
const BYTES: u32 = 4096;
/// How much of it is reserved.
const RESERVED: f64 = 0.7;
const BURST: u64 = 10 * TICKS_PER_MS;
/// Few members.
const FEW: usize = 100;
/// How many decisions are timed.
const TIMED: u64 = 2_000_000;

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// From 0 to 1.
    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    fn between(&mut self, low: f64, high: f64) -> f64 {
        low + self.unit() * (high - low)
    }

    /// A pause of this mean, in ticks.
    fn pause(&mut self, mean: f64) -> u64 {
        (-mean * (1.0 - self.unit()).ln()) as u64 + 1
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Habit {
    Backlogged,
    OnOff,
    Sparse,
}

struct Member {
    slot: Slot,
    habit: Habit,
    promise: Promise,
    limit: Limit,
    limit_ios: f64,
    /// I/Os that wait; `u64::MAX`: without end.
    waiting: u64,
    /// Since when something has been waiting without a break.
    since: u64,
    /// I/Os in this window, and in this epoch.
    window: u64,
    epoch: u64,
    served: u64,
    expected: f64,
}

impl Member {
    fn eligible(&self) -> u64 {
        self.limit.eligible(self.limit.cost(1))
    }
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    /// An I/O is done.
    Done,
    /// A limit lets somebody go on.
    Wake,
    /// A window ends.
    Window,
    /// A member begins or ceases to issue I/O, or issues one.
    Turn(usize),
}

struct Simulation {
    scheduler: Scheduler,
    members: Vec<Member>,
    by_slot: Vec<usize>,
    random: Random,
    events: BinaryHeap<Reverse<(u64, Event)>>,
    in_flight: u64,
    /// When the scheduler is looked at once more, if nothing happens before.
    wake: u64,
    cost: Cost,
    decisions: u64,
    recounted: u64,
    missed: u64,
    /// Since when those who share the disk have been the same, or nearly.
    epoch: u64,
}

fn make_members(count: usize, random: &mut Random, scheduler: &mut Scheduler) -> Vec<Member> {
    let fair = IOPS as f64 / count as f64;
    let wants: Vec<_> = (0..count)
        .map(|_| {
            if random.unit() < 0.4 {
                random.between(0.1, 1.0)
            } else {
                0.0
            }
        })
        .collect();
    let total: f64 = wants.iter().sum::<f64>().max(1.0);
    wants
        .into_iter()
        .map(|want| {
            let promise = Promise {
                ios: (want / total * RESERVED * IOPS as f64) as u64,
                bytes: 0,
                weight: random.between(50.0, 400.0) as u32,
            };
            let limit = Limit::new();
            let mut limit_ios = f64::INFINITY;
            if random.unit() < 0.15 {
                let rate = (promise.ios as f64).max(fair) * random.between(0.5, 2.0);
                let rate = (rate as u64).max(promise.ios).max(1);
                limit.change(Rate::new(rate), BURST, 0);
                limit_ios = rate as f64;
            }
            Member {
                slot: scheduler.add(&promise, 0).expect("room was made"),
                habit: match random.unit() {
                    kind if kind < 0.5 => Habit::Backlogged,
                    kind if kind < 0.8 => Habit::OnOff,
                    _ => Habit::Sparse,
                },
                promise,
                limit,
                limit_ios,
                waiting: 0,
                since: 0,
                window: 0,
                epoch: 0,
                served: 0,
                expected: 0.0,
            }
        })
        .collect()
}

impl Simulation {
    fn new(count: usize, seed: u64) -> Self {
        let mut random = Random(seed);
        let mut scheduler = Scheduler::new();
        scheduler.grow(Storage::with_room(count as u32).expect("memory"));
        let members = make_members(count, &mut random, &mut scheduler);
        let mut by_slot = vec![0; count];
        for (index, member) in members.iter().enumerate() {
            by_slot[member.slot.index()] = index;
        }
        let mut events = BinaryHeap::new();
        events.push(Reverse((WINDOW, Event::Window)));
        for index in 0..count {
            events.push(Reverse((0, Event::Turn(index))));
        }
        Self {
            scheduler,
            members,
            by_slot,
            random,
            events,
            in_flight: 0,
            wake: u64::MAX,
            cost: Cost {
                ios: 1,
                bytes: BYTES,
                time: Capacity::new(IOPS, 0).time(1, BYTES),
            },
            decisions: 0,
            recounted: 0,
            missed: 0,
            epoch: 0,
        }
    }

    fn run(&mut self, end: u64) {
        while let Some(Reverse((now, event))) = self.events.pop() {
            if now > end {
                break;
            }
            match event {
                Event::Done => self.in_flight -= 1,
                Event::Wake if now == self.wake => self.wake = u64::MAX,
                Event::Wake => {}
                Event::Window => self.close_window(now),
                Event::Turn(index) => self.turn(index, now),
            }
            // All that happens at one time comes before what follows from it.
            let next = self.events.peek().map(|Reverse((time, _))| *time);
            if next != Some(now) {
                self.dispatch(now);
            }
        }
    }

    fn turn(&mut self, index: usize, now: u64) {
        // One of a few changes what there is for the others.
        if self.members.len() <= FEW && self.members[index].habit == Habit::OnOff {
            self.close_epoch(now);
        }
        let fair = TICKS_PER_S as f64 / (IOPS as f64 / self.members.len() as f64);
        let member = &mut self.members[index];
        let (waiting, next) = match member.habit {
            Habit::Backlogged => (u64::MAX, None),
            Habit::OnOff => (
                if member.waiting == 0 { u64::MAX } else { 0 },
                Some(self.random.pause(300.0 * TICKS_PER_MS as f64)),
            ),
            Habit::Sparse => (member.waiting + 1, Some(self.random.pause(fair * 5.0))),
        };
        if waiting == 0 {
            self.scheduler.idle(member.slot, now);
        } else if member.waiting == 0 {
            member.since = now;
            self.scheduler
                .backlogged(member.slot, member.eligible(), now);
        }
        member.waiting = waiting;
        if let Some(pause) = next {
            self.events.push(Reverse((now + pause, Event::Turn(index))));
        }
    }

    fn dispatch(&mut self, now: u64) {
        while self.in_flight < DEPTH {
            let slot = match self.scheduler.next(now) {
                Next::Dispatch(slot, _) => slot,
                Next::Wait(until) if until < self.wake => {
                    self.wake = until;
                    self.events.push(Reverse((until, Event::Wake)));
                    return;
                }
                _ => return,
            };
            self.decisions += 1;
            self.scheduler.served(slot, self.cost, now);
            let member = &mut self.members[self.by_slot[slot.index()]];
            let at = member.eligible().max(member.since).min(now);
            member.limit.charge(member.limit.cost(1), at);
            member.window += 1;
            member.epoch += 1;
            member.served += 1;
            if member.waiting != u64::MAX {
                member.waiting -= 1;
            }
            match member.waiting {
                0 => self.scheduler.idle(slot, now),
                _ => self.scheduler.set_eligible(slot, member.eligible(), now),
            }
            self.in_flight += 1;
            let done = now + DEPTH * TICKS_PER_S / IOPS;
            self.events.push(Reverse((done, Event::Done)));
        }
    }

    /// Counts what the members that had I/O waiting throughout the window got.
    fn close_window(&mut self, now: u64) {
        for member in &mut self.members {
            let throughout = member.waiting != 0 && member.since + WINDOW <= now;
            if member.promise.ios != 0 && throughout {
                let reserved = member.promise.ios as f64 / 10.0;
                let slack = (reserved / 100.0).max(1.0);
                self.recounted += 1;
                self.missed += u64::from((member.window as f64) < reserved - slack);
            }
            member.window = 0;
        }
        self.close_epoch(now);
        self.events.push(Reverse((now + WINDOW, Event::Window)));
    }

    /// Divides what the members that always wait got in this time: to each the same multiple of its
    /// weight, but no less than is reserved and no more than its limit.
    fn close_epoch(&mut self, now: u64) {
        let seconds = (now - self.epoch) as f64 / TICKS_PER_S as f64;
        self.epoch = now;
        let share = |level: f64, member: &Member| {
            let weight = f64::from(member.promise.weight);
            (level * weight)
                .max(member.promise.ios as f64 * seconds)
                .min(member.limit_ios * seconds)
        };
        let members = &mut self.members;
        let backlogged = || members.iter().filter(|one| one.habit == Habit::Backlogged);
        let total: f64 = backlogged().map(|one| one.epoch as f64).sum();
        let (mut low, mut high) = (0.0, total);
        for _ in 0..64 {
            let level = (low + high) / 2.0;
            if backlogged().map(|one| share(level, one)).sum::<f64>() < total {
                low = level;
            } else {
                high = level;
            }
        }
        for member in members {
            member.expected += share(low, member);
            member.epoch = 0;
        }
    }
}

/// The processor time of this process, in nanoseconds, which other processes do not add to.
fn processor_time() -> u64 {
    let stat = fs::read_to_string("/proc/self/schedstat").unwrap_or_default();
    let first = stat.split_whitespace().next();
    first.and_then(|time| time.parse().ok()).unwrap_or_else(|| {
        eprintln!("mclock-sim: /proc/self/schedstat: no processor time");
        exit(1)
    })
}

/// How long a decision takes when all members have I/O waiting, in nanoseconds: to say
/// who is next, to charge it, and to say when its next I/O may leave. One in ten waits for a limit
/// after each I/O.
fn time_decisions(count: usize, seed: u64) -> f64 {
    let Simulation {
        mut scheduler,
        members,
        cost,
        ..
    } = Simulation::new(count, seed);
    let pause = TICKS_PER_S * count as u64 / IOPS / 2;
    for member in &members {
        scheduler.backlogged(member.slot, 0, 0);
    }
    let mut decide = |times: std::ops::Range<u64>| {
        for time in times {
            let now = time * (TICKS_PER_S / IOPS);
            if let Next::Dispatch(slot, phase) = scheduler.next(now) {
                black_box(phase);
                scheduler.served(slot, cost, now);
                let is_limited = slot.index() % 10 == 0;
                scheduler.set_eligible(slot, if is_limited { now + pause } else { 0 }, now);
            }
        }
    };
    decide(0..TIMED / 4);
    let start = processor_time();
    decide(TIMED / 4..TIMED / 4 + TIMED);
    (processor_time() - start) as f64 / TIMED as f64
}

fn main() {
    let mut numbers = [1000, 20, 1];
    for (number, word) in numbers.iter_mut().zip(env::args().skip(1)) {
        *number = word.parse().unwrap_or_else(|_| {
            eprintln!("usage: mclock-sim [members [seconds [seed]]]: {word} is not a number");
            exit(2)
        });
    }
    let [count, seconds, seed] = numbers;
    if count == 0 || count > 1_000_000 || seconds == 0 || seconds > 100_000 {
        eprintln!("mclock-sim: 1 to 1000000 members, 1 to 100000 seconds");
        exit(2);
    }

    let mut simulation = Simulation::new(count as usize, seed);
    let start = processor_time();
    let end = seconds * TICKS_PER_S;
    simulation.run(end);
    let time = (processor_time() - start) as f64 / 1e9;

    let (mut seen, mut missed) = (0, 0);
    let mut errors = Vec::new();
    for member in &simulation.members {
        let windows = simulation.scheduler.windows(member.slot, end);
        seen += windows.seen;
        missed += windows.missed;
        if member.habit == Habit::Backlogged && member.expected >= 100.0 {
            errors.push((member.served as f64 / member.expected - 1.0).abs());
        }
    }
    let reserved: u64 = simulation.members.iter().map(|one| one.promise.ios).sum();
    let mean = errors.iter().sum::<f64>() / errors.len().max(1) as f64;
    let max = errors.iter().copied().fold(0.0, f64::max);
    let decision = time_decisions(count as usize, seed);
    println!("{{\"members\": {count}, \"seconds\": {seconds}, \"seed\": {seed},");
    println!(" \"disk_iops\": {IOPS}, \"disk_depth\": {DEPTH}, \"reserved_iops\": {reserved},");
    println!(
        " \"decisions\": {}, \"processor_s\": {time:.3},",
        simulation.decisions
    );
    println!(
        " \"ns_per_decision\": {decision:.1}, \"decisions_per_s\": {:.0},",
        1e9 / decision
    );
    println!(" \"windows\": {seen}, \"missed\": {missed},");
    println!(
        " \"windows_recounted\": {}, \"missed_recounted\": {},",
        simulation.recounted, simulation.missed
    );
    println!(
        " \"share_members\": {}, \"share_error_mean\": {mean:.5}, \"share_error_max\": {max:.5}}}",
        errors.len()
    );
}
