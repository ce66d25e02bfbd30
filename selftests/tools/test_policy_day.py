# SPDX-License-Identifier: GPL-2.0
"""A simulated day of a thousand guests under the policy, a minute a round."""

import dataclasses
import math
import random

import pytest
from ballooning.policy import MIB, PARTS, Rules, Vm, decide

GIB = 1 << 30
GUESTS = 1000
MINUTES = 24 * 60
RULES = Rules()
# Of the memory of all guests. They use about half of theirs in the afternoon.
BUDGET_PERCENT = 52
# What a balloon moves in a minute, at least.
SLOWEST = GIB


@dataclasses.dataclass
class Guest:
    """What a guest does all day, and what is known of it."""

    vm: Vm
    base: int
    swing: int
    peak: float
    noise: int
    # Statistics do not come, and the balloon does not move, up to this minute.
    deaf: int = 0
    stuck: int = 0
    # Minutes in which it had less than it uses, up to now.
    starving: int = 0
    burst: int = 0
    burst_ends: int = 0

    def uses(self, minute: int, rng: random.Random) -> int:
        """Memory that it cannot do without at this minute."""
        if minute >= self.burst_ends and rng.random() < 1 / 500:
            self.burst = rng.randrange(self.vm.maximum // 8)
            self.burst_ends = minute + rng.randrange(5, 90)
        wave = (1 + math.cos((minute / MINUTES - self.peak) * 2 * math.pi)) / 2
        used = self.base + int(self.swing * wave) + rng.randrange(self.noise)
        used += self.burst if minute < self.burst_ends else 0
        return min(used, self.vm.maximum * 9 // 10)


@dataclasses.dataclass
class Day:
    """What came of it."""

    starved: int = 0
    # Of guests that did not give: how many grew in that time, and the longest that one starved.
    grown: int = 0
    longest: int = 0
    guest_minutes: int = 0
    changes: int = 0
    turns: int = 0
    missing: int = 0
    over: list[int] = dataclasses.field(default_factory=list)
    used: int = 0
    held: int = 0


def new_guest(name: str, rng: random.Random) -> Guest:
    """Started just now, so it has all of its memory."""
    maximum = rng.choice([1, 2, 2, 4, 4, 8, 16]) * GIB
    vm = Vm(name, maximum, maximum, maximum, None)
    return Guest(
        vm,
        base=int(maximum * rng.uniform(0.15, 0.4)),
        swing=int(maximum * rng.uniform(0.05, 0.35)),
        # Three in four are busy in the afternoon, the others at night.
        peak=rng.gauss(0.6, 0.08) if rng.random() < 0.75 else rng.gauss(0.1, 0.08),
        noise=maximum // 100,
    )


@pytest.fixture(name="day", scope="module")
def day_fixture():
    """The simulation. Checks on the way what has to hold at each minute."""
    rng = random.Random(6)
    guests = [new_guest(f"vm{number}", rng) for number in range(GUESTS)]
    budget = sum(guest.vm.maximum for guest in guests) * BUDGET_PERCENT // 100
    day = Day()
    last = {}
    for minute in range(MINUTES):
        # Some end, and others start in their place.
        for index in range(GUESTS):
            if minute and rng.random() < 1 / 20_000:
                guests[index] = new_guest(f"vm{index}-{minute}", rng)
        for guest in guests:
            live(guest, minute, rng, day)
        vms = [guest.vm for guest in guests]
        held = sum(vm.hold for vm in vms)
        decision = decide(budget, vms)
        day.over.append(max(0, held - budget))
        day.held += held
        day.missing += decision.missing > 0
        planned = 0
        for guest in guests:
            vm = guest.vm
            target = decision.targets.get(vm.name, vm.target)
            planned += max(vm.actual, target)
            check(vm, target)
            if target != vm.target:
                rising = target > vm.target
                before = last.get(vm.name)
                day.turns += before is not None and before[1] != rising and minute - before[0] < 10
                last[vm.name] = (minute, rising)
                day.changes += 1
                vm.target = target
        assert planned <= max(held, budget)
    return day


def live(guest: Guest, minute: int, rng: random.Random, day: Day) -> None:
    """A minute of a guest: the balloon moves as far as it can, and statistics come, or not."""
    vm = guest.vm
    used = guest.uses(minute, rng)
    actual = vm.actual
    if vm.target > actual:
        actual = min(vm.target, actual + SLOWEST)
    elif minute >= guest.stuck:
        # The driver leaves it what it uses.
        actual = max(vm.target, actual - SLOWEST, min(actual, used))
    guest.deaf = minute + 15 if rng.random() < 1 / 5_000 else guest.deaf
    if rng.random() < 1 / 5_000:
        guest.stuck = minute + 15
        # One that does not give is one that is about to need more.
        guest.burst, guest.burst_ends = vm.maximum // 8, minute + 30
        day.grown += 1
    # A guest that has too little cannot say how much too little.
    vm.need = min(used, actual) if minute >= guest.deaf else None
    vm.may_take = minute >= guest.stuck
    vm.actual = actual
    guest.starving = guest.starving + 1 if used > actual else 0
    if minute < guest.stuck and minute >= guest.deaf:
        day.longest = max(day.longest, guest.starving)
    day.starved += used > actual
    day.guest_minutes += 1
    day.used += used


def check(vm: Vm, target: int) -> None:
    """Of one decision on one guest."""
    if target < vm.target:
        assert vm.need is not None
        assert vm.may_take
        assert vm.actual - target <= vm.maximum * RULES.step // PARTS
    if target < vm.actual and vm.need is not None:
        assert target >= vm.need + max(80 * MIB, vm.need // 10)
        assert target >= vm.maximum // 4
    if vm.need is None or not vm.may_take:
        assert target >= vm.actual


def test_the_budget_is_kept_once_it_was_met(day):
    """It takes some minutes at the start, and one or two for a guest that starts with all."""
    assert day.over[0] > 0
    assert not any(day.over[15:30])
    over = [bool(over) for over in day.over[15:]]
    longest = max(len(run) for run in "".join("x" if o else " " for o in over).split(" "))
    assert longest <= 2


def test_guests_have_what_they_use(day):
    """Guests use more than they have, after a burst, in less than a thousandth of the time."""
    print(f"starved {day.starved} of {day.guest_minutes} guest minutes")
    assert day.starved < day.guest_minutes / 1000


def test_a_guest_that_does_not_give_gets_what_it_needs(day):
    """It grows by an eighth of its memory just then, and can but say that it uses all it has: it
    gets a margin a minute.
    """
    print(f"{day.grown} grew while stuck, starved for {day.longest} minutes at most")
    assert day.grown > 100
    assert day.longest <= 5


def test_balloons_move_seldom(day):
    """By count: a guest's share changes all day long, its target far less often."""
    per_hour = day.changes / GUESTS / 24
    print(f"{per_hour:.2f} changes an hour, {day.turns} of {day.changes} turned back in 10 minutes")
    assert per_hour < 2
    assert day.turns < day.changes / 50


def test_memory_is_used(day):
    """What guests use, of what they have."""
    print(f"least of all beyond the budget in {day.missing} minutes")
    print(f"used {day.used / day.held:.1%} of what they have")
    assert day.used / day.held > 0.5
