#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Everything that tests do by chance, for hours, as `make soak` does.

Rounds of some minutes, each in a guest of its own. A round's seed decides what it does, and how.
The first one that fails ends the run: what it leaves is in out/soak/, and what repeats it is
printed.
"""

import argparse
import collections
import dataclasses
import os
import random
import re
import sys
import time

import check
import fuzz
import vm
from verdicts import Again, Report

OUT = vm.ROOT / "out" / "soak"
LOG = OUT / "log"
# What a script says that it has done, and a fuzzer so far.
DID = re.compile(r"did: (\d+) (.+)")
SO_FAR = re.compile(r"(\d+) operations in")
HOST = check.SELFTESTS / "host"
# Steps a second at the least, beside whatever else this machine does.
SLOWEST = 0.5


@dataclasses.dataclass(frozen=True)
class Activity:
    """Something to do by chance."""

    name: str
    # A guest script that takes SEED and another variable; or tests of the host, by their names.
    path: str
    # The variable that says how much, and about how much a round has.
    variable: str
    much: int
    match: str = ""
    seeded: str = "SEED"

    def amount(self, rng: random.Random) -> int:
        """For a round."""
        return rng.randint(self.much // 2, self.much)


SCRIPTS = [
    Activity("changes of qos devices", "dm-qos/soak.sh", "COUNT", 300),
    Activity("changes of paths", "mpath-sel/soak.sh", "COUNT", 400),
]
ACTIVITIES = {
    "uml": [
        *SCRIPTS,
        Activity("anything, to qos", "dm-qos/fuzz.sh", "OPERATIONS", 20_000),
        Activity("anything, to selectors", "mpath-sel/fuzz.sh", "OPERATIONS", 20_000),
        Activity("swings", "test_balloon_vhost.py", "SWINGS", 300, "test_swings"),
        Activity(
            "messages of a random host",
            "test_balloon_vhost.py",
            "FUZZ_MESSAGES",
            8000,
            "test_a_random_host",
            "FUZZ_SEEDS",
        ),
    ],
    **dict.fromkeys(
        # The programs of selftests/control are built for this machine.
        [name for name in vm.STOCK if name not in vm.ARM],
        [
            *SCRIPTS,
            Activity("swings", "test_balloon.py", "SWINGS", 60, "test_reaches_each_size"),
            Activity("sizes under programs", "test_balloon_stress.py", "MOVES", 30, "test_memory"),
        ],
    ),
}


def done_by(lines: list[str]) -> collections.Counter[str]:
    """What a script has done, by all that it has said."""
    did: collections.Counter[str] = collections.Counter()
    for line in lines:
        if found := DID.search(line):
            did[found[2]] += int(found[1])
        elif found := SO_FAR.search(line):
            did["operations"] = int(found[1])
    return did


class Final(Report):
    """Nothing is run once more: a seed is for that."""

    def add(self, name: str, status: str, detail: str = "", again: Again | None = None) -> None:
        super().add(name, status, detail)


class Soak:
    """A run."""

    def __init__(self, kernel: str):
        self.kernel = kernel
        self.kdir = check.build(Report(OUT), kernel)
        self.did: collections.Counter[str] = collections.Counter()

    def script(self, activity: Activity, amount: int, seed: int) -> list[str]:
        """A guest script; what was wrong."""
        settings = f"SEED={seed} {activity.variable}={amount}"
        lines, problems = fuzz.run_script(
            self.kernel,
            self.kdir,
            f"{settings} bash {check.SELFTESTS / activity.path}",
            OUT / f"{seed}.log",
            300 + amount / SLOWEST * vm.SLOWNESS[self.kernel],
        )
        self.did += done_by(lines)
        (OUT / f"{seed}.txt").write_text("\n".join(lines))
        return problems

    def host(self, activity: Activity, amount: int, seed: int) -> list[str]:
        """Tests that the host drives; what was wrong."""
        settings = {activity.variable: str(amount), activity.seeded: str(seed)}
        os.environ.update(settings)
        report = Final(OUT)
        said = check.HostTests.run(report, HOST / activity.path, activity.match, self.kernel)
        for name in settings:
            del os.environ[name]
        (OUT / f"{seed}.txt").write_text(said)
        wrong = [name for name, status, _ in report.entries if status != "passed"]
        if report.entries and not wrong:
            self.did[activity.name] += amount * len(report.entries)
        return wrong or ([] if report.entries else ["no test ran"])

    def round(self, seed: int) -> bool:
        """What this seed decides. Whether all was well."""
        rng = random.Random(seed)
        activity = rng.choice(ACTIVITIES[self.kernel])
        amount = activity.amount(rng)
        began = time.monotonic()
        print(f"== SEED={seed}: {activity.name}, {amount}", flush=True)
        run = self.host if activity.path.endswith(".py") else self.script
        problems = run(activity, amount, seed)
        with LOG.open("a") as log:
            verdict = "failed" if problems else "passed"
            taken = time.monotonic() - began
            print(
                f"{time.strftime('%F %T')} {self.kernel} SEED={seed} {activity.name},"
                f" {amount}: {verdict}, {taken:.0f} s",
                file=log,
            )
        if not problems:
            for suffix in ("log", "txt"):
                (OUT / f"{seed}.{suffix}").unlink(missing_ok=True)
            return True
        print("\n".join(problems))
        kernel = self.kernel.replace("stock-", "stock:")
        print(f"== once more: make soak KERNEL={kernel} SEED={seed} ROUNDS=1")
        return False


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kernel", choices=ACTIVITIES, default="uml")
    parser.add_argument("--hours", type=float, default=1)
    parser.add_argument("--rounds", type=int, default=0, help="no more than these; 0: any number")
    parser.add_argument("--seed", type=int, help="of the first round; those after it count on")
    args = parser.parse_args()
    vm.kill_guests_on_signal()
    OUT.mkdir(parents=True, exist_ok=True)
    check.OUT.mkdir(parents=True, exist_ok=True)
    soak = Soak(args.kernel)
    seed = random.randrange(1 << 30) if args.seed is None else args.seed
    until = time.monotonic() + args.hours * 3600
    rounds, good = 0, True
    try:
        while good and time.monotonic() < until and (not args.rounds or rounds < args.rounds):
            good = soak.round(seed + rounds)
            rounds += 1
    finally:
        print(f"== {rounds} rounds; done:")
        for what, count in sorted(soak.did.items()):
            print(f"{count:>12,} {what}")
    if good:
        print("== no splat, no leak, nothing wrong")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
