// SPDX-License-Identifier: GPL-2.0

//! Who is in which group, and what is promised to them.
//!
//! A group exists as long as a table names it. Its capacity is what was said last, by the table that
//! was resumed last or by a message: it belongs to the group, not to who said it.
//!
//! Reservations count from the moment at which a table is loaded, so that what was accepted can be
//! resumed. A device that is being reloaded has two tables, of which one is used at a time: it counts
//! with the larger of the two.

use super::{
    group::{
        Group,
        Member, //
    },
    mclock::{
        check_reservations,
        Excess, //
    },
    settings::{
        Capacity,
        Settings, //
    },
    Name, //
};
use core::{
    fmt,
    ops::Deref, //
};
use ferrule::device_mapper::TableId;
use kernel::{
    alloc::AllocError,
    new_mutex,
    prelude::*,
    sync::{
        Arc,
        Mutex, //
    }, //
};

/// All groups that have a name.
#[pin_data]
pub(crate) struct Groups {
    #[pin]
    named: Mutex<KVec<Named>>,
}

struct Named {
    name: Name,
    group: Arc<Group>,
    capacity: Capacity,
    /// In the order of [`Entry::table`].
    entries: KVVec<Entry>,
}

/// What a table line asks for.
struct Entry {
    table: TableId,
    member: Arc<Member>,
    reserve_iops: u64,
    reserve_bps: u64,
}

/// Why a device cannot be in a group as it asks for.
pub(crate) enum Refusal {
    /// Reservations, all in all, are more than the capacity.
    Excess(Name, Excess, Capacity),
    /// Another group takes another table.
    GroupChanged(Name),
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
            Refusal::Error(error) => write!(f, "error {}", error.to_errno()),
        }
    }
}

impl Named {
    /// What the group's capacity is when `settings` are in force.
    fn capacity_with(&self, settings: &Settings) -> Capacity {
        let stated = settings.capacity;
        let or = |stated, current| if stated != 0 { stated } else { current };
        Capacity {
            iops: or(stated.iops, self.capacity.iops),
            bps: or(stated.bps, self.capacity.bps),
            depth: or(stated.depth, self.capacity.depth),
        }
    }

    /// Is there room for all that is reserved in `capacity`?
    fn check(&self, capacity: Capacity) -> Result<(), Refusal> {
        // What each table reserves; those of a device stand side by side.
        let tables = self.entries.chunk_by(|one, other| one.table == other.table);
        let sums = tables.map(|lines| {
            let sum = |of: fn(&Entry) -> u64| {
                lines
                    .iter()
                    .fold(0u64, |sum, line| sum.saturating_add(of(line)))
            };
            let device = lines.first().map_or(0, |line| line.table.device());
            (
                device,
                (sum(|line| line.reserve_iops), sum(|line| line.reserve_bps)),
            )
        });
        check_reservations((capacity.iops, capacity.bps), sums)
            .map_err(|excess| Refusal::Excess(self.name, excess, capacity))
    }

    fn set_capacity(&mut self, capacity: Capacity, burst_ms: u64) {
        self.capacity = capacity;
        self.group.as_arc_borrow().set_capacity(&capacity, burst_ms);
    }
}

impl Groups {
    /// None at all.
    pub(crate) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            named <- new_mutex!(KVec::new()),
        })
    }

    /// Makes a device a member of the group that its settings name, or of one of its own.
    pub(crate) fn join(
        self: &Arc<Self>,
        table: TableId,
        settings: Settings,
        is_zoned: bool,
    ) -> Result<impl PinInit<Membership>, Refusal> {
        let member = if settings.group.is_none() {
            let group = Group::new(true)?;
            group.as_arc_borrow().add(&settings, is_zoned)?
        } else {
            self.join_named(table, &settings, is_zoned)?
        };
        let place = Place {
            groups: self.clone(),
            member,
            name: settings.group,
        };
        Ok(pin_init!(Membership {
            place,
            asked <- new_mutex!(Asked {
                has_spoken: false,
                settings,
            }),
        }))
    }

    fn join_named(
        &self,
        table: TableId,
        settings: &Settings,
        is_zoned: bool,
    ) -> Result<Arc<Member>, Refusal> {
        let mut named = self.named.lock();
        let name = settings.group;
        let index = match named.iter().position(|named| named.name == name) {
            Some(index) => index,
            None => {
                let group = Group::new(false)?;
                named.push(
                    Named {
                        name,
                        group,
                        capacity: Capacity::NONE,
                        entries: KVVec::new(),
                    },
                    GFP_KERNEL,
                )?;
                named.len() - 1
            }
        };
        let joined = Self::add(&mut named[index], table, settings, is_zoned);
        if joined.is_err() && named[index].entries.is_empty() {
            let empty = named.remove(index);
            drop(named);
            if let Ok(empty) = empty {
                empty.group.end();
            }
        }
        joined
    }

    fn add(
        named: &mut Named,
        table: TableId,
        settings: &Settings,
        is_zoned: bool,
    ) -> Result<Arc<Member>, Refusal> {
        named.entries.reserve(1, GFP_KERNEL)?;
        let member = named.group.as_arc_borrow().add(settings, is_zoned)?;
        let index = named.entries.partition_point(|entry| entry.table <= table);
        let entry = Entry {
            table,
            member: member.clone(),
            reserve_iops: settings.reserve_iops,
            reserve_bps: settings.reserve_bps,
        };
        if named.entries.insert_within_capacity(index, entry).is_err() {
            member.remove();
            return Err(Refusal::Error(ENOMEM));
        }
        if let Err(refusal) = named.check(named.capacity_with(settings)) {
            let _ = named.entries.remove(index);
            member.remove();
            return Err(refusal);
        }
        Ok(member)
    }

    /// Undoes [`Self::join`].
    fn leave(&self, member: &Arc<Member>, name: Name) {
        if name.is_none() {
            member.remove();
            member.group.end();
            return;
        }
        let mut named = self.named.lock();
        let Some(index) = named.iter().position(|named| named.name == name) else {
            return;
        };
        named[index]
            .entries
            .retain(|entry| !Arc::ptr_eq(&entry.member, member));
        member.remove();
        if named[index].entries.is_empty() {
            let empty = named.remove(index);
            // Nobody finds it any more.
            drop(named);
            if let Ok(empty) = empty {
                empty.group.end();
            }
        }
    }
}

/// A device in its group, which it leaves when this is dropped.
#[pin_data]
pub(crate) struct Membership {
    place: Place,
    /// Taken to change anything, so that it is all of one `set`.
    #[pin]
    asked: Mutex<Asked>,
}

struct Asked {
    /// What the table says about the capacity has taken effect. (From then on, the group knows.)
    has_spoken: bool,
    settings: Settings,
}

impl Membership {
    /// What holds, the group's capacity included.
    pub(crate) fn settings(&self) -> Settings {
        self.effective(&self.asked.lock())
    }

    fn effective(&self, asked: &Asked) -> Settings {
        let mut settings = asked.settings.clone();
        if asked.has_spoken {
            let named = self.place.groups.named.lock();
            if let Some(named) = named.iter().find(|named| named.name == settings.group) {
                settings.capacity = named.capacity;
            }
        }
        settings
    }

    /// Changes settings, all or none: to what `change` makes of those that hold.
    pub(crate) fn change(
        &self,
        change: impl FnOnce(&Settings) -> Result<Settings>,
    ) -> Result<(), Refusal> {
        let mut asked = self.asked.lock();
        let before = self.effective(&asked);
        let after = change(&before)?;
        self.apply(&before, &after)?;
        asked.settings = after;
        Ok(())
    }

    fn apply(&self, before: &Settings, after: &Settings) -> Result<(), Refusal> {
        if after.group != before.group {
            return Err(Refusal::GroupChanged(after.group));
        }
        let mut named = self.place.groups.named.lock();
        if let Some(named) = named.iter_mut().find(|named| named.name == after.group) {
            let mine = |entry: &&mut Entry| Arc::ptr_eq(&entry.member, &self.place.member);
            let set = |named: &mut Named, settings: &Settings| {
                if let Some(entry) = named.entries.iter_mut().find(mine) {
                    entry.reserve_iops = settings.reserve_iops;
                    entry.reserve_bps = settings.reserve_bps;
                }
            };
            set(named, after);
            if let Err(refusal) = named.check(after.capacity) {
                set(named, before);
                return Err(refusal);
            }
            if after.capacity != before.capacity {
                named.set_capacity(after.capacity, after.burst_ms);
            }
        }
        drop(named);
        self.place.member.apply(after);
        Ok(())
    }

    /// The device is resumed: limits apply. What its table says about the capacity takes effect when
    /// this is the first time.
    pub(crate) fn resume(&self) {
        let mut asked = self.asked.lock();
        if !asked.has_spoken {
            asked.has_spoken = true;
            let settings = &asked.settings;
            let mut named = self.place.groups.named.lock();
            if let Some(named) = named.iter_mut().find(|named| named.name == settings.group) {
                let capacity = named.capacity_with(settings);
                if capacity != named.capacity {
                    named.set_capacity(capacity, settings.burst_ms);
                }
            }
        }
        drop(asked);
        self.place.member.set_open(false);
    }
}

impl Deref for Membership {
    type Target = Member;

    #[inline]
    fn deref(&self) -> &Member {
        &self.place.member
    }
}

/// A place in a group, which is given up when this is dropped.
struct Place {
    groups: Arc<Groups>,
    member: Arc<Member>,
    /// Of the group; none if it is one of the device's own.
    name: Name,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.groups.leave(&self.member, self.name);
    }
}
