# SPDX-License-Identifier: GPL-2.0
"""Who is short of memory, whatever is said to be available: guests by what they read again, the
host by what its processes wait for.
"""

import dataclasses
import pathlib
import re
import statistics

from tooling.sizes import MIB, PAGE

from .policy import PARTS
from .vms import State

# Of these a guest in peace has next to none: pages that come back from swap, and pages of files
# that are mapped; allocations that have to wait until something is dropped.
COUNTS = ("major-faults", "alloc-stalls", "direct-reclaims")
# A guest has no statistics of what it reads from its disks, but its QEMU has. With this much free,
# or this part of what it has, it finds room for that.
ROOM, ROOM_PART = 96 * MIB, 8
# So many in a second are no start of a program.
MANY = 100
# In so many samples in a row.
IN_A_ROW = 2
# More memory has helped if no more than this percentage of them is left. That is looked at when it
# has got no more in so many samples, or in so many got nothing.
HELPED, SETTLED, LATEST, PATIENCE = 75, 6, 3, 16
# It is given so many steps at first, and twice as many each time that this was no help.
REACH = 4
# What it does at any size is no want of memory, as long as it is not this percentage of that.
OWN = 150
# So many samples without it, and what was learnt is given up, a hundredth of the memory each, if
# somebody wants it. Each time that this turns out to be wrong it takes twice as long.
CALM, CALM_MOST = 24, 24 << 6
# What more memory did not help against is not tried again for so many samples, at first.
BELIEVED = 4 * CALM


@dataclasses.dataclass
class Trial:
    """A guest gets more, to see whether that helps."""

    # What it had in a second before.
    before: float
    # What had been learnt, what the guest had, what is to help, and the most that it has had since.
    learnt: int
    start: int
    goal: int
    size: int
    # What it had in a second, in each sample since there was no more for it.
    rates: list[float] = dataclasses.field(default_factory=list)

    def look(self, rate: float, size: int) -> None:
        """A sample."""
        if size > self.size and self.size < self.goal:
            self.rates.clear()
        else:
            self.rates.append(rate)
        self.size = max(self.size, size)

    def is_over(self, step: int) -> bool:
        """No more has come for a while. If there was nothing to be had, that is a longer while."""
        enough = self.size >= min(self.goal, self.start + step)
        return len(self.rates) >= (SETTLED if enough else PATIENCE)

    @property
    def after(self) -> float:
        """What is left in a second, in the latest samples: the first may have filled a cache."""
        return statistics.fmean(self.rates[-LATEST:])

    @property
    def helped(self) -> bool:
        """It would have been in want without."""
        return 100 * self.after <= HELPED * self.before


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
    # What of that was given up, and had been learnt before.
    given_up: int = 0
    trial: Trial | None = None
    # What it has in a second at any size; for how many samples that is believed, and was before.
    own: float = 0
    believed: int = 0
    patience: int = BELIEVED
    # How many steps it may get until that has to have helped.
    reach: int = REACH

    def look(self, state: State, step: int, wanted: bool = True, spare: int | None = None) -> None:
        """New statistics. `wanted`: somebody lacks memory. `spare` is how much more it may be given
        to see whether that helps.
        """
        rate = self.rate(state)
        if rate is None:
            return
        if self.believed and not self.trial:
            self.believed -= 1
            self.own = self.own if self.believed else 0
        if rate >= MANY + self.own * OWN / 100:
            self.bad, self.good = self.bad + 1, 0
        else:
            self.bad, self.good = 0, self.good + 1
        if self.trial:
            self.follow(rate, state, step)
        if self.thrashes:
            self.ask_for_more(rate, state, step, spare)
        elif self.good > self.calm and self.learnt and wanted:
            self.given_up = self.given_up or self.learnt
            self.learnt = max(0, self.learnt - state.maximum // 100)

    def rate(self, state: State) -> float | None:
        """What it had most of in a second. None: it reads from its disks, and has room for that, so
        nothing can be told until that is full. Counters that went back are those of a guest that
        was booted anew.
        """
        counts = {name: state.stats[name] for name in COUNTS if name in state.stats}
        if "swap-in" in state.stats:
            counts["swap-in"] = state.stats["swap-in"] // PAGE
        if state.disk_read is not None:
            counts["disk reads"] = state.disk_read // PAGE
        seconds, before = state.updated - self.at, self.counts
        since, self.at, self.counts = self.at, state.updated, counts
        if not since or seconds <= 0:
            return 0
        known = before.keys() & counts.keys()
        grown = {name: (counts[name] - before[name]) / seconds for name in known}
        read = grown.pop("disk reads", 0)
        others = max(grown.values(), default=0)
        has_room = state.stats.get("free-memory", 0) > max(ROOM, state.actual // ROOM_PART)
        if has_room and read >= MANY > others:
            return None
        return others if has_room else max(read, others)

    def ask_for_more(self, rate: float, state: State, step: int, spare: int | None) -> None:
        """It thrashes."""
        if self.trial is None:
            if state.actual + 3 * step // 2 > state.maximum:
                # It has nearly all of its memory.
                self.believe(rate)
                return
            more = self.reach * step
            goal = min(state.maximum, state.actual + (more if spare is None else min(spare, more)))
            self.trial = Trial(rate, self.learnt, state.actual, goal, state.actual)
        if self.given_up:
            # It did need that.
            self.calm = min(CALM_MOST, 2 * self.calm)
            self.learnt, self.given_up = max(self.learnt, self.given_up), 0
            self.trial.learnt = self.learnt
            self.trial.goal = max(self.trial.goal, self.learnt)
        self.learnt = max(self.learnt, min(self.trial.goal, state.actual + step))

    def follow(self, rate: float, state: State, step: int) -> None:
        """Whether more memory helps."""
        self.trial.look(rate, state.actual)
        if not self.bad:
            # Its fair share may have been more than was asked for.
            self.learnt, self.trial = max(self.learnt, state.actual), None
        elif self.trial.is_over(step):
            if self.trial.helped:
                self.learnt = max(self.learnt, state.actual)
            else:
                self.learnt = self.trial.learnt
                self.believe(self.trial.after)
                self.patience = min(CALM_MOST, 2 * self.patience)
                self.reach *= 2
            self.trial = None

    def believe(self, rate: float) -> None:
        """That is not for want of memory."""
        self.own, self.believed, self.bad = rate, self.patience, 0

    @property
    def confirmed(self) -> int:
        """What was learnt, without what is being tried."""
        return self.trial.learnt if self.trial else self.learnt

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
