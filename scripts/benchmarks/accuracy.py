# SPDX-License-Identifier: GPL-2.0
"""How exactly dm-qos keeps its limits, beside io.max, and divides the capacity of a group.

In a guest whose clock counts instructions: no other load of the host is in the figures.
"""

import dataclasses
import json
from functools import partial

import vm

from .lab import CGROUP, Lab
from .results import Goal, Results

KIB, MIB = 1 << 10, 1 << 20
# The default.
BURST_MS = 10
WINDOW_MS = 100
# What is left over from the burst goes in the first second.
BEGIN_MS, SECONDS = 1000, 5
END_MS = BEGIN_MS + SECONDS * 1000
LOG = "/run/accuracy"
LOAD = {"ioengine": "libaio", "norandommap": 1, "disable_slat": 1, "disable_clat": 1}
LOAD |= {"time_based": 1, "runtime": f"{END_MS + 200}ms"}


@dataclasses.dataclass(frozen=True)
class Case:
    """A limit and a load that exceeds it."""

    key: str
    rate: int
    size: int
    depth: int = 1
    jobs: int = 1
    rw: str = "randread"

    def __str__(self) -> str:
        rate = f"{self.rate:,}" if self.key == "iops" else f"{self.rate // KIB:,} KiB/s"
        load = f"{self.rw} of {self.size // KIB} KiB, depth {self.depth}"
        return f"{self.key} {rate}, {load}" + (f", {self.jobs} jobs" if self.jobs > 1 else "")

    @property
    def unit(self) -> int:
        """What an I/O counts as."""
        return 1 if self.key == "iops" else self.size


CASES = (
    Case("iops", 10, 4 * KIB),
    Case("iops", 100, 4 * KIB, 32),
    Case("iops", 1_000, 4 * KIB),
    Case("iops", 1_000, 64 * KIB, 128, rw="randrw"),
    Case("iops", 5_000, 4 * KIB, 16, 8),
    Case("iops", 20_000, 4 * KIB, 128),
    Case("bps", 64 * KIB, 4 * KIB),
    Case("bps", 64 * MIB, 64 * KIB),
    Case("bps", MIB, 64 * KIB, 32, rw="randwrite"),
    Case("bps", 16 * MIB, 128 * KIB, 4, 8),
    Case("bps", 64 * MIB, MIB, 4),
    Case("bps", 512 * MIB, MIB, 32),
)
PEER = "io.max on raw device"

# Members of a group by name, with what the table says of them and what they should get.
CAPACITY = 5_000
MEMBERS = {
    "reserved": ("reserve_iops 1000 weight 1", 1_000),
    "light": ("weight 100", 500),
    "middle": ("weight 200", 1_000),
    "heavy": ("weight 500", 2_500),
}
MEMBER_DEPTH = 64


def run(results: Results) -> None:
    """Each case through both."""
    with results.guest("rates and windows", vm.Options(icount=True, memory="2G")) as guest:
        lab = Lab(guest)
        disk, limited = lab.disk("raw"), lab.disk("limited")
        table = f"0 {lab.sectors(disk)} qos {disk} 0"
        lab.device("qos", table)
        windows = {"dm-qos": [], PEER: []}
        for case in CASES:
            results.say(str(case))
            lab.shell(
                "dmsetup suspend qos && "
                f"dmsetup reload qos --table '{table} 2 {case.key} {case.rate}' && "
                "dmsetup resume qos"
            )
            # Only in one direction.
            of = "bps" if case.key == "bps" else "iops"
            lab.io_max(CGROUP, limited, "rbps=max wbps=max riops=max wiops=max")
            lab.io_max(CGROUP, limited, f"r{of}={case.rate} w{of}={case.rate}")
            seen = measure(lab, "/dev/mapper/qos", case)
            peer = measure(lab, limited, case) if case.rw != "randrw" else None
            report(results, case, seen, peer)
            for name, figures in zip(windows, (seen, peer), strict=True):
                if figures:
                    windows[name].append((str(case), fullness(case, figures)))
        results.series(
            "The most in any 100 ms, by what the limit and its burst allow",
            "",
            "ratio",
            windows,
            bound=1,
        )

    with results.guest("shares", vm.Options(icount=True, memory="2G")) as guest:
        shares(results, Lab(guest))


def shares(results: Results, lab: Lab) -> None:
    """What each member of a group gets when all ask for more."""
    disk = lab.disk("raw")
    for name, (promise, _) in MEMBERS.items():
        keys = f"group bench group_iops {CAPACITY} {promise}"
        lab.device(name, f"0 {lab.sectors(disk)} qos {disk} 0 {len(keys.split())} {keys}")
    results.say(f"{len(MEMBERS)} members of a group")
    jobs = {
        name: {"filename": f"/dev/mapper/{name}", "write_lat_log": f"{LOG}-{name}"}
        for name in MEMBERS
    }
    lab.fio(jobs, 900, rw="randread", bs="4k", iodepth=MEMBER_DEPTH, **LOAD)
    rates = {name: logged(lab, f"{LOG}-{name}", BEGIN_MS)["ios"] / SECONDS for name in MEMBERS}
    for name, (keys, expected) in MEMBERS.items():
        results.add(
            f"group of {CAPACITY:,} IOPS, member of {keys}: off by",
            "%",
            [abs(rates[name] / expected - 1) * 100],
            goal=Goal("ferrule", "<=", 2),
        )
    total = sum(rates.values())
    results.add(
        f"group of {CAPACITY:,} IOPS, all members: off by",
        "%",
        [abs(total / CAPACITY - 1) * 100],
        goal=Goal("ferrule", "<=", 0.5),
    )
    status = dict(
        word.split("=", 1) for word in lab.shell("dmsetup status reserved").split() if "=" in word
    )
    results.add("windows of 100 ms looked at", "number", [float(status["reserve_windows"])])
    results.add(
        "of those, windows with less than was reserved",
        "number",
        [float(status["reserve_missed"])],
        goal=Goal("ferrule", "<=", 0),
    )


def measure(lab: Lab, path: str, case: Case) -> dict:
    """What was done when."""
    lab.shell(f"rm -f {LOG}*")
    job = {"filename": path, "rw": case.rw, "bs": case.size, "numjobs": case.jobs}
    lab.fio({"accuracy": job}, 900, iodepth=case.depth, write_lat_log=LOG, **LOAD)
    # fio logs when it reaps. What passes at first, by way of the burst, it reaps only when all its
    # depth is in flight.
    return logged(lab, LOG, 0 if case.depth == 1 else BEGIN_MS)


def logged(lab: Lab, log: str, first: int) -> dict:
    """What fio logged, see windows.py. Windows begin at `first`."""
    command = f"{vm.GUEST_SCRIPTS}/windows.py {first} {BEGIN_MS} {END_MS} '{log}_lat.*.log'"
    return json.loads(lab.shell(command, 900))


def fullness(case: Case, figures: dict) -> float:
    """The most that was in a window, by what may be in one."""
    may = case.rate * (WINDOW_MS + BURST_MS) / 1000 + case.unit
    return figures["most_ios" if case.key == "iops" else "most_bytes"] / may


def report(results: Results, case: Case, seen: dict, peer: dict | None) -> None:
    """How far off the rate is, and the most in a window by what may be in one."""
    what = "ios" if case.key == "iops" else "bytes"
    expected = case.rate * SECONDS

    def error(figures: dict) -> float:
        # One I/O more or less is where the seconds begin and end.
        return max(0, abs(figures[what] - expected) - case.unit) / expected * 100

    for metric, unit, figure, goal in (
        ("off by, over 5 s", "%", error, Goal("ferrule", "<=", 0.5)),
        (
            "most in 100 ms, by what may be",
            "ratio",
            partial(fullness, case),
            Goal("ferrule", "<=", 1),
        ),
    ):
        results.add(
            f"{case}: {metric}",
            unit,
            [figure(seen)],
            peer=[figure(peer)] if peer else None,
            peer_name=PEER if peer else None,
            goal=goal,
        )
