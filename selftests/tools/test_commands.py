# SPDX-License-Identifier: GPL-2.0
"""balloonctl's commands, interrupted or with nobody who reads what they say."""

import asyncio
import contextlib
import io
import os
import pathlib
import re
import socket
import subprocess
import sys

import pytest
from ballooning import __main__ as balloonctl
from ballooning import vms
from ballooning.vms import VmError, to_the_end
from rich.console import Console
from test_automatic import GIB, MIB, FakeSources, FakeVm

SCRIPTS = pathlib.Path(balloonctl.__file__).parents[1]


class SlowVm(FakeVm):
    """Each command to it takes its time, and says that it is under way."""

    def __init__(self, name):
        super().__init__(name)
        self.reached = asyncio.Event()

    async def set_target(self, size):
        """As a real one."""
        await super().set_target(size)
        self.reached.set()
        await asyncio.sleep(0.1)

    async def set_polling(self, seconds):
        """As a real one."""
        await asyncio.sleep(0.1)
        await super().set_polling(seconds)


def arguments(monkeypatch, vms, *words):
    """The command line, with these VMs."""
    monkeypatch.setattr(sys, "argv", ["balloonctl", *words, "--sockets", "/nowhere"])
    monkeypatch.setattr(balloonctl, "sources_of", lambda args: FakeSources(*vms))
    return balloonctl.parse_arguments()


def shown(names, width, terminal=True):
    """The table of "status" for VMs of these names, in lines."""
    sizes = {"maximum": 16 * GIB, "target": GIB, "actual": GIB, "resident": 123_456_789}
    statistics = {"age": 1.0, "available-memory": 300 * MIB, "swap-in": 0, "swap-out": 0}
    rows = [{"vm": name, **sizes, "statistics": statistics} for name in names]
    rows.append({"vm": "broken", "error": "no answer"})
    file = io.StringIO()
    balloonctl.show_table(
        rows, Console(file=file, width=width, force_terminal=terminal, no_color=True)
    )
    return re.sub(r"\x1b\[[\d;]*m", "", file.getvalue()).splitlines()


@pytest.mark.parametrize("width", [150, 80, 60, 20])
def test_nothing_is_cut_in_the_table(width):
    """Names and headings are whole, however long. What there is no room for is named."""
    names = ["webserver-production-1", "webserver-production-2", "[/web]", "[red]db", ":smile:"]
    heading, *lines = shown(names, width)
    assert [line.split()[0] for line in lines[:6]] == [*names, "broken"]
    columns = re.split("  +", heading.strip())
    assert columns[0] == "VM"
    assert {"memory", "actual", "available"} <= set(columns) <= {"VM", *balloonctl.HEADINGS}
    said = " ".join(line.strip() for line in lines[6:])
    missing = [heading for heading in balloonctl.LEAST_IMPORTANT if heading not in columns]
    assert said == (f"For want of room not shown: {', '.join(missing)}." if missing else "")
    assert (len(missing) > 0) == (width < 120)
    if width >= 60:
        assert all(len(line.rstrip()) <= width for line in [heading, *lines])


def test_a_table_in_a_file_is_whole():
    """Whoever reads it finds the same columns at any width."""
    name = "a" * 300
    heading, line, _ = shown([name], 80, terminal=False)
    assert re.split("  +", heading.strip()) == ["VM", *balloonctl.HEADINGS]
    assert line.startswith(name + " ")
    assert line.rstrip().endswith("1 s old")


def test_a_name_is_no_markup_for_the_progress_bar(monkeypatch):
    """Which only a terminal has."""
    file = io.StringIO()
    monkeypatch.setattr(
        balloonctl, "Console", lambda stderr: Console(file=file, width=100, force_terminal=True)
    )
    vm = FakeVm("[/web]")
    args = arguments(monkeypatch, [vm], "set", "[/web]", "512M")
    assert asyncio.run(balloonctl.set_size(args)) == 0
    assert "[/web] to 512M" in file.getvalue()


@pytest.mark.parametrize("queue", [0, 1, 5])
def test_a_socket_at_which_others_wait(monkeypatch, tmp_path, queue):
    """Until there is room in its queue; and if there never is, that is what is said."""
    monkeypatch.setattr(vms, "TIMEOUT", 0.5)
    path = tmp_path / "a.sock"

    async def main(leave):
        with contextlib.ExitStack() as stack:
            listener = stack.enter_context(socket.socket(socket.AF_UNIX))
            listener.bind(str(path))
            listener.listen(queue)
            listener.setblocking(False)
            for _ in range(queue + 1):
                client = stack.enter_context(socket.socket(socket.AF_UNIX))
                client.setblocking(False)
                client.connect(str(path))
            client = stack.enter_context(socket.socket(socket.AF_UNIX))
            client.setblocking(False)
            with pytest.raises(BlockingIOError):
                client.connect(str(path))
            task = asyncio.ensure_future(vms.QmpVm("a", path).read())
            await asyncio.sleep(0.2)
            if leave:
                for _ in range(queue + 1):
                    listener.accept()[0].close()
                connection, _ = await asyncio.get_running_loop().sock_accept(listener)
                with connection:
                    connection.sendall(b"this is another\n")
                    await task
            await task

    with pytest.raises(VmError, match=r"no answer on .* \(another client may have it"):
        asyncio.run(main(leave=False))
    path.unlink()
    with pytest.raises(VmError, match="what is there does not speak QMP"):
        asyncio.run(main(leave=True))


@contextlib.contextmanager
def nobody_reads(monkeypatch, name):
    """A pipe that was closed at the other end."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as file:
        monkeypatch.setattr(sys, name, file)
        yield
        monkeypatch.undo()


def test_what_must_not_be_cut_short_is_not():
    """However often one interrupts, who is told so in the end."""
    done = []

    async def work(fails=False):
        await asyncio.sleep(0.2)
        done.append(1)
        if fails:
            raise VmError("no")

    async def interrupted(times, fails=False):
        task = asyncio.ensure_future(to_the_end(work(fails)))
        for _ in range(times):
            await asyncio.sleep(0.01)
            task.cancel()
        await task

    asyncio.run(interrupted(0))
    for times in (1, 3):
        with pytest.raises(asyncio.CancelledError):
            asyncio.run(interrupted(times))
    with pytest.raises(VmError):
        asyncio.run(interrupted(1, fails=True))
    assert len(done) == 4


@pytest.mark.parametrize("times", [1, 4])
@pytest.mark.parametrize("option", [[], ["--no-wait"]])
def test_a_set_that_is_interrupted_at_once_is_withdrawn(monkeypatch, capsys, times, option):
    """The request has been made, but not answered. Interrupted again, it is withdrawn as well."""

    async def main():
        vm = SlowVm("a")
        vm.yields = False
        args = arguments(monkeypatch, [vm], "set", "a", "512M", *option)
        task = asyncio.ensure_future(balloonctl.set_size(args))
        await vm.reached.wait()
        for _ in range(times):
            task.cancel()
            await asyncio.sleep(0.04)
        with pytest.raises(asyncio.CancelledError):
            await task
        return vm

    vm = asyncio.run(main())
    assert (vm.asked, vm.period) == ([GIB // 2, GIB], 0)
    assert capsys.readouterr().err.startswith("a: stopped at 1024M")


def test_polling_is_put_back_when_interrupted_while_it_is_set(monkeypatch):
    """It may have been set."""

    async def main():
        vm = SlowVm("a")
        task = asyncio.ensure_future(
            balloonctl.set_size(arguments(monkeypatch, [vm], "set", "a", "512M"))
        )
        await asyncio.sleep(0.05)
        task.cancel()
        vm.period = 1
        with pytest.raises(asyncio.CancelledError):
            await task
        return vm

    vm = asyncio.run(main())
    assert (vm.asked, vm.period) == ([], 0)


@pytest.mark.parametrize("times", [1, 4])
def test_auto_ends_properly_however_often_it_is_interrupted(monkeypatch, times):
    """No request stays open, and polling is as it was."""

    async def main():
        vms = [SlowVm(name) for name in "ab"]
        for vm in vms:
            vm.yields = False
        words = ["auto", "--budget", "1G", "--interval", "0.1"]
        args = arguments(monkeypatch, vms, *words)
        task = asyncio.ensure_future(balloonctl.run_auto(args))
        # Amid asking for less.
        await asyncio.gather(*(vm.reached.wait() for vm in vms))
        assert all(vm.period for vm in vms)
        for _ in range(times):
            task.cancel()
            await asyncio.sleep(0.04)
        assert await task == 0
        return vms

    for vm in asyncio.run(main()):
        assert vm.asked[0] < GIB
        assert (vm.state.target, vm.period) == (GIB, 0)


@pytest.mark.parametrize("option", [[], ["--json"]])
def test_auto_ends_properly_when_nobody_reads_it(monkeypatch, option):
    """Also if there is more to say in the end: of a VM that cannot be reached any more."""

    class Closing(FakeVm):
        """One after whose first request nobody reads any more."""

        async def set_target(self, size):
            await super().set_target(size)
            if not closing:
                closing.append(stack.enter_context(nobody_reads(monkeypatch, "stdout")))
                self.problem = VmError("no answer")

    closing = []
    vms = [Closing("a"), FakeVm("b"), FakeVm("c")]
    for vm in vms:
        vm.yields = False
    words = ["auto", "--budget", "2G", "--interval", "0.1", *option]
    args = arguments(monkeypatch, vms, *words)
    with contextlib.ExitStack() as stack, pytest.raises(BrokenPipeError):
        asyncio.run(balloonctl.run_auto(args))
    for vm in vms[1:]:
        assert vm.asked[0] < GIB
        assert (vm.state.target, vm.period) == (GIB, 0)


def test_nobody_who_reads_is_no_traceback(tmp_path):
    """Such as with `| head`; the first line comes from one of many tasks."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "other.sock"))
        listener.listen()
        reader, writer = os.pipe()
        os.close(reader)
        command = [sys.executable, "-m", "ballooning", "auto", "--budget", "1G"]
        with subprocess.Popen(
            [*command, "--sockets", tmp_path],
            env={**os.environ, "PYTHONPATH": str(SCRIPTS)},
            stdout=writer,
            stderr=subprocess.PIPE,
        ) as process:
            os.close(writer)
            with listener.accept()[0] as connection:
                connection.sendall(b"hello\n")
            assert process.communicate(timeout=60)[1] == b""
    assert process.returncode == 1
