// SPDX-License-Identifier: GPL-2.0

//! `round-robin-rs`: round-robin path selector for multipath, without a lock in the I/O path.
//!
//! See `Documentation/mpath-sel.rst`.

#[deny(unsafe_code)]
mod cell;
#[deny(unsafe_code)]
mod policy;
#[deny(unsafe_code)]
mod round_robin;
#[cfg(CONFIG_KUNIT = "y")]
mod tests;

ferrule::module_path_selector! {
    type: round_robin::RoundRobin,
    name: "dm-round-robin-rs",
    authors: ["Ferrule contributors"],
    description: "Round-robin multipath path selector in Rust",
    license: "GPL",
}
