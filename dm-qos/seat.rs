// SPDX-License-Identifier: GPL-2.0

//! What becomes of a bio that comes: it passes, waits, or ends.

use super::{
    group::{
        Group,
        Release,
        Step, //
    },
    member::{
        Member,
        Mode, //
    },
    policy::{
        gcra::{
            Now,
            TICKS_PER_US, //
        },
        histogram::Histogram,
        limits::{
            Charge,
            Subset, //
        },
        mclock::Windows,
        settings::{
            Capacity,
            Settings, //
        },
    },
    queue::Held,
    Direction, //
};
use ferrule::{
    bio::{
        Flags,
        MappedBio,
        Status, //
    },
    device_mapper::Map, //
};
use kernel::sync::Arc;

/// Whether an I/O may run ahead of others.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Urgency {
    /// No.
    Ordinary,
    /// As far as its part goes: whoever waits for metadata may hold locks that others wait for.
    Metadata,
    /// Whatever comes: memory is short until it has ended.
    Swap,
}

/// A device in its group.
#[derive(Clone)]
pub(crate) struct Seat {
    group: Arc<Group>,
    member: Arc<Member>,
}

impl Seat {
    /// `member` must be one of `group`.
    pub(crate) fn new(group: Arc<Group>, member: Arc<Member>) -> Self {
        Self { group, member }
    }

    /// Is it the same?
    pub(crate) fn is(&self, other: &Seat) -> bool {
        Arc::ptr_eq(&self.member, &other.member)
    }

    /// Lets a bio pass or holds it, or ends it if it would have to wait but must not. Process context.
    #[inline]
    pub(crate) fn admit<'a>(
        &self,
        bio: MappedBio<Held>,
        direction: Direction,
        charge: Charge,
    ) -> Map<'a, Held> {
        let (group, member) = (&*self.group, &*self.member);
        let governs = group.governs();
        let limits = member.limits.on(direction);
        if member.nothing_waits() {
            if !governs && limits.is_empty() {
                return self.pass(bio, direction, charge, false);
            }
            if !(governs && group.is_contended()) && member.is_limited() {
                let now = group.clock.roughly_now(member.limits.burst());
                if let Some(is_counted) = self.try_charge(governs, direction, limits, charge, now) {
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
        self.member.traffic.count(direction, charge);
        if is_counted {
            Map::Observed(bio)
        } else {
            Map::Remapped(bio)
        }
    }

    fn urgency_of(&self, bio: &MappedBio<Held>, direction: Direction) -> Urgency {
        let flags = bio.flags();
        if self.member.is_zoned && direction == Direction::Write {
            Urgency::Ordinary
        } else if flags.any_of(Flags::SWAP) || bio.is_swap_in() {
            Urgency::Swap
        } else if flags.any_of(Flags::META.or(Flags::PRIO)) {
            Urgency::Metadata
        } else {
            Urgency::Ordinary
        }
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
        let (group, member) = (&*self.group, &*self.member);
        let is_limited = group.governs() || !limits.is_empty();
        let is_first = member.waiting(direction) == 0;
        let is_open = member.is_open();
        if is_first && (is_open || !is_limited) {
            return self.pass(bio, direction, charge, false);
        }
        let now = group.now();
        // What waits in the other direction may wait for nothing that this one needs.
        let none_before = match member.limits.are_shared() {
            true => member.nothing_waits(),
            false => is_first,
        };
        if none_before && !group.is_contended() {
            if let Some(is_counted) = self.try_charge_slowly(direction, limits, charge, now) {
                return self.pass(bio, direction, charge, is_counted);
            }
        }
        let urgency = self.urgency_of(&bio, direction);
        let is_urgent = urgency != Urgency::Ordinary;
        if is_urgent {
            if is_open {
                return self.pass(bio, direction, charge, false);
            }
            if let Some(is_counted) = self.try_charge_ahead(urgency, direction, charge, now) {
                member.traffic.count_ahead(direction);
                return self.pass(bio, direction, charge, is_counted);
            }
        }
        self.hold(bio, direction, charge, is_urgent)
    }

    /// As [`Self::try_charge`], where it need not be fast.
    #[cold]
    #[inline(never)]
    fn try_charge_slowly(
        &self,
        direction: Direction,
        limits: Subset,
        charge: Charge,
        now: u64,
    ) -> Option<bool> {
        self.try_charge(self.group.governs(), direction, limits, charge, now.into())
    }

    /// A bio that left as one of those in flight has ended. Any context.
    #[inline]
    pub(crate) fn bio_ended(&self) {
        self.group.bio_ended(&self.member);
    }

    /// Charges an I/O if it may leave now, as far as limits, and capacity and room below if the group
    /// governs, go. Says whether it is counted as in flight.
    #[inline(always)]
    fn try_charge(
        &self,
        governs: bool,
        direction: Direction,
        limits: Subset,
        charge: Charge,
        now: Now,
    ) -> Option<bool> {
        let (group, member) = (&*self.group, &*self.member);
        if !limits.is_empty() && !member.limits.try_charge(limits, charge, now) {
            return None;
        }
        if !governs {
            return Some(false);
        }
        let is_counted = group.try_charge(member, direction, charge, now);
        if is_counted.is_none() {
            member.limits.refund(limits, charge);
        }
        is_counted
    }

    /// Charges an I/O that is urgent, if it may run ahead of limits and capacity. Says whether it is
    /// counted as in flight.
    #[cold]
    fn try_charge_ahead(
        &self,
        urgency: Urgency,
        direction: Direction,
        charge: Charge,
        now: u64,
    ) -> Option<bool> {
        let (group, member) = (&*self.group, &*self.member);
        group.find_parts();
        // Those that wait already come first.
        let may_go =
            !member.has_urgent_waiting() && member.try_charge_ahead(direction, charge, now);
        if may_go {
            let is_counted = group.try_charge_ahead(member, direction, charge, now, false);
            if is_counted.is_some() {
                return is_counted;
            }
            member.refund_ahead(direction, charge);
        }
        match urgency {
            Urgency::Swap => group.try_charge_ahead(member, direction, charge, now, true),
            _ => None,
        }
    }

    /// The part of [`Self::admit`] that takes the lock.
    #[cold]
    fn hold<'a>(
        &self,
        bio: MappedBio<Held>,
        direction: Direction,
        charge: Charge,
        is_urgent: bool,
    ) -> Map<'a, Held> {
        let (group, member) = (&*self.group, &*self.member);
        let must_not_wait = bio.flags().any_of(Flags::NOWAIT);

        let mut state = group.state().lock();
        let now = group.now();
        let is_open = member.is_open();
        let is_first = member.waiting(direction) == 0;
        if is_first {
            // What goes to a disk that is gone fails there. When only the other direction waits, and
            // not for what this bio needs, there is no reason to wait either.
            if is_open || bio.device_is_dead() {
                return self.pass(bio, direction, charge, false);
            }
            if !state.scheduler.has_ready(now) {
                let limits = member.limits.on(direction);
                if let Some(is_counted) = self.try_charge_slowly(direction, limits, charge, now) {
                    return self.pass(bio, direction, charge, is_counted);
                }
            }
        }
        if must_not_wait {
            drop(state);
            bio.end(Status::AGAIN);
            return Map::Submitted;
        }

        let slot = member.slot();
        let bio = bio.hold(Held {
            since: now,
            charge,
            is_urgent,
            is_counted: false,
        });
        member.begins_to_wait(&bio);
        if is_open {
            member.is_taken_out(&bio);
            self.member.send(bio);
            drop(state);
            self.group.kick();
            return Map::Submitted;
        }
        let Some(entry) = state.entry(slot) else {
            // There is one as long as there is a bio.
            return Map::Submitted;
        };
        let was_empty = entry.queue.is_empty();
        if !entry.queue.push(bio) {
            // Somebody is to look at that which is before it.
            return Map::Submitted;
        }
        let eligible = entry.eligible().unwrap_or(now);
        if was_empty {
            state.scheduler.backlogged(slot, eligible, now);
        } else {
            state.scheduler.set_eligible(slot, eligible, now);
        }

        // It may be next of all: then it need not wait for the work, unless that is about to submit
        // others of its direction.
        let is_mine = |release: &Release| {
            is_first && release.slot == slot && release.choice.direction == direction
        };
        let is_early = match group.next(&mut state, now) {
            Step::Nothing => false,
            Step::Wait(until) => state.is_early(until),
            Step::Release(release) if is_mine(&release) => {
                if let Some(bio) = group.take(&mut state, release, now) {
                    member.is_taken_out(&bio);
                    member.ceases_to_wait(direction);
                    let (bio, held) = bio.release();
                    return self.pass(bio, direction, charge, held.is_counted);
                }
                // Another CPU took the room. The work says that somebody waits for it.
                true
            }
            Step::Release(..) => state.is_early(now),
        };
        drop(state);
        if is_early {
            self.group.kick();
        }
        Map::Submitted
    }

    /// Changes the limits and what is promised, for what waits already as well. Process context.
    pub(crate) fn apply(&self, settings: &Settings) {
        self.group.set_member(&self.member, settings);
    }

    /// Changes what the members of the group share. Process context.
    pub(crate) fn set_capacity(&self, capacity: &Capacity, burst_ms: u64) {
        self.group.set_capacity(capacity, burst_ms);
    }

    /// The limits go on where those of another table of the device are. No bio may be in flight, nor
    /// come. Process context.
    pub(crate) fn go_on_from(&self, other: &Seat) {
        self.member.go_on_from(&other.member, self.group.now());
    }

    /// Sets whether limits and capacity apply. What waits is let go when they cease to. Process context.
    pub(crate) fn set_mode(&self, mode: Mode) {
        self.group.set_mode(&self.member, mode);
    }

    /// Leaves the group. No bio may be in flight, nor come. [`Self::end`] is to follow.
    pub(crate) fn leave(&self) {
        self.group.remove(&self.member);
    }

    /// Waits for what was left behind: of the member, and of its group if that has none any more.
    /// Process context.
    pub(crate) fn end(&self, group_is_empty: bool) {
        if group_is_empty {
            self.group.end();
        }
        self.member.end();
    }

    /// The device, to read its counters.
    pub(crate) fn member(&self) -> &Member {
        &self.member
    }

    /// How long it takes until what passed is paid for that an I/O in this direction waits for, in
    /// microseconds.
    pub(crate) fn debt_us(&self, direction: Direction) -> u64 {
        self.member.debt(direction, self.group.now()) / TICKS_PER_US
    }

    /// How long those waited in a direction that do not any more.
    pub(crate) fn times<R>(&self, direction: Direction, look: impl FnOnce(&Histogram) -> R) -> R
    where
        R: Default,
    {
        match self.group.state().lock().entry(self.member.slot()) {
            Some(entry) => look(&entry.queue.times[direction as usize]),
            None => R::default(),
        }
    }

    /// Whether the reservation was met since the last reset.
    pub(crate) fn windows(&self) -> Windows {
        let mut state = self.group.state().lock();
        let now = self.group.now();
        state.scheduler.windows(self.member.slot(), now)
    }

    /// Forgets what happened so far.
    pub(crate) fn reset(&self) {
        self.member.traffic.reset();
        let mut state = self.group.state().lock();
        let now = self.group.now();
        let slot = self.member.slot();
        state.scheduler.reset_windows(slot, now);
        if let Some(entry) = state.entry(slot) {
            entry.queue.times.iter_mut().for_each(|times| times.clear());
        }
    }
}
