// SPDX-License-Identifier: GPL-2.0
// Module: dm-qos
// Refused: E0382

//! A held bio is in a list, or with whoever took it, but not both.

use ferrule::bio::{BioList, HeldBio};

pub fn push(list: &mut BioList<u64>, bio: HeldBio<u64>) {
    list.push_back(bio);
    #[cfg(bad)]
    drop(bio);
}
