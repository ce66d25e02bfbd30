# SPDX-License-Identifier: GPL-2.0
"""How long I/Os take at what lies below a qos device, by device mapper's own statistics.

They are there for mapped devices only: for what an attached device in use lies on, and not for a
disk. Each `qosctl top` has a region of its own, named by its process, for as long as it runs.
"""

import bisect
import contextlib
import itertools
import os
import pathlib

from .mapper import Mapper, MapperError

PROGRAM = "qosctl"
# Ends of the buckets in microseconds: two for each power of two, up to 16 s.
BOUNDS = [number << power for power in range(4, 24) for number in (2, 3)]
CREATE = (
    "@stats_create - /1 2 precise_timestamps"
    f" histogram:{','.join(str(bound * 1000) for bound in BOUNDS)} {PROGRAM}"
)


class Regions:
    """Statistics of mapped devices, from one look to the next."""

    def __init__(self, mapper: Mapper):
        self._mapper = mapper
        # By device; None: it has no such statistics.
        self._regions: dict[str, str | None] = {}

    def __enter__(self) -> "Regions":
        return self

    def __exit__(self, *_exc) -> None:
        for name, region in self._regions.items():
            if region is not None:
                self._delete(name, region)

    def take(self, names: set[str]) -> dict[str, list[int]]:
        """How many I/Os took how long since the last look, of those that were looked at before."""
        found = {}
        for name in sorted(names):
            if name not in self._regions:
                self._regions[name] = self._create(name)
                continue
            with contextlib.suppress(MapperError, ValueError, IndexError):
                if (region := self._regions[name]) is not None:
                    text = self._mapper.message(name, f"@stats_print_clear {region}")
                    found[name] = parse_region(text)
        # One of the same name that comes later is another one.
        for name in set(self._regions) - names:
            del self._regions[name]
        return found

    def _create(self, name: str) -> str | None:
        """A region of this process. Those of processes that were killed go."""
        with contextlib.suppress(MapperError):
            for line in self._mapper.message(name, f"@stats_list {PROGRAM}").splitlines():
                region, words = line.split(":", 1)[0], line.split()
                if len(words) > 4 and not pathlib.Path("/proc", words[4]).exists():
                    self._delete(name, region)
            return self._mapper.message(name, f"{CREATE} {os.getpid()}").strip()
        return None

    def _delete(self, name: str, region: str) -> None:
        # The device may have gone.
        with contextlib.suppress(MapperError):
            self._mapper.message(name, f"@stats_delete {region}")


def parse_region(text: str) -> list[int]:
    """The buckets of a region, which are the last word of its line."""
    counts = [int(word) for word in text.rsplit(maxsplit=1)[-1].split(":")]
    if len(counts) != len(BOUNDS) + 1:
        raise ValueError(f"{len(counts)} buckets")
    return counts


def percentile_ms(counts: list[int], part: float) -> float | None:
    """So large a part took no longer; within a bucket they are taken to be spread evenly."""
    sums = list(itertools.accumulate(counts))
    if not sums[-1]:
        return None
    wanted = part * sums[-1]
    place = bisect.bisect_left(sums, wanted)
    low = BOUNDS[place - 1] if place else 0
    high = BOUNDS[min(place, len(BOUNDS) - 1)]
    before = sums[place] - counts[place]
    return (low + (high - low) * (wanted - before) / counts[place]) / 1000
