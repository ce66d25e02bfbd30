# SPDX-License-Identifier: GPL-2.0
"""The balloon driver when the system goes to sleep, wakes up and powers off.

The guests of the other tests have their root file system on virtio-9p, which does not survive
sleep, so this one has nothing but an initramfs.
"""

import os
import pathlib
import stat
import subprocess
import time

import pytest
import vm

MIB = 1 << 20
MEMORY = 512

# Does what it is told on the serial line, and says so; the line is the only thing that it has.
INIT = """#!/bin/sh
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
insmod /balloon.ko || poweroff -f
echo 7 >/proc/sys/kernel/printk
echo "init: ready"
while read -r line; do
	eval "$line"
	echo "init: done $?"
done
"""


def cpio(files: dict[str, tuple[int, bytes]]) -> bytes:
    """An archive as the kernel unpacks it (newc): mode and contents by name."""
    archive = b""
    for inode, (name, (mode, data)) in enumerate([*files.items(), ("TRAILER!!!", (0, b""))], 1):
        encoded = name.encode() + b"\0"
        fields = [inode, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(encoded), 0]
        archive += b"070701" + b"".join(b"%08X" % field for field in fields) + encoded
        archive += b"\0" * (-len(archive) % 4) + data
        archive += b"\0" * (-len(archive) % 4)
    return archive


class Guest:
    """A guest with a shell on its serial line."""

    def __init__(self, directory: pathlib.Path):
        kdir = vm.find_kdir("release")
        module = vm.ROOT / "out/modules/release/balloon/virtio_balloon_rs.ko"
        program, folder = stat.S_IFREG | 0o755, stat.S_IFDIR | 0o755
        initrd = directory / "initrd"
        initrd.write_bytes(
            cpio(
                {
                    **{name: (folder, b"") for name in ("bin", "proc", "sys", "dev")},
                    "bin/busybox": (program, pathlib.Path("/bin/busybox").read_bytes()),
                    "bin/sh": (stat.S_IFLNK | 0o777, b"busybox"),
                    "init": (program, INIT.encode()),
                    "balloon.ko": (program, module.read_bytes()),
                }
            )
        )
        command = ["qemu-system-x86_64", "-machine", "q35", "-m", f"{MEMORY}M", "-nographic"]
        command += ["-nodefaults", "-serial", "stdio", "-no-reboot"]
        command += ["-kernel", str(kdir / "arch/x86/boot/bzImage"), "-initrd", str(initrd)]
        command += ["-append", "console=ttyS0 oops=panic panic=-1 no_console_suspend"]
        command += ["-device", "virtio-balloon-pci,id=balloon0"]
        command += ["-qmp", f"unix:{directory / 'qmp'},server=on,wait=off"]
        self.process = subprocess.Popen(  # pylint: disable=consider-using-with
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        os.set_blocking(self.process.stdout.fileno(), False)
        self.output = ""
        self.deadline = time.monotonic() + 240
        self.expect("init: ready", 120)
        self.qmp = vm.Qmp(directory / "qmp")

    def read(self) -> None:
        """Take in what the guest has said."""
        self.output += (self.process.stdout.read() or b"").decode(errors="replace")

    def has_said(self, what: str, start: int) -> bool:
        """Whether the guest has said something by now."""
        self.read()
        time.sleep(0.05)
        return what in self.output[start:]

    def is_late(self) -> bool:
        """Whether it is too late for anything to happen."""
        return time.monotonic() > self.deadline

    def expect(self, what: str, timeout: float, start: int = 0) -> None:
        """Wait until the guest has said something."""
        deadline = time.monotonic() + timeout
        while what not in self.output[start:]:
            self.read()
            assert time.monotonic() < deadline, f"{what}: not within {timeout} s\n{self.output}"
            time.sleep(0.05)

    def tell(self, line: str) -> int:
        """Have a line executed. Returns where in the output its own begins."""
        start = len(self.output)
        self.process.stdin.write(line.encode() + b"\n")
        self.process.stdin.flush()
        return start

    def check(self, line: str) -> None:
        """Have a line executed, which has to succeed."""
        self.expect("init: done 0", 60, self.tell(line))

    def resize(self, mib: int) -> None:
        """Ask for a size and wait until it is there."""
        self.qmp.execute("balloon", value=mib * MIB)
        self.wait_for_size(mib)

    def wait_for_size(self, mib: int) -> None:
        """Wait for a size, as the host and the guest see it."""
        deadline = time.monotonic() + 60
        while self.qmp.execute("query-balloon")["actual"] != mib * MIB:
            assert time.monotonic() < deadline, f"{mib} MiB: not within 60 s\n{self.output}"
            time.sleep(0.05)
        self.check("echo >/proc/sys/vm/stat_refresh")
        self.check(f"grep -x 'nr_balloon_pages {(MEMORY - mib) * 256}' /proc/vmstat")

    def is_asleep(self) -> bool:
        """Whether the guest sleeps."""
        return self.qmp.execute("query-status")["status"] == "suspended"

    def stop(self) -> None:
        """End the guest."""
        self.qmp.close()
        self.process.kill()
        self.process.wait()
        self.read()


@pytest.fixture(name="guest")
def guest_fixture(tmp_path):
    """A guest whose log has to be clean."""
    guest = Guest(tmp_path)
    try:
        yield guest
    finally:
        guest.stop()
        log = vm.ROOT / "out" / "check" / "host-balloon-sleep.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text(guest.output)
    lines = guest.output.splitlines()
    wrong = [line for line in lines if any(splat in line for splat in vm.SPLATS)]
    assert not wrong, wrong


def test_sleep_empties_the_balloon_and_waking_fills_it_again(guest):
    """Suspend to RAM, twice."""
    pages = 200 * 256
    guest.resize(MEMORY - 200)
    for cycle in (1, 2):
        start = guest.tell("echo mem >/sys/power/state")
        # What wakes the system up at once is fine, too.
        while not guest.has_said("init: done 0", start):
            if guest.is_asleep():
                # Nothing is left with a host that may forget it.
                assert guest.qmp.execute("query-balloon")["actual"] == MEMORY * MIB
                guest.qmp.execute("system_wakeup")
                guest.expect("init: done 0", 60, start)
            assert not guest.is_late(), f"neither asleep nor awake\n{guest.output}"
        guest.wait_for_size(MEMORY - 200)
        guest.check(f"grep -x 'balloon_deflate {pages * cycle}' /proc/vmstat")
        guest.check(f"grep -x 'balloon_inflate {pages * (cycle + 1)}' /proc/vmstat")
    assert guest.output.count("PM: Waking up from system sleep state S3") == 2


def test_the_system_powers_off_while_the_balloon_moves(guest):
    """With pages in the balloon and more on their way."""
    guest.resize(MEMORY - 100)
    guest.qmp.execute("balloon", value=(MEMORY - 300) * MIB)
    guest.tell("poweroff -f")
    assert guest.process.wait(30) == 0
