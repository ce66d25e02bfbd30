# SPDX-License-Identifier: GPL-2.0
"""Free page hints: a host that migrates the guest does not copy what is free."""

import contextlib
import time

import pytest
import vm
from smallguest import MEMORY, MIB, small_guests

# What the guest has used and freed: it is not zero, so the host would have to copy it.
JUNK = 192
# What the guest keeps.
DATA = 8
# Pages of the guest that may be somewhere else than before, for reasons of its own, in MiB.
SLACK = 16
DEVICES = (
    "-object iothread,id=io0"
    " -device virtio-balloon-pci,id=balloon0,free-page-hint=on,free-page-reporting=on,iothread=io0"
)
NOWHERE = "exec:cat >/dev/null"
# QEMU before 9.0 that emulates the CPUs forgets what these write while it migrates them, whatever
# the balloon does: where it looks for that in large pieces (03bfc2188f06). It does not if the
# memory's size is no multiple of 256 KiB.
GUEST = {"qemu_opts": DEVICES, "memory": MEMORY, "less": 8, "cpus": 2}


@pytest.fixture(name="boot", scope="module")
def boot_fixture():
    """Guests for all tests of this file."""
    with small_guests("balloon-migration") as boot:
        yield boot


@pytest.fixture(name="source", scope="module")
def source_fixture(boot):
    """The guest that is migrated; each test but the last leaves it as it found it."""
    guest = boot(**GUEST)
    guest.sh(f"dd if=/dev/urandom of=/tmp/data bs=1M count={DATA} 2>/dev/null")
    if vm.PEER:
        # As the first test leaves it.
        guest.load()
    return guest


def free_mib(guest):
    """Free memory."""
    return guest.counters()["MemFree"] // 1024


def litter(guest):
    """Have memory used, and freed."""
    guest.sh(f"for i in $(seq {JUNK // DATA}); do cat /tmp/data; done >/tmp/junk && rm /tmp/junk")


def migration(guest):
    """How far it is."""
    return guest.qmp("query-migrate")


def set_speed(guest, bytes_per_second):
    """How fast the host sends."""
    guest.qmp("migrate-set-parameters", **{"max-bandwidth": bytes_per_second})


def start(guest, uri):
    """Start a migration that gets nowhere for now: 16 pages a second."""
    set_speed(guest, 16 * 4096)
    guest.qmp("migrate", uri=uri)
    guest.wait_for(lambda: migration(guest)["status"] == "active", 120, "the migration to begin")


def wait_until_hints_rest(guest):
    """Wait until nothing more becomes a hint: free memory stays what it is for 2 s."""
    seen, since = free_mib(guest), time.monotonic()

    def rests():
        nonlocal seen, since
        now = free_mib(guest)
        if abs(now - seen) > 1:
            seen, since = now, time.monotonic()
        return time.monotonic() - since > 2

    guest.wait_for(rests, 120, "an end of hints")


def wait_for_hints(guest, free):
    """Wait until the guest has hinted what was free."""
    guest.wait_for(lambda: free_mib(guest) < free - JUNK, 120, "hints")
    # The host need not copy them.
    guest.wait_for(
        lambda: migration(guest)["ram"]["remaining"] < (MEMORY - JUNK) * MIB, 120, "less to copy"
    )
    wait_until_hints_rest(guest)


def wait_until_free(guest, free):
    """Wait until the guest has its memory back."""
    guest.wait_for(lambda: free_mib(guest) > free - SLACK, 120, "free memory")


def finish(guest):
    """Let a migration go on until it is complete."""
    set_speed(guest, 1 << 40)
    guest.wait_for(
        lambda: migration(guest)["status"] not in ("active", "device"), 120, "the migration"
    )
    status = migration(guest)
    assert status["status"] == "completed", status
    return status["ram"]


@contextlib.contextmanager
def hinted(guest):
    """With free memory hinted, as a migration that is cancelled in the end has it."""
    litter(guest)
    free = free_mib(guest)
    start(guest, NOWHERE)
    try:
        wait_for_hints(guest, free)
        yield free
    finally:
        guest.qmp("migrate_cancel")
        guest.wait_for(lambda: migration(guest)["status"] == "cancelled", 120, "the end of it")


@pytest.mark.ours("has the C driver beside ours")
def test_the_host_copies_less(source):
    """Than without a driver, by what was free; and about as much as with the C driver."""
    sent = {}
    for driver in (None, "virtio_balloon", "virtio_balloon_rs"):
        litter(source)
        if driver:
            source.load(driver)
            assert source.features()[3] == "1"
        free = free_mib(source)
        start(source, NOWHERE)
        if driver:
            wait_for_hints(source, free)
        sent[driver] = finish(source)["normal"] * 4096 // MIB
        # It was copied, so the original may go on.
        source.qmp("cont")
        wait_until_free(source, free)
        if driver:
            source.sh(f"rmmod {driver}")
            wait_until_free(source, free)
    print(f"copied, in MiB: {sent}")
    ours = sent["virtio_balloon_rs"]
    # Not all that is free is in blocks of the largest order.
    assert ours < sent[None] - JUNK // 2
    # The host copies while it is told, so some of it depends on who was faster.
    assert ours < (sent[None] + sent["virtio_balloon"]) / 2
    source.load()


def test_a_cancelled_migration_gives_all_memory_back(source):
    """To the guest that it leaves where it is."""
    before = source.counters()["MemTotal"]
    with hinted(source) as free:
        # Hinted memory is not in the balloon.
        assert source.counters()["nr_balloon_pages"] == 0
        assert source.counters()["MemTotal"] == before
    wait_until_free(source, free)


def test_memory_pressure_takes_hinted_memory_back(source):
    """Nothing is killed for memory that was only hinted; then hints go on."""
    kills = source.counters()["oom_kill"]
    with hinted(source) as free:
        # Much more than is left.
        assert free_mib(source) < 150
        source.sh("dd if=/dev/zero of=/tmp/full bs=1M count=300 2>/dev/null")
        assert source.counters()["oom_kill"] == kills
        source.sh("rm /tmp/full")
    wait_until_free(source, free)


def test_the_balloon_moves_while_memory_is_hinted(source):
    """Both ways, as far as there is memory."""
    source.resize(MEMORY - 64)
    with hinted(source) as free:
        source.resize(MEMORY - 32)
    wait_until_free(source, free + 32)
    source.resize(MEMORY)


def test_unloading_gives_hinted_memory_back(source):
    """In the middle of a migration, which goes on without the driver; then it is loaded again."""
    with hinted(source) as free:
        source.sh(f"rmmod {vm.BALLOON}")
        wait_until_free(source, free)
        source.load()
        time.sleep(1)
        assert source.features()[3] == "1"
    wait_until_free(source, free)


def test_hints_while_memory_is_used_and_freed_lose_nothing(source):
    """Migrations begin and are cancelled while the guest checks what it writes."""
    rounds = 0
    # On a busy host the guest may be through with it before there are two.
    while rounds < 2:
        source.send(
            "for i in $(seq 12); do cat /tmp/data /tmp/data /tmp/data >/tmp/copy || exit;"
            f" tail -c {DATA * MIB} /tmp/copy | cmp - /tmp/data || exit; rm /tmp/copy; done"
        )
        while not source.has_answered():
            start(source, NOWHERE)
            time.sleep(0.2)
            source.qmp("migrate_cancel")
            source.wait_for(
                lambda: migration(source)["status"] == "cancelled", 120, "the end of it"
            )
            rounds += 1
        assert source.wait(1) == (0, "")


def test_the_guest_arrives_whole(source, boot, tmp_path):
    """With its data, its balloon, and all memory that was hinted."""
    source.resize(MEMORY - 64)
    litter(source)
    free = free_mib(source)
    before = source.sh("md5sum /tmp/data")
    socket = f"unix:{tmp_path}/migration"
    target = boot(**GUEST, incoming=socket)
    start(source, socket)
    wait_for_hints(source, free)
    sent = finish(source)["normal"] * 4096 // MIB
    assert sent < MEMORY - JUNK
    target.wait_for(
        lambda: target.qmp("query-status")["status"] == "running", 120, "the guest to go on"
    )
    wait_until_free(target, free)
    assert target.sh("md5sum /tmp/data") == before
    target.wait_for_size(MEMORY - 64)
    target.resize(MEMORY - 128)
    # What the host did not copy can be used.
    for _ in range(2):
        litter(target)
        target.sh(
            "cat /tmp/data /tmp/data >/tmp/copy &&"
            f" tail -c {DATA * MIB} /tmp/copy | cmp - /tmp/data"
        )
    target.resize(MEMORY)
    assert target.sh("md5sum /tmp/data") == before
    target.sh(f"rmmod {vm.BALLOON}")
