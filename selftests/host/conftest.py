# SPDX-License-Identifier: GPL-2.0
"""Guests for the tests that the host drives."""

import asyncio
import contextlib
import pathlib
import sys
import tempfile

import pytest
from qemu.qmp import QMPClient

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import vm  # noqa: E402


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
        """Disconnect."""
        with contextlib.suppress(Exception):
            self.loop.run_until_complete(self.client.disconnect())
        self.loop.close()


@pytest.fixture(name="boot")
def boot_fixture(request):
    """boot(**options): start a guest and its QMP connection. The kernel log must be clean after."""
    with contextlib.ExitStack() as stack:
        guests = []

        def boot(**options):
            directory = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
            log = ROOT / "out" / "check" / f"host-{request.node.name}-{len(guests) + 1}.log"
            socket = directory / "qmp"
            guest = vm.Guest(vm.Options(qmp=socket, log=log, **options))
            stack.enter_context(guest)
            guests.append(guest)
            qmp = Qmp(socket)
            stack.callback(qmp.close)
            guest.qmp = qmp
            return guest

        yield boot
        wrong = [line for guest in guests for line in guest.check_log()]
    assert not wrong, wrong
