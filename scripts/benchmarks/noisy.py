# SPDX-License-Identifier: GPL-2.0
"""A noisy neighbour: a small random reader beside four unlimited sequential writers on a slow disk.

The disk is null_blk with a latency of 1 ms, a cap on its bandwidth and a deep queue, which the
writers keep full. What the reader sees is compared without anything, with what the kernel has
(io.max on the writers; iocost), and with dm-qos.

Then a storm of metadata, on a disk that is shared: a program that creates and syncs files as fast
as it can, beside a reader that was promised half of what the disk does.

The guest's clock counts instructions (icount), so that the latencies are those of the guest's own
queues, whatever else the host does.
"""

import dataclasses

import vm

from .lab import CGROUP, Lab, job_section
from .results import Goal, Results

MIB = 1 << 20
# The disk. null_blk hands out its bandwidth in slices of 20 ms, and stops when one is used up.
DISK_MIBPS = 64
DISK = {
    "submit_queues": 1,
    "irqmode": 2,
    "completion_nsec": 1_000_000,
    "hw_queue_depth": 256,
    "mbps": DISK_MIBPS,
}
# What limits let through in all, and of that to the writers: less than the disk's bandwidth by what
# one more I/O in a slice of 20 ms takes, so that no slice is used up.
CAPACITY_MIBPS = 56
WRITERS_MIBPS = 54
WRITERS = 4
PART_MIB = 128
RESERVED_IOPS = 1000
# More than 20,000 reads, so that 99.99 % means something, when nothing is in the way.
SECONDS = 50
WARM_UP = 3
WRITERS_CGROUP = "/sys/fs/cgroup/writers"
# The storm: what the disk is taken to do, and what of that the reader is promised.
STORM_IOPS, STORM_RESERVED = 400, 200
STORM_SECONDS = 15
STORM = vm.ROOT / "selftests/dm-qos/storm.py"
WITHIN = 4

# At random times, so that the reader does not fall into step with the disk's slices.
READER = {"rw": "randread", "bs": "4k", "ioengine": "psync", "norandommap": 1}
READER |= {"rate_iops": 500, "rate_process": "poisson", "percentile_list": "99:99.9"}
READER |= {"size": f"{PART_MIB}m", "time_based": 1, "runtime": SECONDS}
WRITER = {"rw": "write", "bssplit": "4k/30:32k/30:128k/40", "ioengine": "libaio", "iodepth": 16}
WRITER |= {"size": f"{PART_MIB}m", "direct": 1, "thread": 1, "time_based": 1, "runtime": 3600}


@dataclasses.dataclass
class Seen:
    """What the reader saw (milliseconds), and what the writers got (MiB/s)."""

    reads: int
    mean: float
    deviation: float
    p99: float
    p999: float
    # Reads per latency, in nanoseconds.
    bins: dict[int, int]
    written: float

    def within(self, objective_ms: float) -> float:
        """The share of reads that took no longer, in per cent."""
        inside = sum(count for ns, count in self.bins.items() if ns <= objective_ms * 1e6)
        return 100 * inside / sum(self.bins.values())


class Neighbours:
    """The disk, its reader and its writers."""

    def __init__(self, lab: Lab):
        self.lab = lab
        self.disk = lab.disk("slow", **DISK)
        self.number = lab.shell(f"lsblk -dno MAJ:MIN {self.disk}").strip()
        lab.cgroup(WRITERS_CGROUP)

    def split(self, *parts: tuple[int, str]) -> str | None:
        """A device of qos targets, each of so many MiB and with these keys."""
        lines = []
        start = 0
        for mib, keys in parts:
            length = mib * MIB // 512
            lines.append(
                f"{start} {length} qos {self.disk} {start} {len(keys.split())} {keys}".rstrip()
            )
            start += length
        return self.lab.device("shared", *lines)

    def measure(self, path: str, with_writers: bool = True) -> Seen:
        """The reader on the first part, the writers on the others."""
        if with_writers:
            jobs = job_section("global", {"filename": path, **WRITER})
            for writer in range(1, 1 + WRITERS):
                jobs += job_section(f"writer{writer}", {"offset": f"{writer * PART_MIB}m"})
            self.lab.shell(
                f"cat >/run/writers.fio <<'END'\n{jobs}END\n"
                f"echo $$ >{WRITERS_CGROUP}/cgroup.procs || exit\n"
                "fio --output=/run/writers.out /run/writers.fio & echo $! >/run/writers.pid\n"
                f"sleep {WARM_UP}; kill -0 $!"
            )
        before = self.sectors_written()
        job = self.lab.fio({"reader": {"filename": path, **READER}}, 900)["reader"]
        written = (self.sectors_written() - before) * 512 / MIB / (job["job_runtime"] / 1e3)
        if with_writers:
            self.lab.shell(
                "pid=$(cat /run/writers.pid); kill -INT $pid\n"
                "while kill -0 $pid 2>/dev/null; do sleep 0.2; done"
            )
        latency = job["read"]["clat_ns"]
        return Seen(
            reads=job["read"]["total_ios"],
            mean=latency["mean"] / 1e6,
            deviation=latency["stddev"] / 1e6,
            p99=latency["percentile"]["99.000000"] / 1e6,
            p999=latency["percentile"]["99.900000"] / 1e6,
            bins={int(ns): count for ns, count in latency["bins"].items()},
            written=written,
        )

    def sectors_written(self) -> int:
        """By all, to the disk."""
        return int(self.lab.shell("cat /sys/block/slow/stat").split()[6])

    def with_io_max(self) -> Seen:
        """The writers' control group held by blk-throttle."""
        self.lab.io_max(WRITERS_CGROUP, self.disk, f"wbps={WRITERS_MIBPS * MIB}")
        seen = self.measure(self.disk)
        self.lab.io_max(WRITERS_CGROUP, self.disk, "wbps=max")
        return seen

    def with_iocost(self) -> Seen:
        """iocost with the disk's true cost, and nearly all of it for the reader if it wants it."""
        model = f"rbps={CAPACITY_MIBPS * MIB} wbps={CAPACITY_MIBPS * MIB} rseqiops=20000"
        model += " rrandiops=20000 wseqiops=20000 wrandiops=20000"
        self.lab.shell(
            f"cd /sys/fs/cgroup && echo '{self.number} ctrl=user model=linear {model}'"
            " >io.cost.model &&"
            f" echo '{self.number} enable=1 ctrl=user min=100 max=100' >io.cost.qos &&"
            f" echo 10000 >{CGROUP}/io.weight"
        )
        seen = self.measure(self.disk)
        self.lab.shell(f"echo '{self.number} enable=0' >/sys/fs/cgroup/io.cost.qos")
        return seen

    def with_qos(self, *parts: tuple[int, str]) -> Seen | None:
        """dm-qos over each part. None if it does not take these keys."""
        path = self.split(*parts)
        if path is None:
            return None
        seen = self.measure(path)
        self.lab.remove("shared")
        return seen


def run(results: Results) -> None:
    """All variants, one after the other."""
    with results.guest("reader and writers", vm.Options(icount=True)) as guest:
        neighbours = Neighbours(Lab(guest))

        def say(name: str, seen: Seen | None) -> Seen | None:
            results.say(f"{name}: {describe(seen) if seen else 'refused'}")
            return seen

        alone = neighbours.measure(neighbours.disk, with_writers=False)
        objective = WITHIN * alone.p99
        say("alone", alone)
        results.say(
            f"the objective: {WITHIN} times the p99 of the reader alone, {objective:.2f} ms"
        )
        peers = {
            "no qos": say("no qos", neighbours.measure(neighbours.disk)),
            "io.max": say("io.max", neighbours.with_io_max()),
            "iocost": say("iocost", neighbours.with_iocost()),
        }
        limited = [(PART_MIB, ""), (WRITERS * PART_MIB, f"bps {WRITERS_MIBPS}M")]
        group = f"group disk group_bps {CAPACITY_MIBPS}M group_iops 20000 group_depth 64"
        members = [(PART_MIB, f"{group} reserve_iops {RESERVED_IOPS}")]
        members += [(PART_MIB, group)] * WRITERS
        ours = {
            "limits only": say("qos, limits only", neighbours.with_qos(*limited)),
            "group": say("qos, group", neighbours.with_qos(*members)),
        }
    with results.guest("a storm of metadata", vm.Options(icount=True)) as guest:
        storms(results, Storm(Lab(guest)))
    report(results, objective, alone, peers, ours)
    variants = {f"qos, {name}": seen for name, seen in ours.items()}
    draw(results, {"the reader alone": alone, **peers, **variants})


class Storm:
    """A reader, and a file system in which files are created, on the two halves of a disk."""

    def __init__(self, lab: Lab):
        self.lab = lab
        self.disk = lab.disk("shared", memory_backed=1)
        self.half = lab.sectors(self.disk) // 2
        lab.cgroup(WRITERS_CGROUP)
        lab.shell("mkdir /run/storm")

    def halves(self, target: str, *keys: str) -> list[str]:
        """A device over each half."""
        found = []
        for number, words in enumerate(keys or ("", "")):
            start = number * self.half
            count = f" {len(words.split())} {words}" if words else ""
            line = f"0 {self.half} {target} {self.disk} {start}{count}"
            found.append(self.lab.device(f"half{number}", line))
        return found

    def measure(self, reader: str, files: str) -> float:
        """Reads per second beside the storm."""
        self.lab.shell(
            f"mke2fs -q -t ext4 {files} && mount {files} /run/storm || exit\n"
            f"echo $$ >{WRITERS_CGROUP}/cgroup.procs || exit\n"
            f"python3 -I {STORM} /run/storm >/run/storm.out 2>&1 & echo $! >/run/storm.pid\n"
            f"sleep {WARM_UP}; kill -0 $!"
        )
        options = {"filename": reader, "rw": "randread", "bs": "4k", "ioengine": "libaio"}
        options |= {"iodepth": 8, "time_based": 1, "runtime": STORM_SECONDS}
        read = self.lab.fio({"reader": options}, 900)["reader"]["read"]
        return read["iops"]

    def end(self) -> None:
        """The storm."""
        self.lab.shell(
            "pid=$(cat /run/storm.pid); kill -KILL $pid\n"
            "while kill -0 $pid 2>/dev/null; do sleep 0.2; done; umount /run/storm",
            600,
        )

    def with_io_max(self) -> float:
        """Half of the I/Os for each, by blk-throttle."""
        half = STORM_IOPS - STORM_RESERVED
        self.lab.io_max(WRITERS_CGROUP, self.disk, f"riops={half} wiops={half}")
        self.lab.io_max(CGROUP, self.disk, f"riops={STORM_RESERVED}")
        seen = self.measure(*self.halves("linear"))
        self.lab.io_max(WRITERS_CGROUP, self.disk, "riops=max wiops=max")
        self.lab.io_max(CGROUP, self.disk, "riops=max")
        self.end()
        self.lab.remove("half0", "half1")
        return seen

    def with_iocost(self) -> float:
        """The disk's cost as it is taken to be, and both of equal weight."""
        model = "rbps=1073741824 wbps=1073741824 " + " ".join(
            f"{kind}={STORM_IOPS}" for kind in ("rseqiops", "rrandiops", "wseqiops", "wrandiops")
        )
        number = self.lab.shell(f"lsblk -dno MAJ:MIN {self.disk}").strip()
        self.lab.shell(
            f"cd /sys/fs/cgroup && echo '{number} ctrl=user model=linear {model}' >io.cost.model &&"
            f" echo '{number} enable=1 ctrl=user min=100 max=100' >io.cost.qos"
        )
        seen = self.measure(*self.halves("linear"))
        self.lab.shell(f"echo '{number} enable=0' >/sys/fs/cgroup/io.cost.qos")
        self.end()
        self.lab.remove("half0", "half1")
        return seen

    def with_qos(self) -> float:
        """A group, in which the reader reserved half."""
        group = f"group disk group_iops {STORM_IOPS}"
        seen = self.measure(*self.halves("qos", f"{group} reserve_iops {STORM_RESERVED}", group))
        self.lab.shell("dmsetup message half1 0 set group_iops 0")
        self.end()
        self.lab.remove("half0", "half1")
        return seen


def storms(results: Results, storm: Storm) -> None:
    """What the reader gets of what it was promised."""
    ours = storm.with_qos()
    for name, peer in (("io.max", storm.with_io_max()), ("iocost", storm.with_iocost())):
        results.add(
            f"reads of {STORM_RESERVED} promised beside a storm of metadata: qos, group",
            "1/s",
            [ours],
            peer=[peer],
            peer_name=name,
            goal=Goal("ferrule", ">=", STORM_RESERVED * 0.95),
        )


def draw(results: Results, variants: dict[str, Seen | None]) -> None:
    """How many reads took how long."""
    lines = {}
    for name, seen in variants.items():
        if seen:
            left = total = sum(seen.bins.values())
            lines[name] = points = []
            for ns, count in sorted(seen.bins.items()):
                # A step: so many took that long, and so many longer.
                points.append((ns / 1e6, 100 * left / total))
                left -= count
                if left:
                    points.append((ns / 1e6, 100 * left / total))
    results.series("Reads that took so long or longer", "ms", "% of reads", lines, log="xy")


def describe(seen: Seen) -> str:
    """In one line."""
    return (
        f"{seen.reads:,} reads, mean {seen.mean:.2f} ms, deviation {seen.deviation:.2f} ms,"
        f" p99 {seen.p99:.2f} ms, p99.9 {seen.p999:.2f} ms, {seen.written:.1f} MiB/s written"
    )


def report(results, objective, alone, peers, ours) -> None:
    """The metrics. Those with a goal are of the group: a reservation is what the goal is about."""
    results.add(
        "objective for the reader",
        "ms",
        [objective],
        peer=[alone.p99],
        peer_name="p99, alone",
        better="",
    )
    for variant, seen in ours.items():
        refused = None if seen else "this dm-qos refuses the keys of groups"
        for peer_name, peer in peers.items():
            figures = [
                ("standard deviation", "ms", lambda s: s.deviation, Goal("ratio", "<=", 0.25)),
                ("p99.9", "ms", lambda s: s.p999, None),
                (
                    f"reads within {objective:.2f} ms",
                    "%",
                    lambda s: s.within(objective),
                    Goal("ferrule", ">=", 99.99),
                ),
                ("the writers' bandwidth", "MiB/s", lambda s: s.written, None),
            ]
            if peer_name == "no qos":
                figures += [
                    ("mean", "ms", lambda s: s.mean, None),
                    ("p99", "ms", lambda s: s.p99, None),
                    ("reads", "number", lambda s: s.reads, None),
                ]
            for metric, unit, figure, goal in figures:
                results.add(
                    f"{metric}: qos, {variant}",
                    unit,
                    [figure(seen)] if seen else None,
                    peer=[figure(peer)],
                    peer_name=peer_name,
                    goal=goal if variant == "group" and peer_name == "no qos" else None,
                    note=refused,
                )
