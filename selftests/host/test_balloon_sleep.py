# SPDX-License-Identifier: GPL-2.0
"""The balloon driver when the system goes to sleep, wakes up and powers off."""

import time

import pytest
import vm
from smallguest import MEMORY, MIB, small_guests

PAGES = "-device virtio-balloon-pci,id=balloon0"
BLOCKS = f"-object iothread,id=io0 {PAGES},free-page-reporting=on,free-page-hint=on,iothread=io0"


@pytest.fixture(name="boot")
def boot_fixture(request):
    """Guests of a test's own."""
    with small_guests(request.node.name.removeprefix("test_")) as boot:
        yield boot


def sleep(guest, is_told=True):
    """Suspend to RAM, and wake up."""
    guest.send("echo mem >/sys/power/state")
    deadline = time.monotonic() + 180
    # What wakes the system up at once is fine, too.
    while not guest.has_answered():
        if guest.qmp("query-status")["status"] == "suspended":
            # Nothing is left with a host that may forget it.
            assert not is_told or guest.qmp("query-balloon")["actual"] == MEMORY * MIB
            guest.qmp("system_wakeup")
            break
        assert time.monotonic() < deadline, f"neither asleep nor awake\n{guest.tail()}"
    assert guest.wait(180) == (0, "")


def woken(guest):
    """The guest's log of waking up."""
    return [line for line in guest.log_lines() if "Waking up from system sleep state S3" in line]


@pytest.mark.parametrize("devices", [PAGES, BLOCKS], ids=["pages", "blocks"])
def test_sleep_empties_the_balloon_and_waking_fills_it_again(boot, devices):
    """Suspend to RAM, twice."""
    guest = boot(qemu_opts=devices, memory=MEMORY)
    guest.load()
    pages = 200 * 256
    guest.resize(MEMORY - 200)
    for cycle in (1, 2):
        sleep(guest)
        guest.wait_for_size(MEMORY - 200)
        counters = guest.counters()
        assert counters["balloon_deflate"] == pages * cycle
        assert counters["balloon_inflate"] == pages * (cycle + 1)
    assert len(woken(guest)) == 2


def silence(guest):
    """A device that may not master the bus looks at no queue, and does not interrupt."""
    guest.sh(
        "device=$(readlink -f /sys/bus/virtio/drivers/virtio_balloon_rs/virtio*) &&"
        " printf '\\003' | dd of=${device%/*}/config bs=1 seek=4 conv=notrunc 2>/dev/null"
    )


@pytest.mark.ours("a parameter of our own")
@pytest.mark.parametrize("devices", [PAGES, BLOCKS], ids=["pages", "blocks"])
def test_a_queue_that_stops_answering_does_not_keep_the_system_awake(boot, devices):
    """Waking up makes it work again."""
    guest = boot(qemu_opts=devices, memory=MEMORY)
    # With a reserve the driver looks by itself what the host wants.
    guest.load(parameters="min_available_mb=16")
    guest.resize(MEMORY - 100)
    silence(guest)
    guest.qmp("balloon", value=(MEMORY - 200) * MIB)
    state = "cat /sys/kernel/debug/virtio_balloon_rs/*/state"
    guest.wait_for(lambda: guest.sh(state) == "inflating", 60, "the driver to notice")
    sleep(guest, is_told=False)
    assert len(woken(guest)) == 1
    guest.wait_for_size(MEMORY - 200)
    guest.resize(MEMORY)


@pytest.mark.ours("a parameter of our own")
def test_a_report_that_is_not_answered_does_not_keep_the_system_awake(boot):
    """Memory management waits for it, in work that has to be frozen, until the device is reset."""
    guest = boot(qemu_opts=f"{PAGES},free-page-reporting=on", memory=MEMORY)
    guest.load(parameters="min_available_mb=16")
    guest.resize(MEMORY - 100)
    silence(guest)
    # What is freed is reported 2 s later.
    guest.sh("dd if=/dev/zero of=/tmp/junk bs=1M count=64 2>/dev/null; rm /tmp/junk; sleep 5")
    sleep(guest, is_told=False)
    assert len(woken(guest)) == 1
    wrong = "the host does not answer a report of free pages: resetting the device"
    assert sum(wrong in line for line in guest.log_lines()) == 1
    guest.wait_for_size(MEMORY - 100)
    # All of it works again.
    sleep(guest)
    guest.wait_for_size(MEMORY - 100)
    guest.resize(MEMORY)
    assert sum(wrong in line for line in guest.log_lines()) == 1
    guest.sh("rmmod virtio_balloon_rs")


@pytest.mark.parametrize("devices", [PAGES, BLOCKS], ids=["pages", "blocks"])
def test_the_system_powers_off_while_the_balloon_moves(boot, devices):
    """With memory in the balloon and more on its way."""
    guest = boot(qemu_opts=devices, memory=MEMORY)
    guest.load()
    guest.resize(MEMORY - 200)
    guest.qmp("balloon", value=(MEMORY - 300) * MIB)
    guest.send("poweroff -f")
    assert guest.process.wait(180) == 0


def hibernate(boot, tmp_path, devices):
    """Has a guest with blocks in its balloon hibernate, and resume with these devices. Returns it,
    and the sum of its data."""
    disk = tmp_path / "swap"
    with open(disk, "wb") as file:
        file.truncate((MEMORY + 64) * MIB)
    drive = f"-drive file={disk},if=virtio,format=raw,cache=unsafe"
    options = {"append": "resume=/dev/vda", "memory": MEMORY}
    guest = boot(qemu_opts=f"{BLOCKS} {drive}", **options)
    guest.load()
    guest.sh(
        "dd if=/dev/urandom of=/tmp/data bs=1M count=8 2>/dev/null; mkswap /dev/vda >/dev/null;"
        "swapon /dev/vda && echo shutdown >/sys/power/disk"
    )
    before = guest.sh("md5sum /tmp/data")
    guest.resize(MEMORY - 303)
    # A part of a block.
    guest.resize(MEMORY - 302)
    guest.send("echo disk >/sys/power/state")
    assert guest.process.wait(400) == 0
    # What it says first is that it is through with what put it to sleep.
    resumed = boot(qemu_opts=f"{devices} {drive}", **options, target=MEMORY - 200, once=True)
    assert resumed.sh("md5sum /tmp/data") == before
    return resumed, before


def test_resuming_on_a_host_that_offers_less(boot, tmp_path):
    """The driver cannot do with it what it has negotiated; bound again, it does what there is."""
    guest, before = hibernate(boot, tmp_path, PAGES)
    assert guest.counters()["nr_balloon_pages"] == 0
    guest.sh(f"rmmod {vm.BALLOON} && insmod /{vm.BALLOON}.ko")
    assert guest.features()[5] == "0"
    guest.wait_for_size(MEMORY - 200)
    guest.resize(MEMORY)
    assert guest.sh(f"md5sum /tmp/data; swapoff /dev/vda; rmmod {vm.BALLOON}") == before


def test_hibernation_empties_the_balloon_and_resuming_fills_it_again(boot, tmp_path):
    """Blocks and pages; the guest that resumes has its memory as it was."""
    resumed, before = hibernate(boot, tmp_path, BLOCKS)
    resumed.wait_for_size(MEMORY - 200)
    resumed.resize(MEMORY)
    assert resumed.sh("md5sum /tmp/data; swapoff /dev/vda") == before
    resumed.sh(f"rmmod {vm.BALLOON}")
