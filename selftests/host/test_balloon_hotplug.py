# SPDX-License-Identifier: GPL-2.0
"""The balloon in a guest whose memory is taken offline, and in one with ZONE_MOVABLE."""

import pytest
from balloonguest import SHARED
from smallguest import PORT, small_guests

MEMORY = 1024
# The guest's memory in the sections that go offline and online.
SECTION = 128
# The lower half, and what does not fit there, is for anything; the rest for what can be moved.
MOVABLE = MEMORY // 2
# Pages of the guest that may be somewhere else than before, for reasons of its own, in MiB.
SLACK = 16


@pytest.fixture(name="guest", scope=SHARED)
def guest_fixture():
    """One guest, without a device."""
    with small_guests("balloon-hotplug") as boot:
        # By chance the kernel itself would lie in the zone.
        options = f"movablecore={MOVABLE}M nokaslr"
        guest = boot(qemu_opts=PORT, append=options, memory=MEMORY)
        guest.load()
        yield guest


@pytest.fixture(name="plug")
def plug_fixture(guest):
    """plug(reporting): plug a device in; it is taken out in the end."""
    yield lambda reporting: guest.plug(**{"free-page-reporting": reporting})
    guest.unplug()


def sections(guest, zone):
    """The sections that are in a zone. The guest's last one has a hole, so it has to stay."""
    return guest.sh(
        "cd /sys/devices/system/memory; for m in memory[0-9]*; do"
        f" [ $(cat $m/state) != online ] || [ $(cat $m/valid_zones | cut -d' ' -f1) != {zone} ] ||"
        " echo $m; done"
    ).split()


def put(guest, section, state):
    """Take a section offline or online; returns whether it went, and the error message."""
    guest.send(f"echo {state} >/sys/devices/system/memory/{section}/state")
    status, output = guest.wait(120)
    return status == 0, output


def free_pages(guest, zone):
    """How many pages are free in a zone, those on the processors' lists not counted."""
    lines = guest.sh(
        "echo 1 >/proc/sys/vm/drop_caches; echo >/proc/sys/vm/stat_refresh; cat /proc/zoneinfo"
    )
    section = lines.split(f"zone {zone:>8}\n")[1]
    return int(section.split("pages free")[1].split()[0])


def test_pages_make_way_for_memory_that_goes_offline(guest, plug):
    """They are migrated; the balloon keeps its size."""
    plug(False)
    guest.resize(MEMORY - 256)
    before = guest.counters()
    movable = sections(guest, "Movable")
    assert len(movable) == MOVABLE // SECTION
    for section in movable[:-1]:
        assert put(guest, section, "offline") == (True, "")
        assert guest.counters()["nr_balloon_pages"] == 256 * 256
        assert put(guest, section, "online_movable") == (True, "")
    # They are taken where what can be moved may be, as long as there is room.
    assert guest.counters()["balloon_migrate"] - before["balloon_migrate"] > 100 * 256
    guest.resize(MEMORY)


@pytest.mark.ours("takes no blocks")
def test_blocks_are_not_taken_where_only_what_can_be_moved_may_be(guest, plug):
    """Pages are, when there are no blocks left elsewhere."""
    plug(True)
    movable, other = free_pages(guest, "Movable"), free_pages(guest, "DMA32")
    guest.resize(MEMORY - 200)
    assert free_pages(guest, "Movable") > movable - SLACK * 256
    assert free_pages(guest, "DMA32") < other - (200 - SLACK) * 256
    migrated = guest.counters()["balloon_migrate"]
    for section in sections(guest, "Movable")[:-1]:
        assert put(guest, section, "offline") == (True, "")
        assert put(guest, section, "online_movable") == (True, "")
    assert guest.counters()["balloon_migrate"] == migrated
    guest.resize(MEMORY // 4)
    # The kernel itself needs some.
    assert free_pages(guest, "DMA32") > 40 * 256
    assert free_pages(guest, "Movable") < movable - 200 * 256
    guest.resize(MEMORY)


@pytest.mark.ours("takes no blocks")
def test_blocks_make_way_for_memory_that_goes_offline(guest, plug):
    """They are freed, and others taken instead."""
    able = []
    for section in sections(guest, "DMA32"):
        went, _ = put(guest, section, "offline")
        if went:
            able.append(section)
            assert put(guest, section, "online_kernel") == (True, "")
    # The kernel's own is in the first one, at least.
    assert able
    plug(True)
    guest.resize(MEMORY - 300)
    before = guest.counters()
    went = []
    for section in able:
        if put(guest, section, "offline") == (True, ""):
            went.append(section)
            guest.wait_for(lambda: guest.counters()["nr_balloon_pages"] == 300 * 256, 120, "blocks")
            assert put(guest, section, "online_kernel") == (True, "")
    # The kernel may have put something of its own into some of them.
    assert went
    after = guest.counters()
    # Not all of the balloon was elsewhere.
    names = ("balloon_deflate", "balloon_migrate")
    assert sum(after[name] - before[name] for name in names) > 0
    guest.resize(MEMORY)
