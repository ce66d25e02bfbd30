#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Write out/report.html, a page of all that lies in out/bench, as `make report` does.

It is one file, which needs nothing else: the plotting library is in it, packed.
"""

import argparse
import base64
import gzip
import pathlib
import sys

import benchmarks
import jinja2
import plotly.offline
from benchmarks.results import OUT, number
from reporting import claims, plots
from reporting.documents import Benchmarks, Document, read_all

PAGE = OUT.parent / "report.html"
TEMPLATES = pathlib.Path(__file__).resolve().parent / "reporting"


def write(directory: pathlib.Path = OUT, page: pathlib.Path = PAGE) -> None:
    """The page."""
    sources = pathlib.Path(benchmarks.__file__).parent
    known = {name: sources / f"{name}.py" for name in benchmarks.names()}
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(render(read_all(directory, known)))
    print(f"== {page}: {page.stat().st_size / (1 << 20):.1f} MiB", file=sys.stderr)


def render(found: Benchmarks) -> str:
    """The page, as text."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["number"] = number
    return environment.get_template("page.html").render(
        found=found,
        headlines={
            group: [(headline, headline.source.find(found)) for headline in headlines]
            for group, headlines in claims.HEADLINES.items()
        },
        claims=[(claim, *judge(claim, found)) for claim in claims.CLAIMS],
        figures={name: figures_of(document) for name, document in found.measured.items()},
        library=packed_library(),
    )


def judge(claim: claims.Claim, found: Benchmarks) -> tuple[str, str]:
    """What was measured, and whether that is what is claimed."""
    result = claim.source.find(found)
    return (result, "not measured") if isinstance(result, str) else claim.judge(result)


def figures_of(document: Document) -> list[dict]:
    """What is drawn: for a narrow and for a wide page, or the same for both."""
    figures = []
    if any(result.ratio is not None for result in document.results):
        title = "Each metric by that of its peer; the whiskers are the spread"
        drawn = [plots.ratios(document, wide) for wide in (False, True)]
        figures.append({"title": title, "figure": drawn, "series": None})
    for entry in document.series:
        drawn = [plots.series(entry, wide) for wide in (False, True)]
        if drawn[0] == drawn[1]:
            drawn.pop()
        figures.append({"title": entry["title"], "figure": drawn, "series": entry})
    return figures


def packed_library() -> str:
    """Plotly, which is 5 MB otherwise. A page of the same figures is the same, so no time in it."""
    packed = gzip.compress(plotly.offline.get_plotlyjs().encode(), mtime=0)
    return base64.b64encode(packed).decode()


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bench", type=pathlib.Path, default=OUT, help="where NAME.json lie")
    parser.add_argument("--output", type=pathlib.Path, default=PAGE)
    args = parser.parse_args()
    write(args.bench, args.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
