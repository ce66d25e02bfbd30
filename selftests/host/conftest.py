# SPDX-License-Identifier: GPL-2.0
"""Guests for the tests that the host drives."""

import contextlib
import os
import pathlib
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import vm  # noqa: E402
from balloonguest import MEMORY, SHARED  # noqa: E402

vm.kill_guests_on_signal()


def kernel_make() -> tuple[list[str], dict[str, str]]:
    """What make is told about the tools for a kernel, and an environment without ours."""
    options = [f"{name}={os.environ[name]}" for name in ("LLVM", "RUSTC", "BINDGEN")]
    return options, {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MAKELEVEL")}


def pytest_collection_modifyitems(config, items):
    """What there is nothing to run with is not chosen, rather than skipped."""
    left = [item for item in items if "NOTSET" not in item.name]
    config.hook.pytest_deselected(items=[item for item in items if item not in left])
    items[:] = left


@contextlib.contextmanager
def guests_of(name, must_be_clean=True):
    """boot(**options): start a guest, with guest.qmp if it is QEMU's. Its log must be clean."""
    guests = []
    try:
        with contextlib.ExitStack() as stack:

            def boot(**options):
                log = ROOT / "out" / "check" / f"host-{name}-{len(guests) + 1}.log"
                qmp = options.get("kernel") != "uml"
                guests.append(vm.Guest(vm.Options(qmp=qmp, log=log, **options)))
                return stack.enter_context(guests[-1])

            yield boot
    finally:
        # Also when the test has failed, which may be for just that reason.
        wrong = [line for guest in guests for line in guest.check_log()]
        if wrong and must_be_clean:
            raise vm.Splat(wrong)


@pytest.fixture(name="boot")
def boot_fixture(request):
    """Guests of a test's own."""
    with guests_of(request.node.name) as boot:
        yield boot


@pytest.fixture(name="boot_dirty")
def boot_dirty_fixture(request):
    """The same, for a test that reads the kernel log by itself."""
    with guests_of(request.node.name, must_be_clean=False) as boot:
        yield boot


@pytest.fixture(name="boot_for_module", scope=SHARED)
def boot_for_module_fixture(request):
    """Guests for all tests of a file, or for as long as they may share them."""
    with guests_of(pathlib.Path(request.node.name).stem) as boot:
        yield boot


@pytest.fixture(name="balloon")
def balloon_fixture(guest):
    """The balloon of a file's guest, driven by us and empty."""
    assert guest.driver() == vm.BALLOON
    guest.resize(MEMORY)
    yield guest
    guest.resize(MEMORY)
    guest.assert_as_before()
