// SPDX-License-Identifier: GPL-2.0

//! The words of a table line or a message, and how they are refused.
//!
//! | here | C |
//! | --- | --- |
//! | [`Args::next`] | `dm_shift_arg()` |
//! | [`Args::number`] | `dm_read_arg()`, `sscanf(..., "%llu%c", ...)` |
//! | [`Args::group`] | `dm_read_arg_group()` |
//! | [`Args::refuse`] | `ti->error = ...; return -EINVAL` with `DMERR()` |
//!
//! Every way to refuse a word says which word and why, in one line of the kernel log:
//!
//! ```text
//! device-mapper: table: 253:0: qos: offset: "12x" is not a number
//! ```

use core::{
    fmt,
    marker::PhantomData,
    ops::RangeInclusive, //
};
use kernel::prelude::*;

/// Logs an error as device mapper does (`DMERR`).
pub(crate) fn log_error(args: fmt::Arguments<'_>) {
    // SAFETY: The format string is one of `format_strings`; the prefix is NUL-terminated.
    unsafe {
        kernel::print::call_printk(
            &kernel::print::format_strings::ERR,
            b"device-mapper\0",
            args,
        )
    };
}

/// A word for people: in quotes, with whatever is not printable escaped.
pub struct Quoted<'a>(pub &'a [u8]);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.0.escape_ascii())
    }
}

/// A decimal number without sign, blank or suffix.
pub fn parse_number(word: &[u8]) -> Option<u64> {
    if word.is_empty() {
        return None;
    }
    let mut number = 0u64;
    for &byte in word {
        if !byte.is_ascii_digit() {
            return None;
        }
        number = number
            .checked_mul(10)?
            .checked_add(u64::from(byte - b'0'))?;
    }
    Some(number)
}

/// The words of a table line or a message, taken one after the other.
///
/// # Invariants
///
/// `argv[next..end]` are pointers to NUL-terminated strings, valid for `'a`, which nobody changes
/// meanwhile.
pub struct Args<'a> {
    argv: *const *mut c_char,
    next: usize,
    end: usize,
    /// What is being parsed, for error messages: the first words of each.
    context: Context<'a>,
    _argv: PhantomData<&'a CStr>,
}

/// What a list of words belongs to.
#[derive(Clone, Copy)]
pub(crate) struct Context<'a> {
    /// `"table: "` or nothing.
    pub(crate) what: &'static str,
    /// The mapped device.
    pub(crate) device: &'a CStr,
    /// The target or path selector.
    pub(crate) name: &'a CStr,
    /// `"message: "` or nothing.
    pub(crate) part: &'static str,
}

impl<'a> Args<'a> {
    /// The words `argv[..argc]`.
    ///
    /// # Safety
    ///
    /// They must be NUL-terminated strings that are valid and not changed for `'a`.
    pub(crate) unsafe fn from_raw(
        argc: c_uint,
        argv: *mut *mut c_char,
        context: Context<'a>,
    ) -> Self {
        // INVARIANT: By the safety requirements.
        Self {
            argv,
            next: 0,
            end: argc as usize,
            context,
            _argv: PhantomData,
        }
    }

    /// How many words are left.
    pub fn remaining(&self) -> usize {
        self.end - self.next
    }

    /// Logs why the words are refused, and returns the error to refuse them with.
    pub fn refuse(&self, why: fmt::Arguments<'_>) -> Error {
        let Context {
            what,
            device,
            name,
            part,
        } = self.context;
        log_error(format_args!(
            "{what}{}: {}: {part}{why}\n",
            Plain(device),
            Plain(name)
        ));
        EINVAL
    }

    /// The next word, if there is one.
    #[expect(clippy::should_implement_trait)]
    pub fn next(&mut self) -> Option<&'a CStr> {
        if self.next == self.end {
            return None;
        }
        // SAFETY: By the type invariants and the check above.
        let word = unsafe { CStr::from_char_ptr(*self.argv.add(self.next)) };
        // INVARIANT: Fewer words.
        self.next += 1;
        Some(word)
    }

    /// The next word, which must be there. `name` is what the word is.
    pub fn word(&mut self, name: &str) -> Result<&'a CStr> {
        self.next()
            .ok_or_else(|| self.refuse(format_args!("<{name}> is missing")))
    }

    /// The next word, which must be there and be a number within `range`.
    pub fn number(&mut self, name: &str, range: RangeInclusive<u64>) -> Result<u64> {
        let word = self.word(name)?.to_bytes();
        let number = parse_number(word)
            .ok_or_else(|| self.refuse(format_args!("{name}: {} is not a number", Quoted(word))))?;
        if !range.contains(&number) {
            return Err(self.refuse(format_args!(
                "{name}: {} is not within {} to {}",
                Quoted(word),
                range.start(),
                range.end()
            )));
        }
        Ok(number)
    }

    /// The next word says how many words follow that belong together: those words, or none when
    /// there is no next word. They must be all that is left.
    pub fn group(&mut self) -> Result<Args<'a>> {
        if self.remaining() != 0 {
            let count = self.number("number of words", 0..=u64::from(u32::MAX))?;
            if count != self.remaining() as u64 {
                return Err(self.refuse(format_args!(
                    "number of words: \"{count}\", but {} follow",
                    self.remaining()
                )));
            }
        }
        let group = Args { ..*self };
        // INVARIANT: Fewer words.
        self.next = self.end;
        Ok(group)
    }

    /// Refuses words that are left over.
    pub fn finish(&mut self) -> Result {
        match self.next() {
            None => Ok(()),
            Some(word) => Err(self.refuse(format_args!(
                "{} is one word too many",
                Quoted(word.to_bytes())
            ))),
        }
    }
}

/// A C string as it is.
struct Plain<'a>(&'a CStr);

impl fmt::Display for Plain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.to_bytes().escape_ascii())
    }
}

#[kernel::macros::kunit_tests(ferrule_dm_args)]
mod tests {
    use super::*;

    fn with_args<const N: usize>(words: [&CStr; N], test: impl FnOnce(&mut Args<'_>) -> Result) {
        let mut argv = words.map(|word| word.as_char_ptr().cast_mut());
        let context = Context {
            what: "table: ",
            device: c"0:0",
            name: c"kunit",
            part: "",
        };
        // SAFETY: The words live longer than `args`, and nobody changes them.
        let mut args = unsafe { Args::from_raw(N as c_uint, argv.as_mut_ptr(), context) };
        assert!(test(&mut args).is_ok());
    }

    #[test]
    fn words_come_in_order_and_end() {
        with_args([c"one", c"2"], |args| {
            assert_eq!(args.remaining(), 2);
            assert_eq!(args.word("first")?.to_bytes(), b"one");
            assert_eq!(args.number("second", 0..=2)?, 2);
            assert!(args.next().is_none());
            assert!(args.word("third").is_err());
            args.finish()
        });
    }

    #[test]
    fn numbers_are_checked() {
        with_args([c"3", c"x", c"", c"18446744073709551616"], |args| {
            for _ in 0..4 {
                assert!(args.number("number", 0..=2).is_err());
            }
            Ok(())
        });
        assert_eq!(parse_number(b"18446744073709551615"), Some(u64::MAX));
    }

    #[test]
    fn a_group_is_all_that_is_left() {
        with_args([c"2", c"a", c"b"], |args| {
            let group = args.group()?;
            assert_eq!(group.remaining(), 2);
            assert_eq!(args.remaining(), 0);
            Ok(())
        });
        with_args([c"1", c"a", c"b"], |args| {
            assert!(args.group().is_err());
            Ok(())
        });
        with_args([], |args| {
            assert_eq!(args.group()?.remaining(), 0);
            Ok(())
        });
    }

    #[test]
    fn words_left_over_are_refused() {
        with_args([c"a"], |args| {
            assert!(args.finish().is_err());
            Ok(())
        });
    }
}
