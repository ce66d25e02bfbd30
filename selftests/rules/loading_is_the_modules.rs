// SPDX-License-Identifier: GPL-2.0
// Module: dm-qos
// Refused: E0133

//! Only the macro that declares a module says that it is being loaded.

use ferrule::module::{begin, Loading};

pub fn load() -> Option<Loading> {
    #[cfg(bad)]
    return Some(begin().ok()?.0);
    #[cfg(not(bad))]
    {
        let _ = begin;
        None
    }
}
