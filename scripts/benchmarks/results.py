# SPDX-License-Identifier: GPL-2.0
"""What a benchmark measured, and whether that meets its goals."""

import contextlib
import dataclasses
import datetime
import json
import operator
import os
import pathlib
import platform
import re
import statistics
import subprocess
import time
from collections.abc import Iterator

import vm
from rich.console import Console
from rich.table import Table

OUT = vm.ROOT / "out" / "bench"
OPERATORS = {"<=": operator.le, "<": operator.lt, ">=": operator.ge, ">": operator.gt}
# Which way a ratio is good, where the unit says it.
BETTER = dict.fromkeys(("instructions", "ns", "us", "ms", "s"), "less")
BETTER |= dict.fromkeys(("IOPS", "MiB/s", "GiB/s", "1/s"), "more")


class BenchmarkError(Exception):
    """Something that was to be measured could not be."""


@dataclasses.dataclass(frozen=True)
class Goal:
    """A bound on a metric's ratio to its peer, or on its own figure."""

    of: str
    relation: str
    bound: float

    def __str__(self) -> str:
        return f"{self.of} {self.relation} {self.bound:g}"


@dataclasses.dataclass
class Metric:
    """One line of the result: samples of ours and of a peer. Their medians are what counts.

    `paired`: they were taken in turn on a machine that has other work too, so the ratio is the
    median of the pairs' ratios.
    """

    metric: str
    unit: str
    ferrule: list[float]
    peer: list[float]
    peer_name: str | None
    goal: Goal | None
    note: str | None
    paired: bool
    better: str

    def figures(self) -> dict:
        """The medians, ours by the peer's, and from what to what that is."""
        ferrule = statistics.median(self.ferrule) if self.ferrule else None
        peer = statistics.median(self.peer) if self.peer else None
        ratio = ferrule / peer if ferrule is not None and peer else None
        spread = None
        if ratio is not None and self.paired:
            ratios = [ours / theirs for ours, theirs in zip(self.ferrule, self.peer, strict=True)]
            ratio = statistics.median(ratios)
            if len(ratios) > 1:
                spread = [min(ratios), max(ratios)]
        elif ratio is not None and len(self.ferrule + self.peer) > 2 and min(self.peer) > 0:
            # Nothing says which sample belongs to which, so the widest that they allow.
            spread = [min(self.ferrule) / max(self.peer), max(self.ferrule) / min(self.peer)]
        return {"ferrule": ferrule, "peer": peer, "ratio": ratio, "spread": spread}

    def met(self) -> bool | None:
        """Whether the goal is met. None: there is none. What could not be measured is not met."""
        if self.goal is None:
            return None
        value = self.figures()[self.goal.of]
        return value is not None and OPERATORS[self.goal.relation](value, self.goal.bound)

    def as_dict(self) -> dict:
        """As in out/bench/NAME.json."""
        result = {"metric": self.metric, "unit": self.unit, **self.figures()}
        result |= {
            "peer_name": self.peer_name,
            "goal": str(self.goal) if self.goal else None,
            "met": self.met(),
            "better": self.better,
            "samples": {"ferrule": self.ferrule, "peer": self.peer},
        }
        if self.note:
            result["note"] = self.note
        return result


@dataclasses.dataclass(frozen=True)
class Series:
    """Something to draw, beside the metrics: points (x, y) of each of `lines`, by name.

    x is a number, or for points that have no order a word. `bound` is a value of y to compare
    with, `log` the axes that are logarithmic: "x", "y" or "xy".
    """

    title: str
    x: str
    y: str
    lines: dict[str, list[tuple[float | str, float]]]
    bound: float | None = None
    log: str = ""


class Results:
    """The metrics of one benchmark, the guests that it uses, and what they ran on."""

    def __init__(self, name: str, kdir: pathlib.Path, console: Console):
        self.name = name
        self.kdir = kdir
        self.console = console
        self.metrics: list[Metric] = []
        self.drawn: list[Series] = []
        self._started = time.monotonic()
        self.machine = {
            "cpu": cpu_model(),
            "cores": os.cpu_count(),
            "memory": memory_size(),
            "qemu": qemu_version(),
            **built_by(kdir),
            "commit": commit(),
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "guests": [],
        }

    def say(self, text: str) -> None:
        """A progress line."""
        self.console.print(f"== {self.name}: {text}", highlight=False, markup=False)

    def add(
        self,
        metric: str,
        unit: str,
        ferrule: list[float] | None,
        *,
        peer: list[float] | None = None,
        peer_name: str | None = None,
        goal: Goal | None = None,
        note: str | None = None,
        paired: bool = False,
        better: str | None = None,
    ) -> None:
        """One metric. `ferrule` is None when it could not be measured; `note` says why.

        `better` is "less", "more" or, where neither is, "": if not as the unit has it.
        """
        if better is None:
            better = BETTER.get(unit, "")
        self.metrics.append(
            Metric(metric, unit, ferrule or [], peer or [], peer_name, goal, note, paired, better)
        )

    def series(self, title: str, x: str, y: str, lines: dict[str, list[tuple]], **options) -> None:
        """Something to draw, see Series."""
        self.drawn.append(Series(title, x, y, lines, **options))

    @contextlib.contextmanager
    def guest(self, what: str, options: vm.Options) -> Iterator[vm.Guest]:
        """A guest whose kernel log has to be clean in the end."""
        options.kdir = options.kdir or self.kdir
        options.log = OUT / f"{self.name}-{len(self.machine['guests']) + 1}.log"
        if options.icount or any("-icount" in words for words in options.qemu_opts):
            runs = "1 CPU, TCG with icount: a nanosecond of guest time is an instruction"
        elif options.kernel in vm.UML:
            runs = f"{options.cpus} CPUs, user-mode Linux ({options.kernel}): no emulation"
        else:
            accelerator = "KVM" if vm.kvm_works(self.kdir / "arch/x86/boot/bzImage") else "TCG"
            runs = f"{options.cpus} CPUs, {accelerator}"
        self.machine["guests"].append(f"{what}: {runs}")
        self.say(f"booting a guest for {what} ({runs})")
        with vm.Guest(options) as guest:
            self.machine.setdefault("kernel", guest.check("uname -r").strip())
            yield guest
            wrong = guest.check_log()
        if wrong:
            raise BenchmarkError("the guest's kernel log says:\n" + "\n".join(wrong))

    def write(self) -> pathlib.Path:
        """out/bench/NAME.json"""
        path = OUT / f"{self.name}.json"
        self.machine["minutes"] = round((time.monotonic() - self._started) / 60, 1)
        document = {
            "benchmark": self.name,
            "machine": self.machine,
            "results": [metric.as_dict() for metric in self.metrics],
            "series": [dataclasses.asdict(series) for series in self.drawn],
        }
        path.write_text(json.dumps(document, indent=2) + "\n")
        return path

    def show(self) -> None:
        """A table for people."""
        table = Table(title=self.name, title_justify="left")
        for heading in ("metric", "unit"):
            table.add_column(heading)
        table.add_column("Ferrule", justify="right")
        table.add_column("peer", justify="right")
        table.add_column("", no_wrap=False)
        table.add_column("ratio", justify="right")
        for heading in ("goal", ""):
            table.add_column(heading)
        for metric in self.metrics:
            figures = metric.figures()
            table.add_row(
                metric.metric,
                metric.unit,
                number(figures["ferrule"]),
                number(figures["peer"]),
                metric.peer_name or "",
                "" if figures["ratio"] is None else f"{figures['ratio']:.3f}",
                str(metric.goal or ""),
                {None: "", True: "met", False: "MISSED"}[metric.met()],
            )
        self.console.print(table)
        for note in dict.fromkeys(metric.note for metric in self.metrics if metric.note):
            self.console.print(f"   {note}", highlight=False, markup=False)
        machine = ", ".join(f"{k} {v}" for k, v in self.machine.items() if k != "guests")
        for line in (machine, *self.machine["guests"]):
            self.console.print(f"   {line}", highlight=False, markup=False)


def number(value: float | None) -> str:
    """Four digits or so."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def cpu_model() -> str:
    """What the host calls its CPU."""
    model = re.search(r"^model name\s*: (.*)$", pathlib.Path("/proc/cpuinfo").read_text(), re.M)
    return model[1] if model else platform.machine()


def memory_size() -> str:
    """Of the host."""
    return f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / (1 << 30):.0f} GiB"


def built_by(kdir: pathlib.Path) -> dict[str, str]:
    """The compilers of the kernel, which are also those of the modules."""
    config = kdir / ".config"
    text = config.read_text() if config.exists() else ""
    names = {"rustc": "RUSTC_VERSION_TEXT", "clang": "CC_VERSION_TEXT"}
    found = {name: re.search(rf'^CONFIG_{key}="(.*)"$', text, re.M) for name, key in names.items()}
    return {name: match[1] for name, match in found.items() if match}


def commit() -> str | None:
    """What is measured, and whether it was changed since."""
    command = ["git", "-C", str(vm.ROOT), "describe", "--always", "--dirty", "--abbrev=12"]
    with contextlib.suppress(OSError):
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        return result.stdout.strip() or None
    return None


def qemu_version() -> str:
    """Such as 10.0.2."""
    output = subprocess.run(
        ["qemu-system-x86_64", "--version"], capture_output=True, text=True, check=True
    ).stdout
    return re.search(r"version (\S+)", output)[1]
