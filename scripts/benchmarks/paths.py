# SPDX-License-Identifier: GPL-2.0
"""Two paths that are not equal, by every path selector: one slower, narrower, lossy, or changing.

Two guests: the kernel's iSCSI target, and open-iscsi with multipathd; see scripts/iscsi_lab.py.
What is wrong with a link is netem's work, at both ends.
"""

import contextlib
import dataclasses
import statistics

import iscsi_lab
import vm
from rich.table import Table

from . import iscsi
from .results import BenchmarkError, Goal, Results

ROUNDS = 3
SECONDS = 8
WARM_UP = 3
OURS = "round-robin-rs latency"
ROUND_ROBIN = "round-robin"
# By what they are called here: the selector with its arguments, and those of a path.
SELECTORS = {
    ROUND_ROBIN: ("round-robin 0", "1"),
    "queue-length": ("queue-length 0", "1"),
    "service-time": ("service-time 0", "1"),
    "historical-service-time": ("historical-service-time 0", "1"),
    "round-robin-rs": ("round-robin-rs 0", "1"),
    OURS: ("round-robin-rs 1 latency", "1"),
}


@dataclasses.dataclass(frozen=True)
class Links:
    """What netem does on each of the two links, and the I/O on them."""

    first: str
    second: str
    depth: int = 8
    bs: str = "4k"


ROWS = {
    "equal": Links("delay 1ms", "delay 1ms"),
    "30 ms more on one": Links("delay 1ms", "delay 16ms"),
    "a quarter of the bandwidth on one": Links(
        "delay 1ms rate 16mbit", "delay 1ms rate 4mbit", 32, "16k"
    ),
    "1 % lost on one": Links("delay 1ms", "delay 1ms loss 1%"),
}
GOALS = {
    ("equal", ROUND_ROBIN): Goal("ratio", ">=", 0.99),
    ("30 ms more on one", ROUND_ROBIN): Goal("ratio", ">=", 3.3),
    ("30 ms more on one", "queue-length"): Goal("ratio", ">=", 1.5),
}
# The change: from when on, and what part of the I/Os the better path is to have then.
NOTICED_AFTER = 1
HAS_ITS_SHARE = 0.75


def run(results: Results) -> None:
    """The benchmark."""
    with contextlib.ExitStack() as stack:

        def boot(what: str, options: vm.Options) -> vm.Guest:
            return stack.enter_context(results.guest(what, options))

        lab = iscsi_lab.Lab(boot, 2, iscsi_lab.Ramdisk(64))
        stack.callback(lab.close)
        lab.shell(
            "modprobe -a dm-multipath dm-round-robin dm-queue-length dm-service-time &&"
            " insmod $FERRULE_MODULES/mpath-sel/dm-round-robin-rs.ko"
        )
        # Not every kernel has it.
        names = list(SELECTORS)
        if lab.initiator.run("modprobe dm-historical-service-time", 60)[0]:
            names.remove("historical-service-time")
        lab.login()
        lab.login_without_pings()
        path = lab.make_map('path_selector "round-robin-rs 0"')
        lab.shell("multipathd shutdown; sleep 1")
        # For all selectors: I/Os end on the CPU that has started them.
        lab.shell("for disk in /sys/block/sd*; do echo 2 >$disk/queue/rq_affinity; done")
        for row, links in ROWS.items():
            measure(results, lab, path, names, row, links)
        measure_change(results, lab, path, names)


def on_links(lab: iscsi_lab.Lab, script: str, netem: tuple[str, ...]) -> None:
    """Run a script for each link, at both ends, with what netem is to do on it."""
    for guest in (lab.target, lab.initiator):
        for link, words in zip(lab.links, netem, strict=True):
            guest.check(f"link=link{link.number} netem='netem limit 10000 {words}'; {script}")


def shape(lab: iscsi_lab.Lab, *netem: str) -> None:
    """Do this to the links, at both ends, and nothing of what was done before."""
    # What is not named stays as it was when netem is there already.
    script = "tc qdisc del dev $link root 2>/dev/null; tc qdisc add dev $link root $netem"
    on_links(lab, script, netem)


def change(lab: iscsi_lab.Lab, *delays: str) -> None:
    """Change the delays of the links, at both ends. Packets that are on their way get through."""
    on_links(lab, "tc qdisc change dev $link root $netem", delays)


def use(lab: iscsi_lab.Lab, path: str, name: str) -> None:
    """Have the device use this selector."""
    selector, argument = SELECTORS[name]
    sectors = int(lab.shell(f"blockdev --getsz {path}").split()[-1])
    paths = " ".join(f"/dev/{disk} {argument}" for disk in lab.disks())
    table = f"0 {sectors} multipath 1 queue_if_no_path 0 1 1 {selector} 2 1 {paths}"
    lab.shell(
        f"dmsetup reload {path} --table '{table}' && dmsetup suspend --nolockfs {path} &&"
        f" dmsetup resume {path}"
    )


def measure(
    results: Results, lab: iscsi_lab.Lab, path: str, names: list, row: str, links: Links
) -> None:
    """Random reads with each selector, in turn."""
    shape(lab, links.first, links.second)
    iops = {name: [] for name in names}
    command = iscsi.fio(
        path,
        SECONDS,
        rw="randread",
        bssplit=f"{links.bs}/100",
        iodepth=links.depth,
        ramp_time=WARM_UP,
    )
    for turn in range(ROUNDS):
        results.say(f"{row}: round {turn + 1} of {ROUNDS}")
        for name in iscsi.in_turn(names, turn):
            use(lab, path, name)
            lab.shell(command, SECONDS + 120)
            status = lab.shell(f"dmsetup status {path}")
            if " F " in status:
                raise BenchmarkError(f"a path failed meanwhile: {status}")
            iops[name].append(iscsi.job_of(lab)["read"]["iops"])

    table = Table(title=f"{row}: {links.bs} reads, depth {links.depth}", title_justify="left")
    for heading in ("", "IOPS", "(least to most)"):
        table.add_column(heading, justify="right" if heading else "left")
    for name, seen in iops.items():
        table.add_row(name, f"{statistics.median(seen):.0f}", f"{min(seen):.0f} to {max(seen):.0f}")
    results.console.print(table)

    def add(name, peer, goal):
        results.add(
            f"{row}: by {name}",
            "IOPS",
            iops[OURS],
            peer=iops[peer],
            peer_name=peer,
            goal=goal,
            paired=True,
        )

    for peer in names:
        if peer != OURS:
            add(peer, peer, GOALS.get((row, peer)))
    in_c = [name for name in names if not name.startswith("round-robin-rs")]
    best = max(in_c, key=lambda name: statistics.median(iops[name]))
    add("the best C selector", best, Goal("ratio", ">=", 1.0))


def measure_change(results: Results, lab: iscsi_lab.Lab, path: str, names: list) -> None:
    """The delay moves from one link to the other under I/O: who has the better one's I/O then?"""
    fast, slow = "delay 1ms", "delay 16ms"
    disks = lab.disks()
    reads = "; ".join(f"awk '{{ print $1 }}' /sys/block/{disk}/stat" for disk in disks)
    shares = {name: [] for name in names}
    for turn in range(ROUNDS):
        for name in iscsi.in_turn(names, turn):
            shape(lab, fast, slow)
            use(lab, path, name)
            command = iscsi.fio(path, 600, rw="randread", bssplit="4k/100", iodepth=8)
            lab.shell(f"{command} & echo $! >/run/fio.pid; sleep {WARM_UP}")
            change(lab, slow, fast)
            output = lab.shell(f"sleep {NOTICED_AFTER}; {reads}; sleep 1; {reads}")
            counts = [int(word) for word in output.split()[-4:]]
            first, second = counts[2] - counts[0], counts[3] - counts[1]
            shares[name].append(second / max(first + second, 1))
            lab.shell(
                "kill -INT $(cat /run/fio.pid); while kill -0 $(cat /run/fio.pid)"
                " 2>/dev/null; do sleep 0.2; done"
            )
    for peer in names:
        if peer == OURS:
            continue
        results.add(
            f"30 ms go to the other: the better one's part, {NOTICED_AFTER} s later, by {peer}",
            "of 1",
            shares[OURS],
            peer=shares[peer],
            peer_name=peer,
            goal=Goal("ferrule", ">=", HAS_ITS_SHARE) if peer == ROUND_ROBIN else None,
        )
