// SPDX-License-Identifier: GPL-2.0

//! The balloon device.

use crate::{
    channel::{message, Request},
    host::{Act, Case, Host, Kind, KINDS},
    memory::Memory,
    model::Model,
    ring::{Lent, Ring},
};
use serde_json::{json, Map, Value};
use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Write},
    os::{fd::OwnedFd, unix::net::UnixStream},
    time::{Duration, Instant},
};
use vhost::vhost_user::message::{
    BackendReq, FrontendReq, VhostUserConfig, VhostUserMemory, VhostUserMemoryRegion,
    VhostUserProtocolFeatures, VhostUserVirtioFeatures, VhostUserVringAddr, VhostUserVringState,
};
use vm_memory::{Bytes, GuestAddress};

/// `VIRTIO_F_VERSION_1`
pub const VERSION_1: u64 = 1 << 32;
/// More than there are queues, to be told from those that there are.
const MAX_RINGS: usize = 8;
/// `struct virtio_balloon_config`
const CONFIG_SIZE: usize = 16;
/// `struct virtio_balloon_stat`
const STAT_SIZE: usize = 10;
const STATS: u16 = 16;
/// A guest that says nothing for so long, though it is asked for another size, is stuck. It looks for
/// memory five times a second, if there was none, and says how large its balloon is each time.
const STUCK: Duration = Duration::from_millis(1500);
/// So is one that says how large its balloon is, and does nothing about it for so long: it cannot any
/// more. One that needs its memory gives back what it is asked for, now and then.
const IDLE: Duration = Duration::from_secs(10);
/// How often a host that does as it pleases wants something of a guest that is at rest.
const TICK: Duration = Duration::from_millis(3);

/// Where the configuration has what.
const TARGET: usize = 0;
const ACTUAL: usize = 4;
const COMMAND: usize = 8;

/// A buffer that is to be used later.
struct Later {
    when: Instant,
    ring: usize,
    lent: Lent,
    is_acted_upon: bool,
}

pub struct Device {
    features: u64,
    acked: u64,
    memory: Option<Memory>,
    rings: Vec<Ring>,
    /// Which rings there are, by their numbers: those that were not negotiated are left out.
    kinds: Vec<Kind>,
    /// Where changes of the configuration are announced.
    requests: Option<UnixStream>,
    config: [u8; CONFIG_SIZE],
    pub model: Model,
    pub host: Host,
    /// The host is random for so many messages.
    limit: u64,
    /// Messages that make up the randomness: buffers.
    messages: u64,
    ticks: u64,
    last_tick: Instant,
    last_activity: Instant,
    last_message: Instant,
    is_stuck: bool,
    /// The queues that answer no more, and what they were sent: the host acts upon it as late as it
    /// can.
    silent: Vec<usize>,
    withheld: Vec<(usize, Lent)>,
    later: Vec<Later>,
    /// Each ring's latest buffer that was used, by its number.
    latest: [u64; MAX_RINGS],
    /// How many kicks each ring has had.
    kicks: [u64; MAX_RINGS],
    /// What the guest gives hints of is discarded.
    reclaims: bool,
    /// The host has no use for the hints when the guest has ended the round, which began then; what
    /// they were of so far, in bytes.
    reclaiming: Option<(Instant, u64)>,
    /// The buffer for statistics.
    stats: Option<Lent>,
    is_stats_wanted: bool,
    statistics: Map<String, Value>,
    asked: Option<Instant>,
    counts: BTreeMap<String, u64>,
}

/// Tells whoever has started us.
pub fn say(event: &str, mut what: Value) {
    what["event"] = event.into();
    let mut line = what.to_string();
    line.push('\n');
    // A reader that is gone needs to know nothing.
    let _ = io::stdout().write_all(line.as_bytes());
}

impl Device {
    pub fn new(features: u64, host: Host, limit: u64) -> io::Result<Self> {
        let now = Instant::now();
        Ok(Self {
            features: features | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits(),
            acked: 0,
            memory: None,
            rings: (0..MAX_RINGS)
                .map(|_| Ring::new())
                .collect::<Result<_, _>>()?,
            kinds: Vec::new(),
            requests: None,
            config: [0; CONFIG_SIZE],
            model: Model::default(),
            host,
            limit,
            messages: 0,
            ticks: 0,
            last_tick: now,
            last_activity: now,
            last_message: now,
            is_stuck: false,
            silent: Vec::new(),
            withheld: Vec::new(),
            later: Vec::new(),
            latest: [0; MAX_RINGS],
            kicks: [0; MAX_RINGS],
            reclaims: false,
            reclaiming: None,
            stats: None,
            is_stats_wanted: false,
            statistics: Map::new(),
            asked: None,
            counts: BTreeMap::new(),
        })
    }

    fn count(&mut self, what: &str) {
        *self.counts.entry(what.into()).or_default() += 1;
    }

    fn field(&self, offset: usize) -> u32 {
        u32::from_le_bytes(self.config[offset..][..4].try_into().expect("four bytes"))
    }

    fn set_field(&mut self, offset: usize, value: u32) {
        self.config[offset..][..4].copy_from_slice(&value.to_le_bytes());
    }

    fn ring(&mut self, index: u32) -> io::Result<&mut Ring> {
        self.rings
            .get_mut(index as usize)
            .ok_or_else(|| io::Error::other(format!("there is no queue {index}")))
    }

    fn ring_of(&self, kind: Kind) -> Option<usize> {
        self.kinds.iter().position(|&other| other == kind)
    }

    /// The rings' notifications, as files.
    pub fn kicks(&self) -> impl Iterator<Item = (usize, &File)> {
        self.rings
            .iter()
            .enumerate()
            .filter_map(|(index, ring)| Some((index, ring.kick.as_ref()?)))
    }

    /// Deals with a message of the front end.
    pub fn handle(&mut self, socket: &mut UnixStream, request: Request) -> io::Result<()> {
        match request.code {
            FrontendReq::GET_FEATURES => {
                return request.reply(socket, &self.features.to_ne_bytes());
            }
            FrontendReq::GET_PROTOCOL_FEATURES => {
                let features = VhostUserProtocolFeatures::MQ
                    | VhostUserProtocolFeatures::REPLY_ACK
                    | VhostUserProtocolFeatures::BACKEND_REQ
                    | VhostUserProtocolFeatures::CONFIG;
                return request.reply(socket, &features.bits().to_ne_bytes());
            }
            FrontendReq::GET_QUEUE_NUM => {
                return request.reply(socket, &(MAX_RINGS as u64).to_ne_bytes());
            }
            FrontendReq::GET_CONFIG => return self.read_config(socket, &request),
            FrontendReq::SET_CONFIG => self.write_config(&request)?,
            FrontendReq::SET_OWNER | FrontendReq::SET_PROTOCOL_FEATURES => {}
            FrontendReq::SET_FEATURES => {
                if !self.has_enable() {
                    // Another driver: nothing said that the queues of the last one are gone.
                    for index in (0..self.rings.len()).rev() {
                        self.disable(index)?;
                    }
                }
                self.acked = request.parse()?;
                let acked = self.acked;
                self.kinds = KINDS
                    .into_iter()
                    .filter(|kind| kind.feature().is_none_or(|bit| acked >> bit & 1 == 1))
                    .collect();
            }
            FrontendReq::SET_BACKEND_REQ_FD => {
                let stream = request.file.as_ref().map(|file| {
                    let stream = UnixStream::from(OwnedFd::from(file.try_clone()?));
                    stream.set_nonblocking(true)?;
                    Ok::<_, io::Error>(stream)
                });
                self.requests = stream.transpose()?;
            }
            FrontendReq::SET_MEM_TABLE => {
                let table: VhostUserMemory = request.parse()?;
                let mut region = VhostUserMemoryRegion::default();
                let bytes = request.body.get(8..).unwrap_or_default();
                let bytes = bytes.get(..size_of::<VhostUserMemoryRegion>());
                let (1, Some(bytes), Some(file)) = (table.num_regions, bytes, &request.file) else {
                    return Err(io::Error::other("one region was expected"));
                };
                vm_memory::ByteValued::as_mut_slice(&mut region).copy_from_slice(bytes);
                let memory = Memory::new(region, file.try_clone()?)?;
                self.host.memory_units = memory.end_unit();
                self.memory = Some(memory);
            }
            FrontendReq::SET_VRING_NUM => {
                let state: VhostUserVringState = request.parse()?;
                self.ring(state.index)?.set_size(state.num)?;
            }
            FrontendReq::SET_VRING_BASE => {
                let state: VhostUserVringState = request.parse()?;
                self.ring(state.index)?.set_base(state.num);
            }
            FrontendReq::SET_VRING_ADDR => {
                let at: VhostUserVringAddr = request.parse()?;
                let memory = self.memory.as_ref().ok_or(io::ErrorKind::InvalidInput)?;
                let descriptors = memory.ring_address(at.descriptor);
                let available = memory.ring_address(at.available);
                let used = memory.ring_address(at.used);
                self.ring(at.index)?
                    .set_addresses(descriptors, available, used)?;
            }
            FrontendReq::SET_VRING_CALL | FrontendReq::SET_VRING_KICK => {
                let index = request.parse::<u64>()? & 0xff;
                let file = request.file.as_ref().map(File::try_clone).transpose()?;
                let ring = self.ring(index as u32)?;
                if request.code == FrontendReq::SET_VRING_CALL {
                    ring.set_call(file)?;
                } else {
                    ring.kick = file;
                    if !self.has_enable() {
                        self.enable(index as u32)?;
                    }
                }
            }
            FrontendReq::SET_VRING_ENABLE => {
                let state: VhostUserVringState = request.parse()?;
                if state.num != 0 {
                    self.enable(state.index)?;
                } else {
                    self.disable(state.index as usize)?;
                }
            }
            other => return Err(io::Error::other(format!("unexpected message {other:?}"))),
        }
        request.acknowledge(socket)
    }

    /// Whether the front end says when queues come and go. `virtio_uml` forgets that it may when a
    /// driver declines a feature after it was negotiated: a queue is then there from its kick on.
    fn has_enable(&self) -> bool {
        self.acked & VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits() != 0
    }

    /// The guest has a queue.
    fn enable(&mut self, index: u32) -> io::Result<()> {
        self.ring(index)?.is_enabled = true;
        self.last_activity = Instant::now();
        self.last_message = self.last_activity;
        self.is_stuck = false;
        Ok(())
    }

    /// The guest takes a queue away.
    fn disable(&mut self, index: usize) -> io::Result<()> {
        self.withheld.retain(|&(ring, _)| ring != index);
        self.later.retain(|later| later.ring != index);
        self.silent.retain(|&ring| ring != index);
        self.latest[index] = 0;
        let is_up = self.ring(index as u32)?.is_enabled;
        self.rings[index].reset()?;
        match self.kinds.get(index) {
            Some(Kind::Stats) => self.stats = None,
            // They are taken away in descending order: this is the last of them.
            Some(Kind::Inflate) if is_up => {
                self.model.reset();
                self.count("resets");
            }
            _ => {}
        }
        Ok(())
    }

    fn read_config(&mut self, socket: &mut UnixStream, request: &Request) -> io::Result<()> {
        self.count("config_reads");
        let reads = self.counts["config_reads"];
        let target = self.field(TARGET);
        let as_read = self.host.target_as_read(target, reads);
        self.set_field(TARGET, as_read);
        let wanted: VhostUserConfig = request.parse()?;
        let (offset, size) = (wanted.offset as usize, wanted.size as usize);
        let mut body = request.body[..size_of::<VhostUserConfig>()].to_vec();
        body.extend((offset..offset + size).map(|at| self.config.get(at).copied().unwrap_or(0)));
        self.set_field(TARGET, target);
        request.reply(socket, &body)
    }

    fn write_config(&mut self, request: &Request) -> io::Result<()> {
        self.count("config_writes");
        self.last_activity = Instant::now();
        let at: VhostUserConfig = request.parse()?;
        let bytes = &request.body[size_of::<VhostUserConfig>()..];
        let start = at.offset as usize;
        match self.config.get_mut(start..start + bytes.len()) {
            Some(place) if start >= ACTUAL => place.copy_from_slice(bytes),
            _ => self
                .model
                .accuse(format!("{} bytes written to offset {start}", bytes.len())),
        }
        if start == ACTUAL {
            let actual = self.field(ACTUAL);
            self.model.check_actual(actual);
            self.act_upon_withheld()?;
            if actual == self.field(TARGET) {
                if let Some(asked) = self.asked.take() {
                    let us = asked.elapsed().as_micros() as u64;
                    say("reached", json!({"units": actual, "us": us}));
                }
            }
        }
        Ok(())
    }

    /// Asks for a size.
    pub fn ask(&mut self, units: u32) -> io::Result<()> {
        self.set_field(TARGET, units);
        self.asked = Some(Instant::now());
        self.announce()
    }

    /// Asks for hints of free memory, or says that there is no need any more.
    pub fn ask_for_hints(&mut self, command: u32) -> io::Result<()> {
        self.set_field(COMMAND, command);
        self.reclaiming = None;
        self.announce()
    }

    /// Asks for hints of free memory, to discard it.
    pub fn reclaim(&mut self, id: u32) -> io::Result<()> {
        self.ask_for_hints(id)?;
        self.reclaims = true;
        self.reclaiming = Some((Instant::now(), 0));
        Ok(())
    }

    fn announce(&mut self) -> io::Result<()> {
        self.count("config_changes");
        let Some(requests) = &mut self.requests else {
            return Ok(());
        };
        let code = u32::from(BackendReq::CONFIG_CHANGE_MSG);
        match requests.write(&message(code, 0, &[])) {
            // There are many already that the guest has not read.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
            result => result.map(|_| ()),
        }
    }

    /// Serves the buffers of a ring.
    pub fn serve(&mut self, index: usize) -> io::Result<()> {
        self.rings[index].drain_kick()?;
        self.kicks[index] += 1;
        if let Some(&kind) = self.kinds.get(index) {
            if self.host.misses_kick(kind, self.kicks[index]) {
                self.count("missed_kicks");
                return Ok(());
            }
        }
        while let Some(mut lent) = self.take(index) {
            let kind = self.kinds[index];
            self.messages += 1;
            lent.number = self.messages;
            self.last_activity = Instant::now();
            self.last_message = self.last_activity;
            self.count(kind.name());
            self.wish()?;
            if kind == Kind::Stats {
                self.act_upon(kind, &lent)?;
                self.stats = Some(lent);
                if std::mem::take(&mut self.is_stats_wanted) {
                    self.ask_for_statistics()?;
                }
                continue;
            }
            let act = match self.decide(index) {
                // Hints belong to the command before them.
                Act::TakeLater { ms } if kind == Kind::Hint => Act::UseLater { ms },
                act => act,
            };
            match act {
                Act::Silence | Act::TakeLater { .. } => self.answer(index, lent, act)?,
                _ => {
                    self.act_upon(kind, &lent)?;
                    self.answer(index, lent, act)?;
                }
            }
            if self.host.case == Case::Random && self.messages >= self.limit {
                self.host.case = Case::Good;
                say("done", json!({"messages": self.messages}));
            }
        }
        Ok(())
    }

    fn take(&mut self, index: usize) -> Option<Lent> {
        let ring = &mut self.rings[index];
        let memory = self.memory.as_ref()?;
        (ring.is_enabled && index < self.kinds.len()).then(|| ring.take(memory))?
    }

    /// What the host does with each message beside answering.
    fn wish(&mut self) -> io::Result<()> {
        let count = self.messages + (self.ticks << 40);
        if let Some(command) = self.host.hint_command(count) {
            self.ask_for_hints(command)?;
            self.reclaims = self.host.reclaims(count);
        }
        if let Some(target) = self.host.retarget(count) {
            self.set_field(TARGET, target);
            self.announce()?;
        }
        if self.host.asks_for_statistics(count) {
            self.ask_for_statistics()?;
        }
        if self.host.interrupts(count) {
            for ring in &mut self.rings {
                ring.interrupt()?;
            }
        }
        Ok(())
    }

    fn decide(&mut self, ring: usize) -> Act {
        let act = if self.silent.contains(&ring) {
            Act::Silence
        } else {
            self.host.act(self.kinds[ring], self.messages)
        };
        self.count(&format!("act_{}", act.name()));
        if !act.is_honest() {
            self.model.is_void = true;
        }
        act
    }

    /// Uses a buffer, one way or another.
    fn answer(&mut self, index: usize, lent: Lent, act: Act) -> io::Result<()> {
        if let Act::UseLater { ms } | Act::TakeLater { ms } = act {
            self.later.push(Later {
                when: Instant::now() + Duration::from_millis(ms),
                ring: index,
                lent,
                is_acted_upon: matches!(act, Act::UseLater { .. }),
            });
            return Ok(());
        }
        if act == Act::Silence {
            self.silent.push(index);
            self.withheld.push((index, lent));
            return Ok(());
        }
        if lent.number < self.latest[index] {
            self.count("out_of_order");
        }
        self.latest[index] = self.latest[index].max(lent.number);
        let memory = self.memory.as_ref().ok_or(io::ErrorKind::InvalidInput)?;
        let ring = &mut self.rings[index];
        let id = u32::from(lent.head);
        match act {
            Act::Use | Act::UseQuietly => ring.put(memory, id, 0)?,
            Act::UseLonger(len) => ring.put(memory, id, len)?,
            Act::UseTwice => {
                ring.put(memory, id, 0)?;
                ring.put(memory, id, 0)?;
            }
            Act::UseUnknown(id) => ring.put(memory, id, 0)?,
            Act::UseOther => ring.put(memory, id + 1, 0)?,
            Act::Jump(count) => {
                ring.put(memory, id, 0)?;
                ring.skip(memory, count)?;
            }
            Act::UseLater { .. } | Act::TakeLater { .. } | Act::Silence => return Ok(()),
        }
        if act != Act::UseQuietly {
            ring.interrupt()?;
        }
        Ok(())
    }

    /// Does what a message is about.
    fn act_upon(&mut self, kind: Kind, lent: &Lent) -> io::Result<()> {
        let Some(memory) = &self.memory else {
            return Ok(());
        };
        if let Some((start, len)) = lent
            .parts
            .iter()
            .find(|&&(start, len)| !memory.contains(start, len.into()))
        {
            self.model
                .accuse(format!("{}: no memory at {start:#x}+{len:#x}", kind.name()));
            return Ok(());
        }
        match kind {
            Kind::Inflate | Kind::Deflate => {
                for &(start, len) in &lent.parts {
                    let mut bytes = vec![0; len as usize];
                    let start = GuestAddress(start);
                    memory
                        .map
                        .read_slice(&mut bytes, start)
                        .map_err(io::Error::other)?;
                    if !bytes.len().is_multiple_of(4) {
                        self.model
                            .accuse(format!("{} bytes of page numbers", bytes.len()));
                    }
                    let mut last = None;
                    for unit in bytes.chunks_exact(4) {
                        let unit = u32::from_le_bytes(unit.try_into().expect("four bytes"));
                        let order = match last.replace(unit) {
                            Some(last) if last + 1 == unit => None,
                            Some(last) if last > unit => Some("descents"),
                            _ => Some("pieces"),
                        };
                        if let Some(order) = order {
                            let name = format!("{}_{order}", kind.name());
                            *self.counts.entry(name).or_default() += 1;
                        }
                        let address = u64::from(unit) << 12;
                        if !memory.contains(address, 4096) {
                            self.model
                                .accuse(format!("page {unit:#x} is beyond memory"));
                        } else if kind == Kind::Deflate {
                            self.model.deflate(unit);
                        } else {
                            self.model.inflate(unit);
                            memory.discard(address, 4096)?;
                        }
                    }
                }
            }
            Kind::Reporting => {
                for &(start, len) in &lent.parts {
                    if start % 4096 != 0 || len % 4096 != 0 {
                        self.model
                            .accuse(format!("{start:#x}+{len:#x} is no memory of pages"));
                    }
                    self.model.discard((start >> 12) as u32, len >> 12);
                    memory.discard(start, len.into())?;
                }
            }
            Kind::Stats => self.read_statistics(lent)?,
            Kind::Hint => self.take_hints(lent)?,
        }
        Ok(())
    }

    /// Takes hints, or a command about them. As every host knows them, a command is what has four
    /// bytes.
    fn take_hints(&mut self, lent: &Lent) -> io::Result<()> {
        let Some(memory) = &self.memory else {
            return Ok(());
        };
        if lent.parts.len() != 1 {
            // There are hosts that look at the first one only.
            let parts = lent.parts.len();
            self.model.accuse(format!("{parts} pieces in one hint"));
        }
        for &(start, len) in &lent.parts {
            if len == 4 {
                let command = memory.map.read_obj::<u32>(GuestAddress(start));
                let command = u32::from_le(command.map_err(io::Error::other)?);
                self.model.begin_round(command);
                if let (0, Some((began, bytes))) = (command, self.reclaiming) {
                    let us = began.elapsed().as_micros() as u64;
                    say("reclaimed", json!({"bytes": bytes, "us": us}));
                    self.ask_for_hints(1)?;
                    return Ok(());
                }
                continue;
            }
            if start % 4096 != 0 || len % 4096 != 0 {
                self.model
                    .accuse(format!("{start:#x}+{len:#x} is no memory of pages"));
            }
            self.model.hint((start >> 12) as u32, len >> 12);
            if let Some((_, bytes)) = &mut self.reclaiming {
                *bytes += u64::from(len);
            }
            if self.reclaims {
                memory.discard(start, len.into())?;
            }
        }
        Ok(())
    }

    /// Acts upon what was left unanswered: the driver says how large the balloon is, which is the
    /// last that it does before it resets the device. (Of the reset itself `virtio_uml` does not
    /// tell.)
    fn act_upon_withheld(&mut self) -> io::Result<()> {
        for (ring, lent) in std::mem::take(&mut self.withheld) {
            self.act_upon(self.kinds[ring], &lent)?;
        }
        Ok(())
    }

    fn read_statistics(&mut self, lent: &Lent) -> io::Result<()> {
        let Some(memory) = &self.memory else {
            return Ok(());
        };
        let mut bytes = Vec::new();
        for &(start, len) in &lent.parts {
            let mut part = vec![0; len as usize];
            let start = GuestAddress(start);
            memory
                .map
                .read_slice(&mut part, start)
                .map_err(io::Error::other)?;
            bytes.extend(part);
        }
        let mut statistics = Map::new();
        for stat in bytes.chunks(STAT_SIZE) {
            let (Some(tag), Some(value)) = (stat.first_chunk(), stat.last_chunk()) else {
                self.model
                    .accuse(format!("{} bytes of statistics", bytes.len()));
                break;
            };
            let (tag, value) = (u16::from_le_bytes(*tag), u64::from_le_bytes(*value));
            if tag >= STATS || statistics.insert(tag.to_string(), value.into()).is_some() {
                self.model
                    .accuse(format!("statistics have a tag {tag}, or two"));
            }
        }
        self.statistics = statistics;
        Ok(())
    }

    /// Gives the buffer for statistics back, to have it filled again.
    pub fn ask_for_statistics(&mut self) -> io::Result<()> {
        let (Some(lent), Some(ring)) = (self.stats.take(), self.ring_of(Kind::Stats)) else {
            self.is_stats_wanted = self.host.case != Case::Random;
            return Ok(());
        };
        let act = self.decide(ring);
        self.answer(ring, lent, act)
    }

    /// Sets the case.
    pub fn set_case(&mut self, case: Case) {
        self.host.case = case;
    }

    /// When something has to be done, if nothing happens before.
    pub fn deadline(&self) -> Option<Instant> {
        let tick = (self.host.case == Case::Random || self.host.case == Case::Retarget)
            .then(|| self.last_tick + TICK);
        let later = self.later.iter().map(|later| later.when).min();
        [tick, later].into_iter().flatten().min()
    }

    /// Does what the time has come for.
    pub fn tick(&mut self) -> io::Result<()> {
        let now = Instant::now();
        let (mut due, later): (Vec<Later>, _) =
            self.later.drain(..).partition(|later| later.when <= now);
        self.later = later;
        // The order of what falls due at the same time is that of its time.
        due.sort_by_key(|later| later.when);
        for later in due {
            if !later.is_acted_upon {
                self.act_upon(self.kinds[later.ring], &later.lent)?;
            }
            self.answer(later.ring, later.lent, Act::Use)?;
        }
        let is_active = self.host.case == Case::Random || self.host.case == Case::Retarget;
        if !is_active || now < self.last_tick + TICK || !self.rings[0].is_enabled {
            self.last_tick = self.last_tick.max(now - TICK / 2);
            return Ok(());
        }
        self.last_tick = now;
        if now < self.last_activity + TICK {
            return Ok(());
        }
        self.ticks += 1;
        let count = self.messages + (self.ticks << 40);
        self.set_field(TARGET, self.host.target(count));
        self.announce()?;
        let is_stuck = now > self.last_activity + STUCK || now > self.last_message + IDLE;
        if is_stuck && !self.is_stuck {
            self.is_stuck = true;
            self.count("stuck");
            say("stuck", json!({"messages": self.messages}));
        }
        Ok(())
    }

    /// Where the rings are that are in use.
    fn positions(&self) -> Vec<(usize, [u16; 4])> {
        let enabled = |(_, ring): &(usize, &Ring)| ring.is_enabled;
        let position = |(index, ring): (usize, &Ring)| {
            Some((index, ring.position(self.memory.as_ref()?).ok()?))
        };
        let rings = self.rings.iter().enumerate();
        rings.filter(enabled).filter_map(position).collect()
    }

    /// What there is to know.
    pub fn state(&self) -> Value {
        json!({
            "features": self.features,
            "acked": self.acked,
            "is_up": self.rings[0].is_enabled,
            "target": self.field(TARGET),
            "actual": self.field(ACTUAL),
            "inflated": self.model.inflated(),
            "discarded": self.model.discarded(),
            "withheld": self.withheld.len(),
            "has_stats": self.stats.is_some(),
            "statistics": self.statistics,
            "messages": self.messages,
            "rings": self.positions(),
            "resident": self.memory.as_ref().and_then(|memory| memory.resident().ok()),
            "counts": self.counts,
            "violations": self.model.violations,
        })
    }
}
