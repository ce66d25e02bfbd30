# SPDX-License-Identifier: GPL-2.0
"""Puts qos over a device, or into one that is in use, and takes it away again.

All or nothing: each step says how it is undone, and when one fails those before are, last first.
What is killed in the middle, or loses its power, leaves a device that works: tables are in memory
only, so a machine that boots finds each device as whoever owns it makes it; and the one step that
touches a device in use is one call of the kernel (Mapper.resume).
"""

import contextlib
import dataclasses
import errno
import os
import pathlib
import re
import signal
import stat
from collections.abc import Callable, Iterator

from .limits import BY_TABLE, Limits, make_line, parse_line, parse_value
from .mapper import TIMEOUT, Device, Line, Mapper, MapperError, Table, sysfs

# How devices of ours are told from others. Those below are nobody's business: see the udev rule.
OVER, BELOW = "QOS-", "QOSBELOW-"
SUFFIX = "-qos-below"
LONGEST = 127
# Of these two devices with the same table, one of which does no I/O, are as good as one: they
# neither keep anything about their I/O nor write anything of their own.
STATELESS = {"linear", "striped", "unstriped", "crypt", "delay", "flakey", "dust", "error", "zero"}
# Of logical volumes, only those that are nothing but a place on disks.
LVM_TARGETS = {"linear", "striped"}
LVM, LVM_VOLUME = "LVM-", re.compile(r"LVM-[A-Za-z0-9]{64}")


class QosError(Exception):
    """Why something is not done, in one line."""


@dataclasses.dataclass(frozen=True)
class Attached:
    """A qos device."""

    device: Device
    # Its lines of qos. A whole table is nothing else.
    table: Table
    limits: Limits
    # The number of what it lies on.
    below: str
    # The hidden device, if qos is in a device of somebody else.
    hidden: Device | None

    @property
    def name(self) -> str:
        """The device's."""
        return self.device.name

    @property
    def how(self) -> str:
        """How it came to be."""
        if self.hidden:
            return "into"
        is_whole = len(self.table) == 1 and parse_line(self.table[0])[1] == 0
        return "over" if self.device.uuid.startswith(OVER) and is_whole else "by hand"


def find_attached(mapper: Mapper) -> dict[str, Attached]:
    """All qos devices, ours and others, by name."""
    return attached_among(mapper, mapper.devices())


def attached_among(mapper: Mapper, devices: dict[str, Device]) -> dict[str, Attached]:
    """The same, where devices have been read."""
    hidden = {d.number: d for d in devices.values() if d.uuid.startswith(BELOW)}
    found = {}
    for name, table in mapper.tables("qos", devices).items():
        below, _, limits = parse_line(table[0])
        found[name] = Attached(devices[name], table, limits, below, hidden.get(below))
    return found


def left_over(devices: dict[str, Device], attached: dict[str, Attached]) -> list[Device]:
    """Hidden devices that nothing lies on: whoever owns the device above gave it another table."""
    used = {one.hidden.name for one in attached.values() if one.hidden}
    hidden = (d for d in devices.values() if d.uuid.startswith(BELOW))
    return [d for d in hidden if d.name not in used and not d.open]


class Steps:
    """Steps that can be undone, last first."""

    def __init__(self):
        self._undo: list[tuple[str, Callable[[], None]]] = []

    def done(self, what: str, undo: Callable[[], None]) -> None:
        """A step, before it is taken: undoing it must do no harm if it was not."""
        self._undo.append((what, undo))

    def undo(self) -> list[str]:
        """All of it; what could not be undone."""
        problems = []
        for what, undo in reversed(self._undo):
            try:
                undo()
            except MapperError as error:
                problems.append(f"{what}: {error}")
        return problems


@contextlib.contextmanager
def all_or_nothing() -> Iterator[Steps]:
    """What fails in here is undone, and interrupts wait until that is over."""
    steps = Steps()
    with interrupts_wait():
        try:
            yield steps
        except MapperError as error:
            problems = steps.undo()
            text = str(error)
            if problems:
                text += f"; and undoing it failed: {'; '.join(problems)}"
            raise QosError(text) from None


@contextlib.contextmanager
def interrupts_wait() -> Iterator[None]:
    """What is under way is finished or undone first."""
    came: list[int] = []
    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, lambda n, _: came.append(n)) for number in signals}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for number in came[:1]:
            os.kill(os.getpid(), number)


def put_right(mapper: Mapper, name: str) -> None:
    """A device goes on with the live table that it has, whatever was begun."""
    device = mapper.device(name)
    if device is None:
        return
    if device.has_inactive:
        mapper.clear(name)
    if device.suspended:
        mapper.resume(name)


def remove_if_there(mapper: Mapper, name: str) -> None:
    """A device that was made, or not."""
    if (device := mapper.device(name)) is not None:
        mapper.remove(name, device.uuid.startswith(BELOW))


def exchange(mapper: Mapper, steps: Steps, device: Device, table: Table, expected: Table, patience):
    """Give a device in use another table. The one it has must be the expected one until then."""
    steps.done(f"resuming {device.name}", lambda: put_right(mapper, device.name))
    mapper.load(device.name, table, device.read_only)
    if mapper.table(device.name) != expected:
        raise MapperError("somebody else has given it another table meanwhile; nothing was done")
    try:
        mapper.resume(device.name, patience)
    except MapperError:
        # It may have been done all the same, such as when udev does not answer after that.
        if mapper.table(device.name) != table:
            raise
        put_right(mapper, device.name)


def check_idle(mapper: Mapper, device: Device, hidden: Device | None) -> None:
    """Nobody else is at work on it. What a qosctl that was killed had begun is taken back."""
    if device.suspended:
        raise QosError(f"{device.name} is suspended (by whom? dmsetup resume {device.name})")
    if not device.has_inactive:
        return
    inactive = mapper.inactive_table(device.name)
    ours = hidden is not None and (
        inactive == mapper.table(hidden.name)
        or [line.target for line in inactive] == ["qos"]
        and parse_line(inactive[0])[0] == hidden.number
    )
    if not ours:
        raise QosError(
            f"{device.name} has a table that is loaded and not live: somebody is changing it"
            f" (or was: dmsetup clear {device.name})"
        )
    mapper.clear(device.name)


def attach_into(mapper: Mapper, device: Device, limits: Limits, patience: float = TIMEOUT) -> None:
    """Move the live table to a hidden device, and have qos in its place."""
    devices = mapper.devices()
    table = mapper.table(device.name)
    if problem := why_not_into(device, table, devices):
        raise QosError(problem)
    name = device.name + SUFFIX
    check_idle(mapper, device, devices.get(name))
    if name in devices:
        clean_up(mapper, name)
    length = sum(line.length for line in table)
    with all_or_nothing() as steps:
        steps.done(f"removing {name}", lambda: remove_if_there(mapper, name))
        mapper.create(name, BELOW + device.name, table, device.read_only, hidden=True)
        hidden = mapper.device(name)
        if hidden is None:
            raise MapperError(f"{name} is not there any more")
        line = make_line(length, hidden.number, limits)
        exchange(mapper, steps, device, (line,), table, patience)


def clean_up(mapper: Mapper, name: str) -> None:
    """Remove a hidden device that is left over; it must be ours, and unused."""
    hidden = mapper.device(name)
    if hidden is None:
        return
    if not hidden.uuid.startswith(BELOW):
        raise QosError(f"there is a device {name}, which is not ours")
    if hidden.open:
        raise QosError(f"{name}, which was below it, is still in use")
    mapper.remove(name, hidden=True)


ELSE = "put qos over it, before it is used (--over), or below: see qosctl(1)"


def why_not_into(device: Device, table: Table, devices: dict[str, Device]) -> str | None:
    """Why qos is not put into a device, or None."""
    name, targets = device.name, {line.target for line in table}
    kinds = ", ".join(sorted(targets - STATELESS))
    reasons = (
        (device.uuid.startswith(BELOW), "is what a qos device lies on: name that one"),
        ("qos" in targets, "has limits already (qosctl set, qosctl detach)"),
        (not table, "has no table"),
        (len(name) + len(SUFFIX) > LONGEST, f"has too long a name: no room for {SUFFIX}"),
        (
            "multipath" in targets or device.uuid.startswith("mpath-"),
            f"is multipathd's, which would not look after its paths any more: {ELSE}",
        ),
        (device.uuid.startswith(LVM), why_not_into_volume(device, table, devices)),
        (kinds, f"is of kind {kinds}, of which there cannot be two for a moment: {ELSE}"),
    )
    return next((f"{name} {text}" for applies, text in reasons if applies and text), None)


def why_not_into_volume(device: Device, table: Table, devices: dict[str, Device]) -> str | None:
    """The same of a logical volume."""
    kinds = ", ".join(sorted({line.target for line in table} - LVM_TARGETS))
    if not LVM_VOLUME.fullmatch(device.uuid):
        return "is an inner part of a logical volume, which LVM moves and renames"
    if kinds:
        return f"is a logical volume of kind {kinds}, which LVM watches: {ELSE}"
    below = {number for line in table for number in re.findall(r"\b\d+:\d+\b", line.arguments)}
    if any(d.number in below and d.uuid.startswith(LVM) for d in devices.values()):
        return f"lies on inner parts of LVM (is a pvmove under way?): {ELSE}"
    return None


def why_not_for_lvm(device: Device, holders: list[str], kind: str) -> str | None:
    """A physical volume would be seen twice, or None."""
    if kind == "LVM2_member" or any(uuid.startswith(LVM) for uuid in holders):
        return (
            f"{device.name} is a physical volume of LVM, which would find it on the hidden"
            " device as well: limit its volumes, or put qos below it (--over, before LVM uses it)"
        )
    return None


def lies_on(one: Attached, number: str) -> bool:
    """Whether it does on the disk that has this number now: a disk that is gone may have had it."""
    return (sysfs(number) / "holders" / one.device.node).exists()


def holders_of(number: str) -> list[str]:
    """UUIDs of mapped devices that lie on a device."""
    found = []
    for path in (sysfs(number) / "holders").glob("dm-*/dm/uuid"):
        with contextlib.suppress(OSError):
            found.append(path.read_text(encoding="utf-8").strip())
    return found


def detach(mapper: Mapper, one: Attached, patience: float = TIMEOUT) -> None:
    """The way back."""
    if one.how == "by hand":
        raise QosError(f"{one.name} was not made by qosctl: dmsetup remove takes it away")
    check_idle(mapper, one.device, one.hidden)
    if one.hidden is None:
        if one.device.open:
            raise QosError(f"{one.name} is in use: unmount it, or what lies on it, first")
        try:
            mapper.remove(one.name)
        except MapperError as error:
            raise QosError(str(error)) from None
        return
    whole, below = mapper.table(one.name), mapper.table(one.hidden.name)
    if whole != one.table or len(whole) != 1 or one.hidden.open != 1:
        raise QosError(f"{one.name} is not as qosctl made it: somebody changed its table")
    if whole[0].length != sum(line.length for line in below):
        raise QosError(f"{one.name} and {one.hidden.name} differ in length: somebody changed them")
    with all_or_nothing() as steps:
        exchange(mapper, steps, one.device, below, whole, patience)
    try:
        mapper.remove(one.hidden.name, hidden=True)
    except MapperError as error:
        raise QosError(
            f"{one.name} is as before, but {one.hidden.name} could not be removed: {error}"
        ) from None


def attach_over(mapper: Mapper, path: str, number: str, name: str, limits: Limits) -> None:
    """A new device over all of another, which nobody uses."""
    if len(name) > LONGEST - len(OVER) or "/" in name or name in ("", ".", ".."):
        raise QosError(f"{name!r} cannot be a device's name")
    if name in mapper.devices():
        raise QosError(f"there is a device {name} already (--name)")
    read_only = read_number(number, "ro") == 1
    try:
        os.close(os.open(path, (os.O_RDONLY if read_only else os.O_RDWR) | os.O_EXCL))
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise QosError(
                f"{path} is in use (mounted, or something lies on it): qos can be put into a mapped"
                " device that is in use, but not under one that uses a disk"
            ) from None
        raise QosError(f"{path}: {error.strerror}") from None
    sectors = read_number(number, "size")
    if not sectors:
        raise QosError(f"{path} has no size")
    with all_or_nothing() as steps:
        steps.done(f"removing {name}", lambda: remove_if_there(mapper, name))
        line = make_line(sectors, number, limits)
        mapper.create(name, OVER + name, (line,), read_only, hidden=False)


def read_number(number: str, file: str) -> int:
    """A figure that the kernel shows of a block device."""
    try:
        return int((sysfs(number) / file).read_text())
    except (OSError, ValueError) as error:
        raise QosError(f"{number}: {error}") from None


def change(mapper: Mapper, one: Attached, values: dict[str, str], patience: float = TIMEOUT):
    """Other limits. A message changes them at once; another group needs another table."""
    limits = one.limits.changed(values)
    if not any(limits.values.get(key) != one.limits.values.get(key) for key in BY_TABLE):
        message = {key: parse_value(key, text) for key, text in values.items()}
        message = {key: value for key, value in message.items() if key not in BY_TABLE}
        if message:
            words = " ".join(f"{key} {value}" for key, value in message.items())
            with as_qos_error():
                mapper.message(one.name, f"set {words}")
        return
    check_idle(mapper, one.device, one.hidden)
    whole = mapper.table(one.name)
    if whole != one.table:
        raise QosError(f"{one.name} has other lines than those of qos: change its table by hand")
    table = tuple(with_limits(line, limits) for line in whole)
    with all_or_nothing() as steps:
        exchange(mapper, steps, one.device, table, whole, patience)


def with_limits(line: Line, limits: Limits) -> Line:
    """The same place with other limits."""
    device, offset, _ = parse_line(line)
    return make_line(line.length, device, limits, offset, line.start)


@contextlib.contextmanager
def as_qos_error() -> Iterator[None]:
    """Where nothing is to be undone."""
    try:
        yield
    except MapperError as error:
        raise QosError(str(error)) from None


@dataclasses.dataclass(frozen=True)
class Place:
    """What a user named: a mapped device, or another block device."""

    path: str
    number: str
    device: Device | None


def find_place(mapper: Mapper, text: str) -> Place:
    """A path, or the name of a mapped device. A name is a name, whatever it looks like."""
    devices = mapper.devices()
    if "/" not in text:
        if text in devices:
            device = devices[text]
            return Place(f"/dev/mapper/{text}", device.number, device)
        raise QosError(f"there is no mapped device {text} (a disk is named by its path)")
    try:
        found = pathlib.Path(text).stat()
    except OSError as error:
        raise QosError(f"{text}: {error.strerror}") from None
    if not stat.S_ISBLK(found.st_mode):
        raise QosError(f"{text} is no block device")
    number = f"{os.major(found.st_rdev)}:{os.minor(found.st_rdev)}"
    device = next((d for d in devices.values() if d.number == number), None)
    return Place(text, number, device)


def find_one(mapper: Mapper, text: str) -> Attached:
    """The qos device of this name or path, or the one that lies on what the path leads to."""
    attached = find_attached(mapper)
    place = find_place(mapper, text)
    if place.device and place.device.name in attached:
        return attached[place.device.name]
    over = [one for one in attached.values() if one.below == place.number]
    if len(over) == 1:
        return over[0]
    if over:
        names = ", ".join(sorted(one.name for one in over))
        raise QosError(f"on {text} there are several qos devices: {names}")
    raise QosError(f"{text} has no limits (qosctl attach)")
