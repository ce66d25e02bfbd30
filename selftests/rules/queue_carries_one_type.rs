// SPDX-License-Identifier: GPL-2.0
// Module: balloon
// Refused: E0308

//! A queue gives back what it was lent.

use ferrule::virtio::{Buffer, Direction, VirtQueue};
use kernel::prelude::*;

pub struct Message([u8; 8]);

impl Buffer for Message {
    const DIRECTION: Direction = Direction::FromDevice;

    fn bytes(&mut self) -> &mut [u8] {
        &mut self.0
    }
}

pub struct Other(Message);

impl Buffer for Other {
    const DIRECTION: Direction = Direction::ToDevice;

    fn bytes(&mut self) -> &mut [u8] {
        self.0.bytes()
    }
}

#[cfg(bad)]
type Sent = Other;
#[cfg(not(bad))]
type Sent = Message;

pub fn send(queue: &VirtQueue<Message>, message: KBox<Sent>) -> Result {
    Ok(queue.add(message)?)
}
