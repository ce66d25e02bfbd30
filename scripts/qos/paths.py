# SPDX-License-Identifier: GPL-2.0
"""Paths of multipath devices, and their metrics, by what dmsetup and the kernel say of them."""

import contextlib
import dataclasses

from tooling.metrics import Family

from .live import DIRECTIONS
from .mapper import Line, Mapper, node_of, read_stat

# Selectors whose words for a path are understood here, by their beginning.
OURS = "round-robin"
SECTOR = 512
# In /sys/block/*/stat: I/Os and sectors of each direction.
COUNTERS = {"read": (0, 2), "write": (4, 6)}


@dataclasses.dataclass(frozen=True)
class Path:
    """One of them. None: its selector does not say."""

    number: str
    # Its priority group, from 1, and whether the I/O goes to that.
    group: int
    is_current: bool
    is_active: bool
    failures: int
    weight: int | None = None
    latency_us: int | None = None
    # Of the I/Os of its group, while all paths are in service.
    share: float | None = None


class Words:
    """Words of a line, one after the other."""

    def __init__(self, line: Line):
        self._left = line.arguments.split()[::-1]

    def take(self) -> str:
        """The next one."""
        return self._left.pop()

    def take_counted(self) -> list[str]:
        """As many as the next one says."""
        return [self.take() for _ in range(int(self.take()))]


@dataclasses.dataclass(frozen=True)
class Group:
    """What a table says of a priority group: its selector, and words for each path."""

    selector: str
    paths: dict[str, list[str]]


def parse_table(line: Line) -> list[Group]:
    """Its priority groups."""
    words, groups = Words(line), []
    words.take_counted()  # features
    words.take_counted()  # handler
    count = int(words.take())
    words.take()  # the group to begin with
    for _ in range(count):
        selector = words.take()
        words.take_counted()
        paths, arguments = int(words.take()), int(words.take())
        groups.append(
            Group(
                selector,
                {words.take(): [words.take() for _ in range(arguments)] for _ in range(paths)},
            )
        )
    return groups


def parse_status(line: Line, groups: list[Group]) -> list[Path]:
    """All paths, of groups as the table has them."""
    words, found = Words(line), []
    words.take_counted()
    words.take_counted()
    count, _next = int(words.take()), words.take()
    if count != len(groups):
        raise ValueError("the status is of another table")
    for index, group in enumerate(groups, 1):
        is_current = words.take() == "A"
        words.take_counted()
        paths, extra = int(words.take()), int(words.take())
        for _ in range(paths):
            number, state, failures = words.take(), words.take(), int(words.take())
            said = [words.take() for _ in range(extra)]
            found.append(
                Path(
                    number,
                    index,
                    is_current,
                    state == "A",
                    failures,
                    *figures_of(group, number, said),
                )
            )
    return found


def figures_of(group: Group, number: str, said: list[str]) -> tuple:
    """Weight, latency and share, of selectors that have them."""
    if not group.selector.startswith(OURS):
        return ()
    if len(said) == 3:
        weight, latency, percent = said
        return int(weight), int(latency) or None, float(percent) / 100
    given = group.paths.get(number)
    return (int(given[0]),) if given else ()


def take(mapper: Mapper) -> dict[str, list[Path]]:
    """Of all multipath devices."""
    devices = mapper.devices()
    tables = mapper.tables("multipath", devices)
    statuses = mapper.statuses("multipath", devices)
    found = {}
    for name, lines in sorted(tables.items()):
        # The trouble of one is its own: it may have gone, or have been given another table.
        with contextlib.suppress(KeyError, IndexError, ValueError):
            found[name] = parse_status(statuses[name][0], parse_table(lines[0]))
    return found


def families_of(mapper: Mapper) -> list[Family]:
    """What is known of each path, and its counters, whoever uses it."""
    way = ("device", "group", "path")
    prefix = "ferrule_path"
    active = Family(f"{prefix}_active", "Whether the path is in service.", way)
    current = Family(f"{prefix}_current", "Whether I/O goes to the path's group.", way)
    failures = Family(f"{prefix}_failures_total", "How often the path failed.", way)
    weight = Family(f"{prefix}_weight", "The path's own weight, as its table has it.", way)
    latency = Family(
        f"{prefix}_latency_seconds", "What an I/O takes on the path, by its selector.", way
    )
    share = Family(f"{prefix}_share_ratio", "What the path is to have of its group's I/Os.", way)
    ios = Family(f"{prefix}_ios_total", "I/Os of the path's disk.", (*way, "direction"))
    size = Family(f"{prefix}_bytes_total", "Bytes of the path's disk.", (*way, "direction"))
    for device, paths in take(mapper).items():
        for path in paths:
            labels = (device, str(path.group), node_of(path.number))
            active.add(*labels, value=path.is_active)
            current.add(*labels, value=path.is_current)
            failures.add(*labels, value=path.failures)
            weight.add(*labels, value=path.weight)
            latency.add(*labels, value=None if path.latency_us is None else path.latency_us / 1e6)
            share.add(*labels, value=path.share)
            counters = read_stat(path.number)
            for direction in DIRECTIONS if counters else ():
                count, sectors = COUNTERS[direction]
                ios.add(*labels, direction, value=counters[count])
                size.add(*labels, direction, value=counters[sectors] * SECTOR)
    return [active, current, failures, weight, latency, share, ios, size]
