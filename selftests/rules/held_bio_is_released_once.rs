// SPDX-License-Identifier: GPL-2.0
// Module: dm-qos
// Refused: E0382

//! A held bio is let go once.

use ferrule::bio::HeldBio;

pub fn release(bio: HeldBio<u64>) {
    let (first, _) = bio.release();
    first.submit();
    #[cfg(bad)]
    bio.release().0.submit();
}
