// SPDX-License-Identifier: GPL-2.0

//! Holding bios back and letting them go.
//!
//! A bio that conforms to the limits passes in [`Holding::admit`] without a lock, unless others wait
//! that it would overtake. One that does not conform is appended to the queue of its direction. A
//! single work item releases what is due, in process context because submitting may sleep, and then
//! arms the timer for whatever is due next. The timer does nothing but queue the work. So the
//! work item alone decides, arms and submits:
//!
//! ```text
//! admit: first to wait in its direction --+
//! timer: something is due ----------------+--> work: release what is due, in turn --> arm the timer
//! set, suspend ---------------------------+
//! ```
//!
//! Order within a direction is kept because [`Hold::waiting`] counts a bio until it was submitted:
//! until then, those that come later queue up behind it.
//!
//! # Contexts
//!
//! `admit` runs in process context, the work on a queue of this device's own, which makes progress
//! when memory is short; the timer in hard interrupt context. The spinlock is taken by `admit`, the
//! work and status, never by the timer. It is the innermost lock. `armed` is taken by the work,
//! and on drop, when there is no work any more.

use super::{
    gcra::{
        TICKS_PER_MS,
        TICKS_PER_NS,
        TICKS_PER_US, //
    },
    histogram::{
        Histogram,
        Summary, //
    },
    limits::{
        next,
        ticks_to_ns,
        Charge,
        Limits,
        Next, //
    },
    report::Traffic,
    settings::Settings,
    Direction, //
};
use ferrule::{
    bio::{
        BioList,
        Flags,
        MappedBio, //
    },
    workqueue::{
        OwnedQueue,
        Priority, //
    }, //
};
use kernel::{
    impl_has_hr_timer,
    new_mutex,
    new_spinlock,
    prelude::*,
    sync::{
        atomic::{
            Acquire,
            Atomic,
            Relaxed,
            Release, //
        },
        Arc,
        ArcBorrow,
        Mutex,
        SpinLock, //
    },
    time::{
        hrtimer::{
            AbsoluteMode,
            ArcHrTimerHandle,
            HrTimer,
            HrTimerCallback,
            HrTimerCallbackContext,
            HrTimerPointer,
            HrTimerRestart, //
        },
        Delta,
        Instant,
        Monotonic, //
    },
    workqueue::{
        impl_has_work,
        new_work,
        Work,
        WorkItem, //
    }, //
};

/// How often a disk is looked at whether it still exists while bios wait for it, in ticks.
const LOOK_AFTER: u64 = 250 * TICKS_PER_MS;

/// What is kept in a bio that waits.
#[derive(Clone, Copy, Default)]
pub(crate) struct Held {
    /// When it came, in ticks.
    since: u64,
    charge: Charge,
}

/// What became of a bio that asked to pass.
pub(crate) enum Admission {
    /// It may go, and was charged.
    Pass(MappedBio<Held>),
    /// It waits.
    Held,
    /// It would have to wait, but must not. It was not charged.
    WouldBlock(MappedBio<Held>),
}

/// The bios of one device that wait.
#[pin_data]
struct Hold {
    limits: Limits,
    /// Where time, in ticks, begins.
    epoch: Instant<Monotonic>,
    /// Write order matters: nothing that writes may overtake.
    is_zoned: bool,
    /// Bios of each direction that are held or being submitted after having been. Changed from 0
    /// with `queues` locked.
    waiting: [Atomic<u64>; 2],
    /// Limits do not apply: the device is suspended, or about to be.
    is_open: Atomic<bool>,
    traffic: Arc<Traffic>,
    #[pin]
    queues: SpinLock<Queues>,
    #[pin]
    timer: HrTimer<Self>,
    #[pin]
    work: Work<Self>,
    /// The timer, while it runs.
    #[pin]
    armed: Mutex<Option<ArcHrTimerHandle<Self>>>,
    /// Where the work runs.
    queue: OwnedQueue,
}

struct Queues {
    bios: [BioList<Held>; 2],
    /// Whose turn it was last.
    last: Direction,
    /// How long those that were released had waited, in microseconds.
    times: [KBox<Histogram>; 2],
}

impl_has_work! {
    impl HasWork<Self> for Hold { self.work }
}

impl_has_hr_timer! {
    impl HasHrTimer<Self> for Hold {
        mode: AbsoluteMode<Monotonic>, field: self.timer
    }
}

/// The owner of a [`Hold`], which stops its work and timer for good when dropped. No bio may wait any
/// more then, which device mapper sees to: it drops a target when no bio is in flight.
pub(crate) struct Holding(Arc<Hold>);

impl Holding {
    pub(crate) fn new(traffic: Arc<Traffic>, is_zoned: bool) -> Result<Self> {
        Ok(Self(Hold::new(traffic, is_zoned)?))
    }

    /// Changes the limits, for what waits already as well.
    pub(crate) fn set_limits(&self, settings: &Settings) {
        self.0.limits.apply(settings, self.0.now());
        self.0.as_arc_borrow().kick();
    }

    /// Do limits not apply? What waits is let go when they cease to.
    pub(crate) fn set_open(&self, is_open: bool) {
        self.0.is_open.store(is_open, Release);
        self.0.as_arc_borrow().kick();
    }

    /// Lets a bio pass or holds it.
    #[inline]
    pub(crate) fn admit(
        &self,
        bio: MappedBio<Held>,
        direction: Direction,
        charge: Charge,
    ) -> Admission {
        self.0.as_arc_borrow().admit(bio, direction, charge)
    }

    /// How many wait in a direction, and how long those waited that do not any more.
    pub(crate) fn status(&self, direction: Direction) -> (u64, Summary) {
        let queues = self.0.queues.lock();
        (
            self.0.waiting[direction as usize].load(Relaxed),
            queues.times[direction as usize].summary(),
        )
    }

    /// Forgets how long bios waited.
    pub(crate) fn reset(&self) {
        for times in &mut self.0.queues.lock().times {
            times.clear();
        }
    }
}

impl Drop for Holding {
    fn drop(&mut self) {
        // The work arms the timer only when a bio waits. But a timer may be about to fire that it
        // armed before, and queue the work once more.
        self.0.queue.flush();
        drop(self.0.armed.lock().take());
        self.0.queue.flush();
        // No reference is left now but this one: work and timer, which hold the others, are done. So
        // it is not the work that drops the queue it runs on.
    }
}

impl Hold {
    fn new(traffic: Arc<Traffic>, is_zoned: bool) -> Result<Arc<Self>> {
        let queue = OwnedQueue::new(c"dm-qos", Priority::High)?;
        let times = [
            KBox::new(Histogram::new(), GFP_KERNEL)?,
            KBox::new(Histogram::new(), GFP_KERNEL)?,
        ];
        Arc::pin_init(
            pin_init!(Self {
                limits: Limits::new(),
                epoch: Instant::now(),
                is_zoned,
                waiting: [Atomic::new(0), Atomic::new(0)],
                is_open: Atomic::new(false),
                traffic,
                queues <- new_spinlock!(Queues {
                    bios: [BioList::new(), BioList::new()],
                    last: Direction::Write,
                    times,
                }),
                timer <- HrTimer::new(),
                work <- new_work!("dm_qos::Hold::work"),
                armed <- new_mutex!(None),
                queue,
            }),
            GFP_KERNEL,
        )
    }

    /// Now, in ticks.
    #[inline]
    fn now(&self) -> u64 {
        (self.epoch.elapsed().as_nanos() as u64) * TICKS_PER_NS
    }

    /// Has the work look at what waits.
    fn kick(self: ArcBorrow<'_, Self>) {
        // Queued already is as well.
        let _ = self.queue.enqueue::<Arc<Self>, 0>(self.into());
    }

    /// See [`Holding::admit`].
    #[inline]
    fn admit(
        self: ArcBorrow<'_, Self>,
        bio: MappedBio<Held>,
        direction: Direction,
        charge: Charge,
    ) -> Admission {
        let [reads, writes] = &self.waiting;
        let (mine, both) = {
            let (reads, writes) = (reads.load(Acquire), writes.load(Acquire));
            ([reads, writes][direction as usize], reads | writes)
        };
        if mine == 0 && (!self.limits.concern(direction) || self.is_open.load(Acquire)) {
            return Admission::Pass(bio);
        }

        let now = self.now();
        // Somebody important would wait behind somebody who is not.
        if bio
            .flags()
            .any_of(Flags::META.or(Flags::PRIO).or(Flags::SWAP))
            && !(self.is_zoned && direction == Direction::Write)
        {
            if !self.is_open.load(Relaxed) {
                self.limits.charge(direction, charge, now);
            }
            return Admission::Pass(bio);
        }

        let nobody_first = if self.limits.are_shared() {
            both == 0
        } else {
            mine == 0
        };
        if nobody_first && self.limits.try_charge(direction, charge, now) {
            return Admission::Pass(bio);
        }
        self.hold(bio, direction, charge, now)
    }

    /// The part of [`Self::admit`] that takes the lock.
    #[cold]
    fn hold(
        self: ArcBorrow<'_, Self>,
        mut bio: MappedBio<Held>,
        direction: Direction,
        charge: Charge,
        now: u64,
    ) -> Admission {
        let must_not_wait = bio.flags().any_of(Flags::NOWAIT);
        *bio.data_mut() = Held { since: now, charge };

        let mut queues = self.queues.lock();
        let waiting = &self.waiting[direction as usize];
        if waiting.load(Acquire) == 0 {
            // What goes to a disk that is gone fails there. When only the other direction waits, and
            // not for what this bio needs, there is no reason to wait either.
            if self.is_open.load(Acquire)
                || bio.device_is_dead()
                || (!self.other_is_due(&queues, direction, now)
                    && self.limits.try_charge(direction, charge, now))
            {
                return Admission::Pass(bio);
            }
        }
        if must_not_wait {
            return Admission::WouldBlock(bio);
        }
        bio.prepare_to_hold();
        waiting.add(1, Relaxed);
        let bios = &mut queues.bios[direction as usize];
        let is_first = bios.is_empty();
        bios.push_back(bio);
        drop(queues);
        // The work looks at the others when it is done with this one.
        if is_first {
            self.kick();
        }
        Admission::Held
    }

    /// Is something that waits in the other direction about to be released?
    fn other_is_due(&self, queues: &Queues, direction: Direction, now: u64) -> bool {
        let other = match direction {
            Direction::Read => Direction::Write,
            Direction::Write => Direction::Read,
        };
        self.first_is_eligible(queues, other)
            .is_some_and(|time| time <= now)
    }

    /// When the first bio that waits in a direction may leave.
    fn first_is_eligible(&self, queues: &Queues, direction: Direction) -> Option<u64> {
        let first = queues.bios[direction as usize].front()?;
        if self.is_open.load(Acquire) || first.device_is_dead() {
            return Some(0);
        }
        Some(self.limits.eligible(direction, first.data().charge))
    }

    /// Releases the first bio that is due, or says when one will be.
    fn release_one(&self) -> Next {
        let now = self.now();
        let mut queues = self.queues.lock();
        let eligible = [Direction::Read, Direction::Write]
            .map(|direction| self.first_is_eligible(&queues, direction));
        let next = next(eligible, queues.last, now);
        let Next::Release(direction) = next else {
            return next;
        };
        let Some(bio) = queues.bios[direction as usize].pop_front() else {
            return Next::Nothing;
        };
        let Held { since, charge } = *bio.data();
        queues.last = direction;
        queues.times[direction as usize].record(now.saturating_sub(since) / TICKS_PER_US);
        if !self.is_open.load(Relaxed) {
            self.limits.charge_held(direction, charge, since, now);
        }
        drop(queues);

        self.traffic.count(direction, charge);
        bio.submit();
        // Only now may others pass.
        self.waiting[direction as usize].fetch_sub(1, Release);
        next
    }
}

impl WorkItem for Hold {
    type Pointer = Arc<Hold>;

    fn run(this: Arc<Hold>) {
        // Cancels the timer.
        drop(this.armed.lock().take());
        loop {
            match this.release_one() {
                Next::Release(_) => {}
                Next::Nothing => break,
                Next::Wait(until) => {
                    let until = until.min(this.now() + LOOK_AFTER);
                    let until = this.epoch + Delta::from_nanos(ticks_to_ns(until) as i64);
                    let handle = this.clone().start(until);
                    *this.armed.lock() = Some(handle);
                    break;
                }
            }
        }
    }
}

impl HrTimerCallback for Hold {
    type Pointer<'a> = Arc<Self>;

    fn run(this: ArcBorrow<'_, Self>, _: HrTimerCallbackContext<'_, Self>) -> HrTimerRestart {
        this.kick();
        HrTimerRestart::NoRestart
    }
}
