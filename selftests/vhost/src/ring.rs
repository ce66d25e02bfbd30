// SPDX-License-Identifier: GPL-2.0

//! A split virtqueue from the device's side.
//!
//! What the guest makes available is taken out by `virtio-queue`. What is used is written here, since
//! that has to be nonsense at times.

use crate::memory::Memory;
use std::{
    fs::File,
    io::{self, Read, Write},
    os::{fd::OwnedFd, unix::net::UnixStream},
    sync::atomic::Ordering,
};
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress};

/// A buffer that the guest has lent.
pub struct Lent {
    /// Its name in the ring.
    pub head: u16,
    /// So many were lent before, to all queues.
    pub number: u64,
    /// Its parts: where, and how long.
    pub parts: Vec<(u64, u32)>,
}

/// A ring, as far as the front end has said.
pub struct Ring {
    queue: Queue,
    used: GuestAddress,
    next_used: u16,
    pub kick: Option<File>,
    call: Option<UnixStream>,
    pub is_enabled: bool,
}

fn other(error: impl std::error::Error + Send + Sync + 'static) -> io::Error {
    io::Error::other(error)
}

impl Ring {
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            queue: Queue::new(1024).map_err(other)?,
            used: GuestAddress(0),
            next_used: 0,
            kick: None,
            call: None,
            is_enabled: false,
        })
    }

    /// Forgets what the guest has said of it, but for where to interrupt it: it looks there until it
    /// has taken the queue away, and wants to see no end of it.
    pub fn reset(&mut self) -> io::Result<()> {
        let call = self.call.take();
        *self = Self::new()?;
        self.call = call;
        Ok(())
    }

    pub fn set_size(&mut self, size: u32) -> io::Result<()> {
        self.queue.try_set_size(size as u16).map_err(other)
    }

    pub fn set_base(&mut self, base: u32) {
        self.queue.set_next_avail(base as u16);
        self.next_used = base as u16;
    }

    pub fn set_addresses(
        &mut self,
        descriptors: GuestAddress,
        available: GuestAddress,
        used: GuestAddress,
    ) -> io::Result<()> {
        self.queue
            .try_set_desc_table_address(descriptors)
            .map_err(other)?;
        self.queue
            .try_set_avail_ring_address(available)
            .map_err(other)?;
        self.queue.try_set_used_ring_address(used).map_err(other)?;
        self.queue.set_ready(true);
        self.used = used;
        Ok(())
    }

    pub fn set_call(&mut self, file: Option<File>) -> io::Result<()> {
        self.call = file.map(|file| UnixStream::from(OwnedFd::from(file)));
        match &self.call {
            // A guest that does not look at its interrupts has to be asked for nothing else.
            Some(call) => call.set_nonblocking(true),
            None => Ok(()),
        }
    }

    /// Forgets the guest's kicks so far.
    pub fn drain_kick(&mut self) -> io::Result<()> {
        match &mut self.kick {
            Some(kick) => kick.read_exact(&mut [0; 8]),
            None => Ok(()),
        }
    }

    /// The next buffer, if there is one.
    pub fn take(&mut self, memory: &Memory) -> Option<Lent> {
        let chain = self.queue.pop_descriptor_chain(&memory.map)?;
        Some(Lent {
            head: chain.head_index(),
            number: 0,
            parts: chain.map(|part| (part.addr().0, part.len())).collect(),
        })
    }

    /// Says that a buffer was used, whatever that means.
    pub fn put(&mut self, memory: &Memory, id: u32, len: u32) -> io::Result<()> {
        let slot = u64::from(self.next_used % self.queue.size());
        let entry = GuestAddress(self.used.0 + 4 + slot * 8);
        memory.map.write_obj(id.to_le(), entry).map_err(other)?;
        let entry = GuestAddress(entry.0 + 4);
        memory.map.write_obj(len.to_le(), entry).map_err(other)?;
        self.skip(memory, 1)
    }

    /// Says that so many more buffers were used than are written down.
    pub fn skip(&mut self, memory: &Memory, count: u16) -> io::Result<()> {
        self.next_used = self.next_used.wrapping_add(count);
        let index = GuestAddress(self.used.0 + 2);
        memory
            .map
            .store(self.next_used.to_le(), index, Ordering::Release)
            .map_err(other)
    }

    /// Where either side is: what the guest has made available, what was taken of it, what was used,
    /// and whether the guest is asked not to kick.
    pub fn position(&self, memory: &Memory) -> io::Result<[u16; 4]> {
        let available = self.queue.avail_idx(&memory.map, Ordering::Acquire);
        let flags: u16 = memory.map.read_obj(self.used).map_err(other)?;
        let (taken, used) = (self.queue.next_avail(), self.next_used);
        Ok([available.map_err(other)?.0, taken, used, flags])
    }

    /// Interrupts the guest. Interrupts that it has not taken yet are enough.
    pub fn interrupt(&mut self) -> io::Result<()> {
        let Some(call) = &mut self.call else {
            return Ok(());
        };
        match call.write(&1u64.to_ne_bytes()) {
            // The guest may be taking the queue down.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
            result => result.map(|_| ()),
        }
    }
}
