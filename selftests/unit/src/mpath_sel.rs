// SPDX-License-Identifier: GPL-2.0

//! Host tests of mpath-sel's decisions.

#[path = "../../../mpath-sel/rotation.rs"]
#[allow(dead_code)]
mod rotation;

/// What `mpath-sel/cell.rs` is in the kernel.
#[allow(dead_code)]
mod cell {
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
        rotation::{make_hops, make_schedule, select, share_out, Job},
    };

    /// The schedule for `weights`.
    pub(super) fn schedule(weights: &[u16]) -> Vec<u16> {
        let mut jobs = vec![Job::default(); weights.len()];
        let mut order = vec![0; share_out(weights, &mut jobs)];
        make_schedule(&mut order, &mut jobs);
        order
    }

    /// A priority group as `round_robin.rs` keeps it, with one cursor.
    pub(super) struct Group {
        pub(super) order: Vec<u16>,
        pub(super) hops: Vec<Cell>,
        pub(super) cursor: Cell,
    }

    impl Group {
        pub(super) fn new(weights: &[u16]) -> Self {
            let order = schedule(weights);
            let group = Group {
                hops: order.iter().map(|_| Cell::new(0)).collect(),
                order,
                cursor: Cell::new(0),
            };
            group.in_service(|_| true);
            group
        }

        pub(super) fn in_service(&self, is_in_service: impl Fn(usize) -> bool) {
            make_hops(&self.order, &self.hops, is_in_service);
        }

        pub(super) fn select(&self) -> Option<usize> {
            select(&self.hops, &self.cursor)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{
        cell::Cell,
        rotation::*,
        testing::{schedule, Group}, //
    };
    use proptest::{collection::vec, prelude::*};

    /// Weights of every kind: few and many paths, alike and far apart.
    fn weights() -> impl Strategy<Value = Vec<u16>> {
        prop_oneof![
            vec(1u16..=10, 1..=8),
            vec(1u16..=200, 1..=40),
            vec(1u16..=u16::MAX, 1..=4),
            (1u16..=100, 1usize..=MAX_PATHS).prop_map(|(w, n)| vec![w; n]),
            vec(
                prop_oneof![Just(1u16), Just(u16::MAX), 1..=u16::MAX],
                1..=MAX_PATHS
            ),
        ]
    }

    fn slot_counts(weights: &[u16]) -> Vec<u64> {
        let mut counts = vec![0u64; weights.len()];
        for path in schedule(weights) {
            counts[usize::from(path)] += 1;
        }
        counts
    }

    #[test]
    fn turns_are_spread_out() {
        assert_eq!(schedule(&[3, 1]), [0, 0, 1, 0]);
        assert_eq!(schedule(&[1, 1, 1]), [0, 1, 2]);
        assert_eq!(schedule(&[2, 2]), [0, 1]);
        assert_eq!(schedule(&[7]), [0]);
        assert_eq!(schedule(&[1, 2, 1]), [1, 0, 2, 1]);
        assert_eq!(schedule(&[5, 1, 1]), [0, 0, 1, 0, 0, 2, 0]);
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
            (0..MAX_PATHS).map(|i| 65535 - i as u16).collect(),
            (0..MAX_PATHS)
                .map(|i| if i == 0 { 65535 } else { 1 })
                .collect(),
        ] {
            let slots = schedule(&weights).len();
            assert!(slots <= MAX_SLOTS, "{slots} slots");
        }
    }

    proptest! {
        /// In every schedule, and so over any number of rounds of it from its start, a path is
        /// never further from its share than 1 - 1/(2n-2).
        #[test]
        fn no_path_is_a_turn_ahead_or_behind(weights in weights()) {
            let order = schedule(&weights);
            let slots = slot_counts(&weights);
            let whole = order.len() as i64;
            let n = weights.len() as i64;
            let bound = if n > 1 { 2 * (n - 1) - 1 } else { 0 };
            let mut had = vec![0i64; weights.len()];

            for (k, &path) in order.iter().enumerate() {
                prop_assert!(usize::from(path) < weights.len());
                had[usize::from(path)] += 1;
                // All paths for short schedules, else the one that has just changed and one more.
                let all = order.len() * weights.len() < 100_000;
                for i in 0..weights.len() {
                    if all || i == usize::from(path) || i == k % weights.len() {
                        let off = had[i] * whole - (k as i64 + 1) * slots[i] as i64;
                        prop_assert!(
                            off.abs() * 2 * (n - 1) <= bound * whole,
                            "path {i} is {off}/{whole} from its share after {} turns", k + 1
                        );
                    }
                }
            }
        }

        #[test]
        fn each_path_has_its_share_of_slots(weights in weights()) {
            let slots = slot_counts(&weights);
            let whole: u64 = slots.iter().sum();
            let sum: u64 = weights.iter().map(|&w| u64::from(w)).sum();
            let divides = |d: &u64| weights.iter().all(|&w| u64::from(w) % d == 0);
            let divisor = (1..=u64::from(weights[0])).rev().find(divides).unwrap();

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

        /// A window that starts anywhere, as that of a CPU whose cursor starts in the middle.
        #[test]
        fn any_window_is_less_than_two_turns_from_the_share(
            weights in vec(1u16..=20, 1..=8), start: prop::sample::Index, length in 1usize..300,
        ) {
            let group = Group::new(&weights);
            let slots = slot_counts(&weights);
            let whole = group.order.len() as i64;
            group.cursor.store(start.index(group.order.len()) as u32);

            let mut had = vec![0i64; weights.len()];
            for _ in 0..length {
                had[group.select().unwrap()] += 1;
            }
            for i in 0..weights.len() {
                let off = had[i] * whole - length as i64 * slots[i] as i64;
                let limit = if weights.len() > 2 { 2 * whole - 1 } else { whole };
                prop_assert!(off.abs() <= limit, "path {i} is {off}/{whole} from its share");
            }
        }

        /// Failed paths get nothing, the others share in proportion to their weights, in the same
        /// order as before.
        #[test]
        fn the_others_share_what_a_failed_path_leaves(
            weights in vec(1u16..=20, 1..=16), failed: u16, start: prop::sample::Index,
        ) {
            let group = Group::new(&weights);
            let works = |path: usize| failed & 1 << path == 0;
            let left: Vec<usize> =
                group.order.iter().map(|&p| usize::from(p)).filter(|&p| works(p)).collect();
            group.in_service(works);
            group.cursor.store(start.index(group.order.len()) as u32);

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

        /// Any sequence of failing, reinstating and selecting, against the plain rule.
        #[test]
        fn what_is_selected_is_always_in_service(
            weights in vec(1u16..=9, 1..=8), steps in vec((0usize..8, 0u8..4), 0..200),
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
        fn a_cursor_beyond_the_schedule_starts_anew(weights in vec(1u16..=9, 1..=8), at: u32) {
            let group = Group::new(&weights);
            group.cursor.store(at);
            prop_assert!(group.select().is_some());
            prop_assert!((group.cursor.load() as usize) < group.order.len());
        }
    }

    #[test]
    fn a_group_without_paths_selects_nothing() {
        assert_eq!(select(&[], &Cell::new(0)), None);
    }
}
