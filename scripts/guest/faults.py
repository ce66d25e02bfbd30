#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0
"""How long a task waits for each page that it touches first, until a file exists: faults.py FILE

Prints {"count": ..., "median_us": ..., "p99_us": ..., "max_us": ...}.
"""

import json
import mmap
import os
import sys
import time

SIZE = 8 << 20


def main():
    times = []
    while not os.path.exists(sys.argv[1]):
        with mmap.mmap(-1, SIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
            for offset in range(0, SIZE, mmap.PAGESIZE):
                begin = time.perf_counter_ns()
                memory[offset] = 1
                times.append(time.perf_counter_ns() - begin)
        # The processor is not all this task's.
        time.sleep(0.005)
    times.sort()
    at = {"median_us": 0.5, "p99_us": 0.99}
    found = {name: times[int(len(times) * part)] / 1000 for name, part in at.items()}
    print(json.dumps({"count": len(times), **found, "max_us": times[-1] / 1000}))


if __name__ == "__main__":
    main()
