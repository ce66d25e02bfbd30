// SPDX-License-Identifier: GPL-2.0
// Module: mpath-sel
// Refused: lifetime may not live long enough

//! A selector chooses among the paths that it is given.

use ferrule::device_mapper::path_selector::{Path, PathSelector, Paths};

pub fn select<'a, 'b, T: PathSelector>(
    paths: Paths<'a, T>,
    others: Paths<'b, T>,
) -> Option<&'a Path<T>> {
    #[cfg(bad)]
    return others.get(paths.len());
    #[cfg(not(bad))]
    paths.get(others.len())
}
