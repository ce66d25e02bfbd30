// SPDX-License-Identifier: GPL-2.0

//! The memory that the decision code stands on. `selftests/unit` has another one of the same shape.

use core::ops::{
    Deref,
    DerefMut, //
};
use kernel::prelude::*;

/// A slice on the heap, which may be large. Neither allocated nor dropped under a spinlock.
pub(crate) struct Array<T>(KVVec<T>);

impl<T> Array<T> {
    /// None at all.
    pub(crate) const fn new() -> Self {
        Self(KVVec::new())
    }
}

impl<T: Copy> Array<T> {
    /// `len` times the same. Nothing when memory is short. May sleep.
    pub(crate) fn filled(value: T, len: usize) -> Option<Self> {
        KVVec::from_elem(value, len, GFP_KERNEL).ok().map(Self)
    }
}

impl<T> Deref for Array<T> {
    type Target = [T];

    #[inline]
    fn deref(&self) -> &[T] {
        &self.0
    }
}

impl<T> DerefMut for Array<T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.0
    }
}
