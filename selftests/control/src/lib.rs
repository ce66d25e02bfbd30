// SPDX-License-Identifier: GPL-2.0

pub mod dm;
pub mod fault;
