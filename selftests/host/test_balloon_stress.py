# SPDX-License-Identifier: GPL-2.0
"""What programs do to memory while the balloon moves by chance: huge pages of both kinds, equal
pages that are merged, pages that move between nodes, swap, and the OOM killer. What they wrote is
there all the time. (Memory that goes offline: test_balloon_hotplug.)"""

import os
import random
import time

import pytest
import vm
from balloonguest import DEVICE, LOWEST, MEMORY, SHARED, driven

SEED = int(os.environ.get("SEED", "3"))
# How often the balloon is to have another size while a program runs.
MOVES = int(os.environ.get("MOVES", "6"))
# In MiB.
SWAP = 512
# The balloon leaves so much, which is enough for all programs here but the one that swaps.
LEAST = MEMORY // 2
# What a program needs in the kernel, and a counter of /proc/vmstat that says that it did something.
KINDS = {
    "thp": ("TRANSPARENT_HUGEPAGE", "thp_fault_alloc"),
    # It says itself how much was merged.
    "ksm": ("KSM", None),
    "hugetlb": ("HUGETLBFS", "htlb_buddy_alloc_success"),
    "nodes": ("NUMA", "pgmigrate_success"),
    "swap": ("SWAP", "pswpout"),
    "oom": ("MMU", "oom_kill"),
}

STRESS = """
import ctypes, mmap, os, random, signal, sys, time

MIB, PAGE, HUGE = 1 << 20, 4096, 1 << 21
kind, rng = sys.argv[1], random.Random(int(sys.argv[2]))
LIBC = ctypes.CDLL(None, use_errno=True)


def write_file(path, text):
    with open(path, "w") as file:
        file.write(text)


def read_file(path):
    with open(path) as file:
        return file.read()


def memory_of(size, flags=0):
    return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | flags)


def stamp(memory, turn, pages):
    for page in pages:
        memory[page * PAGE : page * PAGE + 8] = (page << 16 | turn).to_bytes(8, "little")


def verify(memory, turn, pages):
    for page in pages:
        if memory[page * PAGE : page * PAGE + 8] != (page << 16 | turn).to_bytes(8, "little"):
            sys.exit(f"{kind}, turn {turn}: page {page} has changed")


def pages_of(memory):
    return range(len(memory) // PAGE)


def thp(turn):
    # Huge pages come, and are split where a part of them goes.
    memory = memory_of(48 * MIB)
    memory.madvise(mmap.MADV_HUGEPAGE)
    stamp(memory, turn, pages_of(memory))
    for begin in range(0, len(memory), 2 * HUGE):
        memory.madvise(mmap.MADV_DONTNEED, begin + HUGE // 2, HUGE // 2)
        page = (begin + HUGE // 2) // PAGE
        if memory[page * PAGE : page * PAGE + 8] != bytes(8):
            sys.exit(f"thp: page {page} is not empty")
    verify(memory, turn, [p for p in pages_of(memory) if p % 1024 not in range(256, 512)])
    memory.close()


def ksm(turn):
    # Pages of 16 kinds, which are merged, and taken apart again by writing to them.
    control = "/sys/kernel/mm/ksm/"
    for name, value in (("pages_to_scan", 4000), ("sleep_millisecs", 5), ("run", 1)):
        write_file(control + name, str(value))
    memory = memory_of(16 * MIB)
    memory.madvise(mmap.MADV_MERGEABLE)
    content = [bytes([n + 1]) * PAGE for n in range(16)]
    for page in pages_of(memory):
        memory[page * PAGE : (page + 1) * PAGE] = content[page % 16]
    deadline = time.monotonic() + 60
    while int(read_file(control + "pages_sharing")) < len(memory) // PAGE // 2:
        if time.monotonic() > deadline:
            sys.exit("ksm: pages are not merged")
        time.sleep(0.1)
    written = rng.sample(pages_of(memory), 1000)
    stamp(memory, turn, written)
    verify(memory, turn, written)
    write_file(control + "run", "2")
    for page in pages_of(memory):
        if memory[page * PAGE + 8 : (page + 1) * PAGE] != content[page % 16][8:]:
            sys.exit(f"ksm: page {page} has changed")
    memory.close()


def hugetlb(turn):
    # A pool that grows and shrinks.
    write_file("/proc/sys/vm/nr_hugepages", str(rng.randrange(8, 32)))
    count = int(read_file("/proc/sys/vm/nr_hugepages"))
    if count:
        memory = memory_of(count * HUGE, 0x40000)
        stamp(memory, turn, pages_of(memory))
        verify(memory, turn, pages_of(memory))
        memory.close()
    write_file("/proc/sys/vm/nr_hugepages", "0")
    if int(read_file("/proc/sys/vm/nr_hugepages")):
        sys.exit("hugetlb: pages are left")


def nodes(turn):
    # All of a process from one node to the other, and back.
    memory = memory_of(32 * MIB)
    stamp(memory, turn, pages_of(memory))
    masks = ctypes.c_ulong(1), ctypes.c_ulong(2)
    for old, new in (masks, masks[::-1]):
        if LIBC.syscall(256, 0, 64, ctypes.byref(old), ctypes.byref(new)) < 0:
            sys.exit(f"nodes: {os.strerror(ctypes.get_errno())}")
        verify(memory, turn, pages_of(memory))
    memory.close()


def swap(turn):
    # More than there is when it begins.
    memory = memory_of(480 * MIB)
    stamp(memory, turn, pages_of(memory))
    verify(memory, turn, pages_of(memory))
    memory.close()


def oom(turn):
    # More than there ever is: nobody else is killed.
    pid = os.fork()
    if not pid:
        write_file("/proc/self/oom_score_adj", "1000")
        # MAP_NORESERVE
        memory = memory_of(2048 * MIB, 0x4000)
        stamp(memory, turn, pages_of(memory))
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    if not os.WIFSIGNALED(status) or os.WTERMSIG(status) != signal.SIGKILL:
        sys.exit(f"oom: status {status}")


turn = 0
while not turn or not os.path.exists("/run/stress.stop"):
    globals()[kind](turn)
    turn += 1
print(turn)
"""


@pytest.fixture(name="guest", scope=SHARED)
def guest_fixture(boot_for_module, tmp_path_factory):
    """One guest for this file, of two nodes, with a disk to swap to."""
    disk = tmp_path_factory.mktemp("disk") / "swap"
    with disk.open("wb") as file:
        file.truncate(SWAP << 20)
    options = [
        f"{DEVICE},free-page-reporting=on",
        f"-drive file={disk},if=none,id=disk,format=raw,cache=unsafe",
        "-device virtio-blk-pci,drive=disk",
        *(f"-object memory-backend-ram,id=m{n},size={MEMORY // 2}M" for n in (0, 1)),
        "-numa node,nodeid=0,cpus=0-1,memdev=m0",
        "-numa node,nodeid=1,memdev=m1",
    ]
    with driven(boot_for_module(memory=f"{MEMORY}M", qemu_opts=options, udev=False)) as balloon:
        balloon.sh(f"cat >/run/stress.py <<'END'\n{STRESS}\nEND")
        yield balloon


@pytest.mark.parametrize("kind", [k for k, (option, _) in KINDS.items() if vm.has_option(option)])
def test_memory_is_what_it_was_while_the_balloon_moves(balloon, kind):
    """Each program goes on until it is stopped, or finds something that is not as it wrote it."""
    rng = random.Random(SEED)
    before = balloon.counters()
    if kind == "swap":
        balloon.sh("mkswap /dev/vda && swapon /dev/vda")
        balloon.resize(LOWEST)
    balloon.sh(
        "rm -f /run/stress.stop /run/stress.end;"
        f"(python3 /run/stress.py {kind} {SEED} >/run/stress.said 2>&1;"
        " echo status $? >>/run/stress.said; : >/run/stress.end) <&- >/dev/null 2>&1 &"
    )
    if kind == "swap":
        swapped = before["pswpout"]
        balloon.wait_for(lambda: balloon.counters()["pswpout"] > swapped, 120, "swapping")
    for _ in range(MOVES):
        balloon.ask(rng.randrange(LEAST, MEMORY))
        time.sleep(rng.random())
    balloon.sh(": >/run/stress.stop; until [ -e /run/stress.end ]; do sleep 0.1; done", 300)
    said = balloon.sh("cat /run/stress.said").splitlines()
    balloon.resize(MEMORY)
    if kind == "swap":
        balloon.sh("swapoff /dev/vda")
    after = balloon.counters()
    counter = KINDS[kind][1] or "balloon_inflate"
    done = {
        name: after[name] - before[name]
        for name in (counter, "balloon_inflate", "balloon_deflate", "balloon_migrate", "oom_kill")
    }
    print(f"{vm.BALLOON}, {kind}: {said}, {done}")
    assert said[-1] == "status 0", said
    assert done["balloon_inflate"] > 0
    assert done[counter] > 0, done
    # What was to be killed was, and nothing else.
    assert done["oom_kill"] == (int(said[0]) if kind == "oom" else 0)
