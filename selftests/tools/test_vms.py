# SPDX-License-Identifier: GPL-2.0
"""What other people's reports found in balloonctl, each as a kind: names, locked and hung VMs,
memory that no balloon reaches, guests that say little or seldom, large pages.
"""

import asyncio
import dataclasses
import json
import socket
import time

import pytest
from ballooning import __main__ as balloonctl
from ballooning import vms
from ballooning.vms import NoBalloon, Session, Sources, State, VmError
from qemu.qmp import ExecuteError
from test_automatic import GIB, MIB, FakeVm, Host
from test_commands import arguments

XML = """<domain><memory unit='KiB'>1048576</memory><devices>{devices}
</devices></domain>"""
BALLOON = "<memballoon model='virtio'/>"


class FakeLibvirt:
    """virsh with these domains, by their IDs. As virsh, it takes a number for an ID first."""

    def __init__(self, monkeypatch, *names, busy=(), devices=BALLOON):
        self.domains = {str(number): name for number, name in enumerate(names, 1)}
        self.busy = busy
        self.devices = devices
        self.set = {}
        self.calls = []
        monkeypatch.setattr(vms, "virsh", self.virsh)

    def uuid(self, name):
        """Each has one."""
        return f"00000000-0000-0000-0000-{list(self.domains.values()).index(name):012}"

    def look_up(self, word):
        """By ID, UUID, name."""
        by_uuid = {self.uuid(name): name for name in self.domains.values()}
        return self.domains.get(word) or by_uuid.get(word) or word

    async def virsh(self, _uri, command, *words):
        """As virsh."""
        self.calls.append((command, *words))
        if command == "list":
            return "".join(f"{self.uuid(name)} {name}\n" for name in self.domains.values())
        if command == "domstats":
            assert "--nowait" in words
            chosen = [self.look_up(word) for word in words if not word.startswith("-")]
            return "".join(map(self.stats, chosen or self.domains.values()))
        name = self.look_up(words[0])
        if command == "dumpxml":
            return XML.format(devices=self.devices)
        if name in self.busy:
            raise VmError(f"virsh {command}: Timed out: cannot acquire state change lock")
        if command == "setmem":
            self.set[name] = words[1]
        return ""

    def stats(self, name):
        """Of a domain that is busy there is no more than its state."""
        text = f"Domain: '{name}'\n  state.state=1\n  state.reason=1\n"
        if name not in self.busy:
            text += "  balloon.current=1048576\n  balloon.maximum=1048576\n  balloon.rss=5\n"
            text += "  block.count=2\n  block.0.rd.bytes=4096\n  block.0.wr.bytes=7\n"
            text += "  block.1.name=vdb\n  block.1.rd.bytes=8192\n"
        return text + "\n"


def find(*words, **options):
    """The VMs of these sources."""
    return asyncio.run(Sources(*words, **options).find())


def test_a_name_that_is_a_number_is_a_name(monkeypatch):
    """virsh would take it for the ID of another domain."""
    libvirt = FakeLibvirt(monkeypatch, "web", "3", "1 b", "2")
    found = find(libvirt="")
    assert set(found) == {"web", "3", "1 b", "2"}
    for name, vm in found.items():
        asyncio.run(vm.set_target(512 * MIB))
        assert libvirt.set == {name: "524288KiB"}
        asyncio.run(vm.set_polling(1))
        asyncio.run(vm.polling())
        assert libvirt.calls[-1] == ("dumpxml", vm.uuid)
        libvirt.set.clear()


def test_the_trouble_of_a_domain_is_its_own(monkeypatch, capsys):
    """One that is locked. The others are shown and set, and nobody waits for it."""
    FakeLibvirt(monkeypatch, "web", "db", busy=("db",))
    found = find(libvirt="")
    assert asyncio.run(found["web"].read()).actual == GIB
    for _ in range(2):
        with pytest.raises(VmError, match="at work on the domain") as caught:
            asyncio.run(found["db"].read())
        assert caught.value.maximum == GIB
    monkeypatch.setattr("sys.argv", ["balloonctl", "set", "web", "512M", "--no-wait", "--libvirt"])
    assert balloonctl.main() == 0
    monkeypatch.setattr("sys.argv", ["balloonctl", "status", "--json", "--libvirt"])
    assert balloonctl.main() == 1
    rows = json.loads(capsys.readouterr().out.partition("\n")[2])
    assert ["error" in row for row in rows] == [True, False]


def test_a_domain_without_a_balloon_is_told_from_a_busy_one(monkeypatch):
    """It will never say anything."""
    FakeLibvirt(monkeypatch, "a", busy=("a",), devices="<memballoon model='none'/>")
    with pytest.raises(NoBalloon):
        asyncio.run(find(libvirt="")["a"].read())


def test_two_vms_of_one_name_are_named(tmp_path, monkeypatch):
    """And where they are. The same socket given twice is one VM."""
    path = tmp_path / "a.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        (tmp_path / "link").symlink_to(tmp_path)
        assert set(find([("a", path)], [tmp_path, tmp_path / "link"])) == {"a"}
        with pytest.raises(VmError, match=f"two VMs have the name a: /x and {path}"):
            find([("a", "/x")], [tmp_path])
        FakeLibvirt(monkeypatch, "a")
        with pytest.raises(VmError, match=f"{path} and libvirt's domain 00000000-"):
            find([], [tmp_path], "")
    with pytest.raises(VmError, match="the name b: /x and /y"):
        find([("b", "/x"), ("b", "/y")])


class FakeClient:
    """A QEMU that answers so."""

    def __init__(self, **answers):
        self.answers = answers

    async def execute(self, command, _arguments=None):
        """As QMP."""
        if command not in self.answers:
            raise ExecuteError(None, None, None)
        return self.answers[command]


@pytest.mark.parametrize(
    ("devices", "size"),
    [
        ([], GIB),
        ([{"type": "dimm", "data": {"size": GIB}}], 2 * GIB),
        ([{"type": "virtio-mem", "data": {"size": GIB}}], GIB),
        ([{"type": "nvdimm", "data": {"size": GIB}}], GIB),
        ([{"type": t, "data": {"size": GIB}} for t in ("dimm", "sgx-epc", "virtio-pmem")], 2 * GIB),
    ],
)
def test_what_no_balloon_reaches_does_not_count(devices, size):
    """QEMU's own count for the balloon has DIMMs in it and nothing else that is plugged."""
    answers = {"query-memory-size-summary": {"base-memory": GIB, "plugged-memory": 3 * GIB}}
    client = FakeClient(**answers, **{"query-memory-devices": devices})
    assert asyncio.run(Session(client).memory()) == size


def test_what_a_guest_has_read_from_its_disks_is_known(monkeypatch):
    """Of all of them together, and that nothing is known where nothing is said."""
    FakeLibvirt(monkeypatch, "a")
    vm = find(libvirt="")["a"]
    assert [asyncio.run(vm.read()).disk_read for _ in range(2)] == [12288, 12288]
    disks = [{"stats": {"rd_bytes": size, "wr_bytes": 5}} for size in (4096, 0, 512)]
    client = FakeClient(**{"query-blockstats": disks})
    assert asyncio.run(Session(client).disk_read()) == 4608
    assert asyncio.run(Session(FakeClient()).disk_read()) is None


def test_a_guest_that_says_only_what_is_free():
    """That can be taken, and it is said what is missing."""

    class Old(FakeVm):
        """An older driver for Windows."""

        async def read(self):
            state = await super().read()
            if "available-memory" in state.stats:
                state.stats = {"free-memory": state.stats["available-memory"]}
            return state

    host = Host(GIB * 3 // 2, Old("a"), FakeVm("b"))
    report = host.rounds(40)
    assert report["total"] <= GIB * 3 // 2
    assert report["vms"][0]["actual"] < GIB * 7 // 8
    said = "a: its guest does not say what is available, only what is free"
    assert [line for line in host.said if "only what" in line] == [said]
    cells = balloonctl.cells_of(
        {"maximum": GIB, "target": GIB, "actual": GIB, "resident": 0}
        | {"statistics": {"age": 3.0, "free-memory": 100 * MIB}}
    )
    assert (cells[3], cells[-1]) == ("100M", "3 s old, free only")


def test_of_what_is_seldom_known_little_is_taken():
    """Statistics that somebody else asks for each minute: a step each, not one each round."""

    class Seldom(FakeVm):
        """New statistics every twelfth round."""

        def __init__(self, name):
            super().__init__(name)
            self.period, self.reads, self.has_been = 60, 0, []

        async def read(self):
            self.reads += 1
            self.talks = self.reads % 12 == 1
            state = await super().read()
            self.has_been.append(state.actual)
            return state

    a, b = Seldom("a"), FakeVm("b", uses=900 * MIB)
    host = Host(GIB * 3 // 2, a, b)
    host.rounds(60)
    steps = [before - now for before, now in zip(a.has_been, a.has_been[1:], strict=False)]
    assert max(steps) <= GIB // 20
    assert 1 <= sum(step > 0 for step in steps) <= 5


def hang(vm, method):
    """A QEMU that does not answer."""

    async def never(*_words):
        await asyncio.sleep(60)

    setattr(vm, method, never)


@pytest.mark.parametrize("method", ["read", "set_target", "set_polling"])
def test_a_round_does_not_wait_for_a_vm_that_hangs(method):
    """It keeps its interval, and the others get and give what they would."""

    async def main():
        vms_ = [FakeVm(name) for name in "abc"]
        host = Host(GIB * 2, *vms_)
        host.controller.interval = 0.2
        if method != "set_polling":
            for _ in range(3):
                await host.controller.round()
        hang(vms_[2], method)
        started = time.monotonic()
        for _ in range(12):
            report = await host.controller.round()
        assert time.monotonic() - started < 12 * 0.25 + 1
        assert {vm["name"] for vm in report["vms"]} == {"a", "b", "c"}
        assert host.said.count("c: it has not answered yet") == 1
        vms_[2].__dict__.pop(method)
        started = time.monotonic()
        await host.controller.end()
        assert time.monotonic() - started < 1
        assert [vm.period for vm in vms_] == [0, 0, 0]
        return vms_

    a, b, c = asyncio.run(main())
    assert a.state.actual < GIB * 7 // 8
    assert b.state.actual < GIB * 7 // 8
    assert c.state.actual > GIB // 2


def test_a_round_does_not_wait_for_who_knows_the_vms():
    """Such as a daemon of libvirt that hangs: the VMs that were there are."""

    async def main():
        host = Host(GIB * 2, FakeVm("a"))
        host.controller.interval = 0.2
        await host.controller.round()
        hang(host.sources, "find")
        report = await host.controller.round()
        assert [vm["name"] for vm in report["vms"]] == ["a"]
        assert "there is no answer yet" in report["problems"][""]
        await host.controller.end()

    asyncio.run(main())


class LargePages(FakeVm):
    """A guest with pages of 64 KiB."""

    async def set_target(self, size):
        await super().set_target(size)
        balloon = (self.state.maximum - size) // (64 * 1024) * (64 * 1024)
        self.state.target = self.state.maximum - balloon


def test_a_guest_with_large_pages_is_at_its_size(monkeypatch, capsys):
    """As near as its pages go."""
    vm = LargePages("a")
    args = arguments(monkeypatch, [vm], "set", "a", "0.3G", "--patience", "5", "--json")
    assert asyncio.run(balloonctl.set_size(args)) == 0
    row = json.loads(capsys.readouterr().out)
    assert row["reached"]
    assert 0 < abs(row["actual"] - row["target"]) < 64 * 1024


def test_a_paused_vm_is_said_to_be_paused():
    """Its driver may well be there."""
    state = State(GIB, GIB, paused=True)
    assert balloonctl.why_stuck(state, GIB // 2).startswith("the VM is paused")
    running = dataclasses.replace(state, paused=False)
    assert "no balloon driver" in balloonctl.why_stuck(running, GIB // 2)


def test_huge_pages_are_resident(monkeypatch, tmp_path):
    """The kernel counts them apart."""
    status = tmp_path / "status"
    status.write_text("VmRSS:\t    100 kB\nRssShmem:\t      0 kB\nHugetlbPages:\t  2048 kB\n")
    monkeypatch.setattr(vms.pathlib, "Path", lambda path: status)
    assert vms.resident_of(1) == 2148 * 1024
    status.write_text("Name:\tx\n")
    assert vms.resident_of(1) is None


def test_statistics_are_read():
    """As virsh prints them, of domains with any name."""
    text = "Domain: 'a 'b''\n  state.state=3\n  balloon.current=5\n  balloon.last-update=7\n\n"
    assert vms.parse_stats(text) == {"a 'b'": {"state": 3, "current": 5, "last-update": 7}}
