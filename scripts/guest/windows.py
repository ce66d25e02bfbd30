#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0
"""How much was done when, by fio's latency logs: windows.py FIRST BEGIN END LOG...

Prints, as JSON, the I/Os and bytes from BEGIN to END, and the most of each in any 100 ms from FIRST
to END, all in milliseconds after the start. (When fio ends, it logs what it cancels.)
"""

import glob
import itertools
import json
import sys

WINDOW = 100


def most(per_ms: list[int]) -> int:
    """The largest sum of a window."""
    sums = [0, *itertools.accumulate(per_ms)]
    return max(b - a for a, b in zip(sums, sums[WINDOW:], strict=False))


def main():
    first, begin, end = map(int, sys.argv[1:4])
    ios, sizes = [0] * (2 * end), [0] * (2 * end)
    for name in itertools.chain.from_iterable(map(glob.glob, sys.argv[4:])):
        with open(name) as log:
            for line in log:
                # Time, latency, direction, size.
                time, _, _, size = line.split(",", 4)[:4]
                ios[int(time)] += 1
                sizes[int(time)] += int(size)
    result = {
        "ios": sum(ios[begin:end]),
        "bytes": sum(sizes[begin:end]),
        "most_ios": most(ios[first:end]),
        "most_bytes": most(sizes[first:end]),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
