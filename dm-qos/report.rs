// SPDX-License-Identifier: GPL-2.0

//! What `dmsetup status` reports.

use super::{
    group::Member,
    limits::Charge,
    settings::Settings,
    Direction, //
};
use ferrule::{
    device_mapper::status::StatusWriter,
    percpu::PerCpuCounters, //
};
use kernel::{
    new_mutex,
    prelude::*,
    sync::Mutex, //
};

/// I/Os and bytes, for each direction.
const COUNTERS: usize = 4;

/// I/Os that left for the device since the last reset.
#[pin_data]
pub(crate) struct Traffic {
    counters: PerCpuCounters<COUNTERS>,
    /// What the counters were at the last reset. They cannot be set back while others count.
    #[pin]
    base: Mutex<[u64; COUNTERS]>,
}

impl Traffic {
    pub(crate) fn new() -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            counters: PerCpuCounters::new()?,
            base <- new_mutex!([0; COUNTERS]),
        })
    }

    /// Any context.
    #[inline]
    pub(crate) fn count(&self, direction: Direction, charge: Charge) {
        let first = 2 * direction as usize;
        self.counters
            .add_two(first, [charge.ios.into(), charge.bytes.into()]);
    }

    fn sums(&self) -> [u64; COUNTERS] {
        core::array::from_fn(|which| self.counters.sum(which))
    }

    pub(crate) fn reset(&self) {
        let mut base = self.base.lock();
        *base = self.sums();
    }

    /// I/Os and bytes of a direction.
    fn of(&self, direction: Direction) -> (u64, u64) {
        let base = self.base.lock();
        let sums = self.sums();
        let first = 2 * direction as usize;
        (
            sums[first].wrapping_sub(base[first]),
            sums[first + 1].wrapping_sub(base[first + 1]),
        )
    }
}

const DIRECTIONS: [(Direction, &str); 2] = [(Direction::Read, "read"), (Direction::Write, "write")];

/// Writes what `dmsetup status` prints.
pub(crate) fn write_status(out: &mut StatusWriter<'_>, member: &Member, settings: &Settings) {
    for (direction, name) in DIRECTIONS {
        let (ios, bytes) = member.traffic.of(direction);
        let now = member.waiting(direction);
        let times = member.times(direction, |times| times.summary());
        if direction != Direction::Read {
            write!(out, " ");
        }
        write!(
            out,
            "{name}_ios={ios} {name}_bytes={bytes} {name}_held_total={} {name}_held={now} \
             {name}_hold_mean_us={} {name}_hold_p50_us={} {name}_hold_p99_us={} \
             {name}_hold_max_us={}",
            times.count + now,
            times.mean,
            times.p50,
            times.p99,
            times.max,
        );
    }
    if !settings.group.is_none() {
        let windows = member.windows();
        let reservation = match (settings.reserve_iops | settings.reserve_bps, windows.missed) {
            (0, _) => "none",
            (_, 0) => "met",
            _ => "missed",
        };
        write!(
            out,
            " group={} reservation={reservation} reserve_windows={} reserve_missed={}",
            settings.group, windows.seen, windows.missed,
        );
    }
}

/// Writes what the message `histogram` replies: how many bios were held for how long.
pub(crate) fn write_histogram(out: &mut StatusWriter<'_>, member: &Member) {
    for (direction, name) in DIRECTIONS {
        if direction != Direction::Read {
            write!(out, " ");
        }
        write!(out, "{name}_hold_us=");
        member.times(direction, |times| {
            let mut comma = "";
            for (low, high, count) in times.buckets() {
                write!(out, "{comma}{low}-{high}:{count}");
                comma = ",";
            }
        });
    }
}
