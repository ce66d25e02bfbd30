# SPDX-License-Identifier: GPL-2.0
"""scripts/balloonctl with a domain of libvirt, whose daemon is one of our own."""

import contextlib
import gzip
import json
import os
import pathlib
import shutil
import subprocess
import tempfile

import pytest
import vm
from balloonguest import MIB, Balloon

pytestmark = pytest.mark.ours("a tool of our own")

TOOL = vm.ROOT / "scripts" / "balloonctl"
MODULE = vm.ROOT / "out/modules" / vm.KERNEL / "balloon/virtio_balloon_rs.ko"
BUSYBOX = pathlib.Path("/bin/busybox")
URI = "qemu:///session"
MEMORY = 256

# A guest that has its driver and nothing else: libvirt's own QEMU may not see our files.
INIT = """#!/bin/busybox sh
/bin/busybox mkdir -p /proc
/bin/busybox mount -t proc proc /proc
/bin/busybox insmod /virtio_balloon_rs.ko
while :; do /bin/busybox sleep 3600; done
"""

DOMAIN = """
<domain type='qemu' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>guest</name>
  <memory unit='MiB'>{memory}</memory>
  <vcpu>1</vcpu>
  <os>
    <type arch='x86_64' machine='q35'>hvm</type>
    <kernel>{kernel}</kernel>
    <initrd>{directory}/initrd</initrd>
    <cmdline>console=ttyS0 panic=-1 oops=panic</cmdline>
  </os>
  <features><acpi/></features>
  <devices>
    <serial type='file'><source path='{directory}/console'/></serial>
    <memballoon model='virtio' freePageReporting='on'/>
  </devices>
  <qemu:commandline>
    <qemu:arg value='-qmp'/>
    <qemu:arg value='unix:{directory}/guest.sock,server=on,wait=off'/>
  </qemu:commandline>
</domain>
"""


class Libvirt:
    """A session daemon, and a domain that it runs."""

    def __init__(self, directory: pathlib.Path):
        self.directory = directory
        (directory / "run").mkdir(mode=0o700)
        self.environment = {
            **os.environ,
            "HOME": str(directory),
            "XDG_RUNTIME_DIR": str(directory / "run"),
            "XDG_CONFIG_HOME": str(directory / "config"),
            "XDG_CACHE_HOME": str(directory / "cache"),
            "FERRULE_CACHE": str(vm.CACHE),
        }
        # For root there is no session of libvirt. So be somebody else, with the same files.
        self.prefix = []
        if os.geteuid() == 0:
            self.prefix = ["unshare", "--user", "--map-user=1000", "--map-group=1000"]

    def run(self, *words, timeout=60):
        """Run a command as libvirt's user."""
        return subprocess.run(
            [*self.prefix, *map(str, words)],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def virsh(self, *words) -> str:
        """Run virsh; it has to succeed."""
        done = self.run("virsh", "-q", "-c", URI, *words)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def tool(self, *words):
        """Run balloonctl."""
        return self.run(TOOL, *words)

    def result(self, *words):
        """Run balloonctl; what it prints as JSON. It has to succeed."""
        done = self.tool(*words, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def actual(self) -> int:
        """What libvirt says that the domain has, in MiB."""
        words = self.virsh("dommemstat", "guest").split()
        return int(words[words.index("actual") + 1]) // 1024


def write_initrd(path: pathlib.Path) -> None:
    """busybox, the module and an init."""
    with tempfile.TemporaryDirectory() as name:
        root = pathlib.Path(name)
        (root / "bin").mkdir()
        shutil.copy(BUSYBOX, root / "bin")
        shutil.copy(MODULE, root)
        (root / "init").write_text(INIT)
        (root / "init").chmod(0o755)
        files = "\n".join(str(file.relative_to(root)) for file in sorted(root.rglob("*")))
        archive = subprocess.run(
            ["cpio", "--quiet", "-o", "-H", "newc"],
            cwd=root,
            input=files.encode(),
            capture_output=True,
            check=True,
        ).stdout
    path.write_bytes(gzip.compress(archive, 1))


@pytest.fixture(name="libvirt", scope="module")
def libvirt_fixture():
    """The daemon, with a domain that has its driver."""
    for command in ("libvirtd", "virsh", "cpio", "unshare"):
        if not shutil.which(command):
            pytest.skip(f"there is no {command} here")
    with tempfile.TemporaryDirectory(prefix="libvirt-", ignore_cleanup_errors=True) as name:
        libvirt = Libvirt(pathlib.Path(name))
        if libvirt.run("true").returncode:
            pytest.skip("no user namespaces here")
        directory = libvirt.directory
        write_initrd(directory / "initrd")
        kernel = vm.find_kdir(vm.KERNEL) / "arch/x86/boot/bzImage"
        text = DOMAIN.format(memory=MEMORY, kernel=kernel, directory=directory)
        (directory / "guest.xml").write_text(text)
        with (
            open(directory / "log", "wb") as log,
            subprocess.Popen(
                [*libvirt.prefix, "libvirtd"], env=libvirt.environment, stdout=log, stderr=log
            ) as daemon,
        ):
            try:
                listens = directory / "run/libvirt/libvirt-sock"
                Balloon.wait_for(listens.exists, 60, "libvirtd")
                libvirt.virsh("create", directory / "guest.xml")
                console = directory / "console"
                Balloon.wait_for(lambda: "memory balloon" in console.read_text(), 120, "the guest")
                yield libvirt
                bad = [line for line in console.read_text().splitlines() if "BUG:" in line]
                assert not bad
            finally:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    libvirt.run("virsh", "-c", URI, "destroy", "guest", timeout=30)
                daemon.terminate()


@pytest.mark.parametrize("way", ["libvirt", "socket"])
def test_set_and_status(libvirt, way):
    """By virsh, and by a monitor of its own beside libvirt's: libvirt knows of both."""
    where = ("--libvirt", URI) if way == "libvirt" else ("--sockets", libvirt.directory)
    for text, size in (("160M", 160), ("max", MEMORY), ("200.5M", 200.5)):
        assert libvirt.result("set", "guest", text, *where)["actual"] == size * MIB
        assert libvirt.actual() == int(size)
    rows = libvirt.result("status", *where)
    row = rows[0]
    assert len(rows) == 1
    assert (row["vm"], row["maximum"]) == ("guest", MEMORY * MIB)
    assert row["actual"] == 200.5 * MIB
    # libvirt has no word for what was asked for.
    assert row["target"] == (200.5 * MIB if way == "socket" else None)
    assert 50 * MIB < row["statistics"]["available-memory"] < 200 * MIB
    assert row["statistics"]["age"] < 10
    assert row["resident"] > 50 * MIB
    # It keeps its memory while it is paused.
    libvirt.virsh("suspend", "guest")
    assert libvirt.result("status", *where)[0]["actual"] == 200.5 * MIB
    libvirt.virsh("resume", "guest")
    assert "period" not in libvirt.virsh("dumpxml", "guest")


def test_what_libvirt_refuses_is_said(libvirt):
    """In one line."""
    where = ("--libvirt", URI)
    for words, reason in (
        (("set", "none", "100M", *where), "there is no VM none (there are: guest)"),
        (("set", "guest", "1G", *where), "guest: 1G is beyond its memory of 256M"),
        (("status", "--libvirt", "qemu:///nonsense"), "virsh domstats: "),
    ):
        done = libvirt.tool(*words)
        assert done.returncode == 1
        assert done.stderr.count("\n") == 1
        assert done.stderr.startswith("error: ")
        assert reason in done.stderr


def test_auto(libvirt):
    """A budget below what the domain has."""
    libvirt.result("set", "guest", "max", "--libvirt", URI)
    command = [TOOL, "auto", "--budget", "190M", "--interval", "1", "--json", "--libvirt", URI]
    with subprocess.Popen(
        [*libvirt.prefix, *map(str, command)],
        env=libvirt.environment,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            for line in process.stdout:
                report = json.loads(line)
                if report["total"] <= 190 * MIB:
                    break
            assert report["vms"][0]["name"] == "guest"
            process.terminate()
            assert process.wait(60) == 0
        finally:
            process.kill()
    assert 180 <= libvirt.actual() <= 190
    assert "period" not in libvirt.virsh("dumpxml", "guest")


def test_a_name_is_a_name(libvirt):
    """A domain whose name is the ID of the other one: it is the one that is asked."""
    where = ("--libvirt", URI)
    libvirt.result("set", "guest", "max", *where)
    number = libvirt.virsh("domid", "guest")
    path = libvirt.directory / "number.xml"
    path.write_text(
        f"<domain type='qemu'><name>{number}</name><memory unit='MiB'>{MEMORY // 2}</memory>"
        "<os><type arch='x86_64' machine='q35'>hvm</type></os>"
        "<devices><memballoon model='virtio'/></devices></domain>"
    )
    libvirt.virsh("create", path)
    try:
        rows = libvirt.result("status", *where)
        assert {row["vm"]: row["maximum"] for row in rows} == {
            "guest": MEMORY * MIB,
            number: MEMORY // 2 * MIB,
        }
        asked = libvirt.result("set", number, "100M", "--no-wait", *where)
        assert (asked["vm"], asked["maximum"]) == (number, MEMORY // 2 * MIB)
        # The other one would have given it at once.
        Balloon.wait_for(lambda: libvirt.tool("status", *where).returncode == 0, 10, "status")
        assert libvirt.actual() == MEMORY
        # Paused, it is still there, and holds nobody up.
        libvirt.virsh("suspend", "guest")
        assert [row["paused"] for row in libvirt.result("status", *where)].count(True) == 1
        libvirt.virsh("resume", "guest")
    finally:
        uuids = libvirt.virsh("list", "--uuid", "--name").splitlines()
        libvirt.virsh("destroy", next(u.split()[0] for u in uuids if u.split()[1] == number))
