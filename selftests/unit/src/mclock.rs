// SPDX-License-Identifier: GPL-2.0

//! Host tests of the scheduler of dm-qos groups: whose I/O is next.

use crate::dm_qos::gcra;

#[path = "../../../dm-qos/policy/heap.rs"]
#[allow(dead_code)]
mod heap;
#[path = "../../../dm-qos/policy/mclock.rs"]
#[allow(dead_code)]
mod scheduler;
#[path = "store.rs"]
mod store;

#[cfg(test)]
#[path = "mclock_model.rs"]
mod model;

#[cfg(test)]
mod testing {
    use super::{
        gcra::{Limit, Rate, TICKS_PER_S},
        scheduler::{Capacity, Cost, Next, Phase, Promise, Scheduler, Slot, Storage},
    };

    /// Waits for ever.
    pub(super) const ENDLESS: u64 = u64::MAX;

    pub(super) fn promise(ios: u64, weight: u32) -> Promise {
        Promise {
            ios,
            bytes: 0,
            weight,
        }
    }

    pub(super) fn scheduler(room: u32) -> Scheduler {
        let mut scheduler = Scheduler::new();
        scheduler.grow(Storage::with_room(room).unwrap());
        scheduler
    }

    /// A member, and who issues I/O to it.
    pub(super) struct Tenant {
        pub(super) slot: Slot,
        /// The size of its I/Os.
        pub(super) bytes: u32,
        pub(super) waiting: u64,
        since: u64,
        pub(super) limit: Limit,
        /// When its I/Os left.
        pub(super) left: Vec<u64>,
    }

    impl Tenant {
        fn eligible(&self) -> u64 {
            self.limit.eligible(self.limit.cost(1))
        }
    }

    /// A group, and a disk that takes one I/O at a time.
    pub(super) struct Group {
        pub(super) scheduler: Scheduler,
        capacity: Capacity,
        pub(super) tenants: Vec<Tenant>,
        /// Whose slot it is.
        by_slot: Vec<usize>,
        /// When the first may leave, if none may now.
        wake: u64,
        pub(super) now: u64,
    }

    impl Group {
        pub(super) fn new(iops: u64, bps: u64) -> Self {
            Self {
                scheduler: Scheduler::new(),
                capacity: Capacity::new(iops, bps),
                tenants: Vec::new(),
                by_slot: Vec::new(),
                wake: 0,
                now: TICKS_PER_S,
            }
        }

        /// Limits a member to so many I/Os per second; 0: no more.
        pub(super) fn set_limit(&mut self, member: usize, rate: u64) {
            let limit = &self.tenants[member].limit;
            limit.change(Rate::new(rate), 0, self.now);
        }

        /// A member of I/Os of 4 KiB without a limit, for which nothing waits.
        pub(super) fn add(&mut self, promise: Promise) -> usize {
            if self.tenants.len() == self.scheduler.room() as usize {
                let room = self.scheduler.room() * 2 + 1;
                self.scheduler.grow(Storage::with_room(room).unwrap());
            }
            let slot = self.scheduler.add(&promise, self.now).unwrap();
            let room = self.scheduler.room() as usize;
            self.by_slot.resize(room, usize::MAX);
            self.by_slot[slot.index()] = self.tenants.len();
            self.tenants.push(Tenant {
                slot,
                bytes: 4096,
                waiting: 0,
                since: 0,
                limit: Limit::new(),
                left: Vec::new(),
            });
            self.tenants.len() - 1
        }

        pub(super) fn arrive(&mut self, tenant: usize, ios: u64) {
            let tenant = &mut self.tenants[tenant];
            if tenant.waiting == 0 && ios != 0 {
                tenant.since = self.now;
                let eligible = tenant.eligible();
                self.scheduler.backlogged(tenant.slot, eligible, self.now);
            }
            tenant.waiting = tenant.waiting.saturating_add(ios);
        }

        pub(super) fn time(&self, tenant: usize) -> u64 {
            self.capacity.time(1, self.tenants[tenant].bytes)
        }

        fn cost(&self, tenant: usize) -> Cost {
            Cost {
                ios: 1,
                bytes: self.tenants[tenant].bytes,
                time: self.time(tenant),
            }
        }

        /// An I/O that does not wait for its turn.
        pub(super) fn bypass(&mut self, tenant: usize) -> Phase {
            let cost = self.cost(tenant);
            self.scheduler
                .served(self.tenants[tenant].slot, cost, self.now)
                .unwrap()
        }

        /// Lets one I/O leave, if one may. What is decided is checked against all that wait.
        pub(super) fn dispatch(&mut self) -> Option<(usize, Phase)> {
            let next = self.scheduler.next(self.now);
            let Next::Dispatch(slot, phase) = next else {
                let waiting = self.tenants.iter().filter(|one| one.waiting != 0);
                let first = waiting.map(Tenant::eligible).min();
                self.wake = first.unwrap_or(u64::MAX);
                match first {
                    None => assert_eq!(next, Next::Nothing),
                    Some(first) => {
                        assert!(first > self.now, "somebody may leave");
                        assert_eq!(next, Next::Wait(first));
                    }
                }
                return None;
            };
            let index = self.by_slot[slot.index()];
            let cost = self.cost(index);
            assert_eq!(self.scheduler.served(slot, cost, self.now), Some(phase));

            let tenant = &mut self.tenants[index];
            assert!(tenant.waiting != 0, "nothing waits for it");
            let eligible = tenant.eligible();
            assert!(eligible <= self.now, "its limit is not respected");
            tenant.left.push(self.now);
            if tenant.waiting != ENDLESS {
                tenant.waiting -= 1;
            }
            let at = eligible.max(tenant.since).min(self.now);
            tenant.limit.charge(tenant.limit.cost(1), at);
            match tenant.waiting {
                0 => self.scheduler.idle(slot, self.now),
                _ => {
                    let eligible = tenant.eligible();
                    self.scheduler.set_eligible(slot, eligible, self.now);
                }
            }
            Some((index, phase))
        }

        /// The disk does what it can for a time.
        pub(super) fn run(&mut self, time: u64) {
            let end = self.now + time;
            while self.now < end {
                self.now = match self.dispatch() {
                    Some((index, _)) => self.now + self.time(index),
                    None => self.wake.min(end),
                };
            }
        }

        /// How many left since a time.
        pub(super) fn count(&self, tenant: usize, since: u64) -> u64 {
            let left = &self.tenants[tenant].left;
            (left.len() - left.partition_point(|&time| time < since)) as u64
        }
    }

    /// The least number of `left` in any time of this length between `from` and `to`.
    pub(super) fn least_within(left: &[u64], length: u64, from: u64, to: u64) -> usize {
        // It is least right after one left, or at the beginning.
        let starts = std::iter::once(from).chain(left.iter().map(|&time| time + 1));
        starts
            .filter(|&start| start >= from && start + length <= to)
            .map(|start| {
                let end = left.partition_point(|&time| time < start + length);
                end - left.partition_point(|&time| time < start)
            })
            .min()
            .unwrap()
    }

    /// Divides `total` by weight, with a floor and a ceiling for each.
    pub(super) fn max_min(total: f64, members: &[(f64, f64, f64)]) -> Vec<f64> {
        let at = |level: f64| {
            members
                .iter()
                .map(move |&(weight, floor, ceiling)| (weight * level).clamp(floor, ceiling))
        };
        let (mut low, mut high) = (0.0, total);
        for _ in 0..200 {
            let level = (low + high) / 2.0;
            if at(level).sum::<f64>() < total {
                low = level;
            } else {
                high = level;
            }
        }
        at(low).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::{
        gcra::{TICKS_PER_MS, TICKS_PER_S},
        heap::Heap,
        model::{Paper, Rules},
        scheduler::{
            check_reservations, Capacity, Cost, Excess, Next, Phase, Promise, Scheduler, Slot,
            Storage, Windows, LEAST_BYTES, WINDOW,
        },
        testing::{least_within, max_min, promise, scheduler, Group, ENDLESS},
    };
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    const IO: Cost = Cost {
        ios: 1,
        bytes: 4096,
        time: TICKS_PER_MS,
    };

    #[test]
    fn nobody_is_next_when_nothing_waits() {
        let mut scheduler = scheduler(2);
        let slot = scheduler.add(&promise(0, 1), 0).unwrap();
        assert_eq!(scheduler.next(5), Next::Nothing);
        scheduler.backlogged(slot, 9, 5);
        assert_eq!(scheduler.next(5), Next::Wait(9));
        assert!(!scheduler.has_ready(8) && scheduler.has_ready(9));
        assert_eq!(scheduler.next(9), Next::Dispatch(slot, Phase::Weight));
        // Asking changes nothing.
        assert_eq!(scheduler.next(9), Next::Dispatch(slot, Phase::Weight));
        scheduler.set_eligible(slot, 20, 9);
        assert_eq!(scheduler.next(9), Next::Wait(20));
        scheduler.set_eligible(slot, 0, 10);
        assert_eq!(scheduler.next(10), Next::Dispatch(slot, Phase::Weight));
        scheduler.idle(slot, 10);
        assert_eq!(scheduler.next(30), Next::Nothing);
    }

    #[test]
    fn slots_are_given_out_once_and_again_when_free() {
        let mut scheduler = Scheduler::new();
        assert_eq!(scheduler.add(&promise(0, 1), 0), None);
        scheduler.grow(Storage::with_room(2).unwrap());
        let first = scheduler.add(&promise(10, 1), 0).unwrap();
        let second = scheduler.add(&promise(0, 1), 0).unwrap();
        assert_ne!(first, second);
        assert_eq!(scheduler.add(&promise(0, 1), 0), None);

        // What waits does so in the new memory as well. The old one comes back.
        scheduler.backlogged(first, 0, 0);
        scheduler.backlogged(second, 50, 0);
        let mut old = scheduler.grow(Storage::with_room(5).unwrap());
        assert_eq!(scheduler.room(), 5);
        old = scheduler.grow(old);
        assert_eq!(scheduler.room(), 5);
        drop(old);
        assert_eq!(scheduler.next(0), Next::Dispatch(first, Phase::Reservation));
        scheduler.remove(first);
        assert_eq!(scheduler.next(0), Next::Wait(50));
        assert_eq!(scheduler.next(50), Next::Dispatch(second, Phase::Weight));

        let more: Vec<_> = std::iter::from_fn(|| scheduler.add(&promise(0, 1), 0)).collect();
        assert_eq!(more.len(), 4);
        assert!(more.contains(&first) && !more.contains(&second));

        // One that is not in use any more is nobody's.
        scheduler.remove(second);
        scheduler.remove(second);
        assert_eq!(scheduler.served(second, IO, 50), None);
        scheduler.backlogged(second, 0, 50);
        scheduler.set_eligible(second, 0, 50);
        scheduler.idle(second, 50);
        scheduler.set_promise(second, &promise(5, 5), 50);
        assert_eq!(scheduler.windows(second, 50), Windows::default());
        assert_eq!(scheduler.next(50), Next::Nothing);
        assert_eq!(scheduler.add(&promise(0, 1), 0), Some(second));
        assert_eq!(scheduler.add(&promise(0, 1), 0), None);
        // Nor is one that never was.
        let mut smaller = self::scheduler(1);
        assert_eq!(smaller.served(second, IO, 0), None);
        smaller.backlogged(second, 0, 0);
        assert_eq!(smaller.next(0), Next::Nothing);
    }

    /// One of weight 1 that idled for a minute while the other did not.
    fn after_idling(back: impl Fn(&mut Group, usize)) -> (u64, u64) {
        let mut group = Group::new(1000, 0);
        let busy = group.add(promise(0, 1));
        let idle = group.add(promise(100, 1));
        group.arrive(busy, ENDLESS);
        group.run(60 * TICKS_PER_S);
        back(&mut group, idle);
        let since = group.now;
        group.arrive(idle, ENDLESS);
        group.run(TICKS_PER_S / 10);
        (group.count(busy, since), group.count(idle, since))
    }

    #[test]
    fn idling_saves_up_nothing() {
        let (busy, idle) = after_idling(|_, _| ());
        assert!((49..=51).contains(&idle), "{idle}");
        assert_eq!(busy + idle, 100);
    }

    #[test]
    fn what_never_waited_is_charged() {
        // 100 I/Os pass by its reservation (one) and its share.
        let (busy, idle) = after_idling(|group, idle| {
            for count in 0..100 {
                let phase = group.bypass(idle);
                assert_eq!(phase == Phase::Reservation, count == 0);
            }
        });
        // It gets what is reserved: 10, less one that passed.
        assert!((9..=10).contains(&idle), "{idle}");
        assert_eq!(busy + idle, 100);
    }

    #[test]
    fn what_passed_when_nobody_waited_is_history() {
        let mut group = Group::new(1000, 0);
        let members = [group.add(promise(0, 1)), group.add(promise(0, 1))];
        for _ in 0..100_000 {
            group.bypass(members[0]);
            group.now += TICKS_PER_MS;
        }
        let since = group.now;
        for &member in &members {
            group.arrive(member, ENDLESS);
        }
        group.run(100 * TICKS_PER_MS);
        for member in members {
            assert!((49..=51).contains(&group.count(member, since)));
        }
    }

    #[test]
    fn idle_members_may_pass_by_their_reservation_at_its_rate() {
        let mut scheduler = scheduler(1);
        let slot = scheduler.add(&promise(100, 1), 0).unwrap();
        // Idle for long, and then many at once: one of them is what was reserved.
        let now = 50 * TICKS_PER_S;
        let mut phases = (0..10).map(|_| scheduler.served(slot, IO, now).unwrap());
        assert_eq!(phases.next(), Some(Phase::Reservation));
        assert!(phases.all(|phase| phase == Phase::Weight));
        let later = now + 10 * TICKS_PER_MS;
        assert_eq!(scheduler.served(slot, IO, later - 1), Some(Phase::Weight));
        assert_eq!(scheduler.served(slot, IO, later), Some(Phase::Reservation));
    }

    #[test]
    fn who_joins_late_is_not_starved_and_starves_nobody() {
        for weight in [1, 100, 10_000] {
            let mut group = Group::new(1000, 0);
            let members: Vec<_> = (0..5).map(|_| group.add(promise(0, 100))).collect();
            for &member in &members {
                group.arrive(member, ENDLESS);
            }
            group.run(20 * TICKS_PER_S);
            let late = group.add(promise(0, weight));
            group.arrive(late, ENDLESS);
            let since = group.now;
            group.run(TICKS_PER_S);
            let expected = f64::from(weight) / (500.0 + f64::from(weight)) * 1000.0;
            let count = group.count(late, since) as f64;
            // The others may each be one I/O ahead of it when it joins.
            assert!((count - expected).abs() <= 6.0, "{count} of {expected}");
            for member in members {
                let count = group.count(member, since) as f64;
                assert!((count - (1000.0 - expected) / 5.0).abs() <= 2.0);
            }
        }
    }

    #[test]
    fn weights_change_at_once() {
        let mut group = Group::new(1000, 0);
        let members = [group.add(promise(0, 1)), group.add(promise(0, 10_000))];
        for member in members {
            group.arrive(member, ENDLESS);
        }
        group.run(10 * TICKS_PER_S);
        for (weights, expected) in [
            ([300, 100], [750, 250]),
            ([1, 9_999], [0, 1000]),
            ([10_000, 10_000], [500, 500]),
            ([100, 400], [200, 800]),
        ] {
            for (member, weight) in members.into_iter().zip(weights) {
                let slot = group.tenants[member].slot;
                let now = group.now;
                group.scheduler.set_promise(slot, &promise(0, weight), now);
            }
            let since = group.now;
            group.run(TICKS_PER_S);
            for (member, expected) in members.into_iter().zip(expected) {
                let count = group.count(member, since);
                assert!(count.abs_diff(expected) <= 2, "{count} of {expected}");
            }
        }
    }

    #[test]
    fn shares_are_exact_where_an_io_is_less_than_a_tick_of_virtual_time() {
        // 160 ticks an I/O, over weights of thousands.
        let mut group = Group::new(100_000_000, 0);
        let weights = [10_000, 7_001, 2_999];
        for weight in weights {
            let member = group.add(promise(0, weight));
            group.arrive(member, ENDLESS);
        }
        group.run(2 * TICKS_PER_MS);
        for (tenant, weight) in group.tenants.iter().zip(weights) {
            let count = tenant.left.len() as u64;
            // Those of a whole tick may come one after the other.
            assert!(count.abs_diff(u64::from(weight) * 10) <= 70, "{count}");
        }
    }

    #[test]
    fn a_reservation_beyond_the_share_is_not_held_against_it() {
        // 500 of 900 for an hour, though its share is 300. Then a neighbour leaves.
        let mut group = Group::new(900, 0);
        let greedy = group.add(promise(500, 1));
        let others = [group.add(promise(0, 1)), group.add(promise(0, 1))];
        for member in [greedy, others[0], others[1]] {
            group.arrive(member, ENDLESS);
        }
        group.run(1000 * TICKS_PER_S);
        let since = group.now;
        let slot = group.tenants[greedy].slot;
        group.scheduler.set_promise(slot, &promise(0, 1), since);
        group.run(2 * TICKS_PER_S);
        // It sits out no more than the I/Os that it is ahead: five, and four.
        let count = group.count(greedy, since);
        assert!((588..=600).contains(&count), "{count}");
        let since = group.now;
        group.run(2 * TICKS_PER_S);
        assert!(group.count(greedy, since).abs_diff(600) <= 2);
    }

    #[test]
    fn a_long_stall_is_not_made_up_for() {
        let mut group = Group::new(1000, 0);
        let reserved = group.add(promise(900, 1));
        let other = group.add(promise(0, 1));
        group.arrive(reserved, ENDLESS);
        group.arrive(other, ENDLESS);
        group.run(TICKS_PER_S);
        // The disk stands still for a minute.
        group.now += 60 * TICKS_PER_S;
        let since = group.now;
        group.run(TICKS_PER_S);
        // 90 I/Os, what is reserved in a window, are made up for, of the 100 that there is room
        // for.
        let count = group.count(other, since);
        assert!((5..=15).contains(&count), "{count}");
        let since = group.now;
        group.run(TICKS_PER_S);
        let count = group.count(other, since);
        assert!((95..=105).contains(&count), "{count}");
    }

    /// Every group of a small domain: three members with or without a reservation, of one weight or
    /// another, each busy or not in each of two seconds. Whoever asks gets what it reserved, nothing of the
    /// capacity is left unused, and what is left over is shared by weight.
    #[test]
    fn every_group_of_a_small_domain() {
        const CAPACITY: u64 = 40;
        let promises: Vec<_> = [0, 8, 12]
            .into_iter()
            .flat_map(|ios| [1, 3].map(|weight| promise(ios, weight)))
            .collect();
        // Which promise, and in which of the seconds it is busy.
        let members: Vec<_> = (0..promises.len())
            .flat_map(|which| (0..4u32).map(move |busy| (which, busy)))
            .collect();
        for &first in &members {
            for &second in &members {
                for &third in &members {
                    let mut group = Group::new(CAPACITY, 0);
                    let chosen = [first, second, third];
                    let found = chosen.map(|(which, _)| group.add(promises[which]));
                    for turn in 0..2 {
                        let is_busy = |(_, busy): (usize, u32)| busy >> turn & 1 != 0;
                        for (&member, one) in found.iter().zip(chosen) {
                            let tenant = &mut group.tenants[member];
                            if !is_busy(one) && tenant.waiting != 0 {
                                tenant.waiting = 0;
                                let (slot, now) = (tenant.slot, group.now);
                                group.scheduler.idle(slot, now);
                            } else if is_busy(one) && group.tenants[member].waiting == 0 {
                                group.arrive(member, ENDLESS);
                            }
                        }
                        let since = group.now;
                        group.run(TICKS_PER_S);
                        let counts = found.map(|member| group.count(member, since));
                        let busy: Vec<_> = (0..3).filter(|&n| is_busy(chosen[n])).collect();
                        let sum: u64 = counts.iter().sum();
                        let whole = if busy.is_empty() { 0 } else { CAPACITY };
                        assert!(sum.abs_diff(whole) <= 1, "{chosen:?} {counts:?}");
                        for &one in &busy {
                            let mine = promises[chosen[one].0];
                            assert!(counts[one] + 1 >= mine.ios, "{chosen:?} {counts:?}");
                            for &other in &busy {
                                // Who has more for its weight has it by its reservation, or the other
                                // one has been ahead before, by a few I/Os.
                                let theirs = promises[chosen[other].0];
                                let [mine_had, theirs_had] = [(one, mine), (other, theirs)]
                                    .map(|(n, p)| counts[n] as f64 / f64::from(p.weight));
                                assert!(
                                    mine_had <= theirs_had + 6.0 || counts[one] <= mine.ios + 2,
                                    "{chosen:?} {counts:?}"
                                );
                            }
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn who_is_parked_lets_others_go_first() {
        let mut scheduler = scheduler(2);
        let now = TICKS_PER_S;
        let reserved = scheduler.add(&promise(100, 1), now).unwrap();
        let other = scheduler.add(&promise(0, 1), now).unwrap();
        scheduler.backlogged(reserved, 0, now);
        scheduler.backlogged(other, 0, now);
        assert_eq!(
            scheduler.next(now),
            Next::Dispatch(reserved, Phase::Reservation)
        );
        assert!(!scheduler.has_parked());
        scheduler.park(reserved);
        assert!(scheduler.has_parked());
        assert_eq!(scheduler.next(now), Next::Dispatch(other, Phase::Weight));
        scheduler.park(other);
        // Until there is room, whoever comes meanwhile.
        assert_eq!(scheduler.next(now), Next::Wait(u64::MAX));
        assert!(!scheduler.has_ready(now));
        scheduler.unpark();
        assert_eq!(
            scheduler.next(now),
            Next::Dispatch(reserved, Phase::Reservation)
        );
        scheduler.park(reserved);
        // Who goes idle waits for no room.
        scheduler.idle(reserved, now);
        scheduler.unpark();
        assert_eq!(scheduler.next(now), Next::Dispatch(other, Phase::Weight));
    }

    #[test]
    fn limits_are_not_saved_up_as_shares() {
        let mut group = Group::new(1000, 0);
        let limited = group.add(promise(0, 9));
        let other = group.add(promise(0, 1));
        group.set_limit(limited, 100);
        group.arrive(limited, ENDLESS);
        group.arrive(other, ENDLESS);
        let since = group.now;
        group.run(60 * TICKS_PER_S);
        assert!(group.count(limited, since).abs_diff(6_000) <= 2);
        assert!(group.count(other, since).abs_diff(54_000) <= 2);
        group.set_limit(limited, 0);
        let since = group.now;
        group.run(TICKS_PER_S);
        assert!(group.count(limited, since).abs_diff(900) <= 2);
    }

    #[test]
    fn flushes_use_a_reservation_of_bytes_up() {
        let mut group = Group::new(1000, 0);
        let flushing = group.add(Promise {
            ios: 0,
            bytes: 400 * u64::from(LEAST_BYTES),
            weight: 1,
        });
        group.tenants[flushing].bytes = 0;
        let other = group.add(promise(0, 9_999));
        group.arrive(flushing, ENDLESS);
        group.arrive(other, ENDLESS);
        let since = group.now;
        group.run(TICKS_PER_S);
        assert!(group.count(flushing, since).abs_diff(400) <= 2);
        assert!(group.count(other, since).abs_diff(600) <= 2);
    }

    #[test]
    fn with_two_reservations_the_larger_one_counts() {
        // As bytes go, 300 and 18 I/Os.
        for (bytes, expected) in [(4096, 300), (65_536, 200)] {
            let mut group = Group::new(1000, 0);
            let member = group.add(Promise {
                ios: 200,
                bytes: 300 * 4096,
                weight: 1,
            });
            group.tenants[member].bytes = bytes;
            let other = group.add(promise(0, 10_000));
            group.arrive(member, ENDLESS);
            group.arrive(other, ENDLESS);
            let since = group.now;
            group.run(4 * TICKS_PER_S);
            let count = group.count(member, since);
            assert!(count.abs_diff(4 * expected) <= 4, "{count} of {expected}");
        }
    }

    #[test]
    fn a_byte_reservation_met_by_small_ios_is_not_paid_for_twice() {
        // For long, small I/Os at the rate reserved in I/Os, far more bytes than are reserved. Then
        // large ones: their reservation in bytes is there at once.
        let mut group = Group::new(0, 1 << 30);
        let member = group.add(Promise {
            ios: 1000,
            bytes: 1 << 20,
            weight: 1,
        });
        let other = group.add(promise(0, 10_000));
        group.tenants[other].bytes = 1 << 20;
        group.arrive(member, ENDLESS);
        group.arrive(other, ENDLESS);
        group.run(10 * TICKS_PER_S);
        let slot = group.tenants[member].slot;
        group.scheduler.set_promise(
            slot,
            &Promise {
                ios: 0,
                bytes: 1 << 20,
                weight: 1,
            },
            group.now,
        );
        let since = group.now;
        group.run(TICKS_PER_S);
        assert!(group.count(member, since).abs_diff(256) <= 3);
    }

    #[test]
    fn windows_are_counted_as_they_were() {
        // 1,000 I/Os per second on a disk that does 500, and nothing is left for the others.
        let mut group = Group::new(500, 0);
        let members = [
            group.add(promise(1000, 1)),
            group.add(promise(5, 1)),
            group.add(promise(0, 1)),
        ];
        for member in members {
            group.arrive(member, ENDLESS);
        }
        group.run(10 * TICKS_PER_S);
        let mut windows = |member: usize| {
            let (slot, now) = (group.tenants[member].slot, group.now);
            group.scheduler.windows(slot, now)
        };
        assert_eq!(windows(0).seen, 100);
        assert_eq!(windows(0).missed, 100);
        // Windows of four I/Os: 0.8 s.
        assert_eq!(
            windows(1),
            Windows {
                seen: 12,
                missed: 0
            }
        );
        assert_eq!(windows(2), Windows::default());

        // Nothing at all is served for a while.
        group.now += 10 * TICKS_PER_S;
        let (slot, now) = (group.tenants[1].slot, group.now);
        assert_eq!(
            group.scheduler.windows(slot, now),
            Windows {
                seen: 25,
                missed: 13
            }
        );
        group.scheduler.reset_windows(slot, now);
        assert_eq!(group.scheduler.windows(slot, now), Windows::default());
    }

    #[test]
    fn windows_in_which_a_member_asks_for_less_are_not_counted() {
        let mut group = Group::new(1000, 0);
        let sparse = group.add(promise(500, 1));
        let limited = group.add(promise(500, 1));
        group.set_limit(limited, 20);
        let other = group.add(promise(0, 10_000));
        group.arrive(other, ENDLESS);
        group.arrive(limited, ENDLESS);
        for _ in 0..1000 {
            group.arrive(sparse, 1);
            group.run(10 * TICKS_PER_MS);
        }
        for member in [sparse, limited] {
            let (slot, now) = (group.tenants[member].slot, group.now);
            assert_eq!(group.scheduler.windows(slot, now), Windows::default());
        }
        // Limited to what is reserved is not too little.
        group.set_limit(limited, 500);
        group.run(10 * TICKS_PER_S);
        let (slot, now) = (group.tenants[limited].slot, group.now);
        let windows = group.scheduler.windows(slot, now);
        assert!(windows.seen >= 98 && windows.missed == 0, "{windows:?}");
    }

    #[test]
    fn everybody_waking_at_once_delays_no_reservation() {
        // One of 5,000 per second, and 4,000 of one: by the tags alone, the many would go first,
        // for 0.4 s.
        let mut group = Group::new(10_000, 0);
        let many: Vec<_> = (0..4_000).map(|_| group.add(promise(1, 10_000))).collect();
        let fast = group.add(promise(5_000, 1));
        for &member in &many {
            group.arrive(member, ENDLESS);
        }
        group.arrive(fast, ENDLESS);
        let since = group.now;
        group.run(3 * TICKS_PER_S);
        let (left, end) = (&group.tenants[fast].left, group.now);
        let least = least_within(left, WINDOW, since, end);
        assert!(least >= 499, "{least}");
        for member in many {
            let left = &group.tenants[member].left;
            assert!(least_within(left, 2 * TICKS_PER_S, since, end) >= 1);
        }
    }

    #[test]
    fn ten_thousand_members() {
        let mut group = Group::new(100_000, 0);
        // 87,500 per second are reserved, weights are 1 to 100.
        for index in 0..10_000u64 {
            let ios = if index % 4 == 0 { 5 + index % 61 } else { 0 };
            let member = group.add(promise(ios, 1 + (index % 100) as u32));
            group.arrive(member, ENDLESS);
        }
        let reserved: u64 = (0..10_000).step_by(4).map(|index| 5 + index % 61).sum();
        assert!(reserved > 80_000, "{reserved}");
        let since = group.now;
        group.run(5 * TICKS_PER_S);
        let end = group.now;
        for index in 0..10_000 {
            let slot = group.tenants[index].slot;
            let windows = group.scheduler.windows(slot, end);
            assert_eq!(windows.missed, 0, "{index}");
            assert_eq!(windows.seen != 0, index % 4 == 0);
            if index % 4 == 0 {
                let least = 5 * (5 + index as u64 % 61);
                assert!(group.count(index, since) >= least - 1);
            }
        }
        // 62,500 I/Os or less for the others.
        for index in (0..10_000).filter(|index| index % 4 != 0) {
            let mut rest = 500_000.0 - 5.0 * reserved as f64;
            rest /= (0..10_000u64)
                .filter(|index| index % 4 != 0)
                .map(|index| (1 + index % 100) as f64)
                .sum::<f64>();
            let expected = rest * (1 + index % 100) as f64;
            let count = group.count(index, since) as f64;
            assert!((count - expected).abs() <= 2.0, "{count} of {expected}");
        }
    }

    #[test]
    fn reservations_are_admitted_up_to_the_capacity() {
        let of = |device, ios, bytes| (device, (ios, bytes));
        let check = |capacity, list: &[_]| check_reservations(capacity, list.iter().copied());
        assert_eq!(check((100, 0), &[]), Ok(()));
        let members = [of(1, 60, 0), of(2, 40, 1 << 40)];
        assert_eq!(check((100, 0), &members), Ok(()));
        assert_eq!(check((99, 0), &members), Err(Excess::Ios(100)));
        assert_eq!(check((0, 1 << 40), &members), Ok(()));
        let small = (1 << 40) - 1;
        assert_eq!(check((0, small), &members), Err(Excess::Bytes(1 << 40)));
        assert_eq!(check((0, 0), &members), Ok(()));
        // A device that is being reloaded counts as the larger of its tables, in each unit.
        for tables in [[of(2, 10, 7), of(2, 40, 5)], [of(2, 40, 5), of(2, 10, 7)]] {
            let members = [of(1, 60, 0), tables[0], tables[1], of(3, 1, 1)];
            assert_eq!(check((101, 8), &members), Ok(()));
            assert_eq!(check((100, 8), &members), Err(Excess::Ios(101)));
            assert_eq!(check((101, 7), &members), Err(Excess::Bytes(8)));
        }
        let huge = [of(1, u64::MAX, 0), of(2, 1, 0)];
        assert_eq!(check((5, 0), &huge), Err(Excess::Ios(u64::MAX)));
    }

    #[test]
    fn an_io_takes_what_the_scarcer_resource_needs() {
        let both = Capacity::new(1000, 1 << 20);
        assert_eq!(both.time(1, 512), 4 * TICKS_PER_S / 1024);
        assert_eq!(both.time(2, 0), 8 * TICKS_PER_S / 1024);
        assert_eq!(both.time(1, 1 << 20), TICKS_PER_S);
        assert_eq!(Capacity::new(1000, 0).time(3, 1 << 20), 3 * TICKS_PER_MS);
        for (ios, bytes) in [(0, 0), (0, 1 << 30), (100, 0), (1, 1)] {
            assert!(Capacity::new(ios, bytes).time(1, 0) > 0);
        }
    }

    /// The smallest window of each member, all backlogged, against what is reserved.
    fn check_windows(group: &Group, promises: &[Promise], since: u64) -> Result<(), TestCaseError> {
        let longest = (0..promises.len()).map(|member| group.time(member)).max();
        let longest = longest.unwrap_or(0) as f64 / TICKS_PER_S as f64;
        for (tenant, promise) in group.tenants.iter().zip(promises) {
            let size = tenant.bytes.max(LEAST_BYTES);
            let reserved = promise.ios.max(promise.bytes / u64::from(size)) as f64;
            let least = least_within(&tenant.left, WINDOW, since, group.now) as f64;
            // One I/O may have left just before, and one leaves just after; and what is due while
            // the disk is busy with another's has to wait for that.
            let slack = 2.0 + reserved * longest;
            prop_assert!(
                least >= reserved / 10.0 - slack,
                "{} of {}",
                least,
                reserved
            );
        }
        Ok(())
    }

    proptest! {
        /// First, and whatever else, is the least.
        #[test]
        fn heap_agrees_with_a_sorted_map(
            steps in prop::collection::vec((0u32..40, 0u64..50, 0u8..4), 1..600),
        ) {
            let mut heap = Heap::with_room(20).unwrap();
            let mut model = BTreeMap::new();
            let mut room = 20;
            for (count, (slot, key, what)) in steps.into_iter().enumerate() {
                match what {
                    0 => {
                        heap.remove(slot);
                        model.remove(&slot);
                    }
                    1 if key % 4 == 0 => {
                        let first = model.iter().map(|(&slot, &key)| (key, slot)).min();
                        let expected = first.filter(|&(least, _)| least <= key);
                        let popped = heap.pop_until(key);
                        prop_assert_eq!(popped, expected.map(|(_, slot)| slot));
                        popped.and_then(|slot| model.remove(&slot));
                    }
                    _ => {
                        heap.set(slot, key);
                        if slot < room {
                            model.insert(slot, key);
                        }
                    }
                }
                if count == 200 {
                    room = 33;
                    let mut larger = Heap::with_room(room).unwrap();
                    larger.copy_from(&heap);
                    heap = larger;
                }
                let first = model.iter().map(|(&slot, &key)| (key, slot)).min();
                prop_assert_eq!(heap.first(), first);
                prop_assert_eq!(heap.is_empty(), model.is_empty());
                for slot in 0..40 {
                    prop_assert_eq!(heap.contains(slot), model.contains_key(&slot));
                }
            }
            let mut rest: Vec<_> = model.into_iter().map(|(slot, key)| (key, slot)).collect();
            rest.sort_unstable();
            for (_, slot) in rest {
                prop_assert_eq!(heap.pop_until(u64::MAX), Some(slot));
            }
            prop_assert!(heap.is_empty());
        }
    }

    proptest! {
        // Each is a simulation of seconds.
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Whatever is reserved, up to 98 % of the disk, and whatever the weights and sizes: nobody
        /// gets less in any window. All wake at the same time, which is the worst.
        #[test]
        fn reservations_hold_in_every_window(
            wants in prop::collection::vec((1u64..100, 1u32..=10_000, 1u32..17), 1..30),
            exponent in 1u32..4,
            used in 30u64..99,
            are_bytes in any::<bool>(),
        ) {
            let (iops, bps) = if are_bytes { (0, 1 << 26) } else { (20_000, 0) };
            let mut group = Group::new(iops, bps);
            let total: u64 = wants.iter().map(|(want, ..)| want.pow(exponent)).sum();
            let mut promises = Vec::new();
            for (want, weight, size) in wants {
                let rate = (iops + bps) * used / 100 * want.pow(exponent) / total;
                let promise = Promise {
                    ios: if are_bytes { 0 } else { rate },
                    bytes: if are_bytes { rate } else { 0 },
                    weight,
                };
                let member = group.add(promise);
                promises.push(promise);
                group.tenants[member].bytes = if are_bytes { size * 4096 } else { 4096 };
            }
            // And one that takes all it can get.
            let member = group.add(promise(0, 10_000));
            promises.push(promise(0, 10_000));
            group.tenants[member].bytes = 4096;
            for member in 0..promises.len() {
                group.arrive(member, ENDLESS);
            }
            let since = group.now;
            group.run(TICKS_PER_S);
            check_windows(&group, &promises, since)?;
        }

        /// Each gets the larger of its reservation and its share, up to its limit.
        #[test]
        fn shares_are_max_min(
            wants in prop::collection::vec(
                (1u32..=20, prop_oneof![Just(0u64), 1u64..100], 0u32..4, 1u32..9),
                2..12,
            ),
            are_bytes in any::<bool>(),
        ) {
            let (iops, bps) = if are_bytes { (0, 100_000 * 4096) } else { (20_000, 0) };
            let mut group = Group::new(iops, bps);
            let total: u64 = wants.iter().map(|(_, want, ..)| want).sum::<u64>().max(1);
            let mut members = Vec::new();
            for &(weight, want, limit, size) in &wants {
                let size = if are_bytes { size } else { 1 };
                let most = if are_bytes { 100_000 } else { 20_000 };
                // I/Os per second: 70 % of all are reserved.
                let rate = most * 7 / 10 * want / total / u64::from(size);
                let member = group.add(promise(rate, weight));
                group.tenants[member].bytes = size * 4096;
                let mut ceiling = f64::INFINITY;
                if limit == 0 {
                    let limit = rate + most / 20 / u64::from(size);
                    group.set_limit(member, limit);
                    ceiling = (limit * u64::from(size)) as f64;
                }
                members.push((f64::from(weight), (rate * u64::from(size)) as f64, ceiling));
            }
            for member in 0..members.len() {
                group.arrive(member, ENDLESS);
            }
            let since = group.now;
            let seconds = 4;
            group.run(seconds * TICKS_PER_S);
            let counts: Vec<_> = (0..members.len())
                .map(|member| {
                    let size = f64::from(group.tenants[member].bytes) / 4096.0;
                    group.count(member, since) as f64 * size / seconds as f64
                })
                .collect();
            let expected = max_min(counts.iter().sum(), &members);
            for (index, (count, expected)) in counts.iter().zip(expected).enumerate() {
                let slack = 3.0 * f64::from(group.tenants[index].bytes) / 4096.0;
                prop_assert!(
                    (count - expected).abs() <= expected * 0.02 + slack / seconds as f64,
                    "{}: {} of {} ({:?})", index, count, expected, members,
                );
            }
        }

        /// In the long run it is what the paper says whatever the order among those behind, and
        /// with somebody who wakes late.
        #[test]
        fn serves_as_much_as_the_paper_says(
            wants in prop::collection::vec((0u64..200, 1u32..=10), 2..8),
            late in 0u64..1000,
        ) {
            let mut group = Group::new(2000, 0);
            let mut paper = Paper::new(&wants, 2520 * TICKS_PER_MS);
            let mut counts = vec![0u64; wants.len()];
            for &(ios, weight) in &wants {
                group.add(promise(ios, weight));
            }
            for step in 0..4000 {
                for index in 0..wants.len() {
                    if step == if index == 0 { late } else { 0 } {
                        group.arrive(index, ENDLESS);
                        (0..4000).for_each(|_| paper.arrive(index, group.now));
                    }
                }
                let (index, _) = paper.schedule(group.now).unwrap();
                counts[index] += 1;
                prop_assert!(group.dispatch().is_some());
                group.now += TICKS_PER_S / 2000;
            }
            for (tenant, count) in group.tenants.iter().zip(counts) {
                let left = tenant.left.len() as u64;
                prop_assert!(left.abs_diff(count) <= 3, "{} of {}", left, count);
            }
        }
    }

    proptest! {
        /// Whoever comes and goes, and is limited: what may leave does (as `dispatch` checks).
        #[test]
        fn work_is_conserved_and_limits_are_kept(
            rates in prop::collection::vec((0u64..300, 1u64..500, 1u32..100), 1..10),
            steps in prop::collection::vec((0usize..10, 0u64..6, 0u64..20_000), 1..300),
        ) {
            let mut group = Group::new(1000, 0);
            for &(ios, limit, weight) in &rates {
                let member = group.add(promise(ios, weight));
                if limit % 3 != 0 {
                    group.set_limit(member, limit);
                }
            }
            let since = group.now;
            let mut arrived = 0;
            for (member, ios, pause_us) in steps {
                group.arrive(member % rates.len(), ios);
                arrived += ios;
                if pause_us % 3 == 0 {
                    group.bypass(member % rates.len());
                }
                group.run(pause_us * TICKS_PER_MS / 1000);
            }
            group.run(1_000 * TICKS_PER_S);
            let left: usize = group.tenants.iter().map(|one| one.left.len()).sum();
            prop_assert_eq!(left as u64, arrived);
            for (tenant, &(_, limit, _)) in group.tenants.iter().zip(&rates) {
                if limit % 3 != 0 {
                    for (count, pair) in tenant.left.windows(2).enumerate() {
                        prop_assert!(pair[0] <= pair[1]);
                        let most = (pair[1] - since) as f64 / TICKS_PER_S as f64 * limit as f64;
                        prop_assert!((count + 1) as f64 <= most + 1.0);
                    }
                }
            }
        }

        /// What the paper says, to the letter, while the two bounds that it does not have are not
        /// reached, and where its order among those behind is that of their deadlines.
        #[test]
        fn agrees_with_the_paper(
            wants in prop::collection::vec((any::<bool>(), 0usize..8), 1..13),
            rate in prop_oneof![Just(100u64), Just(400), Just(2000)],
            iops in 500u64..20_000,
            pauses in prop::collection::vec(0u64..4, 1..20),
        ) {
            let wants: Vec<_> = wants
                .into_iter()
                .map(|(is_reserved, weight)| {
                    (if is_reserved { rate } else { 0 }, [1, 2, 3, 4, 5, 6, 8, 10][weight])
                })
                .collect();
            // Every weight divides it.
            let time = 1200 * TICKS_PER_MS;
            let mut paper = Paper::new(&wants, time);
            let mut scheduler = scheduler(wants.len() as u32);
            let mut now = TICKS_PER_S;
            let slots: Vec<_> = wants
                .iter()
                .map(|&(ios, weight)| scheduler.add(&promise(ios, weight), 0).unwrap())
                .collect();
            let count = iops / 11;
            for (index, &slot) in slots.iter().enumerate() {
                scheduler.backlogged(slot, 0, now);
                (0..count).for_each(|_| paper.arrive(index, now));
            }
            for (_, pause) in (0..count).zip(pauses.into_iter().cycle()) {
                let expected = paper.schedule(now).map(|(index, phase)| (slots[index], phase));
                let Next::Dispatch(slot, phase) = scheduler.next(now) else {
                    return Err(TestCaseError::fail("nobody is next"));
                };
                prop_assert_eq!(Some((slot, phase)), expected);
                scheduler.served(slot, Cost { time, ..IO }, now);
                now += TICKS_PER_S / iops * pause / 4;
            }
        }

        /// Whatever happens, the choice is that of a look at everybody.
        #[test]
        fn agrees_with_the_rules(
            steps in prop::collection::vec((0u8..24, 0usize..12, 0u64..1000, 1u32..9), 1..400),
        ) {
            const RATES: [u64; 8] = [0, 0, 1, 10, 100, 400, 2000, 16_000];
            let promise_of = |what: u64| Promise {
                ios: RATES[what as usize % 8],
                bytes: RATES[what as usize / 8 % 8] * 4096,
                weight: 1 + (what / 64 % 10) as u32,
            };
            let mut scheduler = scheduler(4);
            let mut slots = [None; 12];
            let mut rules = Rules::default();
            let mut now = TICKS_PER_S;
            for (what, index, value, size) in steps {
                let serve = |scheduler: &mut Scheduler, rules: &mut Rules, slot: Slot, now| {
                    let time = 2520 * 1000 * u64::from(size);
                    let index = Slot::index(slot);
                    let (ios, bytes) = (size / 4 + 1, (size - 1) * 4096);
                    let phase = rules.serve(index, ios, bytes, time, now);
                    let cost = Cost { ios, bytes, time };
                    (scheduler.served(slot, cost, now), Some(phase))
                };
                match (what, slots[index]) {
                    (0, Some(slot)) => {
                        scheduler.remove(slot);
                        rules.members[slot.index()] = None;
                        slots[index] = None;
                    }
                    (1, Some(slot)) => {
                        scheduler.set_promise(slot, &promise_of(value), now);
                        rules.set_promise(slot.index(), promise_of(value), now);
                    }
                    (2..=5, None) => {
                        let slot = scheduler.add(&promise_of(value), now).unwrap_or_else(|| {
                            let room = scheduler.room() + 3;
                            scheduler.grow(Storage::with_room(room).unwrap());
                            scheduler.add(&promise_of(value), now).unwrap()
                        });
                        rules.add(slot.index(), promise_of(value), now);
                        slots[index] = Some(slot);
                    }
                    (2..=5, Some(slot)) => {
                        let eligible = now.saturating_sub(500 * TICKS_PER_MS / 1000)
                            + value * TICKS_PER_MS / 1000;
                        scheduler.backlogged(slot, eligible, now);
                        rules.set_waiting(slot.index(), Some(eligible), now);
                    }
                    (6, Some(slot)) => {
                        scheduler.idle(slot, now);
                        rules.set_waiting(slot.index(), None, now);
                    }
                    (7, Some(slot)) => {
                        let (phase, expected) = serve(&mut scheduler, &mut rules, slot, now);
                        prop_assert_eq!(phase, expected);
                    }
                    (8, _) => now += value * TICKS_PER_MS,
                    (9..=12, _) => now += value * TICKS_PER_MS / 1000,
                    _ => {}
                }
                let expected = rules.next(now);
                match scheduler.next(now) {
                    Next::Dispatch(slot, phase) => {
                        prop_assert_eq!(Some((slot.index(), phase)), expected);
                        if what >= 9 {
                            let served = serve(&mut scheduler, &mut rules, slot, now);
                            prop_assert_eq!(served, (Some(phase), Some(phase)));
                            // The one after that may leave at once, later, or is not there.
                            let eligible = match what % 4 {
                                0 => Some(now + value * TICKS_PER_MS / 1000),
                                1 => None,
                                _ => continue,
                            };
                            match eligible {
                                Some(time) => scheduler.set_eligible(slot, time, now),
                                None => scheduler.idle(slot, now),
                            }
                            rules.set_waiting(slot.index(), eligible, now);
                        }
                    }
                    Next::Wait(until) => {
                        prop_assert_eq!(expected, None);
                        prop_assert_eq!(Some(u128::from(until)), rules.first());
                    }
                    Next::Nothing => prop_assert_eq!(rules.first(), None),
                }
            }
        }
    }
}
