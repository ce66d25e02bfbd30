// SPDX-License-Identifier: GPL-2.0

//! KUnit tests: messages as the kernel's compiler makes them for its own page size and byte order.
//! The many cases are in the host tests, `selftests/unit/src/balloon.rs`.

use kernel::prelude::*;

#[kunit_tests(ferrule_balloon)]
mod kunit {
    use crate::{
        policy::message::{
            Pfns,
            Stats,
            Tag,
            STATS,
            STAT_SIZE, //
        },
        policy::plan::{
            Harm,
            Memory,
            Plan,
            Step,
            Units,
            BATCH_UNITS,
            UNIT_SHIFT, //
        }, //
    };
    use ferrule::virtio::ByteOrder;
    use kernel::page::PAGE_SHIFT;

    #[test]
    fn a_batch_of_pages_fills_a_message() {
        let units = Units::new(PAGE_SHIFT as u32);
        let mut message = Pfns::new();
        for pfn in 0..units.batch_pages() as u64 {
            let fits = units
                .of_page(pfn)
                .map(|mut units| units.all(|unit| message.push(ByteOrder::Little.u32(unit))));
            assert_eq!(fits, Some(true));
        }
        assert_eq!(message.bytes().len(), BATCH_UNITS * 4);
        // The units are numbered through.
        assert_eq!(message.bytes()[..8], [0, 0, 0, 0, 1, 0, 0, 0]);
        assert_eq!(message.bytes()[1020..], [255, 0, 0, 0]);
    }

    #[test]
    fn a_target_of_one_mib_is_reached() {
        let units = Units::new(PAGE_SHIFT as u32);
        let target = units.target_pages(1 << (20 - UNIT_SHIFT));
        assert_eq!(target, 1 << (20 - PAGE_SHIFT));
        let mut plan = Plan::new(0, false);
        let memory = Memory {
            available: 1 << 30,
            total: 1 << 31,
            spare: 1 << 30,
        };
        let quiet = (0, Harm::default());
        let mut step = |size| plan.next(target, size, memory, quiet, PAGE_SHIFT as u32);
        assert_eq!(step(0), Step::Inflate(target));
        assert_eq!(step(target), Step::Rest);
        assert_eq!(units.in_units(target), 1 << (20 - UNIT_SHIFT));
    }

    #[test]
    fn statistics_have_no_gaps() {
        let mut message = Stats::new();
        let [a, b] = ByteOrder::Little.u16(Tag::DirectReclaims as u16);
        let [c, d, e, f, g, h, i, j] = ByteOrder::Little.u64(0x0102_0304_0506_0708);
        assert!(message.push([a, b, c, d, e, f, g, h, i, j]));
        assert_eq!(message.bytes(), [15, 0, 8, 7, 6, 5, 4, 3, 2, 1]);
        for _ in 1..STATS {
            assert!(message.push([0; STAT_SIZE]));
        }
        assert!(!message.push([0; STAT_SIZE]));
    }
}
