// SPDX-License-Identifier: GPL-2.0
// Module: dm-qos
// Refused: lifetime may not live long enough

//! A target maps the bios of its own calls only.

use ferrule::{
    bio::{IncomingBio, MappedBio},
    device_mapper::{Mapping, TargetRef},
};

#[cfg(bad)]
pub fn remap<'a, 'b>(ti: TargetRef<'a>, bio: IncomingBio<'b>, mapping: Mapping) -> MappedBio {
    ti.remap(bio, mapping)
}

#[cfg(not(bad))]
pub fn remap<'a>(ti: TargetRef<'a>, bio: IncomingBio<'a>, mapping: Mapping) -> MappedBio {
    ti.remap(bio, mapping)
}
