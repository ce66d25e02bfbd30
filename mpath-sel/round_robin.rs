// SPDX-License-Identifier: GPL-2.0

//! The path selector: table arguments, memory and CPUs around the decisions in `rotation`.

use super::{
    cell::Cell,
    policy::rotation::{
        self,
        Job, //
    }, //
};
use core::{
    mem,
    ops::RangeInclusive, //
};
use ferrule::{
    compat::{
        new_spinlock_irq,
        SpinLockIrq, //
    },
    device_mapper::path_selector::{
        Args,
        Path,
        PathSelector,
        Paths,
        Refusal,
        Report,
        StatusWriter, //
    },
    percpu::PerCpuU32, //
};
use kernel::{
    alloc::AllocError,
    prelude::*,
    sync::atomic::{
        Atomic,
        Relaxed, //
    }, //
};

/// What a path's weight may be.
const WEIGHTS: RangeInclusive<u64> = 0..=u32::MAX as u64;

const INCORRECT_NUMBER: Refusal =
    Refusal::new(EINVAL, c"round-robin ps: incorrect number of arguments");
const INVALID_COUNT: Refusal = Refusal::new(EINVAL, c"round-robin ps: invalid repeat count");
const TOO_MANY_PATHS: Refusal = Refusal::new(EINVAL, c"round-robin ps: too many paths");
const NO_MEMORY: Refusal = Refusal::new(ENOMEM, c"round-robin ps: Error allocating path context");

/// The selector of a priority group.
///
/// `add_path` makes everything anew, as only the last path completes it; then only the contents of
/// the hops and of the cursors change.
///
/// With many paths it only makes room, and whoever needs the schedule first makes it: who selects,
/// and finds no hops. That is the only time that selecting takes a lock.
#[pin_data]
pub(crate) struct RoundRobin {
    /// The paths' weights, in the order in which they were added.
    weights: KVec<u32>,
    /// For each path whether it is in service. Changed under multipath's lock.
    is_in_service: KVec<Atomic<bool>>,
    /// For each slot, the next one whose path is in service.
    hops: KVVec<Cell>,
    /// Each CPU's place in the schedule.
    cursors: PerCpuU32,
    /// The schedule is made.
    is_made: Atomic<bool>,
    /// Taken with multipath's lock held, or without.
    #[pin]
    schedule: SpinLockIrq<Schedule>,
}

/// For each slot a path.
struct Schedule {
    order: KVVec<u16>,
    jobs: KVVec<Job>,
}

/// What is kept for a path.
pub(crate) struct RoundRobinPath {
    weight: u32,
}

impl RoundRobin {
    fn new() -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            weights: KVec::new(),
            is_in_service: KVec::new(),
            hops: KVVec::new(),
            cursors: PerCpuU32::new()?,
            is_made: Atomic::new(false),
            schedule <- new_spinlock_irq!(Schedule {
                order: KVVec::new(),
                jobs: KVVec::new(),
            }),
        })
    }

    /// Adds a path. On an error what was there before is of no use any more.
    fn add(self: Pin<&mut Self>, weight: u32) -> Result<(), AllocError> {
        let this = self.project();
        this.weights.push(weight, GFP_KERNEL)?;
        this.is_in_service.push(Atomic::new(true), GFP_KERNEL)?;

        let mut jobs = KVVec::from_elem(Job::default(), this.weights.len(), GFP_KERNEL)?;
        let slots = rotation::share_out(this.weights, &mut jobs);
        let mut order = KVVec::from_elem(0u16, slots, GFP_KERNEL)?;
        this.hops.clear();
        this.hops.reserve(slots, GFP_KERNEL)?;
        for slot in 0..slots {
            this.hops.push(rotation::no_hop(slot), GFP_KERNEL)?;
        }
        this.cursors
            .set_each(|cpu| rotation::first_slot(cpu, slots));

        let is_made = this.weights.len() <= rotation::MAX_EAGER;
        if is_made {
            rotation::make_schedule(&mut order, &mut jobs);
            rotation::make_hops(&order, this.hops, |_| true);
        }
        this.is_made.store(is_made, Relaxed);
        let before = mem::replace(&mut *this.schedule.lock(), Schedule { order, jobs });
        // Where it may sleep.
        drop(before);
        Ok(())
    }

    fn make_hops(&self, order: &[u16]) {
        rotation::make_hops(order, &self.hops, |path| {
            self.is_in_service
                .get(path)
                .is_some_and(|is_in_service| is_in_service.load(Relaxed))
        });
    }

    /// Makes the schedule, unless it is made. Any context.
    #[cold]
    fn make(&self) {
        let mut schedule = self.schedule.lock();
        if !self.is_made.load(Relaxed) {
            let Schedule { order, jobs } = &mut *schedule;
            rotation::make_schedule(order, jobs);
            self.make_hops(order);
            self.is_made.store(true, Relaxed);
        }
    }

    fn set_in_service(&self, path: &Path<Self>, value: bool) {
        let schedule = self.schedule.lock();
        if let Some(is_in_service) = self.is_in_service.get(path.index()) {
            is_in_service.store(value, Relaxed);
        }
        if self.is_made.load(Relaxed) {
            self.make_hops(&schedule.order);
        }
    }

    /// The path for which it is the turn on this CPU.
    #[inline]
    fn turn(&self) -> usize {
        self.cursors
            .update(|cursor| rotation::select(&self.hops, cursor))
    }
}

#[vtable]
impl PathSelector for RoundRobin {
    type Path = RoundRobinPath;

    const NAME: &'static CStr = c"round-robin-rs";
    const ALIAS: Option<&'static CStr> = Some(c"round-robin");
    const TABLE_ARGS: u32 = 1;

    /// The selector's own arguments are ignored, as the C selector does.
    fn create(_args: Args<'_>) -> impl PinInit<Self, Error> {
        Self::new()
    }

    fn add_path(self: Pin<&mut Self>, mut args: Args<'_>) -> Result<RoundRobinPath, Refusal> {
        if args.remaining() > 1 {
            return Err(INCORRECT_NUMBER);
        }
        let weight = match args.remaining() {
            0 => 1,
            _ => args.number("weight", WEIGHTS).map_err(|_| INVALID_COUNT)? as u32,
        };
        if self.weights.len() == rotation::MAX_PATHS {
            return Err(TOO_MANY_PATHS);
        }

        // The table is refused: that something is left over matters to nobody.
        self.add(weight).map_err(|_| NO_MEMORY)?;
        Ok(RoundRobinPath { weight })
    }

    #[inline]
    fn select_path<'a>(&'a self, paths: Paths<'a, Self>, _: usize) -> Option<&'a Path<Self>> {
        let path = paths.get(self.turn());
        if path.is_none() {
            // This is the first time, or nothing is in service, or both were so a moment ago.
            self.make();
            return paths.get(self.turn());
        }
        path
    }

    fn fail_path(&self, path: &Path<Self>) {
        self.set_in_service(path, false);
    }

    fn reinstate_path(&self, path: &Path<Self>) -> Result {
        self.set_in_service(path, true);
        Ok(())
    }

    fn path_status(&self, path: &Path<Self>, report: Report, out: &mut StatusWriter<'_>) {
        if report == Report::Table {
            write!(out, "{} ", path.weight);
        }
    }
}
