# SPDX-License-Identifier: GPL-2.0
"""Who is short of memory, whatever is said to be available: guests by what they read again, the
host by what its processes wait for.
"""

import dataclasses
import pathlib
import re

from .policy import MIB, PARTS
from .vms import State

PAGE = 4096
# Of these a guest in peace has next to none: pages that come back from swap, and pages of files
# that are mapped; allocations that have to wait until something is dropped.
COUNTS = ("major-faults", "alloc-stalls", "direct-reclaims")
# So many in a second are no start of a program.
MANY = 100
# In so many samples in a row.
IN_A_ROW = 2
# So many samples without it, and what was learnt is given up, a hundredth of the memory each. Each
# time that this turns out to be wrong it takes twice as long.
CALM, CALM_MOST = 24, 24 << 6


@dataclasses.dataclass
class Watch:
    """What is remembered of a guest's counters."""

    at: int = 0
    counts: dict[str, int] = dataclasses.field(default_factory=dict)
    # Samples in a row in which there were many.
    bad: int = 0
    good: int = 0
    # It is not to have less than this: with less it thrashed.
    learnt: int = 0
    calm: int = CALM
    # Something of that was given up.
    tried: bool = False

    def look(self, state: State, step: int) -> None:
        """New statistics. Counters that went back are those of a guest that was booted anew."""
        counts = {name: state.stats[name] for name in COUNTS if name in state.stats}
        if "swap-in" in state.stats:
            counts["swap-in"] = state.stats["swap-in"] // PAGE
        seconds = state.updated - self.at
        known = self.counts.keys() & counts.keys()
        grown = max((counts[name] - self.counts[name] for name in known), default=0)
        if self.at and seconds > 0 and grown >= MANY * seconds:
            self.bad, self.good = self.bad + 1, 0
        else:
            self.bad, self.good = 0, self.good + 1
        self.at, self.counts = state.updated, counts
        if self.thrashes:
            if self.tried:
                self.calm, self.tried = min(CALM_MOST, 2 * self.calm), False
            self.learnt = min(state.maximum, max(self.learnt, state.actual + step))
        elif self.good > self.calm and self.learnt:
            self.tried = True
            self.learnt = max(0, self.learnt - state.maximum // 100)

    @property
    def rises(self) -> bool:
        """Nothing is to be taken from it now."""
        return self.bad > 0

    @property
    def thrashes(self) -> bool:
        """It needs more."""
        return self.bad >= IN_A_ROW


class HostUnknown(Exception):
    """The host's memory cannot be seen."""


@dataclasses.dataclass(frozen=True)
class Host:
    """The host's memory."""

    total: int
    available: int
    # Of the last ten seconds, in which part some process waited for memory, in ten thousandths.
    waiting: int

    @classmethod
    def read(cls, proc: pathlib.Path = pathlib.Path("/proc")) -> "Host":
        """As it is now. Without PSI nobody is known to wait."""
        try:
            memory = (proc / "meminfo").read_text(encoding="ascii")
        except OSError as error:
            raise HostUnknown(f"{proc}/meminfo: {error.strerror}") from None
        sizes = {
            name: int(kib) * 1024 for name, kib in re.findall(r"^(\w+): +(\d+) kB", memory, re.M)
        }
        try:
            pressure = (proc / "pressure/memory").read_text(encoding="ascii")
        except OSError:
            pressure = ""
        waiting = re.search(r"^some avg10=([\d.]+)", pressure, re.M)
        return cls(
            sizes["MemTotal"],
            sizes["MemAvailable"],
            round(float(waiting[1]) * 100) if waiting else 0,
        )

    def budget(self, held: int, reserve: int, most_waiting: int) -> int:
        """What guests that hold so much may have: the host keeps a reserve (in ten thousandths of
        its memory), and takes a fiftieth of its memory back while processes wait for it.
        """
        budget = held + self.available - self.total * reserve // PARTS
        if self.waiting >= most_waiting:
            budget = min(budget, held - self.total // 50)
        return max(MIB, budget // MIB * MIB)
