#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Show dm-qos and the path selector in a stack of all that is around them in production.

Two guests: a storage server and a machine with a database; see stack_lab.py. Ends with a table of
what was expected and what was measured; fails when a measured value is not what was expected.
"""

import argparse
import contextlib
import pathlib
import sys

import stack_lab
import vm
from demo_table import DemoTable


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kernel", default=vm.KERNEL, choices=vm.KERNELS)
    parser.add_argument("--kdir", type=pathlib.Path)
    args = parser.parse_args()
    vm.kill_guests_on_signal()
    demo = DemoTable("step")
    guests = []
    try:
        with contextlib.ExitStack() as exits:

            def boot(what: str, options: vm.Options) -> vm.Guest:
                options.kernel, options.kdir = args.kernel, args.kdir
                options.log = vm.ROOT / "out" / f"demo-stack-{what}.log"
                demo.step(f"Booting the {what} (kernel log: {options.log})")
                guest = exits.enter_context(vm.Guest(options))
                guests.append(guest)
                return guest

            stack = exits.enter_context(contextlib.closing(stack_lab.Stack(boot, demo)))
            for step in stack_lab.SET_UP + stack_lab.STEPS:
                stack.run(step)
    except vm.GuestError as error:
        demo.console.print(demo.table)
        print(f"error: {error}", file=sys.stderr)
        return 1
    wrong = [line for guest in guests for line in guest.check_log()]
    demo.row("both guests", "kernel log", "no warning", "\n".join(wrong) or "no warning", not wrong)
    demo.console.print(demo.table)
    return 1 if demo.failed else 0


if __name__ == "__main__":
    sys.exit(main())
