// SPDX-License-Identifier: GPL-2.0

//! Telling the host which pages it has.

use crate::policy::{
    message::Pfns,
    plan::Units, //
};
use ferrule::{
    mm::balloon::{
        Deflated,
        Migrate,
        PageRef,
        Pages, //
    },
    virtio::{
        BalloonConfig,
        Buffer,
        ByteOrder,
        Config,
        Device,
        Direction,
        VirtQueue,
        WakeupSource, //
    }, //
};
use kernel::{
    device::{
        self,
        Core, //
    },
    new_mutex,
    prelude::*,
    sync::{
        aref::ARef,
        atomic::{
            Atomic,
            Relaxed, //
        },
        Arc,
        Mutex, //
    },
    time::Delta, //
};

/// Reason to stay awake: the size of the balloon.
pub(crate) const WAKE_RESIZE: u32 = 1 << 0;
/// Reason to stay awake: the host waits for statistics.
pub(crate) const WAKE_REPORT: u32 = 1 << 1;

/// How often a wait for the host looks whether there is still a device and a use in waiting.
pub(crate) const STEP: Delta = Delta::from_millis(100);
/// A host that takes longer than this many steps gets a line in the log.
const SLOW_STEPS: u32 = 100;
/// Who cannot wait for long waits no longer than this many steps.
pub(crate) const LEAVE_STEPS: u32 = 50;

/// How many messages about pages may be with the host at a time.
const DEPTH: usize = 8;

/// A message about pages, and the pages that are free when the host has it.
pub(crate) struct Letter {
    pfns: Pfns,
    pub(crate) pages: Pages<Deflated>,
}

impl Letter {
    /// Writes that it is about these pages, at most [`Units::batch_pages`].
    ///
    /// # Errors
    ///
    /// [`EOVERFLOW`] for a page that the protocol has no number for.
    pub(crate) fn write(&mut self, host: &Host, pfns: impl Iterator<Item = u64>) -> Result {
        host.write(&mut self.pfns, pfns)
    }

    /// Writes that it is about the pages in it.
    pub(crate) fn write_pages(&mut self, host: &Host) -> Result {
        host.write(&mut self.pfns, self.pages.pfns())
    }
}

impl Buffer for Letter {
    const DIRECTION: Direction = Direction::ToDevice;

    fn bytes(&mut self) -> &mut [u8] {
        self.pfns.bytes()
    }
}

/// Why the host does not know.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Untold {
    /// It was not sent.
    Unsent(Error),
    /// It was sent, and the host has not answered: it may act on it until the device is reset.
    Unanswered(Error),
}

impl From<Untold> for Error {
    fn from(untold: Untold) -> Error {
        match untold {
            Untold::Unsent(error) | Untold::Unanswered(error) => error,
        }
    }
}

/// What connects the guest with the host.
#[pin_data]
pub(crate) struct Host {
    pub(crate) dev: ARef<device::Device>,
    pub(crate) units: Units,
    /// Raised when the host wants something, until it has it.
    #[pin]
    pub(crate) wakeup: WakeupSource,
    order: ByteOrder,
    config: Config<BalloonConfig>,
    /// The host may want another size than it did.
    has_changed: Atomic<bool>,
    /// Nobody waits for long for the host any more: the device is about to be reset.
    is_leaving: Atomic<bool>,
    /// Nor for now: the system is about to sleep.
    is_drowsy: Atomic<bool>,
    /// Sleeps, for as long as the host needs. It is held while pages get in or out of the balloon.
    /// Nothing is allocated with it. Migration, which may run below an allocation, only tries it.
    #[pin]
    channel: Mutex<Channel>,
}

/// The page frame number queues, and what goes through them.
///
/// Who sends a message need not wait for the answer. But the host takes each queue's messages as they
/// come, so there is never something in both: a page that is given and wanted back at once might else
/// be taken last.
pub(crate) struct Channel {
    lanes: Option<[Lane; 2]>,
    /// Those that are not with the host.
    idle: KVec<KBox<Letter>>,
    /// The host did not answer in the time that there was: what it has, it has until the device is
    /// reset.
    is_lost: bool,
    /// Who has the channel cannot wait for long.
    pub(crate) is_urgent: bool,
}

/// One of the queues.
struct Lane {
    queue: VirtQueue<Letter>,
    in_flight: usize,
}

/// Which way pages go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Way {
    /// To the host.
    Inflate = 0,
    /// To the guest.
    Deflate = 1,
}

impl Way {
    fn other(self) -> Self {
        match self {
            Way::Inflate => Way::Deflate,
            Way::Deflate => Way::Inflate,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Way::Inflate => "inflate",
            Way::Deflate => "deflate",
        }
    }
}

impl Host {
    pub(crate) fn new(vdev: &Device<Core<'_>>, units: Units) -> Result<Arc<Self>> {
        Arc::pin_init(
            try_pin_init!(Self {
                dev: vdev.as_ref().into(),
                units,
                wakeup <- WakeupSource::new(vdev),
                order: vdev.byte_order(),
                config: vdev.config()?,
                has_changed: Atomic::new(false),
                is_leaving: Atomic::new(false),
                is_drowsy: Atomic::new(false),
                channel <- new_mutex!(Channel {
                    lanes: None,
                    idle: KVec::new(),
                    is_lost: false,
                    is_urgent: false,
                }, "balloon_channel"),
            }),
            GFP_KERNEL,
        )
    }

    /// Connects the inflate queue and the deflate queue, after probe and after each restore.
    pub(crate) fn connect(&self, inflate: VirtQueue<Letter>, deflate: VirtQueue<Letter>) -> Result {
        // No more than there is room for: who has taken pages out can tell the host.
        let count = DEPTH.min(inflate.size()?).min(deflate.size()?);
        let mut idle = KVec::with_capacity(count, GFP_KERNEL)?;
        for _ in 0..count {
            let letter = Letter {
                pfns: Pfns::new(),
                pages: Pages::with_capacity(self.units.batch_pages())?,
            };
            idle.push(KBox::new(letter, GFP_KERNEL)?, GFP_KERNEL)?;
        }
        let lane = |queue| Lane {
            queue,
            in_flight: 0,
        };
        *self.channel.lock() = Channel {
            lanes: Some([lane(inflate), lane(deflate)]),
            idle,
            is_lost: false,
            is_urgent: false,
        };
        Ok(())
    }

    /// The device is ready: there is somebody to wait for.
    pub(crate) fn arrive(&self) {
        self.is_leaving.store(false, Relaxed);
    }

    /// Ends long waits for the host, those that are under way included.
    pub(crate) fn leave(&self) {
        self.is_leaving.store(true, Relaxed);
    }

    /// Is the device about to be reset?
    pub(crate) fn is_leaving(&self) -> bool {
        self.is_leaving.load(Relaxed)
    }

    /// The system is about to sleep, or is so no more: nobody waits for long for the host.
    pub(crate) fn set_drowsy(&self, is_drowsy: bool) {
        self.is_drowsy.store(is_drowsy, Relaxed);
    }

    /// Is the system about to sleep?
    pub(crate) fn is_drowsy(&self) -> bool {
        self.is_drowsy.load(Relaxed)
    }

    /// Calls a function while no page gets in or out of the balloon by anybody else.
    pub(crate) fn with_channel<R>(&self, f: impl FnOnce(&mut Channel) -> R) -> R {
        f(&mut self.channel.lock())
    }

    /// As [`with_channel`](Self::with_channel), but not if somebody has it.
    pub(crate) fn try_with_channel<R>(&self, f: impl FnOnce(&mut Channel) -> R) -> Option<R> {
        Some(f(&mut *self.channel.try_lock()?))
    }

    /// The host wants something else. Any context.
    pub(crate) fn set_changed(&self) {
        self.has_changed.store(true, Relaxed);
    }

    /// What the host wants is about to be read.
    pub(crate) fn clear_changed(&self) {
        self.has_changed.store(false, Relaxed);
    }

    /// May the host want another size by now?
    pub(crate) fn has_changed(&self) -> bool {
        self.has_changed.load(Relaxed)
    }

    /// How large the host wants the balloon, in guest pages.
    pub(crate) fn target_pages(&self) -> Result<u64> {
        Ok(self
            .units
            .target_pages(self.config.read(BalloonConfig::NUM_PAGES)?))
    }

    /// What the host wants to hear of free memory.
    pub(crate) fn hint_command(&self) -> Result<u32> {
        self.config.read(BalloonConfig::FREE_PAGE_HINT_CMD_ID)
    }

    /// Tells the host what free memory is filled with.
    pub(crate) fn set_poison(&self, byte: u8) -> Result {
        self.config
            .write(BalloonConfig::POISON_VAL, u32::from_le_bytes([byte; 4]))
    }

    /// Tells the host how large the balloon is.
    pub(crate) fn set_actual(&self, pages: usize) -> Result {
        self.config
            .write(BalloonConfig::ACTUAL, self.units.in_units(pages as u64))
    }

    /// Gets an empty message for one way, waiting for one if all are with the host.
    ///
    /// # Errors
    ///
    /// [`EIO`] when the host has not answered, [`ENODEV`] without queues.
    pub(crate) fn letter(&self, channel: &mut Channel, way: Way) -> Result<KBox<Letter>> {
        self.settle(channel, way.other())?;
        loop {
            if channel.is_lost {
                return Err(EIO);
            }
            if let Some(letter) = channel.idle.pop() {
                return Ok(letter);
            }
            self.collect(channel, way)?;
        }
    }

    /// Puts back a message that is not sent.
    pub(crate) fn put_back(&self, channel: &mut Channel, mut letter: KBox<Letter>) {
        letter.pfns.clear();
        letter.pages.clear();
        // There is room: there were as many before.
        let _ = channel.idle.push_within_capacity(letter);
    }

    fn write(&self, message: &mut Pfns, mut pfns: impl Iterator<Item = u64>) -> Result {
        let is_complete = pfns.all(|pfn| {
            self.units
                .of_page(pfn)
                .is_some_and(|mut units| units.all(|unit| message.push(self.order.u32(unit))))
        });
        is_complete.then_some(()).ok_or(EOVERFLOW)
    }

    /// Sends a message, after `write` has written it. If it cannot be sent, the
    /// [pages in it](Letter::pages) are freed.
    ///
    /// # Errors
    ///
    /// Not sent: those of `write` and [`VirtQueue::add`].
    pub(crate) fn send(
        &self,
        channel: &mut Channel,
        way: Way,
        mut letter: KBox<Letter>,
        write: impl FnOnce(&mut Letter) -> Result,
    ) -> Result<(), Untold> {
        if let Err(error) = write(&mut letter) {
            self.put_back(channel, letter);
            return Err(Untold::Unsent(error));
        }
        let lane = channel.lane(way).map_err(Untold::Unsent)?;
        match lane.queue.add(letter) {
            Ok(()) => {
                lane.in_flight += 1;
                lane.queue.kick().map_err(Untold::Unanswered)
            }
            Err(refused) => {
                self.put_back(channel, refused.buffer);
                Err(Untold::Unsent(refused.error))
            }
        }
    }

    /// Waits until the host has all that it was sent one way.
    pub(crate) fn settle(&self, channel: &mut Channel, way: Way) -> Result<(), Untold> {
        while channel.lane(way).map_err(Untold::Unsent)?.in_flight > 0 {
            self.collect(channel, way)?;
        }
        Ok(())
    }

    /// Waits until the host has one of the messages that it was sent one way, and frees what can be.
    fn collect(&self, channel: &mut Channel, way: Way) -> Result<(), Untold> {
        if channel.is_lost {
            return Err(Untold::Unanswered(EIO));
        }
        let is_urgent = channel.is_urgent;
        let lane = channel.lane(way).map_err(Untold::Unsent)?;
        let answer = self.answer(way.name(), is_urgent, |timeout| {
            let used = lane.queue.wait(timeout)?;
            if used.is_none() {
                // It may have missed the kick.
                lane.queue.notify()?;
            }
            Ok(used)
        });
        match answer {
            Ok(used) => {
                lane.in_flight -= 1;
                self.put_back(channel, used.buffer);
                Ok(())
            }
            Err(untold) => {
                channel.is_lost = !is_urgent || self.is_leaving();
                Err(untold)
            }
        }
    }

    /// Waits for the host to answer, for as long as that takes, or not very long when that is urgent,
    /// the device is about to be reset or the system to sleep.
    pub(crate) fn answer<R>(
        &self,
        what: &str,
        is_urgent: bool,
        mut wait: impl FnMut(Delta) -> Result<Option<R>>,
    ) -> Result<R, Untold> {
        let mut steps = 0u32;
        loop {
            if let Some(answer) = wait(STEP).map_err(Untold::Unanswered)? {
                return Ok(answer);
            }
            steps = steps.saturating_add(1);
            let is_hurried = is_urgent || self.is_leaving() || self.is_drowsy();
            if is_hurried && steps >= LEAVE_STEPS {
                return Err(Untold::Unanswered(ETIMEDOUT));
            }
            if steps == SLOW_STEPS {
                dev_warn!(&*self.dev, "the host is slow to answer ({what})\n");
            }
        }
    }

    /// Tells the host about one page, and waits until it knows.
    fn tell(&self, channel: &mut Channel, way: Way, page: &PageRef<'_>) -> Result<(), Untold> {
        let letter = self.letter(channel, way).map_err(Untold::Unsent)?;
        self.send(channel, way, letter, |letter| {
            letter.write(self, core::iter::once(page.pfn()))
        })?;
        self.settle(channel, way)
    }
}

impl Channel {
    fn lane(&mut self, way: Way) -> Result<&mut Lane> {
        let lanes = self.lanes.as_mut().ok_or(ENODEV)?;
        Ok(&mut lanes[way as usize])
    }
}

/// Migrates pages by telling the host of the new one and then of the old one.
pub(crate) struct Migrator(pub(crate) Arc<Host>);

impl Migrate for Migrator {
    fn migrate(&self, new: PageRef<'_>, old: PageRef<'_>) -> Result {
        let Some(mut channel) = self.0.channel.try_lock() else {
            return Err(EAGAIN);
        };
        // The old page may be in a message that the host has not answered. It must not be free then:
        // the host may take it at any time.
        self.0.settle(&mut channel, Way::Inflate)?;
        match self.0.tell(&mut channel, Way::Inflate, &new) {
            Ok(()) => {}
            Err(Untold::Unsent(error)) => return Err(error),
            // The host may take the new page at any time, so it has to be in the balloon.
            Err(Untold::Unanswered(_)) => return Ok(()),
        }
        // It is too late to fail: if the host does not hear of this, it keeps a page that the guest
        // uses, and gives it back as soon as that is touched.
        let _ = self.0.tell(&mut channel, Way::Deflate, &old);
        Ok(())
    }
}
