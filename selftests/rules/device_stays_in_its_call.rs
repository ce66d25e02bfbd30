// SPDX-License-Identifier: GPL-2.0
// Module: dm-qos
// Refused: E0521

//! A device that a target opened is lent for one call.

use ferrule::device_mapper::{Mapping, TargetRef};

pub fn keep(_: impl Sized + 'static) {}

pub fn status(ti: TargetRef<'_>, mapping: Mapping) {
    #[cfg(bad)]
    keep(ti.device(mapping));
    #[cfg(not(bad))]
    keep(ti.device(mapping).sectors());
    keep(mapping);
}
