// SPDX-License-Identifier: GPL-2.0

//! Device mapper: targets and path selectors.
//!
//! A *mapped device* is made of a *table*, each line of which hands a range of sectors to a
//! *target*. A target is made from the words of its line, gets every bio that falls into its range,
//! and directs it to a device of its own choice. This module lets a driver implement one in safe
//! Rust; [`path_selector`] does the same for the policy that picks a path in a multipath device.
//!
//! C headers: [`include/linux/device-mapper.h`](srctree/include/linux/device-mapper.h),
//! `drivers/md/dm-path-selector.h`.

#[cfg(feature = "path_selector")]
pub mod path_selector;

pub mod args;
pub mod keys;
pub mod status;

#[cfg(feature = "device_mapper")]
mod target;
#[cfg(feature = "device_mapper")]
pub use target::*;
