// SPDX-License-Identifier: GPL-2.0

//! balloon's free page hints on loom's atomics and locks: every interleaving of the host, the work and the
//! shrinker.

#![cfg(test)]
#![allow(dead_code, clippy::duplicate_mod)]

mod primitives {
    pub(crate) use loom::sync::atomic::{fence, AtomicBool, Ordering};
}
#[path = "../../../balloon/policy/handover.rs"]
mod handover;
#[path = "balloon_store.rs"]
mod store;

mod tests {
    use super::{
        handover::{Idle, News, Next, Places, Round, DONE},
        store::List,
    };
    use loom::{
        sync::{
            atomic::{
                AtomicBool, AtomicUsize,
                Ordering::{AcqRel, Acquire},
            },
            Arc, Mutex,
        },
        thread,
    };
    use std::convert::Infallible;

    /// All that differ by at most so many preemptions: all there are take minutes.
    fn model(run: impl Fn() + Send + Sync + 'static) {
        let mut model = loom::model::Builder::new();
        model.preemption_bound = Some(3);
        model.check(run);
    }

    /// A work item of the kernel. Enqueuing it, and beginning to run, are full barriers: so one of both
    /// is first, and who is second sees what came before the other. That is all that is modelled.
    struct Work {
        is_pending: AtomicBool,
    }

    impl Work {
        fn enqueue(&self) {
            self.is_pending.swap(true, AcqRel);
        }

        /// Runs it as often as it is enqueued.
        fn run(&self, mut run: impl FnMut()) {
            while self.is_pending.swap(false, AcqRel) {
                run();
            }
        }
    }

    /// Commands, from the host's side to what the driver makes of them.
    struct Commands {
        /// What the configuration space shows. Reading it is the device's doing, so it is never old.
        shown: Mutex<u32>,
        news: News,
        work: Work,
        /// The driver's. The kernel has a mutex.
        round: Mutex<(Round, Vec<Next>)>,
    }

    impl Commands {
        fn new() -> Arc<Self> {
            Arc::new(Self {
                shown: Mutex::new(0),
                news: News::new(),
                work: Work {
                    is_pending: AtomicBool::new(false),
                },
                round: Mutex::new(<_>::default()),
            })
        }

        /// The host shows a command and interrupts.
        fn show(&self, command: u32) {
            *self.shown.lock().unwrap() = command;
            self.news.arrive();
            self.work.enqueue();
        }

        /// The work, as `Hints::obey`, with no block to send.
        fn obey(&self) {
            let mut round = self.round.lock().unwrap();
            let (now, did) = &mut *round;
            let read = || Ok::<_, Infallible>(*self.shown.lock().unwrap());
            self.news.take(now, read).unwrap();
            if matches!(now.next(), Next::Send | Next::End) {
                now.ends();
                did.push(Next::End);
            }
            let next = now.next();
            if let Next::Begin(id) = next {
                now.begins(id);
                now.is_begun();
                self.work.enqueue();
            }
            if next != Next::Nothing {
                did.push(next);
            }
        }
    }

    /// Two commands come while the work runs: the last one is obeyed, and each round that began ends.
    #[test]
    fn the_last_command_is_obeyed() {
        model(|| {
            let commands = Commands::new();
            let host = {
                let commands = commands.clone();
                thread::spawn(move || {
                    commands.show(7);
                    commands.show(DONE);
                })
            };
            commands.work.run(|| commands.obey());
            host.join().unwrap();
            // What was enqueued by now runs.
            commands.work.run(|| commands.obey());

            let round = commands.round.lock().unwrap();
            let did = &round.1;
            assert_eq!(did.last(), Some(&Next::GiveBack), "{did:?}");
            let begun = did.contains(&Next::Begin(7));
            assert_eq!(begun, did.contains(&Next::End), "{did:?}");
        });
    }

    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum Message {
        /// With a block, or without.
        Block(Option<usize>),
        Command,
    }

    /// Where blocks are: each in one place.
    struct Blocks {
        /// The queue: what the host has returned.
        used: Mutex<Vec<Message>>,
        idle: Mutex<Idle<Message>>,
        held: Mutex<Vec<usize>>,
        /// How often each was freed.
        freed: [AtomicUsize; 2],
    }

    impl Places for Blocks {
        type Message = Message;
        type Error = Infallible;

        fn returned(&self) -> Result<Option<Message>, Infallible> {
            Ok(self.used.lock().unwrap().pop())
        }

        fn keep(&self, message: &mut Message) -> bool {
            let Message::Block(block) = message else {
                return false;
            };
            self.held.lock().unwrap().extend(block.take());
            true
        }

        fn with_idle<R>(&self, with: impl FnOnce(&mut Idle<Message>) -> R) -> R {
            with(&mut self.idle.lock().unwrap())
        }
    }

    impl Blocks {
        /// Two blocks are with the host.
        fn new() -> Arc<Self> {
            Arc::new(Self {
                used: Mutex::new(Vec::new()),
                idle: Mutex::new(Idle {
                    blocks: List::with_capacity(2),
                    count: 2,
                    command: None,
                }),
                held: Mutex::new(Vec::new()),
                freed: [AtomicUsize::new(0), AtomicUsize::new(0)],
            })
        }

        /// The host returns one.
        fn give(&self, message: Message) {
            self.used.lock().unwrap().push(message);
        }

        fn free_one(&self) -> bool {
            let block = self.held.lock().unwrap().pop();
            if let Some(block) = block {
                self.freed[block].fetch_add(1, AcqRel);
            }
            block.is_some()
        }

        fn release(&self) {
            while self.free_one() {}
        }

        fn freed(&self) -> [usize; 2] {
            [0, 1].map(|block| self.freed[block].load(Acquire))
        }
    }

    /// The host is done while somebody needs memory: when the work has found all messages idle, all blocks
    /// are free, each was freed once, and nothing is kept.
    #[test]
    fn all_blocks_are_given_back() {
        model(|| {
            let blocks = Blocks::new();
            blocks.give(Message::Block(Some(0)));
            blocks.give(Message::Block(Some(1)));
            let shrinker = {
                let blocks = blocks.clone();
                thread::spawn(move || {
                    blocks.collect_rest().unwrap();
                    blocks.free_one();
                })
            };
            // `Hints::give_back`
            blocks.release();
            blocks.collect().unwrap();
            while !blocks.with_idle(|idle| idle.is_complete()) {
                thread::yield_now();
                blocks.collect().unwrap();
            }
            blocks.release();
            let kept = blocks.held.lock().unwrap().len();
            assert_eq!(kept, 0);
            shrinker.join().unwrap();
            assert_eq!(blocks.freed(), [1, 1]);
        });
    }

    /// The host returns blocks and a command while two collect: what comes last is found by who
    /// looks next.
    #[test]
    fn who_looks_last_finds_the_rest() {
        model(|| {
            let blocks = Blocks::new();
            blocks.give(Message::Block(Some(0)));
            let host = {
                let blocks = blocks.clone();
                thread::spawn(move || {
                    blocks.give(Message::Command);
                    blocks.give(Message::Block(Some(1)));
                })
            };
            let shrinker = {
                let blocks = blocks.clone();
                thread::spawn(move || {
                    blocks.collect_rest().unwrap();
                    blocks.release();
                })
            };
            blocks.collect().unwrap();
            host.join().unwrap();
            shrinker.join().unwrap();
            blocks.collect_rest().unwrap();
            blocks.release();
            assert_eq!(blocks.freed(), [1, 1]);
            assert_eq!(blocks.with_idle(|idle| idle.blocks.len()), 2);
            assert_eq!(
                blocks.with_idle(|idle| idle.command),
                Some(Message::Command)
            );
        });
    }
}
