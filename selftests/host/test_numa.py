# SPDX-License-Identifier: GPL-2.0
"""A path selector that takes the nearest paths, in a guest of two nodes with disks on each."""

import time

import pytest
import vm

pytestmark = pytest.mark.ours("`nearest`")

# Two disks on each of two nodes, which have a CPU each. By their serial numbers: which one the
# kernel finds first is its own affair.
NODES = range(2)
DISKS = [f"disk{nth}" for nth in range(4)]
NODE = {disk: nth // 2 for nth, disk in enumerate(DISKS)}
SECTORS = 1 << 17
MAP = "near"
READS = 120
EXPORTS = "export DM_DISABLE_UDEV=1"


def hardware(directory):
    """QEMU's options: an expander bus with the node's disks for each of them."""
    options = ["-smp 2,sockets=2,cores=1,threads=1", "-numa dist,src=0,dst=1,val=21"]
    for node in NODES:
        options += [
            f"-object memory-backend-ram,id=ram{node},size=512M",
            f"-numa node,nodeid={node},cpus={node},memdev=ram{node}",
            f"-device pxb-pcie,id=bus{node},bus_nr={64 * (node + 1)},numa_node={node},bus=pcie.0",
        ]
    for nth, disk in enumerate(DISKS):
        file = directory / disk
        with file.open("wb") as image:
            image.truncate(SECTORS * 512)
        options += [
            f"-drive file={file},if=none,id={disk},format=raw,cache=unsafe",
            f"-device pcie-root-port,id=port{nth},bus=bus{NODE[disk]},chassis={nth + 1}",
            f"-device virtio-blk-pci,bus=port{nth},drive={disk},serial={disk}",
        ]
    # Nodes before what is on them.
    return sorted(options, key=lambda option: "dist" in option)


@pytest.fixture(name="guest", scope="module")
def guest_fixture(boot_for_module, tmp_path_factory):
    """Such a guest, with the selector."""
    options = hardware(tmp_path_factory.mktemp("disks"))
    guest = boot_for_module(qemu_opts=options, udev=False)
    guest.check(
        f". {vm.ROOT}/selftests/lib.sh; modprobe virtio_blk; modprobe dm-mod"
        " && wait_for 20 test -b /dev/vdd && load_module dm-round-robin-rs || exit\n"
        "for disk in /sys/block/vd?; do ln -s /dev/${disk##*/} /dev/$(<$disk/serial); done"
    )
    for disk in DISKS:
        # Without that all that follows would say nothing.
        found = guest.check(
            f"cat /sys/block/$(basename $(realpath /dev/{disk}))/device/../numa_node"
        )
        assert int(found) == NODE[disk], f"{disk} is on node {found}"
    yield guest
    guest.check("rmmod dm-round-robin-rs")


@pytest.fixture(name="group")
def group_fixture(guest):
    """create(arguments, *paths): a multipath device over all disks, or these."""

    def create(arguments, *paths):
        paths = paths or [f"/dev/{disk}" for disk in DISKS]
        line = f"0 {SECTORS} multipath 2 queue_mode bio 0 1 1 round-robin-rs {arguments}"
        line += f" {len(paths)} 1 " + " ".join(f"{path} 1" for path in paths)
        guest.check(f'{EXPORTS}; dmsetup create {MAP} --table "{line}"')
        return guest.check(f"dmsetup table {MAP}")

    yield create
    guest.check(f"{EXPORTS}; dmsetup remove --retry {MAP}")


def reads(guest):
    """How many each disk has had."""
    counts = guest.check(
        f"for d in {' '.join(DISKS)}; do cat /sys/block/$(basename $(realpath /dev/$d))/stat; done"
    )
    return [int(line.split()[0]) for line in counts.splitlines()]


def read(guest, cpu, count=READS):
    """So many reads from a CPU; how many each disk has."""
    before = reads(guest)
    guest.check(
        f"taskset -c {cpu} dd if=/dev/mapper/{MAP} of=/dev/null bs=4k count={count} iflag=direct",
        120 * vm.SLOWNESS[vm.KERNEL],
    )
    return [after - b for after, b in zip(reads(guest), before, strict=True)]


def change(guest, what, *disks):
    """Fail or reinstate the paths over these disks."""
    for disk in disks:
        guest.check(f"dmsetup message {MAP} 0 {what}_path /dev/{disk}")


def test_a_cpu_reads_from_its_node(guest, group):
    """By turns among those that are near; all four without `nearest`."""
    group("1 nearest")
    half = READS // 2
    assert read(guest, 0) == [half, half, 0, 0]
    assert read(guest, 1) == [0, 0, half, half]


def test_without_the_argument_all_take_turns(guest, group):
    """As before."""
    group("0")
    quarter = READS // 4
    for node in NODES:
        assert read(guest, node) == [quarter] * 4


def test_far_paths_are_used_when_near_ones_fail(guest, group):
    """And no longer than that."""
    group("1 nearest")
    half = READS // 2
    change(guest, "fail", "disk0")
    assert read(guest, 0) == [0, READS, 0, 0]
    change(guest, "fail", "disk1")
    assert read(guest, 0) == [0, 0, half, half]
    assert read(guest, 1) == [0, 0, half, half]
    change(guest, "fail", "disk2")
    assert read(guest, 0) == [0, 0, 0, READS]
    change(guest, "reinstate", "disk1")
    assert read(guest, 0) == [0, READS, 0, 0]
    assert read(guest, 1) == [0, 0, 0, READS]
    change(guest, "reinstate", "disk0", "disk2")
    assert read(guest, 0) == [half, half, 0, 0]


@pytest.fixture(name="mapped")
def mapped_fixture(guest):
    """A mapped device, which is on no node, over one of the second node's disks."""
    guest.check(f'{EXPORTS}; dmsetup create any --table "0 {SECTORS} linear /dev/disk3 0"')
    yield "/dev/mapper/any"
    guest.check(f"{EXPORTS}; dmsetup remove --retry any")


def test_a_path_on_no_known_node_is_near_to_all(guest, mapped, group):
    """Such as a disk that comes over a network."""
    group("1 nearest", "/dev/disk0", mapped)
    assert read(guest, 0) == [READS // 2, 0, 0, READS // 2]
    assert read(guest, 1) == [0, 0, 0, READS]


@pytest.mark.parametrize("arguments", ["1 nearest", "2 latency nearest", "2 nearest latency"])
def test_the_table_says_so(group, arguments):
    """In one order."""
    words = sorted(arguments.split()[1:])
    assert f" round-robin-rs {len(words)} {' '.join(words)} 4 1 " in group(arguments)


def throttle(guest, iops):
    """The disks of the first node, in the host; 0: no more."""
    for disk in DISKS[:2]:
        none = dict.fromkeys(("bps", "bps_rd", "bps_wr", "iops_rd", "iops_wr"), 0)
        guest.qmp.execute("block_set_io_throttle", device=disk, iops=iops, **none)


def becomes(what, condition):
    """Within a time that is long enough on any machine."""
    deadline = time.monotonic() + 60 * vm.SLOWNESS[vm.KERNEL]
    while not condition():
        assert time.monotonic() < deadline, f"not in time: {what}"


def far_percent(guest):
    """How much of a second's reads of the first node goes to the other one."""
    before = reads(guest)
    guest.check("sleep 1.5")
    counts = [after - b for after, b in zip(reads(guest), before, strict=True)]
    return 100 * sum(counts[2:]) / max(sum(counts), 1)


def test_a_detour_is_made_while_near_paths_are_slow(guest, group):
    """With `latency`, by what I/Os take."""
    group("2 latency nearest")
    guest.check(
        "taskset -c 0 fio --name=near --filename=/dev/mapper/near --rw=randread --bs=4k --direct=1"
        " --ioengine=libaio --iodepth=8 --time_based --runtime=600 --thread"
        " >/dev/null 2>&1 </dev/null & echo $! >/run/fio"
    )
    try:
        before = sum(reads(guest))
        becomes("it reads", lambda: sum(reads(guest)) > before + 500)
        becomes("near paths are used", lambda: far_percent(guest) < 15)
        throttle(guest, 20)
        becomes("the detour is made", lambda: far_percent(guest) > 60)
        throttle(guest, 0)
        becomes("near paths are used again", lambda: far_percent(guest) < 15)
        status = guest.check("dmsetup status near")
        print(status)
        assert " 0 4 3 " in status
    finally:
        throttle(guest, 0)
        guest.check("kill $(cat /run/fio); while [ -e /proc/$(cat /run/fio) ]; do sleep 0.1; done")
