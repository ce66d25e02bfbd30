// SPDX-License-Identifier: GPL-2.0

//! The bios of one device that wait, and which of them is next.
//!
//! There is a line for each direction; the two take turns. In a line, those who submitted take turns
//! (`turns.rs`): bios of one cgroup do not wait behind all those of another.

use super::{
    group::Held,
    histogram::Histogram,
    limits::{
        next,
        Charge,
        Limits,
        Next, //
    },
    turns::{
        Turns,
        FLOWS, //
    },
    Direction, //
};
use ferrule::bio::{
    BioList,
    HeldBio, //
};
use kernel::prelude::*;

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
            flows,
            turns: Turns::new(),
        })
    }

    fn front(&self) -> Option<&HeldBio<Held>> {
        self.flows[self.turns.first()?].front()
    }

    fn push(&mut self, flow: usize, bio: HeldBio<Held>) -> bool {
        let is_next = self.turns.first().is_none();
        let bios = &mut self.flows[flow];
        if bios.is_empty() {
            self.turns.join(flow);
        }
        bios.push_back(bio);
        is_next
    }

    fn pop(&mut self) -> Option<HeldBio<Held>> {
        let bios = &mut self.flows[self.turns.first()?];
        let bio = bios.pop_front();
        let remains = !bios.is_empty();
        self.turns.take(remains);
        bio
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
        self.lines.iter().all(|line| line.turns.first().is_none())
    }

    /// Appends a bio. Is it the next of its direction?
    pub(crate) fn push(&mut self, direction: Direction, bio: HeldBio<Held>) -> bool {
        let flow = match direction {
            Direction::Write if self.orders_writes => 0,
            _ => bio.cgroup() as usize % FLOWS,
        };
        self.lines[direction as usize].push(flow, bio)
    }

    /// What the first bio of a direction is charged.
    pub(crate) fn first(&self, direction: Direction) -> Option<Charge> {
        Some(self.lines[direction as usize].front()?.data().charge)
    }

    /// Is the disk gone to which they would go?
    pub(crate) fn device_is_dead(&self) -> bool {
        self.lines
            .iter()
            .find_map(Line::front)
            .is_some_and(|bio| bio.device_is_dead())
    }

    /// Which bio is next, as far as these limits go.
    pub(crate) fn next(&self, limits: &Limits, now: u64) -> Next {
        let eligible = [Direction::Read, Direction::Write]
            .map(|direction| Some(limits.eligible(direction, self.first(direction)?)));
        next(eligible, self.last, now)
    }

    /// When the first one may leave, as far as these limits go.
    pub(crate) fn eligible(&self, limits: &Limits) -> Option<u64> {
        match self.next(limits, 0) {
            Next::Nothing => None,
            Next::Release(..) => Some(0),
            Next::Wait(until) => Some(until),
        }
    }

    /// Takes the first bio of a direction out.
    pub(crate) fn pop(&mut self, direction: Direction) -> Option<HeldBio<Held>> {
        self.last = direction;
        self.lines[direction as usize].pop()
    }
}
