// SPDX-License-Identifier: GPL-2.0

//! What `balloon/store.rs` is in the kernel, on the `primitives` of whoever includes it.

use super::primitives::{
    fence, AtomicBool,
    Ordering::{Relaxed, SeqCst},
};

pub(crate) struct List<T> {
    items: Vec<T>,
    room: usize,
}

impl<T> List<T> {
    pub(crate) const fn new() -> Self {
        Self {
            items: Vec::new(),
            room: 0,
        }
    }

    pub(crate) fn with_capacity(room: usize) -> Self {
        Self {
            items: Vec::with_capacity(room),
            room,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.items.len()
    }

    pub(crate) fn push(&mut self, item: T) -> Option<T> {
        if self.items.len() == self.room {
            return Some(item);
        }
        self.items.push(item);
        None
    }

    pub(crate) fn pop(&mut self) -> Option<T> {
        self.items.pop()
    }
}

pub(crate) struct Flag(AtomicBool);

impl Flag {
    pub(crate) fn new() -> Self {
        Self(AtomicBool::new(false))
    }

    pub(crate) fn set(&self) {
        // A store in the kernel. Loom would have it come between what an exchange reads and what that
        // writes.
        self.0.swap(true, Relaxed);
    }

    pub(crate) fn is_set(&self) -> bool {
        self.0.load(Relaxed)
    }

    pub(crate) fn take(&self) -> bool {
        fence(SeqCst);
        let was = self.0.swap(false, Relaxed);
        fence(SeqCst);
        was
    }
}
