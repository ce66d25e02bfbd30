// SPDX-License-Identifier: GPL-2.0
// Module: dm-qos
// Refused: E0624

//! A target is registered by the module that is loaded, and by nobody else.

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
        Ok(Linear { mapping })
    }

    fn map<'a>(self: Pin<&Self>, ti: TargetRef<'a>, bio: IncomingBio<'a>) -> Map<'a, ()> {
        Map::Remapped(ti.remap(bio, self.mapping))
    }

    fn status(self: Pin<&Self>, _: TargetRef<'_>, _: StatusType, _: &mut StatusWriter<'_>) {}
}

pub fn again() {
    #[cfg(bad)]
    drop(ferrule::device_mapper::Registration::<Linear>::new(()));
}
