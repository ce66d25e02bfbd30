#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0
"""Work of a certain amount: job.py UNITS SEED FILE...

A unit reads a few blocks of each FILE, at random, and then thinks. Prints the seconds that all of
it took, and the bytes that were read from a disk for it, as JSON.
"""

import json
import os
import random
import sys
import time

from service import read_from_disks

SIZE = 64 << 10
READS = 8
THINKING_S = 0.04


def main():
    units, chance = int(sys.argv[1]), random.Random(int(sys.argv[2]))
    files = [os.open(name, os.O_RDONLY) for name in sys.argv[3:]]
    blocks = [os.fstat(file).st_size // SIZE for file in files]
    buffer = [bytearray(SIZE)]
    begin, read = time.monotonic(), read_from_disks()
    for _ in range(units):
        for file, count in zip(files, blocks, strict=True):
            for _ in range(READS):
                os.preadv(file, buffer, chance.randrange(count) * SIZE)
        time.sleep(THINKING_S)
    print(json.dumps({"seconds": time.monotonic() - begin, "read": read_from_disks() - read}))


if __name__ == "__main__":
    main()
