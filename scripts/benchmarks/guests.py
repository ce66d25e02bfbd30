# SPDX-License-Identifier: GPL-2.0
"""Guests in a memory budget, for benchmarks of `balloonctl auto`: with a critical workload, and a
use of memory that changes; what they use and hold, and what `auto` reports meanwhile.
"""

import bisect
import contextlib
import dataclasses
import itertools
import json
import pathlib
import subprocess
import tempfile
import threading
import time

import vm

from .results import OUT, BenchmarkError, Results

MIB = 1 << 20
BUDGET_MIB = 3072
GUEST_MIB = 1536
# Of the critical workload.
REQUESTS = 100
AUTO = ["--budget", f"{BUDGET_MIB}M", "--step", "10", "--margin", "5"]
BALLOON = "/machine/peripheral/balloon0"
SCRIPTS = vm.ROOT / "scripts/guest"

# Before anything else: swap, and a place for memory in use.
PREPARE = """
disk=$(ls /dev/vd? | head -n 1)
mkswap $disk >/dev/null && swapon $disk || exit
mkdir -p /run/use /run/data && mount -t tmpfs -o size=4G use /run/use || exit
mount -t tmpfs -o size=4G data /run/data || exit
rmmod virtio_balloon 2>/dev/null
insmod "$FERRULE_MODULES/balloon/virtio_balloon_rs.ko" || exit
"""
# The critical workload: requests for parts of %(file)s.
SERVE = f"""
setsid nice -n -15 python3 {SCRIPTS}/service.py %(file)s {REQUESTS} %(seed)d /run/service.json \
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
    interval: int = 1
    # The program, for what is not to be as it is.
    command: tuple[str | pathlib.Path, ...] = (vm.ROOT / "scripts/balloonctl",)


@contextlib.contextmanager
def machines_of(results: Results, variant: Variant, prepare, *disks: str):
    """All guests of a variant, and the directory of their sockets. `prepare` is run in each, by its
    number; `disks` are options of QEMU for more than one to swap to.
    """
    with (
        tempfile.TemporaryDirectory(prefix="consolidate-") as name,
        contextlib.ExitStack() as stack,
    ):
        directory = pathlib.Path(name)
        machines = []
        for number in range(variant.guests):
            guest = boot(results, stack, directory, variant, number, disks)
            machines.append(Machine(guest, PREPARE + prepare(number), variant.guest_mib))
        yield machines, directory


def boot(
    results: Results,
    stack: contextlib.ExitStack,
    directory: pathlib.Path,
    variant: Variant,
    number: int,
    disks: tuple[str, ...],
) -> vm.Guest:
    """A guest, until the stack ends."""
    disk = directory / f"swap{number}"
    with open(disk, "wb") as file:
        file.truncate(1 << 30)
    options = [
        "-device virtio-balloon-pci,id=balloon0,free-page-reporting=on",
        f"-qmp unix:{directory}/vm{number}.sock,server=on,wait=off",
        f"-drive file={disk},format=raw,if=virtio,cache=unsafe",
        *disks,
    ]
    return stack.enter_context(
        results.guest(
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


class Machine:
    """A guest with its workloads."""

    def __init__(self, guest: vm.Guest, prepare: str, mib: int):
        self.guest = guest
        self.mib = mib
        # What the critical workload has in memory, if that never changes.
        self.data_mib = 0
        self.pid = guest.qemu_pid()
        guest.check(prepare, 300)
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
        return (self.data_mib + self._before + part * (self._after - self._before)) * MIB

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

    def begin(self, serves: bool = True) -> None:
        """From now on all counts; of the critical workload too, in a guest that has it."""
        self.late = 0.0
        self._waited = self.waited()
        self._counters = self._read_counters()
        if serves:
            self.guest.check(BEGIN)

    def finish(self, serves: bool = True) -> dict:
        """What the critical workload saw, and how the guest fared."""
        waited = self.waited() - self._waited
        found = (
            json.loads(self.guest.check(END, 120))
            if serves
            else {"us": [], "slowest": {}, "read": 0}
        )
        return {
            "waited": waited,
            "read": found["read"],
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

    def __init__(self, variant: Variant, directory: pathlib.Path):
        command = [*variant.command, "auto", *AUTO, "--interval", str(variant.interval)]
        command += ["--json", "--sockets", directory]
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


@contextlib.contextmanager
def automatic(variant: Variant, directory: pathlib.Path):
    """What runs beside the guests: `auto`, once they are within the budget, or None."""
    if not variant.automatic:
        yield None
        return
    auto = Auto(variant, directory)
    try:
        auto.wait_until_met(variant.guests)
        yield auto
    finally:
        auto.end()


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


def within(runs: list[Run], objective: float) -> float:
    """The share of all requests that took no more milliseconds."""
    guests = [guest["us"] for run in runs for guest in run.guests]
    inside = sum(bisect.bisect_right(us, objective * 1000) for us in guests)
    return inside / sum(map(len, guests))


def percentile(runs: list[Run], part: float) -> float:
    """Of all requests, in milliseconds."""
    merged = sorted(us for run in runs for guest in run.guests for us in guest["us"])
    return merged[min(int(part * len(merged)), len(merged) - 1)] / 1e3
