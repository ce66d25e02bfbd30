#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0
"""Run a command, and count the CPU time that it and the kernel take: busy.py COMMAND...

Prints {"wall_ns": ..., "busy_ns": ...}. For a guest of one CPU whose clock counts instructions.

The kernel's own account of idle time is not exact enough: unless the tick is stopped it is sampled,
and interrupts that come while it is stopped are part of it. So a loop at idle priority counts what
is left over. It is calibrated alone first; every turn that is missing afterwards is time that
somebody else had: the command, interrupts, kernel threads, context switches.
"""

import json
import os
import signal
import subprocess
import sys
import time

CALIBRATION_S = 0.1
CALIBRATIONS = 5


class Stop(Exception):
    """Raised by the signal that ends a count."""


def stop(*_):
    raise Stop


def turns():
    """How often a loop turns until a signal comes."""
    count = 0
    try:
        while True:
            count += 1
    except Stop:
        return count


def rate():
    """Turns per nanosecond, with nobody else there."""
    begin = time.monotonic_ns()
    signal.setitimer(signal.ITIMER_REAL, CALIBRATION_S)
    return turns() / (time.monotonic_ns() - begin)


def main():
    signal.signal(signal.SIGALRM, stop)
    signal.signal(signal.SIGCHLD, stop)
    normal = os.sched_getscheduler(0), os.sched_getparam(0)
    idle = os.SCHED_IDLE, os.sched_param(0)

    # Until all that runs was read from the host's file system, time passes in waiting for it.
    os.sched_setscheduler(0, *idle)
    full = max(rate() for _ in range(CALIBRATIONS))

    os.sched_setscheduler(0, *normal)
    command = subprocess.Popen(sys.argv[1:])
    os.sched_setscheduler(0, *idle)
    begin = time.monotonic_ns()
    count = turns()
    wall = time.monotonic_ns() - begin
    print(json.dumps({"wall_ns": wall, "busy_ns": wall - count / full}), flush=True)
    sys.exit(command.wait())


if __name__ == "__main__":
    main()
