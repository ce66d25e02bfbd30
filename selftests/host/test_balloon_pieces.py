# SPDX-License-Identifier: GPL-2.0
"""In which pieces memory leaves a guest that is full of page cache, or fragmented."""

import contextlib
import time

import pytest
from balloonguest import FRAGMENT, MEMORY, SHARED, driven_with_disk

DISK = 1200
# What the balloon leaves available in these tests: more than it has to.
KEPT = 96
# How many pages are in a piece of 2 MiB.
HUGE = 512

# Reads a disk and writes a file in memory, 4 KiB of each in turn, so that their pages alternate.
MIX = """
import os, sys
disk = os.open("/dev/vda", os.O_RDONLY)
os.posix_fadvise(disk, 0, 0, os.POSIX_FADV_RANDOM)
file = os.open("/mnt/file", os.O_CREAT | os.O_WRONLY)
page = b"x" * 4096
for nth in range(int(sys.argv[1]) * 128):
    os.pread(disk, 4096, nth * 4096)
    os.write(file, page)
"""


@pytest.fixture(name="guest", scope=SHARED)
def guest_fixture(boot_for_module, tmp_path_factory):
    """One guest for this file, with a disk; each test leaves it as it found it."""
    with driven_with_disk(boot_for_module, tmp_path_factory.mktemp("disk"), DISK) as balloon:
        yield balloon


@contextlib.contextmanager
def files(balloon):
    """With room for files in memory."""
    balloon.sh("mount -t tmpfs -o size=100%,nr_inodes=0 none /mnt")
    try:
        yield
    finally:
        balloon.sh("umount /mnt")


def in_pieces(balloon):
    """How many pages are in the balloon in pieces of 2 MiB and more, and how many in all."""
    rows = [line.split() for line in balloon.debugfs("blocks").splitlines()]
    counts = {int(row[1]): int(row[2]) << int(row[1]) for row in rows if row[0] == "order"}
    return sum(n for order, n in counts.items() if 1 << order >= HUGE), balloon.pages()


def grow(balloon):
    """Have it take what can be reclaimed; the share of that in pieces of 2 MiB and more."""
    size = MEMORY - (balloon.counters()["MemAvailable"] // 1024 - KEPT)
    before = balloon.counters()
    started = time.monotonic()
    balloon.resize(size)
    seconds = time.monotonic() - started
    huge, pages = in_pieces(balloon)
    after = balloon.counters()
    names = ("compact_success", "compact_fail", "pgmigrate_success", "pgsteal_kswapd")
    print(
        f"{huge // 256} of {pages // 256} MiB ({huge / pages:.2f}) in {seconds:.1f} s;"
        f" {before['MemFree'] // 1024} MiB were free;",
        {name: after[name] - before[name] for name in names},
    )
    balloon.resize(MEMORY)
    return huge / pages


@pytest.mark.ours("the C driver takes single pages")
def test_of_a_guest_full_of_page_cache(balloon):
    """What was read once, all of it."""
    balloon.drop_caches()
    balloon.sh(f"dd if=/dev/vda of=/dev/null bs=1M count={DISK - 50} status=none")
    assert grow(balloon) >= 0.9


@pytest.mark.ours("the C driver takes single pages")
def test_of_a_guest_whose_page_cache_lies_between_what_it_needs(balloon):
    """Memory has to be compacted after each bit of reclaim."""
    balloon.drop_caches()
    with files(balloon):
        balloon.python(MIX, balloon.free_mib() - 100)
        share = grow(balloon)
    assert share >= 0.9


@pytest.mark.ours("the C driver takes single pages")
def test_of_a_guest_whose_free_memory_is_in_pieces(balloon):
    """Of 512 KiB, but for what is free at the end of it all."""
    balloon.drop_caches()
    with files(balloon):
        balloon.python(FRAGMENT, (balloon.free_mib() - 100) * 2)
        share = grow(balloon)
    assert share >= 0.9
