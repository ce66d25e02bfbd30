// SPDX-License-Identifier: GPL-2.0

//! Which code of our modules a task's system calls have run (Documentation/dev-tools/kcov.rst in the
//! kernel).

use std::{
    fs::File,
    os::fd::AsRawFd,
    ptr, slice,
    sync::atomic::{
        AtomicU64,
        Ordering::Relaxed, //
    },
};

const INIT_TRACE: u64 = 0x8008_6301;
const ENABLE: u64 = 0x6364;
const TRACE_PC: u64 = 0;
const WORDS: usize = 1 << 18;

/// Of the thread that opened it.
pub struct Coverage {
    _file: File,
    /// How many there are, and then those.
    words: &'static [AtomicU64],
}

impl Coverage {
    /// `None` where the kernel has none.
    pub fn open() -> Option<Self> {
        let file = File::options()
            .read(true)
            .write(true)
            .open("/sys/kernel/debug/kcov")
            .ok()?;
        let fd = file.as_raw_fd();
        // SAFETY: Plain numbers are passed.
        if unsafe { libc::ioctl(fd, INIT_TRACE, WORDS) } != 0 {
            return None;
        }
        // SAFETY: A new mapping.
        let memory = unsafe {
            libc::mmap(
                ptr::null_mut(),
                8 * WORDS,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                fd,
                0,
            )
        };
        // SAFETY: A plain number is passed.
        if memory == libc::MAP_FAILED || unsafe { libc::ioctl(fd, ENABLE, TRACE_PC) } != 0 {
            return None;
        }
        // SAFETY: The mapping stays, and the kernel writes to it while this thread is in it.
        let words = unsafe { slice::from_raw_parts(memory.cast(), WORDS) };
        Some(Self { _file: file, words })
    }

    /// From now on.
    pub fn reset(&self) {
        self.words[0].store(0, Relaxed);
    }

    /// There may be no room for what comes next.
    pub fn is_filling(&self) -> bool {
        self.words[0].load(Relaxed) as usize > WORDS / 2
    }

    /// Where it has been since then.
    pub fn seen(&self) -> impl Iterator<Item = u64> + '_ {
        let count = (self.words[0].load(Relaxed) as usize).min(WORDS - 1);
        self.words[1..=count].iter().map(|word| word.load(Relaxed))
    }
}
