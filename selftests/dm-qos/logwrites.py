#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""What dm-log-writes has logged (Documentation/admin-guide/device-mapper/log-writes.rst).

    logwrites.py list LOG
    logwrites.py cut LOG IMAGE COPY DISK TYPE MOUNTPOINT DIRECTORY MODEL FSCK POINT...

"list" prints one line an entry. "cut" cuts the power at each POINT, in the order of the log, a mark
or a number of entries: the file IMAGE, as the disk was when the log began, gets what comes before
it. The file COPY becomes a copy of it. DISK, which is a loop device over COPY, is mounted, so that
the file system recovers, DIRECTORY in it compared with MODEL.POINT of files.py where there is one,
and FSCK run on COPY. One line a point: "ok", or what is wrong.

Writes are logged when a flush that came after them is done, so this is what is sure to be on a disk
that loses its cache.
"""

import ctypes
import os
import struct
import sys
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

import files

MAGIC = 0x6A736677736872
FLUSH, FUA, DISCARD, MARK, METADATA = (1 << bit for bit in range(5))
NAMES = {FLUSH: "flush", FUA: "fua", DISCARD: "discard", METADATA: "metadata"}
SUPER = struct.Struct("<QQQI")
LIBC = ctypes.CDLL(None)
ENTRY = struct.Struct("<QQQQ")


class Entry(NamedTuple):
    """One I/O, in bytes, or one mark."""

    offset: int
    length: int
    flags: int
    data: bytes

    def __str__(self) -> str:
        if self.flags & MARK:
            return f"mark {self.data.decode()}"
        names = [name for flag, name in NAMES.items() if self.flags & flag]
        return f"{self.offset} {self.length} {' '.join(names)}".rstrip()


def entries(log: BinaryIO) -> Iterator[Entry]:
    """All that is in a log."""
    magic, version, count, sector_size = SUPER.unpack(log.read(SUPER.size))
    if magic != MAGIC or version != 1:
        sys.exit("this is no log of dm-log-writes")
    position = sector_size
    for _ in range(count):
        log.seek(position)
        sector, sectors, flags, data_length = ENTRY.unpack(log.read(ENTRY.size))
        position += sector_size
        length = sectors * sector_size
        if flags & MARK:
            data = log.read(data_length)
        elif flags & DISCARD:
            data = b""
        else:
            log.seek(position)
            data = log.read(length)
            position += length
        yield Entry(sector * sector_size, length, flags, data)


class PowerCut(NamedTuple):
    """What "cut" was asked for, but for the log and the points."""

    image: str
    copy: str
    disk: str
    type: str
    mountpoint: str
    directory: str
    model: str
    fsck: str

    def copy_image(self) -> None:
        """What is not in it costs nothing."""
        with open(self.image, "rb") as source, open(self.copy, "wb") as copy:
            size = os.fstat(source.fileno()).st_size
            os.truncate(copy.fileno(), size)
            end = 0
            while end < size:
                try:
                    start = os.lseek(source.fileno(), end, os.SEEK_DATA)
                except OSError:
                    break
                end = os.lseek(source.fileno(), start, os.SEEK_HOLE)
                os.pwrite(copy.fileno(), os.pread(source.fileno(), end - start, start), start)

    def wrong(self, point: str) -> str:
        """What is wrong after a cut with the disk as in the image."""
        self.copy_image()
        wrong = []
        disk, mountpoint = self.disk.encode(), self.mountpoint.encode()
        # It refuses a disk that was further once.
        if self.type == "btrfs" and not run("btrfs", "device", "scan", "--forget"):
            return "not forgotten"
        if LIBC.mount(disk, mountpoint, self.type.encode(), 0, None):
            return "not mounted"
        model = f"{self.model}.{point}"
        if os.path.exists(model):
            wrong = files.differences(os.path.join(self.mountpoint, self.directory), model)
        if LIBC.umount(mountpoint):
            return "not unmounted"
        if not run(*self.fsck.split(), self.copy):
            wrong.append("not consistent")
        return ", ".join(wrong)

    def at(self, log: BinaryIO, points: list[str]) -> None:
        """See above."""
        left = set(points)
        with open(self.image, "r+b", buffering=0) as image:
            for number, entry in enumerate(entries(log)):
                for point in {str(number), str(entry).removeprefix("mark ")} & left:
                    print(f"{point}: {self.wrong(point) or 'ok'}", flush=True)
                    left.remove(point)
                if not entry.flags & MARK:
                    os.pwrite(image.fileno(), entry.data or bytes(entry.length), entry.offset)
        for point in left:
            print(f"{point}: not in the log")


def run(*command: str) -> bool:
    """Whether it succeeds; it is to be silent."""
    silent = [(os.POSIX_SPAWN_OPEN, fd, "/dev/null", os.O_RDWR, 0) for fd in (0, 1, 2)]
    pid = os.posix_spawnp(command[0], command, os.environ, file_actions=silent)
    return os.waitpid(pid, 0)[1] == 0


def main() -> None:
    """The command line."""
    command, path, *rest = sys.argv[1:]
    with open(path, "rb") as log:
        if command == "cut":
            PowerCut(*rest[:8]).at(log, rest[8:])
        else:
            for entry in entries(log):
                print(entry)


if __name__ == "__main__":
    main()
