// SPDX-License-Identifier: GPL-2.0

//! The path selector: table arguments, memory and CPUs around the decisions in `rotation`.

use super::{
    cell::Cell,
    policy::{
        in_flight::{
            self,
            Round,
            Trust, //
        },
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
    atomic::ReadOnce,
    compat::{
        new_spinlock_irq,
        SpinLockIrq, //
    },
    device_mapper::path_selector::{
        Args,
        Needs,
        Path,
        PathDevice,
        PathSelector,
        Paths,
        Refusal,
        Report,
        StatusWriter, //
    },
    new_owned_work,
    numa::{
        Node,
        LOCAL_DISTANCE, //
    },
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
    cpu::nr_cpu_ids,
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
/// The one with which a CPU's I/O takes the paths that are nearest to it.
const NEAREST: &[u8] = b"nearest";

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
/// With many paths it only makes room, as much as any schedule needs, and whoever needs the schedule
/// first makes it: who selects, and finds no hops. That is the only time that selecting takes a lock.
#[pin_data]
struct Group {
    /// The paths' weights, in the order in which they were added.
    weights: KVec<u32>,
    /// For each path whether it is in service. Changed under multipath's lock.
    is_in_service: KVec<Atomic<bool>>,
    /// Who has a section of the schedule and of the hops: the CPUs of each node, if distance counts, or all.
    views: KVec<View>,
    /// For each slot of each section, the next one whose path is to be used.
    hops: KVVec<Cell>,
    /// How far apart the sections of `hops` begin: at least as many slots as a section has.
    stride: usize,
    /// Each CPU's place in its section.
    cursors: PerCpuU32,
    /// What is measured, if weights follow latency: one for each path.
    meters: KVec<Arc<Meter>>,
    /// The [`Round`] of what is in flight, and when it began. Written by the work.
    round: Atomic<u32>,
    began_ns: Atomic<u64>,
    /// An I/O has ended on a CPU that knows of none.
    has_strayed: Atomic<bool>,
    /// The schedule is made.
    is_made: Atomic<bool>,
    mode: Mode,
    /// The work is enqueued, or about to be. Written when the group becomes idle or busy.
    is_watched: Atomic<bool>,
    /// Taken with multipath's lock held, or without.
    #[pin]
    schedule: SpinLockIrq<Schedule>,
    /// Taken by the work alone.
    #[pin]
    watch: Mutex<Watch>,
}

/// What the selector's arguments ask for.
#[derive(Clone, Copy, Default)]
struct Mode {
    /// Weights follow latency.
    follows_latency: bool,
    /// Near paths come first.
    takes_nearest: bool,
}

/// CPUs, and how far the paths are from them.
struct View {
    /// Where they are; nowhere in particular when distance does not count.
    node: Option<Node>,
    cpus: KVec<u32>,
    /// For each path.
    distances: KVec<u32>,
}

/// For each slot of each section a path.
#[derive(Default)]
struct Schedule {
    order: KVVec<u16>,
    /// For each section those of all paths.
    jobs: KVVec<Job>,
}

/// What the work needs to follow latency. Nothing if the group does not.
#[derive(Default)]
struct Watch {
    trust: Trust,
    /// For each section.
    sides: KVec<Side>,
    /// As long as the schedule's: the next order is made here, and then put in its place.
    order: KVVec<u16>,
    jobs: KVVec<Job>,
}

/// The paths as the CPUs of one section find them.
#[derive(Default)]
struct Side {
    law: Law,
    gauges: KVVec<Gauge>,
}

/// A path's latency, and what follows from it.
struct Meter {
    /// For each class of sizes, the sum of the I/Os' samples.
    samples: PerCpuCounters<{ latency::CLASSES }>,
    /// For each CPU the I/Os in flight, as far as it knows.
    in_flight: PerCpuU32,
    /// Of how many I/Os one is timed, as a power of two.
    timed_shift: Atomic<u32>,
    /// What an I/O takes.
    latency_us: Atomic<u32>,
    /// Of the schedule's slots, in all sections, the path's.
    slots: Atomic<u32>,
}

/// What is kept for a path.
pub(crate) struct RoundRobinPath {
    weight: u32,
    /// If weights follow latency.
    meter: Option<Arc<Meter>>,
}

impl View {
    /// All CPUs, where distance does not count; else a view for each node that has some.
    fn all(takes_nearest: bool) -> Result<KVec<Self>> {
        let mut views: KVec<Self> = KVec::new();
        for cpu in 0..nr_cpu_ids() {
            let node = Node::of_cpu(cpu).filter(|_| takes_nearest);
            let found = views.iter().position(|view| view.node == node);
            let index = match found {
                Some(index) => index,
                // It does not exist, or nobody knows.
                None if node.is_none() && !views.is_empty() => 0,
                // More nodes than there can be sections: the last ones share.
                None if views.len() == rotation::MAX_SECTIONS => views.len() - 1,
                None => {
                    let (cpus, distances) = (KVec::new(), KVec::new());
                    let view = Self {
                        node,
                        cpus,
                        distances,
                    };
                    views.push(view, GFP_KERNEL)?;
                    views.len() - 1
                }
            };
            views[index].cpus.push(cpu, GFP_KERNEL)?;
        }
        Ok(views)
    }

    /// Adds a path that is behind something on this node. One of which nothing is known is near to all.
    fn add(&mut self, node: Option<Node>) -> Result {
        let distance = match (self.node, node) {
            (Some(ours), Some(node)) => ours.distance(node),
            _ => LOCAL_DISTANCE,
        };
        Ok(self.distances.push(distance, GFP_KERNEL)?)
    }

    /// How far the nearest path is, whether or not it is in service.
    fn nearest(&self) -> u32 {
        rotation::nearest(&self.distances, |_| true).unwrap_or(LOCAL_DISTANCE)
    }
}

impl Group {
    fn new(mode: Mode) -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            weights: KVec::new(),
            is_in_service: KVec::new(),
            views: View::all(mode.takes_nearest)?,
            hops: KVVec::new(),
            stride: 0,
            cursors: PerCpuU32::new()?,
            meters: KVec::new(),
            round: Atomic::new(Round::FIRST.0),
            began_ns: Atomic::new(0),
            has_strayed: Atomic::new(false),
            is_made: Atomic::new(false),
            mode,
            is_watched: Atomic::new(false),
            schedule <- new_spinlock_irq!(Schedule {
                order: KVVec::new(),
                jobs: KVVec::new(),
            }),
            watch <- new_mutex!(Watch::default()),
        })
    }

    /// Adds a path. On an error what was there before is of no use any more.
    fn add(
        mut self: Pin<&mut Self>,
        weight: u32,
        node: Option<Node>,
    ) -> Result<Option<Arc<Meter>>> {
        let this = self.as_mut().project();
        this.weights.push(weight, GFP_KERNEL)?;
        this.is_in_service.push(Atomic::new(true), GFP_KERNEL)?;
        for view in this.views.iter_mut() {
            view.add(node)?;
        }

        let paths = this.weights.len();
        if paths > rotation::MAX_EAGER && !this.mode.follows_latency {
            self.make_room()?;
            return Ok(None);
        }
        let sections = this.views.len();
        let mut jobs = KVVec::from_elem(Job::default(), paths * sections, GFP_KERNEL)?;
        let mut slots = 0;
        for jobs in jobs.chunks_exact_mut(paths) {
            slots = rotation::share_out(this.weights, jobs);
        }
        let mut meter = None;
        if this.mode.follows_latency {
            let own = slots;
            slots = latency::slots(paths, own);
            let factor = (slots / own.max(1)) as u32;
            rotation::multiply_slots(&mut jobs, factor);
            let new = Arc::new(Meter::new()?, GFP_KERNEL)?;
            this.meters.push(new.clone(), GFP_KERNEL)?;
            let mut watch = this.watch.lock();
            watch.add(this.views, &mut jobs, slots)?;
            watch.report(this.meters);
            meter = Some(new);
        }
        let whole = slots * sections;
        let mut order = KVVec::from_elem(0u16, whole, GFP_KERNEL)?;
        this.hops.clear();
        add_hops(this.hops, whole)?;
        *this.stride = slots;
        self.as_mut().set_cursors(slots);

        let is_made = paths <= rotation::MAX_EAGER;
        if is_made {
            make_order(&mut order, &mut jobs, paths, self.mode.effort());
            self.make_hops(&order);
        }
        self.is_made.store(is_made, Relaxed);
        let before = mem::replace(&mut *self.schedule.lock(), Schedule { order, jobs });
        // Where it may sleep.
        drop(before);
        Ok(meter)
    }

    /// Makes room for the schedule of many paths. That is so much in most cases that it costs a path hardly
    /// anything.
    fn make_room(mut self: Pin<&mut Self>) -> Result {
        let this = self.as_mut().project();
        let (paths, whole) = (this.weights.len(), rotation::MAX_SLOTS * this.views.len());
        let mut schedule = mem::take(&mut *this.schedule.lock());
        // Nothing may sleep while the schedule is locked.
        schedule.order.resize(whole, 0, GFP_KERNEL)?;
        let jobs = paths * this.views.len();
        schedule.jobs.resize(jobs, Job::default(), GFP_KERNEL)?;
        // The first ones had theirs made.
        if this.is_made.load(Relaxed) {
            this.is_made.store(false, Relaxed);
            this.hops.clear();
            add_hops(this.hops, whole)?;
            *this.stride = rotation::MAX_SLOTS;
        }
        *this.schedule.lock() = schedule;
        // Each path has a slot at least.
        self.set_cursors(paths);
        Ok(())
    }

    /// Spreads the CPUs over the sections, which have so many slots at least.
    fn set_cursors(self: Pin<&mut Self>, slots: usize) {
        let this = self.project();
        for (section, view) in this.views.iter().enumerate() {
            for (nth, &cpu) in view.cpus.iter().enumerate() {
                let first = rotation::first_slot(nth as u32, slots);
                this.cursors
                    .set(cpu, (section * *this.stride) as u32 + first);
            }
        }
    }

    fn is_in_service(&self, path: usize) -> bool {
        self.is_in_service
            .get(path)
            .is_some_and(|is_in_service| is_in_service.load(Relaxed))
    }

    fn make_hops(&self, order: &[u16]) {
        let slots = order.len() / self.views.len().max(1);
        for (section, view) in self.views.iter().enumerate() {
            let (begin, first) = (section * self.stride, section * slots);
            let (Some(order), Some(hops)) = (
                order.get(first..first + slots),
                self.hops.get(begin..begin + slots),
            ) else {
                continue;
            };
            // By latency, far paths have few slots.
            let farthest = match self.mode.follows_latency {
                true => None,
                false => rotation::nearest(&view.distances, |path| self.is_in_service(path)),
            };
            let is_near = |path| match (farthest, view.distances.get(path)) {
                (Some(farthest), Some(&distance)) => distance <= farthest,
                _ => true,
            };
            rotation::make_hops(order, hops, begin, |path| {
                self.is_in_service(path) && is_near(path)
            });
        }
    }

    /// Makes the schedule, unless it is made. Any context.
    #[cold]
    fn make(&self) {
        let mut schedule = self.schedule.lock();
        if !self.is_made.load(Relaxed) {
            let Schedule { order, jobs } = &mut *schedule;
            let paths = self.weights.len();
            if !self.mode.follows_latency {
                // There is room for more.
                let mut slots = 0;
                for jobs in jobs.chunks_exact_mut(paths.max(1)) {
                    slots = rotation::share_out(&self.weights, jobs);
                }
                order.truncate(slots * self.views.len());
            }
            make_order(order, jobs, paths, Effort::Search);
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

    #[inline]
    fn round(&self) -> Round {
        Round(self.round.read_once())
    }

    /// Passes over this CPU's next turn, if its path has more in flight than that of the turn after it.
    #[inline]
    fn keep_balance(&self, round: Round) {
        let cursor = self.cursors.read();
        let has_more = |path: usize, other: usize| {
            let paths = (self.meters.get(path), self.meters.get(other));
            matches!(paths, (Some(path), Some(other)) if path.has_more(other, round))
        };
        if let Some(next) = rotation::after_turn(&self.hops, cursor, has_more) {
            // Unless somebody has had the turn meanwhile.
            self.cursors
                .update(|now| (if now == cursor { next } else { now }, ()));
        }
    }

    /// Counts cannot be relied on. Written once a look at most.
    #[cold]
    fn strays(&self) {
        if !self.has_strayed.load(Relaxed) {
            self.has_strayed.store(true, Relaxed);
        }
    }

    /// The path for which it is the turn on this CPU.
    #[inline]
    fn turn(&self) -> usize {
        self.cursors
            .update(|cursor| rotation::select(&self.hops, cursor))
    }
}

/// Adds so many hops that lead nowhere.
fn add_hops(hops: &mut KVVec<Cell>, count: usize) -> Result {
    hops.reserve(count, GFP_KERNEL)?;
    for slot in 0..count {
        hops.push(rotation::no_hop(slot), GFP_KERNEL)?;
    }
    Ok(())
}

/// Makes the schedule of each section: the first, and others where `jobs` differ.
fn make_order(order: &mut [u16], jobs: &mut [Job], paths: usize, effort: Effort) {
    let sections = jobs.len().checked_div(paths).unwrap_or(0);
    let slots = order.len().checked_div(sections).unwrap_or(0);
    let (Some((first, mut order)), Some((first_jobs, mut jobs))) = (
        order.split_at_mut_checked(slots),
        jobs.split_at_mut_checked(paths),
    ) else {
        return;
    };
    rotation::make_schedule(first, first_jobs, effort);
    for _ in 1..sections {
        let (Some((this, others)), Some((these_jobs, other_jobs))) = (
            order.split_at_mut_checked(slots),
            jobs.split_at_mut_checked(paths),
        ) else {
            return;
        };
        if (first_jobs.iter().zip(&*these_jobs)).all(|(a, b)| a.slots() == b.slots()) {
            (this.iter_mut().zip(&*first)).for_each(|(slot, &path)| *slot = path);
        } else {
            rotation::make_schedule(this, these_jobs, effort);
        }
        (order, jobs) = (others, other_jobs);
    }
}

impl Mode {
    fn effort(self) -> Effort {
        match self.follows_latency {
            true => Effort::Once,
            false => Effort::Search,
        }
    }
}

impl Meter {
    fn new() -> Result<Self> {
        Ok(Self {
            samples: PerCpuCounters::new()?,
            in_flight: PerCpuU32::new()?,
            timed_shift: Atomic::new(0),
            latency_us: Atomic::new(0),
            slots: Atomic::new(0),
        })
    }

    /// An I/O was started from this CPU.
    #[inline]
    fn starts(&self, round: Round) {
        if !round.is_right(self.in_flight.add_return(1)) {
            self.mend(round, 1);
        }
    }

    /// An I/O has ended on this CPU. Says whether it was started there, as far as that is known.
    #[inline]
    fn ends(&self, round: Round) -> bool {
        let is_right = round.is_right(self.in_flight.add_return(u32::MAX));
        if !is_right {
            self.mend(round, 0);
        }
        is_right
    }

    #[cold]
    fn mend(&self, round: Round, count: u32) {
        self.in_flight
            .update(|word| (round.mended(word, count), ()));
    }

    /// Whether this CPU has more in flight on this path than on another, by their slots.
    #[inline]
    fn has_more(&self, other: &Self, round: Round) -> bool {
        let (word, other_word) = PerCpuU32::read_two(&self.in_flight, &other.in_flight);
        in_flight::has_more(
            (round.count(word), self.slots.read_once()),
            (round.count(other_word), other.slots.read_once()),
        )
    }
}

impl Watch {
    /// Adds a path. `jobs` are all paths', with their own slots, for each view; they are left with the slots
    /// to begin with.
    fn add(&mut self, views: &[View], jobs: &mut [Job], slots: usize) -> Result {
        let paths = jobs.len() / views.len().max(1);
        while self.sides.len() < views.len() {
            self.sides.push(Side::default(), GFP_KERNEL)?;
        }
        let each = jobs.chunks_exact_mut(paths);
        for ((side, view), jobs) in self.sides.iter_mut().zip(views).zip(each) {
            side.gauges.push(Gauge::default(), GFP_KERNEL)?;
            let nearest = view.nearest();
            for ((gauge, job), &distance) in side.gauges.iter_mut().zip(&*jobs).zip(&view.distances)
            {
                gauge.begin(job.slots(), distance, nearest);
            }
            Law::begin(&mut side.gauges);
            rotation::set_slots(jobs, side.gauges.iter().map(Gauge::slots));
        }
        self.order = KVVec::from_elem(0u16, slots * views.len(), GFP_KERNEL)?;
        self.jobs = KVVec::from_elem(Job::default(), jobs.len(), GFP_KERNEL)?;
        Ok(())
    }

    /// Reads what was measured, and makes the next order of it if that is another.
    fn look(
        &mut self,
        views: &[View],
        meters: &[Arc<Meter>],
        is_in_service: impl Fn(usize) -> bool,
    ) -> bool {
        let mut is_another = false;
        for (side, view) in self.sides.iter_mut().zip(views) {
            for (gauge, path) in side.gauges.iter_mut().zip(meters) {
                for class in 0..latency::CLASSES {
                    let sum = view.cpus.iter().fold(0u64, |sum, &cpu| {
                        sum.wrapping_add(path.samples.of_cpu(class, cpu))
                    });
                    gauge.read(class, sum);
                }
            }
            is_another |= side.law.look(&mut side.gauges, &is_in_service);
        }
        if is_another {
            let all = self.sides.iter().flat_map(|side| side.gauges.iter());
            rotation::set_slots(&mut self.jobs, all.map(Gauge::slots));
            make_order(&mut self.order, &mut self.jobs, meters.len(), Effort::Once);
        }
        self.report(meters);
        is_another
    }

    /// For status.
    fn report(&self, meters: &[Arc<Meter>]) {
        for (index, path) in meters.iter().enumerate() {
            let gauges = || self.sides.iter().filter_map(|side| side.gauges.get(index));
            let known = gauges().map(Gauge::latency_ns).filter(|&ns| ns > 0);
            let (count, sum) = known.fold((0u64, 0u64), |(count, sum), ns| (count + 1, sum + ns));
            let us = sum / count.max(1) / 1000;
            path.latency_us.store(us as u32, Relaxed);
            path.slots.store(gauges().map(Gauge::slots).sum(), Relaxed);
            // The busiest CPUs decide.
            let shift = gauges().map(Gauge::timed_shift).max();
            path.timed_shift.store(shift.unwrap_or(0), Relaxed);
        }
    }

    fn is_idle(&self) -> bool {
        self.sides.iter().all(|side| side.law.is_idle())
    }
}

impl Run for Group {
    fn run(work: &OwnedWork<Self>) {
        let mut watch = work.watch.lock();
        let has_strayed = work.has_strayed.xchg(false, Relaxed);
        let (round, begins) = watch.trust.look(has_strayed);
        // Beside `start_io` and `end_io`, without an order: who sees one of the two without the other counts an
        // I/O too many or too few, or takes it for a stray, until the next round.
        if begins {
            work.began_ns.store(now_ns(), Relaxed);
        }
        work.round.store(round.0, Relaxed);
        if watch.look(&work.views, &work.meters, |path| work.is_in_service(path)) {
            let mut schedule = work.schedule.lock();
            mem::swap(&mut schedule.order, &mut watch.order);
            work.make_hops(&schedule.order);
            work.is_made.store(true, Relaxed);
        }
        if watch.is_idle() {
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
        let mut mode = Mode::default();
        while let Some(word) = args.next() {
            mode.follows_latency |= word.to_bytes() == LATENCY;
            mode.takes_nearest |= word.to_bytes() == NEAREST;
        }
        try_pin_init!(Self {
            group <- new_owned_work!(Group::new(mode), "round-robin-rs"),
        })
    }

    fn needs(&self) -> Needs {
        match self.group.mode.follows_latency {
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

    fn add_path(
        self: Pin<&mut Self>,
        device: PathDevice<'_>,
        mut args: Args<'_>,
    ) -> Result<RoundRobinPath, Refusal> {
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
        let meter = group.add(weight, device.node()).map_err(|_| NO_MEMORY)?;
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
    fn start_io(&self, path: &Path<Self>, _: usize) {
        if let Some(meter) = &path.meter {
            meter.starts(self.group.round());
        }
    }

    #[inline]
    fn end_io(&self, path: &Path<Self>, nr_bytes: usize, start_time_ns: Option<u64>) {
        let Some(meter) = &path.meter else {
            return;
        };
        let began = self.group.began_ns.read_once();
        if start_time_ns.is_none_or(|start| start >= began) {
            let round = self.group.round();
            if !meter.ends(round) {
                self.group.strays();
            } else if round.is_trusted() {
                self.group.keep_balance(round);
            }
        }
        let Some(start) = start_time_ns else {
            return;
        };
        // A flush takes what it takes.
        if nr_bytes == 0 {
            return;
        }
        let shift = meter.timed_shift.read_once();
        if !latency::is_timed(start, shift) {
            return;
        }
        let took = now_ns().saturating_sub(start);
        meter
            .samples
            .add(latency::class(nr_bytes), latency::sample(took, shift));
        if !self.group.is_watched.read_once() {
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
        let words = match (report, self.group.mode) {
            (Report::Table, mode) => match (mode.follows_latency, mode.takes_nearest) {
                (true, true) => "2 latency nearest ",
                (true, false) => "1 latency ",
                (false, true) => "1 nearest ",
                (false, false) => "0 ",
            },
            _ => "0 ",
        };
        write!(out, "{words}");
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
