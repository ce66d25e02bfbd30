// SPDX-License-Identifier: GPL-2.0

//! Whose turn it is among those who submit I/O in one direction of one device.
//!
//! Who has a deep queue would, first in first out, keep all others waiting behind it. So I/O waits in
//! *flows*, one for each submitter (as far as they go), and flows take turns, I/O by I/O. Within a
//! flow order is kept.
//!
//! Nothing here but integers: tested on the host (`selftests/unit`).

/// How many flows there are. Submitters of higher numbers share those of lower ones.
pub(crate) const FLOWS: usize = 64;

/// The flows in which something waits, in the order of their turns.
pub(crate) struct Turns {
    /// From `first` on, `count` of them, around the end.
    ring: [u8; FLOWS],
    first: u8,
    count: u8,
}

impl Turns {
    /// Nothing waits.
    pub(crate) const fn new() -> Self {
        Self {
            ring: [0; FLOWS],
            first: 0,
            count: 0,
        }
    }

    /// The flow whose turn it is.
    #[inline]
    pub(crate) fn first(&self) -> Option<usize> {
        (self.count != 0).then(|| self.ring[usize::from(self.first) % FLOWS].into())
    }

    /// Something waits in a flow in which nothing did: its turn is after those of all others.
    pub(crate) fn join(&mut self, flow: usize) {
        debug_assert!(usize::from(self.count) < FLOWS);
        let last = (usize::from(self.first) + usize::from(self.count)) % FLOWS;
        self.ring[last] = flow as u8;
        self.count += 1;
    }

    /// The first flow has had its turn. When something `remains` there, its next one is after those
    /// of all others.
    pub(crate) fn take(&mut self, remains: bool) {
        let Some(flow) = self.first() else {
            return;
        };
        self.first = (self.first + 1) % FLOWS as u8;
        self.count -= 1;
        if remains {
            self.join(flow);
        }
    }
}
