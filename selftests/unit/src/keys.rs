// SPDX-License-Identifier: GPL-2.0

//! Host tests of settings that are declared as data.

#[path = "../../../rust/device_mapper/keys.rs"]
#[allow(dead_code)]
pub(crate) mod declared;

#[cfg(test)]
mod tests {
    use super::declared::{parse, Key, Name, Problem, Unit, Value, Words};
    use proptest::prelude::*;

    #[derive(Clone, Debug, Default, PartialEq)]
    struct Settings {
        count: u64,
        bytes: u64,
        ms: u64,
        name: Name,
    }

    const KEYS: &[Key<Settings>] = &[
        Key {
            name: "count",
            value: Value::Number {
                unit: Unit::Count,
                range: 0..=1000,
                get: |s| s.count,
                set: |s, v| s.count = v,
            },
        },
        Key {
            name: "bytes",
            value: Value::Number {
                unit: Unit::Bytes,
                range: 0..=u64::MAX,
                get: |s| s.bytes,
                set: |s, v| s.bytes = v,
            },
        },
        Key {
            name: "ms",
            value: Value::Number {
                unit: Unit::Milliseconds,
                range: 5..=10,
                get: |s| s.ms,
                set: |s, v| s.ms = v,
            },
        },
        Key {
            name: "name",
            value: Value::Name {
                get: |s| s.name,
                set: |s, v| s.name = v,
            },
        },
    ];

    fn run(words: &str) -> Result<Settings, String> {
        let mut settings = Settings::default();
        parse(
            KEYS,
            words.split_whitespace().map(str::as_bytes),
            &mut settings,
        )
        .map(|()| settings)
        .map_err(|problem| problem.to_string())
    }

    #[test]
    fn values_are_taken_in_any_order() {
        let settings = run("ms 7 count 1000 bytes 0").unwrap();
        assert_eq!(
            settings,
            Settings {
                count: 1000,
                bytes: 0,
                ms: 7,
                name: Name::NONE,
            }
        );
        assert_eq!(run("").unwrap(), Settings::default());
    }

    #[test]
    fn suffixes_are_binary_and_for_bytes_only() {
        for (word, bytes) in [
            ("1K", 1 << 10),
            ("3m", 3 << 20),
            ("2G", 2 << 30),
            ("1T", 1 << 40),
        ] {
            assert_eq!(run(&format!("bytes {word}")).unwrap().bytes, bytes);
        }
        assert_eq!(
            run("count 1K").unwrap_err(),
            "count: \"1K\" is not a number"
        );
    }

    #[test]
    fn each_refusal_names_the_word_and_the_reason() {
        for (words, error) in [
            ("speed 1", "\"speed\" is not a key"),
            ("count 1 count 2", "count: given twice"),
            ("count", "count: has no value (odd number of words)"),
            ("count 1 bytes", "bytes: has no value (odd number of words)"),
            ("count -1", "count: \"-1\" is not a number"),
            ("count 1001", "count: \"1001\" is not within 0 to 1000"),
            ("ms 4", "ms: \"4\" is not within 5 to 10"),
            ("ms 11", "ms: \"11\" is not within 5 to 10"),
            ("ms 7ms", "ms: \"7ms\" is not a number of milliseconds"),
            ("count 0x10", "count: \"0x10\" is not a number"),
            (
                "bytes K",
                "bytes: \"K\" is not a number of bytes (suffixes K, M, G, T)",
            ),
            (
                "bytes 1KK",
                "bytes: \"1KK\" is not a number of bytes (suffixes K, M, G, T)",
            ),
            (
                "name a;b",
                "name: \"a;b\" is not a name (up to 63 letters, digits and _-.:@+/)",
            ),
            // 2^64, and what a suffix makes of less.
            (
                "bytes 18446744073709551616",
                "bytes: \"18446744073709551616\" is not a number of bytes (suffixes K, M, G, T)",
            ),
            (
                "bytes 18446744073709551615T",
                "bytes: \"18446744073709551615T\" is not a number of bytes (suffixes K, M, G, T)",
            ),
        ] {
            assert_eq!(run(words).unwrap_err(), error, "{words}");
        }
    }

    #[test]
    fn what_is_not_text_is_escaped() {
        let mut settings = Settings::default();
        let problem = parse(KEYS, [&b"\xff\n"[..]].into_iter(), &mut settings).unwrap_err();
        assert_eq!(problem, Problem::UnknownKey(b"\xff\n"));
        assert_eq!(problem.to_string(), "\"\\xff\\n\" is not a key");
    }

    fn words(settings: &Settings) -> String {
        Words {
            keys: KEYS,
            settings,
            defaults: &Settings::default(),
        }
        .to_string()
    }

    #[test]
    fn names_are_as_long_as_they_may_be_and_no_longer() {
        let long = "n".repeat(Name::MAX);
        assert_eq!(run(&format!("name {long}")).unwrap().name.to_string(), long);
        assert!(run(&format!("name {long}n")).is_err());
        assert!(Name::new(b"").is_none());
        assert!(Name::NONE.is_none());
    }

    #[test]
    fn defaults_are_not_printed() {
        assert_eq!(words(&Settings::default()), "");
        let settings = Settings {
            bytes: 1 << 20,
            ..Settings::default()
        };
        assert_eq!(words(&settings), " 2 bytes 1048576");
    }

    proptest! {
        #[test]
        fn what_is_printed_parses_to_the_same(
            count in 0u64..=1000, bytes: u64, ms in 5u64..=10, name in "[a-zA-Z0-9_.:@+/-]{0,63}",
        ) {
            let name = Name::new(name.as_bytes()).unwrap_or(Name::NONE);
            let settings = Settings { count, bytes, ms, name };
            let printed = words(&settings);
            let mut words = printed.split_whitespace();
            let number = words.next().map_or(0, |word| word.parse().unwrap());
            let words: Vec<_> = words.collect();
            prop_assert_eq!(words.len(), number);
            prop_assert_eq!(run(&words.join(" ")).unwrap(), settings);
        }

        #[test]
        fn junk_is_refused_not_believed(words in "[ -~]{0,40}") {
            // No panic, and nothing taken that does not read back.
            if let Ok(settings) = run(&words) {
                prop_assert!(settings.count <= 1000);
            }
        }
    }
}
