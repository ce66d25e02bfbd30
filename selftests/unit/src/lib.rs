// SPDX-License-Identifier: GPL-2.0

//! Host tests of the code that decides. Each module here includes the source files of one driver, by
//! their path, and tests them; nothing is copied.

mod balloon;
mod balloon_loom;
mod dm_qos;
mod dm_qos_loom;
mod keys;
mod mclock;
mod mpath_sel;
mod mpath_sel_latency;
mod mpath_sel_loom;
