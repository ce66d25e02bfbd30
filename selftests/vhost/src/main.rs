// SPDX-License-Identifier: GPL-2.0

//! The host of a memory balloon, good or bad, for user-mode Linux (`virtio_uml.device=SOCKET:5`).
//!
//! It says what happens as lines of JSON, and takes commands on its standard input, a line each:
//!
//! - `target UNITS`: ask for a size, in pages of 4 KiB
//! - `stats`: ask for statistics
//! - `hint COMMAND`: want hints of free memory (an id), no more of them (0), or have no use for
//!   them any more (1)
//! - `reclaim ID`: want hints of free memory, discard it at once, and have no use for it any more
//!   when the guest has told all: as Firecracker does before a snapshot
//! - `case NAME[:QUEUE]`: behave like this from now on ([`host::Case`])
//! - `strict`: accuse a guest that does not keep to the page frame number queues, as the
//!   specification has it
//! - `state`: say what there is to know
//! - `quit`: close the connection and end
//!
//! One thread does everything, so that nothing happens while something is decided.

mod channel;
mod device;
mod host;
mod memory;
mod model;
mod ring;

use crate::{
    channel::Request,
    device::{say, Device, VERSION_1},
    host::{Case, Host},
};
use serde_json::json;
use std::{
    fs::File,
    io::{self, Read},
    os::{
        fd::{AsFd, AsRawFd, RawFd},
        unix::net::{UnixListener, UnixStream},
    },
    time::Instant,
};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

const USAGE: &str = "\
usage: vhost-balloon --socket PATH [--case NAME[:QUEUE]] [--seed N] [--messages N] [--features HEX]
                     [--do COMMAND]...";

struct Args {
    socket: String,
    case: Case,
    seed: u64,
    messages: u64,
    features: Option<u64>,
    commands: Vec<String>,
}

impl Args {
    fn parse(mut words: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut args = Self {
            socket: String::new(),
            case: Case::Good,
            seed: 1,
            messages: 1000,
            features: None,
            commands: Vec::new(),
        };
        while let Some(option) = words.next() {
            let value = words.next().ok_or(USAGE)?;
            let number = |radix| {
                u64::from_str_radix(&value, radix).map_err(|error| format!("{option}: {error}"))
            };
            match option.as_str() {
                "--socket" => args.socket = value,
                "--case" => args.case = value.parse()?,
                "--seed" => args.seed = number(10)?,
                "--messages" => args.messages = number(10)?,
                "--features" => args.features = Some(number(16)?),
                "--do" => args.commands.push(value),
                _ => return Err(USAGE.into()),
            }
        }
        if args.socket.is_empty() {
            return Err(USAGE.into());
        }
        Ok(args)
    }
}

/// Where something comes from.
const SOCKET: u64 = 0;
const COMMANDS: u64 = 1;
const KICKS: u64 = 16;

/// What is waited for.
struct Sources {
    epoll: Epoll,
    kicks: Vec<(usize, RawFd)>,
}

impl Sources {
    fn add(&self, fd: RawFd, token: u64) -> io::Result<()> {
        self.epoll.ctl(
            ControlOperation::Add,
            fd,
            EpollEvent::new(EventSet::IN, token),
        )
    }

    /// Stops to wait for kicks, before their files may be closed.
    fn forget_kicks(&mut self) -> io::Result<()> {
        for (_, fd) in self.kicks.drain(..) {
            self.epoll
                .ctl(ControlOperation::Delete, fd, EpollEvent::default())?;
        }
        Ok(())
    }

    fn learn_kicks(&mut self, device: &Device) -> io::Result<()> {
        for (index, file) in device.kicks() {
            self.add(file.as_raw_fd(), KICKS + index as u64)?;
            self.kicks.push((index, file.as_raw_fd()));
        }
        Ok(())
    }
}

/// Does what a command says. False for the last one.
fn obey(device: &mut Device, command: &str) -> io::Result<bool> {
    let (name, value) = command.split_once(' ').unwrap_or((command, ""));
    match name {
        "target" => device.ask(value.trim().parse().map_err(io::Error::other)?)?,
        "stats" => device.ask_for_statistics()?,
        "hint" => device.ask_for_hints(value.trim().parse().map_err(io::Error::other)?)?,
        "reclaim" => device.reclaim(value.trim().parse().map_err(io::Error::other)?)?,
        "case" => device.set_case(value.trim().parse().map_err(io::Error::other)?),
        "strict" => device.model.is_strict = true,
        "state" => say("state", device.state()),
        "quit" => return Ok(false),
        _ => return Err(io::Error::other(format!("no command is called {name:?}"))),
    }
    Ok(true)
}

/// Serves one front end until it is gone or we are told to end.
fn serve(device: &mut Device, mut socket: UnixStream, commands: &[String]) -> io::Result<()> {
    let mut sources = Sources {
        epoll: Epoll::new()?,
        kicks: Vec::new(),
    };
    let mut input = File::from(io::stdin().as_fd().try_clone_to_owned()?);
    let mut typed = Vec::new();
    sources.add(socket.as_raw_fd(), SOCKET)?;
    // There may be none that can be waited for.
    let _ = sources.add(input.as_raw_fd(), COMMANDS);
    for command in commands {
        obey(device, command)?;
    }
    let mut events = [EpollEvent::default(); 16];
    loop {
        let timeout = device.deadline().map_or(-1, |deadline| {
            let left = deadline.saturating_duration_since(Instant::now());
            left.as_millis() as i32 + 1
        });
        let count = match sources.epoll.wait(timeout, &mut events) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            result => result?,
        };
        for event in &events[..count] {
            match event.data() {
                SOCKET => {
                    let Some(request) = Request::receive(&mut socket)? else {
                        return Ok(());
                    };
                    sources.forget_kicks()?;
                    device.handle(&mut socket, request)?;
                    sources.learn_kicks(device)?;
                    // What else was seen may have been about files that are closed now.
                    break;
                }
                COMMANDS => {
                    let mut bytes = [0; 512];
                    let count = input.read(&mut bytes)?;
                    if count == 0 {
                        return Ok(());
                    }
                    typed.extend_from_slice(&bytes[..count]);
                    while let Some(end) = typed.iter().position(|&byte| byte == b'\n') {
                        let line: Vec<u8> = typed.drain(..=end).collect();
                        if !obey(device, String::from_utf8_lossy(&line).trim())? {
                            return Ok(());
                        }
                    }
                }
                kick => device.serve((kick - KICKS) as usize)?,
            }
        }
        device.tick()?;
    }
}

fn run() -> Result<bool, String> {
    let args = Args::parse(std::env::args().skip(1))?;
    let host = Host::new(args.case, args.seed);
    let features = args.features.unwrap_or_else(|| match args.case {
        Case::Random => host.random_features(),
        _ => 1 << 1 | 1 << 5,
    });
    let failed = |error: io::Error| error.to_string();
    let mut device = Device::new(features | VERSION_1, host, args.messages).map_err(failed)?;
    let listener = UnixListener::bind(&args.socket).map_err(failed)?;
    say("listening", json!({"features": format!("{features:#x}")}));
    let (socket, _) = listener.accept().map_err(failed)?;
    let result = serve(&mut device, socket, &args.commands);
    let mut summary = device.state();
    summary["error"] = match &result {
        Ok(()) => serde_json::Value::Null,
        Err(error) => error.to_string().into(),
    };
    say("summary", summary);
    Ok(result.is_ok() && device.model.violations.is_empty())
}

fn main() -> std::process::ExitCode {
    match run() {
        Ok(true) => std::process::ExitCode::SUCCESS,
        Ok(false) => std::process::ExitCode::FAILURE,
        Err(error) => {
            eprintln!("vhost-balloon: {error}");
            std::process::ExitCode::from(2)
        }
    }
}
