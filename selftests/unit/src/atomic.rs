// SPDX-License-Identifier: GPL-2.0

//! What `dm-qos/atomic.rs` is in the kernel.

use std::sync::atomic::{AtomicU64 as Inner, Ordering::Relaxed};

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
}
