# SPDX-License-Identifier: GPL-2.0
"""What qos devices do just now: samples, what lies between two of them, and why I/O waits."""

import contextlib
import dataclasses
import re
import time

from .latency import percentile_ms
from .limits import Limits, parse_status
from .mapper import Mapper, MapperError, read_stat
from .moves import Attached, attached_among

# Of a limit, this part and more is at the limit.
NEAR = 0.9
# A disk that takes longer than this is named as slow when nothing waits here.
SLOW_MS = 20
DIRECTIONS = ("read", "write")


@dataclasses.dataclass(frozen=True)
class Disk:
    """Counters of the device below, whoever uses it: /sys/block/*/stat."""

    ios: int
    ticks_ms: int
    in_flight: int


@dataclasses.dataclass(frozen=True)
class Sample:
    """A qos device at a moment."""

    at: float
    one: Attached
    status: dict[str, int | str]
    disk: Disk | None
    # Of its I/Os, those that have left and not come back.
    in_flight: int | None
    # What it lies on, if that is a mapped device.
    below: str | None = None

    def number(self, field: str) -> int:
        """A counter; 0 if the module does not have it."""
        value = self.status.get(field, 0)
        return value if isinstance(value, int) else 0

    @property
    def held(self) -> int:
        """How many wait now."""
        return sum(self.number(f"{way}_held") for way in DIRECTIONS)


def read_disk(number: str) -> Disk | None:
    """Of the device below; None: not known."""
    words = read_stat(number)
    if not words or len(words) < 11:
        return None
    return Disk(words[0] + words[4], words[3] + words[7], words[8])


def take(mapper: Mapper) -> dict[str, Sample]:
    """All qos devices."""
    devices = mapper.devices()
    attached = attached_among(mapper, devices)
    statuses = mapper.statuses("qos", attached)
    names = {device.number: device.name for device in devices.values()}
    found = {}
    for name, one in sorted(attached.items()):
        if name not in statuses:
            continue  # it has just gone
        own = read_disk(one.device.number)
        found[name] = Sample(
            time.monotonic(),
            one,
            parse_status(statuses[name][0]),
            read_disk(one.below),
            own.in_flight if own else None,
            names.get(one.below),
        )
    return found


# How many bios were held how long, in microseconds: from, to, how many.
Held = list[tuple[int, int, int]]


def histograms(mapper: Mapper, samples: dict[str, Sample]) -> dict[str, dict[str, Held]]:
    """How long bios were held since the last reset, by device and direction."""
    found = {}
    for name in samples:
        # It may have gone.
        with contextlib.suppress(MapperError):
            found[name] = parse_histogram(mapper.message(name, "histogram"))
    return found


def parse_histogram(text: str) -> dict[str, Held]:
    """What the message `histogram` prints."""
    fields = dict(re.findall(r"(\w+)_hold_us=(\S*)", text))
    return {
        way: [tuple(map(int, part)) for part in re.findall(r"(\d+)-(\d+):(\d+)", counts)]
        for way, counts in fields.items()
    }


@dataclasses.dataclass(frozen=True)
class Rates:
    """What lies between two samples of a device; None: not known."""

    last: Sample
    read_iops: float
    write_iops: float
    read_bps: float
    write_bps: float
    # Mean time at the disk below in milliseconds, of all who use it.
    disk_ms: float | None
    # The same: median and 99th percentile.
    disk_p50_ms: float | None = None
    disk_p99_ms: float | None = None
    # Of the I/Os of its group.
    share: float | None = None
    missed: int = 0

    @property
    def iops(self) -> float:
        """Both directions."""
        return self.read_iops + self.write_iops

    @property
    def bps(self) -> float:
        """Both directions."""
        return self.read_bps + self.write_bps

    def value(self, key: str) -> float:
        """What a limit of this key is for."""
        return getattr(self, key)


def between(first: Sample, last: Sample) -> Rates:
    """Rates. Counters that were reset meanwhile count from 0."""
    seconds = max(last.at - first.at, 1e-3)

    def grown(field):
        now, then = last.number(field), first.number(field)
        return now - then if now >= then else now

    disk = None
    if first.disk and last.disk and last.disk.ios > first.disk.ios:
        disk = (last.disk.ticks_ms - first.disk.ticks_ms) / (last.disk.ios - first.disk.ios)
    rates = {
        f"{way}_{what}ps": grown(f"{way}_{field}") / seconds
        for way in DIRECTIONS
        for what, field in (("io", "ios"), ("b", "bytes"))
    }
    return Rates(last, disk_ms=disk, missed=grown("reserve_missed"), **rates)


def all_between(
    first: dict[str, Sample],
    last: dict[str, Sample],
    took: dict[str, list[int]] | None = None,
) -> dict[str, Rates]:
    """Of all devices that are in both, with their shares; `took` is how long I/Os took at what lies
    below, by that device.
    """
    found = {name: between(first[name], last[name]) for name in last if name in first}
    for name, rates in found.items():
        if counts := (took or {}).get(rates.last.below):
            p50, p99 = (percentile_ms(counts, part) for part in (0.5, 0.99))
            found[name] = dataclasses.replace(rates, disk_p50_ms=p50, disk_p99_ms=p99)
    totals: dict[str, float] = {}
    for rates in found.values():
        group = rates.last.one.limits.values.get("group")
        if group:
            totals[group] = totals.get(group, 0) + rates.iops
    for name, rates in found.items():
        total = totals.get(rates.last.one.limits.values.get("group", ""), 0)
        if total:
            found[name] = dataclasses.replace(rates, share=rates.iops / total)
    return found


def row_of(rates: Rates) -> dict:
    """What --json prints of a device and an interval."""
    last, limits = rates.last, rates.last.one.limits
    return {
        "device": last.one.name,
        "group": limits.values.get("group"),
        "limits": limits.values,
        "read_iops": round(rates.read_iops, 1),
        "write_iops": round(rates.write_iops, 1),
        "read_bytes_per_second": round(rates.read_bps),
        "write_bytes_per_second": round(rates.write_bps),
        "held": last.held,
        "in_flight": last.in_flight,
        "hold_p50_us": {way: last.status.get(f"{way}_hold_p50_us") for way in DIRECTIONS},
        "hold_p99_us": {way: last.status.get(f"{way}_hold_p99_us") for way in DIRECTIONS},
        **{
            f"disk_{what}_ms": None if value is None else round(value, 3)
            for what, value in (
                ("mean", rates.disk_ms),
                ("p50", rates.disk_p50_ms),
                ("p99", rates.disk_p99_ms),
            )
        },
        "reservation": last.status.get("reservation"),
        "missed": rates.missed,
        "share": None if rates.share is None else round(rates.share, 4),
    }


def limits_reached(limits: Limits, rates: Rates) -> list[str]:
    """Of its own limits, those that it is at."""
    keys = ("iops", "read_iops", "write_iops", "bps", "read_bps", "write_bps")
    used = {key: rates.value(key) / limits.number(key) for key in keys if limits.number(key)}
    reached = [key for key, part in used.items() if part >= NEAR]
    if reached or not rates.iops or "group" in limits.values or limits.number("io_size"):
        return reached
    # Nothing else could hold it: in a short time less may pass than the limit.
    return sorted(used, key=used.get)[-1:]


def why(rates: Rates, members: list[Rates]) -> str:
    """What holds its I/O, in a sentence. `members` are all of its group, itself too."""
    last = rates.last
    limits = last.one.limits
    name, held = last.one.name, last.held
    if not held:
        return why_not_held(rates)
    waits = f"{name}: {held} I/Os wait"
    if reached := limits_reached(limits, rates):
        said = [f"{key} {limits.number(key)} ({rates.value(key):.0f} pass)" for key in reached]
        return f"{waits} for its own limit: {', '.join(said)}."
    if text := why_in_group(rates, members):
        return f"{waits} for {text}."
    if not rates.iops and last.in_flight:
        return f"{waits}, and of {last.in_flight} below none has come back: the disk hangs."
    if limits.number("io_size"):
        return f"{waits}, probably for its own limit: with io_size an I/O counts more than once."
    return f"{waits}; which limit it is cannot be told from what passed in this time."


def why_in_group(rates: Rates, members: list[Rates]) -> str | None:
    """What of its group it waits for, or None."""
    limits = rates.last.one.limits
    group = limits.values.get("group")
    for key in ("iops", "bps"):
        capacity, used = limits.number(f"group_{key}"), sum(m.value(key) for m in members)
        if capacity and used >= NEAR * capacity:
            return (
                f"the capacity of group {group}: group_{key} {capacity}, of which {used:.0f} are"
                f" used by {len(members)} members, {rates.value(key):.0f} by it"
            )
    depth, below = limits.number("group_depth"), sum(m.last.in_flight or 0 for m in members)
    if not depth or below < NEAR * depth:
        return None
    text = f"the depth of group {group}: {below} of {depth} I/Os are below"
    return text if rates.disk_ms is None else f"{text}, where one takes {rates.disk_ms:.1f} ms"


def why_not_held(rates: Rates) -> str:
    """Nothing waits here."""
    name, last = rates.last.one.name, rates.last
    if not rates.iops and not last.in_flight:
        return f"{name}: nothing waits, and nobody asks for anything."
    if not rates.iops:
        return f"{name}: nothing waits here; {last.in_flight} I/Os are below, none has come back."
    if rates.disk_ms is not None and rates.disk_ms >= SLOW_MS:
        return f"{name}: nothing waits here; the disk is slow: an I/O takes {rates.disk_ms:.1f} ms."
    return f"{name}: nothing waits; {rates.iops:.0f} I/Os per second pass."


def why_of(name: str, first: dict[str, Sample], last: dict[str, Sample]) -> str | None:
    """The same of all that was sampled; None if the device has gone."""
    rates = all_between(first, last)
    if name not in rates:
        return None
    group = rates[name].last.one.limits.values.get("group")
    members = [
        r for r in rates.values() if group and r.last.one.limits.values.get("group") == group
    ]
    return why(rates[name], members)


def wait_until(deadline: float) -> None:
    """Sleep, however long the round before took."""
    time.sleep(max(0, deadline - time.monotonic()))
