// SPDX-License-Identifier: GPL-2.0

//! Where allocations may not wait for what they wait for otherwise.
//!
//! C header: [`include/linux/sched/mm.h`](srctree/include/linux/sched/mm.h)

use crate::bindings;

/// Does something during which no allocation waits for I/O, whatever its flags
/// (`memalloc_noio_save()`): under a lock that I/O may wait for, such as one that is taken to resume a
/// block device.
///
/// Process context. May be nested.
pub fn noio<R>(work: impl FnOnce() -> R) -> R {
    /// What the task's flag was before.
    struct Scope(kernel::ffi::c_uint);

    impl Drop for Scope {
        fn drop(&mut self) {
            // SAFETY: Called by the task that `self` was made by, for it does not leave `noio`; those
            // that began after this one have ended, by the same token.
            unsafe { bindings::ferrule_memalloc_noio_restore(self.0) }
        }
    }

    // SAFETY: Sets a flag of this task, until it is set back.
    let _scope = Scope(unsafe { bindings::ferrule_memalloc_noio_save() });
    work()
}
