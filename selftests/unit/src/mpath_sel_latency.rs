// SPDX-License-Identifier: GPL-2.0

//! Host tests of mpath-sel's control law: I/O on simulated paths, whose slots follow their latency and whose
//! turns follow what is in flight.

#[path = "../../../mpath-sel/policy/in_flight.rs"]
#[allow(dead_code)]
mod in_flight;
#[path = "../../../mpath-sel/policy/latency.rs"]
#[allow(dead_code)]
mod latency;

#[cfg(test)]
mod tests {
    use super::in_flight::{has_more, Round, Trust};
    use super::latency::{class, is_timed, sample, slots, Gauge, Law, CLASSES, PERIOD_MS};
    use crate::mpath_sel::{
        cell::Cell,
        rotation::{
            after_turn, first_slot, make_hops, make_schedule, nearest, no_hop, select, set_slots,
            share_out, Effort, Job,
        },
    };
    use proptest::prelude::*;
    use std::{cmp::Reverse, collections::BinaryHeap, sync::Mutex};

    const MS: u64 = 1_000_000;
    const S: u64 = 1000 * MS;

    struct Random(u64);

    impl Random {
        fn next(&mut self) -> u64 {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            self.0
        }

        /// Of mean 1, as the time between rare events is.
        fn exponential(&mut self) -> f64 {
            -((self.next() >> 11) as f64 / (1u64 << 53) as f64)
                .max(1e-12)
                .ln()
        }
    }

    /// A path: what an I/O of so many bytes takes from a time on, and how long it keeps the path from
    /// others. All in nanoseconds.
    struct Path {
        delay: Box<dyn Fn(u64, usize) -> u64>,
        service: u64,
        /// How much of the delay is by chance.
        noise: f64,
        free_at: u64,
    }

    fn path(delay: impl Fn(u64, usize) -> u64 + 'static) -> Path {
        Path {
            delay: Box::new(delay),
            service: 0,
            noise: 0.5,
            free_at: 0,
        }
    }

    fn new_gauge(own: u32, distance: u32, nearest: u32) -> Gauge {
        let mut gauge = Gauge::default();
        gauge.begin(own, distance, nearest);
        gauge
    }

    /// What a word is when an I/O was started.
    fn started(round: Round, word: u32) -> u32 {
        round.mended(word.wrapping_add(1), 1)
    }

    /// When one has ended, and whether it was started on this CPU, as far as that can be told.
    fn ended(round: Round, word: u32) -> (u32, bool) {
        let word = word.wrapping_sub(1);
        (round.mended(word, 0), round.is_right(word))
    }

    /// When an I/O ends, on which path and CPU, when it began, its bytes.
    type Event = (u64, usize, usize, u64, usize);

    /// A group whose I/O is that of so many tasks which wait for each I/O.
    struct Group {
        paths: Vec<Path>,
        gauges: Vec<Gauge>,
        law: Law,
        in_service: Vec<bool>,
        jobs: Vec<Job>,
        order: Vec<u16>,
        hops: Vec<Cell>,
        cursors: Vec<u32>,
        /// For each CPU and path.
        in_flight: Vec<Vec<u32>>,
        round: Round,
        began: u64,
        trust: Trust,
        has_strayed: bool,
        /// The selector looks at it.
        keeps_balance: bool,
        /// I/Os end on the next CPU.
        ends_elsewhere: bool,
        /// One CPU starts all of them.
        starts_on_first: bool,
        sums: Vec<[u64; CLASSES]>,
        events: BinaryHeap<Reverse<Event>>,
        now: u64,
        next_look: u64,
        random: Random,
        sizes: Vec<usize>,
        think: u64,
        /// Since the last `run`.
        ios: Vec<u64>,
        took: u64,
        looks: u32,
        changes: u32,
    }

    impl Group {
        fn new(weights: &[u32], paths: Vec<Path>, depth: usize, cpus: usize) -> Self {
            Self::of_node(weights, &vec![10; paths.len()], paths, depth, cpus)
        }

        /// As the CPUs of a node see it that is so far from each path.
        fn of_node(
            weights: &[u32],
            distances: &[u32],
            paths: Vec<Path>,
            depth: usize,
            cpus: usize,
        ) -> Self {
            let n = paths.len();
            let mut jobs = vec![Job::default(); n];
            let own = share_out(weights, &mut jobs);
            let whole = slots(n, own);
            let nearest = nearest(distances, |_| true).unwrap();
            let mut gauges: Vec<Gauge> = jobs
                .iter()
                .zip(distances)
                .map(|(job, &distance)| {
                    new_gauge(job.slots() * (whole / own) as u32, distance, nearest)
                })
                .collect();
            Law::begin(&mut gauges);
            let mut group = Group {
                paths,
                gauges,
                law: Law::default(),
                in_service: vec![true; n],
                jobs,
                order: vec![0; whole],
                hops: (0..whole).map(no_hop).collect(),
                cursors: (0..cpus as u32).map(|cpu| first_slot(cpu, whole)).collect(),
                in_flight: vec![vec![0; n]; cpus],
                round: Round::FIRST,
                began: 0,
                trust: Trust::default(),
                has_strayed: false,
                keeps_balance: true,
                ends_elsewhere: false,
                starts_on_first: false,
                sums: vec![[0; CLASSES]; n],
                events: BinaryHeap::new(),
                now: 0,
                next_look: u64::from(PERIOD_MS) * MS,
                random: Random(0x1234_5678_9abc_def1),
                sizes: vec![4096],
                think: 0,
                ios: vec![0; n],
                took: 0,
                looks: 0,
                changes: 0,
            };
            group.rewrite();
            for task in 0..depth {
                group.start(task % cpus);
            }
            group
        }

        fn rewrite(&mut self) {
            set_slots(&mut self.jobs, self.gauges.iter().map(Gauge::slots));
            let whole: u32 = self.gauges.iter().map(Gauge::slots).sum();
            assert_eq!(whole as usize, self.order.len());
            make_schedule(&mut self.order, &mut self.jobs, Effort::Once);
            make_hops(&self.order, &self.hops, 0, |path| self.in_service[path]);
        }

        fn wait(&mut self, cpu: usize, time: u64) {
            self.events
                .push(Reverse((self.now + time, usize::MAX, cpu, 0, 0)));
        }

        fn start(&mut self, cpu: usize) {
            let cpu = if self.starts_on_first { 0 } else { cpu };
            let (next, path) = select(&self.hops, self.cursors[cpu]);
            self.cursors[cpu] = next;
            let now = self.now;
            let bytes = self.sizes[self.random.next() as usize % self.sizes.len()];
            let Some(on) = self.paths.get_mut(path) else {
                // Nothing is in service: tries again in a while.
                return self.wait(cpu, 50 * MS);
            };
            let word = &mut self.in_flight[cpu][path];
            *word = started(self.round, *word);
            let begins = on.free_at.max(now);
            on.free_at = begins + on.service;
            let chance = 1.0 - on.noise + on.noise * self.random.exponential();
            let ends = on.free_at + ((on.delay)(now, bytes) as f64 * chance) as u64;
            self.events.push(Reverse((ends, path, cpu, now, bytes)));
        }

        fn has_ended(&mut self, cpu: usize, path: usize, began: u64) {
            if began < self.began {
                return;
            }
            let (words, round) = (&mut self.in_flight[cpu], self.round);
            let (word, is_ours) = ended(round, words[path]);
            words[path] = word;
            self.has_strayed |= !is_ours;
            if !round.is_trusted() || !self.keeps_balance {
                return;
            }
            let load = |path: usize| (round.count(words[path]), self.gauges[path].slots());
            let is_to_be = |path, other| has_more(load(path), load(other));
            if let Some(next) = after_turn(&self.hops, self.cursors[cpu], is_to_be) {
                self.cursors[cpu] = next;
            }
        }

        fn look(&mut self) {
            for (gauge, sums) in self.gauges.iter_mut().zip(&self.sums) {
                for (class, &sum) in sums.iter().enumerate() {
                    gauge.read(class, sum);
                }
            }
            self.looks += 1;
            let (round, begins) = self.trust.look(std::mem::take(&mut self.has_strayed));
            self.round = round;
            if begins {
                self.began = self.now;
            }
            let in_service = &self.in_service;
            if self.law.look(&mut self.gauges, |path| in_service[path]) {
                self.changes += 1;
                self.rewrite();
            }
        }

        /// Goes on for so long; `ios` and `took` are of that time.
        fn run(&mut self, time: u64) {
            let until = self.now + time;
            self.ios.fill(0);
            self.took = 0;
            loop {
                let event = self
                    .events
                    .peek()
                    .map_or(u64::MAX, |Reverse(event)| event.0);
                let next = event.min(self.next_look);
                if next > until {
                    break;
                }
                self.now = next;
                if next == self.next_look {
                    self.next_look += u64::from(PERIOD_MS) * MS;
                    self.look();
                    continue;
                }
                let Reverse((ends, path, cpu, began, bytes)) = self.events.pop().unwrap();
                let Some(sums) = self.sums.get_mut(path) else {
                    self.start(cpu);
                    continue;
                };
                let shift = self.gauges[path].timed_shift();
                if is_timed(began, shift) {
                    let sum = &mut sums[class(bytes)];
                    *sum = sum.wrapping_add(sample(ends - began, shift));
                }
                self.ios[path] += 1;
                self.took += ends - began;
                let there = cpu + usize::from(self.ends_elsewhere);
                self.has_ended(there % self.cursors.len(), path, began);
                match self.think {
                    0 => self.start(cpu),
                    think => {
                        let time = self.random.exponential() * think as f64;
                        self.wait(cpu, time as u64);
                    }
                }
            }
            self.now = until;
        }

        /// Of what ended in the last run, a path's part, in percent.
        fn percent(&self, path: usize) -> f64 {
            100.0 * self.ios[path] as f64 / self.ios.iter().sum::<u64>().max(1) as f64
        }

        fn slots_percent(&self, path: usize) -> f64 {
            100.0 * f64::from(self.gauges[path].slots()) / self.order.len() as f64
        }

        fn mean(&self) -> u64 {
            self.took / self.ios.iter().sum::<u64>().max(1)
        }
    }

    fn even(paths: Vec<Path>, depth: usize, cpus: usize) -> Group {
        Group::new(&vec![1; paths.len()], paths, depth, cpus)
    }

    fn alike(n: usize, noise: f64) -> Vec<Path> {
        (0..n)
            .map(|_| Path {
                noise,
                ..path(|_, _| MS)
            })
            .collect()
    }

    #[test]
    fn weights_that_are_not_lowered_come_out_exactly() {
        for weights in [
            &[1, 1][..],
            &[3, 1],
            &[5, 4, 2],
            &[1; 64],
            &[130_000, 7, 2_147_483_647],
        ] {
            let mut jobs = vec![Job::default(); weights.len()];
            let own = share_out(weights, &mut jobs);
            let whole = slots(weights.len(), own);
            assert!(whole.is_multiple_of(own) && (512..=4096).contains(&whole));
        }
        let mut group = Group::new(&[3, 1], alike(2, 0.0), 8, 1);
        assert_eq!(group.order[..8], [0, 0, 1, 0, 0, 0, 1, 0]);
        group.run(10 * S);
        assert_eq!(group.changes, 0);
        assert!((group.percent(0) - 75.0).abs() < 0.1);
        let group = even(alike(3, 0.0), 1, 1);
        assert_eq!(group.order[..6], [0, 1, 2, 0, 1, 2]);
    }

    #[test]
    fn noise_does_not_drift() {
        for (n, depth, think) in [
            (2, 32, 0),
            (2, 1, 0),
            (2, 1, 20 * MS),
            (2, 1, 200 * MS),
            (4, 8, 5 * MS),
            (64, 64, 0),
            (64, 64, 20 * MS),
            (64, 8, 20 * MS),
        ] {
            let mut group = even(alike(n, 1.0), depth, 2);
            group.think = think;
            group.run(60 * S);
            let fair = 100.0 / n as f64;
            let shares: Vec<f64> = (0..n).map(|path| group.percent(path)).collect();
            let (least, most) = shares
                .iter()
                .fold((f64::MAX, 0f64), |(a, b), &s| (a.min(s), b.max(s)));
            println!(
                "noise: {n} paths, {depth} tasks, think {think}: {:.1} % to {:.1} % of the fair share, {} changes in {} looks",
                100.0 * least / fair,
                100.0 * most / fair,
                group.changes,
                group.looks
            );
            let slack = if group.ios.iter().sum::<u64>() / 60 < 10 * n as u64 {
                0.25
            } else {
                0.1
            };
            assert!(least > (1.0 - slack) * fair && most < (1.0 + slack) * fair);
        }
    }

    /// Paths of which the first are near and the others across the interconnect, as on most
    /// machines of two sockets.
    fn of_two_nodes(near: usize, paths: Vec<Path>, depth: usize) -> Group {
        let n = paths.len();
        let distances: Vec<u32> = (0..n)
            .map(|path| if path < near { 10 } else { 21 })
            .collect();
        Group::of_node(&vec![1; n], &distances, paths, depth, 2)
    }

    #[test]
    fn near_paths_get_nearly_all() {
        for (near, far) in [(1, 1), (2, 2), (4, 60), (1, 7)] {
            for (delay, noise, depth) in [(MS / 10, 0.5, 16), (MS, 1.0, 32), (10 * MS, 1.0, 32)] {
                let paths = (0..near + far).map(|_| Path {
                    noise,
                    ..path(move |_, _| delay)
                });
                let mut group = of_two_nodes(near, paths.collect(), depth);
                group.run(S / 10);
                let first = group.ios[near..].iter().sum::<u64>();
                // One slot of a thousand each.
                let all = group.ios.iter().sum::<u64>();
                assert!(first <= 2 * far as u64 * (1 + all / 1024));
                group.run(20 * S);
                let ios = group.ios[near..].iter().sum::<u64>() as f64 / 20.0;
                let rate = group.ios.iter().sum::<u64>() as f64 / 20.0;
                println!(
                    "near: {near} and {far} paths of {} us: {:.2} % of {rate:.0} I/Os per second go far, {:.0} on each path",
                    delay / 1000,
                    100.0 * ios / rate,
                    ios / far as f64
                );
                // What it takes to notice, some by chance, and two slots of a thousand at most.
                let (each, most) = (ios / far as f64, rate / far as f64 / 100.0);
                assert!(each <= 8.0 * 3.0 + most + rate / 512.0);
            }
        }
    }

    #[test]
    fn a_detour_is_made_when_it_is_worth_it() {
        for near in [1, 2] {
            let paths = (0..2 * near).map(|index| {
                path(move |now, _| {
                    if index < near && (10 * S..20 * S).contains(&now) {
                        10 * MS
                    } else {
                        MS
                    }
                })
            });
            let mut group = of_two_nodes(near, paths.collect(), 32);
            group.run(10 * S);
            group.run(S + 200 * MS);
            let far = |group: &Group| {
                (near..2 * near)
                    .map(|p| group.slots_percent(p))
                    .sum::<f64>()
            };
            let when_slow = far(&group);
            group.run(8 * S + 800 * MS);
            group.run(S + 200 * MS);
            let after = far(&group);
            println!("detour: {near} slow near paths: {when_slow:.1} % go far, then {after:.1} %");
            assert!(when_slow > 90.0 && after < 5.0);
        }
    }

    #[test]
    fn what_near_paths_cannot_take_goes_far() {
        // 10,000 I/Os per second each.
        let paths = (0..2).map(|_| Path {
            service: MS / 10,
            ..path(|_, _| MS / 5)
        });
        let mut group = of_two_nodes(1, paths.collect(), 64);
        group.run(5 * S);
        group.run(20 * S);
        let rate = group.ios.iter().sum::<u64>() / 20;
        let far = group.percent(1);
        println!("full: {rate} I/Os per second of 10,000 near and 10,000 far, {far:.1} % far");
        assert!(rate > 15_000);
    }

    #[test]
    fn far_paths_take_all_when_near_ones_fail() {
        let mut group = of_two_nodes(2, alike(4, 0.5), 16);
        group.run(5 * S);
        group.in_service[0] = false;
        group.in_service[1] = false;
        group.rewrite();
        group.run(10 * MS);
        group.run(5 * S);
        assert_eq!(group.ios[..2], [0, 0]);
        assert!((group.percent(2) - 50.0).abs() < 5.0);
        group.in_service[0] = true;
        group.rewrite();
        group.run(S);
        group.run(S);
        assert!(group.percent(0) > 95.0, "{:?}", group.ios);
        assert_eq!(group.ios[1], 0);
    }

    #[test]
    fn a_slow_path_gets_little_and_is_noticed_when_it_is_fast() {
        for n in [2, 3, 8, 64] {
            for factor in [10, 150] {
                let mut paths = alike(n, 0.5);
                paths[n - 1] = Path {
                    noise: 0.1,
                    ..path(move |now, _| {
                        if (10 * S..20 * S).contains(&now) {
                            factor * MS
                        } else {
                            MS
                        }
                    })
                };
                let mut group = even(paths, 32, 2);
                let fair = 100.0 / n as f64;
                group.run(10 * S);
                assert!(group.percent(n - 1) > 0.9 * fair);
                group.run(S);
                group.run(9 * S);
                let slow = group.percent(n - 1);
                let slow_mean = group.mean();
                // I/Os that began before the change end within 165 ms as a rule.
                group.run(S + 200 * MS);
                let after = group.slots_percent(n - 1);
                println!(
                    "slow: {n} paths, {factor} times: {slow:.2} % (fair {fair:.1}), mean {:.2} ms; 1.2 s later {after:.1} %",
                    slow_mean as f64 / MS as f64
                );
                assert!(slow < fair / 4.0);
                assert!(slow_mean < 2 * MS);
                assert!(after > 0.8 * fair);
            }
        }
    }

    #[test]
    fn a_path_that_becomes_slow_has_little_within_a_second() {
        for (depth, cpus) in [(1, 1), (8, 1), (32, 2), (256, 4)] {
            let mut paths = alike(2, 0.5);
            paths[1] = path(|now, _| if now > 5 * S { 30 * MS } else { MS });
            let mut group = even(paths, depth, cpus);
            group.run(5 * S);
            group.run(S);
            let slots = group.slots_percent(1);
            println!("becomes slow: {depth} tasks: {slots:.2} % of the slots after 1 s");
            assert!(slots < 15.0);
        }
    }

    #[test]
    fn paths_that_change_places_are_noticed_within_a_second() {
        // The time of the fast one, tasks, service: some thousand to some hundred I/Os per second.
        for (quick, depth, service) in [(1, 32, 0), (3, 8, 0), (5, 8, 2), (10, 8, 0), (5, 2, 0)] {
            let slow = |odd: u64| Path {
                service: service * MS,
                ..path(move |now, _| {
                    if now / (5 * S) % 2 == odd {
                        (30 + quick) * MS
                    } else {
                        quick * MS
                    }
                })
            };
            let mut group = even(vec![slow(0), slow(1)], depth, 2);
            group.run(5 * S);
            for turn in 1..8 {
                group.run(S);
                group.run(S);
                let fast = group.percent((turn + 1) % 2);
                println!("change places: {quick} ms, {depth} tasks: {fast:.1} % after 1 s");
                assert!(fast > 75.0);
                group.run(3 * S);
                assert!(group.percent((turn + 1) % 2) > 80.0);
            }
        }
    }

    #[test]
    fn a_path_that_flaps_does_less_harm_than_taking_turns() {
        for (n, depth) in [(2, 32), (4, 32), (64, 64)] {
            let mut paths = alike(n, 0.5);
            paths[0] = path(|now, _| if now / S % 2 == 1 { 50 * MS } else { MS });
            let mut group = even(paths, depth, 2);
            group.run(60 * S);
            // By turns, half of the time, one in n takes 50 ms.
            let turns = (25.5 * MS as f64 + (n - 1) as f64 * MS as f64) / n as f64;
            println!(
                "flaps: {n} paths: {:.1} %, mean {:.2} ms, by turns {:.2} ms",
                group.percent(0),
                group.mean() as f64 / MS as f64,
                turns / MS as f64
            );
            let harm = |mean: f64| mean - MS as f64;
            assert!(harm(group.mean() as f64) < 0.5 * harm(turns));
        }
    }

    /// 10,000 and 2,500 I/Os per second and nothing else.
    #[test]
    fn load_finds_its_place_and_stays() {
        for depth in [4, 32, 128] {
            let server = |service| Path {
                service,
                noise: 0.5,
                ..path(|_, _| MS / 5)
            };
            let mut group = even(vec![server(MS / 10), server(4 * MS / 10)], depth, 2);
            group.run(5 * S);
            let (mut least, mut most, mut ios) = (f64::MAX, 0f64, 0);
            for _ in 0..100 {
                group.run(100 * MS);
                least = least.min(group.slots_percent(1));
                most = most.max(group.slots_percent(1));
                ios += group.ios.iter().sum::<u64>();
            }
            println!(
                "load: {depth} tasks: the slower has {least:.1} % to {most:.1} %, {} IOPS, {} changes in {} looks",
                ios / 10,
                group.changes,
                group.looks
            );
            assert!(least > 5.0 && most < 33.0);
            assert!(depth < 32 || ios / 10 > 11_000);
        }
    }

    /// 128 and 32 I/Os per second, and an eighth of a second to a second of queue.
    #[test]
    fn few_ios_find_their_place_too() {
        let server = |service| Path {
            service,
            noise: 0.5,
            ..path(|_, _| 2 * MS)
        };
        let mut group = even(vec![server(S / 128), server(S / 32)], 32, 2);
        group.run(6 * S);
        let (mut least, mut most, mut ios) = (f64::MAX, 0f64, 0);
        for _ in 0..300 {
            group.run(100 * MS);
            least = least.min(group.slots_percent(1));
            most = most.max(group.slots_percent(1));
            ios += group.ios.iter().sum::<u64>();
        }
        println!(
            "few: the slower has {least:.1} % to {most:.1} %, {} IOPS",
            ios / 30
        );
        assert!(ios / 30 > 120);
    }

    #[test]
    fn large_ios_do_not_make_a_path_slow() {
        // Twice the delay for each step in size; one path has large ones alone, by its own order.
        let by_size = |_: u64, bytes: usize| MS / 4 + bytes as u64 * 10;
        let mut group = even(vec![path(by_size), path(by_size)], 16, 2);
        group.sizes = vec![4096, 65536, 1 << 20];
        group.run(30 * S);
        println!(
            "sizes: {:.1} %, {} changes",
            group.percent(0),
            group.changes
        );
        assert!((group.percent(0) - 50.0).abs() < 3.0);

        // As decisions: the same times by class, in other numbers.
        let mut gauges = [new_gauge(512, 10, 10), new_gauge(512, 10, 10)];
        let mut law = Law::default();
        let mut sums = [[0u64; CLASSES]; 2];
        for _ in 0..20 {
            for (path, (small, large)) in [(90, 10), (10, 90)].into_iter().enumerate() {
                sums[path][0] += small * sample(MS, 0);
                sums[path][3] += large * sample(20 * MS, 0);
                for (class, &sum) in sums[path].iter().enumerate() {
                    gauges[path].read(class, sum);
                }
            }
            assert!(!law.look(&mut gauges, |_| true));
        }
    }

    #[test]
    fn all_paths_fail_and_come_back() {
        let mut group = even(alike(3, 0.5), 16, 2);
        group.run(2 * S);
        for failed in 0..3 {
            group.in_service[failed] = false;
            group.rewrite();
            group.run(S);
            assert!(group.ios[failed] < 32);
        }
        assert!(group.law.is_idle() || group.ios.iter().sum::<u64>() < 64);
        group.in_service = vec![true; 3];
        group.rewrite();
        group.run(S);
        group.run(2 * S);
        for path in 0..3 {
            assert!((group.percent(path) - 33.3).abs() < 3.0);
        }
    }

    #[test]
    fn a_path_that_answers_nothing_gets_less() {
        let hang = path(|now, _| if now > 2 * S { 1000 * S } else { MS });
        // Others do not wait for those that hang.
        let mut group = even(vec![path(|_, _| MS), hang], 20_000, 2);
        group.think = 2 * S;
        group.run(2 * S);
        group.run(S);
        println!(
            "hangs: {:.2} % of the slots after 1 s",
            group.slots_percent(1)
        );
        assert!(group.slots_percent(1) < 5.0);
    }

    /// 1 % of a path's I/Os wait for 200 ms, as where a packet is lost.
    fn lossy() -> Vec<Path> {
        let chance = Mutex::new(Random(77));
        let lossy = move |_, _| match chance.lock().unwrap().next().is_multiple_of(100) {
            true => 200 * MS,
            false => 2 * MS,
        };
        let server = |path| Path {
            service: MS / 3,
            ..path
        };
        vec![server(path(|_, _| 2 * MS)), server(path(lossy))]
    }

    #[test]
    fn what_stands_still_for_a_moment_gets_less() {
        for (depth, cpus, gain) in [(8, 1, 1.02), (8, 2, 1.02), (32, 2, 0.97)] {
            let rate = |keeps_balance| {
                let mut group = even(lossy(), depth, cpus);
                group.keeps_balance = keeps_balance;
                group.run(5 * S);
                group.run(60 * S);
                group.ios.iter().sum::<u64>() as f64 / 60.0
            };
            let (with, without) = (rate(true), rate(false));
            println!(
                "lossy: {depth} tasks, {cpus} CPUs: {with:.0} IOPS, by latency alone {without:.0}"
            );
            assert!(with > gain * without);
        }
    }

    #[test]
    fn what_ends_on_other_cpus_spoils_nothing() {
        for cpus in [2, 3] {
            let mut group = Group::new(&[3, 1], alike(2, 0.5), 32, cpus);
            group.ends_elsewhere = true;
            group.run(S);
            group.run(20 * S);
            println!("elsewhere: {:.2} % of 75 %", group.percent(0));
            assert!((group.percent(0) - 75.0).abs() < 2.0);

            // Nor that a slow path is noticed when it is fast.
            // All are started by the first CPU, and none ends there.
            for all_by_one in [false, true] {
                let mut paths = alike(3, 0.5);
                paths[2] = path(|now, _| if now < 10 * S { 30 * MS } else { MS });
                let mut group = even(paths, 32, cpus);
                group.ends_elsewhere = true;
                group.starts_on_first = all_by_one;
                group.run(S);
                group.run(9 * S);
                let slow = group.percent(2);
                group.run(S + 200 * MS);
                let after = group.slots_percent(2);
                println!("elsewhere: a slow path has {slow:.2} %, 1.2 s later {after:.1} %");
                assert!(slow < 5.0 && after > 30.0);
            }
        }
    }

    #[test]
    fn one_in_eight_is_timed_whatever_the_clock_does() {
        for step in [1, 10, 64, 100, 279, 1000, 4 * MS] {
            for first in [0, 1, 12_345_678_901_234_567] {
                let times = (0..80_000).map(|nth| first + nth * step);
                let timed = times.clone().filter(|&start| is_timed(start, 3)).count();
                assert!((9_000..11_000).contains(&timed), "{step}: {timed}");
                assert!(times.into_iter().all(|start| is_timed(start, 0)));
            }
        }
    }

    #[test]
    fn counts_are_relied_on_again_where_ios_end_at_home() {
        for delay in [MS, 20 * MS] {
            let mut group = even((0..2).map(|_| path(move |_, _| delay)).collect(), 16, 2);
            group.run(2 * S);
            assert!(group.round.is_trusted());
            let (mut untrusted, mut trusted) = (0, 0);
            for _ in 0..100 {
                group.ends_elsewhere = true;
                group.run(2 * S);
                untrusted += usize::from(!group.round.is_trusted());
                group.ends_elsewhere = false;
                group.run(5 * S);
                group.run(S);
                trusted += usize::from(group.round.is_trusted());
                assert!((group.percent(1) - 50.0).abs() < 5.0);
            }
            println!("home: not relied on {untrusted} times of 100, again {trusted} times");
            assert!(untrusted > 95 && trusted > 95);
        }
    }

    #[test]
    fn counts_stay_within_bounds() {
        for round in [0, 1, 0xffff, 0x1_0000, 0x1_ffff].map(Round) {
            let mut word = 0;
            for nth in 1..0xffff {
                word = started(round, word);
                assert_eq!(round.count(word), nth);
            }
            let next = Round(round.0 ^ 1);
            assert_eq!(next.count(word), 0);
            assert!(!ended(next, word).1);
            assert_eq!(next.count(started(next, word)), 1);
            // Whether it is trusted is no other round.
            assert_eq!(Round(round.0 ^ 0x1_0000).count(word), 0xfffe);
            // One more is too many.
            assert_eq!(round.count(started(round, word)), 1);
            for nth in 1..70_000 {
                let (now, is_ours) = ended(round, word);
                word = now;
                assert_eq!(round.count(word), 0xfffeu32.saturating_sub(nth));
                assert_eq!(is_ours, nth <= 0xfffe);
            }
        }
    }

    #[test]
    fn trust_takes_a_second_without_strays() {
        let trusted = |round: Round| Round(round.0 | Round::FIRST.0);
        let mut trust = Trust::default();
        for nth in 1..=300 {
            // Those around the beginning of a round do not count.
            let (round, begins) = trust.look(nth % 30 == 1);
            assert_eq!((round, begins), (trusted(Round(nth / 30)), nth % 30 == 0));
        }
        assert_eq!(trust.look(false), (trusted(Round(10)), false));
        assert_eq!(trust.look(true), (Round(11), true));
        for _ in 0..9 {
            assert_eq!(trust.look(false), (Round(11), false));
        }
        assert_eq!(trust.look(false), (trusted(Round(11)), false));
        for number in 12..100_000 {
            assert_eq!(trust.look(true), (Round(number & 0xffff), true));
            assert_eq!(trust.look(true), (Round(number & 0xffff), false));
        }
    }

    #[test]
    fn a_count_that_is_wrong_is_forgotten() {
        for delay in [MS, 20 * MS] {
            for wrong in [1, 100] {
                let mut group = even((0..2).map(|_| path(move |_, _| delay)).collect(), 8, 1);
                // Started here, and ended by others.
                group.in_flight[0][1] += wrong;
                group.run(5 * S);
                group.run(S);
                println!(
                    "wrong by {wrong}: {:.1} % in the sixth second",
                    group.percent(1)
                );
                assert!(group.percent(1) > 40.0);
            }
        }
    }

    #[test]
    fn one_cpu_may_do_all() {
        let mut paths = alike(2, 0.5);
        paths[1] = path(|_, _| 10 * MS);
        let mut group = even(paths, 4, 1);
        group.cursors.resize(64, 0);
        group.in_flight.resize(64, vec![0; 2]);
        group.run(S);
        group.run(5 * S);
        assert!(group.percent(1) < 6.0);
    }

    #[test]
    fn own_weights_are_kept_among_equals() {
        let mut paths = alike(3, 0.5);
        paths[2] = path(|_, _| 20 * MS);
        let mut group = Group::new(&[3, 1, 4], paths, 16, 2);
        group.run(S);
        group.run(20 * S);
        println!("own weights: {:?}", group.ios);
        let ratio = group.ios[0] as f64 / group.ios[1] as f64;
        assert!((2.7..3.3).contains(&ratio));
        assert!(group.percent(2) < 5.0);
    }

    proptest! {
        #[test]
        fn every_path_has_a_slot_whatever_happens(
            weights in proptest::collection::vec(0u32.., 1..200),
            distances in proptest::collection::vec(prop::sample::select(vec![10u32, 11, 21, 254]), 200),
            seed in 1u64..,
        ) {
            let n = weights.len();
            let mut jobs = vec![Job::default(); n];
            let own = share_out(&weights, &mut jobs);
            let whole = slots(n, own);
            prop_assert!(whole <= 4096.max(own));
            let mut gauges: Vec<Gauge> = jobs
                .iter()
                .zip(distances)
                .map(|(job, distance)| {
                    new_gauge(job.slots() * (whole / own) as u32, distance, 10)
                })
                .collect();
            Law::begin(&mut gauges);
            let mut law = Law::default();
            let mut random = Random(seed);
            let mut sums = vec![[0u64; CLASSES]; n];
            let mut in_service = vec![true; n];
            for _ in 0..50 {
                for (path, sums) in sums.iter_mut().enumerate() {
                    for (class, sum) in sums.iter_mut().enumerate() {
                        if random.next().is_multiple_of(3) {
                            let ns = random.next() >> (random.next() % 64);
                            *sum = sum.wrapping_add((random.next() % 5000) * sample(ns.min(100 * MS), 0));
                        }
                        gauges[path].read(class, *sum);
                    }
                    in_service[path] = !random.next().is_multiple_of(4);
                }
                law.look(&mut gauges, |path| in_service[path]);
                let sum: usize = gauges.iter().map(|gauge| gauge.slots() as usize).sum();
                prop_assert_eq!(sum, whole);
                prop_assert!(gauges.iter().all(|gauge| gauge.slots() > 0));
            }
        }
    }
}
