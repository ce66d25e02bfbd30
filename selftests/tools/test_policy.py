# SPDX-License-Identifier: GPL-2.0
"""How memory is shared out among guests: properties of each decision, and of many in a row."""

import dataclasses

from ballooning.policy import MIB, PARTS, UNIT, Rules, Vm, decide, least_of
from hypothesis import given
from hypothesis import strategies as st

PAGE = 4096
GIB = 1 << 30
RULES = Rules()


def sizes(low, high):
    """Whole pages."""
    return st.integers(low // PAGE, high // PAGE).map(lambda pages: pages * PAGE)


@st.composite
def guests(draw, known=None):
    """Any state that a guest can be in, also one that no sane host asks for."""
    maximum = draw(st.one_of(st.sampled_from([GIB // 2, GIB, 4 * GIB]), sizes(GIB // 4, 64 * GIB)))
    actual = draw(st.one_of(st.just(maximum), sizes(maximum // 8, maximum)))
    target = draw(st.one_of(st.just(actual), sizes(maximum // 8, maximum)))
    need = draw(st.one_of(st.integers(0, actual), st.integers(actual - actual // 8, actual)))
    if known is False or known is None and draw(st.integers(0, 5)) == 0:
        need = None
    floor = draw(st.one_of(st.none(), sizes(0, maximum)))
    return Vm(
        "",
        maximum,
        actual,
        target,
        need,
        floor,
        may_take=draw(st.integers(0, 5)) > 0,
        weight=draw(st.sampled_from([100, 100, 1, 10_000])),
        thrashes=need is not None and draw(st.integers(0, 9)) == 9,
    )


@st.composite
def hosts(draw, most=8, **options):
    """A budget and guests. Mostly a budget that means something for them."""
    vms = [
        dataclasses.replace(vm, name=f"vm{number}")
        for number, vm in enumerate(draw(st.lists(guests(**options), min_size=1, max_size=most)))
    ]
    near = draw(st.sampled_from([held(vms), sum(least_of(vm, RULES) for vm in vms)]))
    total = sum(vm.maximum for vm in vms)
    around = st.integers(near - near // 20, near + near // 10)
    between = st.integers(min(near, total), max(near, total))
    return draw(st.one_of(around, between, st.integers(1, total + total // 4))), vms


def after(vms, decision):
    """The same guests, asked for what was decided."""
    return [dataclasses.replace(vm, target=decision.targets.get(vm.name, vm.target)) for vm in vms]


def held(vms):
    """What all have or may take."""
    return sum(max(vm.actual, vm.target) for vm in vms)


@given(hosts())
def test_nothing_is_given_that_the_budget_has_not(host):
    """Within the budget all stay within it; beyond, they get no further."""
    budget, vms = host
    assert held(after(vms, decide(budget, vms))) <= max(budget, held(vms))


@given(hosts())
def test_while_nothing_is_given_out_only_the_host_gets_memory(host):
    """What is taken is what the budget is exceeded by, and what stays away from all others."""
    budget, vms = host
    new = after(vms, decide(budget, vms, give_out=False))
    taken = 0
    for vm, then in zip(vms, new, strict=True):
        assert then.hold <= vm.hold
        taken += min(vm.target, vm.actual) - min(then.target, vm.actual)
    step = max(vm.maximum for vm in vms) * RULES.step // PARTS
    assert taken <= max(0, held(vms) - budget) + step


@given(hosts())
def test_what_a_guest_needs_is_not_taken(host):
    """No target is below need, margin and floor, as far as the guest had them."""
    budget, vms = host
    for old, new in zip(vms, after(vms, decide(budget, vms)), strict=True):
        least = least_of(old, RULES)
        assert new.target >= min(old.actual, least)
        if old.need is not None:
            assert least >= min(old.maximum, old.need + min(80 * MIB, old.maximum // 6))
            assert least >= min(old.maximum, old.floor or 0)


@given(hosts(known=False))
def test_of_a_guest_without_statistics_nothing_is_taken(host):
    """Nor is it asked any longer for what it was asked for before."""
    budget, vms = host
    for old, new in zip(vms, after(vms, decide(budget, vms)), strict=True):
        assert new.target >= old.actual


@given(hosts())
def test_of_a_guest_that_gives_nothing_nothing_is_taken(host):
    """But it gets what it needs, as any other does."""
    budget, vms = host
    stuck = [dataclasses.replace(vm, may_take=False) for vm in vms]
    decision = decide(budget, stuck)
    for old, new in zip(stuck, after(stuck, decision), strict=True):
        assert new.target >= old.actual
        assert decision.least[old.name] >= least_of(dataclasses.replace(old, may_take=True), RULES)
    if sum(decision.least.values()) <= budget:
        for old, new in zip(stuck, after(stuck, decision), strict=True):
            ignored = old.maximum * RULES.ignore // PARTS
            assert new.hold >= decision.least[old.name] - ignored


@given(hosts())
def test_of_a_guest_that_thrashes_nothing_is_taken(host):
    """Nor what it was given and has not made use of yet."""
    budget, vms = host
    vms = [dataclasses.replace(vm, thrashes=vm.need is not None) for vm in vms]
    decision = decide(budget, vms)
    for old, new in zip(vms, after(vms, decision), strict=True):
        if old.thrashes:
            assert new.hold >= old.hold


@given(hosts())
def test_a_step_is_bounded(host):
    """What is newly asked for is no more than a step below what the guest has."""
    budget, vms = host
    for old, new in zip(vms, after(vms, decide(budget, vms)), strict=True):
        if new.target < old.target:
            assert old.actual - new.target <= old.maximum * RULES.step // PARTS
        assert 0 < new.target <= old.maximum


@given(hosts())
def test_small_changes_are_not_made(host):
    """But to keep the budget, for a guest in need, or to the end of what is wanted."""
    budget, vms = host
    decision = decide(budget, vms)
    for old, new in zip(vms, after(vms, decision), strict=True):
        if new.target > old.hold:
            small = new.target - old.hold <= old.maximum * RULES.ignore // PARTS
            assert not small or new.target in (decision.fair[old.name], old.maximum)


@given(hosts())
def test_targets_are_whole_units(host):
    """So that a balloon can take blocks: as sizes, or as changes of what a guest has."""
    budget, vms = host
    for old, new in zip(vms, after(vms, decide(budget, vms)), strict=True):
        if new.target not in (old.target, old.actual, old.maximum):
            assert 0 in (new.target % UNIT, (new.target - old.hold) % UNIT)


@given(hosts())
def test_shares_are_fair(host):
    """They use up the budget, and all guests get the same part of what they could use."""
    budget, vms = host
    vms = [dataclasses.replace(vm, weight=100) for vm in vms]
    decision = decide(budget, vms)
    fair, least = decision.fair, decision.least
    known = [vm for vm in vms if vm.need is not None and vm.may_take]
    if sum(least.values()) > budget:
        assert all(fair[vm.name] <= least[vm.name] for vm in vms)
        return
    assert sum(fair.values()) <= budget
    everything = sum(vm.maximum if vm in known else least[vm.name] for vm in vms)
    assert sum(fair.values()) >= min(budget, everything) - UNIT * len(vms)
    for one in known:
        for other in known:
            # a/b = c/d but for the rounding to units
            a, b = fair[one.name] - least[one.name], one.maximum - least[one.name]
            c, d = fair[other.name] - least[other.name], other.maximum - least[other.name]
            assert abs(a * d - c * b) <= UNIT * max(b, d)


def settle(budget, vms, rounds=200):
    """Guests that do as they are asked at once, with a constant need, until nothing changes."""
    changes = {vm.name: [] for vm in vms}
    for number in range(rounds):
        decision = decide(budget, vms)
        if not decision.targets and number:
            return vms, changes, number
        for name, target in decision.targets.items():
            changes[name].append(target)
        vms = [
            dataclasses.replace(
                vm, actual=vm.target, need=None if vm.need is None else min(vm.need, vm.target)
            )
            for vm in after(vms, decision)
        ]
    raise AssertionError(f"no end after {rounds} rounds: {changes}")


@given(hosts())
def test_it_comes_to_rest(host):
    """In as many rounds as the steps take; and no guest is sent up and down on the way."""
    budget, vms = host
    vms = [dataclasses.replace(vm, target=vm.actual, thrashes=False) for vm in vms]
    start = {vm.name: vm.actual for vm in vms}
    resting, changes, _ = settle(budget, vms)
    for name, targets in changes.items():
        path = [start[name], *targets]
        rising = [b > a for a, b in zip(path, path[1:], strict=False)]
        assert len(set(rising)) <= 1, path
    decision = decide(budget, resting)
    assert not decision.targets
    if decision.missing:
        return
    # The budget could be met, so it is; nobody lacks its least, and nobody is far below its share.
    assert held(resting) <= budget
    # But for what is small change to all who have it, of whom one may be a hundred times as large.
    beyond = any(
        vm.actual - decision.fair[vm.name] > vm.maximum * RULES.ignore // PARTS for vm in resting
    )
    for vm in resting:
        assert vm.actual >= decision.least[vm.name] - vm.maximum * RULES.ignore // PARTS
        near = vm.actual > decision.fair[vm.name] - vm.maximum * RULES.hysteresis // PARTS
        assert near or not beyond


# How much a need goes up, at most, where nothing has happened.
NOISE = GIB // 50


@given(st.integers(2, 8), st.integers(5 * NOISE // 4, GIB // 2), st.randoms(use_true_random=False))
def test_noise_moves_nothing(count, spare, random):
    """While each guest has more beyond its least than its need goes up and down."""
    vms = [Vm(f"vm{n}", GIB, GIB, GIB, random.randrange(GIB // 10, GIB // 4)) for n in range(count)]
    # Who needs most has the smallest part of what is left over, but nine tenths of an equal one.
    budget = sum(least_of(vm, RULES) for vm in vms) + count * spare
    vms, _, _ = settle(budget, vms)
    needs = {vm.name: vm.need for vm in vms}
    for _ in range(100):
        vms = [dataclasses.replace(vm, need=needs[vm.name] + random.randrange(NOISE)) for vm in vms]
        assert not decide(budget, vms).targets


def wanted_of(vm, decision):
    """What a guest lacks, if that is worth a change: of its least, or far more of its share."""
    fair = decision.fair[vm.name]
    lacks = min(decision.least[vm.name], fair) - vm.hold
    below = fair - vm.hold
    if below >= vm.maximum * RULES.hysteresis // PARTS or fair == vm.maximum:
        return max(0, below)
    return lacks if lacks > vm.maximum * RULES.ignore // PARTS else 0


@given(hosts())
def test_what_is_taken_is_wanted(host):
    """By the host or by a guest, but for the rest of a step. So where the budget is so tight that
    noise has somebody lack something, no more moves than that; and if nobody does, nothing.
    """
    budget, vms = host
    decision = decide(budget, vms)
    new = after(vms, decision)
    taken = sum(
        max(0, min(vm.target, vm.actual) - min(then.target, vm.actual))
        for vm, then in zip(vms, new, strict=True)
    )
    wanted = sum(wanted_of(vm, decision) for vm in vms)
    step = max(vm.maximum for vm in vms) * RULES.step // PARTS
    assert taken <= max(0, held(vms) - budget + wanted) + step
    if held(vms) <= budget and not wanted and all(vm.target == vm.actual for vm in vms):
        assert not decision.targets


def test_a_guest_in_need_gets_what_the_others_do_not():
    """By example: one grows, the others give steps of 5 % until it has its least."""
    vms = [Vm(name, 1024 * MIB, 512 * MIB, 512 * MIB, 200 * MIB) for name in "abcd"]
    budget = 2048 * MIB
    assert not decide(budget, vms).targets
    vms[0] = dataclasses.replace(vms[0], need=500 * MIB)
    decision = decide(budget, vms)
    assert decision.least["a"] == 580 * MIB
    # There is no room in the budget yet. The others are far above their fair share, by a step.
    assert decision.targets == {name: 461 * MIB for name in "bcd"}
    vms = [dataclasses.replace(vm, actual=vm.target) for vm in after(vms, decision)]
    decision = decide(budget, vms)
    # All that there is: more than its least, for its fair share is more.
    assert decision.targets["a"] == (512 + 3 * 51) * MIB
    resting, _, _ = settle(budget, vms)
    assert sum(vm.actual for vm in resting) <= budget
    assert resting[0].actual >= decision.fair["a"] - resting[0].maximum // 40


def test_a_guest_that_gives_nothing_gets_what_it_needs():
    """By example: it has grown. What it gets is its least, though its share might be more."""
    vms = [Vm(name, 1024 * MIB, 512 * MIB, 512 * MIB, 200 * MIB) for name in "ab"]
    stuck = dataclasses.replace(vms[0], need=500 * MIB, may_take=False)
    decision = decide(1536 * MIB, [stuck, vms[1]])
    assert decision.targets["a"] == decision.least["a"] == decision.fair["a"] == 580 * MIB
    # Nothing can be had of it, so all the others get is the rest.
    resting, _, _ = settle(640 * MIB, [dataclasses.replace(vms[0], may_take=False), vms[1]])
    assert [vm.actual for vm in resting] == [512 * MIB, 280 * MIB]


def test_those_in_need_come_first():
    """What there is goes to who lacks its least, not to who is furthest from its share."""
    vms = [
        Vm("idle", 4096 * MIB, 1024 * MIB, 1024 * MIB, 100 * MIB),
        Vm("busy", 1024 * MIB, 500 * MIB, 500 * MIB, 500 * MIB),
        Vm("rich", 4096 * MIB, 3000 * MIB, 3000 * MIB, 100 * MIB),
    ]
    decision = decide((4524 + 60) * MIB, vms)
    assert decision.fair["idle"] > 1900 * MIB
    assert decision.targets.pop("rich") < 3000 * MIB
    assert decision.targets == {"busy": 560 * MIB}


def test_a_little_here_and_there_is_taken_for_a_guest_in_need():
    """Each of many is a little above its share, by less than what is else worth a change."""
    least = least_of(Vm("", GIB, 0, 0, 400 * MIB, 0), RULES)
    vms = [Vm(f"vm{n}", GIB, least + MIB, least + MIB, 400 * MIB, 0) for n in range(40)]
    vms.append(Vm("busy", GIB, least - 30 * MIB, least - 30 * MIB, 400 * MIB, 0))
    budget = sum(vm.actual for vm in vms)
    resting, _, _ = settle(budget, vms)
    assert resting[-1].actual >= least - GIB * RULES.ignore // PARTS


def test_a_request_is_taken_back_when_the_guest_needs_the_memory():
    """The target is still below what the guest has, and it has become too low."""
    vm = Vm("a", 1024 * MIB, 512 * MIB, 300 * MIB, 400 * MIB)
    assert decide(100 * MIB, [vm]).targets == {"a": 480 * MIB}


def test_too_small_a_budget_is_shared_by_what_is_lacking():
    """The least of all is beyond the budget: what there is goes to those who lack most."""
    vms = [
        Vm("a", 1024 * MIB, 300 * MIB, 300 * MIB, 300 * MIB, 500 * MIB),
        Vm("b", 1024 * MIB, 300 * MIB, 300 * MIB, 300 * MIB, 400 * MIB),
    ]
    decision = decide(750 * MIB, vms)
    assert decision.missing == 150 * MIB
    assert decision.targets == {"a": 400 * MIB, "b": 350 * MIB}


def test_those_who_have_most_beyond_their_share_give_first():
    """What one gives is enough, so the other keeps what it has; and who lacks little waits."""
    sizes = {"little": 1024, "much": 1024, "near": 1024, "busy": 440}
    vms = [Vm(n, s * MIB, 0, 0, 350 * MIB if n == "busy" else 200 * MIB) for n, s in sizes.items()]
    budget = 2500 * MIB
    fair = decide(budget, vms).fair
    for vm, off in zip(vms, (7, 50, -20, -30), strict=True):
        vm.actual = vm.target = fair[vm.name] + off * MIB
    assert set(decide(budget, vms).targets) == {"much"}


@given(hosts())
def test_of_a_guest_last_heard_of_long_ago_no_more_is_taken(host):
    """What it was asked for stands, as far as it does not need it."""
    budget, vms = host
    old = [dataclasses.replace(vm, fresh=False) for vm in vms]
    for before, now in zip(old, after(old, decide(budget, old)), strict=True):
        assert now.target >= min(before.target, before.actual)
