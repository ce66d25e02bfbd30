#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0
"""A service with an objective for its latency: service.py FILE RATE SEED RESULT

Requests come at random times, RATE a second on average, whether or not those before are done. One
after the other is served, by a read at random from FILE, which is in memory. The latency counts
from when a request was to come: while all stands still for a second, RATE requests are late, and
not the one that happened to be under way.

SIGUSR1: what comes from now on counts. SIGTERM: no more comes; RESULT has the microseconds that
each took, by the second the most that one took, and the bytes that were read from a disk for them.
"""

import array
import gc
import json
import os
import random
import signal
import sys
import time

SIZE = 64 << 10


def read_from_disks():
    """Bytes, by this process so far."""
    with open("/proc/self/io") as counters:
        return int(counters.read().split("\nread_bytes: ")[1].split()[0])


def main():
    name, rate, seed, result = sys.argv[1], float(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    begin = end = float("inf")
    read = 0

    def count(*_):
        nonlocal begin, read
        read = read_from_disks()
        begin = time.monotonic()

    def stop(*_):
        nonlocal end
        end = time.monotonic()

    signal.signal(signal.SIGUSR1, count)
    signal.signal(signal.SIGTERM, stop)
    chance = random.Random(seed)
    buffer = [bytearray(SIZE)]
    took = array.array("d")
    slowest = {}
    file = os.open(name, os.O_RDONLY)
    blocks = os.fstat(file).st_size // SIZE
    gc.disable()
    due = time.monotonic()
    while True:
        due += chance.expovariate(rate)
        if (wait := due - time.monotonic()) > 0:
            time.sleep(wait)
        # Those that were due when it was told to end are served.
        if due > end:
            break
        os.preadv(file, buffer, chance.randrange(blocks) * SIZE)
        latency = time.monotonic() - due
        if due >= begin:
            took.append(latency)
            second = int(due - begin)
            slowest[second] = max(slowest.get(second, 0), latency)
    with open(f"{result}.new", "w") as output:
        found = {second: round(latency * 1e6) for second, latency in slowest.items()}
        us = [round(latency * 1e6) for latency in took]
        json.dump({"us": us, "slowest": found, "read": read_from_disks() - read}, output)
    os.rename(f"{result}.new", result)


if __name__ == "__main__":
    main()
