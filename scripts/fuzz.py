#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Say anything at all to device mapper, for as long as is asked for, as `make fuzz` does.

Rounds of at most ROUND operations, each in a guest of its own: user-mode Linux with KASAN and
kmemleak. A round that fails leaves the program that ran in out/fuzz/, and says how to run it again.
"""

import argparse
import pathlib
import random
import re
import sys

import check
import vm
from verdicts import Report

OUT = vm.ROOT / "out" / "fuzz"
# Operations in a guest; what is lost is looked for at its end.
ROUND = 100_000
SCRIPTS = {"qos": "dm-qos/fuzz.sh", "selector": "mpath-sel/fuzz.sh"}
# Operations a second at the least, beside whatever else this machine does.
SLOWEST = 50


def run_script(
    kernel: str, kdir: pathlib.Path, command: str, log: pathlib.Path, timeout: float
) -> tuple[list[str], list[str]]:
    """A command in a guest of its own. What it says, and what was wrong."""
    options = vm.Options(kernel=kernel, kdir=kdir, memory="1G", log=log, udev=False)
    lines: list[str] = []

    def say(line: str) -> None:
        lines.append(line)
        print(line, flush=True)

    problems = []
    try:
        with vm.Guest(options) as guest:
            booted = int(guest.check("awk '/^jiffies:/ { print $2; exit }' /proc/timer_list"))
            status, _ = guest.run(command, timeout, say)
            if status:
                problems.append("it found something, see above")
            problems += guest.check_log()
            problems += check.find_leaks(guest, booted)
    except vm.GuestError as error:
        problems.append(str(error))
    return lines, problems


def run_round(
    kdir: pathlib.Path, what: str, seed: int, operations: int, program: pathlib.Path | None
) -> tuple[int, list[str]]:
    """How many operations were done, and what was wrong."""
    mount = f"mkdir -p /mnt/fuzz && mount -t hostfs -o {OUT} none /mnt/fuzz"
    settings = f"SEED={seed} OPERATIONS={operations} PROGRAM=/mnt/fuzz/{what}-{seed}.program"
    if program:
        settings += f" REPEAT={program.resolve()}"
    lines, problems = run_script(
        "uml",
        kdir,
        f"{mount} && {settings} bash {check.SELFTESTS / SCRIPTS[what]}",
        OUT / f"{what}-{seed}.log",
        300 + operations / SLOWEST,
    )
    done = [int(found[1]) for line in lines if (found := re.search(r"(\d+) operations in", line))]
    return (done[-1] if done else 0), problems


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--operations", type=int, default=ROUND)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--what", choices=SCRIPTS, default="qos")
    parser.add_argument("--program", type=pathlib.Path, help="this one, many times")
    args = parser.parse_args()
    vm.kill_guests_on_signal()
    OUT.mkdir(parents=True, exist_ok=True)
    kdir = check.build(Report(OUT), "uml")
    seed = random.randrange(1 << 30) if args.seed is None else args.seed
    done = 0
    while done < args.operations:
        operations = min(ROUND, args.operations - done)
        print(f"== {args.what}: SEED={seed}, {operations} operations", flush=True)
        count, problems = run_round(kdir, args.what, seed, operations, args.program)
        done += count
        if args.program and not problems:
            break
        if problems:
            print("\n".join(problems))
            print(f"== failed after {done} operations; once more, all of the round:")
            print(f"   make fuzz WHAT={args.what} SEED={seed} N={operations}")
            if args.what == "qos":
                print("   or the program that ran last, a hundred times:")
                print(f"   make fuzz PROGRAM={OUT.relative_to(vm.ROOT)}/{args.what}-{seed}.program")
            return 1
        (OUT / f"{args.what}-{seed}.program").unlink(missing_ok=True)
        seed += 1
    print(f"== {done} operations, no splat, no leak, nothing wrong")
    return 0


if __name__ == "__main__":
    sys.exit(main())
