// SPDX-License-Identifier: GPL-2.0

//! The time to a tick of the timer interrupt.
//!
//! The first who comes in a tick reads the clock. Whoever comes in the same one knows that it is not
//! earlier than that, and not later than a tick after.

use super::{
    atomic::AtomicU64,
    gcra::Now, //
};

/// See the module's description.
pub(crate) struct Coarse {
    /// When somebody looked last.
    seen: AtomicU64,
    /// The tick in which that was, or an earlier one.
    tick: AtomicU64,
}

impl Coarse {
    /// Nobody has looked yet, in this tick or before.
    pub(crate) fn new(tick: u64) -> Self {
        Self {
            seen: AtomicU64::new(0),
            tick: AtomicU64::new(tick.wrapping_sub(1)),
        }
    }

    /// The time in this tick, which is `length` long, if somebody has looked.
    #[inline]
    pub(crate) fn get(&self, tick: u64, length: u64) -> Option<Now> {
        // Pairs with the release in `look`: what is seen is not older than its tick.
        if self.tick.load_acquire() != tick {
            return None;
        }
        let seen = self.seen.load();
        Some(Now::between(seen, seen + length))
    }

    /// Looks: `now` tells the time. It was this tick, a moment ago or longer.
    pub(crate) fn look(&self, tick: u64, now: impl FnOnce() -> u64) -> Now {
        let seen = self.seen.load();
        let now = now();
        // Whoever was kept from this for long must not set it back.
        if self.seen.compare_exchange(seen, now).is_ok() {
            self.tick.store_release(tick);
        }
        Now::at(now)
    }
}
