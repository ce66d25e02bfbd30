// SPDX-License-Identifier: GPL-2.0

//! Statistics for the host.
//!
//! The statistics queue works the other way round: the guest leaves a buffer with the host, which
//! gives it back when it wants news, and gets it again with these.

use crate::{
    host::{
        Host,
        WAKE_REPORT, //
    },
    policy::message::{
        Stats,
        Tag, //
    }, //
};
use ferrule::{
    mm::vmstat,
    virtio::{
        Buffer,
        ByteOrder,
        Direction,
        Handler,
        VirtQueue, //
    },
    work::{
        OwnedWork,
        Run, //
    }, //
};
use kernel::{
    new_mutex,
    prelude::*,
    sync::{
        Arc,
        Mutex, //
    },
    workqueue::system_freezable, //
};

impl Buffer for Stats {
    const DIRECTION: Direction = Direction::ToDevice;

    fn bytes(&mut self) -> &mut [u8] {
        Stats::bytes(self)
    }
}

/// Work that answers the host's requests.
#[pin_data]
pub(crate) struct Report {
    host: Arc<Host>,
    order: ByteOrder,
    /// Sleeps; held while statistics are gathered. No other lock is taken with it.
    #[pin]
    queue: Mutex<Option<VirtQueue<Stats>>>,
}

impl Report {
    pub(crate) fn new(host: Arc<Host>, order: ByteOrder) -> impl PinInit<Self> {
        pin_init!(Self {
            host,
            order,
            queue <- new_mutex!(None, "balloon_stats"),
        })
    }

    /// Leaves the first buffer with the host. The device has to be ready.
    pub(crate) fn connect(&self, queue: VirtQueue<Stats>) -> Result {
        let stats = KBox::new(Stats::new(), GFP_KERNEL)?;
        // The host may return it at once: the work waits until there is a queue to take it from.
        let mut slot = self.queue.lock();
        self.send(&queue, stats)?;
        *slot = Some(queue);
        Ok(())
    }

    fn send(&self, queue: &VirtQueue<Stats>, mut stats: KBox<Stats>) -> Result {
        stats.clear();
        self.gather(&mut stats);
        queue.add(stats)?;
        queue.kick()
    }

    /// In the order of the C driver, which leaves out what the kernel does not count. Without memory
    /// there are no events: the host keeps its buffer, or it could never ask again.
    fn gather(&self, stats: &mut Stats) {
        let mut put = |tag: Tag, value: u64| {
            let [a, b] = self.order.u16(tag as u16);
            let [c, d, e, f, g, h, i, j] = self.order.u64(value);
            // There is room for each tag once.
            let _ = stats.push([a, b, c, d, e, f, g, h, i, j]);
        };
        if let Ok(Some(events)) = vmstat::events() {
            put(Tag::SwapIn, events.swap_in);
            put(Tag::SwapOut, events.swap_out);
            put(Tag::MajorFaults, events.major_faults);
            put(Tag::MinorFaults, events.faults);
            put(Tag::OomKills, events.oom_kills);
            put(Tag::AllocStalls, events.alloc_stalls);
            put(Tag::AsyncScans, events.async_scan);
            put(Tag::DirectScans, events.direct_scan);
            put(Tag::AsyncReclaims, events.async_reclaim);
            put(Tag::DirectReclaims, events.direct_reclaim);
            if let Some((allocations, failures)) = events.hugetlb {
                put(Tag::HugetlbAllocations, allocations);
                put(Tag::HugetlbFailures, failures);
            }
        }
        let memory = vmstat::memory();
        put(Tag::FreeMemory, memory.free);
        put(Tag::TotalMemory, memory.total);
        put(Tag::AvailableMemory, memory.available);
        put(Tag::DiskCaches, memory.caches);
    }
}

impl Run for Report {
    fn run(work: &OwnedWork<Self>) {
        work.host.wakeup.begin(WAKE_REPORT);
        if let Some(queue) = &*work.queue.lock() {
            // A device that is broken or gone asks for nothing any more.
            if let Ok(Some(used)) = queue.get() {
                let _ = work.send(queue, used.buffer);
            }
        }
        work.host.wakeup.end();
    }
}

/// The host wants statistics.
pub(crate) struct Requested(pub(crate) Arc<OwnedWork<Report>>);

impl Handler for Requested {
    fn used(&self) {
        self.0.host.wakeup.raise(WAKE_REPORT);
        self.0.enqueue(system_freezable());
    }
}
