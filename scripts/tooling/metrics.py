# SPDX-License-Identifier: GPL-2.0
"""Figures as OpenMetrics text, for node_exporter's textfile collector, or over HTTP.

prometheus_client is imported where it is needed: only who asks for metrics must have it.
"""

import argparse
import contextlib
import dataclasses
import itertools
import os
import pathlib
import tempfile
from collections.abc import Callable, Iterable, Sequence

from .arguments import port
from .output import write


class MetricsError(Exception):
    """Why there are none."""


@dataclasses.dataclass
class Family:
    """Figures of one kind; `name` has the unit in it. A total is a counter."""

    name: str
    text: str
    labels: tuple[str, ...] = ()
    values: list[tuple[tuple[str, ...], float]] = dataclasses.field(default_factory=list)

    def add(self, *labels: str, value: float | None) -> None:
        """One figure. What is not known is left out."""
        if value is not None:
            self.values.append((labels, value))


@dataclasses.dataclass
class Histogram:
    """Figures that are distributions. `bounds` are the highest values of all buckets but one."""

    name: str
    text: str
    labels: tuple[str, ...]
    bounds: Sequence[float]
    values: list[tuple[tuple[str, ...], list[int], float]] = dataclasses.field(default_factory=list)

    def add(self, *labels: str, counts: Iterable[tuple[float, float, int]]) -> None:
        """One distribution: how many values there were from one to another, both included. Of a
        value no more is known than that, so their sum goes by the middle.
        """
        parts, total = [0] * (len(self.bounds) + 1), 0.0
        for low, high, count in counts:
            place = sum(bound < high for bound in self.bounds)
            parts[place] += count
            total += (low + high) / 2 * count
        self.values.append((labels, list(itertools.accumulate(parts)), total))


class Collector:
    """Families, as prometheus_client collects them: read anew each time."""

    def __init__(self, families: Callable[[], Iterable[Family | Histogram]]):
        self.families = families

    def collect(self):
        """As prometheus_client calls it."""
        from prometheus_client import core  # noqa: PLC0415

        for family in self.families():
            if isinstance(family, Histogram):
                made = core.HistogramMetricFamily(family.name, family.text, labels=family.labels)
                bounds = [*map(repr, map(float, family.bounds)), "+Inf"]
                for labels, counts, total in family.values:
                    made.add_metric(labels, list(zip(bounds, counts, strict=True)), total)
                yield made
                continue
            counts = family.name.endswith("_total")
            kind = core.CounterMetricFamily if counts else core.GaugeMetricFamily
            made = kind(family.name.removesuffix("_total"), family.text, labels=family.labels)
            for labels, value in family.values:
                made.add_metric(labels, value)
            yield made


def registry_of(families: Callable[[], Iterable[Family | Histogram]]):
    """With these and nothing else."""
    try:
        from prometheus_client import CollectorRegistry  # noqa: PLC0415
    except ImportError:
        raise MetricsError(
            "metrics need prometheus_client (Debian: python3-prometheus-client)"
        ) from None
    registry = CollectorRegistry(auto_describe=False)
    registry.register(Collector(families))
    return registry


def text_of(families: Iterable[Family | Histogram]) -> str:
    """OpenMetrics text."""
    families = list(families)
    registry = registry_of(lambda: families)
    from prometheus_client.openmetrics.exposition import generate_latest  # noqa: PLC0415

    return generate_latest(registry).decode()


def write_file(path: pathlib.Path, families: Iterable[Family | Histogram]) -> None:
    """For the textfile collector, which must never see half of it. It takes the older format, in
    which counters have the same names.
    """
    families = list(families)
    registry = registry_of(lambda: families)
    from prometheus_client.exposition import generate_latest  # noqa: PLC0415

    replace_file(path, generate_latest(registry).decode())


def replace_file(path: pathlib.Path, text: str, mode: int = 0o644) -> None:
    """All of it or nothing, also when the power fails."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:100]}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, mode)
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def serve(families: Callable[[], Iterable[Family | Histogram]], port: int):
    """Over HTTP, for this machine only, in a thread. Returns the server, if that is known."""
    registry = registry_of(families)
    from prometheus_client import start_http_server  # noqa: PLC0415

    try:
        started = start_http_server(port, addr="127.0.0.1", registry=registry)
    except OSError as problem:
        raise MetricsError(f"port {port}: {problem.strerror}") from None
    # Before its version 0.20 it returned nothing.
    return started[0] if started else None


def add_options(parser: argparse.ArgumentParser) -> None:
    """Where metrics go to."""
    parser.add_argument(
        "--file", type=pathlib.Path, metavar="FILE", help="for node_exporter's textfile collector"
    )
    parser.add_argument("--listen", type=port, metavar="PORT", help="serve them on 127.0.0.1")


def publish(path: pathlib.Path | None, families: Iterable[Family | Histogram]) -> None:
    """Once: to a file, or as OpenMetrics text on standard output."""
    if path is None:
        write(text_of(families).rstrip("\n"))
        return
    try:
        write_file(path, families)
    except OSError as problem:
        raise MetricsError(f"{path}: {problem.strerror}") from None
