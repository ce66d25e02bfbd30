// SPDX-License-Identifier: GPL-2.0

//! Free page reporting: the guest tells its host which memory it does not use.
//!
//! 1. Implement [`Reporter`]: what passes [`FreePages`] on to the host.
//! 2. Keep a [`Registration`] of it. There can be one in the system.
//!
//! | C | here |
//! | --- | --- |
//! | `struct page_reporting_dev_info` | [`Registration`] |
//! | `report` | [`Reporter::report`] |
//! | `page_reporting_register`, `page_reporting_unregister` | [`Registration::new`], drop |
//!
//! What differs from C: `report` need not wait until the host is done. Memory management gets the
//! pages back when the [`FreePages`] is dropped, so whoever has it, be it a queue, keeps the guest
//! from using them.
//!
//! C header: `include/linux/page_reporting.h`

use crate::{
    bindings,
    module::InUse,
    virtio::{
        Direction,
        Lend,
        WaitQueue, //
    }, //
};
use kernel::{
    container_of,
    ffi,
    prelude::*,
    sync::{
        atomic::{
            Acquire,
            Atomic,
            Relaxed,
            Release, //
        },
        Arc, //
    },
    time::{
        msecs_to_jiffies,
        Delta, //
    },
    types::Opaque, //
};

/// How often the reporter is reminded.
const STEP: Delta = Delta::from_millis(100);

/// Passes free pages on to the host.
pub trait Reporter: Send + Sync + 'static {
    /// Sends pages to the host. Memory management waits until they are dropped. Process context, on
    /// a freezable queue; never twice at the same time.
    ///
    /// # Errors
    ///
    /// An error ends this round of reports; there will be another one when memory is freed.
    fn report(&self, pages: FreePages) -> Result;

    /// Looks for what was missed, an interrupt or what the host was told. Called now and then while
    /// memory management waits. Process context.
    fn remind(&self);
}

/// Pages that nobody uses while this exists.
///
/// # Invariants
///
/// `list` is a scatter-gather list of `count` entries, 1 or more, each of which is free memory that
/// was taken off the free lists. All of it stays so until `gate` is open.
pub struct FreePages {
    list: *mut bindings::scatterlist,
    count: ffi::c_uint,
    gate: Arc<Gate>,
}

// SAFETY: The list is used by whoever has this, on any thread.
unsafe impl Send for FreePages {}

impl FreePages {
    /// What tells later whether they have been dropped.
    pub fn watch(&self) -> Watch {
        Watch(self.gate.clone())
    }
}

/// Tells whether memory management still waits for [`FreePages`].
#[derive(Clone)]
pub struct Watch(Arc<Gate>);

impl Watch {
    /// Waits until memory management has its pages, at most for `timeout`. Says whether it has.
    /// Process context.
    pub fn wait(&self, timeout: Delta) -> bool {
        self.0.wait(timeout)
    }
}

// SAFETY: By the type invariants nobody touches the pages until this is dropped.
unsafe impl Lend for FreePages {
    fn direction(&self) -> Direction {
        Direction::FromDevice
    }

    fn lend<R>(
        &mut self,
        f: impl FnOnce(*mut bindings::scatterlist, ffi::c_uint) -> R,
    ) -> Result<R> {
        Ok(f(self.list, self.count))
    }

    fn size(&mut self) -> usize {
        // The host writes nothing that anybody reads.
        0
    }
}

impl Drop for FreePages {
    fn drop(&mut self) {
        self.gate.open();
    }
}

/// Where memory management waits for its pages.
#[pin_data]
struct Gate {
    is_open: Atomic<bool>,
    #[pin]
    waiters: WaitQueue,
}

impl Gate {
    fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            is_open: Atomic::new(true),
            waiters <- WaitQueue::new(c"page_reporting", kernel::static_lock_class!()),
        })
    }

    fn close(&self) {
        self.is_open.store(false, Relaxed);
    }

    /// Any context.
    fn open(&self) {
        // Pairs with the acquire in `wait`: the list is not used after this.
        self.is_open.store(true, Release);
        self.waiters.wake();
    }

    /// Says whether it is open.
    fn wait(&self, timeout: Delta) -> bool {
        let timeout = msecs_to_jiffies(timeout.as_millis().clamp(0, i32::MAX.into()) as u32);
        self.waiters
            .wait(timeout, || self.is_open.load(Acquire).then_some(()))
            .is_some()
    }
}

/// Keeps a [`Reporter`] registered.
///
/// # Invariants
///
/// `info` is registered.
#[pin_data(PinnedDrop)]
pub struct Registration<R: Reporter> {
    reporter: Arc<R>,
    gate: Arc<Gate>,
    #[pin]
    info: Opaque<bindings::page_reporting_dev_info>,
    _in_use: InUse,
}

// SAFETY: It can be unregistered by any thread.
unsafe impl<R: Reporter> Send for Registration<R> {}
// SAFETY: There is nothing to do with a reference.
unsafe impl<R: Reporter> Sync for Registration<R> {}

impl<R: Reporter> Registration<R> {
    /// Registers a reporter that takes up to `capacity` pieces of memory at a time, at least 1, of
    /// at least `order`: 0 to `MAX_PAGE_ORDER`, [`None`] for that of a page block. (What the kernel
    /// was told to use by `page_reporting.page_reporting_order` goes before both.) Process context.
    ///
    /// # Errors
    ///
    /// [`EBUSY`] when there is another one.
    pub fn new(reporter: Arc<R>, capacity: usize, order: Option<u32>) -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            reporter,
            gate: Arc::pin_init(Gate::new(), GFP_KERNEL)?,
            _in_use: InUse::new(),
            // INVARIANT: Registered when it succeeds. Last: `report` may be called at once.
            info <- Opaque::try_ffi_init(|slot: *mut bindings::page_reporting_dev_info| {
                // SAFETY: `slot` is valid for writes, stays in place, and is unregistered before it
                // goes.
                unsafe {
                    slot.write(pin_init::zeroed());
                    (*slot).report = Some(Self::report_callback);
                    (*slot).order =
                        order.unwrap_or(bindings::PAGE_REPORTING_ORDER_UNSPECIFIED as ffi::c_uint);
                    (*slot).capacity = capacity.clamp(1, u32::MAX as usize) as ffi::c_uint;
                    kernel::error::to_result(bindings::page_reporting_register(slot))
                }
            }),
        })
    }

    /// # Safety
    ///
    /// Only to be called by memory management, with the `info` of a `Registration<R>` and a list of
    /// free memory, which it takes back after this has returned.
    unsafe extern "C" fn report_callback(
        info: *mut bindings::page_reporting_dev_info,
        list: *mut bindings::scatterlist,
        count: ffi::c_uint,
    ) -> ffi::c_int {
        // CAST: `Opaque` is a transparent wrapper.
        let info = info.cast::<Opaque<bindings::page_reporting_dev_info>>();
        // SAFETY: `info` is the field of a `Registration<R>` whose other fields were initialised
        // before it was registered, and which lives until it is unregistered.
        let (reporter, gate) = unsafe {
            let this = container_of!(info, Self, info);
            (&(*this).reporter, &(*this).gate)
        };
        gate.close();
        // INVARIANT: By the requirements of this function, and because it waits for the gate.
        let pages = FreePages {
            list,
            count,
            gate: gate.clone(),
        };
        let result = reporter.report(pages);
        while !gate.wait(STEP) {
            reporter.remind();
        }
        kernel::error::from_result(|| result.map(|()| 0))
    }
}

#[pinned_drop]
impl<R: Reporter> PinnedDrop for Registration<R> {
    fn drop(self: Pin<&mut Self>) {
        // SAFETY: By the type invariants. Waits for `report` to return.
        unsafe { bindings::page_reporting_unregister(self.info.get()) };
    }
}

/// What the guest does to memory when it is freed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OnFree {
    /// Nothing.
    Nothing,
    /// It fills it with this byte, and expects to find it later: `init_on_free`, `page_poison`.
    Fills(u8),
}

/// What the guest does to memory when it is freed. Any context.
pub fn on_free() -> OnFree {
    // SAFETY: Both only look at settings that do not change after boot.
    unsafe {
        if bindings::ferrule_want_init_on_free() {
            OnFree::Fills(0)
        } else if bindings::ferrule_page_poisoning_enabled() {
            OnFree::Fills(bindings::ferrule_mm_FERRULE_PAGE_POISON as u8)
        } else {
            OnFree::Nothing
        }
    }
}
