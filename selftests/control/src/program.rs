// SPDX-License-Identifier: GPL-2.0

//! What is said to device mapper: a list of operations, as lines of text that can be read, kept and
//! repeated.
//!
//! Devices that others lie on have names that begin with `a`, those that lie on them with `b`, so that none
//! comes to lie on itself. In a table `@NAME` is a mapped device.

use crate::dm::Line;
use fastrand::Rng;
use std::fmt;

/// Names of mapped devices.
pub const LOWER: &[&str] = &["a0", "a1", "a2"];
pub const UPPER: &[&str] = &["b0", "b1", "b2"];
/// Below all.
pub const DISKS: &[&str] = &["/dev/fz0", "/dev/fz1"];
/// Of each.
pub const DISK_SECTORS: u64 = 131072;

/// An operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    Create(String),
    Remove(String, u32),
    Load(String, u32, Vec<Line>),
    Clear(String),
    /// Or resume: as the flags say.
    Suspend(String, u32),
    Message(String, u64, String),
    Status(String, u32),
    Rename(String, u32, String),
    Deps(String),
    /// What the tables print is loaded, and must print the same.
    RoundTrip(String),
    /// So many reads or writes, which somebody else waits for.
    Io(String, Io, u64, u32),
}

/// What is done to a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Io {
    Read,
    Write,
    ReadNowait,
    WriteNowait,
    Flush,
    Discard,
}

const IOS: &[(Io, &str)] = &[
    (Io::Read, "read"),
    (Io::Write, "write"),
    (Io::ReadNowait, "read-nowait"),
    (Io::WriteNowait, "write-nowait"),
    (Io::Flush, "flush"),
    (Io::Discard, "discard"),
];

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Op::Create(name) => write!(f, "create {name}"),
            Op::Remove(name, flags) => write!(f, "remove {name} {flags:#x}"),
            Op::Load(name, flags, table) => {
                write!(f, "load {name} {flags:#x}")?;
                for line in table {
                    write!(f, "|{line}")?;
                }
                Ok(())
            }
            Op::Clear(name) => write!(f, "clear {name}"),
            Op::Suspend(name, flags) => write!(f, "suspend {name} {flags:#x}"),
            Op::Message(name, sector, text) => write!(f, "message {name} {sector} {text}"),
            Op::Status(name, flags) => write!(f, "status {name} {flags:#x}"),
            Op::Rename(name, flags, new) => write!(f, "rename {name} {flags:#x} {new}"),
            Op::Deps(name) => write!(f, "deps {name}"),
            Op::RoundTrip(name) => write!(f, "round-trip {name}"),
            Op::Io(name, io, sector, count) => {
                let word = IOS.iter().find(|(other, _)| other == io).map(|io| io.1);
                write!(f, "io {name} {} {sector} {count}", word.unwrap_or_default())
            }
        }
    }
}

impl Op {
    /// From what `Display` makes.
    pub fn parse(text: &str) -> Option<Self> {
        let number = |word: &str| match word.strip_prefix("0x") {
            Some(digits) => u32::from_str_radix(digits, 16).ok(),
            None => word.parse().ok(),
        };
        let (head, lines) = text.split_once('|').unwrap_or((text, ""));
        let mut words = head.splitn(4, ' ');
        let what = words.next()?;
        let name = words.next()?.to_string();
        let mut next = || words.next();
        Some(match what {
            "create" => Op::Create(name),
            "remove" => Op::Remove(name, number(next()?)?),
            "load" => {
                let flags = number(next()?)?;
                let lines = lines.split('|').filter(|line| !line.is_empty());
                Op::Load(name, flags, lines.map(Line::parse).collect::<Option<_>>()?)
            }
            "clear" => Op::Clear(name),
            "suspend" => Op::Suspend(name, number(next()?)?),
            "message" => Op::Message(name, next()?.parse().ok()?, next()?.to_string()),
            "status" => Op::Status(name, number(next()?)?),
            "rename" => Op::Rename(name, number(next()?)?, next()?.to_string()),
            "deps" => Op::Deps(name),
            "round-trip" => Op::RoundTrip(name),
            "io" => {
                let word = next()?;
                let io = IOS.iter().find(|(_, other)| *other == word)?.0;
                let (sector, count) = next()?.split_once(' ')?;
                Op::Io(name, io, sector.parse().ok()?, count.parse().ok()?)
            }
            _ => return None,
        })
    }
}

/// A program, a line an operation.
pub fn to_text(program: &[Op]) -> String {
    program.iter().map(|op| format!("{op}\n")).collect()
}

/// The other way round.
pub fn from_text(text: &str) -> Option<Vec<Op>> {
    text.lines().map(Op::parse).collect()
}

/// What the random programs are made of.
pub struct Maker {
    pub rng: Rng,
}

const KEYS: &[&str] = &[
    "iops",
    "read_iops",
    "write_iops",
    "bps",
    "read_bps",
    "write_bps",
    "burst_ms",
    "io_size",
    "reserve_iops",
    "reserve_bps",
    "weight",
    "group_iops",
    "group_bps",
    "group_depth",
    "group",
];
const NUMBERS: &[&str] = &[
    "0",
    "1",
    "2",
    "7",
    "10",
    "50",
    "99",
    "100",
    "101",
    "500",
    "1000",
    "9999",
    "10000",
    "10001",
    "100000",
    "1000000",
    "99999999",
    "100000000",
    "100000001",
];
const BYTES: &[&str] = &[
    "0",
    "1",
    "511",
    "512",
    "4096",
    "4K",
    "64K",
    "1M",
    "3m",
    "100M",
    "1G",
    "1T",
    "2T",
    "1025G",
    "1099511627776",
    "1099511627777",
];
const GROUPS: &[&str] = &["g", "h", "gg/1", "A_-.:@+/z"];
const NONSENSE: &[&str] = &[
    "-1",
    "+1",
    "x",
    "0x10",
    "1e3",
    "18446744073709551615",
    "18446744073709551616",
    "99999999999999999999999",
    "1KK",
    "K",
    "T",
    "18014398509481984T",
    "\\",
    "\\ ",
    "a\\ b",
    "\u{e4}",
    "%s%n",
    "iops",
    "..",
    "\t",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "{}",
    "\"",
    "group",
];

impl Maker {
    pub fn new(seed: u64) -> Self {
        Self {
            rng: Rng::with_seed(seed),
        }
    }

    fn pick<'a>(&mut self, from: &[&'a str]) -> &'a str {
        from[self.rng.usize(..from.len())]
    }

    /// One in so many.
    fn one_in(&mut self, n: u32) -> bool {
        self.rng.u32(..n) == 0
    }

    fn name(&mut self) -> String {
        let names = if self.one_in(3) { UPPER } else { LOWER };
        if self.one_in(200) {
            // A blank would end it in the text of a program.
            return self.pick(NONSENSE).replace(' ', "_");
        }
        self.pick(names).into()
    }

    fn value(&mut self, key: &str) -> String {
        if self.one_in(40) {
            return self.pick(NONSENSE).into();
        }
        match key {
            "group" => self.pick(GROUPS).into(),
            "burst_ms" => self.pick(&["0", "1", "10", "100", "10000", "10001"]).into(),
            "weight" => self.pick(&["0", "1", "7", "100", "10000", "10001"]).into(),
            "group_depth" => self
                .pick(&["0", "1", "2", "16", "1000000", "1000001"])
                .into(),
            _ if key.ends_with("bps") || key == "io_size" => self.pick(BYTES).into(),
            // What lets a lot pass, so that programs get on.
            _ if self.one_in(2) => format!("{}", self.rng.u32(1000..100_000)),
            _ => self.pick(NUMBERS).into(),
        }
    }

    /// Keys and values.
    fn settings(&mut self, for_message: bool) -> Vec<String> {
        let mut words = Vec::new();
        let mut keys: Vec<&str> = KEYS.to_vec();
        self.rng.shuffle(&mut keys);
        let has_group = !for_message && self.one_in(2);
        if has_group {
            words.push("group".into());
            words.push(self.pick(GROUPS).into());
        }
        let count = [0, 1, 1, 2, 2, 3, 4, 8, 15][self.rng.usize(..9)];
        for key in keys.into_iter().take(count) {
            let needs_group = ["reserve", "weight", "group_"]
                .iter()
                .any(|prefix| key.starts_with(prefix));
            let is_fit = if key == "group" {
                false
            } else {
                has_group || for_message || !needs_group
            };
            if is_fit || self.one_in(30) {
                words.push(key.into());
                words.push(self.value(key));
            }
        }
        if self.one_in(30) {
            let at = self.rng.usize(..=words.len());
            let word = if self.one_in(2) {
                self.pick(NONSENSE)
            } else {
                self.pick(KEYS)
            };
            words.insert(at, word.into());
        }
        if self.one_in(40) {
            words.pop();
        }
        words
    }

    fn device(&mut self, name: &str) -> String {
        if name.starts_with('b') && self.one_in(2) {
            return format!("@{}", self.pick(LOWER));
        }
        if self.one_in(60) {
            return self
                .pick(&[
                    "/dev/null",
                    "/dev/nowhere",
                    "1:3",
                    "999:999",
                    "",
                    "/dev",
                    "-",
                    "0:0",
                ])
                .into();
        }
        self.pick(DISKS).into()
    }

    fn line(&mut self, name: &str, start: u64, length: u64) -> Line {
        let device = self.device(name);
        let offset = match self.rng.u32(..20) {
            0 => "1".into(),
            1 => format!("{}", DISK_SECTORS - length.min(DISK_SECTORS)),
            2 => self.pick(NONSENSE).into(),
            3 => format!("{}", self.rng.u64(..DISK_SECTORS)),
            _ => "0".into(),
        };
        let target = match self.rng.u32(..40) {
            0 => "linear",
            1 => "error",
            2 => "nonsense-target-x",
            _ => "qos",
        };
        let words = match target {
            "qos" => {
                let settings = self.settings(false);
                let mut words = vec![device, offset];
                if !(settings.is_empty() && self.one_in(2)) {
                    let mut count = settings.len();
                    if self.one_in(50) {
                        count = self.rng.usize(..20);
                    }
                    words.push(format!("{count}"));
                }
                words.extend(settings);
                if self.one_in(60) {
                    words.truncate(self.rng.usize(..=words.len()));
                }
                words.join(if self.one_in(50) { "  " } else { " " })
            }
            "linear" => format!("{device} {offset}"),
            _ => String::new(),
        };
        Line {
            start,
            length,
            target: target.into(),
            words,
        }
    }

    fn table(&mut self, name: &str) -> Vec<Line> {
        let count = match self.rng.u32(..100) {
            0 => 100,
            1 => 0,
            2..5 => self.rng.usize(5..40),
            5..30 => self.rng.usize(2..5),
            _ => 1,
        };
        let mut lines = Vec::new();
        let mut start = 0;
        for _ in 0..count {
            let length = match self.rng.u32(..30) {
                0 => 1,
                1 => u64::from(self.rng.u32(..)),
                2 => 0,
                _ => [8, 64, 2048, 4096, 65536][self.rng.usize(..5)],
            };
            // Lines of a table that say the same are one device.
            let line = match lines.last() {
                Some(last) if self.one_in(2) => Line {
                    start,
                    length,
                    ..Line::clone(last)
                },
                _ => self.line(name, start, length),
            };
            lines.push(line);
            start = match self.rng.u32(..80) {
                0 => self.rng.u64(..DISK_SECTORS),
                _ => start.saturating_add(length),
            };
        }
        lines
    }

    fn message(&mut self) -> String {
        match self.rng.u32(..40) {
            0 => self.pick(NONSENSE).into(),
            1 => "".into(),
            2 => "set".into(),
            3 => "reset now".into(),
            4 => "@cancel_deferred_remove".into(),
            5 | 6 => "reset".into(),
            7..10 => "histogram".into(),
            10 => format!("set {}", "x ".repeat(self.rng.usize(..2000))),
            _ => format!("set {}", self.settings(true).join(" ")),
        }
    }

    fn sector(&mut self) -> u64 {
        match self.rng.u32(..20) {
            0 => u64::MAX,
            1..4 => self.rng.u64(..DISK_SECTORS),
            _ => 0,
        }
    }

    /// Any operation.
    pub fn op(&mut self) -> Op {
        use crate::dm::flag;
        let name = self.name();
        match self.rng.u32(..1000) {
            0..40 => Op::Create(name),
            40..65 => Op::Remove(
                name,
                if self.one_in(4) {
                    flag::DEFERRED_REMOVE
                } else {
                    0
                },
            ),
            65..265 => {
                let table = self.table(&name);
                let flags = if self.one_in(20) { flag::READONLY } else { 0 };
                Op::Load(name, flags, table)
            }
            265..285 => Op::Clear(name),
            285..345 => Op::Suspend(name, 0),
            345..375 => {
                let flags = [
                    0,
                    flag::NOFLUSH,
                    flag::SKIP_LOCKFS,
                    flag::NOFLUSH | flag::SKIP_LOCKFS,
                ];
                Op::Suspend(name, flag::SUSPEND | flags[self.rng.usize(..4)])
            }
            375..650 => {
                let (sector, message) = (self.sector(), self.message());
                Op::Message(name, sector, message)
            }
            650..850 => {
                let flags = [
                    0,
                    flag::STATUS_TABLE,
                    flag::STATUS_TABLE | flag::QUERY_INACTIVE,
                    1 << 19,
                ];
                Op::Status(name, flags[self.rng.usize(..4)])
            }
            850..855 => {
                let class = if name.starts_with('b') { UPPER } else { LOWER };
                let new = self.pick(class).into();
                if self.one_in(4) {
                    Op::Rename(name, flag::UUID, self.pick(NONSENSE).into())
                } else {
                    Op::Rename(name, 0, new)
                }
            }
            855..875 => Op::Deps(name),
            875..925 => Op::RoundTrip(name),
            _ => {
                let io = IOS[self.rng.usize(..IOS.len())].0;
                Op::Io(name, io, self.rng.u64(..4096) & !7, self.rng.u32(1..30))
            }
        }
    }

    /// A program that begins with devices that work.
    pub fn program(&mut self, length: usize) -> Vec<Op> {
        let mut program = Vec::new();
        for name in LOWER.iter().chain(UPPER) {
            if self.one_in(4) {
                continue;
            }
            program.push(Op::Create(name.to_string()));
            let length = 4096;
            let line = Line {
                start: 0,
                length,
                target: "qos".into(),
                words: {
                    let settings = self.settings(false);
                    format!(
                        "{} 0 {} {}",
                        if name.starts_with('b') {
                            "@a0"
                        } else {
                            DISKS[0]
                        },
                        settings.len(),
                        settings.join(" ")
                    )
                },
            };
            program.push(Op::Load(name.to_string(), 0, vec![line]));
            program.push(Op::Suspend(name.to_string(), 0));
        }
        while program.len() < length {
            program.push(self.op());
        }
        program
    }

    /// A program that is nearly another one.
    pub fn mutate(&mut self, program: &[Op], other: &[Op]) -> Vec<Op> {
        let mut program = program.to_vec();
        for _ in 0..self.rng.usize(1..8) {
            let at = self.rng.usize(..=program.len());
            match self.rng.u32(..10) {
                0 => {
                    // The rest of another.
                    let from = self.rng.usize(..=other.len());
                    let length = program.len();
                    program.truncate(at);
                    program.extend_from_slice(&other[from..]);
                    program.truncate(length.max(64));
                }
                1 | 2 => program.insert(at, self.op()),
                3 if at < program.len() && program.len() > 1 => {
                    program.remove(at);
                }
                4 if at < program.len() => {
                    let to = self.rng.usize(..program.len());
                    program.swap(at, to);
                }
                _ if at < program.len() => {
                    let op = program[at].clone();
                    program[at] = self.change(op);
                }
                _ => program.push(self.op()),
            }
        }
        program
    }

    fn change_words(&mut self, words: &str) -> String {
        let mut words: Vec<String> = words.split(' ').map(String::from).collect();
        let at = self.rng.usize(..words.len());
        match self.rng.u32(..6) {
            0 => {
                words.remove(at);
            }
            1 => words.insert(at, self.pick(KEYS).into()),
            2 => words[at] = self.pick(NONSENSE).into(),
            3 => words[at] = self.pick(NUMBERS).into(),
            4 => words[at] = self.pick(BYTES).into(),
            _ => {
                let key = if at > 0 {
                    words[at - 1].clone()
                } else {
                    String::new()
                };
                words[at] = self.value(&key);
            }
        }
        words.join(" ")
    }

    fn change(&mut self, op: Op) -> Op {
        match op {
            Op::Load(name, flags, mut table) if !table.is_empty() => {
                let at = self.rng.usize(..table.len());
                let words = self.change_words(&table[at].words);
                // None comes to lie on itself.
                let is_safe = name.starts_with('b') || !words.starts_with('@');
                if is_safe {
                    table[at].words = words;
                }
                Op::Load(name, flags, table)
            }
            Op::Message(name, sector, text) => {
                let text = self.change_words(&text);
                Op::Message(name, sector, text)
            }
            Op::Io(name, io, sector, _) => Op::Io(name, io, sector, self.rng.u32(1..100)),
            _ => self.op(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_its_text() {
        let mut maker = Maker::new(1);
        for _ in 0..300 {
            let one = maker.program(100);
            let other = maker.program(100);
            for program in [maker.mutate(&one, &other), one, other] {
                let text = to_text(&program);
                assert_eq!(from_text(&text).as_ref(), Some(&program), "{text}");
            }
        }
    }

    #[test]
    fn no_device_lies_on_itself() {
        let mut maker = Maker::new(2);
        let mut programs: Vec<Vec<Op>> = (0..50).map(|_| maker.program(100)).collect();
        for _ in 0..2000 {
            let one = maker.rng.usize(..programs.len());
            let other = maker.rng.usize(..programs.len());
            programs[one] = maker.mutate(&programs[one], &programs[other]);
        }
        for op in programs.iter().flatten() {
            match op {
                Op::Load(name, _, table) if !name.starts_with('b') => {
                    assert!(
                        table.iter().all(|line| !line.words.starts_with('@')),
                        "{op}"
                    );
                }
                Op::Load(_, _, table) => {
                    assert!(
                        table.iter().all(|line| !line.words.starts_with("@b")),
                        "{op}"
                    );
                }
                Op::Rename(name, 0, new) => {
                    assert_eq!(name.starts_with('b'), new.starts_with('b'), "{op}");
                }
                _ => (),
            }
        }
    }
}
