// SPDX-License-Identifier: GPL-2.0

//! The path selector: table arguments, memory and CPUs around the decisions in `rotation`.

use super::{
    cell::Cell,
    rotation::{
        self,
        Job, //
    }, //
};
use core::ops::RangeInclusive;
use ferrule::{
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
const WEIGHTS: RangeInclusive<u64> = 1..=u16::MAX as u64;

const INCORRECT_NUMBER: Refusal =
    Refusal::new(EINVAL, c"round-robin ps: incorrect number of arguments");
const INVALID_COUNT: Refusal = Refusal::new(EINVAL, c"round-robin ps: invalid repeat count");
const TOO_MANY_PATHS: Refusal = Refusal::new(EINVAL, c"round-robin ps: too many paths");
const NO_MEMORY: Refusal = Refusal::new(ENOMEM, c"round-robin ps: Error allocating path context");

/// The selector of a priority group.
///
/// `add_path` makes everything anew, as only the last path completes it; then only the contents of
/// the hops and of the cursors change.
pub(crate) struct RoundRobin {
    /// The paths' weights, in the order in which they were added.
    weights: KVec<u16>,
    /// For each path whether it is in service. Changed under multipath's lock.
    is_in_service: KVec<Atomic<bool>>,
    /// The schedule: for each slot a path.
    order: KVVec<u16>,
    /// For each slot, the next one whose path is in service.
    hops: KVVec<Cell>,
    /// Each CPU's place in the schedule.
    cursors: PerCpuU32,
}

/// What is kept for a path.
pub(crate) struct RoundRobinPath {
    weight: u16,
}

impl RoundRobin {
    fn new() -> Result<Self> {
        Ok(Self {
            weights: KVec::new(),
            is_in_service: KVec::new(),
            order: KVVec::new(),
            hops: KVVec::new(),
            cursors: PerCpuU32::new()?,
        })
    }

    /// Makes the schedule for the weights as they are. On an error nothing has changed.
    fn make_schedule(&mut self) -> Result<(), AllocError> {
        let mut jobs = KVVec::from_elem(Job::default(), self.weights.len(), GFP_KERNEL)?;
        let slots = rotation::share_out(&self.weights, &mut jobs);
        let mut order = KVVec::from_elem(0u16, slots, GFP_KERNEL)?;
        let mut hops = KVVec::with_capacity(slots, GFP_KERNEL)?;
        for _ in 0..slots {
            hops.push(Cell::new(0), GFP_KERNEL)?;
        }

        rotation::make_schedule(&mut order, &mut jobs);
        self.order = order;
        self.hops = hops;
        self.make_hops();

        self.cursors
            .set_each(|cpu| rotation::first_slot(cpu, slots));
        Ok(())
    }

    fn make_hops(&self) {
        rotation::make_hops(&self.order, &self.hops, |path| {
            self.is_in_service
                .get(path)
                .is_some_and(|is_in_service| is_in_service.load(Relaxed))
        });
    }

    fn set_in_service(&self, path: &Path<Self>, value: bool) {
        if let Some(is_in_service) = self.is_in_service.get(path.index()) {
            is_in_service.store(value, Relaxed);
        }
        self.make_hops();
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
        let this = self.get_mut();

        if args.remaining() > 1 {
            return Err(INCORRECT_NUMBER);
        }
        let weight = match args.remaining() {
            0 => 1,
            _ => args.number("weight", WEIGHTS).map_err(|_| INVALID_COUNT)? as u16,
        };
        if this.weights.len() == rotation::MAX_PATHS {
            return Err(TOO_MANY_PATHS);
        }

        this.weights
            .push(weight, GFP_KERNEL)
            .and_then(|()| this.is_in_service.push(Atomic::new(true), GFP_KERNEL))
            .and_then(|()| this.make_schedule())
            // The table is refused: that a weight may be left over matters to nobody.
            .map_err(|_| NO_MEMORY)?;
        Ok(RoundRobinPath { weight })
    }

    #[inline]
    fn select_path<'a>(&'a self, paths: Paths<'a, Self>, _: usize) -> Option<&'a Path<Self>> {
        let turn = |cursor| rotation::select(&self.hops, cursor);
        paths.get(self.cursors.update(turn))
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
