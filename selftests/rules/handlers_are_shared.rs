// SPDX-License-Identifier: GPL-2.0
// Module: balloon
// Refused: E0277

//! The interrupt of a queue may come on any CPU.

use ferrule::virtio::Handler;

#[cfg(bad)]
pub struct Used(core::cell::Cell<u32>);
#[cfg(not(bad))]
pub struct Used(u32);

impl Handler for Used {
    fn used(&self) {}
}
