# SPDX-License-Identifier: GPL-2.0
"""A guest with nothing but an initramfs: for what a root file system on virtio-9p does not survive.

The guests of the other tests have their root file system on virtio-9p, which survives neither sleep
nor migration. This one has busybox, the balloon drivers, and a shell on its second serial line; the
first is its console.
"""

import base64
import contextlib
import pathlib
import shlex
import socket
import subprocess
import sys
import tempfile
import time

import vm
from initramfs import FOLDER, LINK, PROGRAM, cpio

# How many times as long as on the release kernel anything may take.
SLOWNESS = vm.SLOWNESS[vm.KERNEL]
# In MiB. On the checking kernel KASAN and kmemleak have a good part of it.
MEMORY = 1024 if vm.KERNEL == "checking" else 512
# Where a device can be plugged in.
PORT = "-device pcie-root-port,id=port0,chassis=7"
MIB = 1 << 20
# Ends the output of a script, with its status.
MARK = "\x1estatus "

INIT = """#!/bin/sh
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t debugfs debug /sys/kernel/debug
mount -t devtmpfs dev /dev
mount -t tmpfs -o size=100% tmpfs /tmp
if [ -e /virtio_blk.ko ]; then
	# What the kernel does by itself when it has the driver built in.
	insmod /virtio_blk.ko
	for word in $(cat /proc/cmdline); do
		case $word in
		resume=*) cat "/sys/class/block/${word##*/}/dev" >/sys/power/resume ;;
		esac
	done
fi
echo 7 >/proc/sys/kernel/printk
exec 3</dev/ttyS1 4>/dev/ttyS1
stty raw -echo <&3
printf '\\036status 0\\n' >&4
while read -r line <&3; do
	printf '%s' "$line" | base64 -d >/script
	sh /script >&4 2>&1 </dev/null 3<&- 4>&-
	printf '\\036status %d\\n' $? >&4
done
"""


def initramfs(kdir: pathlib.Path) -> bytes:
    """What the guest has."""
    ours = vm.ROOT / "out/modules" / vm.KERNEL / "balloon/virtio_balloon_rs.ko"
    modules = ["drivers/virtio/virtio_balloon"]
    if vm.KERNEL in vm.STOCK:
        modules.append("drivers/block/virtio_blk")
    return cpio(
        {
            **{name: (FOLDER, b"") for name in ("bin", "proc", "sys", "dev", "tmp")},
            "bin/busybox": (PROGRAM, pathlib.Path("/bin/busybox").read_bytes()),
            "bin/sh": (LINK, b"busybox"),
            "init": (PROGRAM, INIT.encode()),
            "virtio_balloon_rs.ko": (PROGRAM, ours.read_bytes()),
            **{
                f"{pathlib.Path(name).name}.ko": (PROGRAM, vm.kernel_module(kdir, name))
                for name in modules
            },
        }
    )


class SmallGuest:
    """A guest with a shell.

    With `incoming`, a QEMU URI, it is one that another guest migrates to. `target` is the size that
    the host asks for from the start, in MiB. `once` is for what boots with something that is used
    up then: it gets no second try. `less` is by how many KiB it has less memory than `memory` MiB.
    """

    def __init__(
        self,
        log,
        qemu_opts="",
        append="",
        memory=512,
        cpus=1,
        incoming=None,
        target=None,
        once=False,
        less=0,
    ):
        self.log = log
        self.memory = memory
        self.bytes = memory * MIB - less * 1024
        self._directory = tempfile.TemporaryDirectory(prefix="ferrule-")
        directory = pathlib.Path(self._directory.name)
        kdir = vm.find_kdir(vm.KERNEL)
        image = kdir / "arch/x86/boot/bzImage"
        initrd = directory / "initrd"
        initrd.write_bytes(initramfs(kdir))
        log.parent.mkdir(parents=True, exist_ok=True)
        command = ["qemu-system-x86_64", "-machine", "q35,mem-merge=off"]
        command += ["-m", f"{self.bytes // 1024}K", "-smp", str(cpus)]
        parameters = ["console=ttyS0 oops=panic panic=-1 no_console_suspend", append]
        if vm.kvm_works(image):
            command += ["-accel", "kvm", "-cpu", "host"]
        else:
            command += ["-cpu", vm.emulated_cpu()]
            parameters += vm.EMULATED_PARAMETERS
        command += ["-nographic", "-nodefaults", "-no-reboot", "-serial", f"file:{log}"]
        # Sockets are made in this order: when there is the last one, there are both.
        command += ["-qmp", f"unix:{directory}/qmp,server=on,wait=off"]
        command += ["-chardev", f"socket,id=shell,path={directory}/shell,server=on,wait=off"]
        command += ["-serial", "chardev:shell"]
        command += ["-kernel", str(image), "-initrd", str(initrd)]
        command += ["-append", " ".join(parameters)]
        command += shlex.split(qemu_opts)
        if incoming:
            command += ["-incoming", incoming]
        try:
            self._boot(command, target, wait=not incoming)
        except AssertionError:
            if incoming or once:
                raise
            # As vm.Guest does, and for its reasons.
            failed = log.with_suffix(".hung.log")
            log.rename(failed)
            print(f"== a guest hung while it booted ({failed}): once more", file=sys.stderr)
            self._boot(command, target, wait=True)

    def _boot(self, command: list[str], target: int | None, wait: bool) -> None:
        """Nothing is left running when that fails."""
        directory = pathlib.Path(self._directory.name)
        for name in ("shell", "qmp"):
            (directory / name).unlink(missing_ok=True)
        self.received = b""
        self.qmp_client = None
        self.shell = socket.socket(socket.AF_UNIX)
        self.process = subprocess.Popen(  # pylint: disable=consider-using-with
            command, stdin=subprocess.DEVNULL
        )
        try:
            self._connect(directory / "shell")
            self.qmp_client = vm.Qmp(directory / "qmp")
            if target:
                self.qmp("balloon", value=target * MIB)
            if wait:
                self.wait(240)
        except BaseException:
            self.kill()
            raise

    def _connect(self, path: pathlib.Path) -> None:
        deadline = time.monotonic() + 30
        while True:
            try:
                self.shell.connect(str(path))
                return
            except OSError:
                assert self.process.poll() is None, "the emulator ended"
                assert time.monotonic() < deadline, "the emulator does not start"
                time.sleep(0.02)

    def send(self, script: str) -> None:
        """Start a script."""
        encoded = base64.b64encode(script.encode())
        self.shell.sendall(encoded + b"\n")

    def has_answered(self) -> bool:
        """Whether what was started has ended."""
        self.shell.settimeout(0.05)
        with contextlib.suppress(TimeoutError):
            self.received += self.shell.recv(1 << 16)
        return b"\n" in self.received.partition(MARK.encode())[2]

    def wait(self, timeout: float) -> tuple[int, str]:
        """The status and output of what was started."""
        deadline = time.monotonic() + timeout * SLOWNESS
        while not self.has_answered():
            assert time.monotonic() < deadline, (
                f"no answer within {timeout} s\n{self.received!r}\n{self.tail()}"
            )
            assert self.process.poll() is None, f"the guest ended\n{self.tail()}"
        output, _, rest = self.received.partition(MARK.encode())
        status, _, self.received = rest.partition(b"\n")
        return int(status), output.decode(errors="replace").strip()

    def sh(self, script: str, timeout: float = 180) -> str:
        """Run a script, which has to succeed; returns its output."""
        self.send(script)
        status, output = self.wait(timeout)
        assert status == 0, f"{script}: status {status}\n{output}\n{self.tail()}"
        return output

    def load(self, driver: str = vm.BALLOON, parameters: str = "") -> None:
        """Load a driver."""
        self.sh(f"insmod /{driver}.ko {parameters}")

    def qmp(self, command: str, **arguments):
        """Run a QMP command."""
        return self.qmp_client.execute(command, **arguments)

    def counters(self) -> dict[str, int]:
        """/proc/meminfo, in KiB, and /proc/vmstat, up to date."""
        lines = self.sh("echo >/proc/sys/vm/stat_refresh; cat /proc/vmstat /proc/meminfo")
        return {line.split()[0].rstrip(":"): int(line.split()[1]) for line in lines.splitlines()}

    def features(self) -> str:
        """The features that were negotiated, a digit each."""
        return self.sh(
            "for d in /sys/bus/virtio/devices/*; do"
            " [ $(cat $d/device) != 0x0005 ] || cat $d/features; done"
        )

    def plug(self, **properties) -> None:
        """Plug a balloon device in (the guest has PORT), and wait for the driver."""
        self.qmp(
            "device_add",
            **{"driver": "virtio-balloon-pci", "id": "balloon0", "bus": "port0"},
            **properties,
        )
        self.wait_for(
            lambda: self.sh(f"ls /sys/bus/virtio/drivers/{vm.BALLOON} | grep virtio; true"),
            180,
            "the device",
        )

    def unplug(self) -> None:
        """Take it out: nothing stays in the balloon."""

        def is_plugged():
            devices = self.qmp("qom-list", path="/machine/peripheral")
            return "balloon0" in [device["name"] for device in devices]

        self.qmp("device_del", id="balloon0")
        self.wait_for(lambda: not is_plugged(), 60, "unplug")
        assert self.counters()["nr_balloon_pages"] == 0

    def resize(self, mib: int, timeout: float = 180) -> None:
        """Ask for a size and wait until it is there."""
        self.qmp("balloon", value=mib * MIB)
        self.wait_for_size(mib, timeout)

    def wait_for_size(self, mib: int, timeout: float = 180) -> None:
        """Wait for a size, as the host and the guest see it."""
        size = min(mib * MIB, self.bytes)
        self.wait_for(lambda: self.qmp("query-balloon")["actual"] == size, timeout, f"{mib} MiB")
        assert self.counters()["nr_balloon_pages"] == (self.bytes - size) // 4096

    def wait_for(self, condition, timeout: float, what: str):
        """Wait until a condition holds; returns what it returned."""
        deadline = time.monotonic() + timeout * SLOWNESS
        while not (result := condition()):
            assert time.monotonic() < deadline, f"{what}: not within {timeout} s\n{self.tail()}"
            time.sleep(0.05)
        return result

    def log_lines(self) -> list[str]:
        """The kernel log so far."""
        if not self.log.exists():
            return []
        return self.log.read_text(errors="replace").replace("\r", "").splitlines()

    def tail(self) -> str:
        """The end of the kernel log."""
        return "\n".join(["--- end of the guest's kernel log:", *self.log_lines()[-40:]])

    def kill(self) -> None:
        """End the emulator."""
        if self.qmp_client:
            self.qmp_client.close()
        self.shell.close()
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        """End the guest."""
        self.kill()
        self._directory.cleanup()


@contextlib.contextmanager
def small_guests(name):
    """boot(**options): start a small guest. The kernel logs must be clean after."""
    guests = []

    def boot(**options):
        log = vm.ROOT / "out" / "check" / f"host-{name}-{len(guests) + 1}.log"
        guest = SmallGuest(log, **options)
        guests.append(guest)
        return guest

    try:
        yield boot
    finally:
        for guest in guests:
            guest.stop()
        # Also when the test has failed, which may be for just that reason.
        wrong = vm.find_splats([line for guest in guests for line in guest.log_lines()])
        if wrong:
            raise vm.Splat(wrong)
