// SPDX-License-Identifier: GPL-2.0

//! How many I/Os may be in flight below, and whether anybody waits.
//!
//! Whether there is room is decided without a lock. That nobody waits for room that there is: who
//! waits says so first ([`Room::is_free`]), then looks once more; who makes room does that first
//! ([`Room::leave`]), then looks whether anybody waits.

use super::atomic::{
    smp_mb,
    AtomicU64, //
};

/// See the module's description.
pub(crate) struct Room {
    /// How many I/Os there may be. 0: any number.
    depth: AtomicU64,
    /// How many there are, of those that came while there was a depth.
    in_flight: AtomicU64,
    /// 1 while somebody waits, for room or for what comes with it.
    is_contended: AtomicU64,
}

impl Room {
    /// Without bounds.
    pub(crate) fn new() -> Self {
        Self {
            depth: AtomicU64::new(0),
            in_flight: AtomicU64::new(0),
            is_contended: AtomicU64::new(0),
        }
    }

    /// How many I/Os may be in flight from now on; 0: any number.
    pub(crate) fn set_depth(&self, depth: u64) {
        self.depth.store(depth);
    }

    /// Does anybody wait?
    #[inline]
    pub(crate) fn is_contended(&self) -> bool {
        self.is_contended.load() != 0
    }

    /// Says whether anybody waits. By one at a time.
    pub(crate) fn set_contended(&self, is_contended: bool) {
        self.is_contended.store(is_contended.into());
    }

    /// Takes room for an I/O if there is some. Says whether it is counted, and is to
    /// [leave](Self::leave).
    #[inline]
    pub(crate) fn try_enter(&self) -> Option<bool> {
        let depth = self.depth.load();
        if depth == 0 {
            return Some(false);
        }
        let mut in_flight = self.in_flight.load();
        while in_flight < depth {
            match self.in_flight.compare_exchange(in_flight, in_flight + 1) {
                Ok(_) => return Some(true),
                Err(current) => in_flight = current,
            }
        }
        None
    }

    /// Takes room for an I/O whether or not there is some. Says whether it is counted, and is to
    /// [leave](Self::leave).
    pub(crate) fn enter(&self) -> bool {
        let is_counted = self.depth.load() != 0;
        if is_counted {
            self.in_flight.add(1);
        }
        is_counted
    }

    /// An I/O that was counted has ended. Says whether anybody waits, who is to be woken.
    #[inline]
    pub(crate) fn leave(&self) -> bool {
        // Pairs with the barrier in `is_free`.
        self.in_flight.sub_full(1);
        self.is_contended()
    }

    /// Is there room? If not, whoever makes room is told that somebody waits. By one at a time.
    pub(crate) fn is_free(&self) -> bool {
        let is_free = || {
            let depth = self.depth.load();
            depth == 0 || self.in_flight.load() < depth
        };
        if is_free() {
            return true;
        }
        self.set_contended(true);
        // Pairs with the full ordering in `leave`.
        smp_mb();
        is_free()
    }
}
