# SPDX-License-Identifier: GPL-2.0
"""Guests for the tests that the host drives."""

import contextlib
import pathlib
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import vm  # noqa: E402
from balloonguest import MEMORY  # noqa: E402

vm.kill_guests_on_signal()


@contextlib.contextmanager
def guests_of(name):
    """boot(**options): start a guest, with QMP as guest.qmp. Its kernel log must be clean after."""
    with contextlib.ExitStack() as stack:
        guests = []

        def boot(**options):
            log = ROOT / "out" / "check" / f"host-{name}-{len(guests) + 1}.log"
            guest = stack.enter_context(vm.Guest(vm.Options(qmp=True, log=log, **options)))
            guests.append(guest)
            return guest

        yield boot
        wrong = [line for guest in guests for line in guest.check_log()]
    assert not wrong, wrong


@pytest.fixture(name="boot")
def boot_fixture(request):
    """Guests of a test's own."""
    with guests_of(request.node.name) as boot:
        yield boot


@pytest.fixture(name="boot_for_module", scope="module")
def boot_for_module_fixture(request):
    """Guests for all tests of a file."""
    with guests_of(pathlib.Path(request.node.name).stem) as boot:
        yield boot


@pytest.fixture(name="balloon")
def balloon_fixture(guest):
    """The balloon of a file's guest, driven by us and empty."""
    assert guest.driver() == "virtio_balloon_rs"
    guest.resize(MEMORY)
    yield guest
    guest.resize(MEMORY)
    guest.assert_as_before()
