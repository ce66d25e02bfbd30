// SPDX-License-Identifier: GPL-2.0

//! Telling the host which pages it has.

use crate::{
    message::Pfns,
    plan::Units, //
};
use ferrule::{
    mm::balloon::{
        Migrate,
        PageRef, //
    },
    virtio::{
        Buffer,
        ByteOrder,
        Config,
        Device,
        Direction,
        Field,
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

/// How many units the host wants in the balloon.
const NUM_PAGES: Field<u32> = Field::new(0);
/// How many units are in the balloon.
const ACTUAL: Field<u32> = Field::new(4);
/// What free memory is filled with, and has to be when it comes back from the host.
const POISON_VAL: Field<u32> = Field::new(12);

/// How often a wait for the host looks whether there is still a device and a use in waiting.
const STEP: Delta = Delta::from_millis(100);
/// A host that takes longer than this many steps gets a line in the log.
const SLOW_STEPS: u32 = 100;
/// Who wants to leave waits no longer than this many steps.
const LEAVE_STEPS: u32 = 50;

impl Buffer for Pfns {
    const DIRECTION: Direction = Direction::ToDevice;

    fn bytes(&mut self) -> &mut [u8] {
        Pfns::bytes(self)
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
    config: Config,
    /// Nobody waits for long for the host any more: the device is about to be reset.
    is_leaving: Atomic<bool>,
    /// Sleeps, for as long as the host needs. It is held while pages get in or out of the balloon
    /// until the host knows. Migration, which may run below an allocation, only tries it.
    #[pin]
    channel: Mutex<Channel>,
}

/// The page frame number queues. They carry one message at a time.
pub(crate) struct Channel {
    queues: Option<(VirtQueue<Pfns>, VirtQueue<Pfns>)>,
    // With the host while it is told something, and for ever if it does not answer.
    message: Option<KBox<Pfns>>,
}

/// Which way pages go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Way {
    /// To the host.
    Inflate,
    /// To the guest.
    Deflate,
}

impl Host {
    pub(crate) fn new(vdev: &Device<Core<'_>>, units: Units) -> Result<Arc<Self>> {
        Arc::pin_init(
            try_pin_init!(Self {
                dev: vdev.as_ref().into(),
                units,
                wakeup <- WakeupSource::new(vdev),
                order: vdev.byte_order(),
                config: vdev.config(),
                is_leaving: Atomic::new(false),
                channel <- new_mutex!(Channel { queues: None, message: None }, "balloon_channel"),
            }),
            GFP_KERNEL,
        )
    }

    /// Connects the inflate queue and the deflate queue, after probe and after each restore.
    pub(crate) fn connect(&self, inflate: VirtQueue<Pfns>, deflate: VirtQueue<Pfns>) -> Result {
        let message = KBox::new(Pfns::new(), GFP_KERNEL)?;
        let mut channel = self.channel.lock();
        channel.queues = Some((inflate, deflate));
        channel.message = Some(message);
        self.is_leaving.store(false, Relaxed);
        Ok(())
    }

    /// Ends long waits for the host, those that are under way included.
    pub(crate) fn leave(&self) {
        self.is_leaving.store(true, Relaxed);
    }

    /// Is the device about to be reset?
    pub(crate) fn is_leaving(&self) -> bool {
        self.is_leaving.load(Relaxed)
    }

    /// Calls a function while no page gets in or out of the balloon by anybody else.
    pub(crate) fn with_channel<R>(&self, f: impl FnOnce(&mut Channel) -> R) -> R {
        f(&mut self.channel.lock())
    }

    /// How large the host wants the balloon, in guest pages.
    pub(crate) fn target_pages(&self) -> Result<u64> {
        Ok(self.units.target_pages(self.config.read(NUM_PAGES)?))
    }

    /// Tells the host what free memory is filled with.
    pub(crate) fn set_poison(&self, byte: u8) -> Result {
        self.config.write(POISON_VAL, u32::from_le_bytes([byte; 4]))
    }

    /// Tells the host how large the balloon is.
    pub(crate) fn set_actual(&self, pages: usize) -> Result {
        self.config.write(ACTUAL, self.units.in_units(pages as u64))
    }

    /// Writes a message about pages, at most [`Units::batch_pages`]; to be passed to
    /// [`send`](Self::send).
    ///
    /// # Errors
    ///
    /// [`EIO`] when the last message was not answered, [`EOVERFLOW`] for a page that the protocol
    /// has no number for.
    pub(crate) fn write(
        &self,
        channel: &mut Channel,
        mut pfns: impl Iterator<Item = u64>,
    ) -> Result<KBox<Pfns>> {
        let mut message = channel.message.take().ok_or(EIO)?;
        message.clear();
        let is_complete = pfns.all(|pfn| {
            self.units
                .of_page(pfn)
                .is_some_and(|mut units| units.all(|unit| message.push(self.order.u32(unit))))
        });
        if is_complete {
            Ok(message)
        } else {
            channel.message = Some(message);
            Err(EOVERFLOW)
        }
    }

    /// Sends a message and waits until the host knows.
    pub(crate) fn send(
        &self,
        channel: &mut Channel,
        way: Way,
        message: KBox<Pfns>,
    ) -> Result<(), Untold> {
        let Some((inflate, deflate)) = &channel.queues else {
            channel.message = Some(message);
            return Err(Untold::Unsent(ENODEV));
        };
        let queue = match way {
            Way::Inflate => inflate,
            Way::Deflate => deflate,
        };
        if let Err(refused) = queue.add(message) {
            channel.message = Some(refused.buffer);
            return Err(Untold::Unsent(refused.error));
        }
        queue.kick().map_err(Untold::Unanswered)?;

        let what = match way {
            Way::Inflate => "inflate",
            Way::Deflate => "deflate",
        };
        let used = self.answer(what, |timeout| queue.wait(timeout))?;
        channel.message = Some(used.buffer);
        Ok(())
    }

    /// Waits for the host to answer, for as long as that takes, or not very long when the device is
    /// about to be reset.
    pub(crate) fn answer<R>(
        &self,
        what: &str,
        mut wait: impl FnMut(Delta) -> Result<Option<R>>,
    ) -> Result<R, Untold> {
        let mut steps = 0u32;
        loop {
            if let Some(answer) = wait(STEP).map_err(Untold::Unanswered)? {
                return Ok(answer);
            }
            steps = steps.saturating_add(1);
            if self.is_leaving() && steps >= LEAVE_STEPS {
                return Err(Untold::Unanswered(ETIMEDOUT));
            }
            if steps == SLOW_STEPS {
                dev_warn!(&*self.dev, "the host is slow to answer ({what})\n");
            }
        }
    }

    /// Tells the host about one page.
    fn tell(&self, channel: &mut Channel, way: Way, page: &PageRef<'_>) -> Result<(), Untold> {
        let message = self
            .write(channel, core::iter::once(page.pfn()))
            .map_err(Untold::Unsent)?;
        self.send(channel, way, message)
    }
}

/// Migrates pages by telling the host of the new one and then of the old one.
pub(crate) struct Migrator(pub(crate) Arc<Host>);

impl Migrate for Migrator {
    fn migrate(&self, new: PageRef<'_>, old: PageRef<'_>) -> Result {
        let Some(mut channel) = self.0.channel.try_lock() else {
            return Err(EAGAIN);
        };
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
