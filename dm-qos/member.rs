// SPDX-License-Identifier: GPL-2.0

//! A device: its limits, what it counts, and the bios that are on their way out.
//!
//! A bio that waited is handed to [`Member::send`] when its time has come. From there a work item of
//! the device's own submits it, because submitting may sleep: in the queue of a disk that is slow
//! only those wait whose disk it is. (A device that shares with nobody is served by its group's work
//! item, which has no other to keep.)

use super::{
    clock::Epoch,
    policy::{
        limits::{
            Charge,
            Limits, //
        },
        mclock::Slot,
        waiting::Waiting, //
    },
    queue::{
        Allowed,
        Held, //
    },
    traffic::Traffic,
    Direction, //
};
use core::mem;
use ferrule::{
    atomic::ReadOnce,
    bio::{
        plugged,
        BioList,
        HeldBio, //
    },
    device_mapper::MappedDisk,
    workqueue::{
        self,
        OwnedQueue,
        Priority, //
    }, //
};
use kernel::{
    new_spinlock,
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Relaxed,
            Release, //
        },
        Arc,
        SpinLock, //
    },
    workqueue::{
        impl_has_work,
        new_work,
        Work,
        WorkItem, //
    }, //
};

/// What all devices and groups use. Two queues for all: one with a rescuer costs a thread.
pub(crate) struct Common {
    /// For what decides, and never waits for a disk.
    pub(crate) decide: OwnedQueue,
    /// For what submits.
    pub(crate) submit: OwnedQueue,
    pub(crate) epoch: Epoch,
}

impl Common {
    /// Process context.
    pub(crate) fn new() -> Result<Arc<Self>> {
        let common = Self {
            decide: OwnedQueue::new(c"dm-qos", Priority::High)?,
            submit: OwnedQueue::new(c"dm-qos-submit", Priority::High)?,
            epoch: Epoch::now(),
        };
        Ok(Arc::new(common, GFP_KERNEL)?)
    }
}

/// Whether limits apply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// They do.
    Limited = 0,
    /// The device is about to be suspended: they do as long as the file system on it is being frozen, for
    /// that may have any amount to write. (For [some time](super::group), then only those of the
    /// group do.)
    Freezing = 1,
    /// They do not: nothing may wait.
    Open = 2,
}

/// See the module's description.
#[pin_data]
pub(crate) struct Member {
    slot: Slot,
    pub(crate) limits: Limits,
    /// How far what is urgent may run ahead of the limits.
    pub(crate) ahead: Limits,
    /// How far it may run ahead of the group's capacity.
    pub(crate) part: Limits,
    #[pin]
    pub(crate) traffic: Traffic,
    waiting: Waiting,
    /// A [`Mode`].
    mode: Atomic<i32>,
    /// Since when it is that, in ticks.
    mode_since: Atomic<u64>,
    /// Write order matters: nothing that writes may overtake.
    pub(crate) is_zoned: bool,
    /// It is the only member of its group, whose work calls [`Self::submit`].
    is_alone: bool,
    /// Its I/Os below, of those that came while the group had a depth.
    in_flight: Atomic<u64>,
    /// How many of them are its own by its reservation, whatever the others have below.
    sure: Atomic<u64>,
    disk: MappedDisk,
    common: Arc<Common>,
    #[pin]
    out: SpinLock<BioList<Held>>,
    #[pin]
    work: Work<Self>,
}

impl_has_work! {
    impl HasWork<Self> for Member { self.work }
}

impl Member {
    /// Process context.
    pub(crate) fn new(
        common: Arc<Common>,
        slot: Slot,
        disk: MappedDisk,
        is_zoned: bool,
        is_alone: bool,
    ) -> Result<Arc<Self>> {
        Arc::pin_init(
            try_pin_init!(Self {
                slot,
                limits: Limits::new(),
                ahead: Limits::new(),
                part: Limits::new(),
                traffic <- Traffic::new(),
                waiting: Waiting::new(),
                mode: Atomic::new(Mode::Limited as i32),
                mode_since: Atomic::new(0),
                is_zoned,
                is_alone,
                in_flight: Atomic::new(0),
                sure: Atomic::new(0),
                disk,
                common,
                out <- new_spinlock!(BioList::new()),
                work <- new_work!("dm_qos::Member::work"),
            }),
            GFP_KERNEL,
        )
    }

    /// Its place in the group.
    pub(crate) fn slot(&self) -> Slot {
        self.slot
    }

    /// By what its bios leave.
    pub(crate) fn allowed(&self) -> Allowed<'_> {
        Allowed {
            limits: &self.limits,
            ahead: &self.ahead,
        }
    }

    /// Is everything as usual?
    #[inline]
    pub(crate) fn is_limited(&self) -> bool {
        self.mode.read_acquire() == Mode::Limited as i32
    }

    /// Do limits and capacity not apply? Any context.
    pub(crate) fn is_open(&self) -> bool {
        match self.mode.read_acquire() {
            mode if mode == Mode::Limited as i32 => false,
            mode if mode == Mode::Freezing as i32 => !self.disk.is_freezing(),
            _ => true,
        }
    }

    /// Since when the device is about to be suspended, if it is, in ticks.
    pub(crate) fn freezing_since(&self) -> Option<u64> {
        let is_freezing = self.mode.load(Relaxed) == Mode::Freezing as i32;
        is_freezing.then(|| self.mode_since.load(Relaxed))
    }

    /// Called with the group's state locked.
    pub(crate) fn set_mode(&self, mode: Mode, now: u64) {
        self.mode_since.store(now, Relaxed);
        self.mode.store(mode as i32, Release);
        if mode == Mode::Limited {
            // They may have been lifted.
            self.limits.restore();
        }
    }

    /// How many wait in a direction.
    #[inline]
    pub(crate) fn waiting(&self, direction: Direction) -> u64 {
        self.waiting.of(direction)
    }

    /// Does nothing wait?
    #[inline]
    pub(crate) fn nothing_waits(&self) -> bool {
        self.waiting.is_empty()
    }

    /// A bio waits from now on. Called with the group's state locked.
    pub(crate) fn begins_to_wait(&self, bio: &HeldBio<Held>) {
        self.waiting.begin(bio.direction(), bio.data().is_urgent);
    }

    /// Does anything wait that is urgent?
    pub(crate) fn has_urgent_waiting(&self) -> bool {
        self.waiting.has_urgent()
    }

    /// A bio that waited was taken out. Called with the group's state locked.
    pub(crate) fn is_taken_out(&self, bio: &HeldBio<Held>) {
        self.waiting.take_out(bio.data().is_urgent);
    }

    /// A bio that waited, and was taken out, leaves by itself rather than by [`Self::send`].
    pub(crate) fn ceases_to_wait(&self, direction: Direction) {
        self.waiting.leave(direction, 1);
    }

    /// Has a bio submitted that was taken out, after all that were before. Any context but hard
    /// interrupts. When the member is alone in its group, that one's work is to be kicked.
    pub(crate) fn send(self: &Arc<Self>, bio: HeldBio<Held>) {
        let mut bios = BioList::new();
        bios.push_back(bio);
        self.send_all(bios);
    }

    /// As [`Self::send`], of several.
    pub(crate) fn send_all(self: &Arc<Self>, bios: BioList<Held>) {
        let mut out = self.out.lock();
        let is_first = out.is_empty();
        out.append(bios);
        drop(out);
        if is_first && !self.is_alone {
            // Queued already is as well.
            let _ = self.common.submit.enqueue::<Arc<Self>, 0>(self.clone());
        }
    }

    /// Submits what was sent. Process context; one at a time.
    pub(crate) fn submit(self: &Arc<Self>) {
        loop {
            let mut bios = mem::take(&mut *self.out.lock());
            if bios.is_empty() {
                return;
            }
            let mut counts = [0; 2];
            plugged(|| {
                while let Some(bio) = bios.pop_front() {
                    let (bio, held) = bio.release();
                    counts[bio.direction() as usize] += 1;
                    self.traffic.count(bio.direction(), held.charge);
                    if held.is_counted {
                        bio.submit_observed();
                    } else {
                        bio.submit();
                    }
                }
            });
            for direction in [Direction::Read, Direction::Write] {
                let count = counts[direction as usize];
                if count != 0 {
                    // Only now may others pass.
                    self.waiting.leave(direction, count);
                }
            }
        }
    }

    /// Waits for the work item. Process context, and nothing may be sent any more.
    pub(crate) fn end(&self) {
        workqueue::flush_work(&self.work);
    }

    /// One more is in flight.
    #[inline]
    pub(crate) fn enters(&self) {
        self.in_flight.add(1, Relaxed);
    }

    /// One that was in flight has ended. Any context.
    #[inline]
    pub(crate) fn leaves(&self) {
        self.in_flight.fetch_sub(1, Relaxed);
    }

    /// Has it fewer in flight than its reservation gives it?
    pub(crate) fn has_sure_room(&self) -> bool {
        self.in_flight.load(Relaxed) < self.sure.load(Relaxed)
    }

    /// Has it nothing in flight, of what is counted?
    pub(crate) fn has_none_in_flight(&self) -> bool {
        self.in_flight.load(Relaxed) == 0
    }

    /// Sets how many in flight are its own by its reservation.
    pub(crate) fn set_sure(&self, sure: u64) {
        self.sure.store(sure, Relaxed);
    }

    /// How long it takes until all is paid for that it let pass, in ticks.
    pub(crate) fn debt(&self, direction: Direction, now: u64) -> u64 {
        self.limits.debt(direction, now)
    }

    /// Charges an I/O that runs ahead of limits and capacity, if it may.
    pub(crate) fn try_charge_ahead(&self, direction: Direction, charge: Charge, now: u64) -> bool {
        let ahead = self.ahead.on(direction);
        if !self.ahead.try_charge(ahead, charge, now) {
            return false;
        }
        if !self.part.try_charge(self.part.on(direction), charge, now) {
            self.ahead.refund(ahead, charge);
            return false;
        }
        self.limits.charge(direction, charge, now);
        true
    }

    /// Takes that back.
    #[cold]
    pub(crate) fn refund_ahead(&self, direction: Direction, charge: Charge) {
        for limits in [&self.ahead, &self.part, &self.limits] {
            limits.refund(limits.on(direction), charge);
        }
    }

    /// The limits go on where those of another table of the device are. No bio may be in flight.
    pub(crate) fn go_on_from(&self, other: &Member, now: u64) {
        self.limits.go_on_from(&other.limits, now);
        self.ahead.go_on_from(&other.ahead, now);
    }
}

impl WorkItem for Member {
    type Pointer = Arc<Member>;

    fn run(this: Arc<Member>) {
        this.submit();
    }
}
