// SPDX-License-Identifier: GPL-2.0

//! The bios of one device that wait, and which of them is next.
//!
//! There is a line for each direction; the two take turns. In a line, those on whose account bios are
//! take turns (`policy/turns.rs`): bios of one cgroup do not wait behind all those of another. What is
//! urgent stands in front (`policy/limits.rs` says how far that goes).

use super::{
    policy::{
        histogram::Histogram,
        limits::{
            next,
            Charge,
            Choice,
            Limits,
            Next,
            Waiting, //
        },
        turns::{
            Turns,
            FLOWS, //
        }, //
    },
    Direction, //
};
use ferrule::bio::{
    BioList,
    HeldBio, //
};
use kernel::prelude::*;

/// What is kept in a bio that waits.
#[derive(Clone, Copy)]
pub(crate) struct Held {
    /// When it came, in ticks.
    pub(crate) since: u64,
    /// What it is charged.
    pub(crate) charge: Charge,
    /// Others wait for whoever waits for it.
    pub(crate) is_urgent: bool,
    /// It leaves as one of those in flight that the group counts.
    pub(crate) is_counted: bool,
}

/// The limits by which a device's bios leave.
#[derive(Clone, Copy)]
pub(crate) struct Allowed<'a> {
    /// Those of the device.
    pub(crate) limits: &'a Limits,
    /// How far what is urgent may run ahead of those.
    pub(crate) ahead: &'a Limits,
}

/// See the module's description.
pub(crate) struct Queue {
    lines: [Line; 2],
    /// Whose turn it was last.
    last: Direction,
    /// How long those that were released had waited, in microseconds.
    pub(crate) times: [KBox<Histogram>; 2],
    /// The order of writes matters: they stand in one flow, whoever submitted them.
    orders_writes: bool,
}

struct Line {
    urgent: BioList<Held>,
    flows: KVec<BioList<Held>>,
    turns: Turns,
}

impl Line {
    fn new() -> Result<Self> {
        let mut flows = KVec::with_capacity(FLOWS, GFP_KERNEL)?;
        for _ in 0..FLOWS {
            flows.push(BioList::new(), GFP_KERNEL)?;
        }
        Ok(Self {
            urgent: BioList::new(),
            flows,
            turns: Turns::new(),
        })
    }

    fn front(&self, is_urgent: bool) -> Option<&HeldBio<Held>> {
        if is_urgent {
            return self.urgent.front();
        }
        self.flows[self.turns.first()?].front()
    }

    fn is_empty(&self) -> bool {
        self.urgent.is_empty() && self.turns.first().is_none()
    }

    fn push(&mut self, flow: usize, bio: HeldBio<Held>) -> bool {
        if bio.data().is_urgent {
            let is_next = self.urgent.is_empty();
            self.urgent.push_back(bio);
            return is_next;
        }
        let is_next = self.turns.first().is_none();
        let bios = &mut self.flows[flow];
        if bios.is_empty() {
            self.turns.join(flow);
        }
        bios.push_back(bio);
        is_next
    }

    fn pop(&mut self, is_urgent: bool) -> Option<HeldBio<Held>> {
        if is_urgent {
            return self.urgent.pop_front();
        }
        let bios = &mut self.flows[self.turns.first()?];
        let bio = bios.pop_front();
        let remains = !bios.is_empty();
        self.turns.take(remains);
        bio
    }

    /// When the first of it may leave, in this direction.
    fn waiting(&self, direction: Direction, by: Allowed<'_>) -> Waiting {
        let first = |is_urgent| Some(self.front(is_urgent)?.data().charge);
        Waiting {
            ordinary: first(false).map(|charge| by.limits.eligible(direction, charge)),
            urgent: first(true).map(|charge| {
                (
                    by.limits.eligible(direction, charge),
                    by.ahead.eligible(direction, charge),
                )
            }),
        }
    }
}

impl Queue {
    /// An empty one. Process context.
    pub(crate) fn new(orders_writes: bool) -> Result<Self> {
        Ok(Self {
            lines: [Line::new()?, Line::new()?],
            last: Direction::Write,
            times: [
                KBox::new(Histogram::new(), GFP_KERNEL)?,
                KBox::new(Histogram::new(), GFP_KERNEL)?,
            ],
            orders_writes,
        })
    }

    /// Does nothing wait?
    pub(crate) fn is_empty(&self) -> bool {
        self.lines.iter().all(Line::is_empty)
    }

    /// Appends a bio. Is it the next of its direction and kind?
    pub(crate) fn push(&mut self, bio: HeldBio<Held>) -> bool {
        let direction = bio.direction();
        let flow = match direction {
            Direction::Write if self.orders_writes => 0,
            _ => bio.submitter() as usize % FLOWS,
        };
        self.lines[direction as usize].push(flow, bio)
    }

    /// What a bio that was chosen is charged.
    pub(crate) fn charge(&self, choice: Choice) -> Option<Charge> {
        let bio = self.lines[choice.direction as usize].front(choice.is_urgent)?;
        Some(bio.data().charge)
    }

    /// Which bio is next, as far as these limits go.
    pub(crate) fn next(&self, by: Allowed<'_>, now: u64) -> Next {
        let [reads, writes] = &self.lines;
        let waiting = [
            reads.waiting(Direction::Read, by),
            writes.waiting(Direction::Write, by),
        ];
        next(waiting, self.last, now)
    }

    /// When the first one may leave, as far as these limits go.
    pub(crate) fn eligible(&self, by: Allowed<'_>) -> Option<u64> {
        match self.next(by, 0) {
            Next::Nothing => None,
            Next::Release(..) => Some(0),
            Next::Wait(until) => Some(until),
        }
    }

    /// Takes out the bio that was chosen.
    pub(crate) fn pop(&mut self, choice: Choice) -> Option<HeldBio<Held>> {
        self.last = choice.direction;
        self.lines[choice.direction as usize].pop(choice.is_urgent)
    }

    /// Takes a bio out, whichever.
    pub(crate) fn pop_any(&mut self) -> Option<HeldBio<Held>> {
        let mut lines = self.lines.iter_mut();
        lines.find_map(|line| line.pop(true).or_else(|| line.pop(false)))
    }

    /// Takes a bio out that is the first of its line and whose disk is gone.
    pub(crate) fn pop_dead(&mut self) -> Option<HeldBio<Held>> {
        self.lines.iter_mut().find_map(|line| {
            let is_dead = |is_urgent: &bool| {
                line.front(*is_urgent)
                    .is_some_and(|bio| bio.device_is_dead())
            };
            let is_urgent = [true, false].into_iter().find(is_dead)?;
            line.pop(is_urgent)
        })
    }

    /// A bio that was taken out leaves, at this time, in ticks.
    pub(crate) fn leaves(&mut self, bio: &HeldBio<Held>, now: u64) {
        let waited = now.saturating_sub(bio.data().since) / super::policy::gcra::TICKS_PER_US;
        self.times[bio.direction() as usize].record(waited);
    }
}
