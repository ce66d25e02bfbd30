// SPDX-License-Identifier: GPL-2.0

//! Host tests of mpath-sel's decisions.

#[path = "../../../mpath-sel/policy/rotation.rs"]
#[allow(dead_code)]
pub(crate) mod rotation;

/// What `mpath-sel/cell.rs` is in the kernel.
#[allow(dead_code)]
pub(crate) mod cell {
    use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

    pub(crate) struct Cell(AtomicU32);

    impl Cell {
        pub(crate) fn new(value: u32) -> Self {
            Self(AtomicU32::new(value))
        }

        pub(crate) fn load(&self) -> u32 {
            self.0.load(Relaxed)
        }

        pub(crate) fn store(&self, value: u32) {
            self.0.store(value, Relaxed);
        }
    }
}

#[cfg(test)]
mod testing {
    use super::{
        cell::Cell,
        rotation::{make_hops, make_schedule, select, share_out, Effort, Job, MAX_PATHS},
    };
    use std::cell::Cell as Own;

    /// The schedule for `weights`, and the bound that it comes with.
    pub(super) fn schedule_and_bound(weights: &[u32]) -> (Vec<u16>, u32) {
        let mut jobs = vec![Job::default(); weights.len()];
        let mut order = vec![0; share_out(weights, &mut jobs)];
        let bound = make_schedule(&mut order, &mut jobs, Effort::Search);
        (order, bound)
    }

    /// The schedule for `weights`.
    pub(super) fn schedule(weights: &[u32]) -> Vec<u16> {
        schedule_and_bound(weights).0
    }

    /// For each path, how far at most any window of the endless schedule is off its share, in units
    /// of an I/O by all slots.
    pub(super) fn worst_windows(order: &[u16], paths: usize) -> Vec<i64> {
        let mut slots = vec![0i64; paths];
        for &path in order {
            slots[usize::from(path)] += 1;
        }
        // (now, least, most) of how far a path is ahead. Between its turns it only falls back.
        let mut ahead = vec![(0i64, 0i64, 0i64); paths];
        let mut last = vec![0i64; paths];
        let whole = order.len() as i64;
        for (k, &path) in order.iter().enumerate() {
            let i = usize::from(path);
            let (now, least, most) = &mut ahead[i];
            *now -= (k as i64 - last[i]) * slots[i];
            *least = *now.min(least);
            *now += whole - slots[i];
            *most = *now.max(most);
            last[i] = k as i64 + 1;
        }
        ahead.iter().map(|(_, least, most)| most - least).collect()
    }

    /// A priority group as `round_robin.rs` keeps it, with the cursor of one CPU.
    pub(super) struct Group {
        pub(super) order: Vec<u16>,
        pub(super) hops: Vec<Cell>,
        pub(super) cursor: Own<u32>,
    }

    impl Group {
        pub(super) fn new(weights: &[u32]) -> Self {
            let order = schedule(weights);
            let group = Group {
                hops: order.iter().map(|_| Cell::new(0)).collect(),
                order,
                cursor: Own::new(0),
            };
            group.in_service(|_| true);
            group
        }

        pub(super) fn in_service(&self, is_in_service: impl Fn(usize) -> bool) {
            make_hops(&self.order, &self.hops, 0, is_in_service);
        }

        pub(super) fn select(&self) -> Option<usize> {
            let (next, path) = select(&self.hops, self.cursor.get());
            self.cursor.set(next);
            (path < MAX_PATHS).then_some(path)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{
        rotation::*,
        testing::{schedule, schedule_and_bound, worst_windows, Group}, //
    };
    use proptest::{collection::vec, prelude::*};

    /// Weights of every kind: few and many paths, alike and far apart.
    fn weights() -> impl Strategy<Value = Vec<u32>> {
        prop_oneof![
            vec(1u32..=10, 1..=8),
            vec(1u32..=200, 1..=40),
            vec(1u32..=65535, 1..=4),
            (1u32..=100, 1usize..=MAX_PATHS).prop_map(|(w, n)| vec![w; n]),
            vec(
                prop_oneof![
                    Just(0u32),
                    Just(1),
                    Just(65535),
                    Just(u32::MAX),
                    1..=u32::MAX
                ],
                1..=MAX_PATHS
            ),
        ]
    }

    fn slot_counts(weights: &[u32]) -> Vec<u64> {
        let mut counts = vec![0u64; weights.len()];
        for path in schedule(weights) {
            counts[usize::from(path)] += 1;
        }
        counts
    }

    /// All weights of `paths` paths, in descending order, whose sum is at most `sum` and whose
    /// common divisor is 1.
    fn all_weights(paths: usize, sum: u32) -> Vec<Vec<u32>> {
        fn more(found: &mut Vec<Vec<u32>>, begun: &mut Vec<u32>, paths: usize, left: u32) {
            if begun.len() == paths {
                let divides = |d: u32| begun.iter().all(|w| w % d == 0);
                if !(2..=begun[0]).any(divides) {
                    found.push(begun.clone());
                }
                return;
            }
            let others = (paths - begun.len() - 1) as u32;
            let most = begun.last().copied().unwrap_or(left).min(left - others);
            for weight in 1..=most {
                begun.push(weight);
                more(found, begun, paths, left - weight);
                begun.pop();
            }
        }
        let mut found = vec![];
        more(&mut found, &mut vec![], paths, sum);
        found
    }

    #[test]
    fn turns_are_spread_out() {
        assert_eq!(schedule(&[3, 1]), [0, 0, 1, 0]);
        assert_eq!(schedule(&[1, 1, 1]), [0, 1, 2]);
        assert_eq!(schedule(&[2, 2]), [0, 1]);
        assert_eq!(schedule(&[7]), [0]);
        assert_eq!(schedule(&[1, 2, 1]), [1, 0, 2, 1]);
        assert_eq!(schedule(&[4, 2, 1]), [0, 1, 0, 2, 0, 1, 0]);
        assert_eq!(schedule(&[]), []);
    }

    #[test]
    fn large_weights_are_reduced_by_their_common_divisor() {
        assert_eq!(schedule(&[30000, 10000]), schedule(&[3, 1]));
        assert_eq!(schedule(&[65535, 65535]), [0, 1]);
    }

    #[test]
    fn memory_is_bounded() {
        for weights in [
            vec![65535, 65534],
            vec![1; MAX_PATHS],
            (0..MAX_PATHS).map(|i| 65535 - i as u32).collect(),
            (0..MAX_PATHS)
                .map(|i| if i == 0 { 65535 } else { 1 })
                .collect(),
        ] {
            let slots = schedule(&weights).len();
            assert!(slots <= MAX_SLOTS, "{slots} slots");
        }
    }

    /// Whether any cyclic order of these counts keeps all windows to 1, by trying them all.
    fn some_order_keeps_windows_to_one(counts: &[u32]) -> bool {
        fn more(counts: &[u32], order: &mut Vec<u16>, left: &mut [u32]) -> bool {
            let whole: u32 = counts.iter().sum();
            if order.len() == whole as usize {
                let worst = worst_windows(order, counts.len());
                return worst.iter().all(|&off| off <= i64::from(whole));
            }
            (0..counts.len()).any(|path| {
                if left[path] == 0 {
                    return false;
                }
                left[path] -= 1;
                order.push(path as u16);
                let found = more(counts, order, left);
                order.pop();
                left[path] += 1;
                found
            })
        }
        more(counts, &mut vec![], &mut counts.to_vec())
    }

    /// Why `make_schedule` does not promise it.
    #[test]
    fn not_all_weights_allow_windows_within_one() {
        assert!(!some_order_keeps_windows_to_one(&[5, 4, 2]));
        // Nothing smaller fails, so the search above is not simply wrong.
        for paths in 2..=4 {
            for weights in all_weights(paths, 10) {
                assert!(some_order_keeps_windows_to_one(&weights), "{weights:?}");
            }
        }
    }

    /// What the search for better schedules finds, over all small weights.
    #[test]
    fn windows_of_small_weights_are_within_one_or_little_more() {
        let (mut all, mut within_one) = (0, 0);
        for (paths, sum) in [(2, 40), (3, 24), (4, 16), (5, 16), (6, 16)] {
            // In descending and in ascending order.
            let descending = all_weights(paths, sum);
            let ascending = descending.iter().map(|w| w.iter().rev().copied().collect());
            for weights in descending.iter().cloned().chain(ascending) {
                let order = schedule(&weights);
                let worst = *worst_windows(&order, paths).iter().max().unwrap();
                let whole = order.len() as i64;
                assert!(worst * 4 <= whole * 5, "{weights:?}: {worst}/{whole}");
                all += 1;
                within_one += usize::from(worst <= whole);
            }
        }
        println!("{within_one} of {all} within 1");
        assert!(within_one * 100 >= all * 64, "{within_one} of {all}");
    }

    #[test]
    fn windows_of_large_weights_are_within_one_and_a_half() {
        for paths in [3, 8, 16, 24] {
            for first in 0..8u32 {
                let weights: Vec<u32> = (0..paths).map(|n| 10 + (first + n) * 37 % 90).collect();
                let (order, bound) = schedule_and_bound(&weights);
                assert!(
                    u64::from(bound) * 2 <= order.len() as u64 * 3,
                    "{weights:?}: {bound}"
                );
            }
        }
    }

    #[test]
    fn windows_of_usual_weights_are_within_one() {
        for weights in [
            &[1u32, 1][..],
            &[50, 10],
            &[2, 1, 1],
            &[3, 2, 1],
            &[4, 2, 1],
            &[5, 1, 1],
            &[1, 2, 3, 4],
            &[50, 50, 10, 10],
            &[8, 4, 2, 1, 1],
            &[10, 10, 10, 10, 1],
        ] {
            let order = schedule(weights);
            let worst = worst_windows(&order, weights.len());
            let whole = order.len() as i64;
            assert!(
                worst.iter().all(|&off| off <= whole),
                "{weights:?}: {order:?}: {worst:?}"
            );
        }
    }

    #[test]
    fn cpus_begin_apart() {
        for slots in [1, 2, 3, 4, 7, 64, 1000, MAX_SLOTS] {
            for cpus in [2, 4, 16, 64] {
                let starts: Vec<u32> = (0..cpus).map(|cpu| first_slot(cpu, slots)).collect();
                assert!(starts.iter().all(|&start| (start as usize) < slots));
                // Whatever part of the schedule: its share of the first CPUs, or one more.
                for from in 0..slots as u32 {
                    let there = starts.iter().filter(|&&start| start == from).count();
                    assert!(there <= (cpus as usize).div_ceil(slots), "{starts:?}");
                }
            }
        }
        assert_eq!([0, 1, 2, 3].map(|cpu| first_slot(cpu, 4)), [0, 2, 1, 3]);
    }

    proptest! {
        /// Over any number of I/Os from any point of any schedule, a path is within the bound that
        /// comes with the schedule of its share, and so always within 2 - 1/(n-1).
        #[test]
        fn windows_are_within_the_bound(weights in weights()) {
            let (order, bound) = schedule_and_bound(&weights);
            let whole = order.len() as i64;
            let n = weights.len() as i64;
            for (path, worst) in worst_windows(&order, weights.len()).into_iter().enumerate() {
                prop_assert!(worst <= i64::from(bound), "path {path}: {worst}/{whole}");
            }
            if n > 1 {
                prop_assert!(i64::from(bound) * (n - 1) <= (2 * (n - 1) - 1) * whole);
            }
            if n == 2 || weights.iter().all(|&weight| weight == weights[0]) {
                prop_assert!(i64::from(bound) <= whole);
            }
        }

        #[test]
        fn each_path_has_its_share_of_slots(weights in weights()) {
            let slots = slot_counts(&weights);
            let whole: u64 = slots.iter().sum();
            // 0 is as 1.
            let weights: Vec<u32> = weights.iter().map(|&w| w.max(1)).collect();
            let sum: u64 = weights.iter().map(|&w| u64::from(w)).sum();
            fn gcd(a: u64, b: u64) -> u64 {
                if b == 0 { a } else { gcd(b, a % b) }
            }
            let divisor = weights.iter().fold(0, |d, &w| gcd(d, w.into()));

            for (&weight, &slots) in weights.iter().zip(&slots) {
                prop_assert!(slots >= 1);
                if sum / divisor <= MAX_SLOTS as u64 {
                    prop_assert_eq!(slots * sum, u64::from(weight) * whole);
                } else {
                    // Scaled down: off by no more than a slot and what it gives to those that
                    // would have had less than one.
                    let exact = f64::from(weight) * MAX_SLOTS as f64 / sum as f64;
                    let slack = 1.0 + exact * weights.len() as f64 / MAX_SLOTS as f64 * 2.0;
                    prop_assert!((slots as f64 - exact).abs() <= slack, "{slots} for {exact}");
                }
            }
        }

        /// What is selected, counted I/O by I/O in every window: as `windows_are_within_the_bound`
        /// says, but with nothing clever, and by a cursor that starts in the middle. Once more
        /// after a path has failed and was reinstated.
        #[test]
        fn every_window_of_selections_is_within_the_bound(
            weights in vec(1u32..=12, 1..=6), start: prop::sample::Index,
            failed: prop::sample::Index,
        ) {
            let group = Group::new(&weights);
            let (_, bound) = schedule_and_bound(&weights);
            let slots = slot_counts(&weights);
            let whole = group.order.len() as i64;
            group.cursor.set(start.index(group.order.len()) as u32);

            for round in 0..2 {
                let chosen: Vec<usize> =
                    (0..2 * whole + 1).map(|_| group.select().unwrap()).collect();
                for (i, &slots) in slots.iter().enumerate() {
                    for from in 0..chosen.len() {
                        let mut off = 0;
                        for &path in &chosen[from..] {
                            off += if path == i { whole } else { 0 } - slots as i64;
                            prop_assert!(
                                off.abs() <= i64::from(bound),
                                "round {round}: path {i} is {off}/{whole} from its share"
                            );
                        }
                    }
                }
                let failed = failed.index(weights.len());
                group.in_service(|path| path != failed);
                for _ in 0..failed {
                    group.select();
                }
                group.in_service(|_| true);
            }
        }

        /// Failed paths get nothing, the others share in proportion to their weights, in the same
        /// order as before.
        #[test]
        fn the_others_share_what_a_failed_path_leaves(
            weights in vec(1u32..=20, 1..=16), failed: u16, start: prop::sample::Index,
        ) {
            let group = Group::new(&weights);
            let works = |path: usize| failed & 1 << path == 0;
            let left: Vec<usize> =
                group.order.iter().map(|&p| usize::from(p)).filter(|&p| works(p)).collect();
            group.in_service(works);
            group.cursor.set(start.index(group.order.len()) as u32);

            if left.is_empty() {
                prop_assert_eq!(group.select(), None);
                group.in_service(|_| true);
                prop_assert!(group.select().is_some());
                return Ok(());
            }
            let chosen: Vec<usize> = (0..2 * left.len()).map(|_| group.select().unwrap()).collect();
            prop_assert!(
                (0..left.len()).any(|turn| {
                    chosen.iter().eq(left.iter().cycle().skip(turn).take(chosen.len()))
                }),
                "{chosen:?} does not rotate over {left:?}"
            );
        }

        /// How far windows can be off while paths have failed: a path's own bound, and its part of
        /// what those that have failed are off themselves.
        #[test]
        fn windows_with_failed_paths_are_within_what_the_failed_ones_add(
            weights in vec(1u32..=20, 2..=12), failed: u16,
        ) {
            let group = Group::new(&weights);
            let works = |path: usize| failed & 1 << path == 0;
            let slots = slot_counts(&weights);
            let worst = worst_windows(&group.order, weights.len());
            let whole = group.order.len() as f64;
            let paths = 0..weights.len();
            let left: u64 = paths.clone().filter(|&i| works(i)).map(|i| slots[i]).sum();
            let added: i64 = paths.clone().filter(|&i| !works(i)).map(|i| worst[i]).sum();

            group.in_service(works);
            let turns: Vec<u16> =
                (0..left).map(|_| group.select().unwrap() as u16).collect();
            let with_failed = worst_windows(&turns, weights.len());
            for i in paths.filter(|&i| works(i)) {
                let share = slots[i] as f64 / left as f64;
                let bound = (worst[i] as f64 + share * added as f64) / whole;
                let off = with_failed[i] as f64 / left as f64;
                prop_assert!(off <= bound + 1e-9, "path {i}: {off} > {bound}");
            }
        }

        /// Any sequence of failing, reinstating and selecting, against the plain rule.
        #[test]
        fn what_is_selected_is_always_in_service(
            weights in vec(1u32..=9, 1..=8), steps in vec((0usize..8, 0u8..4), 0..200),
        ) {
            let group = Group::new(&weights);
            let mut works = vec![true; weights.len()];
            for (path, step) in steps {
                if path < works.len() && step < 2 {
                    works[path] = step == 0;
                    group.in_service(|path| works[path]);
                }
                match group.select() {
                    Some(path) => prop_assert!(works[path]),
                    None => prop_assert!(!works.contains(&true)),
                }
            }
        }

        #[test]
        fn a_cursor_beyond_the_schedule_starts_anew(weights in vec(1u32..=9, 1..=8), at: u32) {
            let group = Group::new(&weights);
            group.cursor.set(at);
            group.select();
            prop_assert!(group.select().is_some());
            prop_assert!((group.cursor.get() as usize) < group.order.len());
        }
    }

    /// Two sections, of two nodes, of which each is near to one path, and a third path that is as
    /// far from both.
    #[test]
    fn a_cursor_stays_in_its_section() {
        let weights = [3, 3, 1];
        let mut jobs = vec![Job::default(); 3];
        let whole = share_out(&weights, &mut jobs);
        let mut order = vec![0; whole];
        make_schedule(&mut order, &mut jobs, Effort::Once);
        let hops: Vec<_> = (0..2 * whole).map(no_hop).collect();
        let distances = [[10, 21, 31], [21, 10, 31]];

        for works in 0..8 {
            let is_in_service = |path| works >> path & 1 == 1;
            for node in 0..2 {
                let least = nearest(&distances[node], is_in_service);
                let section = &hops[node * whole..][..whole];
                make_hops(&order, section, node * whole, |path| {
                    is_in_service(path) && Some(distances[node][path]) == least
                });
            }
            for node in 0..2 {
                let expected = [node, 1 - node, 2]
                    .into_iter()
                    .find(|&path| is_in_service(path));
                for begin in 0..whole {
                    let mut cursor = (node * whole + begin) as u32;
                    for _ in 0..2 * whole {
                        let (next, path) = select(&hops, cursor);
                        assert_eq!((path < MAX_PATHS).then_some(path), expected);
                        assert_eq!(next as usize / whole, node);
                        cursor = next;
                    }
                }
            }
        }
    }

    #[test]
    fn the_last_slot_of_the_last_section_is_reached() {
        let slots = MAX_SECTIONS * MAX_SLOTS;
        let hops: Vec<_> = (0..slots).map(no_hop).collect();
        let begin = slots - 2;
        make_hops(&[7, 1023], &hops[begin..], begin, |_| true);
        assert_eq!(select(&hops, begin as u32), (begin as u32 + 1, 7));
        assert_eq!(select(&hops, begin as u32 + 1), (begin as u32, 1023));
    }

    #[test]
    fn a_group_without_paths_selects_nothing() {
        assert_eq!(Group::new(&[]).select(), None);
    }
}
