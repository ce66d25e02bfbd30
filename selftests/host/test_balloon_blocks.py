# SPDX-License-Identifier: GPL-2.0
"""Block inflation and free page reporting: the host discards memory by the piece."""

import random
import time

import pytest
import vm
from balloonguest import DEVICE, LOWEST, MEMORY, MIB, SHARED, driven, report_after


@pytest.fixture(name="guest", scope=SHARED)
def guest_fixture(boot_for_module):
    """One guest for this file; each test leaves it as it found it."""
    options = [f"{DEVICE},free-page-reporting=on"]
    with driven(boot_for_module(memory=f"{MEMORY}M", qemu_opts=options, udev=False)) as balloon:
        yield balloon


def use(balloon, mib):
    """Have the guest touch as much memory, and keep it."""
    balloon.sh(
        "mkdir -p /run/full && mount -t tmpfs -o size=900M full /run/full &&"
        f"dd if=/dev/zero of=/run/full/a bs=1M count={mib} status=none",
        timeout=120,
    )


def free(balloon):
    """Have it freed."""
    balloon.sh("umount /run/full && rmdir /run/full")


def fill(balloon, mib):
    """Have the guest touch as much memory, and free it."""
    use(balloon, mib)
    free(balloon)


def interrupts(balloon):
    """How often the device has answered, on any queue."""
    lines = balloon.sh("cat /proc/interrupts").splitlines()
    # The device of QEMU 7.2 has one interrupt for all.
    device = balloon.device()
    names = {device, f"{device}-virtqueues"}
    found = [line for line in lines if line.split()[-1] in names]
    assert len(found) == 1, lines
    return sum(int(word) for word in found[0].split()[1:] if word.isdigit())


def test_reporting_is_negotiated(balloon):
    """And poisoning is not: nobody here fills what is free."""
    features = balloon.sh(f"cat /sys/bus/virtio/devices/{balloon.device()}/features")
    assert features[4:6] == "01"
    assert features[28] == "0", "no memory is needed to get rid of memory"


def test_reaches_each_size_exactly_and_returns_all_memory(balloon):
    """To the page, whether or not it is a number of blocks."""
    rng = random.Random(7)
    before = balloon.counters()
    taken = given = 0
    size = MEMORY
    for _ in range(30):
        last, size = size, rng.randrange(LOWEST, MEMORY)
        balloon.resize(size)
        counters = balloon.counters()
        assert counters["MemTotal"] == balloon.total - (MEMORY - size) * 1024
        assert counters["nr_balloon_pages"] == (MEMORY - size) * 256
        taken += max(last - size, 0) * 256
        given += max(size - last, 0) * 256
    balloon.resize(MEMORY)
    after = balloon.counters()
    inflated = after["balloon_inflate"] - before["balloon_inflate"]
    # A block of which a part is wanted back is taken out, and its other pages put in again.
    assert taken <= inflated <= taken + 30 * 1024
    assert after["balloon_deflate"] - before["balloon_deflate"] == inflated
    balloon.wait_until_free(before["MemFree"])


def test_blocks_go_without_page_frame_numbers(balloon):
    """A message for each 64 MiB or so on the way in, and none on the way out."""
    before = interrupts(balloon)
    balloon.resize(MEMORY // 2)
    if not vm.PEER:
        assert balloon.debugfs("blocks").splitlines()[0] == "pages 0"
    assert interrupts(balloon) - before <= MEMORY // 2 // 8
    before = interrupts(balloon)
    balloon.resize(MEMORY)
    assert interrupts(balloon) - before <= MEMORY // 2 // 8


@pytest.mark.ours("a parameter of our own")
def test_without_blocks_all_goes_by_the_page(balloon):
    """`blocks=0`. Free pages are reported all the same."""
    balloon.reload("blocks=0")
    features = balloon.sh(f"cat /sys/bus/virtio/devices/{balloon.device()}/features")
    assert features[5] == "1"
    balloon.resize(MEMORY // 2)
    pages, *orders = balloon.debugfs("blocks").splitlines()
    assert pages == f"pages {MEMORY // 2 * 256}"
    assert orders and all(order.endswith(" 0") for order in orders), orders
    balloon.resize(MEMORY)
    balloon.reload()


def test_the_host_gets_the_memory(balloon):
    """QEMU's resident memory falls by what the guest had used."""
    use(balloon, 600)
    # Now, for what is freed is reported, which takes it as well.
    used = balloon.guest.resident_mib()
    free(balloon)
    balloon.resize(LOWEST)
    assert balloon.guest.resident_mib() < used - 300


def test_what_is_freed_is_reported(balloon):
    """QEMU's resident memory falls without the balloon."""
    report_after(balloon, 100)
    use(balloon, 600)
    used = balloon.guest.resident_mib()
    free(balloon)
    balloon.wait_for(
        lambda: balloon.guest.resident_mib() < used - 300, 60, "what was reported to go"
    )
    assert balloon.pages() == 0


def test_reports_and_blocks_share_the_queue(balloon):
    """The balloon moves while the guest frees memory; then all sizes are exact."""
    report_after(balloon, 1)
    rng = random.Random(3)
    for _ in range(10):
        balloon.ask(rng.randrange(MEMORY // 2, MEMORY))
        fill(balloon, 100)
    balloon.resize(777)
    assert balloon.pages() == (MEMORY - 777) * 256


def test_what_comes_back_can_be_used(balloon):
    """Memory that was with the host holds what is written to it."""
    balloon.resize(LOWEST)
    balloon.resize(MEMORY)
    balloon.sh(
        "mkdir -p /run/full && mount -t tmpfs -o size=700M full /run/full || exit;"
        "for i in 1 2 3 4 5; do seq $i 9 15000000 >/run/full/$i & done; wait;"
        "for i in 1 2 3 4 5; do seq $i 9 15000000 | cmp - /run/full/$i || exit; done;"
        "umount /run/full && rmdir /run/full",
        timeout=300,
    )


def test_a_storm_of_changes_ends_at_the_last_size(balloon):
    """Requests come faster than they can be met."""
    rng = random.Random(5)
    for _ in range(300):
        balloon.ask(rng.randrange(LOWEST, MEMORY + 1))
    balloon.resize(555)


def test_the_guest_survives_a_target_beyond_its_memory(balloon):
    """The balloon stops at a reserve for the guest, and shrinks when it may."""
    kills = balloon.counters()["oom_kill"]
    balloon.ask(1)
    balloon.wait_until_it_waits(60)
    assert vm.PEER or "no memory to spare" in balloon.log()
    left = balloon.counters()
    assert 48 * 1024 < left["MemAvailable"] < 96 * 1024
    # It takes the little that is freed now and then.
    balloon.wait_for(
        lambda: balloon.actual() == MEMORY * MIB - balloon.pages() * 4096, 60, "the same size"
    )
    balloon.resize(MEMORY)
    assert balloon.counters()["oom_kill"] == kills


def test_unloading_returns_the_blocks(balloon):
    """With blocks in the balloon, few to many; and loading takes them again."""
    balloon.unload_at_each_fill_level()


def test_unloading_works_while_the_balloon_moves(balloon):
    """In either direction, at any point, with reports under way."""
    for delay in (0, 0.02, 0.2):
        for size in (LOWEST, MEMORY):
            fill(balloon, 50)
            balloon.ask(size)
            time.sleep(delay)
            balloon.sh(f"rmmod {vm.BALLOON}")
            balloon.assert_as_before()
            balloon.load()


def test_a_host_that_does_not_answer_cannot_keep_the_driver(balloon):
    """Unloading gives up on it, resets the device and has all memory back, reports included."""
    pci = balloon.sh(f"dirname $(readlink -f /sys/bus/virtio/devices/{balloon.device()})")
    command = f"dd of={pci}/config bs=1 seek=4 count=2 conv=notrunc status=none"
    before = balloon.sh(f"od -An -tx1 -j4 -N2 {pci}/config").split()
    balloon.resize(MEMORY // 2)
    # A device that may not access memory (bus mastering off) takes nothing out of its queues.
    balloon.sh(f"printf '\\x{int(before[0], 16) & ~4:02x}\\x{before[1]}' | {command}")
    balloon.ask(LOWEST)
    fill(balloon, 100)
    started = time.monotonic()
    balloon.sh(f"rmmod {vm.BALLOON}")
    assert time.monotonic() - started < 30
    balloon.assert_as_before()

    balloon.ask(MEMORY)
    balloon.sh(f"printf '\\x{before[0]}\\x{before[1]}' | {command}")
    balloon.load()
    balloon.resize(MEMORY - 10)


def test_a_device_can_be_unplugged_with_blocks_in_the_balloon(balloon):
    """Without leaving anything behind."""
    balloon.resize(MEMORY // 2)
    balloon.qmp("device_del", id="balloon0")
    balloon.wait_for(lambda: not balloon.is_plugged(), 60, "unplug")
    balloon.assert_as_before()
    balloon.qmp(
        "device_add",
        **{"driver": "virtio-balloon-pci", "id": "balloon0", "bus": "port0"},
        **{"free-page-reporting": True},
    )
    balloon.wait_for(lambda: balloon.driver() == vm.BALLOON, 60, "plug and bind")
    balloon.resize(MEMORY - 100)
