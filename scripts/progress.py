#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Show the progress of a kernel build that arrives on standard input: progress.py EXPECTED DONE."""

import re
import sys
import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

OBJECT = re.compile(r"^\s+(?:CC|AS|RUSTC)\b.*\s(\S+\.o)$")
LINE_SECONDS = 30


def main():
    expected, done = int(sys.argv[1]), int(sys.argv[2])
    console = Console(stderr=True)
    columns = [
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    ]
    shown = time.monotonic()
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("objects", total=expected, completed=done)
        for line in sys.stdin:
            if not OBJECT.match(line):
                continue
            done += 1
            progress.update(task, completed=done, total=max(done, expected))
            if not console.is_terminal and time.monotonic() - shown >= LINE_SECONDS:
                shown = time.monotonic()
                console.print(f"   {done} of about {max(done, expected)} objects")


if __name__ == "__main__":
    main()
