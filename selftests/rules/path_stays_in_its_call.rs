// SPDX-License-Identifier: GPL-2.0
// Module: mpath-sel
// Refused: E0521

//! A path is lent for one call; its index can be kept.

use ferrule::device_mapper::path_selector::{
    Args,
    Path,
    PathDevice,
    PathSelector,
    Paths,
    Refusal, //
};
use kernel::{
    new_spinlock,
    prelude::*,
    sync::SpinLock, //
};

ferrule::module_path_selector! {
    type: First,
    name: "rule",
    authors: ["Ferrule"],
    description: "A path selector",
    license: "GPL",
}

#[cfg(bad)]
type Failed = &'static Path<First>;
#[cfg(not(bad))]
type Failed = usize;

#[pin_data]
struct First {
    #[pin]
    failed: SpinLock<Option<Failed>>,
}

#[vtable]
impl PathSelector for First {
    type Path = ();

    const NAME: &'static CStr = c"rule";

    fn create(_: Args<'_>) -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            failed <- new_spinlock!(None),
        })
    }

    fn add_path(self: Pin<&mut Self>, _: PathDevice<'_>, _: Args<'_>) -> Result<(), Refusal> {
        Ok(())
    }

    fn select_path<'a>(&'a self, paths: Paths<'a, Self>, _: usize) -> Option<&'a Path<Self>> {
        paths.get(0)
    }

    fn fail_path(&self, path: &Path<Self>) {
        #[cfg(bad)]
        let failed = path;
        #[cfg(not(bad))]
        let failed = path.index();
        *self.failed.lock() = Some(failed);
    }

    fn reinstate_path(&self, _: &Path<Self>) -> Result {
        Ok(())
    }
}
