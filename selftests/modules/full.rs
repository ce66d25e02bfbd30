// SPDX-License-Identifier: GPL-2.0

//! A target with an `end_io`, `full-rs`: linear, but for what is written no space is left.
//!
//! ```text
//! <start> <length> full-rs <device> <offset>
//! ```

use ferrule::{
    bio::{
        EndedBio,
        IncomingBio,
        Op,
        Status, //
    },
    device_mapper::{
        args::Args,
        status::StatusWriter,
        Constructor,
        EndIo,
        Map,
        Mapping,
        StatusType,
        Target,
        TargetRef, //
    }, //
};
use kernel::prelude::*;

pub(crate) struct Full {
    mapping: Mapping,
}

#[vtable]
impl Target for Full {
    const NAME: &'static CStr = c"full-rs";
    const VERSION: [u32; 3] = [1, 0, 0];

    type PerBio = ();
    type Shared = ();

    fn shared() -> Result {
        Ok(())
    }

    fn ctr(ti: &mut Constructor<'_, Self>, args: &mut Args<'_>) -> Result<impl PinInit<Self>> {
        let mapping = ti.map_device(args)?;
        args.finish()?;
        Ok(Full { mapping })
    }

    fn map<'a>(self: Pin<&Self>, ti: TargetRef<'a>, bio: IncomingBio<'a>) -> Map<'a, ()> {
        Map::Remapped(ti.remap(bio, self.mapping))
    }

    fn end_io(self: Pin<&Self>, _ti: TargetRef<'_>, bio: &EndedBio<'_>, status: Status) -> EndIo {
        match (bio.op(), status) {
            (Op::WRITE, Status::OK) => EndIo::Done(Status::NOSPC),
            _ => EndIo::Done(status),
        }
    }

    fn status(self: Pin<&Self>, ti: TargetRef<'_>, kind: StatusType, out: &mut StatusWriter<'_>) {
        if kind == StatusType::Table {
            write!(out, "{}", ti.display(self.mapping));
        }
    }
}
