// SPDX-License-Identifier: GPL-2.0

//! The path selector: table arguments, memory and CPUs around the decisions in `rotation`.

use super::{
    cell::Cell,
    policy::{
        latency::{
            self,
            Gauge,
            Law, //
        },
        rotation::{
            self,
            Effort,
            Job, //
        }, //
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
        Needs,
        Path,
        PathSelector,
        Paths,
        Refusal,
        Report,
        StatusWriter, //
    },
    new_owned_work,
    percpu::{
        PerCpuCounters,
        PerCpuU32, //
    },
    time::now_ns,
    work::{
        OwnedWork,
        Run, //
    }, //
};
use kernel::{
    new_mutex,
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Relaxed, //
        },
        Arc,
        Mutex, //
    },
    time::Delta,
    workqueue::system_unbound, //
};

/// The selector argument with which weights follow latency.
const LATENCY: &[u8] = b"latency";

/// What a path's weight may be.
const WEIGHTS: RangeInclusive<u64> = 0..=u32::MAX as u64;

const INCORRECT_NUMBER: Refusal =
    Refusal::new(EINVAL, c"round-robin ps: incorrect number of arguments");
const INVALID_COUNT: Refusal = Refusal::new(EINVAL, c"round-robin ps: invalid repeat count");
const TOO_MANY_PATHS: Refusal = Refusal::new(EINVAL, c"round-robin ps: too many paths");
const NO_MEMORY: Refusal = Refusal::new(ENOMEM, c"round-robin ps: Error allocating path context");

/// The selector of a priority group. Its work is to look at latencies, and is only started when the
/// weights follow them.
#[pin_data]
pub(crate) struct RoundRobin {
    #[pin]
    group: OwnedWork<Group>,
}

/// The paths of a priority group and their turns.
///
/// `add_path` makes everything anew, as only the last path completes it; then only the contents of
/// the hops, of the schedule and of the cursors change.
///
/// With many paths it only makes room, and whoever needs the schedule first makes it: who selects,
/// and finds no hops. That is the only time that selecting takes a lock.
#[pin_data]
struct Group {
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
    /// Weights follow latency.
    follows_latency: bool,
    /// The work is enqueued, or about to be. Written when the group becomes idle or busy.
    is_watched: Atomic<bool>,
    /// Taken with multipath's lock held, or without.
    #[pin]
    schedule: SpinLockIrq<Schedule>,
    /// Taken by the work alone.
    #[pin]
    watch: Mutex<Watch>,
}

/// For each slot a path.
struct Schedule {
    order: KVVec<u16>,
    jobs: KVVec<Job>,
}

/// What the work needs to follow latency. Nothing if the group does not.
#[derive(Default)]
struct Watch {
    law: Law,
    paths: KVec<Arc<Meter>>,
    gauges: KVVec<Gauge>,
    /// As long as the schedule's: the next order is made here, and then put in its place.
    order: KVVec<u16>,
    jobs: KVVec<Job>,
}

/// A path's latency, and what follows from it.
struct Meter {
    /// For each class of sizes, the sum of the I/Os' samples.
    samples: PerCpuCounters<{ latency::CLASSES }>,
    /// What an I/O takes.
    latency_us: Atomic<u32>,
    /// Of the schedule's slots, the path's.
    slots: Atomic<u32>,
}

/// What is kept for a path.
pub(crate) struct RoundRobinPath {
    weight: u32,
    /// If weights follow latency.
    meter: Option<Arc<Meter>>,
}

impl Group {
    fn new(follows_latency: bool) -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            weights: KVec::new(),
            is_in_service: KVec::new(),
            hops: KVVec::new(),
            cursors: PerCpuU32::new()?,
            is_made: Atomic::new(false),
            follows_latency,
            is_watched: Atomic::new(false),
            schedule <- new_spinlock_irq!(Schedule {
                order: KVVec::new(),
                jobs: KVVec::new(),
            }),
            watch <- new_mutex!(Watch::default()),
        })
    }

    /// Adds a path. On an error what was there before is of no use any more.
    fn add(self: Pin<&mut Self>, weight: u32) -> Result<Option<Arc<Meter>>> {
        let this = self.project();
        this.weights.push(weight, GFP_KERNEL)?;
        this.is_in_service.push(Atomic::new(true), GFP_KERNEL)?;

        let mut jobs = KVVec::from_elem(Job::default(), this.weights.len(), GFP_KERNEL)?;
        let own = rotation::share_out(this.weights, &mut jobs);
        let mut slots = own;
        let mut meter = None;
        if *this.follows_latency {
            slots = latency::slots(jobs.len(), own);
            let factor = (slots / own.max(1)) as u32;
            rotation::multiply_slots(&mut jobs, factor);
            meter = Some(this.watch.lock().add(&jobs, slots)?);
        }
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
            let effort = match this.follows_latency {
                true => Effort::Once,
                false => Effort::Search,
            };
            rotation::make_schedule(&mut order, &mut jobs, effort);
            rotation::make_hops(&order, this.hops, |_| true);
        }
        this.is_made.store(is_made, Relaxed);
        let before = mem::replace(&mut *this.schedule.lock(), Schedule { order, jobs });
        // Where it may sleep.
        drop(before);
        Ok(meter)
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
            rotation::make_schedule(order, jobs, Effort::Search);
            self.make_hops(order);
            self.is_made.store(true, Relaxed);
        }
    }

    fn set_in_service(&self, path: usize, value: bool) {
        let schedule = self.schedule.lock();
        if let Some(is_in_service) = self.is_in_service.get(path) {
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

impl Watch {
    /// Adds a path. `jobs` are all paths', with their own slots.
    fn add(&mut self, jobs: &[Job], slots: usize) -> Result<Arc<Meter>> {
        let meter = Arc::new(
            Meter {
                samples: PerCpuCounters::new()?,
                latency_us: Atomic::new(0),
                slots: Atomic::new(0),
            },
            GFP_KERNEL,
        )?;
        self.paths.push(meter.clone(), GFP_KERNEL)?;
        self.gauges = KVVec::with_capacity(jobs.len(), GFP_KERNEL)?;
        for (path, job) in self.paths.iter().zip(jobs) {
            self.gauges.push(Gauge::new(job.slots()), GFP_KERNEL)?;
            path.slots.store(job.slots(), Relaxed);
        }
        self.order = KVVec::from_elem(0u16, slots, GFP_KERNEL)?;
        self.jobs = KVVec::from_elem(Job::default(), jobs.len(), GFP_KERNEL)?;
        Ok(meter)
    }

    /// Reads what was measured, and makes the next order of it if that is another.
    fn look(&mut self, is_in_service: impl Fn(usize) -> bool) -> bool {
        for (gauge, path) in self.gauges.iter_mut().zip(&self.paths) {
            for class in 0..latency::CLASSES {
                gauge.read(class, path.samples.sum(class));
            }
        }
        let is_another = self.law.look(&mut self.gauges, is_in_service);
        if is_another {
            rotation::set_slots(&mut self.jobs, self.gauges.iter().map(Gauge::slots));
            rotation::make_schedule(&mut self.order, &mut self.jobs, Effort::Once);
        }
        for (gauge, path) in self.gauges.iter().zip(&self.paths) {
            let us = gauge.latency_ns() / 1000;
            path.latency_us.store(us as u32, Relaxed);
            path.slots.store(gauge.slots(), Relaxed);
        }
        is_another
    }
}

impl Run for Group {
    fn run(work: &OwnedWork<Self>) {
        let mut watch = work.watch.lock();
        let is_another = watch.look(|path| {
            work.is_in_service
                .get(path)
                .is_some_and(|is_in_service| is_in_service.load(Relaxed))
        });
        if is_another {
            let mut schedule = work.schedule.lock();
            mem::swap(&mut schedule.order, &mut watch.order);
            work.make_hops(&schedule.order);
            work.is_made.store(true, Relaxed);
        }
        if watch.law.is_idle() {
            // Until the next I/O ends. One that ends just now waits for the one after it.
            work.is_watched.store(false, Relaxed);
        } else {
            work.look_later();
        }
    }
}

/// How the work is enqueued.
trait LookLater {
    fn look_later(&self);
}

impl LookLater for OwnedWork<Group> {
    fn look_later(&self) {
        let delay = Delta::from_millis(latency::PERIOD_MS.into());
        self.enqueue_after(system_unbound(), delay);
    }
}

impl RoundRobin {
    /// An I/O has ended and nobody looks at the latencies.
    #[cold]
    fn begin_to_watch(&self) {
        if !self.group.is_watched.xchg(true, Relaxed) {
            self.group.look_later();
        }
    }
}

#[vtable]
impl PathSelector for RoundRobin {
    type Path = RoundRobinPath;

    const NAME: &'static CStr = c"round-robin-rs";
    const ALIAS: Option<&'static CStr> = Some(c"round-robin");
    const TABLE_ARGS: u32 = 1;
    const INFO_ARGS: u32 = 3;
    const USE_HR_TIMER: bool = true;

    /// Whatever is not known is ignored, as the C selector does with all arguments.
    fn create(mut args: Args<'_>) -> impl PinInit<Self, Error> {
        let mut follows_latency = false;
        while let Some(word) = args.next() {
            follows_latency |= word.to_bytes() == LATENCY;
        }
        try_pin_init!(Self {
            group <- new_owned_work!(Group::new(follows_latency), "round-robin-rs"),
        })
    }

    fn needs(&self) -> Needs {
        match self.group.follows_latency {
            true => Needs {
                info_args: Self::INFO_ARGS,
                io: true,
            },
            false => Needs {
                info_args: 0,
                io: false,
            },
        }
    }

    fn add_path(self: Pin<&mut Self>, mut args: Args<'_>) -> Result<RoundRobinPath, Refusal> {
        if args.remaining() > 1 {
            return Err(INCORRECT_NUMBER);
        }
        let weight = match args.remaining() {
            0 => 1,
            _ => args.number("weight", WEIGHTS).map_err(|_| INVALID_COUNT)? as u32,
        };
        let group = self.project().group.data_mut();
        if group.weights.len() == rotation::MAX_PATHS {
            return Err(TOO_MANY_PATHS);
        }

        // The table is refused: that something is left over matters to nobody.
        let meter = group.add(weight).map_err(|_| NO_MEMORY)?;
        Ok(RoundRobinPath { weight, meter })
    }

    #[inline]
    fn select_path<'a>(&'a self, paths: Paths<'a, Self>, _: usize) -> Option<&'a Path<Self>> {
        let path = paths.get(self.group.turn());
        if path.is_none() {
            // This is the first time, or nothing is in service, or both were so a moment ago.
            self.group.make();
            return paths.get(self.group.turn());
        }
        path
    }

    #[inline]
    fn end_io(&self, path: &Path<Self>, nr_bytes: usize, start_time_ns: Option<u64>) {
        let (Some(meter), Some(start)) = (&path.meter, start_time_ns) else {
            return;
        };
        // A flush takes what it takes.
        if nr_bytes == 0 {
            return;
        }
        let took = now_ns().saturating_sub(start);
        meter
            .samples
            .add(latency::class(nr_bytes), latency::sample(took));
        if !self.group.is_watched.load(Relaxed) {
            self.begin_to_watch();
        }
    }

    fn fail_path(&self, path: &Path<Self>) {
        self.group.set_in_service(path.index(), false);
    }

    fn reinstate_path(&self, path: &Path<Self>) -> Result {
        self.group.set_in_service(path.index(), true);
        Ok(())
    }

    fn selector_status(&self, report: Report, out: &mut StatusWriter<'_>) {
        if self.group.follows_latency && report == Report::Table {
            write!(out, "1 latency ");
        } else {
            write!(out, "0 ");
        }
    }

    fn path_status(&self, path: &Path<Self>, report: Report, out: &mut StatusWriter<'_>) {
        match (report, &path.meter) {
            (Report::Table, _) => write!(out, "{} ", path.weight),
            (Report::Info, Some(meter)) => {
                // Of 10,000, as the share is printed in percent with two places.
                let share =
                    meter.slots.load(Relaxed) as usize * 10_000 / self.group.hops.len().max(1);
                write!(
                    out,
                    "{} {} {}.{:02} ",
                    path.weight,
                    meter.latency_us.load(Relaxed),
                    share / 100,
                    share % 100
                )
            }
            _ => {}
        }
    }
}
