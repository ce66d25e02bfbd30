// SPDX-License-Identifier: GPL-2.0

//! Host tests of balloon's decisions and messages.

#[path = "../../../balloon/message.rs"]
#[allow(dead_code)]
mod message;
#[path = "../../../balloon/plan.rs"]
#[allow(dead_code)]
mod plan;

#[cfg(test)]
mod tests {
    use super::{
        message::{Message, Pfns, Stats, STATS},
        plan::{block_order, next_step, room_pages, Step, Units, BATCH_UNITS, MIN_ORDER, RESERVE},
    };
    use proptest::prelude::*;

    const MIB: u64 = 1 << 20;

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
        assert_eq!(block_order(0, 10), None);
        assert_eq!(block_order(least - 1, 10), None);
        assert_eq!(block_order(least, 10), Some(MIN_ORDER));
        assert_eq!(block_order(1023, 10), Some(9));
        assert_eq!(block_order(1024, 10), Some(10));
        assert_eq!(block_order(usize::MAX, 10), Some(10));
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

    #[test]
    fn the_guest_keeps_a_reserve() {
        let gib = 1024 * MIB;
        assert_eq!(room_pages(RESERVE, gib, 12), 0);
        assert_eq!(room_pages(RESERVE - 1, gib, 12), 0);
        assert_eq!(room_pages(RESERVE + 4096, gib, 12), 1);
        // An eighth of a small guest.
        assert_eq!(room_pages(16 * MIB, 128 * MIB, 12), 0);
        assert_eq!(room_pages(17 * MIB, 128 * MIB, 12), 256);
        assert_eq!(room_pages(0, 0, 12), 0);
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
            failing in 0usize..64,
        ) {
            let units = Units::new(page_shift);
            let target = units.target_pages(target % (1 << 20));
            let mut size = u64::from(size % (1 << 20));
            let batch = units.batch_pages();
            let mut steps = 0u64;
            let least = size.abs_diff(target).div_ceil(batch as u64);
            loop {
                let before = size.abs_diff(target);
                match next_step(target, size, batch) {
                    Step::Rest => break,
                    Step::Inflate(pages) => {
                        prop_assert!((1..=batch).contains(&pages));
                        size += pages as u64;
                    }
                    Step::Deflate(pages) => {
                        prop_assert!((1..=batch).contains(&pages));
                        // A host may do less than it is asked for, but never overshoots.
                        size -= pages.saturating_sub(failing % pages) as u64;
                    }
                }
                prop_assert!(size.abs_diff(target) < before);
                steps += 1;
            }
            prop_assert_eq!(size, target);
            prop_assert!(steps >= least);
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

        #[test]
        fn room_never_eats_the_reserve(available in any::<u64>(), total in any::<u64>()) {
            let room = room_pages(available, total, 12) << 12;
            let reserve = RESERVE.min(total / 8);
            prop_assert!(room == 0 || available - room >= reserve);
        }
    }
}
