// SPDX-License-Identifier: GPL-2.0

//! Device mapper's ioctls, as they are: what is wrong in a request is for the kernel to find.

use std::{
    ffi::CString,
    fmt,
    fs::File,
    io,
    os::fd::AsRawFd, //
};

/// What is asked for (`DM_*_CMD`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Command {
    ListDevices = 2,
    Create = 3,
    Remove = 4,
    Rename = 5,
    Suspend = 6,
    Status = 7,
    Load = 9,
    Clear = 10,
    Deps = 11,
    TableStatus = 12,
    ListVersions = 13,
    Message = 14,
}

/// `DM_*_FLAG`.
pub mod flag {
    pub const READONLY: u32 = 1 << 0;
    pub const SUSPEND: u32 = 1 << 1;
    pub const STATUS_TABLE: u32 = 1 << 4;
    pub const ACTIVE_PRESENT: u32 = 1 << 5;
    pub const INACTIVE_PRESENT: u32 = 1 << 6;
    pub const BUFFER_FULL: u32 = 1 << 8;
    pub const SKIP_LOCKFS: u32 = 1 << 10;
    pub const NOFLUSH: u32 = 1 << 11;
    pub const QUERY_INACTIVE: u32 = 1 << 12;
    pub const UUID: u32 = 1 << 14;
    pub const SECURE_DATA: u32 = 1 << 15;
    pub const DATA_OUT: u32 = 1 << 16;
    pub const DEFERRED_REMOVE: u32 = 1 << 17;
}

/// `struct dm_ioctl`.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Header {
    version: [u32; 3],
    data_size: u32,
    data_start: u32,
    pub target_count: u32,
    pub open_count: i32,
    pub flags: u32,
    event_nr: u32,
    padding: u32,
    pub dev: u64,
    name: [u8; 128],
    uuid: [u8; 129],
    data: [u8; 7],
}

const HEADER: usize = size_of::<Header>();
/// `struct dm_target_spec`.
const SPEC: usize = 40;
const MAX_TYPE: usize = 16;
/// Where a reply must fit in; with room for tables of a hundred lines.
const REPLY: usize = 64 << 10;

/// A line of a table.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Line {
    pub start: u64,
    pub length: u64,
    pub target: String,
    pub words: String,
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.start, self.length, self.target)?;
        if !self.words.is_empty() {
            write!(f, " {}", self.words)?;
        }
        Ok(())
    }
}

impl Line {
    /// From what `Display` makes.
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.splitn(4, ' ');
        Some(Self {
            start: parts.next()?.parse().ok()?,
            length: parts.next()?.parse().ok()?,
            target: parts.next()?.to_string(),
            words: parts.next().unwrap_or_default().to_string(),
        })
    }
}

/// The number of an error.
pub type Errno = i32;

/// The errors' names, as far as they are expected anywhere.
pub fn name_of(errno: Errno) -> String {
    // SAFETY: It returns a string that stays, or null.
    let name = unsafe { libc::strerror(errno) };
    if name.is_null() {
        return format!("error {errno}");
    }
    // SAFETY: As above.
    let text = unsafe { std::ffi::CStr::from_ptr(name) };
    text.to_string_lossy().into_owned()
}

/// The error of the last system call.
pub fn last_errno() -> Errno {
    io::Error::last_os_error().raw_os_error().unwrap_or(0)
}

/// A request that is made ready, so that [`Request::send`] is one system call and nothing else.
pub struct Request {
    number: libc::c_ulong,
    buffer: Vec<u64>,
    length: usize,
}

impl Request {
    pub fn new(command: Command, name: &str, flags: u32) -> Self {
        let mut request = Self {
            // _IOWR(0xfd, command, struct dm_ioctl)
            number: 3 << 30 | (HEADER as u64) << 16 | 0xfd << 8 | command as u64,
            buffer: vec![0; REPLY / 8],
            length: HEADER,
        };
        let header = request.header_mut();
        header.version = [4, 0, 0];
        header.data_start = HEADER as u32;
        header.flags = flags;
        let bytes = name.as_bytes();
        let length = bytes.len().min(header.name.len());
        header.name[..length].copy_from_slice(&bytes[..length]);
        request.update_size();
        request
    }

    fn header_mut(&mut self) -> &mut Header {
        // SAFETY: The buffer is large enough and aligned, and any bytes are a header.
        unsafe { &mut *self.buffer.as_mut_ptr().cast() }
    }

    pub fn header(&self) -> &Header {
        // SAFETY: As above.
        unsafe { &*self.buffer.as_ptr().cast() }
    }

    fn bytes(&self) -> &[u8] {
        // SAFETY: All of the buffer, as bytes.
        unsafe { std::slice::from_raw_parts(self.buffer.as_ptr().cast(), 8 * self.buffer.len()) }
    }

    fn update_size(&mut self) {
        // The kernel reads and copies all of it.
        let needed = self.length.max(HEADER);
        let size = needed.next_multiple_of(8).max(HEADER + 8);
        self.header_mut().data_size = size as u32;
    }

    /// There is to be so much room for the reply.
    pub fn with_room(mut self, bytes: usize) -> Self {
        let size = (self.length + bytes).next_multiple_of(8);
        self.buffer.resize(self.buffer.len().max(size / 8), 0);
        self.header_mut().data_size = size as u32;
        self
    }

    pub fn with_uuid(mut self, uuid: &str) -> Self {
        let header = self.header_mut();
        let length = uuid.len().min(header.uuid.len());
        header.uuid[..length].copy_from_slice(&uuid.as_bytes()[..length]);
        self
    }

    fn push(&mut self, bytes: &[u8]) {
        let end = self.length + bytes.len();
        if end > 8 * self.buffer.len() {
            self.buffer.resize(end.div_ceil(8), 0);
        }
        // SAFETY: There is room.
        let all = unsafe {
            std::slice::from_raw_parts_mut(
                self.buffer.as_mut_ptr().cast::<u8>(),
                8 * self.buffer.len(),
            )
        };
        all[self.length..end].copy_from_slice(bytes);
        self.length = end;
        self.update_size();
    }

    /// A string and its end.
    fn push_text(&mut self, text: &str) {
        // What has a zero in it ends there.
        let text = text.split('\0').next().unwrap_or_default();
        let text = CString::new(text).expect("no zeroes");
        self.push(text.as_bytes_with_nul());
    }

    pub fn load(name: &str, flags: u32, table: &[Line]) -> Self {
        let mut request = Self::new(Command::Load, name, flags);
        request.header_mut().target_count = table.len() as u32;
        for line in table {
            let size = (SPEC + line.words.len() + 1).next_multiple_of(8);
            let end = request.length + size;
            request.push(&line.start.to_ne_bytes());
            request.push(&line.length.to_ne_bytes());
            request.push(&0i32.to_ne_bytes());
            request.push(&(size as u32).to_ne_bytes());
            let mut target = [0; MAX_TYPE];
            let length = line.target.len().min(MAX_TYPE);
            target[..length].copy_from_slice(&line.target.as_bytes()[..length]);
            request.push(&target);
            request.push_text(&line.words);
            while request.length < end {
                request.push(&[0]);
            }
        }
        request
    }

    pub fn message(name: &str, sector: u64, text: &str) -> Self {
        let mut request = Self::new(Command::Message, name, 0);
        request.push(&sector.to_ne_bytes());
        request.push_text(text);
        // What it answers needs room.
        let length = request.length;
        request.with_room(REPLY / 2 - length.min(REPLY / 4))
    }

    pub fn rename(name: &str, new: &str, flags: u32) -> Self {
        let mut request = Self::new(Command::Rename, name, flags);
        request.push_text(new);
        request
    }

    /// What `dmsetup status` asks for, or `dmsetup table` with [`flag::STATUS_TABLE`].
    pub fn status(name: &str, flags: u32) -> Self {
        Self::new(Command::TableStatus, name, flags | flag::NOFLUSH).with_room(REPLY / 2)
    }

    /// Does it.
    pub fn send(&mut self, control: &Control) -> Result<(), Errno> {
        // SAFETY: The buffer is as large as it says.
        let result = unsafe {
            libc::ioctl(
                control.file.as_raw_fd(),
                self.number,
                self.buffer.as_mut_ptr(),
            )
        };
        if result < 0 {
            return Err(last_errno());
        }
        Ok(())
    }

    /// The lines that a [`Command::TableStatus`] got; none if they did not fit.
    pub fn lines(&self) -> Option<Vec<Line>> {
        let header = self.header();
        if header.flags & flag::BUFFER_FULL != 0 {
            return None;
        }
        let data = &self.bytes()[header.data_start as usize..];
        let mut lines = Vec::new();
        let mut at = 0;
        for _ in 0..header.target_count {
            let number = |offset: usize| {
                u64::from_ne_bytes(data[at + offset..at + offset + 8].try_into().expect("8"))
            };
            let next = u32::from_ne_bytes(data[at + 20..at + 24].try_into().expect("4"));
            lines.push(Line {
                start: number(0),
                length: number(8),
                target: text_at(&data[at + 24..at + SPEC]),
                words: text_at(&data[at + SPEC..]).trim_end().to_string(),
            });
            at = next as usize;
        }
        Some(lines)
    }

    /// What a message was answered with.
    pub fn answer(&self) -> Option<String> {
        let header = self.header();
        (header.flags & flag::DATA_OUT != 0)
            .then(|| text_at(&self.bytes()[header.data_start as usize..]))
    }

    /// The names that a [`Command::ListVersions`] or a [`Command::ListDevices`] got.
    fn names(&self, name_offset: usize, next_offset: usize) -> Vec<String> {
        let header = self.header();
        let data = &self.bytes()[header.data_start as usize..header.data_size as usize];
        let mut names = Vec::new();
        let mut at = 0;
        // There may be none at all.
        while data.len() > name_offset {
            let next = &data[at + next_offset..at + next_offset + 4];
            let next = u32::from_ne_bytes(next.try_into().expect("4")) as usize;
            let name = text_at(&data[at + name_offset..]);
            if !name.is_empty() {
                names.push(name);
            }
            if next == 0 {
                break;
            }
            at += next;
        }
        names
    }
}

fn text_at(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|&byte| byte == 0);
    String::from_utf8_lossy(&bytes[..end.unwrap_or(bytes.len())]).into_owned()
}

/// `/dev/mapper/control`.
pub struct Control {
    file: File,
}

/// What is known of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    pub is_suspended: bool,
    pub open_count: i32,
    pub dev: u64,
    /// The table in use.
    pub active: Vec<Line>,
    /// The one that is loaded.
    pub inactive: Vec<Line>,
}

impl Control {
    pub fn open() -> io::Result<Self> {
        let file = File::options()
            .read(true)
            .write(true)
            .open("/dev/mapper/control")?;
        Ok(Self { file })
    }

    pub fn create(&self, name: &str) -> Result<(), Errno> {
        Request::new(Command::Create, name, 0).send(self)
    }

    pub fn remove(&self, name: &str) -> Result<(), Errno> {
        Request::new(Command::Remove, name, 0).send(self)
    }

    pub fn clear(&self, name: &str) -> Result<(), Errno> {
        Request::new(Command::Clear, name, 0).send(self)
    }

    pub fn load(&self, name: &str, table: &[Line]) -> Result<(), Errno> {
        Request::load(name, 0, table).send(self)
    }

    pub fn suspend(&self, name: &str, flags: u32) -> Result<(), Errno> {
        Request::new(Command::Suspend, name, flags | flag::SUSPEND).send(self)
    }

    pub fn resume(&self, name: &str) -> Result<(), Errno> {
        Request::new(Command::Suspend, name, 0).send(self)
    }

    pub fn message(&self, name: &str, text: &str) -> Result<Option<String>, Errno> {
        let mut request = Request::message(name, 0, text);
        request.send(self)?;
        Ok(request.answer())
    }

    /// The lines of a status or a table, whatever they take.
    pub fn status(&self, name: &str, flags: u32) -> Result<Vec<Line>, Errno> {
        let mut room = REPLY / 2;
        loop {
            let mut request = Request::status(name, flags).with_room(room);
            request.send(self)?;
            match request.lines() {
                Some(lines) => return Ok(lines),
                None => room *= 4,
            }
        }
    }

    pub fn table(&self, name: &str) -> Result<Vec<Line>, Errno> {
        self.status(name, flag::STATUS_TABLE)
    }

    pub fn inactive_table(&self, name: &str) -> Result<Vec<Line>, Errno> {
        self.status(name, flag::STATUS_TABLE | flag::QUERY_INACTIVE)
    }

    /// All there is to know of a device but what it counts.
    pub fn state(&self, name: &str) -> Result<State, Errno> {
        let mut request = Request::new(Command::Status, name, 0);
        request.send(self)?;
        let header = *request.header();
        let has = |flag| header.flags & flag != 0;
        let table = |is_there, flags| match is_there {
            true => self.status(name, flag::STATUS_TABLE | flags),
            false => Ok(Vec::new()),
        };
        Ok(State {
            is_suspended: has(flag::SUSPEND),
            open_count: header.open_count,
            dev: header.dev,
            active: table(has(flag::ACTIVE_PRESENT), 0)?,
            inactive: table(has(flag::INACTIVE_PRESENT), flag::QUERY_INACTIVE)?,
        })
    }

    /// The names of all devices.
    pub fn devices(&self) -> Result<Vec<String>, Errno> {
        let mut request = Request::new(Command::ListDevices, "", 0).with_room(REPLY / 2);
        request.send(self)?;
        Ok(request.names(12, 8))
    }

    /// The names of all targets.
    pub fn targets(&self) -> Result<Vec<String>, Errno> {
        let mut request = Request::new(Command::ListVersions, "", 0).with_room(REPLY / 2);
        request.send(self)?;
        Ok(request.names(16, 0))
    }
}

/// The node of a device: `/dev/mapper/NAME` is udev's to make, which does not run.
pub fn node_of(dev: u64) -> String {
    format!("/dev/dm-{}", minor(dev))
}

/// The number of device mapper's own devices.
pub fn major_of(dev: u64) -> u64 {
    dev >> 8 & 0xfff
}

/// As `new_encode_dev()` has it, in the kernel.
fn minor(dev: u64) -> u64 {
    dev & 0xff | dev >> 12 & 0xfff00
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn structures_are_the_kernels() {
        assert_eq!(size_of::<Header>(), 312);
        let request = Request::load("x", 0, &[Line::parse("0 8 qos /dev/x 0").expect("a line")]);
        assert_eq!(request.length, 312 + (40usize + 11).next_multiple_of(8));
    }
}
