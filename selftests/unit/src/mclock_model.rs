// SPDX-License-Identifier: GPL-2.0

//! Two naive models of the scheduler of dm-qos groups: they look at every member each time, and
//! count in 128 bits.

use super::{
    gcra::TICKS_PER_S,
    scheduler::{Phase, Promise, LEAST_BYTES, WINDOW},
};
use std::collections::VecDeque;

/// mClock to the letter of the paper: each request has its tags, those of others are shifted when
/// somebody wakes. Each I/O costs the same.
pub(super) struct Paper {
    clients: Vec<Client>,
}

struct Client {
    /// 1/r.
    interval: Option<i128>,
    /// 1/w.
    stride: i128,
    /// Reservation and share tag of each request that waits.
    requests: VecDeque<(i128, i128)>,
    /// Those of the last request that came.
    last: Option<(i128, i128)>,
}

impl Paper {
    /// With, for each, the reservation in I/Os per second, and the weight.
    pub(super) fn new(clients: &[(u64, u32)], cost: u64) -> Self {
        let client = |&(ios, weight): &(u64, u32)| Client {
            interval: (ios != 0).then(|| i128::from(TICKS_PER_S) / i128::from(ios.max(1))),
            stride: i128::from(cost) / i128::from(weight),
            requests: VecDeque::new(),
            last: None,
        };
        Self {
            clients: clients.iter().map(client).collect(),
        }
    }

    pub(super) fn arrive(&mut self, client: usize, now: u64) {
        let now = i128::from(now);
        if self.clients[client].requests.is_empty() {
            let first = |one: &Client| one.requests.front().map(|&(_, share)| share);
            if let Some(least) = self.clients.iter().filter_map(first).min() {
                for one in self.clients.iter_mut() {
                    if !one.requests.is_empty() {
                        let tags = one.requests.iter_mut().chain(&mut one.last);
                        tags.for_each(|(_, share)| *share -= least - now);
                    }
                }
            }
        }
        let client = &mut self.clients[client];
        let (reserved, share) = client.last.map_or((now, now), |(reserved, share)| {
            (
                now.max(reserved + client.interval.unwrap_or(0)),
                now.max(share + client.stride),
            )
        });
        client.requests.push_back((reserved, share));
        client.last = Some((reserved, share));
    }

    /// Serves a request.
    pub(super) fn schedule(&mut self, now: u64) -> Option<(usize, Phase)> {
        let now = i128::from(now);
        let waiting = self.clients.iter().enumerate();
        let waiting = waiting.filter_map(|(index, client)| {
            let &(reserved, share) = client.requests.front()?;
            Some((index, client.interval.map(|_| reserved), share))
        });
        let behind = waiting
            .clone()
            .filter_map(|(index, reserved, _)| Some((reserved.filter(|&tag| tag <= now)?, index)));
        if let Some((_, index)) = behind.min() {
            self.clients[index].requests.pop_front();
            return Some((index, Phase::Reservation));
        }
        let (_, index) = waiting.map(|(index, _, share)| (share, index)).min()?;
        let client = &mut self.clients[index];
        client.requests.pop_front();
        if let Some(interval) = client.interval {
            let tags = client.requests.iter_mut().chain(&mut client.last);
            tags.for_each(|(reserved, _)| *reserved -= interval);
        }
        Some((index, Phase::Weight))
    }
}

/// The rules of `mclock.rs`, one by one, for costs in time that every weight divides.
#[derive(Default)]
pub(super) struct Rules {
    pub(super) members: Vec<Option<Tags>>,
    virtual_time: u128,
}

pub(super) struct Tags {
    promise: Promise,
    /// Start tags, in I/Os and bytes.
    starts: [u128; 2],
    /// The I/Os and bytes of the last I/O.
    last: [u128; 2],
    share: u128,
    stride: u128,
    /// From when on the first that waits may leave.
    pub(super) eligible: Option<u128>,
    /// It was so when last looked at.
    was_ready: bool,
}

impl Tags {
    fn rates(&self) -> [u64; 2] {
        [self.promise.ios, self.promise.bytes]
    }

    /// What the last I/O costs in each that is reserved.
    fn steps(&self) -> [Option<u128>; 2] {
        let rates = self.rates();
        [0, 1].map(|unit| {
            let rate = u128::from(rates[unit]);
            // To within a tick as `gcra.rs` has it; rates here divide a second.
            (rate != 0).then(|| self.last[unit] * u128::from(TICKS_PER_S) / rate)
        })
    }

    fn reserved(&self) -> impl Iterator<Item = (u128, u128)> + '_ {
        let steps = self.steps().into_iter();
        let both = self.starts.iter().zip(steps);
        both.filter_map(|(&start, step)| Some((start, step?)))
    }

    fn is_behind(&self, now: u128) -> bool {
        self.reserved().any(|(start, _)| start <= now)
    }

    fn wake(&mut self, now: u128) {
        self.starts = self.starts.map(|start| start.max(now));
    }
}

impl Rules {
    pub(super) fn add(&mut self, index: usize, promise: Promise, now: u64) {
        if self.members.len() <= index {
            self.members.resize_with(index + 1, || None);
        }
        self.members[index] = Some(Tags {
            promise,
            starts: [now.into(); 2],
            last: [1, LEAST_BYTES.into()],
            share: 0,
            stride: 0,
            eligible: None,
            was_ready: false,
        });
    }

    pub(super) fn set_promise(&mut self, index: usize, promise: Promise, now: u64) {
        let now = u128::from(now);
        let member = self.members[index].as_mut().unwrap();
        let before = member.rates();
        let [from, to] = [member.promise.weight, promise.weight].map(u128::from);
        member.promise = promise;
        let (after, steps) = (member.rates(), member.steps());
        for unit in [0, 1] {
            if before[unit] == 0 {
                member.starts[unit] = if after[unit] == 0 {
                    member.starts[unit]
                } else {
                    now
                };
            } else if before[unit] != after[unit] {
                let most = now + steps[unit].unwrap_or(0);
                member.starts[unit] = member.starts[unit].min(most);
            }
        }
        if from != to {
            if member.share > self.virtual_time {
                let ahead = member.share - self.virtual_time;
                member.share = self.virtual_time + ahead * from / to;
            }
            member.stride = member.stride * from / to;
        }
    }

    /// The first that waits may leave from then on.
    pub(super) fn set_waiting(&mut self, index: usize, eligible: Option<u64>, now: u64) {
        let member = self.members[index].as_mut().unwrap();
        if member.eligible.is_none() && eligible.is_some() {
            member.wake(now.into());
        }
        member.eligible = eligible.map(u128::from);
        let held_until = member.eligible.filter(|&time| time > now.into());
        let deadline = member.reserved().map(|(start, step)| start + step).min();
        if let (Some(until), Some(deadline)) = (held_until, deadline) {
            let steps = member.steps();
            for (start, step) in member.starts.iter_mut().zip(steps) {
                if let Some(step) = step.filter(|_| deadline < until) {
                    *start = (*start + step).max(until) - step;
                }
            }
        }
        member.was_ready &= member.eligible.is_some_and(|time| time <= now.into());
        self.look(now);
    }

    /// Those that have become ready start at the virtual time.
    fn look(&mut self, now: u64) {
        for member in self.members.iter_mut().flatten() {
            let is_ready = member.eligible.is_some_and(|time| time <= now.into());
            if is_ready && !member.was_ready {
                member.share = member.share.max(self.virtual_time);
                member.was_ready = true;
            }
        }
    }

    fn ready(&self) -> impl Iterator<Item = (usize, &Tags)> {
        let members = self.members.iter().enumerate();
        let members = members.filter_map(|(index, member)| Some((index, member.as_ref()?)));
        members.filter(|(_, member)| member.was_ready)
    }

    /// Who is next.
    pub(super) fn next(&mut self, now: u64) -> Option<(usize, Phase)> {
        self.look(now);
        let behind = self
            .ready()
            .filter(|(_, member)| member.is_behind(now.into()));
        let deadline = |member: &Tags| member.reserved().map(|(start, step)| start + step).min();
        if let Some((index, _)) = behind.min_by_key(|&(index, member)| (deadline(member), index)) {
            return Some((index, Phase::Reservation));
        }
        let least = self
            .ready()
            .min_by_key(|&(index, member)| (member.share, index));
        least.map(|(index, _)| (index, Phase::Weight))
    }

    /// When the first may leave.
    pub(super) fn first(&self) -> Option<u128> {
        self.members
            .iter()
            .flatten()
            .filter_map(|one| one.eligible)
            .min()
    }

    pub(super) fn serve(
        &mut self,
        index: usize,
        ios: u32,
        bytes: u32,
        time: u64,
        now: u64,
    ) -> Phase {
        let (now, window) = (u128::from(now), u128::from(WINDOW));
        let least = self.ready().map(|(_, member)| member.share).min();
        let virtual_time = self.virtual_time;
        let member = self.members[index].as_mut().unwrap();
        if member.eligible.is_none() {
            member.wake(now);
        }
        let is_behind = member.is_behind(now);
        member.last = [ios.into(), bytes.max(ios * LEAST_BYTES).into()];
        let steps = member.steps();
        for (start, step) in member.starts.iter_mut().zip(steps) {
            let Some(step) = step else { continue };
            if !is_behind {
                continue;
            }
            if *start > now {
                *start = (*start).max(now + step);
            } else {
                *start = (*start + step).max(now - window);
            }
        }
        let stride = u128::from(time) / u128::from(member.promise.weight);
        member.stride = stride.max(member.stride - member.stride / 64);
        let start = member.share.max(virtual_time);
        member.share = start + stride;
        if is_behind {
            let ios = window / 10 / steps.into_iter().flatten().min().unwrap() + 4;
            let most = start.max(virtual_time + (member.stride + 1) * ios);
            member.share = member.share.min(most);
            return Phase::Reservation;
        }
        self.virtual_time = virtual_time.max(start.min(least.unwrap_or(start)));
        Phase::Weight
    }
}
