# SPDX-License-Identifier: GPL-2.0
"""The page of the benchmarks: whole, on its own, and true to what was measured."""

import base64
import gzip
import io
import json
import math
import re

import html5lib
import plotly.graph_objects
import pytest
import report
from benchmarks import names, results
from benchmarks.results import Goal, Results
from hypothesis import assume, given
from hypothesis import strategies as st
from reporting import claims, plots
from reporting.documents import Result
from rich.console import Console

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)> & \"' {{ 7 * 7 }}"


@pytest.fixture(autouse=True)
def directory(tmp_path, monkeypatch):
    """In place of out/bench."""
    path = tmp_path / "bench"
    path.mkdir()
    monkeypatch.setattr(results, "OUT", path)
    return path


@pytest.fixture
def measured(tmp_path):
    """Makes Results as a benchmark has them; its kernel says by what it was built."""
    (tmp_path / ".config").write_text(
        'CONFIG_CC_VERSION_TEXT="clang version 99.1"\nCONFIG_RUSTC_VERSION_TEXT="rustc 9.86.0"\n'
    )
    return lambda name: Results(name, tmp_path, Console(file=io.StringIO()))


def page(directory):
    """The page as text, and parsed by the rules of HTML: an error in it is an exception."""
    path = directory.parent / "report.html"
    report.write(directory, path)
    text = path.read_text()
    parser = html5lib.HTMLParser(strict=True, namespaceHTMLElements=False)
    return text, parser.parse(text)


def text_of(element):
    """What a reader sees of it, with single spaces."""
    return re.sub(r"\s+", " ", "".join(element.itertext())).strip()


def rows(document, heading):
    """The cells of the rows of the first table after a heading."""
    found = [
        table
        for section in document.iter()
        for before, table in zip(list(section), list(section)[1:], strict=False)
        if table.tag == "table" and heading in text_of(before)
    ]
    if not found:
        found = [d.find("table") for d in document.iter("details") if heading in text_of(d[0])]
    return [[text_of(cell) for cell in row.iter("td")] for row in found[0].iter("tr")][1:]


def claim_rows(document):
    """What is said of each claim."""
    table = next(t for t in document.iter("table") if "Claim" in text_of(t)[:20])
    return {
        r[0]: r[1:] for r in ([text_of(c) for c in row.iter("td")] for row in table.iter("tr")) if r
    }


def figures(document):
    """All figures, as the page's script has them."""
    script = next(s for s in document.iter("script") if s.get("id") == "figures")
    return json.loads(script.text)


def fill(found):
    """One of each kind of metric."""
    paired = {"peer": [10.0, 20.0], "peer_name": "one path", "paired": True}
    found.add("random 4 KiB and 64 KiB", "IOPS", [30, 80], goal=Goal("ratio", ">=", 2.33), **paired)
    found.add("mean latency", "ms", [5, 10], goal=Goal("ratio", "<=", 0.375), **paired)
    found.add("single", "ns", [1234.0], peer=[1000.0], peer_name="C")
    found.add("alone", "%", [0.25], goal=Goal("ferrule", "<=", 0.5))
    found.add("refused", "s", None, peer=[1], peer_name="C", goal=Goal("ratio", "<", 1), note="why")
    found.add("nothing", "number", [0], peer=[3, 4], peer_name="C")
    found.add("unpaired", "instructions", [20, 18, 22], peer=[40, 50], peer_name="C")
    found.series("by size", "KiB", "ms", {"a": [(4, 1.5), (64, 2.5)], "b": [(4, 7)]}, log="x")
    found.series("by name", "", "ratio", {"a": [("first", 0.75)], "b": [("first", 3)]}, bound=1)


def test_page_shows_each_metric_and_counts_goals(directory, measured):
    found = measured("iscsi")
    fill(found)
    found.write()
    _, document = page(directory)

    header = text_of(document.find("body/header"))
    assert "2 of 4 goals met, 2 missed" in header
    others = ", ".join(name for name in names() if name != "iscsi")
    assert f"not measured: {others}." in header
    assert "3.50 times the IOPS of one iSCSI link, with four 3.00 to 4.00" in header
    assert "goal ≥ 2.33: met" in header and "goal ≤ 0.375: missed" in header

    table = {row[0]: row[1:] for row in rows(document, "All metrics of iscsi")}
    assert table == {
        "random 4 KiB and 64 KiB": [
            *("55 IOPS", "15 IOPS", "one path", "3.50 (3.00 to 4.00)", "ratio ≥ 2.33", "met")
        ],
        "mean latency": [
            *(
                "7.5 ms",
                "15 ms",
                "one path",
                "0.500 (0.500 to 0.500)",
                "ratio ≤ 0.375",
                "missed",
            )
        ],
        "single": ["1,234 ns", "1,000 ns", "C", "1.23 (one sample)", "", ""],
        "alone": ["0.25 %", "", "", "", "figure ≤ 0.5 %", "met"],
        "refused": ["could not be measured", "1 s", "C", "", "ratio < 1", "missed"],
        "nothing": ["0", "3.5", "C", "0 (0 to 0)", "", ""],
        "unpaired": [
            *("20 instructions", "45 instructions", "C", "0.444 (0.360 to 0.550)", "", "")
        ],
    }
    missed = [row[0] for row in rows(document, "Goals that are missed")]
    assert missed == ["mean latency", "refused"]
    assert [row[0] for row in rows(document, "These figures")] == ["4 KiB", "64 KiB", "4 KiB"]


def test_claims_are_reached_or_not_or_not_measured(directory, measured):
    found = measured("iscsi")
    fill(found)
    found.write()
    found = measured("noisy")
    reserved = {"peer": [10.0], "peer_name": "no qos"}
    found.add("reads within 4.05 ms: qos, group", "%", [99.98], **reserved)
    found.add("standard deviation: qos, group", "ms", None, note="refused", **reserved)
    found.write()
    measured("consolidate").write()
    _, document = page(directory)
    said = claim_rows(document)
    assert [cells[-1] for cells in said.values()] == [
        *("not measured", "not measured", "reached", "not reached"),
        *("could not be measured", "not reached"),
    ]
    assert said["Multipath iSCSI brings 12,000 IOPS to 28,000"][:2] == [
        "at least 2.33 times",
        "3.50 times (3.00 to 4.00): four links by one",
    ]
    assert "99.98 % (no qos: 10)" in said["with 99.99 % availability"][1]
    assert all("make bench B=consolidate" in cells[1] for cells in list(said.values())[:2])


def test_nothing_is_made_up_when_nothing_was_measured(directory):
    text, document = page(directory)
    assert "0 of 0 goals met" in text_of(document.find("body/header"))
    assert {cells[-1] for cells in claim_rows(document).values()} == {"not measured"}
    for name in names():
        assert f"make bench B={name}" in text
    assert figures(document) == {}


def test_page_refers_to_nothing_outside_itself(directory, measured):
    found = measured("mpath")
    fill(found)
    found.write()
    _, document = page(directory)
    anchors = {element.get("id") for element in document.iter()} - {None}
    for element in document.iter():
        assert element.tag not in {"link", "img", "iframe", "object", "embed", "base", "video"}
        for name, value in element.items():
            assert name not in {"src", "srcset", "data", "action", "style"} and name[:2] != "on"
            assert name != "href" or value[0] == "#" and value[1:] in anchors
    style = document.find("head/style").text
    assert "url(" not in style and "@import" not in style
    policy = next(m for m in document.iter("meta") if m.get("http-equiv"))
    assert policy.get("content").startswith("default-src 'none';")
    library = next(s for s in document.iter("script") if s.get("id") == "library")
    assert b"plotly.js v" in gzip.decompress(base64.b64decode(library.text))[:100]


@pytest.mark.parametrize(
    "broken",
    [
        {"lines": {"a": [[1, "two"]]}},
        {"lines": {"a": [[1, None]]}},
        {"lines": {"a": [[1, 2, 3]]}},
        {"lines": [1]},
        {"bound": "much"},
        {"title": None, "lines": None},
    ],
)
def test_document_with_a_broken_series_is_named_and_no_other_lost(directory, measured, broken):
    for name in ("iscsi", "noisy"):
        found = measured(name)
        fill(found)
        path = found.write()
    written = json.loads(path.read_text())
    written["series"][0] |= broken
    path.write_text(json.dumps(written))
    _, document = page(directory)
    assert "noisy.json" in text_of(document.find("body"))
    assert list(figures(document)) == ["iscsi"]


def test_series_of_an_older_document_is_drawn(directory, measured):
    found = measured("iscsi")
    fill(found)
    path = found.write()
    written = json.loads(path.read_text())
    for entry in written["series"]:
        del entry["bound"], entry["log"]
    path.write_text(json.dumps(written))
    _, document = page(directory)
    assert len(figures(document)["iscsi"]) == 3


def test_hostile_text_stays_text(directory, measured):
    plain = measured("noisy")
    plain.add("metric", "ms", [1], peer=[2], peer_name="peer")
    plain.write()
    _, harmless = page(directory)
    found = measured("noisy")
    found.add(HOSTILE, HOSTILE, [1], peer=[2], peer_name=HOSTILE, note=HOSTILE)
    found.series(HOSTILE, HOSTILE, HOSTILE, {HOSTILE: [(1, 2), (3, 4)]})
    found.series(HOSTILE, HOSTILE, HOSTILE, {HOSTILE: [(HOSTILE, 2)]}, bound=1)
    found.machine["commit"] = HOSTILE
    found.machine["guests"].append(HOSTILE)
    found.write()
    _, document = page(directory)
    assert len(list(document.iter("script"))) == len(list(harmless.iter("script")))
    assert not list(document.iter("img"))
    seen = re.sub(r"\s+", " ", HOSTILE)
    assert rows(document, "All metrics of noisy")[0][0] == seen
    assert text_of(document).count(seen) >= 8
    # Plotly takes tags in what it writes.
    for entry in figures(document)["noisy"]:
        for figure in entry["figure"]:
            for text in texts(figure):
                assert not re.search(r"<(?!/?(br|i|b)>)", text.removesuffix("<extra></extra>"))


def texts(node):
    """All strings of a figure."""
    if isinstance(node, str):
        yield node
    elif isinstance(node, dict | list):
        for child in node.values() if isinstance(node, dict) else node:
            yield from texts(child)


def test_figures_are_what_plotly_takes(directory, measured):
    found = measured("iscsi")
    fill(found)
    found.write()
    _, document = page(directory)
    entries = figures(document)["iscsi"]
    assert len(entries) == 3
    for entry in entries:
        for figure in entry["figure"]:
            # It raises an error for what it does not know.
            plotly.graph_objects.Figure(figure)
            assert all(trace["meta"] for trace in figure["data"])
    narrow, wide = entries[0]["figure"]
    assert wide["layout"]["height"] < narrow["layout"]["height"]
    bars = {trace["meta"]: trace for trace in narrow["data"] if trace["type"] == "bar"}
    assert [base + x for base, x in zip(bars["met"]["base"], bars["met"]["x"], strict=True)] == [
        3.5
    ]
    assert bars["met"]["error_x"]["array"] == [0.5] == bars["met"]["error_x"]["arrayminus"]
    assert len(bars["missed"]["x"]) == 1
    # A ratio of 0 has no place on the scale.
    assert len(bars["none"]["x"]) == 2
    goals = next(trace for trace in narrow["data"] if trace["meta"] == plots.GOAL)
    assert goals["x"] == [2.33, 0.375]


def test_a_run_does_not_lose_the_others(directory, measured):
    for name, figure in (("iscsi", 5), ("qos", 6), ("iscsi", 7)):
        found = measured(name)
        found.add("metric", "ms", [figure])
        found.write()
    (directory / "mpath.json").write_text('{"benchmark": "mpath", "resul')
    # From before there were spreads and commits.
    old = {"metric": "old", "unit": "ms", "ferrule": 2, "peer": 4, "peer_name": "C", "ratio": 0.5}
    old |= {"goal": None, "met": None, "samples": {"ferrule": [2, 2], "peer": [4, 4]}}
    document = {"benchmark": "noisy", "machine": {"date": "2026-01-02T03:04:05+00:00"}}
    (directory / "noisy.json").write_text(json.dumps(document | {"results": [old]}))
    _, document = page(directory)
    assert rows(document, "All metrics of iscsi")[0][:2] == ["metric", "7 ms"]
    assert rows(document, "All metrics of qos")[0][:2] == ["metric", "6 ms"]
    assert rows(document, "All metrics of noisy")[0][4] == "0.500 (spread unknown)"
    assert "could not be read: mpath.json" in text_of(document)
    when = {row[0]: row for row in rows(document, "Measured when")}
    assert when["noisy"][1:3] == ["2 January 2026, 03:04 UTC", "not recorded"]
    assert when["mclock"][1] == "not measured"


def test_documents_say_where_they_come_from(measured):
    found = measured("qos")
    document = json.loads(found.write().read_text())
    machine = document["machine"]
    assert machine["rustc"] == "rustc 9.86.0" and machine["clang"] == "clang version 99.1"
    assert machine["commit"] is None or re.match(
        r"[0-9a-f]{12}|.*-g[0-9a-f]{12}", machine["commit"]
    )
    assert machine["minutes"] >= 0


def test_sources_name_benchmarks_that_there_are():
    headlines = [headline for group in claims.HEADLINES.values() for headline in group]
    for entry in (*headlines, *claims.CLAIMS):
        assert entry.source.benchmark in names()


@given(st.floats(0.01, 100), st.integers(0, 3), st.sampled_from(sorted(results.OPERATORS)))
def test_a_ratio_is_shown_on_its_side_of_the_goal(ratio, places, relation):
    bound = round(ratio, places)
    assume(abs(ratio - bound) > 1e-5 * ratio)
    met = results.OPERATORS[relation](ratio, bound)
    entry = {"metric": "m", "unit": "", "ratio": ratio, "goal": f"ratio {relation} {bound!r}"}
    shown = Result.read("b", entry | {"met": met}).ratio_text
    assert results.OPERATORS[relation](float(shown), bound) == met
    assert math.isclose(float(shown), ratio, rel_tol=6e-3)


def test_text_can_be_read_in_light_and_dark(directory):
    _, document = page(directory)
    style = document.find("head/style").text
    light, dark = (
        dict(re.findall(r"--(\w+): (#\w{6})", block))
        for block in re.findall(r":root \{(.*?)\}", style, re.S)
    )
    assert light.keys() == dark.keys()
    for scheme in (light, dark):
        for name in ("ink", "muted", "met", "missed"):
            assert contrast(scheme[name], scheme["paper"]) >= 4.5
        for name in scheme.keys() - {"paper", "panel", "rule"}:
            assert contrast(scheme[name], scheme["paper"]) >= 3


def contrast(one, other):
    """As WCAG 2 defines it."""

    def luminance(color):
        channels = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted(map(luminance, (one, other)))
    return (high + 0.05) / (low + 0.05)
