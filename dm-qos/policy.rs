// SPDX-License-Identifier: GPL-2.0

//! What decides: plain code over integers, without a lock, an allocation or a kernel type.
//!
//! It stands on two types that the kernel (`atomic.rs`, `store.rs`) and the host tests
//! (`selftests/unit`) each bring: an atomic integer, and memory. Nothing else of dm-qos is compiled
//! for the host.

use super::{
    atomic,
    keys,
    store,
    Direction, //
};

pub(crate) mod coarse;
pub(crate) mod gcra;
pub(crate) mod heap;
pub(crate) mod histogram;
pub(crate) mod limits;
pub(crate) mod mclock;
pub(crate) mod room;
pub(crate) mod settings;
pub(crate) mod turns;
pub(crate) mod waiting;
