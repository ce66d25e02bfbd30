# SPDX-License-Identifier: GPL-2.0
"""Metrics of both tools, as Prometheus itself takes them, and the dashboard's expressions.

What qosctl reads is what dmsetup says in a guest with such devices (selftests/dm-qos/metrics.sh
has real ones), with counters that grow.
"""

import contextlib
import json
import os
import pathlib
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request

import pytest
from ballooning import __main__ as balloonctl
from ballooning import figures
from ballooning.policy import MIB
from ballooning.vms import State
from test_automatic import GIB, FakeVm
from test_automatic import Host as Lab
from test_commands import SCRIPTS
from tooling import metrics
from vm import CACHE

BINARIES = CACHE / "tools/prometheus/usr/bin"
DASHBOARD = SCRIPTS.parent / "debian/examples/grafana/ferrule.json"
SECONDS = 120
DMSETUP = r"""#!/bin/sh
now=$(date +%s)
case " $* " in
*" info "*)
	echo "vg-data/253/0/L--w/1/LVM-x"
	echo "vg-data-qos-below/253/1/L--w/1/QOSBELOW-vg-data"
	echo "data/253/2/L--w/0/mpath-3600"
	;;
*" table "*" qos "*)
	echo "vg-data: 0 8192 qos 253:1 0 10 iops 500 group g reserve_iops 100 weight 300 bps 8388608"
	;;
*" status "*" qos "*)
	echo "vg-data: 0 8192 qos read_ios=$now read_bytes=$((now * 4096)) read_ahead_ios=2" \
		"read_debt_us=1500 read_held_total=9 read_held=3 write_ios=$now write_bytes=$now" \
		"write_held_total=4 write_held=0 group=g reservation=missed reserve_windows=$now" \
		"reserve_missed=$((now / 10))"
	;;
*" message "*" histogram "*)
	echo "read_hold_us=0-0:1,960-1023:2,1024-1151:$now write_hold_us="
	;;
*" table "*" multipath "*)
	echo "data: 0 8192 multipath 2 queue_mode bio 0 2 1" \
		"round-robin-rs 1 latency 2 1 8:16 3 8:32 1 service-time 0 1 2 8:48 1 1"
	;;
*" status "*" multipath "*)
	echo "data: 0 8192 multipath 2 0 0 0 2 1 A 0 2 3 8:16 A 0 3 840 99.70 8:32 F 2 1 0 0.29" \
		"E 0 1 2 8:48 A 0 0 1"
	;;
*) exit 1 ;;
esac
"""
ROW = {
    "available-memory": 300 * MIB,
    "free-memory": 200 * MIB,
    "swap-in": 5,
    "swap-out": 6,
    "major-faults": 7,
}


def free_port() -> int:
    """One that nobody has just now."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def get(port: int, path: str, **arguments) -> str:
    """What a server of this machine says."""
    query = urllib.parse.urlencode(arguments)
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}?{query}", timeout=60) as answer:
        return answer.read().decode()


def wait_for(what: str, answers):
    """Until it says something."""
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            if found := answers():
                return found
        time.sleep(0.2)
    raise AssertionError(f"not in {SECONDS} s: {what}")


@contextlib.contextmanager
def running(*command, **environment):
    """A process that serves until it is told to end."""
    words = [str(word) for word in command]
    with subprocess.Popen(words, env={**os.environ, **environment}) as process:
        try:
            yield process
        finally:
            process.terminate()
            process.wait(timeout=60)


@pytest.fixture(name="environment", scope="module")
def environment_fixture(tmp_path_factory):
    """Of tools that find such a dmsetup, and nothing saved."""
    folder = tmp_path_factory.mktemp("bin")
    # A disk that there is has counters.
    disk = min(path.name for path in pathlib.Path("/sys/dev/block").iterdir())
    (folder / "dmsetup").write_text(DMSETUP.replace("8:16", disk))
    (folder / "dmsetup").chmod(0o755)
    return {"PYTHONPATH": str(SCRIPTS), "PATH": f"{folder}:{os.environ['PATH']}"}


@pytest.fixture(name="rounds", scope="module")
def rounds_fixture():
    """Metrics of VMs: as status has them, and as a round of auto."""
    state = State(GIB, GIB // 2, GIB // 2, GIB // 3, updated=1, stats=ROW, disk_read=8 * MIB)
    rows = [balloonctl.row_of("db", state), {"vm": "gone", "error": "no"}]
    a, b = FakeVm("db", uses=100 * MIB), FakeVm("web", uses=100 * MIB)
    lab = Lab(GIB, a, b)
    report = lab.rounds(3)
    auto = balloonctl.rows_of_round(lab.controller, report)
    return {
        "balloons": lambda: figures.families_of(rows),
        "auto": lambda: figures.families_of_round(report, auto),
    }


@pytest.fixture(name="port", scope="module")
def port_fixture(environment, rounds, tmp_path_factory):
    """A Prometheus that has scraped all of it, three times at least."""
    if not (BINARIES / "prometheus").exists():
        pytest.skip("there is no Prometheus (scripts/tools.sh test unpacks it)")
    folder = tmp_path_factory.mktemp("prometheus")
    ports = {"qos": free_port()}
    with contextlib.ExitStack() as stack:
        qosctl = (sys.executable, "-m", "qos", "metrics", "--listen", ports["qos"])
        stack.enter_context(running(*qosctl, **environment))
        for name, families in rounds.items():
            ports[name] = free_port()
            server = metrics.serve(families, ports[name])
            stack.callback(server.shutdown)
        configuration = {
            "global": {"scrape_interval": "1s", "scrape_timeout": "1s"},
            "scrape_configs": [
                {"job_name": name, "static_configs": [{"targets": [f"127.0.0.1:{port}"]}]}
                for name, port in ports.items()
            ],
        }
        # JSON is YAML.
        (folder / "conf.yml").write_text(json.dumps(configuration))
        port = free_port()
        wait_for("qosctl serves", lambda: get(ports["qos"], "/metrics"))
        stack.enter_context(
            running(
                BINARIES / "prometheus",
                f"--config.file={folder}/conf.yml",
                f"--storage.tsdb.path={folder}/data",
                f"--web.listen-address=127.0.0.1:{port}",
                "--log.level=warn",
            )
        )
        often = "min(count_over_time(up[1h])) >= 3"
        wait_for("three scrapes", lambda: ask(port, often))
        yield port


def ask(port: int, expression: str) -> list[dict]:
    """What Prometheus makes of an expression."""
    try:
        answer = json.loads(get(port, "/api/v1/query", query=expression))
    except urllib.error.HTTPError as error:
        if error.code == 503:
            return []  # it begins
        raise AssertionError(f"{expression}: {error.read().decode()}") from None
    return answer["data"]["result"]


def test_prometheus_takes_all_of_it(port):
    """Each target is up, and figures are what they were made of."""
    wait_for("all up", lambda: [r["value"][1] for r in ask(port, "up")] == ["1"] * 3)

    def value(expression):
        (found,) = ask(port, expression)
        return float(found["value"][1])

    assert value("sum(rate(ferrule_qos_ios_total{direction='read'}[1m]))") > 0
    assert value("ferrule_qos_limit_ios_per_second") == 500
    assert value("ferrule_qos_waiting_ios{direction='read'}") == 3
    assert value("ferrule_qos_hold_seconds_bucket{direction='read',le='0.001024'}") == 3
    assert value("ferrule_path_latency_seconds") == 840e-6
    assert value("ferrule_path_share_ratio > 0.5") == 0.997
    assert value("sum(ferrule_path_active)") == 2
    assert value("sum(ferrule_path_weight)") == 4
    assert value("ferrule_balloon_available_bytes{vm='db',job='balloons'}") == 300 * MIB
    assert value("ferrule_balloon_up{vm='db',job='auto'}") == 1
    assert value("ferrule_balloon_available_bytes{vm='db',job='auto'}") > 100 * MIB
    assert value("ferrule_balloon_disk_read_bytes_total") == 8 * MIB
    assert value("ferrule_balloon_up{vm='gone'}") == 0
    assert value("ferrule_balloon_budget_bytes") == GIB


def panels():
    """Of the dashboard: title, and expressions with what is in a line's name."""
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        for target in panel.get("targets", ()):
            yield panel["title"], target["expr"], target.get("legendFormat", "")


def test_each_expression_of_the_dashboard_finds_something(port):
    """With its variables filled in, and every label that a name is made of."""
    seen = list(panels())
    assert len(seen) >= 12
    variables = [v["name"] for v in json.loads(DASHBOARD.read_text())["templating"]["list"]]
    for title, expression, legend in seen:
        asked = expression.replace("$__rate_interval", "1m")
        for name in variables:
            asked = asked.replace(f'"${name}"', '".+"')
        assert "$" not in asked, title
        found = ask(port, asked)
        assert found, f"{title}: {expression}"
        for label in re.findall(r"{{(\w+)}}", legend):
            assert all(label in result["metric"] for result in found), f"{title}: {label}"


def test_each_metric_is_on_the_dashboard_or_says_what_it_is(port):
    """No name without a text, and those of the dashboard are all known to the tools."""
    known = json.loads(get(port, "/api/v1/metadata"))["data"]
    ours = {name for name in known if name.startswith("ferrule_")}
    assert all(known[name][0]["help"] for name in ours)
    used = {name for _, e, _ in panels() for name in re.findall(r"ferrule_\w+", e)}
    used = {re.sub(r"_(total|bucket)$", "", name) for name in used}
    assert used <= {re.sub(r"_total$", "", name) for name in ours}


def test_the_dashboard_is_what_grafana_knows():
    """By the types that its makers publish: all fields are known, and none is of another kind."""
    pytest.importorskip("grafana_foundation_sdk")
    from grafana_foundation_sdk.cog.encoder import JSONEncoder  # noqa: PLC0415
    from grafana_foundation_sdk.cog.plugins import register_default_plugins  # noqa: PLC0415
    from grafana_foundation_sdk.models.dashboard import Dashboard  # noqa: PLC0415
    from grafana_foundation_sdk.models.prometheus import Dataquery  # noqa: PLC0415

    register_default_plugins()
    ours = json.loads(DASHBOARD.read_text())
    dashboard = Dashboard.from_json(ours)
    assert all(type(target) is Dataquery for p in dashboard.panels for target in p.targets)
    theirs = json.loads(json.dumps(dashboard, cls=JSONEncoder))
    assert not list(lost(ours, theirs))
    # It does find what is none.
    ours["panels"][0]["colour"] = "red"
    ours["panels"][1]["gridPos"]["width"] = 3
    theirs = json.loads(json.dumps(Dashboard.from_json(ours), cls=JSONEncoder))
    assert list(lost(ours, theirs)) == ["/panels/0/colour", "/panels/1/gridPos/width"]


def lost(ours, theirs, place=""):
    """Where one has what the other has not, or has otherwise."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for key, value in ours.items():
            yield from lost(value, theirs.get(key), f"{place}/{key}")
    elif isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        for number, (one, other) in enumerate(zip(ours, theirs, strict=True)):
            yield from lost(one, other, f"{place}/{number}")
    elif ours != theirs:
        yield place


def test_panels_of_the_dashboard_do_not_cover_each_other():
    """On its grid of 24 columns."""
    taken = set()
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                assert (x, y) not in taken, panel["title"]
                taken.add((x, y))


def test_variables_of_the_dashboard_have_values(port):
    """Those that are asked of Prometheus."""
    for variable in json.loads(DASHBOARD.read_text())["templating"]["list"]:
        if variable["type"] == "query":
            name, label = re.fullmatch(
                r"label_values\((\w+), (\w+)\)", variable["query"]["query"]
            ).groups()
            found = json.loads(get(port, f"/api/v1/label/{label}/values", **{"match[]": name}))
            assert found["data"]


@pytest.fixture(name="files", scope="module")
def files_fixture(environment, rounds, tmp_path_factory):
    """For the textfile collector."""
    folder = tmp_path_factory.mktemp("files")
    qosctl = (sys.executable, "-m", "qos", "metrics", "--file", folder / "qos.prom")
    subprocess.run(qosctl, env={**os.environ, **environment}, check=True)
    for name, families in rounds.items():
        metrics.publish(folder / f"{name}.prom", families())
    return folder


def test_names_are_as_prometheus_has_them(files):
    """What promtool would say against them."""
    if not (BINARIES / "promtool").exists():
        pytest.skip("there is no promtool (scripts/tools.sh test unpacks it)")
    paths = list(files.iterdir())
    assert len(paths) == 3
    for path in paths:
        with path.open(encoding="utf-8") as text:
            done = subprocess.run(
                [BINARIES / "promtool", "check", "metrics"],
                stdin=text,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                check=False,
            )
        assert (done.returncode, done.stdout) == (0, ""), path.name


def test_node_exporter_takes_files_of_both_tools(files):
    """Both of them together, and nothing is wrong with any. What auto writes has all of status."""
    (files / "balloons.prom").unlink()
    command = BINARIES / "prometheus-node-exporter"
    if not command.exists():
        pytest.skip("there is no node_exporter (scripts/tools.sh test unpacks it)")
    port = free_port()
    options = ("--collector.disable-defaults", "--collector.textfile", "--log.level=error")
    options += (f"--collector.textfile.directory={files}", f"--web.listen-address=127.0.0.1:{port}")
    with running(command, *options):
        text = wait_for("it serves", lambda: get(port, "/metrics"))
    assert "\nnode_textfile_scrape_error 0\n" in text
    for wanted in (
        "ferrule_qos_ios_total{",
        "ferrule_path_active{",
        "ferrule_balloon_budget_bytes",
        "ferrule_balloon_up{",
    ):
        assert f"\n{wanted}" in text
    # As a histogram, not as a number of counters.
    assert "# TYPE ferrule_qos_hold_seconds histogram" in text


@pytest.mark.parametrize("command", [["metrics"], ["auto", "--budget", "1G"]])
def test_balloonctl_serves_them(tmp_path, command):
    """Of a host without VMs, on this machine alone, until it is told to end."""
    pytest.importorskip("prometheus_client")
    port = free_port()
    words = (*command, "--sockets", tmp_path, "--listen", port)
    with running(sys.executable, "-m", "ballooning", *words, PYTHONPATH=str(SCRIPTS)) as process:
        text = wait_for("it serves", lambda: get(port, "/metrics"))
        assert "ferrule_balloon_" in text
        listening = subprocess.run(
            ["ss", "-Hltn", f"sport = {port}"], stdout=subprocess.PIPE, text=True, check=True
        )
        assert [line.split()[3] for line in listening.stdout.splitlines()] == [f"127.0.0.1:{port}"]
        process.terminate()
        assert process.wait(timeout=60) in (0, 143)


def test_a_port_that_is_taken_is_named():
    """In one line."""
    pytest.importorskip("prometheus_client")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(metrics.MetricsError, match=f"^port {port}: Address already in use$"):
            metrics.serve(list, port)
