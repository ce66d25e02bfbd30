// SPDX-License-Identifier: GPL-2.0
// Module: dm-qos
// Refused: lifetime may not live long enough

//! A bio is directed to a device of the target that it came to.

use ferrule::{
    bio::{IncomingBio, MappedBio},
    device_mapper::Device,
};

#[cfg(bad)]
pub fn remap<'a, 'b>(bio: IncomingBio<'a>, device: Device<'b>) -> MappedBio {
    bio.remap(device, 0)
}

#[cfg(not(bad))]
pub fn remap<'a>(bio: IncomingBio<'a>, device: Device<'a>) -> MappedBio {
    bio.remap(device, 0)
}
