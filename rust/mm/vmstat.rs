// SPDX-License-Identifier: GPL-2.0

//! What the guest knows about its memory.
//!
//! All functions can be called in process context.
//!
//! C headers: `include/linux/vmstat.h`, `include/linux/mm.h`, `include/linux/nodemask.h`

use crate::bindings;
use kernel::{
    ffi,
    page::PAGE_SIZE,
    prelude::*,
    types::Opaque, //
};

/// Sizes in bytes (`si_meminfo`, `si_mem_available`).
#[derive(Clone, Copy, Default, Debug)]
pub struct Memory {
    /// Unused memory.
    pub free: u64,
    /// All memory that the guest manages, so without that in a balloon.
    pub total: u64,
    /// What could be had without swapping (`MemAvailable`).
    pub available: u64,
    /// The page cache.
    pub caches: u64,
}

/// How memory stands now.
pub fn memory() -> Memory {
    let info = Opaque::<bindings::sysinfo>::zeroed();
    // SAFETY: `info` is valid for writes, and has no invalid value.
    let info = unsafe {
        bindings::si_meminfo(info.get());
        &*info.get()
    };
    Memory {
        free: pages_to_bytes(info.freeram),
        total: pages_to_bytes(info.totalram),
        available: available(),
        caches: node_pages(bindings::node_stat_item_NR_FILE_PAGES),
    }
}

/// Bytes that could be had without swapping (`si_mem_available`).
pub fn available() -> u64 {
    // SAFETY: It can be called in any context.
    let pages = unsafe { bindings::si_mem_available() };
    pages_to_bytes(pages.max(0) as usize)
}

/// A node that has memory.
///
/// # Invariants
///
/// The node is or was in `N_MEMORY`, so it has its data (`NODE_DATA`), which stays.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Node(ffi::c_int);

impl Node {
    pub(super) fn id(self) -> ffi::c_int {
        self.0
    }

    /// How many of its pages are free now.
    pub fn free_pages(self) -> usize {
        // SAFETY: By the type invariants the node has its data.
        unsafe { bindings::ferrule_node_free_pages(self.0) }
    }
}

/// The nodes that have memory, one at least.
pub fn nodes() -> impl Iterator<Item = Node> {
    let next = |after: ffi::c_int| {
        // SAFETY: It only looks at `N_MEMORY`.
        let id = unsafe { bindings::ferrule_next_memory_node(after) };
        // INVARIANT: It is in `N_MEMORY`.
        (id >= 0).then_some(Node(id))
    };
    core::iter::successors(next(-1), move |node| next(node.0))
}

/// How many pages are free where memory can be that cannot be moved, such as the kernel's own. [`None`]
/// when that is everywhere: there is no `ZONE_MOVABLE`, CMA or highmem.
pub fn free_kernel_pages() -> Option<usize> {
    // SAFETY: It only looks at zones.
    let pages = unsafe { bindings::ferrule_free_kernel_pages() };
    (pages != usize::MAX).then_some(pages)
}

/// How many pages are free beyond a watermark.
#[derive(Clone, Copy, Default, Debug)]
pub struct FreeAbove {
    /// In all zones.
    pub all: usize,
    /// In the zone that has most of them.
    pub most: usize,
}

impl FreeAbove {
    fn new(mark: bindings::zone_watermarks) -> Self {
        let mut most = 0;
        // SAFETY: It only looks at zones, and `most` is valid for writes.
        let all = unsafe { bindings::ferrule_free_above(mark, &mut most) };
        Self { all, most }
    }
}

/// How many pages are free beyond the high watermarks of their zones: they can be taken without anything
/// being reclaimed for it.
pub fn free_above_high() -> FreeAbove {
    FreeAbove::new(bindings::zone_watermarks_WMARK_HIGH)
}

/// How many pages are free beyond the low watermarks of their zones: when these are taken, kswapd
/// begins to reclaim.
pub fn free_above_low() -> FreeAbove {
    FreeAbove::new(bindings::zone_watermarks_WMARK_LOW)
}

/// How many pages were read again, from a file or from swap, that had been reclaimed before.
pub fn refaulted() -> u64 {
    // SAFETY: Both are items that C knows.
    let (files, anonymous) = unsafe {
        (
            bindings::ferrule_global_node_page_state(
                bindings::node_stat_item_WORKINGSET_REFAULT_FILE,
            ),
            bindings::ferrule_global_node_page_state(
                bindings::node_stat_item_WORKINGSET_REFAULT_ANON,
            ),
        )
    };
    files as u64 + anonymous as u64
}

/// How many pages were written to swap since boot. 0 where the kernel does not count.
pub fn swapped_out() -> u64 {
    #[cfg(CONFIG_VM_EVENT_COUNTERS)]
    {
        // SAFETY: It is one of the events that C knows.
        unsafe { bindings::ferrule_vm_event(bindings::vm_event_item_PSWPOUT) as u64 }
    }
    #[cfg(not(CONFIG_VM_EVENT_COUNTERS))]
    0
}

/// The bytes of so many pages.
pub fn pages_to_bytes(pages: usize) -> u64 {
    (pages as u64).saturating_mul(PAGE_SIZE as u64)
}

fn node_pages(item: bindings::node_stat_item) -> u64 {
    // SAFETY: `item` is one of the items that C knows.
    pages_to_bytes(unsafe { bindings::ferrule_global_node_page_state(item) })
}

/// What happened since boot (`/proc/vmstat`). Counts of events, and bytes.
#[derive(Clone, Copy, Default, Debug)]
pub struct Events {
    /// Bytes read from swap.
    pub swap_in: u64,
    /// Bytes written to swap.
    pub swap_out: u64,
    /// Faults that needed I/O.
    pub major_faults: u64,
    /// All faults.
    pub faults: u64,
    /// Tasks that the OOM killer has killed.
    pub oom_kills: u64,
    /// Allocations that had to reclaim by themselves.
    pub alloc_stalls: u64,
    /// Bytes scanned by kswapd.
    pub async_scan: u64,
    /// Bytes scanned by those who allocate.
    pub direct_scan: u64,
    /// Bytes reclaimed by kswapd.
    pub async_reclaim: u64,
    /// Bytes reclaimed by those who allocate.
    pub direct_reclaim: u64,
    /// Huge pages of hugetlbfs allocated, and failures to; [`None`] where the kernel has no
    /// hugetlbfs.
    pub hugetlb: Option<(u64, u64)>,
}

/// Reads the counters of all processors. [`None`] where the kernel does not count.
pub fn events() -> Result<Option<Events>> {
    #[cfg(CONFIG_VM_EVENT_COUNTERS)]
    {
        // The array is too large for a stack that others use as well.
        let mut raw = KVec::from_elem(
            0_usize,
            bindings::vm_event_item_NR_VM_EVENT_ITEMS as usize,
            GFP_KERNEL,
        )?;
        // SAFETY: The array has an element for each event.
        unsafe { bindings::all_vm_events(raw.as_mut_ptr()) };
        let event = |item: bindings::vm_event_item| raw.get(item as usize).map_or(0, |&n| n as u64);
        let bytes = |item| event(item).saturating_mul(PAGE_SIZE as u64);
        // One event a zone, in the order of the zones.
        let first_stall =
            bindings::vm_event_item_ALLOCSTALL_NORMAL - bindings::zone_type_ZONE_NORMAL;

        Ok(Some(Events {
            swap_in: bytes(bindings::vm_event_item_PSWPIN),
            swap_out: bytes(bindings::vm_event_item_PSWPOUT),
            major_faults: event(bindings::vm_event_item_PGMAJFAULT),
            faults: event(bindings::vm_event_item_PGFAULT),
            oom_kills: event(bindings::vm_event_item_OOM_KILL),
            alloc_stalls: (first_stall..first_stall + bindings::zone_type___MAX_NR_ZONES)
                .fold(0, |sum, item| sum + event(item)),
            async_scan: node_pages(bindings::node_stat_item_PGSCAN_KSWAPD),
            direct_scan: node_pages(bindings::node_stat_item_PGSCAN_DIRECT),
            async_reclaim: node_pages(bindings::node_stat_item_PGSTEAL_KSWAPD),
            direct_reclaim: node_pages(bindings::node_stat_item_PGSTEAL_DIRECT),
            #[cfg(CONFIG_HUGETLB_PAGE)]
            hugetlb: Some((
                event(bindings::vm_event_item_HTLB_BUDDY_PGALLOC),
                event(bindings::vm_event_item_HTLB_BUDDY_PGALLOC_FAIL),
            )),
            #[cfg(not(CONFIG_HUGETLB_PAGE))]
            hugetlb: None,
        }))
    }
    #[cfg(not(CONFIG_VM_EVENT_COUNTERS))]
    Ok(None)
}

#[kernel::macros::kunit_tests(ferrule_mm_vmstat)]
mod tests {
    use super::*;

    #[test]
    fn nodes_have_the_memory_that_is_free() {
        assert!(nodes().count() >= 1);
        assert!(nodes()
            .zip(nodes().skip(1))
            .all(|(one, next)| one.0 < next.0));
        let free: usize = nodes().map(Node::free_pages).sum();
        // Others allocate and free meanwhile, and pages on the processors' lists are not counted.
        let free = pages_to_bytes(free);
        assert!(free > memory().free / 2 && free <= memory().total);
    }

    #[test]
    fn free_memory_is_above_the_watermarks_in_some_zone() {
        for above in [free_above_high(), free_above_low()] {
            assert!(above.most <= above.all);
            assert!(above.most > 0 || above.all == 0);
        }
    }
}
