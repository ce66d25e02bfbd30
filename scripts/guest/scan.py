#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0
"""Read a file from its beginning to its end, over and over, at a pace: scan.py FILE MIB_PER_SECOND

As a backup or a look for viruses does. What it has read it never needs again.
"""

import os
import sys
import time

SIZE = 128 << 10


def main():
    file, pause = os.open(sys.argv[1], os.O_RDONLY), SIZE / (float(sys.argv[2]) * (1 << 20))
    size = os.fstat(file).st_size
    buffer, offset = [bytearray(SIZE)], 0
    due = time.monotonic()
    while True:
        os.preadv(file, buffer, offset)
        offset = (offset + SIZE) % (size // SIZE * SIZE)
        # What came late is not made up for.
        due = max(due + pause, time.monotonic())
        time.sleep(max(0, due - time.monotonic()))


if __name__ == "__main__":
    main()
