# SPDX-License-Identifier: GPL-2.0
"""The path selector over real iSCSI: links cut and put back, sessions ended and begun again, under
verified I/O. Nothing is lost, and nothing above sees an error while one path is left.
"""

import contextlib
import time

import iscsi_lab
import pytest

pytestmark = pytest.mark.ours("our own module")

LINKS = 2
# fio writes blocks of all sizes and reads them back, over and over, until told to end.
VERIFY = """
stat=/sys/block/$(basename $(readlink -f {path}))/stat
echo $stat >/run/verify.stat
awk '{{ print $3 }}' $stat >/run/verify.from
awk '{{ print $7 }}' $stat >/run/verify.written
fio --name=verify --filename={path} --rw=randwrite --bsrange=4k-64k --size=4m --direct=1 \
	--ioengine=libaio --iodepth=8 --verify=crc32c --verify_fatal=1 --loops=1000000 \
	--rate_iops=200 >/run/verify.log 2>&1 &
echo $! >/run/verify.pid
"""
# Once it has read, and so verified, as much as there is.
FINISH = """
has_verified() {
	[ $(($(awk '{ print $3 }' $(cat /run/verify.stat)) - $(cat /run/verify.from))) -ge 8192 ]
}
wait_for 120 has_verified || echo "fio has verified too little"
kill -INT $(cat /run/verify.pid)
wait_for 30 eval '! kill -0 $(cat /run/verify.pid) 2>/dev/null'
grep -q 'READ: ' /run/verify.log && grep -q 'err= *0' /run/verify.log &&
	! grep -qi 'error\\|bad magic' /run/verify.log && exit
cat /run/verify.log
exit 1
"""
# Data that are there before everything fails, beyond what fio uses.
PATTERN = "dd if=/dev/urandom of=/run/pattern bs=64k count=16 status=none\n"
PLACE = "bs=64k {}=256 count=16 status=none"


@pytest.fixture(name="lab", scope="module")
def lab_fixture(boot_for_module):
    """Two guests, with a session over each of two links, and our module as "round-robin"."""

    def boot(_what, options):
        return boot_for_module(
            udev=options.udev, memory=options.memory, qemu_opts=options.qemu_opts
        )

    lab = iscsi_lab.Lab(boot, LINKS)
    with contextlib.closing(lab):
        lab.shell("modprobe dm-multipath && insmod $FERRULE_MODULES/mpath-sel/dm-round-robin-rs.ko")
        lab.login()
        yield lab


@pytest.fixture(name="path")
def path_fixture(lab, request):
    """The multipath device that multipathd has made with the configuration as it is.

    How often paths are checked may be given as a parameter.
    """
    lab.polling = getattr(request, "param", 1)
    yield lab.make_map()
    for link in lab.links:
        lab.plug(link, True)


def verify(lab, path) -> None:
    """Begin verified I/O."""
    lab.shell(VERIFY.format(path=path))
    lab.wait("[ $(awk '{ print $7 }' $(cat /run/verify.stat)) -gt $(cat /run/verify.written) ]", 60)


def finish(lab) -> None:
    """End it; it has to have seen no error."""
    lab.shell(FINISH, 240)


def ios(lab) -> list[int]:
    """I/Os so far, by link."""
    disks = " ".join(lab.disks())
    output = lab.shell(f"for d in {disks}; do awk '{{ print $1 + $5 }}' /sys/block/$d/stat; done")
    return [int(word) for word in output.split()]


def wait_for_state(lab, state: str, *disks: str) -> None:
    """Until the paths are in service (A), or out of it (F)."""
    lab.wait(f"map_name && path_is {state} {' '.join(disks)}", 180)


def test_both_links_are_used_in_turn(lab, path):
    """With the seed's configuration."""
    table = lab.shell(f"dmsetup table {path}")
    assert f" round-robin 0 {LINKS} 1 " in table
    assert "queue_if_no_path" in table
    # What udev reads from a new device is not what is looked at.
    lab.shell("udevadm settle")
    before = ios(lab)
    lab.shell(f"taskset -c 0 dd if={path} of=/dev/null bs=4k count=200 iflag=direct status=none")
    split = [after - begin for begin, after in zip(before, ios(lab), strict=True)]
    assert all(abs(n - 100) <= 4 for n in split), split


def test_links_are_cut_and_restored(lab, path):
    """One is pulled, the other loses all packets of one direction."""
    verify(lab, path)
    pulled, deaf = lab.links
    lab.plug(pulled, False)
    wait_for_state(lab, "F", lab.disks()[0])
    lab.plug(pulled, True)
    wait_for_state(lab, "A", lab.disks()[0])
    loss = f"dev link{deaf.number} root netem loss 100%"
    lab.target.check(f"tc qdisc add {loss}")
    wait_for_state(lab, "F", lab.disks()[1])
    lab.target.check(f"tc qdisc del {loss}")
    wait_for_state(lab, "A", lab.disks()[1])
    finish(lab)


def test_a_session_ends_and_begins(lab, path):
    """As an administrator would have it."""
    verify(lab, path)
    portal = lab.links[0].ip(iscsi_lab.TARGET_END)
    lab.shell(f"iscsiadm -m node -p {portal} --logout")
    lab.wait(f"map_has {LINKS - 1}", 120)
    time.sleep(1)
    lab.shell(f"iscsiadm -m node -p {portal} --login")
    lab.wait(f"map_has {LINKS}", 120)
    wait_for_state(lab, "A", *lab.disks())
    finish(lab)


# It takes some seconds until a session is there again: no_path_retry is 50 s.
@pytest.mark.parametrize("path", [10], indirect=True)
def test_io_waits_while_all_links_are_cut(lab, path):
    """For less than no_path_retry."""
    verify(lab, path)
    disks = lab.disks()
    for link in lab.links:
        lab.plug(link, False)
    wait_for_state(lab, "F", *disks)
    for link in lab.links:
        lab.plug(link, True)
    wait_for_state(lab, "A", *disks)
    finish(lab)


# We have 20 s to see that it waits.
@pytest.mark.parametrize("path", [4], indirect=True)
def test_io_fails_when_no_link_comes_back_in_time(lab, path):
    """For more than no_path_retry; then everything goes on."""
    lab.shell(PATTERN + f"dd if=/run/pattern of={path} {PLACE.format('seek')} oflag=direct")
    # (fio does not always end when it reads and all I/O fails.)
    lab.shell(
        f"while dd if={path} of=/dev/null bs=4k count=100 iflag=direct; do :; done"
        " >/run/reader.log 2>&1 &\necho $! >/run/reader.pid; sleep 1"
    )
    disks = lab.disks()
    for link in lab.links:
        lab.plug(link, False)
    wait_for_state(lab, "F", *disks)
    lab.shell("kill -0 $(cat /run/reader.pid)")
    lab.wait("! kill -0 $(cat /run/reader.pid) 2>/dev/null", 180)
    assert "Input/output error" in lab.shell("cat /run/reader.log")
    for link in lab.links:
        lab.plug(link, True)
    wait_for_state(lab, "A", *disks)
    lab.shell(f"dd if={path} {PLACE.format('skip')} iflag=direct | cmp - /run/pattern")
    verify(lab, path)
    finish(lab)
