// SPDX-License-Identifier: GPL-2.0

//! Work items that are owned by what starts them, and cancelled when that goes.
//!
//! [`kernel::workqueue::Work`] hands a reference count to the queue: nobody can wait until such
//! work has ended, which a driver must before its device goes and before its module is unloaded.
//! An [`OwnedWork`] stays with its owner:
//!
//! 1. Implement [`Run`] for what the work is about.
//! 2. Keep an [`OwnedWork`] of it, in place or in an [`Arc`](kernel::sync::Arc).
//! 3. [`enqueue`](OwnedWork::enqueue) it, from any context, at once on any queue, or
//!    [later](OwnedWork::enqueue_after) on one of the system's.
//! 4. [`disable`](OwnedWork::disable) it where it has to have ended and must not start again.
//!    Dropping it does that too.
//!
//! | C | here |
//! | --- | --- |
//! | `struct delayed_work` and what contains it | [`OwnedWork`] |
//! | `INIT_DELAYED_WORK` | [`new_owned_work!`](crate::new_owned_work) |
//! | `mod_delayed_work` | [`OwnedWork::enqueue`] |
//! | `queue_delayed_work` | [`OwnedWork::enqueue_after`] |
//! | `disable_delayed_work_sync` | [`OwnedWork::disable`], drop |
//! | `cancel_delayed_work_sync` | [`OwnedWork::data_mut`] |
//!
//! What differs from C: the data cannot be freed under the work, because dropping it waits.
//!
//! C header: `include/linux/workqueue.h`

use crate::{
    bindings,
    module::InUse,
    workqueue::{
        private::Sealed,
        WorkQueue, //
    }, //
};
use core::ops::Deref;
use kernel::{
    container_of,
    ffi,
    prelude::*,
    sync::LockClassKey,
    time::{
        msecs_to_jiffies,
        Delta, //
    },
    types::Opaque,
    workqueue::Queue, //
};

/// What a work item does.
pub trait Run: Send + Sync + Sized + 'static {
    /// Runs the work, in process context. It never runs twice at a time.
    ///
    /// The work may enqueue itself again through `work`. It must not drop the last owner of
    /// itself: that would wait for this function to return.
    fn run(work: &OwnedWork<Self>);
}

/// A work item and its data.
///
/// # Invariants
///
/// `work` is initialised, its function is [`OwnedWork::run_callback`], and it is the field of
/// a pinned `OwnedWork<T>`.
#[pin_data(PinnedDrop)]
pub struct OwnedWork<T: Run> {
    #[pin]
    work: Opaque<bindings::delayed_work>,
    #[pin]
    data: T,
    _in_use: InUse,
}

// SAFETY: A `delayed_work` can be used from any thread, and `T: Send`.
unsafe impl<T: Run> Send for OwnedWork<T> {}
// SAFETY: The functions of a `delayed_work` synchronise themselves, and `T: Sync`.
unsafe impl<T: Run> Sync for OwnedWork<T> {}

/// Creates an initialiser of an [`OwnedWork`] from one of its data, with a lock class of its own.
#[macro_export]
macro_rules! new_owned_work {
    ($data:expr, $name:literal) => {
        $crate::work::OwnedWork::new(
            $data,
            ::kernel::c_str!($name),
            ::kernel::static_lock_class!(),
            ::kernel::static_lock_class!(),
        )
    };
}
pub use new_owned_work;

impl<T: Run> OwnedWork<T> {
    /// Creates an initialiser. See [`new_owned_work!`](crate::new_owned_work).
    pub fn new<E>(
        data: impl PinInit<T, E>,
        name: &'static CStr,
        key: Pin<&'static LockClassKey>,
        timer_key: Pin<&'static LockClassKey>,
    ) -> impl PinInit<Self, Error>
    where
        Error: From<E>,
    {
        // INVARIANT: `init_work_with_key` initialises `work` with `run_callback`.
        try_pin_init!(Self {
            work <- Opaque::ffi_init(|slot: *mut bindings::delayed_work| {
                // SAFETY: `slot` is valid for writes; the name and the keys live for ever. The timer
                // is used by the workqueue only, as it wants it.
                unsafe {
                    bindings::init_work_with_key(
                        &raw mut (*slot).work,
                        Some(Self::run_callback),
                        false,
                        name.as_char_ptr(),
                        key.as_ptr(),
                    );
                    bindings::timer_init_key(
                        &raw mut (*slot).timer,
                        Some(bindings::delayed_work_timer_fn),
                        bindings::TIMER_IRQSAFE,
                        name.as_char_ptr(),
                        timer_key.as_ptr(),
                    );
                }
            }),
            data <- data,
            _in_use: InUse::new(),
        }? Error)
    }

    /// Enqueues the work, also if it was to run later. Any context.
    ///
    /// Work that is enqueued already goes to the end of this queue. Work that runs at the moment can
    /// be enqueued, and then runs once more. Does nothing when it is disabled.
    pub fn enqueue(&self, queue: &impl WorkQueue) {
        // SAFETY: `queue` is a valid workqueue, whose destruction waits for work that is queued;
        // without a delay it is queued at once. `work` is initialised by the type invariants, and stays
        // so until it has ended: dropping it waits.
        unsafe {
            bindings::mod_delayed_work_on(
                bindings::wq_misc_consts_WORK_CPU_UNBOUND as ffi::c_int,
                queue.as_raw(),
                self.work.get(),
                0,
            )
        };
    }

    /// Enqueues the work after some time, unless it is enqueued already, for whatever time, or
    /// disabled. Any context.
    ///
    /// The queue has to be one that never goes: until the time has come, it does not know of the work,
    /// and so could not wait for it.
    pub fn enqueue_after(&self, queue: &'static Queue, delay: Delta) {
        let delay = msecs_to_jiffies(delay.as_millis().clamp(0, i32::MAX.into()) as u32);
        // SAFETY: As in `enqueue`; and the queue is still there when the timer fires.
        unsafe {
            bindings::queue_delayed_work_on(
                bindings::wq_misc_consts_WORK_CPU_UNBOUND as ffi::c_int,
                queue.as_raw(),
                self.work.get(),
                delay,
            )
        };
    }

    /// Cancels the work, waits until it has ended, and makes every later
    /// [`enqueue`](Self::enqueue) do nothing. Process context, not from the work itself.
    pub fn disable(&self) {
        // SAFETY: `work` is initialised by the type invariants.
        unsafe { bindings::disable_delayed_work_sync(self.work.get()) };
    }

    /// The data, exclusively. Cancels the work first, and waits until it has ended. Process context,
    /// not from the work itself.
    pub fn data_mut(self: Pin<&mut Self>) -> Pin<&mut T> {
        // SAFETY: `work` is initialised by the type invariants. Only through a shared reference could
        // it be enqueued again, and there is none until the one that is returned has ended: that of
        // the work itself ends with it, before this returns.
        unsafe { bindings::cancel_delayed_work_sync(self.work.get()) };
        self.project().data
    }

    /// # Safety
    ///
    /// Only to be called by a workqueue, with the `work` field of an `OwnedWork<T>`.
    unsafe extern "C" fn run_callback(work: *mut bindings::work_struct) {
        // SAFETY: `work` is that of the `delayed_work` of an `OwnedWork<T>`, which is not dropped
        // while this runs: dropping it waits.
        T::run(unsafe {
            let work = container_of!(work, bindings::delayed_work, work);
            // CAST: `Opaque` is a transparent wrapper.
            &*container_of!(work.cast::<Opaque<bindings::delayed_work>>(), Self, work)
        })
    }
}

impl<T: Run> Deref for OwnedWork<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.data
    }
}

#[pinned_drop]
impl<T: Run> PinnedDrop for OwnedWork<T> {
    fn drop(self: Pin<&mut Self>) {
        self.disable();
    }
}

#[kernel::macros::kunit_tests(ferrule_work)]
mod tests {
    use super::*;
    use crate::workqueue::{
        OwnedQueue,
        Priority, //
    };
    use kernel::{
        sync::{
            atomic::{
                Atomic,
                Relaxed, //
            },
            Arc,
            Completion, //
        },
        time::{
            delay::fsleep,
            Delta, //
        },
        workqueue::system, //
    };

    #[pin_data]
    struct Count {
        runs: Arc<Atomic<i32>>,
        wanted: i32,
        #[pin]
        done: Completion,
    }

    impl Count {
        fn new(runs: &Arc<Atomic<i32>>, wanted: i32) -> impl PinInit<Self> {
            let runs = runs.clone();
            pin_init!(Self {
                runs,
                wanted,
                done <- Completion::new(),
            })
        }
    }

    impl Run for Count {
        fn run(work: &OwnedWork<Self>) {
            fsleep(Delta::from_millis(5));
            if work.runs.fetch_add(1, Relaxed) + 1 < work.wanted {
                work.enqueue(system());
            } else {
                work.done.complete_all();
            }
        }
    }

    type Counted = (Pin<KBox<OwnedWork<Count>>>, Arc<Atomic<i32>>);

    fn counted(wanted: i32) -> Result<Counted> {
        let runs = Arc::new(Atomic::new(0), GFP_KERNEL)?;
        let work = KBox::pin_init(
            new_owned_work!(Count::new(&runs, wanted), "ferrule_work_test"),
            GFP_KERNEL,
        )?;
        Ok((work, runs))
    }

    #[test]
    fn work_can_enqueue_itself() -> Result {
        let (work, runs) = counted(3)?;
        work.enqueue(system());
        work.done.wait_for_completion();
        assert_eq!(runs.load(Relaxed), 3);
        Ok(())
    }

    #[test]
    fn disabled_work_has_ended_and_does_not_start() -> Result {
        let (work, runs) = counted(i32::MAX)?;
        work.enqueue(system());
        fsleep(Delta::from_millis(20));
        work.disable();
        let ran = runs.load(Relaxed);
        work.enqueue(system());
        work.enqueue_after(system(), Delta::from_millis(1));
        fsleep(Delta::from_millis(20));
        assert_eq!(runs.load(Relaxed), ran);
        Ok(())
    }

    #[test]
    fn what_is_to_run_later_can_run_at_once() -> Result {
        let (work, runs) = counted(1)?;
        work.enqueue_after(system(), Delta::from_secs(1000));
        work.enqueue_after(system(), Delta::from_millis(1));
        fsleep(Delta::from_millis(50));
        assert_eq!(runs.load(Relaxed), 0);
        work.enqueue(system());
        work.done.wait_for_completion();
        assert_eq!(runs.load(Relaxed), 1);
        Ok(())
    }

    #[test]
    fn what_was_to_run_later_can_be_dropped() -> Result {
        let (work, runs) = counted(1)?;
        work.enqueue_after(system(), Delta::from_millis(20));
        drop(work);
        fsleep(Delta::from_millis(50));
        assert_eq!(runs.load(Relaxed), 0);
        Ok(())
    }

    #[test]
    fn a_queue_that_is_dropped_has_run_what_was_to_run_later() -> Result {
        let (work, runs) = counted(1)?;
        let queue = OwnedQueue::new(c"ferrule_test", Priority::Normal)?;
        work.enqueue_after(system(), Delta::from_millis(20));
        // It is not for the system's queue any more.
        work.enqueue(&queue);
        drop(queue);
        assert_eq!(runs.load(Relaxed), 1);
        fsleep(Delta::from_millis(50));
        assert_eq!(runs.load(Relaxed), 1);
        Ok(())
    }

    #[test]
    fn exclusive_data_is_no_running_works() -> Result {
        let (mut work, runs) = counted(i32::MAX)?;
        work.enqueue(system());
        fsleep(Delta::from_millis(2));
        let data = work.as_mut().data_mut();
        let ran = data.runs.load(Relaxed);
        fsleep(Delta::from_millis(20));
        assert_eq!(runs.load(Relaxed), ran);
        // It can be enqueued again.
        work.enqueue(system());
        fsleep(Delta::from_millis(20));
        assert!(runs.load(Relaxed) > ran);
        Ok(())
    }

    #[test]
    fn dropping_waits() -> Result {
        let (work, runs) = counted(i32::MAX)?;
        work.enqueue(system());
        fsleep(Delta::from_millis(2));
        drop(work);
        let ran = runs.load(Relaxed);
        fsleep(Delta::from_millis(20));
        assert_eq!(runs.load(Relaxed), ran);
        // Its data went with it.
        assert!(Arc::into_unique_or_drop(runs).is_some());
        Ok(())
    }
}
