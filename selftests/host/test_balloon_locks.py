# SPDX-License-Identifier: GPL-2.0
"""All that the balloon does at once, in one small guest: also on the kernel with lockdep.

What a lock is taken below, and what is allocated below it, lockdep knows when it has happened once.
"""

import time

import pytest
import vm
from balloonguest import SHARED, report_after
from smallguest import MIB, PORT, small_guests

MEMORY = 768
ALL = {
    "deflate-on-oom": True,
    "free-page-reporting": True,
    "free-page-hint": True,
    "iothread": "io0",
}


@pytest.fixture(name="guest", scope=SHARED)
def guest_fixture():
    """With nothing plugged in. The kernel log must be clean in the end."""
    options = f"-object iothread,id=io0 {PORT}"
    with small_guests("balloon-locks") as boot:
        guest = boot(qemu_opts=options, memory=MEMORY, cpus=2)
        guest.load()
        # Page reporting does not wait for long.
        report_after(guest, 100)
        yield guest
        guest.sh(f"rmmod {vm.BALLOON}")


@pytest.fixture(name="plugged", params=[{}, ALL], ids=["pages", "everything"])
def plugged_fixture(guest, request):
    """With a device, which goes with nothing in it."""
    guest.plug(**request.param)
    yield guest
    guest.unplug()


def spare(guest):
    """How much the guest can do without, in MiB."""
    return guest.counters()["MemAvailable"] // 1024


def use(guest, mib):
    """Have so much memory used, and freed."""
    guest.sh(f"dd if=/dev/zero of=/tmp/full bs=1M count={mib} 2>/dev/null && rm /tmp/full")


def test_moves_while_memory_is_compacted(plugged):
    """In and out, with pages that migrate, what is freed reported, and files read meanwhile."""
    files = "true" if vm.PEER else "cat /sys/kernel/debug/virtio*/*/*"
    small = MEMORY - spare(plugged) // 2
    for size in (small, MEMORY, small):
        plugged.qmp("balloon", value=size * MIB)
        plugged.sh(f"echo 1 >/proc/sys/vm/compact_memory; {files}")
        plugged.wait_for_size(size)
        plugged.sh("echo 1 >/proc/sys/vm/compact_memory; echo 3 >/proc/sys/vm/drop_caches")
        use(plugged, spare(plugged) // 3)
    plugged.resize(MEMORY)


def test_is_unplugged_while_it_moves(plugged):
    """And plugged in again."""
    plugged.qmp("balloon", value=(MEMORY - spare(plugged) // 2) * MIB)
    time.sleep(0.2)


def test_gives_back_what_is_needed(guest):
    """To who finds no memory: out of the balloon, and of what is kept for a migration."""
    guest.plug(**ALL)
    kills = guest.counters()["oom_kill"]
    available = spare(guest)
    guest.resize(MEMORY - available // 3)
    use(guest, available - available // 6)
    guest.wait_for_size(MEMORY - available // 3)

    guest.qmp("migrate-set-parameters", **{"max-bandwidth": 16 * 4096})
    free = guest.counters()["MemFree"]
    guest.qmp("migrate", uri="exec:cat >/dev/null")
    guest.wait_for(lambda: guest.counters()["MemFree"] < free // 2, 60, "hints")
    use(guest, available // 3)
    guest.qmp("migrate_cancel")
    guest.wait_for(lambda: guest.qmp("query-migrate")["status"] == "cancelled", 60, "the end of it")
    guest.wait_for(lambda: guest.counters()["MemFree"] > free // 2, 60, "free memory")
    assert guest.counters()["oom_kill"] == kills
    guest.resize(MEMORY)
    guest.unplug()


def test_statistics_meanwhile(guest):
    """The host asks all the time."""
    guest.plug(**ALL)
    path = "/machine/peripheral/balloon0"
    guest.qmp("qom-set", path=path, property="guest-stats-polling-interval", value=1)
    guest.resize(MEMORY - spare(guest) // 2)
    guest.wait_for(
        lambda: guest.qmp("qom-get", path=path, property="guest-stats")["last-update"] > 0,
        60,
        "statistics",
    )
    guest.resize(MEMORY)
    guest.unplug()
