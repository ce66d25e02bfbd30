// SPDX-License-Identifier: GPL-2.0

//! Tables of multipath devices, for a path selector and for another one that is to say the same.

use crate::program::DISKS;
use fastrand::Rng;

/// Weights that C takes, in parts only, or passing over a blank before them, and that are refused here: see
/// Documentation/mpath-sel.rst.
const TAKEN_BY_C: &[&str] = &["4294967296", "99999999999999999999", "\\ 1"];

/// The two names.
pub const OURS: &str = "round-robin-rs";
pub const THEIRS: &str = "round-robin";

/// A table, in which `SELECTOR` stands for the name.
#[derive(Clone, Debug)]
pub struct Table {
    pub words: Vec<String>,
    /// They are allowed to differ in whether they take it.
    pub is_beyond_c: bool,
    /// They print different things.
    pub has_arguments: bool,
    /// I/O waits for a path.
    pub is_queueing: bool,
    /// A few of its devices.
    pub paths: usize,
}

fn pick<'a>(rng: &mut Rng, from: &[&'a str]) -> &'a str {
    from[rng.usize(..from.len())]
}

/// Any table.
pub fn table(rng: &mut Rng) -> Table {
    let mut table = Table {
        words: Vec::new(),
        is_beyond_c: false,
        has_arguments: false,
        is_queueing: false,
        paths: 0,
    };
    let features = match rng.u32(..20) {
        0 => pick(
            rng,
            &["1 x", "3 queue_mode bio", "-1", "2 queue_mode x", "x"],
        ),
        1..4 => "3 queue_if_no_path queue_mode bio",
        4 => "0",
        5 => "1 queue_if_no_path",
        _ => "2 queue_mode bio",
    };
    table.is_queueing = features.contains("queue_if");
    let groups = rng.usize(1..4);
    let first = match rng.u32(..30) {
        0 => rng.usize(..6),
        _ => rng.usize(1..=groups),
    };
    let mut words = vec![
        features.to_string(),
        "0".into(),
        groups.to_string(),
        first.to_string(),
    ];
    for _ in 0..groups {
        words.push("SELECTOR".into());
        let arguments = match rng.u32(..20) {
            0 => pick(rng, &["1 x", "2 some thing", "1 1", "9 x", "x", "-1", "1"]),
            1 => pick(
                rng,
                &[
                    "1 latency",
                    "2 x latency",
                    "1 nearest",
                    "3 nearest x latency",
                ],
            ),
            _ => "0",
        };
        table.has_arguments |= arguments.contains("latency") || arguments.contains("nearest");
        words.push(arguments.into());
        let paths = match rng.u32(..40) {
            0 => 0,
            1 => rng.usize(20..200),
            _ => rng.usize(1..6),
        };
        let with = match rng.u32(..20) {
            0 => rng.usize(2..4),
            1..5 => 0,
            _ => 1,
        };
        words.push(paths.to_string());
        words.push(with.to_string());
        for _ in 0..paths {
            words.push(match rng.u32(..60) {
                0 => pick(rng, &["/dev/null", "999:999", "x", "/dev/nowhere"]).into(),
                _ => pick(rng, DISKS).into(),
            });
            for _ in 0..with {
                let weight = match rng.u32(..80) {
                    0 => pick(rng, &["-1", "+1", "1x", "0x10", "x", "1.5", ""]),
                    1 => pick(rng, TAKEN_BY_C),
                    2..20 => pick(
                        rng,
                        &[
                            "0",
                            "010",
                            "65535",
                            "4096",
                            "4097",
                            "2147483648",
                            "4294967295",
                        ],
                    ),
                    _ => pick(rng, &["1", "2", "3", "5", "7", "10", "100"]),
                };
                table.is_beyond_c |= TAKEN_BY_C.contains(&weight);
                words.push(weight.into());
            }
        }
        table.paths += paths;
    }
    if rng.u32(..40) == 0 {
        let at = rng.usize(..=words.len());
        words.truncate(at);
    }
    if rng.u32(..40) == 0 {
        words.push("1".into());
    }
    table.words = words;
    table
}

impl Table {
    /// For a selector of this name.
    pub fn for_selector(&self, name: &str) -> String {
        self.words.join(" ").replace("SELECTOR", name)
    }
}

/// A message for both.
pub fn message(rng: &mut Rng) -> String {
    let path = match rng.u32(..30) {
        0 => pick(rng, &["/dev/null", "x", "999:999", ""]),
        _ => pick(rng, DISKS),
    };
    let number = rng.u32(..5);
    match rng.u32(..20) {
        0 => format!("switch_group {number}"),
        1 => format!("disable_group {number}"),
        2 => format!("enable_group {number}"),
        3 => "fail_if_no_path".into(),
        4 => pick(rng, &["x", "fail_path", "reinstate_path", "switch_group x"]).into(),
        5..13 => format!("fail_path {path}"),
        _ => format!("reinstate_path {path}"),
    }
}

/// What ours prints, as C would: it takes any weight for 1, and 0 for 0, and prints that.
pub fn as_c_prints(text: &str, is_table: bool) -> String {
    let mut words: Vec<String> = text.split(' ').map(String::from).collect();
    for word in &mut words {
        if word == OURS {
            *word = THEIRS.into();
        }
    }
    if !is_table {
        return words.join(" ");
    }
    // <selector> <number of arguments> <paths> <arguments of each> (<device> <argument>...)...
    let mut at = 0;
    while at + 3 < words.len() {
        if words[at] != THEIRS {
            at += 1;
            continue;
        }
        let number = |at: usize| {
            words
                .get(at)
                .and_then(|word| word.parse().ok())
                .unwrap_or(0usize)
        };
        let (skip, at_paths) = (number(at + 1), at + 2);
        let (paths, with) = (number(at_paths + skip), number(at_paths + skip + 1));
        let first = at_paths + skip + 2;
        for path in 0..paths {
            let weight = first + path * (1 + with) + 1;
            if with > 0 && words.get(weight).is_some_and(|word| word != "0") {
                words[weight] = "1".into();
            }
        }
        at = first;
    }
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_what_c_makes_of_them() {
        let ours = "2 queue_mode bio 0 1 1 round-robin-rs 0 2 1 8:0 7 8:16 0";
        let theirs = "2 queue_mode bio 0 1 1 round-robin 0 2 1 8:0 1 8:16 0";
        assert_eq!(as_c_prints(ours, true), theirs);
    }
}
