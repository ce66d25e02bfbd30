// SPDX-License-Identifier: GPL-2.0

//! What a user can set: the keys of table lines and of the message `set`.

use super::keys::{
    Key,
    Unit, //
};

/// The settings of one device. 0 means none, except for `burst_ms`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Settings {
    /// I/Os per second, reads and writes together.
    pub(crate) iops: u64,
    /// Reads per second.
    pub(crate) read_iops: u64,
    /// Writes per second.
    pub(crate) write_iops: u64,
    /// Bytes per second, read and written together.
    pub(crate) bps: u64,
    /// Bytes read per second.
    pub(crate) read_bps: u64,
    /// Bytes written per second.
    pub(crate) write_bps: u64,
    /// What an idle device saves up, as time at its limit.
    pub(crate) burst_ms: u64,
}

impl Settings {
    /// What holds when nothing is said.
    pub(crate) const DEFAULT: Settings = Settings {
        iops: 0,
        read_iops: 0,
        write_iops: 0,
        bps: 0,
        read_bps: 0,
        write_bps: 0,
        burst_ms: 10,
    };
}

/// The most I/Os per second that can be asked for.
const MAX_IOPS: u64 = 100_000_000;
/// The most bytes per second that can be asked for: 1 TiB.
const MAX_BPS: u64 = 1 << 40;

const fn key(
    name: &'static str,
    unit: Unit,
    max: u64,
    get: fn(&Settings) -> u64,
    set: fn(&mut Settings, u64),
) -> Key<Settings> {
    Key {
        name,
        unit,
        range: 0..=max,
        get,
        set,
    }
}

/// All keys, in the order in which `dmsetup table` prints them.
pub(crate) const KEYS: &[Key<Settings>] = &[
    key("iops", Unit::Count, MAX_IOPS, |s| s.iops, |s, v| s.iops = v),
    key(
        "read_iops",
        Unit::Count,
        MAX_IOPS,
        |s| s.read_iops,
        |s, v| s.read_iops = v,
    ),
    key(
        "write_iops",
        Unit::Count,
        MAX_IOPS,
        |s| s.write_iops,
        |s, v| s.write_iops = v,
    ),
    key("bps", Unit::Bytes, MAX_BPS, |s| s.bps, |s, v| s.bps = v),
    key(
        "read_bps",
        Unit::Bytes,
        MAX_BPS,
        |s| s.read_bps,
        |s, v| s.read_bps = v,
    ),
    key(
        "write_bps",
        Unit::Bytes,
        MAX_BPS,
        |s| s.write_bps,
        |s, v| s.write_bps = v,
    ),
    key(
        "burst_ms",
        Unit::Milliseconds,
        10_000,
        |s| s.burst_ms,
        |s, v| s.burst_ms = v,
    ),
];
