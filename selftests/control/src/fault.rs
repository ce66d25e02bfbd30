// SPDX-License-Identifier: GPL-2.0

//! Allocations that fail in one system call of one task, one at a time
//! (Documentation/fault-injection/fault-injection.rst in the kernel).

use crate::dm::{
    last_errno,
    name_of,
    Control,
    Errno,
    Request, //
};
use std::{
    collections::BTreeMap,
    ffi::CString,
    fs::{
        self,
        File, //
    },
    io,
    os::{
        fd::AsRawFd,
        unix::fs::{
            FileExt,
            OpenOptionsExt, //
        },
    },
};

const DEBUGFS: &str = "/sys/kernel/debug";

/// Any allocation may fail, in a task for which that is asked for. (Those that cannot are left out by
/// the kernel: `__GFP_NOFAIL`.)
pub fn any_allocation_may_fail() -> io::Result<()> {
    for (kind, knobs) in [
        ("failslab", &[("ignore-gfp-wait", "N")][..]),
        (
            "fail_page_alloc",
            &[
                ("ignore-gfp-wait", "N"),
                ("ignore-gfp-highmem", "N"),
                ("min-order", "0"),
            ],
        ),
    ] {
        for (knob, value) in knobs.iter().chain(&[("verbose", "0")]) {
            fs::write(format!("{DEBUGFS}/{kind}/{knob}"), value)?;
        }
    }
    Ok(())
}

/// A page-aligned piece of memory, for direct I/O.
#[repr(C, align(4096))]
#[derive(Clone)]
pub struct Page(pub [u8; 4096]);

/// A system call of which everything is ready.
pub enum Call<'a> {
    Ioctl(&'a Control, Box<Request>),
    Write(File, Vec<u8>),
    DirectRead(&'a File, Box<Page>),
    DirectWrite(&'a File, Box<Page>),
    LoadModule(File),
    UnloadModule(CString),
}

impl Call<'_> {
    /// Nothing that happens in here is not the system call's.
    pub fn run(&mut self) -> Result<(), Errno> {
        let result = match self {
            Call::Ioctl(control, request) => return request.send(control),
            // SAFETY: The buffer is as long as it says.
            Call::Write(file, bytes) => unsafe {
                libc::write(file.as_raw_fd(), bytes.as_ptr().cast(), bytes.len())
            },
            // SAFETY: As above.
            Call::DirectRead(file, page) => unsafe {
                libc::pread(file.as_raw_fd(), page.0.as_mut_ptr().cast(), 4096, 0)
            },
            // SAFETY: As above.
            Call::DirectWrite(file, page) => unsafe {
                libc::pwrite(file.as_raw_fd(), page.0.as_ptr().cast(), 4096, 0)
            },
            // SAFETY: No memory is passed but a string.
            Call::LoadModule(file) => unsafe {
                libc::syscall(libc::SYS_finit_module, file.as_raw_fd(), c"".as_ptr(), 0) as isize
            },
            // SAFETY: As above.
            Call::UnloadModule(name) => unsafe {
                libc::syscall(libc::SYS_delete_module, name.as_ptr(), libc::O_NONBLOCK) as isize
            },
        };
        if result < 0 {
            return Err(last_errno());
        }
        Ok(())
    }
}

/// Opens what I/O is done to.
pub fn open_direct(path: &str) -> io::Result<File> {
    File::options()
        .read(true)
        .write(true)
        .custom_flags(libc::O_DIRECT)
        .open(path)
}

/// Which of this thread's allocations fails next.
struct FailNth {
    file: File,
}

impl FailNth {
    fn open() -> io::Result<Self> {
        let file = File::options()
            .read(true)
            .write(true)
            .open("/proc/thread-self/fail-nth")?;
        Ok(Self { file })
    }

    /// Runs a call whose `n`th allocation fails. Whether it had so many.
    fn run(&self, n: u32, call: &mut Call) -> (Result<(), Errno>, bool) {
        let text = format!("{n}");
        let mut left = [0; 16];
        self.file.write_at(text.as_bytes(), 0).expect("fail-nth");
        let result = call.run();
        let length = self.file.read_at(&mut left, 0).expect("fail-nth");
        self.file.write_at(b"0", 0).expect("fail-nth");
        (result, left[..length].trim_ascii() == b"0")
    }
}

/// Allocations that fail by chance: what a second one makes up for fails in both.
struct FailByChance {
    file: File,
}

const ONE_IN_TWENTY: &str = "5";

impl FailByChance {
    fn begin() -> io::Result<Self> {
        let file = File::options()
            .write(true)
            .open("/proc/thread-self/make-it-fail")?;
        for kind in ["failslab", "fail_page_alloc"] {
            let knobs = [("task-filter", "Y"), ("interval", "1"), ("times", "-1")];
            for (knob, value) in knobs.iter().chain(&[("probability", ONE_IN_TWENTY)]) {
                fs::write(format!("{DEBUGFS}/{kind}/{knob}"), value)?;
            }
        }
        Ok(Self { file })
    }

    fn run(&self, call: &mut Call) -> Result<(), Errno> {
        self.file.write_at(b"1", 0).expect("make-it-fail");
        let result = call.run();
        self.file.write_at(b"0", 0).expect("make-it-fail");
        result
    }
}

impl Drop for FailByChance {
    fn drop(&mut self) {
        for kind in ["failslab", "fail_page_alloc"] {
            let _ = fs::write(format!("{DEBUGFS}/{kind}/probability"), "0");
        }
    }
}

/// An operation, to be tried with each of its allocations failing.
pub struct Operation<'o, 'c> {
    pub name: &'o str,
    /// What it may fail with.
    pub errors: &'o [Errno],
    /// Device mapper leaves it half done when it fails: what was before is for [`Self::undo`] to bring back.
    pub may_stop_halfway: bool,
    /// It has no way to fail.
    pub must_succeed: bool,
    /// Try every so many, for what has thousands of them.
    pub every: u32,
    /// Not one after the other, but any of them, so many times.
    pub by_chance: Option<u32>,
    pub prepare: &'o mut dyn FnMut() -> Call<'c>,
    /// Goes back to before it succeeded.
    pub undo: &'o mut dyn FnMut() -> Result<(), Errno>,
    /// What there is to be seen of the state.
    pub look: &'o mut dyn FnMut() -> String,
}

/// What became of the operations.
#[derive(Default)]
pub struct Report {
    pub faults: u64,
    pub errors: u64,
    pub problems: u64,
}

impl Report {
    /// What should not be.
    pub fn problem(&mut self, text: &str) {
        self.problems += 1;
        println!("problem: {text}");
    }

    /// Makes the first allocation of the operation fail, the second, and so on, until it has no more. Each
    /// time it must succeed, or fail and change nothing; and succeed without a fault after that.
    pub fn try_each(&mut self, operation: Operation<'_, '_>) {
        let problems = self.problems;
        let Operation {
            name,
            errors,
            must_succeed,
            may_stop_halfway,
            every,
            by_chance,
            prepare,
            undo,
            look,
        } = operation;
        let fail_nth = FailNth::open().expect("a kernel with CONFIG_FAULT_INJECTION");
        let chance = by_chance.map(|_| FailByChance::begin().expect("fault injection"));
        let before = look();
        if let Err(errno) = prepare().run() {
            self.problem(&format!("{name}: fails by itself: {}", name_of(errno)));
            return;
        }
        let after = look();
        let mut seen = BTreeMap::<Errno, u32>::new();
        let mut faults = 0;
        // Where it begins is another place each time, if not every one is tried.
        let mut n = fastrand::u32(1..=every);
        let mut succeeded = true;
        loop {
            if succeeded {
                if let Err(errno) = undo() {
                    self.problem(&format!("{name}, fault {n}: undo: {}", name_of(errno)));
                    return;
                }
            }
            let now = look();
            if now != before {
                self.problem(&format!("{name}, fault {n}: it was\n{before}and is\n{now}"));
                return;
            }
            let mut call = prepare();
            let (result, is_reached) = match &chance {
                Some(chance) => (chance.run(&mut call), true),
                None => fail_nth.run(n, &mut call),
            };
            drop(call);
            faults += u32::from(is_reached);
            succeeded = result.is_ok();
            if let Err(errno) = result {
                *seen.entry(errno).or_default() += 1;
                if !is_reached || must_succeed || !errors.contains(&errno) {
                    self.problem(&format!(
                        "{name}, fault {n}: {} ({})",
                        name_of(errno),
                        if is_reached { "the fault" } else { "no fault" }
                    ));
                }
                if may_stop_halfway {
                    if let Err(errno) = undo() {
                        self.problem(&format!("{name}, fault {n}: undo: {}", name_of(errno)));
                        return;
                    }
                }
                let now = look();
                if now != before {
                    self.problem(&format!(
                        "{name}, fault {n}: failed, and was\n{before}and is\n{now}"
                    ));
                    return;
                }
                // The next try works.
                let result = prepare().run();
                succeeded = result.is_ok();
                if let Err(errno) = result {
                    self.problem(&format!(
                        "{name}, fault {n}: fails afterwards: {}",
                        name_of(errno)
                    ));
                    return;
                }
            }
            let now = look();
            if now != after {
                self.problem(&format!(
                    "{name}, fault {n}: should be\n{after}and is\n{now}"
                ));
                return;
            }
            if !is_reached || by_chance.is_some_and(|times| n >= times) {
                break;
            }
            n += every;
        }
        if let Err(errno) = undo() {
            self.problem(&format!("{name}: undo: {}", name_of(errno)));
        }
        let errors: u32 = seen.values().sum();
        let named: Vec<_> = seen
            .iter()
            .map(|(&errno, count)| format!("{count} {}", name_of(errno)))
            .collect();
        println!(
            "{name}: {n} {}, {faults} failed, {errors} errors{}{}",
            by_chance.map_or("allocations", |_| "times by chance"),
            if named.is_empty() { "" } else { ": " },
            named.join(", ")
        );
        if faults == 0 && !must_succeed {
            println!("{name}: allocates nothing");
        }
        if problems == self.problems {
            self.faults += u64::from(faults);
            self.errors += u64::from(errors);
        }
    }
}

/// How many references there are to a module, or that it is not there.
pub fn references(module: &str) -> String {
    let path = format!("/sys/module/{}/refcnt", module.replace('-', "_"));
    match fs::read_to_string(path) {
        Ok(count) => format!("{module}: {count}"),
        Err(_) => format!("{module}: not loaded\n"),
    }
}

/// How many kernel threads have a name that begins so.
pub fn threads(prefix: &str) -> usize {
    let entries = fs::read_dir("/proc").expect("/proc");
    entries
        .flatten()
        .filter_map(|entry| fs::read_to_string(entry.path().join("comm")).ok())
        .filter(|comm| comm.starts_with(prefix))
        .count()
}

/// Of a path or a name from the command line.
pub fn c_string(text: &str) -> CString {
    CString::new(text).expect("no zeroes")
}
