// SPDX-License-Identifier: GPL-2.0

//! dm-qos once more, on loom's atomics: every interleaving of charges on several CPUs.

#![cfg(test)]
#![allow(dead_code, clippy::duplicate_mod)]

use crate::{dm_qos::Direction, keys::declared as keys};

mod primitives {
    pub(crate) use loom::sync::atomic::{fence, AtomicU64, Ordering};
}
#[path = "atomic.rs"]
mod atomic;
#[path = "../../../dm-qos/policy/coarse.rs"]
mod coarse;
#[path = "../../../dm-qos/policy/gcra.rs"]
mod gcra;
#[path = "../../../dm-qos/policy/limits.rs"]
mod limits;
#[path = "../../../dm-qos/policy/room.rs"]
mod room;
#[path = "../../../dm-qos/policy/settings.rs"]
mod settings;
#[path = "../../../dm-qos/policy/waiting.rs"]
mod waiting;

mod tests {
    use super::{
        coarse::Coarse,
        gcra::{Now, TICKS_PER_S},
        limits::{Charge, Limits},
        room::Room,
        settings::Settings,
        waiting::Waiting,
        Direction::{Read, Write},
    };
    use loom::{
        cell::UnsafeCell,
        sync::{
            atomic::{AtomicU64, Ordering::AcqRel},
            Arc,
        },
        thread,
    };

    const IO: Charge = Charge {
        ios: 1,
        bytes: 4096,
    };

    fn limits(settings: &Settings) -> Arc<Limits> {
        let limits = Limits::new();
        limits.apply(settings, 0);
        Arc::new(limits)
    }

    #[test]
    fn no_more_pass_than_may() {
        // All that differ by at most three preemptions: all there are take minutes.
        let mut model = loom::model::Builder::new();
        model.preemption_bound = Some(3);
        model.check(|| {
            // Two of these pass at once.
            let limits = limits(&Settings {
                iops: 1000,
                burst_ms: 2,
                ..Settings::DEFAULT
            });
            let others: Vec<_> = (0..2)
                .map(|_| {
                    let limits = limits.clone();
                    thread::spawn(move || usize::from(limits.try_charge(limits.on(Read), IO, 0)))
                })
                .collect();
            let mut passed = usize::from(limits.try_charge(limits.on(Read), IO, 0));
            for other in others {
                passed += other.join().unwrap();
            }
            assert_eq!(passed, 2);
        });
    }

    #[test]
    fn a_refusal_leaves_no_charge_behind() {
        loom::model(|| {
            // In total two pass at once, but only one of them a write.
            let limits = limits(&Settings {
                iops: 500,
                write_iops: 250,
                burst_ms: 4,
                ..Settings::DEFAULT
            });
            let write = {
                let limits = limits.clone();
                thread::spawn(move || limits.try_charge(limits.on(Write), IO, 0))
            };
            let here = limits.try_charge(limits.on(Write), IO, 0);
            let there = write.join().unwrap();
            assert!(here != there, "one write passes, and not the other");
            // What the refused one may have taken from the total for a moment is back.
            assert!(limits.try_charge(limits.on(Read), IO, 0));
            assert!(!limits.try_charge(limits.on(Read), IO, 0));
        });
    }

    #[test]
    fn a_change_of_limits_loses_no_charge() {
        loom::model(|| {
            let now = TICKS_PER_S;
            let limits = limits(&Settings {
                iops: 500,
                burst_ms: 10,
                ..Settings::DEFAULT
            });
            let charge = {
                let limits = limits.clone();
                thread::spawn(move || limits.charge(Read, IO, now))
            };
            limits.apply(
                &Settings {
                    iops: 1000,
                    burst_ms: 10,
                    ..Settings::DEFAULT
                },
                now,
            );
            charge.join().unwrap();
            // There was credit for five, less one. What was reckoned at the old rate and charged at the new
            // one may be two.
            let passed = (0..20)
                .filter(|_| limits.try_charge(limits.on(Read), IO, now))
                .count();
            assert!((3..=4).contains(&passed), "{passed}");
        });
    }

    #[test]
    fn nobody_waits_for_room_that_there_is() {
        loom::model(|| {
            let room = Room::new();
            room.set_depth(1);
            assert!(room.enter());
            let room = Arc::new(room);
            let ender = {
                let room = room.clone();
                thread::spawn(move || room.leave())
            };
            let waits = !room.is_free();
            let wakes = ender.join().unwrap();
            assert!(!waits || wakes);
        });
    }

    #[test]
    fn no_more_are_in_flight_than_may_be() {
        loom::model(|| {
            let room = Room::new();
            room.set_depth(2);
            assert!(room.enter());
            let room = Arc::new(room);
            let other = {
                let room = room.clone();
                thread::spawn(move || usize::from(room.try_enter().is_some()))
            };
            let here = usize::from(room.try_enter().is_some());
            assert_eq!(here + other.join().unwrap(), 1);
            // And both may leave, and come back.
            room.leave();
            assert!(room.is_free() && room.try_enter() == Some(true) && !room.is_free());
        });
    }

    /// What a disk was given. Loom refuses to have it used by two at once.
    struct Disk(UnsafeCell<Vec<u32>>);

    // SAFETY: Loom checks each access.
    unsafe impl Sync for Disk {}

    impl Disk {
        fn submit(&self, bio: u32) {
            // SAFETY: As above.
            self.0.with_mut(|bios| unsafe { (*bios).push(bio) });
        }
    }

    #[test]
    fn nobody_overtakes_what_waited() {
        loom::model(|| {
            let waiting = Waiting::new();
            waiting.begin(Read, false);
            waiting.begin(Write, true);
            let disk = Disk(UnsafeCell::new(Vec::new()));
            let all = Arc::new((waiting, disk));
            let work = {
                let all = all.clone();
                thread::spawn(move || {
                    let (waiting, disk) = &*all;
                    waiting.take_out(true);
                    disk.submit(1);
                    disk.submit(2);
                    waiting.leave(Read, 1);
                    waiting.leave(Write, 1);
                })
            };
            let (waiting, disk) = &*all;
            // A write may pass when no write waits, or when nothing does.
            if waiting.of(Write) == 0 {
                disk.submit(3);
            }
            work.join().unwrap();
            assert!(waiting.is_empty() && !waiting.has_urgent());
            disk.submit(4);
        });
    }

    #[test]
    fn what_was_seen_is_not_older_than_its_tick() {
        loom::model(|| {
            let all = Arc::new((Coarse::new(0), AtomicU64::new(100)));
            let look = |all: &(Coarse, AtomicU64), tick| {
                let (coarse, clock) = all;
                let mut seen = 0;
                coarse.look(tick, || {
                    seen = clock.fetch_add(10, AcqRel);
                    seen
                });
                seen
            };
            let other = {
                let all = all.clone();
                thread::spawn(move || look(&all, 2))
            };
            let first = look(&all, 1);
            let here = all.0.get(2, 1000);
            let second = other.join().unwrap();
            // By who was in that tick, or who looked later still.
            let times = [second, first.max(second)];
            for now in [here, all.0.get(2, 1000)].into_iter().flatten() {
                assert!(times
                    .map(|time| Now::between(time, time + 1000))
                    .contains(&now));
            }
            // Nobody has looked in this one.
            assert!(all.0.get(3, 1000).is_none());
        });
    }
}
