# SPDX-License-Identifier: GPL-2.0
"""Kernels of distributions that modules cannot be built for: one line says why.

There is no mirror but for the package lists that a test writes.
"""

import os
import pathlib
import subprocess

import pytest

# Nobody answers at this port.
MIRROR = "127.0.0.1:9/debian"
SCRIPTS = pathlib.Path(__file__).resolve().parents[2] / "scripts"
RELEASE = "7.3.4+deb13-cloud-amd64"
CONFIG = """\
CONFIG_X86_64=y
CONFIG_CC_IS_GCC=y
CONFIG_CC_VERSION_TEXT="x86_64-linux-gnu-gcc-14 (Debian 14.2.0-19) 14.2.0"
CONFIG_RUST=y
CONFIG_RUSTC_VERSION_TEXT="rustc 0.0.1 (of nobody)"
"""
PACKAGE = """\
Package: linux-source-7.3
Version: {version}
Architecture: all
Filename: pool/linux-source-7.3_{version}_all.deb
Size: 1000
SHA256: {sum}

"""


class Machine:
    """A cache, a mirror, and headers."""

    def __init__(self, path: pathlib.Path):
        self.cache = path / "cache"
        self.headers = path / "headers"
        self.environment = {}
        self.write("include/config/kernel.release", RELEASE)
        self.write("include/generated/package.h", '#define ID " Debian 7.3.4-1~bpo13+1"')
        self.write("Module.symvers", "0x00000000\tprintk\tvmlinux\tEXPORT_SYMBOL\t\n")
        self.write(".config", CONFIG)

    def write(self, name: str, text: str) -> None:
        """A file of the headers."""
        file = self.headers / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{text}\n")

    def offer(self, suite: str, *versions: str) -> None:
        """The mirror has linux-source-7.3 in these versions, as was read a moment ago."""
        place = self.cache / "apt" / f"{suite}-amd64"
        lists = place / "lists"
        lists.mkdir(parents=True)
        name = f"{MIRROR}/dists/{suite}/main/binary-amd64/Packages".replace("/", "_")
        text = "".join(PACKAGE.format(version=version, sum="0" * 64) for version in versions)
        (lists / name).write_text(text)
        (place / ".updated").touch()

    def source(self, sublevel: int) -> pathlib.Path:
        """KSRC= is a tree of 7.3 with this sublevel."""
        tree = self.headers.parent / "source"
        (tree / "rust/kernel").mkdir(parents=True)
        (tree / "rust/kernel/lib.rs").touch()
        (tree / "Makefile").write_text(
            f"VERSION = 7\nPATCHLEVEL = 3\nSUBLEVEL = {sublevel}\nEXTRAVERSION =\n"
        )
        self.environment["KSRC"] = str(tree)
        return tree

    def root(self, rustc: str) -> None:
        """A root of trixie, complete, with a compiler that says that it is this one."""
        root = self.cache / "roots/trixie"
        for directory in ("bin", "proc", "dev", "tmp"):
            (root / directory).mkdir(parents=True)
        (root / ".complete").touch()
        (root / "bin/busybox").write_bytes(pathlib.Path("/bin/busybox").read_bytes())
        (root / "bin/busybox").chmod(0o755)
        for name in ("sh", "env"):
            (root / "bin" / name).symlink_to("busybox")
        for name, says in (("rustc", rustc), ("dpkg-query", ""), ("bindgen", "bindgen 0.71.1")):
            (root / "bin" / name).write_text(f"#!/bin/sh\necho '{says}'\n")
            (root / "bin" / name).chmod(0o755)

    def refusal(self, script: str = "headers.sh", *arguments: str) -> str:
        """What the script says when it fails: its last line, which is an error."""
        environment = {
            **os.environ,
            **dict.fromkeys(("RUSTC", "BINDGEN", "KSRC", "KDIR"), ""),
            "FERRULE_CACHE": str(self.cache),
            "FERRULE_MIRROR": f"http://{MIRROR}",
            **self.environment,
        }
        result = subprocess.run(
            [SCRIPTS / script, *(arguments or [self.headers])],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert result.returncode, result.stdout
        lines = result.stderr.splitlines()
        errors = [line for line in lines if line.startswith("error: ")]
        assert len(errors) == 1, result.stderr
        return errors[0]


@pytest.fixture(name="machine")
def machine_fixture(tmp_path):
    """With nothing in its cache."""
    return Machine(tmp_path)


def test_a_kernel_without_rust(machine):
    """As Debian 12 and 13 have it."""
    machine.write("include/config/kernel.release", "6.12.57+deb13-amd64")
    machine.write(".config", CONFIG.replace("CONFIG_RUST=y\n", ""))
    assert "6.12.57+deb13-amd64 was built without Rust (CONFIG_RUST)" in machine.refusal()


def test_no_headers(machine):
    """Some other folder."""
    assert "no .config" in machine.refusal("headers.sh", str(machine.headers / "include"))


def test_headers_without_symbols(machine):
    """Nothing could be checked then."""
    (machine.headers / "Module.symvers").unlink()
    assert "no Module.symvers" in machine.refusal()


def test_an_architecture_that_nobody_tried(machine):
    """Rather than an error of some compiler."""
    machine.write(".config", CONFIG.replace("X86_64", "RISCV"))
    assert "neither x86-64 nor arm64" in machine.refusal()


def test_a_source_of_another_version(machine):
    """KSRC= has to be what the kernel was built from."""
    source = machine.source(3)
    assert f"KSRC={source} is 7.3.3, the kernel is 7.3.4" in machine.refusal()


def test_a_source_that_is_gone_from_the_mirror(machine):
    """A point release has moved on."""
    machine.offer("trixie-backports", "7.3.5-1~bpo13+1", "7.3.6-1~bpo13+1")
    machine.offer("trixie", "6.12.57-1")
    error = machine.refusal()
    assert "no linux-source-7.3 of 7.3.4" in error and "upgrade to a kernel" in error


def test_a_mirror_that_is_not_there(machine):
    """No network."""
    assert "cannot read the package lists of trixie-backports" in machine.refusal()


def test_a_rustc_that_moved_on(machine):
    """The suite has another compiler by now than the one that built the kernel."""
    machine.root("rustc 0.0.2 (of somebody)")
    machine.source(4)
    error = machine.refusal()
    assert "'rustc 0.0.1 (of nobody)'" in error and "'rustc 0.0.2 (of somebody)'" in error


def test_a_suite_that_nobody_knows(machine):
    """A kernel that is not Debian's, and this machine has not its compiler."""
    machine.write("include/config/kernel.release", "7.3.4-mine")
    machine.write("include/generated/package.h", "")
    machine.source(4)
    error = machine.refusal()
    assert "rustc 0.0.1 (of nobody)" in error and "FERRULE_SUITE=" in error


def test_a_root_that_was_left_half_made(machine):
    """It is made anew: here it cannot be, and what was left is no root."""
    half = machine.cache / "roots/trixie"
    half.mkdir(parents=True)
    (half / "left").touch()
    machine.source(4)
    assert "cannot make a root of trixie" in machine.refusal()
    assert not (half / ".complete").exists()


def test_no_such_stock_kernel(machine):
    """The names are listed."""
    error = machine.refusal("stock.sh", "fedora")
    assert "no such kernel: stock:fedora" in error and "cloud-amd64" in error


def test_a_kernel_that_the_mirror_has_not(machine):
    """The list names a series; a mirror moves on."""
    machine.offer("trixie-backports", "7.3.4-1~bpo13+1")
    assert "has no kernel 7.3.*+deb13-cloud-amd64" in machine.refusal("stock.sh", "cloud-amd64")


@pytest.mark.skipif(os.getuid() != 0, reason="root makes a file system that is full")
def test_no_room(machine):
    """Said before anything is fetched."""
    machine.cache.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64M", "tmpfs", machine.cache], check=True)
    try:
        machine.offer("trixie-backports", "7.3.4-1~bpo13+1")
        error = machine.refusal()
        assert "needs" in error and "MiB free" in error
    finally:
        subprocess.run(["umount", machine.cache], check=True)
