# SPDX-License-Identifier: GPL-2.0
"""What `make in-tree` makes, built: into a kernel whose KUnit tests run, and as modules.

It builds kernels, which takes long: part of `make check KERNEL=checking` only.
"""

import json
import os
import pathlib
import re
import shutil
import subprocess

import pytest
import vm
from conftest import ROOT, kernel_make

pytestmark = pytest.mark.ours("our own tree")

AREAS = ("rust", "balloon", "dm-qos", "mpath-sel")
MODULES = (
    "balloon/virtio_balloon_rs.ko",
    "dm-qos/dm-qos.ko",
    "mpath-sel/dm-round-robin-rs.ko",
)
# For a kernel, in seconds: it takes some ten minutes on two cores.
TIMEOUT = 3600


@pytest.fixture(name="tree", scope="module")
def tree_fixture(tmp_path_factory):
    """A kernel source tree of its own, with Ferrule in it."""
    source = (vm.find_kdir(vm.KERNEL) / "source").resolve()
    tree = tmp_path_factory.mktemp("in-tree") / "linux"
    shutil.copytree(source, tree, symlinks=True)
    subprocess.run([ROOT / "scripts/in-tree.sh", tree], check=True)
    yield tree
    shutil.rmtree(tree.parent)


def options() -> list[str]:
    """What make has to know about the tools."""
    compiler = f"CC=ccache clang{os.environ['LLVM'].removeprefix('1')}"
    return [compiler, *kernel_make()[0]]


def run(command: list, tree: pathlib.Path) -> str:
    """Run a command in the tree, which has to succeed; returns its output."""
    result = subprocess.run(
        command,
        cwd=tree,
        env=kernel_make()[1],
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert result.returncode == 0, f"{command}\n{result.stdout[-4000:]}\n{result.stderr[-4000:]}"
    return result.stdout


def results(group: dict) -> dict[str, set[str]]:
    """What kunit.py's JSON says of each suite: how its cases ended."""
    suites = {}
    for suite in group["sub_groups"]:
        suites[suite["name"]] = {case["status"] for case in suite["test_cases"]}
        suites |= results(suite)
    return suites


def test_kunit_runs_what_is_built_in(tree):
    """By the kernel's own kunit.py, on user-mode Linux."""
    command = ["tools/testing/kunit/kunit.py", "run", "--kunitconfig=drivers/ferrule"]
    command += ["--build_dir", tree.parent / "built-in", f"--jobs={os.cpu_count()}", "--json"]
    command += [f"--make_options={option}" for option in options()]
    said = run(command, tree)
    report = said[said.index("\n{") : said.rindex("}") + 1]
    suites = results(json.loads(report))
    ours = {name: ends for name, ends in suites.items() if name.startswith("ferrule_")}
    sources = [path for area in AREAS for path in (ROOT / area).rglob("*.rs")]
    names = {n for path in sources for n in re.findall(r"kunit_tests\((\w+)\)", path.read_text())}
    assert ours.keys() == names
    assert all(ends == {"PASS"} for ends in ours.values()), ours


def test_modules_are_built(tree):
    """All three, for a kernel that has modules."""
    build = tree.parent / "modules"
    build.mkdir()
    config = "".join(
        (ROOT / f"scripts/config/{name}.config").read_text() for name in ("base", "um")
    )
    ours = re.findall(r"^(CONFIG_FERRULE\w*)=y", (ROOT / ".kunitconfig").read_text(), re.M)
    config += "".join(f"{name}=m\n" for name in ours)
    (build / "fragment").write_text(config)
    make = ["make", "-s", f"O={build}", "ARCH=um", f"-j{os.cpu_count()}", *options()]
    run([*make, f"KCONFIG_ALLCONFIG={build}/fragment", "allnoconfig"], tree)
    run([*make, "linux", "modules"], tree)
    for name in MODULES:
        said = run(["modinfo", "-F", "intree", build / "drivers/ferrule" / name], tree)
        assert said.strip() == "Y", name
