// SPDX-License-Identifier: GPL-2.0

//! Says anything at all to device mapper and looks whether all is well: nothing hangs, what is refused
//! changes nothing, a table that is printed loads again and prints the same, and in the end nothing is left.
//! What the kernel itself has to say about it is in its log.
//!
//! ```text
//! fuzz qos SEED OPERATIONS [FILE]       devices with the target qos
//! fuzz selector SEED OPERATIONS [FILE]  a path selector, beside the C round-robin
//! fuzz repeat FILE [TIMES]              a program that was kept
//! ```
//!
//! Where the kernel says which of our code has run, programs that reach more of it are kept, and others
//! made of them. FILE has the program that runs at the moment.

use ferrule_control::{
    dm::{
        flag,
        last_errno,
        major_of,
        name_of,
        node_of,
        Command,
        Control,
        Errno,
        Line,
        Request,
        State, //
    },
    fault::{
        open_direct,
        references,
        Page, //
    },
    kcov::Coverage,
    program::{
        from_text,
        to_text,
        Io,
        Maker,
        Op,
        DISKS, //
    },
    selector::{
        self,
        as_c_prints,
        OURS,
        THEIRS, //
    },
    watch::{
        self,
        give_up,
        watched, //
    },
};
use std::{
    collections::{
        BTreeMap,
        HashSet, //
    },
    env,
    fs::{
        self,
        File, //
    },
    os::{
        fd::AsRawFd,
        unix::fs::OpenOptionsExt, //
    },
    process::ExitCode,
    sync::{
        atomic::{
            AtomicU64,
            Ordering::Relaxed, //
        },
        mpsc::{
            channel,
            Sender, //
        },
        Arc, //
    },
    thread,
    time::{
        Duration,
        Instant, //
    },
};

/// Operations of a program.
const LENGTH: usize = 1000;
const WORKERS: usize = 4;
/// Programs that are kept.
const KEPT: usize = 4000;

/// I/O for somebody else to do.
struct Job {
    path: String,
    io: Io,
    sector: u64,
    count: u32,
}

/// They do I/O, and wait for it.
struct Workers {
    queues: Vec<Sender<Job>>,
    /// How many jobs were given, and how many are over.
    given: u64,
    over: Arc<AtomicU64>,
}

impl Workers {
    fn new() -> Self {
        let over = Arc::new(AtomicU64::new(0));
        let queues = (0..WORKERS)
            .map(|_| {
                let (sender, receiver) = channel::<Job>();
                let over = over.clone();
                thread::spawn(move || {
                    for job in receiver {
                        work(&job);
                        over.fetch_add(1, Relaxed);
                    }
                });
                sender
            })
            .collect();
        Self {
            queues,
            given: 0,
            over,
        }
    }

    fn waiting(&self) -> u64 {
        self.given - self.over.load(Relaxed)
    }

    fn give(&mut self, job: Job) {
        if self.waiting() < 2 * WORKERS as u64 {
            let queue = self.given as usize % WORKERS;
            if self.queues[queue].send(job).is_ok() {
                self.given += 1;
            }
        }
    }
}

#[repr(C, align(4096))]
struct Buffer([u8; 8192]);

/// Whatever comes of it.
fn work(job: &Job) {
    let file = File::options()
        .read(true)
        .write(true)
        .custom_flags(libc::O_DIRECT)
        .open(&job.path)
        .or_else(|_| File::open(&job.path));
    let Ok(file) = file else { return };
    let fd = file.as_raw_fd();
    let mut buffer = Buffer([0xab; 8192]);
    for n in 0..job.count {
        let length = if n % 3 == 0 { 8192 } else { 4096 };
        let offset = (512 * job.sector + 4096 * u64::from(n)) as i64;
        let vector = libc::iovec {
            iov_base: buffer.0.as_mut_ptr().cast(),
            iov_len: length,
        };
        // SAFETY: All buffers are as long as is said, and stay until the calls return.
        unsafe {
            match job.io {
                Io::Read => libc::preadv2(fd, &vector, 1, offset, 0),
                Io::ReadNowait => libc::preadv2(fd, &vector, 1, offset, libc::RWF_NOWAIT),
                Io::Write => libc::pwritev2(fd, &vector, 1, offset, 0),
                Io::WriteNowait => libc::pwritev2(fd, &vector, 1, offset, libc::RWF_NOWAIT),
                Io::Flush => libc::fdatasync(fd) as isize,
                Io::Discard => {
                    let range = [offset as u64, length as u64];
                    // BLKDISCARD
                    libc::ioctl(fd, 0x1277, range.as_ptr()) as isize
                }
            }
        };
    }
}

struct Fuzzer {
    control: Control,
    workers: Workers,
    coverage: Option<Coverage>,
    reached: HashSet<u64>,
    operations: u64,
    began: Instant,
    said: Instant,
    /// How often each operation ended how.
    counts: BTreeMap<(&'static str, Errno), u64>,
    /// And how long it took in all.
    times: BTreeMap<&'static str, Duration>,
    problems: u64,
    /// The program at hand.
    running: String,
}

/// What a table has for a key that was set to this; nothing if that is as if it were not there.
fn printed_as(key: &str, value: &str) -> Option<String> {
    let suffixes = ["k", "m", "g", "t"];
    let lower = value.to_ascii_lowercase();
    let shift = suffixes.iter().position(|suffix| lower.ends_with(suffix));
    let digits = lower.trim_end_matches(|character: char| character.is_ascii_alphabetic());
    let Ok(number) = digits.parse::<u64>() else {
        return Some(value.into());
    };
    let number = number << shift.map_or(0, |shift| 10 * (shift + 1));
    let default = match key {
        "burst_ms" => 10,
        "weight" => 100,
        _ => 0,
    };
    (number != default).then(|| number.to_string())
}

fn kind(op: &Op) -> &'static str {
    match op {
        Op::Create(..) => "create",
        Op::Remove(..) => "remove",
        Op::Load(..) => "load",
        Op::Clear(..) => "clear",
        Op::Suspend(_, flags) if flags & flag::SUSPEND != 0 => "suspend",
        Op::Suspend(..) => "resume",
        Op::Message(..) => "message",
        Op::Status(..) => "status",
        Op::Rename(..) => "rename",
        Op::Deps(..) => "deps",
        Op::RoundTrip(..) => "round-trip",
        Op::Io(..) => "io",
    }
}

impl Fuzzer {
    fn new() -> Self {
        let coverage = Coverage::open();
        if coverage.is_none() {
            println!("the kernel does not say which code has run");
        }
        watch::begin();
        Self {
            control: Control::open().expect("device mapper"),
            workers: Workers::new(),
            coverage,
            reached: HashSet::new(),
            operations: 0,
            began: Instant::now(),
            said: Instant::now(),
            counts: BTreeMap::new(),
            times: BTreeMap::new(),
            problems: 0,
            running: String::new(),
        }
    }

    fn problem(&mut self, text: &str) {
        self.problems += 1;
        println!("problem: {text}");
        if self.problems == 1 {
            println!("in this program:\n{}end of the program", self.running);
        }
    }

    fn state(&self, name: &str) -> Option<State> {
        self.control.state(name).ok()
    }

    /// Puts numbers where mapped devices are named.
    fn resolve(&self, table: &[Line]) -> Vec<Line> {
        let mut table = table.to_vec();
        for line in &mut table {
            let Some(rest) = line.words.strip_prefix('@') else {
                continue;
            };
            let (name, rest) = rest.split_once(' ').unwrap_or((rest, ""));
            let mut request = Request::new(Command::Status, name, 0);
            if request.send(&self.control).is_ok() {
                let node = node_of(request.header().dev);
                line.words = format!("{node} {rest}");
            }
        }
        table
    }

    /// Loads what a table prints, which must print the same.
    fn round_trip(&mut self, name: &str) -> Result<(), Errno> {
        let state = self.control.state(name)?;
        let is_in_group = |table: &[Line]| {
            let mut lines = table.iter();
            lines.any(|line| line.words.split(' ').any(|word| word == "group"))
        };
        let major = format!("{}:", major_of(state.dev));
        let lies_on_mapped =
            |table: &[Line]| table.iter().any(|line| line.words.starts_with(&major));
        for table in [&state.active, &state.inactive] {
            if table.is_empty() {
                continue;
            }
            match self.control.load(name, table) {
                Ok(()) => {
                    let printed = self.control.inactive_table(name)?;
                    if printed != *table {
                        self.problem(&format!("{table:?} prints as {printed:?}"));
                    }
                }
                // What others have loaded, and is not resumed yet, may be in its way.
                Err(libc::EINVAL) if is_in_group(table) => (),
                // A mapped device below may be smaller than it was, or be removed as soon as the
                // table goes that this one replaces.
                Err(libc::EINVAL | libc::ENXIO) if lies_on_mapped(table) => (),
                Err(errno) => {
                    self.problem(&format!("{table:?} does not load: {}", name_of(errno)));
                }
            }
        }
        if state.inactive.is_empty() {
            self.control.clear(name)?;
        }
        Ok(())
    }

    fn run_op(&mut self, op: &Op) {
        // What is refused changes nothing.
        let looked_at = match op {
            Op::Load(name, ..) | Op::Message(name, ..) if self.operations.is_multiple_of(4) => {
                Some((name, self.state(name)))
            }
            _ => None,
        };
        self.operations += 1;
        let began = Instant::now();
        let result = watched(|| op.to_string(), || self.call(op));
        *self.times.entry(kind(op)).or_default() += began.elapsed();
        if self.coverage.as_ref().is_some_and(Coverage::is_filling) {
            self.take_coverage();
        }
        *self
            .counts
            .entry((kind(op), result.err().unwrap_or(0)))
            .or_default() += 1;
        match op {
            Op::Message(name, sector, text) if looked_at.is_some() && result.is_ok() => {
                self.look_for_what_was_set(name, *sector, text);
            }
            _ => (),
        }
        if let (Some((name, Some(mut before))), Err(errno)) = (looked_at, result) {
            if let Some(mut after) = self.state(name) {
                // Others open and close it.
                before.open_count = 0;
                after.open_count = 0;
                if before != after {
                    self.problem(&format!(
                        "{op} failed ({}), and changed\n{before:?}\nto\n{after:?}",
                        name_of(errno)
                    ));
                }
            }
        }
    }

    /// The table says what a message has set.
    fn look_for_what_was_set(&mut self, name: &str, sector: u64, text: &str) {
        let Ok(table) = self.control.table(name) else {
            return;
        };
        let line = table.iter().find(|line| {
            line.target == "qos" && (line.start..line.start + line.length).contains(&sector)
        });
        let (Some(line), false) = (line, text.contains(['\\', '\t'])) else {
            return;
        };
        let mut words = text.split(' ').filter(|word| !word.is_empty());
        if words.next() != Some("set") {
            return;
        }
        let printed: Vec<&str> = line.words.split(' ').skip(3).collect();
        while let (Some(key), Some(value)) = (words.next(), words.next()) {
            let found = printed
                .chunks(2)
                .find(|pair| pair[0] == key)
                .map(|pair| pair[1].to_string());
            if found != printed_as(key, value) {
                self.problem(&format!("{text}: {key}, but the table says {line}"));
            }
        }
    }

    fn call(&mut self, op: &Op) -> Result<(), Errno> {
        let control = &self.control;
        match op {
            Op::Create(name) => control.create(name),
            Op::Remove(name, flags) => Request::new(Command::Remove, name, *flags).send(control),
            Op::Load(name, flags, table) => {
                Request::load(name, *flags, &self.resolve(table)).send(control)
            }
            Op::Clear(name) => control.clear(name),
            Op::Suspend(name, flags) => Request::new(Command::Suspend, name, *flags).send(control),
            Op::Message(name, sector, text) => Request::message(name, *sector, text).send(control),
            Op::Status(name, flags) => Request::status(name, *flags).send(control),
            Op::Rename(name, flags, new) => Request::rename(name, new, *flags).send(control),
            Op::Deps(name) => Request::new(Command::Deps, name, 0)
                .with_room(4096)
                .send(control),
            Op::RoundTrip(name) => self.round_trip(name),
            Op::Io(name, io, sector, count) => {
                let mut request = Request::new(Command::Status, name, 0);
                request.send(control)?;
                self.workers.give(Job {
                    path: node_of(request.header().dev),
                    io: *io,
                    sector: *sector,
                    count: *count,
                });
                Ok(())
            }
        }
    }

    /// Runs a program, and removes all that it has left.
    fn run(&mut self, program: &[Op]) {
        self.running = to_text(program);
        for op in program {
            self.run_op(op);
        }
        let began = Instant::now();
        self.clean_up();
        *self.times.entry("clean-up").or_default() += began.elapsed();
    }

    fn clean_up(&mut self) {
        let plain = [Line {
            start: 0,
            length: 8192,
            target: "qos".into(),
            words: format!("{} 0", DISKS[0]),
        }];
        let began = Instant::now();
        loop {
            let mut devices = self.control.devices().expect("devices");
            if devices.is_empty() && self.workers.waiting() == 0 {
                break;
            }
            if began.elapsed() > Duration::from_secs(60) {
                let states: Vec<_> = devices.iter().map(|name| self.state(name)).collect();
                give_up(&format!(
                    "left over: {devices:?}, {states:?}, {} jobs\nof\n{}",
                    self.workers.waiting(),
                    self.running
                ));
            }
            // Those below first: what waits there is what is waited for above.
            devices.sort();
            for name in &devices {
                let flags = flag::NOFLUSH | flag::SKIP_LOCKFS;
                watched(
                    || format!("clean-up of {name}"),
                    || {
                        let _ = self.control.load(name, &plain);
                        let _ = Request::new(Command::Suspend, name, flags).send(&self.control);
                    },
                );
            }
            let idle = Instant::now();
            while self.workers.waiting() != 0 && idle.elapsed() < Duration::from_secs(1) {
                thread::sleep(Duration::from_millis(1));
            }
            for name in devices.iter().rev() {
                watched(
                    || format!("removal of {name}"),
                    || {
                        let _ = self.control.remove(name);
                    },
                );
            }
        }
        let references = references("dm-qos");
        if references != "dm-qos: 0\n" {
            self.problem(&format!("something is left: {references}"));
        }
    }

    /// Adds what was reached since the last time.
    fn take_coverage(&mut self) {
        if let Some(coverage) = &self.coverage {
            self.reached.extend(coverage.seen());
            coverage.reset();
        }
    }

    /// How far it is.
    fn say(&mut self, kept: usize) {
        self.said = Instant::now();
        println!(
            "{} operations in {} s, {} places reached, {kept} programs kept, {} jobs",
            self.operations,
            self.began.elapsed().as_secs(),
            self.reached.len(),
            self.workers.given
        );
    }

    fn say_now_and_then(&mut self, kept: usize) {
        if self.said.elapsed() > Duration::from_secs(10) {
            self.say(kept);
        }
    }

    /// What there was of each, how it ended, and how long all of them took.
    fn summary(&self) {
        for ((kind, errno), count) in &self.counts {
            let how = match *errno {
                0 => "ok".into(),
                errno => name_of(errno),
            };
            println!("{count:8} {kind}: {how}");
        }
        for (kind, time) in &self.times {
            println!("{:8} ms: {kind}", time.as_millis());
        }
    }

    fn fuzz(&mut self, seed: u64, operations: u64, file: Option<&str>) {
        let mut maker = Maker::new(seed);
        let mut kept: Vec<Vec<Op>> = Vec::new();
        while self.operations < operations && self.problems == 0 {
            let is_new = kept.is_empty() || maker.rng.u32(..3) == 0;
            let program = if is_new {
                maker.program(LENGTH)
            } else {
                let one = maker.rng.usize(..kept.len());
                let other = maker.rng.usize(..kept.len());
                maker.mutate(&kept[one], &kept[other])
            };
            if let Some(file) = file {
                fs::write(file, to_text(&program)).expect("the file for the program");
            }
            let before = self.reached.len();
            self.run(&program);
            self.take_coverage();
            if self.reached.len() > before && kept.len() < KEPT {
                kept.push(program);
            }
            self.say_now_and_then(kept.len());
        }
        println!("seed {seed}:");
        self.say(kept.len());
        self.summary();
    }
}

/// The devices: with our selector, and with the other one.
const PAIR: [(&str, &str); 2] = [("m", OURS), ("c", THEIRS)];

impl Fuzzer {
    /// Our selector and the C one are told the same, and must say the same.
    fn fuzz_selector(&mut self, seed: u64, operations: u64, file: Option<&str>) {
        let mut rng = fastrand::Rng::with_seed(seed);
        while self.operations < operations && self.problems == 0 {
            let table = selector::table(&mut rng);
            let messages: Vec<_> = (0..rng.usize(..30))
                .map(|_| selector::message(&mut rng))
                .collect();
            self.running = format!("{}\n{}\n", table.words.join(" "), messages.join("\n"));
            if let Some(file) = file {
                fs::write(file, &self.running).expect("the file for the program");
            }
            self.compare(&table, &messages);
            for (name, _) in PAIR {
                let _ = self.control.message(name, "fail_if_no_path");
                if let Err(errno) = watched(|| "removal".into(), || self.control.remove(name)) {
                    self.problem(&format!("{name} is not removed: {}", name_of(errno)));
                }
            }
            let references = references("dm-round-robin-rs");
            if references != "dm-round-robin-rs: 0\n" {
                self.problem(&format!("something is left: {references}"));
            }
            self.take_coverage();
            self.say_now_and_then(0);
        }
        println!("seed {seed}:");
        self.say(0);
        self.summary();
    }

    /// Has both do something. The error, if it is the same.
    fn both(
        &mut self,
        kind: &'static str,
        what: &str,
        do_it: impl Fn(&Control, &str, &str) -> Result<(), Errno>,
    ) -> Option<Result<(), Errno>> {
        let [ours, theirs] = PAIR.map(|(name, selector)| {
            self.operations += 1;
            watched(|| what.into(), || do_it(&self.control, name, selector))
        });
        *self
            .counts
            .entry((kind, ours.err().unwrap_or(0)))
            .or_default() += 1;
        if ours != theirs {
            self.problem(&format!("{what}: ours: {ours:?}, C: {theirs:?}"));
            return None;
        }
        Some(ours)
    }

    fn compare(&mut self, table: &selector::Table, messages: &[String]) {
        for (name, _) in PAIR {
            self.control.create(name).expect("create");
        }
        let line = |selector: &str| Line {
            start: 0,
            length: 2048,
            target: "multipath".into(),
            words: table.for_selector(selector),
        };
        if table.is_beyond_c {
            // It must only do no harm.
            let _ = self.control.load("m", &[line(OURS)]);
            self.operations += 1;
            return;
        }
        let what = table.for_selector(OURS);
        let loaded = self.both("load", &what, |control, name, selector| {
            control.load(name, &[line(selector)])
        });
        if loaded != Some(Ok(())) {
            return;
        }
        self.both("resume", &what, |control, name, _| control.resume(name));
        self.compare_text(table, "new");
        for message in messages {
            self.both("message", message, |control, name, _| {
                control.message(name, message).map(|_| ())
            });
            self.compare_text(table, message);
            if self.problems != 0 {
                return;
            }
        }
        if !table.is_queueing {
            self.both("read", &what, |control, name, _| {
                let mut request = Request::new(Command::Status, name, 0);
                request.send(control)?;
                read_once(&node_of(request.header().dev))
            });
            self.compare_text(table, "read");
        }
    }

    fn compare_text(&mut self, table: &selector::Table, after: &str) {
        for flags in [0, flag::STATUS_TABLE] {
            self.operations += 2;
            let [ours, theirs] = PAIR.map(|(name, _)| self.control.status(name, flags));
            let (Ok(ours), Ok(theirs)) = (&ours, &theirs) else {
                self.problem(&format!("after {after}: status: {ours:?}, {theirs:?}"));
                return;
            };
            if table.has_arguments {
                continue;
            }
            let is_table = flags != 0;
            let ours = as_c_prints(&ours[0].words, is_table);
            if ours != as_c_prints(&theirs[0].words, is_table) {
                self.problem(&format!(
                    "after {after}: ours: {ours}\nC: {}",
                    theirs[0].words
                ));
            }
        }
    }
}

/// A block.
fn read_once(path: &str) -> Result<(), Errno> {
    let file = open_direct(path).map_err(|error| error.raw_os_error().unwrap_or(0))?;
    let mut buffer = Box::new(Page([0; 4096]));
    // SAFETY: The buffer is as long.
    let done = unsafe { libc::pread(file.as_raw_fd(), buffer.0.as_mut_ptr().cast(), 4096, 0) };
    if done < 0 {
        return Err(last_errno());
    }
    Ok(())
}

fn main() -> ExitCode {
    let words: Vec<String> = env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let mut fuzzer = Fuzzer::new();
    match words[..] {
        ["qos", seed, operations, ref file @ ..] => fuzzer.fuzz(
            seed.parse().expect("a seed"),
            operations.parse().expect("a number of operations"),
            file.first().copied(),
        ),
        ["selector", seed, operations, ref file @ ..] => fuzzer.fuzz_selector(
            seed.parse().expect("a seed"),
            operations.parse().expect("a number of operations"),
            file.first().copied(),
        ),
        ["repeat", file, ref times @ ..] => {
            let text = fs::read_to_string(file).expect("the program");
            let program = from_text(&text).expect("a program");
            let times = times
                .first()
                .map_or(1, |times| times.parse().expect("times"));
            for _ in 0..times {
                fuzzer.run(&program);
            }
            println!("{} operations", fuzzer.operations);
        }
        _ => panic!("what to do?"),
    }
    ExitCode::from(u8::from(fuzzer.problems != 0))
}
