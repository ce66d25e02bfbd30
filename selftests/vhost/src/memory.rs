// SPDX-License-Identifier: GPL-2.0

//! The guest's memory, which is shared with the front end.

use std::{fs::File, io};
use vhost::vhost_user::message::VhostUserMemoryRegion;
use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::fallocate::{fallocate, FallocateMode};

/// One region: user-mode Linux has no more.
pub struct Memory {
    pub map: GuestMemoryMmap,
    file: File,
    start: u64,
    size: u64,
    /// Where the region starts in the front end's own address space, by which it names rings.
    front_end: u64,
    file_offset: u64,
}

impl Memory {
    pub fn new(region: VhostUserMemoryRegion, file: File) -> io::Result<Self> {
        let start = region.guest_phys_addr;
        let shared = FileOffset::new(file.try_clone()?, region.mmap_offset);
        let range = (
            GuestAddress(start),
            region.memory_size as usize,
            Some(shared),
        );
        Ok(Self {
            map: GuestMemoryMmap::from_ranges_with_files([range]).map_err(io::Error::other)?,
            file,
            start,
            size: region.memory_size,
            front_end: region.user_addr,
            file_offset: region.mmap_offset,
        })
    }

    /// Where a ring is.
    pub fn ring_address(&self, front_end: u64) -> GuestAddress {
        GuestAddress(
            front_end
                .wrapping_sub(self.front_end)
                .wrapping_add(self.start),
        )
    }

    /// Whether the guest has memory there.
    pub fn contains(&self, start: u64, len: u64) -> bool {
        start >= self.start
            && start
                .checked_add(len)
                .is_some_and(|end| end <= self.start + self.size)
    }

    /// Gives memory back to the machine. It is zero when it is touched again.
    pub fn discard(&self, start: u64, len: u64) -> io::Result<()> {
        let offset = start - self.start + self.file_offset;
        fallocate(&self.file, FallocateMode::PunchHole, true, offset, len)
            .map_err(|error| io::Error::from_raw_os_error(error.errno()))
    }

    /// How many bytes of it the machine has to keep.
    pub fn resident(&self) -> io::Result<u64> {
        use std::os::unix::fs::MetadataExt;
        Ok(self.file.metadata()?.blocks() * 512)
    }

    /// Where it ends, in pages of 4 KiB: a target of so many cannot be met.
    pub fn end_unit(&self) -> u32 {
        ((self.start + self.size) >> 12) as u32
    }
}
