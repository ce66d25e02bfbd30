# SPDX-License-Identifier: GPL-2.0
"""What dm-qos costs: per I/O that its limits let pass, in throughput, and per I/O that it holds."""

import itertools
import json
import os
import statistics

import vm

from .lab import CGROUP, Lab
from .results import Goal, Results

# Limits that nothing here comes near.
NOT_REACHED = {
    "iops": "iops 10000000",
    "iops, bps": "iops 10000000 bps 256G",
    "all six keys": "iops 10000000 read_iops 10000000 write_iops 10000000"
    " bps 256G read_bps 256G write_bps 256G",
    # Shorter than it takes until the clock is looked at again.
    "iops with a short burst": "iops 10000000 burst_ms 1",
}
GROUP = (
    "group bench reserve_iops 1000 reserve_bps 4M weight 100"
    " group_iops 10000000 group_bps 256G group_depth 1024"
)
IO_MAX = {
    "iops": "riops=10000000 wiops=10000000",
    "all six keys": "riops=10000000 wiops=10000000 rbps=274877906944 wbps=274877906944",
}
LINEAR, RAW = "dm-linear", "raw device"
AT_DEPTH_1 = {"rw": "randread", "bs": "4k", "ioengine": "psync", "norandommap": 1}

# Instructions per I/O: the first round warms up.
ROUNDS = 5
IOS = 20_000
# Throughput.
PAIRS = 9
SECONDS = 1
# I/O that is held.
HELD_IOPS = 10_000
HELD_DEPTH = 32
HELD_IOS = 10_000
HELD_ROUNDS = 3
# As uneven as io.max.
UNEVEN = "qos, burst_ms 64"


def run(results: Results) -> None:
    """All of it."""
    with results.guest("instructions per I/O", vm.Options(icount=True)) as guest:
        cost_of_passing(results, Lab(guest))
    with results.guest("CPU time per held I/O", vm.Options(icount=True)) as guest:
        cost_of_holding(results, Lab(guest))
    cpus = min(max(os.cpu_count(), 2), 4)
    with results.guest("throughput", vm.Options(cpus=cpus)) as guest:
        throughput(results, Lab(guest), cpus)


def qos_table(lab: Lab, disk: str, keys: str) -> str:
    """A table line over a whole disk."""
    return f"0 {lab.sectors(disk)} qos {disk} 0 {len(keys.split())} {keys}".rstrip()


def devices(lab: Lab) -> tuple[dict[str, str], str | None]:
    """What is compared, by name; all over null_blk. And why there is no group, if there is none.

    A limit of blk-throttle holds for a control group and a device, so each has a device of its own.
    """
    disk = lab.disk("raw")
    linear = f"0 {lab.sectors(disk)} linear {disk} 0"
    found = {RAW: disk, LINEAR: lab.device("linear", linear)}
    for number, (name, limits) in enumerate(IO_MAX.items()):
        raw = lab.disk(f"raw{number}")
        dm = lab.device(f"linear{number}", linear)
        for device, above in ((raw, RAW), (dm, LINEAR)):
            lab.io_max(CGROUP, device, limits)
            found[f"io.max on {above}: {name}"] = device
    for number, (name, keys) in enumerate({"no limit": "", **NOT_REACHED, "group": GROUP}.items()):
        device = lab.device(f"qos{number}", qos_table(lab, disk, keys))
        if device:
            found[f"qos: {name}"] = device
    missing = None if "qos: group" in found else "this dm-qos refuses the keys of groups"
    return found, missing


def cost_of_passing(results: Results, lab: Lab) -> None:
    """Instructions from submission to completion of a read, as fio sees it in its own clock."""
    found, no_group = devices(lab)
    results.say(f"{ROUNDS} rounds of {IOS:,} reads on each of {len(found)} devices")
    jobs = {
        f"{turn}/{name}": {"filename": path, "stonewall": 1}
        for turn in range(ROUNDS)
        for name, path in found.items()
    }
    done = lab.fio(jobs, 1800, **AT_DEPTH_1, number_ios=IOS, io_size="1t")
    samples = {
        name: [done[f"{turn}/{name}"]["read"]["lat_ns"]["mean"] for turn in range(1, ROUNDS)]
        for name in found
    }

    what, unit = "4 KiB read at depth 1: qos, {}", "instructions"
    add = results.add
    for peer in (RAW, LINEAR):
        add(
            what.format("no limit"),
            unit,
            samples["qos: no limit"],
            peer=samples[peer],
            peer_name=peer,
        )
    for name in (*NOT_REACHED, "group"):
        label = f"{name} not reached" if name != "group" else "group not contended"
        ours = samples.get(f"qos: {name}")
        note = no_group if name == "group" else None
        add(
            what.format(label),
            unit,
            ours,
            peer=samples[LINEAR],
            peer_name=LINEAR,
            goal=Goal("ratio", "<=", 1.03 if name == "iops" else 1.05),
            note=note,
        )
        for peer in (f"io.max on {below}: {name}" for below in (RAW, LINEAR)):
            if peer in samples:
                goal = Goal("ratio", "<", 1)
                add(what.format(label), unit, ours, peer=samples[peer], peer_name=peer, goal=goal)
    # blk-throttle sits on whatever device there is, dm-qos brings one: what does the limit add?
    for name in IO_MAX:
        peer = f"io.max on {RAW}: {name}"
        add(
            f"what {name} not reached adds to dm-linear or to the raw device",
            unit,
            differences(samples[f"qos: {name}"], samples[LINEAR]),
            peer=differences(samples[peer], samples[RAW]),
            peer_name=peer,
            goal=Goal("ratio", "<", 1),
        )


def differences(samples: list[float], base: list[float]) -> list[float]:
    """Each less the median of what it stands on."""
    return [sample - statistics.median(base) for sample in samples]


def cost_of_holding(results: Results, lab: Lab) -> None:
    """CPU time of fio, kernel and interrupts per I/O, when a limit holds nearly all of them."""
    disk, limited = lab.disk("raw"), lab.disk("limited")
    linear = f"0 {lab.sectors(disk)} linear {disk} 0"
    found = {
        "qos": lab.device("qos", qos_table(lab, disk, f"iops {HELD_IOPS}")),
        UNEVEN: lab.device("uneven", qos_table(lab, disk, f"iops {HELD_IOPS} burst_ms 64")),
        f"io.max on {RAW}": limited,
        f"io.max on {LINEAR}": lab.device("linear", linear),
    }
    for name in (f"io.max on {RAW}", f"io.max on {LINEAR}"):
        lab.io_max(CGROUP, found[name], f"riops={HELD_IOPS}")
    # What fio takes to start is in a short run as well as in a long one.
    short = HELD_DEPTH
    options = {"rw": "randread", "bs": "4k", "ioengine": "libaio", "iodepth": HELD_DEPTH}
    options |= {"norandommap": 1, "io_size": "1t"}
    cpu = {name: [] for name in found}
    iops = {name: [] for name in found}
    deviation = {name: [] for name in found}
    for turn in range(HELD_ROUNDS + 1):
        results.say(f"{HELD_IOS:,} reads at {HELD_IOPS:,} a second, round {turn}")
        for name, path in found.items():
            busy = []
            for ios in (short, short + HELD_IOS):
                done = lab.fio(
                    {"held": {"filename": path, "number_ios": ios}},
                    600,
                    wrapper=str(vm.GUEST_SCRIPTS / "busy.py"),
                    **options,
                )
                busy.append(json.loads(done["wrapper"])["busy_ns"])
            if turn:
                cpu[name].append((busy[1] - busy[0]) / HELD_IOS)
                iops[name].append(done["held"]["read"]["iops"])
                deviation[name].append(done["held"]["read"]["clat_ns"]["stddev"] / 1e3)
    held = f"CPU time per held read, {HELD_IOPS:,} a second, depth {HELD_DEPTH}"
    for ours, peer in itertools.product(("qos", UNEVEN), list(found)[2:]):
        # To let I/O go in batches is cheap, and uneven: what is as uneven is to be compared.
        goal = Goal("ratio", "<", 1) if ours == UNEVEN else None
        for metric, unit, samples, more in (
            (held, "instructions", cpu, {"goal": goal}),
            (f"rate of it, limit {HELD_IOPS:,}", "IOPS", iops, {"better": ""}),
            ("standard deviation of its latency", "us", deviation, {}),
        ):
            name = metric if ours == "qos" else f"{metric}: {ours}"
            results.add(name, unit, samples[ours], peer=samples[peer], peer_name=peer, **more)


def throughput(results: Results, lab: Lab, cpus: int) -> None:
    """Reads per second of one job per CPU, all on one device, in turn with the peers."""
    found, no_group = devices(lab)
    samples = {name: [] for name in found}
    for turn in range(PAIRS + 1):
        results.say(f"{SECONDS} s on each of {len(found)} devices, {cpus} jobs, round {turn}")
        jobs = {name: {"filename": path, "stonewall": 1} for name, path in found.items()}
        done = lab.fio(
            jobs,
            600,
            **AT_DEPTH_1,
            numjobs=cpus,
            group_reporting=1,
            time_based=1,
            runtime=SECONDS,
        )
        if turn:
            for name, values in samples.items():
                values.append(done[name]["read"]["iops"])
    for name in ("no limit", *NOT_REACHED, "group"):
        for peer in (LINEAR, f"io.max on {RAW}: {name}", f"io.max on {LINEAR}: {name}"):
            if peer in samples:
                results.add(
                    f"4 KiB reads, {cpus} jobs at depth 1: qos, {name}",
                    "IOPS",
                    samples.get(f"qos: {name}"),
                    peer=samples[peer],
                    peer_name=peer,
                    note=no_group if name == "group" else None,
                    paired=True,
                )
