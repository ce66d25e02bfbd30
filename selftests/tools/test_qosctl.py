# SPDX-License-Identifier: GPL-2.0
"""qosctl, with a device mapper that is not there: what is moved where, and what is put back."""

import dataclasses
import errno
import itertools
import json
import os
import pathlib
import re
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from qos import __main__ as qosctl
from qos import disks, figures, files, latency, live, moves, paths
from qos.limits import KEYS, Limits, LimitsError, make_line, parse_line
from qos.mapper import Device, Line, Mapper, MapperError, parse_devices, parse_tables, problem_of
from qos.moves import BELOW, QosError
from tooling import metrics

LINEAR = Line(0, 2048, "linear", "8:16 0")
SECRET = Line(0, 4096, "crypt", "aes-xts-plain64 00112233 0 8:16 4096")
READS = ("info", "table", "status")


class Killed(BaseException):
    """Whoever called dmsetup does nothing any more."""


class FakeKernel:
    """Device mapper's devices, behind the command line of dmsetup.

    The call numbered `fail_at` of those that change something fails: before it does anything, or
    after ("done"). A resume that fails may leave the device suspended.
    """

    def __init__(self):
        self.devices = {}
        self.live = {}
        self.inactive = {}
        self.suspended = set()
        self.fail_at = self.done = self.stays_suspended = None
        self.failure = MapperError
        self.calls = []
        self.changes = 0
        self.minor = 0

    def add(self, name, *table, uuid=""):
        """A device that somebody else has made."""
        self.devices[name] = (self.minor, uuid)
        self.minor += 1
        self.live[name] = table

    def state(self):
        """All that there is, but for numbers."""
        return dict(self.live), dict(self.inactive), set(self.suspended)

    def open_count(self, name):
        """By tables, live or not."""
        number = f"253:{self.devices[name][0]}"
        tables = [*self.live.items(), *self.inactive.items()]
        return sum(any(number in line.arguments.split() for line in t) for _, t in tables)

    def __call__(self, words, text, timeout):
        command, name = words[0], words[-1]
        if command == "message":
            name = words[2]
        self.calls.append(words)
        if command in READS:
            return getattr(self, command)(words, name)
        self.changes += 1
        fails = self.changes == self.fail_at
        if fails and not self.done:
            if command == "resume" and self.stays_suspended:
                self.inactive.pop(name, None)
                self.suspended.add(name)
            raise self.failure("it fails")
        getattr(self, command)(words, name, text)
        if fails:
            raise self.failure("it fails afterwards")
        return ""

    def info(self, words, name):
        """As the columns have it."""
        assert "-c" in words
        return "".join(
            f"{name}/253/{minor}/{'L' if name in self.live else '-'}"
            f"{'I' if name in self.inactive else '-'}{'s' if name in self.suspended else '-'}w/"
            f"{self.open_count(name)}/{uuid}\n"
            for name, (minor, uuid) in self.devices.items()
        )

    def table(self, words, name):
        """Of one, or of all that have a target."""
        if "--target" in words:
            return "".join(
                f"{other}: {line}\n"
                for other, table in self.live.items()
                for line in table
                if line.target == name
            )
        table = (self.inactive if "--inactive" in words else self.live).get(name, ())
        return "".join(f"{line}\n" for line in table)

    def status(self, words, name):
        """Enough of it."""
        fields = "read_ios=0 write_ios=0 read_held=0 write_held=0"
        return "".join(
            f"{other}: {line.start} {line.length} qos {fields}\n"
            for other, table in self.live.items()
            for line in table
            if line.target == "qos"
        )

    def create(self, words, name, text):
        """As dmsetup."""
        if name in self.devices:
            raise MapperError("Device or resource busy")
        self.add(name, *map(Line.parse, text.splitlines()), uuid=words[words.index("--uuid") + 1])

    def load(self, words, name, text):
        """As dmsetup."""
        self.inactive[name] = tuple(map(Line.parse, text.splitlines()))

    def resume(self, words, name, text):
        """As dmsetup."""
        if name in self.inactive:
            self.live[name] = self.inactive.pop(name)
        self.suspended.discard(name)

    def clear(self, words, name, text):
        """As dmsetup."""
        self.inactive.pop(name, None)

    def remove(self, words, name, text):
        """As dmsetup."""
        if self.open_count(name):
            raise MapperError("Device or resource busy")
        del self.devices[name]
        self.live.pop(name, None)
        self.inactive.pop(name, None)

    def message(self, words, name, text):
        """Keeps what is set."""
        assert words[3:5] == ["0", "set"]
        line = self.live[name][0]
        device, _, have = parse_line(line)
        changed = have.changed(dict(zip(words[5::2], words[6::2], strict=True)))
        self.live[name] = (make_line(line.length, device, changed),)


def attach(kernel, name="a", **values):
    """Into a device."""
    mapper = Mapper(kernel)
    moves.attach_into(mapper, mapper.device(name), Limits.of(values))


def detach(kernel, name="a"):
    """The way back."""
    mapper = Mapper(kernel)
    moves.detach(mapper, moves.find_attached(mapper)[name])


@pytest.mark.parametrize("table", [(LINEAR,), (SECRET,), (LINEAR, Line(2048, 8, "error", ""))])
def test_in_and_out_again(table):
    """The table below is the one that was there, keys and all; in the end all is as before."""
    kernel = FakeKernel()
    kernel.add("a", *table, uuid="CRYPT-x")
    before = kernel.state()
    attach(kernel, iops="500")
    hidden = kernel.devices["a-qos-below"]
    length = sum(line.length for line in table)
    assert kernel.live["a"] == (Line(0, length, "qos", f"253:{hidden[0]} 0 2 iops 500"),)
    assert kernel.live["a-qos-below"] == table
    assert hidden[1] == f"{BELOW}a"
    assert kernel.devices["a"][1] == "CRYPT-x"
    one = moves.find_attached(Mapper(kernel))["a"]
    assert (one.how, one.limits.values) == ("into", {"iops": "500"})
    detach(kernel)
    assert kernel.state() == before
    # A key is no argument of a process, which all may see.
    assert not any("00112233" in word for words in kernel.calls for word in words)


@pytest.mark.parametrize("suspended", [False, True])
@pytest.mark.parametrize("done", [False, True])
@pytest.mark.parametrize("way", ["attach", "detach"])
def test_whatever_fails_leaves_a_device_that_works(way, done, suspended):
    """Each call in turn, before or after it has done something, until none is left."""
    for number in itertools.count(1):
        kernel = FakeKernel()
        kernel.add("a", LINEAR)
        if way == "detach":
            attach(kernel, iops="500")
        before = kernel.state()
        kernel.changes, kernel.fail_at, kernel.done = 0, number, done
        kernel.stays_suspended = suspended
        try:
            (attach if way == "attach" else detach)(kernel)
        except QosError as error:
            assert "it fails" in str(error)
        else:
            if kernel.changes < number:
                break
            # What was reported to have failed was done.
            assert done
        kernel.fail_at = None
        assert not kernel.suspended
        assert not kernel.inactive
        if kernel.live["a"] == (LINEAR,):
            # Once it is out what is left below is in nobody's way, and goes with the next call.
            assert way == "detach" or kernel.state() == before
            attach(kernel)
        else:
            assert [line.target for line in kernel.live["a"]] == ["qos"]
            assert kernel.live["a-qos-below"] == (LINEAR,)
            assert way == "detach" or done
        detach(kernel)
        assert kernel.state()[0] == {"a": (LINEAR,)}
    assert number == 4


@pytest.mark.parametrize("done", [False, True])
@pytest.mark.parametrize("way", ["attach", "detach"])
def test_after_a_kill_the_next_call_puts_it_right(way, done):
    """Nothing is undone by who was killed."""
    for number in range(1, 4):
        kernel = FakeKernel()
        kernel.add("a", LINEAR)
        if way == "detach":
            attach(kernel)
        kernel.changes, kernel.fail_at, kernel.done = 0, number, done
        kernel.failure = Killed
        with pytest.raises(Killed):
            (attach if way == "attach" else detach)(kernel)
        assert not kernel.suspended
        if kernel.live["a"] == (LINEAR,):
            attach(kernel)
        detach(kernel)
        assert kernel.state() == ({"a": (LINEAR,)}, {}, set())


def test_a_table_that_somebody_changes_meanwhile_stays():
    """It is looked at once more, just before it is exchanged."""
    kernel = FakeKernel()
    kernel.add("a", LINEAR)
    longer = dataclasses.replace(LINEAR, length=4096)
    load = kernel.load

    def meanwhile(words, name, text):
        load(words, name, text)
        kernel.live["a"] = (longer,)

    kernel.load = meanwhile
    with pytest.raises(QosError, match="somebody else"):
        attach(kernel)
    assert kernel.state() == ({"a": (longer,)}, {}, set())


def test_what_an_owner_replaced_is_left_over_and_cleaned_up():
    """As LVM does, when it extends a volume."""
    kernel = FakeKernel()
    kernel.add("a", LINEAR)
    attach(kernel)
    longer = dataclasses.replace(LINEAR, length=4096)
    kernel.live["a"] = (longer,)
    mapper = Mapper(kernel)
    rest = moves.left_over(mapper.devices(), moves.find_attached(mapper))
    assert [device.name for device in rest] == ["a-qos-below"]
    attach(kernel)
    assert kernel.live["a-qos-below"] == (longer,)
    detach(kernel)
    assert set(kernel.live) == {"a"}


def test_a_device_of_our_name_that_is_not_ours_is_left_alone():
    """A name alone says nothing."""
    kernel = FakeKernel()
    kernel.add("a", LINEAR)
    kernel.add("a-qos-below", LINEAR, uuid="other")
    before = kernel.state()
    with pytest.raises(QosError, match="not ours"):
        attach(kernel)
    assert kernel.state() == before


VOLUME = "LVM-" + "x" * 64


@pytest.mark.parametrize(
    ("name", "uuid", "table", "reason"),
    [
        ("a", "mpath-3600", "multipath 0 0", "multipathd's"),
        ("a", "", "multipath 0 0", "multipathd's"),
        ("a", f"{VOLUME}-tpool", "linear 8:0 0", "inner part"),
        ("a", f"{VOLUME}-real", "linear 8:0 0", "inner part"),
        ("a", VOLUME, "thin 253:0 1", "LVM watches"),
        ("a", VOLUME, "snapshot-origin 253:0", "LVM watches"),
        ("a", VOLUME, "linear 253:0 0", "pvmove"),
        ("a", "", "thin 253:0 1", "cannot be two"),
        ("a", "", "raid raid1 3 0 region_size 1024 2 - 8:0 - 8:16", "cannot be two"),
        ("a", f"{BELOW}b", "linear 8:0 0", "name that one"),
        ("a", "", "qos 8:0 0", "has limits already"),
        ("a" * 120, "", "linear 8:0 0", "too long"),
    ],
)
def test_what_would_break_is_refused(name, uuid, table, reason):
    """And nothing is touched."""
    kernel = FakeKernel()
    kernel.add("pvmove0", LINEAR, uuid=f"{VOLUME}-pvmove")
    kernel.add(name, Line.parse(f"0 8 {table}"), uuid=uuid)
    with pytest.raises(QosError, match=reason):
        attach(kernel, name)
    assert not kernel.changes


def test_a_logical_volume_is_taken():
    """Two segments on disks."""
    kernel = FakeKernel()
    kernel.add("v-a", LINEAR, Line(2048, 2048, "striped", "2 8 8:0 0 8:16 0"), uuid=VOLUME)
    attach(kernel, "v-a")
    assert kernel.live["v-a"][0].length == 4096


def test_a_physical_volume_is_refused():
    """LVM would see it twice."""
    device = Device("a", 253, 0)
    assert moves.why_not_for_lvm(device, [], "ext4") is None
    assert "physical volume" in moves.why_not_for_lvm(device, [], "LVM2_member")
    assert "physical volume" in moves.why_not_for_lvm(device, [VOLUME], "")


def test_other_limits_are_a_message_and_another_group_a_table():
    """A message changes them at once; a group is of the table."""
    kernel = FakeKernel()
    kernel.add("a", LINEAR)
    attach(kernel, iops="500")
    mapper = Mapper(kernel)

    def change(**values):
        kernel.calls.clear()
        moves.change(mapper, moves.find_attached(mapper)["a"], values)
        return {words[0] for words in kernel.calls} - set(READS)

    assert change(bps="8M", iops="0") == {"message"}
    assert change(group="g", weight="300") == {"load", "resume"}
    assert moves.find_attached(mapper)["a"].limits.words() == "bps 8388608 group g weight 300"
    assert change(group="") == {"load", "resume"}
    assert moves.find_attached(mapper)["a"].limits.words() == "bps 8388608"


def test_what_was_made_by_hand_keeps_its_place():
    """Of a table of several lines, each with an offset of its own, limits are changed only."""
    kernel = FakeKernel()
    kernel.add("a", Line.parse("0 8 qos 8:16 2048 2 iops 5"), uuid="QOS-a")
    kernel.add("b", Line.parse("0 8 qos 8:16 0"), Line.parse("8 8 qos 8:32 0"), uuid="QOS-b")
    kernel.add("c", Line.parse("0 8 qos 8:16 0"), uuid="QOS-c")
    mapper = Mapper(kernel)
    found = moves.find_attached(mapper)
    assert [found[name].how for name in "abc"] == ["by hand", "by hand", "over"]
    moves.change(mapper, found["a"], {"group": "g"})
    moves.change(mapper, found["b"], {"group": "g"})
    assert list(map(str, kernel.live["a"])) == ["0 8 qos 8:16 2048 4 iops 5 group g"]
    assert list(map(str, kernel.live["b"])) == [
        "0 8 qos 8:16 0 2 group g",
        "8 8 qos 8:32 0 2 group g",
    ]


NAMES = st.text("abc: -.", min_size=1, max_size=6).filter(lambda n: n.strip() == n)
LINES = st.builds(
    Line,
    st.integers(0, 9),
    st.integers(1, 9),
    st.sampled_from(["qos", "linear"]),
    st.sampled_from(["8:0 0", "8:0 0 2 iops 5"]),
)


@given(st.dictionaries(NAMES, st.lists(LINES, min_size=1, max_size=3), min_size=1, max_size=6))
def test_names_are_told_from_tables(tables):
    """Also those with colons and blanks in them."""
    text = "".join(f"{name}: {line}\n" for name, table in tables.items() for line in table)
    found = parse_tables(text, tables)
    assert {name: list(map(Line.parse, lines)) for name, lines in found.items()} == tables


def test_devices_are_read():
    """None is a sentence."""
    assert not parse_devices("No devices found\n")
    found = parse_devices("v-a/253/3/LIsw/2/LVM-a/b\nb/253/4/--sr/0/\n")
    assert found["v-a"] == Device("v-a", 253, 3, "LVM-a/b", 2, True, True, True, False)
    assert found["b"] == Device("b", 253, 4, "", 0, False, False, True, True)


VALUES = {
    "iops": st.integers(1, 10**8).map(str),
    "bps": st.integers(1, 1 << 40).map(str),
    "burst_ms": st.integers(0, 9).map(str),
    "group": st.text("aZ0_-.:@+/", min_size=1, max_size=63),
    "weight": st.integers(1, 99).map(str),
}


@given(st.fixed_dictionaries({}, optional=VALUES))
def test_limits_survive_tables_and_files(values):
    """What is printed reads as the same."""
    wanted = Limits.of(values)
    line = make_line(8, "8:0", wanted)
    assert parse_line(Line.parse(str(line))) == ("8:0", 0, wanted)
    for saved in (
        files.Saved("a", "into", wanted),
        files.Saved("a", "over", wanted, "/dev/disk/by-id/a b"),
    ):
        assert files.parse("a", saved.text()) == saved
    changed = wanted.changed({"iops": "7", "weight": "100"})
    assert wanted.changed(wanted.difference(changed)) == changed
    assert not wanted.difference(wanted)


@pytest.mark.parametrize(
    ("key", "text"),
    [("iops", "5x"), ("iops", "-1"), ("bps", "1.5G"), ("bps", ""), ("group", "a b"), ("iops", "²")]
    + [("Key", "1"), ("bps 1 iops", "1"), ("group", "x" * 64)],
)
def test_what_is_no_limit_is_refused(key, text):
    """Before anything is done, and the key is named."""
    with pytest.raises(LimitsError, match=re.escape(key)):
        Limits.of({key: text})


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("iops 5", "attach over, or"),
        ("attach over\niops 5", "needs a device"),
        ("attach into\ndevice /dev/sda", "takes no device"),
        ("attach into\niops", "line 2: iops has no value"),
        ("attach into\niops 5\niops 6", "line 3: iops is there twice"),
        ("attach into\niops x", "is no number"),
    ],
)
def test_mistakes_in_files_are_named(text, reason):
    """With their line, where there is one."""
    with pytest.raises(QosError, match=reason):
        files.parse("a", text)


def no_room(path, text):
    """Instead of writing a file."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_the_trouble_of_one_file_is_its_own(tmp_path, monkeypatch, capsys):
    """The others are attached, what is not there is waited for, and the status is 1."""
    kernel = FakeKernel()
    kernel.add("a", LINEAR)
    kernel.add("c", LINEAR)
    monkeypatch.setattr(qosctl, "Mapper", lambda: Mapper(kernel))
    monkeypatch.setattr(qosctl, "LOCK", tmp_path / "lock")
    monkeypatch.setattr(qosctl, "kind_of", lambda path: "")
    (tmp_path / "a.conf").write_text("attach into\niops 5\n")
    (tmp_path / "b.conf").write_text("attach\n")
    (tmp_path / "c.conf").write_text("attach into\niops 6\n")
    (tmp_path / "d.conf").write_text("attach into\niops 7\n")

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["qosctl", *words])
        return qosctl.main()

    assert run("restore", "--directory", str(tmp_path)) == 1
    said = capsys.readouterr()
    assert said.out.splitlines() == ["a: iops 5", "c: iops 6", "d: its device is not there"]
    assert said.err == f"error: b: {tmp_path}/b.conf: line 1: attach has no value\n"
    assert run("restore", "--directory", str(tmp_path), "--json", "a") == 0
    assert json.loads(capsys.readouterr().out)["restored"] == "attached already"
    assert run("set", "a", "--bps", "8M", "--save", "--directory", str(tmp_path)) == 0
    assert "bps 8M" in (tmp_path / "a.conf").read_text()
    capsys.readouterr()
    assert run("list", "--json") == 0
    assert [row["attached"] for row in json.loads(capsys.readouterr().out)] == ["into"] * 2
    kernel.add("d", LINEAR)
    assert run("detach", "a", "--forget", "--directory", str(tmp_path)) == 0
    assert not (tmp_path / "a.conf").exists()
    monkeypatch.setattr(files, "replace_file", no_room)
    assert run("attach", "d", "--iops", "7", "--save", "--directory", str(tmp_path)) == 1
    assert capsys.readouterr().err.startswith("error: d has its limits, but they are not saved: ")
    # Its owner has taken the device away, and what is left of it is not in use.
    del kernel.devices["d"], kernel.live["d"]
    assert run("detach", "/dev/mapper/d", "--directory", str(tmp_path)) == 0
    assert "d-qos-below" not in kernel.devices
    capsys.readouterr()
    assert run("show", "a") == 1
    assert capsys.readouterr().err == "error: a has no limits (qosctl attach)\n"


def test_what_the_kernel_says_is_passed_on():
    """In one line."""
    said = "device-mapper: reload ioctl on a (253:0) failed: Invalid argument\nCommand failed.\n"
    assert problem_of("load", said, "qos: iops: no") == (
        "dmsetup load: Invalid argument (qos: iops: no)"
    )
    assert problem_of("remove", "Device a not found\nCommand failed.\n", None) == (
        "dmsetup remove: Device a not found"
    )


def sample(name="a", at=0.0, in_flight=0, disk=None, status=(), **values):
    """A device at a moment."""
    device = Device(name, 253, 0)
    one = moves.Attached(device, (LINEAR,), Limits.of(values), "8:0", None)
    return live.Sample(at, one, dict(status), disk, in_flight)


HELD = {"read_held": 3}


@pytest.mark.parametrize(
    ("last", "reason"),
    [
        (sample(at=1), "nobody asks"),
        (sample(at=1, status={"read_ios": 50}), "50 I/Os per second pass"),
        (
            sample(at=1, status={"read_ios": 50}, disk=live.Disk(10, 900, 1)),
            "disk is slow: an I/O takes 90.0 ms",
        ),
        (sample(at=1, in_flight=2), "2 I/Os are below, none has come back"),
        (sample(at=1, status={"read_ios": 50, **HELD}, iops="50"), "own limit: iops 50 "),
        (
            sample(at=1, status={"read_ios": 50, **HELD}, iops="500", group="g", group_iops="55"),
            "capacity of group g: group_iops 55",
        ),
        (
            sample(
                at=1,
                status={"read_ios": 5, **HELD},
                in_flight=8,
                disk=live.Disk(10, 900, 8),
                group="g",
                group_depth="8",
            ),
            "depth of group g: 8 of 8 I/Os are below, where one takes 90.0 ms",
        ),
        (sample(at=1, in_flight=8, status=HELD, iops="500"), "the disk hangs"),
        (sample(at=1, status={"read_ios": 44, **HELD}, iops="50", bps="1G"), "own limit: iops 50 "),
        (sample(at=1, status={"read_ios": 5, **HELD}, iops="500", group="g"), "cannot be told"),
    ],
)
def test_why(last, reason):
    """A sentence for each."""
    first = dataclasses.replace(
        last, at=0.0, status={}, disk=live.Disk(0, 0, 0) if last.disk else None
    )
    assert reason in live.why_of("a", {"a": first}, {"a": last})


def test_percentiles_of_what_is_below():
    """By the buckets of device mapper's statistics."""
    counts = [0] * (len(latency.BOUNDS) + 1)
    assert latency.percentile_ms(counts, 0.5) is None
    counts[latency.BOUNDS.index(1024)] = 98
    counts[latency.BOUNDS.index(8192)] = 2
    assert 0.768 < latency.percentile_ms(counts, 0.5) <= 1.024
    assert 6.144 < latency.percentile_ms(counts, 0.99) <= 8.192
    counts[-1] = 100
    assert latency.percentile_ms(counts, 0.99) == latency.BOUNDS[-1] / 1000
    assert latency.parse_region(f"0+8192 {'7 ' * 13}{':'.join(map(str, counts))}\n") == counts
    for text in ("", "0+8 1 2", "0+8 1:2", "x:y"):
        with pytest.raises((ValueError, IndexError)):
            latency.parse_region(text)


class StatsMapper:
    """Devices with statistics, but for one that has none."""

    def __init__(self):
        self.regions = {"l-qos-below": {"0": 1 << 30, "1": os.getpid()}}
        self.next = 2

    def message(self, name, text):
        """As the kernel."""
        command, *words = text.split()
        if name == "none" or name not in self.regions:
            raise MapperError("Operation not supported")
        regions = self.regions[name]
        if command == "@stats_list":
            return "".join(
                f"{r}: 0+8 8 {words[0]} {pid} precise_timestamps\n" for r, pid in regions.items()
            )
        if command == "@stats_create":
            regions[str(self.next)] = int(words[-1])
            self.next += 1
            return f"{self.next - 1}\n"
        if command == "@stats_delete":
            del regions[words[0]]
            return ""
        assert command == "@stats_print_clear" and words[0] in regions
        counts = [0] * len(latency.BOUNDS) + [4]
        return f"0+8 4 {':'.join(map(str, counts))}\n"


def test_statistics_are_of_a_top_that_runs():
    """It takes those away that one which was killed has left, and its own; nobody else's."""
    mapper = StatsMapper()
    with latency.Regions(mapper) as regions:
        assert regions.take({"l-qos-below", "none"}) == {}
        assert mapper.regions == {"l-qos-below": {"1": os.getpid(), "2": os.getpid()}}
        assert regions.take({"l-qos-below", "none"})["l-qos-below"][-1] == 4
        # Another one of that name, a moment later.
        regions.take(set())
        assert regions.take({"l-qos-below"}) == {}
    assert set(mapper.regions["l-qos-below"]) == {"1", "2"}


def test_top_fits_into_80_columns():
    """With groups, and what a reset has set to 0."""
    status = {"read_ios": 123456, "read_bytes": 10**10, "reservation": "met", "read_held": 12}
    values = {"group": "g", "reserve_iops": "5"}
    names = ["vg-database", "vg-web"]
    first = {name: sample(name, status={"read_ios": 9**9}, **values) for name in names}
    last = {name: sample(name, at=1, status=status, **values) for name in names}
    rates = list(live.all_between(first, last).values())
    assert [one.share for one in rates] == [0.5, 0.5]
    rows = qosctl.rows_of_top(rates)
    assert rows[0][:2] == ["[g]", "246912"]
    assert rows[1][-2:] == ["met", "50%"]
    from rich.console import Console  # noqa: PLC0415

    console = Console(width=80, force_terminal=True)
    _, width, _ = qosctl.output.fit_table("DEVICE", qosctl.TOP, rows, qosctl.TOP_LEAST, console)
    assert width <= 80


@pytest.mark.parametrize(
    ("table", "status", "expected"),
    [
        (
            "1 queue_if_no_path 1 alua 1 1 service-time 0 2 2 8:16 1 1 8:32 1 1",
            "2 0 1 0 1 1 E 0 2 2 8:16 A 0 0 1 8:32 F 3 0 1",
            [
                paths.Path("8:16", 1, is_current=False, is_active=True, failures=0),
                paths.Path("8:32", 1, is_current=False, is_active=False, failures=3),
            ],
        ),
        (
            "0 0 2 1 round-robin 0 1 1 8:16 1000 round-robin 0 1 0 8:32",
            "2 0 0 0 2 1 A 0 1 0 8:16 A 0 D 0 1 0 8:32 A 0",
            [
                paths.Path("8:16", 1, is_current=True, is_active=True, failures=0, weight=1000),
                paths.Path("8:32", 2, is_current=False, is_active=True, failures=0),
            ],
        ),
        (
            "0 0 1 1 round-robin-rs 1 latency 2 1 8:16 3 8:32 1",
            "2 0 0 0 1 1 A 0 2 3 8:16 A 0 3 0 75.00 8:32 A 0 1 31020 25.00",
            [
                paths.Path("8:16", 1, True, True, 0, 3, None, 0.75),
                paths.Path("8:32", 1, True, True, 0, 1, 31020, 0.25),
            ],
        ),
        ("2 queue_mode bio 0 0 0", "2 0 0 0 0 0", []),
    ],
)
def test_paths_are_read(table, status, expected):
    """Of any selector, as the kernel prints them (drivers/md/dm-mpath.c)."""
    groups = paths.parse_table(Line(0, 8, "multipath", table))
    assert paths.parse_status(Line(0, 8, "multipath", status), groups) == expected


def test_the_trouble_of_one_multipath_device_is_its_own():
    """One that is given another table just now, or says what nobody knows."""
    tables = {"a": "0 0 1 1 round-robin 0 1 1 8:16 1", "b": "0 0", "c": "0 0 0 0"}
    statuses = {"a": "2 0 0 0 1 1 A 0 1 0 8:16 A 0", "b": "2 0", "c": "2 0 0 0 1 1 A"}

    def dmsetup(words, text, timeout):
        if words[0] == "info":
            return "".join(f"{name}/253/0/L--w/0/\n" for name in "abcd")
        said = tables if words[0] == "table" else statuses
        return "".join(f"{name}: 0 8 multipath {line}\n" for name, line in said.items())

    assert list(paths.take(Mapper(dmsetup))) == ["a"]


def test_metrics_are_what_the_parser_takes():
    """OpenMetrics, with units in the names; and a file of the older format."""
    parser = pytest.importorskip("prometheus_client.openmetrics.parser")
    status = {"read_ios": 5, "group": 7, "reserve_missed": 1}
    one = sample('a"\\\n', status=status, iops="500", group="007", burst_ms="20")
    said = "read_hold_us=0-0:1,960-1023:2,1024-1151:3,4026531840-4294967295:1 write_hold_us="
    families = figures.families_of({one.one.name: one}, {one.one.name: live.parse_histogram(said)})
    found = {
        (s.name, s.labels.get("direction"), s.labels.get("le")): s
        for family in parser.text_string_to_metric_families(metrics.text_of(families))
        for s in family.samples
    }
    assert found["ferrule_qos_ios_total", "read", None].value == 5
    assert found["ferrule_qos_ios_total", "read", None].labels["device"] == 'a"\\\n'
    assert found["ferrule_qos_hold_seconds_bucket", "read", "0.000128"].value == 1
    assert found["ferrule_qos_hold_seconds_bucket", "read", "0.001024"].value == 3
    assert found["ferrule_qos_hold_seconds_bucket", "read", "0.002048"].value == 6
    assert found["ferrule_qos_hold_seconds_bucket", "read", "16.777216"].value == 6
    assert found["ferrule_qos_hold_seconds_bucket", "read", "+Inf"].value == 7
    assert found["ferrule_qos_hold_seconds_count", "write", None].value == 0
    assert 4160 < found["ferrule_qos_hold_seconds_sum", "read", None].value < 4161
    assert found["ferrule_qos_limit_ios_per_second", None, None].value == 500
    assert found["ferrule_qos_limit_burst_seconds", None, None].value == 0.02
    assert found["ferrule_qos_reserve_missed_total", None, None].value == 1
    # A name is a name, also if it looks like a number.
    assert found["ferrule_qos_reserve_missed_total", None, None].labels["group"] == "007"


def test_a_metrics_file_is_replaced_as_a_whole(tmp_path):
    """Nothing else is left there."""
    parser = pytest.importorskip("prometheus_client.parser")
    path = tmp_path / "qos.prom"
    for _ in range(2):
        metrics.write_file(path, figures.families_of({"a": sample()}, {}))
    assert [file.name for file in tmp_path.iterdir()] == ["qos.prom"]
    assert list(parser.text_string_to_metric_families(path.read_text()))


def test_keys_for_a_disk():
    """The least of what it did, less a tenth, and a depth by Little's law."""
    found = {
        "read_iops": disks.Measured(10_000, 40e6, 3000),
        "write_iops": disks.Measured(5_555, 20e6, 3000),
        "read_bps": disks.Measured(300, 3e8, 3000),
        "read_alone": disks.Measured(2_000, 8e6, 500),
    }
    assert disks.keys_of(found) == {
        "group_iops": 4900,
        "group_bps": 270_000_000,
        "group_depth": 10,
    }
    text = 'fio: a note\n{"jobs": [{"read": {"iops": 1, "bw_bytes": 2, "clat_ns": {"mean": 3}}}]}'
    assert disks.parse_fio(text, "read") == disks.Measured(1, 2, 0.003)
    with pytest.raises(QosError, match="something else"):
        disks.parse_fio("no", "read")
    assert "--readonly" in disks.command_of("/dev/a:b", "read_iops", 5)
    assert "--readonly" not in disks.command_of("/dev/a:b", "write_iops", 5)
    assert "--filename=/dev/a\\:b" in disks.command_of("/dev/a:b", "read_iops", 5)


def test_each_key_is_documented():
    """And the other way round: dm-qos.rst has the names."""
    page = pathlib.Path(qosctl.__file__).parents[2] / "Documentation/dm-qos.rst"
    text = page.read_text(encoding="utf-8")
    table = text[text.index("key               value") : text.index("The last six need")]
    assert set(re.findall(r"``(\w+)``", table)) >= set(KEYS)
