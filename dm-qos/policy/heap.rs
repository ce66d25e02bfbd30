// SPDX-License-Identifier: GPL-2.0

//! A binary heap of slots by a key, from which any slot can be taken and whose keys can change.
//!
//! A slot is a number below the heap's room, and is in the heap once or not at all. Each slot's
//! place is kept, so that all is O(log n). Of equal keys, the lower slot is first. Nothing
//! allocates, except for [`Heap::with_room`], and no slot, however wrong, makes anything panic.
//!
//! Nothing here but integers: tested on the host (`selftests/unit`).

use super::store::Array;

/// The place of a slot that is not in the heap.
const ABSENT: u32 = u32::MAX;

/// Ordered by key, then by slot.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Entry {
    key: u64,
    slot: u32,
}

/// See the module's description.
///
/// # Invariants
///
/// No entry is less than the one at half its place, `(place - 1) / 2`. `places[slot]` is where the
/// entry of `slot` is among the first `len`, or [`ABSENT`].
pub(crate) struct Heap {
    entries: Array<Entry>,
    places: Array<u32>,
    len: usize,
}

impl Heap {
    /// One that has room for no slot.
    pub(crate) const fn new() -> Self {
        Self {
            entries: Array::new(),
            places: Array::new(),
            len: 0,
        }
    }

    /// An empty one for the slots below `room`. Nothing when memory is short. May sleep.
    pub(crate) fn with_room(room: u32) -> Option<Self> {
        Some(Self {
            entries: Array::filled(Entry { key: 0, slot: 0 }, room as usize)?,
            places: Array::filled(ABSENT, room as usize)?,
            len: 0,
        })
    }

    /// Takes over what is in `other`, which has no more room than this one. What was in this one is
    /// forgotten.
    pub(crate) fn copy_from(&mut self, other: &Self) {
        for (to, from) in self.entries.iter_mut().zip(other.entries.iter()) {
            *to = *from;
        }
        self.places.fill(ABSENT);
        for (to, from) in self.places.iter_mut().zip(other.places.iter()) {
            *to = *from;
        }
        self.len = other.len;
    }

    /// Is no slot in it?
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Is this slot in it?
    #[inline]
    pub(crate) fn contains(&self, slot: u32) -> bool {
        self.place(slot).is_some()
    }

    /// The least key, and whose it is.
    #[inline]
    pub(crate) fn first(&self) -> Option<(u64, u32)> {
        self.entry(0).map(|first| (first.key, first.slot))
    }

    /// Takes out the first slot if its key is not above `limit`.
    pub(crate) fn pop_until(&mut self, limit: u64) -> Option<u32> {
        let (key, slot) = self.first()?;
        if key > limit {
            return None;
        }
        self.remove(slot);
        Some(slot)
    }

    /// Puts a slot in, or changes its key. One that there is no room for is ignored.
    pub(crate) fn set(&mut self, slot: u32, key: u64) {
        let entry = Entry { key, slot };
        let place = match self.place(slot) {
            Some(place) => place,
            None if (slot as usize) < self.places.len() && self.len < self.entries.len() => {
                self.len += 1;
                self.len - 1
            }
            None => return,
        };
        self.settle(place, entry);
    }

    /// Takes a slot out, if it is in.
    pub(crate) fn remove(&mut self, slot: u32) {
        let Some(place) = self.place(slot) else {
            return;
        };
        let last = self.entry(self.len - 1);
        self.len -= 1;
        if let Some(place) = self.places.get_mut(slot as usize) {
            *place = ABSENT;
        }
        // The last one takes its place.
        if let Some(last) = last.filter(|last| last.slot != slot) {
            self.settle(place, last);
        }
    }

    #[inline]
    fn place(&self, slot: u32) -> Option<usize> {
        match self.places.get(slot as usize) {
            None | Some(&ABSENT) => None,
            Some(&place) => Some(place as usize),
        }
    }

    #[inline]
    fn entry(&self, place: usize) -> Option<Entry> {
        self.entries[..self.len.min(self.entries.len())]
            .get(place)
            .copied()
    }

    #[inline]
    fn put(&mut self, place: usize, entry: Entry) {
        if let Some(at) = self.entries.get_mut(place) {
            *at = entry;
        }
        if let Some(at) = self.places.get_mut(entry.slot as usize) {
            *at = place as u32;
        }
    }

    /// Puts `entry` where it belongs, above or below `place`, which is free.
    fn settle(&mut self, mut place: usize, entry: Entry) {
        while let Some(above) = place.checked_sub(1).map(|place| place / 2) {
            match self.entry(above) {
                Some(parent) if parent > entry => self.put(place, parent),
                _ => break,
            }
            place = above;
        }
        loop {
            let below = 2 * place + 1;
            let (child, at) = match (self.entry(below), self.entry(below + 1)) {
                (Some(left), Some(right)) if right < left => (right, below + 1),
                (Some(left), _) => (left, below),
                (None, _) => break,
            };
            if child >= entry {
                break;
            }
            self.put(place, child);
            place = at;
        }
        self.put(place, entry);
    }
}
