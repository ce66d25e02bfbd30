#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Do I/O to block devices, as asked for, and say what became of it, to compare one with another.

    io.py REQUESTS REPLIES

Started once a script, since this takes longer than all that it does. Each line that comes through
the named pipe REQUESTS is

    RESULTS DEVICE [at-once] OPERATION[:OFFSET:LENGTH][*TIMES]...

RESULTS is where the results are to be: "-" for REPLIES, which ends them with an empty line, or a
file, which is there when all of them are. Until then the next request may be served.

Offsets and lengths are in bytes, or with K or M; with *TIMES the offset moves on by the length each
time. Results have one line an operation, in the order given: the operation, and "ok", an error's
name, or what was found instead. What is written are the numbers of the sectors, so that "verify"
needs no copy.
"""

import ctypes
import errno
import fcntl
import mmap
import os
import struct
import sys
import threading
from typing import TextIO

SECTOR = 512
RWF_DSYNC, RWF_NOWAIT, RWF_ATOMIC = 0x2, 0x8, 0x40
FALLOC_KEEP_SIZE, FALLOC_PUNCH_HOLE = 0x1, 0x2
# Of a range in bytes, and of zones in sectors (linux/fs.h, linux/blkzoned.h).
RANGE_IOCTLS = {"discard": 0x1277, "secure-erase": 0x127D, "zeroout": 0x127F}
ZONE_IOCTLS = {
    "zone-reset": 0x40101283,
    "zone-open": 0x40101286,
    "zone-close": 0x40101287,
    "zone-finish": 0x40101288,
}
# Persistent reservations (linux/pr.h): the first number is the key, the second the new one. The
# reservation is of type write exclusive.
PR_IOCTLS = {
    "pr-register": lambda key, new: (0x401870C8, struct.pack("<QQII", key, new, 0, 0)),
    "pr-reserve": lambda key, _: (0x401070C9, struct.pack("<QII", key, 1, 0)),
    "pr-release": lambda key, _: (0x401070CA, struct.pack("<QII", key, 1, 0)),
    "pr-clear": lambda key, _: (0x401070CD, struct.pack("<QII", key, 0, 0)),
}
WRITES = {"write": 0, "write-through": RWF_DSYNC, "write-atomic": RWF_ATOMIC}
READS = {"read": 0, "read-nowait": RWF_NOWAIT, "verify": 0, "verify-zero": 0}


class WrongResult(Exception):
    """No error, but not what should have been."""


def number(text: str) -> int:
    """Such as 4096 or 4K."""
    unit = {"K": 1 << 10, "M": 1 << 20}.get(text[-1:], 1)
    return int(text.rstrip("KM"), 0) * unit


def pattern(offset: int, length: int) -> bytes:
    """What is written there."""
    sectors = range(offset // SECTOR, (offset + length) // SECTOR)
    return b"".join(struct.pack("<Q", sector + 1) * (SECTOR // 8) for sector in sectors)


def read(fd: int, name: str, offset: int, length: int) -> None:
    """A read, whose data may matter."""
    buffer = mmap.mmap(-1, length)
    done = os.preadv(fd, [buffer], offset, READS[name])
    if done != length:
        raise WrongResult(f"{done} bytes only")
    expected = {"verify": pattern(offset, length), "verify-zero": bytes(length)}
    if name in expected and buffer[:] != expected[name]:
        wrong = next(i for i in range(length) if buffer[i] != expected[name][i])
        raise WrongResult(f"wrong from byte {offset + wrong} on")


def write(fd: int, name: str, offset: int, length: int) -> None:
    """A write."""
    buffer = mmap.mmap(-1, length)
    buffer[:] = pattern(offset, length)
    done = os.pwritev(fd, [buffer], offset, WRITES[name])
    if done != length:
        raise WrongResult(f"{done} bytes only")


def perform(fd: int, name: str, offset: int, length: int) -> None:
    """One operation."""
    if name in READS:
        read(fd, name, offset, length)
    elif name in WRITES:
        write(fd, name, offset, length)
    elif name == "flush":
        os.fsync(fd)
    elif name in RANGE_IOCTLS:
        fcntl.ioctl(fd, RANGE_IOCTLS[name], struct.pack("<QQ", offset, length))
    elif name in ZONE_IOCTLS:
        zones = struct.pack("<QQ", offset // SECTOR, length // SECTOR)
        fcntl.ioctl(fd, ZONE_IOCTLS[name], zones)
    elif name in PR_IOCTLS:
        # They have a status of their own (enum pr_status).
        request, argument = PR_IOCTLS[name](offset, length)
        # Of what it is given as bytes, it would return the bytes.
        if status := fcntl.ioctl(fd, request, bytearray(argument), True):
            raise WrongResult(f"status {status}")
    elif name == "punch-hole":
        libc = ctypes.CDLL(None, use_errno=True)
        mode = FALLOC_KEEP_SIZE | FALLOC_PUNCH_HOLE
        if libc.fallocate(fd, mode, ctypes.c_int64(offset), ctypes.c_int64(length)):
            raise OSError(ctypes.get_errno(), "fallocate")
    else:
        raise WrongResult("no such operation")


class Operation:
    """One operation and what became of it."""

    def __init__(self, name: str, offset: int, length: int):
        self.name, self.offset, self.length = name, offset, length
        self.result = ""

    @classmethod
    def parse(cls, text: str) -> list["Operation"]:
        """From the command line."""
        text, _, times = text.partition("*")
        name, offset, length = (text.split(":") + ["0", "0"])[:3]
        offset, length = number(offset), number(length)
        return [cls(name, offset + i * length, length) for i in range(int(times or 1))]

    def run(self, fd: int) -> None:
        """Do it."""
        try:
            perform(fd, self.name, self.offset, self.length)
            self.result = "ok"
        except OSError as error:
            self.result = errno.errorcode.get(error.errno, str(error.errno))
        except WrongResult as error:
            self.result = str(error)

    def __str__(self) -> str:
        return f"{self.name} {self.offset} {self.length}: {self.result}"


def results(device: str, at_once: bool, texts: list[str]) -> list[str]:
    """Of one request."""
    operations = [each for text in texts for each in Operation.parse(text)]
    try:
        fd = os.open(device, os.O_RDWR | os.O_DIRECT)
    except OSError as error:
        return [f"open: {errno.errorcode[error.errno]}"]
    if at_once:
        threads = [threading.Thread(target=each.run, args=[fd]) for each in operations]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    else:
        for each in operations:
            each.run(fd)
    os.close(fd)
    return [str(each) for each in operations]


def serve(replies: TextIO, where: str, device: str, *operations: str) -> None:
    """One request."""
    at_once = operations[0] == "at-once"
    lines = results(device, at_once, list(operations[at_once:]))
    if where == "-":
        print(*lines, "", sep="\n", file=replies, flush=True)
        return
    with open(f"{where}.part", "w", encoding="ascii") as file:
        print(*lines, sep="\n", file=file)
    os.rename(f"{where}.part", where)


def main() -> None:
    """The command line."""
    with open(sys.argv[1], encoding="ascii") as requests, open(sys.argv[2], "w") as replies:
        for request in requests:
            threading.Thread(target=serve, args=[replies, *request.split()]).start()


if __name__ == "__main__":
    main()
