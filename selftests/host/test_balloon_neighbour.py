# SPDX-License-Identifier: GPL-2.0
"""What a balloon that grows does to the memory of the guest, with the C driver as the yardstick."""

import contextlib
import time

import pytest
import vm
from balloonguest import FRAGMENT, MEMORY, MIB, SHARED, driven_with_disk

OURS, THEIRS = "virtio_balloon_rs", "virtio_balloon"
DISK = 1200
# What the lists of processors take at once, in pages.
LISTS = 1024
# What a program reads over and over, in MiB.
READ = 150

# Touches so many MiB that may be in huge pages.
TOUCH = """
import mmap, sys
memory = mmap.mmap(-1, int(sys.argv[1]) << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
memory.madvise(mmap.MADV_HUGEPAGE)
for offset in range(0, len(memory), mmap.PAGESIZE):
    memory[offset] = 1
"""

# The least of free memory, in pages, for as long as a file exists.
WATCH = """
import os, time
file = os.open("/proc/buddyinfo", os.O_RDONLY)
least = 1 << 60
while os.path.exists("/run/watch"):
    for _ in range(50):
        lines = os.pread(file, 4096, 0).decode().splitlines()
        counts = [line.split()[4:] for line in lines]
        free = sum(int(n) << order for zone in counts for order, n in enumerate(zone))
        least = min(least, free)
        time.sleep(0.001)
open("/run/least", "w").write(str(least))
"""


@pytest.fixture(name="guest", scope=SHARED)
def guest_fixture(boot_for_module, tmp_path_factory):
    """One guest for this file, with a disk; each test leaves it as it found it."""
    with driven_with_disk(boot_for_module, tmp_path_factory.mktemp("disk"), DISK) as balloon:
        # They are higher for a while after memory was in pieces.
        balloon.marks = watermarks(balloon)
        yield balloon


@contextlib.contextmanager
def using(balloon, driver):
    """With one of the drivers; ours is there afterwards."""
    if driver == THEIRS:
        balloon.sh("rmmod virtio_balloon_rs; modprobe virtio_balloon")
    assert balloon.driver() == driver
    yield
    if driver == THEIRS:
        balloon.sh("rmmod virtio_balloon")
        balloon.load()


def huge_mib(balloon):
    """What is free in pieces of 2 MiB and more."""
    lines = balloon.sh("cat /proc/buddyinfo").splitlines()
    counts = [[int(n) for n in line.split()[4:]] for line in lines]
    return sum(n << order for zone in counts for order, n in enumerate(zone) if order >= 9) // 256


def unmovable_page_blocks(balloon):
    """How many there are."""
    text = balloon.sh("cat /proc/pagetypeinfo").split("Number of blocks type")[1]
    return sum(int(line.split()[4]) for line in text.splitlines() if line.startswith("Node"))


def pool_share(balloon):
    """Which part of nearly all that is free can be made a pool of huge pages. It is there for a
    moment only."""
    pool = "/proc/sys/vm/nr_hugepages"
    wanted = (balloon.free_mib() - 64) // 2
    return int(balloon.sh(f"echo {wanted} >{pool}; cat {pool}; echo 0 >{pool}")) / wanted


def faulted_share(balloon):
    """Which part of what a program touches it gets in huge pages: of three quarters of what is
    free."""
    before = balloon.counters()["thp_fault_alloc"]
    wanted = balloon.free_mib() * 3 // 4
    balloon.python(TOUCH, wanted)
    return (balloon.counters()["thp_fault_alloc"] - before) * 2 / wanted


def huge_pages(balloon):
    """What there is in huge pages when all else has been freed, as parts of what could be: for
    faults, free, and for a pool. And how many page blocks cannot be moved."""
    balloon.drop_caches()
    # Nothing is compacted before a program asks for it.
    faulted = faulted_share(balloon)
    balloon.sh("for i in 1 2; do echo 1 >/proc/sys/vm/compact_memory; done")
    free = huge_mib(balloon) / balloon.free_mib()
    found = faulted, free, pool_share(balloon), unmovable_page_blocks(balloon)
    print(
        f"{balloon.driver()}: {balloon.actual() // MIB} MiB left, {balloon.free_mib()} MiB free;"
        f" in huge pages {faulted:.3f} of what was touched, {free:.3f} of what is free,"
        f" {found[2]:.3f} of a pool; {found[3]} unmovable page blocks"
    )
    return found


def compare(balloon, action):
    """Two rounds of an action that ends with huge_pages(), with each driver in turn."""
    found = {THEIRS: [], OURS: []}
    for _ in range(2):
        for driver, those in found.items():
            with using(balloon, driver):
                those.append(action(balloon))
                balloon.resize(MEMORY)
    theirs, ours = ([sum(row) for row in zip(*found[d], strict=True)] for d in (THEIRS, OURS))
    print([round(mine / other, 3) for mine, other in zip(ours, theirs, strict=True)])
    # Whoever asks for huge pages gets them. What lies free, and nobody has asked for, differs by a
    # third between two runs with the same driver. (Blocks that cannot be moved left a hundredth.)
    assert ours[0] > theirs[0] * 0.9, found
    assert ours[1] > theirs[1] * 0.65, found
    assert ours[2] > theirs[2] * 0.95, found
    assert ours[3] < theirs[3] + 20, found


def huge_after_fragmentation(balloon):
    """Inflate while memory is in pieces."""
    balloon.drop_caches()
    count = (balloon.free_mib() - 100) * 2
    balloon.sh("mount -t tmpfs -o size=100%,nr_inodes=0 none /mnt")
    balloon.python(FRAGMENT, count)
    # More than our driver leaves available.
    balloon.resize(MEMORY - (balloon.counters()["MemAvailable"] // 1024 - 100))
    balloon.sh("umount /mnt")
    return huge_pages(balloon)


@pytest.mark.ours("has the C driver beside ours")
def test_huge_pages_are_left_when_memory_was_in_pieces(balloon):
    """What the balloon holds does not keep the rest from becoming huge pages."""
    compare(balloon, huge_after_fragmentation)


def huge_under_load(balloon):
    """Change the size while a program reads and caches are dropped."""
    balloon.drop_caches()
    balloon.sh(
        ": >/run/drop; (while [ -e /run/drop ]; do echo 3 >/proc/sys/vm/drop_caches; sleep 0.2;"
        " done) <&- >/dev/null 2>&1 &"
    )
    with reading(balloon):
        for size in (700, 900, 640, 800, 600):
            balloon.resize(size)
            assert balloon.pages() == (MEMORY - size) * 256
    balloon.sh("rm /run/drop; wait")
    return huge_pages(balloon)


@pytest.mark.ours("has the C driver beside ours")
def test_caches_can_be_dropped_while_the_balloon_moves(balloon):
    """It gets to each size, and huge pages are left."""
    compare(balloon, huge_under_load)


def watermarks(balloon):
    """Sums over all zones, in pages."""
    lines = [line.split() for line in balloon.sh("cat /proc/zoneinfo").splitlines()]
    return {
        name: sum(int(line[1]) for line in lines if line and line[0] == name)
        for name in ("min", "low", "high")
    }


def stalls(balloon):
    """How often somebody had to reclaim to get memory."""
    return sum(n for name, n in balloon.counters().items() if name.startswith("allocstall"))


def least_free(balloon):
    """With all memory in page cache: inflate by more than is free. The least free memory in pages,
    and stalls."""
    balloon.drop_caches()
    balloon.sh(f"dd if=/dev/vda of=/dev/null bs=1M count={DISK - 50} status=none")
    size = MEMORY - (balloon.free_mib() + 60)
    balloon.sh(f"cat >/run/watch <<'END'\n{WATCH}\nEND\npython3 /run/watch >/dev/null 2>&1 <&- &")
    balloon.sh("sleep 3")
    before = stalls(balloon)
    balloon.resize(size)
    balloon.sh("rm /run/watch; until [ -s /run/least ]; do sleep 0.1; done; sleep 1")
    least = int(balloon.sh("cat /run/least; rm /run/least"))
    stalled = stalls(balloon) - before
    balloon.resize(MEMORY)
    return least, stalled


@pytest.mark.ours("has the C driver beside ours")
def test_free_memory_stays_above_the_watermarks(balloon):
    """Reclaim goes first, in the background."""
    found = {THEIRS: [], OURS: []}
    for _ in range(3):
        for driver, those in found.items():
            with using(balloon, driver):
                those.append(least_free(balloon))
    marks = balloon.marks
    print(f"watermarks {marks}; least free and stalls: {found}")
    # kswapd begins at the low watermark. What the processors' own lists take at once is free still.
    # A small guest's marks are close to what lists of CPUs hold: no worse than with the C driver.
    theirs = min(least for name, runs in found.items() if name != OURS for least, _ in runs)
    least = min(marks["low"], theirs) - LISTS
    assert min(free for free, _ in found[OURS]) > least, (marks, found)
    most = max(stalled for _, stalled in found[THEIRS])
    assert max(stalled for _, stalled in found[OURS]) <= most, (marks, found)


@contextlib.contextmanager
def reading(balloon):
    """A program that reads the same over and over."""
    balloon.sh(
        ": >/run/reading; : >/run/passes; (while [ -e /run/reading ]; do"
        f" dd if=/dev/vda of=/dev/null bs=1M count={READ} status=none || break;"
        " echo >>/run/passes; done) <&- >/dev/null 2>&1 &"
    )
    yield
    # A pass that is under way would fill the cache again, with pages that cannot be moved.
    balloon.sh("rm /run/reading /run/passes; while pidof dd >/dev/null; do sleep 0.1; done")


def passes(balloon):
    """How often it has read all."""
    return int(balloon.sh("wc -l </run/passes"))


def read_mib(balloon):
    """What came from the disk so far."""
    return int(balloon.sh("cat /sys/block/vda/stat").split()[2]) // 2048


def mib_per_pass(balloon):
    """What the program has to read from the disk each time."""
    first, before = passes(balloon), read_mib(balloon)
    balloon.wait_for(lambda: passes(balloon) >= first + 6, 120, "six passes")
    count = passes(balloon) - first
    return (read_mib(balloon) - before) / count


def squeeze(balloon):
    """Inflate as far as it goes while a program reads; what it reads then from the disk each pass,
    and what is left to the guest."""
    balloon.drop_caches()
    # Cached once.
    balloon.sh(f"dd if=/dev/vda of=/dev/null bs=1M skip={READ} count=400 status=none")
    with reading(balloon):
        balloon.wait_for(lambda: passes(balloon) >= 5, 120, "some passes")
        started = time.monotonic()
        balloon.ask(1)
        sizes = [balloon.actual()]
        # Until it rests, or for long enough.
        while time.monotonic() - started < 40:
            time.sleep(2)
            sizes.append(balloon.actual())
        each = mib_per_pass(balloon)
        kept = balloon.actual() // MIB
        state = "" if vm.PEER else balloon.debugfs("state")
        print(
            f"{each:.0f} MiB a pass, {kept} MiB left,",
            f"{[size // MIB for size in sizes]}, {state}",
        )
        balloon.resize(MEMORY)
    return each, kept


def test_a_guest_without_swap_does_not_thrash(balloon):
    """What a program reads over and over stays cached, most of it; what was read once goes."""
    each, kept = squeeze(balloon)
    # How much depends on how fast it reads.
    assert each < READ * 2 / 3
    # All but for the kernel itself, what is read, and the reserve.
    assert kept < 700


@pytest.mark.ours("a parameter of our own")
def test_the_balloon_gives_back_what_is_read_again(balloon):
    """Where it may."""
    balloon.reload("min_available_mb=32")
    each, kept = squeeze(balloon)
    balloon.reload()
    assert each < READ / 8
    assert kept < 700
