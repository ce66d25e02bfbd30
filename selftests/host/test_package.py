# SPDX-License-Identifier: GPL-2.0
"""The Debian packages, on a Debian 13 with its own kernel: installed, booted, upgraded, removed.

It takes some twenty minutes and 6 GB in the cache: not part of `make check`, but `make check-deb`.
"""

import contextlib
import os
import pathlib
import re
import shutil
import subprocess
import time

import pytest
import vm

pytestmark = pytest.mark.ours("our own packages")

ROOT, CACHE = vm.ROOT, vm.CACHE
RELEASE = os.environ.get("FERRULE_PACKAGE_KERNEL", "7.3.4+deb13-cloud-amd64")
OTHER = RELEASE.replace("-cloud", "")
VERSION = re.match(r"ferrule \((.*?)\)", (ROOT / "debian/changelog").read_text())[1]
MODULES = ("dm-qos", "dm-round-robin-rs", "virtio_balloon_rs")
BASE = CACHE / "roots" / "deb-test"
WORK = CACHE / "roots" / "deb-test-work"
# What Debian has installed before.
PACKAGES = (
    "busybox,ca-certificates,dmsetup,e2fsprogs,initramfs-tools,kmod,lvm2,procps,systemd-sysv,udev"
)
BOOT_SECONDS = 600
# For a boot with systemd.
UNIT = """[Service]
ExecStart=/bin/bash /ferrule-init
StandardOutput=tty
StandardError=inherit
TTYPath=/dev/ttyS0
"""
# What is left out of the disk of the machine that is booted.
NOT_BOOTED = ("usr/src", "usr/lib/rustlib", "usr/lib/llvm-19", "var/cache", "boot", "tmp")


def shell(script: str, *words, check: bool = True) -> str:
    """A script with the functions of scripts/lib.sh; returns what it says."""
    command = ["bash", "-c", f". {ROOT}/scripts/lib.sh\n{script}", "bash", *map(str, words)]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    assert done.returncode == 0 or not check, f"{words or script}:\n{done.stdout[-4000:]}"
    return done.stdout


def inside(root: pathlib.Path, *command, check: bool = True) -> str:
    """A command in a root."""
    quiet = ("env", "DEBIAN_FRONTEND=noninteractive")
    return shell('in_root "$@"', root, *quiet, *command, check=check)


def apt(root: pathlib.Path, *words, check: bool = True) -> str:
    """apt-get, with as little as possible."""
    return inside(root, "apt-get", "-q", "-y", "--no-install-recommends", *words, check=check)


def copy_of(root: pathlib.Path, name: str) -> pathlib.Path:
    """The same root again."""
    copy = root.with_name(name)
    shell('rm -rf --one-file-system "$2" && cp -a "$1" "$2"', root, copy)
    return copy


def package(name: str) -> str:
    """The file of a package that was built."""
    found = sorted((ROOT / "out/deb").glob(f"{name}_*_all.deb"))
    assert found, "make deb builds the packages"
    return str(found[-1])


def status(root: pathlib.Path) -> str:
    """What DKMS has built."""
    return inside(root, "dkms", "status")


def modules_of(root: pathlib.Path, release: str) -> set[str]:
    """Ours, where modprobe finds them."""
    updates = root / "lib/modules" / release / "updates/dkms"
    return {path.name.partition(".ko")[0] for path in updates.glob("*.ko*")}


@pytest.fixture(name="base", scope="module")
def base_fixture():
    """Debian 13 with a kernel of the backports and its headers."""
    if not (BASE / ".complete").exists():
        extra = [f"--dpkgopt=path-include=/usr/share/{d}/*" for d in ("doc/ferrule-*", "man")]
        shell('make_root "$@"', BASE, "trixie", PACKAGES, *extra)
    if not (BASE / "boot" / f"vmlinuz-{RELEASE}").exists():
        sources = BASE / "etc/apt/sources.list.d/backports.sources"
        sources.write_text(shell("suite_sources trixie-backports"))
        apt(BASE, "update")
        wanted = [f"linux-{what}-{RELEASE}" for what in ("image", "headers")]
        apt(BASE, "install", "-t", "trixie-backports", *wanted)
    return BASE


@pytest.fixture(name="root", scope="module")
def root_fixture(base):
    """The same, with our packages."""
    root = copy_of(base, WORK.name)
    root.joinpath("installed.log").write_text(
        apt(root, "install", package("ferrule-dkms"), package("ferrule-tools"))
    )
    yield root
    shutil.rmtree(root)


def test_installing_builds_the_modules(root):
    """Nothing else is needed. They are signed, stripped and compressed as the kernel's own."""
    assert f"ferrule/{VERSION}, {RELEASE}, x86_64: installed" in status(root)
    assert modules_of(root, RELEASE) == set(MODULES)
    for name in MODULES:
        assert inside(root, "modinfo", "-k", RELEASE, "-F", "signer", name).strip()
    said = (root / "installed.log").read_text()
    assert "modules for" not in said


def test_the_tools_work(root):
    """balloonctl, and the manual pages."""
    assert "usage: balloonctl" in inside(root, "balloonctl", "--help")
    said = inside(root, "balloonctl", "status", "--vm", "a=/nowhere.sock", check=False)
    assert "there is no such socket" in said
    assert "usage: qosctl" in inside(root, "qosctl", "--help")
    assert "device mapper cannot" in inside(root, "qosctl", "list", check=False)
    for page in ("man1/balloonctl.1", "man1/qosctl.1", "man4/dm-qos.4", "man7/ferrule.7"):
        assert (root / "usr/share/man" / f"{page}.gz").exists()


def disk_of(root: pathlib.Path, name: str) -> pathlib.Path:
    """An image of a root, but for what it takes to build, with a script of selftests/package."""
    tree, disk = root.with_name("deb-test-disk"), CACHE / "tmp" / "deb-test.img"
    shell('rm -rf --one-file-system "$2" && cp -al "$1" "$2"', root, tree)
    for folder in NOT_BOOTED:
        shutil.rmtree(tree / folder, ignore_errors=True)
        (tree / folder).mkdir()
    for file, to in ((name, "ferrule-init"), ("checks.sh", "ferrule-checks")):
        shutil.copy(ROOT / "selftests/package" / file, tree / to)
    units = tree / "etc/systemd/system"
    (units / "ferrule-check.service").write_text(UNIT)
    (units / "multi-user.target.wants").mkdir(exist_ok=True)
    (units / "multi-user.target.wants/ferrule-check.service").symlink_to("../ferrule-check.service")
    # It is not to be asked who it is; files are links to those of the root.
    (tree / "etc/machine-id").unlink(missing_ok=True)
    (tree / "etc/machine-id").write_text("0123456789abcdef" * 2 + "\n")
    disk.parent.mkdir(parents=True, exist_ok=True)
    disk.unlink(missing_ok=True)
    shell('mke2fs -q -t ext4 -d "$1" "$2" 3G', tree, disk)
    shutil.rmtree(tree)
    return disk


@contextlib.contextmanager
def machine(root: pathlib.Path, script: str, log: pathlib.Path, parameters: str, *options):
    """Boots such an image."""
    disk = disk_of(root, script)
    log.parent.mkdir(parents=True, exist_ok=True)
    parameters = f"console=ttyS0 root=/dev/vda rw panic=-1 tsc=reliable quiet {parameters}"
    command = ["qemu-system-x86_64", "-machine", "q35", "-cpu", vm.emulated_cpu(), "-m", "1G"]
    command += ["-kernel", root / "boot" / f"vmlinuz-{RELEASE}"]
    command += ["-initrd", root / "boot" / f"initrd.img-{RELEASE}", "-append", parameters]
    command += ["-drive", f"file={disk},if=virtio,format=raw,cache=unsafe"]
    command += ["-device", "virtio-balloon-pci", "-nic", "none", "-display", "none"]
    command += ["-serial", f"file:{log}", *options]
    with subprocess.Popen(command) as process:
        try:
            yield process
        finally:
            process.kill()
            disk.unlink()


def assert_checked(log: pathlib.Path, count: int) -> None:
    """So many checks, all of which are well, and nothing else is wrong."""
    said = log.read_text(errors="replace")
    # A console that is set up anew says so in the same line.
    checks = dict(re.findall(r"check: (.*): (\w+)\r?$", said, re.M))
    assert checks.get("all") == "ok", said[-4000:]
    assert set(checks.values()) == {"ok"}
    assert len(checks) == count
    if wrong := vm.find_splats(said.splitlines()):
        raise vm.Splat(wrong)


def test_a_machine_boots_with_them(root):
    """modprobe, device mapper and the balloon's bus find what was installed."""
    log = ROOT / "out/check/package-boot.log"
    with machine(root, "init.sh", log, "init=/ferrule-init", "-no-reboot") as process:
        assert process.wait(BOOT_SECONDS) == 0
    assert_checked(log, 6)


def disk_options(name: str, size: str) -> tuple[pathlib.Path, list[str]]:
    """An empty disk that is told by its name, and may come and go."""
    file = CACHE / "tmp" / f"deb-test-{name}.img"
    shell('rm -f "$1" && truncate -s "$2" "$1"', file, size)
    node = f"driver=raw,node-name={name},file.driver=file,file.filename={file}"
    device = f"scsi-hd,id={name},drive={name},serial={name}"
    return file, ["-blockdev", node, "-device", device]


def test_systemd_brings_limits_back(root, tmp_path):
    """At boot, with a volume, and with a disk that is plugged in; and it runs balloonctl auto."""
    log = ROOT / "out/check/package-systemd.log"
    files, options = [], ["-device", "virtio-scsi-pci", "-qmp"]
    options += [f"unix:{tmp_path}/qmp,server=on,wait=off"]
    for name, size in (("lv", "256M"), ("db", "64M")):
        file, more = disk_options(name, size)
        files.append(file)
        options += more
    parameters = "systemd.mask=serial-getty@ttyS0.service"

    def wait_for(text):
        deadline = time.monotonic() + 2 * BOOT_SECONDS
        while text not in (said := log.read_text(errors="replace") if log.exists() else ""):
            assert process.poll() is None and time.monotonic() < deadline, said[-4000:]
            time.sleep(0.5)

    log.unlink(missing_ok=True)
    try:
        with machine(root, "systemd.sh", log, parameters, *options) as process:
            wait_for("ready: unplug")
            qmp = vm.Qmp(tmp_path / "qmp")
            qmp.execute("device_del", id="db")
            wait_for("ready: plug")
            # In another place it is another disk.
            place = {"scsi-id": 7, "serial": "db"}
            qmp.execute("device_add", driver="scsi-hd", id="again", drive="db", **place)
            qmp.close()
            assert process.wait(BOOT_SECONDS) == 0
    finally:
        for file in files:
            file.unlink(missing_ok=True)
    assert_checked(log, 20)


def test_a_kernel_without_rust_is_left_out(root):
    """Debian 13's own: nothing fails, and there is a line that says why."""
    said = apt(root, "install", "linux-headers-cloud-amd64/trixie")
    old = next(line for line in status(root).splitlines() if RELEASE in line)
    assert len(status(root).splitlines()) == 1, old
    said = inside(root, "dpkg-reconfigure", "ferrule-dkms")
    assert re.search(r"modules for 6\.\S+: none, for it was built without Rust", said), said
    apt(root, "autopurge", "linux-headers-cloud-amd64")


def test_another_kernel_has_to_wait_for_its_source(root):
    """An upgrade whose source comes later: a line says so, and then the modules are built."""
    (root / "usr/src/linux-source-7.3.tar.xz").unlink()
    shutil.rmtree(root / "var/cache/ferrule-dkms/src")
    said = apt(root, "install", "-t", "trixie-backports", f"linux-headers-{OTHER}")
    assert f"modules for {OTHER}: none yet, waits for the source of" in said, said[-4000:]
    assert not modules_of(root, OTHER)
    said = apt(root, "install", "--reinstall", "linux-source-7.3")
    assert modules_of(root, OTHER) == set(MODULES), said[-4000:]
    assert modules_of(root, RELEASE) == set(MODULES)


def test_another_kernel_gets_them_with_its_headers(root):
    """The hook of DKMS builds for it. It goes again, with what was built for it."""
    inside(root, "dkms", "remove", f"ferrule/{VERSION}", "-k", OTHER)
    assert not modules_of(root, OTHER)
    said = apt(root, "install", "--reinstall", f"linux-headers-{OTHER}")
    assert modules_of(root, OTHER) == set(MODULES), said[-4000:]
    # As the package of its image does.
    inside(root, "/etc/kernel/prerm.d/dkms", OTHER)
    assert not modules_of(root, OTHER)
    apt(root, "purge", f"linux-headers-{OTHER}", f"linux-base-{OTHER}")
    built = [path.name for path in (root / "var/cache/ferrule-dkms/build").iterdir()]
    assert not [name for name in built if f"-{OTHER}-" in name], built


def test_removal_leaves_nothing(root):
    """No modules, no cache, no source."""
    apt(root, "remove", "ferrule-dkms")
    assert not modules_of(root, RELEASE)
    assert "ferrule" not in status(root)
    apt(root, "purge", "ferrule-dkms", "ferrule-tools")
    left = []
    # What in_root mounts.
    others = [root / str(path).lstrip("/") for path in ("/proc", "/dev", "/tmp", ROOT, CACHE)]
    for folder, folders, files in os.walk(root):
        here = pathlib.Path(folder)
        folders[:] = [name for name in folders if here / name not in others]
        left += [here / name for name in (*folders, *files) if "ferrule" in name]
    assert not left
