# SPDX-License-Identifier: GPL-2.0
"""Guests in a memory budget: as many as fit with all of their memory, against more of them under
`balloonctl auto`.

Each guest has a critical workload, which reads from memory and has an objective for its latency,
and a use of memory that is high for a third of the time: never in two guests at once, as the host
says when it changes. Guests of fixed size have to be as large as their highest use.

Utilisation is what guests use, by their own statistics (what they have less what is available to
them), of the budget. Emulated guests have a clock that counts instructions while they are busy, so
a latency is the guest's own, whatever else this machine does.
"""

import contextlib
import json
import math
import pathlib
import subprocess
import tempfile
import threading
import time

import vm

from .lab import job_section
from .results import BenchmarkError, Goal, Results

MIB = 1 << 20
BUDGET_MIB = 4096
GUEST_MIB = 2048
FIXED, CONSOLIDATED = BUDGET_MIB // GUEST_MIB, 3
# Changing use, in files of so many MiB.
PIECE_MIB, LOW, HIGH = 10, 68, 123
# Of the critical workload.
DATA_MIB = 256
REQUESTS = 100
OBJECTIVE_MS = 10
TURNS = 3
HOLD_SECONDS = 8
AUTO = ["--budget", f"{BUDGET_MIB}M", "--interval", "1", "--step", "10", "--margin", "5"]
BALLOON = "/machine/peripheral/balloon0"
PEER = "fixed sizes"

PREPARE = f"""
disk=$(ls /dev/vd? | head -n 1)
mkswap $disk >/dev/null && swapon $disk || exit
mkdir -p /run/use /run/data && mount -t tmpfs -o size=100% use /run/use || exit
mount -t tmpfs -o size=100% data /run/data || exit
dd if=/dev/urandom of=/run/data/file bs=1M count={DATA_MIB} status=none || exit
rmmod virtio_balloon 2>/dev/null
insmod "$FERRULE_MODULES/balloon/virtio_balloon_rs.ko"
"""
# From so many pieces to so many, one after the other, with a pause after each.
USE = f"""
n=%d
while [ $n -lt %d ]; do
	dd if=/dev/zero of=/run/use/$n bs=1M count={PIECE_MIB} status=none || exit
	n=$((n + 1)); %s
done
while [ $n -gt %d ]; do
	n=$((n - 1)); rm /run/use/$n; %s
done
"""
CRITICAL = job_section(
    "critical",
    {
        "filename": "/run/data/file",
        "size": f"{DATA_MIB}m",
        "rw": "randread",
        "bs": "64k",
        "ioengine": "psync",
        "norandommap": 1,
        "thread": 1,
        "time_based": 1,
        "runtime": 3600,
        "rate_iops": REQUESTS,
        "rate_process": "poisson",
    },
)
START = f"""
cat >/run/critical.fio <<'END'
{CRITICAL}END
setsid nice -n -15 fio --output-format=json+ --output=/run/critical.json /run/critical.fio \
	>/dev/null 2>&1 </dev/null &
echo $! >/run/critical.pid
"""
STOP = """
kill -INT $(</run/critical.pid)
while [ -e /proc/$(</run/critical.pid) ]; do sleep 0.2; done
sed -n '/^{/,$p' /run/critical.json
"""
COUNTERS = "grep -E '^(pswpin|pswpout|oom_kill|allocstall_[a-z]+) ' /proc/vmstat"


class Machine:
    """A guest with its workloads."""

    def __init__(self, guest: vm.Guest):
        self.guest = guest
        self.pieces = 0
        self.used = 0
        guest.check(PREPARE, 300)
        guest.qmp.execute("qom-set", path=BALLOON, property="guest-stats-polling-interval", value=1)

    def start_use(self, pieces: int, pause: str = "sleep 0.4") -> None:
        """Begin to change how much is used."""
        self.guest.send(USE % (self.pieces, pieces, pause, pieces, pause))
        self.pieces = pieces

    def end_use(self) -> None:
        """Wait until it has changed."""
        status, output = self.guest.wait(300)
        if status:
            raise BenchmarkError(f"a guest cannot have the memory that it wants: {output}")

    def sample(self) -> int:
        """What it uses, in bytes."""
        actual = self.guest.qmp.execute("query-balloon")["actual"]
        stats = self.guest.qmp.execute("qom-get", path=BALLOON, property="guest-stats")["stats"]
        available = stats["stat-available-memory"]
        if available < GUEST_MIB * MIB:
            self.used = max(0, actual - available)
        return self.used

    def finish(self) -> dict:
        """What the critical workload saw, and how the guest fared."""
        document = json.loads(self.guest.check(STOP, 120))
        bins = document["jobs"][0]["read"]["clat_ns"]["bins"]
        return {
            "bins": {int(ns): count for ns, count in bins.items()},
            "counters": {
                words[0]: int(words[1])
                for words in map(str.split, self.guest.check(COUNTERS).splitlines())
            },
        }


class Sampler:
    """What all guests use, once a second, beside what is done with them."""

    def __init__(self, machines: list[Machine]):
        self.machines = machines
        # Seconds since the beginning, and utilisation.
        self.samples: list[tuple[float, float]] = []
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> "Sampler":
        self._thread.start()
        return self

    def __exit__(self, *_exc) -> None:
        self._end.set()
        self._thread.join()

    def _run(self) -> None:
        started = time.monotonic()
        while not self._end.wait(1):
            used = sum(machine.sample() for machine in self.machines)
            self.samples.append((time.monotonic() - started, used / (BUDGET_MIB * MIB)))


class Auto:
    """A running `balloonctl auto`, and its reports."""

    def __init__(self, directory: pathlib.Path):
        command = [vm.ROOT / "scripts/balloonctl", "auto", *AUTO, "--json", "--sockets", directory]
        self.process = subprocess.Popen(  # pylint: disable=consider-using-with
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        self.reports: list[dict] = []
        self._met = threading.Event()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in self.process.stdout:
            self.reports.append(json.loads(line))
            if self.reports[-1]["total"] <= BUDGET_MIB * MIB:
                self._met.set()

    def wait_until_met(self) -> None:
        """Until the guests are within the budget."""
        if not self._met.wait(180):
            raise BenchmarkError(f"the budget is not met: {self.reports[-1:]}")
        self.reports.clear()

    def end(self) -> None:
        """As an operator would."""
        self.process.terminate()
        self.process.wait(60)


def measure(results: Results, count: int, directory: pathlib.Path, automatic: bool) -> dict:
    """So many guests, and the budget handed around as the host says."""
    with contextlib.ExitStack() as stack:
        machines = []
        for number in range(count):
            disk = directory / f"swap{number}"
            with open(disk, "wb") as file:
                file.truncate(1 << 30)
            options = [
                "-device virtio-balloon-pci,id=balloon0,free-page-reporting=on",
                f"-qmp unix:{directory}/vm{number}.sock,server=on,wait=off",
                f"-drive file={disk},format=raw,if=virtio,cache=unsafe",
            ]
            if not vm.kvm_works(results.kdir / "arch/x86/boot/bzImage"):
                options.append("-icount shift=0,sleep=on")
            what = f"guest {number + 1} of {count}, {'balloonctl auto' if automatic else PEER}"
            guest = stack.enter_context(
                results.guest(
                    what,
                    vm.Options(
                        qmp=True, cpus=1, memory=f"{GUEST_MIB}M", udev=False, qemu_opts=options
                    ),
                )
            )
            machines.append(Machine(guest))
        auto = None
        if automatic:
            auto = Auto(directory)
            stack.callback(auto.end)
        for machine in machines:
            machine.start_use(LOW, ":")
        for machine in machines:
            machine.end_use()
        if auto:
            auto.wait_until_met()
        for machine in machines:
            machine.guest.check(START)
        with Sampler(machines) as sampler:
            hand_around(results, machines)
        found = [machine.finish() for machine in machines]
        return {
            "guests": found,
            "utilisation": sampler.samples,
            "reports": list(auto.reports) if auto else [],
        }


def hand_around(results: Results, machines: list[Machine]) -> None:
    """One guest after the other uses much memory for a while, and then less again."""
    for turn in range(TURNS + 1):
        # With fewer guests there are turns of nobody.
        rising = turn % CONSOLIDATED if turn < TURNS else None
        falling = (turn - 1) % CONSOLIDATED if turn else None
        changing = []
        for number, pieces in ((falling, LOW), (rising, HIGH)):
            if number is not None and number < len(machines):
                machines[number].start_use(pieces)
                changing.append(machines[number])
        for machine in changing:
            machine.end_use()
        if turn < TURNS:
            time.sleep(HOLD_SECONDS)
            results.say(f"{len(machines)} guests: turn {turn + 1} of {TURNS}")


def within(guests: list[dict]) -> float:
    """The share of all requests that met the objective."""
    total = sum(count for guest in guests for count in guest["bins"].values())
    late = sum(
        count
        for guest in guests
        for ns, count in guest["bins"].items()
        if ns > OBJECTIVE_MS * 1_000_000
    )
    return 1 - late / total


def percentile(guests: list[dict], part: float) -> float:
    """Of all requests, in milliseconds."""
    merged = sorted((ns, count) for guest in guests for ns, count in guest["bins"].items())
    left = math.ceil(part * sum(count for _, count in merged))
    for ns, count in merged:
        left -= count
        if left <= 0:
            return ns / 1e6
    raise AssertionError


def percentiles(guests: list[dict]) -> list[tuple[str, float]]:
    """From the median to the slowest but one of 10,000, in milliseconds."""
    return [(f"{part:.2%}", percentile(guests, part)) for part in (0.5, 0.9, 0.99, 0.999, 0.9999)]


def run(results: Results) -> None:
    """The one and the other."""
    found = {}
    for automatic in (False, True):
        with tempfile.TemporaryDirectory(prefix="consolidate-") as name:
            count = CONSOLIDATED if automatic else FIXED
            found[automatic] = measure(results, count, pathlib.Path(name), automatic)
    fixed, ours = found[False], found[True]
    results.add(
        f"guests of {GUEST_MIB} MiB in {BUDGET_MIB} MiB",
        "number",
        [CONSOLIDATED],
        peer=[FIXED],
        peer_name=PEER,
        goal=Goal("ratio", ">", 1),
    )
    results.add(
        "memory used, of the budget",
        "",
        [share for _, share in ours["utilisation"]],
        peer=[share for _, share in fixed["utilisation"]],
        peer_name=PEER,
        goal=Goal("ferrule", ">=", 0.89),
    )
    results.series(
        "Memory that guests use",
        "s",
        "of the budget",
        {PEER: fixed["utilisation"], "balloonctl auto": ours["utilisation"]},
        bound=0.89,
    )
    results.series(
        "Latency of the critical workload",
        "of its requests within",
        "ms",
        {PEER: percentiles(fixed["guests"]), "balloonctl auto": percentiles(ours["guests"])},
        bound=OBJECTIVE_MS,
        log="y",
    )
    for what, goal, figure in (
        (f"requests within {OBJECTIVE_MS} ms", Goal("ferrule", ">=", 0.9999), within),
        ("p99 of requests, ms", None, lambda guests: percentile(guests, 0.99)),
        ("p99.99 of requests, ms", None, lambda guests: percentile(guests, 0.9999)),
        ("requests", None, lambda guests: sum(sum(g["bins"].values()) for g in guests)),
        ("pages swapped out", None, lambda guests: total_of(guests, "pswpout")),
        ("OOM kills", None, lambda guests: total_of(guests, "oom_kill")),
        ("allocation stalls", None, lambda guests: total_of(guests, "allocstall")),
    ):
        results.add(
            what,
            "",
            [figure(ours["guests"])],
            peer=[figure(fixed["guests"])],
            peer_name=PEER,
            goal=goal,
        )
    reports = ours["reports"]
    over = [max(0, report["total"] / (BUDGET_MIB * MIB) - 1) for report in reports]
    results.add("memory beyond the budget, most", "", [max(over)], goal=Goal("ferrule", "<=", 0))
    results.add("changes of a target, a minute and guest", "", [changes(reports)])


def total_of(guests: list[dict], prefix: str) -> int:
    """A counter of all guests; the kernel has several for some."""
    return sum(
        value
        for guest in guests
        for name, value in guest["counters"].items()
        if name.startswith(prefix)
    )


def changes(reports: list[dict]) -> float:
    """How often a target changed from round to round; a round is a second."""
    count = 0
    for before, after in zip(reports, reports[1:], strict=False):
        targets = {row["name"]: row["target"] for row in before["vms"]}
        count += sum(targets.get(row["name"]) != row["target"] for row in after["vms"])
    return count / len(reports) * 60 / CONSOLIDATED
