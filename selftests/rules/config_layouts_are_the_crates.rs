// SPDX-License-Identifier: GPL-2.0
// Module: balloon
// Refused: E0200

//! What is in a configuration space is not for safe code to say.

use ferrule::virtio::{Config, Layout};

pub struct Mine;

#[cfg(bad)]
impl Layout for Mine {
    const DEVICE: u32 = 5;
}

pub fn keep<L: Layout>(config: &Config<L>) -> Config<L> {
    config.clone()
}
