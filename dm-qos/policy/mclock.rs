// SPDX-License-Identifier: GPL-2.0

//! Who is next: the scheduler of a group whose members share a capacity.
//!
//! # Model
//!
//! mClock (Gulati, Merchant, Varman: mClock: Handling Throughput Variability for Hypervisor IO
//! Scheduling, OSDI 2010). Each member has two clocks, and a limit kept by others:
//!
//! - *Reservation*, in real time. A member is *behind* when the start tag of its reservation is not
//!   in the future. Whoever is behind goes first (the *constraint-based phase*). An I/O served then
//!   moves the tag by what it costs at the reserved rate: 1/r seconds, or its bytes at the reserved
//!   rate. What is served beyond the reservation does not move the tag, so that nobody pays for
//!   spare capacity by the reservation of tomorrow.
//! - *Share*, in virtual time. When nobody is behind, the member with the least share tag goes (the
//!   *weight-based phase*). Every I/O of a member, in whichever phase, moves its share tag by what
//!   it costs divided by the weight: so weights divide the total, and reservations are floors to
//!   it.
//! - *Limit*: when the first I/O that waits may leave. The caller says (`limits.rs` knows), in real
//!   time; until then the member is in neither phase.
//!
//! When several are behind, the one with the earliest *deadline* goes, which is the time at which
//! the I/O after its next one is due, and not the one with the earliest tag, as in the paper. In
//! the order of tags, a member of 10,000 I/Os per second would stand in line behind 9,999 members
//! of one per second that woke at the same time: for longer than a window. By deadlines, all
//! reservations are kept that together take no more than the capacity. (What the next I/O will cost
//! is not known here; the last one is the best guess.)
//!
//! # Idling
//!
//! A member that comes back from idling starts from now as to its reservation, and from the
//! *virtual time* as to its share, unless its tags are ahead of that: it saved up nothing, and is
//! let off nothing. Virtual time is the share tag of whoever was served last by weight, as in
//! start-time fair queueing: that is the least of all that were ready. The paper shifts the tags of
//! all others at such a moment, so that the least of them is now; it is the same with a shift of
//! the origin, and costs no visit to each. A member that its own limits kept from taking its share,
//! or its reservation, is not owed it either.
//!
//! # Two bounds that the paper does not have
//!
//! - *Behind by a window at most*, once it is served. A reservation is a promise for each
//!   [`WINDOW`] of 100 ms, not a credit. What the disk did not do in a longer stall is not made up
//!   for at the others' expense.
//! - *Ahead of its share by 10 ms of its reservation at most.* A member whose reservation exceeds
//!   its share is served ahead of its share all the time. Were its share tag to go on running
//!   ahead, then once its reservation is lowered, or a neighbour leaves, it would have to sit out
//!   all of the time since. So the tag stays within what the member's reservation comes to in 10
//!   ms, and a few I/Os. Those whose share exceeds their reservation do not get there; what the
//!   others are ahead is made up for within moments.
//!
//! # Units
//!
//! Time is in ticks, as in `gcra.rs`. Virtual time is in ticks divided by the weight, rounded down,
//! with the remainder carried on, so that shares are exact in the long run. A lone member of weight
//! 1 that uses all of the capacity moves virtual time as fast as real time: 36 years fit in.
//!
//! # Cost and memory
//!
//! Every member that waits is in one or more of five heaps (`heap.rs`), so all is O(log n). Nothing
//! here allocates: the caller makes a [`Storage`] where it may sleep and hands it over with
//! [`Scheduler::grow`]. No call with a slot that is not in use does anything.
//!
//! Nothing here but integers: tested on the host (`selftests/unit`), and simulated there with
//! thousands of members (`mclock-sim`).

use super::{
    gcra::{
        Rate,
        TICKS_PER_MS, //
    },
    heap::Heap,
    store::Array, //
};

/// The time in which a reservation is kept, in ticks.
pub(crate) const WINDOW: u64 = 100 * TICKS_PER_MS;
/// An I/O of fewer bytes than this (none, if it is a flush) counts as that many against a
/// reservation in bytes. Else a stream of them would never use the reservation up.
pub(crate) const LEAST_BYTES: u32 = 4096;
/// The most that a weight can be.
pub(crate) const MAX_WEIGHT: u32 = 10_000;

/// How far a share tag may be ahead, as the time in which that much is reserved, in ticks.
const AHEAD: u64 = 10 * TICKS_PER_MS;
/// And so many I/Os: it takes two or three when services by reservation and by weight come close
/// together.
const AHEAD_IOS: u64 = 4;
/// How many I/Os a window is long at least, where few are reserved.
const WINDOW_IOS: u64 = 4;
/// No slot.
const NONE: u32 = u32::MAX;

/// What a member is promised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Promise {
    /// I/Os per second; 0: none.
    pub(crate) ios: u64,
    /// Bytes per second; 0: none. With both, it gets whatever is more.
    pub(crate) bytes: u64,
    /// Its share of what is left over, against those of the others: 1 to [`MAX_WEIGHT`].
    pub(crate) weight: u32,
}

/// What an I/O costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cost {
    /// I/Os that the device makes of it.
    pub(crate) ios: u32,
    /// Bytes.
    pub(crate) bytes: u32,
    /// The time that it takes at the group's capacity, in ticks. See [`Capacity::time`].
    pub(crate) time: u64,
}

impl Cost {
    /// Bytes as they count where a rate of bytes is reserved or shared.
    #[inline]
    fn counted_bytes(ios: u32, bytes: u32) -> u32 {
        bytes.max(ios.saturating_mul(LEAST_BYTES))
    }
}

/// What a group's disk can do.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Capacity {
    ios: Rate,
    bytes: Rate,
}

impl Capacity {
    /// So many I/Os and bytes per second; 0: not known. When neither is, I/Os of up to 10 KiB cost
    /// the same, and larger ones as their bytes.
    pub(crate) fn new(ios: u64, bytes: u64) -> Self {
        let (ios, bytes) = match (ios, bytes) {
            (0, 0) => (100_000, 1 << 30),
            known => known,
        };
        Self {
            ios: Rate::new(ios),
            bytes: Rate::new(bytes),
        }
    }

    /// The time that an I/O takes, in ticks: by its count or by its bytes, whichever is more.
    #[inline]
    pub(crate) fn time(&self, ios: u32, bytes: u32) -> u64 {
        self.ios
            .cost(ios)
            .max(self.bytes.cost(Cost::counted_bytes(ios, bytes)))
    }
}

/// A member of the group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Slot(u32);

impl Slot {
    /// Its number, below [`Scheduler::room`]: where the caller keeps what it has on the member.
    #[inline]
    pub(crate) fn index(self) -> usize {
        self.0 as usize
    }
}

/// In which phase an I/O is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// The member was behind its reservation.
    Reservation,
    /// Nobody was.
    Weight,
}

/// What is to be done next with the I/Os that wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// None waits.
    Nothing,
    /// None may leave before this time, in ticks.
    Wait(u64),
    /// The first of this member leaves.
    Dispatch(Slot, Phase),
}

/// Whether a reservation was met: a count of the windows in which the member had I/O waiting
/// throughout, and its limits let it. A window is missed when the member got less than what was
/// reserved for it, less one I/O or 1 %, whichever is more: what is due as a window ends waits for
/// the I/Os below, and is in the next. Where that would ask for fewer than three I/Os, a window is
/// longer than [`WINDOW`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Windows {
    /// Windows looked at.
    pub(crate) seen: u64,
    /// Those missed.
    pub(crate) missed: u64,
}

/// One reservation of a member, in I/Os or in bytes.
#[derive(Clone, Copy)]
struct Reservation {
    rate: Rate,
    /// The start tag: from when on the member is behind, in ticks.
    start: u64,
    /// Units of the last I/O, as the best guess at the next.
    units: u32,
    /// What was served in the window that is being counted, in ticks at this rate.
    got: u64,
    /// The largest I/O of that.
    largest: u64,
}

impl Reservation {
    const fn new(units: u32) -> Self {
        Self {
            rate: Rate::new(0),
            start: 0,
            units,
            got: 0,
            largest: 0,
        }
    }

    /// What an I/O like the last one costs.
    #[inline]
    fn step(&self) -> u64 {
        self.rate.cost(self.units)
    }

    /// Serves an I/O, which is what the member was due by this reservation or another.
    #[inline]
    fn advance(&mut self, cost: u64, now: u64) {
        self.start = if self.start <= now {
            self.start
                .saturating_add(cost)
                .max(now.saturating_sub(WINDOW))
        } else {
            // The member was behind in its other reservation only. What it gets by that one meets
            // this one as well, but is not held against it for longer than this I/O is worth.
            self.start.max(now.saturating_add(cost))
        };
    }

    /// Does the window fall short of `length`?
    #[inline]
    fn is_short(&self, length: u64) -> bool {
        let slack = self.largest.max(self.step()).max(length / 100);
        self.got.saturating_add(slack) < length
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// In no use; the next such slot, or [`NONE`].
    Vacant(u32),
    /// Nothing waits.
    Idle,
    /// Its first I/O is held back by its limits, or is ready to leave.
    Backlogged,
}

#[derive(Clone, Copy)]
struct Member {
    state: State,
    /// In I/Os and in bytes.
    reservations: [Reservation; 2],
    weight: u32,
    /// The share tag, in virtual time.
    share: u64,
    /// The part of a tick of virtual time that is not in `share`, times `weight`.
    rest: u32,
    /// How far a large I/O of late moves the share tag.
    stride: u64,
    /// When the window that is being counted began, in ticks.
    window: u64,
    /// How long it is.
    length: u64,
    windows: Windows,
}

impl Member {
    const fn vacant(next: u32) -> Self {
        Self {
            state: State::Vacant(next),
            reservations: [Reservation::new(1), Reservation::new(LEAST_BYTES)],
            weight: 1,
            share: 0,
            rest: 0,
            stride: 0,
            window: 0,
            length: WINDOW,
            windows: Windows { seen: 0, missed: 0 },
        }
    }

    #[inline]
    fn reserved(&self) -> impl Iterator<Item = &Reservation> {
        self.reservations.iter().filter(|one| one.rate.is_set())
    }

    #[inline]
    fn reserved_mut(&mut self) -> impl Iterator<Item = &mut Reservation> {
        self.reservations.iter_mut().filter(|one| one.rate.is_set())
    }

    /// From when on it is behind; never if nothing is reserved.
    #[inline]
    fn behind_from(&self) -> Option<u64> {
        self.reserved().map(|one| one.start).min()
    }

    /// By when it is to be served so as to be in time for the I/O after.
    #[inline]
    fn deadline(&self) -> Option<u64> {
        self.reserved()
            .map(|one| one.start.saturating_add(one.step()))
            .min()
    }

    /// Starts from now: what was reserved while nothing waited is lost.
    fn forget_idling(&mut self, now: u64) {
        for one in self.reserved_mut() {
            one.start = one.start.max(now);
        }
    }

    /// Its own limits hold it back, for longer than its reservation would. The group does not owe
    /// it that time, and the window says nothing about the group.
    fn hold_back(&mut self, until: u64) {
        for one in self.reserved_mut() {
            one.start = one.start.max(until.saturating_sub(one.step()));
        }
        self.open_window(self.window.max(until));
    }

    /// Begins to count a window.
    fn open_window(&mut self, at: u64) {
        self.window = at;
        let mut length = WINDOW;
        for one in self.reserved_mut() {
            (one.got, one.largest) = (0, 0);
            length = length.max(one.step().saturating_mul(WINDOW_IOS));
        }
        self.length = length;
    }

    /// Counts the windows that are over. Called before anything is served, so that nothing was in
    /// all but the first of them.
    fn close_windows(&mut self, now: u64) {
        let elapsed = now.saturating_sub(self.window);
        if self.state != State::Backlogged
            || elapsed < self.length
            || self.reserved().next().is_none()
        {
            return;
        }
        let over = elapsed / self.length.max(1);
        let is_short = self.reserved().any(|one| one.is_short(self.length));
        let are_short = self.reserved().any(|one| one.step() < self.length);
        self.windows.seen += over;
        self.windows.missed += u64::from(is_short) + (over - 1) * u64::from(are_short);
        self.open_window(self.window + over * self.length);
    }

    /// Moves the tags by an I/O.
    fn serve(&mut self, cost: Cost, virtual_time: u64, now: u64) -> Phase {
        let phase = match self.behind_from() {
            Some(from) if from <= now => Phase::Reservation,
            _ => Phase::Weight,
        };
        let units = [
            cost.ios.max(1),
            Cost::counted_bytes(cost.ios.max(1), cost.bytes),
        ];
        let mut step = u64::MAX;
        for (one, units) in self.reservations.iter_mut().zip(units) {
            one.units = units;
            if !one.rate.is_set() {
                continue;
            }
            let cost = one.step();
            one.got = one.got.saturating_add(cost);
            one.largest = one.largest.max(cost);
            step = step.min(cost);
            if phase == Phase::Reservation {
                one.advance(cost, now);
            }
        }

        let weight = u64::from(self.weight.max(1));
        let time = cost.time.max(1).saturating_add(u64::from(self.rest));
        let stride = time / weight;
        // Less than the weight.
        self.rest = (time % weight) as u32;
        // Forgets a large I/O in the course of some dozens of small ones.
        self.stride = stride.max(self.stride - self.stride / 64);
        let from = self.share.max(virtual_time);
        self.share = from.saturating_add(stride);
        if phase == Phase::Reservation {
            let ios = AHEAD / step.max(1) + AHEAD_IOS;
            let ahead = self.stride.saturating_add(1).saturating_mul(ios);
            self.share = self.share.min(from.max(virtual_time.saturating_add(ahead)));
        }
        phase
    }
}

/// The memory of a [`Scheduler`].
pub(crate) struct Storage {
    members: Array<Member>,
    /// Those whose limits hold them back, by the time until when.
    limited: Heap,
    /// Those who may leave, by their share tag.
    ready: Heap,
    /// Those of them who are not behind their reservation, by the time from which on they are.
    ahead: Heap,
    /// Those who are, by their deadline.
    behind: Heap,
    /// Those who might leave, but that there is no room for them below.
    parked: Heap,
}

impl Storage {
    const fn new() -> Self {
        Self {
            members: Array::new(),
            limited: Heap::new(),
            ready: Heap::new(),
            ahead: Heap::new(),
            behind: Heap::new(),
            parked: Heap::new(),
        }
    }

    /// Memory for so many members. Nothing when memory is short. May sleep.
    pub(crate) fn with_room(room: u32) -> Option<Self> {
        Some(Self {
            members: Array::filled(Member::vacant(NONE), room as usize)?,
            limited: Heap::with_room(room)?,
            ready: Heap::with_room(room)?,
            ahead: Heap::with_room(room)?,
            behind: Heap::with_room(room)?,
            parked: Heap::with_room(room)?,
        })
    }

    fn room(&self) -> u32 {
        self.members.len() as u32
    }

    /// The member in a slot that is in use.
    #[inline]
    fn member(&mut self, slot: u32) -> Option<&mut Member> {
        self.members
            .get_mut(slot as usize)
            .filter(|member| !matches!(member.state, State::Vacant(_)))
    }

    /// Takes a member out of all heaps.
    fn withdraw(&mut self, slot: u32) {
        self.limited.remove(slot);
        self.ready.remove(slot);
        self.ahead.remove(slot);
        self.behind.remove(slot);
        self.parked.remove(slot);
    }

    /// Puts a member where its reservation has it.
    fn place(&mut self, slot: u32) {
        let Some(member) = self.member(slot) else {
            return;
        };
        let from = member.behind_from();
        self.behind.remove(slot);
        match from {
            Some(from) => self.ahead.set(slot, from),
            None => self.ahead.remove(slot),
        }
    }
}

/// See the module's description. `now` never goes back from one call to the next.
pub(crate) struct Scheduler {
    storage: Storage,
    /// The first vacant slot, or [`NONE`].
    vacant: u32,
    virtual_time: u64,
}

impl Scheduler {
    /// One that has room for nobody.
    pub(crate) const fn new() -> Self {
        Self {
            storage: Storage::new(),
            vacant: NONE,
            virtual_time: 0,
        }
    }

    /// How many members there is room for.
    pub(crate) fn room(&self) -> u32 {
        self.storage.room()
    }

    /// Moves to new memory and returns the old, to be dropped where one may sleep. Returns the new
    /// memory if it is no larger.
    pub(crate) fn grow(&mut self, mut storage: Storage) -> Storage {
        let (old, new) = (self.room(), storage.room());
        if new <= old {
            return storage;
        }
        let from = &self.storage;
        for (to, from) in storage.members.iter_mut().zip(from.members.iter()) {
            *to = *from;
        }
        for slot in (old..new).rev() {
            if let Some(member) = storage.members.get_mut(slot as usize) {
                *member = Member::vacant(self.vacant);
                self.vacant = slot;
            }
        }
        storage.limited.copy_from(&from.limited);
        storage.ready.copy_from(&from.ready);
        storage.ahead.copy_from(&from.ahead);
        storage.behind.copy_from(&from.behind);
        storage.parked.copy_from(&from.parked);
        core::mem::replace(&mut self.storage, storage)
    }

    /// Adds a member, for which nothing waits. Nothing when there is no room.
    pub(crate) fn add(&mut self, promise: &Promise, now: u64) -> Option<Slot> {
        let slot = self.vacant;
        let member = self.storage.members.get_mut(slot as usize)?;
        let State::Vacant(next) = member.state else {
            return None;
        };
        *member = Member::vacant(NONE);
        member.state = State::Idle;
        self.vacant = next;
        self.set_promise(Slot(slot), promise, now);
        Some(Slot(slot))
    }

    /// Removes a member.
    pub(crate) fn remove(&mut self, slot: Slot) {
        let Slot(slot) = slot;
        let vacant = self.vacant;
        if let Some(member) = self.storage.member(slot) {
            member.state = State::Vacant(vacant);
            self.vacant = slot;
            self.storage.withdraw(slot);
        }
    }

    /// Changes what a member is promised, also for what waits already.
    pub(crate) fn set_promise(&mut self, slot: Slot, promise: &Promise, now: u64) {
        let Slot(slot) = slot;
        let virtual_time = self.virtual_time;
        let Some(member) = self.storage.member(slot) else {
            return;
        };
        member.close_windows(now);
        let rates = [promise.ios, promise.bytes].map(Rate::new);
        let mut is_changed = false;
        for (one, rate) in member.reservations.iter_mut().zip(rates) {
            if rate != one.rate {
                is_changed = true;
                // What was served at another rate is worth one I/O at the new one.
                let was_set = one.rate.is_set();
                one.rate = rate;
                one.start = match was_set {
                    true => one.start.min(now.saturating_add(one.step())),
                    false => now,
                };
            }
        }
        if is_changed {
            member.open_window(member.window.max(now));
        }

        // Ahead by the same work as before.
        let weight = promise.weight.clamp(1, MAX_WEIGHT);
        let (from, to) = (u64::from(member.weight), u64::from(weight).max(1));
        if from != to {
            if let Some(ahead) = member.share.checked_sub(virtual_time) {
                member.share = virtual_time.saturating_add(ahead.saturating_mul(from) / to);
            }
            member.stride = member.stride.saturating_mul(from) / to;
            member.weight = weight;
            member.rest = 0;
        }

        let share = member.share;
        if self.storage.ready.contains(slot) {
            self.storage.ready.set(slot, share);
            self.storage.place(slot);
        }
    }

    /// Something waits for a member for which nothing did; it may leave from `eligible` on.
    pub(crate) fn backlogged(&mut self, slot: Slot, eligible: u64, now: u64) {
        if let Some(member) = self.storage.member(slot.0) {
            if member.state == State::Idle {
                member.state = State::Backlogged;
                member.forget_idling(now);
                member.open_window(now);
                self.admit(slot.0, eligible, now, true);
            } else {
                self.set_eligible(slot, eligible, now);
            }
        }
    }

    /// What waits first may leave from `eligible` on: another I/O is first now, or limits changed.
    pub(crate) fn set_eligible(&mut self, slot: Slot, eligible: u64, now: u64) {
        if let Some(member) = self.storage.member(slot.0) {
            if member.state == State::Backlogged {
                member.close_windows(now);
                let is_new = !self.storage.ready.contains(slot.0);
                self.admit(slot.0, eligible, now, is_new);
            }
        }
    }

    /// Nothing waits for a member any more.
    pub(crate) fn idle(&mut self, slot: Slot, now: u64) {
        if let Some(member) = self.storage.member(slot.0) {
            member.close_windows(now);
            member.state = State::Idle;
            self.storage.withdraw(slot.0);
        }
    }

    /// Whose I/O is to leave now. It stays where it is, and so do all tags, until it is
    /// [`Self::served`].
    pub(crate) fn next(&mut self, now: u64) -> Next {
        self.advance(now);
        let storage = &self.storage;
        if let Some((_, slot)) = storage.behind.first() {
            return Next::Dispatch(Slot(slot), Phase::Reservation);
        }
        if let Some((_, slot)) = storage.ready.first() {
            return Next::Dispatch(Slot(slot), Phase::Weight);
        }
        match storage.limited.first() {
            Some((eligible, _)) => Next::Wait(eligible),
            None if !storage.parked.is_empty() => Next::Wait(u64::MAX),
            None => Next::Nothing,
        }
    }

    /// From when on the next of those who may leave is behind its reservation, or else the next of those
    /// whose limits hold them back may leave.
    pub(crate) fn changes_at(&self) -> u64 {
        let first = |heap: &Heap| heap.first().map_or(u64::MAX, |(time, _)| time);
        first(&self.storage.ahead).min(first(&self.storage.limited))
    }

    /// There is no room below for what [`Self::next`] said: others come first, until
    /// [`Self::unpark`].
    pub(crate) fn park(&mut self, slot: Slot) {
        let Slot(slot) = slot;
        if self.storage.ready.contains(slot) {
            self.storage.withdraw(slot);
            self.storage.parked.set(slot, 0);
        }
    }

    /// Is any member parked?
    pub(crate) fn has_parked(&self) -> bool {
        !self.storage.parked.is_empty()
    }

    /// There may be room again for all that were parked.
    pub(crate) fn unpark(&mut self) {
        while let Some(slot) = self.storage.parked.pop_until(0) {
            self.make_ready(slot);
        }
    }

    /// May something leave now that waits?
    pub(crate) fn has_ready(&mut self, now: u64) -> bool {
        self.advance(now);
        !self.storage.ready.is_empty()
    }

    /// An I/O of a member leaves: the one that [`Self::next`] said, or one that never waited.
    /// Charges it, and says by what right it left. [`Self::idle`] or [`Self::set_eligible`] follows
    /// unless what waits first is another I/O that may leave at once.
    pub(crate) fn served(&mut self, slot: Slot, cost: Cost, now: u64) -> Option<Phase> {
        let Slot(slot) = slot;
        let virtual_time = self.virtual_time;
        let member = self.storage.member(slot)?;
        member.close_windows(now);
        if member.state == State::Idle {
            member.forget_idling(now);
        }
        let start = member.share.max(virtual_time);
        let phase = member.serve(cost, virtual_time, now);
        let share = member.share;
        if phase == Phase::Weight {
            // Never beyond what is ready: of what never waited, the tag may be anywhere.
            let least = self.storage.ready.first().map_or(start, |(least, _)| least);
            self.virtual_time = virtual_time.max(start.min(least));
        }
        if self.storage.ready.contains(slot) {
            self.storage.ready.set(slot, share);
            if phase == Phase::Reservation {
                self.storage.place(slot);
            }
        }
        Some(phase)
    }

    /// Whether a member's reservation was met.
    pub(crate) fn windows(&mut self, slot: Slot, now: u64) -> Windows {
        match self.storage.member(slot.0) {
            Some(member) => {
                member.close_windows(now);
                member.windows
            }
            None => Windows::default(),
        }
    }

    /// Forgets the windows looked at.
    pub(crate) fn reset_windows(&mut self, slot: Slot, now: u64) {
        if let Some(member) = self.storage.member(slot.0) {
            member.close_windows(now);
            member.windows = Windows::default();
        }
    }

    /// Puts a member where the first of its I/Os belongs, which may leave from `eligible` on.
    fn admit(&mut self, slot: u32, eligible: u64, now: u64, is_new: bool) {
        if eligible <= now {
            if is_new {
                self.make_ready(slot);
            }
            return;
        }
        if let Some(member) = self.storage.member(slot) {
            if member
                .deadline()
                .is_some_and(|deadline| deadline < eligible)
            {
                member.hold_back(eligible);
            }
        }
        self.storage.withdraw(slot);
        self.storage.limited.set(slot, eligible);
    }

    /// Puts a member among those whose first I/O may leave.
    fn make_ready(&mut self, slot: u32) {
        let virtual_time = self.virtual_time;
        if let Some(member) = self.storage.member(slot) {
            member.share = member.share.max(virtual_time);
            let share = member.share;
            self.storage.limited.remove(slot);
            self.storage.parked.remove(slot);
            self.storage.ready.set(slot, share);
            self.storage.place(slot);
        }
    }

    /// Moves those whose time has come.
    #[inline]
    fn advance(&mut self, now: u64) {
        while let Some(slot) = self.storage.limited.pop_until(now) {
            self.make_ready(slot);
        }
        while let Some(slot) = self.storage.ahead.pop_until(now) {
            if let Some(deadline) = self.storage.member(slot).and_then(|one| one.deadline()) {
                self.storage.behind.set(slot, deadline);
            }
        }
    }
}

/// Reservations that come to more than the capacity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Excess {
    /// So many I/Os per second would be reserved.
    Ios(u64),
    /// So many bytes per second.
    Bytes(u64),
}

/// Is there room for all these reservations, in I/Os and bytes per second, in a capacity of so many
/// (0: not known, which anything fits in)?
///
/// Each reservation comes with the number of the device that it is for. A device that is being
/// reloaded has two tables, and counts as the larger one: those of one device stand side by side.
pub(crate) fn check_reservations(
    capacity: (u64, u64),
    reservations: impl IntoIterator<Item = (u64, (u64, u64))>,
) -> Result<(), Excess> {
    let mut sum = (0u64, 0u64);
    // The device before, and what it counts as so far.
    let mut last: Option<(u64, (u64, u64))> = None;
    for (device, (ios, bytes)) in reservations {
        let counted = match last {
            Some((before, counted)) if before == device => counted,
            _ => (0, 0),
        };
        let counts = (ios.max(counted.0), bytes.max(counted.1));
        sum.0 = sum.0.saturating_add(counts.0 - counted.0);
        sum.1 = sum.1.saturating_add(counts.1 - counted.1);
        last = Some((device, counts));
    }
    if capacity.0 != 0 && sum.0 > capacity.0 {
        return Err(Excess::Ios(sum.0));
    }
    if capacity.1 != 0 && sum.1 > capacity.1 {
        return Err(Excess::Bytes(sum.1));
    }
    Ok(())
}
