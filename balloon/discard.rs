// SPDX-License-Identifier: GPL-2.0

//! Memory that the host is asked to discard, a piece at a time: blocks that go into the balloon, and
//! what is free just now.
//!
//! Both go through the reporting queue. A host discards what comes through it, and knows nothing of
//! a balloon: so a block needs no words to come back.
//!
//! Each of the two has half of the queue, so neither waits for the other. Who finds what the host
//! has done, the queue's interrupt or somebody who waits, hands it on: free pages by dropping
//! them, blocks in `returned`.

use crate::host::{
    Host,
    Untold,
    LEAVE_STEPS,
    STEP, //
};
use ferrule::{
    compat::{
        new_spinlock_irq,
        SpinLockIrq, //
    },
    mm::{
        blocks::Blocks,
        reporting::{
            FreePages,
            Reporter,
            Watch, //
        }, //
    },
    virtio::{
        Either,
        Handler,
        VirtQueue, //
    }, //
};
use kernel::{
    new_mutex,
    prelude::*,
    sync::{
        Arc,
        Mutex, //
    }, //
};

/// What the queue carries.
pub(crate) type Lent = Either<Blocks, FreePages>;

/// See the module's description.
#[pin_data]
pub(crate) struct Discards {
    host: Arc<Host>,
    /// Taken in any context; never held while anything is called.
    #[pin]
    queue: SpinLockIrq<Option<Arc<VirtQueue<Lent>>>>,
    /// Blocks that the host has discarded: there is one such message at a time. As above.
    #[pin]
    returned: SpinLockIrq<Option<KBox<Lent>>>,
    /// The free pages that were reported last. Sleeps; held while they are sent.
    #[pin]
    reported: Mutex<Option<Watch>>,
}

impl Discards {
    pub(crate) fn new(host: Arc<Host>) -> Result<Arc<Self>> {
        Arc::pin_init(
            pin_init!(Self {
                host,
                queue <- new_spinlock_irq!(None, "balloon_discard_queue"),
                returned <- new_spinlock_irq!(None, "balloon_discarded"),
                reported <- new_mutex!(None, "balloon_reported"),
            }),
            GFP_KERNEL,
        )
    }

    /// Connects the queue, after probe and after each restore. Process context.
    pub(crate) fn connect(&self, queue: VirtQueue<Lent>) -> Result {
        let queue = Arc::new(queue, GFP_KERNEL)?;
        let returned = self.returned.lock().take();
        let before = self.queue.lock().replace(queue);
        // Not under the locks.
        drop((returned, before));
        Ok(())
    }

    /// How many pieces of either kind a message may have: half of the queue. 0 when the queue is too
    /// small for both, and when there is none.
    pub(crate) fn capacity(&self) -> usize {
        self.queue()
            .and_then(|queue| queue.size().ok())
            .unwrap_or(0)
            / 2
    }

    fn queue(&self) -> Option<Arc<VirtQueue<Lent>>> {
        self.queue.lock().clone()
    }

    /// Hands on what the host has done. Any context.
    fn collect(&self, queue: &VirtQueue<Lent>) -> Result {
        while let Some(used) = queue.get()? {
            match *used.buffer {
                Either::First(_) => *self.returned.lock() = Some(used.buffer),
                Either::Second(_) => drop(used.buffer),
            }
        }
        Ok(())
    }

    /// Has the host discard blocks, and waits until it has. Process context; one at a time.
    ///
    /// When the host does not answer, the blocks stay with the queue until it does
    /// ([`late`](Self::late)), or until the queue is deleted, and are freed then.
    pub(crate) fn discard(&self, blocks: KBox<Lent>) -> Result<KBox<Lent>, Untold> {
        let queue = self.queue().ok_or(Untold::Unsent(ENODEV))?;
        queue
            .add(blocks)
            .map_err(|refused| Untold::Unsent(refused.error))?;
        queue.kick().map_err(Untold::Unanswered)?;
        self.host.answer("discard", false, |timeout| {
            let returned = queue.wait_until(timeout, || match self.collect(&queue) {
                Ok(()) => self.returned.lock().take().map(Ok),
                Err(error) => Some(Err(error)),
            });
            if returned.is_none() {
                // It may have missed the kick.
                queue.notify()?;
            }
            returned.transpose()
        })
    }

    /// Waits for free pages that were reported, but not for long. Says whether memory management has
    /// them back. Process context; the system has to be [drowsy](Host::is_drowsy), so that no others
    /// are reported.
    pub(crate) fn settle(&self) -> bool {
        // Whoever has the lock, and may not know yet, is through with it.
        let reported = self.reported.lock().clone();
        reported.is_none_or(|pages| (0..LEAVE_STEPS).any(|_| pages.wait(STEP)))
    }

    /// Blocks that the host has discarded when nobody waited for them any more. Process context.
    pub(crate) fn late(&self) -> Option<KBox<Lent>> {
        self.returned.lock().take()
    }
}

impl Reporter for Discards {
    fn report(&self, pages: FreePages) -> Result {
        let mut reported = self.reported.lock();
        if self.host.is_leaving() {
            return Err(ENODEV);
        }
        // Memory management waits for what is reported in work that has to be frozen.
        if self.host.is_drowsy() {
            return Err(EBUSY);
        }
        let queue = self.queue().ok_or(ENODEV)?;
        *reported = Some(pages.watch());
        queue.add(KBox::new(Either::Second(pages), GFP_KERNEL)?)?;
        queue.kick()
    }

    fn remind(&self) {
        if let Some(queue) = self.queue() {
            // One that is broken answers no more: unbind or sleep will reset the device.
            let _ = self.collect(&queue).and_then(|()| queue.notify());
        }
    }
}

/// The host has discarded something.
pub(crate) struct Discarded(pub(crate) Arc<Discards>);

impl Handler for Discarded {
    fn used(&self) {
        if let Some(queue) = self.0.queue() {
            // Whoever waits finds out by itself.
            let _ = self.0.collect(&queue);
        }
    }
}
