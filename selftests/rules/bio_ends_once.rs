// SPDX-License-Identifier: GPL-2.0
// Module: dm-qos
// Refused: E0382

//! A bio is ended, submitted or given back once.

use ferrule::{
    bio::{IncomingBio, Status},
    device_mapper::Map,
};

pub fn map(bio: IncomingBio<'_>) -> Map<'_, ()> {
    #[cfg(bad)]
    bio.end(Status::OK);
    #[cfg(not(bad))]
    let _ = Status::OK;
    Map::Kill(bio)
}
