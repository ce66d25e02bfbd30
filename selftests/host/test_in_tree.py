# SPDX-License-Identifier: GPL-2.0
"""`make in-tree`: what it does to a kernel tree, and that its Kconfig takes it."""

import hashlib
import os
import shutil
import subprocess

import pytest
import vm
from conftest import ROOT, kernel_make

pytestmark = pytest.mark.ours("our own tree")

# dm-multipath is a module in that configuration, and what needs it has to be one.
DRIVERS = {
    "FERRULE": "y",
    "FERRULE_BALLOON": "m",
    "FERRULE_DM_QOS": "y",
    "FERRULE_MPATH_SEL": "m",
}


@pytest.fixture(name="tree")
def tree_fixture(tmp_path):
    """A kernel source tree to change: links into the cached one, but for what is written to."""
    source = (vm.find_kdir("uml") / "source").resolve()
    tree = tmp_path / "linux"
    (tree / "drivers").mkdir(parents=True)
    for entry in [*source.iterdir(), *(source / "drivers").iterdir()]:
        if entry.name != "drivers":
            (tree / entry.relative_to(source)).symlink_to(entry)
    for name in ("drivers/Kconfig", "drivers/Makefile", "Makefile"):
        (tree / name).unlink()
        shutil.copy2(source / name, tree / name)
    return tree


def in_tree(tree, *action):
    """Run it; its exit status and what it says."""
    result = subprocess.run(
        [ROOT / "scripts/in-tree.sh", tree, *action],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return result.returncode, result.stdout


def snapshot(tree):
    """Each file and link: mode and content."""
    return {
        path.relative_to(tree): (
            path.lstat().st_mode,
            os.readlink(path)
            if path.is_symlink()
            else hashlib.sha256(path.read_bytes()).hexdigest()
            if path.is_file()
            else "",
        )
        for path in tree.rglob("*")
    }


def configured(tree, build):
    """Our symbols, as olddefconfig leaves them when two are asked for as modules."""
    build.mkdir()
    config = (vm.find_kdir("uml") / ".config").read_text()
    config += "".join(f"CONFIG_{name}={value}\n" for name, value in DRIVERS.items())
    (build / ".config").write_text(config)
    command = ["make", "-s", "-C", tree, f"O={build}", "ARCH=um", "olddefconfig"]
    options, environment = kernel_make()
    subprocess.run([*command, *options], env=environment, check=True)
    lines = (build / ".config").read_text().splitlines()
    return {name: line[-1] for name in DRIVERS for line in lines if line[:-1] == f"CONFIG_{name}="}


def test_kconfig_offers_the_drivers_and_undo_leaves_the_tree_as_it_was(tree, tmp_path):
    """As modules, and built in."""
    before = snapshot(tree)
    assert in_tree(tree)[0] == 0
    added = snapshot(tree)
    assert added != before
    assert configured(tree, tmp_path / "build") == DRIVERS
    assert in_tree(tree)[0] == 0
    assert snapshot(tree) == added, "once more is the same"
    assert in_tree(tree, "undo")[0] == 0
    assert snapshot(tree) == before
    assert in_tree(tree, "undo")[0] == 0
    assert snapshot(tree) == before, "once more is the same"


def test_what_a_build_leaves_goes_and_what_was_written_there_stays(tree):
    """In the tree's drivers/ferrule."""
    before = snapshot(tree)
    assert in_tree(tree)[0] == 0
    there = tree / "drivers/ferrule"
    for name in ("rust/bindings_generated.rs", "dm-qos/main.o", "dm-qos/.main.o.cmd", "built-in.a"):
        (there / name).touch()
    for suffix in ("s", "i", "ll", "rsi", "dwo", "su", "gcno", "symtypes"):
        (there / f"dm-qos/main.{suffix}").touch()
    (there / "modules.builtin").touch()
    assert in_tree(tree, "undo")[0] == 0
    assert snapshot(tree) == before

    assert in_tree(tree)[0] == 0
    (there / "dm-qos/mine.rs").write_text("// mine\n")
    with (there / "Kconfig").open("a") as kconfig:
        kconfig.write("# mine\n")
    edited = snapshot(tree)
    for action in ((), ("undo",)):
        status, said = in_tree(tree, *action)
        assert status == 1
        assert "Kconfig dm-qos/mine.rs" in said
        assert snapshot(tree) == edited


@pytest.mark.parametrize(
    "file, before, after",
    [
        ("Makefile", "PATCHLEVEL = 3", "PATCHLEVEL = 4"),
        ("drivers/Kconfig", "\nendmenu\n", "\nendmenu\nsource x\n"),
        ("rust", None, None),
    ],
)
def test_it_is_taken_away_from_a_tree_that_has_moved_on(tree, file, before, after):
    """What it would not be added to any more; nothing else changes."""
    path = tree / file

    assert in_tree(tree)[0] == 0
    if before:
        assert before in path.read_text()
        path.write_text(path.read_text().replace(before, after))
    else:
        path.unlink()
    assert in_tree(tree)[0] == 1
    assert in_tree(tree, "undo")[0] == 0
    gone = snapshot(tree)
    assert not (tree / "drivers/ferrule").exists()
    for name in ("drivers/Kconfig", "drivers/Makefile"):
        assert "ferrule" not in (tree / name).read_text()
    assert in_tree(tree, "undo")[0] == 0
    assert snapshot(tree) == gone


@pytest.mark.parametrize(
    "file, before, after, said",
    [
        ("Makefile", "PATCHLEVEL = 3", "PATCHLEVEL = 2", "written for 7.3"),
        ("drivers/Kconfig", "\nendmenu\n", "\nendmenu\nsource x\n", "does not end in endmenu"),
        ("drivers/ferrule/Kconfig", None, "menu", "not from make in-tree"),
    ],
)
def test_a_tree_that_it_does_not_know_is_refused(tree, file, before, after, said):
    """And left alone."""
    path = tree / file
    if before:
        assert before in path.read_text()
        path.write_text(path.read_text().replace(before, after))
    else:
        path.parent.mkdir()
        path.write_text(after)
    as_it_was = snapshot(tree)
    status, text = in_tree(tree)
    assert status == 1
    assert said in text
    assert snapshot(tree) == as_it_was
