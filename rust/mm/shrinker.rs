// SPDX-License-Identifier: GPL-2.0

//! Shrinkers: memory that is kept because it may be of use, and given back when it is short.
//!
//! 1. Implement [`Shrink`] for what keeps the memory.
//! 2. Keep a [`Registration`] of it.
//!
//! | C | here |
//! | --- | --- |
//! | `count_objects`, `scan_objects` | [`Shrink::count`], [`Shrink::scan`] |
//! | `shrinker_alloc`, `shrinker_register` | [`Registration::new`] |
//! | `shrinker_free` | drop |
//!
//! Neither aware of nodes nor of memory control groups.
//!
//! # Contexts
//!
//! Both functions are called in reclaim: by `kswapd`, and below any allocation that may reclaim
//! (`__GFP_DIRECT_RECLAIM`), in process context. So they run at any time, also several times at
//! once, and below an allocation of whoever implements them. What they lock must never be held
//! while memory is allocated that way; they must not do so themselves, nor wait for anybody who
//! may.
//!
//! C header: `include/linux/shrinker.h`

use crate::{
    bindings,
    module::InUse, //
};
use core::{
    marker::PhantomData,
    ptr::NonNull, //
};
use kernel::{
    ffi,
    prelude::*,
    sync::Arc, //
};

/// `SHRINK_STOP`, a macro with a cast that bindgen does not follow.
const SHRINK_STOP: ffi::c_ulong = ffi::c_ulong::MAX;

/// Keeps memory that it can give back. Memory is counted in objects, of a size that is for the
/// implementer to choose: reclaim asks for a share of them, the greater the shorter memory is.
pub trait Shrink: Send + Sync + 'static {
    /// How many objects could be freed now. See the [contexts](self#contexts).
    fn count(&self) -> usize;

    /// Frees so many objects, or somewhat more. Returns how many. See the
    /// [contexts](self#contexts).
    ///
    /// `None` when none can be freed now: reclaim then leaves it alone for this time.
    fn scan(&self, wanted: usize) -> Option<usize>;
}

/// Keeps a [`Shrink`] registered. Dropping it waits until nobody calls it any more.
///
/// # Invariants
///
/// `shrinker` is registered, and its private data is an `Arc<S>` as by `into_raw`, which we own.
pub struct Registration<S: Shrink> {
    shrinker: NonNull<bindings::shrinker>,
    _owner: PhantomData<Arc<S>>,
    _in_use: InUse,
}

// SAFETY: It can be unregistered by any thread.
unsafe impl<S: Shrink> Send for Registration<S> {}
// SAFETY: There is nothing to do with a reference.
unsafe impl<S: Shrink> Sync for Registration<S> {}

impl<S: Shrink> Registration<S> {
    /// Registers a shrinker. The name is that in debugfs, if the kernel has it. Process context.
    pub fn new(owner: Arc<S>, name: &CStr) -> Result<Self> {
        let in_use = InUse::new();
        // SAFETY: The name is copied.
        let shrinker = unsafe { bindings::ferrule_shrinker_alloc(name.as_char_ptr()) };
        let shrinker = NonNull::new(shrinker).ok_or(ENOMEM)?;
        // SAFETY: It is ours until it is registered, and these are the fields to set before.
        unsafe {
            let raw = shrinker.as_ptr();
            (*raw).count_objects = Some(Self::count_callback);
            (*raw).scan_objects = Some(Self::scan_callback);
            (*raw).private_data = Arc::into_raw(owner).cast_mut().cast();
            bindings::shrinker_register(raw);
        }
        // INVARIANT: Just done.
        Ok(Self {
            shrinker,
            _owner: PhantomData,
            _in_use: in_use,
        })
    }

    /// # Safety
    ///
    /// `shrinker` is that of a `Registration<S>`, for the lifetime `'a`.
    unsafe fn owner<'a>(shrinker: *mut bindings::shrinker) -> &'a S {
        // SAFETY: By the type invariants the private data is a valid `S`.
        unsafe { &*(*shrinker).private_data.cast::<S>() }
    }

    /// # Safety
    ///
    /// Only to be called by reclaim, with the shrinker of a `Registration<S>`.
    unsafe extern "C" fn count_callback(
        shrinker: *mut bindings::shrinker,
        _control: *mut bindings::shrink_control,
    ) -> ffi::c_ulong {
        // SAFETY: Unregistering waits for this function to return.
        unsafe { Self::owner(shrinker) }.count()
    }

    /// # Safety
    ///
    /// As for `count_callback`, with a valid `control`.
    unsafe extern "C" fn scan_callback(
        shrinker: *mut bindings::shrinker,
        control: *mut bindings::shrink_control,
    ) -> ffi::c_ulong {
        // SAFETY: By the requirements of this function.
        let wanted = unsafe { (*control).nr_to_scan };
        // SAFETY: Unregistering waits for this function to return.
        match unsafe { Self::owner(shrinker) }.scan(wanted) {
            Some(freed) => freed,
            None => SHRINK_STOP,
        }
    }
}

impl<S: Shrink> Drop for Registration<S> {
    fn drop(&mut self) {
        let shrinker = self.shrinker.as_ptr();
        // SAFETY: By the type invariants.
        let owner = unsafe { (*shrinker).private_data.cast::<S>() };
        // SAFETY: By the type invariants. Waits for its functions to return.
        unsafe { bindings::shrinker_free(shrinker) };
        // SAFETY: By the type invariants, and nobody borrows it any more.
        drop(unsafe { Arc::from_raw(owner.cast_const()) });
    }
}

#[kernel::macros::kunit_tests(ferrule_mm_shrinker)]
mod tests {
    use super::*;
    use kernel::sync::atomic::{
        Atomic,
        Relaxed, //
    };

    /// So many objects.
    struct Objects(Atomic<usize>);

    impl Shrink for Objects {
        fn count(&self) -> usize {
            self.0.load(Relaxed)
        }

        fn scan(&self, wanted: usize) -> Option<usize> {
            let left = self.0.load(Relaxed);
            if left == 0 {
                return None;
            }
            let freed = left.min(wanted);
            self.0.store(left - freed, Relaxed);
            Some(freed)
        }
    }

    #[test]
    fn reclaim_sees_what_there_is_and_takes_it() -> Result {
        let objects = Arc::new(Objects(Atomic::new(100)), GFP_KERNEL)?;
        let registration = Registration::new(objects.clone(), c"ferrule-test")?;
        let shrinker = registration.shrinker.as_ptr();
        let ask = |wanted| {
            let mut control: bindings::shrink_control = pin_init::zeroed();
            control.nr_to_scan = wanted;
            // SAFETY: As reclaim does it; the registration is there.
            unsafe { ((*shrinker).scan_objects.unwrap())(shrinker, &raw mut control) }
        };
        // SAFETY: As above; the second argument is for shrinkers that are aware of nodes.
        let count =
            unsafe { ((*shrinker).count_objects.unwrap())(shrinker, core::ptr::null_mut()) };
        // The kernel's own reclaim may be at it, too.
        assert!(count <= 100);
        assert!(ask(30) <= 30);
        assert!(objects.count() <= 70);
        objects.0.store(0, Relaxed);
        // That is what tells reclaim to stop.
        assert_eq!(ask(1), SHRINK_STOP);
        drop(registration);
        assert!(Arc::into_unique_or_drop(objects).is_some());
        Ok(())
    }
}
