# SPDX-License-Identifier: GPL-2.0
"""What the tools print: lines, JSON and tables.

rich is imported where a table is made: it takes its time, and not every command needs it.
"""

import json
import os
import sys
from collections.abc import Sequence
from typing import TextIO

WIDE = 10_000


def discard(file: TextIO) -> None:
    """Nobody reads it any more: what is written from now on goes nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), file.fileno())


def write(text: str, file: TextIO | None = None) -> None:
    """A line, at once. It fails once only, so that all can be put right after that."""
    file = file or sys.stdout
    try:
        print(text, file=file, flush=True)
    except BrokenPipeError:
        discard(file)
        raise


def write_json(value, indent: int | None = 2) -> None:
    """For programs."""
    write(json.dumps(value, indent=indent))


def error(text: str) -> None:
    """A line for people, however --json is set."""
    print(f"error: {text}", file=sys.stderr)


def make_table(first: str, headings: Sequence[str], rows: Sequence[Sequence[str]]):
    """A table: names to the left, all else to the right. A name is a name, not markup."""
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    table = Table(box=None, pad_edge=False)
    table.add_column(first)
    for heading in headings:
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table


def fit_table(
    first: str,
    headings: Sequence[str],
    rows: Sequence[Sequence[str]],
    least_important: Sequence[str],
    console,
):
    """A table, without the headings that there is no room for, and those.

    In a file it is as wide as it has to be; on a terminal nothing is cut either.
    """
    from rich.measure import Measurement  # noqa: PLC0415

    left, missing = list(headings), []

    def table():
        places = [0, *(headings.index(heading) + 1 for heading in left)]
        return make_table(first, left, [[row[place] for place in places] for row in rows])

    def width():
        return Measurement.get(console, console.options.update(width=WIDE), table()).maximum

    for heading in least_important if console.is_terminal else ():
        if width() <= console.width:
            break
        left.remove(heading)
        missing.append(heading)
    return table(), width(), missing


def show_table(first, headings, rows, least_important=(), console=None) -> None:
    """Print a table, and name what there was no room for."""
    from rich.console import Console  # noqa: PLC0415

    console = console or Console()
    room = console.width
    table, width, missing = fit_table(first, headings, rows, least_important, console)
    console.width = max(room, width)
    console.print(table)
    console.width = room
    if missing:
        console.print(f"For want of room not shown: {', '.join(missing)}.", style="dim")
