# SPDX-License-Identifier: GPL-2.0
"""`make modules KDIR=` with headers that have the metadata of the kernel crate beside them.

Ubuntu (linux-lib-rust) and Arch (linux-headers) ship such. Here they are made by the kernel's own
script for packages of headers, of the custom kernel, of which only that much is built: what the
modules import is not looked for.
"""

import os
import pathlib
import shutil
import subprocess

import pytest
from conftest import ROOT, kernel_make

pytestmark = pytest.mark.ours("our own tree")

MODULES = {"virtio_balloon_rs.ko", "dm-qos.ko", "dm-round-robin-rs.ko"}
# What else a package has to have, for modules in Rust: from the build, and from the source.
METADATA = ("rust/*.rmeta", "rust/*.so", "rust/helpers/*.bc", "scripts/target.json")
PRIVATE = ("drivers/md/*.h", "rust/Makefile")


def install(source: pathlib.Path, patterns: tuple[str, ...], target: pathlib.Path) -> None:
    """Copy what matches."""
    for pattern in patterns:
        for path in source.glob(pattern):
            copy = target / path.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, copy)


@pytest.fixture(name="build", scope="module")
def build_fixture():
    """Where modules can be compiled against."""
    command = [ROOT / "scripts/kernel.sh", "release", "prepare"]
    environment = kernel_make()[1]
    result = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return pathlib.Path(result.stdout.strip())


@pytest.fixture(name="headers")
def headers_fixture(build, tmp_path):
    """A package's content."""
    source = (build / "source").resolve()
    headers = tmp_path / "headers"
    compiler = f"clang{os.environ['LLVM'].removeprefix('1')}"
    environment = {
        **kernel_make()[1],
        "srctree": str(source),
        "SRCARCH": "x86",
        "CC": compiler,
        "HOSTCC": compiler,
        "MAKE": "make",
    }
    script = source / "scripts/package/install-extmod-build"
    subprocess.run([script, headers], cwd=build, env=environment, check=True)
    install(build, (".config", *METADATA), headers)
    return headers


@pytest.mark.parametrize("private", [True, False], ids=["with-private", "without-private"])
def test_modules_build(build, headers, tmp_path, private):
    """With what is private to the kernel's source (Arch has that), and without."""
    if private:
        install((build / "source").resolve(), PRIVATE, headers)
    environment = kernel_make()[1] | {"KDIR": str(headers)}
    kdir = subprocess.run(
        [ROOT / "scripts/kernel.sh", "release"],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout.strip()
    assert kdir == str(headers)
    output = tmp_path / "modules"
    subprocess.run(
        [
            *(ROOT / "scripts/modules.sh", kdir, output),
            *("CONFIG_FERRULE_SELFTESTS=", "KBUILD_MODPOST_WARN=1", "modules"),
        ],
        env=environment,
        check=True,
    )
    built = {path.name for path in output.rglob("*.ko")}
    assert built == MODULES
