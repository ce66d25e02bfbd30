// SPDX-License-Identifier: GPL-2.0

//! Memory that a guest gives to its host in large pieces.
//!
//! A *block* is memory of `2^order` pages in one piece, as the page allocator has it. It is for a
//! host that is told of pieces and not of pages: see [`Balloon`](super::balloon::Balloon) for
//! those. Blocks cannot be migrated. Compaction has nothing to gain from those of the size of a page
//! block and above; these are not taken from where only movable memory may be (`ZONE_MOVABLE`, CMA),
//! and have to be [freed](Inflated::free_within) for memory that goes
//! [offline](super::hotplug). Smaller ones would keep the rest of their page block
//! from ever becoming a huge page: they should not stay blocks for long, and are allocated as what
//! can be moved.
//!
//! 1. To inflate: fill a [`Blocks`] by [`allocate`](Blocks::allocate), lend it to the device,
//!    [split](Blocks::split_small) those that are smaller than a page block into pages of a
//!    [`Balloon`], then [`put`](Inflated::put) the others where inflated blocks are kept.
//! 2. To deflate: [`take`](Inflated::take) a block, which is free when it is dropped. One that is too
//!    large is [split](Block::split) into pages for a [`Balloon`](super::balloon::Balloon).
//!
//! | C | here |
//! | --- | --- |
//! | `alloc_pages`, `__free_pages` | [`Blocks::allocate`], [`Blocks::compact`], drop |
//! | `split_page` | [`Block::split`] |
//! | `adjust_managed_page_count` | [`Managed`] |
//! | a list of pages through `lru` | [`Kept`] |
//! | `NR_BALLOON_PAGES`, `BALLOON_INFLATE`, `BALLOON_DEFLATE` | [`Inflated`] |
//!
//! C headers: `include/linux/gfp.h`, `include/linux/mm.h`

use super::{
    balloon::{
        Allocated,
        Balloon,
        Managed,
        Migrate,
        Pages, //
    },
    vmstat::Node, //
};
use crate::{
    bindings,
    virtio::{
        Direction,
        Lend, //
    }, //
};
use core::{
    mem::{
        self,
        ManuallyDrop, //
    },
    ops::Range,
    ptr::NonNull, //
};
use kernel::{
    ffi,
    new_spinlock,
    page::PAGE_SIZE,
    prelude::*,
    sync::SpinLock, //
};

/// The order of the largest blocks that there are.
pub const MAX_ORDER: u32 = bindings::ferrule_mm_FERRULE_MAX_PAGE_ORDER;

/// The order of a page block: the memory within which pages are kept together that can be moved, or
/// cannot.
pub fn page_block_order() -> u32 {
    // SAFETY: It only looks at a setting that does not change after boot.
    unsafe { bindings::ferrule_page_block_order() }
}

/// Whether memory can be compacted. User-mode Linux with several CPUs spoils programs whose memory is moved
/// (7.3).
pub const CAN_COMPACT: bool = cfg!(CONFIG_COMPACTION) && !cfg!(CONFIG_UML);

/// How many pages have to be free for compaction to make a block of this order, beyond the low watermark
/// (`compact_gap`).
pub const fn compaction_room(order: u32) -> usize {
    2 << order
}

const ORDERS: usize = MAX_ORDER as usize + 1;

/// A block of memory. Dropping it frees it. Any context.
///
/// # Invariants
///
/// `page` is the first of `2^order` pages that were allocated in one piece, and are owned.
pub struct Block {
    page: NonNull<bindings::page>,
    order: u32,
}

// SAFETY: Pages can be freed by any thread.
unsafe impl Send for Block {}

impl Block {
    /// So many pages, as a power of two.
    pub fn order(&self) -> u32 {
        self.order
    }

    /// The page frame numbers of its pages, in guest pages.
    pub fn pfns(&self) -> impl ExactSizeIterator<Item = u64> {
        // SAFETY: By the type invariants the page is valid.
        let first = unsafe { bindings::ferrule_page_to_pfn(self.page.as_ptr()) };
        (0..1_u32 << self.order).map(move |page| first as u64 + u64::from(page))
    }

    fn into_raw(self) -> (NonNull<bindings::page>, u32) {
        let this = ManuallyDrop::new(self);
        (this.page, this.order)
    }

    /// Makes single pages of it, and puts them into a balloon.
    fn enqueue<M: Migrate>(self, balloon: &Balloon<M>) {
        let (page, order) = self.into_raw();
        // SAFETY: By the type invariants these are pages in one piece, which we own.
        unsafe { bindings::ferrule_split_block(page.as_ptr(), order) };
        let add = |list| {
            for nth in 0..1_u32 << order {
                // SAFETY: One of those pages, on no list; the list is initialised.
                unsafe {
                    let page = bindings::ferrule_nth_page(page.as_ptr(), nth);
                    bindings::ferrule_page_list_add_tail(page, list);
                }
            }
        };
        // SAFETY: Nobody else knows these pages, and each has a reference of its own now, which is
        // passed on.
        unsafe { balloon.enqueue_list(1 << order, add) };
    }

    /// Frees so many of its pages, at most all, and returns the others one by one.
    ///
    /// # Errors
    ///
    /// [`ENOSPC`] and nothing done when there is no room for them.
    pub fn split(self, free: usize, rest: &mut Pages<Allocated>) -> Result {
        let count = 1_usize << self.order;
        let free = free.min(count);
        if count - free > rest.capacity() - rest.len() {
            return Err(ENOSPC);
        }
        let (page, order) = self.into_raw();
        // SAFETY: By the type invariants these are pages in one piece, which we own.
        unsafe { bindings::ferrule_split_block(page.as_ptr(), order) };
        for nth in 0..count as u32 {
            // SAFETY: One of those pages, with a reference of its own now.
            let page = unsafe { bindings::ferrule_nth_page(page.as_ptr(), nth) };
            if (nth as usize) < free {
                // SAFETY: As above.
                unsafe { bindings::ferrule_put_page(page) };
            } else if let Some(page) = NonNull::new(page) {
                // SAFETY: As above; the reference is passed on.
                unsafe { rest.push(page) };
            }
        }
        Ok(())
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        // SAFETY: By the type invariants.
        unsafe { bindings::ferrule_free_block(self.page.as_ptr(), self.order) };
    }
}

/// Some blocks on their way into a balloon. Dropping it frees them.
///
/// # Invariants
///
/// `parts` has room for as many as `blocks`.
pub struct Blocks {
    blocks: KVec<Block>,
    parts: KVec<bindings::scatterlist>,
}

// SAFETY: The pages that `parts` points to can be used by any thread.
unsafe impl Send for Blocks {}

impl Blocks {
    /// Makes room for `capacity` blocks. Nothing is allocated later but the blocks themselves.
    pub fn with_capacity(capacity: usize) -> Result<Self> {
        Ok(Self {
            blocks: KVec::with_capacity(capacity, GFP_KERNEL)?,
            parts: KVec::with_capacity(capacity, GFP_KERNEL)?,
        })
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.blocks.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.blocks.is_empty()
    }

    /// Whether there is no room for another one.
    pub fn is_full(&self) -> bool {
        self.blocks.len() == self.blocks.capacity()
    }

    /// Allocates one block more, of one node or of any, of memory that is free as it is: without
    /// reclaim or compaction, and not out of the reserves. Whole page blocks do not come from where
    /// only what can be moved may be. Any context but hard interrupts.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`] when no block of this order is free, [`ENOSPC`] when there is no room.
    pub fn allocate(&mut self, order: u32, node: Option<Node>) -> Result {
        if self.is_full() {
            return Err(ENOSPC);
        }
        if order > MAX_ORDER {
            return Err(EINVAL);
        }
        let (node, only_there) = match node {
            Some(node) => (node.id(), true),
            None => (bindings::NUMA_NO_NODE, false),
        };
        // SAFETY: Can be called in such a context. The node has its data, by its invariants.
        let page = unsafe { bindings::ferrule_alloc_block(node, only_there, order, false, false) };
        // SAFETY: As was just allocated.
        unsafe { self.push(page, order) }
    }

    /// As [`allocate`](Self::allocate), but has the memory of a node compacted if none is free, as
    /// long as a zone has [`compaction_room`] free beyond the low watermark. Nothing is reclaimed.
    ///
    /// Process context. It may migrate pages of a [`Balloon`].
    ///
    /// # Errors
    ///
    /// [`ENOMEM`] when there is no block all the same, [`ENOSPC`] when there is no room in `self`.
    pub fn compact(&mut self, order: u32, node: Node) -> Result {
        self.compact_for(order, node, false)
    }

    /// As [`compact`](Self::compact). When there is none, kswapd is woken, and reclaims up to about
    /// twice as much as a block. It has compaction look again at what it skips for it failed there: that happens
    /// when kswapd goes to sleep, and at no other time.
    pub fn compact_anew(&mut self, order: u32, node: Node) -> Result {
        self.compact_for(order, node, true)
    }

    fn compact_for(&mut self, order: u32, node: Node, anew: bool) -> Result {
        if self.is_full() {
            return Err(ENOSPC);
        }
        if order > MAX_ORDER {
            return Err(EINVAL);
        }
        // SAFETY: As above; it may sleep in this context.
        let page =
            unsafe { bindings::ferrule_alloc_block(node.id(), true, order, CAN_COMPACT, anew) };
        // SAFETY: As was just allocated.
        unsafe { self.push(page, order) }
    }

    /// Puts in what was allocated.
    ///
    /// # Safety
    ///
    /// `page` is null, or the first of `2^order` pages that were allocated in one piece. They are passed
    /// on.
    unsafe fn push(&mut self, page: *mut bindings::page, order: u32) -> Result {
        let page = NonNull::new(page).ok_or(ENOMEM)?;
        // INVARIANT: Just allocated.
        let block = Block { page, order };
        self.blocks.push_within_capacity(block).map_err(|_| ENOSPC)
    }

    /// Takes those out that are smaller than a page block, and puts their pages into a balloon: there they
    /// can be migrated. The host has to have them. Process context.
    pub fn split_small<M: Migrate>(&mut self, balloon: &Balloon<M>) {
        let order = page_block_order();
        let mut nth = 0;
        while let Some(block) = self.blocks.get(nth) {
            if block.order >= order {
                nth += 1;
            } else if let Ok(block) = self.blocks.remove(nth) {
                block.enqueue(balloon);
            }
        }
    }
}

// SAFETY: The list is made of blocks that are owned by the value, whose memory nobody touches.
unsafe impl Lend for Blocks {
    fn direction(&self) -> Direction {
        Direction::FromDevice
    }

    fn lend<R>(
        &mut self,
        f: impl FnOnce(*mut bindings::scatterlist, ffi::c_uint) -> R,
    ) -> Result<R> {
        if self.blocks.is_empty() {
            return Err(EINVAL);
        }
        let parts = self.parts.spare_capacity_mut();
        let list = parts.as_mut_ptr().cast::<bindings::scatterlist>();
        let count = self.blocks.len().min(parts.len());
        // SAFETY: By the type invariants there is room for so many.
        unsafe { bindings::sg_init_table(list, count as ffi::c_uint) };
        for (nth, block) in self.blocks.iter().take(count).enumerate() {
            // SAFETY: As above; the block is valid by its invariants.
            unsafe {
                bindings::ferrule_sg_set_block(list.add(nth), block.page.as_ptr(), block.order)
            };
        }
        Ok(f(list, count as ffi::c_uint))
    }

    fn size(&mut self) -> usize {
        self.blocks
            .iter()
            .map(|block| PAGE_SIZE << block.order)
            .sum()
    }
}

/// Blocks that are the host's for now. Dropping it frees them.
#[pin_data(PinnedDrop)]
pub struct Inflated {
    is_managed: bool,
    #[pin]
    lists: SpinLock<Lists>,
}

/// # Invariants
///
/// For each order the first of some blocks, owned by the list. `page->private` of each is the next
/// one's address, or 0. There are `counts` of them.
struct Lists {
    first: [Option<NonNull<bindings::page>>; ORDERS],
    counts: [usize; ORDERS],
}

// SAFETY: The blocks are owned by the lists, and can be used by any thread.
unsafe impl Send for Lists {}

impl Lists {
    // INVARIANT: They are empty.
    const EMPTY: Self = Self {
        first: [None; ORDERS],
        counts: [0; ORDERS],
    };

    fn new() -> impl PinInit<SpinLock<Self>> {
        new_spinlock!(Self::EMPTY)
    }

    fn push(&mut self, block: Block) {
        let (page, order) = block.into_raw();
        let order = order as usize;
        let next = self.first[order].map_or(0, |next| next.as_ptr() as ffi::c_ulong);
        // SAFETY: The page is valid, and `private` belongs to its owner.
        unsafe { bindings::ferrule_set_page_private(page.as_ptr(), next) };
        // INVARIANT: It is the first one now.
        self.first[order] = Some(page);
        self.counts[order] += 1;
    }

    fn pop(&mut self, order: usize) -> Option<Block> {
        let page = self.first[order]?;
        // SAFETY: By the type invariants the page is valid, and `private` what `push` made it.
        let next = unsafe { bindings::ferrule_page_private(page.as_ptr()) };
        // SAFETY: As above. Nobody expects it to be of any use.
        unsafe { bindings::ferrule_set_page_private(page.as_ptr(), 0) };
        // INVARIANT: The list begins with the next one.
        self.first[order] = NonNull::new(next as *mut bindings::page);
        self.counts[order] -= 1;
        // INVARIANT: By the type invariants. The list does not own it any more.
        Some(Block {
            page,
            order: order as u32,
        })
    }
}

/// How many pages so many blocks of each order have.
fn pages_of(counts: [usize; ORDERS]) -> usize {
    (0..).zip(counts).map(|(order, count)| count << order).sum()
}

impl Inflated {
    /// Creates an initialiser of none.
    pub fn new(managed: Managed) -> impl PinInit<Self> {
        pin_init!(Self {
            is_managed: managed == Managed::Removed,
            lists <- Lists::new(),
        })
    }

    /// How many pages there are. Process context.
    pub fn pages(&self) -> usize {
        pages_of(self.counts())
    }

    /// How many blocks of each order. Process context.
    pub fn counts(&self) -> [usize; ORDERS] {
        self.lists.lock().counts
    }

    /// Puts all of `blocks` in: they are not the guest's any more. Process context.
    pub fn put(&self, blocks: &mut Blocks) {
        while let Some(block) = blocks.blocks.pop() {
            // SAFETY: The block is valid by its invariants.
            unsafe {
                bindings::ferrule_block_inflated(block.page.as_ptr(), block.order, self.is_managed)
            };
            self.lists.lock().push(block);
        }
    }

    /// Takes the largest block of at most this order out, if there is one. Process context.
    pub fn take(&self, order: u32) -> Option<Block> {
        self.take_first((0..=(order as usize).min(ORDERS - 1)).rev())
    }

    /// Takes the smallest block out, if there is one. Process context.
    pub fn take_smallest(&self) -> Option<Block> {
        self.take_first(0..ORDERS)
    }

    /// Frees those that have any of these page frame numbers. Returns how many pages. Process context.
    pub fn free_within(&self, pfns: Range<u64>) -> usize {
        let is_within = |block: &Block| {
            let mut its = block.pfns();
            let count = its.len() as u64;
            its.next()
                .is_some_and(|first| first < pfns.end && first + count > pfns.start)
        };
        let mut within = Lists::EMPTY;
        {
            let mut lists = self.lists.lock();
            let mut all = mem::replace(&mut *lists, Lists::EMPTY);
            for order in 0..ORDERS {
                while let Some(block) = all.pop(order) {
                    if is_within(&block) {
                        within.push(block);
                    } else {
                        lists.push(block);
                    }
                }
            }
        }
        let pages = pages_of(within.counts);
        for order in 0..ORDERS {
            while let Some(block) = within.pop(order) {
                self.count_deflated(&block);
            }
        }
        pages
    }

    fn take_first(&self, mut orders: impl Iterator<Item = usize>) -> Option<Block> {
        let block = {
            let mut lists = self.lists.lock();
            orders.find_map(|order| lists.pop(order))?
        };
        self.count_deflated(&block);
        Some(block)
    }

    /// The block was taken off the lists.
    fn count_deflated(&self, block: &Block) {
        // SAFETY: The block is valid by its invariants, and was counted by `put`.
        unsafe {
            bindings::ferrule_block_deflated(block.page.as_ptr(), block.order, self.is_managed)
        };
    }
}

#[pinned_drop]
impl PinnedDrop for Inflated {
    fn drop(self: Pin<&mut Self>) {
        while self.take_smallest().is_some() {}
    }
}

/// Blocks that are kept for a while, and count as used by the kernel, not as in a balloon. Dropping
/// it frees them.
///
/// Takes a spinlock only, and allocates nothing: for process context, reclaim included.
#[pin_data(PinnedDrop)]
pub struct Kept {
    #[pin]
    lists: SpinLock<Lists>,
}

impl Kept {
    /// Creates an initialiser of none.
    pub fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            lists <- Lists::new(),
        })
    }

    /// How many pages there are.
    pub fn pages(&self) -> usize {
        pages_of(self.lists.lock().counts)
    }

    /// Puts all of `blocks` in.
    pub fn put(&self, blocks: &mut Blocks) {
        while let Some(block) = blocks.blocks.pop() {
            self.lists.lock().push(block);
        }
    }

    /// Takes the smallest block out, if there is one.
    pub fn take_smallest(&self) -> Option<Block> {
        let mut lists = self.lists.lock();
        (0..ORDERS).find_map(|order| lists.pop(order))
    }
}

#[pinned_drop]
impl PinnedDrop for Kept {
    fn drop(self: Pin<&mut Self>) {
        while self.take_smallest().is_some() {}
    }
}

#[kernel::macros::kunit_tests(ferrule_mm_blocks)]
mod tests {
    use super::*;
    use crate::mm::{
        balloon::PageRef,
        vmstat, //
    };

    #[test]
    fn blocks_in_the_balloon_are_not_the_guests() -> Result {
        let inflated = KBox::pin_init(Inflated::new(Managed::Removed), GFP_KERNEL)?;
        let before = vmstat::memory().total;
        let mut blocks = Blocks::with_capacity(4)?;
        for order in [0, 2, 3, 2] {
            blocks.allocate(order, None)?;
        }
        assert!(blocks.is_full());
        assert!(matches!(blocks.allocate(0, None), Err(error) if error == ENOSPC));
        assert_eq!(blocks.size(), 17 * PAGE_SIZE);
        assert_eq!(blocks.lend(|_, count| count)?, 4);
        inflated.put(&mut blocks);
        assert!(blocks.is_empty());
        assert_eq!(inflated.pages(), 17);
        assert_eq!(vmstat::memory().total, before - 17 * PAGE_SIZE as u64);

        // The largest that is not too large.
        assert_eq!(inflated.take(2).map(|block| block.order()), Some(2));
        assert_eq!(inflated.take(MAX_ORDER).map(|block| block.order()), Some(3));
        assert_eq!(inflated.take_smallest().map(|block| block.order()), Some(0));
        assert!(inflated.take(1).is_none());
        assert_eq!(inflated.pages(), 4);
        assert_eq!(vmstat::memory().total, before - 4 * PAGE_SIZE as u64);
        drop(inflated);
        assert_eq!(vmstat::memory().total, before);
        Ok(())
    }

    #[test]
    fn what_is_free_needs_no_compaction() -> Result {
        let mut blocks = Blocks::with_capacity(1)?;
        let node = vmstat::nodes().next().ok_or(ENODEV)?;
        assert!(matches!(blocks.compact(MAX_ORDER + 1, node), Err(error) if error == EINVAL));
        blocks.compact(1, node)?;
        assert_eq!(blocks.size(), 2 * PAGE_SIZE);
        assert!(matches!(blocks.compact(1, node), Err(error) if error == ENOSPC));
        Ok(())
    }

    #[test]
    fn blocks_go_by_where_they_are() -> Result {
        let inflated = KBox::pin_init(Inflated::new(Managed::Removed), GFP_KERNEL)?;
        let before = vmstat::memory().total;
        let mut blocks = Blocks::with_capacity(3)?;
        for order in [3, 3, 4] {
            blocks.allocate(order, None)?;
        }
        let pfns = |nth: usize| blocks.blocks.get(nth).map(Block::pfns).ok_or(EINVAL);
        let (mut some, mut others) = (pfns(0)?, pfns(2)?);
        let (first, other) = (some.next().ok_or(EINVAL)?, others.next().ok_or(EINVAL)?);
        inflated.put(&mut blocks);
        assert_eq!(inflated.free_within(first..first), 0);
        // One page is enough.
        assert_eq!(inflated.free_within(first + 7..first + 8), 8);
        assert_eq!(inflated.pages(), 24);
        assert_eq!(inflated.free_within(other..other + 1), 16);
        assert_eq!(inflated.pages(), 8);
        assert_eq!(vmstat::memory().total, before - 8 * PAGE_SIZE as u64);
        assert_eq!(inflated.free_within(0..u64::MAX), 8);
        assert_eq!(vmstat::memory().total, before);
        Ok(())
    }

    #[test]
    fn blocks_that_are_kept_are_the_guests() -> Result {
        let kept = KBox::pin_init(Kept::new(), GFP_KERNEL)?;
        let before = vmstat::memory().total;
        let mut blocks = Blocks::with_capacity(2)?;
        blocks.allocate(3, None)?;
        blocks.allocate(1, None)?;
        kept.put(&mut blocks);
        assert!(blocks.is_empty());
        assert_eq!(kept.pages(), 10);
        assert_eq!(vmstat::memory().total, before);
        assert_eq!(kept.take_smallest().map(|block| block.order()), Some(1));
        assert_eq!(kept.pages(), 8);
        // What is left goes with it.
        Ok(())
    }

    #[test]
    fn what_is_smaller_than_a_page_block_goes_by_the_page() -> Result {
        struct Stay;

        impl Migrate for Stay {
            fn migrate(&self, _new: PageRef<'_>, _old: PageRef<'_>) -> Result {
                Err(EAGAIN)
            }
        }

        let balloon = KBox::pin_init(Balloon::new(Stay, Managed::Counted), GFP_KERNEL)?;
        let mut blocks = Blocks::with_capacity(3)?;
        blocks.allocate(4, None)?;
        blocks.allocate(page_block_order(), None)?;
        blocks.allocate(0, None)?;
        blocks.split_small(&balloon);
        assert_eq!(blocks.len(), 1);
        assert_eq!(blocks.size(), PAGE_SIZE << page_block_order());
        assert_eq!(balloon.len(), 17);
        let mut pages = Pages::with_capacity(32)?;
        assert_eq!(balloon.dequeue(&mut pages, 32), 17);
        assert!(balloon.is_empty());
        Ok(())
    }

    #[test]
    fn a_block_is_split_into_its_pages() -> Result {
        let inflated = KBox::pin_init(Inflated::new(Managed::Counted), GFP_KERNEL)?;
        let mut blocks = Blocks::with_capacity(2)?;
        blocks.allocate(3, None)?;
        blocks.allocate(3, None)?;
        inflated.put(&mut blocks);
        let block = inflated.take(3).ok_or(EINVAL)?;
        let pfns = block.pfns();
        assert_eq!(pfns.len(), 8);
        let mut rest = Pages::with_capacity(8)?;
        block.split(3, &mut rest)?;
        assert!(rest.pfns().eq(pfns.skip(3)));
        // There is no room for eight more.
        let block = inflated.take(3).ok_or(EINVAL)?;
        assert!(matches!(block.split(0, &mut rest), Err(error) if error == ENOSPC));
        assert_eq!(rest.len(), 5);
        Ok(())
    }
}
