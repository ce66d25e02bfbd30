// SPDX-License-Identifier: GPL-2.0

pub mod dm;
pub mod fault;
pub mod kcov;
pub mod program;
pub mod selector;
pub mod watch;
