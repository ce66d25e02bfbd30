# SPDX-License-Identifier: GPL-2.0
"""How much memory each of several guests should have, of a budget that is not enough for all.

Plain integers, bytes all of them; nothing here reads a clock or asks anybody. Each round the caller
says what is, and decide() answers with the targets that are to change. After oVirt's MOM.

What a guest needs is what it has less what is available in it. Its *least* is that and a margin, or
its floor. If the least of all is within the budget, a guest's *fair share* is its least and a part
of what lies between that and all of its memory: the same part for every guest, times its weight,
so that the shares add up to the budget. Otherwise no guest gets more than its least, and what the
budget has left is given in proportion to what they lack, times their weights.

Memory is only taken when somebody wants it: the host, while more than the budget is in use, or a
guest that has less than its least, or far less than its fair share. It is taken from those furthest
above their fair share; never below that, no more than a step in a round, and never from a guest of
which nothing is known or that gives nothing: that keeps what it has. It is given out of what the
budget has left now, not of what has been asked back, so that the guests together never get beyond
the budget.

A guest that *thrashes* (it reads again and again what it had to drop, whatever it says is
available) gives nothing. What it is to get for that is in its floor.
"""

import dataclasses
from collections.abc import Sequence

MIB = 1 << 20
# Targets are whole units, so that a balloon can take blocks.
UNIT = MIB
PARTS = 10_000
# Of a guest of which nothing else is said.
WEIGHT = 100


@dataclasses.dataclass(frozen=True)
class Rules:
    """The constants, in ten thousandths of a guest's memory if nothing else is said."""

    # What a guest has beyond what it needs, in ten thousandths of its need...
    margin: int = 1_000
    # ...but as much as this, or a sixth of a small guest: more than what the driver holds back.
    margin_least: int = 80 * MIB
    # The least for a guest that has no floor of its own.
    floor: int = 2_500
    # The most that is taken from a guest in a round.
    step: int = 500
    # A guest is left alone that is this near to its fair share.
    hysteresis: int = 250
    # No change is smaller than this, but to keep the budget.
    ignore: int = 25


@dataclasses.dataclass(slots=True)
class Vm:
    """A guest as it is now."""

    name: str
    # All of its memory.
    maximum: int
    # What it has: its memory less its balloon.
    actual: int
    # What it was last asked to have.
    target: int
    # What it cannot do without, of `actual`. None: it is not known, so nothing may be taken.
    need: int | None
    floor: int | None = None
    # Whether there is any use in asking for memory back.
    may_take: bool = True
    # Its part of what is shared out, by that of others.
    weight: int = WEIGHT
    # It reads what it had to drop, so it can spare less than it says is available.
    thrashes: bool = False
    # Whether its need was seen since memory was taken last, and not long ago. If not, no more is
    # taken: it may be in use by now.
    fresh: bool = True

    @property
    def hold(self) -> int:
        """What it has, or may take without a further word."""
        return max(self.actual, self.target)


@dataclasses.dataclass(frozen=True)
class Decision:
    """New targets by name, and what they rest on."""

    targets: dict[str, int]
    least: dict[str, int]
    fair: dict[str, int]
    # By how much the least of all is beyond the budget.
    missing: int
    # What the host and guests with less than their least lack now.
    short: int = 0


def up(size: int) -> int:
    """The next whole unit."""
    return -(-size // UNIT) * UNIT


def down(size: int) -> int:
    """The unit below."""
    return size // UNIT * UNIT


def least_of(vm: Vm, rules: Rules) -> int:
    """What a guest is not to be without, or keeps anyway."""
    if vm.need is None:
        return vm.hold
    kept = 0 if vm.may_take else vm.hold
    if vm.thrashes:
        kept = vm.hold
    margin = max(vm.need * rules.margin // PARTS, min(rules.margin_least, vm.maximum // 6))
    floor = vm.maximum * rules.floor // PARTS if vm.floor is None else vm.floor
    return max(kept, min(vm.maximum, up(max(vm.need + margin, floor))))


def fair_shares(budget: int, vms: Sequence[Vm], least: dict[str, int]) -> dict[str, int]:
    """What each would have if all was given out by the rules at once.

    No more than its least for a guest that would not give it back.
    """
    base = least
    bound = {vm.name: vm.maximum if vm.need is not None and vm.may_take else 0 for vm in vms}
    if sum(least.values()) > budget:
        base, bound = {vm.name: min(least[vm.name], vm.hold) for vm in vms}, least
    spare = max(0, budget - sum(base.values()))
    between = {name: max(0, bound[name] - base[name]) for name in base}
    parts = share_out(spare, between, {vm.name: vm.weight for vm in vms})
    return {name: base[name] + parts[name] for name in base}


def share_out(spare: int, wanted: dict[str, int], weights: dict[str, int]) -> dict[str, int]:
    """The same part of what each wants, times its weight; nobody gets more than it wants."""
    given: dict[str, int] = {}
    while True:
        left = [name for name in wanted if name not in given]
        total = sum(wanted[name] * weights[name] for name in left)
        room = spare - sum(given.values())
        full = [name for name in left if weights[name] * room >= total]
        if not full:
            parts = {name: down(wanted[name] * weights[name] * room // total) for name in left}
            return given | parts
        given |= {name: wanted[name] for name in full}


def decide(
    budget: int, vms: Sequence[Vm], rules: Rules | None = None, give_out: bool = True
) -> Decision:
    """The targets that are to change in this round.

    Without `give_out` no guest gets any more: so much of the budget may be in use elsewhere. Memory
    is then taken for the host only.
    """
    rules = rules or Rules()
    least = {vm.name: least_of(vm, rules) for vm in vms}
    fair = fair_shares(budget, vms, least)
    planned = {vm.name: keep_asking(vm, least[vm.name]) for vm in vms}
    room = budget - sum(vm.hold for vm in vms)
    coming = sum(vm.hold - planned[vm.name] for vm in vms)
    urgent, wanted = {}, {}
    for vm in vms:
        if not give_out:
            urgent[vm.name] = wanted[vm.name] = 0
            continue
        goal = urgent_goal(vm, rules, min(least[vm.name], fair[vm.name]))
        urgent[vm.name] = goal - vm.hold
        wanted[vm.name] = max(goal, distant_goal(vm, rules, fair[vm.name])) - vm.hold
    short = sum(urgent.values()) - room - coming
    take(vms, rules, fair, planned, short, short + sum(wanted.values()) - sum(urgent.values()))
    give(vms, rules, planned, room, urgent, wanted)
    targets = {vm.name: planned[vm.name] for vm in vms if planned[vm.name] != vm.target}
    missing = max(0, sum(least.values()) - budget)
    return Decision(targets, least, fair, missing, max(0, sum(urgent.values()) - room))


def keep_asking(vm: Vm, least: int) -> int:
    """The target as it stands, unless it would now take what the guest needs."""
    if vm.target >= vm.actual:
        return vm.target
    return max(vm.target, min(vm.actual, least))


def urgent_goal(vm: Vm, rules: Rules, least: int) -> int:
    """Its least, for a guest that has less."""
    return least if least - vm.hold > vm.maximum * rules.ignore // PARTS else vm.hold


def distant_goal(vm: Vm, rules: Rules, fair: int) -> int:
    """Its fair share, for a guest that has far less, or if that is all of its memory."""
    if fair == vm.maximum > vm.hold or fair - vm.hold >= vm.maximum * rules.hysteresis // PARTS:
        return fair
    return vm.hold


def take(vms, rules, fair, planned, short, all_wanted) -> None:
    """Lower targets until what is wanted will be there; for small change only if it is `short`."""
    candidates = [vm for vm in vms if vm.fresh and planned[vm.name] > fair[vm.name]]
    candidates.sort(key=lambda vm: (planned[vm.name] - fair[vm.name]) / vm.maximum, reverse=True)
    for vm in candidates:
        ignored = planned[vm.name] - fair[vm.name] <= vm.maximum * rules.ignore // PARTS
        if (short if ignored else all_wanted) <= 0:
            break
        step = vm.maximum * rules.step // PARTS
        target = min(planned[vm.name], max(fair[vm.name], up(vm.actual - step)))
        short -= planned[vm.name] - target
        all_wanted -= planned[vm.name] - target
        planned[vm.name] = target


def give(vms, rules, planned, room, urgent, wanted) -> None:
    """Raise targets out of what the budget has left: those in need first, then the furthest off."""
    for goals in (urgent, wanted):
        asking = [vm for vm in vms if goals[vm.name] > 0]
        for vm in sorted(asking, key=lambda vm: goals[vm.name] / vm.maximum, reverse=True):
            if room <= 0:
                return
            given = max(0, planned[vm.name] - vm.hold)
            more = missing = goals[vm.name] - given
            if more > room:
                more = down(room)
            if more > vm.maximum * rules.ignore // PARTS or 0 < more == missing:
                planned[vm.name] = vm.hold + given + more
                room -= more
