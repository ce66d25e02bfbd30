// SPDX-License-Identifier: GPL-2.0
// Module: dm-qos
// Refused: E0277

//! The data of work are used by whoever enqueues it, too.

use ferrule::work::{OwnedWork, Run};

#[cfg(bad)]
pub struct Data(core::cell::Cell<u32>);
#[cfg(not(bad))]
pub struct Data(u32);

impl Run for Data {
    fn run(_: &OwnedWork<Self>) {}
}
