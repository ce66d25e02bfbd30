// SPDX-License-Identifier: GPL-2.0

//! Device-mapper target "qos": a linear mapping that holds its bios to limits.
//!
//! ```text
//! <start> <length> qos <device> <offset> [<number of words that follow> (<key> <value>)...]
//! ```
//!
//! From the bottom up, none knowing those above:
//!
//! - `policy/` decides, and is nothing but integers: the keys that can be set (`settings.rs`), what
//!   limits let pass when (`gcra.rs`, `limits.rs`), whose turn it is (`turns.rs`, `mclock.rs`).
//! - `queue.rs` holds the bios of a device, `member.rs` submits them.
//! - `group.rs` takes them out when they are due.
//! - `seat.rs` receives a bio: lets it pass, or has it held.
//! - `groups.rs` knows who is in which group, and `report.rs` reports.
//!
//! See Documentation/dm-qos.rst.

#![deny(unsafe_code)]

mod atomic;
mod clock;
mod group;
mod groups;
mod member;
mod policy;
mod queue;
mod report;
mod seat;
mod store;
mod traffic;

use ferrule::{
    bio::{
        Direction,
        IncomingBio,
        MappedBio, //
    },
    device_mapper::{
        args::Args,
        keys::{
            self,
            Name, //
        },
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
use groups::{
    Groups,
    Membership,
    Refusal,
    Request, //
};
use kernel::{
    prelude::*,
    sync::Arc, //
};
use policy::{
    limits::Charge,
    settings::{
        Settings,
        KEYS, //
    },
};
use queue::Held;

ferrule::module_target! {
    type: Qos,
    name: "dm_qos",
    authors: ["Ferrule"],
    description: "Device-mapper target for I/O service levels",
    license: "GPL",
}

/// One table line.
struct Qos {
    mapping: Mapping,
    membership: Membership,
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
    type Shared = Arc<Groups>;

    fn shared() -> Result<Arc<Groups>> {
        Arc::pin_init(Groups::new()?, GFP_KERNEL)
    }

    fn ctr(ti: &mut Constructor<'_, Self>, args: &mut Args<'_>) -> Result<impl PinInit<Self>> {
        let mapping = ti.map_device(args)?;
        let settings = parse_settings(&mut args.group()?, &Settings::DEFAULT)?;
        let below = ti.mapped_devices_below(mapping)?;
        let request = Request {
            table: ti.table(),
            settings,
            is_zoned: ti.is_zoned(mapping),
            disk: ti.disk(),
            below: &below,
        };
        let membership = ti.shared().join(request);
        Ok(Qos {
            mapping,
            membership: membership.map_err(|refusal| refuse(args, refusal))?,
        })
    }

    #[inline]
    fn map<'a>(self: Pin<&Self>, ti: TargetRef<'a>, bio: IncomingBio<'a, Held>) -> Map<'a, Held> {
        let mut bio = ti.remap(bio, self.mapping);
        let direction = bio.direction();
        let charge = charge_of(&mut bio);
        self.membership.admit(bio, direction, charge)
    }

    #[inline]
    fn bio_ended(self: Pin<&Self>) {
        self.membership.bio_ended();
    }

    fn presuspend(self: Pin<&Self>, ti: TargetRef<'_>) {
        self.membership.suspend(ti.is_noflush_suspending());
    }

    fn presuspend_undo(self: Pin<&Self>, _ti: TargetRef<'_>) {
        self.membership.suspend_undo();
    }

    fn resume(self: Pin<&Self>, _ti: TargetRef<'_>) {
        self.membership.resume();
    }

    fn status(self: Pin<&Self>, ti: TargetRef<'_>, kind: StatusType, out: &mut StatusWriter<'_>) {
        let mapping = ti.display(self.mapping);
        let settings = self.membership.settings();
        match kind {
            StatusType::Info => report::write_status(out, &self.membership, &settings),
            StatusType::Table => {
                let words = keys::Words {
                    keys: &KEYS,
                    settings: &settings,
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
        reply: &mut StatusWriter<'_>,
    ) -> Result {
        match args.word("command")?.to_bytes() {
            b"set" => {
                if args.remaining() == 0 {
                    return Err(args.refuse(format_args!("set: nothing to set")));
                }
                self.membership
                    .change(|settings| parse_settings(args, settings))
                    .map_err(|refusal| refuse(args, refusal))
            }
            b"reset" => {
                args.finish()?;
                self.membership.reset();
                Ok(())
            }
            b"histogram" => {
                args.finish()?;
                report::write_histogram(reply, &self.membership);
                Ok(())
            }
            other => Err(args.refuse(format_args!(
                "\"{}\" is not a command (set, reset, histogram)",
                other.escape_ascii()
            ))),
        }
    }
}

/// What remains of `args`, as changes to `settings`.
fn parse_settings(args: &mut Args<'_>, settings: &Settings) -> Result<Settings> {
    let mut changed = settings.clone();
    let words = core::iter::from_fn(|| args.next().map(|word| word.to_bytes()));
    keys::parse(&KEYS, words, &mut changed)
        .map_err(|problem| args.refuse(format_args!("{problem}")))?;
    changed
        .check()
        .map_err(|conflict| args.refuse(format_args!("{conflict}")))?;
    Ok(changed)
}

fn refuse(args: &Args<'_>, refusal: Refusal) -> Error {
    match refusal {
        Refusal::Error(error) => error,
        refusal => args.refuse(format_args!("{refusal}")),
    }
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
