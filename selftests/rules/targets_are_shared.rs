// SPDX-License-Identifier: GPL-2.0
// Module: dm-qos
// Refused: E0277

//! A target is called on several CPUs at once.

use ferrule::{
    bio::IncomingBio,
    device_mapper::{
        args::Args,
        status::StatusWriter,
        Constructor,
        Map,
        Mapping,
        StatusType,
        Target,
        TargetRef, //
    }, //
};
use kernel::prelude::*;

ferrule::module_target! {
    type: Linear,
    name: "rule",
    authors: ["Ferrule"],
    description: "A target",
    license: "GPL",
}

struct Linear {
    mapping: Mapping,
    #[cfg(bad)]
    count: core::cell::Cell<u32>,
}

#[vtable]
impl Target for Linear {
    const NAME: &'static CStr = c"rule";
    const VERSION: [u32; 3] = [1, 0, 0];

    type PerBio = ();
    type Shared = ();

    fn shared() -> Result {
        Ok(())
    }

    fn ctr(ti: &mut Constructor<'_, Self>, args: &mut Args<'_>) -> Result<impl PinInit<Self>> {
        let mapping = ti.map_device(args)?;
        Ok(Linear {
            mapping,
            #[cfg(bad)]
            count: core::cell::Cell::new(0),
        })
    }

    fn map<'a>(self: Pin<&Self>, ti: TargetRef<'a>, bio: IncomingBio<'a>) -> Map<'a, ()> {
        Map::Remapped(ti.remap(bio, self.mapping))
    }

    fn status(self: Pin<&Self>, _: TargetRef<'_>, _: StatusType, _: &mut StatusWriter<'_>) {}
}
