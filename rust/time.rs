// SPDX-License-Identifier: GPL-2.0

//! The time: in ticks of the timer interrupt, which costs next to nothing to tell, and exactly.
//!
//! C headers: [`include/linux/jiffies.h`](srctree/include/linux/jiffies.h),
//! [`include/linux/timekeeping.h`](srctree/include/linux/timekeeping.h)

use crate::bindings;

/// How long a tick is, in nanoseconds (`TICK_NSEC`).
pub const TICK_NSEC: u64 = bindings::NSEC_PER_SEC as u64 / bindings::CONFIG_HZ as u64;

/// How many ticks there were (`jiffies`). It wraps around. Any context.
#[inline]
pub fn jiffies() -> usize {
    // SAFETY: It is there as long as the kernel is, and may be read at any time.
    unsafe { (&raw const bindings::jiffies).read_volatile() }
}

/// The monotonic clock, in nanoseconds (`ktime_get_ns()`). Any context but NMIs.
#[inline]
pub fn now_ns() -> u64 {
    // SAFETY: It may be called at any time once there is a clock, which is before modules start.
    unsafe { bindings::ktime_get() as u64 }
}
