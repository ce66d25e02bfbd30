// SPDX-License-Identifier: GPL-2.0

//! Which device is in which group, and what is promised to them.
//!
//! Limits belong to a device: lines of one table that say the same share them.
//!
//! A group exists as long as a table names it. Its capacity is what was said last, by the table that
//! was resumed last or by a message: it belongs to the group, not to who said it.
//!
//! Reservations count from the moment at which a table is loaded, and so does what it says about the
//! capacity, so that what was accepted can be resumed, in whatever order. A device that is being
//! reloaded has two tables, of which one is used at a time: it counts with the larger of the two.
//!
//! All of this is under one lock, which a resume takes. Reclaim may wait for the device that is
//! resumed: so nothing waits for reclaim under the lock.

use super::{
    group::Group,
    member::{
        Common,
        Mode, //
    },
    policy::{
        mclock::{
            check_reservations,
            Excess, //
        },
        settings::{
            Capacity,
            Settings, //
        },
    },
    seat::Seat,
    Name, //
};
use core::{
    fmt,
    mem,
    ops::Deref, //
};
use ferrule::{
    device_mapper::{
        MappedDisk,
        TableId, //
    },
    memalloc::noio, //
};
use kernel::{
    alloc::AllocError,
    new_mutex,
    prelude::*,
    sync::{
        Arc,
        Mutex, //
    }, //
};

/// All devices and groups.
#[pin_data]
pub(crate) struct Groups {
    common: Arc<Common>,
    #[pin]
    all: Mutex<All>,
}

struct All {
    /// In the order of [`Device::table`].
    devices: KVVec<Device>,
    /// Those groups that have a name.
    named: KVec<Named>,
}

struct Named {
    name: Name,
    group: Arc<Group>,
    capacity: Capacity,
}

/// Lines of a table that say the same.
struct Device {
    table: TableId,
    seat: Seat,
    settings: Settings,
    /// What the table says about the capacity has taken effect. (From then on, the group knows.)
    has_spoken: bool,
    /// How many lines.
    lines: u32,
}

/// What a line asks for.
pub(crate) struct Request<'a> {
    pub(crate) table: TableId,
    pub(crate) settings: Settings,
    pub(crate) is_zoned: bool,
    pub(crate) disk: MappedDisk,
    /// The mapped devices that it lies on, see [`TableId::device`].
    pub(crate) below: &'a [u64],
}

/// Why a device cannot be in a group as it asks for.
pub(crate) enum Refusal {
    /// Reservations, all in all, are more than the capacity.
    Excess(Name, Excess, Capacity),
    /// Another group takes another table.
    GroupChanged(Name),
    /// A device below is in the group.
    Stacked(Name),
    /// What was said already, or needs no words.
    Error(Error),
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        Refusal::Error(error)
    }
}

impl From<AllocError> for Refusal {
    fn from(error: AllocError) -> Self {
        Refusal::Error(error.into())
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::Excess(name, Excess::Ios(sum), capacity) => write!(
                f,
                "reserve_iops: all reservations in group {name} come to {sum}, group_iops is {}",
                capacity.iops
            ),
            Refusal::Excess(name, Excess::Bytes(sum), capacity) => write!(
                f,
                "reserve_bps: all reservations in group {name} come to {sum}, group_bps is {}",
                capacity.bps
            ),
            Refusal::GroupChanged(name) => write!(
                f,
                "group: \"{name}\" needs a new table (dmsetup reload), a message cannot change it"
            ),
            Refusal::Stacked(name) => write!(
                f,
                "group: \"{name}\" has a device that this one lies on: each would wait for the other"
            ),
            Refusal::Error(error) => write!(f, "error {}", error.to_errno()),
        }
    }
}

/// What the capacity is when what `stated` says is in force; where it says nothing, it is as before.
fn capacity_with(stated: &Capacity, current: &Capacity) -> Capacity {
    let or = |stated, current| if stated != 0 { stated } else { current };
    Capacity {
        iops: or(stated.iops, current.iops),
        bps: or(stated.bps, current.bps),
        depth: or(stated.depth, current.depth),
    }
}

impl Device {
    /// Does its table say something about the capacity that has not taken effect yet?
    fn is_to_speak(&self) -> bool {
        !self.has_spoken && self.settings.capacity != Capacity::NONE
    }
}

impl All {
    fn named(&mut self, name: Name) -> Option<&mut Named> {
        self.named.iter_mut().find(|named| named.name == name)
    }

    /// What a device's settings are, the group's capacity included.
    fn effective(&self, device: &Device) -> Settings {
        let mut settings = device.settings.clone();
        if device.has_spoken {
            let mut named = self.named.iter();
            if let Some(named) = named.find(|named| named.name == settings.group) {
                settings.capacity = named.capacity;
            }
        }
        settings
    }

    /// Where the limits of a device's table before are, for those of a new one to go on from.
    fn table_before(&self, index: usize) -> Option<&Seat> {
        let device = &self.devices[index];
        let is_before = |other: &&Device| {
            other.table.device() == device.table.device()
                && other.table != device.table
                && other.has_spoken
        };
        let before = || self.devices.iter().filter(is_before);
        let same = before().find(|other| other.settings == device.settings);
        Some(&same.or_else(|| before().next())?.seat)
    }

    fn index_of(&self, table: TableId, seat: &Seat) -> Option<usize> {
        let first = self.devices.partition_point(|device| device.table < table);
        let mut devices = self.devices[first..].iter();
        Some(first + devices.position(|device| device.seat.is(seat))?)
    }

    /// Is there room for all that is reserved in a group, in its capacity as it is and as it will be
    /// when any table is resumed that is not yet?
    fn check(&self, name: Name, current: Capacity) -> Result<(), Refusal> {
        let of_group = |device: &&Device| device.settings.group == name;
        self.check_in(name, current, |device| !device.is_to_speak())?;
        for pending in self.devices.iter().filter(of_group) {
            if pending.is_to_speak() {
                let capacity = capacity_with(&pending.settings.capacity, &current);
                self.check_in(name, capacity, |_| true)?;
            }
        }
        Ok(())
    }

    /// Is there room for what is reserved by those that count?
    fn check_in(
        &self,
        name: Name,
        capacity: Capacity,
        counts: impl Fn(&Device) -> bool,
    ) -> Result<(), Refusal> {
        let counts = |device: &&Device| device.settings.group == name && counts(device);
        // What each table reserves; those of a device stand side by side.
        let tables = self
            .devices
            .chunk_by(|one, other| one.table == other.table)
            .map(|devices| {
                let sum = |of: fn(&Settings) -> u64| {
                    let devices = devices.iter().filter(counts);
                    devices.fold(0u64, |sum, device| sum.saturating_add(of(&device.settings)))
                };
                let table = devices.first().map_or(0, |device| device.table.device());
                (
                    table,
                    (
                        sum(|settings| settings.reserve_iops),
                        sum(|settings| settings.reserve_bps),
                    ),
                )
            });
        check_reservations((capacity.iops, capacity.bps), tables)
            .map_err(|excess| Refusal::Excess(name, excess, capacity))
    }
}

impl Groups {
    /// None at all. Process context.
    pub(crate) fn new() -> Result<impl PinInit<Self>> {
        let common = Common::new()?;
        Ok(pin_init!(Self {
            common,
            all <- new_mutex!(All {
                devices: KVVec::new(),
                named: KVec::new(),
            }),
        }))
    }

    /// Makes a line's device a member of the group that its settings name, or of one of its own.
    pub(crate) fn join(self: &Arc<Self>, request: Request<'_>) -> Result<Membership, Refusal> {
        let table = request.table;
        let seat = noio(|| {
            let mut all = self.all.lock();
            self.join_locked(&mut all, request)
        })?;
        Ok(Membership {
            groups: self.clone(),
            table,
            seat,
        })
    }

    fn join_locked(&self, all: &mut All, request: Request<'_>) -> Result<Seat, Refusal> {
        let (table, settings) = (request.table, &request.settings);
        let first = all.devices.partition_point(|device| device.table < table);
        let mut own = all.devices[first..].iter_mut();
        let same = |device: &&mut Device| {
            device.table == table
                && device.settings == *settings
                && device.seat.member().is_zoned == request.is_zoned
        };
        if let Some(device) = own.find(same) {
            device.lines += 1;
            return Ok(device.seat.clone());
        }

        let name = settings.group;
        let is_in_group = |below: &u64| {
            let mut devices = all.devices.iter();
            devices.any(|device| device.settings.group == name && device.table.device() == *below)
        };
        if !name.is_none() && request.below.iter().any(is_in_group) {
            return Err(Refusal::Stacked(name));
        }
        all.devices.reserve(1, GFP_KERNEL)?;
        let group = match all.named(name) {
            Some(named) => named.group.clone(),
            None if name.is_none() => Group::new(self.common.clone(), true)?,
            None => {
                let group = Group::new(self.common.clone(), false)?;
                all.named.push(
                    Named {
                        name,
                        group: group.clone(),
                        capacity: Capacity::NONE,
                    },
                    GFP_KERNEL,
                )?;
                group
            }
        };
        let added = group.add(settings, request.disk, request.is_zoned);
        let joined = added.map_err(Refusal::from).and_then(|member| {
            let seat = Seat::new(group.clone(), member);
            let device = Device {
                table,
                seat: seat.clone(),
                settings: settings.clone(),
                has_spoken: false,
                lines: 1,
            };
            let index = all.devices.partition_point(|device| device.table <= table);
            if all.devices.insert_within_capacity(index, device).is_err() {
                seat.leave();
                return Err(Refusal::Error(ENOMEM));
            }
            let current = all
                .named(name)
                .map_or(Capacity::NONE, |named| named.capacity);
            all.check(name, current).inspect_err(|_| {
                let _ = all.devices.remove(index);
                seat.leave();
            })?;
            Ok(seat)
        });
        if joined.is_err() {
            all.forget_if_empty(name);
        }
        joined
    }

    /// A line goes. Process context.
    fn leave(&self, table: TableId, seat: &Seat) {
        let group_is_empty = {
            let mut all = self.all.lock();
            let Some(index) = all.index_of(table, seat) else {
                return;
            };
            all.devices[index].lines -= 1;
            if all.devices[index].lines != 0 {
                return;
            }
            let name = all.devices[index].settings.group;
            let _ = all.devices.remove(index);
            seat.leave();
            all.forget_if_empty(name)
        };
        seat.end(group_is_empty);
    }
}

impl All {
    /// Forgets a group that has no member any more. Says whether that is so.
    fn forget_if_empty(&mut self, name: Name) -> bool {
        let mut devices = self.devices.iter();
        if !name.is_none() && devices.any(|device| device.settings.group == name) {
            return false;
        }
        self.named.retain(|named| named.name != name);
        true
    }
}

/// A line of a table: its place in a group, which is given up when this is dropped.
pub(crate) struct Membership {
    groups: Arc<Groups>,
    table: TableId,
    seat: Seat,
}

impl Membership {
    /// What holds, the group's capacity included.
    pub(crate) fn settings(&self) -> Settings {
        let all = self.groups.all.lock();
        match all.index_of(self.table, &self.seat) {
            Some(index) => all.effective(&all.devices[index]),
            None => Settings::DEFAULT,
        }
    }

    /// Changes settings, all or none: to what `change` makes of those that hold.
    pub(crate) fn change(
        &self,
        change: impl FnOnce(&Settings) -> Result<Settings>,
    ) -> Result<(), Refusal> {
        let mut all = self.groups.all.lock();
        let index = all.index_of(self.table, &self.seat).ok_or(ENOENT)?;
        let before = all.effective(&all.devices[index]);
        let after = change(&before)?;
        if after == before {
            return Ok(());
        }
        if after.group != before.group {
            return Err(Refusal::GroupChanged(after.group));
        }
        let (name, has_spoken) = (after.group, all.devices[index].has_spoken);
        let kept = mem::replace(&mut all.devices[index].settings, after.clone());
        let current = match all.named(name) {
            Some(named) if !has_spoken => named.capacity,
            _ => after.capacity,
        };
        if let Err(refusal) = all.check(name, current) {
            all.devices[index].settings = kept;
            return Err(refusal);
        }
        if has_spoken && after.capacity != before.capacity {
            if let Some(named) = all.named(name) {
                named.capacity = after.capacity;
                self.seat.set_capacity(&after.capacity, after.burst_ms);
            }
        }
        self.seat.apply(&after);
        Ok(())
    }

    /// The device is resumed: limits apply. When this is the first time, they go on where those of the
    /// table before are, and what this one says about the capacity takes effect.
    pub(crate) fn resume(&self) {
        let mut all = self.groups.all.lock();
        let Some(index) = all.index_of(self.table, &self.seat) else {
            return;
        };
        if !all.devices[index].has_spoken {
            all.devices[index].has_spoken = true;
            if let Some(before) = all.table_before(index) {
                self.seat.go_on_from(before);
            }
            let settings = all.devices[index].settings.clone();
            if let Some(named) = all.named(settings.group) {
                let capacity = capacity_with(&settings.capacity, &named.capacity);
                if capacity != named.capacity {
                    named.capacity = capacity;
                    self.seat.set_capacity(&capacity, settings.burst_ms);
                }
            }
        }
        self.seat.set_mode(Mode::Limited);
    }

    /// The device is about to be suspended; `is_quick` if without its file system.
    pub(crate) fn suspend(&self, is_quick: bool) {
        let mode = if is_quick { Mode::Open } else { Mode::Freezing };
        self.seat.set_mode(mode);
    }

    /// It is not, after all.
    pub(crate) fn suspend_undo(&self) {
        self.seat.set_mode(Mode::Limited);
    }
}

impl Deref for Membership {
    type Target = Seat;

    #[inline]
    fn deref(&self) -> &Seat {
        &self.seat
    }
}

impl Drop for Membership {
    fn drop(&mut self) {
        self.groups.leave(self.table, &self.seat);
    }
}
