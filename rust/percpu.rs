// SPDX-License-Identifier: GPL-2.0

//! Counters that each CPU has a copy of, so that counting costs no shared cache line.
//!
//! 1. Make a [`PerCpuCounters`] with as many counters as there are things to count.
//! 2. [`add`](PerCpuCounters::add) from anywhere: it disables nothing and never waits.
//! 3. [`sum`](PerCpuCounters::sum) when somebody asks.
//!
//! | here | C |
//! | --- | --- |
//! | [`PerCpuCounters::new`], drop | `alloc_percpu()`, `free_percpu()` |
//! | [`PerCpuCounters::add`], [`add_two`](PerCpuCounters::add_two) | `this_cpu_add()` |
//! | [`PerCpuCounters::add_return`] | `this_cpu_add_return()` |
//! | [`PerCpuCounters::sum`] | `for_each_possible_cpu(cpu) sum += *per_cpu_ptr(p, cpu)` |
//!
//! Other than in C there is no way to a plain reference to a CPU's copy: every access is one of these
//! operations, which an interrupt or a migration to another CPU cannot tear.
//!
//! C header: [`include/linux/percpu.h`](srctree/include/linux/percpu.h)

use crate::bindings;
use core::ptr::NonNull;
use kernel::prelude::*;

/// `N` counters per CPU, zero at first. They wrap around.
///
/// # Invariants
///
/// `counters` points to `N` per-CPU `u64`, allocated by `ferrule_alloc_percpu_u64()`, which are
/// accessed by this-CPU operations and, to be summed up, read.
pub struct PerCpuCounters<const N: usize> {
    counters: NonNull<u64>,
}

// SAFETY: Per-CPU operations may be used on any CPU at any time.
unsafe impl<const N: usize> Send for PerCpuCounters<N> {}
// SAFETY: As above.
unsafe impl<const N: usize> Sync for PerCpuCounters<N> {}

impl<const N: usize> PerCpuCounters<N> {
    /// Allocates the counters. Process context.
    pub fn new() -> Result<Self> {
        // SAFETY: May be called in process context.
        let counters = unsafe { bindings::ferrule_alloc_percpu_u64(N) };
        // INVARIANT: Just allocated, zeroed by the allocator.
        Ok(Self {
            counters: NonNull::new(counters).ok_or(ENOMEM)?,
        })
    }

    #[inline]
    fn counter(&self, which: usize) -> *mut u64 {
        assert!(which < N);
        // A per-CPU pointer is an offset: no memory of this program lies behind it.
        self.counters.as_ptr().wrapping_add(which)
    }

    /// Adds `value` to this CPU's copy of a counter. Any context.
    ///
    /// # Panics
    ///
    /// When `which` is not below `N`.
    #[inline]
    pub fn add(&self, which: usize, value: u64) {
        // SAFETY: By the type invariants it is one of our counters.
        unsafe { bindings::ferrule_this_cpu_add_u64(self.counter(which), value) }
    }

    /// Adds to this CPU's copies of a counter and of the one after it. Any context.
    ///
    /// # Panics
    ///
    /// When `which + 1` is not below `N`.
    #[inline]
    pub fn add_two(&self, which: usize, values: [u64; 2]) {
        let [first, second] = values;
        assert!(which + 1 < N);
        // SAFETY: By the type invariants both are counters of ours.
        unsafe { bindings::ferrule_this_cpu_add_two_u64(self.counter(which), first, second) }
    }

    /// Adds `value` to this CPU's copy of a counter and returns the new value. Any context.
    ///
    /// # Panics
    ///
    /// When `which` is not below `N`.
    #[inline]
    pub fn add_return(&self, which: usize, value: u64) -> u64 {
        // SAFETY: By the type invariants it is one of our counters.
        unsafe { bindings::ferrule_this_cpu_add_return_u64(self.counter(which), value) }
    }

    /// The sum over all CPUs. What others add meanwhile may or may not be in it. On 32-bit machines
    /// a copy may be read while it is half written.
    ///
    /// # Panics
    ///
    /// When `which` is not below `N`.
    pub fn sum(&self, which: usize) -> u64 {
        // SAFETY: By the type invariants it is one of our counters.
        unsafe { bindings::ferrule_per_cpu_sum_u64(self.counter(which)) }
    }
}

impl<const N: usize> Drop for PerCpuCounters<N> {
    fn drop(&mut self) {
        // SAFETY: By the type invariants it was allocated by the counterpart, and we own it.
        unsafe { bindings::ferrule_free_percpu_u64(self.counters.as_ptr()) }
    }
}

#[kernel::macros::kunit_tests(ferrule_percpu)]
mod tests {
    use super::*;

    #[test]
    fn counters_add_up_and_do_not_mix() -> Result {
        let counters = PerCpuCounters::<2>::new()?;
        assert_eq!(counters.sum(0), 0);
        counters.add(0, 40);
        counters.add(1, 1);
        counters.add(0, 2);
        assert_eq!(counters.sum(0), 42);
        assert_eq!(counters.sum(1), 1);
        counters.add_two(0, [1, 2]);
        assert_eq!(counters.sum(0), 43);
        assert_eq!(counters.sum(1), 3);
        Ok(())
    }
}
