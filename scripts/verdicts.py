# SPDX-License-Identifier: GPL-2.0
"""What the tests of a run came to, what is run once more, and what each part of the run cost."""

import dataclasses
import pathlib
import re
import threading
import time
from collections.abc import Callable

# More failures than this are no accident: they are not run once more.
AGAIN_AT_MOST = 6
# More unstable tests than this fail the run.
UNSTABLE_AT_MOST = 2


def say(text: str) -> None:
    """A progress line."""
    print(f"== {text}", flush=True)


def suite_name(name: str) -> str:
    """The name of a test without the kernel that it was run on."""
    area, _, rest = name.partition(": ")
    if not rest:
        return name
    return f"host/{rest}" if area == "host" else rest


def read_differences(file: pathlib.Path) -> dict[str, str]:
    """Lines of "NAME: REASON", with comments."""
    lines = file.read_text().splitlines()
    pairs = (line.split(": ", 1) for line in lines if line and not line.startswith("#"))
    return {name: reason for name, reason in pairs}


class Parts:
    """The wall time and CPU time of each part of a run. Parts may run beside each other."""

    def __init__(self):
        self._began = time.monotonic()
        self._lock = threading.Lock()
        self._spans: dict[str, list[tuple[float, float]]] = {}
        self._cpu: dict[str, float] = {}

    def add(self, part: str, began: float, cpu: float) -> None:
        """Some of it took from `began` (time.monotonic) until now, and cost `cpu` seconds."""
        with self._lock:
            self._spans.setdefault(part, []).append((began, time.monotonic()))
            self._cpu[part] = self._cpu.get(part, 0) + cpu

    @staticmethod
    def _covered(spans: list[tuple[float, float]]) -> float:
        """For how long at least one of them lasted."""
        covered, until = 0.0, float("-inf")
        for began, ended in sorted(spans):
            covered += max(0, ended - max(began, until))
            until = max(until, ended)
        return covered

    def table(self) -> list[str]:
        """By CPU time, the most first."""
        rows = [(self._cpu[part], self._covered(s), part) for part, s in self._spans.items()]
        rows.sort(reverse=True)
        rows.append((sum(self._cpu.values()), time.monotonic() - self._began, "all"))
        lines = ["CPU time  wall time  part"]
        return lines + [f"{cpu:6.0f} s  {wall:7.0f} s  {part}" for cpu, wall, part in rows]


@dataclasses.dataclass
class Again:
    """How a test that failed is run once more by itself."""

    # All that it said the first time.
    output: str
    # Adds what comes of it to a report, and returns all that it says this time.
    run: Callable[["Report"], str]


class Report:
    """What passed, failed and was skipped.

    A test that failed and can be run once more counts when that is done (`run_again`). If it passes
    then it is unstable: it counts as passed, unless there are more of those than
    UNSTABLE_AT_MOST. Both outputs are kept.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        parts: Parts | None = None,
        quiet: bool = False,
        differences: dict[str, str] | None = None,
    ):
        # Where outputs are kept.
        self.folder = folder
        self.parts = parts or Parts()
        self.quiet = quiet
        # Tests that are known to fail, as the suite names them, and why.
        self.differences = differences or {}
        self.differs: list[str] = []
        # Name, status and details of each that counts.
        self.entries: list[tuple[str, str, str]] = []
        self.unstable: list[str] = []
        self._again: list[tuple[str, str, Again]] = []

    def _print(self, mark: str, name: str, detail: str) -> None:
        if self.quiet:
            return
        print(f"{mark:8}{name}", flush=True)
        if detail:
            print("\n".join(f"    {line}" for line in detail.splitlines()), flush=True)

    def add(self, name: str, status: str, detail: str = "", again: Again | None = None) -> None:
        """One test: passed, failed or skipped. With `again`, a failure is not the last word.

        One that is known to fail passes if it does, and fails if it passes.
        """
        reason = self.differences.get(suite_name(name))
        if reason and status == "failed":
            self._print("differs", name, f"{reason}\n{detail}")
            self.differs.append(name)
            self.entries.append((name, "passed", ""))
            return
        if reason and status == "passed":
            status, again = "failed", None
            detail = f"it passes, and is a known difference: {reason}"
        mark = {"passed": "ok", "failed": "FAILED", "skipped": "skipped"}[status]
        self._print(mark, name, detail if status != "passed" else "")
        if status == "failed" and again:
            self._again.append((name, detail, again))
        else:
            self.entries.append((name, status, detail))

    def _keep(self, name: str, which: str, output: str) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        file = self.folder / f"{re.sub(r'[^A-Za-z0-9.]+', '-', name)}.{which}.txt"
        file.write_text(output)

    def _passes_again(self, name: str, again: Again) -> bool:
        """Run it. What is said there of others is added here, unless it was said before."""
        second = Report(self.folder, self.parts, quiet=True)
        began = time.monotonic()
        output = again.run(second)
        say(f"once more: {name}: {time.monotonic() - began:.0f} s")
        self._keep(name, "first", again.output)
        self._keep(name, "second", output)
        known = {name for name, _, _ in (*self.entries, *self._again)}
        found = [*second.entries, *((n, "failed", detail) for n, detail, _ in second._again)]
        for entry in found:
            if entry[0] not in known:
                self.add(*entry)
        statuses = {status for _, status, _ in found}
        return "passed" in statuses and "failed" not in statuses

    def run_again(self) -> None:
        """Once more all that failed, one after the other. Nothing else may run now."""
        if len(self._again) > AGAIN_AT_MOST:
            say(f"{len(self._again)} tests failed: too many to run them once more")
        for name, detail, again in self._again:
            if len(self._again) <= AGAIN_AT_MOST and self._passes_again(name, again):
                self._print("unstable  ", name, f"it passed once more by itself: {self.folder}")
                self.unstable.append(name)
            else:
                self.entries.append((name, "failed", detail))
        self._again.clear()
        status = "failed" if len(self.unstable) > UNSTABLE_AT_MOST else "passed"
        self.entries += [(name, status, "") for name in self.unstable]

    def count(self, status: str) -> int:
        """How many."""
        return sum(found == status for _, found, _ in self.entries)

    def finish(self) -> int:
        """Print the end of a run; its exit status."""
        for name, status, _ in self.entries:
            if status == "failed":
                print(f"failed: {name}")
        for line in self.parts.table():
            say(line)
        if self.differences:
            print(f"{len(self.differs)} differ as is known")
        if self.unstable:
            print(f"{len(self.unstable)} unstable: {', '.join(self.unstable)}")
        counts = {status: self.count(status) for status in ("passed", "failed", "skipped")}
        print(", ".join(f"{count} {status}" for status, count in counts.items()), flush=True)
        return 1 if counts["failed"] else 0
