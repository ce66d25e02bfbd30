// SPDX-License-Identifier: GPL-2.0
// Module: balloon
// Refused: E0308

//! What came out of a balloon goes into it again by the allocator only.

#[cfg(not(bad))]
use ferrule::mm::balloon::Allocated as State;
#[cfg(bad)]
use ferrule::mm::balloon::Deflated as State;
use ferrule::mm::balloon::{Balloon, Migrate, Pages};

pub fn enqueue<M: Migrate>(balloon: &Balloon<M>, pages: &mut Pages<State>) {
    balloon.enqueue(pages);
}
