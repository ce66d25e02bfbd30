# SPDX-License-Identifier: GPL-2.0
"""What the page says first, and what others have claimed: where the figures for it are."""

import dataclasses
import re

from benchmarks.results import OPERATORS, number

from .documents import Benchmarks, Result

RELATIONS = {">=": "at least", "<=": "at most"}


@dataclasses.dataclass(frozen=True)
class Source:
    """A metric: the first of a benchmark whose name matches, beside that peer."""

    benchmark: str
    metric: str
    peer: str | None

    def find(self, benchmarks: Benchmarks) -> Result | str:
        """The result, or why there is none."""
        document = benchmarks.measured.get(self.benchmark)
        if document is None:
            return f"not measured: make bench B={self.benchmark}"
        for result in document.results:
            if re.search(self.metric, result.metric) and self.peer in (None, result.peer_name):
                return result
        return f"not in the run of {document.date}: make bench B={self.benchmark}"


@dataclasses.dataclass(frozen=True)
class Headline:
    """A ratio of the first screen; `text` goes on after "3.66 times" or "0.28 of"."""

    text: str
    source: Source


@dataclasses.dataclass(frozen=True)
class Claim:
    """What the article says, as a bound on a ratio or a figure, and what is measured for it."""

    claim: str
    of: str
    relation: str
    bound: float
    unit: str
    measured: str
    source: Source

    @property
    def bound_text(self) -> str:
        """Such as at least 2.33 times."""
        return f"{RELATIONS[self.relation]} {self.bound:g} {self.unit}"

    def judge(self, result: Result) -> tuple[str, str]:
        """What was measured, and whether that is what is claimed."""
        value = result.ratio if self.of == "ratio" else result.ferrule
        if value is None:
            return result.note or "", "could not be measured"
        if self.of == "ratio":
            text = f"{result.ratio_text} {self.unit} ({result.spread_text})"
        else:
            text = f"{value:.6g} {self.unit}"
            if result.peer is not None:
                text += f" ({result.peer_name}: {number(result.peer)})"
        reached = OPERATORS[self.relation](value, self.bound)
        return text, "reached" if reached else "not reached"


IO_LIMITS, PATHS, MEMORY = "Limits for I/O", "Several paths to a disk", "Memory"

HEADLINES = {
    MEMORY: (
        Headline(
            "the speed of the C driver, when a guest gives memory by blocks",
            Source("balloon", r"^inflation by blocks, untouched$", "C driver"),
        ),
        Headline(
            "the speed of the C driver, when the guest has it back",
            Source("balloon", r"^deflation by blocks, untouched$", "C driver"),
        ),
        Headline(
            "the use of a host's memory, against guests of fixed size",
            Source("consolidate", r"^memory used", None),
        ),
    ),
    IO_LIMITS: (
        Headline(
            "the deviation of latency that iocost leaves a reader beside writers",
            Source("noisy", r"^standard deviation: qos, group$", "iocost"),
        ),
        Headline(
            "what io.max adds to an I/O that all limits let pass",
            Source("qos", r"^what all six keys not reached adds", None),
        ),
        Headline(
            "the CPU time of an I/O that waits under io.max on dm-linear",
            Source("qos", r"^CPU time per held read", "io.max on dm-linear"),
        ),
    ),
    PATHS: (
        Headline(
            "the IOPS of one iSCSI link, with four",
            Source("iscsi", r"^random 4 KiB and 64 KiB", "one path"),
        ),
        Headline(
            "the mean latency of one iSCSI link, with four",
            Source("iscsi", r"^mean latency", "one path"),
        ),
        Headline(
            "the instructions of the C round-robin to select one of four paths",
            Source("mpath", r"^of which the selector, 4 paths$", "round-robin"),
        ),
    ),
}

# A practitioners' article on memory and storage virtualisation of servers, published in 2025.
# Its figures are those of others' machines; what counts here is by how much.
CLAIMS = (
    Claim(
        "A balloon driver brings the memory utilisation of a private cloud from 65 % to 89 %",
        "ferrule",
        ">=",
        0.89,
        "of the memory",
        "what guests use of a budget of memory, under balloonctl auto",
        Source("consolidate", r"^memory used", None),
    ),
    Claim(
        "while critical guests keep their service level",
        "ferrule",
        ">=",
        99.99,
        "%",
        "their requests within the objective meanwhile",
        Source("consolidate", r"^requests within", None),
    ),
    Claim(
        "Multipath iSCSI brings 12,000 IOPS to 28,000",
        "ratio",
        ">=",
        2.33,
        "times",
        "four links by one",
        Source("iscsi", r"^random 4 KiB and 64 KiB", "one path"),
    ),
    Claim(
        "and the mean latency from 8 ms to 3 ms",
        "ratio",
        "<=",
        0.375,
        "of it",
        "four links by one",
        Source("iscsi", r"^mean latency", "one path"),
    ),
    Claim(
        "QoS brings the standard deviation of transactions' latency from 12 ms to 3 ms",
        "ratio",
        "<=",
        0.25,
        "of it",
        "a reader beside four writers, in a dm-qos group by without",
        Source("noisy", r"^standard deviation: qos, group$", "no qos"),
    ),
    Claim(
        "with 99.99 % availability",
        "ferrule",
        ">=",
        99.99,
        "%",
        "its reads within the objective",
        Source("noisy", r"^reads within .*: qos, group$", "no qos"),
    ),
)
