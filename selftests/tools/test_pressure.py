# SPDX-License-Identifier: GPL-2.0
"""`balloonctl auto` with guests that thrash, weights, a host that is short, and as a daemon."""

import dataclasses
import json
import os
import signal
import subprocess
import sys

import pytest
from ballooning import __main__ as balloonctl
from ballooning import figures
from ballooning.policy import MIB, UNIT, Rules, Vm, decide, share_out
from ballooning.pressure import CALM, Host, HostUnknown, Watch
from ballooning.vms import State, VmError
from hypothesis import given
from hypothesis import strategies as st
from test_automatic import GIB, FakeVm
from test_automatic import Host as Lab
from test_commands import SCRIPTS, FakeSources
from tooling import metrics


class Reader(FakeVm):
    """A guest that reads a file all the time, of such a size: the cache counts as available.

    Of what does not fit it reads that part from its disk, and `stream` pages in a second anyway,
    which no size of it changes.
    """

    def __init__(self, name, file, counter="major-faults", stream=0, **options):
        super().__init__(name, **options)
        self.file, self.counter, self.stream, self.count = file, counter, stream, 0

    @property
    def missing(self):
        """What it reads from its disk each time, of its file."""
        return max(0, self.uses + self.file - self.state.actual)

    @property
    def is_short(self):
        """It reads from its disk what it has read before."""
        return self.missing > 0

    async def read(self):
        part = self.missing / self.file if self.file else 0
        self.count += (self.stream + (500 + 1500 * part) * self.is_short) * max(1, self.period)
        state = await super().read()
        count = round(self.count)
        if self.counter == "disk reads":
            state.disk_read = self.state.disk_read = count * 4096
        elif state.stats:
            factor = 4096 if self.counter == "swap-in" else 1
            state.stats = self.state.stats = {**state.stats, self.counter: count * factor}
        return state


COUNTERS = ["major-faults", "swap-in", "alloc-stalls", "disk reads"]


@pytest.mark.parametrize("counter", [*COUNTERS, None])
def test_a_guest_that_thrashes_gets_what_it_needs(counter):
    """At the cost of one that does not. With MemAvailable alone it would be left with its floor."""
    reader = Reader("a", 500 * MIB, counter or "minor-faults", uses=100 * MIB)
    other = FakeVm("b", uses=150 * MIB)
    host = Lab(GIB, reader, other)
    host.rounds(60)
    short = 0
    for _ in range(600):
        host.rounds(1)
        short += reader.is_short
        assert reader.state.actual + other.state.actual <= GIB
    if counter:
        # It is tried, ever less often, whether it needs it still.
        assert short <= 60
        assert other.state.actual >= 150 * MIB + 80 * MIB
    else:
        assert short == 600


@pytest.mark.parametrize("counter", COUNTERS)
def test_a_guest_that_reads_on_however_much_it_has_gets_no_more(counter):
    """A backup of its disk: more memory was tried, did not help, and is for others."""
    backup = Reader("a", 0, counter, stream=3000, uses=100 * MIB)
    others = [FakeVm(name, uses=250 * MIB) for name in "bc"]
    host = Lab(3 * GIB // 2, backup, *others)
    host.rounds(40)
    had, tried = [], 0
    for _ in range(400):
        host.rounds(1)
        had.append(backup.state.actual)
        tried += host.controller.tracks["a"].watch.learnt > 0
    assert sorted(had)[len(had) // 2] < GIB // 2
    assert 0 < tried < 100


def test_a_guest_that_streams_and_reads_a_file_keeps_the_file():
    """What it streams is there at any size; what is more than that is from want of memory."""
    both = Reader("a", 500 * MIB, "disk reads", stream=600, uses=100 * MIB)
    other = FakeVm("b", uses=150 * MIB)
    host = Lab(GIB, both, other)
    host.rounds(80)
    short = 0
    for _ in range(400):
        host.rounds(1)
        short += both.is_short
    assert short <= 60
    assert other.state.actual >= 150 * MIB + 80 * MIB


def test_trials_of_others_take_nothing_that_was_learnt():
    """Two that read on however much they have, beside one that needs its files."""
    reader = Reader("a", 900 * MIB, "disk reads", maximum=3 * GIB // 2, uses=150 * MIB)
    streams = [
        Reader(name, 0, "disk reads", stream=500, maximum=3 * GIB // 2, uses=650 * MIB)
        for name in "bc"
    ]
    host = Lab(3 * GIB, reader, *streams)
    host.rounds(40)
    short = tried = 0
    for _ in range(600):
        report = host.rounds(1)
        short += reader.is_short
        tried += any(host.controller.tracks[name].watch.trial is not None for name in "bc")
        assert report["missing"] == 0
    assert tried > 10
    assert short <= 10


class CachingVm(FakeVm):
    """A guest of the benchmark (scripts/benchmarks/readers.py): of `file` it reads `pages` in a
    second, at random, and `stream` of what it never reads again. Its cache has both. When that is
    full, what is streamed goes first, but for a little.
    """

    KERNEL, LITTLE = 55 * MIB, 30 * MIB

    def __init__(self, name, file, pages, uses):
        super().__init__(name, 1536 * MIB, uses)
        self.file, self.pages, self.stream = file, pages, 500
        self.cached, self.streamed, self.missed, self.count = file, 2 * GIB, 0, 0

    def warm(self):
        """It reads all of its file at once."""
        self.cached, self.streamed = self.file, 0
        self.fit()

    def fit(self):
        """What there is no room for goes; what is left is free."""
        room = self.state.actual - self.uses - self.KERNEL
        over = max(0, self.cached + self.streamed - room)
        from_stream = min(over, max(0, self.streamed - self.LITTLE))
        self.streamed -= from_stream
        self.cached -= over - from_stream
        return room + self.KERNEL - self.cached - self.streamed

    async def read(self):
        await super().read()
        for _ in range(max(1, self.period)):
            missed = self.pages * (1 - self.cached / self.file)
            self.missed += missed
            self.count += missed + self.stream
            self.cached = min(self.file, self.cached + missed * 4096)
            self.streamed += self.stream * 4096
            free = self.fit()
        if self.state.stats:
            available = self.state.actual - self.uses - self.KERNEL
            self.state.stats = {"available-memory": available, "free-memory": free}
        self.state.disk_read = round(self.count) * 4096
        return dataclasses.replace(self.state)


@pytest.mark.parametrize("blind", [False, True])
def test_a_server_of_files_keeps_them_beside_jobs_and_backups(monkeypatch, blind):
    """With the guests of the benchmark. By MemAvailable alone it would lose a third of them."""
    if blind:
        monkeypatch.setattr(Watch, "rate", lambda *_: 0)
    server = CachingVm("server", 900 * MIB, 1600, 190 * MIB)
    jobs = [CachingVm(name, 100 * MIB, 2900, 690 * MIB) for name in ("a", "b")]
    host = Lab(3 * GIB, server, *jobs)
    host.controller.rules, host.controller.interval = Rules(step=1000, margin=500), 2
    host.rounds(50)
    for vm in (server, *jobs):
        vm.warm()
    host.rounds(15)
    rounds, before = 45, [vm.missed for vm in (server, *jobs)]
    assert host.rounds(rounds)["total"] <= 3 * GIB
    lost = [vm.missed - b for vm, b in zip((server, *jobs), before, strict=True)]
    parts = [n / (vm.pages * rounds) for n, vm in zip(lost, (server, *jobs), strict=True)]
    assert parts[0] > 0.25 if blind else max(parts) < 0.001


def test_a_trial_leaves_others_half_of_what_they_may_need():
    """Their cache may be of use to them; a guess is not worth all of it."""
    stream = Reader("a", 0, "disk reads", stream=900, uses=100 * MIB)
    other = FakeVm("b", uses=150 * MIB)
    host = Lab(GIB, stream, other)
    host.rounds(30)
    beyond = other.state.actual - 230 * MIB
    tried = 0
    for _ in range(200):
        host.rounds(1)
        tried += host.controller.tracks["a"].watch.trial is not None
        assert other.state.actual >= 230 * MIB + beyond // 4
    assert tried > 5


def test_reads_of_a_guest_with_free_memory_are_no_want_of_it():
    """It fills its cache, and has room for that."""
    watch = Watch()
    for second in range(1, 20):
        stats = {"free-memory": GIB // 2 if second < 10 else 50 * MIB}
        state = State(2 * GIB, GIB, updated=second, disk_read=second * 100 * MIB, stats=stats)
        watch.look(state, GIB // 20)
        assert watch.thrashes == (second > 10)


def test_what_was_given_has_to_be_full_before_it_can_have_helped():
    """Until then it reads as much as before, and nobody can tell whether from want of memory."""
    watch = Watch()

    def look(second, free, read):
        stats = {"free-memory": free * MIB}
        state = State(2 * GIB, GIB, updated=second, disk_read=read * MIB, stats=stats)
        watch.look(state, GIB // 20, wanted=True)
        return watch.learnt, watch.trial is not None

    look(1, 50, 0)
    look(2, 50, 10)
    asked = look(3, 50, 20)
    assert asked[0] > GIB and asked[1]
    for second in range(4, 60):
        assert look(second, 200, 10 * second) == asked
        assert watch.rises
    # It is full, and nothing more is read.
    assert look(60, 50, 600)[1]
    assert not look(61, 50, 600)[1]


def test_what_was_learnt_is_kept_while_nobody_wants_it():
    """To try whether a guest needs it still costs that guest something."""
    reader = Reader("a", 500 * MIB, uses=100 * MIB)
    other = FakeVm("b", uses=150 * MIB)
    host = Lab(GIB, reader, other)
    host.rounds(60)
    learnt = host.controller.tracks["a"].watch.learnt
    assert learnt >= 600 * MIB
    host.rounds(20 * CALM)
    assert host.controller.tracks["a"].watch.learnt == learnt
    assert not reader.is_short
    other.uses = 600 * MIB
    host.rounds(10 * CALM)
    assert reader.state.actual < learnt


def test_what_was_given_up_too_soon_comes_back_at_once():
    """And not step by step, as it was found."""
    watch = Watch(at=1, counts={"major-faults": 0}, good=CALM + 1, learnt=800 * MIB)
    for second in range(2, 30):
        state = State(GIB, 800 * MIB, updated=second, stats={"major-faults": 0})
        watch.look(state, GIB // 20)
    assert watch.learnt < 600 * MIB
    for second, faults in ((30, 1000), (31, 2000)):
        state = State(GIB, 500 * MIB, updated=second, stats={"major-faults": faults})
        watch.look(state, GIB // 20)
    assert (watch.learnt, watch.calm) == (800 * MIB, 2 * CALM)


def test_what_was_learnt_is_given_up_after_a_while():
    """The guest may have ended what it did."""
    reader = Reader("a", 500 * MIB, uses=100 * MIB)
    other = FakeVm("b", uses=150 * MIB)
    host = Lab(GIB, reader, other)
    watch = host.rounds(2) and host.controller.tracks["a"].watch
    for _ in range(60):
        host.rounds(1)
        if watch.learnt and not reader.is_short:
            break
    has = reader.state.actual
    reader.file = 0
    other.uses = 600 * MIB
    host.rounds(CALM - 2)
    assert reader.state.actual >= has * 9 // 10
    host.rounds(100)
    assert reader.state.actual < has * 3 // 4
    assert other.state.actual >= other.uses + 80 * MIB


def test_a_start_of_a_program_is_no_thrashing():
    """One sample with many faults: nothing is taken just then, that is all."""
    watch = Watch()

    def look(at, faults):
        state = State(GIB, GIB // 2, updated=at, stats={"major-faults": faults})
        watch.look(state, GIB // 20)
        return watch.rises, watch.thrashes

    assert look(5, 10**6) == (False, False)
    assert look(10, 10**6 + 499) == (False, False)
    assert look(15, 2 * 10**6) == (True, False)
    assert look(20, 2 * 10**6) == (False, False)
    assert look(25, 3 * 10**6) == (True, False)
    assert look(30, 4 * 10**6) == (True, True)
    # Booted anew.
    assert look(35, 10) == (False, False)
    assert watch.learnt == GIB // 2 + GIB // 20


def test_what_a_guest_does_with_all_of_its_memory_is_its_own():
    """There is nothing that it could be given. Twice as much with less is for want of memory."""
    watch = Watch()
    for second in range(1, 10):
        state = State(GIB, GIB, updated=second, stats={"major-faults": 1000 * second})
        watch.look(state, GIB // 20)
    assert (watch.rises, watch.learnt) == (False, 0)
    for second in range(10, 14):
        faults = 9000 + (second - 9) * (1000 if second < 12 else 2000)
        state = State(GIB, GIB // 2, updated=second, stats={"major-faults": faults})
        watch.look(state, GIB // 20)
        assert watch.rises == (second >= 12)
    assert watch.learnt == GIB // 2 + GIB // 20


SIZES = st.integers(0, 64).map(lambda units: units * 64 * MIB)


@given(
    st.lists(st.tuples(SIZES, st.integers(1, 10_000)), min_size=1, max_size=8),
    st.integers(0, 256 * 64 * MIB),
)
def test_weights_share_out(guests, spare):
    """No more than there is, nor than anybody wants; and all of it as far as they want it."""
    wanted = {f"vm{n}": size for n, (size, _) in enumerate(guests)}
    weights = {f"vm{n}": weight for n, (_, weight) in enumerate(guests)}
    given_ = share_out(spare, wanted, weights)
    assert all(0 <= given_[name] <= wanted[name] for name in wanted)
    assert sum(given_.values()) <= max(spare, 0)
    assert sum(given_.values()) >= min(spare, sum(wanted.values())) - UNIT * len(guests)
    for one, size in wanted.items():
        for other, same in wanted.items():
            if size == same and weights[one] <= weights[other]:
                assert given_[one] <= given_[other]


def test_a_weight_is_a_larger_part_of_what_is_left_over():
    """Four times as much, as far as the guest can use it."""
    vms = [
        Vm(name, 8 * GIB, 4 * GIB, 4 * GIB, GIB, weight=w) for name, w in (("a", 400), ("b", 100))
    ]
    decision = decide(8 * GIB, vms, Rules())
    spare = {name: decision.fair[name] - decision.least[name] for name in "ab"}
    assert abs(spare["a"] - 4 * spare["b"]) <= 8 * UNIT
    assert sum(decision.fair.values()) <= 8 * GIB


def proc(path, available, some):
    """A host's /proc."""
    (path / "pressure").mkdir(exist_ok=True)
    (path / "meminfo").write_text(
        f"MemTotal:       {64 * GIB // 1024} kB\nMemAvailable:   {available // 1024} kB\n"
    )
    (path / "pressure/memory").write_text(
        f"some avg10={some} avg60=0.00 avg300=0.00 total=1\nfull avg10=0.00 total=0\n"
    )


def test_a_host_without_a_budget(tmp_path):
    """Guests may have what leaves the host its reserve; less while its processes wait."""
    proc(tmp_path, 10 * GIB, "0.00")
    host = Host.read(tmp_path)
    assert host == Host(64 * GIB, 10 * GIB, 0)
    room = 10 * GIB - 64 * GIB // 10
    assert abs(host.budget(50 * GIB, 1000, 1000) - (50 * GIB + room)) <= MIB
    proc(tmp_path, 10 * GIB, "12.50")
    assert host.read(tmp_path).budget(50 * GIB, 1000, 1000) < 50 * GIB - GIB
    (tmp_path / "pressure/memory").unlink()
    assert Host.read(tmp_path).waiting == 0
    (tmp_path / "meminfo").unlink()
    with pytest.raises(HostUnknown):
        Host.read(tmp_path)


def test_pressure_of_the_host_takes_memory():
    """And a host that cannot be seen gives nothing away."""
    a, b = FakeVm("a"), FakeVm("b")
    lab = Lab(None, a, b)
    lab.controller.host = lambda held: held - GIB // 20
    assert lab.rounds(10)["total"] < 2 * GIB - GIB // 4

    def unseen(held):
        raise HostUnknown("not seen")

    lab.controller.host = unseen
    report = lab.rounds(5)
    assert report["problems"] == {"host": "not seen"}


def test_a_configuration_comes_before_the_command_line(tmp_path, monkeypatch, capsys):
    """And what is wrong with it is an error of usage."""
    path = tmp_path / "balloonctl.conf"
    path.write_text("# all\nbudget 4G\nsockets /run/vms\nmin db=1G\nweight db=4\ndry-run\n")
    args = balloonctl.parse_arguments(["auto", "--config", str(path), "--budget", "2G"])
    assert (args.budget, args.min, args.weight) == (2 * GIB, [("db", GIB)], [("db", 400)])
    assert args.dry_run
    # Of an option that is cut short no file would be read.
    with pytest.raises(SystemExit):
        balloonctl.parse_arguments(["auto", "--conf", str(path), "--sockets", "/run/vms"])
    path.write_text("weight db=0\n")
    with pytest.raises(SystemExit):
        balloonctl.parse_arguments(["auto", "--config", str(path)])
    assert "a weight is 0.01 to 100" in capsys.readouterr().err


def test_a_configuration_is_read_again(tmp_path, monkeypatch):
    """What is wrong with it changes nothing."""
    path = tmp_path / "conf"
    path.write_text("budget 4G\nsockets /run/vms\n")
    monkeypatch.setattr(balloonctl, "sources_of", lambda args: FakeSources())
    args = balloonctl.parse_arguments(["auto", "--config", str(path)])
    lab = Lab(GIB)
    path.write_text("budget 3G\nsockets /run/vms\nweight a=5\ninterval 7\n")
    args = balloonctl.reload(lab.controller, args)
    wanted = (3 * GIB, {"a": 500}, 7)
    controller = lab.controller
    assert (controller.budget, controller.weights, controller.interval) == wanted
    for text in ("budget 3X\nsockets /run/vms", "budget 1G\nsockets /run/vms\nmin a=2G", "x"):
        path.write_text(text)
        assert balloonctl.reload(controller, args) is args
        assert (controller.budget, controller.weights, controller.interval) == wanted
    assert len([line for line in lab.said if "is not taken" in line]) == 3
    path.write_text("budget 3G\nsockets /run/vms\ndry-run\nlisten 9999\n")
    args = balloonctl.reload(controller, args)
    assert controller.dry_run
    assert lab.said[-1] == "from the next start on: listen"
    path.write_text("budget 3G\nsockets /run/vms\n")
    balloonctl.reload(controller, args)
    assert not controller.dry_run


def test_a_daemon_reloads_and_writes_metrics(tmp_path):
    """With its signals; there are no VMs."""
    parser = pytest.importorskip("prometheus_client.parser")
    (tmp_path / "vms").mkdir()
    path, figures_ = tmp_path / "conf", tmp_path / "a.prom"
    path.write_text(f"budget 4G\nsockets {tmp_path}/vms\ninterval 0.1\nmetrics {figures_}\n")
    with subprocess.Popen(
        [sys.executable, "-m", "ballooning", "auto", "--config", path, "--json"],
        env={**os.environ, "PYTHONPATH": str(SCRIPTS)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert json.loads(process.stdout.readline())["budget"] == 4 * GIB
            path.write_text(path.read_text().replace("4G", "3G"))
            process.send_signal(signal.SIGHUP)
            while json.loads(process.stdout.readline())["budget"] != 3 * GIB:
                pass
            process.stdout.readline()
            families = {
                f.name: f for f in parser.text_string_to_metric_families(figures_.read_text())
            }
            assert families["ferrule_balloon_budget_bytes"].samples[0].value == 3 * GIB
            process.terminate()
            _, said = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 0
    assert said == "== the configuration was read again\n"


def test_polling_is_put_back_after_a_crash(tmp_path):
    """By the next one, which finds what the last has left."""
    path = tmp_path / "state"
    a, b = FakeVm("a"), FakeVm("b")
    b.period = 7

    def lab():
        return Lab(2 * GIB, a, b, state=path)

    lab().rounds(2)
    assert (a.period, json.loads(path.read_text())) == (2, {"polling": {"a": 2}})
    second = lab()
    second.rounds(2)
    second.end()
    assert (a.period, b.period) == (0, 7)
    assert not path.exists()
    for text in ("{", "[]", '{"polling": {"a": "x"}}'):
        path.write_text(text)
        broken = lab()
        assert any("not read" in line for line in broken.said)
        broken.rounds(1)


def test_what_was_learnt_is_known_after_a_crash(tmp_path):
    """The guest need not thrash once more for it."""
    path = tmp_path / "state"
    reader, other = Reader("a", 500 * MIB, uses=100 * MIB), FakeVm("b", uses=150 * MIB)
    first = Lab(GIB, reader, other, state=path)
    first.rounds(60)
    learnt = first.controller.tracks["a"].watch.learnt
    assert json.loads(path.read_text())["learnt"] == {"a": learnt}
    second = Lab(GIB, reader, other, state=path)
    for _ in range(60):
        second.rounds(1)
        assert not reader.is_short
    # Of a VM that is not there just now, too.
    third = Lab(GIB, other, state=path)
    third.rounds(2)
    third.end()
    assert json.loads(path.read_text())["learnt"] == {"a": learnt}


def test_metrics_of_vms_are_what_the_parser_takes():
    """Also of one that cannot be asked."""
    parser = pytest.importorskip("prometheus_client.openmetrics.parser")
    row = balloonctl.row_of("a", State(GIB, GIB, stats={"swap-in": 5, "available-memory": 7}))
    families = figures.families_of([row, {"vm": "b", "error": "no"}])
    found = {
        (sample.name, sample.labels["vm"]): sample.value
        for family in parser.text_string_to_metric_families(metrics.text_of(families))
        for sample in family.samples
    }
    assert found["ferrule_balloon_up", "b"] == 0
    assert found["ferrule_balloon_swap_in_bytes_total", "a"] == 5
    assert found["ferrule_balloon_available_bytes", "a"] == 7
    assert ("ferrule_balloon_target_bytes", "a") not in found


def test_metrics_of_a_round_have_all_vms():
    """As auto saw them: one that was never read, one that cannot be read any more, and one."""
    a, b, c = FakeVm("a"), FakeVm("b"), FakeVm("c")
    c.problem = VmError("locked")
    lab = Lab(2 * GIB, a, b, c)
    lab.rounds(2)
    b.problem = VmError("hangs")
    report = lab.rounds(1)
    rows = balloonctl.rows_of_round(lab.controller, report)
    families = {family.name: family for family in figures.families_of_round(report, rows)}
    up = dict(families["ferrule_balloon_up"].values)
    assert up == {("a",): 1, ("b",): 0, ("c",): 0}
    assert families["ferrule_balloon_target_bytes"].values == [(("a",), report["vms"][0]["target"])]
    assert families["ferrule_balloon_problems"].values == [((), 2)]


def test_nothing_is_asked_of_a_thrashing_guest():
    """Whatever others want."""
    vms = [
        Vm("a", GIB, GIB // 2, GIB // 2, 0, thrashes=True),
        Vm("b", GIB, GIB // 2, GIB // 2, GIB // 2),
    ]
    assert decide(GIB, vms).targets.get("a", GIB) >= GIB // 2
