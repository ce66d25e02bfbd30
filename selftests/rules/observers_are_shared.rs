// SPDX-License-Identifier: GPL-2.0
// Module: dm-qos
// Refused: E0277

//! Who is told when a bio ends is told on any CPU.

use ferrule::bio::Observer;
use kernel::sync::ArcBorrow;

#[cfg(bad)]
pub struct Count(core::cell::Cell<u32>);
#[cfg(not(bad))]
pub struct Count(kernel::sync::atomic::Atomic<u32>);

impl Observer for Count {
    fn bio_ended(_: ArcBorrow<'_, Self>) {}
}
