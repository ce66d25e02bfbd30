// SPDX-License-Identifier: GPL-2.0

//! Free page hints: a host that migrates the guest is told which memory it need not copy.
//!
//! The host puts a command into the configuration space. An *id* starts a round: the guest sends
//! the id, then all free memory in blocks of the largest order, then a stop sign, all through one
//! queue. It keeps the blocks, which the host does not copy any more. (When the guest writes to one
//! later it is dirty, and copied like any other.) *Stop*, or another id, ends a round. *Done* says
//! that the guest may use the blocks again; memory pressure (the shrinker) takes them back earlier.
//! They count as used, and not as in the balloon.
//!
//! # Who runs when
//!
//! - The work: a message of a round at a time, and done. Never twice at a time. `round` is its own.
//! - A change of the configuration, in hard interrupt context: enqueues the work, which reads the
//!   command, also in the middle of a round. It is read after a change only, for QEMU shows *stop*
//!   during a round.
//! - The shrinker, in reclaim, on any CPU, also below an allocation of the work. It takes back what
//!   the host has returned, by `queue`, `idle` and `held`: spinlocks that are held for a moment
//!   each, one at a time, with nothing allocated.
//! - The queue has no interrupt, as in C: QEMU answers in an I/O thread, and one that emulates the CPUs
//!   ends by an assertion when it is to interrupt them from there (seen with 7.2). Whoever waits looks
//!   every millisecond. (When the queue is full C frees what it has allocated and tries again until
//!   there is room.)
//! - The balloon's work takes back what is kept as the shrinker does, when it finds no memory.
//! - Sleep: the work is frozen; the queue is deleted with what is in it, then what is kept is
//!   freed. The shrinker may run all the time.
//! - Unbinding: the same with the work disabled, and last of all the shrinker is unregistered.
//!
//! # Whose blocks
//!
//! In C the shrinker and *done* free blocks that may still be in the queue: QEMU does not mind.
//! Here what is in the queue belongs to the queue, as always: a device may write to a buffer that
//! it was given to write to until it returns it. So that a slow host keeps little from a guest that
//! is short of memory, few blocks are sent at a time.

use crate::{
    host::{
        Host,
        STEP, //
    },
    policy::handover::{
        self,
        Next,
        Places,
        STOP, //
    },
    progress::may_tell,
    store::List, //
};
use core::{
    cmp::min,
    mem, //
};
use ferrule::{
    mm::{
        blocks::{
            Blocks,
            Kept,
            MAX_ORDER, //
        },
        shrinker::{
            self,
            Shrink, //
        }, //
    },
    new_owned_work,
    virtio::{
        Buffer,
        ByteOrder,
        Direction,
        Either,
        VirtQueue, //
    },
    work::{
        OwnedWork,
        Run, //
    },
    workqueue::OwnedQueue, //
};
use kernel::{
    new_mutex,
    new_spinlock,
    page::PAGE_SIZE,
    prelude::*,
    sync::{
        Arc,
        Mutex,
        SpinLock, //
    },
    time::{
        delay::fsleep,
        Delta,
        Instant,
        Monotonic, //
    }, //
};

const BLOCK_PAGES: usize = 1 << MAX_ORDER;
/// So many messages, of a block each, are with the host at a time: as make 64 MiB. (Of a message of
/// several blocks QEMU before 7.0 looks at the first only.)
const MESSAGES: usize = {
    let blocks = (64 << 20) / (BLOCK_PAGES * PAGE_SIZE);
    if blocks > 2 {
        blocks
    } else {
        2
    }
};
/// Nobody depends on hints, so a host that does not answer for so many [`STEP`]s has no more. The
/// work waits so long no more than twice before it is enqueued again, and so the system can go
/// to sleep whatever the host does: it waits 20 s for work to be frozen.
const PATIENCE_STEPS: u32 = 50;

/// How many microseconds it takes until whoever waits for the host looks again: the first time, and at
/// most, when it has waited for longer.
const LOOK_AGAIN: (i64, i64) = (50, 1000);

/// So often the host is reminded of the end of a round, a [`STEP`] apart.
const REMINDERS: usize = 3;

/// What the queue carries.
pub(crate) type Lent = Either<Blocks, Command>;

/// An id, or a stop sign.
pub(crate) struct Command([u8; 4]);

impl Buffer for Command {
    const DIRECTION: Direction = Direction::ToDevice;

    fn bytes(&mut self) -> &mut [u8] {
        &mut self.0
    }
}

/// What the driver has of free page hints.
pub(crate) struct Hinting {
    // In the order in which they have to go: what uses the others first.
    _shrinker: shrinker::Registration<Hints>,
    work: Pin<KBox<OwnedWork<Rounds>>>,
    hints: Arc<Hints>,
}

impl Hinting {
    pub(crate) fn new(host: Arc<Host>, order: ByteOrder) -> Result<Self> {
        let hints = Arc::pin_init(Hints::new(host, order), GFP_KERNEL)?;
        let rounds = Rounds {
            hints: hints.clone(),
            queue: OwnedQueue::freezable(c"balloon_hint")?,
        };
        Ok(Self {
            _shrinker: shrinker::Registration::new(hints.clone(), c"virtio-balloon-rs")?,
            work: KBox::pin_init(
                new_owned_work!(Ok::<_, Error>(rounds), "balloon_hint"),
                GFP_KERNEL,
            )?,
            hints,
        })
    }

    /// Connects the queue, after probe and after each restore. Process context, without work.
    ///
    /// # Errors
    ///
    /// [`ENOSPC`] when the queue has no room for a block beside a command.
    pub(crate) fn connect(&self, queue: VirtQueue<Lent>) -> Result {
        self.hints.connect(queue)
    }

    /// What is kept, for who needs memory.
    pub(crate) fn hints(&self) -> Arc<Hints> {
        self.hints.clone()
    }

    /// There may be another command. Any context.
    pub(crate) fn changed(&self) {
        self.hints.news.arrive();
        // Orders it: the work sees it, whether it is about to run or runs.
        self.work.enqueue(&self.work.queue);
    }

    /// Ends the work for good.
    pub(crate) fn disable(&self) {
        self.work.disable();
    }

    /// Frees what is kept. The queue has to be deleted, and what was in it was freed by that.
    pub(crate) fn release(&self) {
        self.hints.release();
    }
}

/// See the module's description.
#[pin_data]
pub(crate) struct Hints {
    host: Arc<Host>,
    order: ByteOrder,
    /// The configuration has changed since the command was read.
    news: handover::News,
    #[pin]
    queue: SpinLock<Option<Arc<VirtQueue<Lent>>>>,
    /// Messages that are not with the host. Nothing is allocated but blocks once there are queues.
    #[pin]
    idle: SpinLock<Idle>,
    /// Blocks that the host has returned.
    #[pin]
    held: Kept,
    /// Sleeps. The work holds it while it waits for the host.
    #[pin]
    round: Mutex<Round>,
}

/// Messages that are not with the host.
type Idle = handover::Idle<KBox<Lent>>;

/// What the host wants.
#[derive(Default)]
struct Round {
    now: handover::Round,
    /// When the log was told last that the host takes no hints: it can make that happen all the time.
    told: Option<Instant<Monotonic>>,
}

/// The hints, and the queue that they go through at the moment.
struct Through<'a> {
    hints: &'a Hints,
    queue: &'a VirtQueue<Lent>,
}

/// Process context, reclaim included; nothing sleeps.
impl Places for Through<'_> {
    type Message = KBox<Lent>;
    type Error = Error;

    fn returned(&self) -> Result<Option<Self::Message>> {
        Ok(self.queue.get()?.map(|used| used.buffer))
    }

    fn keep(&self, message: &mut Self::Message) -> bool {
        match &mut **message {
            Either::First(blocks) => {
                self.hints.held.put(blocks);
                true
            }
            Either::Second(_) => false,
        }
    }

    fn with_idle<R>(&self, with: impl FnOnce(&mut Idle) -> R) -> R {
        with(&mut self.hints.idle.lock())
    }
}

impl Hints {
    fn new(host: Arc<Host>, order: ByteOrder) -> impl PinInit<Self> {
        pin_init!(Self {
            host,
            order,
            news: handover::News::new(),
            queue <- new_spinlock!(None, "balloon_hint_queue"),
            idle <- new_spinlock!(Idle::new(), "balloon_hint_idle"),
            held <- Kept::new(),
            round <- new_mutex!(Round::default(), "balloon_hint_round"),
        })
    }

    fn connect(&self, queue: VirtQueue<Lent>) -> Result {
        let entries = queue.size()?.saturating_sub(1);
        if entries == 0 {
            return Err(ENOSPC);
        }
        let count = MESSAGES.min(entries);
        let mut blocks = List::with_capacity(count)?;
        for _ in 0..count {
            let message = Either::First(Blocks::with_capacity(1)?);
            blocks.push(KBox::new(message, GFP_KERNEL)?);
        }
        let idle = Idle {
            blocks,
            count,
            command: Some(KBox::new(Either::Second(Command([0; 4])), GFP_KERNEL)?),
        };
        let queue = Arc::new(queue, GFP_KERNEL)?;

        self.round.lock().now = handover::Round::default();
        let idle = mem::replace(&mut *self.idle.lock(), idle);
        let queue = self.queue.lock().replace(queue);
        // Not under the locks.
        drop((idle, queue));
        Ok(())
    }

    fn queue(&self) -> Option<Arc<VirtQueue<Lent>>> {
        self.queue.lock().clone()
    }

    fn through<'a>(&'a self, queue: &'a VirtQueue<Lent>) -> Through<'a> {
        Through { hints: self, queue }
    }

    /// Waits until `find` finds something in what is not with the host, at most for a [`STEP`].
    fn look<R>(
        &self,
        queue: &VirtQueue<Lent>,
        mut find: impl FnMut(&mut Idle) -> Option<R>,
    ) -> Result<Option<R>> {
        let since = Instant::<Monotonic>::now();
        let mut nap = LOOK_AGAIN.0;
        loop {
            self.through(queue).collect()?;
            let found = find(&mut self.idle.lock());
            if found.is_some() || since.elapsed() >= STEP {
                return Ok(found);
            }
            fsleep(Delta::from_micros(nap));
            nap = min(nap * 2, LOOK_AGAIN.1);
        }
    }

    /// Waits until `find` finds something in what is not with the host. Returns `None` when `ends`
    /// says so, and when the device is about to be reset.
    ///
    /// # Errors
    ///
    /// [`ETIMEDOUT`] when it took too long.
    fn wait<R>(
        &self,
        queue: &VirtQueue<Lent>,
        ends: impl Fn() -> bool,
        mut find: impl FnMut(&mut Idle) -> Option<R>,
    ) -> Result<Option<R>> {
        for _ in 0..PATIENCE_STEPS {
            if let Some(found) = self.look(queue, &mut find)? {
                return Ok(Some(found));
            }
            if ends() || self.host.is_leaving() {
                return Ok(None);
            }
            // QEMU stops to look at the queue between rounds, and may miss what comes just then.
            queue.notify()?;
        }
        Err(ETIMEDOUT)
    }

    /// Does what the host wants, or a part of it. Says whether there is more to do.
    fn obey(&self, round: &mut handover::Round) -> Result<bool> {
        let queue = self.queue().ok_or(ENODEV)?;
        self.news.take(round, || self.host.hint_command())?;
        let mut sent = Ok(true);
        if round.next() == Next::Send {
            sent = self.send_blocks(&queue);
            if let Ok(true) = sent {
                return sent;
            }
        }
        if matches!(round.next(), Next::Send | Next::End) {
            round.ends();
            self.tell(&queue, STOP)?;
            self.remind(&queue)?;
            sent?;
        }
        match round.next() {
            Next::GiveBack => self.give_back(&queue).map(|()| false),
            Next::Begin(id) => {
                round.begins(id);
                self.tell(&queue, id)?;
                round.is_begun();
                Ok(true)
            }
            Next::Send | Next::End | Next::Nothing => Ok(false),
        }
    }

    /// Sends an id or a stop sign.
    fn tell(&self, queue: &VirtQueue<Lent>, id: u32) -> Result {
        let idle = self.wait(queue, || false, |idle| idle.command.take())?;
        let Some(mut message) = idle else {
            return Ok(());
        };
        if let Either::Second(command) = &mut *message {
            command.0 = self.order.u32(id);
        }
        queue.add(message)?;
        queue.kick()
    }

    /// Sees to it that the host notices the last command: it may have missed the kick, and there is
    /// nothing more to come. A host that has stopped to look at the queue is not waited for.
    fn remind(&self, queue: &VirtQueue<Lent>) -> Result {
        for _ in 0..REMINDERS {
            let is_noticed = |idle: &mut Idle| idle.command.is_some().then_some(());
            if self.look(queue, is_noticed)?.is_some() || self.host.is_leaving() {
                break;
            }
            queue.notify()?;
        }
        Ok(())
    }

    /// Sends free memory, as much as there are messages for. Says whether there may be more: a block is
    /// left, or the host wants something else.
    fn send_blocks(&self, queue: &VirtQueue<Lent>) -> Result<bool> {
        let is_changed = || self.news.have_arrived();
        let Some(message) = self.wait(queue, is_changed, |idle| idle.blocks.pop())? else {
            return Ok(!self.host.is_leaving());
        };
        let mut next = Some(message);
        let mut result = Ok(true);
        while let Some(mut message) = next {
            let Either::First(blocks) = &mut *message else {
                break;
            };
            if blocks.allocate(MAX_ORDER, None).is_err() {
                self.idle.lock().blocks.push(message);
                result = Ok(false);
                break;
            }
            if let Err(refused) = queue.add(message) {
                result = Err(refused.error);
                break;
            }
            next = self.idle.lock().blocks.pop();
        }
        // Those that were sent before something went wrong as well.
        queue.kick()?;
        result
    }

    /// Frees all blocks, those included that the host has yet to return.
    fn give_back(&self, queue: &VirtQueue<Lent>) -> Result {
        self.release();
        let is_changed = || self.news.have_arrived();
        let result = self.wait(queue, is_changed, |idle| idle.is_complete().then_some(()));
        self.release();
        // What did not come is left to the shrinker.
        result.map(|_| ())
    }

    fn release(&self) {
        while self.held.take_smallest().is_some() {}
    }
}

impl Shrink for Hints {
    fn count(&self) -> usize {
        if let Some(queue) = self.queue() {
            // A broken queue has nothing to give.
            let _ = self.through(&queue).collect_rest();
        }
        self.held.pages()
    }

    fn scan(&self, wanted: usize) -> Option<usize> {
        let mut freed = 0;
        while freed < wanted {
            // Freed at once.
            let Some(block) = self.held.take_smallest() else {
                break;
            };
            freed += 1 << block.order();
        }
        (freed > 0).then_some(freed)
    }
}

/// The work.
struct Rounds {
    hints: Arc<Hints>,
    queue: OwnedQueue,
}

impl Run for Rounds {
    fn run(work: &OwnedWork<Self>) {
        let mut round = work.hints.round.lock();
        if work.hints.host.is_leaving() {
            return;
        }
        match work.hints.obey(&mut round.now) {
            Ok(true) => work.enqueue(&work.queue),
            Ok(false) => {}
            Err(error) => {
                if !work.hints.host.is_leaving() && may_tell(&mut round.told) {
                    dev_warn!(
                        &*work.hints.host.dev,
                        "the host does not take hints ({error:?})\n"
                    );
                }
            }
        }
    }
}
