// SPDX-License-Identifier: GPL-2.0
// Module: dm-qos
// Refused: E0382

//! A bio that was submitted is not touched any more.

use ferrule::bio::MappedBio;

pub fn submit(bio: MappedBio) -> u32 {
    #[cfg(not(bad))]
    let size = bio.size();
    bio.submit();
    #[cfg(bad)]
    let size = bio.size();
    size
}
