// SPDX-License-Identifier: GPL-2.0

//! Free page hints: who has which message when, and what the host wants next.
//!
//! A message is idle, with the host, or on its way back. What it carried goes to what is kept before the
//! message is idle again: so whoever finds all of them idle finds all blocks kept, or freed. Several may
//! collect what the host has returned at once.
//!
//! A command of the host is news until somebody takes them. They are taken before the command is read, so
//! a command that comes meanwhile is news again, and the work, which is enqueued after that, reads it.
//!
//! Two types stand in for memory, those of `store.rs`: the host tests bring their own, and run all of this
//! through every interleaving (`selftests/unit/src/balloon_loom.rs`).

use super::store::{
    Flag,
    List, //
};

/// The command that ends a round, and the sign that a round has ended
/// (`VIRTIO_BALLOON_CMD_ID_STOP`).
pub(crate) const STOP: u32 = 0;
/// The command to use the blocks again (`VIRTIO_BALLOON_CMD_ID_DONE`). All others are ids.
pub(crate) const DONE: u32 = 1;

/// Messages that are not with the host.
pub(crate) struct Idle<M> {
    /// Without blocks.
    pub(crate) blocks: List<M>,
    /// So many there are when the host has none.
    pub(crate) count: usize,
    /// For commands. One at a time, so that one entry of the queue is enough.
    pub(crate) command: Option<M>,
}

impl<M> Idle<M> {
    /// No message at all.
    pub(crate) const fn new() -> Self {
        Self {
            blocks: List::new(),
            count: 0,
            command: None,
        }
    }

    /// Whether the host has no blocks, and none are on their way back.
    pub(crate) fn is_complete(&self) -> bool {
        self.blocks.len() == self.count
    }
}

/// Where messages and blocks are.
pub(crate) trait Places {
    /// What the queue carries.
    type Message;
    /// Of a broken queue.
    type Error;

    /// A message that the host has returned.
    fn returned(&self) -> Result<Option<Self::Message>, Self::Error>;

    /// Keeps what a message carries. Says whether it is one for blocks.
    fn keep(&self, message: &mut Self::Message) -> bool;

    /// Does something to what is idle, under its lock.
    fn with_idle<R>(&self, with: impl FnOnce(&mut Idle<Self::Message>) -> R) -> R;

    /// Takes what the host has returned.
    fn collect(&self) -> Result<(), Self::Error> {
        while let Some(mut message) = self.returned()? {
            let left = if self.keep(&mut message) {
                // There is room. One that was in a queue of before is one too many.
                self.with_idle(|idle| idle.blocks.push(message))
            } else {
                self.with_idle(|idle| idle.command.replace(message))
            };
            // Not under the lock.
            drop(left);
        }
        Ok(())
    }

    /// Collects, if there may be anything to collect.
    fn collect_rest(&self) -> Result<(), Self::Error> {
        if self.with_idle(|idle| idle.is_complete()) {
            return Ok(());
        }
        self.collect()
    }
}

/// Whether the host has another command.
pub(crate) struct News(Flag);

impl News {
    /// None.
    pub(crate) fn new() -> Self {
        Self(Flag::new())
    }

    /// There may be another command. The work has to be enqueued after this.
    pub(crate) fn arrive(&self) {
        self.0.set();
    }

    /// Whether there are any.
    pub(crate) fn have_arrived(&self) -> bool {
        self.0.is_set()
    }

    /// Has the round know the latest command, which `read` reads.
    pub(crate) fn take<E>(
        &self,
        round: &mut Round,
        read: impl FnOnce() -> Result<u32, E>,
    ) -> Result<(), E> {
        if self.0.take() {
            round.command = read()?;
        }
        Ok(())
    }
}

/// What the host wants, and how far that has been done.
#[derive(Default)]
pub(crate) struct Round {
    /// The command that was read last.
    command: u32,
    /// The id of the last round.
    active: u32,
    /// It has not ended yet.
    is_open: bool,
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Send blocks.
    Send,
    /// Send the sign that the round has ended.
    End,
    /// Free all blocks.
    GiveBack,
    /// Send the id of a new round.
    Begin(u32),
    Nothing,
}

impl Round {
    /// What is to be done now.
    pub(crate) fn next(&self) -> Next {
        match self.command {
            id if self.is_open && id == self.active => Next::Send,
            _ if self.is_open => Next::End,
            STOP => Next::Nothing,
            DONE => Next::GiveBack,
            id if id == self.active => Next::Nothing,
            id => Next::Begin(id),
        }
    }

    /// A round that was begun is the last one, whether the host could be told or not.
    pub(crate) fn begins(&mut self, id: u32) {
        self.active = id;
    }

    /// The host knows of it.
    pub(crate) fn is_begun(&mut self) {
        self.is_open = true;
    }

    /// Whatever it was that ended the round.
    pub(crate) fn ends(&mut self) {
        self.is_open = false;
    }
}
