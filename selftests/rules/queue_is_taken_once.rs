// SPDX-License-Identifier: GPL-2.0
// Module: balloon
// Refused: E0599

//! There is one owner of a queue's buffers.

use ferrule::virtio::{Buffer, Direction, VirtQueue};
use kernel::prelude::*;

pub struct Message([u8; 8]);

impl Buffer for Message {
    const DIRECTION: Direction = Direction::FromDevice;

    fn bytes(&mut self) -> &mut [u8] {
        &mut self.0
    }
}

pub fn copy(queue: VirtQueue<Message>) -> (VirtQueue<Message>, Option<VirtQueue<Message>>) {
    #[cfg(bad)]
    return (queue.clone(), Some(queue));
    #[cfg(not(bad))]
    (queue, None)
}
