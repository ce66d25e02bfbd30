# SPDX-License-Identifier: GPL-2.0
"""What the guest keeps, whatever the host asks for; and what people see of a balloon."""

import contextlib
import fcntl
import os
import pathlib
import re
import time

import pytest
import vm
from balloonguest import DEVICE, MEMORY, MIB, SHARED, driven

SWAP_MIB = 512
# How the host merges equal pages (Documentation/admin-guide/mm/ksm.rst), for the tests as fast as
# it can.
KSM = pathlib.Path("/sys/kernel/mm/ksm")
KSM_SETTINGS = {"pages_to_scan": "4000", "sleep_millisecs": "10", "run": "1"}
# Memory with the same in each page, in MiB: more than the driver leaves available and the guest has
# in use.
EQUAL = 256


@pytest.fixture(name="guest", scope=SHARED)
def guest_fixture(boot_for_module, tmp_path_factory):
    """One guest for this file; each test leaves it as it found it."""
    swap = tmp_path_factory.mktemp("swap") / "swap"
    with swap.open("wb") as file:
        file.truncate(SWAP_MIB * MIB)
    options = [
        DEVICE,
        "-machine mem-merge=on",
        f"-drive file={swap},if=none,id=swap,format=raw,cache=unsafe",
        "-device virtio-blk-pci,drive=swap,serial=swap",
    ]
    with driven(boot_for_module(memory=f"{MEMORY}M", qemu_opts=options, udev=False)) as balloon:
        yield balloon


def available(balloon):
    """What the guest could have without swapping, in MiB."""
    return balloon.counters()["MemAvailable"] // 1024


class Hog:
    """A process that has memory: when there is none, it is killed before others are."""

    SCRIPT = (
        "import sys; open('/proc/self/oom_score_adj', 'w').write('1000');"
        " memory = bytearray(b'x') * int(sys.argv[1]); open('/run/hog.held', 'w').close();"
        " open('/run/hog.go').read(); open('/run/hog.count', 'w').write(str(memory.count(b'x')))"
    )

    def __init__(self, balloon, mib):
        self.balloon = balloon
        self.bytes = mib * MIB
        balloon.sh(
            "rm -f /run/hog.*; mkfifo /run/hog.go;"
            f'(python3 -c "{self.SCRIPT}" {self.bytes}; : >/run/hog.end) <&- >/dev/null 2>&1 &'
        )

    def _exists(self, name):
        return self.balloon.sh(f"[ -e /run/hog.{name} ] && echo yes || echo no") == "yes"

    def has_all(self):
        """Whether it has got its memory."""
        assert not self._exists("end"), "killed"
        return self._exists("held")

    def is_killed(self):
        """Whether it was killed before it got it."""
        assert not self._exists("held")
        return self._exists("end")

    def release(self):
        """Let it go: it says how many bytes it had."""
        self.balloon.sh(": >/run/hog.go; until [ -e /run/hog.end ]; do sleep 0.1; done", 120)
        return int(self.balloon.sh("cat /run/hog.count"))


def plug(balloon, **properties):
    """Replace the device by one with other properties."""
    balloon.qmp("device_del", id="balloon0")
    balloon.wait_for(lambda: not balloon.is_plugged(), 60, "unplug")
    balloon.qmp(
        "device_add",
        **{"driver": "virtio-balloon-pci", "id": "balloon0", "bus": "port0"},
        **properties,
    )
    balloon.wait_for(lambda: balloon.driver() == vm.BALLOON, 60, "plug and bind")


@pytest.fixture(name="parameters")
def parameters_fixture(balloon):
    """Load the driver with parameters; afterwards without."""
    yield balloon.reload
    balloon.ask(MEMORY)
    balloon.reload()


@pytest.fixture(name="deflates_on_oom")
def deflates_on_oom_fixture(balloon):
    """A device that lets the balloon shrink when the guest needs memory."""
    plug(balloon, **{"deflate-on-oom": True})
    yield balloon
    balloon.resize(MEMORY)
    plug(balloon)


@pytest.mark.ours("says in debugfs what it does")
def test_people_see_what_the_balloon_does(balloon):
    """In debugfs, as long as there is a device."""
    assert balloon.debugfs("state") == "at its target"
    balloon.resize(512)
    balloon.wait_for(lambda: balloon.debugfs("state") == "at its target", 60, "rest")
    size = (MEMORY - 512) * MIB
    assert int(balloon.debugfs("target")) == size
    assert int(balloon.debugfs("actual")) == size
    blocks = balloon.debugfs("blocks").splitlines()
    assert blocks[0] == f"pages {size // 4096}"
    assert [line.split()[-1] for line in blocks[1:]] == ["0"] * 11
    rates = dict(line.split() for line in balloon.debugfs("rates").splitlines())
    assert int(rates["inflate"]) > MIB
    assert 0 <= int(balloon.debugfs("last_change")) < 60000
    balloon.resize(MEMORY)
    rates = dict(line.split() for line in balloon.debugfs("rates").splitlines())
    assert int(rates["deflate"]) > MIB
    balloon.sh("rmmod virtio_balloon_rs; [ ! -e /sys/kernel/debug/virtio_balloon_rs ]")
    balloon.load()


@pytest.mark.ours("a parameter of our own")
def test_the_reserve_can_be_chosen(balloon, parameters):
    """The balloon stops there, and says so once."""
    parameters("min_available_mb=300")
    balloon.ask(1)
    balloon.wait_for(lambda: balloon.debugfs("state") == "waiting for memory", 60, "the reserve")
    assert 280 < available(balloon) < 345
    said = balloon.log().count("no memory to spare")
    balloon.sh("sleep 2")
    assert balloon.log().count("no memory to spare") == said


@pytest.mark.ours("a parameter of our own")
def test_the_log_is_spared_while_the_guest_waits(balloon, parameters):
    """Memory is used and freed, so it waits again and again; it says so once in 10 s at most."""
    parameters("min_available_mb=200")
    balloon.ask(1)
    balloon.wait_for(lambda: balloon.debugfs("state") == "waiting for memory", 60, "the reserve")
    began = time.monotonic()
    said = balloon.log().count("no memory to spare")
    rounds = 0
    while rounds < 4 or time.monotonic() - began < 12:
        before = balloon.counters()
        balloon.sh("head -c 100M /dev/zero >/run/used")
        balloon.wait_for(
            lambda seen=before: (
                balloon.counters()["balloon_deflate"] > seen["balloon_deflate"] + 50 * 256
            ),
            60,
            "memory of the balloon's",
        )
        before = balloon.counters()
        balloon.sh("rm /run/used")
        balloon.wait_for(
            lambda seen=before: (
                balloon.counters()["balloon_inflate"] > seen["balloon_inflate"] + 50 * 256
                and balloon.debugfs("state") == "waiting for memory"
            ),
            60,
            "the reserve once more",
        )
        rounds += 1
    new = balloon.log().count("no memory to spare") - said
    took = time.monotonic() - began
    assert new <= took / 10 + 1, f"{new} times in {took:.0f} s, {rounds} rounds"


@pytest.mark.ours("a parameter of our own")
def test_a_chosen_reserve_is_kept_under_pressure(balloon, parameters):
    """The balloon gives back what others need, and takes it again when they do not."""
    parameters("min_available_mb=200")
    balloon.resize(600)
    hog = Hog(balloon, 300)
    balloon.wait_for(hog.has_all, 60, "the memory")
    balloon.wait_for(lambda: available(balloon) >= 200, 60, "the reserve")
    assert 600 * MIB < balloon.actual() <= MEMORY * MIB
    assert hog.release() == hog.bytes
    balloon.wait_for(lambda: balloon.actual() == 600 * MIB, 60, "the size that the host wants")


def test_without_leave_the_balloon_keeps_what_the_host_wants(balloon):
    """Neither the host nor the administrator lets it shrink."""
    balloon.resize(400)
    hog = Hog(balloon, 800)
    balloon.wait_for(hog.is_killed, 120, "the OOM killer")
    assert balloon.actual() == 400 * MIB


def test_memory_comes_back_before_anything_is_killed(deflates_on_oom):
    """With deflate-on-oom; and the pages in the balloon count as the guest's."""
    balloon = deflates_on_oom
    kills = balloon.counters()["oom_kill"]
    balloon.resize(300)
    assert balloon.counters()["MemTotal"] == balloon.total
    hog = Hog(balloon, 600)
    balloon.wait_for(hog.has_all, 120, "the memory")
    assert balloon.actual() > 500 * MIB
    assert hog.release() == hog.bytes
    assert balloon.counters()["oom_kill"] == kills
    balloon.wait_for(lambda: balloon.actual() == 300 * MIB, 60, "the size that the host wants")


def test_blocks_come_back_before_anything_is_killed(balloon):
    """As above, of a balloon that is made of blocks."""
    kills = balloon.counters()["oom_kill"]
    plug(balloon, **{"deflate-on-oom": True, "free-page-reporting": True})
    balloon.resize(300)
    if not vm.PEER:
        assert balloon.debugfs("blocks").splitlines()[0] == "pages 0"
    assert balloon.counters()["MemTotal"] == balloon.total
    hog = Hog(balloon, 600)
    balloon.wait_for(hog.has_all, 120, "the memory")
    assert hog.release() == hog.bytes
    assert balloon.counters()["oom_kill"] == kills
    balloon.resize(MEMORY)
    plug(balloon)


def test_the_balloon_pauses_when_the_guest_swaps(balloon):
    """It takes what is cache, and hardly anything of what processes use."""
    balloon.sh("mkswap /dev/disk/by-id/virtio-swap 2>/dev/null || mkswap /dev/vda; swapon /dev/vda")
    hog = Hog(balloon, 600)
    balloon.wait_for(hog.has_all, 60, "the memory")
    # Half of what is left is cache.
    balloon.sh("dd if=/dev/urandom of=/tmp/cache bs=1M count=100 status=none; rm /tmp/cache")
    before = balloon.counters()["pswpout"]
    balloon.ask(100)
    balloon.wait_until_it_waits(120)
    balloon.sh("sleep 5")
    swapped = balloon.counters()["pswpout"] - before
    assert swapped * 4096 < 64 * MIB
    assert hog.release() == hog.bytes
    balloon.resize(MEMORY)
    balloon.sh("swapoff /dev/vda")


def test_nodes_give_in_proportion_to_what_is_free(boot):
    """Two nodes of a size, one of them in use."""
    options = [
        f"{DEVICE},free-page-reporting=on",
        *(f"-object memory-backend-ram,id=m{n},size={MEMORY // 2}M" for n in (0, 1)),
        "-numa node,nodeid=0,cpus=0-1,memdev=m0",
        "-numa node,nodeid=1,memdev=m1",
    ]
    with driven(boot(memory=f"{MEMORY}M", cpus=2, qemu_opts=options, udev=False)) as balloon:

        def free():
            text = balloon.sh("grep -h MemFree /sys/devices/system/node/node*/meminfo")
            return [int(n) // 1024 for n in re.findall(r"(\d+) kB", text)]

        for size in (MEMORY - 400, MEMORY - 200):
            balloon.resize(MEMORY)
            balloon.sh("mount -t tmpfs -o mpol=bind:0 none /mnt && head -c 200M /dev/zero >/mnt/a")
            before = free()
            balloon.resize(size)
            after = free()
            taken = [a - b for a, b in zip(before, after, strict=True)]
            exact = [n * (MEMORY - size) / sum(before) for n in before]
            assert all(abs(a - b) < 40 for a, b in zip(taken, exact, strict=True)), (before, after)
            balloon.sh("umount /mnt")
        balloon.resize(MEMORY)


@contextlib.contextmanager
def merging():
    """The host merges pages as fast as it can. Others who want that have to wait."""
    with open(KSM / "run") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        before = {name: (KSM / name).read_text() for name in KSM_SETTINGS}
        try:
            for name, value in KSM_SETTINGS.items():
                (KSM / name).write_text(value)
            yield
        finally:
            for name, value in before.items():
                (KSM / name).write_text(value)


@pytest.fixture(name="merged")
def merged_fixture(balloon):
    """How much memory of the guest the host has merged, in MiB: it does, until the test's end.

    What it has counted before says little: it finds out as it comes by, and what has just changed
    it only remembers then, and merges the next time.
    """
    if not os.access(KSM / "run", os.W_OK):
        pytest.skip("this host merges no pages")
    count = pathlib.Path(f"/proc/{balloon.guest.qemu_pid()}/ksm_merging_pages")

    def scans():
        return int((KSM / "full_scans").read_text())

    def merged():
        enough = scans() + 2
        balloon.wait_for(lambda: scans() >= enough, 600, "the host to look at all pages twice")
        return int(count.read_text()) * 4096 // MIB

    with merging():
        yield merged


@pytest.mark.parametrize("reporting", [False, True])
def test_the_host_merges_equal_pages(balloon, merged, reporting):
    """What it has merged is as whole as before, and goes when the balloon takes it."""
    if reporting:
        plug(balloon, **{"free-page-reporting": True})
    write = f"cd /run; yes 1234567 | head -c {EQUAL}M >equal;"
    balloon.sh(f"{write} head -c 16M /dev/urandom >unlike; md5sum equal unlike >sums", 300)
    balloon.wait_for(lambda: merged() > EQUAL - 10, 600, "merging")
    for size in (640, MEMORY, 640):
        balloon.resize(size)
        balloon.wait_for(lambda: merged() > EQUAL - 10, 300, f"merged at {size} MiB")
    balloon.sh("cd /run; md5sum --status -c sums", 300)
    # What the guest has freed is merged still, until the balloon takes all that there is.
    balloon.sh("rm /run/equal")
    balloon.ask(1)
    balloon.wait_until_it_waits(300)
    balloon.wait_for(lambda: merged() < EQUAL - 40, 300, "an end of what was merged")
    balloon.resize(MEMORY)
    balloon.sh(f"{write} md5sum --status -c sums; rm equal", 300)
    balloon.wait_until_it_rests(60)
    balloon.sh("rm /run/unlike /run/sums")
    if reporting:
        plug(balloon)
