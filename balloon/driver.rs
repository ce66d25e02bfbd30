// SPDX-License-Identifier: GPL-2.0

//! The driver: binds the device, and moves the balloon to the size that the host wants.

use crate::{
    discard::{
        Discarded,
        Discards,
        Lent, //
    },
    host::{
        Host,
        Migrator,
        Way,
        WAKE_RESIZE, //
    },
    plan::{
        block_order,
        next_step,
        room_pages,
        Step,
        Units,
        MIN_ORDER, //
    },
    stats::{
        Report,
        Requested, //
    }, //
};
use core::cmp::min;
use ferrule::{
    mm::{
        balloon::{
            Allocated,
            Balloon,
            Deflated,
            Managed,
            Pages, //
        },
        blocks::{
            self,
            Blocks,
            Inflated, //
        },
        reporting::{
            on_free,
            OnFree,
            Registration, //
        },
        vmstat, //
    },
    new_owned_work,
    virtio::{
        self,
        Either,
        Notify,
        QueueInfo,
        TransportFeature, //
    },
    virtio_features,
    work::{
        OwnedWork,
        Run, //
    }, //
};
use kernel::{
    device::Core,
    new_mutex,
    page::{
        PAGE_SHIFT,
        PAGE_SIZE, //
    },
    prelude::*,
    sync::{
        Arc,
        Mutex, //
    },
    time::{
        delay::fsleep,
        Delta, //
    },
    workqueue::system_freezable, //
};

virtio_features! {
    /// What the driver can do (`VIRTIO_BALLOON_F_*`).
    pub(crate) enum Feature {
        /// The host has to know before a page is used again.
        MustTellHost = 0,
        /// There is a queue for statistics.
        Stats = 1,
        /// The host cares what free memory is filled with.
        PagePoison = 4,
        /// There is a queue for memory that the host may discard.
        Reporting = 5,
    }
}

/// The driver of a memory balloon.
pub(crate) struct Driver;

/// A balloon device.
pub(crate) struct Data {
    host: Arc<Host>,
    resize: Arc<OwnedWork<Resize>>,
    report: Option<Arc<OwnedWork<Report>>>,
    discards: Option<Arc<Discards>>,
    /// What free memory is filled with, if the host is to know.
    poison: Option<u8>,
    /// Sleeps; only to put something in and to take it out.
    reporting: Pin<KBox<Mutex<Option<Reporting>>>>,
}

type Reporting = Pin<KBox<Registration<Discards>>>;

#[vtable]
impl virtio::Driver for Driver {
    type Data = Data;
    type Feature = Feature;

    const ID_TABLE: virtio::IdTable = &crate::DEVICES;

    fn validate(offer: &mut virtio::Offer<'_>) -> Result {
        // The host is told the guest's physical addresses.
        offer.clear_transport(TransportFeature::AccessPlatform);
        // What the host discards comes back as zeroes. It has to know if that is not what the guest
        // left there.
        let offered = offer.features();
        if on_free() == OnFree::Nothing {
            offer.clear(Feature::PagePoison);
        } else if !offered.has(Feature::PagePoison) {
            offer.clear(Feature::Reporting);
        }
        // They are allocated, which must not be necessary to get rid of memory.
        offer.clear_transport(TransportFeature::IndirectDescriptors);
        Ok(())
    }

    fn probe(dev: &virtio::Device<Core<'_>>) -> impl PinInit<Data, Error> {
        Data::new(dev)
    }

    fn unbind(dev: &virtio::Device<Core<'_>>, data: Pin<&Data>) {
        data.stop();
        data.empty(dev);
        // Without a queue nobody waits for the host any more.
        drop(data.reporting.lock().take());
    }

    fn config_changed(data: Pin<&Data>) {
        data.host.wakeup.raise(WAKE_RESIZE);
        data.resize.enqueue(system_freezable());
    }

    fn freeze(dev: &virtio::Device<Core<'_>>, data: Pin<&Data>) -> Result {
        // The work is frozen, and has to come back: so it is not disabled.
        data.host.leave();
        data.empty(dev);
        Ok(())
    }

    fn restore(dev: &virtio::Device<Core<'_>>, data: Pin<&Data>) -> Result {
        data.start(dev)
    }

    fn shutdown(_dev: &virtio::Device<Core<'_>>, data: Pin<&Data>) {
        data.stop();
    }
}

impl Data {
    fn new(dev: &virtio::Device<Core<'_>>) -> Result<Self> {
        let units = Units::new(PAGE_SHIFT as u32);
        let host = Host::new(dev, units)?;
        // Refuses a device without a configuration space.
        host.target_pages()?;

        let features = dev.features();
        let has = |feature| u8::from(features.has(feature));
        let report = if features.has(Feature::Stats) {
            Some(Arc::pin_init(
                new_owned_work!(
                    Report::new(host.clone(), dev.byte_order()),
                    "balloon_report"
                ),
                GFP_KERNEL,
            )?)
        } else {
            None
        };
        let discards = if features.has(Feature::Reporting) {
            Some(Discards::new(host.clone())?)
        } else {
            None
        };
        let poison = match on_free() {
            OnFree::Fills(byte) if features.has(Feature::PagePoison) => Some(byte),
            _ => None,
        };
        // A host that fills memory when it comes back does not discard it. One that has to be told
        // before a page is used again has to be told of each, as it was of none.
        let takes_blocks = poison.unwrap_or(0) == 0 && !features.has(Feature::MustTellHost);
        let resize = Resize::new(host.clone(), discards.clone().filter(|_| takes_blocks))?;
        let data = Self {
            host,
            resize: Arc::pin_init(new_owned_work!(resize, "balloon_resize"), GFP_KERNEL)?,
            report,
            discards,
            poison,
            reporting: KBox::pin_init(new_mutex!(None, "balloon_reporting"), GFP_KERNEL)?,
        };
        data.start(dev)?;
        data.start_reporting(dev)?;
        dev_info!(
            dev.as_ref(),
            "memory balloon (must-tell-host={}, stats={}, page-poison={}, reporting={})\n",
            has(Feature::MustTellHost),
            has(Feature::Stats),
            has(Feature::PagePoison),
            has(Feature::Reporting),
        );
        Ok(data)
    }

    /// Finds the queues and starts to work.
    fn start(&self, dev: &virtio::Device<Core<'_>>) -> Result {
        let stats = self.report.as_ref().map(|report| {
            Arc::new(Requested(report.clone()), GFP_KERNEL)
                .map(|handler| QueueInfo::new(c"stats", Notify::Handler(handler)))
        });
        let reporting = self.discards.as_ref().map(|discards| {
            Arc::new(Discarded(discards.clone()), GFP_KERNEL)
                .map(|handler| QueueInfo::new(c"reporting", Notify::Handler(handler)))
        });
        let queues = dev.find_vqs([
            Some(QueueInfo::new(c"inflate", Notify::Waiters)),
            Some(QueueInfo::new(c"deflate", Notify::Waiters)),
            stats.transpose()?,
            // That of FREE_PAGE_HINT.
            None,
            reporting.transpose()?,
        ])?;
        self.host.connect(queues.take(0)?, queues.take(1)?)?;
        if let Some(discards) = &self.discards {
            discards.connect(queues.take(4)?)?;
        }
        if let Some(poison) = self.poison {
            self.host.set_poison(poison)?;
        }
        dev.ready();
        if let Some(report) = &self.report {
            report.connect(queues.take(2)?)?;
        }
        self.resize.connect()?;
        self.resize.enqueue(system_freezable());
        Ok(())
    }

    /// Has memory management report what is free.
    fn start_reporting(&self, dev: &virtio::Device<Core<'_>>) -> Result {
        let Some(discards) = &self.discards else {
            return Ok(());
        };
        let registration = Registration::new(discards.clone(), discards.capacity());
        match KBox::pin_init(registration, GFP_KERNEL) {
            Ok(registration) => *self.reporting.lock() = Some(registration),
            // The balloon does not need it.
            Err(error) if error == EBUSY => {
                dev_info!(dev.as_ref(), "free pages are reported by another driver\n");
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Stops all work for good.
    fn stop(&self) {
        self.host.leave();
        self.resize.disable();
        if let Some(report) = &self.report {
            report.disable();
        }
        self.host.wakeup.clear();
    }

    /// Takes everything out of the balloon, with the host's help as far as that goes, and deletes
    /// the queues.
    fn empty(&self, dev: &virtio::Device<Core<'_>>) {
        let told = loop {
            match self.resize.deflate(usize::MAX) {
                Ok(0) => break Ok(()),
                Ok(_) => {}
                Err(error) => break Err(error),
            }
        };
        if told.is_err() {
            dev_warn!(
                dev.as_ref(),
                "the host does not take part: resetting the device with {} pages in the balloon\n",
                self.resize.size(),
            );
        }
        // Gone devices do not care.
        let _ = self.host.set_actual(self.resize.size());
        dev.delete_vqs();
        // Nothing that the host was sent can take effect any more.
        self.resize.release();
    }
}

/// Work that moves the balloon by one batch towards the size that the host wants, and enqueues
/// itself until it is there.
#[pin_data]
struct Resize {
    host: Arc<Host>,
    /// For blocks, if the host takes any.
    discards: Option<Arc<Discards>>,
    /// Single pages.
    #[pin]
    balloon: Balloon<Migrator>,
    #[pin]
    blocks: Inflated,
    /// Sleeps; held while the balloon moves. The host's channel is locked with it.
    #[pin]
    moving: Mutex<Moving>,
}

/// What moves.
struct Moving {
    incoming: Pages<Allocated>,
    outgoing: Pages<Deflated>,
    /// Blocks on their way in, empty but for then. With the host while it discards them, and for ever
    /// if it does not answer.
    message: Option<KBox<Lent>>,
    /// For the pages of a block of which some are wanted back.
    rest: Pages<Allocated>,
    // There was nothing to be had last time, and the log says so.
    is_starved: bool,
}

impl Resize {
    fn new(host: Arc<Host>, discards: Option<Arc<Discards>>) -> Result<impl PinInit<Self>> {
        let batch = host.units.batch_pages();
        let rest = if discards.is_some() {
            1 << blocks::MAX_ORDER
        } else {
            0
        };
        let moving = Moving {
            incoming: Pages::with_capacity(batch)?,
            outgoing: Pages::with_capacity(batch)?,
            message: None,
            rest: Pages::with_capacity(rest)?,
            is_starved: false,
        };
        Ok(pin_init!(Self {
            balloon <- Balloon::new(Migrator(host.clone()), Managed::Removed),
            blocks <- Inflated::new(Managed::Removed),
            moving <- new_mutex!(moving, "balloon_moving"),
            discards,
            host,
        }))
    }

    /// Makes ready for the queues, after probe and after each restore.
    fn connect(&self) -> Result {
        let Some(discards) = &self.discards else {
            return Ok(());
        };
        let message = match discards.capacity() {
            0 => None,
            capacity => Some(KBox::new(
                Either::First(Blocks::with_capacity(capacity)?),
                GFP_KERNEL,
            )?),
        };
        self.moving.lock().message = message;
        Ok(())
    }

    /// How many pages are in the balloon.
    fn size(&self) -> usize {
        self.balloon.len() + self.blocks.pages()
    }

    /// How many pages may go in or out by one step.
    fn batch_pages(&self) -> usize {
        match &self.discards {
            Some(discards) => discards.capacity() << blocks::MAX_ORDER,
            None => 0,
        }
        .max(self.host.units.batch_pages())
    }

    /// Moves by one batch. Returns whether there is more to do.
    fn step(&self) -> Result<bool> {
        let target = self.host.target_pages()?;
        match next_step(target, self.size() as u64, self.batch_pages()) {
            Step::Rest => return Ok(false),
            Step::Inflate(pages) => self.inflate(pages)?,
            Step::Deflate(pages) => {
                if self.deflate(pages)? == 0 {
                    return Ok(false);
                }
            }
        }
        self.host.set_actual(self.size())?;
        Ok(true)
    }

    /// Puts memory in, at most so many pages: blocks if there are any, or else pages, at most a
    /// message of them.
    fn inflate(&self, wanted: usize) -> Result {
        let mut moving = self.moving.lock();
        let memory = vmstat::memory();
        let total = memory.total + (self.size() * PAGE_SIZE) as u64;
        let room = room_pages(memory.available, total, PAGE_SHIFT as u32);
        let wanted = min(wanted, usize::try_from(room).unwrap_or(wanted));
        if self.inflate_blocks(&mut moving, wanted)? {
            moving.is_starved = false;
            return Ok(());
        }

        let Moving {
            incoming,
            is_starved,
            ..
        } = &mut *moving;
        let wanted = min(wanted, self.host.units.batch_pages());
        // Not under the channel's lock: an allocation may wait for the migration of a page.
        while incoming.len() < wanted && incoming.allocate_one().is_ok() {}
        if incoming.is_empty() {
            if !*is_starved {
                dev_info!(
                    &*self.host.dev,
                    "the guest has no memory to spare: waiting\n"
                );
            }
            *is_starved = true;
            // The host may want less by now, or the guest may have freed some.
            fsleep(RETRY);
            return Ok(());
        }
        *is_starved = false;

        self.host.with_channel(|channel| {
            let message = self.host.write(channel, incoming.pfns())?;
            // Before the host is told: it may take them at any time from then on.
            self.balloon.enqueue(incoming);
            Ok(self.host.send(channel, Way::Inflate, message)?)
        })
    }

    /// Puts blocks in, the largest that are free. Says whether there were any.
    fn inflate_blocks(&self, moving: &mut Moving, mut wanted: usize) -> Result<bool> {
        let Some(discards) = &self.discards else {
            return Ok(false);
        };
        let Some(mut message) = moving.message.take() else {
            return Ok(false);
        };
        if let Either::First(blocks) = &mut *message {
            let mut largest = blocks::MAX_ORDER;
            while let Some(order) = block_order(wanted, largest) {
                if blocks.is_full() {
                    break;
                }
                if blocks.allocate(order).is_ok() {
                    wanted -= 1 << order;
                } else if order == MIN_ORDER {
                    break;
                } else {
                    largest = order - 1;
                }
            }
            if blocks.is_empty() {
                moving.message = Some(message);
                return Ok(false);
            }
        }
        let mut message = discards.discard(message)?;
        if let Either::First(blocks) = &mut *message {
            self.blocks.put(blocks);
        }
        moving.message = Some(message);
        Ok(true)
    }

    /// Takes memory out, at most `wanted` pages: blocks if there are any, or else pages, at most a
    /// message of them. Returns how many; 0 means that the balloon is empty.
    fn deflate(&self, wanted: usize) -> Result<usize> {
        let mut moving = self.moving.lock();
        let count = self.deflate_blocks(&mut moving, wanted)?;
        if count > 0 {
            return Ok(count);
        }

        let outgoing = &mut moving.outgoing;
        if !outgoing.is_empty() {
            // They could not be told before.
            return Err(EIO);
        }
        self.host.with_channel(|channel| {
            while self.balloon.dequeue(outgoing, wanted) == 0 {
                if self.balloon.is_empty() {
                    return Ok(0);
                }
                // All that is left is being migrated, and will be put back: the channel is ours.
                fsleep(Delta::from_millis(1));
            }
            // Whether or not MUST_TELL_HOST was negotiated: the host may have to populate them.
            let message = self.host.write(channel, outgoing.pfns())?;
            self.host.send(channel, Way::Deflate, message)?;
            let count = outgoing.len();
            outgoing.clear();
            Ok(count)
        })
    }

    /// Takes blocks out. The host need not know: what it discarded is there again when it is touched.
    fn deflate_blocks(&self, moving: &mut Moving, wanted: usize) -> Result<usize> {
        let mut count = 0;
        while let Some(order) = (wanted - count).checked_ilog2() {
            // Freed at once.
            match self.blocks.take(order) {
                Some(block) => count += 1 << block.order(),
                None => break,
            }
        }
        if count > 0 || wanted == 0 || !self.balloon.is_empty() {
            return Ok(count);
        }
        // All that there is are blocks that are too large.
        let Some(block) = self.blocks.take_smallest() else {
            return Ok(0);
        };
        block.split(wanted, &mut moving.rest)?;
        self.balloon.enqueue(&mut moving.rest);
        Ok(wanted)
    }

    /// Frees what is still in the balloon or on its way. The device has to be reset.
    fn release(&self) {
        let mut moving = self.moving.lock();
        moving.incoming.clear();
        moving.outgoing.clear();
        while self.blocks.take_smallest().is_some() {}
        while !self.balloon.is_empty() {
            if self.balloon.dequeue(&mut moving.outgoing, usize::MAX) == 0 {
                fsleep(Delta::from_millis(1));
            }
            moving.outgoing.clear();
        }
    }
}

impl Run for Resize {
    fn run(work: &OwnedWork<Self>) {
        work.host.wakeup.begin(WAKE_RESIZE);
        match work.step() {
            Ok(true) => {
                work.enqueue(system_freezable());
                return;
            }
            Ok(false) => {}
            Err(error) => dev_err!(
                &*work.host.dev,
                "the balloon does not move any more ({error:?})\n"
            ),
        }
        work.host.wakeup.end();
    }
}

/// How long to wait when there is no memory to be had.
const RETRY: Delta = Delta::from_millis(200);
