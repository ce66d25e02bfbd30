# SPDX-License-Identifier: GPL-2.0
"""iSCSI over one link and over all links, each of them slow; and how long a cut link is felt.

Two guests: the kernel's iSCSI target, and open-iscsi with multipathd; see scripts/iscsi_lab.py. The
links are so slow that they are what limits, not the emulated CPUs.
"""

import contextlib
import json
import statistics
import time

import iscsi_lab
import vm
from rich.table import Table

from .results import BenchmarkError, Goal, Results

LINKS = 4
LINK_MBIT = 4
# Each way.
LINK_DELAY_MS = 1
ROUNDS = 5
CUTS = 4
SECONDS = 12
WARM_UP = 4
# Half of the I/Os small, half large, at random places; enough of them that each link has some.
JOB = {"rw": "randrw", "rwmixread": 70, "bssplit": "4k/50:64k/50", "ioengine": "libaio"}
JOB |= {"iodepth": 32, "direct": 1, "time_based": 1, "randrepeat": 0, "norandommap": 1}
# By what they are called here: the selector, and how many links.
VARIANTS = {
    "one path": ("round-robin-rs", 1),
    "C round-robin": ("round-robin", LINKS),
    "Rust round-robin": ("round-robin-rs", LINKS),
    "service-time": ("service-time", LINKS),
}


def run(results: Results) -> None:
    """The benchmark."""
    with contextlib.ExitStack() as stack:

        def boot(what: str, options: vm.Options) -> vm.Guest:
            return stack.enter_context(results.guest(what, options))

        lab = iscsi_lab.Lab(boot, LINKS, iscsi_lab.Ramdisk(64), iscsi_lab.IMPATIENT)
        stack.callback(lab.close)
        lab.shell(
            "modprobe -a dm-multipath dm-round-robin dm-service-time &&"
            " insmod $FERRULE_MODULES/mpath-sel/dm-round-robin-rs.ko"
        )
        results.say(f"{LINKS} sessions")
        lab.login()
        measure_cuts(results, lab)
        measure_throughput(results, lab)


def fio(path: str, seconds: int, **options) -> str:
    """A command that runs fio."""
    options = JOB | {"name": "job", "filename": path, "runtime": seconds} | options
    words = " ".join(f"--{key}={value}" for key, value in options.items())
    return f"fio --output-format=json --output=/run/fio.json {words} >/run/fio.err 2>&1"


def job_of(lab: iscsi_lab.Lab) -> dict:
    """What the last fio said."""
    job = json.loads(lab.initiator.check("sed -n '/^{/,$p' /run/fio.json"))["jobs"][0]
    if job["error"]:
        raise BenchmarkError(f"fio ended with error {job['error']}")
    return job


def in_turn(names, turn: int) -> list:
    """In the other order every second time: neither is always the first."""
    return list(names) if turn % 2 == 0 else list(reversed(names))


def measure_cuts(results: Results, lab: iscsi_lab.Lab) -> None:
    """Pull a cable under I/O and put it back."""
    stalls: dict[str, list[float]] = {}
    returns: dict[str, list[float]] = {}
    for turn in range(CUTS):
        for name in in_turn(("C round-robin", "Rust round-robin"), turn):
            path = lab.make_map(f'path_selector "{VARIANTS[name][0]} 0"')
            disk = lab.disks()[0]
            command = fio(path, 600, bssplit="4k/100", rate_iops="100")
            reads = f"awk '{{ print $1 }}' /sys/block/{disk}/stat"
            before = int(lab.shell(reads))
            lab.shell(f"{command} & echo $! >/run/fio.pid")
            lab.wait(f"[ $({reads}) -gt {before + 50} ]", 60)
            lab.plug(lab.links[0], False)
            lab.wait(f"map_name && path_is F {disk}", 60)
            time.sleep(1)
            lab.plug(lab.links[0], True)
            returns.setdefault(name, []).append(lab.wait(f"map_name && path_is A {disk}", 60))
            lab.shell(
                "kill -INT $(cat /run/fio.pid); while kill -0 $(cat /run/fio.pid)"
                " 2>/dev/null; do sleep 0.2; done"
            )
            job = job_of(lab)
            longest = max(job[d]["lat_ns"]["max"] for d in ("read", "write")) / 1e9
            stalls.setdefault(name, []).append(longest)
            lab.shell("remove_map")
    for metric, values in (
        ("link cut: the longest I/O", stalls),
        ("link back: until its path is in service", returns),
    ):
        results.add(
            metric,
            "s",
            values["Rust round-robin"],
            peer=values["C round-robin"],
            peer_name="C round-robin",
            note="When a cut link is noticed and when it is back is for open-iscsi and multipathd "
            "to find out (here: a ping every second, an answer within 2 s, recovery within 2 s).",
        )


def measure_throughput(results: Results, lab: iscsi_lab.Lab) -> None:
    """IOPS and latency of each variant, in turn."""
    lab.login_without_pings()
    path = lab.make_map('path_selector "round-robin-rs 0"')
    # What it has made is taken from here.
    lab.shell("multipathd shutdown; sleep 1")
    for guest in (lab.target, lab.initiator):
        for link in lab.links:
            guest.check(
                f"tc qdisc add dev link{link.number} root netem limit 10000"
                f" delay {LINK_DELAY_MS}ms rate {LINK_MBIT}mbit"
            )
    disks = lab.disks()
    sectors = int(lab.shell(f"blockdev --getsz {path}").split()[-1])
    iops = {name: [] for name in VARIANTS}
    latency = {name: [] for name in VARIANTS}
    for turn in range(ROUNDS):
        results.say(f"round {turn + 1} of {ROUNDS}")
        for name in in_turn(VARIANTS, turn):
            selector, links = VARIANTS[name]
            paths = " ".join(f"/dev/{disk} 1" for disk in disks[:links])
            table = f"0 {sectors} multipath 1 queue_if_no_path 0 1 1 {selector} 0 {links} 1 {paths}"
            lab.shell(
                f"dmsetup reload {path} --table '{table}' && dmsetup suspend --nolockfs {path} &&"
                f" dmsetup resume {path} || exit\n" + fio(path, SECONDS, ramp_time=WARM_UP),
                SECONDS + 120,
            )
            status = lab.shell(f"dmsetup status {path}")
            if " F " in status:
                raise BenchmarkError(f"a path failed meanwhile: {status}")
            job = job_of(lab)
            ios = [job[d]["total_ios"] for d in ("read", "write")]
            means = [job[d]["lat_ns"]["mean"] for d in ("read", "write")]
            iops[name].append(job["read"]["iops"] + job["write"]["iops"])
            latency[name].append(
                sum(n * mean for n, mean in zip(ios, means, strict=True)) / sum(ios) / 1e6
            )
    show(results, iops, latency)
    for what, unit, values in (("IOPS", "IOPS", iops), ("Mean latency", "ms", latency)):
        lines = {name: list(enumerate(seen, 1)) for name, seen in values.items()}
        results.series(
            f"{what} of each round, {LINKS} links of {LINK_MBIT} Mbit/s", "round", unit, lines
        )
    ours = "Rust round-robin"
    for peer in ("one path", "C round-robin", "service-time"):
        claim = peer == "one path"
        for metric, unit, values, goal in (
            ("random 4 KiB and 64 KiB", "IOPS", iops, Goal("ratio", ">=", 2.33)),
            ("mean latency", "ms", latency, Goal("ratio", "<=", 0.375)),
        ):
            results.add(
                f"{metric}, {LINKS} links",
                unit,
                values[ours],
                peer=values[peer],
                peer_name=peer,
                goal=goal if claim else None,
                paired=True,
            )


def show(results: Results, iops: dict, latency: dict) -> None:
    """All variants in one table, the single path first."""
    table = Table(title=f"{LINKS} links of {LINK_MBIT} Mbit/s", title_justify="left")
    for heading in (
        "",
        "IOPS",
        "(least to most)",
        "by one path",
        "mean latency, ms",
        "(least to most)",
        "by one path",
    ):
        table.add_column(heading, justify="right" if heading else "left")
    for name in VARIANTS:
        row = [name]
        for values in (iops, latency):
            low, middle, high = (
                min(values[name]),
                statistics.median(values[name]),
                max(values[name]),
            )
            pairs = zip(values[name], values["one path"], strict=True)
            ratio = statistics.median(ours / theirs for ours, theirs in pairs)
            row += [f"{middle:.0f}", f"{low:.0f} to {high:.0f}", f"{ratio:.2f}"]
        table.add_row(*row)
    results.console.print(table)
