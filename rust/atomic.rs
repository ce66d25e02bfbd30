// SPDX-License-Identifier: GPL-2.0

//! Atomics that are read without calling a function.
//!
//! [`Atomic::load`] of the kernel crate calls a helper in C, which no compiler can put in its place: an
//! I/O of a device that has limits reads twenty of them. [`ReadOnce::read_once`] is one instruction.
//!
//! C header: [`include/asm-generic/rwonce.h`](srctree/include/asm-generic/rwonce.h)

#[cfg(not(CONFIG_X86_64))]
use kernel::sync::atomic::Acquire;
use kernel::sync::atomic::Atomic;
#[cfg(not(CONFIG_64BIT))]
use kernel::sync::atomic::Relaxed;

/// What can be read in one piece.
pub trait ReadOnce {
    /// What it holds.
    type Value;

    /// The value, as [`Atomic::load`] with `Relaxed` has it (`READ_ONCE()`). Any context.
    fn read_once(&self) -> Self::Value;

    /// As [`read_once`](Self::read_once); what comes after sees what was done before the value was
    /// released (`smp_load_acquire()`). Any context.
    fn read_acquire(&self) -> Self::Value;
}

/// No access to memory is moved across it by the compiler (`barrier()`).
#[cfg(CONFIG_X86_64)]
#[inline(always)]
fn compiler_fence() {
    // SAFETY: There is nothing in it. Assembly is taken to access any memory.
    unsafe { core::arch::asm!("") };
}

macro_rules! read_once {
    ($($type:ty),*) => {$(
        impl ReadOnce for Atomic<$type> {
            type Value = $type;

            #[inline(always)]
            fn read_once(&self) -> $type {
                // SAFETY: The pointer is valid and aligned, and what it points to holds a valid value
                // at any time. A volatile read of no more than a machine word is one access, by which
                // the memory model of the kernel takes it for atomic.
                unsafe { self.as_ptr().read_volatile() }
            }

            #[cfg(CONFIG_X86_64)]
            #[inline(always)]
            fn read_acquire(&self) -> $type {
                let value = self.read_once();
                // The CPU keeps loads in order with all that comes after. The compiler has to.
                compiler_fence();
                value
            }

            #[cfg(not(CONFIG_X86_64))]
            #[inline(always)]
            fn read_acquire(&self) -> $type {
                self.load(Acquire)
            }
        }
    )*};
}

read_once!(bool, i32, u32);
#[cfg(CONFIG_64BIT)]
read_once!(u64);

#[cfg(not(CONFIG_64BIT))]
impl ReadOnce for Atomic<u64> {
    type Value = u64;

    #[inline(always)]
    fn read_once(&self) -> u64 {
        self.load(Relaxed)
    }

    #[inline(always)]
    fn read_acquire(&self) -> u64 {
        self.load(Acquire)
    }
}

#[kernel::macros::kunit_tests(ferrule_atomic)]
mod tests {
    use super::*;
    use kernel::sync::atomic::Relaxed;

    #[test]
    fn what_was_stored_is_read() {
        let (number, flag) = (Atomic::new(7u64), Atomic::new(false));
        assert_eq!((number.read_once(), flag.read_once()), (7, false));
        number.store(u64::MAX - 1, Relaxed);
        flag.store(true, Relaxed);
        assert_eq!((number.read_once(), flag.read_once()), (u64::MAX - 1, true));
    }
}
