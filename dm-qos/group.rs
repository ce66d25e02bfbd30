// SPDX-License-Identifier: GPL-2.0

//! Who leaves when, among the devices that share a capacity.
//!
//! Every device is the member of a group: of the one that its table names, or of one of its own. A
//! member has limits, a group has a capacity and a scheduler (`policy/mclock.rs`).
//!
//! A bio that conforms to the limits and to the capacity passes in [`Seat::admit`] (`seat.rs`) without a
//! lock, unless others wait that it would overtake. One that does not conform is appended to the queue
//! of its member. A work item for each group takes out what is due and hands it to the members
//! (`member.rs`), which submit it; then it arms the timer for whatever is due next. The timer does nothing
//! but queue the work:
//!
//! ```text
//! admit: the first of its line waits ----------+
//! timer: something is due ---------------------+--> work: take out what is due --> arm the timer
//! end: there is room below again --------------+          |
//! set, suspend --------------------------------+          +--> Member::send: submit it
//! ```
//!
//! (A bio that finds itself next to leave, after it was queued, leaves with its submitter.)
//!
//! Deciding never waits for a disk, and submitting waits for the member's own only.
//!
//! Order within a direction is kept because [`Member::waiting`] counts a bio until it was submitted:
//! until then, those that come later queue up behind it.
//!
//! # Who runs concurrently, and with what
//!
//! `admit` runs in process context, on any number of CPUs; `bio_ended` in any context. Work runs on
//! queues that make progress when memory is short; the timer in hard interrupt context. `state` is
//! taken by `admit` (when it has to wait, or others do), the work, status, messages and suspend, never
//! by the timer or `bio_ended`; interrupts stay enabled. Inside of it a member's list of what is to be
//! submitted is locked, and nothing else. `armed` is taken by the work, and when the group ends and
//! there is no work any more.
//!
//! A member's bios keep its table alive, and so the member, until they end. Its work holds a
//! reference of its own for the time between submitting a bio, which may end at once, and saying that
//! it did. Who leaves a group waits for both work items, so that it is not they who drop the last
//! reference to anything.
//!
//! Whether there is room below is decided without the lock (`policy/room.rs`). What the scheduler lets go
//! may find that another CPU has taken that room meanwhile: then the work has to look again, for
//! only it says that somebody waits.
//!
//! # What holds whatever the others do
//!
//! - A reservation does not wait for the capacity, but for a limit of the same rate that only
//!   what is served by reservation is charged to (`certain`): reservations fit into the capacity, so
//!   they can wait for nobody but each other. What others have passed beyond the capacity delays those
//!   who share the rest.
//! - Nor for room below, as long as a member has fewer I/Os there than its reservation is of
//!   the capacity. So disks that are slow or hang take no depth from it.
//! - When there has been no room for [`STALL`], somebody who has nothing below may have one I/O there all
//!   the same, and again each time. Were a device to lie on another one of the same group (by a loop
//!   device, say; what can be seen is refused), there would be room for what the upper one waits for.

use super::{
    clock::Clock,
    member::{
        Common,
        Member,
        Mode, //
    },
    policy::{
        gcra::{
            Now,
            TICKS_PER_MS, //
        },
        limits::{
            ticks_to_ns,
            Charge,
            Choice,
            Limits,
            Next, //
        },
        mclock::{
            self,
            Phase,
            Promise,
            Scheduler,
            Slot,
            Storage, //
        },
        room::Room,
        settings::{
            Capacity,
            Settings, //
        },
    },
    queue::{
        Held,
        Queue, //
    },
    Direction, //
};
use core::mem;
use ferrule::{
    atomic::ReadOnce,
    bio::{
        BioList,
        HeldBio, //
    },
    device_mapper::MappedDisk,
    workqueue, //
};
use kernel::{
    impl_has_hr_timer,
    new_mutex,
    new_spinlock,
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Relaxed, //
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
/// The same, while a file system is being frozen: whether it is.
const LOOK_SOON: u64 = 20 * TICKS_PER_MS;
/// How long freezing a file system may take before the device's own limits are lifted for it, in ticks: who
/// asks for a snapshot waits for it, and so do others for him.
const FREEZE: u64 = 5000 * TICKS_PER_MS;
/// For how long there is no room below until one more is let in flight all the same, in ticks.
const STALL: u64 = 100 * TICKS_PER_MS;
/// What ran ahead of the capacity is made up for within this time, in ticks. What is more is forgiven.
const DEBT: u64 = 1000 * TICKS_PER_MS;
/// No time at all.
const NEVER: u64 = u64::MAX;
/// How far apart the times are, at least, at which the timer has the work run, in ticks. What falls due
/// in between leaves together, late: the less it costs. That must not eat up the burst, see [`slack`].
const SLACK: u64 = 16 * TICKS_PER_MS;
/// So many bios are taken out at one time.
const BATCH: u64 = 32;
/// For how many members there is room in a group that gets its first.
const FIRST_ROOM: u32 = 1;

/// Devices that share a capacity. See the module's description.
#[pin_data]
pub(crate) struct Group {
    pub(crate) clock: Clock,
    /// It is for one member, that shares with nobody.
    is_private: bool,
    /// The group has a capacity or a depth.
    governs: Atomic<bool>,
    /// It is to be found out what part of it is each member's own.
    is_to_share_out: Atomic<bool>,
    pub(crate) capacity: Limits,
    /// Of the same rates; only what is served by reservation is charged to it.
    certain: Limits,
    /// Room below, and whether bios wait for that or for capacity: changed with `state` locked.
    room: Room,
    #[pin]
    state: SpinLock<State>,
    #[pin]
    timer: HrTimer<Self>,
    #[pin]
    work: Work<Self>,
    /// The timer, while it runs.
    #[pin]
    armed: Mutex<Option<ArcHrTimerHandle<Self>>>,
    common: Arc<Common>,
}

/// What a group knows of those who wait. Locked.
pub(crate) struct State {
    pub(crate) scheduler: Scheduler,
    /// By slot.
    entries: KVVec<Option<Entry>>,
    shared: Capacity,
    /// What the scheduler needs to know what an I/O costs.
    price: mclock::Capacity,
    /// When the work runs next, unless it is queued already.
    armed_until: u64,
    /// When it ran last.
    ran_at: u64,
    /// See [`SLACK`].
    slack: u64,
    /// When disks are to be looked at.
    look_at: u64,
    /// Since when there has been no room below, or since somebody was let in all the same.
    full: Option<u64>,
}

/// A member, and what waits for it.
pub(crate) struct Entry {
    member: Arc<Member>,
    pub(crate) queue: KBox<Queue>,
    promise: Promise,
}

/// What is to be done next with what waits.
pub(crate) enum Step {
    /// Nothing waits.
    Nothing,
    /// Nothing may leave before this time.
    Wait(u64),
    /// This leaves.
    Release(Release),
}

/// A bio that leaves.
#[derive(Clone, Copy)]
pub(crate) struct Release {
    pub(crate) slot: Slot,
    /// Which of its member's.
    pub(crate) choice: Choice,
    /// By what right.
    phase: Phase,
    /// Whether or not there is room below.
    whatever: bool,
}

/// When there is more to take out.
enum More {
    Now,
    At(u64),
    Never,
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
    /// When its first bio may leave.
    pub(crate) fn eligible(&self) -> Option<u64> {
        self.queue.eligible(self.member.allowed())
    }

    /// A bio that was taken out leaves.
    fn send(&mut self, bio: HeldBio<Held>, now: u64) {
        self.member.is_taken_out(&bio);
        self.queue.leaves(&bio, now);
        self.member.send(bio);
    }
}

impl State {
    pub(crate) fn entry(&mut self, slot: Slot) -> Option<&mut Entry> {
        self.entries.get_mut(slot.index())?.as_mut()
    }

    /// When the work is to run for what may leave from `eligible` on.
    fn wake_at(&self, eligible: u64) -> u64 {
        eligible.max(self.ran_at.saturating_add(self.slack))
    }

    /// Is the work to run earlier than it would, for what may leave from `eligible` on?
    pub(crate) fn is_early(&self, eligible: u64) -> bool {
        self.wake_at(eligible) < self.armed_until
    }

    /// Bursts have changed: those of members, or that of the capacity, if there is one.
    fn find_slack(&mut self, capacity: Option<&Limits>) {
        let members = self.entries.iter().flatten();
        let bursts = members.map(|entry| entry.member.limits.burst());
        let least = bursts.min().unwrap_or(NEVER);
        let least = least.min(capacity.map_or(NEVER, Limits::burst));
        self.slack = slack(least, capacity.is_some());
    }

    /// Says what part of what is promised is each member's own.
    fn share_out(&mut self, now: u64) {
        let promises = || self.entries.iter().flatten().map(|entry| entry.promise);
        let sum = |of: fn(Promise) -> u64| {
            promises().fold(0u64, |sum, promise| sum.saturating_add(of(promise)))
        };
        let ios = sum(|promise| promise.ios);
        let bytes = sum(|promise| promise.bytes);
        let weights = sum(|promise| promise.weight.into());
        let Capacity { iops, bps, depth } = self.shared;
        // What is promised to a member by its reservation and its weight, if all ask for all they can.
        let part = |of: u64, reserved: u64, all: u64, weight: u32| match of {
            0 => 0,
            _ => (of.saturating_sub(all).saturating_mul(weight.into()))
                .checked_div(weights)
                .unwrap_or(0)
                .saturating_add(reserved)
                .max(1),
        };
        // Of a capacity that is not known, reservations are taken to be half.
        let sure = |of: u64, reserved: u64, all: u64| match reserved {
            0 => 0,
            _ => depth
                .saturating_mul(reserved)
                .checked_div(of.max(all.saturating_mul(2)))
                .unwrap_or(0)
                .max(1),
        };
        for entry in self.entries.iter().flatten() {
            let Promise {
                ios: reserved,
                bytes: reserved_bytes,
                weight,
            } = entry.promise;
            entry.member.part.apply_part(
                part(iops, reserved, ios, weight),
                part(bps, reserved_bytes, bytes, weight),
                now,
            );
            entry
                .member
                .set_sure(sure(iops, reserved, ios).max(sure(bps, reserved_bytes, bytes)));
        }
    }

    /// There is no room below. When will that have been so for long?
    fn stalls_at(&mut self, now: u64) -> u64 {
        *self.full.get_or_insert(now) + STALL
    }

    /// As [`Group::may_exceed`], when it is known what is whose.
    fn may_exceed(&mut self, slot: Slot, phase: Phase, now: u64) -> bool {
        let is_stalled = self.stalls_at(now) <= now;
        let Some(entry) = self.entry(slot) else {
            return false;
        };
        if phase == Phase::Reservation && entry.member.has_sure_room() {
            return true;
        }
        let is_let_in = is_stalled && entry.member.has_none_in_flight();
        if is_let_in {
            self.full = Some(now);
        }
        is_let_in
    }

    /// Lets go what waits for a member, unless it is of no avail.
    pub(crate) fn release_all(&mut self, slot: Slot, now: u64) {
        if let Some(entry) = self.entry(slot) {
            while let Some(bio) = entry.queue.pop_any() {
                entry.send(bio, now);
            }
        }
        self.scheduler.idle(slot, now);
    }

    /// Lets go what waits for disks that are gone, or for a file system to be frozen that is.
    fn look(&mut self, now: u64) {
        let mut look_at = now + LOOK_AFTER;
        for entry in self.entries.iter_mut().flatten() {
            if entry.queue.is_empty() {
                continue;
            }
            let slot = entry.member.slot();
            if let Some(since) = entry.member.freezing_since() {
                look_at = now + LOOK_SOON;
                if now - since >= FREEZE {
                    entry.member.limits.lift();
                }
            }
            if entry.member.is_open() {
                while let Some(bio) = entry.queue.pop_any() {
                    entry.send(bio, now);
                }
            }
            while let Some(bio) = entry.queue.pop_dead() {
                entry.send(bio, now);
            }
            match entry.eligible() {
                Some(eligible) => self.scheduler.set_eligible(slot, eligible, now),
                None => self.scheduler.idle(slot, now),
            }
        }
        self.look_at = look_at;
    }
}

impl Group {
    /// A group without members or capacity, `is_private` if it is to have one member and no capacity.
    /// Process context.
    pub(crate) fn new(common: Arc<Common>, is_private: bool) -> Result<Arc<Self>> {
        Arc::pin_init(
            pin_init!(Self {
                clock: Clock::new(common.epoch),
                is_private,
                governs: Atomic::new(false),
                is_to_share_out: Atomic::new(false),
                capacity: Limits::new(),
                certain: Limits::new(),
                room: Room::new(),
                state <- new_spinlock!(State {
                    scheduler: Scheduler::new(),
                    entries: KVVec::new(),
                    shared: Capacity::NONE,
                    price: mclock::Capacity::new(0, 0),
                    armed_until: NEVER,
                    ran_at: 0,
                    slack: SLACK,
                    look_at: 0,
                    full: None,
                }),
                timer <- HrTimer::new(),
                work <- new_work!("dm_qos::Group::work"),
                armed <- new_mutex!(None),
                common,
            }),
            GFP_KERNEL,
        )
    }

    /// Adds a member. Process context; one at a time.
    pub(crate) fn add(
        self: &Arc<Self>,
        settings: &Settings,
        disk: MappedDisk,
        is_zoned: bool,
    ) -> Result<Arc<Member>> {
        let queue = KBox::new(Queue::new(is_zoned)?, GFP_KERNEL)?;
        self.make_room()?;
        let promise = promise_of(settings);
        let slot = {
            let mut state = self.state.lock();
            let now = self.now();
            state.scheduler.add(&promise, now).ok_or(ENOMEM)?
        };
        let member = Member::new(self.common.clone(), slot, disk, is_zoned, self.is_private);
        let mut state = self.state.lock();
        let member = member.inspect_err(|_| state.scheduler.remove(slot))?;
        let now = self.now();
        member.limits.apply(settings, now);
        member.ahead.apply_ahead(settings, now);
        let governs = self.governs();
        state.slack = state.slack.min(slack(member.limits.burst(), governs));
        if let Some(entry) = state.entries.get_mut(slot.index()) {
            *entry = Some(Entry {
                member: member.clone(),
                queue,
                promise,
            });
        }
        self.promises_have_changed();
        Ok(member)
    }

    /// Removes a member, for which nothing waits, nor will.
    pub(crate) fn remove(&self, member: &Member) {
        let mut state = self.state.lock();
        let slot = member.slot();
        state.scheduler.remove(slot);
        let entry = state.entries.get_mut(slot.index()).and_then(Option::take);
        self.promises_have_changed();
        drop(state);
        drop(entry);
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

    /// Changes what the members share, for what waits already as well. Process context.
    pub(crate) fn set_capacity(self: &Arc<Self>, capacity: &Capacity, burst_ms: u64) {
        let limits = Settings {
            iops: capacity.iops,
            bps: capacity.bps,
            burst_ms,
            ..Settings::DEFAULT
        };
        {
            let mut state = self.state.lock();
            let now = self.now();
            state.price = mclock::Capacity::new(capacity.iops, capacity.bps);
            state.shared = *capacity;
            self.capacity.apply(&limits, now);
            self.certain.apply(&limits, now);
            self.room.set_depth(capacity.depth);
            let governs = *capacity != Capacity::NONE;
            self.governs.store(governs, Relaxed);
            state.find_slack(governs.then_some(&self.capacity));
            self.promises_have_changed();
        }
        self.kick();
    }

    /// Changes a member's limits and what is promised to it, for what waits already as well. Process
    /// context.
    pub(crate) fn set_member(self: &Arc<Self>, member: &Member, settings: &Settings) {
        {
            let mut state = self.state.lock();
            let now = self.now();
            member.limits.apply(settings, now);
            member.ahead.apply_ahead(settings, now);
            let governs = self.governs();
            state.find_slack(governs.then_some(&self.capacity));
            let promise = promise_of(settings);
            let slot = member.slot();
            state.scheduler.set_promise(slot, &promise, now);
            let entry = state.entry(slot);
            let is_new = entry.as_ref().is_some_and(|entry| entry.promise != promise);
            let eligible = entry.and_then(|entry| {
                entry.promise = promise;
                entry.eligible()
            });
            if let Some(eligible) = eligible {
                state.scheduler.set_eligible(slot, eligible, now);
            }
            if is_new {
                self.promises_have_changed();
            }
        }
        self.kick();
    }

    /// Sets whether limits apply to a member. What waits is let go when they cease to. Process context.
    pub(crate) fn set_mode(self: &Arc<Self>, member: &Member, mode: Mode) {
        {
            let mut state = self.state.lock();
            let now = self.now();
            member.set_mode(mode, now);
            if member.is_open() {
                state.release_all(member.slot(), now);
            }
            state.look_at = now;
        }
        self.kick();
    }

    /// The last member has gone. What it left behind (work, a timer) ends. Process context.
    pub(crate) fn end(&self) {
        // The work arms the timer only when a bio waits. But a timer may be about to fire that it
        // armed before, and queue the work once more.
        workqueue::flush_work(&self.work);
        drop(self.armed.lock().take());
        workqueue::flush_work(&self.work);
        // Work and timer hold no reference any more. So it is not the work that drops the last one,
        // and with it, as the module goes, the queue it runs on.
    }

    /// Now, in ticks. With `state` locked where the scheduler is to know it: time does not go back for
    /// that.
    #[inline]
    pub(crate) fn now(&self) -> u64 {
        self.clock.now()
    }

    /// Has the group a capacity or a depth?
    #[inline]
    pub(crate) fn governs(&self) -> bool {
        self.governs.read_once()
    }

    /// Do bios wait for capacity or for room below?
    #[inline]
    pub(crate) fn is_contended(&self) -> bool {
        self.room.is_contended()
    }

    pub(crate) fn state(&self) -> &SpinLock<State> {
        &self.state
    }

    /// Has the work look at what waits. Any context.
    pub(crate) fn kick(self: &Arc<Self>) {
        self.as_arc_borrow().kick_borrowed();
    }

    fn kick_borrowed(self: ArcBorrow<'_, Self>) {
        let queue = match self.is_private {
            true => &self.common.submit,
            false => &self.common.decide,
        };
        // Queued already is as well.
        let _ = queue.enqueue::<Arc<Self>, 0>(self.into());
    }

    /// Promises have changed, or what they are promises of. Called with the state locked.
    ///
    /// To say what part is whose takes a look at all members. That is left for when somebody asks: who
    /// makes a thousand devices, one after the other, would look at half a million.
    fn promises_have_changed(&self) {
        self.is_to_share_out.store(true, Relaxed);
    }

    fn share_out(&self, state: &mut State, now: u64) {
        if self.is_to_share_out.read_once() {
            self.is_to_share_out.store(false, Relaxed);
            state.share_out(now);
        }
    }

    /// Has it said what part is whose before somebody looks at [`Member::part`].
    pub(crate) fn find_parts(&self) {
        if self.is_to_share_out.read_once() {
            let mut state = self.state.lock();
            let now = self.now();
            self.share_out(&mut state, now);
        }
    }

    /// There is no room below. May a member have another I/O there all the same?
    fn may_exceed(&self, state: &mut State, slot: Slot, phase: Phase, now: u64) -> bool {
        self.share_out(state, now);
        state.may_exceed(slot, phase, now)
    }

    /// Lets an I/O in flight if there is room; says whether it is to be counted.
    #[inline]
    fn try_enter(&self, member: &Member) -> Option<bool> {
        let is_counted = self.room.try_enter()?;
        if is_counted {
            member.enters();
        }
        Some(is_counted)
    }

    /// Lets an I/O in flight whatever comes; says whether it is to be counted.
    fn enter(&self, member: &Member) -> bool {
        let is_counted = self.room.enter();
        if is_counted {
            member.enters();
        }
        is_counted
    }

    /// An I/O of a member that was counted as in flight has ended. Any context.
    #[inline]
    pub(crate) fn bio_ended(self: &Arc<Self>, member: &Member) {
        // Before anybody looks whether there is room.
        member.leaves();
        if self.room.leave() {
            self.kick();
        }
    }

    /// Charges an I/O if it may leave now, as far as capacity and room below go. Says whether it is
    /// counted as in flight.
    #[inline(always)]
    pub(crate) fn try_charge(
        &self,
        member: &Member,
        direction: Direction,
        charge: Charge,
        now: Now,
    ) -> Option<bool> {
        // Of a capacity there are limits in total only.
        let capacity = self.capacity.on(direction);
        if !self.capacity.try_charge(capacity, charge, now) {
            return None;
        }
        let is_counted = self.try_enter(member);
        if is_counted.is_none() {
            self.capacity.refund(capacity, charge);
        }
        is_counted
    }

    /// Charges an I/O that runs ahead of the capacity, if there is room below, or `whatever` comes: then
    /// only its maker pays, by its share. Says whether it is counted as in flight. Process context.
    pub(crate) fn try_charge_ahead(
        &self,
        member: &Member,
        direction: Direction,
        charge: Charge,
        now: u64,
        whatever: bool,
    ) -> Option<bool> {
        if !self.governs() {
            return Some(false);
        }
        let is_counted = match whatever {
            true => self.enter(member),
            false => {
                let is_counted = self.try_enter(member)?;
                self.capacity
                    .charge_up_to(direction, charge, now, now, DEBT);
                is_counted
            }
        };
        if self.is_contended() {
            let mut state = self.state.lock();
            let now = self.now();
            let cost = Self::cost(charge, state.price);
            state.scheduler.served(member.slot(), cost, now);
        }
        Some(is_counted)
    }

    /// What is to be done next with what waits.
    pub(crate) fn next(&self, state: &mut State, now: u64) -> Step {
        let governs = self.governs();
        loop {
            let (slot, phase) = match state.scheduler.next(now) {
                mclock::Next::Dispatch(slot, phase) => (slot, phase),
                mclock::Next::Wait(until) if state.scheduler.has_parked() => {
                    if self.room.is_free() {
                        state.full = None;
                        state.scheduler.unpark();
                        continue;
                    }
                    // Whoever may be let in has been, if it stalls already.
                    let again = match state.stalls_at(now) {
                        then if then > now => then,
                        _ => now + STALL,
                    };
                    return Step::Wait(until.min(again));
                }
                mclock::Next::Wait(until) => {
                    self.room.set_contended(false);
                    return Step::Wait(until);
                }
                mclock::Next::Nothing => {
                    self.room.set_contended(false);
                    return Step::Nothing;
                }
            };
            let next = match state.entry(slot) {
                Some(entry) => entry.queue.next(entry.member.allowed(), now),
                None => Next::Nothing,
            };
            // Others may have been charged since the scheduler was told.
            let mut choice = match next {
                Next::Release(choice) => choice,
                Next::Wait(until) => {
                    state.scheduler.set_eligible(slot, until, now);
                    continue;
                }
                Next::Nothing => {
                    state.scheduler.idle(slot, now);
                    continue;
                }
            };
            let mut whatever = false;
            if governs {
                let charge = state
                    .entry(slot)
                    .and_then(|entry| entry.queue.charge(choice));
                let capacity = match phase {
                    Phase::Reservation => &self.certain,
                    Phase::Weight => &self.capacity,
                };
                let eligible = capacity.eligible(choice.direction, charge.unwrap_or_default());
                if eligible > now {
                    self.room.set_contended(true);
                    return Step::Wait(eligible.min(state.scheduler.changes_at()));
                }
                if self.room.is_free() {
                    state.full = None;
                } else if self.may_exceed(state, slot, phase, now) {
                    whatever = true;
                } else if phase == Phase::Weight && state.stalls_at(now) > now {
                    // Nobody else has room either.
                    let until = state.stalls_at(now);
                    return Step::Wait(until.min(state.scheduler.changes_at()));
                } else {
                    state.scheduler.park(slot);
                    continue;
                }
                choice.due = choice.due.max(eligible);
            }
            return Step::Release(Release {
                slot,
                choice,
                phase,
                whatever,
            });
        }
    }

    /// Takes out and charges what [`Self::next`] said. `None` when somebody else took the room below.
    pub(crate) fn take(
        &self,
        state: &mut State,
        release: Release,
        now: u64,
    ) -> Option<HeldBio<Held>> {
        let Release {
            slot,
            choice,
            phase,
            whatever,
        } = release;
        let governs = self.governs();
        let price = state.price;
        let entry = state.entry(slot)?;
        let member = &entry.member;
        let is_counted = governs
            && match whatever {
                true => self.enter(member),
                false => self.try_enter(member)?,
            };
        let mut bio = entry.queue.pop(choice)?;
        let Held { since, charge, .. } = *bio.data();
        bio.data_mut().is_counted = is_counted;

        let direction = choice.direction;
        let due = choice.due.max(since);
        charge_held(member, choice, charge, due, now);
        if governs {
            match phase {
                Phase::Weight => self.capacity.charge_held(direction, charge, due, now),
                Phase::Reservation => {
                    self.certain.charge_held(direction, charge, due, now);
                    self.capacity
                        .charge_up_to(direction, charge, due, now, DEBT);
                }
            }
        }
        let eligible = entry.eligible();
        state.scheduler.served(slot, Self::cost(charge, price), now);
        match eligible {
            Some(eligible) => state.scheduler.set_eligible(slot, eligible, now),
            None => state.scheduler.idle(slot, now),
        }
        Some(bio)
    }

    /// Takes out bios that are due, and has them submitted. Says when there will be more.
    fn take_out(&self) -> More {
        let mut state = self.state.lock();
        let now = self.now();
        let state = &mut *state;
        state.ran_at = now;
        state.scheduler.unpark();
        if now >= state.look_at {
            state.look(now);
        }
        let mut count = 0;
        while count < BATCH {
            match self.next(state, now) {
                Step::Release(release) if self.is_private => {
                    count += take_all_due(state, release.slot, BATCH - count, now);
                }
                Step::Release(release) => {
                    if let Some(bio) = self.take(state, release, now) {
                        if let Some(entry) = state.entry(release.slot) {
                            entry.send(bio, now);
                        }
                        count += 1;
                    }
                }
                Step::Wait(until) => {
                    let until = state.wake_at(until.min(state.look_at));
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

    /// The only member of a private group.
    fn only_member(&self) -> Option<Arc<Member>> {
        if !self.is_private {
            return None;
        }
        let state = self.state.lock();
        let entry = state.entries.iter().flatten().next();
        entry.map(|entry| entry.member.clone())
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

/// Charges a bio that waited and leaves.
fn charge_held(member: &Member, choice: Choice, charge: Charge, due: u64, now: u64) {
    let direction = choice.direction;
    if choice.is_ahead {
        member.ahead.charge_held(direction, charge, due, now);
        member.limits.charge(direction, charge, now);
        member.traffic.count_ahead(direction);
    } else {
        member.limits.charge_held(direction, charge, due, now);
    }
}

/// As [`Group::next`] and [`Group::take`] in turn, for the member of a private group: the scheduler
/// need not be asked for each. Says how many, which are no more than `most`.
fn take_all_due(state: &mut State, slot: Slot, most: u64, now: u64) -> u64 {
    let Some(entry) = state.entry(slot) else {
        return 0;
    };
    let member = &entry.member;
    let mut bios = BioList::new();
    let mut count = 0;
    let next = loop {
        let next = entry.queue.next(member.allowed(), now);
        let Next::Release(choice) = next else {
            break next;
        };
        if count == most {
            break next;
        }
        count += 1;
        if let Some(bio) = entry.queue.pop(choice) {
            let Held { since, charge, .. } = *bio.data();
            charge_held(member, choice, charge, choice.due.max(since), now);
            member.is_taken_out(&bio);
            entry.queue.leaves(&bio, now);
            bios.push_back(bio);
        }
    };
    member.send_all(bios);
    match next {
        Next::Release(..) => {}
        Next::Wait(until) => state.scheduler.set_eligible(slot, until, now),
        Next::Nothing => state.scheduler.idle(slot, now),
    }
    count
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

fn promise_of(settings: &Settings) -> Promise {
    Promise {
        ios: settings.reserve_iops,
        bytes: settings.reserve_bps,
        weight: settings.weight as u32,
    }
}

impl WorkItem for Group {
    type Pointer = Arc<Group>;

    fn run(this: Arc<Group>) {
        // Cancels the timer.
        drop(this.armed.lock().take());
        let only_member = this.only_member();
        loop {
            let more = this.take_out();
            if let Some(member) = &only_member {
                member.submit();
            }
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

impl HrTimerCallback for Group {
    type Pointer<'a> = Arc<Self>;

    fn run(this: ArcBorrow<'_, Self>, _: HrTimerCallbackContext<'_, Self>) -> HrTimerRestart {
        this.kick_borrowed();
        HrTimerRestart::NoRestart
    }
}
