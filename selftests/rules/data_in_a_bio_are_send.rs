// SPDX-License-Identifier: GPL-2.0
// Module: dm-qos
// Refused: E0277

//! What is kept in a held bio goes with it to any thread.

use ferrule::bio::HeldBio;

#[cfg(bad)]
type Data = *mut u8;
#[cfg(not(bad))]
type Data = usize;

fn send(_: impl Send) {}

pub fn hand_over(bio: HeldBio<Data>) {
    send(bio);
}
