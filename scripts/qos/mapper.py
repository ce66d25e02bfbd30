# SPDX-License-Identifier: GPL-2.0
"""Talks to device mapper, by dmsetup; nothing else here does."""

import contextlib
import dataclasses
import os
import pathlib
import re
import subprocess
from collections.abc import Callable, Iterable

# How long a command may take that waits for nobody's I/O.
TIMEOUT = 60
COLUMNS = "name,major,minor,attr,open,uuid"
# A field's end that neither a name nor a number can have.
SEPARATOR = "/"
FAILED = re.compile(r"^(?:device-mapper: (?:\w+ )+ioctl on .*?failed: )(.*)$", re.M)


class MapperError(Exception):
    """Why device mapper did not do something, in one line."""


@dataclasses.dataclass(frozen=True)
class Line:
    """One line of a table."""

    start: int
    length: int
    target: str
    arguments: str

    @classmethod
    def parse(cls, text: str) -> "Line":
        """As dmsetup prints it."""
        start, length, target, *rest = text.split(" ", 3)
        return cls(int(start), int(length), target, rest[0].strip() if rest else "")

    def __str__(self) -> str:
        return f"{self.start} {self.length} {self.target} {self.arguments}".rstrip()


Table = tuple[Line, ...]


@dataclasses.dataclass(frozen=True)
class Device:
    """A mapped device as it is now."""

    name: str
    major: int
    minor: int
    uuid: str = ""
    # By how many it is open: file systems, other mapped devices.
    open: int = 0
    has_live: bool = True
    has_inactive: bool = False
    suspended: bool = False
    read_only: bool = False

    @property
    def number(self) -> str:
        """As tables have it."""
        return f"{self.major}:{self.minor}"

    @property
    def node(self) -> str:
        """The kernel's own name."""
        return f"dm-{self.minor}"


def parse_devices(text: str) -> dict[str, Device]:
    """What `dmsetup info -c` prints of COLUMNS."""
    found = {}
    for line in text.splitlines():
        if line.count(SEPARATOR) < 5:
            continue  # "No devices found"
        name, major, minor, attributes, opened, uuid = line.strip().split(SEPARATOR, 5)
        found[name] = Device(
            name,
            int(major),
            int(minor),
            uuid,
            int(opened),
            has_live=attributes[0] == "L",
            has_inactive=attributes[1] == "I",
            suspended=attributes[2] == "s",
            read_only=attributes[3] == "r",
        )
    return found


def parse_tables(text: str, names: Iterable[str]) -> dict[str, list[str]]:
    """Lines by name, of what dmsetup prints for all devices: a name may have ": " in it."""
    found: dict[str, list[str]] = {}
    longest = sorted(names, key=len, reverse=True)
    for line in text.splitlines():
        for name in longest:
            rest = line.removeprefix(f"{name}: ")
            if rest != line and re.match(r"\d+ \d+ \S", rest):
                found.setdefault(name, []).append(rest)
                break
    return found


class KernelLog:
    """What the kernel says from now on. Whoever may not read that gets nothing."""

    def __init__(self):
        self.file = None
        with contextlib.suppress(OSError):
            self.file = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
            os.lseek(self.file, 0, os.SEEK_END)

    def close(self) -> None:
        """Once a log."""
        if self.file is not None:
            os.close(self.file)

    def reason(self) -> str | None:
        """The first thing that device mapper complained of."""
        while self.file is not None:
            try:
                record = os.read(self.file, 8192).decode("utf-8", "replace")
            except BlockingIOError:
                return None
            except OSError:
                continue
            line = record.partition(";")[2].splitlines()[0]
            if match := re.match(r"device-mapper: table: (?:\d+:\d+: )?(.*)", line):
                return match[1]
        return None


def run_dmsetup(words: list[str], text: str | None, timeout: float) -> str:
    """A command; what it prints."""
    command = ["dmsetup", "--manglename", "none", *words]
    log = KernelLog()
    try:
        done = subprocess.run(
            command,
            input=text or "",
            capture_output=True,
            text=True,
            errors="surrogateescape",
            timeout=timeout,
            check=False,
            env={**os.environ, "LC_ALL": "C"},
            # An interrupt is for us; what is under way is finished.
            start_new_session=True,
        )
        if done.returncode:
            raise MapperError(problem_of(words[0], done.stderr, log.reason()))
    except FileNotFoundError:
        raise MapperError("there is no dmsetup here (Debian: dmsetup)") from None
    except subprocess.TimeoutExpired:
        raise MapperError(f"dmsetup {words[0]}: not done in {timeout:g} s") from None
    finally:
        log.close()
    return done.stdout


def problem_of(command: str, said: str, logged: str | None) -> str:
    """One line of what dmsetup and the kernel say."""
    if "control: open failed" in said:
        return "device mapper cannot be talked to (are you root? is dm_mod loaded?)"
    if match := FAILED.search(said):
        text = match[1]
    else:
        lines = [line.strip() for line in said.splitlines() if line.strip()]
        text = "; ".join(line for line in lines if line != "Command failed.") or "it failed"
    return f"dmsetup {command}: {text.rstrip('.')}" + (f" ({logged})" if logged else "")


class Mapper:
    """Device mapper's devices, tables and messages."""

    def __init__(self, run: Callable[[list[str], str | None, float], str] = run_dmsetup):
        self._run = run

    def _dmsetup(self, *words: str, text: str | None = None, timeout: float = TIMEOUT) -> str:
        return self._run(list(words), text, timeout)

    def devices(self) -> dict[str, Device]:
        """All that there are, by name."""
        words = ("info", "-c", "--noheadings", "--separator", SEPARATOR, "-o", COLUMNS)
        return parse_devices(self._dmsetup(*words))

    def device(self, name: str) -> Device | None:
        """As it is now."""
        return self.devices().get(name)

    def table(self, name: str) -> Table:
        """The live one, with its keys: such is never shown to anybody, nor an argument."""
        return self._table(name)

    def inactive_table(self, name: str) -> Table:
        """One that is loaded and not resumed."""
        return self._table(name, "--inactive")

    def _table(self, name: str, *options: str) -> Table:
        lines = self._dmsetup("table", "--showkeys", *options, "--", name).splitlines()
        return tuple(Line.parse(line) for line in lines if line)

    def tables(self, target: str, names: Iterable[str]) -> dict[str, Table]:
        """Of all devices that have lines of this target: those lines."""
        text = self._dmsetup("table", "--target", target)
        found = parse_tables(text, names)
        return {name: tuple(map(Line.parse, lines)) for name, lines in found.items()}

    def statuses(self, target: str, names: Iterable[str]) -> dict[str, Table]:
        """The same of what they say of themselves."""
        text = self._dmsetup("status", "--noflush", "--target", target)
        found = parse_tables(text, names)
        return {name: tuple(map(Line.parse, lines)) for name, lines in found.items()}

    def create(self, name: str, uuid: str, table: Table, read_only: bool, hidden: bool) -> None:
        """A new device. Of a hidden one udev makes no links."""
        options = ["--readonly"] * read_only + ["--noudevrules"] * hidden
        self._dmsetup("create", *options, "--uuid", uuid, "--", name, text=text_of(table))

    def load(self, name: str, table: Table, read_only: bool) -> None:
        """An inactive table."""
        options = ["--readonly"] * read_only
        self._dmsetup("load", *options, "--", name, text=text_of(table))

    def resume(self, name: str, patience: float = TIMEOUT) -> None:
        """Have the inactive table become the live one.

        The kernel suspends the device, waits for its I/O, exchanges the tables and resumes it, all
        of that in one call: if we are killed meanwhile the device is not left suspended. A call
        that is interrupted leaves it as it was. The file system is not frozen, for nothing that it
        has on its way is lost, and that could take long.
        """
        self._dmsetup("resume", "--nolockfs", "--", name, timeout=patience)

    def clear(self, name: str) -> None:
        """Without its inactive table."""
        self._dmsetup("clear", "--", name)

    def remove(self, name: str, hidden: bool = False) -> None:
        """udev may have it open for a moment, hence the retry."""
        self._dmsetup("remove", "--retry", *["--noudevrules"] * hidden, "--", name)

    def message(self, name: str, text: str) -> str:
        """To a target at its beginning."""
        return self._dmsetup("message", "--", name, "0", *text.split())


def text_of(table: Table) -> str:
    """As dmsetup reads it."""
    return "".join(f"{line}\n" for line in table)


def sysfs(number: str) -> pathlib.Path:
    """What the kernel shows of a block device, by its number."""
    return pathlib.Path("/sys/dev/block") / number


def read_stat(number: str) -> list[int] | None:
    """A block device's counters, as Documentation/block/stat.rst has them."""
    try:
        return [int(word) for word in (sysfs(number) / "stat").read_text().split()]
    except (OSError, ValueError):
        return None


def node_of(number: str) -> str:
    """The kernel's own name of a block device, or its number if there is none any more."""
    path = os.path.realpath(sysfs(number))
    return number if path.endswith(number) else os.path.basename(path)
