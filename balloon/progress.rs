// SPDX-License-Identifier: GPL-2.0

//! What the balloon is doing, for people: the files in debugfs.

use crate::resize::Resize;
use core::mem;
use ferrule::{
    mm::vmstat::pages_to_bytes,
    virtio,
    work::OwnedWork, //
};
use kernel::{
    debugfs::Scope,
    device::Core,
    fmt,
    new_spinlock,
    page::PAGE_SIZE,
    prelude::*,
    sync::{
        Arc,
        SpinLock, //
    },
    time::{
        Delta,
        Instant,
        Monotonic, //
    }, //
};

/// How long the log is not told again.
const QUIET: Delta = Delta::from_secs(10);

/// Where the balloon is going.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Going {
    /// It has its size.
    Nowhere,
    /// It grows.
    In,
    /// It shrinks.
    Out,
    /// It would grow if the guest had memory to spare.
    Waiting,
    /// There was an error.
    Stopped,
}

impl Going {
    fn name(self) -> &'static str {
        match self {
            Going::Nowhere => "at its target",
            Going::In => "inflating",
            Going::Out => "deflating",
            Going::Waiting => "waiting for memory",
            Going::Stopped => "stopped by an error",
        }
    }
}

/// How the balloon moved.
#[pin_data]
pub(crate) struct Progress {
    /// Process context.
    #[pin]
    state: SpinLock<State>,
}

struct State {
    going: Going,
    /// It stopped, and has done nothing else since.
    has_failed: bool,
    /// When the log was told last.
    told: Option<Instant<Monotonic>>,
    /// When the step began that is under way or was last.
    began: Instant<Monotonic>,
    /// When the size has changed last.
    changed: Option<Instant<Monotonic>>,
    inward: Run,
    outward: Run,
}

impl State {
    fn is_now(&mut self, going: Going) {
        self.going = going;
        self.has_failed = false;
    }
}

/// A run of steps in one direction.
#[derive(Clone, Copy, Default)]
struct Run {
    pages: u64,
    nanoseconds: u64,
}

impl Run {
    fn bytes_per_second(self) -> u64 {
        let bytes = self.pages.saturating_mul(PAGE_SIZE as u64);
        // Of microseconds, so that a TiB does not overflow.
        bytes
            .saturating_mul(1_000_000)
            .checked_div(self.nanoseconds / 1000)
            .unwrap_or(0)
    }
}

impl Progress {
    pub(crate) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            state <- new_spinlock!(State {
                going: Going::Nowhere,
                has_failed: false,
                told: None,
                began: Instant::now(),
                changed: None,
                inward: Run::default(),
                outward: Run::default(),
            }, "balloon_progress"),
        })
    }

    /// A step in or out begins.
    pub(crate) fn begins(&self, going: Going) {
        let mut state = self.state.lock();
        state.began = Instant::now();
        if state.going != going {
            // Another run.
            match going {
                Going::In => state.inward = Run::default(),
                _ => state.outward = Run::default(),
            }
        }
        state.going = going;
    }

    /// It has ended, and moved so many pages.
    pub(crate) fn ends(&self, pages: u64) {
        let mut state = self.state.lock();
        let took = state.began.elapsed().as_nanos().max(0) as u64;
        let run = match state.going {
            Going::In => &mut state.inward,
            _ => &mut state.outward,
        };
        run.pages += pages;
        run.nanoseconds += took;
        if pages > 0 {
            state.changed = Some(Instant::now());
            state.has_failed = false;
        }
    }

    pub(crate) fn rests(&self) {
        self.state.lock().is_now(Going::Nowhere);
    }

    pub(crate) fn waits(&self) {
        self.state.lock().is_now(Going::Waiting);
    }

    /// Says whether that is news: it has moved, rested or waited since it stopped last.
    pub(crate) fn stops(&self) -> bool {
        let mut state = self.state.lock();
        state.going = Going::Stopped;
        !mem::replace(&mut state.has_failed, true)
    }

    /// Whether the log may be told something: a host can make it happen all the time.
    pub(crate) fn may_tell(&self) -> bool {
        may_tell(&mut self.state.lock().told)
    }
}

/// Whether it is long enough since the log was told last. Then it is told now.
pub(crate) fn may_tell(told: &mut Option<Instant<Monotonic>>) -> bool {
    let may = told.is_none_or(|told| told.elapsed() >= QUIET);
    if may {
        *told = Some(Instant::now());
    }
    may
}

type Work = Arc<OwnedWork<Resize>>;

/// The files of a device. Dropping it removes them.
pub(crate) type Files = Pin<KBox<Scope<Work>>>;

/// Makes the files of a device, in a directory with its name, if there is debugfs.
pub(crate) fn files(dev: &virtio::Device<Core<'_>>, work: &Work) -> Result<Option<Files>> {
    let Some(parent) = dev.driver_debugfs() else {
        return Ok(None);
    };
    let scope = parent.scope(work.clone(), dev.as_ref().name(), |work, dir| {
        dir.read_callback_file(c"target", work, &target);
        dir.read_callback_file(c"actual", work, &actual);
        dir.read_callback_file(c"blocks", work, &blocks);
        dir.read_callback_file(c"state", work, &state);
        dir.read_callback_file(c"rates", work, &rates);
        dir.read_callback_file(c"last_change", work, &last_change);
    });
    Ok(Some(KBox::pin_init(scope, GFP_KERNEL)?))
}

/// What the host wants in the balloon, in bytes.
fn target(work: &Work, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let pages = work.target().map_err(|_| fmt::Error)?;
    writeln!(f, "{}", pages.saturating_mul(PAGE_SIZE as u64))
}

/// What is in the balloon, in bytes.
fn actual(work: &Work, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    writeln!(f, "{}", pages_to_bytes(work.size()))
}

/// How many blocks of each order, and single pages, are in the balloon.
fn blocks(work: &Work, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    writeln!(f, "pages {}", work.single_pages())?;
    for (order, count) in work.block_counts().iter().enumerate() {
        writeln!(f, "order {order} {count}")?;
    }
    Ok(())
}

/// What it is doing.
fn state(work: &Work, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let going = work.progress().state.lock().going;
    writeln!(f, "{}", going.name())
}

/// How fast it went in and out the last time, in bytes per second.
fn rates(work: &Work, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let (inward, outward) = {
        let state = work.progress().state.lock();
        (state.inward, state.outward)
    };
    writeln!(f, "inflate {}", inward.bytes_per_second())?;
    writeln!(f, "deflate {}", outward.bytes_per_second())
}

/// How long ago its size has changed last, in milliseconds. Empty if it never has.
fn last_change(work: &Work, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let changed = work.progress().state.lock().changed;
    match changed {
        Some(changed) => writeln!(f, "{}", changed.elapsed().as_millis()),
        None => Ok(()),
    }
}
