# SPDX-License-Identifier: GPL-2.0
"""The part of B=consolidate with guests that read files all the time, whose cache is no spare
memory though MemAvailable counts it as such. B=readers is this part alone.

Three guests. One is a server of files: requests, which have an objective for their latency, read at
random from files that fit into its cache, if all of them are there. Two have a job of a certain
amount: it reads from memory in use and from files. Beside that something in each guest reads a
large file from its beginning to its end, over and over, as a backup does: of that nothing is worth
keeping. What is not in the cache comes from a disk that takes 10 ms.

- With free page reporting alone all of them keep their memory: it is full of what was read once.
- `balloonctl auto` has them do with two thirds of that.
- The same, but blind to all except MemAvailable. It takes the server's files for spare memory.

The objective is four times the 99th percentile with free page reporting alone.
"""

import dataclasses
import json
import pathlib
import subprocess
import sys
import tempfile
import threading
import time

from vm import ROOT

from .guests import (
    BUDGET_MIB,
    GUEST_MIB,
    MIB,
    SCRIPTS,
    SERVE,
    Machine,
    Run,
    Sampler,
    Variant,
    automatic,
    machines_of,
    percentile,
    within,
)
from .results import BenchmarkError, Goal, Results

GUESTS = 3
# Files in MiB: those of the server, those of a job, and what is read over and over.
HOT_MIB, WARM_MIB, COLD_MIB = 900, 100, 1024
# What jobs have in use beside their files.
USED_MIB = 500
SCAN_MIB_PER_SECOND = 2
DELAY_MS = 10
# Of a job. Without any waiting for a disk a unit takes about 45 ms.
UNITS = 2000
# `auto` has to learn first what each guest needs. Without it there is nothing to wait for. Then the
# guests read again what they have lost, which at the pace of requests would take them a quarter of
# an hour, and are left alone for a while.
LEARN_SECONDS, SETTLE_SECONDS = 100, 30
WITHIN, KEPT = 4, 0.99
# Of a read.
SIZE = 64 << 10
HELD, LONGER = 0.80, 1.01

REPORTING = Variant("free page reporting alone", GUESTS, GUEST_MIB)
SEEING = Variant("balloonctl auto", GUESTS, GUEST_MIB, automatic=True, interval=2)
BLIND = Variant(
    "auto by MemAvailable alone",
    GUESTS,
    GUEST_MIB,
    automatic=True,
    interval=2,
    command=("env", f"PYTHONPATH={ROOT / 'scripts'}", sys.executable, "-m", "benchmarks.blind"),
)
ORDER = (REPORTING, SEEING, BLIND)

# A disk that takes its time, with the files. What is read at first need not take that long.
PREPARE = f"""
export DM_DISABLE_UDEV=1
disk=/dev/vdb sectors=$(blockdev --getsz /dev/vdb) || exit
modprobe dm-delay || exit
echo "0 $sectors delay $disk 0 0" | dmsetup create slow || exit
mkdir -p /run/files && mount -o ro,noload /dev/mapper/slow /run/files || exit
cat /run/files/cold /run/files/%(first)s >/dev/null || exit
%(use)s
dmsetup suspend slow && echo "0 $sectors delay $disk 0 {DELAY_MS}" | dmsetup load slow || exit
dmsetup resume slow || exit
blockdev --setra 128 /dev/mapper/slow || exit
setsid python3 {SCRIPTS}/scan.py /run/files/cold {SCAN_MIB_PER_SECOND} \
	>/run/scan.log 2>&1 </dev/null &
"""
USE = f"python3 {SCRIPTS}/hold.py /run/use/file {USED_MIB} 0 >/dev/null || exit"


WARM = """
blockdev --setra 8192 /dev/mapper/slow
cat /run/files/%(first)s >/dev/null || exit
blockdev --setra 128 /dev/mapper/slow
"""


def first_of(number: int) -> str:
    """The files that a guest reads all the time. The first guest is the server."""
    return "warm" if number else "hot"


def prepare(number: int) -> str:
    """Of a guest."""
    if number == 0:
        return PREPARE % {"first": "hot", "use": ""} + SERVE % {"file": "/run/files/hot", "seed": 0}
    return PREPARE % {"first": "warm", "use": USE}


def make_image(directory: pathlib.Path) -> pathlib.Path:
    """A file system with the files, for all guests to read."""
    files, image = directory / "files", directory / "image"
    files.mkdir()
    with open("/dev/urandom", "rb") as random:
        content = random.read(MIB)
    for name, mib in (("hot", HOT_MIB), ("warm", WARM_MIB), ("cold", COLD_MIB)):
        with open(files / name, "wb") as file:
            for _ in range(mib):
                file.write(content)
    with open(image, "wb") as file:
        file.truncate((HOT_MIB + WARM_MIB + COLD_MIB + 256) * MIB)
    command = ["mke2fs", "-q", "-t", "ext4", "-m", "0", "-d", files, image]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchmarkError(f"mke2fs: {done.stderr.strip()}")
    return image


@dataclasses.dataclass
class Work:
    """What one run gave."""

    run: Run
    # Of each job; and bytes that it read from its disk.
    seconds: list[float]
    read: list[int]

    @property
    def server(self) -> Run:
        """The critical workload."""
        return dataclasses.replace(self.run, guests=self.run.guests[:1])

    @property
    def missed(self) -> float:
        """Which part of what the server read was not in its cache."""
        guest = self.run.guests[0]
        return guest["read"] / (SIZE * len(guest["us"]))

    @property
    def waited(self) -> float:
        """Which part of their run time jobs waited for their disks."""
        return sum(self.read) / SIZE * DELAY_MS / 1000 / sum(self.seconds)

    @property
    def gib_minutes(self) -> float:
        """What all emulators held of the host's memory."""
        samples = self.run.samples
        area = sum(
            (b.seconds - a.seconds) * (a.resident + b.resident) / 2
            for a, b in zip(samples, samples[1:], strict=False)
        )
        return area * BUDGET_MIB / 1024 / 60


class Job:
    """Of a guest, in a thread."""

    def __init__(self, machine: Machine, number: int):
        self.found: dict = {}
        self.error: Exception | None = None
        self._machine = machine
        self._script = f"python3 {SCRIPTS}/job.py {UNITS} {number} /run/files/warm /run/use/file"
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.found = json.loads(self._machine.guest.check(self._script, 900))
        except Exception as error:  # pylint: disable=broad-exception-caught
            self.error = error

    def end(self) -> dict:
        """How long it took, and what it read from its disk."""
        self._thread.join()
        if self.error:
            raise BenchmarkError(f"a job was not done: {self.error}") from self.error
        return self.found


def measure(results: Results, variant: Variant, image: pathlib.Path) -> Work:
    """One run."""
    disk = f"-drive file={image},format=raw,if=virtio,readonly=on"
    with (
        machines_of(results, variant, prepare, disk) as (machines, directory),
        automatic(variant, directory) as auto,
    ):
        time.sleep(LEARN_SECONDS if auto else 0)
        for number, machine in enumerate(machines):
            machine.guest.check(WARM % {"first": first_of(number)}, 300)
        time.sleep(SETTLE_SECONDS)
        if auto:
            auto.check()
        for number, machine in enumerate(machines):
            machine.begin(serves=number == 0)
        begin = time.monotonic()
        with Sampler(machines) as sampler:
            jobs = [Job(machine, number) for number, machine in enumerate(machines[1:])]
            ended = [job.end() for job in jobs]
            sampler.check()
        reports = auto.since(begin) if auto else []
        guests = [m.finish(serves=number == 0) for number, m in enumerate(machines)]
        seconds, read = ([job[what] for job in ended] for what in ("seconds", "read"))
        work = Work(Run(guests, sampler.samples, reports), seconds, read)
    results.say(
        f"{variant.name}: {work.gib_minutes:.2f} GiB-minutes in {max(seconds):.1f} s, p99"
        f" {percentile([work.server], 0.99):.2f} ms, {work.missed:.2%} of reads not from the cache,"
        f" jobs {sum(read) / MIB:.1f} MiB"
    )
    return work


def run(results: Results) -> None:
    """All variants."""
    with tempfile.TemporaryDirectory(prefix="readers-") as name:
        image = make_image(pathlib.Path(name))
        found = {variant: measure(results, variant, image) for variant in ORDER}
    report(results, found)
    draw(results, found)


def report(results: Results, found: dict[Variant, Work]) -> None:
    """`auto` by free page reporting, and what it would be if it was blind."""
    ours, alone, blind = found[SEEING], found[REPORTING], found[BLIND]
    objective = WITHIN * percentile([alone.server], 0.99)
    share = {variant: within([work.server], objective) for variant, work in found.items()}
    goal = Goal("ferrule", ">=", 100 * KEPT)
    note = (
        f"Guests that read files. Of {GUESTS} guests one serves files of {HOT_MIB} MiB from its"
        " cache, beside jobs in the others."
    )
    for variant, work in ((REPORTING, alone), (BLIND, blind)):
        results.add(
            f"reads of files within {objective:.2f} ms",
            "%",
            [100 * share[SEEING]],
            peer=[100 * share[variant]],
            peer_name=variant.name,
            goal=goal if variant == REPORTING else None,
            note=note,
            better="more",
        )
        results.add(
            "reads of files that were not in the cache",
            "%",
            [100 * ours.missed],
            peer=[100 * work.missed],
            peer_name=variant.name,
            note="This, unlike latency, does not depend on what else the host has to do.",
            better="less",
        )
        for part in (0.5, 0.99, 0.999):
            results.add(
                f"p{100 * part:g} of reads of files",
                "ms",
                [percentile([ours.server], part)],
                peer=[percentile([work.server], part)],
                peer_name=variant.name,
            )
        results.add(
            "memory of the host, guests that read files",
            "GiB min",
            [ours.gib_minutes],
            peer=[work.gib_minutes],
            peer_name=variant.name,
            goal=Goal("ratio", "<=", HELD) if variant == REPORTING else None,
            note="All that emulators hold of the host's memory, until the jobs are done.",
            better="less",
        )
        results.add(
            "run time of jobs, guests that read files",
            "s",
            ours.seconds,
            peer=work.seconds,
            peer_name=variant.name,
            goal=Goal("ratio", "<=", LONGER) if variant == REPORTING else None,
            paired=True,
        )
        results.add(
            "of their run time, jobs waited for their disks",
            "%",
            [100 * ours.waited],
            peer=[100 * work.waited],
            peer_name=variant.name,
            note="This, unlike run time, does not depend on what else the host has to do, either.",
            better="less",
        )
        results.add(
            "pages swapped, guests that read files",
            "number",
            [ours.run.swapped()],
            peer=[work.run.swapped()],
            peer_name=variant.name,
        )
    results.add(
        "reads of files in the objective by MemAvailable alone",
        "%",
        [100 * share[BLIND]],
        goal=Goal("ferrule", "<", 100 * KEPT),
        note="That it loses them is what there is to be won.",
    )


def draw(results: Results, found: dict[Variant, Work]) -> None:
    """Memory of the host, what the server has, and its slowest requests."""
    results.series(
        "Memory of the host, guests that read files",
        "s",
        "GiB",
        {
            variant.name: [
                (round(s.seconds, 1), s.resident * BUDGET_MIB / 1024) for s in work.run.samples[::2]
            ]
            for variant, work in found.items()
        },
    )
    lines = {}
    for variant in (SEEING, BLIND):
        points = lines[variant.name] = []
        for seconds, reported in found[variant].run.reports[::2]:
            row = next((row for row in reported["vms"] if row["name"] == "vm0"), None)
            if row:
                points.append((round(seconds, 1), row["actual"] / MIB))
    results.series("What the guest has that serves files", "s", "MiB", lines)
    results.series(
        "The slowest read of each second, guests that read files",
        "s",
        "ms",
        {variant.name: work.server.slowest() for variant, work in found.items()},
        bound=WITHIN * percentile([found[REPORTING].server], 0.99),
        log="y",
    )
