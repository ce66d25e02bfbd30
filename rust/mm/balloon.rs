// SPDX-License-Identifier: GPL-2.0

//! Pages that a guest gives to its host.
//!
//! # Writing a balloon driver
//!
//! 1. Implement [`Migrate`] for what tells the host about single pages.
//! 2. Keep a [`Balloon`] of it.
//! 3. To inflate: fill a [`Pages<Allocated>`](Pages), [`enqueue`](Balloon::enqueue) it, tell the
//!    host the page frame numbers.
//! 4. To deflate: [`dequeue`](Balloon::dequeue) into a [`Pages<Deflated>`](Pages), tell the host,
//!    then [`free`](Pages::clear) them.
//! 5. Make sure that the host does not use the pages any more before the balloon is dropped.
//!
//! | C | here |
//! | --- | --- |
//! | `struct balloon_dev_info` | [`Balloon`] |
//! | `balloon_page_alloc` | [`Pages::allocate`] |
//! | `balloon_page_list_enqueue` | [`Balloon::enqueue`] |
//! | `balloon_page_list_dequeue` | [`Balloon::dequeue`] |
//! | `migratepage` | [`Migrate`] |
//! | `adjust_managed_page_count` | [`Managed`] |
//!
//! What differs from C: a page is either in a [`Pages`], which frees it when dropped, or in a
//! [`Balloon`], which counts its pages and frees them when dropped. One that is just being migrated
//! counts, and the drop waits for it.
//!
//! C header: `include/linux/balloon.h`

use super::vmstat::Node;
use crate::{
    bindings,
    module::InUse, //
};
use core::{
    marker::PhantomData,
    ptr::{
        self,
        NonNull, //
    }, //
};
use kernel::{
    container_of,
    ffi,
    prelude::*,
    sync::atomic::{
        Atomic,
        Relaxed, //
    },
    time::{
        delay::fsleep,
        Delta, //
    },
    types::Opaque, //
};

/// Pages are just allocated: nobody but the [`Pages`] knows them.
pub struct Allocated(());

/// Pages were in a balloon, and can only be freed.
pub struct Deflated(());

/// Who reclaims memory when little is free.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reclaim {
    /// kswapd, and nobody waits for it.
    Background,
    /// Whoever allocates, as well.
    Direct,
}

/// Some pages on their way into a balloon or out of it. Dropping it frees them.
///
/// # Invariants
///
/// Each page is valid and owned (one reference), and on no list.
pub struct Pages<S> {
    pages: KVec<NonNull<bindings::page>>,
    _state: PhantomData<S>,
}

// SAFETY: Pages can be freed by any thread.
unsafe impl<S> Send for Pages<S> {}

impl<S> Pages<S> {
    /// Makes room for `capacity` pages. Nothing is allocated later but the pages themselves.
    pub fn with_capacity(capacity: usize) -> Result<Self> {
        Ok(Self {
            pages: KVec::with_capacity(capacity, GFP_KERNEL)?,
            _state: PhantomData,
        })
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.pages.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.pages.is_empty()
    }

    /// For how many there is room.
    pub fn capacity(&self) -> usize {
        self.pages.capacity()
    }

    /// Their page frame numbers, in guest pages.
    pub fn pfns(&self) -> impl ExactSizeIterator<Item = u64> + '_ {
        self.pages.iter().map(|page| {
            // SAFETY: By the type invariants the page is valid.
            u64::try_from(unsafe { bindings::ferrule_page_to_pfn(page.as_ptr()) }).unwrap_or(0)
        })
    }

    /// Puts them in the order of their page frame numbers.
    pub fn sort(&mut self) {
        // CAST: A `NonNull` is a pointer.
        let pages = self.pages.as_mut_ptr().cast::<*mut bindings::page>();
        // SAFETY: By the type invariants the pages are valid. They stay the same, in another order.
        unsafe { bindings::ferrule_sort_pages(pages, self.pages.len()) };
    }

    /// Frees them. Process context.
    pub fn clear(&mut self) {
        // CAST: A `NonNull` is a pointer.
        let pages = self.pages.as_mut_ptr().cast::<*mut bindings::page>();
        // SAFETY: By the type invariants the pages are valid and their references owned. They are taken
        // off the vector below.
        unsafe { bindings::ferrule_put_pages(pages, self.pages.len()) };
        self.pages.clear();
    }
}

impl Pages<Allocated> {
    /// Takes over a page that was allocated otherwise. If there is no room for it, it is freed.
    ///
    /// # Safety
    ///
    /// The page is valid, and the caller owns a reference, which is passed on.
    pub(super) unsafe fn push(&mut self, page: NonNull<bindings::page>) {
        // INVARIANT: By the requirements of this function.
        if self.pages.push_within_capacity(page).is_err() {
            // SAFETY: By the requirements of this function.
            unsafe { bindings::ferrule_put_page(page.as_ptr()) };
        }
    }

    /// Allocates pages, at most `count`, of one node or of any, while there is room. Process context.
    /// Returns how many: less when no more are to be had.
    ///
    /// They are taken off the free lists as long as these have plenty. Then one may come out of
    /// reclaim, but neither out of the reserves nor by the OOM killer. A number that is a power of two
    /// comes in one piece, if that is free and others reclaim nothing for it.
    pub fn allocate(&mut self, count: usize, node: Option<Node>, reclaim: Reclaim) -> usize {
        let (node, only_there) = match node {
            Some(node) => (node.id(), true),
            None => (bindings::NUMA_NO_NODE, false),
        };
        let mut left = count.min(self.capacity() - self.len());
        let wanted = left;
        let in_background = reclaim == Reclaim::Background;
        // SAFETY: There is room for so many elements.
        unsafe { ptr::write_bytes(self.pages.spare_capacity_mut().as_mut_ptr(), 0, left) };
        while left > 0 {
            let array = self.pages.spare_capacity_mut().as_mut_ptr();
            // CAST: A pointer that is not null is a `NonNull`.
            let array = array.cast::<*mut bindings::page>();
            // SAFETY: There is room for `left` elements. Those that are null are what the allocator
            // fills in, from the first on.
            let got = unsafe {
                bindings::ferrule_alloc_balloon_pages(node, only_there, in_background, left, array)
            };
            if got == 0 {
                break;
            }
            // INVARIANT: These pages were just allocated.
            //
            // SAFETY: They are the first elements of the spare capacity, and none is null.
            unsafe { self.pages.inc_len(got) };
            left -= got;
        }
        wanted - left
    }
}

impl<S> Drop for Pages<S> {
    fn drop(&mut self) {
        self.clear();
    }
}

/// A page during its migration.
///
/// # Invariants
///
/// The page is valid for the lifetime `'a`.
pub struct PageRef<'a>(NonNull<bindings::page>, PhantomData<&'a ()>);

impl PageRef<'_> {
    /// Its page frame number, in guest pages.
    pub fn pfn(&self) -> u64 {
        // SAFETY: By the type invariants the page is valid.
        u64::try_from(unsafe { bindings::ferrule_page_to_pfn(self.0.as_ptr()) }).unwrap_or(0)
    }
}

/// Lets compaction replace pages of a balloon by others.
pub trait Migrate: Send + Sync + 'static {
    /// Gives `new` to the host and takes back `old`.
    ///
    /// Process context, with the page locked, in the task that compacts memory; this may be the one
    /// that allocates a page for the balloon, so locks that are held then can only be tried.
    ///
    /// # Errors
    ///
    /// [`EAGAIN`] when it cannot be done just now. Nothing is changed then: `old` stays in the
    /// balloon and `new` is freed, so the host must not have been told of `new`.
    fn migrate(&self, new: PageRef<'_>, old: PageRef<'_>) -> Result;
}

/// Whether pages in the balloon count as the guest's memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Managed {
    /// They do: the host gives them back when the guest needs them.
    Counted,
    /// They do not: `MemTotal` shrinks (`adjust_managed_page_count`).
    Removed,
}

/// Pages that are the host's for now.
///
/// # Invariants
///
/// - `info` is initialised, and the one of this `Balloon`. Pages get in and out by the functions of
///   `mm/balloon.c` only.
/// - `count` is the number of pages in `info`, those isolated for migration included, or more while
///   `enqueue` or `dequeue` is at work.
#[pin_data(PinnedDrop)]
pub struct Balloon<M: Migrate> {
    #[pin]
    info: Opaque<bindings::balloon_dev_info>,
    count: Atomic<usize>,
    migrate: M,
    _in_use: InUse,
}

// SAFETY: A `balloon_dev_info` can be used from any thread, and `M: Send`.
unsafe impl<M: Migrate> Send for Balloon<M> {}
// SAFETY: The functions of `mm/balloon.c` lock what they use, `migratepage` and
// `adjust_managed_page_count` do not change, and `M: Sync`.
unsafe impl<M: Migrate> Sync for Balloon<M> {}

impl<M: Migrate> Balloon<M> {
    /// Creates an initialiser of an empty balloon.
    pub fn new(migrate: M, managed: Managed) -> impl PinInit<Self> {
        // INVARIANT: The balloon is initialised and empty.
        pin_init!(Self {
            info <- Opaque::ffi_init(|slot: *mut bindings::balloon_dev_info| {
                // SAFETY: `slot` is valid for writes.
                unsafe {
                    bindings::ferrule_balloon_devinfo_init(slot);
                    #[cfg(CONFIG_BALLOON_MIGRATION)]
                    {
                        (*slot).migratepage = Some(Self::migrate_callback);
                    }
                    (*slot).adjust_managed_page_count = managed == Managed::Removed;
                }
            }),
            count: Atomic::new(0),
            migrate,
            _in_use: InUse::new(),
        })
    }

    /// How many pages are in the balloon. Any context.
    pub fn len(&self) -> usize {
        self.count.load(Relaxed)
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Puts all of `pages` into the balloon. From then on they may be migrated.
    pub fn enqueue(&self, pages: &mut Pages<Allocated>) {
        let count = pages.len();
        let add = |list| {
            while let Some(page) = pages.pages.pop() {
                // SAFETY: The page is valid and on no list by the invariants of `Pages`; the list
                // is initialised.
                unsafe { bindings::ferrule_page_list_add_tail(page.as_ptr(), list) };
            }
        };
        // SAFETY: By the invariants of `Pages`, which has none of them any more.
        unsafe { self.enqueue_list(count, add) };
    }

    /// Puts single pages into the balloon that `add` puts on a list, so many.
    ///
    /// # Safety
    ///
    /// Those on the list are valid, nobody else knows them, and the caller's reference to each is
    /// passed on.
    pub(super) unsafe fn enqueue_list(
        &self,
        count: usize,
        add: impl FnOnce(*mut bindings::list_head),
    ) {
        // Before, so that nobody takes out more than are counted.
        self.count.fetch_add(count, Relaxed);
        with_list(|list| {
            add(list);
            // SAFETY: `info` is initialised by the type invariants. The pages are ours by the
            // requirements of this function.
            unsafe { bindings::balloon_page_list_enqueue(self.info.get(), list) };
        });
    }

    /// Takes pages out of the balloon, at most `max`, while `pages` has room. Returns how many.
    ///
    /// It may be none although there are pages: those that are being migrated cannot be taken.
    pub fn dequeue(&self, pages: &mut Pages<Deflated>, max: usize) -> usize {
        let max = max.min(pages.capacity() - pages.len());
        let count = with_list(|list| {
            // SAFETY: `info` and the list are initialised.
            let count = unsafe { bindings::balloon_page_list_dequeue(self.info.get(), list, max) };
            // SAFETY: The list is initialised and holds pages.
            while let Some(page) = NonNull::new(unsafe { bindings::ferrule_page_list_pop(list) }) {
                // There is room: `dequeue` returns no more than `max`.
                //
                // INVARIANT: The page was taken out of the balloon, with its reference, and off
                // the list.
                let _ = pages.pages.push_within_capacity(page);
            }
            count
        });
        self.count.fetch_sub(count, Relaxed);
        count
    }

    /// Takes all pages out and frees them, waiting for those that are being migrated. The host must not
    /// use them any more. Process context.
    pub fn empty(&self) {
        while !self.is_empty() {
            let count = with_list(|list| {
                // SAFETY: `info` and the list are initialised.
                let count = unsafe {
                    bindings::balloon_page_list_dequeue(self.info.get(), list, usize::MAX)
                };
                loop {
                    // SAFETY: The list is initialised and holds pages.
                    let page = unsafe { bindings::ferrule_page_list_pop(list) };
                    if page.is_null() {
                        break;
                    }
                    // SAFETY: The page was taken out of the balloon with its reference.
                    unsafe { bindings::ferrule_put_page(page) };
                }
                count
            });
            self.count.fetch_sub(count, Relaxed);
            if !self.is_empty() {
                fsleep(Delta::from_millis(1));
            }
        }
    }

    /// # Safety
    ///
    /// Only to be called by `mm/balloon.c`, with the `info` of a `Balloon<M>` and two valid pages.
    #[cfg(CONFIG_BALLOON_MIGRATION)]
    unsafe extern "C" fn migrate_callback(
        info: *mut bindings::balloon_dev_info,
        new: *mut bindings::page,
        old: *mut bindings::page,
        _mode: bindings::migrate_mode,
    ) -> ffi::c_int {
        // CAST: `Opaque` is a transparent wrapper.
        let info = info.cast::<Opaque<bindings::balloon_dev_info>>();
        // SAFETY: `info` is the field of a `Balloon<M>`. It is not dropped meanwhile: `old` is in
        // it, and its drop waits until that is dequeued.
        let this = unsafe { &*container_of!(info, Self, info) };
        // INVARIANT: Both pages are valid for the duration of this call.
        //
        // SAFETY: Neither is null.
        let (new, old) = unsafe {
            (
                PageRef(NonNull::new_unchecked(new), PhantomData),
                PageRef(NonNull::new_unchecked(old), PhantomData),
            )
        };
        kernel::error::from_result(|| {
            this.migrate
                .migrate(new, old)
                // `mm/balloon.c` gives a meaning of its own to some errors.
                .map_err(|_| EAGAIN)
                .map(|()| 0)
        })
    }
}

#[pinned_drop]
impl<M: Migrate> PinnedDrop for Balloon<M> {
    fn drop(self: Pin<&mut Self>) {
        self.empty();
    }
}

/// Calls a function with an empty list, which is empty again when it returns.
fn with_list<R>(f: impl FnOnce(*mut bindings::list_head) -> R) -> R {
    let mut list = bindings::list_head {
        next: ptr::null_mut(),
        prev: ptr::null_mut(),
    };
    let list = &raw mut list;
    // SAFETY: `list` is valid for writes.
    unsafe {
        (*list).next = list;
        (*list).prev = list;
    }
    f(list)
}

#[kernel::macros::kunit_tests(ferrule_mm_balloon)]
mod tests {
    use super::*;
    use crate::mm::vmstat;
    use kernel::page::PAGE_SIZE;

    struct Stay;

    impl Migrate for Stay {
        fn migrate(&self, _new: PageRef<'_>, _old: PageRef<'_>) -> Result {
            Err(EAGAIN)
        }
    }

    fn allocated(count: usize) -> Result<Pages<Allocated>> {
        let mut pages = Pages::with_capacity(count)?;
        if pages.allocate(count, None, Reclaim::Direct) < count {
            return Err(ENOMEM);
        }
        Ok(pages)
    }

    #[test]
    fn pages_have_room_for_as_many_as_asked_for() -> Result {
        let mut pages = allocated(8)?;
        while pages.len() < pages.capacity() {
            let room = pages.capacity() - pages.len();
            let node = vmstat::nodes().next();
            assert_eq!(pages.allocate(room + 1, node, Reclaim::Background), room);
        }
        assert_eq!(pages.allocate(1, None, Reclaim::Direct), 0);
        assert_eq!(pages.pfns().len(), pages.len());
        pages.sort();
        assert!(pages.pfns().is_sorted());
        pages.clear();
        assert!(pages.is_empty());
        Ok(())
    }

    #[test]
    fn pages_lie_together_when_memory_is_free() -> Result {
        // After boot it is.
        let pages = allocated(64)?;
        let first = pages.pfns().next().ok_or(EINVAL)?;
        assert!(pages.pfns().eq(first..first + 64));
        Ok(())
    }

    #[test]
    fn pages_in_the_balloon_are_not_the_guests() -> Result {
        let balloon = KBox::pin_init(Balloon::new(Stay, Managed::Removed), GFP_KERNEL)?;
        let before = vmstat::memory().total;
        let mut pages = allocated(64)?;
        balloon.enqueue(&mut pages);
        assert!(pages.is_empty());
        assert_eq!(balloon.len(), 64);
        assert_eq!(vmstat::memory().total, before - 64 * PAGE_SIZE as u64);

        let mut outgoing = Pages::with_capacity(64)?;
        assert_eq!(balloon.dequeue(&mut outgoing, 24), 24);
        assert_eq!(outgoing.len(), 24);
        assert_eq!(balloon.len(), 40);
        assert_eq!(vmstat::memory().total, before - 40 * PAGE_SIZE as u64);
        outgoing.clear();
        assert_eq!(balloon.dequeue(&mut outgoing, 64), 40);
        assert!(balloon.is_empty());
        assert_eq!(balloon.dequeue(&mut outgoing, 64), 0);
        assert_eq!(vmstat::memory().total, before);
        Ok(())
    }

    #[test]
    fn a_dropped_balloon_gives_its_pages_back() -> Result {
        let before = vmstat::memory().total;
        let balloon = KBox::pin_init(Balloon::new(Stay, Managed::Removed), GFP_KERNEL)?;
        balloon.enqueue(&mut allocated(100)?);
        drop(balloon);
        assert_eq!(vmstat::memory().total, before);
        Ok(())
    }

    #[test]
    fn counted_pages_stay_the_guests() -> Result {
        let before = vmstat::memory().total;
        let balloon = KBox::pin_init(Balloon::new(Stay, Managed::Counted), GFP_KERNEL)?;
        balloon.enqueue(&mut allocated(10)?);
        assert_eq!(vmstat::memory().total, before);
        Ok(())
    }
}
