// SPDX-License-Identifier: GPL-2.0
// Module: dm-qos
// Refused: E0603

//! Drivers do not call C.

#[cfg(bad)]
pub use ferrule::bindings::dm_put_device;
#[cfg(not(bad))]
pub use ferrule::device_mapper::Device;
