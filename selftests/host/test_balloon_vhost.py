# SPDX-License-Identifier: GPL-2.0
"""The balloon driver and hosts that misbehave, on user-mode Linux with KASAN and kmemleak.

The host is a program of ours (selftests/vhost), which keeps account of what the guest says and
discards memory as QEMU does; and misbehaves as it is told. Whatever it did, the guest has to live,
to unload the driver and to have all its memory back, with nothing in it overwritten.
"""

import contextlib
import os
import random
import re
import subprocess
import time
from typing import ClassVar

import balloon_host
import check
import pytest
import vm
from balloon_host import HINT, KNOWN, MUST_TELL_HOST, PAGES_PER_MIB, REPORTING, STATS, Host
from balloonguest import MIB, Balloon

pytestmark = pytest.mark.ours("hosts that misbehave, of our own driver")

MEMORY = "256M"
# Longer than the driver waits for a host when it has to go.
UNLOAD_TIMEOUT = 30
# Features that nobody knows; none that says what rings look like.
UNKNOWN = 0xFFFC000000FFFFC0
# What nobody may write to.
DATA = (
    "mount -o remount,size=90% /run &&"
    "head -c 20M /dev/urandom >/run/data && md5sum /run/data >/run/sum"
)
# Of random hosts. More of it for those who ask.
SEEDS = [int(seed) for seed in os.environ.get("FUZZ_SEEDS", "1").split()]
MESSAGES = int(os.environ.get("FUZZ_MESSAGES", "3000"))
# How often up and down, and to which sizes.
SWINGS = int(os.environ.get("SWINGS", "20"))
SEED = int(os.environ.get("SEED", "1"))
# Of the allocations that are to fail one after the other, every so many.
EVERY = int(os.environ.get("FAULTS_EVERY", "7"))


class Device(Balloon):
    """A device of a guest, from both sides."""

    # Those of a test.
    plugged: ClassVar[list["Device"]] = []

    def __init__(self, guest: vm.Guest, host: Host, total: int):
        # pylint: disable=super-init-not-called
        self.guest = guest
        self.host = host
        self.total = total
        self.plugged.append(self)
        host.plug_into(guest)

    def actual(self) -> int:
        """What is in the balloon, as the host knows, in pages."""
        return self.host.state()["actual"]

    def ask(self, mib: int) -> None:
        """Ask for a size of the balloon."""
        self.host.tell(f"target {mib * PAGES_PER_MIB}")

    def resize(self, mib: int, timeout: float = 180) -> None:
        """Ask for a size of the balloon and wait until it is there, to the page."""
        self.ask(mib)
        self.wait_for(lambda: self.actual() == mib * PAGES_PER_MIB, timeout, f"{mib} MiB")
        assert self.pages() == mib * PAGES_PER_MIB

    def bind(self) -> None:
        """Bind the driver, to the only device."""
        self.sh("cd /sys/bus/virtio/drivers/virtio_balloon_rs; echo $(cd ../../devices; ls) >bind")

    def unbind(self) -> None:
        """Unbind the driver, if it is bound."""
        self.sh(
            "cd /sys/bus/virtio/drivers/virtio_balloon_rs; for d in virtio*; do"
            " [ ! -e $d ] || echo $d >unbind; done"
        )

    def wait_until_unplugged(self) -> None:
        """The front end takes a device out when its host hangs up."""
        self.wait_for(lambda: self.sh("ls /sys/bus/virtio/devices") == "", 60, "unplug")


@pytest.fixture(name="program", scope="module", autouse=True)
def program_fixture():
    """The host's program."""
    balloon_host.build()


@pytest.fixture(name="guest", scope="module")
def guest_fixture(boot_for_module):
    """One guest for this file; each test plugs in a device, and takes it out."""
    guest = boot_for_module(kernel="uml", memory=MEMORY, append=["kunit.autorun=0"])
    booted = int(guest.check("awk '/^jiffies:/ { print $2; exit }' /proc/timer_list"))
    guest.check(DATA)
    yield guest
    leaks = check.find_leaks(guest, booted)
    if leaks:
        raise vm.Splat(leaks)


@pytest.fixture(autouse=True)
def nothing_is_left_fixture(guest):
    """A test that failed in the middle leaves no driver and no device to the next one."""
    yield
    guest.run("rmmod virtio_balloon_rs virtio_balloon 2>/dev/null", UNLOAD_TIMEOUT)
    for device in Device.plugged:
        if device.host.summary is None:
            with contextlib.suppress(AssertionError):
                device.host.end()
            if device.guest is guest:
                device.wait_until_unplugged()
    Device.plugged.clear()


@pytest.fixture(name="plug")
def plug_fixture(guest):
    """plug(OPTION...): a device, driven by us; the host is good until it is told otherwise.

    In the end the driver has to unload and the guest to be as before.
    """
    guest.check('insmod "$FERRULE_MODULES/balloon/virtio_balloon_rs.ko"')
    total = int(guest.check("grep MemTotal: /proc/meminfo").split()[1])
    devices = []

    def plug(*options):
        devices.append(Device(guest, Host(*options), total))
        return devices[-1]

    yield plug
    device = devices[-1]
    device.sh("! lsmod | grep -q virtio_balloon_rs || rmmod virtio_balloon_rs")
    device.assert_as_before()
    device.sh("md5sum --quiet -c /run/sum")
    seen = device.host.end()
    assert not seen["violations"], seen
    assert seen["error"] is None, seen
    device.wait_until_unplugged()


def features(bits: int) -> tuple[str, str]:
    """The option."""
    return ("--features", f"{bits:x}")


def recover(device) -> None:
    """Whatever happened: bind the driver again, and all is well with a host that is good."""
    device.host.tell("case good")
    device.ask(0)
    device.unbind()
    device.assert_as_before()
    device.bind()
    device.wait_for(lambda: device.actual() == 0, 60, "the host to know of an empty balloon")
    device.resize(24)
    device.resize(3)
    device.unbind()
    device.assert_as_before()


@pytest.mark.parametrize("bits", [0, STATS | MUST_TELL_HOST, STATS | REPORTING], ids=hex)
def test_a_good_host_finds_nothing_to_complain_of(plug, bits):
    """Its account of what is in the balloon and the guest's agree, page by page."""
    device = plug(*features(bits))
    for size in (64, 17, 100, 0, 33):
        device.resize(size)
        state = device.host.state()
        if not bits & REPORTING:
            assert state["inflated"] == size * PAGES_PER_MIB
        assert not state["violations"]
    if bits & STATS:
        device.host.tell("stats")
        device.wait_for(lambda: device.host.state()["counts"]["stats"] > 1, 60, "statistics")
        statistics = device.host.state()["statistics"]
        # All 16 but two: the kernel here is built without hugetlbfs.
        assert {int(tag) for tag in statistics} == set(range(16)) - {8, 9}
        assert statistics["5"] == device.counters()["MemTotal"] * 1024
    # What the guest has used and put into the balloon is the machine's again.
    device.resize(0)
    most = int(MEMORY[:-1]) * MIB - 120 * MIB
    device.sh("head -c 140M /dev/zero >/run/zero")
    assert device.host.state()["resident"] > most + 20 * MIB
    device.sh("rm /run/zero")
    device.resize(120)
    assert device.host.state()["resident"] <= most
    device.unbind()
    assert device.host.state()["actual"] == 0


def test_what_is_kept_for_hints_is_free(plug):
    """A host that has been given all free memory as a hint, and wants it in the balloon then."""
    device = plug(*features(STATS | HINT))
    free = device.counters()["MemFree"]
    device.host.tell("hint 7")
    # All that is free in blocks. How much that is depends on the tests before.
    device.wait_for(lambda: device.counters()["MemFree"] < free - 80 * 1024, 60, "hints")
    # What is left is not enough for the balloon.
    device.resize(device.counters()["MemFree"] // 1024 + 40)
    device.resize(0)
    device.host.tell("hint 1")
    recover(device)


def test_a_target_beyond_memory(plug):
    """The balloon stops at the guest's reserve."""
    device = plug(*features(STATS))
    device.host.tell(f"target {2**32 - 1}")
    spare = "no memory to spare"
    device.wait_for(lambda: spare in device.sh("dmesg | tail -n 3"), 60, spare)
    assert device.counters()["MemAvailable"] > 16 * 1024
    device.wait_for(lambda: device.actual() == device.pages(), 60, "rest")
    device.resize(0)
    recover(device)


@pytest.mark.parametrize("bits", [STATS, STATS | HINT | REPORTING], ids=hex)
def test_swings(plug, bits):
    """Up and down by chance, and not always to the end; then all accounts are right."""
    rng = random.Random(SEED)
    device = plug(*features(bits))
    for _ in range(SWINGS):
        size = rng.randrange(120)
        if rng.randrange(3):
            device.resize(size)
        else:
            device.ask(size)
            time.sleep(rng.random() / 20)
    device.resize(0)
    recover(device)


@pytest.mark.parametrize("case", ["retarget", "unstable-config", "interrupts", "longer", "later"])
@pytest.mark.parametrize("bits", [STATS, STATS | REPORTING], ids=hex)
def test_noise(plug, case, bits):
    """Targets that change with each message or each look; interrupts without a reason; lengths that
    are beyond any buffer; answers that come late. None of it does any harm."""
    device = plug(*features(bits))
    device.host.tell(f"case {case}")
    for size in (40, 2, 50):
        device.ask(size)
        time.sleep(0.5)
    device.host.tell("case good")
    device.resize(30)
    assert "balloon does not move" not in device.sh("dmesg | tail -n 5")
    recover(device)


def test_interrupts_that_are_lost(plug):
    """A wait looks by itself."""
    device = plug(*features(STATS))
    device.host.tell("case quietly")
    device.resize(2)
    device.resize(0)
    recover(device)


@pytest.mark.parametrize("name", ["inflate", "deflate", "reporting", "hint"])
def test_kicks_that_are_missed(plug, name):
    """Every second one. Who waits kicks again."""
    device = plug(*features(STATS | (REPORTING if name == "reporting" else HINT)))
    device.host.tell(f"case deaf:{name}")
    for size in (2, 0, 3, 0):
        device.resize(size)
    if name == "hint":
        device.host.tell("reclaim 7")
        device.host.expect("reclaimed", 60)
    if name == "reporting":
        device.host.tell("case good")
        reports = device.host.state()["counts"][name]
        device.host.tell(f"case deaf:{name}")

        def goes_on():
            # What is freed is reported, in work of memory management, if it was not in pieces.
            device.sh("head -c 64M /dev/zero >/run/zero; rm /run/zero")
            return device.host.state()["counts"][name] > reports + 1

        device.wait_for(goes_on, 120, "reports of free pages")
    assert device.host.state()["counts"]["missed_kicks"] > 0
    recover(device)


@pytest.mark.parametrize("bits", [STATS, STATS | REPORTING | HINT], ids=hex)
def test_answers_out_of_order(plug, bits):
    """The host takes what it has in an order of its own."""
    device = plug(*features(bits))
    device.host.tell("case shuffled")
    for size in (60, 2, 50):
        device.resize(size)
    if bits & HINT:
        device.host.tell("reclaim 7")
        device.host.expect("reclaimed", 120)
    state = device.host.state()
    assert state["counts"]["out_of_order"] > 0
    if not bits & REPORTING:
        assert state["inflated"] == 50 * PAGES_PER_MIB
    recover(device)


def churn(device, mib: int):
    """Has memory written to, verified and freed, again and again; yields until that is done."""
    device.sh(
        "rm -f /run/verified; (for i in 1 2 3; do"
        f" head -c {mib}M /dev/urandom >/run/more && md5sum /run/more >/run/sum2 &&"
        " md5sum --quiet -c /run/sum /run/sum2 && rm /run/more || exit; done; touch /run/verified)"
        " >/run/wrong 2>&1 <&- &"
    )
    deadline = time.monotonic() + 180
    while not device.sh("ls /run | grep verified; cat /run/wrong 2>/dev/null; true"):
        assert time.monotonic() < deadline
        yield
    assert device.sh("cat /run/wrong; rm /run/wrong") == ""


@pytest.mark.parametrize("bits", [STATS | HINT, STATS | HINT | REPORTING], ids=hex)
def test_a_host_that_discards_what_is_hinted(plug, bits):
    """At once, without a migration: a guest that uses its memory meanwhile finds it as it was."""
    device = plug(*features(bits))
    device.resize(20)
    # As much as may be the host's: it was used, and is free.
    device.sh("head -c 100M /dev/urandom >/run/more; rm /run/more")
    free = device.counters()["MemFree"]
    # In blocks of the largest order, which depends on the tests before.
    blocks = 4 * int(device.sh("awk '{ blocks += $15 } END { print blocks }' /proc/buddyinfo"))
    assert blocks > 24
    before = device.host.state()["resident"]
    device.host.tell("reclaim 7")
    seen = device.host.expect("reclaimed", 60)
    took = seen["us"] / 1000 / (seen["bytes"] / 2**30)
    print(f"{seen['bytes'] // MIB} MiB in {seen['us']} us: {took:.1f} ms for each GiB")
    assert seen["bytes"] > blocks * MIB // 2
    if not bits & REPORTING:
        assert before - device.host.state()["resident"] > seen["bytes"] // 2
    # The guest has it back when the host has seen all of it.
    device.wait_for(lambda: device.counters()["MemFree"] > free - 16 * 1024, 60, "free memory")
    assert device.pages() == 20 * PAGES_PER_MIB

    rounds = 7
    for _ in churn(device, 60):
        rounds += 1
        device.host.tell(f"reclaim {rounds}")
        device.host.expect("reclaimed", 60)
        time.sleep(0.1)
    assert rounds > 8
    # The host discards these too, and does not give them back: the shrinker does.
    device.host.tell(f"hint {rounds + 1}")
    device.wait_for(lambda: device.counters()["MemFree"] < free - blocks * 512, 60, "hints")
    for _ in churn(device, device.counters()["MemFree"] // 1024 + 30):
        time.sleep(0.1)
    device.host.tell("hint 1")
    device.wait_for(lambda: device.counters()["MemFree"] > free - 16 * 1024, 60, "free memory")
    recover(device)


@pytest.mark.parametrize("driver", ["c", "rs"])
def test_by_the_specification(boot, driver):
    """With `blocks=0` as with the C driver, also on a host that offers reporting: what is in the
    balloon came by the inflate queue and goes by the deflate queue."""
    # Its memory is not in pieces yet. With more than one CPU user-mode Linux spoils programs whose
    # memory is moved, without any balloon.
    guest = boot(kernel="uml", memory=MEMORY, cpus=1, append=["kunit.autorun=0"])
    guest.check(DATA)
    c = "modprobe virtio_balloon"
    rs = 'insmod "$FERRULE_MODULES/balloon/virtio_balloon_rs.ko" blocks=0'
    guest.check({"c": c, "rs": rs}[driver])
    total = int(guest.check("grep MemTotal: /proc/meminfo").split()[1])
    device = Device(guest, Host(*features(STATS | REPORTING), "--do", "strict"), total)
    for size in (64, 17, 100, 0, 33):
        device.resize(size)
        assert device.host.state()["inflated"] == size * PAGES_PER_MIB
    counts = device.host.state()["counts"]
    print({name: count for name, count in counts.items() if "pieces" in name or "desc" in name})
    if driver == "rs":
        # Who discards what is in one piece in one call finds as few as there are.
        assert not {"inflate_descents", "deflate_descents"} & counts.keys()

    # The lists of processors would keep some of each piece.
    device.sh("echo 65536 >/proc/sys/vm/percpu_pagelist_high_fraction")

    # Free pages are reported as ever, two seconds after they came to lie together.
    def is_reported():
        device.sh("echo 3 >/proc/sys/vm/drop_caches; echo 1 >/proc/sys/vm/compact_memory")
        # Most of what is free: what was used last would come from what lies apart.
        most = device.counters()["MemFree"] * 3 // 4
        device.sh(f"head -c {most}K /dev/zero >/run/zero; rm /run/zero; sleep 3")
        return device.host.state()["counts"].get("reporting")

    device.wait_for(is_reported, 90, "reports")
    device.sh({"c": "rmmod virtio_balloon", "rs": "rmmod virtio_balloon_rs"}[driver])
    device.assert_as_before()
    seen = device.host.end()
    assert not seen["violations"], seen
    device.wait_until_unplugged()


QUEUES = ["inflate", "deflate", "stats", "reporting"]


def provoke(device, case: str, name: str) -> None:
    """Have the guest use a queue, and the host treat that as the case says."""
    device.resize(40)
    device.host.tell(f"case {case}:{name}")
    if name == "stats":
        device.host.tell("stats")
    else:
        device.ask(10 if name == "deflate" else 60)
    acts = {"unknown", "other", "twice", "jump", "silence"}
    act = next(act for act in acts if act in case)
    device.wait_for(
        lambda: device.host.state()["counts"].get(f"act_{act}"), 60, f"{case} of {name}"
    )


def bits_for(name: str) -> int:
    """The features that a test of a queue needs: with blocks, the others are used less."""
    return STATS | REPORTING if name == "reporting" else STATS


@pytest.mark.parametrize("name", QUEUES)
@pytest.mark.parametrize("case", ["unknown", "other", "twice", "jump", "far-jump"])
def test_nonsense_in_the_used_ring(plug, case, name):
    """An id that cannot be, one that was not lent, one twice, more than there are."""
    device = plug(*features(bits_for(name)))
    before = len(device.guest.log_lines())
    provoke(device, case, name)
    time.sleep(0.3)
    if case == "unknown":
        complaint = re.compile(r"id \d+ out of range")
        device.wait_for(
            lambda: any(complaint.search(line) for line in device.guest.log_lines()[before:]),
            60,
            "the kernel to complain",
        )
    if name == "stats":
        device.resize(20)
    recover(device)


def test_the_reserve_is_kept_after_an_error(plug):
    """A balloon that can grow no more still shrinks: blocks come back without the host."""
    device = plug(*features(STATS | REPORTING))
    device.reload("min_available_mb=32")
    before = len(device.guest.log_lines())
    provoke(device, "unknown", "reporting")
    stopped = "the balloon does not move any more"

    def complaints():
        return sum(stopped in line for line in device.guest.log_lines()[before:])

    device.wait_for(complaints, 60, stopped)
    # It looks again, and the other queues work: pages make up for the blocks.
    size = 60 * PAGES_PER_MIB
    device.wait_for(lambda: device.actual() == size, 60, "all that was asked for")
    available = device.counters()["MemAvailable"] // 1024
    device.sh(f"head -c {available - 20}M /dev/zero >/run/more")
    device.wait_for(lambda: device.actual() < size, 60, "memory")
    device.wait_for(lambda: device.counters()["MemAvailable"] >= 32 * 1024, 60, "the reserve")
    # One for each time that it has moved meanwhile.
    assert complaints() < 4
    device.sh("rm /run/more")
    recover(device)


@pytest.mark.parametrize("how", ["rmmod", "unbind"])
@pytest.mark.parametrize("name", QUEUES)
def test_a_queue_that_stops_answering_does_not_keep_the_driver(plug, name, how):
    """What it was sent takes effect at the last moment before the reset, when nobody may have that
    memory yet."""
    device = plug(*features(bits_for(name)))
    provoke(device, "silence", name)
    if (name, how) == ("inflate", "unbind"):
        slow = "the host is slow to answer (inflate)"
        device.wait_for(lambda: slow in device.sh("dmesg | tail -n 3"), 60, "a line in the log")
    leave = "rmmod virtio_balloon_rs"
    if how == "unbind":
        driver = "/sys/bus/virtio/drivers/virtio_balloon_rs"
        leave = f"cd {driver}; for d in virtio*; do echo $d >unbind; done"
    # What is free meanwhile gets used. It is the driver that is timed, not that.
    device.sh(
        "read began _ </proc/uptime;"
        f" ({{ {leave}; }} && read ended _ </proc/uptime && echo $began $ended >/run/took) &"
        " sleep 1; head -c 64M /dev/urandom >/run/more && md5sum /run/more >/run/sum2;"
        "wait $! || exit; md5sum --quiet -c /run/sum2 && rm /run/more",
    )
    began, ended = device.sh("cat /run/took; rm /run/took").split()
    assert float(ended) - float(began) < UNLOAD_TIMEOUT
    if name in ("inflate", "deflate"):
        assert "the host does not take part" in device.sh("dmesg | tail -n 3")
    device.assert_as_before()
    device.host.tell("case good")
    if how == "rmmod":
        device.load()
    else:
        device.bind()
    recover(device)


def test_a_page_that_the_host_may_take_yet_is_not_moved(boot):
    """Compaction, while the host is silent on pages that it is to take, frees none of them.

    The host takes them at the last moment, when they would be somebody else's.
    """
    # With more, user-mode Linux spoils programs whose memory is moved, without any balloon.
    guest = boot(kernel="uml", memory=MEMORY, cpus=1, append=["kunit.autorun=0"])
    guest.check(f'{DATA}; insmod "$FERRULE_MODULES/balloon/virtio_balloon_rs.ko"')
    total = int(guest.check("grep MemTotal: /proc/meminfo").split()[1])
    device = Device(guest, Host(*features(STATS)), total)
    device.sh(
        ": >/run/compact; (while [ -e /run/compact ]; do echo 1 >/proc/sys/vm/compact_memory; done)"
        " >/dev/null 2>&1 <&- &"
    )
    for _ in range(3):
        provoke(device, "silence", "inflate")
        device.sh("head -c 48M /dev/urandom >/run/more && md5sum /run/more >/run/sum2")
        device.unbind()
        device.sh("md5sum --quiet -c /run/sum /run/sum2 && rm /run/more")
        device.assert_as_before()
        device.host.tell("case good")
        device.bind()
        device.resize(0)
    device.sh("rm /run/compact")
    assert device.counters()["balloon_migrate"] > 0
    device.sh("rmmod virtio_balloon_rs")
    seen = device.host.end()
    assert not seen["violations"], seen


@pytest.mark.parametrize("name", ["inflate", "reporting"])
def test_a_queue_that_stops_answering_does_not_keep_the_system_up(boot, name):
    """Powering off."""
    guest = boot(kernel="uml", memory=MEMORY, append=["kunit.autorun=0"])
    host = Host(*features(bits_for(name)))
    guest.check('insmod "$FERRULE_MODULES/balloon/virtio_balloon_rs.ko"')
    device = Device(guest, host, 0)
    provoke(device, "silence", name)
    guest.process.stdin.write(b"exit\n")
    guest.process.stdin.flush()
    with contextlib.suppress(subprocess.TimeoutExpired):
        guest.process.wait(180)
    assert guest.process.poll() is not None
    host.end()


def test_a_host_that_hangs_up(boot_dirty):
    """The device is gone with pages in the balloon. virtio_uml warns that it tells nobody."""
    guest = boot_dirty(kernel="uml", memory=MEMORY, append=["kunit.autorun=0"])
    guest.check('insmod "$FERRULE_MODULES/balloon/virtio_balloon_rs.ko"')
    total = int(guest.check("grep MemTotal: /proc/meminfo").split()[1])
    for bits, size in ((STATS, 40), (STATS | REPORTING, 60)):
        host = Host(*features(bits))
        device = Device(guest, host, total)
        device.resize(size)
        device.ask(100)
        host.end()
        device.wait_until_unplugged()
        # It is on no bus any more before the driver has to let go of it.
        device.wait_for(device.is_as_before, 60, "all memory")
    guest.check("rmmod virtio_balloon_rs", 180)
    wrong = guest.check_log()
    theirs = [line for line in wrong if re.search(r"WARNING: arch/um/drivers/virtio_uml\.c", line)]
    # Each has a list of modules.
    known = ("WARNING", "Modules linked in:")
    if len(wrong) > 2 * len(theirs) or not all(any(k in line for k in known) for line in wrong):
        raise vm.Splat(wrong)


# Allocations that fail (Documentation/fault-injection/ in the kernel).
KINDS = ("failslab", "fail_page_alloc")


@pytest.mark.parametrize("what", ["bind", "sleep"])
def test_each_allocation_fails_once(boot_dirty, what):
    """Of binding and unbinding, and of sleeping and waking up: an error, nothing lost, and the next
    try works.

    When request_irq() fails for lack of memory, um_request_irq() of 7.3 does not forget the file
    descriptor, and refuses the next one of that number. What was tried until then was well; the
    rest is tried in another guest, where others of the allocations fail.
    """
    check.build_programs()
    faults = vm.ROOT / "out/control/release/faults"
    reached = 0
    for _ in range(4):
        guest = boot_dirty(kernel="uml", memory=MEMORY, append=["kunit.autorun=0"])
        booted = int(guest.check("awk '/^jiffies:/ { print $2; exit }' /proc/timer_list"))
        guest.check('insmod "$FERRULE_MODULES/balloon/virtio_balloon_rs.ko"')
        total = int(guest.check("grep MemTotal: /proc/meminfo").split()[1])
        device = Device(guest, Host(*features(KNOWN)), total)
        name = device.device()
        if what == "bind":
            device.unbind()
            device.assert_as_before()
        else:
            guest.check('insmod "$FERRULE_MODULES/selftests/modules/virtio-sleep.ko"')
            device.resize(20)
        status, said = guest.run(f"{faults} --every {EVERY} {what} virtio_balloon_rs {name}", 400)
        print(said)
        if not any("WARNING: arch/um/kernel/irq.c" in line for line in guest.check_log()):
            break
        (problem,) = re.findall("problem: .*", said)
        assert "Operation already in progress" in problem
        reached += int(re.search(r"fault (\d+)", problem)[1])
        device.host.end()
    else:
        assert reached > 100
        return
    assert status == 0
    if what == "bind":
        device.bind()
    recover(device)
    guest.check("rmmod virtio_balloon_rs", UNLOAD_TIMEOUT)
    if what == "sleep":
        guest.check("rmmod virtio_sleep")
    device.host.end()
    if wrong := guest.check_log() + check.find_leaks(guest, booted):
        raise vm.Splat(wrong)


@pytest.mark.parametrize("bits", [STATS, STATS | HINT | REPORTING], ids=hex)
def test_work_goes_on_where_allocations_fail(plug, bits):
    """The kernel's workers do what the host asks for. Of what they allocate one in five fails."""
    device = plug(*features(bits))
    device.resize(20)
    most = 1_000_000
    device.sh(
        "cd /sys/kernel/debug; for kind in failslab fail_page_alloc; do"
        f" echo N >$kind/ignore-gfp-wait; echo Y >$kind/task-filter; echo {most} >$kind/times;"
        " echo 0 >$kind/verbose; done; echo N >fail_page_alloc/ignore-gfp-highmem;"
        " echo 0 >fail_page_alloc/min-order;"
        " for comm in /proc/[0-9]*/comm; do read -r name <$comm && case $name in"
        " kworker/[0-9]*) echo 1 >${comm%comm}make-it-fail;; esac; done; true"
    )
    chance = "; ".join(f"echo {{}} >/sys/kernel/debug/{kind}/probability" for kind in KINDS)
    device.sh(chance.format(20, 20))
    for number, size in enumerate((60, 3, 90, 0, 40)):
        device.ask(size)
        device.host.tell("stats")
        if bits & HINT:
            device.host.tell(f"hint {number + 2}")
        time.sleep(1)
    device.sh(chance.format(0, 0))
    left = device.sh("cat /sys/kernel/debug/{failslab,fail_page_alloc}/times").split()
    failed = [most - int(number) for number in left]
    device.sh("for file in /proc/[0-9]*/make-it-fail; do echo 0 >$file; done 2>/dev/null; true")
    print(f"failed: {dict(zip(KINDS, failed, strict=True))}")
    assert sum(failed) > 20, failed
    # What was asked for last is reached after all.
    device.resize(40)
    if bits & HINT:
        device.host.tell("hint 1")
    recover(device)


def test_every_combination_of_features(plug):
    """With others that nobody knows: what we know is negotiated if it is offered."""
    expected = 0
    for bits in range(KNOWN + 1):
        device = plug(*features(bits | UNKNOWN))
        words = device.sh("cat /sys/bus/virtio/devices/virtio*/features").split()
        assert len(words) == 1, f"features {bits:#x}"
        negotiated = sum(1 << i for i, bit in enumerate(words[0]) if bit == "1")
        expected = bits & (MUST_TELL_HOST | STATS | REPORTING)
        assert negotiated & ~(KNOWN | 1 << 32) == 0, f"{negotiated:#x} of {bits:#x}"
        assert negotiated & KNOWN & ~bits == 0
        assert negotiated & (MUST_TELL_HOST | STATS | REPORTING) == expected
        for size in (9, 0):
            device.ask(size)
            device.host.expect("reached")
        if bits < KNOWN:
            device.unbind()
            assert not device.host.end()["violations"]
            device.wait_until_unplugged()


@pytest.mark.parametrize("seed", SEEDS)
def test_a_random_host(plug, seed):
    """All of it at random: what a host decides is repeated by its seed."""
    device = plug("--case", "random", "--seed", str(seed), "--messages", str(MESSAGES))
    if seed % 4 == 0:
        device.reload("blocks=0")
    deadline = time.monotonic() + 180 + MESSAGES / 5
    while True:
        assert time.monotonic() < deadline, device.host.state()
        event = device.host.event(5)
        if event is None:
            continue
        assert event["event"] in ("done", "stuck", "reached"), event
        if event["event"] == "done":
            break
        if event["event"] == "stuck":
            device.unbind()
            device.assert_as_before()
            device.bind()
    recover(device)
    state = device.host.state()
    assert state["messages"] >= MESSAGES
    print(f"seed {seed}: {state['messages']} messages, {state['counts']}")
