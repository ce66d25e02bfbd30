# SPDX-License-Identifier: GPL-2.0
"""Guests in a memory budget: as many as fit with all of their memory, against more of them under
`balloonctl auto`, and, to see what the balloons are good for, as many of a fixed part of it each.

Each guest has a critical workload, which reads from memory and has an objective for its latency,
and a use of memory that is high for a third of the time: never in two guests at once, and it rises
in one as it falls in another. Guests of fixed size have to be as large as their highest use.

A latency counts from when a request was to come, by a clock that runs on while the guest does not.
The objective is four times the 99th percentile with fixed sizes, in the quieter of the runs.
Utilisation is what guests
use of the budget, by their own statistics (all less what is available), over whole cycles of the
load. The load is made such that at any time all guests together need the same part of the budget.
"""

import bisect
import contextlib
import dataclasses
import itertools
import json
import pathlib
import statistics
import subprocess
import tempfile
import threading
import time

import vm

from .results import OUT, BenchmarkError, Goal, Results

MIB = 1 << 20
BUDGET_MIB = 3072
GUEST_MIB = 1536
# What all need at any time, of the budget, and what a guest of all of its memory has available when
# it uses the most.
NEED = 0.89
HEADROOM_MIB = 96
# Of the critical workload.
DATA_MIB = 256
REQUESTS = 100
WITHIN = 4
KEPT = 0.9999
# How fast use rises and falls, and how long it stays so.
MIB_PER_SECOND = 16
FILL_MIB_PER_SECOND = 48
HOLD_SECONDS = 8
SETTLE_SECONDS = 8
AUTO = ["--budget", f"{BUDGET_MIB}M", "--interval", "1", "--step", "10", "--margin", "5"]
BALLOON = "/machine/peripheral/balloon0"
SCRIPTS = vm.ROOT / "scripts/guest"
# Of all guests together: what a kernel may move by the way.
SWAPPED_PAGES = 256

PREPARE = f"""
disk=$(ls /dev/vd? | head -n 1)
mkswap $disk >/dev/null && swapon $disk || exit
mkdir -p /run/use /run/data && mount -t tmpfs -o size=4G use /run/use || exit
mount -t tmpfs -o size=4G data /run/data || exit
python3 {SCRIPTS}/hold.py /run/data/file {DATA_MIB} 0 || exit
rmmod virtio_balloon 2>/dev/null
insmod "$FERRULE_MODULES/balloon/virtio_balloon_rs.ko" || exit
setsid nice -n -15 python3 {SCRIPTS}/service.py /run/data/file {REQUESTS} %d /run/service.json \
	>/run/service.log 2>&1 </dev/null &
echo $! >/run/service.pid
"""
BEGIN = "kill -USR1 $(</run/service.pid)"
END = """
kill -TERM $(</run/service.pid)
while [ -e /proc/$(</run/service.pid) ]; do sleep 0.2; done
cat /run/service.json || { cat /run/service.log; exit 1; }
"""
# Pages that are all zero are swapped without any I/O, and counted apart.
COUNTERS = "grep -E '^(pswp(in|out)|swp(in|out)_zero|oom_kill|allocstall_[a-z0-9_]+) ' /proc/vmstat"


@dataclasses.dataclass(frozen=True)
class Variant:
    """A way to use the budget."""

    name: str
    guests: int
    guest_mib: int
    automatic: bool = False


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


class Machine:
    """A guest with its workloads."""

    def __init__(self, guest: vm.Guest, number: int, mib: int):
        self.guest = guest
        self.mib = mib
        self.pid = guest.qemu_pid()
        guest.check(PREPARE % number, 300)
        self._set_polling(1)
        # Statistics until then have nothing to do with this.
        time.sleep(3)
        # What the guest's kernel has for itself is in no statistics but counts.
        self._kernel = mib * MIB - self.statistics()["stat-total-memory"]
        # Changes of its use: when, from how much and to how much, and when that was to end.
        self._before, self._after, self._since, self._until = 0, 0, 0.0, 0.0
        # The most that a change was late, in seconds.
        self.late = 0.0
        self._waited = 0.0
        self._counters: dict[str, int] = {}

    def _set_polling(self, seconds: int) -> None:
        name = "guest-stats-polling-interval"
        self.guest.qmp.execute("qom-set", path=BALLOON, property=name, value=seconds)

    def statistics(self) -> dict[str, int]:
        """What the guest last said of itself."""
        answer = self.guest.qmp.execute("qom-get", path=BALLOON, property="guest-stats")
        if not answer["last-update"]:
            raise BenchmarkError("a guest says nothing of its memory")
        return answer["stats"]

    def used(self) -> int:
        """What it and its kernel use, in bytes."""
        stats = self.statistics()
        return self._kernel + stats["stat-total-memory"] - stats["stat-available-memory"]

    def workload(self) -> float:
        """What its workloads are to have in memory, in bytes."""
        part = 1.0
        if time.monotonic() < self._until:
            part = (time.monotonic() - self._since) / (self._until - self._since)
        return (DATA_MIB + self._before + part * (self._after - self._before)) * MIB

    def resident(self) -> int:
        """Memory of the host that its emulator holds, in bytes."""
        status = pathlib.Path(f"/proc/{self.pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0]) * 1024

    def waited(self) -> float:
        """Seconds that its threads, which had work to do, were without a CPU of the host so far."""
        nanoseconds = 0
        for schedstat in pathlib.Path(f"/proc/{self.pid}/task").glob("*/schedstat"):
            with contextlib.suppress(FileNotFoundError):
                nanoseconds += int(schedstat.read_text().split()[1])
        return nanoseconds / 1e9

    def start_use(self, mib: int, seconds: float) -> None:
        """Begin to change how much is used."""
        self._before, self._after = self._after, mib
        self._since = time.monotonic()
        self._until = self._since + seconds
        self.guest.send(f"python3 {SCRIPTS}/hold.py /run/use/file {mib} {seconds}")

    def end_use(self) -> None:
        """Wait until it has changed."""
        status, output = self.guest.wait(600)
        if status:
            raise BenchmarkError(f"a guest cannot have the memory that it wants: {output}")
        self.late = max(self.late, float(output) - (self._until - self._since))

    def begin(self) -> None:
        """From now on all counts."""
        self.late = 0.0
        self._waited = self.waited()
        self._counters = self._read_counters()
        self.guest.check(BEGIN)

    def finish(self) -> dict:
        """What the critical workload saw, and how the guest fared."""
        waited = self.waited() - self._waited
        found = json.loads(self.guest.check(END, 120))
        return {
            "waited": waited,
            "us": sorted(found["us"]),
            "slowest": {int(second): us for second, us in found["slowest"].items()},
            "late": self.late,
            "counters": {
                name: value - self._counters[name] for name, value in self._read_counters().items()
            },
        }

    def _read_counters(self) -> dict[str, int]:
        rows = map(str.split, self.guest.check(COUNTERS).splitlines())
        return {name: int(value) for name, value in rows}


@dataclasses.dataclass(frozen=True)
class Sample:
    """Shares of the budget, so many seconds after the beginning."""

    seconds: float
    used: float
    workload: float
    resident: float


class Sampler:
    """What all guests use, once a second, beside what is done with them."""

    def __init__(self, machines: list[Machine]):
        self.machines = machines
        self.samples: list[Sample] = []
        self.error: Exception | None = None
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> "Sampler":
        self._thread.start()
        return self

    def __exit__(self, kind, *_exc) -> None:
        self._end.set()
        self._thread.join()
        # What ends the block says more.
        if kind is None:
            self.check()

    def check(self) -> None:
        """Raise what ended it."""
        if self.error:
            raise BenchmarkError(f"no samples of memory any more: {self.error!r}") from self.error

    def _run(self) -> None:
        started = time.monotonic()
        try:
            while True:
                shares = (
                    sum(what(machine) for machine in self.machines) / (BUDGET_MIB * MIB)
                    for what in (Machine.used, Machine.workload, Machine.resident)
                )
                self.samples.append(Sample(time.monotonic() - started, *shares))
                if self._end.wait(1):
                    break
        except Exception as error:  # pylint: disable=broad-exception-caught
            self.error = error


def mean(samples: list[Sample], what: str) -> float:
    """By the time that each stands for."""
    area = sum(
        (after.seconds - before.seconds) * (getattr(before, what) + getattr(after, what)) / 2
        for before, after in itertools.pairwise(samples)
    )
    return area / (samples[-1].seconds - samples[0].seconds)


class Auto:
    """A running `balloonctl auto`, and its reports."""

    def __init__(self, directory: pathlib.Path):
        command = [vm.ROOT / "scripts/balloonctl", "auto", *AUTO, "--json", "--sockets", directory]
        self.log = OUT / "consolidate-auto.log"
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(  # pylint: disable=consider-using-with
                command, stdout=subprocess.PIPE, stderr=log, text=True
            )
        # When each came.
        self.reports: list[tuple[float, dict]] = []
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        for line in self.process.stdout:
            self.reports.append((time.monotonic(), json.loads(line)))

    def check(self) -> None:
        """It runs, and says so."""
        status = self.process.poll()
        if status is not None:
            raise BenchmarkError(f"balloonctl auto ended with status {status}: see {self.log}")
        if not self._thread.is_alive():
            raise BenchmarkError("balloonctl auto prints what is no report")
        if self.reports and time.monotonic() - self.reports[-1][0] > 30:
            raise BenchmarkError(f"balloonctl auto does nothing any more: see {self.log}")

    def wait_until_met(self, guests: int) -> None:
        """Until the guests, all of them, are within the budget."""
        deadline = time.monotonic() + 180
        while True:
            self.check()
            if self.reports:
                report = self.reports[-1][1]
                if len(report["vms"]) == guests and report["total"] <= BUDGET_MIB * MIB:
                    return
            if time.monotonic() > deadline:
                raise BenchmarkError(f"the budget is not met: {self.reports[-1:]}")
            time.sleep(0.5)

    def since(self, begin: float) -> list[tuple[float, dict]]:
        """Reports, and the seconds after that time."""
        return [(at - begin, report) for at, report in self.reports if at >= begin]

    def end(self) -> None:
        """As an operator would."""
        self.process.terminate()
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._thread.join(10)
        self.process.stdout.close()


@dataclasses.dataclass
class Run:
    """What one run of a variant gave."""

    guests: list[dict]
    samples: list[Sample]
    reports: list[tuple[float, dict]]

    def total(self, prefix: str) -> int:
        """A counter of all guests; the kernel has several for some."""
        return sum(
            value
            for guest in self.guests
            for name, value in guest["counters"].items()
            if name.startswith(prefix)
        )

    def swapped(self) -> int:
        """Pages, in and out, with those that are all zero."""
        return self.total("pswp") + self.total("swpin_zero") + self.total("swpout_zero")

    def slowest(self) -> list[tuple[int, float]]:
        """Of each second's requests, in ms."""
        seconds = sorted({second for guest in self.guests for second in guest["slowest"]})
        return [
            (second, max(guest["slowest"].get(second, 0) for guest in self.guests) / 1e3)
            for second in seconds
        ]


class Bench:
    """Runs of all variants, with the same load."""

    def __init__(self, results: Results):
        self.results = results
        self.load: Load | None = None
        self.base = 0
        self.found: dict[Variant, list[Run]] = {}

    def run(self, variant: Variant) -> None:
        """One more."""
        with (
            tempfile.TemporaryDirectory(prefix="consolidate-") as name,
            contextlib.ExitStack() as stack,
        ):
            directory = pathlib.Path(name)
            machines = [
                self.boot(stack, directory, variant, number) for number in range(variant.guests)
            ]
            if self.load is None:
                self.base = statistics.median(machine.used() for machine in machines)
                self.load = Load.beside(self.base)
                self.results.say(
                    f"a guest uses {self.base / MIB:.0f} MiB without its changing load, which is"
                    f" {self.load.low} to {self.load.high} MiB"
                )
            auto = None
            if variant.automatic:
                auto = Auto(directory)
                stack.callback(auto.end)
                auto.wait_until_met(variant.guests)
            found = self.measure(variant, machines, auto)
            self.found.setdefault(variant, []).append(found)
            self.results.say(
                f"{variant.name}: {mean(found.samples, 'used'):.3f} of the budget used, p99"
                f" {percentile([found], 0.99):.2f} ms, {found.swapped()} pages swapped"
            )

    def boot(
        self, stack: contextlib.ExitStack, directory: pathlib.Path, variant: Variant, number: int
    ) -> Machine:
        """A guest, until the stack ends."""
        disk = directory / f"swap{number}"
        with open(disk, "wb") as file:
            file.truncate(1 << 30)
        options = [
            "-device virtio-balloon-pci,id=balloon0,free-page-reporting=on",
            f"-qmp unix:{directory}/vm{number}.sock,server=on,wait=off",
            f"-drive file={disk},format=raw,if=virtio,cache=unsafe",
        ]
        guest = stack.enter_context(
            self.results.guest(
                f"{variant.name}, guest {number + 1} of {variant.guests}",
                vm.Options(
                    qmp=True,
                    cpus=1,
                    memory=f"{variant.guest_mib}M",
                    udev=False,
                    qemu_opts=options,
                ),
            )
        )
        return Machine(guest, number, variant.guest_mib)

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


def within(runs: list[Run], objective: float) -> float:
    """The share of all requests that took no more milliseconds."""
    guests = [guest["us"] for run in runs for guest in run.guests]
    inside = sum(bisect.bisect_right(us, objective * 1000) for us in guests)
    return inside / sum(map(len, guests))


def percentile(runs: list[Run], part: float) -> float:
    """Of all requests, in milliseconds."""
    merged = sorted(us for run in runs for guest in run.guests for us in guest["us"])
    return merged[min(int(part * len(merged)), len(merged) - 1)] / 1e3


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
