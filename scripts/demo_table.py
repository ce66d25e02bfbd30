# SPDX-License-Identifier: GPL-2.0
"""What a demonstration prints: its steps, and a table of what was expected and measured."""

from rich.console import Console
from rich.table import Table
from rich.text import Text


class DemoTable:
    """Steps and rows go to the console as they come, the rows once more to a table at the end."""

    def __init__(self, first_heading: str):
        self.console = Console(width=100)
        self.table = Table(title="Expected and measured", show_lines=False)
        for heading in (first_heading, "what", "expected", "measured", ""):
            self.table.add_column(heading)
        self.failed = 0

    def row(self, part: str, what: str, expected: str, measured: str, good: bool) -> None:
        """One line of the table."""
        self.failed += not good
        # Such as a line of a kernel's log, where [ ] are no markup.
        cells = (part, what, expected, measured, "ok" if good else "NOT MET")
        self.table.add_row(*map(Text, cells))
        self.console.print(f"   {what}: expected {expected}, measured {measured}", markup=False)

    def step(self, text: str) -> None:
        """Say what comes."""
        self.console.print(f"== {text}", style="bold", markup=False)

    def say(self, text: str) -> None:
        """What happens that is no command."""
        self.console.print(f"   {text}", highlight=False, markup=False)

    def commands(self, script: str, prompt: str = "#") -> None:
        """What is run."""
        for line in script.strip().splitlines():
            self.console.print(
                f"   {prompt} {line.strip()}", style="dim", highlight=False, markup=False
            )
