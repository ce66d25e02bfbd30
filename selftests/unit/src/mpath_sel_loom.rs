// SPDX-License-Identifier: GPL-2.0

//! mpath-sel once more, on loom's atomics: every interleaving of selecting and failing.

#![cfg(test)]
#![allow(dead_code, clippy::duplicate_mod)]

#[path = "../../../mpath-sel/policy/rotation.rs"]
mod rotation;

/// What `mpath-sel/cell.rs` is in the kernel.
mod cell {
    use loom::sync::atomic::{AtomicU32, Ordering::Relaxed};

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

use cell::Cell;
use loom::{
    sync::{
        atomic::{AtomicU32, Ordering::Relaxed},
        Arc,
    },
    thread,
};
use rotation::{after_turn, make_hops, make_schedule, select, share_out, Effort, Job, MAX_PATHS};

/// A CPU's copy of a `PerCpuU32`. It is changed by this CPU's tasks and interrupts only, so threads
/// that share one stand for tasks that preempt each other at any point.
struct Cursor(AtomicU32);

impl Cursor {
    fn update<R>(&self, mut change: impl FnMut(u32) -> (u32, R)) -> R {
        let mut old = self.0.load(Relaxed);
        loop {
            let (new, result) = change(old);
            match self.0.compare_exchange(old, new, Relaxed, Relaxed) {
                Ok(_) => return result,
                Err(now) => old = now,
            }
        }
    }
}

/// A priority group as `round_robin.rs` keeps it, with two CPUs.
struct Group {
    order: Vec<u16>,
    hops: Vec<Cell>,
    cursors: [Cursor; 2],
    /// What the group has beside what is modelled: `destroy` takes it away.
    exists: loom::cell::Cell<bool>,
}

impl Group {
    fn new(weights: &[u32]) -> Self {
        let mut jobs = vec![Job::default(); weights.len()];
        let mut order = vec![0; share_out(weights, &mut jobs)];
        make_schedule(&mut order, &mut jobs, Effort::Search);
        let group = Group {
            hops: order.iter().map(|_| Cell::new(0)).collect(),
            order,
            cursors: [0, 1].map(|at| Cursor(AtomicU32::new(at))),
            exists: loom::cell::Cell::new(true),
        };
        group.in_service(|_| true);
        group
    }

    fn in_service(&self, is_in_service: impl Fn(usize) -> bool) {
        make_hops(&self.order, &self.hops, 0, is_in_service);
    }

    fn select(&self, cpu: usize) -> Option<usize> {
        assert!(self.exists.get());
        let path = self.cursors[cpu].update(|cursor| select(&self.hops, cursor));
        (path < MAX_PATHS).then_some(path)
    }

    /// As `keep_balance`, when a path has more in flight than all others.
    fn pass_over(&self, cpu: usize, full: usize) {
        assert!(self.exists.get());
        let cursor = self.cursors[cpu].0.load(Relaxed);
        if let Some(next) = after_turn(&self.hops, cursor, |path, _| path == full) {
            self.cursors[cpu].update(|now| (if now == cursor { next } else { now }, ()));
        }
    }
}

/// A path fails and is reinstated while others select: as `fail_path` against `select_path`.
#[test]
fn select_against_fail_and_reinstate() {
    loom::model(|| {
        let group = Arc::new(Group::new(&[1, 1, 1]));
        let selecting = {
            let group = group.clone();
            thread::spawn(move || {
                // Another path works all the time: there is always one to select.
                for _ in 0..2 {
                    assert!(group.select(1).is_some());
                }
            })
        };

        group.in_service(|path| path != 2);
        // Whoever selects after the failing does not get the path.
        for _ in 0..3 {
            assert_ne!(group.select(0), Some(2));
        }
        selecting.join().unwrap();
        assert_ne!(group.select(1), Some(2));

        group.in_service(|_| true);
        for cpu in 0..2 {
            let mut had: Vec<_> = (0..3).map(|_| group.select(cpu)).collect();
            had.sort();
            assert_eq!(had, [Some(0), Some(1), Some(2)]);
        }
    });
}

/// The last path fails while two others select, both on one CPU.
#[test]
fn select_against_all_paths_down() {
    loom::model(|| {
        let group = Arc::new(Group::new(&[1, 1]));
        group.in_service(|path| path == 1);
        let selecting: Vec<_> = (0..2)
            .map(|_| {
                let group = group.clone();
                thread::spawn(move || {
                    if let Some(path) = group.select(0) {
                        assert_eq!(path, 1);
                    }
                })
            })
            .collect();

        group.in_service(|_| false);
        assert_eq!(group.select(1), None);
        for thread in selecting {
            thread.join().unwrap();
        }
        assert_eq!(group.select(0), None);
    });
}

/// Tasks that preempt each other on one CPU: no turn is taken twice, none is left out.
#[test]
fn turns_of_a_cpu_are_given_once() {
    loom::model(|| {
        let group = Arc::new(Group::new(&[1, 1, 1]));
        let others: Vec<_> = (0..2)
            .map(|_| {
                let group = group.clone();
                thread::spawn(move || group.select(0).unwrap())
            })
            .collect();
        let mut had = vec![group.select(0).unwrap()];
        had.extend(others.into_iter().map(|thread| thread.join().unwrap()));
        had.sort();
        assert_eq!(had, [0, 1, 2]);
    });
}

/// An I/O ends on a CPU whose task is selecting: a turn is passed over once, or had just before.
#[test]
fn a_turn_is_passed_over_once() {
    loom::model(|| {
        let group = Arc::new(Group::new(&[1, 1, 1]));
        let ends: Vec<_> = (0..2)
            .map(|_| {
                let group = group.clone();
                thread::spawn(move || group.pass_over(0, 0))
            })
            .collect();
        let mut had = vec![group.select(0).unwrap()];
        for thread in ends {
            thread.join().unwrap();
        }
        had.extend((0..2).map(|_| group.select(0).unwrap()));
        assert!(had == [0, 1, 2] || had == [1, 2, 0]);
    });
}

/// Turns are passed over while the path of the next one fails and another is reinstated.
#[test]
fn passing_over_against_fail_and_reinstate() {
    loom::model(|| {
        let group = Arc::new(Group::new(&[1, 1, 1]));
        group.in_service(|path| path != 2);
        let ends = {
            let group = group.clone();
            thread::spawn(move || group.pass_over(0, 0))
        };
        group.in_service(|path| path != 1);
        ends.join().unwrap();
        let mut had: Vec<_> = (0..2).map(|_| group.select(0).unwrap()).collect();
        had.sort();
        assert_eq!(had, [0, 2]);
    });
}

/// The table is replaced and destroyed while others select and a path fails. What waits for them
/// is device mapper: it counts I/O in flight, and the end of one orders all that it did before
/// what sees it ended. With no less than that, nobody touches what is gone.
#[test]
fn destroy_after_the_last_io() {
    loom::model(|| {
        use loom::sync::atomic::Ordering::AcqRel;

        let group = Arc::new(Group::new(&[1, 1]));
        let in_flight = Arc::new(AtomicU32::new(2));
        let io = |cpu: usize| {
            let (group, in_flight) = (group.clone(), in_flight.clone());
            move || {
                // Mapped, and on one CPU ended by an error, for which its path fails.
                let path = group.select(cpu).unwrap();
                if cpu == 0 {
                    group.in_service(|other| other != path);
                }
                // The last one wakes up who waits to destroy. Loom reports it when any access
                // above is not ordered before this one.
                if in_flight.fetch_sub(1, AcqRel) == 1 {
                    group.exists.set(false);
                }
            }
        };
        let other = thread::spawn(io(1));
        io(0)();
        other.join().unwrap();
    });
}
