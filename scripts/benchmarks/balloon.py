# SPDX-License-Identifier: GPL-2.0
"""How fast a balloon takes and gives back memory: the C driver and ours, in turn, in one guest.

Two devices: as QEMU makes it by default (page frame numbers only), and with free page reporting,
through which ours takes blocks. Memory that the guest never touched before costs the host nothing;
memory that it has used has to be discarded. What the host needs for that alone is measured by a
program that maps as much memory, touches it, and discards it by pieces of 4 MiB: blocks are to be
as fast as that within 2x, or so many times as fast as the C driver.

One more guest is in use: 70 % of its memory is page cache, or its free memory is in pieces of
512 KiB. For it there is also the share of memory that leaves in pieces of 2 MiB and more.

Times are wall time, between the host's request and `actual`, without anything else running.

The same once more on user-mode Linux, which runs at native speed, with a host of our own
(selftests/vhost) that discards memory by the page or the piece as QEMU does.
"""

import contextlib
import json
import mmap
import pathlib
import re
import statistics
import tempfile
import time
from collections.abc import Iterator

import balloon_host
import check
import vm
from verdicts import Report

from .results import OUT, Goal, Results

MIB = 1 << 20
GUEST_MIB = 2048
SMALL_MIB = 512
PAIRS = 5
# The largest that there are, with pages of 4 KiB.
BLOCK = 4 * MIB
DEVICE = "-device virtio-balloon-pci,id=balloon0"
DEVICES = {"pages": DEVICE, "blocks": f"{DEVICE},free-page-reporting=on"}
PEER = "C driver"
DRIVERS = {
    PEER: ("modprobe virtio_balloon", "rmmod virtio_balloon"),
    "ours": (
        "insmod $FERRULE_MODULES/balloon/virtio_balloon_rs.ko",
        "rmmod virtio_balloon_rs",
    ),
}
STATES = {False: "untouched", True: "touched"}
# Times as fast as the C driver, in and out, by device and whether the guest has used the memory.
GOALS = {
    ("blocks", False): (100, 500),
    ("blocks", True): (30, 500),
    ("pages", False): (2, None),
    ("pages", True): (2, None),
}
# In user-mode Linux.
UML_GUEST_MIB = 2048
UML_BALLOON_MIB = 1536
UML_DEVICES = {
    "pages": balloon_host.STATS,
    "blocks": balloon_host.STATS | balloon_host.REPORTING,
}
HINTS_MS_PER_GIB = 20
# Of a guest in use.
CACHED_MIB = GUEST_MIB * 7 // 10
CACHED = "70 % page cache"
IN_PIECES = "free memory in pieces"
# What is left to it: of the cache two thirds go, or of what is free in pieces nearly all.
LEFT_MIB = {CACHED: 896, IN_PIECES: 1344}
SHARE_GOAL = 0.9
# The balloon alone is measured, not what is reported without it.
REPORT_SELDOM = "echo 600000 >/sys/module/page_reporting/parameters/page_reporting_delay_ms"


class Machine:
    """A guest, seen by the host."""

    def __init__(self, guest: vm.Guest):
        self.guest = guest
        guest.check("rmmod virtio_balloon 2>/dev/null; true")
        guest.check(REPORT_SELDOM)

    def resize(self, mib: int) -> float:
        """Seconds from the request to the size."""
        started = time.monotonic()
        self.guest.qmp.execute("balloon", value=mib * MIB)
        while self.guest.qmp.execute("query-balloon")["actual"] != mib * MIB:
            if time.monotonic() - started > 300:
                raise vm.GuestError(f"the balloon does not get to {mib} MiB")
        return time.monotonic() - started

    def faults_while(self, action) -> dict:
        """What another task of the guest sees meanwhile that touches memory."""
        script = vm.ROOT / "scripts/guest/faults.py"
        self.guest.check(
            f"rm -f /run/stop /run/faults.json; python3 {script} /run/stop >/run/faults.json &"
        )
        # It has started.
        time.sleep(3)
        action()
        wait = "until [ -s /run/faults.json ]; do sleep 0.1; done"
        return json.loads(self.guest.check(f": >/run/stop; {wait}; cat /run/faults.json", 120))

    def cpu_seconds(self) -> float:
        """What the emulator has used, the guest included."""
        words = pathlib.Path(f"/proc/{self.guest.qemu_pid()}/stat").read_text().split()
        return (int(words[13]) + int(words[14])) / 100

    def host_huge_mib(self) -> float:
        """The emulator's memory that is mapped by huge pages."""
        text = pathlib.Path(f"/proc/{self.guest.qemu_pid()}/smaps_rollup").read_text()
        return int(re.search(r"AnonHugePages: +(\d+)", text)[1]) / 1024

    def share_in_blocks(self) -> float:
        """Of what is in our driver's balloon, what is there in pieces of 2 MiB and more."""
        text = self.guest.check("cat /sys/kernel/debug/virtio_balloon_rs/*/blocks")
        rows = [line.split() for line in text.splitlines()]
        pages = [(int(row[1]), int(row[2]) << int(row[1])) for row in rows if row[0] == "order"]
        single = sum(int(row[1]) for row in rows if row[0] == "pages")
        all_pages = single + sum(count for _, count in pages)
        return sum(count for order, count in pages if order >= 9) / all_pages

    def free_blocks(self) -> int:
        """Free blocks of 2 MiB and more in the guest, in units of 2 MiB."""
        lines = self.guest.check("cat /proc/buddyinfo").splitlines()
        orders = [[int(word) for word in line.split()[4:]] for line in lines]
        return sum(row[9] + 2 * row[10] for row in orders)


def touch(guest: vm.Guest, mib: int) -> None:
    """Have the guest use so much of its memory, and free it."""
    guest.check(
        "mkdir -p /run/full && mount -t tmpfs -o size=95% full /run/full &&"
        f"dd if=/dev/zero of=/run/full/a bs=1M count={mib} status=none;"
        "umount /run/full && rmdir /run/full",
        300,
    )


def fragment(guest: vm.Guest) -> None:
    """Have most of its memory in files of 512 KiB, and delete every second one."""
    guest.check(
        "mkdir -p /run/full && mount -t tmpfs -o size=95%,nr_inodes=0 full /run/full &&"
        f"dd if=/dev/zero bs=1M count={GUEST_MIB - 500} status=none |"
        " (cd /run/full && split -b 512K -a 4 -d) && rm /run/full/x*[02468]",
        600,
    )


def run(results: Results) -> None:
    """Each device, each state of the memory."""
    for device, options in DEVICES.items():
        found = {}
        with results.guest(
            f"balloon, {device}",
            vm.Options(qmp=True, memory=f"{GUEST_MIB}M", qemu_opts=[options], udev=False),
        ) as guest:
            machine = Machine(guest)
            # The first ones: of memory that was never touched. Each leaves it so.
            for touched in (False, True):
                found[touched] = measure(results, machine, device, touched)
            measure_faults(results, machine, device)
        for touched, figures in found.items():
            report(results, device, touched, figures)
    in_use(results)
    user_mode(results)


def in_use(results: Results) -> None:
    """A guest with page cache, and one whose free memory is in pieces."""
    with tempfile.NamedTemporaryFile() as disk:
        disk.truncate(CACHED_MIB * MIB)
        options = [
            DEVICES["blocks"],
            f"-drive file={disk.name},if=none,id=disk,format=raw,cache=unsafe",
            "-device virtio-blk-pci,drive=disk",
        ]
        with results.guest(
            "balloon, in use",
            vm.Options(qmp=True, memory=f"{GUEST_MIB}M", qemu_opts=options, udev=False),
        ) as guest:
            machine = Machine(guest)
            # What is cached of it goes when nobody has it open.
            guest.check("sleep 100000 </dev/vda >/dev/null 2>&1 &")
            for state, left in LEFT_MIB.items():
                report_in_use(results, state, left, measure_in_use(results, machine, state))


def measure_in_use(results: Results, machine: Machine, state: str) -> dict:
    """Pairs of both drivers: seconds down and up, and the share that left in large pieces."""
    figures = {driver: [] for driver in DRIVERS}
    for pair in range(PAIRS):
        for driver, (load, unload) in DRIVERS.items():
            machine.guest.check("sync; echo 3 >/proc/sys/vm/drop_caches")
            if state == CACHED:
                machine.guest.check("dd if=/dev/vda of=/dev/null bs=1M status=none", 300)
            else:
                fragment(machine.guest)
            machine.guest.check(load)
            down = machine.resize(LEFT_MIB[state])
            share = machine.share_in_blocks() if driver == "ours" else 0
            up = machine.resize(GUEST_MIB)
            machine.guest.check(f"{unload}; ! mountpoint -q /run/full || umount /run/full")
            figures[driver].append((down, up, share))
            results.say(
                f"{state}, pair {pair + 1}, {driver}: {down * 1e3:.0f} ms in,"
                f" {up * 1e3:.0f} ms out, {share:.2f} in pieces of 2 MiB and more"
            )
    return figures


def report_in_use(results: Results, state: str, left: int, figures: dict) -> None:
    """What one state gave."""
    report_speeds(results, f"by blocks, {state}", (GUEST_MIB - left) / 1024, figures, (None, None))
    results.add(
        f"share that left in pieces of 2 MiB and more: {state}",
        "",
        [row[2] for row in figures["ours"]],
        peer=[row[2] for row in figures[PEER]],
        peer_name=PEER,
        goal=Goal("ferrule", ">=", SHARE_GOAL),
        better="more",
    )


def measure(results: Results, machine: Machine, device: str, touched: bool) -> dict:
    """Pairs of both drivers: seconds up and down, CPU seconds, blocks, huge pages."""
    figures = {driver: [] for driver in DRIVERS}
    for pair in range(PAIRS):
        for driver, (load, unload) in DRIVERS.items():
            machine.guest.check(load)
            if touched:
                touch(machine.guest, GUEST_MIB - 300)
            huge = machine.host_huge_mib()
            cpu = machine.cpu_seconds()
            down = machine.resize(SMALL_MIB)
            cpu = machine.cpu_seconds() - cpu
            blocks = machine.free_blocks()
            kept = machine.host_huge_mib() / huge if huge else 0
            up = machine.resize(GUEST_MIB)
            machine.guest.check(unload)
            figures[driver].append((down, up, cpu, blocks, kept))
            results.say(
                f"{device}, {STATES[touched]}, pair {pair + 1}, {driver}: {down * 1e3:.0f} ms in,"
                f" {up * 1e3:.0f} ms out, {cpu:.2f} s of CPU, {blocks} free blocks of 2 MiB left"
            )
    return figures


def measure_faults(results: Results, machine: Machine, device: str) -> None:
    """How long a task waits for the pages that it touches first, while the balloon takes memory."""
    found = {driver: [] for driver in DRIVERS}
    for _ in range(PAIRS):
        for driver, (load, unload) in DRIVERS.items():
            machine.guest.check(load)
            found[driver].append(machine.faults_while(lambda: machine.resize(SMALL_MIB)))
            machine.resize(GUEST_MIB)
            machine.guest.check(unload)
    quiet = [machine.faults_while(lambda: time.sleep(2)) for _ in range(PAIRS)]
    for name in ("p99", "max"):
        key = f"{name}_us"
        results.add(
            f"{name} of a page fault meanwhile: by {device}",
            "us",
            [row[key] for row in found["ours"]],
            peer=[row[key] for row in found[PEER]],
            peer_name=PEER,
            note=f"{statistics.median(row[key] for row in quiet):.0f} us if no balloon moves.",
        )


def report_speeds(results: Results, what: str, gib: float, figures: dict, goals: tuple) -> None:
    """How fast so much memory went in and out, as ratios to the C driver."""
    for name, index, goal in zip(("inflation", "deflation"), (0, 1), goals, strict=True):
        results.add(
            f"{name} {what}",
            "GiB/s",
            [gib / row[index] for row in figures["ours"]],
            peer=[gib / row[index] for row in figures[PEER]],
            peer_name=PEER,
            goal=Goal("ratio", ">=", goal) if goal else None,
            paired=True,
        )


def report(results: Results, device: str, touched: bool, figures: dict) -> None:
    """What one device and state of the memory gave."""
    what = f"by {device}, {STATES[touched]}"
    gib = (GUEST_MIB - SMALL_MIB) / 1024
    report_speeds(results, what, gib, figures, GOALS[device, touched])
    if device == "blocks":
        alone = [
            discard(emulators_memory(GUEST_MIB - SMALL_MIB), mmap.MADV_DONTNEED, touched)
            for _ in range(PAIRS)
        ]
        floor(results, what, [gib / row[0] for row in figures["ours"]], alone)
    for name, unit, index in (
        ("CPU time of guest and host", "s", 2),
        ("free blocks of 2 MiB left", "number", 3),
        ("share of the host's huge pages kept", "", 4),
    ):
        results.add(
            f"{name}: {what}",
            unit,
            [row[index] for row in figures["ours"]],
            peer=[row[index] for row in figures[PEER]],
            peer_name=PEER,
        )


def floor(results: Results, what: str, ours: list[float], peer: list[float]) -> None:
    """How fast blocks are, in GiB/s, beside a host that discards as much and does nothing else."""
    results.add(
        f"inflation {what}",
        "GiB/s",
        ours,
        peer=peer,
        peer_name="madvise alone on the host",
        goal=Goal("ratio", ">=", 0.5),
        note=(
            "Inflation by blocks is to be so many times as fast as the C driver, or half as fast as"
            " madvise alone: it is enough to meet one of these goals."
        ),
    )


def emulators_memory(mib: int) -> mmap.mmap:
    """Mapped as QEMU maps that of a guest."""
    memory = mmap.mmap(-1, mib * MIB, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_HUGEPAGE)
    return memory


def shared_memory(mib: int) -> mmap.mmap:
    """A file, as user-mode Linux has its memory in."""
    with tempfile.TemporaryFile(dir="/dev/shm") as file:
        file.truncate(mib * MIB)
        return mmap.mmap(file.fileno(), mib * MIB)


def discard(memory: mmap.mmap, advice: int, touched: bool) -> float:
    """How fast this is, in GiB/s."""
    with memory:
        if touched:
            for offset in range(0, len(memory), mmap.PAGESIZE):
                memory[offset] = 1
        started = time.monotonic()
        for offset in range(0, len(memory), BLOCK):
            memory.madvise(advice, offset, BLOCK)
        return len(memory) / (1 << 30) / (time.monotonic() - started)


def user_mode(results: Results) -> None:
    """Both drivers on user-mode Linux; then in a guest that writes to all that it allocates."""
    kdir = check.build(Report(OUT), "native")
    balloon_host.build()
    for what, parameter in (("", "init_on_alloc=0"), (", init_on_alloc", "init_on_alloc=1")):
        options = vm.Options(
            kernel="native", kdir=kdir, memory=f"{UML_GUEST_MIB}M", append=[parameter]
        )
        where = f"user-mode Linux{what}"
        with results.guest(f"balloon, {where}", options) as guest:
            guest.check(REPORT_SELDOM)
            for device, bits in UML_DEVICES.items():
                for touched in (False, True):
                    user_mode_pairs(results, guest, where, (device, bits), touched)
            hints(results, guest, where)


def user_mode_pairs(
    results: Results, guest: vm.Guest, where: str, device: tuple[str, int], touched: bool
) -> None:
    """Both drivers in turn, with one device and memory that the guest has used or not."""
    name, bits = device
    figures = {driver: [] for driver in DRIVERS}
    for pair in range(PAIRS):
        for driver, found in figures.items():
            down, up = user_mode_sample(guest, driver, bits, touched)
            found.append((down, up))
            results.say(
                f"{name}, {STATES[touched]}, {where}, pair {pair + 1}, {driver}:"
                f" {down * 1e3:.1f} ms in, {up * 1e3:.1f} ms out"
            )
    what = f"by {name}, {STATES[touched]}, {where}"
    # What the guest writes for nothing, nobody can be faster than.
    is_plain = "init_on_alloc" not in where
    goals, gib = GOALS[name, touched] if is_plain else (None, None), UML_BALLOON_MIB / 1024
    report_speeds(results, what, gib, figures, goals)
    if name == "blocks" and is_plain:
        alone = [
            discard(shared_memory(UML_BALLOON_MIB), mmap.MADV_REMOVE, touched) for _ in range(PAIRS)
        ]
        floor(results, what, [gib / row[0] for row in figures["ours"]], alone)


def hints(results: Results, guest: vm.Guest, where: str) -> None:
    """How long it takes to get all that is free as hints, when the host discards it at once."""
    for touched in (False, True):
        figures = {driver: [] for driver in DRIVERS}
        for _ in range(PAIRS):
            for driver, found in figures.items():
                bits = balloon_host.STATS | balloon_host.HINT
                with user_mode_device(guest, driver, bits, touched) as host:
                    host.tell("reclaim 7")
                    seen = host.expect("reclaimed", 120)
                found.append(seen["us"] / 1e3 / (seen["bytes"] / (1 << 30)))
                results.say(
                    f"hints, {STATES[touched]}, {where}, {driver}:"
                    f" {seen['bytes'] // MIB} MiB, {found[-1]:.1f} ms for each GiB"
                )
        goal = Goal("ferrule", "<=", HINTS_MS_PER_GIB) if "init_on_alloc" not in where else None
        results.add(
            f"free memory as hints, {STATES[touched]}, {where}",
            "ms/GiB",
            figures["ours"],
            peer=figures[PEER],
            peer_name=PEER,
            goal=goal,
            paired=True,
            better="less",
        )


def user_mode_sample(guest: vm.Guest, driver: str, bits: int, touched: bool) -> tuple[float, float]:
    """Seconds in and out."""
    seconds = []
    with user_mode_device(guest, driver, bits, touched) as host:
        for mib in (UML_BALLOON_MIB, 0):
            host.tell(f"target {mib * balloon_host.PAGES_PER_MIB}")
            seconds.append(host.expect("reached", 120)["us"] / 1e6)
    return tuple(seconds)


@contextlib.contextmanager
def user_mode_device(
    guest: vm.Guest, driver: str, bits: int, touched: bool
) -> Iterator[balloon_host.Host]:
    """A device that is there for one sample only, of memory that the guest has used or not."""
    load, unload = DRIVERS[driver]
    guest.check(load)
    host = balloon_host.Host("--features", f"{bits:x}")
    host.plug_into(guest)
    if touched:
        touch(guest, UML_BALLOON_MIB)
    yield host
    guest.check(unload)
    seen = host.end()
    if seen["violations"]:
        raise vm.GuestError(f"{driver}: {seen['violations']}")
    guest.check('while [ -n "$(ls /sys/bus/virtio/devices)" ]; do sleep 0.1; done')
