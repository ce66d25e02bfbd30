// SPDX-License-Identifier: GPL-2.0

//! What decides: plain code over integers and bytes, without a kernel type but those of `store.rs`, of which
//! the host tests (`selftests/unit`) bring their own. Nothing else of the driver is compiled for the host.

use super::store;

pub(crate) mod handover;
pub(crate) mod message;
pub(crate) mod plan;
