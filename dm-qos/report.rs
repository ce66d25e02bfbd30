// SPDX-License-Identifier: GPL-2.0

//! What `dmsetup status` reports.

use super::{
    policy::settings::Settings,
    seat::Seat,
    traffic::Counts,
    Direction, //
};
use ferrule::device_mapper::status::StatusWriter;

const DIRECTIONS: [(Direction, &str); 2] = [(Direction::Read, "read"), (Direction::Write, "write")];

/// Writes what `dmsetup status` prints.
pub(crate) fn write_status(out: &mut StatusWriter<'_>, seat: &Seat, settings: &Settings) {
    let counts = seat.member().traffic.counts();
    for (direction, name) in DIRECTIONS {
        let Counts { ios, bytes, ahead } = counts[direction as usize];
        let now = seat.member().waiting(direction);
        let times = seat.times(direction, |times| times.summary());
        if direction != Direction::Read {
            write!(out, " ");
        }
        write!(
            out,
            "{name}_ios={ios} {name}_bytes={bytes} {name}_ahead_ios={ahead} {name}_debt_us={} \
             {name}_held_total={} {name}_held={now} {name}_hold_mean_us={} {name}_hold_p50_us={} \
             {name}_hold_p99_us={} {name}_hold_max_us={}",
            seat.debt_us(direction),
            times.count + now,
            times.mean,
            times.p50,
            times.p99,
            times.max,
        );
    }
    if !settings.group.is_none() {
        let windows = seat.windows();
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
pub(crate) fn write_histogram(out: &mut StatusWriter<'_>, seat: &Seat) {
    for (direction, name) in DIRECTIONS {
        if direction != Direction::Read {
            write!(out, " ");
        }
        write!(out, "{name}_hold_us=");
        seat.times(direction, |times| {
            let mut comma = "";
            for (low, high, count) in times.buckets() {
                write!(out, "{comma}{low}-{high}:{count}");
                comma = ",";
            }
        });
    }
}
