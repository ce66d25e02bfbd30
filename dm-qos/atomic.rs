// SPDX-License-Identifier: GPL-2.0

//! The atomic integer that the decision code stands on. `selftests/unit` has another one of the same
//! shape, by which loom drives that code through every interleaving.

use ferrule::atomic::ReadOnce;
use kernel::sync::atomic::{
    Atomic,
    Full,
    Relaxed,
    Release, //
};

pub(crate) use ferrule::compat::smp_mb;

/// A `u64` that is read and exchanged in one piece, and orders nothing else but where it says so.
pub(crate) struct AtomicU64(Atomic<u64>);

impl AtomicU64 {
    pub(crate) const fn new(value: u64) -> Self {
        Self(Atomic::new(value))
    }

    #[inline]
    pub(crate) fn load(&self) -> u64 {
        self.0.read_once()
    }

    #[inline]
    pub(crate) fn store(&self, value: u64) {
        self.0.store(value, Relaxed);
    }

    /// Stores `new` if the value is `old`; returns what the value is if not.
    #[inline]
    pub(crate) fn compare_exchange(&self, old: u64, new: u64) -> Result<u64, u64> {
        self.0.cmpxchg(old, new, Relaxed)
    }

    #[inline]
    pub(crate) fn add(&self, value: u64) {
        self.0.add(value, Relaxed);
    }

    #[inline]
    pub(crate) fn sub(&self, value: u64) {
        self.0.fetch_sub(value, Relaxed);
    }

    /// Loads; what comes after sees what was done before the value was released.
    #[inline]
    pub(crate) fn load_acquire(&self) -> u64 {
        self.0.read_acquire()
    }

    /// Stores, and releases what was done before.
    #[inline]
    pub(crate) fn store_release(&self, value: u64) {
        self.0.store(value, Release);
    }

    /// Subtracts, and releases what was done before.
    #[inline]
    pub(crate) fn sub_release(&self, value: u64) {
        self.0.fetch_sub(value, Release);
    }

    /// Subtracts, after all that the CPU did before and before all that it does after.
    #[inline]
    pub(crate) fn sub_full(&self, value: u64) {
        self.0.fetch_sub(value, Full);
    }
}
