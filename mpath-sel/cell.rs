// SPDX-License-Identifier: GPL-2.0

//! The one kernel type that `rotation` works on, so that host tests can put another in its place.

use ferrule::atomic::ReadOnce;
use kernel::sync::atomic::{
    Atomic,
    Relaxed, //
};

/// A word that is read and written from several CPUs at once, each access on its own: no order
/// with other memory is needed or given.
pub(crate) struct Cell(Atomic<u32>);

impl Cell {
    /// A cell that holds `value`.
    pub(crate) fn new(value: u32) -> Self {
        Self(Atomic::new(value))
    }

    /// What it holds.
    #[inline]
    pub(crate) fn load(&self) -> u32 {
        self.0.read_once()
    }

    /// Makes it hold `value`.
    #[inline]
    pub(crate) fn store(&self, value: u32) {
        self.0.store(value, Relaxed);
    }
}
