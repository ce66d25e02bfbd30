# SPDX-License-Identifier: GPL-2.0
"""`balloonctl auto`: what the policy is told, and what is made of its decisions."""

import asyncio
import contextlib
import dataclasses
import json
import math
import pathlib
from collections.abc import Callable

from tooling.metrics import MetricsError, replace_file
from tooling.sizes import show_size

from . import policy
from .pressure import HostUnknown, Watch
from .vms import Machine, NoBalloon, Sources, State, VmError, VmGone

# A guest is asked for statistics this many times an interval, so that each round has new ones.
POLLS = 2
# Statistics count for so many of the times at which there should have been new ones.
STALE = 3
# A guest that has given nothing for so many rounds is stuck, and not asked again for so many.
STUCK, REST = 3, 12
AT_ONCE = 64


@dataclasses.dataclass
class Track:
    """What is remembered of a VM from round to round."""

    vm: Machine
    state: State
    target: int
    # The state was not read: it may have all of its memory, so that is what counts.
    assumed: bool = False
    need: int | None = None
    # Rounds since there were new statistics, or None before the first.
    age: int | None = None
    # Which statistics were the latest when memory was taken last.
    taken_at: int | None = None
    # Rounds in which the guest gave nothing of what it was asked for.
    still: int = 0
    rests: int = 0
    # How often the guest is asked for statistics, in seconds.
    polling: int | None = None
    watch: Watch = dataclasses.field(default_factory=Watch)


class Controller:
    """Keeps a set of VMs, which may come and go, to a budget."""

    def __init__(
        self,
        sources: Sources,
        budget: int | None,
        rules: policy.Rules,
        floors: dict[str, int],
        interval: float,
        say: Callable[[str], None],
        dry_run: bool = False,
        weights: dict[str, int] | None = None,
        host: Callable[[int], int] | None = None,
        state: pathlib.Path | None = None,
    ):
        self.sources = sources
        self.budget = budget
        self.rules = rules
        self.floors = floors
        self.interval = interval
        self.say = say
        self.dry_run = dry_run
        self.weights = weights or {}
        # The budget that the host's own state allows, by what the VMs hold.
        self.host = host
        self.state = state
        self.tracks: dict[str, Track] = {}
        self.problems: dict[str, str] = {}
        # VMs that never said how much memory they have.
        self.unknown: set[str] = set()
        # Where polling was set here, and to what: also of VMs that are gone, which may come back.
        self.ours: dict[str, int] = self.remembered("polling")
        # Of VMs that were not seen yet, what was learnt before; and what was written of all that.
        self.learnt: dict[str, int] = self.remembered("learnt")
        self.written = ""
        # VMs of which only free memory is known, which was said.
        self.only_free: set[str] = set()
        # What is asked of VMs that have not answered yet. Nobody else waits for them.
        self.pending: dict[str, asyncio.Task] = {}
        self.found: dict[str, Machine] = {}
        self.found_problem: VmError | None = None
        # VMs with a floor that were never there.
        self.awaited: set[str] | None = None
        # For so many rounds the budget was not enough.
        self.missing = 0
        self.told = False
        # In the last round: somebody lacked memory; what was left of the budget; and what each had
        # beyond its least.
        self.wanted = False
        self.room = 0
        self.beyond: dict[str, int] = {}

    def remembered(self, what: str) -> dict[str, int]:
        """What one before this one knew of VMs, and had no time to put right."""
        if self.state is None:
            return {}
        try:
            found = json.loads(self.state.read_text(encoding="utf-8")).get(what, {})
            return {str(name): int(number) for name, number in found.items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, TypeError, AttributeError) as error:
            self.say(f"{self.state}: not read: {error}")
            return {}

    def remember(self) -> None:
        """For one after this, which may have been killed: if there is anything new."""
        if self.state is None:
            return
        known = {"polling": self.ours, "learnt": self.learnt | self.learnt_now()}
        text = json.dumps({what: values for what, values in known.items() if values}) + "\n"
        if text == self.written:
            return
        try:
            if any(known.values()):
                replace_file(self.state, text, 0o600)
            else:
                self.state.unlink(missing_ok=True)
            self.written = text
            self.problem("state", None)
        except OSError as error:
            self.problem("state", f"{self.state}: {error.strerror}")

    def learnt_now(self) -> dict[str, int]:
        """What guests are not to have less than, for they have thrashed."""
        return {
            name: track.watch.learnt for name, track in self.tracks.items() if track.watch.learnt
        }

    @contextlib.contextmanager
    def named_problem(self, name: str):
        """What goes wrong in here is said once, and nothing ends for it."""
        try:
            yield
        except MetricsError as error:
            self.problem(name, str(error))
        else:
            self.problem(name, None)

    async def round(self) -> dict:
        """Look, decide, act; a report."""
        await self.look()
        vms = [self.as_seen(name, track) for name, track in sorted(self.tracks.items())]
        budget = self.budget_for(vms)
        decision = policy.decide(budget, vms, self.rules, give_out=not self.unknown)
        # What is given to see whether it helps is nothing that a guest is known to need.
        known = [self.as_seen(name, track, False) for name, track in sorted(self.tracks.items())]
        firm = policy.decide(budget, known, self.rules, give_out=not self.unknown)
        self.wanted = firm.short > 0 or firm.missing > 0
        self.room = max(0, budget - sum(vm.hold for vm in vms))
        self.beyond = {vm.name: max(0, vm.hold - firm.least[vm.name]) for vm in known}
        self.tell_missing(firm.missing, [vm.name for vm in vms if vm.need is None])
        if not self.dry_run:
            await self.all_in_time(
                self.apply, {n: s for n, s in decision.targets.items() if n not in self.pending}
            )
        for vm in vms:
            if (size := decision.targets.get(vm.name)) is not None:
                self.say(
                    f"{vm.name}: {show_size(vm.actual)} -> {show_size(size)} (needs"
                    f" {show_size(vm.need)}, least {show_size(decision.least[vm.name])},"
                    f" fair {show_size(decision.fair[vm.name])})"
                )
        self.remember()
        return {
            "budget": budget,
            "total": sum(vm.actual for vm in vms),
            "unknown": len(self.unknown),
            "missing": firm.missing,
            "problems": self.problems,
            "vms": [
                {
                    **dataclasses.asdict(vm),
                    "target": decision.targets.get(vm.name, vm.target),
                    "least": decision.least[vm.name],
                    "fair": decision.fair[vm.name],
                }
                for vm in vms
            ],
        }

    def budget_for(self, vms: list[policy.Vm]) -> int:
        """What was said, or less if the host is short of memory."""
        held = sum(vm.hold for vm in vms)
        budgets = [] if self.budget is None else [self.budget]
        if self.host:
            try:
                budgets.append(self.host(held))
            except HostUnknown as error:
                self.problem("host", str(error))
                budgets.append(held)
            else:
                self.problem("host", None)
        return min(budgets)

    def tell_missing(self, missing: int, silent: list[str]) -> None:
        """Say when the budget is not enough; in the first rounds too little is known of the VMs."""
        self.missing = self.missing + 1 if missing else 0
        if self.missing == STALE:
            text = f"the VMs need {show_size(missing)} more than the budget has"
            if silent:
                text += f"; no statistics, so no less than they have, of: {', '.join(silent)}"
            self.say(text)
            self.told = True
        elif self.told and not missing:
            self.say("the budget is enough again")
            self.told = False

    async def look(self) -> None:
        """Read all VMs that there are; those that are gone are forgotten."""
        try:
            found = await self.find()
        except VmError as error:
            self.problem("", str(error))
            found = {name: track.vm for name, track in self.tracks.items()}
        else:
            self.problem("", None)
            for name in (set(self.tracks) | self.unknown) - set(found):
                self.forget(name)
            self.await_those(set(self.floors) - set(found))
        await self.all_in_time(self.look_at, found)
        for name in found:
            if name in self.pending:
                self.cannot_read(name, found[name], VmError("it has not answered yet"))

    async def find(self) -> dict[str, Machine]:
        """All VMs, if whoever knows of them answers in time."""
        await self.all_in_time(self.find_them, {"": None})
        if "" in self.pending:
            raise VmError("where the VMs are looked for there is no answer yet")
        if self.found_problem:
            raise self.found_problem
        return dict(self.found)

    async def find_them(self, _name: str, _none: None) -> None:
        """As a task that may last."""
        try:
            self.found = await self.sources.find()
        except VmError as error:
            self.found_problem = error
        else:
            self.found_problem = None

    async def all_in_time(self, function, arguments: dict) -> None:
        """Do something for many VMs. Whoever takes longer than half an interval is not waited for,
        and is not asked for anything else until that is done.
        """
        limit = asyncio.Semaphore(AT_ONCE)

        async def limited(name, argument):
            async with limit:
                await function(name, argument)

        for name, argument in arguments.items():
            if name not in self.pending:
                self.pending[name] = asyncio.ensure_future(limited(name, argument))
        started = [self.pending[name] for name in arguments]
        if not started:
            return
        try:
            await asyncio.wait(started, timeout=self.interval / 2)
        finally:
            done = {name: task for name, task in self.pending.items() if task.done()}
            for name in done:
                del self.pending[name]
        for task in done.values():
            # What is unexpected is not to be lost.
            task.result()

    def await_those(self, absent: set[str]) -> None:
        """A floor for a VM that is not there may be for one to come, or misspelt."""
        if self.awaited is None:
            self.awaited = absent
            for name in sorted(absent):
                self.say(f"there is no VM {name} (--min)")
        for name in sorted(self.awaited - absent):
            self.say(f"{name}: is there now (--min {show_size(self.floors[name])})")
        self.awaited &= absent

    async def look_at(self, name: str, vm: Machine) -> None:
        """Read one VM."""
        try:
            state = await vm.read()
        except VmGone:
            self.forget(name)
            return
        except VmError as error:
            self.cannot_read(name, vm, error)
            return
        self.unknown.discard(name)
        track = self.tracks.get(name)
        if track is None or track.assumed:
            self.say(f"{name}: {show_size(state.actual)} of {show_size(state.maximum)}")
            track = Track(vm, state, state.actual)
            track.watch.learnt = min(state.maximum, self.learnt.pop(name, 0))
            self.tracks[name] = track
        else:
            track.vm = vm
            self.update(track, state)
        if state.target is not None:
            track.target = state.target
        problem = await self.poll(name, track)
        self.problem(name, problem)
        if state.says_only_free and name not in self.only_free:
            self.only_free.add(name)
            self.say(f"{name}: its guest does not say what is available, only what is free")

    def cannot_read(self, name: str, vm: Machine, error: VmError) -> None:
        """It may well run, so its memory is not for others."""
        text, track = str(error), self.tracks.get(name)
        if track is None and error.maximum is None:
            self.unknown.add(name)
            self.problem(name, f"{text}; its size is not known, so nothing is given to the others")
            return
        self.unknown.discard(name)
        if track is None or isinstance(error, NoBalloon):
            # Never seen, or its balloon was unplugged, and what was in it is the guest's again.
            state = State(error.maximum, error.maximum)
            track = self.tracks[name] = Track(vm, state, state.actual, assumed=True)
        # Else it has what it had.
        track.age = track.need = None
        if track.assumed:
            text += f"; it counts with all of its {show_size(track.state.maximum)}"
        self.problem(name, text)

    def update(self, track: Track, state: State) -> None:
        """Take over what was read."""
        before, track.state = track.state, state
        if state.updated != before.updated:
            track.age = 0
        elif track.age is not None:
            track.age += 1
        if track.age == 0:
            # When they were made the guest had one or the other, or something between: it needs no
            # more than this.
            has = max(before.actual, state.actual)
            track.need = None if state.available is None else max(0, has - state.available)
            step = state.maximum * self.rules.step // policy.PARTS
            track.watch.look(state, step, self.wanted, self.spare_for(track.vm.name))
        late = max(1, (track.polling or 0) / self.interval) * STALE
        if track.age is None or track.age > late:
            track.age = track.need = None
        track.rests = max(0, track.rests - 1)
        if track.target < state.actual and state.actual >= before.actual:
            track.still += 1
        else:
            track.still = 0
        if track.still >= STUCK:
            track.still, track.rests = 0, REST

    def spare_for(self, name: str) -> int:
        """How much more a guest may be given to see whether it helps. It may be of use to others,
        so that is half of what they have beyond their least.
        """
        others = sum(size for other, size in self.beyond.items() if other != name)
        return self.room + others // 2

    async def poll(self, name: str, track: Track) -> str | None:
        """See to it that a guest is asked for statistics, if nobody has: in a dry run too. Returns
        what is wrong.
        """
        if track.polling is not None and track.age is not None:
            return None
        try:
            track.polling = await track.vm.polling()
            if not track.polling:
                track.polling = max(1, math.floor(self.interval / POLLS))
                self.ours[name] = track.polling
                # Before it is done.
                self.remember()
                await track.vm.set_polling(track.polling)
            elif track.polling != self.ours.get(name):
                # Somebody else's.
                self.ours.pop(name, None)
        except VmError as error:
            return str(error)
        return None

    def as_seen(self, name: str, track: Track, trials: bool = True) -> policy.Vm:
        """A VM for the policy, with what it is given as a trial, or without."""
        state, watch = track.state, track.watch
        learnt = watch.learnt if trials else watch.confirmed
        need = track.need if track.age is not None else None
        floor = self.floors.get(name)
        floor = None if floor is None else min(floor, state.maximum)
        if learnt:
            least = state.maximum * self.rules.floor // policy.PARTS if floor is None else floor
            floor = max(least, learnt)
        return policy.Vm(
            name,
            state.maximum,
            state.actual,
            track.target,
            need,
            floor,
            may_take=not track.rests,
            weight=self.weights.get(name, policy.WEIGHT),
            thrashes=trials and watch.thrashes and need is not None,
            fresh=track.taken_at != state.updated and (track.age or 0) <= STALE and not watch.rises,
        )

    async def apply(self, name: str, size: int) -> None:
        """Ask a VM for a size."""
        track = self.tracks[name]
        # Interrupted it may be done all the same.
        before, track.target = track.target, size
        if size < min(before, track.state.actual):
            track.taken_at = track.state.updated
        try:
            await track.vm.set_target(size)
        except VmError as error:
            track.target = before
            self.problem(name, str(error))

    def problem(self, name: str, text: str | None) -> None:
        """Say what is wrong with a VM, once."""
        if text is None:
            self.problems.pop(name, None)
        elif self.problems.get(name) != text:
            self.problems[name] = text
            self.say(f"{name}: {text}" if name else text)

    def forget(self, name: str) -> None:
        """A VM is gone."""
        if self.tracks.pop(name, None):
            self.say(f"{name}: gone")
        self.problems.pop(name, None)
        self.unknown.discard(name)

    async def end(self) -> None:
        """Leave the VMs with what they have: no request stays open, polling is as it was."""
        for task in self.pending.values():
            task.cancel()
        await asyncio.gather(*self.pending.values(), return_exceptions=True)
        self.pending.clear()
        await all_of(self.release(track) for track in self.tracks.values() if not track.assumed)
        self.remember()

    async def release(self, track: Track) -> None:
        """Leave one VM; it may be gone."""
        try:
            if not self.dry_run:
                state = await track.vm.read()
                target = track.target if state.target is None else state.target
                if target < state.actual:
                    await track.vm.set_target(state.actual)
            if track.vm.name in self.ours:
                await track.vm.set_polling(0)
                self.ours.pop(track.vm.name, None)
        except VmError as error:
            self.problem(track.vm.name, str(error))


async def all_of(coroutines) -> None:
    """Many at once, but not all of a thousand. What goes wrong first is what is raised."""
    limit = asyncio.Semaphore(AT_ONCE)

    async def limited(coroutine):
        async with limit:
            await coroutine

    try:
        async with asyncio.TaskGroup() as tasks:
            for coroutine in coroutines:
                tasks.create_task(limited(coroutine))
    except BaseExceptionGroup as group:
        raise group.exceptions[0] from None
