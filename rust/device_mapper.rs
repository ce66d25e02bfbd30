// SPDX-License-Identifier: GPL-2.0

//! stub

#[cfg(feature = "path_selector")]
pub mod path_selector;
