// SPDX-License-Identifier: GPL-2.0

//! What decides: plain code over integers, without a kernel type but the atomic integer of `cell.rs`, of
//! which the host tests (`selftests/unit`) bring their own. Nothing else of the selector is compiled
//! for the host.

use super::cell;

pub(crate) mod in_flight;
pub(crate) mod latency;
pub(crate) mod rotation;
