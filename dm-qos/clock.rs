// SPDX-License-Identifier: GPL-2.0

//! The time, as exactly as it is needed.
//!
//! To read the clock is much of what an I/O costs that limits let pass. While none is near, it is enough
//! to know the time to a tick of the timer interrupt (`policy/coarse.rs`).

use super::policy::{
    coarse::Coarse,
    gcra::{
        Now,
        TICKS_PER_NS, //
    }, //
};
use ferrule::time::{
    jiffies,
    TICK_NSEC, //
};
use kernel::time::{
    Delta,
    Instant,
    Monotonic, //
};

/// When time begins: the same for all clocks of the module.
#[derive(Clone, Copy)]
pub(crate) struct Epoch(Instant<Monotonic>);

impl Epoch {
    pub(crate) fn now() -> Self {
        Self(Instant::now())
    }
}

/// A clock that began at 0.
pub(crate) struct Clock {
    epoch: Epoch,
    coarse: Coarse,
}

impl Clock {
    pub(crate) fn new(epoch: Epoch) -> Self {
        Self {
            epoch,
            coarse: Coarse::new(jiffies() as u64),
        }
    }

    /// Now, in ticks. Any context.
    #[inline]
    pub(crate) fn now(&self) -> u64 {
        (self.epoch.0.elapsed().as_nanos() as u64) * TICKS_PER_NS
    }

    /// Roughly now, for limits with this burst, in ticks. Any context.
    ///
    /// A tick of the timer interrupt must be well within the burst: else nearly nothing could be found to
    /// conform without knowing better.
    #[inline]
    pub(crate) fn roughly_now(&self, burst: u64) -> Now {
        if burst < 2 * TICK_NSEC * TICKS_PER_NS {
            return Now::at(self.now());
        }
        let jiffy = jiffies() as u64;
        match self.coarse.get(jiffy, TICK_NSEC * TICKS_PER_NS) {
            Some(now) => now,
            None => self.look(jiffy),
        }
    }

    #[cold]
    fn look(&self, jiffy: u64) -> Now {
        self.coarse.look(jiffy, || self.now())
    }

    /// A time of this clock, in nanoseconds after its beginning, as kernel timers know it.
    pub(crate) fn instant(&self, nanoseconds: u64) -> Instant<Monotonic> {
        self.epoch.0 + Delta::from_nanos(nanoseconds as i64)
    }
}
