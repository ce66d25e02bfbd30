# SPDX-License-Identifier: GPL-2.0
"""A guest with a balloon device, and what to do with it from both sides."""

import contextlib
import time

import vm

MIB = 1 << 20
# The guest's memory, which QEMU also reports as the size of an empty balloon.
MEMORY = 1024
# As far down as a guest of that size goes: a distribution's kernel needs more for itself.
LOWEST = MEMORY * 3 // 8 if vm.KERNEL in vm.STOCK else MEMORY // 4
# How long a guest lives that tests share. What the C driver does to one is not for the next test.
SHARED = "function" if vm.PEER else "module"
# No device, and no driver.
NONE, UNBOUND = "no device", "no driver"
DEVICE = (
    "-device pcie-root-port,id=port0,chassis=7 -device virtio-balloon-pci,id=balloon0,bus=port0"
)
# Loads the driver.
LOAD = 'insmod "$FERRULE_MODULES/balloon/virtio_balloon_rs.ko"'
if vm.PEER:
    LOAD = "modprobe virtio_balloon"
# Pages of the guest that may be somewhere else than before, for reasons of its own, in MiB.
SLACK = 24
# Fills memory by files of 512 KiB, and deletes every second one.
FRAGMENT = """
import os, sys
for nth in range(int(sys.argv[1])):
    with open(f"/mnt/{nth}", "wb") as file:
        file.write(b"x" * 524288)
for nth in range(0, int(sys.argv[1]), 2):
    os.unlink(f"/mnt/{nth}")
"""


def report_after(guest, ms: int) -> None:
    """Have free pages reported after so long, rather than two seconds. Linux 7.2 cannot."""
    parameter = "/sys/module/page_reporting/parameters/page_reporting_delay_ms"
    guest.sh(f"[ ! -e {parameter} ] || echo {ms} >{parameter}")


class Balloon:
    """A guest with a balloon device, seen from both sides."""

    def __init__(self, guest: vm.Guest):
        self.guest = guest
        self.sh("rmmod virtio_balloon 2>/dev/null; true")
        self.load()
        assert self.driver() == vm.BALLOON
        self.total = self.counters()["MemTotal"]

    def sh(self, script: str, timeout: float = 180) -> str:
        """Run a script in the guest."""
        return self.guest.check(script, timeout).strip()

    def qmp(self, command: str, **arguments):
        """Run a QMP command."""
        return self.guest.qmp.execute(command, **arguments)

    def actual(self) -> int:
        """What is left to the guest, as the host knows, in bytes."""
        return self.qmp("query-balloon")["actual"]

    def ask(self, mib: int) -> None:
        """Ask for a size."""
        self.qmp("balloon", value=mib * MIB)

    def resize(self, mib: int, timeout: float = 180) -> None:
        """Ask for a size and wait until it is there, to the byte."""
        self.ask(mib)
        try:
            self.wait_for(lambda: self.actual() == mib * MIB, timeout, f"{mib} MiB")
        except AssertionError as error:
            available = self.counters()["MemAvailable"] // 1024
            state = "" if vm.PEER else self.debugfs("state")
            error.add_note(f"{self.actual() / MIB} MiB, {available} MiB available, {state}")
            raise

    def wait_until_it_waits(self, timeout: float) -> None:
        """Wait until the balloon takes no more, as there is no memory to spare."""
        if not vm.PEER:
            state = "waiting for memory"
            self.wait_for(lambda: self.debugfs("state") == state, timeout, "the reserve")
            return
        # The C driver does not say so.
        sizes: list[int] = []

        def is_steady():
            sizes.append(self.actual())
            time.sleep(1)
            return len(sizes) > 5 and len(set(sizes[-5:])) == 1

        self.wait_for(is_steady, timeout, "a balloon that takes no more")

    def wait_until_it_rests(self, timeout: float) -> None:
        """Wait until the balloon has nothing to do. Its size says the same, before that."""
        if not vm.PEER:
            self.wait_for(lambda: self.debugfs("state") == "at its target", timeout, "rest")

    def debugfs(self, name: str) -> str:
        """What a file of our driver's says."""
        return self.sh(f"cat /sys/kernel/debug/virtio_balloon_rs/{self.device()}/{name}")

    @staticmethod
    def wait_for(condition, timeout: float, what: str) -> None:
        """Wait until a condition holds."""
        deadline = time.monotonic() + timeout
        while not condition():
            assert time.monotonic() < deadline, f"{what}: not within {timeout} s"
            time.sleep(0.05)

    def counters(self) -> dict[str, int]:
        """/proc/meminfo, in KiB, and /proc/vmstat, up to date."""
        lines = self.sh(
            'echo >/proc/sys/vm/stat_refresh;echo "$(</proc/vmstat)"; echo "$(</proc/meminfo)"'
        ).splitlines()
        return {line.split()[0].rstrip(":"): int(line.split()[1]) for line in lines}

    def pages(self) -> int:
        """How many pages the guest counts in balloons."""
        return self.counters()["nr_balloon_pages"]

    def bound(self) -> tuple[str, str]:
        """The guest's name of the device, and of the driver that it is bound to."""
        # Builtins only: starting a process takes a guest a second on a busy host.
        words = self.sh(
            "for d in /sys/bus/virtio/devices/*; do"
            " [ $(<$d/device) = 0x0005 ] || continue;"
            " echo ${d##*/};"
            " for l in /sys/bus/virtio/drivers/*/${d##*/}; do"
            "  [ ! -e $l ] || { l=${l%/*}; echo ${l##*/}; }; done; done"
        ).split()
        return (*words, UNBOUND)[0:2] if words else (NONE, UNBOUND)

    def device(self) -> str:
        """The guest's name of the device."""
        return self.bound()[0]

    def driver(self) -> str:
        """The driver that the device is bound to."""
        return self.bound()[1]

    def log(self) -> str:
        """The guest's kernel log."""
        return self.sh("dmesg")

    def is_as_before(self) -> bool:
        """Whether the guest has all its memory, none of it in a balloon."""
        counters = self.counters()
        return (counters["nr_balloon_pages"], counters["MemTotal"]) == (0, self.total)

    def assert_as_before(self) -> None:
        """It has."""
        assert self.is_as_before(), self.counters()

    def wait_until_free(self, free: int) -> None:
        """What was freed counts as free once the processors' own lists of pages are drained."""
        try:
            self.wait_for(
                lambda: abs(self.counters()["MemFree"] - free) < SLACK * 1024, 120, "free memory"
            )
        except AssertionError as error:
            now = self.counters()
            error.add_note(f"{free} KiB were free, and are {now['MemFree']}")
            raise

    def is_plugged(self) -> bool:
        """Whether the emulator has the device."""
        devices = self.qmp("qom-list", path="/machine/peripheral")
        return "balloon0" in [device["name"] for device in devices]

    def plug(self) -> None:
        """Plug the device in, and wait for the driver."""
        self.qmp("device_add", driver="virtio-balloon-pci", id="balloon0", bus="port0")
        self.wait_for(lambda: self.driver() == vm.BALLOON, 180, "plug and bind")

    def reload(self, parameters: str = "") -> None:
        """Unload the driver and load it again, with parameters."""
        self.sh(f"rmmod {vm.BALLOON}")
        self.load(parameters)

    def unload_at_each_fill_level(self) -> None:
        """All memory comes back each time, and loading takes what the host still wants."""
        # What a guest that is new keeps of the first swing is not missing afterwards.
        self.resize(LOWEST)
        self.resize(MEMORY)
        free = self.counters()["MemFree"]
        for size in (MEMORY - 1, MEMORY * 3 // 4, MEMORY // 2, LOWEST):
            self.resize(size)
            self.sh(f"rmmod {vm.BALLOON}")
            self.assert_as_before()
            self.wait_until_free(free)
            assert self.actual() == MEMORY * MIB
            self.load()
            self.wait_for(lambda size=size: self.actual() == size * MIB, 60, "the target of before")

    def free_mib(self) -> int:
        """Free memory, of which nothing is on the lists of processors."""
        return self.counters()["MemFree"] // 1024

    def drop_caches(self) -> None:
        """Have all go that can go without being written."""
        self.sh("sync; echo 3 >/proc/sys/vm/drop_caches")

    def python(self, script: str, *words, timeout: float = 300) -> str:
        """Run a Python script in the guest."""
        self.sh(f"cat >/run/script.py <<'END'\n{script}\nEND")
        return self.sh(f"python3 /run/script.py {' '.join(map(str, words))}", timeout)

    def load(self, parameters: str = "") -> None:
        """Load the driver."""
        self.sh(f"{LOAD} {parameters}")


@contextlib.contextmanager
def driven(guest: vm.Guest):
    """The guest's balloon, with its driver, which has to unload in the end."""
    yield Balloon(guest)
    guest.check(f"rmmod {vm.BALLOON}")


@contextlib.contextmanager
def driven_with_disk(boot, directory, mib: int):
    """As driven(), in a guest of its own that has an empty disk, /dev/vda."""
    disk = directory / "disk"
    with disk.open("wb") as file:
        file.truncate(mib * MIB)
    options = [
        f"{DEVICE},free-page-reporting=on",
        f"-drive file={disk},if=none,id=disk,format=raw,cache=unsafe",
        "-device virtio-blk-pci,drive=disk",
    ]
    with driven(boot(memory=f"{MEMORY}M", qemu_opts=options, udev=False)) as balloon:
        # What is cached of it goes when nobody has it open.
        balloon.sh("sleep 100000 </dev/vda >/dev/null 2>&1 &")
        yield balloon
