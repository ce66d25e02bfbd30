// SPDX-License-Identifier: GPL-2.0

//! What a user can set: the keys of table lines and of the message `set`.

use super::keys::{
    Key,
    Name,
    Unit,
    Value, //
};
use core::fmt;

/// The settings of one device. 0 means none, except for `burst_ms` and `weight`.
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
    /// An I/O counts as one for each of these bytes that it has begun.
    pub(crate) io_size: u64,
    /// With whom it shares.
    pub(crate) group: Name,
    /// I/Os per second that it gets at least, while it asks for them.
    pub(crate) reserve_iops: u64,
    /// Bytes per second that it gets at least, while it asks for them.
    pub(crate) reserve_bps: u64,
    /// Its share of what is left over.
    pub(crate) weight: u64,
    /// What the members of the group share.
    pub(crate) capacity: Capacity,
}

/// What a group has. 0 means no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Capacity {
    /// I/Os per second.
    pub(crate) iops: u64,
    /// Bytes per second.
    pub(crate) bps: u64,
    /// I/Os in flight below.
    pub(crate) depth: u64,
}

impl Capacity {
    /// No limits.
    pub(crate) const NONE: Capacity = Capacity {
        iops: 0,
        bps: 0,
        depth: 0,
    };
}

/// The weight of a member that says nothing.
const DEFAULT_WEIGHT: u64 = 100;

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
        io_size: 0,
        group: Name::NONE,
        reserve_iops: 0,
        reserve_bps: 0,
        weight: DEFAULT_WEIGHT,
        capacity: Capacity::NONE,
    };

    /// Whether the settings go together.
    pub(crate) fn check(&self) -> Result<(), Conflict> {
        if self.group.is_none() {
            if let Some(key) = GROUP_KEYS
                .iter()
                .find(|key| key.differs(self, &Self::DEFAULT))
            {
                return Err(Conflict::NeedsGroup(key.name));
            }
        }
        for (name, reserved, limit_name, limit) in [
            ("reserve_iops", self.reserve_iops, "iops", self.iops),
            ("reserve_bps", self.reserve_bps, "bps", self.bps),
        ] {
            if limit != 0 && reserved > limit {
                return Err(Conflict::BeyondLimit(name, reserved, limit_name, limit));
            }
        }
        Ok(())
    }
}

/// Why settings do not go together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Conflict {
    /// A key that means something in a group only, without one.
    NeedsGroup(&'static str),
    /// A reservation that the device's own limit does not allow.
    BeyondLimit(&'static str, u64, &'static str, u64),
}

impl fmt::Display for Conflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Conflict::NeedsGroup(key) => write!(f, "{key}: needs a group"),
            Conflict::BeyondLimit(key, reserved, limit_key, limit) => {
                write!(f, "{key}: \"{reserved}\" is more than {limit_key} {limit}")
            }
        }
    }
}

/// The most I/Os per second that can be asked for.
const MAX_IOPS: u64 = 100_000_000;
/// The most bytes per second that can be asked for: 1 TiB.
const MAX_BPS: u64 = 1 << 40;
/// The most I/Os in flight that can be asked for.
const MAX_DEPTH: u64 = 1_000_000;
/// The most bytes that may count as one I/O: 1 GiB.
const MAX_IO_SIZE: u64 = 1 << 30;

const fn number(
    name: &'static str,
    unit: Unit,
    min: u64,
    max: u64,
    get: fn(&Settings) -> u64,
    set: fn(&mut Settings, u64),
) -> Key<Settings> {
    Key {
        name,
        value: Value::Number {
            unit,
            range: min..=max,
            get,
            set,
        },
    }
}

/// A number of I/Os per second.
const fn iops(
    name: &'static str,
    get: fn(&Settings) -> u64,
    set: fn(&mut Settings, u64),
) -> Key<Settings> {
    number(name, Unit::Count, 0, MAX_IOPS, get, set)
}

/// A number of bytes per second.
const fn bps(
    name: &'static str,
    get: fn(&Settings) -> u64,
    set: fn(&mut Settings, u64),
) -> Key<Settings> {
    number(name, Unit::Bytes, 0, MAX_BPS, get, set)
}

/// All keys, in the order in which `dmsetup table` prints them.
pub(crate) static KEYS: [Key<Settings>; 15] = [
    iops("iops", |s| s.iops, |s, v| s.iops = v),
    iops("read_iops", |s| s.read_iops, |s, v| s.read_iops = v),
    iops("write_iops", |s| s.write_iops, |s, v| s.write_iops = v),
    bps("bps", |s| s.bps, |s, v| s.bps = v),
    bps("read_bps", |s| s.read_bps, |s, v| s.read_bps = v),
    bps("write_bps", |s| s.write_bps, |s, v| s.write_bps = v),
    number(
        "burst_ms",
        Unit::Milliseconds,
        0,
        10_000,
        |s| s.burst_ms,
        |s, v| s.burst_ms = v,
    ),
    number(
        "io_size",
        Unit::Bytes,
        0,
        MAX_IO_SIZE,
        |s| s.io_size,
        |s, v| s.io_size = v,
    ),
    Key {
        name: "group",
        value: Value::Name {
            get: |s| s.group,
            set: |s, v| s.group = v,
        },
    },
    iops(
        "reserve_iops",
        |s| s.reserve_iops,
        |s, v| s.reserve_iops = v,
    ),
    bps("reserve_bps", |s| s.reserve_bps, |s, v| s.reserve_bps = v),
    number(
        "weight",
        Unit::Count,
        1,
        10_000,
        |s| s.weight,
        |s, v| s.weight = v,
    ),
    iops(
        "group_iops",
        |s| s.capacity.iops,
        |s, v| s.capacity.iops = v,
    ),
    bps("group_bps", |s| s.capacity.bps, |s, v| s.capacity.bps = v),
    number(
        "group_depth",
        Unit::Count,
        0,
        MAX_DEPTH,
        |s| s.capacity.depth,
        |s, v| s.capacity.depth = v,
    ),
];

/// The keys that mean something in a group only.
static GROUP_KEYS: &[Key<Settings>] = KEYS.split_at(9).1;
