#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0
"""Change how much memory is used, at an even pace: hold.py FILE MIB SECONDS

FILE, on a tmpfs, grows or shrinks to so many MiB. Prints the seconds that it took, which are more
than SECONDS if the memory was not to be had in time.
"""

import os
import sys
import time

MIB = 1 << 20


def main():
    goal, seconds = int(sys.argv[2]), float(sys.argv[3])
    # Not zeros: the kernel swaps those for nothing.
    content = os.urandom(MIB)
    with open(sys.argv[1], "ab", buffering=0) as file:
        size = file.tell() // MIB
        steps = abs(goal - size)
        started = time.monotonic()
        for step in range(1, steps + 1):
            if goal < size:
                file.truncate((size - step) * MIB)
            elif file.write(content) != MIB:
                sys.exit("no space is left")
            time.sleep(max(0, started + seconds * step / steps - time.monotonic()))
    print(time.monotonic() - started)


if __name__ == "__main__":
    main()
