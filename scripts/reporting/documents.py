# SPDX-License-Identifier: GPL-2.0
"""What lies in out/bench, in words."""

import ast
import dataclasses
import datetime
import json
import pathlib
import re
from collections.abc import Iterable

from benchmarks.results import OPERATORS, number

SIGNS = {"<=": "≤", "<": "<", ">=": "≥", ">": ">"}
VERDICTS = {True: "met", False: "missed", None: ""}


@dataclasses.dataclass(frozen=True)
class Result:
    """A metric of a document, see Metric of benchmarks/results.py."""

    benchmark: str
    metric: str
    unit: str
    ferrule: float | None
    peer: float | None
    peer_name: str | None
    ratio: float | None
    spread: list[float] | None
    goal: str | None
    met: bool | None
    better: str
    note: str | None
    pairs: int

    @classmethod
    def read(cls, benchmark: str, entry: dict) -> "Result":
        """An entry. Older ones have less in them."""
        wanted = {field.name: entry.get(field.name) for field in dataclasses.fields(cls)}
        samples = entry.get("samples", {})
        wanted |= {"benchmark": benchmark, "better": entry.get("better") or ""}
        wanted["pairs"] = max(map(len, samples.values()), default=0)
        return cls(**wanted)

    @property
    def verdict(self) -> str:
        """met, missed or nothing."""
        return VERDICTS[self.met]

    @property
    def goal_of(self) -> tuple[str, str, float] | None:
        """What the goal is of, the relation, and the bound."""
        if self.goal is None:
            return None
        of, relation, bound = self.goal.split()
        return of, relation, float(bound)

    @property
    def goal_text(self) -> str:
        """Such as ≤ 0.7."""
        if self.goal_of is None:
            return ""
        of, relation, bound = self.goal_of
        text = f"{SIGNS[relation]} {bound:,g}"
        return self.with_unit(text) if of == "ferrule" else text

    @property
    def ratio_text(self) -> str:
        """As exact as it takes to see on which side of the goal it is."""
        if self.ratio is None:
            return ""
        return self.beside_goal("ratio", (ratio_digits(self.ratio, n) for n in range(3, 8)))

    def beside_goal(self, of: str, texts: Iterable[str]) -> str:
        """The first text of a figure that is on its side of the goal."""
        goal_of, relation, bound = self.goal_of or ("", "", 0)
        for text in texts:
            shown = float(text.replace(",", ""))
            if goal_of != of or OPERATORS[relation](shown, bound) == self.met:
                break
        return text

    def with_unit(self, text: str) -> str:
        """Where it has one."""
        return text if self.unit in ("", "number", "ratio") else f"{text} {self.unit}"

    @property
    def factor(self) -> str:
        """The word after the ratio."""
        return "times" if self.ratio is not None and self.ratio >= 1 else "of"

    @property
    def spread_text(self) -> str:
        """From what to what."""
        if self.spread:
            low, high = (ratio_digits(bound, 3) for bound in self.spread)
            return f"{low} to {high}"
        return "one sample" if self.pairs == 1 else "spread unknown"

    @property
    def against(self) -> str:
        """The ratio in a few words."""
        if self.ratio is None:
            return ""
        text = f"{self.ratio_text} {self.factor} that"
        return f"{text} ({self.spread_text})" if self.spread else text

    @property
    def judged(self) -> str:
        """How that is to be taken; where there is a goal, the verdict is to follow."""
        if self.goal_of is None:
            return f"{self.better} is better" if self.better else ""
        figure = f"{self.figure_text}, " if self.goal_of[0] == "ferrule" else ""
        return f"{figure}goal {self.goal_text}"

    @property
    def figure_text(self) -> str:
        """Ours with its unit."""
        if self.ferrule is None:
            return "could not be measured"
        if not self.goal_of or self.goal_of[0] == "ratio" or abs(self.ferrule) >= 1000:
            return self.with_unit(number(self.ferrule))
        # What is nearly all should not look like all.
        texts = (f"{self.ferrule:.{digits}g}" for digits in range(5, 10))
        return self.with_unit(self.beside_goal("ferrule", texts))

    @property
    def peer_text(self) -> str:
        """The peer's."""
        return self.with_unit(number(self.peer)) if self.peer is not None else ""


def ratio_digits(ratio: float, digits: int) -> str:
    """So many significant ones, one more near 1, and no powers of ten."""
    if ratio == 0 or abs(ratio) >= 1000:
        return f"{ratio:,.0f}"
    if abs(ratio) < 1e-4:
        return f"{ratio:.{digits + 3}f}"
    digits += 1 <= ratio < 1.1
    return f"{ratio:#.{digits}g}".rstrip(".")


@dataclasses.dataclass(frozen=True)
class Document:
    """The last run of a benchmark."""

    name: str
    about: str
    machine: dict
    results: list[Result]
    series: list[dict]

    @property
    def date(self) -> str:
        """When it began."""
        text = self.machine.get("date", "")
        try:
            return f"{datetime.datetime.fromisoformat(text):%-d %B %Y, %H:%M} UTC"
        except ValueError:
            return text or "an unknown date"

    @property
    def command(self) -> str:
        """How to run it again."""
        return f"make bench B={self.name}"

    @property
    def cpu(self) -> str:
        """What it ran on."""
        return (
            f"{self.machine.get('cpu', 'an unknown CPU')}, {self.machine.get('cores', '?')} cores"
        )

    @property
    def place(self) -> str:
        """Where, on what, and of what."""
        commit = self.machine.get("commit")
        kernel = self.machine.get("kernel")
        words = [self.cpu, f"Linux {kernel}" if kernel else "no guest"]
        words.append(f"commit {commit}" if commit else "commit not recorded")
        return "; ".join(words)

    @property
    def notes(self) -> list[str]:
        """Each once."""
        return list(dict.fromkeys(result.note for result in self.results if result.note))


@dataclasses.dataclass(frozen=True)
class Benchmarks:
    """All documents by name, those of which there is none, and files that are no documents."""

    measured: dict[str, Document]
    unmeasured: list[str]
    unreadable: list[str]

    @property
    def results(self) -> list[Result]:
        """Of all."""
        return [result for document in self.measured.values() for result in document.results]

    @property
    def places(self) -> list[str]:
        """The days, and then the machines."""
        documents = sorted(self.measured.values(), key=lambda doc: doc.machine.get("date", ""))
        days = [document.date.split(",")[0] for document in documents]
        return list(dict.fromkeys([*days, *(document.cpu for document in documents)]))

    @property
    def emulated(self) -> bool:
        """Whether some guest was."""
        return any(
            "TCG" in guest
            for document in self.measured.values()
            for guest in document.machine.get("guests", [])
        )

    def with_goal(self, met: bool) -> list[Result]:
        """Those whose goal is met, or is not."""
        return [result for result in self.results if result.met is met]


def read_series(entry: dict) -> dict:
    """An entry of what is to be drawn, see benchmarks/results.py. Older ones have less."""
    bound = entry.get("bound")
    return {
        **{key: str(entry[key]) for key in ("title", "x", "y")},
        "lines": {
            name: [(x if isinstance(x, str) else x + 0, y + 0) for x, y in points]
            for name, points in entry["lines"].items()
        },
        "bound": None if bound is None else float(bound),
        "log": str(entry.get("log") or ""),
    }


def read_all(directory: pathlib.Path, known: dict[str, pathlib.Path]) -> Benchmarks:
    """The documents of a directory; `known` are the benchmarks that there are."""
    measured, unreadable = {}, []
    for path in sorted(directory.glob("*.json")):
        try:
            document = json.loads(path.read_text())
            name = document["benchmark"]
            results = [Result.read(name, entry) for entry in document["results"]]
            for result in results:
                _ = result.goal_text
            series = [read_series(entry) for entry in document.get("series", [])]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            unreadable.append(f"{path.name}: {error!r}")
            continue
        about = description(known[name]) if name in known else ""
        measured[name] = Document(name, about, document.get("machine", {}), results, series)
    return Benchmarks(measured, [name for name in known if name not in measured], unreadable)


def description(module: pathlib.Path) -> str:
    """The first paragraph of what a benchmark's module says of itself."""
    text = (ast.get_docstring(ast.parse(module.read_text())) or "").replace("`", "")
    return re.sub(r"\s+", " ", text.split("\n\n")[0])
