// SPDX-License-Identifier: GPL-2.0

//! Host tests of dm-qos: what it lets through, and when.

use crate::keys::declared as keys;

/// Which way the data of an I/O goes, as the kernel side has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    Read,
    Write,
}

mod primitives {
    pub(crate) use std::sync::atomic::{fence, AtomicU64, Ordering};
}
#[path = "atomic.rs"]
#[allow(dead_code)]
mod atomic;
#[path = "../../../dm-qos/policy/gcra.rs"]
#[allow(dead_code)]
pub(crate) mod gcra;
#[path = "../../../dm-qos/policy/histogram.rs"]
#[allow(dead_code)]
mod histogram;
#[path = "../../../dm-qos/policy/limits.rs"]
#[allow(dead_code)]
mod limits;
#[path = "../../../dm-qos/policy/room.rs"]
#[allow(dead_code)]
mod room;
#[path = "../../../dm-qos/policy/settings.rs"]
#[allow(dead_code)]
mod settings;
#[path = "../../../dm-qos/policy/turns.rs"]
#[allow(dead_code)]
mod turns;

#[cfg(test)]
mod tests {
    use super::{
        gcra::{Limit, Now, Rate, TICKS_PER_MS, TICKS_PER_NS, TICKS_PER_S, TICKS_PER_US},
        histogram::Histogram,
        keys::{parse, Name, Value},
        limits::{next, Charge, Choice, Limits, Next, Waiting, AHEAD, AHEAD_PART},
        room::Room,
        settings::{Settings, KEYS},
        turns::{Turns, FLOWS},
        Direction::{Read, Write},
    };
    use proptest::prelude::*;
    use std::collections::VecDeque;

    fn limits(change: impl FnOnce(&mut Settings)) -> Limits {
        let mut settings = Settings::DEFAULT;
        change(&mut settings);
        let limits = Limits::new();
        limits.apply(&settings, 0);
        limits
    }

    const fn io(bytes: u32) -> Charge {
        Charge { ios: 1, bytes }
    }

    #[test]
    fn a_depth_counts_from_when_it_is_set() {
        let room = Room::new();
        assert!(room.is_free());
        // Never to leave.
        assert_eq!(room.try_enter(), Some(false));
        assert!(!room.enter());
        room.set_depth(1);
        assert!(room.is_free());
        assert_eq!(room.try_enter(), Some(true));
        assert_eq!(room.try_enter(), None);
        assert!(!room.is_contended() && !room.is_free() && room.is_contended());
        // One more than may be, whatever comes.
        assert!(room.enter());
        assert!(room.leave() && !room.is_free());
        assert!(room.leave() && room.is_free());
        room.set_contended(false);
        assert_eq!(room.try_enter(), Some(true));
        assert!(!room.leave());
    }

    #[test]
    fn cost_is_exact_to_a_tick() {
        for rate in [
            1u64,
            3,
            7,
            100,
            1_000,
            30_000,
            999_983,
            100_000_000,
            1 << 40,
        ] {
            let limit = Limit::new();
            limit.change(Rate::new(rate), 0, 0);
            for units in [1u32, 2, 512, 4096, 65_536, 1 << 20, u32::MAX] {
                let exact = u128::from(TICKS_PER_S) * u128::from(units);
                let cost = u128::from(limit.cost(units));
                if exact / u128::from(rate) >= 1 << 61 {
                    // Longer than the clock runs.
                    assert!(cost >= 1 << 61, "{units} at {rate}");
                    continue;
                }
                // Half a tick for the last rounding, and what the first one may have come to.
                let error = cost.abs_diff(exact / u128::from(rate));
                assert!(
                    error <= 1 + u128::from(units >> 30),
                    "{units} at {rate}: {error}"
                );
            }
        }
    }

    #[test]
    fn no_limit_costs_nothing() {
        let limit = Limit::new();
        assert!(!limit.is_set());
        assert_eq!(limit.cost(u32::MAX), 0);
        let limits = limits(|_| ());
        assert!(limits.on(Read).is_empty() && limits.on(Write).is_empty() && !limits.are_shared());
        assert_eq!(limits.eligible(Read, io(1 << 30)), 0);
    }

    #[test]
    fn credit_is_what_the_burst_says() {
        // 10 ms at 1,000 a second are 10.
        let limits = limits(|s| s.iops = 1000);
        let now = TICKS_PER_S;
        let passed = (0..100)
            .filter(|_| limits.try_charge(limits.on(Read), io(4096), now))
            .count();
        assert_eq!(passed, 10);
        // The next comes a millisecond later, and no other with it.
        let later = now + TICKS_PER_MS;
        assert!(!limits.try_charge(limits.on(Read), io(4096), later - 1));
        assert!(limits.try_charge(limits.on(Read), io(4096), later));
        assert!(!limits.try_charge(limits.on(Read), io(4096), later));
    }

    #[test]
    fn credit_does_not_grow_beyond_the_burst() {
        let limits = limits(|s| s.iops = 1000);
        for now in [TICKS_PER_S, 3600 * TICKS_PER_S] {
            let passed = (0..100)
                .filter(|_| limits.try_charge(limits.on(Read), io(0), now))
                .count();
            assert_eq!(passed, 10);
        }
    }

    #[test]
    fn one_io_always_passes() {
        for burst_ms in [0, 10] {
            let limits = limits(|s| {
                s.bps = 1 << 20;
                s.iops = 5;
                s.burst_ms = burst_ms;
            });
            let big = io(16 << 20);
            assert!(limits.try_charge(limits.on(Write), big, TICKS_PER_S));
            assert!(!limits.try_charge(limits.on(Write), big, TICKS_PER_S));
            // It took 16 seconds.
            assert!(!limits.try_charge(limits.on(Write), big, 17 * TICKS_PER_S - 1));
            assert!(limits.try_charge(limits.on(Write), big, 17 * TICKS_PER_S));
        }
    }

    #[test]
    fn the_slowest_limit_governs() {
        let limits = limits(|s| {
            s.iops = 1000;
            s.write_iops = 100;
            s.bps = 1 << 30;
            s.burst_ms = 0;
        });
        assert!(limits.try_charge(limits.on(Write), io(4096), 0));
        assert_eq!(limits.eligible(Write, io(4096)), 10 * TICKS_PER_MS);
        assert_eq!(limits.eligible(Read, io(4096)), TICKS_PER_MS);
    }

    #[test]
    fn what_is_refused_is_not_charged() {
        let limits = limits(|s| {
            s.iops = 1000;
            s.write_bps = 1 << 20;
            s.burst_ms = 0;
        });
        assert!(limits.try_charge(limits.on(Write), io(1 << 20), 0));
        // Refused for its bytes: the I/Os in total are not touched.
        let before = limits.eligible(Read, io(0));
        assert!(!limits.try_charge(limits.on(Write), io(4096), TICKS_PER_MS));
        assert_eq!(limits.eligible(Read, io(0)), before);
    }

    #[test]
    fn an_io_that_carries_nothing_waits_for_no_bytes() {
        let limits = limits(|s| s.bps = 1);
        assert!(limits.try_charge(limits.on(Write), io(1000), 0));
        assert!(limits.try_charge(limits.on(Write), io(0), 0));
    }

    #[test]
    fn being_late_costs_nothing() {
        // Each release comes 3 ms late; the rate holds all the same.
        for burst_ms in [0, 10] {
            let limits = limits(|s| {
                s.iops = 100;
                s.burst_ms = burst_ms;
            });
            let late = 3 * TICKS_PER_MS;
            let mut passed = 0;
            loop {
                let due = limits.eligible(Read, io(0));
                let now = due + late;
                if now > 5 * TICKS_PER_S {
                    break;
                }
                limits.charge_held(Read, io(0), due, now);
                passed += 1;
            }
            assert!((500..=501).contains(&passed), "{passed}");
        }
    }

    #[test]
    fn a_stall_is_made_up_for_up_to_the_burst() {
        for (burst_ms, expected) in [(0, 2), (10, 11), (500, 501)] {
            let limits = limits(|s| {
                s.iops = 1000;
                s.burst_ms = burst_ms;
            });
            // The credit is used up; then everything stands still for 10 s.
            for _ in 0..burst_ms.max(1) {
                limits.charge(Read, io(0), 0);
            }
            let now = 10 * TICKS_PER_S;
            let mut passed = 0;
            loop {
                let due = limits.eligible(Read, io(0));
                if due > now {
                    break;
                }
                limits.charge_held(Read, io(0), due, now);
                passed += 1;
            }
            assert_eq!(passed, expected, "with {burst_ms} ms");
        }
    }

    #[test]
    fn large_ios_count_as_several() {
        let limits = limits(|s| {
            s.iops = 1000;
            s.io_size = 4096;
            s.burst_ms = 0;
        });
        for (bytes, ios) in [(0, 1), (512, 1), (4096, 1), (4097, 2), (13_107, 4)] {
            assert_eq!(limits.count(io(bytes)), ios, "{bytes}");
        }
        // Split by the device into more than its size would make of it.
        let split = Charge {
            ios: 9,
            bytes: 8192,
        };
        assert_eq!(limits.count(split), 9);
        assert!(limits.try_charge(limits.on(Read), io(13_107), 0));
        assert_eq!(limits.eligible(Read, io(1)), 4 * TICKS_PER_MS);
    }

    #[test]
    fn a_refund_is_all_of_it() {
        let limits = limits(|s| {
            s.iops = 1000;
            s.write_bps = 1 << 20;
            s.burst_ms = 0;
        });
        limits.charge(Write, io(4096), TICKS_PER_S);
        let before = limits.eligible(Write, io(4096));
        limits.charge(Write, io(65_536), TICKS_PER_S);
        limits.refund(limits.on(Write), io(65_536));
        assert_eq!(limits.eligible(Write, io(4096)), before);
    }

    #[test]
    fn a_new_limit_goes_on_with_what_is_owed() {
        let limits = limits(|s| s.bps = 1);
        limits.charge(Read, io(1 << 20), 0);
        assert!(limits.eligible(Read, io(4096)) > 1_000_000 * TICKS_PER_S);
        let mut settings = Settings::DEFAULT;
        settings.bps = 1 << 20;
        limits.apply(&settings, 0);
        // A second's worth, but for the burst.
        assert_eq!(limits.eligible(Read, io(0)), 0);
        let due = limits.eligible(Read, io(1 << 16));
        assert!(due.abs_diff(TICKS_PER_S) <= 10 * TICKS_PER_MS, "{due}");
        // Off and on again is the same.
        settings.bps = 0;
        limits.apply(&settings, 0);
        settings.bps = 1 << 20;
        limits.apply(&settings, 0);
        assert_eq!(limits.eligible(Read, io(1 << 16)), due);
    }

    #[test]
    fn the_same_limit_again_changes_nothing() {
        let mut settings = Settings::DEFAULT;
        settings.bps = 256 << 10;
        settings.read_iops = 7;
        let limits = limits(|s| *s = settings.clone());
        limits.charge(Read, io(1 << 20), TICKS_PER_S);
        let due = limits.eligible(Read, io(4096));
        for _ in 0..1000 {
            limits.apply(&settings, TICKS_PER_S);
        }
        assert_eq!(limits.eligible(Read, io(4096)), due);
        // Another one changes nothing of these.
        settings.write_bps = 1;
        limits.apply(&settings, TICKS_PER_S);
        assert_eq!(limits.eligible(Read, io(4096)), due);
    }

    #[test]
    fn another_table_goes_on_where_one_was() {
        let before = limits(|s| s.iops = 10);
        before.charge(Read, Charge { ios: 20, bytes: 0 }, TICKS_PER_S);
        let after = limits(|s| s.iops = 20);
        after.go_on_from(&before, TICKS_PER_S);
        // 20 I/Os, at 20 a second now.
        let due = after.eligible(Read, io(0));
        assert!(due.abs_diff(2 * TICKS_PER_S) <= 10 * TICKS_PER_MS, "{due}");
        // What has no limit goes on with none.
        let free = limits(|_| ());
        free.go_on_from(&before, TICKS_PER_S);
        assert_eq!(free.eligible(Read, io(0)), 0);
    }

    #[test]
    fn what_is_ahead_is_bounded() {
        let limits = limits(|s| s.iops = 20);
        let ahead = Limits::new();
        let mut settings = Settings::DEFAULT;
        settings.iops = 20;
        ahead.apply_ahead(&settings, 0);
        let mut passed = 0;
        let mut now = TICKS_PER_S;
        // A storm of ten seconds.
        for _ in 0..10_000 {
            now += TICKS_PER_MS;
            if ahead.try_charge(ahead.on(Write), io(0), now) {
                limits.charge(Write, io(0), now);
                passed += 1;
            }
            assert!(
                limits.debt(Write, now)
                    <= (AHEAD / AHEAD_PART).max(16 * TICKS_PER_S / 20) + TICKS_PER_S / 20
            );
        }
        // Half of the limit, and what may be ahead.
        assert!((100..=118).contains(&passed), "{passed}");
    }

    #[test]
    fn a_time_that_is_not_known_exactly_is_taken_on_the_safe_side() {
        let limits = limits(|s| {
            s.iops = 1_000;
            s.burst_ms = 10;
        });
        let on = limits.on(Read);
        // Charged as of 4 ms: by then 10 may have left, by 0 ms only 6 of them.
        let now = Now::between(0, 4 * TICKS_PER_MS);
        let passed = (0..20)
            .filter(|_| limits.try_charge(on, io(0), now))
            .count();
        assert_eq!(passed, 6);
        assert_eq!(limits.eligible(Read, io(0)), TICKS_PER_MS);
        // Larger than the burst: whether it may leave is not known.
        let limits = self::limits(|s| s.iops = 10);
        assert!(!limits.try_charge(limits.on(Read), io(0), Now::between(0, 1)));
        assert!(limits.try_charge(limits.on(Read), io(0), Now::at(1)));
    }

    #[test]
    fn every_flow_has_its_turn() {
        let mut turns = Turns::new();
        assert_eq!(turns.first(), None);
        turns.take(true);
        for flow in 0..FLOWS {
            turns.join(flow);
        }
        // Twice, all with more to come; then the last of each.
        for remains in [true, true, false] {
            for flow in 0..FLOWS {
                assert_eq!(turns.first(), Some(flow));
                turns.take(remains);
            }
        }
        assert_eq!(turns.first(), None);
    }

    fn ordinary(due: u64) -> Waiting {
        Waiting {
            ordinary: Some(due),
            urgent: None,
        }
    }

    const NOBODY: Waiting = Waiting {
        ordinary: None,
        urgent: None,
    };

    fn release(direction: super::Direction, due: u64) -> Next {
        Next::Release(Choice {
            direction,
            is_urgent: false,
            is_ahead: false,
            due,
        })
    }

    #[test]
    fn directions_take_turns() {
        let due = [ordinary(5), ordinary(3)];
        assert_eq!(next(due, Read, 10), release(Write, 3));
        assert_eq!(next(due, Write, 10), release(Read, 5));
        // The one that may not leave yet does not keep the other.
        assert_eq!(next(due, Write, 4), release(Write, 3));
        assert_eq!(next(due, Write, 2), Next::Wait(3));
        assert_eq!(next([ordinary(9), NOBODY], Read, 2), Next::Wait(9));
        assert_eq!(next([NOBODY, NOBODY], Read, 2), Next::Nothing);
    }

    #[test]
    fn the_urgent_and_the_ordinary_each_have_their_part() {
        let both = |limits, ahead| {
            [
                Waiting {
                    ordinary: Some(limits),
                    urgent: Some((limits, ahead)),
                },
                NOBODY,
            ]
        };
        let choice = |is_urgent, is_ahead, due| {
            Next::Release(Choice {
                direction: Read,
                is_urgent,
                is_ahead,
                due,
            })
        };
        // What is set apart for the urgent comes first, what the limits have is for the ordinary.
        assert_eq!(next(both(5, 5), Read, 10), choice(true, true, 5));
        assert_eq!(next(both(5, 20), Read, 10), choice(false, false, 5));
        assert_eq!(next(both(20, 5), Read, 10), choice(true, true, 5));
        assert_eq!(next(both(20, 30), Read, 10), Next::Wait(20));
        assert_eq!(next(both(30, 20), Read, 10), Next::Wait(20));
        // Alone, it has both, and the limits first.
        let alone = |limits, ahead| {
            [
                Waiting {
                    ordinary: None,
                    urgent: Some((limits, ahead)),
                },
                NOBODY,
            ]
        };
        assert_eq!(next(alone(5, 5), Read, 10), choice(true, false, 5));
        assert_eq!(next(alone(20, 5), Read, 10), choice(true, true, 5));
        assert_eq!(next(alone(20, 15), Read, 10), Next::Wait(15));
    }

    /// Every limit, burst and sequence of I/Os there is, of a small domain, against the definition: at
    /// no time more than the rate, the burst and one I/O, and as soon as that allows.
    #[test]
    fn every_sequence_of_a_small_domain() {
        const STEP: u64 = TICKS_PER_MS;
        for rate in [250u64, 500, 1000] {
            for burst in 0..4u64 {
                // Each of 8 steps has 0 to 3 units.
                for code in 0..4u32.pow(8) {
                    let limit = Limit::new();
                    limit.change(Rate::new(rate), burst * STEP, 0);
                    let cost = 1000 / rate;
                    // When what passed is paid for, in steps.
                    let mut due = 0;
                    for step in 0..8u64 {
                        let units = code >> (2 * step) & 3;
                        if units == 0 {
                            continue;
                        }
                        let now = 100 + step;
                        let price = cost * u64::from(units);
                        let start = due.max(now);
                        let may = start <= now + burst.saturating_sub(price);
                        let passed = limit.try_charge(limit.cost(units), now * STEP);
                        assert_eq!(passed, may, "{rate} {burst} {code:o} {step}");
                        if may {
                            due = start + price;
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn every_key_reads_what_it_sets() {
        for (index, key) in KEYS.iter().enumerate() {
            let mut settings = Settings::DEFAULT;
            match &key.value {
                Value::Number {
                    range, get, set, ..
                } => {
                    assert!(range.contains(&get(&settings)), "{}", key.name);
                    set(&mut settings, *range.end());
                    assert_eq!(get(&settings), *range.end(), "{}", key.name);
                }
                Value::Name { get, set } => {
                    let name = Name::new(b"gold").unwrap();
                    set(&mut settings, name);
                    assert_eq!(get(&settings), name);
                }
            }
            for (other, key) in KEYS.iter().enumerate() {
                let differs = key.differs(&settings, &Settings::DEFAULT);
                assert_eq!(differs, other == index, "{}", key.name);
            }
        }
    }

    #[test]
    fn settings_that_do_not_go_together_are_refused() {
        let check = |words: &str| {
            let mut settings = Settings::DEFAULT;
            parse(
                &KEYS,
                words.split_whitespace().map(str::as_bytes),
                &mut settings,
            )
            .unwrap();
            settings.check().map_err(|conflict| conflict.to_string())
        };
        for key in [
            "reserve_iops 1",
            "reserve_bps 1",
            "weight 1",
            "group_iops 1",
            "group_bps 1",
            "group_depth 1",
        ] {
            let name = key.split(' ').next().unwrap();
            assert_eq!(check(key), Err(format!("{name}: needs a group")));
            assert_eq!(check(&format!("group g {key}")), Ok(()));
        }
        assert_eq!(
            check("group g reserve_iops 11 iops 10"),
            Err("reserve_iops: \"11\" is more than iops 10".into())
        );
        assert_eq!(check("group g reserve_bps 10 bps 10"), Ok(()));
    }

    /// Tokens by the book: exact, in fractions of 1/rate.
    struct Bucket {
        rate: u128,
        depth: u128,
        tokens: i128,
        last: u128,
    }

    impl Bucket {
        /// Tokens times ticks per second, so that a tick brings `rate`.
        fn new(rate: u64, burst: u64) -> Self {
            let depth = u128::from(burst) * u128::from(rate);
            Self {
                rate: rate.into(),
                depth,
                tokens: depth as i128,
                last: 0,
            }
        }

        fn take(&mut self, units: u32, now: u64, slack: i128) -> (bool, bool) {
            let now = u128::from(now);
            self.tokens += ((now - self.last) * self.rate) as i128;
            self.last = now;
            let cost = (u128::from(units) * u128::from(TICKS_PER_S)) as i128;
            // An I/O larger than the bucket passes when the bucket is full.
            let full = self.depth as i128;
            self.tokens = self.tokens.min(full);
            let need = cost.min(full);
            (self.tokens >= need + slack, self.tokens >= need - slack)
        }

        fn pay(&mut self, units: u32) {
            self.tokens -= (u128::from(units) * u128::from(TICKS_PER_S)) as i128;
        }
    }

    proptest! {
        /// As a list of flows in the order of their turns, which is what it is.
        #[test]
        fn turns_are_those_of_a_list(
            steps in prop::collection::vec(prop_oneof![
                (0..FLOWS).prop_map(Some),
                Just(None),
            ], 1..300),
        ) {
            let (mut turns, mut list) = (Turns::new(), VecDeque::new());
            let mut waiting = [0; FLOWS];
            for step in steps {
                match step {
                    Some(flow) => {
                        if waiting[flow] == 0 {
                            turns.join(flow);
                            list.push_back(flow);
                        }
                        waiting[flow] += 1;
                    }
                    None => {
                        if let Some(flow) = list.pop_front() {
                            waiting[flow] -= 1;
                            turns.take(waiting[flow] != 0);
                            if waiting[flow] != 0 {
                                list.push_back(flow);
                            }
                        }
                    }
                }
                prop_assert_eq!(turns.first(), list.front().copied());
            }
        }

        /// The algorithm decides as a token bucket would, up to rounding.
        #[test]
        fn agrees_with_a_token_bucket(
            rate in prop_oneof![1u64..2000, 1u64..10_000_000_000],
            burst_us in 0u64..50_000,
            steps in prop::collection::vec((0u64..20_000_000, 1u32..70_000), 1..300),
        ) {
            let burst = burst_us * TICKS_PER_US;
            let limit = Limit::new();
            limit.change(Rate::new(rate), burst, 0);
            let mut bucket = Bucket::new(rate, burst);
            let mut now = 0;
            for (count, &(pause_ns, units)) in steps.iter().enumerate() {
                now += pause_ns * TICKS_PER_NS;
                // Each charge may be off by a tick.
                let slack = (count as i128 + 2) * i128::from(rate);
                let (surely, maybe) = bucket.take(units, now, slack);
                let passed = limit.try_charge(limit.cost(units), now);
                prop_assert!(passed || !surely, "refused what was paid for");
                prop_assert!(!passed || maybe, "passed what was not paid for");
                if passed {
                    bucket.pay(units);
                }
            }
        }

        /// However often a limit is changed among several: never more than by the largest of them.
        #[test]
        fn never_more_by_changing_limits(
            rates in prop::collection::vec(1u64..100_000, 2..4),
            burst_ms in prop::collection::vec(0u64..50, 2..4),
            steps in prop::collection::vec((0u64..3_000_000, 0usize..4, 1u32..100), 1..300),
        ) {
            let limits = Limits::new();
            let fastest = *rates.iter().max().unwrap();
            let longest = *burst_ms.iter().max().unwrap() * TICKS_PER_MS;
            let mut now = TICKS_PER_S;
            let (mut passed, mut last) = (0u64, 0u64);
            for (pause_ns, which, units) in steps {
                now += pause_ns * TICKS_PER_NS;
                let mut settings = Settings::DEFAULT;
                settings.iops = rates[which % rates.len()];
                settings.burst_ms = burst_ms[which % burst_ms.len()];
                limits.apply(&settings, now);
                let charge = Charge { ios: units, bytes: 0 };
                if limits.try_charge(limits.on(Read), charge, now) {
                    passed += u64::from(units);
                    last = u64::from(units);
                }
                // And the last one, which may be larger than the burst.
                let time = now - TICKS_PER_S + longest;
                let most = u128::from(time) * u128::from(fastest) / u128::from(TICKS_PER_S);
                prop_assert!(u128::from(passed - last) <= most + 2, "{} in {}", passed, time);
            }
        }

        /// There and back again is as before, but for what is rounded.
        #[test]
        fn a_limit_that_is_changed_back_is_as_before(
            one in 1u64..1_000_000,
            other in 1u64..1_000_000,
            owed in 0u32..100_000,
            burst_ms in 0u64..100,
        ) {
            let burst = burst_ms * TICKS_PER_MS;
            let now = 1_000 * TICKS_PER_S;
            let limit = Limit::new();
            limit.change(Rate::new(one), burst, now);
            limit.charge(limit.cost(owed), now);
            let due = limit.eligible(u64::MAX);
            limit.change(Rate::new(other), burst, now);
            limit.change(Rate::new(one), burst, now);
            let after = limit.eligible(u64::MAX);
            // Never earlier, for credit that there was no room for is lost.
            let error = 2 + other / one + one / other;
            prop_assert!(after + error >= due, "{} {}", due, after);
            if due >= now + burst {
                prop_assert!(after <= due + error);
            }
        }

        /// Whatever comes: within any time, no more than the rate, the burst and one I/O.
        #[test]
        fn never_more_than_the_rate_and_the_burst(
            iops in 1u64..100_000,
            burst_ms in 0u64..100,
            pauses in prop::collection::vec(0u64..3_000_000, 1..200),
        ) {
            let limits = limits(|s| { s.iops = iops; s.burst_ms = burst_ms; });
            let mut passed = Vec::new();
            let mut now = TICKS_PER_S;
            for pause_ns in pauses {
                now += pause_ns * TICKS_PER_NS;
                if limits.try_charge(limits.on(Read), io(0), now) {
                    passed.push(now);
                }
            }
            for (first, &from) in passed.iter().enumerate() {
                for (last, &to) in passed.iter().enumerate().skip(first) {
                    let time = to - from + burst_ms * TICKS_PER_MS;
                    let most = u128::from(time) * u128::from(iops) / u128::from(TICKS_PER_S) + 2;
                    prop_assert!((last - first + 1) as u128 <= most);
                }
            }
        }

        /// Backlogged, the rate is met to within one I/O, whatever the mix of sizes and however late
        /// releases are, as long as that is less than the burst.
        #[test]
        fn backlog_leaves_at_the_rate(
            bps in (64u64 << 10)..(1 << 34),
            sizes in prop::collection::vec(1u32..257, 1..20),
            late_us in 0u64..100_000,
        ) {
            let limits = limits(|s| { s.write_bps = bps; s.burst_ms = 100; });
            let (mut bytes, mut count) = (0u64, 0u64);
            // All credit is used up.
            limits.charge(Write, io((bps / 10) as u32), TICKS_PER_S);
            let before = limits.eligible(Write, io(1));
            let end = 6 * TICKS_PER_S;
            for size in sizes.iter().cycle().take(2_000) {
                let charge = io(size * 4096);
                let eligible = limits.eligible(Write, charge);
                if eligible > end {
                    break;
                }
                let now = eligible + late_us * TICKS_PER_US;
                limits.charge_held(Write, charge, eligible, now);
                bytes += u64::from(charge.bytes);
                count += 1;
            }
            // The time at which the last one is paid for, from the bytes alone.
            let paid = limits.eligible(Write, io(1)) - before;
            let expected = u128::from(bytes) * u128::from(TICKS_PER_S) / u128::from(bps);
            prop_assert!(u128::from(paid).abs_diff(expected) <= u128::from(count) + 1);
        }

        #[test]
        fn percentiles_are_within_a_sixteenth(
            mut values in prop::collection::vec(
                prop_oneof![0u64..100, 0u64..100_000, 0u64..(1 << 32)], 1..500,
            ),
        ) {
            let mut histogram = Histogram::new();
            for &value in &values {
                histogram.record(value);
            }
            values.sort_unstable();
            let summary = histogram.summary();
            prop_assert_eq!(summary.count, values.len() as u64);
            prop_assert_eq!(summary.max, values[values.len() - 1]);
            prop_assert_eq!(summary.mean, values.iter().sum::<u64>() / values.len() as u64);
            for (percent, found) in [(50, summary.p50), (99, summary.p99)] {
                let exact = values[(values.len() * percent).div_ceil(100) - 1];
                prop_assert!(found.abs_diff(exact) <= exact / 16, "p{percent}: {found}, {exact}");
            }
        }
    }

    #[test]
    fn an_empty_histogram_says_nothing() {
        let mut histogram = Histogram::new();
        assert_eq!(histogram.summary(), Default::default());
        histogram.record(u64::MAX);
        assert_eq!(histogram.summary().max, u64::MAX);
        histogram.clear();
        assert_eq!(histogram.summary(), Default::default());
    }
}
