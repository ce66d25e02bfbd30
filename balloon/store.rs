// SPDX-License-Identifier: GPL-2.0

//! What the decision code stands on. `selftests/unit` has types of its own of the same shape.

use kernel::{
    prelude::*,
    sync::atomic::{
        AtomicFlag,
        Full,
        Relaxed, //
    }, //
};

/// A list that has room from the start.
pub(crate) struct List<T>(KVec<T>);

impl<T> List<T> {
    /// Without any room.
    pub(crate) const fn new() -> Self {
        Self(KVec::new())
    }

    /// With room for so many. May sleep.
    pub(crate) fn with_capacity(capacity: usize) -> Result<Self> {
        Ok(Self(KVec::with_capacity(capacity, GFP_KERNEL)?))
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// Puts one in. Returns it when there is no room.
    pub(crate) fn push(&mut self, item: T) -> Option<T> {
        self.0.push_within_capacity(item).err().map(|full| full.0)
    }

    /// Takes one out.
    pub(crate) fn pop(&mut self) -> Option<T> {
        self.0.pop()
    }
}

/// Is set by some and taken by one.
pub(crate) struct Flag(AtomicFlag);

impl Flag {
    /// Not set.
    pub(crate) fn new() -> Self {
        Self(AtomicFlag::new(false))
    }

    /// Sets it. Gives no order: what is called next does.
    pub(crate) fn set(&self) {
        self.0.store(true, Relaxed);
    }

    /// Whether it is set.
    pub(crate) fn is_set(&self) -> bool {
        self.0.load(Relaxed)
    }

    /// Whether it was set; it is not any more. What is read after this is read after it.
    pub(crate) fn take(&self) -> bool {
        self.0.xchg(false, Full)
    }
}
