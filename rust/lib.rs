// SPDX-License-Identifier: GPL-2.0

//! `ferrule`: safe abstractions for device mapper, bios, multipath path selectors, virtio and
//! memory balloons, on top of the `kernel` crate.
//!
//! Everything in Ferrule that touches C is here; the drivers are safe Rust. The crate knows none
//! of them. A module names the parts that it uses (`ferrule-features` in its Kbuild file), so that
//! it depends on no C subsystem but its own. It is declared by one of the macros of [`module`], and not
//! by `module!` alone.

// Which parts exist depends on the module.
#![allow(dead_code, unexpected_cfgs)]

pub mod atomic;
pub(crate) mod bindings;

#[cfg(feature = "device_mapper")]
pub mod bio;
pub mod compat;
#[cfg(any(feature = "device_mapper", feature = "path_selector"))]
pub mod device_mapper;
pub mod memalloc;
#[cfg(feature = "balloon")]
pub mod mm;
pub mod module;
#[cfg(any(feature = "balloon", feature = "power"))]
pub mod notifier;
pub mod numa;
pub mod percpu;
#[cfg(feature = "power")]
pub mod power;
pub mod time;
#[cfg(feature = "virtio")]
pub mod virtio;
pub mod work;
pub mod workqueue;

/// Prefix of the messages that this crate logs.
const __LOG_PREFIX: &[u8] = b"ferrule\0";
