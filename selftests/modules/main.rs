// SPDX-License-Identifier: GPL-2.0

//! The smallest useful target, `linear-rs`: what dm-linear does, in the words of this project.
//!
//! ```text
//! <start> <length> linear-rs <device> <offset>
//! ```
//!
//! And, in `full.rs`, another one that has a say in how bios end.

#![deny(unsafe_code)]

mod full;

use ferrule::{
    bio::IncomingBio,
    device_mapper::{
        args::Args,
        status::StatusWriter,
        Constructor,
        Features,
        Map,
        Mapping,
        StatusType,
        Target,
        TargetRef, //
    }, //
};
use kernel::prelude::*;

ferrule::module_target! {
    types: [Linear, full::Full],
    name: "dm_linear_rs",
    authors: ["Ferrule"],
    description: "Linear device-mapper target in Rust",
    license: "GPL",
}

struct Linear {
    mapping: Mapping,
}

#[vtable]
impl Target for Linear {
    const NAME: &'static CStr = c"linear-rs";
    const VERSION: [u32; 3] = [1, 0, 0];
    const FEATURES: Features = Features::NOWAIT
        .and(Features::PASSES_CRYPTO)
        .and(Features::PASSES_INTEGRITY)
        .and(Features::ZONED_HM)
        .and(Features::ATOMIC_WRITES)
        .and(Features::DAX);

    type PerBio = ();
    type Shared = ();

    fn shared() -> Result {
        Ok(())
    }

    fn ctr(ti: &mut Constructor<'_, Self>, args: &mut Args<'_>) -> Result<impl PinInit<Self>> {
        let mapping = ti.map_device(args)?;
        args.finish()?;
        ti.set_flush_bypasses_map();
        Ok(Linear { mapping })
    }

    fn map<'a>(self: Pin<&Self>, ti: TargetRef<'a>, bio: IncomingBio<'a>) -> Map<'a, ()> {
        Map::Remapped(ti.remap(bio, self.mapping))
    }

    fn status(self: Pin<&Self>, ti: TargetRef<'_>, kind: StatusType, out: &mut StatusWriter<'_>) {
        match kind {
            StatusType::Info => {}
            StatusType::Table => write!(out, "{}", ti.display(self.mapping)),
            StatusType::Ima => write!(out, ",device={};", ti.display(self.mapping)),
        }
    }
}
