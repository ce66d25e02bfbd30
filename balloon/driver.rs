// SPDX-License-Identifier: GPL-2.0

//! The driver: binds the device, and moves the balloon to the size that the host wants.

use crate::{
    discard::{
        Discarded,
        Discards, //
    },
    hint::Hinting,
    host::{
        Host,
        WAKE_RESIZE, //
    },
    module_parameters,
    policy::plan::{
        Plan,
        Units, //
    },
    progress::{
        files,
        Files, //
    },
    resize::{
        Giver,
        Leaver,
        Resize, //
    },
    stats::{
        Report,
        Requested, //
    }, //
};
use ferrule::{
    compat::parameter,
    mm::{
        balloon::Managed,
        hotplug,
        oom,
        reporting::{
            self,
            on_free,
            OnFree, //
        }, //
    },
    new_owned_work,
    power::{
        self,
        Sleeper, //
    },
    virtio::{
        self,
        EarlyFreezer,
        Notify,
        QueueInfo,
        TransportFeature, //
    },
    virtio_features,
    work::OwnedWork, //
};
use kernel::{
    device::Core,
    new_mutex,
    page::{
        PAGE_SHIFT,
        PAGE_SIZE, //
    },
    prelude::*,
    sizes::SZ_2M,
    sync::{
        Arc,
        Mutex, //
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
        /// The guest may take pages back when it needs them.
        DeflateOnOom = 2,
        /// There is a queue for memory that the host need not copy while it migrates the guest.
        FreePageHint = 3,
        /// The host cares what free memory is filled with.
        PagePoison = 4,
        /// There is a queue for memory that the host may discard.
        Reporting = 5,
    }
}

/// The smallest free memory that is reported, as an order, where that of a page block will not do:
/// that is 512 MiB there, and so hardly ever free. As in C: 2 MiB, which splits no huge page of a
/// host with pages of 4 KiB.
const REPORTED_ORDER: Option<u32> = if cfg!(CONFIG_ARM64_64K_PAGES) {
    Some((SZ_2M / PAGE_SIZE).ilog2())
} else {
    None
};

/// The driver of a memory balloon.
pub(crate) struct Driver;

/// A balloon device.
pub(crate) struct Data {
    host: Arc<Host>,
    resize: Arc<OwnedWork<Resize>>,
    report: Option<Arc<OwnedWork<Report>>>,
    discards: Option<Arc<Discards>>,
    hinting: Option<Hinting>,
    /// What free memory is filled with, if the host is to know.
    poison: Option<u8>,
    /// Sleeps; only to put something in and to take it out.
    hooks: Pin<KBox<Mutex<Hooks>>>,
}

/// What others call the driver by.
#[derive(Default)]
struct Hooks {
    reporting: Option<Pin<KBox<reporting::Registration<Discards>>>>,
    oom: Option<Pin<KBox<oom::Registration<Giver>>>>,
    hotplug: Option<Pin<KBox<hotplug::Registration<Leaver>>>>,
    power: Option<Pin<KBox<power::Registration<Sleep>>>>,
    files: Option<Files>,
}

/// When it is asked for memory, among others (`VIRTIO_BALLOON_OOM_NOTIFY_PRIORITY`).
const OOM_PRIORITY: i32 = 80;

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
        drop(data.hooks.lock().reporting.take());
    }

    fn config_changed(data: Pin<&Data>) {
        data.host.set_changed();
        data.host.wakeup.raise(WAKE_RESIZE);
        data.resize.enqueue(system_freezable());
        if let Some(hinting) = &data.hinting {
            hinting.changed();
        }
    }

    fn freeze(dev: &virtio::Device<Core<'_>>, data: Pin<&Data>) -> Result {
        // The work is frozen, or ends when nobody waits for the host any more. It has to come back: so it
        // is not disabled.
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
        let hinting = if features.has(Feature::FreePageHint) {
            Some(Hinting::new(host.clone(), dev.byte_order())?)
        } else {
            None
        };
        let poison = match on_free() {
            OnFree::Fills(byte) if features.has(Feature::PagePoison) => Some(byte),
            _ => None,
        };
        // A host that fills memory when it comes back does not discard it. One that has to be told
        // before a page is used again has to be told of each, as it was of none.
        let takes_blocks = parameter(&module_parameters::blocks) != 0
            && poison.unwrap_or(0) == 0
            && !features.has(Feature::MustTellHost);
        let may_shrink = features.has(Feature::DeflateOnOom);
        let resize = Resize::new(
            host.clone(),
            discards.clone().filter(|_| takes_blocks),
            hinting.as_ref().map(Hinting::hints),
            // What comes back when it is needed is still the guest's.
            if may_shrink {
                Managed::Counted
            } else {
                Managed::Removed
            },
            Plan::new(parameter(&module_parameters::min_available_mb), may_shrink),
        )?;
        let data = Self {
            host,
            resize: Arc::pin_init(new_owned_work!(resize, "balloon_resize"), GFP_KERNEL)?,
            report,
            discards,
            hinting,
            poison,
            hooks: KBox::pin_init(new_mutex!(Hooks::default(), "balloon_hooks"), GFP_KERNEL)?,
        };
        data.start(dev)
            .and_then(|()| data.hook(dev))
            .inspect_err(|_| {
                data.stop();
                // The host is not to use what may be in the balloon already.
                dev.delete_vqs();
            })?;
        dev_info!(
            dev.as_ref(),
            "memory balloon (must-tell-host={}, stats={}, deflate-on-oom={}, hints={}, page-poison={}, reporting={})\n",
            has(Feature::MustTellHost),
            has(Feature::Stats),
            has(Feature::DeflateOnOom),
            has(Feature::FreePageHint),
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
            // It is only waited for, in a round of hints.
            self.hinting
                .as_ref()
                .map(|_| QueueInfo::new(c"free_page_hint", Notify::Never)),
            reporting.transpose()?,
        ])?;
        self.host.connect(queues.take(0)?, queues.take(1)?)?;
        if let Some(discards) = &self.discards {
            discards.connect(queues.take(4)?)?;
        }
        if let Some(hinting) = &self.hinting {
            hinting.connect(queues.take(3)?)?;
        }
        if let Some(poison) = self.poison {
            self.host.set_poison(poison)?;
        }
        dev.ready();
        self.host.arrive();
        // The host may remember what was in it when it was reset last.
        self.resize.tell_size()?;
        if let Some(report) = &self.report {
            report.connect(queues.take(2)?)?;
        }
        self.resize.connect()?;
        self.resize.enqueue(system_freezable());
        if let Some(hinting) = &self.hinting {
            hinting.changed();
        }
        Ok(())
    }

    /// Gives others what they call the driver by.
    fn hook(&self, dev: &virtio::Device<Core<'_>>) -> Result {
        let mut hooks = self.hooks.lock();
        if let Some(discards) = &self.discards {
            let registration =
                reporting::Registration::new(discards.clone(), discards.capacity(), REPORTED_ORDER);
            match KBox::pin_init(registration, GFP_KERNEL) {
                Ok(registration) => hooks.reporting = Some(registration),
                // The balloon does not need it.
                Err(error) if error == EBUSY => {
                    dev_info!(dev.as_ref(), "free pages are reported by another driver\n");
                }
                Err(error) => return Err(error),
            }
        }
        if self.resize.gives_back() {
            let giver = Arc::new(Giver(self.resize.clone()), GFP_KERNEL)?;
            let registration = oom::Registration::new(giver, OOM_PRIORITY);
            hooks.oom = Some(KBox::pin_init(registration, GFP_KERNEL)?);
        }
        if self.discards.is_some() {
            let leaver = Arc::new(Leaver(self.resize.clone()), GFP_KERNEL)?;
            let registration = hotplug::Registration::new(leaver);
            hooks.hotplug = Some(KBox::pin_init(registration, GFP_KERNEL)?);
        }
        let sleep = Sleep {
            host: self.host.clone(),
            discards: self.discards.clone(),
            freezer: dev.early_freezer(),
        };
        let registration = power::Registration::new(Arc::new(sleep, GFP_KERNEL)?);
        hooks.power = Some(KBox::pin_init(registration, GFP_KERNEL)?);
        hooks.files = files(dev, &self.resize)?;
        Ok(())
    }

    /// Stops all work for good.
    fn stop(&self) {
        self.host.leave();
        let (oom, hotplug, power) = {
            let mut hooks = self.hooks.lock();
            (hooks.oom.take(), hooks.hotplug.take(), hooks.power.take())
        };
        drop(oom);
        drop(hotplug);
        drop(power);
        self.resize.disable();
        if let Some(report) = &self.report {
            report.disable();
        }
        if let Some(hinting) = &self.hinting {
            hinting.disable();
        }
        self.host.wakeup.clear();
    }

    /// Takes everything out of the balloon, with the host's help as far as that goes, and deletes
    /// the queues.
    fn empty(&self, dev: &virtio::Device<Core<'_>>) {
        if self.resize.empty().is_err() {
            dev_warn!(
                dev.as_ref(),
                "the host does not take part: resetting the device with {} pages in the balloon\n",
                self.resize.size(),
            );
        }
        // Gone devices do not care.
        let _ = self.resize.tell_size();
        dev.delete_vqs();
        // Nothing that the host was sent can take effect any more.
        self.resize.release();
        if let Some(hinting) = &self.hinting {
            hinting.release();
        }
    }
}

/// What has to be done before the system sleeps.
struct Sleep {
    host: Arc<Host>,
    discards: Option<Arc<Discards>>,
    freezer: EarlyFreezer,
}

/// Work that waits for the host cannot be frozen, and the system would not sleep. Called in process
/// context, beside anything that waits, which looks at the flag each step; never after unbind.
///
/// Should the system not sleep for another reason, a host that has not answered in time is lost all the
/// same, until the device is reset.
impl Sleeper for Sleep {
    fn prepare(&self) {
        self.host.set_drowsy(true);
        if self.discards.as_ref().is_none_or(|pages| pages.settle()) {
            return;
        }
        // Memory management waits for them in work that has to be frozen, and must not have them as
        // long as the host may discard them: which a reset ends.
        dev_warn!(
            &*self.host.dev,
            "the host does not answer a report of free pages: resetting the device before the system sleeps\n"
        );
        if let Err(error) = self.freezer.freeze() {
            dev_warn!(&*self.host.dev, "it cannot be reset now ({error:?})\n");
        }
    }

    fn complete(&self) {
        self.host.set_drowsy(false);
        // Where the system has not restored it, since it did not sleep.
        if let Err(error) = self.freezer.restore() {
            dev_err!(
                &*self.host.dev,
                "the device does not work any more ({error:?})\n"
            );
        }
    }
}
