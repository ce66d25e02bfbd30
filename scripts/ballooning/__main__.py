# SPDX-License-Identifier: GPL-2.0
"""Give memory to virtual machines and take it back, by their balloons."""

import argparse
import asyncio
import contextlib
import dataclasses
import json
import os
import pathlib
import signal
import sys
import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from tooling import metrics, output
from tooling.arguments import Commands, named_value, port, seconds
from tooling.output import write
from tooling.sizes import MIB, PAGE, in_words, parse_size, sensible, show_size

from . import figures, policy
from .automatic import Controller, all_of
from .pressure import Host
from .vms import Machine, Sources, State, VmError, to_the_end

ERROR, STUCK = 1, 3
SOCKETS = "BALLOONCTL_SOCKETS"
# While a size is waited for, how often to look; and how often a guest that has no statistics for us
# is asked for some.
LOOK_SECONDS, ANSWER_SECONDS = 0.2, 2.5
# A guest with large pages that stays so near to what was asked for gets no nearer.
SETTLE_SECONDS = 1
# Of the table of "status". Where there is no room for all, these go first, in this order.
HEADINGS = ("memory", "target", "actual", "available", "swap in", "swap out", "major faults")
HEADINGS += ("host resident", "statistics")
LEAST_IMPORTANT = ("major faults", "swap out", "swap in", "host resident", "statistics", "target")

EPILOG = f"""\
Where the VMs are (each may be repeated, and all may be used together):
  --vm NAME=SOCKET   a VM whose QEMU serves QMP at a UNIX socket: qemu-system-x86_64 ...
                     -device virtio-balloon-pci -qmp unix:SOCKET,server=on,wait=off
  --sockets DIR      all of DIR/NAME.sock; without any of these, ${SOCKETS}
  --libvirt [URI]    all active domains of libvirt (running or paused), by virsh

A size is what is left to the guest: 512M, 1.5G, a number of bytes, or "max". Beware: 512 is 512
bytes; so little is refused.

Examples:
  balloonctl status --sockets /run/vms
  balloonctl set web 1.5G --vm web=/run/vms/web.sock
  balloonctl auto --budget 12G --min db=2G --libvirt qemu:///system

Exit status: 0 done, 1 error, 2 usage, 3 stuck before the size was reached, 128 and the signal's
number if interrupted ("auto" is done when interrupted).
"""


def main() -> int:
    """The command line."""
    args = parse_arguments()
    try:
        return asyncio.run(run(args))
    except (VmError, metrics.MetricsError) as error:
        print(f"error: {error}", file=sys.stderr)
        return ERROR
    except BrokenPipeError:
        # Whoever read this has enough. Nothing is to be written at exit either.
        output.discard(sys.stdout)
        return ERROR


def parse_arguments(words: list[str] | None = None) -> argparse.Namespace:
    """Commands and options."""
    words = sys.argv[1:] if words is None else words
    given = list(words)
    if words[:1] == ["auto"]:
        words = with_configuration(words)
    common = argparse.ArgumentParser(add_help=False)
    where = common.add_argument_group("virtual machines")
    where.add_argument("--vm", action="append", default=[], metavar="NAME=SOCKET", type=named_path)
    where.add_argument("--sockets", action="append", default=[], metavar="DIR", type=pathlib.Path)
    where.add_argument("--libvirt", nargs="?", const="", metavar="URI")
    common.add_argument("--json", action="store_true", help="print JSON")

    commands = Commands("balloonctl", __doc__, EPILOG, common)
    setting = commands.add("set", set_size, "ask for a size, and wait until the guest has it")
    setting.add_argument("name", metavar="VM")
    setting.add_argument("size", metavar="SIZE")
    setting.add_argument(
        "--patience",
        type=seconds,
        default=10,
        metavar="SECONDS",
        help="how long to go on without any progress (10)",
    )
    setting.add_argument("--no-wait", action="store_true", help="ask only")
    setting.add_argument(
        "--force", action="store_true", help="also for a size that hardly any guest can live with"
    )

    commands.add("status", show_status, "show what the VMs have and use")

    metrics.add_options(
        commands.add("metrics", run_metrics, "print metrics (OpenMetrics); also: --metrics")
    )
    add_auto_options(
        commands.add("auto", run_auto, "keep the VMs to a budget, by what their guests need")
    )

    args = commands.parse(words)
    args.given = given
    if not args.vm and not args.sockets and args.libvirt is None:
        if not os.environ.get(SOCKETS):
            commands.parser.error(
                f"no VMs: --vm NAME=SOCKET, --sockets DIR, --libvirt or ${SOCKETS}"
            )
        args.sockets = [pathlib.Path(os.environ[SOCKETS])]
    return args


# Of "auto", those that are files and those that are percentages.
FILES = {
    "config": "options, one a line, without the dashes; read again on SIGHUP",
    "metrics": "write metrics there, each round",
    "state": "remember there what the next one is to know, should this one be killed",
}
# What holds for as long as it runs.
AT_START = ("listen", "state", "json")
PERCENTAGES = {
    "host-reserve": (None, "what the host keeps available, of its memory (10 if no budget is)"),
    "host-waiting": (
        1000,
        "with --host-reserve: memory is taken while processes of the host wait so long for memory"
        " (10, of the last ten seconds)",
    ),
    "floor": (2500, "the least for a VM without --min, of its memory (25)"),
    "margin": (
        1000,
        "what each has beyond what it needs (10; at least 80 MiB or a sixth of its memory)",
    ),
    "step": (500, "the most that is taken in an interval, of a VM's memory (5)"),
}


def add_auto_options(auto: argparse.ArgumentParser) -> None:
    """Of balloonctl auto."""
    for name, text in FILES.items():
        auto.add_argument(f"--{name}", type=pathlib.Path, metavar="FILE", help=text)
    for name, (default, text) in PERCENTAGES.items():
        auto.add_argument(f"--{name}", type=percent, default=default, metavar="PERCENT", help=text)
    auto.add_argument(
        "--budget", type=size, metavar="SIZE", help="for all VMs; without it, what the host allows"
    )
    auto.add_argument(
        "--weight",
        action="append",
        default=[],
        metavar="VM=NUMBER",
        type=named_weight,
        help="this VM's part of what is left over, by that of others, who have 1",
    )
    auto.add_argument(
        "--min",
        action="append",
        default=[],
        metavar="VM=SIZE",
        type=named_size,
        help="never less for this VM (others: --floor)",
    )
    auto.add_argument(
        "--interval", type=seconds, default=5, metavar="SECONDS", help="how often to look (5)"
    )
    auto.add_argument("--listen", type=port, metavar="PORT", help="serve metrics on 127.0.0.1")
    auto.add_argument("--dry-run", action="store_true", help="say what would be done")


def named_path(text: str) -> tuple[str, pathlib.Path]:
    """NAME=SOCKET"""
    name, value = named_value(text)
    return name, pathlib.Path(value)


def size(text: str) -> int:
    """SIZE"""
    try:
        number = parse_size(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    if number < MIB:
        raise argparse.ArgumentTypeError(f"{text!r} is {number} bytes: a unit is missing (M, G)")
    return number


def named_size(text: str) -> tuple[str, int]:
    """VM=SIZE"""
    name, value = named_value(text)
    return name, size(value)


def named_weight(text: str) -> tuple[str, int]:
    """VM=NUMBER; in hundredths."""
    name, value = named_value(text)
    with contextlib.suppress(ValueError):
        if 0.01 <= float(value) <= 100:
            return name, round(float(value) * policy.WEIGHT)
    raise argparse.ArgumentTypeError(f"{text!r}: a weight is 0.01 to 100, and that of others is 1")


def with_configuration(words: list[str]) -> list[str]:
    """The options of a file, before those of the command line."""
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    finder.add_argument("--config", type=pathlib.Path)
    path = finder.parse_known_args(words)[0].config
    if path is None:
        return words
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        print(f"error: {path}: {error.strerror}", file=sys.stderr)
        raise SystemExit(ERROR) from None
    options = []
    for line in lines:
        parts = line.split(maxsplit=1)
        if parts and not parts[0].startswith("#"):
            options += [f"--{parts[0]}", *(part.strip() for part in parts[1:])]
    return ["auto", *options, *words[1:]]


def percent(text: str) -> int:
    """A percentage, in ten thousandths."""
    with contextlib.suppress(ValueError):
        if 0 <= float(text.removesuffix("%")) <= 100:
            return round(float(text.removesuffix("%")) * 100)
    raise argparse.ArgumentTypeError(f"{text!r} is not a percentage")


async def run(args: argparse.Namespace) -> int:
    """A command, until it is done or a signal comes."""
    number = 0
    task = asyncio.ensure_future(args.function(args))

    def interrupt(signum):
        nonlocal number
        number = signum
        task.cancel()

    for signum in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(signum, interrupt, signum)
    try:
        return await task
    except asyncio.CancelledError:
        return 128 + number


def sources_of(args: argparse.Namespace) -> Sources:
    """Where the VMs are."""
    return Sources(args.vm, args.sockets, args.libvirt)


async def find_vm(args: argparse.Namespace, name: str) -> Machine:
    """The VM of this name."""
    found = await sources_of(args).find()
    if name not in found:
        there = ", ".join(sorted(found)[:10]) or "none"
        raise VmError(f"there is no VM {name} (there are: {there})")
    return found[name]


@contextlib.asynccontextmanager
async def polled(vm: Machine):
    """While in here the guest is asked for its statistics. Yields whether it was before."""
    before = await vm.polling()
    try:
        if not before:
            await vm.set_polling(1)
        yield bool(before)
    finally:
        if not before:
            with contextlib.suppress(VmError):
                await to_the_end(vm.set_polling(0))


async def set_size(args: argparse.Namespace) -> int:
    """balloonctl set"""
    vm = await find_vm(args, args.name)
    with named(args.name):
        state = await vm.read()
        goal = goal_of(args.size, state, args.force)
        started = time.monotonic()
        async with polled(vm):
            try:
                await vm.set_target(goal)
                if not args.no_wait:
                    state = await wait_for(vm, state, goal, args)
            except asyncio.CancelledError:
                await to_the_end(withdraw(vm, args.name))
                raise
    reached = state.actual == goal or state.is_near(goal)
    if args.json:
        outcome = {
            "vm": args.name,
            "maximum": state.maximum,
            "target": goal,
            "actual": state.actual,
            "reached": reached,
            "available": state.available,
            "seconds": round(time.monotonic() - started, 2),
        }
        print(json.dumps(outcome))
    elif args.no_wait:
        print(f"{args.name}: asked for {show_size(goal)}, has {show_size(state.actual)}")
    elif reached:
        print(f"{args.name}: {show_size(state.actual)}")
    if reached or args.no_wait:
        return 0
    print(
        f"error: {args.name}: stuck at {show_size(state.actual)}, asked for {show_size(goal)}:"
        f" {why_stuck(state, goal)}",
        file=sys.stderr,
    )
    return STUCK


def goal_of(text: str, state: State, force: bool) -> int:
    """What is asked for, if it makes sense for this VM."""
    if text == "max":
        return state.maximum
    try:
        goal = parse_size(text)
    except ValueError as error:
        raise VmError(f"{error}, or max") from None
    if goal > state.maximum:
        raise VmError(f"{text} is beyond its memory of {show_size(state.maximum)}")
    least = sensible(state.maximum)
    # Giving some back is always right.
    if goal < min(least, state.actual) and not force:
        raise VmError(
            f"{text} means {in_words(goal)}: of {show_size(state.maximum)} hardly any guest can"
            f" live with less than {show_size(least)} (--force if it is to be)"
        )
    return state.reachable(goal)


async def wait_for(vm: Machine, state: State, goal: int, args: argparse.Namespace) -> State:
    """Show the way to a size. Ends there, or when the guest gets no further."""
    console = Console(stderr=True)
    shown = console.is_terminal and not args.json
    name = TextColumn("{task.description}", markup=False)
    columns = [name, BarColumn(), TextColumn("{task.fields[has]}")]
    with Progress(*columns, console=console, disable=not shown, transient=True) as progress:
        first, updated = state.actual, state.updated
        task = progress.add_task(
            f"{args.name} to {show_size(goal)}", total=abs(goal - first) or 1, has=""
        )
        nearest, moved = abs(goal - first), time.monotonic()
        while True:
            state = await vm.read()
            left = abs(goal - state.actual)
            done = abs(goal - first) - left
            progress.update(task, completed=max(0, done), has=show_size(state.actual))
            if left == 0:
                return state
            if state.is_near(goal) and time.monotonic() - moved > SETTLE_SECONDS:
                return state
            if left < nearest:
                nearest, moved = left, time.monotonic()
            if time.monotonic() - moved > args.patience:
                # What it said before is of no use.
                return state if state.updated != updated else dataclasses.replace(state, stats={})
            await asyncio.sleep(LOOK_SECONDS)


def why_stuck(state: State, goal: int) -> str:
    """What is known of the reason."""
    if state.paused:
        return "the VM is paused; the request stands, for when it runs"
    if state.actual == state.maximum and not state.updated:
        return "the guest gives nothing and says nothing, it may have no balloon driver"
    if goal < state.actual and state.available is not None:
        return (
            f"the guest has {show_size(state.available)} available and gives no more; the request"
            f" stands (withdraw it with: set VM {state.actual})"
        )
    return "the guest does not say why; the request stands"


async def withdraw(vm: Machine, name: str) -> None:
    """Interrupted: have nothing go on behind the user's back."""
    state = await vm.read()
    await vm.set_target(state.actual)
    print(
        f"{name}: stopped at {show_size(state.actual)}, which it is asked for now", file=sys.stderr
    )


@contextlib.contextmanager
def named(name: str):
    """Errors in here are those of this VM."""
    try:
        yield
    except VmError as error:
        raise VmError(f"{name}: {error}") from None


async def status_rows(args: argparse.Namespace) -> list[dict]:
    """What is known of each VM."""
    found = await sources_of(args).find()
    rows: dict[str, dict] = {}

    async def look(name, vm):
        try:
            rows[name] = row_of(name, await read_with_statistics(vm))
        except VmError as error:
            rows[name] = {"vm": name, "error": str(error)}

    await all_of(look(name, vm) for name, vm in found.items())
    return [rows[name] for name in sorted(rows)]


async def show_status(args: argparse.Namespace) -> int:
    """balloonctl status"""
    ordered = await status_rows(args)
    if args.json:
        print(json.dumps(ordered, indent=2))
    else:
        show_table(ordered, Console())
    for row in ordered:
        if "error" in row and not args.json:
            print(f"error: {row['vm']}: {row['error']}", file=sys.stderr)
    return ERROR if any("error" in row for row in ordered) else 0


async def read_with_statistics(vm: Machine) -> State:
    """A VM's state. A guest that nobody asks for statistics is asked for some now."""
    state = await vm.read()
    before, deadline = state.updated, time.monotonic() + ANSWER_SECONDS
    async with polled(vm) as anyway:
        if anyway:
            return state
        while state.updated == before and time.monotonic() < deadline:
            await asyncio.sleep(LOOK_SECONDS)
            state = await vm.read()
    # What it said long ago is of no use.
    return state if state.updated != before else dataclasses.replace(state, stats={})


def row_of(name: str, state: State) -> dict:
    """What --json prints of a VM."""
    return {
        "vm": name,
        "maximum": state.maximum,
        "target": state.target,
        "actual": state.actual,
        "resident": state.resident,
        "disk_read": state.disk_read,
        "paused": state.paused,
        "statistics": {
            "age": round(time.time() - state.updated, 1) if state.stats else None,
            **state.stats,
        },
    }


def rows_of_round(controller: Controller, report: dict) -> list[dict]:
    """The same of all VMs that auto has, as it saw them in this round."""
    problems = {name: report["problems"].get(name) for name in controller.unknown}
    problems |= {
        name: text for name, text in report["problems"].items() if name in controller.tracks
    }
    rows = [{"vm": name, "error": text or "not known"} for name, text in problems.items()]
    for vm in report["vms"]:
        if vm["name"] not in problems:
            row = row_of(vm["name"], controller.tracks[vm["name"]].state)
            rows.append({**row, "target": vm["target"]})
    return rows


def cells_of(row: dict) -> list[str]:
    """What stands below HEADINGS."""
    if "error" in row:
        return ["-"] * len(HEADINGS)
    stats = row["statistics"]
    available = stats.get("available-memory", stats.get("free-memory"))
    sizes = [row["maximum"], row["target"], row["actual"], available]
    sizes += [stats.get("swap-in"), stats.get("swap-out")]
    faults, age = stats.get("major-faults"), stats["age"]
    only_free = "available-memory" not in stats and "free-memory" in stats
    return [
        *map(show_size, sizes),
        "-" if faults is None else str(faults),
        show_size(row["resident"]),
        "none" if age is None else f"{age:.0f} s old" + (", free only" if only_free else ""),
    ]


def show_table(rows: list[dict], console: Console) -> None:
    """For people."""
    cells = [[row["vm"], *cells_of(row)] for row in rows]
    output.show_table("VM", HEADINGS, cells, LEAST_IMPORTANT, console)


async def run_metrics(args: argparse.Namespace) -> int:
    """balloonctl metrics"""
    if args.listen is not None:
        # Each time that somebody asks, in a thread of its own.
        metrics.serve(lambda: figures.families_of(asyncio.run(status_rows(args))), args.listen)
        await asyncio.Event().wait()
    rows = await status_rows(args)
    metrics.publish(args.file, figures.families_of(rows))
    return ERROR if any("error" in row for row in rows) else 0


def configure(controller: Controller, args: argparse.Namespace) -> None:
    """What is said on the command line and in the file."""
    floors = dict(args.min)
    if args.budget is not None and sum(floors.values()) > args.budget:
        total = show_size(sum(floors.values()))
        raise VmError(f"--min: {total} in all, beyond the budget of {show_size(args.budget)}")
    controller.sources = sources_of(args)
    controller.budget = None if args.budget is None else args.budget // PAGE * PAGE
    controller.rules = policy.Rules(margin=args.margin, floor=args.floor, step=args.step)
    controller.floors, controller.weights = floors, dict(args.weight)
    controller.interval, controller.dry_run = args.interval, args.dry_run
    reserve = args.host_reserve
    if args.budget is None and reserve is None:
        reserve = 1000
    controller.host = None
    if reserve is not None:
        controller.host = lambda held: Host.read().budget(held, reserve, args.host_waiting)


def reload(controller: Controller, args: argparse.Namespace) -> argparse.Namespace:
    """The file again. With a mistake in it all stays as it is."""
    try:
        new = parse_arguments(args.given)
        configure(controller, new)
    except (SystemExit, VmError) as error:
        reason = f": {error}" if isinstance(error, VmError) else ""
        controller.say(f"the configuration is not taken{reason}")
        configure(controller, args)
        return args
    controller.say("the configuration was read again")
    later = [name for name in AT_START if getattr(new, name) != getattr(args, name)]
    if later:
        controller.say(f"from the next start on: {', '.join(later)}")
    return new


async def run_auto(args: argparse.Namespace) -> int:
    """balloonctl auto"""

    as_json = args.json

    def say(text):
        if as_json:
            write(f"== {text}", sys.stderr)
        else:
            write(f"{time.strftime('%H:%M:%S')} {text}", sys.stdout)

    rules = policy.Rules()
    controller = Controller(
        sources_of(args), None, rules, {}, args.interval, say, args.dry_run, state=args.state
    )
    configure(controller, args)
    # What cannot be looked for at the start is a mistake; later on it may come back.
    await controller.sources.find()
    latest: list[metrics.Family] = []
    if args.listen is not None:
        metrics.serve(lambda: list(latest), args.listen)
    hung_up = asyncio.Event()
    with contextlib.suppress(ValueError, RuntimeError):
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, hung_up.set)
    # Told to end, or nobody reads what it says.
    with contextlib.suppress(asyncio.CancelledError):
        try:
            while True:
                started = time.monotonic()
                report = await controller.round()
                if as_json:
                    write(json.dumps(report), sys.stdout)
                latest[:] = figures.families_of_round(report, rows_of_round(controller, report))
                if args.metrics:
                    with controller.named_problem("metrics"):
                        metrics.publish(args.metrics, latest)
                left = max(0, args.interval - (time.monotonic() - started))
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(hung_up.wait(), left)
                if hung_up.is_set():
                    hung_up.clear()
                    args = reload(controller, args)
        finally:
            await to_the_end(controller.end())
    return 0


if __name__ == "__main__":
    sys.exit(main())
