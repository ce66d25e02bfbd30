// SPDX-License-Identifier: GPL-2.0

//! vhost-user messages of the front end, and replies to them.
//!
//! The crate `vhost` has the messages' layout. Its own loop cannot be used: it has no way to announce a
//! change of the configuration, which is most of what a balloon's host does.

use std::{
    fs::File,
    io::{self, Read, Write},
    os::unix::net::UnixStream,
};
use vhost::vhost_user::message::{FrontendReq, VhostUserHeaderFlag};
use vm_memory::ByteValued;
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

const HEADER_SIZE: usize = 12;
const MAX_BODY_SIZE: usize = 4096;
const VERSION: u32 = 1;

/// A message of the front end.
pub struct Request {
    pub code: FrontendReq,
    pub body: Vec<u8>,
    pub file: Option<File>,
    raw_code: u32,
    needs_ack: bool,
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

impl Request {
    /// Receives one. [`None`]: the front end is gone.
    pub fn receive(socket: &mut UnixStream) -> io::Result<Option<Self>> {
        let mut header = [0; HEADER_SIZE];
        let (count, file) = socket.recv_with_fd(&mut header)?;
        if count == 0 {
            return Ok(None);
        }
        socket.read_exact(&mut header[count..])?;
        let word = |index: usize| {
            u32::from_ne_bytes(header[index * 4..][..4].try_into().expect("four bytes"))
        };
        let (raw_code, flags, size) = (word(0), word(1), word(2) as usize);
        if size > MAX_BODY_SIZE {
            return Err(invalid("a message that is too long"));
        }
        let mut body = vec![0; size];
        socket.read_exact(&mut body)?;
        Ok(Some(Self {
            code: FrontendReq::try_from(raw_code).map_err(|_| invalid("an unknown message"))?,
            body,
            file,
            raw_code,
            needs_ack: flags & VhostUserHeaderFlag::NEED_REPLY.bits() != 0,
        }))
    }

    /// What the body begins with.
    pub fn parse<T: ByteValued + Default>(&self) -> io::Result<T> {
        let mut value = T::default();
        let bytes = self.body.get(..size_of::<T>());
        value
            .as_mut_slice()
            .copy_from_slice(bytes.ok_or_else(|| invalid("a message that is too short"))?);
        Ok(value)
    }

    /// Replies to a message that always has a reply.
    pub fn reply(&self, socket: &mut UnixStream, body: &[u8]) -> io::Result<()> {
        let flags = VERSION | VhostUserHeaderFlag::REPLY.bits();
        socket.write_all(&message(self.raw_code, flags, body))
    }

    /// Says that a message without a reply of its own was dealt with, if that is asked for.
    pub fn acknowledge(&self, socket: &mut UnixStream) -> io::Result<()> {
        if self.needs_ack {
            self.reply(socket, &0u64.to_ne_bytes())?;
        }
        Ok(())
    }
}

/// A message as it is sent.
pub fn message(code: u32, flags: u32, body: &[u8]) -> Vec<u8> {
    let words = [code, flags | VERSION, body.len() as u32];
    let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
    bytes.extend_from_slice(body);
    bytes
}
