# SPDX-License-Identifier: GPL-2.0
"""Figures for Plotly, as the dictionaries that it takes.

They have no colours: a trace says by `meta` what it is, and the page gives it the colours of the
light or the dark scheme. Text goes through `plain`, for Plotly takes tags in it.

What has names is drawn in rows: each below its name, which has the width of a phone then, or on a
wide page beside it. Rows are placed in pixels; the axis runs downwards.
"""

import html
import math
import textwrap

from .documents import Document, Result

# Characters that fit beside each other on a phone, and how tall a line of them is.
WIDTH, LINE = 54, 16
ROW, GAP = 26, 10
# A bar, and how far above the middle of it its goal is marked.
BAR, MARK = 12, 10
# Where what is drawn begins on a wide page.
BESIDE = 0.44
# Below: the axis and its title. Above: the legend.
BELOW, ABOVE = 48, 40
BARS = {"met": "goal met", "missed": "goal missed", "none": "no goal"}
GOAL = "goal"


def plain(text: str) -> str:
    """Text that Plotly shows as it is."""
    return html.escape(text, quote=False)


class Rows:
    """Names, one above the other, and a place to draw below or beside each."""

    def __init__(self, wide: bool):
        self.wide = wide
        self.height = 0
        self.annotations = []

    def text(self, text: str, role: str) -> None:
        """Lines of text."""
        lines = [plain(line) for line in textwrap.wrap(text, WIDTH)] or [""]
        if role != "name":
            lines = [f"<i>{line}</i>" if role == "words" else f"<b>{line}</b>" for line in lines]
        self.annotations.append(
            {
                "text": "<br>".join(lines),
                "name": role,
                "xref": "paper",
                "x": 0,
                "xanchor": "left",
                "yref": "y",
                "y": self.height,
                "yanchor": "top",
                "align": "left",
                "showarrow": False,
                "borderpad": 0,
            }
        )
        self.height += LINE * len(lines)

    def row(self, name: str, words: str = "") -> float:
        """The middle of the place to draw of a new row."""
        top = self.height
        self.text(name, "name")
        if words:
            self.text(words, "words")
        if self.wide:
            middle = (top + self.height) / 2
        else:
            middle = self.height + ROW - BAR
            self.height += ROW
        self.height += GAP
        return middle

    def space(self) -> None:
        """Before a heading."""
        self.height += GAP if self.height else 0

    def layout(self, axis: dict) -> dict:
        """Of the figure."""
        axis["domain"] = [BESIDE if self.wide else 0, 1]
        return {
            "height": self.height + BELOW + ABOVE,
            "margin": {"l": 2, "r": 14, "t": ABOVE, "b": BELOW},
            "annotations": self.annotations,
            "barmode": "overlay",
            "xaxis": axis,
            "yaxis": {"range": [self.height, 0], "visible": False, "fixedrange": True},
            "showlegend": True,
        }

    def line(self, at: float, role: str) -> dict:
        """From top to bottom."""
        return {
            "type": "scatter",
            "mode": "lines",
            "x": [at, at],
            "y": [0, self.height],
            "meta": role,
            "hoverinfo": "skip",
            "showlegend": False,
        }


def drawable(ratio: float | None) -> bool:
    """On a logarithmic scale."""
    return ratio is not None and math.isfinite(ratio) and ratio > 0


def ratios(document: Document, wide: bool) -> dict:
    """What is drawn of a benchmark's metrics: ratios to each peer, with a bar from 1 each."""
    by_peer: dict[str, list[Result]] = {}
    for result in document.results:
        if result.ratio is not None:
            by_peer.setdefault(result.peer_name or "the peer", []).append(result)
    rows = Rows(wide)
    bars = {role: [] for role in BARS}
    goals = []
    seen = [1.0]
    for peer, results in by_peer.items():
        rows.space()
        rows.text(f"By {peer}", "heading")
        for result in results:
            words = "; ".join(filter(None, (result.against, result.judged)))
            words += f": {result.verdict}" if result.verdict else ""
            middle = rows.row(result.metric, words)
            if drawable(result.ratio):
                role = result.verdict or "none"
                bars[role].append((middle, result))
                seen += [result.ratio, *filter(drawable, result.spread or [])]
            if result.goal_of and result.goal_of[0] == "ratio" and drawable(result.goal_of[2]):
                goals.append((middle, result.goal_of[2]))
                seen.append(result.goal_of[2])
    low, high = math.log10(min(seen)), math.log10(max(seen))
    # Where all is near 1, some of the scale; and a margin.
    low, high = min(low, -0.1), max(high, 0.1)
    margin = 0.04 * (high - low)
    axis = {
        "type": "log",
        "range": [low - margin, high + margin],
        "title": {"text": "ratio to the peer, logarithmic"},
        **ticks(low, high),
    }
    traces = [bar(role, entries) for role, entries in bars.items() if entries]
    if goals:
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": "goal",
                "meta": GOAL,
                "x": [bound for _, bound in goals],
                "y": [middle - MARK for middle, _ in goals],
                "marker": {"symbol": "triangle-down", "size": 9},
                "text": [f"goal: {bound:g}" for _, bound in goals],
                "hovertemplate": "%{text}<extra></extra>",
            }
        )
    return {"data": [rows.line(1, "one"), *traces], "layout": rows.layout(axis)}


def ticks(low: float, high: float) -> dict:
    """Powers of ten, and between them what has room."""
    steps = (1, 2, 5) if high - low < 3 else (1,)
    if high - low < 0.7:
        steps = (1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9)
    values = [
        step * 10.0**power
        for power in range(math.floor(low), math.ceil(high) + 1)
        for step in steps
        if low <= math.log10(step) + power <= high
    ]
    return {"tickvals": values, "ticktext": [f"{value:,g}" for value in values]}


def bar(role: str, entries: list[tuple[float, Result]]) -> dict:
    """Bars from 1 to the ratio, whose whiskers are its spread."""
    found = [result for _, result in entries]
    spreads = [result.spread or [result.ratio] * 2 for result in found]
    return {
        "type": "bar",
        "orientation": "h",
        "name": BARS[role],
        "meta": role,
        "base": [1] * len(found),
        "x": [result.ratio - 1 for result in found],
        "y": [middle for middle, _ in entries],
        "width": BAR,
        "error_x": {
            "type": "data",
            "symmetric": False,
            "array": [high - r.ratio for r, (_, high) in zip(found, spreads, strict=True)],
            "arrayminus": [
                # A whisker that would go to nothing or below is drawn to a tenth.
                r.ratio - max(low, r.ratio / 10)
                for r, (low, _) in zip(found, spreads, strict=True)
            ],
            "width": 5,
            "thickness": 1.5,
        },
        "text": [plain(f"{r.figure_text}; {r.peer_name}: {r.peer_text}") for r in found],
        "textposition": "none",
        "hovertemplate": "%{text}<extra></extra>",
    }


def series(entry: dict, wide: bool) -> dict:
    """A series of a document: lines over numbers, or points in rows by name."""
    lines = {name: [(x, y) for x, y in points] for name, points in entry["lines"].items()}
    words = any(isinstance(x, str) for points in lines.values() for x, _ in points)
    return points_by_name(entry, lines, wide) if words else lines_over_numbers(entry, lines)


def points_by_name(entry: dict, lines: dict, wide: bool) -> dict:
    """The words are rows, each line a kind of points in them."""
    rows = Rows(wide)
    places = {}
    for name in dict.fromkeys(x for points in lines.values() for x, _ in points):
        places[name] = rows.row(str(name))
    traces = [] if entry["bound"] is None else [rows.line(entry["bound"], "one")]
    traces += [
        {
            "type": "scatter",
            "mode": "markers",
            "name": plain(name),
            "meta": f"line{number}",
            "x": [y for _, y in points],
            "y": [places[x] for x, _ in points],
            "marker": {"size": 11},
            "text": [plain(f"{name}: {y:,.4g} {entry['y']}") for _, y in points],
            "hovertemplate": "%{text}<extra></extra>",
        }
        for number, (name, points) in enumerate(lines.items())
    ]
    kind = "log" if "y" in entry["log"] else "linear"
    axis = {"type": kind, "title": {"text": plain(entry["y"])}}
    if kind == "linear":
        axis["rangemode"] = "tozero"
    return {"data": traces, "layout": rows.layout(axis)}


def lines_over_numbers(entry: dict, lines: dict) -> dict:
    """As usual."""
    few = all(len(points) <= 30 for points in lines.values())
    traces = [
        {
            "type": "scatter",
            "mode": "lines+markers" if few else "lines",
            "name": plain(name),
            "meta": f"line{number}",
            "x": [x for x, _ in points],
            "y": [y for _, y in points],
        }
        for number, (name, points) in enumerate(lines.items())
    ]
    layout = {"height": 340, "margin": {"l": 2, "r": 14, "t": ABOVE, "b": BELOW}}
    for axis, key in (("xaxis", "x"), ("yaxis", "y")):
        kind = "log" if key in entry["log"] else "linear"
        title = {"text": plain(entry[key]), "standoff": 12}
        layout[axis] = {"type": kind, "title": title, "automargin": True}
    if layout["yaxis"]["type"] == "linear":
        layout["yaxis"]["rangemode"] = "tozero"
    whole = {x for points in lines.values() for x, _ in points}
    if len(whole) <= 12:
        layout["xaxis"] |= {
            "tickvals": sorted(whole),
            "ticktext": [f"{x:,g}" for x in sorted(whole)],
        }
    if entry["bound"] is not None:
        ends = [min(whole, default=0), max(whole, default=1)]
        bound = {"type": "scatter", "mode": "lines", "x": ends, "y": [entry["bound"]] * 2}
        traces.append(bound | {"name": "goal", "meta": GOAL})
    return {"data": traces, "layout": layout}
