# SPDX-License-Identifier: GPL-2.0
"""The balloon driver with a real device, QEMU's, whose other side is driven over QMP."""

import os
import random
import re
import time

import pytest
import vm
from balloonguest import DEVICE, LOAD, LOWEST, MEMORY, MIB, SHARED, SLACK, UNBOUND, driven

# How often up and down, and which sizes. More of it for those who ask.
SWINGS = int(os.environ.get("SWINGS", "20"))
SEED = int(os.environ.get("SEED", "2"))


@pytest.fixture(name="guest", scope=SHARED)
def guest_fixture(boot_for_module):
    """One guest for this file; each test leaves it as it found it."""
    with driven(boot_for_module(memory=f"{MEMORY}M", qemu_opts=[DEVICE], udev=False)) as balloon:
        yield balloon


def test_reaches_each_size_exactly_and_returns_all_memory(balloon):
    """Up and down."""
    rng = random.Random(SEED)
    before = balloon.counters()
    taken = 0
    for _ in range(SWINGS):
        size = rng.randrange(MEMORY * 3 // 4, MEMORY)
        balloon.resize(size)
        assert balloon.counters()["MemTotal"] == balloon.total - (MEMORY - size) * 1024
        taken += (MEMORY - size) * 256
        balloon.resize(MEMORY)
    after = balloon.counters()
    assert after["balloon_inflate"] - before["balloon_inflate"] == taken
    assert after["balloon_deflate"] - before["balloon_deflate"] == taken
    balloon.wait_until_free(before["MemFree"])


def test_statistics_are_the_guests_own(balloon):
    """At the interval that the host asks for, all that QEMU knows; see test_balloon_vhost."""

    def poll(seconds):
        path = "/machine/peripheral/balloon0"
        name = "guest-stats-polling-interval"
        balloon.qmp("qom-set", path=path, property=name, value=seconds)

    def read():
        return balloon.qmp("qom-get", path="/machine/peripheral/balloon0", property="guest-stats")

    first = read()["last-update"]
    poll(1)
    balloon.wait_for(lambda: read()["last-update"] > first + 2, 30, "statistics")
    poll(0)
    stats = {k.removeprefix("stat-"): v for k, v in read()["stats"].items()}
    memory = events = balloon.counters()

    absent = {k for k, v in stats.items() if v == 2**64 - 1}
    # A kernel without hugetlbfs has none of its own.
    has_hugetlb = "htlb_buddy_alloc_success" in events
    assert absent == (set() if has_hugetlb else {"htlb-pgalloc", "htlb-pgfail"})
    # QEMU 7.2 does not know the latest.
    assert len(stats) in (10, 16)
    assert stats["total-memory"] == memory["MemTotal"] * 1024
    assert abs(stats["free-memory"] - memory["MemFree"] * 1024) < SLACK * MIB
    assert abs(stats["available-memory"] - memory["MemAvailable"] * 1024) < SLACK * MIB
    assert abs(stats["disk-caches"] - memory["Cached"] * 1024) < SLACK * MIB
    # Events go on: what was reported is not more than there are by now, and not much less.
    assert 0 < stats["minor-faults"] <= events["pgfault"]
    assert stats["minor-faults"] > events["pgfault"] / 2
    assert 0 < stats["major-faults"] <= events["pgmajfault"]
    for name in ("swap-in", "swap-out", "oom-kills", "alloc-stalls", "direct-scans"):
        assert stats.get(name, 0) <= 2**40


def test_a_storm_of_changes_ends_at_the_last_size(balloon):
    """Requests come faster than they can be met. It never takes more than any of them wanted."""
    rng = random.Random(5)
    for last in (900, 600, 1000, 700, 777):
        # Since it has rested.
        asked = [balloon.actual() // MIB]
        low = rng.randrange(MEMORY // 2, MEMORY)
        for _ in range(60):
            asked.append(rng.randrange(low, MEMORY + 1))
            balloon.ask(asked[-1])
            assert balloon.actual() >= min(asked) * MIB, asked
        balloon.resize(last)


def test_the_guest_survives_a_target_beyond_its_memory(balloon):
    """The balloon stops at a reserve for the guest, and shrinks when it may."""
    kills = balloon.counters()["oom_kill"]
    lines = len(re.findall("no memory to spare", balloon.log()))
    # QEMU takes no target of zero; 1 MiB is one that no kernel can live in.
    balloon.ask(1)
    balloon.wait_until_it_waits(60)
    assert vm.PEER or "no memory to spare" in balloon.log()
    left = balloon.counters()
    assert 48 * 1024 < left["MemAvailable"] < 96 * 1024
    # It takes the little that is freed now and then.
    balloon.wait_for(
        lambda: balloon.actual() == MEMORY * MIB - balloon.pages() * 4096, 60, "the same size"
    )
    # The guest works, and what it frees is not fought over.
    assert balloon.sh("ls / | wc -l") != "0"
    balloon.resize(MEMORY)
    assert balloon.counters()["oom_kill"] == kills
    # Said once, not five times a second.
    assert len(re.findall("no memory to spare", balloon.log())) - lines <= 3


def test_the_host_gets_the_memory(balloon):
    """QEMU's resident memory falls."""
    balloon.sh(
        "mkdir -p /run/full && mount -t tmpfs -o size=700M full /run/full &&"
        "dd if=/dev/zero of=/run/full/a bs=1M count=400 status=none;"
        "umount /run/full && rmdir /run/full",
        timeout=120,
    )
    used = balloon.guest.resident_mib()
    # More than was never touched: most of what was has to go.
    balloon.resize(LOWEST)
    assert balloon.guest.resident_mib() < used - 200


# Two files whose pages lie between each other's, and then only one of them.
INTERLEAVE = """
mkdir -p /run/full && mount -t tmpfs -o size=700M full /run/full && cd /run/full || exit
python3 -c '
a, b, page = open("a", "wb", 0), open("b", "wb", 0), bytes(4096)
for _ in range(%d):
    a.write(page), b.write(page)' && rm a
"""
# How many free blocks of 2 MiB the guest has.
BLOCKS = (
    "awk '{ for (i = 14; i <= NF; i++) n += $i * 2 ^ (i - 14) } END { print n }' /proc/buddyinfo"
)


def test_compaction_moves_pages_of_the_balloon(balloon):
    """Where free pages lie between the balloon's, compaction makes blocks of them."""
    # More than half of the guest is in one or the other file: wherever compaction looks, they are.
    mib = 288
    if not vm.PEER:
        # Pages that it can move.
        balloon.reload("blocks=0")
    balloon.sh(INTERLEAVE % (mib * 256), timeout=180)
    # They come from where there are no blocks, as long as that lasts.
    balloon.resize(MEMORY - mib)
    balloon.sh("cd / && umount /run/full && rmdir /run/full && echo 3 >/proc/sys/vm/drop_caches")
    before, blocks = balloon.counters(), int(balloon.sh(BLOCKS))

    def is_made():
        balloon.sh("echo 1 >/proc/sys/vm/compact_memory", timeout=120)
        # Of 144 at most. A balloon whose pages lie together leaves less to be made. There are none
        # without pages that move.
        made = int(balloon.sh(BLOCKS)) - blocks
        moved = balloon.counters()["balloon_migrate"] - before["balloon_migrate"]
        return (made > 40 or blocks + made > 200) and moved > mib * 256 // 64

    # It may end early: with the first page for which it has no other at hand.
    try:
        balloon.wait_for(is_made, 60, "free blocks")
    except AssertionError as error:
        after = balloon.counters()
        error.add_note(f"{blocks} blocks, then {balloon.sh(BLOCKS)}")
        names = "balloon_migrate", "pgmigrate_success", "pgmigrate_fail", "compact_isolated"
        error.add_note(str({name: after[name] - before[name] for name in names}))
        raise
    after = balloon.counters()
    assert after["nr_balloon_pages"] == mib * 256
    assert balloon.actual() == (MEMORY - mib) * MIB
    if not vm.PEER:
        balloon.resize(MEMORY)
        balloon.reload()


def test_unloading_returns_the_pages(balloon):
    """With pages in the balloon, few to many; and loading takes them again."""
    balloon.unload_at_each_fill_level()


def test_unloading_works_while_the_balloon_moves(balloon):
    """In either direction, at any point."""
    for delay in (0, 0.3):
        for size in (LOWEST, MEMORY):
            balloon.ask(size)
            time.sleep(delay)
            balloon.sh(f"rmmod {vm.BALLOON}")
            balloon.assert_as_before()
            balloon.load()


def test_loads_and_unloads_10_times_with_a_device(balloon):
    """Each time the device is bound."""
    balloon.ask(MEMORY - 16)
    balloon.sh(
        f"for i in $(seq 10); do rmmod {vm.BALLOON} || exit; {LOAD} || exit;"
        f" [ -d /sys/bus/virtio/drivers/{vm.BALLOON}/{balloon.device()} ] || exit; done",
        timeout=240,
    )
    balloon.wait_for(lambda: balloon.pages() == 16 * 256, 30, "the size")


@pytest.mark.ours("two drivers for one device")
def test_shares_the_machine_with_the_c_driver(balloon):
    """Whoever was first has the device, until it is unbound."""
    device = balloon.device()
    ours = "/sys/bus/virtio/drivers/virtio_balloon_rs"
    theirs = "/sys/bus/virtio/drivers/virtio_balloon"
    balloon.resize(MEMORY - 64)

    balloon.sh("modprobe virtio_balloon")
    assert balloon.driver() == "virtio_balloon_rs"

    # From ours to theirs, with pages in the balloon, and back.
    balloon.sh(f"echo {device} >{ours}/unbind")
    balloon.assert_as_before()
    assert balloon.driver() == UNBOUND
    balloon.sh(f"echo {device} >{theirs}/bind")
    assert balloon.driver() == "virtio_balloon"
    balloon.wait_for(lambda: balloon.pages() == 64 * 256, 30, "the C driver's balloon")
    balloon.sh(f"echo {device} >{theirs}/unbind; echo {device} >{ours}/bind")
    assert balloon.driver() == "virtio_balloon_rs"
    balloon.wait_for(lambda: balloon.pages() == 64 * 256, 30, "our balloon")

    # Loaded second, ours leaves the device alone, and gets it when the other goes.
    balloon.sh(f"echo {device} >{ours}/unbind; echo {device} >{theirs}/bind")
    balloon.reload()
    assert balloon.driver() == "virtio_balloon"
    balloon.sh("rmmod virtio_balloon")
    assert balloon.driver() == UNBOUND
    balloon.sh(f"echo {device} >{ours}/bind")
    assert balloon.driver() == "virtio_balloon_rs"


def test_negotiates_only_what_it_can_do(balloon):
    """The device offers more."""
    features = balloon.sh(f"cat /sys/bus/virtio/devices/{balloon.device()}/features")
    assert features[1] == "1", "statistics"
    # DEFLATE_ON_OOM, FREE_PAGE_HINT, PAGE_POISON, REPORTING
    assert features[2:6] == "0000"
    assert features[33] == "0", "ACCESS_PLATFORM: the host is told physical addresses"


def test_a_resize_can_wake_the_system(balloon):
    """The wakeup source is active while the balloon moves, and not after."""
    power = f"/sys/bus/virtio/devices/{balloon.device()}/power"
    balloon.sh(f"echo enabled >{power}/wakeup")
    before = int(balloon.sh(f"cat {power}/wakeup_active_count"))
    balloon.resize(MEMORY - 128)
    balloon.wait_for(lambda: balloon.sh(f"cat {power}/wakeup_active") == "0", 60, "sleep")
    assert int(balloon.sh(f"cat {power}/wakeup_active_count")) > before
    balloon.sh(f"echo disabled >{power}/wakeup")


def test_a_host_that_does_not_answer_cannot_keep_the_driver(balloon):
    """Unloading gives up on it, resets the device and has all pages back."""
    pci = balloon.sh(f"dirname $(readlink -f /sys/bus/virtio/devices/{balloon.device()})")
    command = f"dd of={pci}/config bs=1 seek=4 count=2 conv=notrunc status=none"
    before = balloon.sh(f"od -An -tx1 -j4 -N2 {pci}/config").split()
    # A device that may not access memory (bus mastering off) takes nothing out of its queues and
    # sends no interrupts. This stops it on the way.
    balloon.ask(LOWEST)
    balloon.sh(f"printf '\\x{int(before[0], 16) & ~4:02x}\\x{before[1]}' | {command}")
    balloon.wait_for(lambda: 0 < balloon.pages() == balloon.pages(), 60, "a balloon that is stuck")
    started = time.monotonic()
    balloon.sh(f"rmmod {vm.BALLOON}")
    assert time.monotonic() - started < 30
    assert vm.PEER or "the host does not take part" in balloon.sh("dmesg | tail -n 3")
    balloon.assert_as_before()

    balloon.ask(MEMORY)
    balloon.sh(f"printf '\\x{before[0]}\\x{before[1]}' | {command}")
    balloon.load()
    balloon.resize(MEMORY - 10)


def test_a_device_can_be_unplugged_with_pages_in_the_balloon(balloon):
    """And plugged in again."""
    balloon.resize(MEMORY // 2)
    balloon.qmp("device_del", id="balloon0")
    balloon.wait_for(lambda: not balloon.is_plugged(), 60, "unplug")
    balloon.assert_as_before()
    balloon.plug()
    balloon.resize(MEMORY - 100)


def test_a_device_can_be_unplugged_while_the_balloon_moves(balloon):
    """In the middle of an inflation."""
    balloon.ask(MEMORY // 2)
    time.sleep(0.1)
    balloon.qmp("device_del", id="balloon0")
    balloon.wait_for(lambda: not balloon.is_plugged(), 60, "unplug")
    balloon.assert_as_before()
    balloon.plug()
