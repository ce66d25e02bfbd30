// SPDX-License-Identifier: GPL-2.0
// Module: balloon
// Refused: E0451

//! The configuration space has the fields that C has.

use ferrule::virtio::{BalloonConfig, Config, Field};
use kernel::prelude::*;

pub fn read(config: &Config<BalloonConfig>) -> Result<u32> {
    #[cfg(bad)]
    let field = Field {
        offset: 4096,
        ..BalloonConfig::ACTUAL
    };
    #[cfg(not(bad))]
    let field: Field<BalloonConfig, u32> = BalloonConfig::ACTUAL;
    config.read(field)
}
