# SPDX-License-Identifier: GPL-2.0
"""A storm of metadata: creates and syncs files in a directory, without end."""

import os
import sys

DIRECTORY = sys.argv[1]
FILES, SYNCED = 5000, 10

number = 0
while True:
    file = os.open(f"{DIRECTORY}/{number % FILES}", os.O_CREAT | os.O_WRONLY)
    os.write(file, b"x")
    os.close(file)
    number += 1
    if number % SYNCED == 0:
        os.sync()
