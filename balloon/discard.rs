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
    Untold, //
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
            Reporter, //
        }, //
    },
    virtio::{
        Either,
        Handler,
        VirtQueue, //
    }, //
};
use kernel::{
    prelude::*,
    sync::Arc, //
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
}

impl Discards {
    pub(crate) fn new(host: Arc<Host>) -> Result<Arc<Self>> {
        Arc::pin_init(
            pin_init!(Self {
                host,
                queue <- new_spinlock_irq!(None, "balloon_discard_queue"),
                returned <- new_spinlock_irq!(None, "balloon_discarded"),
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
            queue
                .wait_until(timeout, || match self.collect(&queue) {
                    Ok(()) => self.returned.lock().take().map(Ok),
                    Err(error) => Some(Err(error)),
                })
                .transpose()
        })
    }

    /// Blocks that the host has discarded when nobody waited for them any more. Process context.
    pub(crate) fn late(&self) -> Option<KBox<Lent>> {
        self.returned.lock().take()
    }
}

impl Reporter for Discards {
    fn report(&self, pages: FreePages) -> Result {
        if self.host.is_leaving() {
            return Err(ENODEV);
        }
        // Memory management waits for what is reported in work that has to be frozen.
        if self.host.is_drowsy() {
            return Err(EBUSY);
        }
        let queue = self.queue().ok_or(ENODEV)?;
        queue.add(KBox::new(Either::Second(pages), GFP_KERNEL)?)?;
        queue.kick()
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
