# SPDX-License-Identifier: GPL-2.0
"""What the path selector costs, by the number of paths and of CPUs, beside the C round-robin."""

import os
import pathlib
import random
import statistics
import subprocess
import sys

import vm

from .lab import Lab
from .results import OUT, Goal, Results

# What it stands on: a selector that always takes the first path is dm-multipath's own part.
FIRST = "first-path"
OURS, PEER = "round-robin-rs", "round-robin"
MODULES = {
    FIRST: "selftests/modules/dm-first-path.ko",
    OURS: "mpath-sel/dm-round-robin-rs.ko",
    PEER: "dm-round-robin.ko",
}
PATHS = (2, 4, 16, 64)
# What looks at more than whose turn it is: by what it is called here, its words in a table.
LATENCY, NEAREST, SERVICE_TIME = "latency", "nearest", "service-time"
LOOKS = {
    LATENCY: f"{OURS} 1 latency",
    NEAREST: f"{OURS} 1 nearest",
    SERVICE_TIME: "service-time 0",
}
# The longest schedule that two paths can have.
LONGEST = "2048 2047"

# Instructions per I/O: the first round warms up.
ROUNDS = 6
IOS = 5_000
READ = {"rw": "randread", "bs": "4k", "ioengine": "psync", "norandommap": 1}
READ |= {"number_ios": IOS, "io_size": "1t"}
HALF = (
    f"Reads on multipath devices: of {ROUNDS} rounds the {ROUNDS // 2} with the fewest instructions"
    " count, for each selector and number of paths: in some processes every I/O takes more,"
    " whatever the device. The spread is that of those that count."
)
# A device of many paths, each of a weight of its own: instructions until it is there and was read
# from, as milliseconds of a CPU that does 1,000 million of them in a second.
MANY = 1024
MANY_MS = 50
# Instructions per call.
CALL_ROUNDS = 3
CALL_MS = 20
# Selections from all CPUs.
PAIRS = 7
SELECT_MS = 1000
# No slope: not more than this times what it takes one CPU.
FLAT = 1.1


def run(results: Results) -> None:
    """All of it."""
    with results.guest("instructions per I/O", vm.Options(icount=True, udev=False)) as guest:
        lab = Lab(guest, in_cgroup=False)
        per_io(results, lab)
        many(results, lab)
    with results.guest("instructions per call", vm.Options(icount=True, udev=False)) as guest:
        per_call(results, Selectors(guest, results.kdir))
    kdir = native()
    options = vm.Options(kernel="native", kdir=kdir, cpus=min(os.cpu_count(), 4))
    with results.guest("selections from all CPUs", options) as guest:
        from_all_cpus(results, Selectors(guest, kdir), options.cpus)


def native() -> pathlib.Path:
    """User-mode Linux as fast as it is, and the modules for it."""
    scripts, kernel = vm.ROOT / "scripts", "native"
    made = subprocess.run([scripts / "kernel.sh", kernel], check=True, stdout=subprocess.PIPE)
    kdir = pathlib.Path(made.stdout.decode().strip())
    modules = vm.ROOT / "out/modules" / kernel
    subprocess.run([scripts / "modules.sh", kdir, modules], check=True, stdout=sys.stderr)
    return kdir


def per_io(results: Results, lab: Lab) -> None:
    """Instructions from submission to completion of a read, as fio sees it in its own clock."""
    lab.shell(
        "modprobe -a dm-multipath dm-round-robin dm-service-time &&"
        f" insmod $FERRULE_MODULES/{MODULES[FIRST]} &&"
        f" insmod $FERRULE_MODULES/{MODULES[OURS]}"
    )
    disks = [lab.disk(f"path{number}") for number in range(max(PATHS))]
    sectors = lab.sectors(disks[0])
    found = {}
    for paths in PATHS:
        arguments = " ".join(f"{disk} 1" for disk in disks[:paths])
        for name in (*MODULES, *LOOKS):
            selector = LOOKS.get(name, f"{name} 0")
            found[name, paths] = lab.device(
                f"{name}-{paths}",
                f"0 {sectors} multipath 2 queue_mode bio 0 1 1 {selector} {paths} 1 {arguments}",
            )
    seen = {device: [] for device in found}
    for turn in range(ROUNDS + 1):
        results.say(f"{IOS:,} reads on each of {len(found)} devices, round {turn}")
        for device, path in random.Random(turn).sample(list(found.items()), len(found)):
            done = lab.fio({"read": {"filename": path}}, 300, "setarch -R", **READ)
            if turn:
                seen[device].append(done["read"]["read"]["lat_ns"]["mean"])
    # In some processes each I/O takes a hundred instructions more, whatever the device; why is not
    # known. So processes are short, their order changes, and the lower half counts.
    samples = {device: sorted(values)[: ROUNDS // 2] for device, values in seen.items()}

    # The first of however many paths is the same.
    first = sorted(value for paths in PATHS for value in samples[FIRST, paths])
    base = first[: len(first) // 2]

    own = {}
    for paths in PATHS:
        ours, peer = samples[OURS, paths], samples[PEER, paths]
        results.add(
            f"4 KiB read at depth 1, queue_mode bio, {paths} paths",
            "instructions",
            ours,
            peer=peer,
            peer_name=PEER,
            note=HALF,
        )
        own[paths] = less(ours, base), less(peer, base)
        results.add(
            f"of which the selector, {paths} paths",
            "instructions",
            own[paths][0],
            peer=own[paths][1],
            peer_name=PEER,
            goal=Goal("ratio", "<=", 0.7),
            note=HALF,
        )
        for name, peer_name, most in (
            (LATENCY, SERVICE_TIME, 1),
            (NEAREST, OURS, 1.02),
        ):
            results.add(
                f"of which the selector with {name}, {paths} paths",
                "instructions",
                less(samples[name, paths], base),
                peer=less(samples[peer_name, paths], base),
                peer_name=peer_name,
                goal=Goal("ratio", "<=", most),
                note=HALF,
            )
    results.series(
        "The selector's part of a read, by the number of paths",
        "paths",
        "instructions",
        {
            name: [(paths, statistics.median(parts[index])) for paths, parts in own.items()]
            for index, name in enumerate((OURS, PEER))
        },
        log="x",
    )
    # With more disks there is more to account for, whatever selects them.
    few, many = own[min(PATHS)], own[max(PATHS)]
    results.add(
        f"what {max(PATHS)} paths add to {min(PATHS)}, disks included",
        "instructions",
        less(many[0], few[0]),
        peer=less(many[1], few[1]),
        peer_name=PEER,
        note=HALF,
    )


def many(results: Results, lab: Lab) -> None:
    """A device of many paths is made, and read from once: with that, the schedule is there."""
    results.say(f"{MANY:,} paths")
    disk = "/dev/path0"
    sectors = lab.sectors(disk)
    paths = " ".join(f"{disk} {10 + number * 37 % 90}" for number in range(MANY))
    took = {name: [] for name in MODULES}
    for turn in range(ROUNDS + 1):
        for name, samples in took.items():
            output = lab.shell(
                f"cat >/run/table <<'END'\n0 {sectors} multipath 2 queue_mode bio 0 1 1"
                f" {name} 0 {MANY} 1 {paths}\nEND\n"
                # Time on the CPU: much of the rest is waiting for RCU.
                "TIMEFORMAT='%3U %3S'; { time { dmsetup create many </run/table &&"
                " dd if=/dev/mapper/many of=/dev/null bs=4k count=1 iflag=direct status=none; }; }"
                " 2>&1; dmsetup remove --retry many"
            )
            if turn:
                user, system = output.split()[-2:]
                samples.append((float(user) + float(system)) * 1000)
    base = took[FIRST]
    results.add(
        f"of making a device of {MANY:,} paths of uneven weights, the selector",
        "ms",
        less(took[OURS], base),
        peer=less(took[PEER], base),
        peer_name=PEER,
        goal=Goal("ferrule", "<=", MANY_MS),
        note="By instructions, 1,000 million a second; what is left after dm-multipath's own part.",
    )


def less(samples: list[float], base: list[float]) -> list[float]:
    """Each less the median of what it stands on."""
    return [sample - statistics.median(base) for sample in samples]


class Selectors:
    """A guest in which the selectors are called by selftests/modules/selector-load.c."""

    def __init__(self, guest: vm.Guest, kdir: pathlib.Path):
        self.guest = guest
        kernel = guest.options.kernel
        modules = vm.ROOT / "out" / "modules" / kernel
        own = OUT / "selectors" / kernel
        own.mkdir(parents=True, exist_ok=True)
        script = [f"insmod {modules}/selftests/modules/selector-load.ko || exit"]
        for module in MODULES.values():
            source = modules / module if "/" in module else kdir / "drivers/md" / module
            told_where_to_register(source, own / source.name)
            script.append(f"insmod {own / source.name} || exit")
        guest.check("\n".join(script))

    def run(self, what: str, name: str, number: int, ms: int, weights: str) -> tuple[int, int]:
        """How many calls, and the nanoseconds that they took."""
        run = "/sys/module/selector_load/parameters/run"
        words = f"{what} {name} {number} {ms} {weights}"
        calls, took = self.guest.check(f"echo {words} >{run} && cat {run}", 600).split()
        return int(calls), int(took)

    def cpu_ns(self) -> int:
        """CPU time that the host has given the guest, which is user-mode Linux, so far."""
        tasks = pathlib.Path(f"/proc/{self.guest.process.pid}/task")
        return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks.iterdir())


def told_where_to_register(module: pathlib.Path, copy: pathlib.Path) -> None:
    """A copy of a selector's module that takes selector-load for dm-multipath."""
    version = os.environ.get("LLVM", "").removeprefix("1")
    command = [f"llvm-objcopy{version}"]
    for verb in ("register", "unregister"):
        command.append(f"--redefine-sym=dm_{verb}_path_selector=selector_load_{verb}")
    subprocess.run([*command, str(module), str(copy)], check=True)


def per_call(results: Results, selectors: Selectors) -> None:
    """The callbacks alone: in this guest a nanosecond is an instruction."""
    results.say("calls of select_path and fail_path")

    def calls(what: str, name: str, weights: str, number: int = 1) -> list[float]:
        runs = [selectors.run(what, name, number, CALL_MS, weights) for _ in range(CALL_ROUNDS)]
        return [took / number for number, took in runs]

    own = {}
    for paths in PATHS:
        weights = " ".join(["1"] * paths)
        base = calls("select", FIRST, weights)
        own[paths] = less(calls("select", OURS, weights), base)
        results.add(
            f"select_path called alone, {paths} paths, more than to take the first",
            "instructions",
            own[paths],
            peer=less(calls("select", PEER, weights), base),
            peer_name=PEER,
            goal=Goal("ratio", "<=", 0.7),
        )
    results.add(
        f"select_path called alone, {max(PATHS)} paths by {min(PATHS)}",
        "instructions",
        own[max(PATHS)],
        peer=own[min(PATHS)],
        peer_name=f"{min(PATHS)} paths",
        goal=Goal("ratio", "<=", 1.02),
    )
    for what, weights in (("2 paths of equal weight", "1 1"), ("the longest schedule", LONGEST)):
        results.add(
            f"fail_path or reinstate_path, {what}",
            "instructions",
            calls("fail", OURS, weights, 100),
            peer=calls("fail", PEER, "1 1", 100),
            peer_name=PEER,
        )


def from_all_cpus(results: Results, selectors: Selectors, cpus: int) -> None:
    """CPU time of a selection, by the number of CPUs that select at once in one group.

    Not the time that it takes: the CPUs of user-mode Linux are threads of a host that has other
    work too. Who waits for a lock spins, so that is in it.
    """
    weights = " ".join(["1"] * 4)
    took = {}
    for turn in range(PAIRS + 1):
        results.say(f"{SELECT_MS} ms for each selector and number of CPUs, round {turn}")
        for number in range(1, cpus + 1):
            for name in (OURS, PEER):
                before = selectors.cpu_ns()
                calls, _ = selectors.run("select", name, number, SELECT_MS, weights)
                if turn:
                    ns = (selectors.cpu_ns() - before) / calls
                    took.setdefault((name, number), []).append(ns)
    for number in range(1, cpus + 1):
        results.add(
            f"CPU time of a selection, {number} CPUs at once",
            "ns",
            took[OURS, number],
            peer=took[PEER, number],
            peer_name=PEER,
            paired=True,
        )
    results.series(
        "CPU time of a selection, by how many CPUs select at once",
        "CPUs",
        "ns",
        {
            name: [(n, statistics.median(took[name, n])) for n in range(1, cpus + 1)]
            for name in (OURS, PEER)
        },
    )
    for number in range(2, cpus + 1):
        for name in (OURS, PEER):
            results.add(
                f"{name}: CPU time of a selection, {number} CPUs at once",
                "ns",
                took[name, number],
                peer=took[name, 1],
                peer_name="1 CPU",
                goal=Goal("ratio", "<=", FLAT) if name == OURS else None,
                paired=True,
            )
