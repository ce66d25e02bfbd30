// SPDX-License-Identifier: GPL-2.0
// Module: dm-qos
// Refused: E0423

//! Nobody makes what shows that the module is being loaded.

use ferrule::{device_mapper::Registrar, module::Loading};

pub fn registrar(loading: Loading) -> Registrar {
    #[cfg(bad)]
    let loading = {
        drop(loading);
        Loading(())
    };
    Registrar::new(loading)
}
