// SPDX-License-Identifier: GPL-2.0

//! Host tests of balloon's decisions and messages.

mod primitives {
    pub(crate) use std::sync::atomic::{fence, AtomicBool, Ordering};
}
#[path = "../../../balloon/policy/handover.rs"]
#[allow(dead_code)]
mod handover;
#[path = "../../../balloon/policy/message.rs"]
#[allow(dead_code)]
mod message;
#[path = "../../../balloon/policy/plan.rs"]
#[allow(dead_code)]
mod plan;
#[path = "balloon_store.rs"]
#[allow(dead_code)]
mod store;

#[cfg(test)]
mod tests {
    use super::{
        handover::{Idle, News, Next, Round, DONE, STOP},
        message::{Message, Pfns, Stats, STATS},
        plan::{
            block_order, Compaction, Harm, Memory, Plan, Shares, Step, Units, BATCH_UNITS,
            MIN_ORDER, RESERVE,
        },
        store::List,
    };
    use proptest::prelude::*;

    const MIB: u64 = 1 << 20;

    /// What a round of hints does with these commands, one after the other, as `Hints::obey` does it.
    fn round_of(commands: &[u32]) -> Vec<Next> {
        let (news, mut round) = (News::new(), Round::default());
        let mut did = Vec::new();
        for &command in commands {
            news.arrive();
            assert!(news.have_arrived());
            news.take(&mut round, || Ok::<_, ()>(command)).unwrap();
            assert!(!news.have_arrived());
            if round.next() == Next::End {
                round.ends();
                did.push(Next::End);
            }
            let next = round.next();
            if let Next::Begin(id) = next {
                round.begins(id);
                round.is_begun();
            }
            did.push(next);
        }
        did
    }

    #[test]
    fn hints_follow_the_commands_of_the_host() {
        use Next::{Begin, End, GiveBack, Nothing, Send};
        assert_eq!(round_of(&[STOP, 7, 7]), [Nothing, Begin(7), Send]);
        assert_eq!(
            round_of(&[7, STOP, STOP]),
            [Begin(7), End, Nothing, Nothing]
        );
        assert_eq!(
            round_of(&[7, DONE, DONE]),
            [Begin(7), End, GiveBack, GiveBack]
        );
        // Another id ends a round; that of the last round begins none.
        assert_eq!(round_of(&[7, 8]), [Begin(7), End, Begin(8)]);
        assert_eq!(round_of(&[7, STOP, 7]), [Begin(7), End, Nothing, Nothing]);
    }

    #[test]
    fn a_command_that_cannot_be_read_changes_nothing() {
        let (news, mut round) = (News::new(), Round::default());
        news.arrive();
        assert_eq!(news.take(&mut round, || Err(5)), Err(5));
        assert_eq!(round.next(), Next::Nothing);
        // It is not read again until there is another.
        assert_eq!(news.take(&mut round, || Err(6)), Ok(()));
    }

    #[test]
    fn a_message_of_a_queue_of_before_is_one_too_many() {
        let mut idle = Idle::new();
        assert!(idle.is_complete());
        idle.blocks = List::with_capacity(1);
        idle.count = 1;
        assert!(!idle.is_complete());
        assert_eq!(idle.blocks.push(1), None);
        assert!(idle.is_complete());
        assert_eq!(idle.blocks.push(2), Some(2));
        assert_eq!(idle.blocks.pop(), Some(1));
    }

    #[test]
    fn a_unit_is_a_page_of_4_kib() {
        let units = Units::new(12);
        assert_eq!(units.batch_pages(), 256);
        assert_eq!(units.target_pages(131072), 131072);
        assert_eq!(units.in_units(131072), 131072);
        assert_eq!(
            units.of_page(0x12345).unwrap().collect::<Vec<_>>(),
            [0x12345]
        );
    }

    #[test]
    fn blocks_are_neither_too_large_nor_too_small() {
        let least = 1 << MIN_ORDER;
        assert_eq!(block_order(0, MIN_ORDER, 10), None);
        assert_eq!(block_order(least - 1, MIN_ORDER, 10), None);
        assert_eq!(block_order(least, MIN_ORDER, 10), Some(MIN_ORDER));
        assert_eq!(block_order(1023, MIN_ORDER, 10), Some(9));
        assert_eq!(block_order(1024, MIN_ORDER, 10), Some(10));
        assert_eq!(block_order(usize::MAX, MIN_ORDER, 10), Some(10));
        assert_eq!(block_order(511, 9, 10), None);
        assert_eq!(block_order(usize::MAX, 9, 8), None);
    }

    #[test]
    fn a_page_of_64_kib_is_16_units() {
        let units = Units::new(16);
        assert_eq!(units.batch_pages(), 16);
        assert_eq!(units.target_pages(1), 1);
        assert_eq!(units.target_pages(16), 1);
        assert_eq!(units.target_pages(17), 2);
        assert_eq!(units.in_units(2), 32);
        assert_eq!(
            units.of_page(3).unwrap().collect::<Vec<_>>(),
            (48..64).collect::<Vec<_>>()
        );
    }

    #[test]
    fn page_frames_beyond_the_protocol_are_refused() {
        assert!(Units::new(12).of_page(u64::from(u32::MAX)).is_some());
        assert!(Units::new(12).of_page(1 << 32).is_none());
        assert!(Units::new(16).of_page((1 << 28) - 1).is_some());
        assert!(Units::new(16).of_page(1 << 28).is_none());
        assert!(Units::new(16).of_page(u64::MAX).is_none());
    }

    #[test]
    fn a_size_too_large_to_be_told_is_told_as_the_largest() {
        assert_eq!(Units::new(12).in_units(u64::MAX), u32::MAX);
        assert_eq!(Units::new(16).in_units(1 << 28), u32::MAX);
        assert_eq!(Units::new(16).in_units((1 << 28) - 1), u32::MAX - 15);
    }

    /// What a guest with so much available would be told to do by a host that wants everything.
    fn grow(plan: &mut Plan, available: u64, total: u64) -> Step {
        let memory = Memory {
            available,
            total,
            spare: available,
        };
        plan.next(u64::MAX, 0, memory, QUIET, 12)
    }

    /// Nothing happens.
    const QUIET: (u64, Harm) = (
        0,
        Harm {
            refaulted: 0,
            swapped: 0,
        },
    );

    #[test]
    fn the_guest_keeps_a_reserve() {
        let gib = 1024 * MIB;
        let plan = || Plan::new(0, false);
        assert_eq!(grow(&mut plan(), RESERVE, gib), Step::Wait);
        assert_eq!(grow(&mut plan(), RESERVE - 1, gib), Step::Wait);
        assert_eq!(grow(&mut plan(), RESERVE + 4096, gib), Step::Inflate(1));
        // An eighth of a small guest.
        assert_eq!(grow(&mut plan(), 16 * MIB, 128 * MIB), Step::Wait);
        assert_eq!(grow(&mut plan(), 17 * MIB, 128 * MIB), Step::Inflate(256));
        assert_eq!(grow(&mut plan(), 0, 0), Step::Wait);
        // What was asked for, however large.
        let mut plan = Plan::new(512, false);
        assert_eq!(grow(&mut plan, 512 * MIB, gib), Step::Wait);
        assert_eq!(plan.reserve(gib), 512 * MIB);
    }

    #[test]
    fn the_balloon_shrinks_only_if_it_may() {
        let low = Memory {
            available: 10 * MIB,
            total: 1024 * MIB,
            spare: 0,
        };
        for (min_available_mb, may_shrink, shrinks) in [
            (0, false, false),
            (0, true, true),
            (64, false, true),
            (64, true, true),
        ] {
            let mut plan = Plan::new(min_available_mb, may_shrink);
            assert_eq!(plan.gives_back(), shrinks);
            let step = plan.next(1 << 17, 1 << 17, low, QUIET, 12);
            // To 64 MiB and an eighth.
            let pages = (72 - 10) * 256;
            assert_eq!(
                step,
                if shrinks {
                    Step::Deflate(pages)
                } else {
                    Step::Rest
                }
            );
            // No more than there is.
            if shrinks {
                assert_eq!(plan.next(1 << 17, 100, low, QUIET, 12), Step::Deflate(100));
            }
            // As far as the host wants, if that is further.
            assert_eq!(
                plan.next(0, 1 << 17, low, QUIET, 12),
                Step::Deflate(1 << 17)
            );
        }
    }

    #[test]
    fn the_balloon_does_not_come_back_at_once() {
        let gib = 1024 * MIB;
        let mut plan = Plan::new(0, false);
        plan.is_short_of_memory();
        assert_eq!(grow(&mut plan, RESERVE + 10 * MIB, gib), Step::Wait);
        assert_eq!(grow(&mut plan, RESERVE + 17 * MIB, gib), Step::Inflate(256));
        // It goes on down to the reserve.
        assert_eq!(
            grow(&mut plan, RESERVE + 16 * MIB, gib),
            Step::Inflate(16 * 256)
        );
    }

    /// A guest whose memory is page cache, and what becomes of it.
    struct Cached {
        plan: Plan,
        size: u64,
        now: u64,
        harm: Harm,
    }

    impl Cached {
        const TOTAL: u64 = 1024 * 256;

        fn new(may_shrink: bool) -> Self {
            Self {
                plan: Plan::new(0, may_shrink),
                size: 0,
                now: 1_000_000,
                harm: Harm {
                    refaulted: 7,
                    swapped: 9,
                },
            }
        }

        /// A step, and the time until the next one. `react` is told how much is taken, and does harm.
        fn step(&mut self, target: u64, react: impl FnOnce(u64, &mut Harm)) -> Step {
            let memory = Memory {
                available: (Self::TOTAL - self.size) << 12,
                total: Self::TOTAL << 12,
                spare: 0,
            };
            let step = self
                .plan
                .next(target, self.size, memory, (self.now, self.harm), 12);
            match step {
                Step::Reclaim(pages) => {
                    self.plan.has_reclaimed(pages);
                    self.size += pages;
                    self.now += 100;
                }
                Step::Look(time) | Step::Pause(time) => self.now += u64::from(time),
                Step::Deflate(pages) => self.size -= pages,
                _ => self.now += 1000,
            }
            react(self.size, &mut self.harm);
            step
        }
    }

    #[test]
    fn what_is_cached_once_goes() {
        let mut guest = Cached::new(false);
        let target = Cached::TOTAL - 128 * 256;
        let began = guest.now;
        // What the guest does of its own is seen first.
        assert_eq!(guest.step(target, |_, _| {}), Step::Look(500));
        while guest.size < target {
            let step = guest.step(target, |_, harm| harm.refaulted += 10);
            assert!(
                matches!(step, Step::Reclaim(_) | Step::Look(100)),
                "{step:?}"
            );
        }
        assert!(guest.now - began < 20_000);
        assert_eq!(guest.step(target, |_, _| {}), Step::Rest);
    }

    #[test]
    fn what_is_reclaimed_is_taken_by_huge_pages() {
        let mut guest = Cached::new(false);
        // Not a whole number of them.
        let target = Cached::TOTAL / 2 + 100;
        while guest.size < target {
            let left = target - guest.size;
            match guest.step(target, |_, _| {}) {
                Step::Look(_) => {}
                Step::Reclaim(pages) => assert!(pages % 512 == 0 || pages == left, "{pages}"),
                step => panic!("{step:?}"),
            }
        }
    }

    #[test]
    fn close_to_the_reserve_growth_is_slow() {
        let mut guest = Cached::new(false);
        let mut close = None;
        loop {
            let available = Cached::TOTAL - guest.size - (RESERVE >> 12);
            if available <= 32 * 256 {
                close.get_or_insert(guest.now);
            }
            match guest.step(Cached::TOTAL, |_, _| {}) {
                Step::Look(_) => {}
                Step::Reclaim(pages) => assert!(pages < available / 32 + 512 || pages <= 512),
                Step::Wait => break,
                step => panic!("{step:?}"),
            }
        }
        assert_eq!(guest.size, Cached::TOTAL - (RESERVE >> 12));
        // 1 MiB in 100 ms.
        assert!(guest.now - close.unwrap() > 30 * 100);
    }

    #[test]
    fn little_that_is_free_is_not_taken_in_small_pieces() {
        let memory = |spare| Memory {
            available: 512 * MIB,
            total: 1024 * MIB,
            spare,
        };
        let next = |target, spare| {
            let step = Plan::new(0, false).next(target, 0, memory(spare), QUIET, 12);
            matches!(step, Step::Inflate(_))
        };
        assert!(next(1 << 16, 4 * MIB));
        assert!(!next(1 << 16, 3 * MIB));
        // If it is all that is wanted.
        assert!(next(700, 3 * MIB));
    }

    #[test]
    fn memory_is_compacted_less_and_less_often_where_that_fails() {
        let mut compaction = Compaction::new();
        let mut smaller = Vec::new();
        for nth in 0..12 {
            // As long as more and more goes in smaller pieces.
            assert_eq!(compaction.wakes_kswapd(), (2..8).contains(&nth));
            compaction.has_ended(false, 512);
            smaller.push(compaction.smaller() / 512);
            compaction.took_smaller(compaction.smaller() / 2);
            assert_eq!(compaction.smaller() > 0, smaller.last() != Some(&0));
            compaction.took_smaller(usize::MAX);
            assert_eq!(compaction.smaller(), 0);
        }
        assert_eq!(smaller, [0, 0, 1, 2, 4, 8, 16, 32, 32, 32, 32, 32]);
        // Once it works, all is as before.
        compaction.has_ended(true, 512);
        assert!(!compaction.wakes_kswapd());
        compaction.has_ended(false, 512);
        assert_eq!(compaction.smaller(), 0);
    }

    #[test]
    fn a_guest_that_refaults_anyway_can_give() {
        let mut guest = Cached::new(true);
        let target = Cached::TOTAL / 2;
        for _ in 0..10_000 {
            // 4,000 pages a second.
            guest.harm.refaulted = guest.now * 4;
            guest.step(target, |_, _| {});
        }
        assert_eq!(guest.size, target);
    }

    #[test]
    fn growth_stops_while_the_guest_refaults() {
        for may_shrink in [false, true] {
            let mut guest = Cached::new(may_shrink);
            // It needs three quarters, all the time.
            let most = Cached::TOTAL / 4;
            let mut largest = 0;
            for _ in 0..2000 {
                guest.step(Cached::TOTAL, |size, harm| {
                    harm.refaulted += size.saturating_sub(most) / 4;
                });
                largest = largest.max(guest.size);
            }
            assert!(largest < most + most / 4, "{largest} of {most}");
            if may_shrink {
                assert!(guest.size < most + 1024, "{} of {most}", guest.size);
            }
        }
    }

    #[test]
    fn what_was_given_back_is_left_to_the_guest() {
        let mut guest = Cached::new(true);
        guest.step(Cached::TOTAL, |_, _| {});
        guest.step(Cached::TOTAL, |_, harm| harm.refaulted += 5000);
        assert!(matches!(
            guest.step(Cached::TOTAL, |_, _| {}),
            Step::Deflate(_)
        ));
        let memory = Memory {
            available: 512 * MIB,
            total: 1024 * MIB,
            spare: 100 * MIB,
        };
        let step = guest.plan.next(
            Cached::TOTAL,
            guest.size,
            memory,
            (guest.now, guest.harm),
            12,
        );
        assert_eq!(step, Step::Pause(1000));
        guest.now += 1000;
        let step = guest.plan.next(
            Cached::TOTAL,
            guest.size,
            memory,
            (guest.now, guest.harm),
            12,
        );
        assert_eq!(step, Step::Inflate(256));
    }

    #[test]
    fn growth_pauses_longer_and_longer_while_the_guest_swaps() {
        let mut guest = Cached::new(false);
        guest.step(Cached::TOTAL, |_, _| {});
        let mut pauses = Vec::new();
        let mut last = guest.now;
        while pauses.len() < 9 {
            let size = guest.size;
            let began = guest.now;
            // As much is swapped as is taken.
            guest.step(Cached::TOTAL, |new, harm| harm.swapped += (new - size) * 2);
            if guest.size > size {
                pauses.push((began - last) / 1000);
                last = began;
            }
        }
        assert_eq!(pauses, [0, 1, 2, 4, 8, 16, 32, 64, 64]);
        assert!(guest.size < 12_000, "{}", guest.size);
    }

    #[test]
    fn nodes_give_in_proportion() {
        let mut shares = Shares::new(1000, 400);
        assert_eq!([100, 300].map(|free| shares.next(free)), [250, 750]);
        let mut shares = Shares::new(10, 0);
        assert_eq!([0, 0].map(|free| shares.next(free)), [0, 0]);
    }

    #[test]
    fn a_message_takes_what_fits() {
        let mut message = Message::<10>::new();
        assert!(message.push([1, 2, 3, 4]));
        assert!(message.push([5, 6, 7, 8]));
        assert!(!message.push([9, 10, 11, 12]));
        assert_eq!(message.bytes(), [1, 2, 3, 4, 5, 6, 7, 8]);
        assert!(message.push([9, 10]));
        assert!(!message.push([11]));
        message.clear();
        assert_eq!(message.bytes(), []);
    }

    #[test]
    fn messages_have_room_for_a_batch_and_all_statistics() {
        let mut pfns = Pfns::new();
        assert!((0..BATCH_UNITS as u32).all(|pfn| pfns.push(pfn.to_le_bytes())));
        assert!(!pfns.push(0u32.to_le_bytes()));
        assert_eq!(pfns.bytes().len(), 1024);

        let mut stats = Stats::new();
        assert!((0..STATS).all(|_| stats.push([0; 10])));
        assert!(!stats.push([0; 10]));
    }

    proptest! {
        #[test]
        fn steps_lead_to_the_target(
            target in any::<u32>(),
            size in any::<u32>(),
            page_shift in 12u32..=16,
            failing in 0u64..64,
        ) {
            let units = Units::new(page_shift);
            let target = units.target_pages(target % (1 << 20));
            let mut size = u64::from(size % (1 << 20));
            let batch = units.batch_pages() as u64;
            let mut plan = Plan::new(0, false);
            let plenty = Memory { available: 1 << 50, total: 1 << 50, spare: 1 << 50 };
            let mut steps = 0u64;
            let least = size.abs_diff(target).div_ceil(batch);
            loop {
                let before = size.abs_diff(target);
                match plan.next(target, size, plenty, QUIET, page_shift) {
                    Step::Rest => break,
                    Step::Wait | Step::Look(_) | Step::Pause(_) | Step::Reclaim(_) => {
                        prop_assert!(false, "there is plenty")
                    }
                    Step::Inflate(pages) => {
                        prop_assert_eq!(pages, before);
                        size += pages.min(batch);
                    }
                    Step::Deflate(pages) => {
                        prop_assert_eq!(pages, before);
                        // A host may do less than it is asked for, but never overshoots.
                        size -= pages.min(batch).saturating_sub(failing % pages.min(batch));
                    }
                }
                prop_assert!(size.abs_diff(target) < before);
                steps += 1;
            }
            prop_assert_eq!(size, target);
            prop_assert!(steps >= least);
        }

        /// A guest whose use goes up and down, and a host that changes its mind: the balloon never
        /// leaves the way between where it is and the target, but for the guest's need.
        #[test]
        fn the_balloon_stays_between_the_host_and_the_guest(
            days in proptest::collection::vec((0u64..1024, 0u64..900, 1usize..40), 1..40),
            min_available_mb in prop::sample::select(vec![0u32, 100]),
            may_shrink in any::<bool>(),
        ) {
            let total = 1024 * 256;
            let mut plan = Plan::new(min_available_mb, may_shrink);
            let reserve = plan.reserve(total << 12) >> 12;
            let mut size = 0;
            for (target, used, steps) in days {
                let (target, used) = (target * 256, used * 256);
                let mut turns = 0;
                let mut last = Step::Rest;
                for _ in 0..steps {
                    let available = (total - size.min(total)).saturating_sub(used);
                    let available = available << 12;
                    let memory = Memory { available, total: total << 12, spare: available };
                    let available = available >> 12;
                    let step = plan.next(target, size, memory, QUIET, 12);
                    match step {
                        Step::Rest => prop_assert_eq!(size, target),
                        Step::Wait | Step::Look(_) | Step::Pause(_) | Step::Reclaim(_) => {}
                        Step::Inflate(pages) => {
                            prop_assert!(size + pages <= target);
                            prop_assert!(available - pages >= reserve);
                            size += pages.min(4096);
                        }
                        Step::Deflate(pages) => {
                            prop_assert!(pages <= size);
                            prop_assert!(
                                size - pages >= target || plan.gives_back() && available < reserve
                            );
                            size -= pages.min(4096);
                        }
                    }
                    turns += usize::from(matches!(
                        (last, step),
                        (Step::Inflate(_), Step::Deflate(_)) | (Step::Deflate(_), Step::Inflate(_))
                    ));
                    last = step;
                }
                // Nothing changes meanwhile, so it turns at most once.
                prop_assert!(turns <= 1, "{} turns", turns);
            }
        }

        #[test]
        fn shares_add_up(
            wanted in 0u64..1 << 20,
            free in proptest::collection::vec(0u64..1 << 36, 1..64),
        ) {
            let sum = free.iter().sum::<u64>();
            let mut shares = Shares::new(wanted, sum);
            let given: Vec<_> = free.iter().map(|&free| shares.next(free)).collect();
            prop_assert_eq!(given.iter().sum::<u64>(), if sum > 0 { wanted } else { 0 });
            for (&free, &share) in free.iter().zip(&given) {
                let exact = wanted as f64 * free as f64 / sum.max(1) as f64;
                prop_assert!((share as f64 - exact).abs() <= 1.001, "{} of {}", share, exact);
            }
            // More free than was counted.
            let mut shares = Shares::new(wanted, sum);
            let given: u64 = free.iter().map(|&free| shares.next(free * 2 + 1)).sum();
            prop_assert!(given <= wanted);
        }

        #[test]
        fn the_target_is_rounded_up_to_pages(target in any::<u32>(), page_shift in 12u32..=20) {
            let units = Units::new(page_shift);
            let per_page = 1u64 << (page_shift - 12);
            let pages = units.target_pages(target);
            prop_assert!(pages * per_page >= u64::from(target));
            prop_assert!(pages * per_page < u64::from(target) + per_page);
        }

        #[test]
        fn units_of_pages_do_not_overlap(pfn in any::<u32>(), page_shift in 12u32..=20) {
            let units = Units::new(page_shift);
            if let (Some(this), Some(next)) =
                (units.of_page(pfn.into()), units.of_page(u64::from(pfn) + 1))
            {
                let (this, next): (Vec<_>, Vec<_>) = (this.collect(), next.collect());
                prop_assert_eq!(this.len(), 1 << (page_shift - 12));
                prop_assert_eq!(this.last().unwrap() + 1, next[0]);
            }
        }
    }
}
