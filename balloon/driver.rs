// SPDX-License-Identifier: GPL-2.0

//! The driver: binds the device, and moves the balloon to the size that the host wants.

use crate::{
    host::{
        Host,
        Migrator,
        Way,
        WAKE_RESIZE, //
    },
    plan::{
        next_step,
        room_pages,
        Step,
        Units, //
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
        vmstat, //
    },
    new_owned_work,
    virtio::{
        self,
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
    }
}

/// The driver of a memory balloon.
pub(crate) struct Driver;

/// A balloon device.
pub(crate) struct Data {
    host: Arc<Host>,
    resize: Arc<OwnedWork<Resize>>,
    report: Option<Arc<OwnedWork<Report>>>,
}

#[vtable]
impl virtio::Driver for Driver {
    type Data = Data;
    type Feature = Feature;

    const ID_TABLE: virtio::IdTable = &crate::DEVICES;

    fn validate(offer: &mut virtio::Offer<'_>) -> Result {
        // The host is told the guest's physical addresses.
        offer.clear_transport(TransportFeature::AccessPlatform);
        Ok(())
    }

    fn probe(dev: &virtio::Device<Core<'_>>) -> impl PinInit<Data, Error> {
        Data::new(dev)
    }

    fn unbind(dev: &virtio::Device<Core<'_>>, data: Pin<&Data>) {
        data.stop();
        data.empty(dev);
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
        let resize = Resize::new(host.clone())?;
        let data = Self {
            host,
            resize: Arc::pin_init(new_owned_work!(resize, "balloon_resize"), GFP_KERNEL)?,
            report,
        };
        data.start(dev)?;
        dev_info!(
            dev.as_ref(),
            "memory balloon (must-tell-host={}, stats={})\n",
            u8::from(features.has(Feature::MustTellHost)),
            u8::from(features.has(Feature::Stats)),
        );
        Ok(data)
    }

    /// Finds the queues and starts to work.
    fn start(&self, dev: &virtio::Device<Core<'_>>) -> Result {
        let stats = self.report.as_ref().map(|report| {
            Arc::new(Requested(report.clone()), GFP_KERNEL)
                .map(|handler| QueueInfo::new(c"stats", Notify::Handler(handler)))
        });
        let queues = dev.find_vqs([
            Some(QueueInfo::new(c"inflate", Notify::Waiters)),
            Some(QueueInfo::new(c"deflate", Notify::Waiters)),
            stats.transpose()?,
        ])?;
        self.host.connect(queues.take(0)?, queues.take(1)?)?;
        dev.ready();
        if let Some(report) = &self.report {
            report.connect(queues.take(2)?)?;
        }
        self.resize.enqueue(system_freezable());
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
            match self.resize.deflate(self.host.units.batch_pages()) {
                Ok(0) => break Ok(()),
                Ok(_) => {}
                Err(error) => break Err(error),
            }
        };
        if told.is_err() {
            dev_warn!(
                dev.as_ref(),
                "the host does not take part: resetting the device with {} pages in the balloon\n",
                self.resize.balloon.len(),
            );
        }
        // Gone devices do not care.
        let _ = self.host.set_actual(self.resize.balloon.len());
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
    #[pin]
    balloon: Balloon<Migrator>,
    /// Sleeps; held while the balloon moves. The host's channel is locked with it.
    #[pin]
    moving: Mutex<Moving>,
}

/// What moves.
struct Moving {
    incoming: Pages<Allocated>,
    outgoing: Pages<Deflated>,
    // There was nothing to be had last time, and the log says so.
    is_starved: bool,
}

impl Resize {
    fn new(host: Arc<Host>) -> Result<impl PinInit<Self>> {
        let batch = host.units.batch_pages();
        let moving = Moving {
            incoming: Pages::with_capacity(batch)?,
            outgoing: Pages::with_capacity(batch)?,
            is_starved: false,
        };
        Ok(pin_init!(Self {
            balloon <- Balloon::new(Migrator(host.clone()), Managed::Removed),
            moving <- new_mutex!(moving, "balloon_moving"),
            host,
        }))
    }

    /// Moves by one batch. Returns whether there is more to do.
    fn step(&self) -> Result<bool> {
        let target = self.host.target_pages()?;
        let size = self.balloon.len() as u64;
        match next_step(target, size, self.host.units.batch_pages()) {
            Step::Rest => return Ok(false),
            Step::Inflate(pages) => self.inflate(pages)?,
            Step::Deflate(pages) => {
                if self.deflate(pages)? == 0 {
                    return Ok(false);
                }
            }
        }
        self.host.set_actual(self.balloon.len())?;
        Ok(true)
    }

    /// Puts pages in, at most a batch.
    fn inflate(&self, wanted: usize) -> Result {
        let mut moving = self.moving.lock();
        let Moving {
            incoming,
            is_starved,
            ..
        } = &mut *moving;

        let memory = vmstat::memory();
        let total = memory.total + (self.balloon.len() * PAGE_SIZE) as u64;
        let room = room_pages(memory.available, total, PAGE_SHIFT as u32);
        let wanted = min(wanted, usize::try_from(room).unwrap_or(wanted));
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

    /// Takes pages out, at most `wanted` and a batch. Returns how many; 0 means that the balloon is
    /// empty.
    fn deflate(&self, wanted: usize) -> Result<usize> {
        let mut moving = self.moving.lock();
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

    /// Frees what is still in the balloon or on its way. The device has to be reset.
    fn release(&self) {
        let mut moving = self.moving.lock();
        moving.incoming.clear();
        moving.outgoing.clear();
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
