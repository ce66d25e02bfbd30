// SPDX-License-Identifier: GPL-2.0

//! How the host behaves: decisions only. What is random depends on the seed and on a count of
//! messages, and on nothing else.

use std::str::FromStr;

/// What a queue is for. The order is that of the queues of a device that has all of them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    Inflate,
    Deflate,
    Stats,
    Hint,
    Reporting,
}

pub const KINDS: [Kind; 5] = [
    Kind::Inflate,
    Kind::Deflate,
    Kind::Stats,
    Kind::Hint,
    Kind::Reporting,
];

impl Kind {
    pub fn name(self) -> &'static str {
        ["inflate", "deflate", "stats", "hint", "reporting"][self as usize]
    }

    /// The feature that has the queue.
    pub fn feature(self) -> Option<u32> {
        match self {
            Kind::Inflate | Kind::Deflate => None,
            Kind::Stats => Some(1),
            Kind::Hint => Some(3),
            Kind::Reporting => Some(5),
        }
    }
}

impl FromStr for Kind {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        KINDS
            .into_iter()
            .find(|kind| kind.name() == name)
            .ok_or_else(|| format!("no queue is called {name:?}"))
    }
}

/// What becomes of one buffer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Act {
    /// It is used.
    Use,
    /// It is used, and more of it was written than it has room for.
    UseLonger(u32),
    /// What it says is done at once, and it is used some time later.
    UseLater { ms: u64 },
    /// It is looked at some time later, and used then: as a device may that takes its buffers in an
    /// order of its own.
    TakeLater { ms: u64 },
    /// It is used, but there is no interrupt.
    UseQuietly,
    /// It is used twice.
    UseTwice,
    /// A buffer is used that there cannot be.
    UseUnknown(u32),
    /// The next buffer is used, which may have been lent or not.
    UseOther,
    /// It is used, and so are others, which are not named.
    Jump(u16),
    /// Nothing. The queue answers no more.
    Silence,
}

impl Act {
    pub fn name(self) -> &'static str {
        match self {
            Act::Use => "use",
            Act::UseLonger(_) => "longer",
            Act::UseLater { .. } => "later",
            Act::TakeLater { .. } => "shuffled",
            Act::UseQuietly => "quietly",
            Act::UseTwice => "twice",
            Act::UseUnknown(_) => "unknown",
            Act::UseOther => "other",
            Act::Jump(_) => "jump",
            Act::Silence => "silence",
        }
    }

    /// Whether the guest knows what is in the balloon after this, and the host too.
    pub fn is_honest(self) -> bool {
        matches!(
            self,
            Act::Use
                | Act::UseLonger(_)
                | Act::UseLater { .. }
                | Act::TakeLater { .. }
                | Act::UseQuietly
        )
    }
}

/// How the host misbehaves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Case {
    /// It does not.
    Good,
    /// Another target with each message.
    Retarget,
    /// All buffers of a queue (or of all) are used by this act.
    All(Option<Kind>, Act),
    /// The next buffer of a queue is, then the host is good again.
    Once(Kind, Act),
    /// Buffers are looked at and used in another order than they come in: the first of each few last.
    Shuffled,
    /// Every second kick of a queue (or of all) is missed.
    Deaf(Option<Kind>),
    /// The target is another one each time it is read, and nobody says so.
    UnstableConfig,
    /// Interrupts that mean nothing, with each message.
    Interrupts,
    /// All of it, at random.
    Random,
}

impl FromStr for Case {
    type Err = String;

    /// `NAME` or `NAME:QUEUE`.
    fn from_str(text: &str) -> Result<Self, String> {
        let (name, queue) = match text.split_once(':') {
            Some((name, queue)) => (name, Some(queue.parse()?)),
            None => (text, None),
        };
        let of = |act| Ok(Case::All(queue, act));
        let once = |act| {
            queue
                .map(|kind| Case::Once(kind, act))
                .ok_or_else(|| format!("{name}: which queue?"))
        };
        match name {
            "good" => Ok(Case::Good),
            "retarget" => Ok(Case::Retarget),
            "longer" => of(Act::UseLonger(u32::MAX)),
            "later" => of(Act::UseLater { ms: 5 }),
            "quietly" => of(Act::UseQuietly),
            "shuffled" => Ok(Case::Shuffled),
            "deaf" => Ok(Case::Deaf(queue)),
            "silence" => of(Act::Silence),
            "twice" => once(Act::UseTwice),
            "unknown" => once(Act::UseUnknown(0xffff_0000)),
            "other" => once(Act::UseOther),
            "jump" => once(Act::Jump(7)),
            "far-jump" => once(Act::Jump(30000)),
            "unstable-config" => Ok(Case::UnstableConfig),
            "interrupts" => Ok(Case::Interrupts),
            "random" => Ok(Case::Random),
            _ => Err(format!("no case is called {name:?}")),
        }
    }
}

/// Makes the decisions.
pub struct Host {
    pub case: Case,
    seed: u64,
    /// The guest's pages of 4 KiB.
    pub memory_units: u32,
}

/// What a number is drawn for.
#[derive(Clone, Copy)]
enum Draw {
    Act = 1,
    Detail,
    Retarget,
    Target,
    Base,
    Extra,
    Features,
    Kick,
    Reclaim,
}

/// So many buffers are shuffled, as far as so many are there within some milliseconds.
const SHUFFLE: u64 = 8;

/// In a million messages.
const MILLION: u64 = 1_000_000;

impl Host {
    pub fn new(case: Case, seed: u64) -> Self {
        Self {
            case,
            seed,
            memory_units: 0,
        }
    }

    /// The same number for the same seed, purpose and count (SplitMix64).
    fn draw(&self, what: Draw, count: u64) -> u64 {
        let mut value = self.seed.wrapping_mul(0xd6e8_feb8_6659_fd93)
            ^ count.wrapping_mul(16).wrapping_add(what as u64);
        for _ in 0..2 {
            value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
            value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            value ^= value >> 31;
        }
        value
    }

    /// The features of a random device: some of its own, and others that nobody has heard of.
    pub fn random_features(&self) -> u64 {
        let random = self.draw(Draw::Features, 0);
        // Neither of the transport's own, which say what rings look like.
        let unknown = 0xfffc_0000_00ff_ffc0;
        // Half of all devices have what most have: statistics and reporting.
        let common = if random >> 62 & 1 == 0 {
            1 << 1 | 1 << 5
        } else {
            0
        };
        (random & 0x3f) | common | (random.rotate_left(20) & unknown)
    }

    /// What becomes of a buffer.
    pub fn act(&mut self, kind: Kind, count: u64) -> Act {
        match self.case {
            Case::Good
            | Case::Retarget
            | Case::Deaf(_)
            | Case::UnstableConfig
            | Case::Interrupts => Act::Use,
            Case::Shuffled => Act::TakeLater {
                ms: (SHUFFLE - count % SHUFFLE) * 8,
            },
            Case::All(queue, act) if queue.is_none_or(|queue| queue == kind) => act,
            Case::All(..) => Act::Use,
            Case::Once(queue, act) if queue == kind => {
                self.case = Case::Good;
                act
            }
            Case::Once(..) => Act::Use,
            Case::Random => self.random_act(count),
        }
    }

    fn random_act(&self, count: u64) -> Act {
        let detail = self.draw(Draw::Detail, count);
        // What ends a queue costs the seconds that the driver waits for it: it is rare.
        let choices = [
            (100_000, Act::UseLonger(detail as u32)),
            (10_000, Act::UseLater { ms: detail % 4 }),
            (10_000, Act::TakeLater { ms: detail % 4 }),
            (500, Act::UseQuietly),
            (100, Act::UseTwice),
            (100, Act::UseUnknown(detail as u32 | 0x400)),
            (100, Act::UseOther),
            (100, Act::Jump(detail as u16 | 1)),
            (60, Act::Silence),
        ];
        let mut at = self.draw(Draw::Act, count) % MILLION;
        for (share, act) in choices {
            if at < share {
                return act;
            }
            at -= share;
        }
        Act::Use
    }

    /// Whether the host does not notice a queue's kick of that number: not what it was for either, until
    /// another one comes.
    pub fn misses_kick(&self, kind: Kind, kick: u64) -> bool {
        match self.case {
            Case::Deaf(queue) => kick % 2 == 1 && queue.is_none_or(|queue| queue == kind),
            // A guest that has statistics for the host does not wait for it.
            Case::Random if kind != Kind::Stats => self.draw(Draw::Kick, kick) % MILLION < 300,
            _ => false,
        }
    }

    /// Whether the host discards what it gets hints of from now on.
    pub fn reclaims(&self, count: u64) -> bool {
        self.draw(Draw::Reclaim, count) % 2 == 1
    }

    /// The size that the host wants from now on, if it is another with this message.
    pub fn retarget(&self, count: u64) -> Option<u32> {
        match self.case {
            Case::Retarget => Some(self.target(count)),
            Case::Random if self.draw(Draw::Retarget, count) % 100 < 80 => Some(self.target(count)),
            _ => None,
        }
    }

    /// Some size. For the most part it is near one that changes less often, so that there are many
    /// messages of few pages; and it fits.
    pub fn target(&self, count: u64) -> u32 {
        let random = self.draw(Draw::Target, count);
        let some = (random >> 32) as u32;
        let part = (self.memory_units / 4).max(1);
        match random % 1000 {
            0..10 => 0,
            10..12 => u32::MAX,
            12..14 => self.memory_units.saturating_add(some),
            14..16 => self.memory_units,
            16..40 => some % (part * 2),
            _ => (self.draw(Draw::Base, count / 64) >> 32) as u32 % part + some % 64,
        }
    }

    /// The target as it is read now.
    pub fn target_as_read(&self, target: u32, count: u64) -> u32 {
        match self.case {
            Case::UnstableConfig => self.target(count),
            _ => target,
        }
    }

    /// Whether there is an interrupt that means nothing.
    pub fn interrupts(&self, count: u64) -> bool {
        match self.case {
            Case::Interrupts => true,
            Case::Random => self.draw(Draw::Extra, count) % 100 < 5,
            _ => false,
        }
    }

    /// Whether the host asks for statistics now.
    pub fn asks_for_statistics(&self, count: u64) -> bool {
        match self.case {
            Case::Retarget | Case::Interrupts => true,
            Case::Random => self.draw(Draw::Extra, count) / 100 % 100 < 5,
            _ => false,
        }
    }

    /// A command of the hinting queue for the configuration, now and then: stop, done or an id.
    pub fn hint_command(&self, count: u64) -> Option<u32> {
        let random = self.draw(Draw::Extra, count) / 10_000;
        let command = (random >> 16) as u32;
        let command = [0, 1, command][command as usize % 3];
        (self.case == Case::Random && random % 100 < 1).then_some(command)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decisions(seed: u64) -> Vec<(Act, Option<u32>, bool, bool)> {
        let mut host = Host::new(Case::Random, seed);
        host.memory_units = 1 << 16;
        (0..50_000)
            .map(|count| {
                (
                    host.act(Kind::Inflate, count),
                    host.retarget(count),
                    host.interrupts(count),
                    host.asks_for_statistics(count),
                )
            })
            .collect()
    }

    #[test]
    fn a_seed_repeats_all_decisions() {
        assert_eq!(decisions(7), decisions(7));
        assert_ne!(decisions(7), decisions(8));
    }

    #[test]
    fn a_random_host_does_everything() {
        let seen = decisions(1);
        for name in [
            "use", "longer", "later", "shuffled", "quietly", "twice", "unknown", "other", "jump",
        ] {
            assert!(seen.iter().any(|(act, ..)| act.name() == name), "{name}");
        }
        assert!(seen.iter().any(|(_, target, ..)| *target == Some(u32::MAX)));
        // Most of it is honest, or nothing would ever happen.
        let honest = seen.iter().filter(|(act, ..)| act.is_honest()).count();
        assert!(honest > seen.len() * 98 / 100);
    }

    #[test]
    fn a_kick_that_is_missed_is_not_missed_for_ever() {
        let host = Host::new(Case::Random, 1);
        let missed = |kind| {
            (0..100_000)
                .filter(|&kick| host.misses_kick(kind, kick))
                .count()
        };
        assert!((10..100).contains(&missed(Kind::Hint)));
        assert_eq!(missed(Kind::Stats), 0);
        let deaf = Host::new("deaf:inflate".parse().unwrap(), 1);
        assert!(!deaf.misses_kick(Kind::Inflate, 0) && deaf.misses_kick(Kind::Inflate, 1));
        assert!(!deaf.misses_kick(Kind::Hint, 1));
    }

    #[test]
    fn a_case_of_once_is_over_after_it() {
        let mut host = Host::new("twice:deflate".parse().unwrap(), 1);
        assert_eq!(host.act(Kind::Inflate, 1), Act::Use);
        assert_eq!(host.act(Kind::Deflate, 2), Act::UseTwice);
        assert_eq!(host.act(Kind::Deflate, 3), Act::Use);
        assert!("twice".parse::<Case>().is_err());
        assert!("nonsense".parse::<Case>().is_err());
    }
}
