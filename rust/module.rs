// SPDX-License-Identifier: GPL-2.0

//! The start of a module, when it registers what it is there for.
//!
//! Some of what a module registers must stay until the module is unloaded: device mapper and
//! `dm-multipath` refer to it as long as there are tables, and all that keeps it is the reference to
//! the module that each table has. A module whose start fails is freed whatever references there
//! are. So such a thing is registered last, by the macro that declares the module
//! ([`module_target!`](crate::module_target),
//! [`module_path_selector!`](crate::module_path_selector)), and by nobody else. A [`Loading`] is what
//! those macros show that they are it.
//!
//! C header: [`include/linux/module.h`](srctree/include/linux/module.h)

use kernel::{
    prelude::*,
    sync::atomic::{
        Atomic,
        Relaxed, //
    }, //
};

/// Whether [`Loading::begin`] was called. Each module has a copy of this crate.
static HAS_BEGUN: Atomic<bool> = Atomic::new(false);

/// This module is being loaded. There is one, once.
///
/// # Invariants
///
/// Whatever is registered by way of this is dropped when the module is unloaded, and not before.
#[doc(hidden)]
pub struct Loading(());

impl Loading {
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
    /// Only to be called by the `init` of the type that `module!` is told of, before anything else. From
    /// when the first thing is registered by way of the result, `init` must not fail, and it must put
    /// all that is registered into the value that it returns.
    pub unsafe fn begin() -> Result<Self> {
        if HAS_BEGUN.xchg(true, Relaxed) {
            return Err(EBUSY);
        }
        // INVARIANT: By the safety requirements. The value that this call of `init` returns is the
        // module's data, since it is the first call.
        Ok(Self(()))
    }

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
