// SPDX-License-Identifier: GPL-2.0
// Module: balloon
// Refused: E0308

//! A field of the configuration space is read as what it is.

use ferrule::virtio::{BalloonConfig, Config};
use kernel::prelude::*;

#[cfg(bad)]
type Actual = u64;
#[cfg(not(bad))]
type Actual = u32;

pub fn read(config: &Config<BalloonConfig>) -> Result<Actual> {
    config.read::<Actual>(BalloonConfig::ACTUAL)
}
