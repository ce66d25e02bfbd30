// SPDX-License-Identifier: GPL-2.0
// Module: mpath-sel
// Refused: E0616

//! Only a path that multipath has added is one.

use ferrule::device_mapper::path_selector::{Path, PathSelector};

pub fn next<T: PathSelector>(path: Path<T>) -> Path<T> {
    #[cfg(bad)]
    let _ = path.index;
    path
}
