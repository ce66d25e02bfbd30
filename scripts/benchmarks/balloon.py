# SPDX-License-Identifier: GPL-2.0
"""How fast a balloon takes and gives back memory: the C driver and ours, in turn, in one guest.

Two devices: as QEMU makes it by default (page frame numbers only), and with free page reporting,
through which ours takes blocks. Memory that the guest never touched before costs the host nothing;
memory that it has used has to be discarded. What the host needs for that alone is measured by a
program that maps as much memory, touches it, and discards it by pieces of 4 MiB.

Times are wall time, between the host's request and `actual`, without anything else running.
"""

import ctypes
import mmap
import pathlib
import re
import time

import vm

from .results import Goal, Results

MIB = 1 << 20
GUEST_MIB = 2048
SMALL_MIB = 512
PAIRS = 5
DEVICES = {
    "pages": "-device virtio-balloon-pci,id=balloon0",
    "blocks": "-device virtio-balloon-pci,id=balloon0,free-page-reporting=on",
}
PEER = "C driver"
DRIVERS = {
    PEER: ("modprobe virtio_balloon", "rmmod virtio_balloon"),
    "ours": (
        "insmod $FERRULE_MODULES/balloon/virtio_balloon_rs.ko",
        "rmmod virtio_balloon_rs",
    ),
}
MADV_DONTNEED = 4


class Machine:
    """A guest, seen by the host."""

    def __init__(self, guest: vm.Guest):
        self.guest = guest
        guest.check("rmmod virtio_balloon 2>/dev/null; true")
        # The balloon alone is measured, not what is reported without it.
        guest.check("echo 600000 >/sys/module/page_reporting/parameters/page_reporting_delay_ms")

    def resize(self, mib: int) -> float:
        """Seconds from the request to the size."""
        started = time.monotonic()
        self.guest.qmp.execute("balloon", value=mib * MIB)
        while self.guest.qmp.execute("query-balloon")["actual"] != mib * MIB:
            if time.monotonic() - started > 300:
                raise vm.GuestError(f"the balloon does not get to {mib} MiB")
        return time.monotonic() - started

    def touch(self) -> None:
        """Have the guest use most of its memory, and free it."""
        self.guest.check(
            "mkdir -p /run/full && mount -t tmpfs -o size=95% full /run/full &&"
            f"dd if=/dev/zero of=/run/full/a bs=1M count={GUEST_MIB - 300} status=none;"
            "umount /run/full && rmdir /run/full",
            300,
        )

    def cpu_seconds(self) -> float:
        """What the emulator has used, the guest included."""
        words = pathlib.Path(f"/proc/{self.guest.qemu_pid()}/stat").read_text().split()
        return (int(words[13]) + int(words[14])) / 100

    def host_huge_mib(self) -> float:
        """The emulator's memory that is mapped by huge pages."""
        text = pathlib.Path(f"/proc/{self.guest.qemu_pid()}/smaps_rollup").read_text()
        return int(re.search(r"AnonHugePages: +(\d+)", text)[1]) / 1024

    def free_blocks(self) -> int:
        """Free blocks of 2 MiB and more in the guest, in units of 2 MiB."""
        lines = self.guest.check("cat /proc/buddyinfo").splitlines()
        orders = [[int(word) for word in line.split()[4:]] for line in lines]
        return sum(row[9] + 2 * row[10] for row in orders)


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
        for touched, figures in found.items():
            report(results, device, touched, figures)
    floor(results)


def measure(results: Results, machine: Machine, device: str, touched: bool) -> dict:
    """Pairs of both drivers: seconds up and down, CPU seconds, blocks, huge pages."""
    figures = {driver: [] for driver in DRIVERS}
    state = "touched" if touched else "untouched"
    for pair in range(PAIRS):
        for driver, (load, unload) in DRIVERS.items():
            machine.guest.check(load)
            if touched:
                machine.touch()
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
                f"{device}, {state}, pair {pair + 1}, {driver}: {down * 1e3:.0f} ms in,"
                f" {up * 1e3:.0f} ms out, {cpu:.2f} s of CPU, {blocks} free blocks of 2 MiB left"
            )
    return figures


def report(results: Results, device: str, touched: bool, figures: dict) -> None:
    """Speeds, as ratios to the C driver."""
    gib = (GUEST_MIB - SMALL_MIB) / 1024
    state = "touched" if touched else "untouched"
    inflate, deflate = (30 if touched else 100, 500) if device == "blocks" else (2, None)
    what = f"by {device}, {state}"
    for name, index, goal in (("inflation", 0, inflate), ("deflation", 1, deflate)):
        results.add(
            f"{name} {what}",
            "GiB/s",
            [gib / row[index] for row in figures["ours"]],
            peer=[gib / row[index] for row in figures[PEER]],
            peer_name=PEER,
            goal=Goal("ratio", ">=", goal) if goal else None,
            paired=True,
        )
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


def floor(results: Results) -> None:
    """How fast the host discards memory, if that is all that it does."""
    size = (GUEST_MIB - SMALL_MIB) * MIB
    libc = ctypes.CDLL(None, use_errno=True)
    libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    speeds = {False: [], True: []}
    for touched, found in speeds.items():
        for _ in range(PAIRS):
            with mmap.mmap(-1, size) as memory:
                if touched:
                    for offset in range(0, size, mmap.PAGESIZE):
                        memory[offset] = 1
                view = ctypes.c_char.from_buffer(memory)
                address = ctypes.addressof(view)
                started = time.monotonic()
                for offset in range(0, size, 4 * MIB):
                    libc.madvise(address + offset, 4 * MIB, MADV_DONTNEED)
                found.append(size / (1 << 30) / (time.monotonic() - started))
                del view
    for touched, found in speeds.items():
        state = "touched" if touched else "untouched"
        results.add(f"madvise alone on the host, {state}", "GiB/s", found)
