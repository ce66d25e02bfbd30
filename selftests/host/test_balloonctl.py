# SPDX-License-Identifier: GPL-2.0
"""scripts/balloonctl, with QEMUs and guests as an operator has them."""

import contextlib
import json
import os
import pathlib
import pty
import re
import signal
import socket
import subprocess
import tempfile
import time

import pytest
import vm
from balloonguest import MIB, Balloon

pytestmark = pytest.mark.ours("statistics and debugfs of our own")

TOOL = vm.ROOT / "scripts" / "balloonctl"
# Of each guest.
MEMORY = 512
BUDGET = 800
DEVICE = "-device virtio-balloon-pci,id=balloon0,free-page-reporting=on"
NAMES = ("one", "two")


def tool(*words, timeout=60):
    """Run it to its end."""
    return subprocess.run(
        [TOOL, *map(str, words)], capture_output=True, text=True, timeout=timeout, check=False
    )


def result(*words):
    """Run it; what it prints as JSON. It has to succeed."""
    done = tool(*words, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def refusal(*words):
    """Run it; the one line that it ends with, and its status."""
    done = tool(*words)
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stdout == ""
    return done.stderr.strip(), done.returncode


@contextlib.contextmanager
def started(*words):
    """Run it beside the test; killed in the end if it has not ended."""
    with subprocess.Popen(
        [TOOL, *map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


@contextlib.contextmanager
def bare_qemu(path: pathlib.Path, *options, paused=True):
    """A QEMU that runs nothing, or no more than its firmware."""
    command = ["qemu-system-x86_64", "-accel", "tcg", "-m", f"{MEMORY}M", "-display", "none"]
    command += ["-machine", "mem-merge=off"]
    command += ["-nodefaults", *["-S"] * paused]
    command += ["-qmp", f"unix:{path},server=on,wait=off", *options]
    with subprocess.Popen(command) as process:
        try:
            Balloon.wait_for(path.exists, 30, str(path))
            yield process
        finally:
            process.kill()
    path.unlink(missing_ok=True)


@pytest.fixture(name="directory", scope="module")
def directory_fixture():
    """Where the sockets are."""
    with tempfile.TemporaryDirectory(prefix="balloonctl-") as path:
        yield pathlib.Path(path)


@pytest.fixture(name="guests", scope="module")
def guests_fixture(boot_for_module, directory):
    """Two guests with our driver, and sockets of theirs for the tool."""
    guests = {}
    for name in NAMES:
        sockets = f"-qmp unix:{directory}/{name}.sock,server=on,wait=off"
        guest = boot_for_module(memory=f"{MEMORY}M", udev=False, qemu_opts=[DEVICE, sockets])
        guests[name] = Balloon(guest)
    yield guests
    for balloon in guests.values():
        balloon.sh("rmmod virtio_balloon_rs")


@pytest.fixture(name="one")
def one_fixture(guests):
    """The first guest, with all of its memory before and after."""
    guests["one"].resize(MEMORY)
    yield guests["one"]
    guests["one"].resize(MEMORY)


def status(directory):
    """balloonctl status, by name."""
    return {row["vm"]: row for row in result("status", "--sockets", directory)}


def test_set_waits_for_the_size(one, directory):
    """Of any notation."""
    for text, size in (("300M", 300), ("0.25G", 256), (f"{400 * MIB}", 400), ("max", MEMORY)):
        outcome = result("set", "one", text, "--sockets", directory)
        assert outcome["reached"]
        assert outcome["actual"] == outcome["target"] == size * MIB == one.actual()
        assert one.counters()["MemTotal"] == one.total - (MEMORY - size) * 1024


def test_set_shows_progress_on_a_terminal(one, directory):
    """A bar, and the size at the end."""
    master, slave = pty.openpty()
    command = [TOOL, "set", "one", "1M", "--force", "--patience", "2"]
    command += ["--sockets", directory]
    environment = {**os.environ, "TERM": "xterm"}
    with subprocess.Popen(
        command, stdout=slave, stderr=slave, stdin=slave, env=environment
    ) as process:
        os.close(slave)
        shown = b""
        with contextlib.suppress(OSError):
            while part := os.read(master, 4096):
                shown += part
        assert process.wait(60) == 3
    os.close(master)
    assert "━" in shown.decode(errors="replace")
    assert b"one to 1M" in shown
    assert one.actual() < MEMORY * MIB


def test_set_says_where_it_is_stuck(one, directory):
    """The guest keeps a reserve. Statistics are as they were, not asked for."""
    text, code = refusal("set", "one", "1M", "--force", "--patience", "3", "--sockets", directory)
    assert code == 3
    found = re.match(
        r"error: one: stuck at ([\d.]+)M, asked for 1M: the guest has ([\d.]+)M available and", text
    )
    assert abs(float(found[1]) * MIB - one.actual()) < MIB
    assert 40 < float(found[2]) < 100
    path = "/machine/peripheral/balloon0"
    assert one.qmp("qom-get", path=path, property="guest-stats-polling-interval") == 0
    # The request stands, whoever made it.
    assert status(directory)["one"]["target"] == MIB


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_set_leaves_nothing_under_way(one, directory, number):
    """The guest is asked for what it has."""
    words = ("set", "one", "1M", "--force", "--patience", "60")
    with started(*words, "--sockets", directory) as process:
        one.wait_for(lambda: one.actual() < (MEMORY - 100) * MIB, 60, "some memory")
        process.send_signal(number)
        out, err = process.communicate(timeout=20)
    assert process.returncode == 128 + number
    assert (out, err.count("\n")) == ("", 1)
    assert "stopped at" in err
    row = status(directory)["one"]
    one.wait_for(lambda: one.actual() == row["target"], 20, "the size")
    assert MIB < row["target"] < MEMORY * MIB


def test_what_is_wrong_is_said_in_one_line(directory, guests):
    """No traceback, no success."""
    assert guests
    here = ("--sockets", directory)
    for words, reason in (
        (("set", "none", "300M", *here), "there is no VM none (there are: one, two)"),
        (
            ("set", "one", "many", *here),
            "'many' is not a size: 512M, 1.5G or a number of bytes, or",
        ),
        (("set", "one", "0", *here), "'0' is not a size"),
        (
            ("set", "one", "512", *here),
            "one: 512 means 512 bytes: of 512M hardly any guest",
        ),
        (("set", "one", "3G", *here), "one: 3G is beyond its memory of 512M"),
        (("set", "x", "3G", "--vm", "x=/nowhere"), "x: /nowhere: there is no such socket"),
        (("status", "--sockets", "/nowhere"), "/nowhere: No such file or directory"),
        (("auto", "--budget", "1G", "--min", "one=2G", *here), "--min: 2048M in all, beyond the"),
    ):
        text, code = refusal(*words)
        assert reason in text
        assert code == 1
    done = tool("auto", "--budget", "lots", *here)
    assert done.returncode == 2
    assert "'lots' is not a size" in done.stderr


def test_sockets_that_do_not_answer(directory):
    """Nobody listens; somebody who is not QEMU; a QEMU that talks to another."""
    with socket.socket(socket.AF_UNIX) as listener:
        path = directory / "other.socket"
        listener.bind(str(path))
        assert "nobody listens on it" in refusal("set", "x", "1G", "--vm", f"x={path}")[0]
        listener.listen()
        assert "no answer on" in refusal("set", "x", "1G", "--vm", f"x={path}")[0]
    path.unlink()
    path = directory / "busy.socket"
    with bare_qemu(path, "-device", "virtio-balloon-pci"), socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        assert b"QMP" in client.recv(1000)
        # Several wait longer than the socket has room for.
        with contextlib.ExitStack() as stack:
            words = ("set", "x", "300M", "--vm", f"x={path}")
            waiting = [stack.enter_context(started(*words)) for _ in range(5)]
            for process in waiting:
                assert "another client may have it" in process.communicate(timeout=60)[1]


def test_vms_without_balloon_or_guest(directory):
    """A device is missing; a driver is."""
    path = directory / "bare.socket"
    with bare_qemu(path):
        text, code = refusal("set", "bare", "300M", "--vm", f"bare={path}")
        assert (text, code) == (
            "error: bare: it has no balloon device (-device virtio-balloon-pci)",
            1,
        )
    for paused, reason in ((False, "it may have no balloon driver"), (True, "the VM is paused")):
        with bare_qemu(path, "-device", "virtio-balloon-pci", paused=paused):
            text, code = refusal("set", "bare", "300M", "--patience", "1", "--vm", f"bare={path}")
            assert code == 3
            assert reason in text


def test_memory_that_no_balloon_reaches(directory):
    """QEMU counts a DIMM for the balloon, and neither an NVDIMM nor virtio-mem."""
    path = directory / "bare.socket"
    options = f"""-m {MEMORY}M,slots=2,maxmem=2G -machine q35,nvdimm=on -device virtio-balloon-pci
        -object memory-backend-ram,id=a,size=128M -device pc-dimm,memdev=a
        -object memory-backend-ram,id=b,size=128M -device nvdimm,memdev=b
        -object memory-backend-ram,id=c,size=128M
        -device virtio-mem-pci,memdev=c,requested-size=128M"""
    with bare_qemu(path, *options.split()):
        row = result("status", "--vm", f"bare={path}")[0]
        assert row["maximum"] == row["actual"] == (MEMORY + 128) * MIB
        done = result("set", "bare", "max", "--vm", f"bare={path}")
        assert done["reached"]


def test_a_qemu_that_hangs_holds_nobody_up(directory):
    """Stopped, it accepts connections and says nothing. Rounds keep their interval."""
    paths = {name: directory / f"{name}.socket" for name in ("hangs", "runs")}
    words = [word for name, path in paths.items() for word in ("--vm", f"{name}={path}")]
    device = ("-device", "virtio-balloon-pci")
    command = ("auto", "--budget", "2G", "--interval", "1", "--json", *words)
    with (
        bare_qemu(paths["hangs"], *device) as hangs,
        bare_qemu(paths["runs"], *device),
        started(*command) as process,
    ):
        auto = Auto(process)
        auto.report()
        hangs.send_signal(signal.SIGSTOP)
        report = auto.until(lambda report: "hangs" in report["problems"])
        begun = time.monotonic()
        for _ in range(8):
            report = auto.report()
        assert time.monotonic() - begun < 10
        assert set(report["vms"]) == {"hangs", "runs"}
        hangs.send_signal(signal.SIGCONT)
        auto.until(lambda report: not report["problems"])
        process.terminate()
        assert process.wait(60) == 0


def test_status_shows_what_is(guests, directory):
    """Beside a VM that cannot be asked."""
    guests["one"].resize(400)
    before = {name: balloon.guest.resident_mib() for name, balloon in guests.items()}
    with bare_qemu(directory / "bare.sock"):
        done = tool("status", "--json", "--sockets", directory)
        table = tool("status", "--sockets", directory)
    assert done.returncode == table.returncode == 1
    rows = {row["vm"]: row for row in json.loads(done.stdout)}
    assert rows["bare"] == {
        "vm": "bare",
        "error": "it has no balloon device (-device virtio-balloon-pci)",
    }
    for name, balloon in guests.items():
        row, memory = rows[name], balloon.counters()
        assert row["maximum"] == MEMORY * MIB
        assert row["actual"] == row["target"] == (400 if name == "one" else MEMORY) * MIB
        resident = sorted((before[name], balloon.guest.resident_mib()))
        assert resident[0] - 24 < row["resident"] // MIB < resident[1] + 24
        stats = row["statistics"]
        assert abs(stats["available-memory"] // 1024 - memory["MemAvailable"]) < 24 * 1024
        assert stats["age"] < 10
        assert stats["swap-out"] == 0
    lines = table.stdout.splitlines()
    assert re.match(r"VM +memory +target +actual +available", lines[0])
    assert re.match(r"one +512M +400M +400M +[\d.]+M +0M +0M +\d+ +[\d.]+M +\d+ s old", lines[2])
    assert table.stderr == f"error: bare: {rows['bare']['error']}\n"
    guests["one"].resize(MEMORY)


def use(balloon, mib):
    """Have the guest use so much memory; 0: no more."""
    balloon.sh(
        "mkdir -p /run/full; umount /run/full 2>/dev/null;"
        f"[ {mib} = 0 ] || {{ mount -t tmpfs -o size=90% full /run/full &&"
        f" dd if=/dev/zero of=/run/full/a bs=1M count={mib} status=none; }}",
        120,
    )


class Auto:
    """A running `balloonctl auto`, whose reports are read one by one."""

    def __init__(self, process):
        self.process = process

    def report(self) -> dict:
        """The next one, its VMs by name."""
        line = self.process.stdout.readline()
        assert line, self.process.stderr.read()
        report = json.loads(line)
        report["vms"] = {row["name"]: row for row in report["vms"]}
        return report

    def until(self, condition, rounds=90) -> dict:
        """The first report of which this holds."""
        for _ in range(rounds):
            report = self.report()
            if condition(report):
                return report
        raise AssertionError(report)

    def end(self) -> None:
        """As an operator would."""
        self.process.send_signal(signal.SIGTERM)
        _, err = self.process.communicate(timeout=30)
        assert self.process.returncode == 0
        assert "Traceback" not in err


@contextlib.contextmanager
def auto(directory, *words):
    """Run it for the VMs there."""
    command = ("auto", "--budget", f"{BUDGET}M", "--interval", "1", "--json")
    with started(*command, "--sockets", directory, *words) as process:
        yield Auto(process)


def test_auto_keeps_the_budget_and_follows_the_need(guests, directory):
    """Two guests of 512 MiB and a VM that says nothing share what they are given."""
    mute = directory / "mute.sock"
    with bare_qemu(mute, "-device", "virtio-balloon-pci", "-m", "128M"):
        with auto(directory, "--step", "10", "--min", "two=200M") as running:
            first = running.until(lambda r: len(r["vms"]) == 3)
            assert first["total"] == (2 * MEMORY + 128) * MIB
            met = running.until(lambda r: r["total"] <= BUDGET * MIB)
            assert met["missing"] == 0
            use(guests["one"], 150)
            totals = []

            def content(report):
                one, two = report["vms"]["one"], report["vms"]["two"]
                totals.append(report["total"])
                grown = one["need"] and one["need"] > 200 * MIB
                return grown and one["least"] <= one["actual"] > two["actual"]

            grown = running.until(content)
            assert grown["vms"]["two"]["actual"] >= 200 * MIB
            assert grown["vms"]["mute"]["target"] == 128 * MIB
            assert max(totals) <= BUDGET * MIB
            running.end()
        use(guests["one"], 0)
    assert_untouched(guests, directory)


def test_auto_counts_what_has_no_balloon(tmp_path):
    """From the start, and when it is unplugged: it has its memory all the same."""
    device = "virtio-balloon-pci,id=balloon0"
    control = tmp_path / "control.socket"
    with (
        bare_qemu(tmp_path / "never.sock"),
        bare_qemu(
            *(tmp_path / "unplugged.sock", "-device", device),
            *("-qmp", f"unix:{control},server=on,wait=off"),
        ),
        auto(tmp_path) as running,
    ):
        total = 2 * MEMORY * MIB
        report = running.until(lambda r: len(r["vms"]) == 2)
        assert (report["total"], report["unknown"]) == (total, 0)
        assert set(report["problems"]) == {"never"}
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(control))
            # No guest takes part, so it is gone with the reset.
            for command in (
                {"execute": "qmp_capabilities"},
                {"execute": "device_del", "arguments": {"id": "balloon0"}},
                {"execute": "system_reset"},
            ):
                client.sendall(json.dumps(command).encode())
            report = running.until(lambda r: "unplugged" in r["problems"])
        assert (report["total"], report["unknown"]) == (total, 0)
        running.end()


def test_auto_gives_nothing_out_while_a_size_is_not_known(tmp_path):
    """Somebody listens there, and does not answer."""
    with (
        socket.socket(socket.AF_UNIX) as listener,
        bare_qemu(tmp_path / "mute.sock", "-device", "virtio-balloon-pci"),
    ):
        listener.bind(str(tmp_path / "silent.sock"))
        listener.listen()
        with auto(tmp_path) as running:
            report = running.report()
            assert (report["total"], report["unknown"]) == (MEMORY * MIB, 1)
            assert set(report["vms"]) == {"mute"}
            assert "its size is not known" in report["problems"]["silent"]
            running.end()
    (tmp_path / "silent.sock").unlink()


def test_auto_sees_vms_come_and_go(guests, directory):
    """While it runs."""
    mute = directory / "mute.sock"
    with auto(directory) as running:
        assert set(running.report()["vms"]) == set(NAMES)
        with bare_qemu(mute, "-device", "virtio-balloon-pci", "-m", "128M") as qemu:
            running.until(lambda r: "mute" in r["vms"])
            qemu.kill()
            running.until(lambda r: "mute" not in r["vms"])
        running.end()
    assert_untouched(guests, directory)


def assert_untouched(guests, directory):
    """It was told to end, so no request is open, and nobody is asked for statistics."""
    for name, balloon in guests.items():
        path = "/machine/peripheral/balloon0"
        assert balloon.qmp("qom-get", path=path, property="guest-stats-polling-interval") == 0
        row = status(directory)[name]
        assert row["target"] >= row["actual"]


def test_a_crash_leaves_guests_that_work(guests, directory):
    """Killed amid taking memory: guests keep what they need, and it can be given back."""
    for balloon in guests.values():
        balloon.resize(MEMORY)
    with auto(directory, "--step", "20") as running:
        running.until(lambda r: r["total"] < (2 * MEMORY - 50) * MIB)
        running.process.kill()
    for name, balloon in guests.items():
        assert balloon.sh("ls / | wc -l") != "0"
        available = balloon.counters()["MemAvailable"]
        use(balloon, available // 1024 // 2)
        use(balloon, 0)
        assert result("set", name, "max", "--sockets", directory)["reached"]


def test_it_runs_from_anywhere_by_a_link(tmp_path):
    """As an operator has it in the path, and without the environment of the tests."""
    link = tmp_path / "balloonctl"
    link.symlink_to(TOOL)
    done = subprocess.run(
        [link, "--help"],
        cwd="/",
        env={k: v for k, v in os.environ.items() if k in ("PATH", "HOME", "FERRULE_CACHE")},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0
    assert "balloonctl auto --budget" in done.stdout
