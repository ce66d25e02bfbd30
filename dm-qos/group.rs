// SPDX-License-Identifier: GPL-2.0

//! Holding bios back and letting them go.
//!
//! Every device is the member of a group: of the one that its table names, or of one of its own. A
//! member has limits, a group has a capacity and a scheduler (`mclock.rs`).
//!
//! A bio that conforms to the limits and to the capacity passes in [`Member::admit`] without a lock,
//! unless others wait that it would overtake. One that does not conform is appended to the queue of its
//! member. A single work item for each group releases what is due, in process context because
//! submitting may sleep, and then arms the timer for whatever is due next. The timer does nothing
//! but queue the work. So the work item alone decides, arms and submits:
//!
//! ```text
//! admit: first to wait ------------------------+
//! timer: something is due ---------------------+--> work: release what is due --> arm the timer
//! end: there is room below again --------------+
//! set, suspend --------------------------------+
//! ```
//!
//! (A bio that finds itself next to be released, after it was queued, leaves with its submitter.)
//!
//! Order within a direction is kept because [`Member::waiting`] counts a bio until it was submitted:
//! until then, those that come later queue up behind it. They do not call the work, so it looks once
//! more after it has submitted anything.
//!
//! # Who runs concurrently, and with what
//!
//! `admit` runs in process context, on any number of CPUs; `bio_ended` in any context. The work runs on a
//! queue of the group's own, which makes progress when memory is short; the timer in hard interrupt
//! context. `state` is taken by `admit` (when it has to wait, or others do), the work, status,
//! messages and suspend, never by the timer or `bio_ended`: it is the innermost lock, and interrupts stay
//! enabled. `armed` is taken by the work, and when the group ends and there is no work any more.
//!
//! A member's bios keep its table alive, and so the member, until they end. The work holds a
//! reference of its own for the time between submitting a bio, which may end at once, and saying that
//! it did.
//!
//! Whether there is room below (`in_flight`) is decided without the lock. That nobody waits for room that
//! there is: who waits first says so (`is_contended`), then looks at `in_flight` once more; who makes
//! room does it first, then looks at `is_contended`.

use super::{
    clock::Clock,
    gcra::{
        Now,
        TICKS_PER_MS,
        TICKS_PER_US, //
    },
    histogram::Histogram,
    limits::{
        ticks_to_ns,
        Charge,
        Limits,
        Next,
        Subset, //
    },
    mclock::{
        self,
        Promise,
        Scheduler,
        Slot,
        Storage,
        Windows, //
    },
    queue::Queue,
    report::Traffic,
    settings::{
        Capacity,
        Settings, //
    },
    Direction, //
};
use core::mem;
use ferrule::{
    bio::{
        plugged,
        BioList,
        Flags,
        HeldBio,
        MappedBio,
        Observer,
        Status, //
    },
    compat::smp_mb,
    device_mapper::Map,
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
            Full,
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
/// No time at all.
const NEVER: u64 = u64::MAX;
/// How far apart the times are, at least, at which the timer has the work run, in ticks. What falls due
/// in between leaves together, late: the less it costs. That must not eat up the burst, see [`slack`].
const SLACK: u64 = 4 * TICKS_PER_MS;
/// So many bios are taken out at one time.
const BATCH: u64 = 32;
/// For how many members there is room in a group that gets its first.
const FIRST_ROOM: u32 = 1;

/// What is kept in a bio that waits.
#[derive(Clone, Copy)]
pub(crate) struct Held {
    /// When it came, in ticks.
    since: u64,
    /// What it is charged.
    pub(crate) charge: Charge,
    /// Whose it is.
    member: Slot,
    /// It leaves, as one of [`Group::in_flight`].
    is_counted: bool,
}

/// A device: a member of its group.
#[pin_data]
pub(crate) struct Member {
    pub(crate) group: Arc<Group>,
    slot: Slot,
    limits: Limits,
    #[pin]
    pub(crate) traffic: Traffic,
    /// Bios of each direction that are held or being submitted after having been. Changed from 0
    /// with `state` locked.
    waiting: [Atomic<u64>; 2],
    /// Neither limits nor capacity apply: the device is suspended, or about to be. Changed with
    /// `state` locked.
    is_open: Atomic<bool>,
    /// Write order matters: nothing that writes may overtake.
    is_zoned: bool,
}

/// Devices that share a capacity.
#[pin_data]
pub(crate) struct Group {
    clock: Clock,
    /// It is for one member, that shares with nobody.
    is_private: bool,
    /// The group has a capacity or a depth.
    governs: Atomic<bool>,
    /// Bios wait for capacity or for room below. Changed with `state` locked.
    is_contended: Atomic<bool>,
    capacity: Limits,
    /// How many may be in flight below. 0: any number.
    depth: Atomic<u64>,
    /// How many are, of those that came while there was a depth.
    in_flight: Atomic<u64>,
    #[pin]
    state: SpinLock<State>,
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

struct State {
    scheduler: Scheduler,
    /// By slot.
    entries: KVVec<Option<Entry>>,
    /// What the scheduler needs to know what an I/O costs.
    price: mclock::Capacity,
    /// These leave at once, whatever the limits say.
    released: BioList<Held>,
    /// When the work runs next, unless it is queued already.
    armed_until: u64,
    /// When it ran last.
    ran_at: u64,
    /// See [`SLACK`].
    slack: u64,
    /// When disks are to be looked at.
    look_at: u64,
}

/// A member, and what waits for it.
struct Entry {
    member: Arc<Member>,
    queue: KBox<Queue>,
}

/// What is to be done next with what waits.
enum Step {
    /// Nothing waits.
    Nothing,
    /// Nothing may leave before this time.
    Wait(u64),
    /// The first bio of this member, in this direction, leaves. It might have from this time on.
    Release(Slot, Direction, u64),
}

impl_has_work! {
    impl HasWork<Self> for Group { self.work }
}

impl_has_hr_timer! {
    impl HasHrTimer<Self> for Group {
        mode: AbsoluteMode<Monotonic>, field: self.timer
    }
}

impl Entry {
    /// A bio of this member leaves that was taken out.
    fn leaves(&mut self, bio: HeldBio<Held>, batch: &mut Batch, now: u64) {
        let waited = now.saturating_sub(bio.data().since) / TICKS_PER_US;
        self.queue.times[bio.direction() as usize].record(waited);
        batch.push(bio, &self.member);
    }
}

impl State {
    fn entry(&mut self, slot: Slot) -> Option<&mut Entry> {
        self.entries.get_mut(slot.index())?.as_mut()
    }

    /// When the work is to run for what may leave from `eligible` on.
    fn wake_at(&self, eligible: u64) -> u64 {
        eligible.max(self.ran_at.saturating_add(self.slack))
    }

    /// Bursts have changed: those of members, or that of the capacity, if there is one.
    fn find_slack(&mut self, capacity: Option<&Limits>) {
        let members = self.entries.iter().flatten();
        let bursts = members.map(|entry| entry.member.limits.burst());
        let least = bursts.min().unwrap_or(NEVER);
        let least = least.min(capacity.map_or(NEVER, Limits::burst));
        self.slack = slack(least, capacity.is_some());
    }

    /// A bio leaves that was taken out.
    fn leaves(&mut self, bio: HeldBio<Held>, batch: &mut Batch, now: u64) {
        // A member outlives its bios.
        if let Some(entry) = self.entry(bio.data().member) {
            entry.leaves(bio, batch, now);
        }
    }

    /// Lets go what waits for a member, unless it is of no avail.
    fn release_all(&mut self, slot: Slot, now: u64) {
        let Some(entry) = self.entries.get_mut(slot.index()).and_then(Option::as_mut) else {
            return;
        };
        for direction in [Direction::Read, Direction::Write] {
            while let Some(bio) = entry.queue.pop(direction) {
                self.released.push_back(bio);
            }
        }
        self.scheduler.idle(slot, now);
    }

    /// Lets go what waits for disks that are gone.
    fn look(&mut self, now: u64) {
        self.look_at = now + LOOK_AFTER;
        for index in 0..self.entries.len() {
            let dead = match &self.entries[index] {
                Some(entry) if entry.queue.device_is_dead() => entry.member.slot,
                _ => continue,
            };
            self.release_all(dead, now);
        }
    }
}

impl Group {
    /// A group without members or capacity, `is_private` if it is to have one member and no capacity.
    /// Process context.
    pub(crate) fn new(is_private: bool) -> Result<Arc<Self>> {
        let queue = OwnedQueue::new(c"dm-qos", Priority::High)?;
        Arc::pin_init(
            pin_init!(Self {
                clock: Clock::new(),
                is_private,
                governs: Atomic::new(false),
                is_contended: Atomic::new(false),
                capacity: Limits::new(),
                depth: Atomic::new(0),
                in_flight: Atomic::new(0),
                state <- new_spinlock!(State {
                    scheduler: Scheduler::new(),
                    entries: KVVec::new(),
                    price: mclock::Capacity::new(0, 0),
                    released: BioList::new(),
                    armed_until: NEVER,
                    ran_at: 0,
                    slack: SLACK,
                    look_at: 0,
                }),
                timer <- HrTimer::new(),
                work <- new_work!("dm_qos::Group::work"),
                armed <- new_mutex!(None),
                queue,
            }),
            GFP_KERNEL,
        )
    }

    /// Adds a member. Process context; one at a time.
    pub(crate) fn add(
        self: ArcBorrow<'_, Self>,
        settings: &Settings,
        is_zoned: bool,
    ) -> Result<Arc<Member>> {
        let queue = KBox::new(Queue::new(is_zoned)?, GFP_KERNEL)?;
        self.make_room()?;
        let promise = promise_of(settings);
        let slot = {
            let now = self.now();
            let mut state = self.state.lock();
            state.scheduler.add(&promise, now).ok_or(ENOMEM)?
        };
        let member = Arc::pin_init(
            try_pin_init!(Member {
                group: self.into(),
                slot,
                limits: Limits::new(),
                traffic <- Traffic::new(),
                waiting: [Atomic::new(0), Atomic::new(0)],
                is_open: Atomic::new(false),
                is_zoned,
            }),
            GFP_KERNEL,
        );
        let mut state = self.state.lock();
        let member = member.inspect_err(|_| state.scheduler.remove(slot))?;
        member.limits.apply(settings, self.now());
        let governs = self.governs.load(Relaxed);
        state.slack = state.slack.min(slack(member.limits.burst(), governs));
        if let Some(entry) = state.entries.get_mut(slot.index()) {
            *entry = Some(Entry {
                member: member.clone(),
                queue,
            });
        }
        Ok(member)
    }

    /// Makes room for another member.
    fn make_room(&self) -> Result {
        let room = {
            let state = self.state.lock();
            if state.entries.iter().any(Option::is_none) {
                return Ok(());
            }
            state.scheduler.room()
        };
        let room = room.saturating_mul(2).max(FIRST_ROOM);
        let mut storage = Storage::with_room(room).ok_or(ENOMEM)?;
        let mut entries = KVVec::with_capacity(room as usize, GFP_KERNEL)?;
        {
            let mut state = self.state.lock();
            storage = state.scheduler.grow(storage);
            for entry in state.entries.drain_all() {
                // There is room for all.
                let _ = entries.push_within_capacity(entry);
            }
            while entries.push_within_capacity(None).is_ok() {}
            mem::swap(&mut entries, &mut state.entries);
        }
        // Where it may sleep.
        drop((storage, entries));
        Ok(())
    }

    /// Changes what the members share, for what waits already as well.
    pub(crate) fn set_capacity(self: ArcBorrow<'_, Self>, capacity: &Capacity, burst_ms: u64) {
        let limits = Settings {
            iops: capacity.iops,
            bps: capacity.bps,
            burst_ms,
            ..Settings::DEFAULT
        };
        {
            let mut state = self.state.lock();
            state.price = mclock::Capacity::new(capacity.iops, capacity.bps);
            self.capacity.apply(&limits, self.now());
            self.depth.store(capacity.depth, Relaxed);
            let governs = *capacity != Capacity::NONE;
            self.governs.store(governs, Relaxed);
            state.find_slack(governs.then_some(&self.capacity));
        }
        self.kick();
    }

    /// The last member has gone. What it left behind (work, a timer) ends. Process context.
    pub(crate) fn end(&self) {
        // The work arms the timer only when a bio waits. But a timer may be about to fire that it
        // armed before, and queue the work once more.
        self.queue.flush();
        drop(self.armed.lock().take());
        self.queue.flush();
        // Work and timer hold no reference any more. So it is not the work that drops the last one,
        // and with it the queue it runs on.
    }

    /// Now, in ticks.
    #[inline]
    fn now(&self) -> u64 {
        self.clock.now()
    }

    /// Has the work look at what waits. Any context.
    fn kick(self: ArcBorrow<'_, Self>) {
        // Queued already is as well.
        let _ = self.queue.enqueue::<Arc<Self>, 0>(self.into());
    }

    /// Lets an I/O in flight if there is room; says whether it is to be counted.
    #[inline]
    fn try_enter(&self) -> Option<bool> {
        let depth = self.depth.load(Relaxed);
        if depth == 0 {
            return Some(false);
        }
        let mut in_flight = self.in_flight.load(Relaxed);
        while in_flight < depth {
            match self.in_flight.cmpxchg(in_flight, in_flight + 1, Relaxed) {
                Ok(_) => return Some(true),
                Err(current) => in_flight = current,
            }
        }
        None
    }

    /// Charges an I/O if it may leave now, as far as capacity and room below go. Says whether it is
    /// counted as in flight.
    fn try_charge(&self, direction: Direction, charge: Charge, now: Now) -> Option<bool> {
        // Of a capacity there are limits in total only.
        let capacity = self.capacity.on(direction);
        if !self.capacity.try_charge(capacity, charge, now) {
            return None;
        }
        let is_counted = self.try_enter();
        if is_counted.is_none() {
            self.capacity.refund(capacity, charge);
        }
        is_counted
    }

    /// Lets an I/O in flight whatever comes; says whether it is to be counted.
    fn enter(&self) -> bool {
        let is_counted = self.depth.load(Relaxed) != 0;
        if is_counted {
            self.in_flight.add(1, Relaxed);
        }
        is_counted
    }

    /// Is there room below? If not, who makes room will kick the work.
    fn has_room(&self) -> bool {
        let has_room = || {
            let depth = self.depth.load(Relaxed);
            depth == 0 || self.in_flight.load(Relaxed) < depth
        };
        if has_room() {
            return true;
        }
        self.is_contended.store(true, Relaxed);
        // Pairs with the full ordering in `leave`.
        smp_mb();
        has_room()
    }

    /// An I/O that was counted has ended. Any context.
    #[cold]
    fn leave(self: ArcBorrow<'_, Self>) {
        // Pairs with the barrier in `has_room`.
        self.in_flight.fetch_sub(1, Full);
        if self.is_contended.load(Relaxed) {
            self.kick();
        }
    }

    /// What is to be done next with what waits.
    fn next(&self, state: &mut State, now: u64) -> Step {
        loop {
            let slot = match state.scheduler.next(now) {
                mclock::Next::Dispatch(slot, _) => slot,
                mclock::Next::Wait(until) => {
                    self.is_contended.store(false, Relaxed);
                    return Step::Wait(until);
                }
                mclock::Next::Nothing => {
                    self.is_contended.store(false, Relaxed);
                    return Step::Nothing;
                }
            };
            let next = match state.entry(slot) {
                Some(entry) => entry.queue.next(&entry.member.limits, now),
                None => Next::Nothing,
            };
            // Others may have been charged since the scheduler was told.
            let (direction, mut due) = match next {
                Next::Release(direction, due) => (direction, due),
                Next::Wait(until) => {
                    state.scheduler.set_eligible(slot, until, now);
                    continue;
                }
                Next::Nothing => {
                    state.scheduler.idle(slot, now);
                    continue;
                }
            };
            if self.governs.load(Relaxed) {
                let charge = state
                    .entry(slot)
                    .and_then(|entry| entry.queue.first(direction));
                let eligible = self
                    .capacity
                    .eligible(direction, charge.unwrap_or_default());
                if eligible > now {
                    self.is_contended.store(true, Relaxed);
                    return Step::Wait(eligible);
                }
                if !self.has_room() {
                    return Step::Wait(NEVER);
                }
                due = due.max(eligible);
            }
            return Step::Release(slot, direction, due);
        }
    }

    /// Takes out and charges what [`Self::next`] said. `None` when somebody else took the room below.
    fn take(
        &self,
        state: &mut State,
        slot: Slot,
        direction: Direction,
        due: u64,
        now: u64,
    ) -> Option<HeldBio<Held>> {
        let governs = self.governs.load(Relaxed);
        let is_counted = governs && self.try_enter()?;
        let price = state.price;
        let entry = state.entry(slot)?;
        let mut bio = entry.queue.pop(direction)?;
        let Held { since, charge, .. } = *bio.data();
        bio.data_mut().is_counted = is_counted;

        let limits = &entry.member.limits;
        let due = due.max(since);
        limits.charge_held(direction, charge, due, now);
        let eligible = entry.queue.eligible(limits);
        if governs {
            self.capacity.charge_held(direction, charge, due, now);
        }
        state.scheduler.served(slot, Self::cost(charge, price), now);
        match eligible {
            Some(eligible) => state.scheduler.set_eligible(slot, eligible, now),
            None => state.scheduler.idle(slot, now),
        }
        Some(bio)
    }

    /// Takes out bios that are due. Says when there will be more.
    fn release_some(&self, batch: &mut Batch) -> More {
        let now = self.now();
        let mut state = self.state.lock();
        let state = &mut *state;
        state.ran_at = now;
        if now >= state.look_at {
            state.look(now);
        }
        while batch.has_room() {
            if let Some(first) = state.released.front() {
                if !batch.is_for(first.data().member) {
                    return More::Now;
                }
                if let Some(bio) = state.released.pop_front() {
                    state.leaves(bio, batch, now);
                }
                continue;
            }
            match self.next(state, now) {
                Step::Release(slot, ..) if !batch.is_for(slot) => return More::Now,
                Step::Release(slot, ..) if self.is_private => {
                    self.take_all_due(state, slot, batch, now);
                }
                Step::Release(slot, direction, due) => {
                    if let Some(bio) = self.take(state, slot, direction, due, now) {
                        state.leaves(bio, batch, now);
                    }
                }
                // While they are submitted, others come to wait for that.
                Step::Wait(_) | Step::Nothing if !batch.is_empty() => return More::Now,
                Step::Wait(until) => {
                    // Disks are to be looked at while anything waits for them.
                    let until = state.wake_at(until.min(now + LOOK_AFTER));
                    state.armed_until = until;
                    return More::At(until);
                }
                Step::Nothing => {
                    state.armed_until = NEVER;
                    return More::Never;
                }
            }
        }
        More::Now
    }

    /// As [`Self::next`] and [`Self::take`] in turn, for the member of a private group: the scheduler
    /// need not be asked for each.
    fn take_all_due(&self, state: &mut State, slot: Slot, batch: &mut Batch, now: u64) {
        let Some(entry) = state.entry(slot) else {
            return;
        };
        while batch.has_room() {
            let limits = &entry.member.limits;
            let (direction, due) = match entry.queue.next(limits, now) {
                Next::Release(direction, due) => (direction, due),
                Next::Wait(until) => return state.scheduler.set_eligible(slot, until, now),
                Next::Nothing => return state.scheduler.idle(slot, now),
            };
            if let Some(bio) = entry.queue.pop(direction) {
                let Held { since, charge, .. } = *bio.data();
                limits.charge_held(direction, charge, due.max(since), now);
                entry.leaves(bio, batch, now);
            }
        }
    }

    /// What an I/O costs a member.
    fn cost(charge: Charge, price: mclock::Capacity) -> mclock::Cost {
        mclock::Cost {
            ios: charge.ios,
            bytes: charge.bytes,
            time: price.time(charge.ios, charge.bytes),
        }
    }
}

/// Bios of one member that leave.
struct Batch {
    bios: BioList<Held>,
    member: Option<Arc<Member>>,
    /// How many of each direction.
    counts: [u64; 2],
}

impl Batch {
    fn new() -> Self {
        Self {
            bios: BioList::new(),
            member: None,
            counts: [0; 2],
        }
    }

    fn is_empty(&self) -> bool {
        self.member.is_none()
    }

    fn has_room(&self) -> bool {
        let [reads, writes] = self.counts;
        reads + writes < BATCH
    }

    /// Is it for this member, or for nobody yet?
    fn is_for(&self, slot: Slot) -> bool {
        self.member.as_ref().is_none_or(|one| one.slot == slot)
    }

    /// The member must be the one that it is for.
    fn push(&mut self, bio: HeldBio<Held>, member: &Arc<Member>) {
        if self.member.is_none() {
            self.member = Some(member.clone());
        }
        self.counts[bio.direction() as usize] += 1;
        self.bios.push_back(bio);
    }

    /// Submits them. Process context.
    fn submit(mut self) {
        let Some(member) = self.member else {
            return;
        };
        plugged(|| {
            while let Some(bio) = self.bios.pop_front() {
                let (bio, held) = bio.release();
                member.traffic.count(bio.direction(), held.charge);
                if held.is_counted {
                    bio.observed_by(member.group.clone()).submit();
                } else {
                    bio.submit();
                }
            }
        });
        for (waiting, count) in member.waiting.iter().zip(self.counts) {
            if count != 0 {
                // Only now may others pass.
                waiting.fetch_sub(count, Release);
            }
        }
    }
}

/// When there is more to release.
enum More {
    Now,
    At(u64),
    Never,
}

/// How late what waits may leave, in ticks, when this is the least burst of a group, and whether the
/// group has a capacity. What was late is made up for out of the burst, most of which stays with those
/// for whom it is.
fn slack(burst: u64, governs: bool) -> u64 {
    let slack = (burst / 4).min(SLACK);
    if governs {
        // Reservations are kept more exactly than limits.
        slack / 8
    } else {
        slack
    }
}

impl WorkItem for Group {
    type Pointer = Arc<Group>;

    fn run(this: Arc<Group>) {
        // Cancels the timer.
        drop(this.armed.lock().take());
        loop {
            let mut batch = Batch::new();
            let more = this.release_some(&mut batch);
            batch.submit();
            match more {
                More::Now => {}
                More::Never => break,
                More::At(until) => {
                    let until = this.clock.instant(ticks_to_ns(until));
                    let handle = this.clone().start(until);
                    *this.armed.lock() = Some(handle);
                    break;
                }
            }
        }
    }
}

impl Observer for Group {
    fn bio_ended(this: ArcBorrow<'_, Self>) {
        this.leave();
    }
}

impl HrTimerCallback for Group {
    type Pointer<'a> = Arc<Self>;

    fn run(this: ArcBorrow<'_, Self>, _: HrTimerCallbackContext<'_, Self>) -> HrTimerRestart {
        this.kick();
        HrTimerRestart::NoRestart
    }
}

impl Member {
    /// Lets a bio pass or holds it, or ends it if it would have to wait but must not. Process context.
    #[inline]
    pub(crate) fn admit<'a>(
        &self,
        bio: MappedBio<Held>,
        direction: Direction,
        charge: Charge,
    ) -> Map<'a, Held> {
        let group = &*self.group;
        let governs = group.governs.load(Relaxed);
        let [reads, writes] = &self.waiting;
        let limits = self.limits.on(direction);
        if reads.load(Acquire) | writes.load(Acquire) == 0 {
            if !governs && limits.is_empty() {
                return self.pass(bio, direction, charge, false);
            }
            let is_special = self.is_important(&bio, direction)
                || (governs && group.is_contended.load(Relaxed))
                || self.is_open.load(Acquire);
            if !is_special {
                let now = group.clock.roughly_now();
                if let Some(is_counted) = self.try_charge(direction, limits, charge, now) {
                    return self.pass(bio, direction, charge, is_counted);
                }
            }
        }
        self.admit_slowly(bio, direction, limits, charge)
    }

    /// Lets a bio go that was charged.
    #[inline]
    fn pass<'a>(
        &self,
        bio: MappedBio<Held>,
        direction: Direction,
        charge: Charge,
        is_counted: bool,
    ) -> Map<'a, Held> {
        self.traffic.count(direction, charge);
        if is_counted {
            Map::Observed(bio.observed_by(self.group.clone()))
        } else {
            Map::Remapped(bio)
        }
    }

    /// Would somebody important wait behind somebody who is not?
    #[inline]
    fn is_important(&self, bio: &MappedBio<Held>, direction: Direction) -> bool {
        bio.flags()
            .any_of(Flags::META.or(Flags::PRIO).or(Flags::SWAP))
            && !(self.is_zoned && direction == Direction::Write)
    }

    /// The part of [`Self::admit`] for when something waits, or would have to.
    #[cold]
    fn admit_slowly<'a>(
        &self,
        bio: MappedBio<Held>,
        direction: Direction,
        limits: Subset,
        charge: Charge,
    ) -> Map<'a, Held> {
        let group = &*self.group;
        let is_limited = group.governs.load(Relaxed) || !limits.is_empty();
        let is_first = self.waiting[direction as usize].load(Acquire) == 0;
        let is_open = self.is_open.load(Acquire);
        if is_first && (is_open || !is_limited) {
            return self.pass(bio, direction, charge, false);
        }
        let now = group.now();
        if self.is_important(&bio, direction) {
            let is_counted = !is_open && self.charge(direction, charge, now);
            return self.pass(bio, direction, charge, is_counted);
        }
        let [reads, writes] = &self.waiting;
        // What waits in the other direction may wait for nothing that this one needs.
        let none_before = match self.limits.are_shared() {
            true => reads.load(Acquire) | writes.load(Acquire) == 0,
            false => is_first,
        };
        if none_before && !group.is_contended.load(Relaxed) {
            if let Some(is_counted) = self.try_charge(direction, limits, charge, now.into()) {
                return self.pass(bio, direction, charge, is_counted);
            }
        }
        self.hold(bio, direction, charge, now)
    }

    /// Charges an I/O if it may leave now, as far as limits, capacity and room below go. Says whether
    /// it is counted as in flight.
    #[inline]
    fn try_charge(
        &self,
        direction: Direction,
        limits: Subset,
        charge: Charge,
        now: Now,
    ) -> Option<bool> {
        if !self.limits.try_charge(limits, charge, now) {
            return None;
        }
        if !self.group.governs.load(Relaxed) {
            return Some(false);
        }
        let is_counted = self.group.try_charge(direction, charge, now);
        if is_counted.is_none() {
            self.limits.refund(limits, charge);
        }
        is_counted
    }

    /// Charges an I/O that leaves now whatever comes. Says whether it is counted as in flight.
    #[cold]
    fn charge(&self, direction: Direction, charge: Charge, now: u64) -> bool {
        let group = &*self.group;
        self.limits.charge(direction, charge, now);
        if !group.governs.load(Relaxed) {
            return false;
        }
        group.capacity.charge(direction, charge, now);
        if group.is_contended.load(Relaxed) {
            let mut state = group.state.lock();
            let cost = Group::cost(charge, state.price);
            state.scheduler.served(self.slot, cost, now);
        }
        group.enter()
    }

    /// The part of [`Self::admit`] that takes the lock.
    #[cold]
    fn hold<'a>(
        &self,
        bio: MappedBio<Held>,
        direction: Direction,
        charge: Charge,
        now: u64,
    ) -> Map<'a, Held> {
        let group = &*self.group;
        let must_not_wait = bio.flags().any_of(Flags::NOWAIT);
        let waiting = &self.waiting[direction as usize];

        let mut state = group.state.lock();
        let is_open = self.is_open.load(Relaxed);
        let is_first = waiting.load(Acquire) == 0;
        if is_first {
            // What goes to a disk that is gone fails there. When only the other direction waits, and
            // not for what this bio needs, there is no reason to wait either.
            if is_open || bio.device_is_dead() {
                return self.pass(bio, direction, charge, false);
            }
            if !self.is_before(&mut state, now) {
                let limits = self.limits.on(direction);
                if let Some(is_counted) = self.try_charge(direction, limits, charge, now.into()) {
                    return self.pass(bio, direction, charge, is_counted);
                }
            }
        }
        if must_not_wait {
            drop(state);
            bio.end(Status::AGAIN);
            return Map::Submitted;
        }

        let bio = bio.hold(Held {
            since: now,
            charge,
            member: self.slot,
            is_counted: false,
        });
        waiting.add(1, Relaxed);
        if is_open {
            state.released.push_back(bio);
            drop(state);
            self.group.as_arc_borrow().kick();
            return Map::Submitted;
        }
        let Some(entry) = state.entry(self.slot) else {
            // There is one as long as there is a bio.
            return Map::Submitted;
        };
        let was_empty = entry.queue.is_empty();
        if !entry.queue.push(direction, bio) {
            // It is not next in its direction.
            return Map::Submitted;
        }
        let eligible = entry.queue.eligible(&self.limits).unwrap_or(now);
        if was_empty {
            state.scheduler.backlogged(self.slot, eligible, now);
        } else {
            state.scheduler.set_eligible(self.slot, eligible, now);
        }
        if !is_first {
            // The work is about to submit some of this direction, and will look for more.
            return Map::Submitted;
        }

        // Who waits first may be next of all: then it need not wait for the work.
        let is_due = match group.next(&mut state, now) {
            Step::Nothing => false,
            Step::Wait(until) => state.wake_at(until) < state.armed_until,
            Step::Release(slot, next, due) if slot == self.slot && next == direction => {
                if let Some(bio) = group.take(&mut state, slot, direction, due, now) {
                    waiting.fetch_sub(1, Relaxed);
                    let (bio, held) = bio.release();
                    return self.pass(bio, direction, charge, held.is_counted);
                }
                false
            }
            Step::Release(..) => state.wake_at(now) < state.armed_until,
        };
        drop(state);
        if is_due {
            self.group.as_arc_borrow().kick();
        }
        Map::Submitted
    }

    /// Is something that waits in the group about to be released?
    fn is_before(&self, state: &mut State, now: u64) -> bool {
        state.scheduler.has_ready(now)
    }

    /// Changes the limits and what is promised, for what waits already as well. Process context.
    pub(crate) fn apply(&self, settings: &Settings) {
        let group = self.group.as_arc_borrow();
        {
            let now = group.now();
            let mut state = group.state.lock();
            self.limits.apply(settings, now);
            let governs = group.governs.load(Relaxed);
            state.find_slack(governs.then_some(&group.capacity));
            state
                .scheduler
                .set_promise(self.slot, &promise_of(settings), now);
            let entry = state.entry(self.slot);
            if let Some(eligible) = entry.and_then(|entry| entry.queue.eligible(&self.limits)) {
                state.scheduler.set_eligible(self.slot, eligible, now);
            }
        }
        group.kick();
    }

    /// Do limits and capacity not apply? What waits is let go when they cease to. Process context.
    pub(crate) fn set_open(&self, is_open: bool) {
        let group = self.group.as_arc_borrow();
        {
            let mut state = group.state.lock();
            self.is_open.store(is_open, Release);
            if is_open {
                state.release_all(self.slot, group.now());
            }
        }
        group.kick();
    }

    /// Leaves the group. No bio may be in flight, nor come. Process context.
    pub(crate) fn remove(&self) {
        let mut state = self.group.state.lock();
        state.scheduler.remove(self.slot);
        let entry = state
            .entries
            .get_mut(self.slot.index())
            .and_then(Option::take);
        drop(state);
        drop(entry);
    }

    /// How many wait in a direction.
    pub(crate) fn waiting(&self, direction: Direction) -> u64 {
        self.waiting[direction as usize].load(Relaxed)
    }

    /// How long those waited in a direction that do not any more.
    pub(crate) fn times<R>(&self, direction: Direction, look: impl FnOnce(&Histogram) -> R) -> R
    where
        R: Default,
    {
        match self.group.state.lock().entry(self.slot) {
            Some(entry) => look(&entry.queue.times[direction as usize]),
            None => R::default(),
        }
    }

    /// Whether the reservation was met since the last reset.
    pub(crate) fn windows(&self) -> Windows {
        let now = self.group.now();
        self.group.state.lock().scheduler.windows(self.slot, now)
    }

    /// Forgets what happened so far.
    pub(crate) fn reset(&self) {
        self.traffic.reset();
        let now = self.group.now();
        let mut state = self.group.state.lock();
        state.scheduler.reset_windows(self.slot, now);
        if let Some(entry) = state.entry(self.slot) {
            entry.queue.times.iter_mut().for_each(|times| times.clear());
        }
    }
}

fn promise_of(settings: &Settings) -> Promise {
    Promise {
        ios: settings.reserve_iops,
        bytes: settings.reserve_bps,
        weight: settings.weight as u32,
    }
}
