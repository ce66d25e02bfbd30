# SPDX-License-Identifier: GPL-2.0
"""Guests in a memory budget: as many as fit with all of their memory, against more of them under
`balloonctl auto`, and, to see what the balloons are good for, as many of a fixed part of it each.

Each guest has a critical workload, which reads from memory and has an objective for its latency,
and a use of memory that is high for a third of the time: never in two guests at once, and it rises
in one as it falls in another. Guests of fixed size have to be as large as their highest use.

A latency counts from when a request was to come, by a clock that runs on while the guest does not.
The objective is four times the 99th percentile with fixed sizes, in the quieter of the runs.
Utilisation is what guests use of the budget, by their own statistics (all less what is available),
over whole cycles of the load. The load is made such that at any time all guests together need the
same part of the budget.

Guests that read files all the time are a part of their own, in readers.py.
"""

import dataclasses
import itertools
import statistics
import time

from . import readers
from .guests import (
    BUDGET_MIB,
    GUEST_MIB,
    MIB,
    SCRIPTS,
    SERVE,
    Auto,
    Machine,
    Run,
    Sampler,
    Variant,
    automatic,
    machines_of,
    mean,
    percentile,
    within,
)
from .results import OUT, Goal, Results

# What all need at any time, of the budget, and what a guest of all of its memory has available when
# it uses the most.
NEED = 0.89
HEADROOM_MIB = 96
# Of the critical workload.
DATA_MIB = 256
WITHIN = 4
KEPT = 0.9999
# How fast use rises and falls, and how long it stays so.
MIB_PER_SECOND = 16
FILL_MIB_PER_SECOND = 48
HOLD_SECONDS = 8
SETTLE_SECONDS = 8
# Of all guests together: what a kernel may move by the way.
SWAPPED_PAGES = 256

# The data of the critical workload.
PREPARE = f"""
python3 {SCRIPTS}/hold.py /run/data/file {DATA_MIB} 0 || exit
"""


AUTOMATIC = Variant("balloonctl auto", 3, GUEST_MIB, automatic=True)
FIXED = Variant("fixed sizes", BUDGET_MIB // GUEST_MIB, GUEST_MIB)
CONTROL = Variant("a third each", 3, BUDGET_MIB // 3)
# In turn, because the host may change; what the control is there for is plain after one.
ORDER = (FIXED, AUTOMATIC, CONTROL, FIXED, AUTOMATIC)
CYCLE = AUTOMATIC.guests


@dataclasses.dataclass(frozen=True)
class Load:
    """How much a guest uses beside its critical workload, in MiB."""

    low: int
    high: int

    @classmethod
    def beside(cls, base: int) -> "Load":
        """For guests that use so many bytes otherwise."""
        high = GUEST_MIB - HEADROOM_MIB
        low = (NEED * BUDGET_MIB - high) / (CYCLE - 1)
        return cls(round(low - base / MIB), round(high - base / MIB))

    @property
    def seconds(self) -> float:
        """From one to the other."""
        return (self.high - self.low) / MIB_PER_SECOND


class Bench:
    """Runs of all variants, with the same load."""

    def __init__(self, results: Results):
        self.results = results
        self.load: Load | None = None
        self.base = 0
        self.found: dict[Variant, list[Run]] = {}

    def run(self, variant: Variant) -> None:
        """One more."""

        def prepare(number):
            return PREPARE + SERVE % {"file": "/run/data/file", "seed": number}

        with machines_of(self.results, variant, prepare) as (machines, directory):
            for machine in machines:
                machine.data_mib = DATA_MIB
            if self.load is None:
                self.base = statistics.median(machine.used() for machine in machines)
                self.load = Load.beside(self.base)
                self.results.say(
                    f"a guest uses {self.base / MIB:.0f} MiB without its changing load, which is"
                    f" {self.load.low} to {self.load.high} MiB"
                )
            with automatic(variant, directory) as auto:
                found = self.measure(variant, machines, auto)
            self.found.setdefault(variant, []).append(found)
            self.results.say(
                f"{variant.name}: {mean(found.samples, 'used'):.3f} of the budget used, p99"
                f" {percentile([found], 0.99):.2f} ms, {found.swapped()} pages swapped"
            )

    def measure(self, variant: Variant, machines: list[Machine], auto: Auto | None) -> Run:
        """A cycle of the load. As it begins, the guest is high that is before the first."""
        seconds = self.load.low / FILL_MIB_PER_SECOND
        self.change([(machine, self.load.low) for machine in machines], seconds)
        last = machines[CYCLE - 1 :]
        self.change([(machine, self.load.high) for machine in last], self.load.seconds)
        time.sleep(SETTLE_SECONDS)
        if auto:
            auto.check()
        for machine in machines:
            machine.begin()
        begin = time.monotonic()
        with Sampler(machines) as sampler:
            for turn in range(CYCLE):
                # With fewer guests there are turns of nobody.
                changing = []
                for number, mib in ((turn - 1, self.load.low), (turn, self.load.high)):
                    changing += [(machine, mib) for machine in machines[number % CYCLE :][:1]]
                started = time.monotonic()
                self.change(changing, self.load.seconds)
                left = started + self.load.seconds + HOLD_SECONDS - time.monotonic()
                time.sleep(max(0, left))
                sampler.check()
                if auto:
                    auto.check()
                self.results.say(f"{variant.name}: turn {turn + 1} of {CYCLE}")
        reports = auto.since(begin) if auto else []
        return Run([machine.finish() for machine in machines], sampler.samples, reports)

    def change(self, changing: list[tuple[Machine, int]], seconds: float) -> None:
        """Use of some guests, at once."""
        for machine, mib in changing:
            machine.start_use(mib, seconds)
        for machine, _ in changing:
            machine.end_use()


def objective_of(fixed: list[Run]) -> float:
    """In ms. By the quieter run: what else the host had to do is not to make it an easy one."""
    return WITHIN * min(percentile([run], 0.99) for run in fixed)


def run(results: Results) -> None:
    """All variants in turn."""
    (OUT / "consolidate-auto.log").unlink(missing_ok=True)
    bench = Bench(results)
    for variant in ORDER:
        bench.run(variant)
    report(results, bench)
    draw(results, bench)
    readers.run(results)


def report(results: Results, bench: Bench) -> None:
    """The metrics: `auto` by fixed sizes, and by the control."""
    ours, fixed = bench.found[AUTOMATIC], bench.found[FIXED]
    objective = objective_of(fixed)
    reports = [[report for _, report in run.reports] for run in ours]
    over = max(
        max(0, report["total"] / (BUDGET_MIB * MIB) - 1) for run in reports for report in run
    )
    kept = within(ours, objective)
    killed = sum(run.total("oom_kill") for run in ours)
    swapped = max(run.swapped() for run in ours)
    wrong = [
        what
        for what, is_so in (
            ("the budget was not kept", over > 0),
            (f"the objective was kept in {kept:.4%} of requests only", kept < KEPT),
            ("processes were killed for memory", killed > 0),
            (f"{swapped} pages were swapped", swapped > SWAPPED_PAGES),
        )
        if is_so
    ]
    results.add(
        f"guests of {GUEST_MIB} MiB that do in {BUDGET_MIB} MiB",
        "number",
        None if wrong else [AUTOMATIC.guests],
        peer=[FIXED.guests],
        peer_name=FIXED.name,
        goal=Goal("ratio", ">", 1),
        note=f"{AUTOMATIC.guests} guests do not count: {', '.join(wrong)}." if wrong else None,
        better="more",
    )
    for variant, peers in ((FIXED, fixed), (CONTROL, bench.found[CONTROL])):
        compare(results, objective, ours, variant.name, peers, goals=variant == FIXED)
    results.add("memory beyond the budget, most", "", [over], goal=Goal("ferrule", "<=", 0))
    results.add(
        "changes of a target, a minute and guest",
        "",
        [changes(run.reports) for run in ours],
    )
    results.add(
        "objective for the critical workload",
        "ms",
        [objective],
        peer=[objective / WITHIN],
        peer_name=f"p99, {FIXED.name}",
        better="",
    )


def compare(
    results: Results,
    objective: float,
    ours: list[Run],
    peer_name: str,
    peers: list[Run],
    goals: bool,
) -> None:
    """Ours by one peer. The goals are given once."""
    kernels = (
        "Memory used includes each guest's own kernel, its page cache that is not to be given up,"
        " and its programs; what its workloads want in memory is given beside it."
    )
    each = [
        ("memory used, of the budget", 0.89, kernels, lambda r: mean(r.samples, "used")),
        (
            "what workloads want in memory, of the budget",
            None,
            kernels,
            lambda r: mean(r.samples, "workload"),
        ),
        (
            "memory of the host that emulators hold, of the budget",
            None,
            "With the emulators' own memory, which the budget is not about.",
            lambda r: mean(r.samples, "resident"),
        ),
    ]
    for metric, bound, note, figure in each:
        results.add(
            metric,
            "",
            [figure(run) for run in ours],
            peer=[figure(run) for run in peers],
            peer_name=peer_name,
            goal=Goal("ferrule", ">=", bound) if bound and goals else None,
            note=note,
            better="more" if bound else "",
        )
    results.add(
        f"requests within {objective:.2f} ms",
        "%",
        [100 * within(ours, objective)],
        peer=[100 * within(peers, objective)],
        peer_name=peer_name,
        goal=Goal("ferrule", ">=", 100 * KEPT) if goals else None,
        better="more",
    )
    for part in (0.5, 0.99, 0.999):
        results.add(
            f"p{100 * part:g} of requests",
            "ms",
            [percentile([run], part) for run in ours],
            peer=[percentile([run], part) for run in peers],
            peer_name=peer_name,
        )
    counts = (
        ("pages swapped, in and out", SWAPPED_PAGES, lambda r: r.swapped()),
        ("OOM kills", 0, lambda r: r.total("oom_kill")),
        ("allocation stalls", None, lambda r: r.total("allocstall")),
        ("requests", None, lambda r: sum(len(guest["us"]) for guest in r.guests)),
    )
    for metric, bound, figure in counts:
        results.add(
            f"{metric}, most in a run",
            "number",
            [max(figure(run) for run in ours)],
            peer=[max(figure(run) for run in peers)],
            peer_name=peer_name,
            goal=Goal("ferrule", "<=", bound) if goals and bound is not None else None,
        )
    results.add(
        "time that a guest's emulator waited for a CPU of the host",
        "s",
        [max(guest["waited"] for guest in run.guests) for run in ours],
        peer=[max(guest["waited"] for guest in run.guests) for run in peers],
        peer_name=peer_name,
        note=(
            "Latency is by the host's clock: where emulators waited long for a CPU, the host had"
            " other work, or three guests were too many for its CPUs."
        ),
    )
    results.add(
        "how late a change of use was, most",
        "s",
        [max(guest["late"] for guest in run.guests) for run in ours],
        peer=[max(guest["late"] for guest in run.guests) for run in peers],
        peer_name=peer_name,
    )


def changes(reports: list[tuple[float, dict]]) -> float:
    """How often a target changed from round to round."""
    count = 0
    for (_, before), (_, after) in itertools.pairwise(reports):
        targets = {row["name"]: row["target"] for row in before["vms"]}
        count += sum(targets.get(row["name"]) != row["target"] for row in after["vms"])
    return count / (reports[-1][0] - reports[0][0]) * 60 / AUTOMATIC.guests


def draw(results: Results, bench: Bench) -> None:
    """The first run of each over time, and all of the latency."""
    first = {variant.name: runs[0] for variant, runs in bench.found.items()}
    for title, what, bound in (
        ("Memory that guests use", "used", 0.89),
        ("What workloads want in memory", "workload", None),
    ):
        lines = {
            name: [(round(s.seconds, 1), getattr(s, what)) for s in run.samples[::2]]
            for name, run in first.items()
        }
        results.series(title, "s", "of the budget", lines, bound=bound)
    for number in range(AUTOMATIC.guests):
        lines = {"has": [], "is asked to have": [], "needs": []}
        for seconds, report in first[AUTOMATIC.name].reports[::2]:
            row = next((row for row in report["vms"] if row["name"] == f"vm{number}"), {})
            for points, key in zip(lines.values(), ("actual", "target", "need"), strict=True):
                if row.get(key) is not None:
                    points.append((round(seconds, 1), row[key] / MIB))
        results.series(f"Guest {number + 1} under balloonctl auto", "s", "MiB", lines)
    objective = objective_of(bench.found[FIXED])
    results.series(
        "The slowest request of each second",
        "s",
        "ms",
        {name: run.slowest() for name, run in first.items()},
        bound=objective,
        log="y",
    )
    results.series(
        "Latency of the critical workload",
        "of its requests within",
        "ms",
        {
            variant.name: [
                (f"{part:.2%}", percentile(runs, part)) for part in (0.5, 0.9, 0.99, 0.999, KEPT)
            ]
            for variant, runs in bench.found.items()
        },
        bound=objective,
        log="y",
    )
