// SPDX-License-Identifier: GPL-2.0

//! Work queues that a driver owns.
//!
//! The kernel crate lends the system's queues. I/O must not depend on those: when memory is short,
//! they may be unable to start a worker until the I/O that waits for them is done. A driver in an
//! I/O path makes a queue of its own, with a rescuer:
//!
//! 1. Make an [`OwnedQueue`].
//! 2. [`enqueue`](OwnedQueue::enqueue) on it like on any [`Queue`].
//! 3. Drop it when nothing will be queued any more; that waits for what is.
//!
//! | here | C |
//! | --- | --- |
//! | [`OwnedQueue::new`] | `alloc_workqueue("%s", WQ_MEM_RECLAIM \| WQ_UNBOUND, 0, name)` |
//! | [`OwnedQueue::freezable`] | the same, `WQ_FREEZABLE \| WQ_CPU_INTENSIVE \| WQ_PERCPU` |
//! | [`OwnedQueue::enqueue`], [`OwnedQueue::try_spawn`] | `queue_work()` |
//! | [`OwnedQueue::flush`] | `flush_workqueue()` |
//! | [`flush_work`] | `flush_work()` |
//! | [`run_with_help`] | `queue_work()` of several, `cancel_work_sync()` of each |
//! | drop | `destroy_workqueue()` |
//!
//! An [`OwnedQueue`] takes no delayed work. `destroy_workqueue()` waits for work that is queued, but
//! knows nothing of work whose timer still runs: the timer would put it on a queue that is gone.
//! Delayed work goes on the system's queues, which stay.
//!
//! Must not be dropped by a work item that runs on it: it would wait for itself. So that
//! this cannot happen by the way of a reference count, let the owner of the work items own the queue,
//! not the items.
//!
//! C header: [`include/linux/workqueue.h`](srctree/include/linux/workqueue.h)

use crate::{
    bindings,
    module::InUse, //
};
use core::ptr::{
    self,
    NonNull, //
};
use kernel::{
    alloc::{
        flags::GFP_NOWAIT,
        AllocError,
        Flags, //
    },
    container_of,
    prelude::*,
    static_lock_class,
    types::Opaque,
    workqueue::{
        Queue,
        RawWorkItem,
        Work, //
    }, //
};

pub(crate) mod private {
    use crate::bindings;

    pub trait Sealed {
        /// A workqueue that is valid at least as long as the reference.
        fn as_raw(&self) -> *mut bindings::workqueue_struct;
    }
}

/// A queue that work can be put on to run at once: one of the system's, or an [`OwnedQueue`].
pub trait WorkQueue: private::Sealed {}

impl private::Sealed for Queue {
    fn as_raw(&self) -> *mut bindings::workqueue_struct {
        // CAST: `Queue` is a transparent wrapper of a `workqueue_struct`.
        ptr::from_ref(self).cast_mut().cast()
    }
}

impl WorkQueue for Queue {}

/// How soon a queue's work should run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Priority {
    /// Like any process.
    Normal,
    /// Before other processes (`WQ_HIGHPRI`).
    High,
}

/// A work queue, with a rescuer (`WQ_MEM_RECLAIM`) and not bound to a CPU (`WQ_UNBOUND`), unless it
/// was made otherwise.
///
/// Drop waits for the work that is queued.
///
/// # Invariants
///
/// `queue` is a valid work queue that this object owns.
pub struct OwnedQueue {
    queue: NonNull<bindings::workqueue_struct>,
    _in_use: InUse,
}

// SAFETY: Work queues may be used and destroyed from any thread.
unsafe impl Send for OwnedQueue {}
// SAFETY: As above.
unsafe impl Sync for OwnedQueue {}

impl OwnedQueue {
    /// Makes a queue. `name` shows in the name of its rescuer thread, which has room for 15
    /// characters. Process context.
    pub fn new(name: &CStr, priority: Priority) -> Result<Self> {
        let mut flags = bindings::wq_flags_WQ_MEM_RECLAIM | bindings::wq_flags_WQ_UNBOUND;
        if priority == Priority::High {
            flags |= bindings::wq_flags_WQ_HIGHPRI;
        }
        Self::alloc(name, flags)
    }

    /// Makes a queue that is bound to CPUs, for work that takes long, behind which no other work has
    /// to wait, and which is frozen while the system sleeps. It has no rescuer: it is not for what
    /// reclaim depends on. Process context.
    pub fn freezable(name: &CStr) -> Result<Self> {
        Self::alloc(
            name,
            bindings::wq_flags_WQ_FREEZABLE
                | bindings::wq_flags_WQ_CPU_INTENSIVE
                | bindings::wq_flags_WQ_PERCPU,
        )
    }

    fn alloc(name: &CStr, flags: bindings::wq_flags) -> Result<Self> {
        // SAFETY: The name is copied.
        let queue =
            unsafe { bindings::ferrule_alloc_workqueue(name.as_char_ptr(), flags as c_uint) };
        // INVARIANT: Just made.
        Ok(Self {
            queue: NonNull::new(queue).ok_or(ENOMEM)?,
            _in_use: InUse::new(),
        })
    }

    /// Enqueues a work item, as [`Queue::enqueue`]. Any context.
    pub fn enqueue<W, const ID: u64>(&self, work: W) -> W::EnqueueOutput
    where
        W: RawWorkItem<ID> + Send + 'static,
    {
        self.queue().enqueue(work)
    }

    /// Runs a function as a work item, as [`Queue::try_spawn`]. Any context that `flags` may be used
    /// in.
    ///
    /// # Errors
    ///
    /// [`AllocError`] when there is no memory for the work item.
    pub fn try_spawn<T: FnOnce() + Send + 'static>(
        &self,
        flags: Flags,
        work: T,
    ) -> Result<(), AllocError> {
        self.queue().try_spawn(flags, work)
    }

    /// Waits for the work that is queued now. Process context; not from work on this queue.
    pub fn flush(&self) {
        // SAFETY: By the type invariants.
        unsafe { bindings::ferrule_flush_workqueue(self.queue.as_ptr()) }
    }

    /// Not to be lent to others: they could put delayed work on it.
    fn queue(&self) -> &Queue {
        // SAFETY: By the type invariants it is valid as long as `self`.
        unsafe { Queue::from_raw(self.queue.as_ptr()) }
    }
}

impl private::Sealed for OwnedQueue {
    fn as_raw(&self) -> *mut bindings::workqueue_struct {
        self.queue.as_ptr()
    }
}

impl WorkQueue for OwnedQueue {}

impl Drop for OwnedQueue {
    fn drop(&mut self) {
        // SAFETY: By the type invariants we own it.
        unsafe { bindings::destroy_workqueue(self.queue.as_ptr()) }
    }
}

/// Waits until a work item that is queued, or runs, has ended (`flush_work()`). What it was queued with (a
/// reference, say) has been dropped then, unless it was queued once more.
///
/// Process context; not from the work itself.
pub fn flush_work<T: ?Sized, const ID: u64>(work: &Work<T, ID>) {
    // SAFETY: A `Work` is initialised, and borrowed until this returns.
    unsafe { bindings::flush_work(Work::raw_get(work)) };
}

/// How many CPUs there are just now, at least one (`num_online_cpus()`). Any context.
pub fn online_cpus() -> usize {
    // SAFETY: It only reads a number.
    unsafe { bindings::ferrule_num_online_cpus() as usize }
}

/// Work that runs a function that somebody else waits for.
struct Helper<F> {
    work: Opaque<bindings::work_struct>,
    f: *const F,
}

impl<F: Fn() + Sync> Helper<F> {
    /// # Safety
    ///
    /// Only to be called by a workqueue, with the `work` field of a `Helper<F>` whose `f` is valid until
    /// this returns.
    unsafe extern "C" fn run(work: *mut bindings::work_struct) {
        // CAST: `Opaque` is a transparent wrapper.
        let work = work.cast::<Opaque<bindings::work_struct>>();
        // SAFETY: By the safety requirements.
        let helper = unsafe { &*container_of!(work, Self, work) };
        // SAFETY: As above. `F: Sync`, so any thread may call it.
        unsafe { (*helper.f)() };
    }
}

/// Runs a function here, and at the same time in as many as `helpers` work items of a queue. Returns
/// when all have returned. Those that have not begun when it returns here, never do: so it must do by itself
/// whatever is left to do, and does not depend on the queue to have a worker, or memory for one.
///
/// Process context. Not below a lock that the function takes as well.
pub fn run_with_help<F: Fn() + Sync>(queue: &impl WorkQueue, helpers: usize, f: F) {
    let mut items = KVec::with_capacity(helpers, GFP_NOWAIT).unwrap_or_else(|_| KVec::new());
    for _ in 0..helpers {
        let helper = Helper {
            work: Opaque::uninit(),
            f: &raw const f,
        };
        // Without memory there is less help.
        if items.push_within_capacity(helper).is_err() {
            break;
        }
    }
    for item in &items {
        // SAFETY: The work is valid for writes; the name and the key live for ever.
        unsafe {
            bindings::init_work_with_key(
                item.work.get(),
                Some(Helper::<F>::run),
                false,
                c"ferrule_helper".as_char_ptr(),
                static_lock_class!().as_ptr(),
            )
        };
        // SAFETY: The queue is valid as long as the reference. The work is initialised and is the `work`
        // field of a `Helper`. Neither that, which is on the heap and stays where it is, nor `f` goes before
        // it has been cancelled below, which waits; nothing before that returns from here.
        unsafe {
            bindings::queue_work_on(
                bindings::wq_misc_consts_WORK_CPU_UNBOUND as c_int,
                queue.as_raw(),
                item.work.get(),
            )
        };
    }
    f();
    for item in &items {
        // SAFETY: It was initialised above.
        unsafe { bindings::cancel_work_sync(item.work.get()) };
    }
}

#[kernel::macros::kunit_tests(ferrule_workqueue)]
mod tests {
    use super::*;
    use kernel::{
        sync::{
            atomic::{
                Atomic,
                Relaxed, //
            },
            Arc, //
        },
        time::{
            delay::fsleep,
            Delta, //
        },
        workqueue::system_unbound, //
    };

    #[test]
    fn drop_waits_for_queued_work() -> Result {
        let done = Arc::new(Atomic::new(0), GFP_KERNEL)?;
        let queue = OwnedQueue::new(c"ferrule_test", Priority::High)?;
        for _ in 0..10 {
            let done = done.clone();
            queue.try_spawn(GFP_KERNEL, move || done.add(1, Relaxed))?;
        }
        drop(queue);
        assert_eq!(done.load(Relaxed), 10);
        Ok(())
    }

    #[test]
    fn all_work_is_done_with_help_or_without() -> Result {
        for helpers in [0, 1, 3] {
            let (next, done) = (Atomic::new(0), Atomic::new(0));
            run_with_help(system_unbound(), helpers, || {
                while next.fetch_add(1, Relaxed) < 1000 {
                    done.add(1, Relaxed);
                }
            });
            assert_eq!(done.load(Relaxed), 1000);
        }
        Ok(())
    }

    #[test]
    fn help_runs_at_the_same_time() -> Result {
        let here = Atomic::new(0);
        run_with_help(system_unbound(), 1, || {
            here.add(1, Relaxed);
            // Each waits for the other one.
            for _ in 0..5000 {
                if here.load(Relaxed) == 2 {
                    break;
                }
                fsleep(Delta::from_millis(1));
            }
        });
        assert_eq!(here.load(Relaxed), 2);
        Ok(())
    }
}
