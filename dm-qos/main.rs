// SPDX-License-Identifier: GPL-2.0

//! Device-mapper target "qos": a linear mapping that holds its bios to limits.
//!
//! ```text
//! <start> <length> qos <device> <offset> [<number of words that follow> (<key> <value>)...]
//! ```
//!
//! The keys are in `settings.rs`, what is let through when is decided in `limits.rs` and `gcra.rs`,
//! and what has to wait does so in `hold.rs`. See Documentation/dm-qos.rst.

#![deny(unsafe_code)]

mod atomic;
mod gcra;
// Not in use yet; compiled so that it stays fit for the kernel.
#[allow(dead_code)]
mod heap;
mod histogram;
mod hold;
mod limits;
#[allow(dead_code)]
mod mclock;
mod report;
mod settings;
#[allow(dead_code)]
mod store;

use ferrule::{
    bio::{
        Direction,
        IncomingBio,
        MappedBio,
        Status, //
    },
    device_mapper::{
        args::Args,
        keys,
        status::StatusWriter,
        Constructor,
        Features,
        Map,
        Mapping,
        Registration,
        StatusType,
        Target,
        TargetRef, //
    }, //
};
use hold::{
    Admission,
    Held,
    Holding, //
};
use kernel::{
    new_mutex,
    prelude::*,
    sync::{
        Arc,
        Mutex, //
    }, //
};
use limits::Charge;
use report::Traffic;
use settings::{
    Settings,
    KEYS, //
};

module! {
    type: QosModule,
    name: "dm_qos",
    authors: ["Ferrule"],
    description: "Device-mapper target for I/O service levels",
    license: "GPL",
}

#[pin_data]
struct QosModule {
    #[pin]
    _target: Registration<Qos>,
}

impl kernel::InPlaceModule for QosModule {
    fn init(_module: &'static ThisModule) -> impl PinInit<Self, Error> {
        try_pin_init!(Self { _target <- Registration::new() })
    }
}

/// One table line.
#[pin_data]
struct Qos {
    mapping: Mapping,
    /// What was asked for last. Taken to change the limits, so that they are those of one `set`.
    #[pin]
    settings: Mutex<Settings>,
    traffic: Arc<Traffic>,
    hold: Holding,
}

#[vtable]
impl Target for Qos {
    const NAME: &'static CStr = c"qos";
    const VERSION: [u32; 3] = [1, 0, 0];
    const FEATURES: Features = Features::NOWAIT
        .and(Features::PASSES_CRYPTO)
        .and(Features::PASSES_INTEGRITY)
        .and(Features::ZONED_HM)
        .and(Features::ATOMIC_WRITES)
        .and(Features::DAX);

    type PerBio = Held;

    fn ctr(ti: &mut Constructor<'_>, args: &mut Args<'_>) -> Result<impl PinInit<Self>> {
        let mapping = ti.map_device(args)?;
        let settings = parse_settings(&mut args.group()?, &Settings::DEFAULT)?;

        let traffic = Arc::pin_init(Traffic::new()?, GFP_KERNEL)?;
        let hold = Holding::new(traffic.clone(), ti.is_zoned(mapping))?;
        hold.set_limits(&settings);
        Ok(pin_init!(Qos {
            mapping,
            settings <- new_mutex!(settings),
            traffic,
            hold,
        }))
    }

    fn map<'a>(self: Pin<&Self>, ti: TargetRef<'a>, bio: IncomingBio<'a, Held>) -> Map<'a, Held> {
        let mut bio = ti.remap(bio, self.mapping);
        let direction = bio.direction();
        let charge = charge_of(&mut bio);
        match self.hold.admit(bio, direction, charge) {
            Admission::Pass(bio) => {
                self.traffic.count(direction, charge);
                Map::Remapped(bio)
            }
            Admission::Held => Map::Submitted,
            Admission::WouldBlock(bio) => {
                bio.end(Status::AGAIN);
                Map::Submitted
            }
        }
    }

    fn presuspend(self: Pin<&Self>, _ti: TargetRef<'_>) {
        self.hold.set_open(true);
    }

    fn presuspend_undo(self: Pin<&Self>, _ti: TargetRef<'_>) {
        self.hold.set_open(false);
    }

    fn resume(self: Pin<&Self>, _ti: TargetRef<'_>) {
        self.hold.set_open(false);
    }

    fn status(self: Pin<&Self>, ti: TargetRef<'_>, kind: StatusType, out: &mut StatusWriter<'_>) {
        let mapping = ti.display(self.mapping);
        match kind {
            StatusType::Info => {
                report::write_status(out, &self.traffic, |direction| self.hold.status(direction))
            }
            StatusType::Table => {
                let settings = self.settings.lock();
                let words = keys::Words {
                    keys: KEYS,
                    settings: &*settings,
                    defaults: &Settings::DEFAULT,
                };
                write!(out, "{mapping}{words}");
            }
            StatusType::Ima => write!(out, ",device={mapping};"),
        }
    }

    fn message(
        self: Pin<&Self>,
        _ti: TargetRef<'_>,
        args: &mut Args<'_>,
        _reply: &mut StatusWriter<'_>,
    ) -> Result {
        match args.word("command")?.to_bytes() {
            b"set" => {
                if args.remaining() == 0 {
                    return Err(args.refuse(format_args!("set: nothing to set")));
                }
                let mut settings = self.settings.lock();
                *settings = parse_settings(args, &settings)?;
                self.hold.set_limits(&settings);
                Ok(())
            }
            b"reset" => {
                args.finish()?;
                self.traffic.reset();
                self.hold.reset();
                Ok(())
            }
            other => Err(args.refuse(format_args!(
                "\"{}\" is not a command (set, reset)",
                other.escape_ascii()
            ))),
        }
    }
}

/// What remains of `args`, as changes to `settings`.
fn parse_settings(args: &mut Args<'_>, settings: &Settings) -> Result<Settings> {
    let mut changed = settings.clone();
    let words = core::iter::from_fn(|| args.next().map(|word| word.to_bytes()));
    keys::parse(KEYS, words, &mut changed)
        .map_err(|problem| args.refuse(format_args!("{problem}")))?;
    Ok(changed)
}

/// What a bio is charged: as many I/Os as the device makes of it, and its bytes. What carries no data
/// (flush, discard, write zeroes and so on) is one I/O.
#[inline]
fn charge_of(bio: &mut MappedBio<Held>) -> Charge {
    if bio.has_data() {
        Charge {
            ios: bio.count_ios(),
            bytes: bio.size(),
        }
    } else {
        Charge { ios: 1, bytes: 0 }
    }
}
