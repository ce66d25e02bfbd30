// SPDX-License-Identifier: GPL-2.0

//! What decides: plain code over integers and bytes, without a kernel type. Nothing else of the driver is
//! compiled for the host, where it is tested (`selftests/unit`).

pub(crate) mod message;
pub(crate) mod plan;
