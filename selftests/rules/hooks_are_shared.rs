// SPDX-License-Identifier: GPL-2.0
// Module: balloon
// Refused: E0277

//! Memory management calls a shrinker on any CPU.

use ferrule::mm::shrinker::Shrink;

#[cfg(bad)]
pub struct Cache(core::cell::Cell<usize>);
#[cfg(not(bad))]
pub struct Cache(usize);

impl Shrink for Cache {
    fn count(&self) -> usize {
        0
    }

    fn scan(&self, _: usize) -> Option<usize> {
        None
    }
}
