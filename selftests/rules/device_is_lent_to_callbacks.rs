// SPDX-License-Identifier: GPL-2.0
// Module: balloon
// Refused: E0599

//! Queues are found in a callback of the driver, not by whoever keeps the device.

use ferrule::virtio::{Device, QueueInfo, Queues};
#[cfg(not(bad))]
use kernel::device::Core as Context;
#[cfg(bad)]
use kernel::device::Normal;
use kernel::prelude::*;

#[cfg(bad)]
type Context<'a> = Normal;

pub fn find(dev: &Device<Context<'_>>) -> Result<Queues> {
    dev.find_vqs([None::<QueueInfo>])
}
