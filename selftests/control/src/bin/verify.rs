// SPDX-License-Identifier: GPL-2.0

//! Reads and writes a device whose I/O may fail, and knows what it must have.
//!
//! ```text
//! verify [--no-errors] DEVICE SECONDS SEED [THREADS]
//! ```
//!
//! For `-` seconds, until standard input ends.
//!
//! A write that failed has been done, or has not, block by block; a write that succeeded has been done; a read
//! that succeeded finds what was written. Prints how many of each there were, and where something
//! else was found. I/O errors are as they should be, unless told otherwise.

use ferrule_control::{
    dm::{
        last_errno,
        name_of, //
    },
    fault::open_direct,
};
use std::{
    collections::BTreeMap,
    env,
    fs::File,
    io,
    os::fd::AsRawFd,
    process::ExitCode,
    sync::atomic::{
        AtomicBool,
        Ordering::Relaxed, //
    },
    thread,
    time::{
        Duration,
        Instant, //
    },
};

const BLOCK: usize = 4096;
const MOST: usize = 8;
/// Of each thread.
const BLOCKS: usize = 256;

#[repr(C, align(4096))]
struct Buffer([u8; MOST * BLOCK]);

/// What a block is filled with.
fn pattern(block: usize, version: u64) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&(block as u64).to_le_bytes());
    bytes[8..].copy_from_slice(&version.to_le_bytes());
    bytes
}

/// A part of the device, and what may be in each block of it.
struct Region {
    file: File,
    first: usize,
    /// The versions that a block may have; 0 is anything that was there before.
    may_be: Vec<Vec<u64>>,
    version: u64,
    rng: fastrand::Rng,
    buffer: Box<Buffer>,
    counts: BTreeMap<String, u64>,
    wrong: u64,
}

impl Region {
    fn new(path: &str, number: usize, seed: u64) -> Self {
        Self {
            file: open_direct(path).expect("the device"),
            first: number * BLOCKS,
            may_be: vec![vec![0]; BLOCKS],
            version: 0,
            rng: fastrand::Rng::with_seed(seed.wrapping_add(number as u64)),
            buffer: Box::new(Buffer([0; MOST * BLOCK])),
            counts: BTreeMap::new(),
            wrong: 0,
        }
    }

    fn count(&mut self, what: &str, result: Result<(), i32>) {
        let what = match result {
            Ok(()) => what.into(),
            Err(errno) => format!("{what}: {}", name_of(errno)),
        };
        *self.counts.entry(what).or_default() += 1;
    }

    fn write(&mut self, block: usize, count: usize) {
        self.version += 1;
        for n in 0..count {
            let pattern = pattern(self.first + block + n, self.version);
            for chunk in self.buffer.0[n * BLOCK..(n + 1) * BLOCK].chunks_mut(pattern.len()) {
                chunk.copy_from_slice(&pattern);
            }
        }
        // SAFETY: The buffer has as many bytes.
        let done = unsafe {
            libc::pwrite(
                self.file.as_raw_fd(),
                self.buffer.0.as_ptr().cast(),
                count * BLOCK,
                ((self.first + block) * BLOCK) as i64,
            )
        };
        let result = if done < 0 { Err(last_errno()) } else { Ok(()) };
        for n in 0..count {
            let may_be = &mut self.may_be[block + n];
            // What is not said to be written may be.
            if done >= ((n + 1) * BLOCK) as isize {
                may_be.clear();
            }
            may_be.push(self.version);
        }
        self.count("writes", result);
    }

    fn read(&mut self, block: usize, count: usize) -> bool {
        self.buffer.0.fill(0xee);
        // SAFETY: The buffer has room for as many bytes.
        let done = unsafe {
            libc::pread(
                self.file.as_raw_fd(),
                self.buffer.0.as_mut_ptr().cast(),
                count * BLOCK,
                ((self.first + block) * BLOCK) as i64,
            )
        };
        let result = if done < 0 { Err(last_errno()) } else { Ok(()) };
        self.count("reads", result);
        for n in 0..count {
            if done < ((n + 1) * BLOCK) as isize {
                break;
            }
            let bytes = &self.buffer.0[n * BLOCK..(n + 1) * BLOCK];
            let number = self.first + block + n;
            let may_be = &mut self.may_be[block + n];
            let found = may_be.iter().copied().find(|&version| {
                let pattern = pattern(number, version);
                version != 0 && bytes.chunks(pattern.len()).all(|chunk| chunk == pattern)
            });
            match found {
                Some(version) => *may_be = vec![version],
                None if may_be.contains(&0) => (),
                None => {
                    self.wrong += 1;
                    println!(
                        "wrong: block {number} may be {may_be:?} and has {:?}",
                        &bytes[..16]
                    );
                    return false;
                }
            }
        }
        done == (count * BLOCK) as isize
    }

    fn run(&mut self, goes_on: impl Fn() -> bool) {
        while goes_on() && self.wrong == 0 {
            let count = self.rng.usize(1..=MOST);
            let block = self.rng.usize(0..=BLOCKS - count);
            if self.rng.bool() {
                self.write(block, count);
            } else {
                self.read(block, count);
            }
        }
    }

    /// All of it, one block after the other, as often as it takes.
    fn check(&mut self) {
        for block in 0..BLOCKS {
            let mut tries = 0;
            while !self.read(block, 1) && self.wrong == 0 {
                tries += 1;
                assert!(tries < 1000, "block {block} cannot be read");
            }
        }
    }
}

fn main() -> ExitCode {
    let mut words: Vec<String> = env::args().skip(1).collect();
    let may_fail = words.first().is_none_or(|word| word != "--no-errors");
    words.retain(|word| word != "--no-errors");
    let [path, seconds, seed, ..] = &words[..] else {
        panic!("verify [--no-errors] DEVICE SECONDS SEED [THREADS]");
    };
    let until = match seconds.as_str() {
        "-" => None,
        seconds => {
            let seconds = Duration::from_secs(seconds.parse().expect("seconds"));
            Some(Instant::now() + seconds)
        }
    };
    let seed = seed.parse().expect("a seed");
    let threads: usize = words.get(3).map_or(4, |n| n.parse().expect("threads"));
    let input_ended = AtomicBool::new(false);
    let goes_on = || match until {
        Some(until) => Instant::now() < until,
        None => !input_ended.load(Relaxed),
    };
    let regions: Vec<Region> = thread::scope(|scope| {
        if until.is_none() {
            scope.spawn(|| {
                // Whatever it is.
                let _ = io::copy(&mut io::stdin(), &mut io::sink());
                input_ended.store(true, Relaxed);
            });
        }
        let goes_on = &goes_on;
        let threads: Vec<_> = (0..threads)
            .map(|number| {
                scope.spawn(move || {
                    let mut region = Region::new(path, number, seed);
                    region.run(goes_on);
                    region.check();
                    region
                })
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().expect("a thread"))
            .collect()
    });
    let mut counts = BTreeMap::<&str, u64>::new();
    for (what, count) in regions.iter().flat_map(|region| &region.counts) {
        *counts.entry(what).or_default() += count;
    }
    let wrong: u64 = regions.iter().map(|region| region.wrong).sum();
    let has_errors = counts.keys().any(|what| what.contains(": "));
    let counts: Vec<_> = counts
        .iter()
        .map(|(what, count)| format!("{count} {what}"))
        .collect();
    println!("seed {seed}: {}, {wrong} wrong", counts.join(", "));
    ExitCode::from(u8::from(wrong != 0 || has_errors && !may_fail))
}
