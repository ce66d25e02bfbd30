// SPDX-License-Identifier: GPL-2.0

//! What goes through the queues. Plain bytes: also compiled and tested on the host
//! (`selftests/unit`).

use super::plan::BATCH_UNITS;

/// A message of at most `SIZE` bytes.
pub(crate) struct Message<const SIZE: usize> {
    bytes: [u8; SIZE],
    len: usize,
}

/// Page frame numbers of units: `__virtio32` each.
pub(crate) type Pfns = Message<{ BATCH_UNITS * 4 }>;

/// Statistics: `struct virtio_balloon_stat` each.
pub(crate) type Stats = Message<{ STATS * STAT_SIZE }>;

/// How many kinds of statistics there are (`VIRTIO_BALLOON_S_NR`).
pub(crate) const STATS: usize = 16;

/// A tag of 16 bits and a value of 64, without a gap.
pub(crate) const STAT_SIZE: usize = 10;

impl<const SIZE: usize> Message<SIZE> {
    /// An empty message.
    pub(crate) const fn new() -> Self {
        Self {
            bytes: [0; SIZE],
            len: 0,
        }
    }

    /// Empties it.
    pub(crate) fn clear(&mut self) {
        self.len = 0;
    }

    /// Adds a part, if there is room for all of it.
    #[must_use]
    pub(crate) fn push<const PART: usize>(&mut self, part: [u8; PART]) -> bool {
        let Some(free) = self.bytes[self.len..].first_chunk_mut() else {
            return false;
        };
        *free = part;
        self.len += PART;
        true
    }

    /// What was added since it was empty.
    pub(crate) fn bytes(&mut self) -> &mut [u8] {
        &mut self.bytes[..self.len]
    }
}

/// The tags of statistics (`VIRTIO_BALLOON_S_*`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u16)]
#[allow(missing_docs)]
pub(crate) enum Tag {
    SwapIn = 0,
    SwapOut = 1,
    MajorFaults = 2,
    MinorFaults = 3,
    FreeMemory = 4,
    TotalMemory = 5,
    AvailableMemory = 6,
    DiskCaches = 7,
    HugetlbAllocations = 8,
    HugetlbFailures = 9,
    OomKills = 10,
    AllocStalls = 11,
    AsyncScans = 12,
    DirectScans = 13,
    AsyncReclaims = 14,
    DirectReclaims = 15,
}
