// SPDX-License-Identifier: GPL-2.0

//! Memory management.

pub mod balloon;
pub mod blocks;
pub mod hotplug;
pub mod oom;
pub mod reporting;
pub mod shrinker;
pub mod vmstat;
