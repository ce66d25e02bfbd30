// SPDX-License-Identifier: GPL-2.0

//! What `dm-qos/atomic.rs` is in the kernel, on the `primitives` of whoever includes it: those of std or
//! of loom.

use super::primitives::{
    fence, AtomicU64 as Inner,
    Ordering::{Acquire, Relaxed, Release, SeqCst},
};

pub(crate) struct AtomicU64(Inner);

impl AtomicU64 {
    pub(crate) fn new(value: u64) -> Self {
        Self(Inner::new(value))
    }

    pub(crate) fn load(&self) -> u64 {
        self.0.load(Relaxed)
    }

    pub(crate) fn store(&self, value: u64) {
        self.0.store(value, Relaxed);
    }

    pub(crate) fn compare_exchange(&self, old: u64, new: u64) -> Result<u64, u64> {
        self.0.compare_exchange(old, new, Relaxed, Relaxed)
    }

    pub(crate) fn add(&self, value: u64) {
        self.0.fetch_add(value, Relaxed);
    }

    pub(crate) fn sub(&self, value: u64) {
        self.0.fetch_sub(value, Relaxed);
    }

    pub(crate) fn load_acquire(&self) -> u64 {
        self.0.load(Acquire)
    }

    pub(crate) fn store_release(&self, value: u64) {
        self.0.store(value, Release);
    }

    pub(crate) fn sub_release(&self, value: u64) {
        self.0.fetch_sub(value, Release);
    }

    pub(crate) fn sub_full(&self, value: u64) {
        fence(SeqCst);
        self.0.fetch_sub(value, Relaxed);
        fence(SeqCst);
    }
}

pub(crate) fn smp_mb() {
    fence(SeqCst);
}
