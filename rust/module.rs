// SPDX-License-Identifier: GPL-2.0

//! The start and the end of a module, as far as memory safety depends on them.
//!
//! # The start
//!
//! Some of what a module registers must stay until the module is unloaded: device mapper and
//! `dm-multipath` refer to it as long as there are tables, and all that keeps it is the reference to
//! the module that each table has. A module whose start fails is freed whatever references there
//! are. So such a thing is registered last, by the macro that declares the module, and by nobody else.
//! A [`Loading`] is what those macros show that they are it.
//!
//! # The end
//!
//! Everything else that makes the kernel call the module (work, shrinkers, notifiers) is taken back
//! when it is dropped, at any time. But safe code may also forget it, or tie it into a circle of
//! reference counts; then it is never taken back, and the kernel would call what is no longer there
//! once the module is unloaded. So each such thing has an [`InUse`], and unloading waits until there is
//! none: for ever, if one was forgotten.
//!
//! The macros are [`module_target!`](crate::module_target),
//! [`module_path_selector!`](crate::module_path_selector) and
//! [`module_virtio_driver!`](crate::module_virtio_driver).
//!
//! C header: [`include/linux/module.h`](srctree/include/linux/module.h)

use kernel::{
    prelude::*,
    sync::atomic::{
        Acquire,
        Atomic,
        Relaxed,
        Release, //
    },
    time::{
        delay::fsleep,
        Delta, //
    }, //
};

/// Whether [`begin`] was called. Each module has a copy of this crate.
static HAS_BEGUN: Atomic<bool> = Atomic::new(false);

/// How many [`InUse`] there are.
static IN_USE: Atomic<usize> = Atomic::new(0);

/// How often unloading looks whether there are any left, and after how many times it says so.
const STEP: Delta = Delta::from_millis(10);
const STEPS: usize = 100;

/// This module is being loaded. There is one, once.
///
/// # Invariants
///
/// Whatever is registered by way of this is dropped when the module is unloaded, and not before.
#[doc(hidden)]
pub struct Loading(());

/// Dropped last when the module is unloaded, or when its start fails: waits until nothing can call it
/// any more. Process context.
#[doc(hidden)]
pub struct Unloading(());

/// The start of the module. Process context.
///
/// Safe code of the driver can call [`Module::init`](kernel::Module::init) as well as the kernel can,
/// and drop what it returns. But the kernel calls it before any other code of the module runs: so
/// that call is the first.
///
/// # Errors
///
/// [`EBUSY`] at every call but the first.
///
/// # Safety
///
/// Only to be called by the `init` of the type that `module!` is told of, before anything else.
///
/// - From when the first thing is registered by way of the [`Loading`], `init` must not fail, and it must
///   put all that is registered into the value that it returns.
/// - The [`Unloading`] must be the last field of that value, and be dropped last when `init` fails.
#[doc(hidden)]
pub unsafe fn begin() -> Result<(Loading, Unloading)> {
    if HAS_BEGUN.xchg(true, Relaxed) {
        return Err(EBUSY);
    }
    // INVARIANT: By the safety requirements. The value that this call of `init` returns is the
    // module's data, since it is the first call.
    Ok((Loading(()), Unloading(())))
}

impl Loading {
    /// As if this were the start of a module.
    ///
    /// # Safety
    ///
    /// Whatever is registered by way of the result is dropped while nobody refers to it.
    #[cfg(CONFIG_KUNIT = "y")]
    pub(crate) unsafe fn of_a_test() -> Self {
        // INVARIANT: As good as unloading, by the safety requirements.
        Self(())
    }
}

impl Drop for Unloading {
    fn drop(&mut self) {
        let mut steps = 0_usize;
        // Pairs with the release when one is dropped: nothing of it is used after this.
        while IN_USE.load(Acquire) != 0 {
            if steps == STEPS {
                pr_err!(
                    "a module cannot be unloaded: it has forgotten what the kernel still calls\n"
                );
            }
            steps = steps.saturating_add(1);
            fsleep(STEP);
        }
    }
}

/// The kernel may call code of this module as long as this exists: a part of each type that makes it do
/// so, whose last field it is.
pub(crate) struct InUse(());

impl InUse {
    /// Something that the kernel is about to know.
    ///
    /// # Panics
    ///
    /// When nothing would wait for it, because the module was declared by `module!` and none of the
    /// [macros](self) here.
    pub(crate) fn new() -> Self {
        assert!(
            HAS_BEGUN.load(Relaxed),
            "not a module that ferrule declared"
        );
        IN_USE.fetch_add(1, Relaxed);
        Self(())
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        IN_USE.fetch_sub(1, Release);
    }
}

#[kernel::macros::kunit_tests(ferrule_module)]
mod tests {
    use super::*;

    #[test]
    fn a_module_begins_once() {
        // SAFETY: It has begun, so this does nothing.
        assert!(matches!(unsafe { begin() }, Err(error) if error == EBUSY));
    }

    #[test]
    fn what_is_in_use_is_counted() {
        let before = IN_USE.load(Relaxed);
        let in_use = InUse::new();
        assert_eq!(IN_USE.load(Relaxed), before + 1);
        drop(in_use);
        assert_eq!(IN_USE.load(Relaxed), before);
    }
}
