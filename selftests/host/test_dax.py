# SPDX-License-Identifier: GPL-2.0
"""Persistent memory under a qos device: files are mapped directly (DAX), as through dm-linear.

Only kernels of distributions have it.
"""

import pytest
import vm

pytestmark = pytest.mark.ours("dm-qos")

# A part of the guest's memory is a pmem device (memmap in the kernel's parameters.txt).
PMEM = "memmap=320M!640M"
# A mapping with MAP_SYNC is refused unless stores go to the memory itself. What is written by one,
# and then through the page-cache-less file, is read back from the device below.
PROGRAM = r"""
import mmap, os, sys
MAP_SHARED_VALIDATE, MAP_SYNC = 0x03, 0x80000
size = 8 << 20
file = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
os.ftruncate(file, size)
with mmap.mmap(file, size, flags=MAP_SHARED_VALIDATE | MAP_SYNC) as mapping:
    for at in range(0, size, 4096):
        mapping[at:at + 8] = at.to_bytes(8, "little")
    for at in range(0, size, 4096):
        assert os.pread(file, 8, at) == at.to_bytes(8, "little"), at
# The file system zeroes the rest of a page by the target.
os.ftruncate(file, size // 2 + 100)
os.ftruncate(file, size)
assert not any(os.pread(file, 3996, size // 2 + 100)), "not zeroed"
"""
# Without it there is nothing to compare.
TARGETS = ["linear", "qos"] if vm.has_option("FS_DAX") else []


@pytest.fixture(name="guest", scope="module")
def guest_fixture(boot_for_module):
    """A guest with such a device."""
    guest = boot_for_module(append=[PMEM], udev=False)
    guest.check(f"cat >/run/dax.py <<'EOF'\n{PROGRAM}\nEOF")
    guest.check(
        f". {vm.ROOT}/selftests/lib.sh; modprobe -a nd_e820 nd_pmem dm-mod xfs &&"
        " load_module dm-qos && wait_for 20 test -b /dev/pmem0"
    )
    return guest


@pytest.mark.parametrize("filesystem", ["ext4", "xfs"])
@pytest.mark.parametrize("target", TARGETS)
def test_a_file_is_mapped_directly(guest, target, filesystem):
    """The limit does not hold it up: a store to memory is no I/O."""
    line = f"{target} /dev/pmem0 0 " + ("2 iops 20" if target == "qos" else "")
    made = {"ext4": "mkfs.ext4 -q -F -b 4096", "xfs": "mkfs.xfs -q -f -m reflink=0"}[filesystem]
    guest.check(
        "size=$(blockdev --getsz /dev/pmem0)\n"
        f"{made} /dev/pmem0 || exit\n"
        f'DM_DISABLE_UDEV=1 dmsetup create dax --table "0 $size {line}" || exit\n'
        "mkdir -p /mnt/dax && mount -o dax=always /dev/mapper/dax /mnt/dax || exit\n"
        "grep dax=always /proc/mounts || exit\n"
        "python3 /run/dax.py /mnt/dax/file; status=$?\n"
        "sum=$(md5sum </mnt/dax/file)\n"
        "umount /mnt/dax && DM_DISABLE_UDEV=1 dmsetup remove dax || exit\n"
        "mount /dev/pmem0 /mnt/dax || exit\n"
        '[ "$(md5sum </mnt/dax/file)" = "$sum" ] || { echo "other data below"; status=1; }\n'
        "umount /mnt/dax; exit $status",
        timeout=120 * vm.SLOWNESS[vm.KERNEL],
    )


@pytest.mark.parametrize("target", TARGETS)
def test_where_a_part_begins_counts(guest, target):
    """Two devices over the halves of one: what is mapped through the second is not in the first."""
    guest.check(
        "export DM_DISABLE_UDEV=1\n"
        "half=$(($(blockdev --getsz /dev/pmem0) / 2))\n"
        "for n in 0 1; do\n"
        f'	dmsetup create dax$n --table "0 $half {target} /dev/pmem0 $((n * half))" &&'
        " mkfs.ext4 -q -F -b 4096 /dev/mapper/dax$n && mkdir -p /mnt/dax$n &&"
        " mount -o dax=always /dev/mapper/dax$n /mnt/dax$n && python3 /run/dax.py /mnt/dax$n/file"
        " || exit\n"
        "done\n"
        "umount /mnt/dax0 /mnt/dax1 && for n in 0 1; do\n"
        "	e2fsck -fn /dev/mapper/dax$n && dmsetup remove dax$n || exit\n"
        "done",
        timeout=180 * vm.SLOWNESS[vm.KERNEL],
    )
