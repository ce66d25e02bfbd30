// SPDX-License-Identifier: GPL-2.0

//! Moves the balloon to the size that the host wants, or as near as the guest can afford.
//!
//! Who may run at the same time:
//!
//! - the work, one step after the other, with `moving` held; it may have helpers on other CPUs take
//!   blocks out, and waits for them;
//! - a change of what the host wants (hardirq), which sets a flag and enqueues the work;
//! - migration of single pages (compaction, in any task, and in the work itself when it wants page
//!   blocks), with the host's channel, which is only tried;
//! - the OOM notifier (in any task that allocates, below the allocator), which takes blocks out, or
//!   single pages with the host's channel if nobody else has it. It does not take `moving`, with
//!   which memory is allocated;
//! - memory hotplug (in any task), which takes blocks out of memory that goes offline;
//! - freeze and unbind, after the work.
//!
//! So what is in the balloon is in two places that have locks of their own, and its size is their sum.

use crate::{
    discard::{
        Discards,
        Lent, //
    },
    hint::Hints,
    host::{
        Channel,
        Host,
        Migrator,
        Way,
        WAKE_RESIZE, //
    },
    policy::plan::{
        block_order,
        Compaction,
        Harm,
        Memory,
        Plan,
        Shares,
        Step,
        MIN_ORDER,
        WINDOW, //
    },
    progress::{
        Going,
        Progress, //
    }, //
};
use core::{
    cmp::min,
    ops::Range, //
};
use ferrule::{
    mm::{
        balloon::{
            Allocated,
            Balloon,
            Managed,
            Pages,
            Reclaim, //
        },
        blocks::{
            self,
            Blocks,
            Inflated, //
        },
        hotplug::Offline,
        oom::OutOfMemory,
        shrinker::Shrink,
        vmstat::{
            self,
            pages_to_bytes,
            Node, //
        }, //
    },
    virtio::Either,
    work::{
        OwnedWork,
        Run, //
    },
    workqueue::{
        online_cpus,
        run_with_help, //
    }, //
};
use kernel::{
    new_mutex,
    page::PAGE_SHIFT,
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Relaxed, //
        },
        Arc,
        Mutex, //
    },
    time::{
        delay::fsleep,
        Delta,
        Instant,
        Monotonic, //
    },
    workqueue::{
        system_freezable,
        system_unbound, //
    }, //
};

/// How many messages about single pages make a step. Between steps the host is waited for.
const STEP_MESSAGES: usize = 16;

/// How many pages a message about blocks may have, at most, if it is more than a block: 64 MiB. Target
/// and reserve are looked at before the next.
const MESSAGE_PAGES: usize = (64 << 20) >> PAGE_SHIFT;

/// How many pages of blocks a step takes out, on each CPU: 256 MiB, or a block if that is more, as with
/// pages of 64 KiB. That is quick.
const STEP_OUT_PAGES: usize = {
    let block = 1 << blocks::MAX_ORDER;
    if MESSAGE_PAGES * 4 > block {
        MESSAGE_PAGES * 4
    } else {
        block
    }
};

/// How many other CPUs help with that at most. Memory is not much faster for more.
const MOST_HELPERS: usize = 7;

/// How many pages are held at most to have kswapd reclaim, 16 MiB: what may be free above the low watermark
/// where it is too little to be compacted, or on the lists of processors.
const HELD: usize = (16 << 20) >> PAGE_SHIFT;

/// How often kswapd is looked at, and how many milliseconds apart.
const KSWAPD_TRIES: usize = 50;
const KSWAPD_TRY: Delta = Delta::from_millis(2);

/// How long it takes kswapd to reclaim a few MiB and go to sleep again.
const KSWAPD_NAP: Delta = Delta::from_millis(10);

/// What may come free of itself meanwhile.
const NOT_RECLAIMED: usize = 8;

/// How long to wait when there is no memory to be had.
const RETRY: Delta = Delta::from_millis(200);

/// How often to look whether the guest has enough memory.
const WATCH: Delta = Delta::from_secs(1);

/// How many pages are given to somebody who finds no memory, at least, if there are any
/// (`VIRTIO_BALLOON_OOM_NR_PAGES`).
const GIVE: usize = 256;

/// How often the host's channel is tried then, a millisecond apart.
const GIVE_TRIES: usize = 1000;

/// Work that moves the balloon by one step towards the size that the host wants, and enqueues
/// itself until it is there.
#[pin_data]
pub(crate) struct Resize {
    host: Arc<Host>,
    /// For blocks, if the host takes any.
    discards: Option<Arc<Discards>>,
    /// What is kept for hints is free memory, for the balloon as for anybody.
    hints: Option<Arc<Hints>>,
    managed: Managed,
    /// Single pages.
    #[pin]
    balloon: Balloon<Migrator>,
    #[pin]
    blocks: Inflated,
    /// Sleeps; held while the balloon moves. The host's channel is locked with it.
    #[pin]
    moving: Mutex<Moving>,
    /// Sleeps; so that the host is never told an old size after a new one.
    #[pin]
    telling: Mutex<()>,
    #[pin]
    progress: Progress,
}

/// What moves.
struct Moving {
    plan: Plan,
    incoming: Pages<Allocated>,
    /// Blocks on their way in, empty but for then. With the host while it discards them.
    message: Option<KBox<Lent>>,
    /// For the pages of a block of which some are wanted back.
    rest: Pages<Allocated>,
    /// For those that are held to have kswapd reclaim.
    held: Pages<Allocated>,
    compaction: Compaction,
    /// There was nothing to be had last time, and the log says so.
    is_starved: bool,
    /// When the driver began to look at the guest.
    began: Instant<Monotonic>,
}

/// Which blocks go in.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Pieces {
    /// Any that the host takes.
    Any,
    /// Whole page blocks, as long as free memory stays above the low watermarks.
    Whole,
}

/// When the next step is.
enum Next {
    Now,
    After(Delta),
    /// When the host wants something else.
    Never,
}

impl Resize {
    pub(crate) fn new(
        host: Arc<Host>,
        discards: Option<Arc<Discards>>,
        hints: Option<Arc<Hints>>,
        managed: Managed,
        plan: Plan,
    ) -> Result<impl PinInit<Self>> {
        let rest = if discards.is_some() {
            1 << blocks::MAX_ORDER
        } else {
            0
        };
        let moving = Moving {
            plan,
            incoming: Pages::with_capacity(host.units.batch_pages())?,
            message: None,
            rest: Pages::with_capacity(rest)?,
            held: Pages::with_capacity(HELD)?,
            compaction: Compaction::new(),
            is_starved: false,
            began: Instant::now(),
        };
        Ok(pin_init!(Self {
            balloon <- Balloon::new(Migrator(host.clone()), managed),
            blocks <- Inflated::new(managed),
            moving <- new_mutex!(moving, "balloon_moving"),
            telling <- new_mutex!((), "balloon_telling"),
            progress <- Progress::new(),
            discards,
            hints,
            managed,
            host,
        }))
    }

    /// Makes ready for the queues, after probe and after each restore.
    pub(crate) fn connect(&self) -> Result {
        let Some(discards) = &self.discards else {
            return Ok(());
        };
        let message = match discards.capacity() {
            0 => None,
            capacity => Some(KBox::new(
                Either::First(Blocks::with_capacity(capacity)?),
                GFP_KERNEL,
            )?),
        };
        self.moving.lock().message = message;
        Ok(())
    }

    /// How many pages are in the balloon. Process context.
    pub(crate) fn size(&self) -> usize {
        self.balloon.len() + self.blocks.pages()
    }

    /// How many of them are single ones.
    pub(crate) fn single_pages(&self) -> usize {
        self.balloon.len()
    }

    /// How many blocks of each order there are. Process context.
    pub(crate) fn block_counts(&self) -> [usize; blocks::MAX_ORDER as usize + 1] {
        self.blocks.counts()
    }

    /// How large the host wants it, in pages. Process context.
    pub(crate) fn target(&self) -> Result<u64> {
        self.host.target_pages()
    }

    pub(crate) fn progress(&self) -> &Progress {
        &self.progress
    }

    /// Whether the balloon shrinks when the guest has too little memory. Process context.
    pub(crate) fn gives_back(&self) -> bool {
        self.moving.lock().plan.gives_back()
    }

    /// Tells the host how large the balloon is.
    pub(crate) fn tell_size(&self) -> Result {
        let _telling = self.telling.lock();
        self.host.set_actual(self.size())
    }

    fn memory(&self) -> Memory {
        let memory = vmstat::memory();
        // Whoever needs it gets it, by the shrinker. So the balloon need not shrink for it.
        let hinted = self.hints.as_ref().map_or(0, |hints| hints.count());
        Memory {
            available: memory.available + pages_to_bytes(hinted),
            total: match self.managed {
                Managed::Counted => memory.total,
                Managed::Removed => memory.total + pages_to_bytes(self.size()),
            },
            spare: pages_to_bytes(vmstat::free_above_high().all),
        }
    }

    /// Moves by one step.
    fn step(&self) -> Result<Next> {
        self.host.clear_changed();
        let target = self.host.target_pages()?;
        let mut moving = self.moving.lock();
        if self.host.is_leaving() {
            return Ok(Next::Never);
        }
        let size = self.size() as u64;
        let now = moving.began.elapsed().as_millis().max(0) as u64;
        let harm = Harm {
            refaulted: vmstat::refaulted(),
            swapped: vmstat::swapped_out(),
        };
        let memory = self.memory();
        let step = moving
            .plan
            .next(target, size, memory, (now, harm), PAGE_SHIFT as u32);
        let next = match step {
            Step::Rest => {
                moving.compaction = Compaction::new();
                self.progress.rests();
                return Ok(if size > 0 && moving.plan.gives_back() {
                    Next::After(WATCH)
                } else {
                    Next::Never
                });
            }
            Step::Wait => Ok(self.wait(&mut moving, target.saturating_sub(size))),
            Step::Look(time) => Ok(Next::After(Delta::from_millis(time.into()))),
            Step::Pause(time) => {
                self.progress.waits();
                Ok(Next::After(Delta::from_millis(time.into())))
            }
            Step::Inflate(pages) => self.step_in(&mut moving, pages, Reclaim::Direct),
            Step::Reclaim(pages) => self.step_in(&mut moving, pages, Reclaim::Background),
            Step::Deflate(pages) => {
                self.progress.begins(Going::Out);
                let result = self.deflate(&mut moving, pages as usize);
                self.progress.ends(size.saturating_sub(self.size() as u64));
                result.map(|pages| if pages > 0 { Next::Now } else { Next::Never })
            }
        };
        // Also when it stopped half-way.
        self.tell_size()?;
        next
    }

    /// Takes at most so many pages: of what is free, or in the background what others are reclaimed for.
    fn step_in(&self, moving: &mut Moving, pages: u64, reclaim: Reclaim) -> Result<Next> {
        let size = self.size() as u64;
        self.progress.begins(Going::In);
        let result = match reclaim {
            Reclaim::Direct => self.inflate(moving, pages as usize),
            Reclaim::Background => self.inflate_by_reclaim(moving, pages as usize),
        };
        let taken = (self.size() as u64).saturating_sub(size);
        self.progress.ends(taken);
        result?;
        if taken == 0 {
            return Ok(self.wait(moving, pages));
        }
        moving.is_starved = false;
        if reclaim == Reclaim::Direct {
            return Ok(Next::Now);
        }
        moving.plan.has_reclaimed(taken);
        Ok(Next::After(Delta::from_millis(WINDOW.into())))
    }

    /// There is no memory to be had just now, but for what is kept for hints.
    fn wait(&self, moving: &mut Moving, wanted: u64) -> Next {
        if let Some(hints) = &self.hints {
            if hints.count() > 0 && hints.scan(wanted as usize).is_some() {
                return Next::Now;
            }
        }
        moving.plan.is_short_of_memory();
        self.progress.waits();
        if !moving.is_starved && self.progress.may_tell() {
            dev_info!(
                &*self.host.dev,
                "the guest has no memory to spare: waiting\n"
            );
        }
        moving.is_starved = true;
        // The guest may have freed some by then.
        Next::After(RETRY)
    }

    /// Puts memory in, at most so many pages: a message of blocks if there are any, or else some
    /// messages of pages.
    fn inflate(&self, moving: &mut Moving, wanted: usize) -> Result {
        if self.inflate_blocks(moving, wanted, Pieces::Any)? {
            return Ok(());
        }
        let mut wanted = min(wanted, self.host.units.batch_pages() * STEP_MESSAGES);
        if moving.compaction.smaller() > 0 {
            wanted = min(wanted, moving.compaction.smaller());
            moving.compaction.took_smaller(wanted);
        }
        self.inflate_pages(moving, wanted, Reclaim::Direct)
    }

    /// Puts memory in for which other memory is reclaimed, at most so many pages: by kswapd, as long as
    /// that gets anywhere. Whole page blocks, and single pages where there are none to be had.
    fn inflate_by_reclaim(&self, moving: &mut Moving, wanted: usize) -> Result {
        let batch = self.host.units.batch_pages();
        let full = self.size() + wanted;
        while self.size() < full && !self.host.has_changed() {
            let before = self.size();
            let left = full.saturating_sub(before);
            if left >= 1 << blocks::page_block_order()
                && self.discards.is_some()
                && moving.compaction.smaller() == 0
                && self.inflate_page_blocks(moving, left)?
            {
                continue;
            }
            let left = min(left, batch);
            moving.compaction.took_smaller(left);
            if vmstat::free_above_low().all >= left || moving.have_reclaimed() {
                self.inflate_pages(moving, left, Reclaim::Background)?;
            }
            if self.size() <= before {
                // kswapd does not get anywhere, or has given up, or what is free is for others.
                return self.inflate_pages(moving, left, Reclaim::Direct);
            }
        }
        Ok(())
    }

    /// Puts whole page blocks in, down to the low watermarks: of what is free, or kswapd reclaims, and
    /// compaction makes of it. Says whether there were any.
    fn inflate_page_blocks(&self, moving: &mut Moving, wanted: usize) -> Result<bool> {
        let order = blocks::page_block_order();
        let has_room = || vmstat::free_above_low().most >= blocks::compaction_room(order);
        if self.inflate_blocks(moving, wanted, Pieces::Whole)? {
            return Ok(true);
        }
        if !has_room()
            && moving.have_reclaimed()
            && self.inflate_blocks(moving, wanted, Pieces::Whole)?
        {
            return Ok(true);
        }
        if !blocks::CAN_COMPACT || !has_room() {
            // Else compaction has failed, which is known.
            moving.compaction.has_ended(false, 1 << order);
        }
        Ok(false)
    }

    /// Puts single pages in, at most so many.
    fn inflate_pages(&self, moving: &mut Moving, wanted: usize, reclaim: Reclaim) -> Result {
        let batch = self.host.units.batch_pages();
        let result = by_node(wanted, |node, mut wanted| {
            let all = wanted;
            while wanted > 0 {
                // Not under the channel's lock: an allocation may wait for the migration of a page.
                match moving.incoming.allocate(min(wanted, batch), node, reclaim) {
                    0 => break,
                    pages => wanted -= pages,
                }
                // A host may discard what is in one piece in one call.
                moving.incoming.sort();
                self.host
                    .with_channel(|channel| self.send_in(channel, &mut moving.incoming))?;
                // Not before: a step that takes nothing means that there is nothing to be had.
                if self.host.has_changed() {
                    break;
                }
            }
            Ok(all - wanted)
        });
        self.host
            .with_channel(|channel| self.host.settle(channel, Way::Inflate))?;
        result
    }

    fn send_in(&self, channel: &mut Channel, pages: &mut Pages<Allocated>) -> Result {
        let sent = self.host.letter(channel, Way::Inflate).and_then(|letter| {
            self.host.send(channel, Way::Inflate, letter, |letter| {
                letter.write(&self.host, pages.pfns())?;
                // Before the host is told: it may take them at any time from then on.
                self.balloon.enqueue(pages);
                Ok(())
            })?;
            Ok(())
        });
        // Those that the host was not told of, for whatever reason: there has to be room the next time.
        pages.clear();
        sent
    }

    /// Puts blocks in, the largest that are free, or that compaction makes. Says whether there were any.
    fn inflate_blocks(&self, moving: &mut Moving, wanted: usize, pieces: Pieces) -> Result<bool> {
        let Some(discards) = &self.discards else {
            return Ok(false);
        };
        let Some(mut message) = moving.message.take().or_else(|| discards.late()) else {
            return Ok(false);
        };
        if let Either::First(blocks) = &mut *message {
            if !blocks.is_empty() {
                // They are late.
                self.put(blocks);
                moving.message = Some(message);
                return Ok(true);
            }
            let wanted = min(wanted, MESSAGE_PAGES);
            // Whole page blocks come from where the kernel's own memory does. What is available
            // elsewhere is of no use to it.
            let whole = vmstat::free_kernel_pages().map_or(wanted, |free| {
                let reserve = moving.plan.reserve(self.memory().total) >> PAGE_SHIFT;
                min(wanted, free.saturating_sub(reserve as usize))
            });
            let compaction = &mut moving.compaction;
            by_node(wanted, |node, wanted| {
                let most = (wanted, min(wanted, whole));
                Ok(self.fill(blocks, compaction, node, most, pieces))
            })?;
            if blocks.is_empty() {
                moving.message = Some(message);
                return Ok(false);
            }
        }
        let mut message = discards.discard(message)?;
        if let Either::First(blocks) = &mut *message {
            self.put(blocks);
        }
        moving.message = Some(message);
        Ok(true)
    }

    /// Allocates blocks, at most `wanted` pages, and of them at most `whole` in whole page blocks: the
    /// largest that are free, then whole page blocks that compaction makes, then what is smaller. Returns
    /// how many pages.
    fn fill(
        &self,
        blocks: &mut Blocks,
        compaction: &mut Compaction,
        node: Option<Node>,
        (wanted, whole): (usize, usize),
        pieces: Pieces,
    ) -> usize {
        let order = blocks::page_block_order();
        let mut taken = 0;
        loop {
            let most = match pieces {
                Pieces::Any => whole,
                Pieces::Whole => min(whole, taken + vmstat::free_above_low().most),
            };
            taken += fill_orders(blocks, node, most - taken, order, blocks::MAX_ORDER);
            let low = vmstat::free_above_low();
            let spare = match pieces {
                Pieces::Any => vmstat::free_above_high(),
                Pieces::Whole => low,
            };
            if !blocks::CAN_COMPACT
                || min(whole - taken, spare.most) < 1 << order
                || low.most < blocks::compaction_room(order)
                || blocks.is_full()
                || self.host.has_changed()
                || compaction.smaller() > 0
            {
                break;
            }
            // At the low watermarks kswapd runs in any case.
            let anew = compaction.wakes_kswapd() && pieces == Pieces::Any;
            let mut got = compact(blocks, order, node, anew);
            if !got && anew {
                fsleep(KSWAPD_NAP);
                got = compact(blocks, order, node, false);
            }
            compaction.has_ended(got, 1 << order);
            if got {
                taken += 1 << order;
            }
        }
        if pieces == Pieces::Whole {
            return taken;
        }
        let left = match compaction.smaller() {
            0 => wanted - taken,
            smaller => min(wanted - taken, smaller),
        };
        let smaller = fill_orders(blocks, node, left, MIN_ORDER, order - 1);
        compaction.took_smaller(smaller);
        taken + smaller
    }

    /// Puts in what the host has discarded. What is smaller than a page block has to be movable.
    fn put(&self, blocks: &mut Blocks) {
        blocks.split_small(&self.balloon);
        self.blocks.put(blocks);
    }

    /// Takes memory out, at most `wanted` pages: blocks if there are any, or else some messages of
    /// pages. Returns how many; 0 means that the balloon is empty.
    fn deflate(&self, moving: &mut Moving, wanted: usize) -> Result<usize> {
        let count = self.deflate_blocks(moving, wanted)?;
        if count > 0 {
            return Ok(count);
        }
        let wanted = min(wanted, self.host.units.batch_pages() * STEP_MESSAGES);
        self.host
            .with_channel(|channel| self.deflate_pages(channel, wanted))
    }

    /// Takes single pages out, at most `wanted`. Returns how many.
    fn deflate_pages(&self, channel: &mut Channel, wanted: usize) -> Result<usize> {
        let mut count = 0;
        while count < wanted {
            let mut letter = self.host.letter(channel, Way::Deflate)?;
            let pages = self.balloon.dequeue(&mut letter.pages, wanted - count);
            if pages == 0 {
                self.host.put_back(channel, letter);
                // Who finds no memory is not to wait for who migrates pages: that may be waiting for
                // a page that the former has locked.
                if count > 0 || self.balloon.is_empty() || channel.is_urgent {
                    break;
                }
                // All that is left is being migrated, and will be put back: the channel is ours.
                fsleep(Delta::from_millis(1));
                continue;
            }
            count += pages;
            letter.pages.sort();
            // Whether or not MUST_TELL_HOST was negotiated: the host may have to populate them.
            self.host.send(channel, Way::Deflate, letter, |letter| {
                letter.write_pages(&self.host)
            })?;
        }
        self.host.settle(channel, Way::Deflate)?;
        Ok(count)
    }

    /// Takes blocks out. The host need not know: what it discarded is there again when it is touched.
    fn deflate_blocks(&self, moving: &mut Moving, wanted: usize) -> Result<usize> {
        let count = self.take_blocks(wanted);
        if count > 0 || wanted == 0 || !self.balloon.is_empty() {
            return Ok(count);
        }
        // All that there is are blocks that are too large.
        let Some(block) = self.blocks.take_smallest() else {
            return Ok(0);
        };
        block.split(wanted, &mut moving.rest)?;
        self.balloon.enqueue(&mut moving.rest);
        Ok(wanted)
    }

    /// Takes blocks out that are not larger than so many pages, on several CPUs if there is much to do: the
    /// page allocator looks at each page, and for most of that takes no lock. Returns how many pages.
    fn take_blocks(&self, wanted: usize) -> usize {
        let others = online_cpus() - 1;
        let helpers = min(wanted / STEP_OUT_PAGES, min(others, MOST_HELPERS));
        if helpers == 0 {
            return self.take_blocks_here(min(wanted, STEP_OUT_PAGES));
        }
        // No more than a step, so there is one at least.
        const PIECE: usize = 1 << blocks::MAX_ORDER;
        let pieces = min(wanted, STEP_OUT_PAGES * (helpers + 1)) / PIECE;
        let (next, count) = (Atomic::new(0), Atomic::new(0));
        run_with_help(system_unbound(), helpers, || {
            while next.fetch_add(1, Relaxed) < pieces {
                let pages = self.take_blocks_here(PIECE);
                count.add(pages, Relaxed);
                if pages == 0 || self.host.has_changed() {
                    break;
                }
            }
        });
        count.load(Relaxed)
    }

    /// As [`take_blocks`](Self::take_blocks), on this CPU.
    fn take_blocks_here(&self, wanted: usize) -> usize {
        let mut count = 0;
        while let Some(order) = (wanted - count).checked_ilog2() {
            // Freed at once.
            match self.blocks.take(order) {
                Some(block) => count += 1 << block.order(),
                None => break,
            }
            if self.host.has_changed() {
                break;
            }
        }
        count
    }

    /// Takes everything out of the balloon, with the host's help as far as that goes.
    pub(crate) fn empty(&self) -> Result {
        let mut moving = self.moving.lock();
        while self.deflate(&mut moving, usize::MAX)? > 0 {}
        Ok(())
    }

    /// Frees what is still in the balloon. The device has to be reset.
    pub(crate) fn release(&self) {
        while self.blocks.take_smallest().is_some() {}
        self.balloon.empty();
    }

    /// As [`OutOfMemory::give`].
    fn give(&self) -> usize {
        let mut pages = 0;
        while pages < GIVE {
            match self.blocks.take_smallest() {
                Some(block) => pages += 1 << block.order(),
                None => break,
            }
        }
        for _ in 0..GIVE_TRIES {
            if pages > 0 || self.balloon.is_empty() {
                break;
            }
            let deflated = self.host.try_with_channel(|channel| {
                channel.is_urgent = true;
                let deflated = self.deflate_pages(channel, GIVE);
                channel.is_urgent = false;
                deflated
            });
            match deflated {
                Some(Ok(deflated)) => pages += deflated,
                // The host does not answer.
                Some(Err(_)) => break,
                None => fsleep(Delta::from_millis(1)),
            }
        }
        pages
    }
}

impl Moving {
    /// Has kswapd reclaim until as much is free as it wants, and what was free before besides. It begins
    /// when somebody goes below the low watermark: for that, single pages are held meanwhile. (To ask
    /// for a page block wakes it as well, but then it reclaims more than is taken.) Says whether it
    /// got anywhere.
    fn have_reclaimed(&mut self) -> bool {
        loop {
            // What comes from the lists of processors was not free.
            let room = vmstat::free_above_low().all;
            let held = self.held.allocate(room.max(1), None, Reclaim::Background);
            if held == 0 || room == 0 {
                break;
            }
        }
        let goes_on = has_reclaimed();
        self.held.clear();
        goes_on
    }
}

/// Waits for kswapd to have as much free as it wants. Says whether there is more than it begins at.
fn has_reclaimed() -> bool {
    for _ in 0..KSWAPD_TRIES {
        fsleep(KSWAPD_TRY);
        if vmstat::free_above_high().all > 0 {
            return true;
        }
    }
    vmstat::free_above_low().all > NOT_RECLAIMED
}

/// Calls a function for each node with its share of so many pages, then for what is missing with none.
/// The function returns how many pages it got.
fn by_node(wanted: usize, mut get: impl FnMut(Option<Node>, usize) -> Result<usize>) -> Result {
    let mut left = wanted;
    if vmstat::nodes().nth(1).is_some() {
        let free = vmstat::nodes().map(Node::free_pages).sum::<usize>();
        let mut shares = Shares::new(wanted as u64, free as u64);
        for node in vmstat::nodes() {
            let share = shares.next(node.free_pages() as u64) as usize;
            left -= min(left, get(Some(node), share)?);
        }
    }
    if left > 0 {
        get(None, left)?;
    }
    Ok(())
}

/// Has memory compacted for a block, of one node or of any; `anew`, also where that has failed. Says
/// whether there is one.
fn compact(blocks: &mut Blocks, order: u32, node: Option<Node>, anew: bool) -> bool {
    let mut on = |node| match anew {
        false => blocks.compact(order, node).is_ok(),
        true => blocks.compact_anew(order, node).is_ok(),
    };
    match node {
        Some(node) => on(node),
        None => vmstat::nodes().any(on),
    }
}

/// Allocates blocks of some orders, at most `wanted` pages, the largest that are free. Returns how many
/// pages.
fn fill_orders(
    blocks: &mut Blocks,
    node: Option<Node>,
    wanted: usize,
    least: u32,
    mut most: u32,
) -> usize {
    let mut left = wanted;
    while let Some(order) = block_order(left, least, most) {
        if blocks.is_full() {
            break;
        }
        if blocks.allocate(order, node).is_ok() {
            left -= 1 << order;
        } else if order == least {
            break;
        } else {
            most = order - 1;
        }
    }
    wanted - left
}

impl Run for Resize {
    fn run(work: &OwnedWork<Self>) {
        work.host.wakeup.begin(WAKE_RESIZE);
        match work.step() {
            Ok(Next::Now) => {
                work.enqueue(system_freezable());
                return;
            }
            Ok(Next::After(delay)) => work.enqueue_after(system_freezable(), delay),
            Ok(Next::Never) => {}
            Err(error) => {
                if work.progress.stops() && work.progress.may_tell() {
                    dev_err!(
                        &*work.host.dev,
                        "the balloon does not move any more ({error:?})\n"
                    );
                }
                // Blocks come back without the host.
                if work.size() > 0 && work.gives_back() {
                    work.enqueue_after(system_freezable(), WATCH);
                }
            }
        }
        work.host.wakeup.end();
    }
}

/// Frees the blocks in memory that goes offline: nobody can move them. Single pages are migrated.
pub(crate) struct Leaver(pub(crate) Arc<OwnedWork<Resize>>);

impl Offline for Leaver {
    fn going(&self, pfns: Range<u64>) {
        if self.0.blocks.free_within(pfns) > 0 {
            // A device that is gone does not care.
            let _ = self.0.tell_size();
            // It takes others instead.
            self.0.enqueue_after(system_freezable(), RETRY);
        }
    }
}

/// Gives memory to who finds none.
pub(crate) struct Giver(pub(crate) Arc<OwnedWork<Resize>>);

impl OutOfMemory for Giver {
    fn give(&self) -> usize {
        let size = self.0.size();
        let pages = self.0.give();
        // Also when the host stopped answering half-way.
        if pages > 0 || self.0.size() < size {
            // A device that is gone does not care.
            let _ = self.0.tell_size();
            // The balloon grows again, when the guest has memory to spare.
            self.0.enqueue_after(system_freezable(), WATCH);
        }
        pages
    }
}
