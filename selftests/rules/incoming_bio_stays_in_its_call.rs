// SPDX-License-Identifier: GPL-2.0
// Module: dm-qos
// Refused: E0521

//! A bio that is not directed to a device yet cannot be kept; one that is can.

use ferrule::{bio::IncomingBio, device_mapper::Device};

pub fn keep(_: impl Send + 'static) {}

pub fn map<'a>(bio: IncomingBio<'a, u64>, device: Device<'a>) {
    #[cfg(bad)]
    keep(bio);
    #[cfg(not(bad))]
    keep(bio.remap(device, 0).hold(1));
    device.sectors();
}
