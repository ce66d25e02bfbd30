// SPDX-License-Identifier: GPL-2.0

//! mpath-sel once more, on loom's atomics: every interleaving of selecting and failing.

#![cfg(test)]
#![allow(dead_code, clippy::duplicate_mod)]

#[path = "../../../mpath-sel/rotation.rs"]
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
use loom::{sync::Arc, thread};
use rotation::{make_hops, make_schedule, select, share_out, Job};

/// A priority group as `round_robin.rs` keeps it, with one cursor.
struct Group {
    order: Vec<u16>,
    hops: Vec<Cell>,
    cursor: Cell,
}

impl Group {
    fn new(weights: &[u16]) -> Self {
        let mut jobs = vec![Job::default(); weights.len()];
        let mut order = vec![0; share_out(weights, &mut jobs)];
        make_schedule(&mut order, &mut jobs);
        let group = Group {
            hops: order.iter().map(|_| Cell::new(0)).collect(),
            order,
            cursor: Cell::new(0),
        };
        group.in_service(|_| true);
        group
    }

    fn in_service(&self, is_in_service: impl Fn(usize) -> bool) {
        make_hops(&self.order, &self.hops, is_in_service);
    }

    fn select(&self) -> Option<usize> {
        select(&self.hops, &self.cursor)
    }
}

/// A path fails and is reinstated while others select: as `fail_path` against `select_path`.
#[test]
fn select_against_fail_and_reinstate() {
    loom::model(|| {
        let group = Arc::new(Group::new(&[1, 1, 1]));
        // The last slot is the first that is rewritten.
        group.cursor.store(1);
        let selecting = {
            let group = group.clone();
            thread::spawn(move || {
                // Another path works all the time: there is always one to select.
                for _ in 0..2 {
                    assert!(group.select().is_some());
                }
            })
        };

        group.in_service(|path| path != 2);
        // Whoever selects after the failing, by a cursor of its own, does not get the path.
        let cursor = Cell::new(2);
        for _ in 0..3 {
            assert_ne!(select(&group.hops, &cursor), Some(2));
        }
        selecting.join().unwrap();
        assert_ne!(group.select(), Some(2));

        group.in_service(|_| true);
        let mut had: Vec<_> = (0..3).map(|_| group.select()).collect();
        had.sort();
        assert_eq!(had, [Some(0), Some(1), Some(2)]);
    });
}

/// The last path fails while two others select, with one cursor between them.
#[test]
fn select_against_all_paths_down() {
    loom::model(|| {
        let group = Arc::new(Group::new(&[1, 1]));
        group.in_service(|path| path == 1);
        let selecting: Vec<_> = (0..2)
            .map(|_| {
                let group = group.clone();
                thread::spawn(move || {
                    if let Some(path) = group.select() {
                        assert_eq!(path, 1);
                    }
                })
            })
            .collect();

        group.in_service(|_| false);
        assert_eq!(group.select(), None);
        for thread in selecting {
            thread.join().unwrap();
        }
        assert_eq!(group.select(), None);
    });
}
