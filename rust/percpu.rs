// SPDX-License-Identifier: GPL-2.0

//! Data that each CPU has a copy of, so that changing it costs no shared cache line.
//!
//! To count:
//!
//! 1. Make a [`PerCpuCounters`] with as many counters as there are things to count.
//! 2. [`add`](PerCpuCounters::add) from anywhere: it disables nothing and never waits.
//! 3. [`sum`](PerCpuCounters::sum) when somebody asks.
//!
//! To keep a state for each CPU, such as whose turn it is there: a [`PerCpuU32`], changed by
//! [`update`](PerCpuU32::update).
//!
//! | here | C |
//! | --- | --- |
//! | [`PerCpuCounters::new`], drop | `alloc_percpu()`, `free_percpu()` |
//! | [`PerCpuCounters::add`], [`add_two`](PerCpuCounters::add_two) | `this_cpu_add()` |
//! | [`PerCpuCounters::add_return`] | `this_cpu_add_return()` |
//! | [`PerCpuCounters::sum`] | `for_each_possible_cpu(cpu) sum += *per_cpu_ptr(p, cpu)` |
//! | [`PerCpuCounters::of_cpu`] | `READ_ONCE(*per_cpu_ptr(p, cpu))` |
//! | [`PerCpuU32::new`], drop | `alloc_percpu()`, `free_percpu()` |
//! | [`PerCpuU32::set`] | `*per_cpu_ptr(p, cpu) = value` |
//! | [`PerCpuU32::read`], [`read_two`](PerCpuU32::read_two) | `this_cpu_read()` |
//! | [`PerCpuU32::add_return`] | `this_cpu_add_return()` |
//! | [`PerCpuU32::update`] | `this_cpu_read()`, `this_cpu_try_cmpxchg()` |
//!
//! The copies are those of the possible CPUs, so CPUs may come and go at any time.
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

    /// What one CPU has added; 0 if it is no possible one. As for [`sum`](Self::sum).
    ///
    /// # Panics
    ///
    /// When `which` is not below `N`.
    pub fn of_cpu(&self, which: usize, cpu: u32) -> u64 {
        // SAFETY: By the type invariants it is one of our counters.
        unsafe { bindings::ferrule_per_cpu_read_u64(self.counter(which), cpu) }
    }
}

impl<const N: usize> Drop for PerCpuCounters<N> {
    fn drop(&mut self) {
        // SAFETY: By the type invariants it was allocated by the counterpart, and we own it.
        unsafe { bindings::ferrule_free_percpu_u64(self.counters.as_ptr()) }
    }
}

/// A number for each possible CPU, 0 at first.
///
/// # Invariants
///
/// `word` points to a per-CPU `u32`, allocated by `ferrule_alloc_percpu_u32()`. Through `&self` it is
/// accessed by this-CPU operations only.
pub struct PerCpuU32 {
    word: NonNull<u32>,
}

// SAFETY: Per-CPU operations may be used on any CPU at any time.
unsafe impl Send for PerCpuU32 {}
// SAFETY: As above.
unsafe impl Sync for PerCpuU32 {}

impl PerCpuU32 {
    /// Allocates the numbers. Process context.
    pub fn new() -> Result<Self> {
        // SAFETY: May be called in process context.
        let word = unsafe { bindings::ferrule_alloc_percpu_u32() };
        // INVARIANT: Just allocated, zeroed by the allocator.
        Ok(Self {
            word: NonNull::new(word).ok_or(ENOMEM)?,
        })
    }

    /// Gives a CPU a number. Nothing happens if it is no possible one.
    pub fn set(&mut self, cpu: u32, value: u32) {
        // SAFETY: By the type invariants it is our per-CPU word.
        let word = unsafe { bindings::ferrule_per_cpu_ptr_u32(self.word.as_ptr(), cpu) };
        if !word.is_null() {
            // SAFETY: It is that CPU's copy, and as we have `self` alone nobody accesses it.
            unsafe { *word = value };
        }
    }

    /// This CPU's number. Any context; where the task may move, it is that of another CPU soon.
    #[inline]
    pub fn read(&self) -> u32 {
        // SAFETY: By the type invariants it is our per-CPU word.
        unsafe { bindings::ferrule_this_cpu_read_u32(self.word.as_ptr()) }
    }

    /// This CPU's numbers, as [`read`](Self::read) would tell one and then the other, in one call.
    #[inline]
    pub fn read_two(first: &Self, second: &Self) -> (u32, u32) {
        let (first, second) = (first.word.as_ptr(), second.word.as_ptr());
        // SAFETY: By the type invariants both are per-CPU words.
        let both = unsafe { bindings::ferrule_this_cpu_read_two_u32(first, second) };
        (both as u32, (both >> 32) as u32)
    }

    /// Adds to this CPU's number and returns the new one; it wraps around. Any context. It is one of the
    /// chain that [`update`](Self::update) tells of, and cheaper.
    #[inline]
    pub fn add_return(&self, value: u32) -> u32 {
        // SAFETY: By the type invariants it is our per-CPU word.
        unsafe { bindings::ferrule_this_cpu_add_return_u32(self.word.as_ptr(), value) }
    }

    /// Replaces this CPU's number by the first that `change` makes of it; returns the second. Any
    /// context, preemptible or not.
    ///
    /// The numbers of a CPU form a chain, in which each was made by one call of `change` out of the
    /// one before it: when the task moves to another CPU meanwhile, or an interrupt or another task
    /// gets in between, `change` is called again with what is there then. It disables nothing. It
    /// repeats only when somebody else has completed an update on this very CPU.
    #[inline]
    pub fn update<R>(&self, mut change: impl FnMut(u32) -> (u32, R)) -> R {
        // SAFETY: By the type invariants it is our per-CPU word.
        let mut old = unsafe { bindings::ferrule_this_cpu_read_u32(self.word.as_ptr()) };
        loop {
            let (new, result) = change(old);
            // SAFETY: As above; `old` is ours.
            let is_replaced = unsafe {
                bindings::ferrule_this_cpu_try_cmpxchg_u32(self.word.as_ptr(), &mut old, new)
            };
            if is_replaced {
                return result;
            }
        }
    }
}

impl Drop for PerCpuU32 {
    fn drop(&mut self) {
        // SAFETY: By the type invariants it was allocated by the counterpart, and we own it.
        unsafe { bindings::ferrule_free_percpu_u32(self.word.as_ptr()) }
    }
}

#[kernel::macros::kunit_tests(ferrule_percpu)]
mod tests {
    use super::*;
    use kernel::cpu::nr_cpu_ids;

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
        let of_all = (0..nr_cpu_ids()).map(|cpu| counters.of_cpu(0, cpu));
        assert_eq!(of_all.sum::<u64>(), 43);
        assert_eq!(counters.of_cpu(0, nr_cpu_ids()), 0);
        Ok(())
    }
    #[test]
    fn each_cpu_has_a_number_of_its_own() -> Result {
        let mut numbers = PerCpuU32::new()?;
        assert_eq!(numbers.update(|old| (old, old)), 0);
        (0..nr_cpu_ids()).for_each(|cpu| numbers.set(cpu, 1000 * (cpu + 1)));
        numbers.set(nr_cpu_ids(), 1);
        // That of some CPU: the task may move at any time.
        let before = numbers.update(|old| (old + 1, old));
        assert_eq!(before % 1000, 0);
        assert!((1..=nr_cpu_ids()).contains(&(before / 1000)));
        assert!(numbers.read() % 1000 <= 1);
        let mut others = PerCpuU32::new()?;
        (0..nr_cpu_ids()).for_each(|cpu| others.set(cpu, 7));
        let (first, second) = PerCpuU32::read_two(&others, &numbers);
        assert_eq!((first, second / 1000 > 0), (7, true));
        assert_eq!(others.add_return(u32::MAX), 6);
        Ok(())
    }

    #[test]
    fn an_update_that_was_overtaken_starts_again() -> Result {
        let mut numbers = PerCpuU32::new()?;
        // When the task moves to another CPU in between, there is nothing to overtake there.
        for _ in 0..1000 {
            (0..nr_cpu_ids()).for_each(|cpu| numbers.set(cpu, 0));
            let mut calls = 0;
            let seen = numbers.update(|old| {
                calls += 1;
                if calls == 1 {
                    numbers.update(|old| (old + 10, ()));
                }
                (old + 1, old)
            });
            if calls == 2 {
                assert_eq!(seen, 10);
                return Ok(());
            }
        }
        Err(EAGAIN)
    }
}
