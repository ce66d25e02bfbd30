# SPDX-License-Identifier: GPL-2.0
"""`balloonctl auto` with VMs that are not there: what it makes of what they say."""

import asyncio
import dataclasses

import pytest
from ballooning.__main__ import goal_of
from ballooning.automatic import REST, STUCK, Controller
from ballooning.policy import MIB, Rules
from ballooning.vms import NoBalloon, State, VmError, VmGone
from tooling.sizes import parse_size, show_size

GIB = 1 << 30


class FakeVm:
    """A VM whose guest does at once what it is asked for."""

    def __init__(self, name, maximum=GIB, uses=200 * MIB):
        self.name = name
        self.state = State(maximum, maximum, target=maximum)
        self.uses = uses
        self.talks = True
        self.yields = True
        self.period = 0
        self.problem = None
        self.asked = []

    async def read(self):
        """As a real one."""
        if self.problem:
            raise self.problem
        state = self.state
        if self.yields or state.target > state.actual:
            state.actual = state.target
        if self.talks and self.period:
            state.updated += self.period
            state.stats = {"available-memory": max(0, state.actual - self.uses)}
        return dataclasses.replace(state)

    async def set_target(self, size):
        """As a real one."""
        if self.problem:
            raise self.problem
        self.asked.append(size)
        self.state.target = size

    async def polling(self):
        """As a real one."""
        return self.period

    async def set_polling(self, seconds):
        """As a real one."""
        self.period = seconds


class FakeSources:
    """Where they are."""

    def __init__(self, *vms):
        self.vms = {vm.name: vm for vm in vms}

    async def find(self):
        """As a real one."""
        return dict(self.vms)


class Host:
    """A controller with its VMs, and what it says."""

    def __init__(self, budget, *vms, floors=(), **options):
        self.said = []
        self.sources = FakeSources(*vms)
        self.controller = Controller(
            self.sources, budget, Rules(), dict(floors), 5, self.said.append, **options
        )

    def rounds(self, count):
        """So many of them; the last report."""
        for _ in range(count):
            report = asyncio.run(self.controller.round())
        return report

    def end(self):
        """End it."""
        asyncio.run(self.controller.end())


def test_the_budget_is_kept():
    """And polling is as it was in the end."""
    vms = [FakeVm(name) for name in "abc"]
    vms[0].period = 7
    host = Host(2 * GIB, *vms)
    report = host.rounds(30)
    assert report["total"] <= 2 * GIB
    assert [vm.period for vm in vms] == [7, 2, 2]
    host.end()
    assert [vm.period for vm in vms] == [7, 0, 0]


def test_a_dry_run_changes_nothing():
    """It says what it would do. For that the guests have to be asked what they need."""
    vms = [FakeVm(name) for name in "ab"]
    vms[1].period = 7
    host = Host(GIB, *vms, dry_run=True)
    host.rounds(6)
    assert [vm.period for vm in vms] == [2, 7]
    host.end()
    assert [vm.period for vm in vms] == [0, 7]
    assert not any(vm.asked for vm in vms)
    for vm in vms:
        assert any(line.startswith(f"{vm.name}: 1024M -> ") for line in host.said)
    assert not any("more than the budget" in line for line in host.said)


def test_it_is_said_who_has_to_keep_what_it_has():
    """The budget is not enough for want of statistics."""
    a, b, c = (FakeVm(name) for name in "abc")
    b.talks = c.talks = False
    host = Host(GIB * 3 // 2, a, b, c)
    host.rounds(6)
    lines = [line for line in host.said if "more than the budget" in line]
    assert len(lines) == 1
    assert lines[0].endswith("has; no statistics, so no less than they have, of: b, c")


def test_vms_come_and_go():
    """The memory of one that is gone is for the others; a new one is counted."""
    a, b = FakeVm("a"), FakeVm("b")
    host = Host(GIB, a, b)
    host.rounds(30)
    b.problem = VmGone("gone")
    report = host.rounds(30)
    assert report["total"] == a.state.actual == GIB
    assert host.said.count("b: gone") == 1
    host.sources.vms["c"] = FakeVm("c")
    assert host.rounds(30)["total"] <= GIB
    del host.sources.vms["c"]
    assert host.rounds(30)["total"] == GIB


@pytest.mark.parametrize("period", [0, 7])
def test_polling_is_put_back_where_a_vm_was_away(period):
    """It may be the same QEMU, at whose socket nobody answered for a moment."""
    a, b = FakeVm("a"), FakeVm("b")
    b.period = period
    host = Host(GIB, a, b)
    host.rounds(3)
    b.problem = VmGone("gone")
    host.rounds(1)
    b.problem = None
    host.rounds(3)
    assert b.period == (period or 2)
    host.end()
    assert (a.period, b.period) == (0, period)


def test_that_polling_cannot_be_set_is_said_once():
    """Such as of a domain of libvirt that has no balloon."""

    class Refusing(FakeVm):
        """A VM that can be read."""

        async def set_polling(self, seconds):
            raise VmError("no balloon")

    host = Host(GIB, Refusing("a"))
    assert host.rounds(5)["problems"] == {"a": "no balloon"}
    assert host.said.count("a: no balloon") == 1


def test_a_floor_for_a_vm_that_is_not_there_is_said():
    """Once, and when it comes."""
    a, c = FakeVm("a"), FakeVm("c")
    host = Host(GIB, a, floors={"a": 512 * MIB, "b": 512 * MIB, "c": GIB // 4 * 3})
    host.rounds(3)
    missing = ["there is no VM b (--min)", "there is no VM c (--min)"]
    assert [line for line in host.said if "(--min)" in line] == missing
    host.sources.vms["c"] = c
    report = host.rounds(30)
    come = "c: is there now (--min 768M)"
    assert [line for line in host.said if "(--min" in line] == [*missing, come]
    assert report["vms"][1]["actual"] >= GIB // 4 * 3
    del host.sources.vms["c"]
    host.rounds(1)
    host.sources.vms["c"] = c
    host.rounds(1)
    assert host.said.count(come) == 1


def test_what_cannot_be_read_keeps_what_it_has():
    """A VM that does not answer may well run: its memory is not for others."""
    a, b = FakeVm("a"), FakeVm("b", uses=500 * MIB)
    host = Host(GIB, a, b)
    had = host.rounds(30)
    share = next(vm["actual"] for vm in had["vms"] if vm["name"] == "b")
    b.problem = VmError("no answer")
    report = host.rounds(30)
    assert {vm["name"] for vm in report["vms"]} == {"a", "b"}
    assert report["total"] <= GIB
    assert next(vm["actual"] for vm in report["vms"] if vm["name"] == "b") == share
    assert host.said.count("b: no answer") == 1
    assert report["problems"] == {"b": "no answer"}


@pytest.mark.parametrize("kind", [VmError, NoBalloon])
def test_what_could_never_be_read_counts_with_all_of_its_memory(kind):
    """It may have it; until it says otherwise."""
    a, b = FakeVm("a"), FakeVm("b", GIB // 2)
    b.problem = kind("hm", GIB // 2)
    host = Host(GIB, a, b)
    report = host.rounds(30)
    assert (report["total"], report["unknown"]) == (a.state.actual + GIB // 2, 0)
    assert GIB * 3 // 8 <= a.state.actual <= GIB // 2
    assert host.said.count("b: hm; it counts with all of its 512M") == 1
    assert not b.asked
    b.problem, b.state.actual, b.state.target = None, GIB // 4, GIB // 4
    report = host.rounds(1)
    assert report["total"] == a.state.actual + GIB // 4
    assert host.said.count("b: 256M of 512M") == 1
    report = host.rounds(30)
    assert report["vms"][1]["need"] == 200 * MIB
    assert report["total"] <= GIB


def test_nothing_is_given_out_while_a_size_is_not_known():
    """The VM may have any part of the budget. What is beyond that is taken all the same."""
    a, b, c = FakeVm("a"), FakeVm("b", uses=100 * MIB), FakeVm("c")
    c.problem = VmError("no answer")
    host = Host(GIB, a, b, c)
    report = host.rounds(30)
    assert report["total"] <= GIB
    assert report["unknown"] == 1
    has = a.state.actual
    a.uses = has
    b.asked.clear()
    report = host.rounds(30)
    assert a.state.actual == has
    # Nor is anything taken that nobody would get.
    assert not b.asked
    assert [line for line in host.said if line.startswith("c: ")] == [
        "c: no answer; its size is not known, so nothing is given to the others"
    ]
    del host.sources.vms["c"]
    report = host.rounds(30)
    assert report["unknown"] == 0
    assert report["total"] <= GIB
    assert a.state.actual > has


def test_a_guest_whose_balloon_is_unplugged_has_all_of_its_memory():
    """The others make up for it; and it is as before when it has one again."""
    a, b = FakeVm("a"), FakeVm("b")
    host = Host(GIB * 3 // 2, a, b)
    host.rounds(30)
    assert b.state.actual < GIB
    b.problem = NoBalloon("no balloon", GIB)
    report = host.rounds(1)
    assert report["vms"][1]["actual"] == report["vms"][1]["target"] == GIB
    report = host.rounds(30)
    assert report["total"] == a.state.actual + GIB <= GIB * 3 // 2
    b.problem, b.state.actual, b.state.target, b.period = None, GIB, GIB, 0
    report = host.rounds(30)
    assert b.period == 2
    assert report["total"] == a.state.actual + b.state.actual <= GIB * 3 // 2
    assert b.state.actual < GIB


@pytest.mark.parametrize("when", ["from the start", "later"])
def test_a_guest_without_statistics_is_left_alone(when):
    """It may be a guest without a driver, or one that hangs."""
    a, b = FakeVm("a"), FakeVm("b")
    host = Host(GIB, a, b)
    if when == "later":
        host.rounds(6)
        assert b.asked
    b.talks = False
    # What it said last counts for a while.
    host.rounds(4)
    has = b.state.actual
    b.asked.clear()
    host.rounds(30)
    assert all(size >= has for size in b.asked)
    assert b.state.actual >= has


def test_a_guest_that_gives_nothing_is_not_asked_again_and_again():
    """Nor is a request kept open: it may be met when nobody wants it any more."""
    a, b = FakeVm("a"), FakeVm("b")
    b.yields = False
    host = Host(GIB * 3 // 2, a, b)
    host.rounds(3 + STUCK)
    assert b.asked[0] < GIB
    host.rounds(2)
    assert b.asked[1] == b.state.target == GIB
    rounds = 4 * REST
    host.rounds(rounds)
    assert len([size for size in b.asked if size < GIB]) <= 1 + rounds // REST
    # The other one has given what it could.
    assert a.state.actual < GIB * 3 // 4


def test_a_guest_that_gives_nothing_gets_what_it_needs():
    """Also while it is not asked: who does not give is likely to need."""
    a, b = FakeVm("a"), FakeVm("b", uses=600 * MIB)
    host = Host(GIB * 3 // 2, a, b)
    host.rounds(60)
    b.yields = False
    a.uses = 650 * MIB
    for _ in range(60):
        report = host.rounds(1)
        if not report["vms"][1]["may_take"]:
            break
    assert not report["vms"][1]["may_take"]
    has = b.state.actual
    b.uses, a.uses = has - MIB, 100 * MIB
    report = host.rounds(REST // 2)
    assert not report["vms"][1]["may_take"]
    assert b.state.actual >= has + 70 * MIB
    assert report["total"] <= GIB * 3 // 2


def test_an_end_leaves_no_request_open():
    """A guest is asked for what it has."""
    a, b = FakeVm("a"), FakeVm("b")
    host = Host(GIB, a, b)
    host.rounds(3)
    a.yields = b.yields = False
    host.rounds(1)
    assert a.state.target < a.state.actual
    host.end()
    assert a.state.target == a.state.actual
    assert b.state.target == b.state.actual


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("512M", 512 * MIB),
        ("1.5G", 3 * GIB // 2),
        ("2GiB", 2 * GIB),
        ("1 t", 1 << 40),
        ("4k", 4096),
        ("536870912", 512 * MIB),
        ("100B", 100),
    ],
)
def test_sizes_are_read(text, size):
    """As people write them."""
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text",
    ["", "M", "0", "-1G", "1,5G", "1e9", "nan", "5X", "0.1", "1G2M", "9" * 400, "9" * 9999]
    + ["9" * 400 + "G", "8388608T"],
)
def test_what_is_no_size_is_refused(text):
    """With what would be one."""
    with pytest.raises(ValueError, match="is not a size: 512M, "):
        parse_size(text)


def test_a_size_that_no_guest_can_live_with_is_refused():
    """It is more likely that a unit was forgotten."""
    state = State(4 * GIB, 4 * GIB)
    with pytest.raises(VmError, match=r"^512 means 512 bytes: of 4096M hardly .* less than 256M"):
        goal_of("512", state, False)
    with pytest.raises(VmError, match="^255M means 255M: "):
        goal_of("255M", state, False)
    assert goal_of("256M", state, False) == 256 * MIB
    assert goal_of("1M", state, True) == MIB
    small, large = 32 * MIB, 512 * MIB
    assert goal_of("64M", State(large, large), False) == 64 * MIB
    assert goal_of("max", State(large, large), False) == large
    assert goal_of("24M", State(small, small), False) == 24 * MIB
    # Nor is it when the guest has less.
    assert goal_of("60M", State(large, 50 * MIB), False) == 60 * MIB
    with pytest.raises(VmError, match="^5G is beyond its memory of 4096M"):
        goal_of("5G", state, True)


def test_sizes_are_shown_as_they_are_read():
    """Rounded to what a person wants to know."""
    for size, text in ((512 * MIB, "512M"), (3 * GIB // 2, "1536M"), (64 * GIB, "64G"), (0, "0M")):
        assert show_size(size) == text
    assert show_size(300 * MIB + 400 * 1024) == "300.4M"
    assert show_size(1 << 50) == "1024T"
    assert show_size(None) == "-"
