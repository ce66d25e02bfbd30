// SPDX-License-Identifier: GPL-2.0

//! Settings that are declared once, as data: what table lines and messages call `<key> <value>`.
//!
//! A driver keeps its settings in a struct `S` of plain integers and lists a [`Key`] for each of
//! them. Parsing, printing, changing and every error text follow from that list:
//!
//! ```
//! #[derive(Clone, Default, PartialEq)]
//! struct Settings {
//!     iops: u64,
//! }
//!
//! const KEYS: &[Key<Settings>] = &[Key {
//!     name: "iops",
//!     unit: Unit::Count,
//!     range: 0..=1_000_000_000,
//!     get: |settings| settings.iops,
//!     set: |settings, value| settings.iops = value,
//! }];
//! ```
//!
//! Nothing here but `core`, so that it is tested on the host (`selftests/unit`).

use core::{
    fmt,
    ops::RangeInclusive, //
};

/// What a value counts, which is also how it is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// A plain number.
    Count,
    /// Bytes: a number that may have a suffix `K`, `M`, `G` or `T` (powers of 1024).
    Bytes,
    /// Milliseconds: a plain number.
    Milliseconds,
}

impl Unit {
    fn parse(self, word: &[u8]) -> Option<u64> {
        let (digits, shift) = match (self, word.split_last()) {
            (Unit::Bytes, Some((suffix, digits))) => match suffix {
                b'K' | b'k' => (digits, 10),
                b'M' | b'm' => (digits, 20),
                b'G' | b'g' => (digits, 30),
                b'T' | b't' => (digits, 40),
                _ => (word, 0),
            },
            _ => (word, 0),
        };
        if digits.is_empty() {
            return None;
        }
        let mut number = 0u64;
        for &byte in digits {
            if !byte.is_ascii_digit() {
                return None;
            }
            number = number
                .checked_mul(10)?
                .checked_add(u64::from(byte - b'0'))?;
        }
        number.checked_mul(1 << shift)
    }

    fn what(self) -> &'static str {
        match self {
            Unit::Count => "number",
            Unit::Bytes => "number of bytes (suffixes K, M, G, T)",
            Unit::Milliseconds => "number of milliseconds",
        }
    }
}

/// One setting of `S`.
pub struct Key<S> {
    /// What it is called.
    pub name: &'static str,
    /// What its value counts.
    pub unit: Unit,
    /// The values that it may have.
    pub range: RangeInclusive<u64>,
    /// Reads it.
    pub get: fn(&S) -> u64,
    /// Changes it.
    pub set: fn(&mut S, u64),
}

/// Why a list of keys and values is refused. Formats as a sentence that names the word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Problem<'a> {
    /// There is no such key.
    UnknownKey(&'a [u8]),
    /// The key stands there twice.
    DuplicateKey(&'static str),
    /// The list ends after the key.
    NoValue(&'static str),
    /// The value is not of its unit.
    NotOfUnit(&'static str, Unit, &'a [u8]),
    /// The value is too small or too large.
    OutOfRange(&'static str, &'a [u8], u64, u64),
}

impl fmt::Display for Problem<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Problem::UnknownKey(word) => write!(f, "\"{}\" is not a key", word.escape_ascii()),
            Problem::DuplicateKey(name) => write!(f, "{name}: given twice"),
            Problem::NoValue(name) => write!(f, "{name}: has no value (odd number of words)"),
            Problem::NotOfUnit(name, unit, word) => {
                write!(
                    f,
                    "{name}: \"{}\" is not a {}",
                    word.escape_ascii(),
                    unit.what()
                )
            }
            Problem::OutOfRange(name, word, min, max) => write!(
                f,
                "{name}: \"{}\" is not within {min} to {max}",
                word.escape_ascii()
            ),
        }
    }
}

/// Takes `<key> <value>` pairs from `words` into `settings`. When it fails, `settings` may have taken
/// some of them: give it a copy.
pub fn parse<'a, S>(
    keys: &[Key<S>],
    words: impl Iterator<Item = &'a [u8]>,
    settings: &mut S,
) -> Result<(), Problem<'a>> {
    let mut words = words;
    let mut seen = 0u64;
    debug_assert!(keys.len() <= 64);
    while let Some(word) = words.next() {
        let (index, key) = keys
            .iter()
            .enumerate()
            .find(|(_, key)| key.name.as_bytes() == word)
            .ok_or(Problem::UnknownKey(word))?;
        if seen & (1 << index) != 0 {
            return Err(Problem::DuplicateKey(key.name));
        }
        seen |= 1 << index;
        let word = words.next().ok_or(Problem::NoValue(key.name))?;
        let value = key
            .unit
            .parse(word)
            .ok_or(Problem::NotOfUnit(key.name, key.unit, word))?;
        if !key.range.contains(&value) {
            let (min, max) = (*key.range.start(), *key.range.end());
            return Err(Problem::OutOfRange(key.name, word, min, max));
        }
        (key.set)(settings, value);
    }
    Ok(())
}

/// What [`parse`] needs to get from `defaults` to `settings`, to be formatted: a blank, the number of
/// words that follow and the words; nothing when there is no difference.
pub struct Words<'a, S> {
    /// The keys, in the order in which they are written.
    pub keys: &'a [Key<S>],
    /// What to get to.
    pub settings: &'a S,
    /// Where to start.
    pub defaults: &'a S,
}

impl<S> fmt::Display for Words<'_, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let differs = |key: &&Key<S>| (key.get)(self.settings) != (key.get)(self.defaults);
        let count = self.keys.iter().filter(differs).count();
        if count != 0 {
            write!(f, " {}", 2 * count)?;
        }
        for key in self.keys.iter().filter(differs) {
            write!(f, " {} {}", key.name, (key.get)(self.settings))?;
        }
        Ok(())
    }
}
