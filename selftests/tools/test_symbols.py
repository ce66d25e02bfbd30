# SPDX-License-Identifier: GPL-2.0
"""Symbols that a kernel does not export under the name that a module wants."""

import pathlib
import subprocess
import sys

import pytest

SYMBOLS = pathlib.Path(__file__).resolve().parents[2] / "scripts" / "symbols.py"
# The same function of two builds of the kernel crate.
KERNELS = "_RNvNtCsb5MLIFMWygY_6kernel4sync4wait"
OURS = "_RNvNtCs2lKf6AS60Zg_6kernel4sync4wait"
CODE = """
extern void printk(void);
extern void {0}(void) __attribute__((weak));
extern void {1}(void);
static void own(void) {{ printk(); {1}(); {0}(); }}
void entry(void) {{ own(); }}
"""


@pytest.fixture(name="build")
def build_fixture(tmp_path):
    """A build directory."""
    lines = [f"0x00000000\t{name}\tvmlinux\tEXPORT_SYMBOL_GPL\t\n" for name in ("printk", KERNELS)]
    (tmp_path / "Module.symvers").write_text("".join(lines))
    (tmp_path / "rust").mkdir()
    return tmp_path


def run(*arguments):
    """The tool's status, and what it says."""
    result = subprocess.run(
        [sys.executable, SYMBOLS, *arguments], stderr=subprocess.PIPE, text=True, check=False
    )
    return result.returncode, result.stderr


def module(build, name, wanted):
    """An object that wants a symbol, and can do without another."""
    source, target = build / f"{name}.c", build / f"{name}.o"
    source.write_text(CODE.format("perhaps", wanted))
    subprocess.run(["gcc", "-c", "-o", target, source], check=True)
    return target


def test_all_there(build):
    """What is weak may be missing, and what another of the modules defines is no import."""
    other = module(build, "other", "entry")
    assert run("modules", build, module(build, "good", KERNELS), other) == (0, "")


def test_another_hash(build):
    """The message has both names."""
    status, text = run("modules", build, module(build, "old", OURS))
    assert status == 1
    assert "old.o would not load" in text and OURS in text and KERNELS in text
    assert "not those that built the kernel" in text


def test_not_there_at_all(build):
    """As in C."""
    status, text = run("modules", build, module(build, "odd", "no_such_symbol"))
    assert status == 1 and "no_such_symbol\n    is not in the kernel" in text


@pytest.mark.parametrize("name", [KERNELS, OURS])
def test_the_kernel_crate(build, name):
    """Its own exports, before any module is built."""
    exports = build / "rust" / "exports_kernel_generated.h"
    exports.write_text(f"EXPORT_SYMBOL_RUST_GPL({name});\n")
    status, text = run("crate", build)
    assert status == (name == OURS)
    assert (KERNELS in text) == (name == OURS)


def test_no_kernel_crate(build):
    """Nothing built is no agreement."""
    assert run("crate", build)[0] == 1
