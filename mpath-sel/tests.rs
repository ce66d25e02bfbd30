// SPDX-License-Identifier: GPL-2.0

//! KUnit tests: the decisions as the kernel's compiler, atomics and arithmetic make them. The many
//! cases are in the host tests, `selftests/unit/src/mpath_sel.rs`.

use kernel::prelude::*;

#[kunit_tests(ferrule_round_robin)]
mod kunit {
    use crate::{
        cell::Cell,
        policy::rotation::*, //
    };
    use kernel::prelude::*;

    fn schedule(weights: &[u32]) -> Result<KVec<u16>> {
        let mut jobs = KVec::from_elem(Job::default(), weights.len(), GFP_KERNEL)?;
        let mut order = KVec::from_elem(0, share_out(weights, &mut jobs), GFP_KERNEL)?;
        make_schedule(&mut order, &mut jobs, Effort::Search);
        Ok(order)
    }

    #[test]
    fn turns_are_spread_out() -> Result {
        assert!(*schedule(&[3, 1])? == [0, 0, 1, 0]);
        assert!(*schedule(&[300, 100])? == [0, 0, 1, 0]);
        assert!(*schedule(&[5, 5, 5])? == [0, 1, 2]);
        assert!(*schedule(&[9])? == [0]);
        Ok(())
    }

    #[test]
    fn memory_is_bounded() -> Result {
        assert!(schedule(&[65535, 65534])?.len() <= MAX_SLOTS);

        let mut weights = KVec::from_elem(65535u32, MAX_PATHS, GFP_KERNEL)?;
        for (i, weight) in weights.iter_mut().enumerate() {
            *weight -= i as u32;
        }
        assert!(schedule(&weights)?.len() <= MAX_SLOTS);
        Ok(())
    }

    #[test]
    fn failed_paths_are_hopped_over() -> Result {
        let order = schedule(&[1, 2, 1])?;
        let hops = [0; 4].map(Cell::new);
        let mut cursor = 0;
        let mut turns = |number| {
            let mut had = [0; 3];
            for _ in 0..number {
                let (next, path) = select(&hops, cursor);
                cursor = next;
                match had.get_mut(path) {
                    Some(had) => *had += 1,
                    None => return None,
                }
            }
            Some(had)
        };

        make_hops(&order, &hops, 0, |path| path != 1);
        assert_eq!(turns(10), Some([5, 0, 5]));
        make_hops(&order, &hops, 0, |_| false);
        assert_eq!(turns(1), None);
        make_hops(&order, &hops, 0, |_| true);
        assert_eq!(turns(40), Some([10, 20, 10]));
        Ok(())
    }
}
