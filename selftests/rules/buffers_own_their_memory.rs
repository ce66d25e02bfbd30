// SPDX-License-Identifier: GPL-2.0
// Module: balloon
// Refused: E0478, E0495, E0803

//! A buffer may stay with the device for ever, so it borrows nothing.

use ferrule::virtio::{Buffer, Direction};
use kernel::prelude::*;

#[cfg(bad)]
pub struct Message<'a>(&'a mut [u8]);
#[cfg(not(bad))]
pub struct Message(KVec<u8>);

#[cfg(bad)]
impl Buffer for Message<'_> {
    const DIRECTION: Direction = Direction::FromDevice;

    fn bytes(&mut self) -> &mut [u8] {
        self.0
    }
}

#[cfg(not(bad))]
impl Buffer for Message {
    const DIRECTION: Direction = Direction::FromDevice;

    fn bytes(&mut self) -> &mut [u8] {
        &mut self.0
    }
}
