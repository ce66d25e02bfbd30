// SPDX-License-Identifier: GPL-2.0
// Module: mpath-sel
// Refused: E0133

//! A path selector is registered by the module that is loaded, and by nobody else.

use ferrule::{
    device_mapper::path_selector::{PathSelector, Registration},
    module::{begin, Loading}, //
};
use kernel::prelude::*;

pub fn register<T: PathSelector>(loading: Loading) -> Result<Registration<T>> {
    #[cfg(bad)]
    let loading = {
        drop(loading);
        begin()?.0
    };
    Registration::register(loading)
}
