// SPDX-License-Identifier: GPL-2.0
// Module: balloon
// Refused: E0382

//! A buffer that is lent to the device is not touched until it comes back.

use ferrule::virtio::{Buffer, Direction, VirtQueue};
use kernel::prelude::*;

pub struct Message([u8; 8]);

impl Buffer for Message {
    const DIRECTION: Direction = Direction::FromDevice;

    fn bytes(&mut self) -> &mut [u8] {
        &mut self.0
    }
}

pub fn send(queue: &VirtQueue<Message>, message: KBox<Message>) -> Result<u8> {
    #[cfg(not(bad))]
    let first = message.0[0];
    queue.add(message)?;
    #[cfg(bad)]
    let first = message.0[0];
    Ok(first)
}
