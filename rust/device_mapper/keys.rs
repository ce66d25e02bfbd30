// SPDX-License-Identifier: GPL-2.0

//! Settings that are declared once, as data: what table lines and messages call `<key> <value>`.
//!
//! A driver keeps its settings in a struct `S` of plain integers and names, and lists a [`Key`] for each of
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
//!     value: Value::Number {
//!         unit: Unit::Count,
//!         range: 0..=1_000_000_000,
//!         get: |settings| settings.iops,
//!         set: |settings, value| settings.iops = value,
//!     },
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
    /// What it is.
    pub value: Value<S>,
}

/// What a setting of `S` is, and how to read and to change it.
pub enum Value<S> {
    /// A number.
    Number {
        /// What it counts.
        unit: Unit,
        /// The values that it may have.
        range: RangeInclusive<u64>,
        /// Reads it.
        get: fn(&S) -> u64,
        /// Changes it.
        set: fn(&mut S, u64),
    },
    /// A name.
    Name {
        /// Reads it.
        get: fn(&S) -> Name,
        /// Changes it.
        set: fn(&mut S, Name),
    },
}

impl<S> Key<S> {
    /// Does its value differ between two settings?
    pub fn differs(&self, one: &S, other: &S) -> bool {
        match &self.value {
            Value::Number { get, .. } => get(one) != get(other),
            Value::Name { get, .. } => get(one) != get(other),
        }
    }

    fn parse<'a>(&self, word: &'a [u8], settings: &mut S) -> Result<(), Problem<'a>> {
        match &self.value {
            Value::Number {
                unit, range, set, ..
            } => {
                let value = unit
                    .parse(word)
                    .ok_or(Problem::NotOfUnit(self.name, *unit, word))?;
                if !range.contains(&value) {
                    let (min, max) = (*range.start(), *range.end());
                    return Err(Problem::OutOfRange(self.name, word, min, max));
                }
                set(settings, value);
            }
            Value::Name { set, .. } => {
                let name = Name::new(word).ok_or(Problem::NotAName(self.name, word))?;
                set(settings, name);
            }
        }
        Ok(())
    }
}

/// A name: 1 to [`Name::MAX`] letters, digits and characters of `_-.:@+/`, or nothing, by default.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Name {
    /// Zeroes follow the name.
    bytes: [u8; Name::MAX],
}

impl Name {
    /// The most bytes that it can have.
    pub const MAX: usize = 63;
    /// No name.
    pub const NONE: Name = Name {
        bytes: [0; Name::MAX],
    };

    /// `None` if `word` is no name.
    pub fn new(word: &[u8]) -> Option<Self> {
        let may_have = |byte: &u8| byte.is_ascii_alphanumeric() || b"_-.:@+/".contains(byte);
        if word.is_empty() || !word.iter().all(may_have) {
            return None;
        }
        let mut name = Self::NONE;
        name.bytes.get_mut(..word.len())?.copy_from_slice(word);
        Some(name)
    }

    /// Is there no name?
    pub fn is_none(&self) -> bool {
        *self == Self::NONE
    }

    fn as_str(&self) -> &str {
        let end = self.bytes.iter().position(|&byte| byte == 0);
        // All of it is ASCII.
        core::str::from_utf8(&self.bytes[..end.unwrap_or(Self::MAX)]).unwrap_or_default()
    }
}

impl Default for Name {
    fn default() -> Self {
        Self::NONE
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
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
    /// The value is no name.
    NotAName(&'static str, &'a [u8]),
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
            Problem::NotAName(name, word) => write!(
                f,
                "{name}: \"{}\" is not a name (up to {} letters, digits and _-.:@+/)",
                word.escape_ascii(),
                Name::MAX
            ),
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
        key.parse(word, settings)?;
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
        let differs = |key: &&Key<S>| key.differs(self.settings, self.defaults);
        let count = self.keys.iter().filter(differs).count();
        if count != 0 {
            write!(f, " {}", 2 * count)?;
        }
        for key in self.keys.iter().filter(differs) {
            write!(f, " {} ", key.name)?;
            match &key.value {
                Value::Number { get, .. } => write!(f, "{}", get(self.settings))?,
                Value::Name { get, .. } => write!(f, "{}", get(self.settings))?,
            }
        }
        Ok(())
    }
}
