#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Run a guest: the one way for demo, tests and benchmarks.

A guest sees the host's root file system (writes go to a tmpfs), and runs commands one after the
other in one boot. Kernels "release" and "checking", and those of distributions ("stock-NAME"), run
in QEMU by virtme-ng, with KVM where a real probe boot shows that it works and TCG otherwise; "uml"
is user-mode Linux, "native" the same without checks, for benchmarks.

    vm.py run [options] -- COMMAND...     run a command, exit with its status
    vm.py shell [options]                 an interactive shell

As a library: see Guest.
"""

import argparse
import asyncio
import base64
import contextlib
import dataclasses
import functools
import lzma
import os
import pathlib
import shlex
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from typing import ClassVar

import initramfs
from qemu.qmp import QMPClient

ROOT = pathlib.Path(__file__).resolve().parent.parent
CACHE = pathlib.Path(
    os.environ.get("FERRULE_CACHE")
    or pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache") / "ferrule"
)
GUEST_SCRIPTS = ROOT / "scripts" / "guest"

# Ends the output of each command of a session; the status follows.
MARK = "\x1eferrule-status "
# What a kernel log says when something is wrong. Checked on the whole log after each guest.
SPLATS = (
    "BUG:",
    "WARNING:",
    "Oops",
    "Kernel panic",
    "general protection fault",
    "KASAN:",
    "KFENCE:",
    "INFO: task ",
    "blocked for more than",
    "soft lockup",
    "rcu_preempt self-detected stall",
    "rcu_sched self-detected stall",
    "possible recursive locking",
    "possible circular locking",
    "possible irq lock inversion",
    "inconsistent lock state",
    "suspicious RCU usage",
    "unreferenced object",
    "sleeping function called from invalid context",
    "ODEBUG:",
    "list_add corruption",
    "list_del corruption",
    "refcount_t:",
    "Modules linked in:",
    "panicked at",
    "workqueue lockup",
    "Segfault with no mm",
)
TAIL_LINES = 40
# The kernels of distributions; the first is the one that "stock" means.
STOCK = [
    f"stock-{line.split()[0]}"
    for line in (ROOT / "scripts/config/stock.list").read_text().splitlines()
    if line and not line.startswith("#")
]
# The kernels (scripts/kernel.sh), and which of them are processes of the host.
KERNELS = ("release", "checking", "uml", "native", *STOCK)
UML = ("uml", "native")
# In a build directory: where virtme-ng finds the modules.
MODULES = ".virtme_mods/lib/modules/0.0.0"
# Those of another architecture have a root file system of their own (scripts/stock.sh).
ARM = [kernel for kernel in STOCK if "arm64" in kernel]
ARM_ROOT = CACHE / "roots/guest-arm64"
# A test may take this much longer than it says on an emulated kernel with all checks on, or with
# all that a distribution has.
SLOWNESS = {
    "release": 1,
    "uml": 1,
    "checking": 6,
    **dict.fromkeys(STOCK, 2),
    **dict.fromkeys(ARM, 4),
}
# What an emulated CPU does without: it makes the kernel move and clear memory byte by byte, walk
# five levels of page tables, and open and close user memory around each access to it.
COSTLY_IN_EMULATION = {"erms", "fsrm", "fsrs", "fzrm", "fsrc", "la57", "smap"}
# What spares an emulated guest a tenth of its CPU time. QEMU's main loop looks through the event
# file descriptors of all queues whenever anything happens, and a serial device has 64 queues
# unless told otherwise.
EMULATED_QEMU_OPTS = [
    *(
        f"-global virtio-{name}-pci.ioeventfd=off"
        for name in ("9p", "blk", "net", "scsi", "serial")
    ),
    "-global virtio-serial-device.max_ports=2",
]
# Its clocks differ by a little. The kernel blames the better one for that, and would read the other
# from then on, which is a device.
EMULATED_PARAMETERS = ["tsc=reliable"]
# The management console of user-mode Linux (arch/um/drivers/mconsole.h).
MCONSOLE_MAGIC = 0xCAFEBABE
MCONSOLE_VERSION = 2


# Which kernel guests have that are not told, as those of the tests that the host drives.
KERNEL = os.environ.get("FERRULE_HOST_KERNEL", "release")
# Which implementation tests are about: "c", the C drivers that ours take the place of, or ours.
PEER = os.environ.get("FERRULE_PEER", "")
# The balloon driver that they are about.
BALLOON = "virtio_balloon" if PEER else "virtio_balloon_rs"


class GuestError(Exception):
    """The guest did not do what it was asked: it hung, died or could not start."""


class Splat(AssertionError):
    """A kernel log says that something is wrong. A test that passes afterwards is no excuse."""


def find_splats(lines: list[str]) -> list[str]:
    """The lines of a kernel log that say that something is wrong."""
    return [line for line in lines if any(splat in line for splat in SPLATS)]


@dataclasses.dataclass
class Options:
    """What a guest is made of."""

    kernel: str = KERNEL
    kdir: pathlib.Path | None = None
    cpus: int = 2
    memory: str = "1G"
    # Guest time counts instructions (one CPU): the same work gives the same figure.
    icount: bool = False
    # Serve QMP, and connect to it as Guest.qmp.
    qmp: bool = False
    # Have udev, as most machines do. It takes its time, minutes on the checking kernel.
    udev: bool = True
    qemu_opts: list[str] = dataclasses.field(default_factory=list)
    append: list[str] = dataclasses.field(default_factory=list)
    # The guest is killed when it has not reached a shell after this many seconds.
    boot_timeout: float = 180
    log: pathlib.Path | None = None


def find_kdir(kernel: str) -> pathlib.Path:
    """The newest complete build of a kernel in the cache."""
    complete = sorted(
        (CACHE / "build").glob(f"{kernel}-*/.complete"), key=lambda path: path.stat().st_mtime
    )
    if not complete:
        raise GuestError(f"there is no {kernel} kernel yet: make kernel KERNEL={kernel}")
    return complete[-1].parent


def has_option(name: str) -> bool:
    """Whether the kernel that guests have was configured with it."""
    config = (find_kdir(KERNEL) / ".config").read_text()
    return f"\nCONFIG_{name}=" in config


def kernel_module(kdir: pathlib.Path, name: str) -> bytes:
    """A module of the kernel's own, such as drivers/md/dm-mod."""
    built = kdir / f"{name}.ko"
    if built.exists():
        return built.read_bytes()
    return lzma.decompress((kdir / MODULES / "kernel" / f"{name}.ko.xz").read_bytes())


def installed_modules(kernel: str, kdir: pathlib.Path) -> pathlib.Path:
    """The kernel's modules and ours, as `make install` leaves them: depmod is slow in a guest."""
    modules = ROOT / "out" / "modules" / kernel
    base = ROOT / "out" / "installed" / kernel
    target = base / "lib/modules/0.0.0"
    shutil.rmtree(base, ignore_errors=True)
    (target / "updates").mkdir(parents=True)
    for name in ("kernel", "extra"):
        if (kdir / MODULES / name).exists():
            subprocess.run(["cp", "-as", (kdir / MODULES / name).resolve(), target], check=True)
    for index in (kdir / MODULES).glob("modules.[bo]*"):
        shutil.copy(index, target)
    for folder in ("dm-qos", "mpath-sel", "balloon"):
        for module in (modules / folder).glob("*.ko"):
            shutil.copy(module, target / "updates")
    subprocess.run(["depmod", "-b", base, "0.0.0"], check=True)
    return target


def kvm_works(image: pathlib.Path) -> bool:
    """Whether KVM can boot this kernel. /dev/kvm alone says little, so boot it and see."""
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return False
    boot_id = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    verdict = CACHE / "kvm-probe"
    if verdict.exists() and verdict.read_text().split()[:1] == [boot_id]:
        return verdict.read_text().split()[1] == "yes"
    command = ["qemu-system-x86_64", "-accel", "kvm", "-cpu", "host", "-m", "256M", "-nographic"]
    command += ["-no-reboot", "-kernel", str(image), "-append", "console=ttyS0 panic=-1"]
    try:
        output = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=20, check=False
        ).stdout
    except subprocess.TimeoutExpired as expired:
        output = expired.stdout or b""
    works = b"Linux version" in output
    if not works:
        print("== KVM is present but cannot boot a kernel here: emulating (TCG)", file=sys.stderr)
    verdict.write_text(f"{boot_id} {'yes' if works else 'no'}\n")
    return works


@functools.cache
def emulated_cpu() -> str:
    """All that this QEMU can emulate, but for what costs more than it is worth."""
    known = subprocess.run(
        ["qemu-system-x86_64", "-cpu", "help"], capture_output=True, text=True, check=True
    ).stdout.split()
    return ",-".join(["max", *sorted(COSTLY_IN_EMULATION.intersection(known))])


def host_environment() -> dict[str, str]:
    """The environment of virtme-ng, which scripts/tools.sh installs beside this Python."""
    return {**os.environ, "PATH": f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}"}


class Qmp:
    """A QMP connection, for code that is not asynchronous."""

    def __init__(self, socket: pathlib.Path):
        self.loop = asyncio.new_event_loop()
        self.client = QMPClient("ferrule")
        self.loop.run_until_complete(self.client.connect(str(socket)))

    def execute(self, command: str, **arguments):
        """Run a QMP command and return what it returns."""
        return self.loop.run_until_complete(self.client.execute(command, arguments))

    def close(self) -> None:
        """Disconnect; the other end may be gone."""
        with contextlib.suppress(Exception):
            self.loop.run_until_complete(self.client.disconnect())
        self.loop.close()


def vng_command(
    options: Options, kdir: pathlib.Path, qmp_socket: pathlib.Path | None = None
) -> list[str]:
    """The virtme-ng command line of a guest, without what it runs."""
    command = ["vng", "--run", str(kdir)]
    command += ["--user", "root", "--force-9p", "--disable-monitor", "--cwd", "/"]
    command += ["--cpus", "1" if options.icount else str(options.cpus), "--memory", options.memory]
    # What this machine does with equal pages is for those to see who ask for it.
    qemu_opts = ["-machine mem-merge=off", *options.qemu_opts]
    parameters = ["oops=panic", *options.append]
    if options.icount:
        command.append("--disable-kvm")
        qemu_opts.append("-icount shift=0,sleep=off")
    elif not kvm_works(kdir / "arch/x86/boot/bzImage"):
        command.append("--disable-kvm")
        qemu_opts += [f"-cpu {emulated_cpu()}", *EMULATED_QEMU_OPTS]
        parameters += EMULATED_PARAMETERS
    if qmp_socket:
        qemu_opts.append(f"-qmp unix:{qmp_socket},server=on,wait=off")
    if options.kernel in STOCK:
        qemu_opts.append(f"-initrd {root_initrd(kdir)}")
    if not options.udev:
        # QEMU takes the last one: this is instead of what virtme-ng tells the kernel.
        own = [*own_init(kdir), *parameters]
        qemu_opts.append(f"-append {shlex.quote(' '.join(own))}")
    for opt in qemu_opts:
        command.append(f"--qemu-opts={opt}")
    # The serial console costs: keep to what matters, and all of it is in the log.
    for arg in parameters:
        command += ["--append", arg]
    return command


def root_initrd(kdir: pathlib.Path, busybox: str = "/bin/busybox") -> pathlib.Path:
    """An initramfs for a kernel that has what its root file system needs as modules."""
    file = kdir / "initramfs"
    if not file.exists():
        new = pathlib.Path(tempfile.mkstemp(dir=kdir)[1])
        new.write_bytes(initramfs.root_by_modules(kdir / MODULES, pathlib.Path(busybox)))
        new.rename(file)
    return file


def own_init(kdir: pathlib.Path) -> list[str]:
    """Kernel parameters for a guest with an init of our own, which does no more than is needed."""
    return [
        "console=ttyS0",
        "root=/dev/root",
        "rootfstype=9p",
        f"rootflags={initramfs.ROOT_OPTIONS}",
        "ro",
        "panic=-1",
        f"init={GUEST_SCRIPTS / 'init.sh'}",
        f"ferrule_scripts={GUEST_SCRIPTS}",
        f"ferrule_modules={kdir / MODULES}",
    ]


def arm_command(
    options: Options, kdir: pathlib.Path, log: pathlib.Path, qmp_socket: pathlib.Path | None
) -> list[str]:
    """The command line of an emulated arm64 machine, whose programs are those of a root."""
    command = ["qemu-system-aarch64", "-machine", "virt,mem-merge=off", "-nodefaults", "-nographic"]
    # Pointer authentication as in the architecture is costly to emulate.
    command += ["-cpu", "max,pauth-impdef=on", "-smp", str(options.cpus), "-m", options.memory]
    command += ["-kernel", str(kdir / image_of(options.kernel)), "-no-reboot"]
    command += ["-initrd", str(root_initrd(kdir, f"{ARM_ROOT}/usr/bin/busybox"))]
    command += ["-chardev", f"file,id=log,path={log},append=on", "-serial", "chardev:log"]
    command += ["-chardev", "stdio,id=session,signal=off", "-device", "virtio-serial-pci"]
    command += ["-device", "virtserialport,chardev=session,name=virtme.stdin"]
    for tag, path in ((initramfs.ROOT_TAG, ARM_ROOT), (initramfs.HOST_TAG, "/")):
        name = tag.replace("/", "")
        settings = "security_model=none,readonly=on,multidevs=remap"
        command += ["-fsdev", f"local,id={name},path={path},{settings}"]
        command += ["-device", f"virtio-9p-pci,fsdev={name},mount_tag={tag}"]
    if qmp_socket:
        command += ["-qmp", f"unix:{qmp_socket},server=on,wait=off"]
    for opt in options.qemu_opts:
        command += shlex.split(opt)
    parameters = [word for word in own_init(kdir) if not word.startswith(("console=", "root"))]
    parameters += ["console=ttyAMA0", "oops=panic", *options.append]
    # Mount points in a root file system that is only read.
    for place in (initramfs.HOST, ROOT, CACHE, "/lib/modules"):
        pathlib.Path(f"{ARM_ROOT}{place}").mkdir(parents=True, exist_ok=True)
    parameters += [f"ferrule_host={place}" for place in (ROOT, CACHE)]
    return [*command, "-append", " ".join(parameters)]


def image_of(kernel: str) -> str:
    """Where in a build directory the kernel's image is."""
    if kernel in UML:
        return "linux"
    return "arch/arm64/boot/Image" if kernel in ARM else "arch/x86/boot/bzImage"


def uml_command(options: Options, kdir: pathlib.Path, directory: pathlib.Path) -> list[str]:
    """The command line of user-mode Linux, which keeps its files in a directory of its own."""
    return [
        str(kdir / "linux"),
        f"mem={options.memory}",
        f"ncpus={options.cpus}",
        "seccomp=on",
        "rootfstype=hostfs",
        "ro",
        "stderr=1",
        "console=ttyS0",
        "ssl=null",
        "ssl0=null,fd:2",
        "kunit.enable=1",
        "kunit.autorun=1",
        # Not each time that a test loads a module: selftests/kunit has them run.
        "kunit.filter_glob=none",
        "con=null",
        "con0=fd:0,fd:1",
        f"uml_dir={directory}/",
        "umid=guest",
        "panic=-1",
        "oops=panic",
        f"init={GUEST_SCRIPTS / 'init.sh'}",
        f"ferrule_scripts={GUEST_SCRIPTS}",
        f"ferrule_modules={next((kdir / 'modules/lib/modules').iterdir())}",
        *options.append,
    ]


# How often a guest is started that does not boot.
ATTEMPTS = 3
# In the log of a guest whose kernel believed the wrong one of two measurements of its clock.
WRONG_CLOCK = "tsc: PIT calibration deviates from HPET"


class Guest:
    """A running guest, and a shell session in it.

    with Guest(Options(memory="2G")) as guest:
        status, output = guest.run("uname -a", timeout=30)

    A guest that dies or hangs raises GuestError with the end of its kernel log; leaving the block
    powers it off. `check_log` says what is wrong in the log.
    """

    running: ClassVar[set["Guest"]] = set()
    no_more: ClassVar[bool] = False

    def __init__(self, options: Options):
        self.options = options
        self.kdir = options.kdir or find_kdir(options.kernel)
        self.log = options.log or pathlib.Path(tempfile.mkstemp(prefix="ferrule-log-")[1])
        self.process: subprocess.Popen | None = None
        self._reader: threading.Thread | None = None
        self.qmp: Qmp | None = None
        # What cpu_seconds() said last.
        self.cpu = 0.0
        self._directory = tempfile.TemporaryDirectory(prefix="ferrule-")
        self._lines: list[str] = []
        self._arrived = threading.Condition()
        self._ended = False

    def __enter__(self) -> "Guest":
        for left in reversed(range(ATTEMPTS)):
            try:
                self.start()
                break
            except GuestError as error:
                if Guest.no_more or self.process is None or not left:
                    raise
                # An emulated guest on a busy host can lose its timer interrupts while it boots, and
                # hangs then, or take its clock to be slower than it is; nothing of ours runs yet.
                self.kill()
                self._reader.join()
                failed = self.log.with_suffix(".hung.log")
                self.log.rename(failed)
                what = str(error).partition("\n")[0]
                print(f"== a guest did not boot ({failed}: {what}): once more", file=sys.stderr)
                self._directory = tempfile.TemporaryDirectory(prefix="ferrule-")
                self._lines.clear()
                self._ended = False
        return self

    def __exit__(self, *_exc) -> None:
        self.stop()

    def start(self) -> None:
        """Boot, and wait for the session's shell."""
        if Guest.no_more:
            raise GuestError("told to end")
        self.log.parent.mkdir(parents=True, exist_ok=True)
        session = GUEST_SCRIPTS / "session.sh"
        if not (self.kdir / image_of(self.options.kernel)).exists():
            raise GuestError(
                f"{self.kdir} has no kernel image to boot: KERNEL=stock has a distribution's"
            )
        if self.options.kernel in UML:
            command = uml_command(self.options, self.kdir, pathlib.Path(self._directory.name))
        elif self.options.kernel in ARM:
            socket = pathlib.Path(self._directory.name) / "qmp" if self.options.qmp else None
            command = arm_command(self.options, self.kdir, self.log, socket)
        else:
            socket = pathlib.Path(self._directory.name) / "qmp" if self.options.qmp else None
            command = vng_command(self.options, self.kdir, socket)
            command += ["--verbose", "--exec", f"exec bash {shlex.quote(str(session))}"]
        # The kernel log goes to its own file by the standard error; a new session so that the whole
        # tree of processes can be killed.
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(  # pylint: disable=consider-using-with
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
                env=host_environment(),
            )
        Guest.running.add(self)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self._wait_for_mark("boot", self.options.boot_timeout, None)
        if any(WRONG_CLOCK in line for line in self.log_lines()):
            raise GuestError("its time goes many times too fast")
        if self.options.qmp:
            self.qmp = Qmp(pathlib.Path(self._directory.name) / "qmp")

    def _read(self) -> None:
        for raw in self.process.stdout:
            line = raw.decode(errors="replace").rstrip("\r\n")
            with self._arrived:
                self._lines.append(line)
                self._arrived.notify()
        with self._arrived:
            self._ended = True
            self._arrived.notify()

    def _wait_for_mark(self, what, timeout, on_line) -> tuple[int, str]:
        deadline = time.monotonic() + timeout
        output = []
        while True:
            with self._arrived:
                while not self._lines and not self._ended:
                    left = deadline - time.monotonic()
                    if left <= 0:
                        self.kill()
                        raise GuestError(
                            f"{what}: nothing after {timeout:.0f} s, guest killed\n{self.tail()}"
                        )
                    self._arrived.wait(min(left, 1))
                if not self._lines:
                    self.process.wait()
                    raise GuestError(f"{what}: the guest ended\n{self.tail()}")
                line = self._lines.pop(0)
            # A command may leave its last line without an end.
            before, mark, status = line.partition(MARK)
            if before or not mark:
                output.append(before)
                if on_line:
                    on_line(before)
            if mark:
                return int(status), "\n".join(output)

    def run(
        self, script: str, timeout: float = 60, on_line: Callable[[str], None] | None = None
    ) -> tuple[int, str]:
        """Run a bash script; its status and its output, standard error included."""
        self.send(script)
        return self._wait_for_mark(script.strip().splitlines()[0], timeout, on_line)

    def check(self, script: str, timeout: float = 60) -> str:
        """Like run, for a script that has to succeed."""
        status, output = self.run(script, timeout)
        if status:
            raise GuestError(f"{script}: status {status}\n{output}")
        return output

    def send(self, script: str) -> None:
        """Start a script; wait() takes its result. For what the host does meanwhile."""
        settings = {
            "FERRULE_KERNEL": self.options.kernel,
            "FERRULE_PEER": PEER,
            "FERRULE_MODULES": str(ROOT / "out" / "modules" / self.options.kernel),
            "FERRULE_SERVERS": str(CACHE / "tools" / "servers"),
        }
        exports = "".join(f"export {k}={shlex.quote(v)}\n" for k, v in settings.items())
        line = base64.b64encode((exports + script).encode())
        try:
            self.process.stdin.write(line + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError as error:
            raise GuestError(f"the guest ended\n{self.tail()}") from error

    def wait(self, timeout: float = 60) -> tuple[int, str]:
        """The status and output of what send started."""
        return self._wait_for_mark("guest", timeout, None)

    def mconsole(self, command: str) -> str:
        """Give user-mode Linux a command of its management console; what it says."""
        data = command.encode()
        request = struct.pack("=III512s", MCONSOLE_MAGIC, MCONSOLE_VERSION, len(data), data)
        text = ""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as console:
            # An empty name is one that the system chooses.
            console.bind("")
            console.settimeout(30)
            console.connect(str(pathlib.Path(self._directory.name) / "guest" / "mconsole"))
            console.send(request)
            more = True
            while more:
                reply = console.recv(4096)
                error, more, length = struct.unpack_from("=III", reply)
                text += reply[12:][:length].decode(errors="replace")
        if error:
            raise GuestError(f"{command}: {text}")
        return text

    def qemu_pid(self) -> int:
        """The emulator's process, for what it costs the host."""
        for status in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                words = status.read_bytes().split(b"\0")
                if b"qemu-system" in words[0] and self._directory.name.encode() in b" ".join(words):
                    return int(status.parent.name)
        raise GuestError("no emulator is running with QMP for this guest")

    def resident_mib(self) -> int:
        """Host memory that the emulator holds, in MiB."""
        status = pathlib.Path(f"/proc/{self.qemu_pid()}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0]) // 1024

    def cpu_seconds(self) -> float:
        """CPU time that the guest has cost the host."""
        ticks = 0
        for stat in pathlib.Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                # See proc_pid_stat(5), from the third field on: what follows the command's name.
                fields = stat.read_text().rpartition(")")[2].split()
                if int(fields[3]) == self.process.pid:
                    ticks += sum(int(field) for field in fields[11:15])
        # When it has ended, what is known is what it was before.
        self.cpu = max(self.cpu, ticks / os.sysconf("SC_CLK_TCK"))
        return self.cpu

    def tail(self) -> str:
        """The end of the kernel log."""
        lines = self.log_lines()[-TAIL_LINES:]
        return "\n".join(["--- end of the guest's kernel log:", *lines])

    def log_lines(self) -> list[str]:
        """The kernel log so far."""
        if not self.log.exists():
            return []
        return self.log.read_text(errors="replace").replace("\r", "").splitlines()

    def check_log(self) -> list[str]:
        """The lines of the kernel log that say that something is wrong."""
        return find_splats(self.log_lines())

    def stop(self) -> None:
        """Power off; kill what does not end."""
        if self.qmp:
            self.qmp.close()
            self.qmp = None
        if self.process.poll() is None:
            self.cpu_seconds()
            try:
                self.process.stdin.write(b"exit\n")
                self.process.stdin.flush()
                self.process.wait(30)
            except (BrokenPipeError, subprocess.TimeoutExpired):
                self.kill()
        self.kill()

    def kill(self) -> None:
        """Kill the guest and all that was started for it."""
        if self.process.poll() is None:
            self.cpu_seconds()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        Guest.running.discard(self)
        self._directory.cleanup()


def kill_guests_on_signal() -> None:
    """Leave no guest behind: each is a session of its own, which a signal to us does not reach."""

    def end(number, _frame):
        Guest.no_more = True
        for guest in list(Guest.running):
            guest.kill()
        sys.exit(128 + number)

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, end)


def options_of(args) -> Options:
    """Options from the command line."""
    return Options(
        kernel=args.kernel,
        kdir=args.kdir,
        cpus=args.cpus,
        memory=args.memory,
        icount=args.icount,
        qemu_opts=args.qemu_opts,
        append=args.append,
        udev=not args.no_udev,
        log=args.log,
    )


def run_command(args) -> int:
    """vm.py run"""
    with Guest(options_of(args)) as guest:
        status, _ = guest.run(
            shlex.join(args.command), args.timeout, lambda line: print(line, flush=True)
        )
        wrong = guest.check_log()
    for line in wrong:
        print(f"kernel log: {line}", file=sys.stderr)
    print(f"== kernel log: {guest.log}", file=sys.stderr)
    return status or bool(wrong)


def run_shell(args) -> int:
    """vm.py shell"""
    options = options_of(args)
    if options.kernel in UML:
        raise GuestError("an interactive shell needs KERNEL=release or checking")
    modules = ROOT / "out" / "modules" / options.kernel
    kdir = options.kdir or find_kdir(options.kernel)
    print(f"== the modules are in {modules}; leave with ctrl-d", file=sys.stderr)
    return subprocess.call(vng_command(options, kdir), env=host_environment())


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)
    for name, function in (("run", run_command), ("shell", run_shell)):
        command = commands.add_parser(name)
        command.set_defaults(function=function)
        command.add_argument("--kernel", default="release", choices=KERNELS)
        command.add_argument("--kdir", type=pathlib.Path, help="a kernel build of your own")
        command.add_argument("--cpus", type=int, default=2)
        command.add_argument("--memory", default="1G")
        command.add_argument("--icount", action="store_true", help="count instructions as time")
        command.add_argument("--no-udev", action="store_true")
        command.add_argument("--qemu-opts", action="append", default=[], metavar="OPTS")
        command.add_argument("--append", action="append", default=[], metavar="KERNEL-ARG")
        command.add_argument("--log", type=pathlib.Path, help="keep the kernel log here")
    run = commands.choices["run"]
    run.add_argument("--timeout", type=float, default=600, help="seconds for the command")
    run.add_argument("command", nargs="+")
    args = parser.parse_args()
    kill_guests_on_signal()
    try:
        return args.function(args)
    except GuestError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
