#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Run the benchmarks, as `make bench` does: bench.py [NAME...], all of them without a name.

Each writes out/bench/NAME.json and prints a table; out/report.html shows all that lies there. A
goal that is missed is no failure of the benchmark: the status is non-zero when one could not be
run.
"""

import argparse
import importlib
import pathlib
import sys
import time
import traceback

import report
import vm
from benchmarks import PARTS, names
from benchmarks.results import OUT, Results
from rich.console import Console


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kdir", type=pathlib.Path, help="a kernel build of your own")
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(names()))
    args = parser.parse_args()
    unknown = set(args.names) - set(names()) - PARTS
    if unknown:
        known = ", ".join([*names(), *sorted(PARTS)])
        parser.error(f"no benchmark {', '.join(unknown)}: there are {known}")

    vm.kill_guests_on_signal()
    OUT.mkdir(parents=True, exist_ok=True)
    # Wide tables, also in a file.
    console = Console(width=160)
    failed = False
    for name in args.names or names():
        started = time.monotonic()
        try:
            results = Results(name, args.kdir or vm.find_kdir("release"), console)
            importlib.import_module(f"benchmarks.{name}").run(results)
            path = results.write().relative_to(vm.ROOT)
            results.show()
            results.say(f"{path}, {(time.monotonic() - started) / 60:.1f} minutes")
        except Exception as error:  # pylint: disable=broad-exception-caught
            # Whatever it is: the others are measured, and there is a report of them.
            traceback.print_exc()
            print(f"error: {name}: {error}", file=sys.stderr)
            failed = True
    report.write()
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
