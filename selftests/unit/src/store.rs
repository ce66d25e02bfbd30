// SPDX-License-Identifier: GPL-2.0

//! What `dm-qos/store.rs` is in the kernel.

use std::ops::{Deref, DerefMut};

pub(crate) struct Array<T>(Vec<T>);

impl<T> Array<T> {
    pub(crate) const fn new() -> Self {
        Self(Vec::new())
    }
}

impl<T: Copy> Array<T> {
    pub(crate) fn filled(value: T, len: usize) -> Option<Self> {
        Some(Self(vec![value; len]))
    }
}

impl<T> Deref for Array<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.0
    }
}

impl<T> DerefMut for Array<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.0
    }
}
