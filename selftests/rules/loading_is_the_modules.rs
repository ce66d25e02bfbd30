// SPDX-License-Identifier: GPL-2.0
// Module: dm-qos
// Refused: E0133

//! Only the macro that declares a module says that it is being loaded.

use ferrule::module::Loading;

pub fn begin() -> bool {
    #[cfg(bad)]
    return Loading::begin().is_ok();
    #[cfg(not(bad))]
    core::mem::needs_drop::<Loading>()
}
