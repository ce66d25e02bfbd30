# SPDX-License-Identifier: GPL-2.0
"""Hold block devices to limits of I/O, by the device-mapper target qos."""

import argparse
import contextlib
import fcntl
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

from tooling import metrics, output
from tooling.arguments import Commands, count, named_value, seconds

from . import disks, figures, files, latency, live, moves, paths
from .limits import KEYS, Limits, LimitsError, show_value
from .mapper import TIMEOUT, Device, Mapper, MapperError, node_of
from .moves import Attached, QosError

ERROR = 1
BLKID_SECONDS = 20
LOCK = pathlib.Path("/run/qosctl.lock")
LIST = ("how", "on", "group", "held", "reservation", "limits")
TOP = ("r/s", "w/s", "rMB/s", "wMB/s", "held", "p50 ms", "p99 ms")
TOP += ("disk ms", "disk p50", "disk p99", "reserved", "share")
# Where there is no room these go first.
LIST_LEAST = ("reservation", "on", "held", "group")
TOP_LEAST = ("disk p50", "p50 ms", "disk ms", "share", "wMB/s", "rMB/s", "reserved", "disk p99")

EPILOG = """\
A DEVICE is the path of a block device, or the name of a mapped device. Sizes: 512K, 8M, bytes. 0 is
no limit. What the keys mean is in dm-qos(4).

Examples:
  qosctl attach /dev/sdb --iops 500 --bps 8M
  qosctl attach vg-data --group sdb --group-iops 5000 --reserve-iops 2000 --weight 500 --save
  qosctl set vg-data --iops 2000
  qosctl why vg-data
  qosctl detach vg-data

Exit status: 0 done, 1 error, 2 usage, 128 and the signal's number if interrupted.
"""


def main() -> int:
    """The command line."""
    args = parse_arguments(sys.argv[1:])
    signal.signal(signal.SIGTERM, interrupt)
    try:
        return args.function(args, Mapper())
    except (QosError, MapperError, LimitsError, metrics.MetricsError) as problem:
        output.error(str(problem))
        return ERROR
    except KeyboardInterrupt as number:
        return 128 + (number.args[0] if number.args else signal.SIGINT)
    except BrokenPipeError:
        output.discard(sys.stdout)
        return ERROR


def interrupt(number, _frame) -> None:
    """As Ctrl-C does."""
    raise KeyboardInterrupt(number)


def parse_arguments(words: list[str]) -> argparse.Namespace:
    """Commands and options."""
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--json", action="store_true", help="print JSON")
    where = argparse.ArgumentParser(add_help=False)
    where.add_argument(
        "--directory",
        type=pathlib.Path,
        default=files.DIRECTORY,
        metavar="DIR",
        help=f"of saved limits ({files.DIRECTORY})",
    )
    slow = argparse.ArgumentParser(add_help=False)
    slow.add_argument(
        "--patience",
        type=seconds,
        default=TIMEOUT,
        metavar="SECONDS",
        help=f"how long to wait for I/O that is on its way to the device ({TIMEOUT})",
    )
    commands = Commands("qosctl", __doc__, EPILOG, common)

    def device(added, **options):
        added.add_argument("device", metavar="DEVICE", **options)

    attach = commands.add("attach", run_attach, "put limits over a device or into it", where, slow)
    device(attach)
    attach.add_argument(
        "--over",
        action="store_true",
        help="a new device over this one, also if it is a mapped device",
    )
    attach.add_argument("--name", help="of the new device (the kernel's name of the disk and -qos)")
    add_limits(attach)

    detach = commands.add("detach", run_detach, "take limits away, the device stays", where, slow)
    device(detach)
    detach.add_argument("--forget", action="store_true", help="and what was saved of it")

    setting = commands.add("set", run_set, "change limits", where, slow)
    device(setting)
    add_limits(setting)

    device(commands.add("show", run_show, "show all that is known of a device"))
    commands.add("list", run_list, "show all devices that have limits")

    save = commands.add("save", run_save, "write down what is attached, for the next boot", where)
    device(save, nargs="*", help="these (all that qosctl has made)")

    restore = commands.add("restore", run_restore, "attach what was saved", where, slow)
    restore.add_argument("name", metavar="NAME", nargs="*", help="these (all that were saved)")
    restore.add_argument("--on", metavar="DEVICE", help="only what is for this device, for udev")

    top = commands.add("top", run_top, "show what the devices do, live")
    top.add_argument("--interval", type=seconds, default=1, metavar="SECONDS", help="(1)")
    top.add_argument("--count", type=count, default=0, metavar="N", help="so often, and end")
    top.add_argument("--group", help="only devices of this group")

    why = commands.add("why", run_why, "say what holds a device's I/O now")
    device(why)
    why.add_argument("--seconds", type=seconds, default=1, help="how long to look (1)")

    measure = commands.add("measure", run_measure, "measure what a disk can do, with fio")
    measure.add_argument("disk", metavar="DISK")
    measure.add_argument("--write", action="store_true", help="writes too: ALL DATA ON IT ARE LOST")
    measure.add_argument("--yes", action="store_true", help="do not ask before writing")
    measure.add_argument("--seconds", type=seconds, default=5, help="for each run (5)")

    metrics.add_options(
        commands.add("metrics", run_metrics, "print metrics (OpenMetrics); also: --metrics")
    )
    return commands.parse(words)


def add_limits(parser: argparse.ArgumentParser) -> None:
    """An option for each key, and one for those that this does not know yet."""
    group = parser.add_argument_group("limits")
    for key in KEYS.values():
        group.add_argument(
            key.option, dest=f"key_{key.name}", metavar=key.kind, help=key.text, default=None
        )
    group.add_argument(
        "--key",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        type=named_value,
        help="any other key that the module knows",
    )
    parser.add_argument("--save", action="store_true", help="for the next boot, too")


def values_of(args: argparse.Namespace) -> dict[str, str]:
    """The limits on the command line."""
    found = dict(args.key)
    for key in KEYS:
        value = getattr(args, f"key_{key}")
        if value is not None:
            found[key] = value
    return found


@contextlib.contextmanager
def locked():
    """One at a time changes something."""
    try:
        file = LOCK.open("w", encoding="ascii")
    except OSError as problem:
        raise QosError(f"{LOCK}: {problem.strerror} (are you root?)") from None
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def say(args: argparse.Namespace, text: str, **values) -> None:
    """What was done."""
    if args.json:
        output.write_json(values, indent=None)
    else:
        output.write(text)


def kind_of(path: str) -> str:
    """What blkid finds on a device, as "LVM2_member". A device that does not answer is not waited
    for, nor is blkid, which cannot be killed then.
    """
    words = ["blkid", "-p", "-o", "value", "-s", "TYPE", "--", path]
    options = {"stdin": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "text": True}
    try:
        process = subprocess.Popen(words, stdout=subprocess.PIPE, **options)
    except OSError:
        return ""
    try:
        return process.communicate(timeout=BLKID_SECONDS)[0].strip()
    except subprocess.TimeoutExpired:
        process.kill()
        raise QosError(f"{path} does not answer: blkid has read nothing from it") from None


def attach(mapper: Mapper, place: moves.Place, args, limits: Limits, name: str | None) -> str:
    """Over or into; the name of what has the limits."""
    if place.device and place.device.uuid.startswith(moves.BELOW):
        raise QosError(f"{place.device.name} is what a qos device lies on: name that one")
    if place.device is None or args.over:
        base = place.device.name if place.device else node_of(place.number)
        name = name or f"{base}-qos".replace("!", "-")
        moves.attach_over(mapper, place.path, place.number, name, limits)
        return name
    if name:
        raise QosError(f"--name is for a new device: {place.device.name} keeps its name (--over?)")
    if place.device.suspended:
        raise QosError(f"{place.device.name} is suspended")
    holders = moves.holders_of(place.number)
    problem = moves.why_not_for_lvm(place.device, holders, kind_of(place.path))
    if problem:
        raise QosError(problem)
    moves.attach_into(mapper, place.device, limits, args.patience)
    return place.device.name


def run_attach(args: argparse.Namespace, mapper: Mapper) -> int:
    """qosctl attach"""
    limits = Limits.of(values_of(args))
    with locked():
        place = moves.find_place(mapper, args.device)
        name = attach(mapper, place, args, limits, args.name)
        one = moves.find_attached(mapper)[name]
        if args.save:
            save(args, one, absolute(args.device))
    said = limits.shown() or "no limit yet"
    say(args, f"/dev/mapper/{name}: {said}", **row_of(one))
    return 0


def save(args: argparse.Namespace, one: Attached, path: str | None) -> None:
    """What has been attached or set already."""
    try:
        files.write(args.directory, files.saved_of(one, path))
    except QosError as problem:
        raise QosError(f"{one.name} has its limits, but they are not saved: {problem}") from None


def absolute(text: str) -> str | None:
    """A path as it holds from anywhere."""
    return os.path.abspath(text) if "/" in text else None


def run_detach(args: argparse.Namespace, mapper: Mapper) -> int:
    """qosctl detach"""
    with locked():
        name = name_of(mapper, args.device)
        devices = mapper.devices()
        attached = moves.attached_among(mapper, devices)
        rest = [d.name for d in moves.left_over(devices, attached)]
        if name not in attached and name + moves.SUFFIX in rest:
            moves.clean_up(mapper, name + moves.SUFFIX)
            text = "had no limits any more; what was left of them is removed"
        else:
            one = moves.find_one(mapper, args.device)
            moves.detach(mapper, one, args.patience)
            name, text = one.name, "is as before" if one.hidden else "is removed"
        path = files.path_of(args.directory, name)
        if args.forget:
            path.unlink(missing_ok=True)
        elif path.exists():
            text += f"; {path} brings its limits back at the next boot (--forget)"
    say(args, f"{name}: {text}", device=name, detached=True)
    return 0


def name_of(mapper: Mapper, text: str) -> str:
    """Of a mapped device that a user named; it may have gone, and something of it be left."""
    with contextlib.suppress(QosError):
        if device := moves.find_place(mapper, text).device:
            return device.name
    return text.removeprefix("/dev/mapper/")


def run_set(args: argparse.Namespace, mapper: Mapper) -> int:
    """qosctl set"""
    values = values_of(args)
    if not values:
        raise QosError("nothing to set: --iops, --bps, ...")
    with locked():
        one = moves.find_one(mapper, args.device)
        moves.change(mapper, one, values, args.patience)
        one = moves.find_attached(mapper)[one.name]
        if args.save:
            save(args, one, saved_path(args, one))
    say(args, f"{one.name}: {one.limits.shown() or 'no limit'}", **row_of(one))
    return 0


def saved_path(args: argparse.Namespace, one: Attached) -> str | None:
    """What the file says of the device now."""
    with contextlib.suppress(QosError):
        return files.read(args.directory, one.name).device
    return None


def row_of(one: Attached, status: dict | None = None) -> dict:
    """What --json prints of a device."""
    return {
        "device": one.name,
        "number": one.device.number,
        "attached": one.how,
        "below": one.hidden.name if one.hidden else one.below,
        "open": one.device.open,
        "suspended": one.device.suspended,
        "limits": {
            key: int(value) if value.isdecimal() else value
            for key, value in one.limits.values.items()
        },
        **({"status": status} if status is not None else {}),
    }


def run_show(args: argparse.Namespace, mapper: Mapper) -> int:
    """qosctl show"""
    one = moves.find_one(mapper, args.device)
    sample = live.take(mapper).get(one.name)
    if sample is None:
        raise QosError(f"{one.name} has gone")
    row = row_of(one, sample.status)
    if args.json:
        output.write_json(row)
        return 0
    lines = [("device", one.name), ("attached", one.how), ("on", row["below"])]
    lines += [(key, show_value(key, value)) for key, value in one.limits.values.items()]
    lines += [(key, str(value)) for key, value in sample.status.items() if key != "group"]
    width = max(len(key) for key, _ in lines)
    for key, value in lines:
        output.write(f"{key:{width}}  {value}")
    return 0


def run_list(args: argparse.Namespace, mapper: Mapper) -> int:
    """qosctl list"""
    samples = live.take(mapper)
    devices = mapper.devices()
    rest = moves.left_over(devices, {name: sample.one for name, sample in samples.items()})
    if args.json:
        rows = [row_of(sample.one, sample.status) for sample in samples.values()]
        output.write_json(rows + [left_row(hidden) for hidden in rest])
        return 0
    rows = [
        [
            name,
            sample.one.how,
            "itself" if sample.one.hidden else node_of(sample.one.below),
            sample.one.limits.values.get("group", "-"),
            str(sample.held),
            str(sample.status.get("reservation", "-")),
            " ".join(
                f"{key} {show_value(key, value)}"
                for key, value in sample.one.limits.values.items()
                if key != "group"
            )
            or "none",
        ]
        for name, sample in samples.items()
    ]
    if rows:
        output.show_table("DEVICE", LIST, rows, LIST_LEAST)
    for hidden in rest:
        name = hidden.name.removesuffix(moves.SUFFIX)
        text, ways = "has gone, or has another name now", f"qosctl detach {name}"
        if name in devices:
            text = "has lost its limits, for its owner gave it another table"
            ways = f"qosctl attach {name} ..., or {ways}"
        print(f"{name}: {text}; what is left: {hidden.name} ({ways})", file=sys.stderr)
    return 0


def left_row(hidden: Device) -> dict:
    """Of a hidden device that is left over."""
    return {"device": hidden.name, "number": hidden.number, "attached": "left over"}


def run_save(args: argparse.Namespace, mapper: Mapper) -> int:
    """qosctl save"""
    status = 0
    with locked():
        if args.device:
            chosen = [moves.find_one(mapper, text) for text in args.device]
        else:
            found = moves.find_attached(mapper).values()
            chosen = [one for one in found if one.how != "by hand"]
        for one in chosen:
            try:
                saved = files.saved_of(one, saved_path(args, one))
                path = files.write(args.directory, saved)
            except QosError as problem:
                output.error(str(problem))
                status = ERROR
            else:
                say(args, f"{one.name}: {path}", device=one.name, file=str(path))
    return status


def run_restore(args: argparse.Namespace, mapper: Mapper) -> int:
    """qosctl restore: one's trouble is not that of the others."""
    status = 0
    with locked():
        if args.on and not os.path.exists(args.on):
            say(args, f"{args.on}: has gone", device=args.on, restored="has gone")
            return 0
        number = moves.find_place(mapper, args.on).number if args.on else None
        for name in args.name or files.names_in(args.directory):
            try:
                saved = files.read(args.directory, name)
            except QosError as problem:
                output.error(f"{name}: {problem}")
                # It may be for another device than the one that has just come.
                status = status if number else ERROR
                continue
            try:
                text = restore(args, mapper, saved, number)
            except (QosError, MapperError, LimitsError) as problem:
                output.error(f"{name}: {problem}")
                status = ERROR
            else:
                if text:
                    say(args, f"{name}: {text}", device=name, restored=text)
    return status


def restore(args, mapper: Mapper, saved: files.Saved, number: str | None) -> str | None:
    """One of them, if it is for the device of this number; what was done."""
    name = saved.name
    try:
        place = moves.find_place(mapper, name if saved.how == "into" else saved.device)
    except QosError:
        return None if number else "its device is not there"
    one = moves.find_attached(mapper).get(name)
    if one and number not in (None, place.number, one.device.number):
        return None
    if one and one.how == "over" and not moves.lies_on(one, place.number):
        # Its disk has gone, and come back as another one.
        moves.detach(mapper, one, args.patience)
        one = None
    if one:
        values = one.limits.difference(saved.limits)
        if values:
            moves.change(mapper, one, values, args.patience)
        return "attached already" + (f", now: {saved.limits.shown()}" if values else "")
    if number not in (None, place.number):
        return None
    args.over = saved.how == "over"
    attach(mapper, place, args, saved.limits, name if args.over else None)
    return saved.limits.shown() or "no limit"


def run_top(args: argparse.Namespace, mapper: Mapper) -> int:
    """qosctl top"""
    first, rounds = live.take(mapper), 0
    deadline = time.monotonic()
    with latency.Regions(mapper) as regions, screen(args) as show:
        regions.take(below(first))
        while not args.count or rounds < args.count:
            deadline = max(deadline + args.interval, time.monotonic())
            live.wait_until(deadline)
            last = live.take(mapper)
            rates = live.all_between(first, last, regions.take(below(last)))
            if args.group:
                rates = {n: r for n, r in rates.items() if group_of(r) == args.group}
            show(sorted(rates.values(), key=lambda r: (group_of(r), r.last.one.name)))
            first, rounds = last, rounds + 1
    return 0


def below(samples: dict[str, live.Sample]) -> set[str]:
    """The mapped devices that these lie on."""
    return {sample.below for sample in samples.values() if sample.below}


def group_of(rates: live.Rates) -> str:
    """Its group, or nothing."""
    return rates.last.one.limits.values.get("group", "")


@contextlib.contextmanager
def screen(args: argparse.Namespace):
    """Shows a round: JSON a line, a table that stays in its place, or one after the other."""
    if args.json:
        yield lambda rates: output.write_json(
            {"time": round(time.time(), 3), "devices": [live.row_of(r) for r in rates]}, None
        )
        return
    from rich.console import Console, Group  # noqa: PLC0415
    from rich.live import Live  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    console = Console()
    if not console.is_terminal:
        yield lambda rates: output.show_table("DEVICE", TOP, rows_of_top(rates), (), console)
        return
    with Live(console=console, auto_refresh=False, screen=not args.count) as shown:

        def show(rates):
            table, _, missing = output.fit_table(
                "DEVICE", TOP, rows_of_top(rates), TOP_LEAST, console
            )
            said = f"no room for: {', '.join(missing)}" if missing else ""
            shown.update(Group(table, Text(said, style="dim")), refresh=True)

        yield show


def rows_of_top(rates: list[live.Rates]) -> list[list[str]]:
    """Of the table; a heading for each group."""
    rows, group = [], ""
    for one in rates:
        if group_of(one) != group:
            group = group_of(one)
            members = [r for r in rates if group_of(r) == group]
            rows.append([f"[{group}]", *cells_of_group(members)])
        row = live.row_of(one)
        indent = "  " if group else ""
        rows.append(
            [
                indent + row["device"],
                *(f"{number:.0f}" for number in (one.read_iops, one.write_iops)),
                *(f"{number / 1e6:.1f}" for number in (one.read_bps, one.write_bps)),
                str(row["held"]),
                in_ms(row["hold_p50_us"]),
                in_ms(row["hold_p99_us"]),
                *(
                    "-" if time_ms is None else f"{time_ms:.1f}"
                    for time_ms in (one.disk_ms, one.disk_p50_ms, one.disk_p99_ms)
                ),
                reserved(one),
                "-" if one.share is None else f"{one.share:.0%}",
            ]
        )
    return rows


def cells_of_group(members: list[live.Rates]) -> list[str]:
    """All of its members together."""
    sums = [f"{sum(getattr(m, f'{way}_iops') for m in members):.0f}" for way in live.DIRECTIONS]
    sums += [f"{sum(getattr(m, f'{w}_bps') for m in members) / 1e6:.1f}" for w in live.DIRECTIONS]
    return [*sums, str(sum(m.last.held for m in members)), *["-"] * 7]


def in_ms(times: dict) -> str:
    """The longer of both directions; they count from the last reset."""
    known = [value for value in times.values() if isinstance(value, int)]
    return f"{max(known) / 1000:.1f}" if known else "-"


def reserved(one: live.Rates) -> str:
    """Whether its reservation was met in this interval."""
    state = one.last.status.get("reservation", "-")
    if state in ("none", "-"):
        return "-"
    return f"missed {one.missed}" if one.missed else "met"


def run_why(args: argparse.Namespace, mapper: Mapper) -> int:
    """qosctl why"""
    one = moves.find_one(mapper, args.device)
    first = live.take(mapper)
    time.sleep(args.seconds)
    last = live.take(mapper)
    text = live.why_of(one.name, first, last)
    if text is None:
        raise QosError(f"{one.name} has gone")
    if args.json:
        rates = live.all_between(first, last)[one.name]
        output.write_json({**live.row_of(rates), "why": text})
    else:
        output.write(text)
    return 0


def run_measure(args: argparse.Namespace, mapper: Mapper) -> int:
    """qosctl measure"""
    place = moves.find_place(mapper, args.disk)
    runs = [run for run in disks.RUNS if args.write or "write" not in run]
    if args.write:
        disks.check_writable(place.path)
        if not args.yes and not confirmed(args.disk):
            raise QosError("nothing was done")
    if not args.json:
        print(f"{args.disk}: {len(runs)} runs of {args.seconds:g} s", file=sys.stderr)
    found = {run: disks.measure_run(place.path, run, args.seconds) for run in runs}
    keys = disks.keys_of(found)
    if args.json:
        output.write_json(
            {
                "disk": args.disk,
                "runs": {
                    run: {"ios_per_second": m.iops, "bytes_per_second": m.bps, "mean_us": m.mean_us}
                    for run, m in found.items()
                },
                "keys": keys,
            }
        )
        return 0
    rows = [
        [run, disks.RUNS[run][1], str(disks.RUNS[run][2]), f"{m.iops:.0f}", f"{m.bps / 1e6:.1f}"]
        + [f"{m.mean_us / 1000:.2f}"]
        for run, m in found.items()
    ]
    output.show_table("RUN", ("size", "depth", "I/Os/s", "MB/s", "mean ms"), rows)
    output.write("For a group of what lies on it (the least of these, less a tenth):")
    output.write("  " + " ".join(f"{KEYS[key].option} {value}" for key, value in keys.items()))
    if not args.write:
        output.write("Writes were not measured (--write, which destroys what is on the disk).")
    return 0


def confirmed(disk: str) -> bool:
    """Whether all on it may be lost."""
    if not sys.stdin.isatty():
        raise QosError("--write asks first, and nobody is there to answer (--yes)")
    return input(f"All data on {disk} will be lost. Go on (yes, no)? ").strip() == "yes"


def run_metrics(args: argparse.Namespace, mapper: Mapper) -> int:
    """qosctl metrics"""

    def families():
        samples = live.take(mapper)
        held = live.histograms(mapper, samples)
        return figures.families_of(samples, held) + paths.families_of(mapper)

    if args.listen is not None:
        metrics.serve(families, args.listen)
        # Until a signal comes.
        threading.Event().wait()
    metrics.publish(args.file, families())
    return 0


if __name__ == "__main__":
    sys.exit(main())
