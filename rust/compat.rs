// SPDX-License-Identifier: GPL-2.0

//! What 7.2 lacks of the kernel crate of 7.3, which everything else here is written for.
//!
//! No other file knows the version but `helpers/compat.c` and `Makefile.ferrule`, which tells both. All
//! of it can go, and what it stands for be used in its place, when no kernel of 7.2 is built for any
//! more (`scripts/config/stock.list`).

// Which of it is used depends on the module.
#![allow(unused_imports, unused_macros)]

#[cfg(not(ferrule_kernel_7_2))]
mod items {
    use crate::bindings;
    use kernel::{
        module_param::ModuleParamAccess,
        sync::{
            atomic::Full,
            barrier, //
        }, //
    };
    pub use kernel::{
        new_spinlock_irq,
        sync::SpinLockIrq, //
    };

    /// The module that implements a `#[vtable]` trait, as C has it.
    macro_rules! owner {
        ($implementer:ident) => {
            ::kernel::module::this_module::<$implementer::OwnerModule>().as_ptr()
        };
    }
    pub(crate) use owner;

    /// How many bytes of its first vector an iterator is past.
    #[inline]
    pub(crate) fn offset_in_vector(iter: &bindings::bvec_iter) -> u32 {
        iter.bi_offset
    }

    /// A full memory barrier between CPUs.
    #[inline(always)]
    pub fn smp_mb() {
        barrier::smp_mb(Full);
    }

    /// What a parameter of the module was set to.
    pub fn parameter<T: Copy>(parameter: &ModuleParamAccess<T>) -> T {
        parameter.value()
    }

    /// Declares a table of devices without data.
    #[doc(hidden)]
    #[macro_export]
    macro_rules! __device_table {
        ($bus:literal, $id:ty, $name:ident, [$($entry:expr),*]) => {
            ::kernel::module_device_table!($bus, $id, $name, @none, [$($entry),*]);
        };
    }
}

#[cfg(ferrule_kernel_7_2)]
mod items {
    use crate::bindings;
    use kernel::{
        ffi,
        module_param::ModuleParamAccess,
        sync::lock::{
            Backend,
            Lock, //
        },
        types::Opaque, //
    };

    pub use kernel::sync::barrier::smp_mb;

    /// A spinlock that is held with interrupts disabled (`spin_lock_irqsave`).
    ///
    /// As in C, who has several at a time unlocks the last one first: the first has the state of
    /// interrupts from before. (Those of 7.3 are counted, and may go in any order.)
    pub type SpinLockIrq<T> = Lock<T, SpinLockIrqBackend>;

    /// The lock is a `spinlock_t`.
    pub struct SpinLockIrqBackend;

    // SAFETY: A `spinlock_t` ensures mutual exclusion. `relock` is the default one, which locks as
    // `lock` does.
    unsafe impl Backend for SpinLockIrqBackend {
        type State = bindings::spinlock_t;
        /// The state of interrupts before. A guard stays on its CPU: it is not `Send`.
        type GuardState = ffi::c_ulong;

        #[inline]
        unsafe fn init(
            ptr: *mut Self::State,
            name: *const ffi::c_char,
            key: *mut bindings::lock_class_key,
        ) {
            // SAFETY: By the requirements of this function.
            unsafe { bindings::__spin_lock_init(ptr, name, key) }
        }

        #[inline]
        unsafe fn lock(ptr: *mut Self::State) -> Self::GuardState {
            // SAFETY: By the requirements of this function the lock is initialised.
            unsafe { bindings::ferrule_spin_lock_irqsave(ptr) }
        }

        #[inline]
        unsafe fn unlock(ptr: *mut Self::State, flags: &Self::GuardState) {
            // SAFETY: By the requirements of this function the caller holds the lock; the flags are
            // those that locking it returned.
            unsafe { bindings::ferrule_spin_unlock_irqrestore(ptr, *flags) }
        }

        #[inline]
        unsafe fn try_lock(ptr: *mut Self::State) -> Option<Self::GuardState> {
            let mut flags = 0;
            // SAFETY: By the requirements of this function the lock is initialised.
            unsafe { bindings::ferrule_spin_trylock_irqsave(ptr, &mut flags) }.then_some(flags)
        }

        #[inline]
        unsafe fn assert_is_held(ptr: *mut Self::State) {
            // SAFETY: By the requirements of this function the lock is initialised.
            unsafe { bindings::spin_assert_is_held(ptr) }
        }
    }

    /// Creates an initialiser of a [`SpinLockIrq`], with a lock class of its own.
    #[macro_export]
    macro_rules! new_spinlock_irq {
        ($inner:expr $(, $name:literal)? $(,)?) => {
            $crate::compat::SpinLockIrq::new(
                $inner,
                ::kernel::optional_name!($($name)?),
                ::kernel::static_lock_class!(),
            )
        };
    }
    pub use new_spinlock_irq;

    /// This module, as C has it: each has a copy of this crate.
    pub(crate) const fn this_module() -> *mut bindings::module {
        #[cfg(MODULE)]
        {
            // Some of what is in it has no fields, in some configurations.
            #[allow(improper_ctypes)]
            extern "C" {
                static __this_module: Opaque<bindings::module>;
            }
            // SAFETY: It is there as long as the module. Only its address is taken.
            unsafe { __this_module.get() }
        }
        #[cfg(not(MODULE))]
        core::ptr::null_mut()
    }

    macro_rules! owner {
        ($implementer:ident) => {
            $crate::compat::this_module()
        };
    }
    pub(crate) use owner;

    /// How many bytes of its first vector an iterator is past.
    #[inline]
    pub(crate) fn offset_in_vector(iter: &bindings::bvec_iter) -> u32 {
        iter.bi_bvec_done
    }

    /// What a parameter of the module was set to.
    pub fn parameter<T: Copy>(parameter: &ModuleParamAccess<T>) -> T {
        *parameter.value()
    }

    #[doc(hidden)]
    #[macro_export]
    macro_rules! __device_table {
        ($bus:literal, $id:ty, $name:ident, [$($entry:expr),*]) => {
            const $name: ::kernel::device_id::IdArray<$id, (), { <[$id]>::len(&[$($entry),*]) }> =
                ::kernel::device_id::IdArray::new_without_index([$(($entry, ())),*]);

            // A name of its own: there may be several tables.
            const _: () = {
                ::kernel::module_device_table!($bus, MODULE_TABLE, $name);
            };
        };
    }
}

pub use items::*;
