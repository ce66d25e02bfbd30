# SPDX-License-Identifier: GPL-2.0
"""Two guests, joined by network links: one has disks, the other has them by iSCSI over every link.

The disks are the kernel's target (LIO): a ramdisk, or what else a storage has. The initiator is
open-iscsi with udev and multipathd, which makes one multipath device of all sessions' paths to a
disk. For tests and benchmarks.
"""

import dataclasses
import pathlib
import re
import tempfile
import time
from collections.abc import Callable
from typing import ClassVar

import vm

TARGET = "iqn.2026-11.test.ferrule:disk"
TOOLS = vm.ROOT / "selftests" / "mpath-sel" / "tools.sh"
LIB = vm.ROOT / "selftests" / "lib.sh"
# Which guest an address ends with.
TARGET_END, INITIATOR_END = 1, 2

# The interface with a MAC address, brought up with an IP address.
INTERFACE = """
for interface in /sys/class/net/*; do
	[ "$(cat $interface/address)" != {mac} ] && continue
	ip link set ${{interface##*/}} name link{link} && ip address add {ip}/24 dev link{link} &&
		ip link set link{link} up || exit
done
ip link show link{link} >/dev/null || exit
"""

# Without authentication: the links lead nowhere else.
EXPORT = """
modprobe -a target_core_mod iscsi_target_mod || exit
target=/sys/kernel/config/target
if ! grep -qx /run/target $target/dbroot; then
	mkdir -p /run/target/pr && echo /run/target >$target/dbroot || exit
fi
portals=$target/iscsi/{name}/tpgt_1
mkdir -p $portals/lun && cd $portals || exit
{luns}
echo 0 >attrib/authentication && echo 1 >attrib/generate_node_acls &&
	echo 1 >attrib/cache_dynamic_acls && echo 0 >attrib/demo_mode_write_protect || exit
for ip in {ips}; do
	mkdir np/$ip:3260 || exit
done
echo 1 >enable
"""
EXPORT_LUN = """
store=$target/core/{store}/{name}
mkdir -p $store lun/lun_{number} || exit
echo {control} >$store/control && echo {serial} >$store/wwn/vpd_unit_serial &&
	echo NETAPP >$store/wwn/vendor_id && echo LUN >$store/wwn/product_id &&
	echo 1 >$store/enable || exit
for attribute in {attributes}; do
	echo 1 >$store/attrib/$attribute || exit
done
ln -s $store lun/lun_{number}/{name} || exit
"""
# All of it: nothing is kept but what is on the disks.
WITHDRAW = """
target=/sys/kernel/config/target
cd $target/iscsi/{name}/tpgt_1 && echo 0 >enable && rmdir np/* || exit
for lun in lun/lun_*; do
	find $lun -maxdepth 1 -type l -delete && rmdir $lun || exit
done
cd / && rmdir $target/iscsi/{name}/tpgt_1 $target/iscsi/{name} || exit
for store in $target/core/*/*/enable; do
	rmdir ${{store%/enable}} || exit
done
rmdir $target/core/*_[0-9]*
"""

# A session that is found to be broken is given up soon. See Patience for when it is.
INITIATOR = """
modprobe iscsi_tcp && start_tools || exit
cat >>/etc/iscsi/iscsid.conf <<'END'
node.conn[0].timeo.login_timeout = {login}
node.conn[0].timeo.logout_timeout = {login}
node.conn[0].timeo.noop_out_interval = {ping_interval}
node.conn[0].timeo.noop_out_timeout = {ping_timeout}
node.session.timeo.replacement_timeout = 2
END
iscsid && iscsiadm -m discovery -t sendtargets -p {portal} && iscsiadm -m node --login
"""


@dataclasses.dataclass
class Patience:
    """How soon open-iscsi gives up, in seconds. A guest that stands still that long loses its
    sessions.
    """

    login: int = 15
    ping_interval: int = 2
    ping_timeout: int = 8


# For who measures how soon a link is missed, on a machine that does nothing else.
IMPATIENT = Patience(login=3, ping_interval=1, ping_timeout=2)


@dataclasses.dataclass
class Link:
    """A network cable between the guests."""

    number: int
    socket: pathlib.Path

    def ip(self, end: int) -> str:
        """An address of a network of its own."""
        return f"10.0.{self.number}.{end}"

    def mac(self, end: int) -> str:
        """How a guest finds the interface."""
        return f"52:54:00:fe:{end:02x}:{self.number:02x}"

    def qemu_opts(self, end: int) -> list[str]:
        """The interface, and the cable: a socket, at which the target's emulator listens."""
        server = "on" if end == TARGET_END else "off"
        return [
            f"-netdev stream,id=link{self.number},server={server},"
            f"addr.type=unix,addr.path={self.socket}",
            f"-device virtio-net-pci,netdev=link{self.number},id=nic{self.number},"
            f"mac={self.mac(end)}",
        ]


@dataclasses.dataclass
class Lun:
    """A disk of the target's: what LIO makes it of."""

    name: str
    serial: str
    # LIO's back end, and what that has to be told.
    store: str
    control: str
    # Attributes that are off until they are set.
    attributes: tuple[str, ...] = ()

    def script(self, number: int) -> str:
        """A part of EXPORT."""
        return EXPORT_LUN.format(
            number=number, **vars(self) | {"attributes": " ".join(self.attributes)}
        )


class Ramdisk:
    """A storage: what the target exports. This one has a disk in the target's memory."""

    qemu_opts: ClassVar[list[str]] = []

    def __init__(self, mib: int = 32):
        self.luns = [Lun("disk", "ferrule", "rd_mcp_0", f"rd_pages={mib * 256}")]

    def make(self, target: vm.Guest) -> None:
        """Before it is exported for the first time."""


class Lab:
    """The two guests: `target` and `initiator`.

    `boot(what, options)` starts a guest, and ends it when the lab is no longer used.
    """

    def __init__(
        self,
        boot: Callable[[str, vm.Options], vm.Guest],
        links: int,
        storage=None,
        patience: Patience | None = None,
    ):
        self.patience = patience or Patience()
        self._directory = tempfile.TemporaryDirectory(prefix="ferrule-links-")
        directory = pathlib.Path(self._directory.name)
        self.links = [Link(number, directory / f"link{number}") for number in range(1, links + 1)]
        self.storage = storage or Ramdisk()
        options = self._options(TARGET_END)
        options.qemu_opts += self.storage.qemu_opts
        self.target = boot("target", options)
        self.initiator = boot("initiator", self._options(INITIATOR_END))
        self.polling = 1
        for guest, end in ((self.target, TARGET_END), (self.initiator, INITIATOR_END)):
            for link in self.links:
                guest.check(INTERFACE.format(mac=link.mac(end), link=link.number, ip=link.ip(end)))
        self.storage.make(self.target)
        self.export()

    def export(self) -> None:
        """Start the target's service."""
        luns = "".join(lun.script(number) for number, lun in enumerate(self.storage.luns))
        ips = " ".join(link.ip(TARGET_END) for link in self.links)
        self.target.check(EXPORT.format(name=TARGET, luns=luns, ips=ips))

    def withdraw(self) -> None:
        """Stop it; nothing of its configuration is left."""
        self.target.check(WITHDRAW.format(name=TARGET))

    def _options(self, end: int) -> vm.Options:
        options = vm.Options(udev=False, qmp=True, memory="512M")
        options.qemu_opts = [opt for link in self.links for opt in link.qemu_opts(end)]
        return options

    def shell(self, script: str, timeout: float = 120) -> str:
        """Run in the initiator, with the functions of tools.sh; it has to succeed."""
        return self.initiator.check(self.script(script), timeout)

    def script(self, script: str) -> str:
        """For the initiator, with what every script there needs."""
        return f". {LIB}; . {TOOLS}; POLLING_INTERVAL={self.polling}\n{script}"

    def login(self) -> None:
        """Log in through every portal."""
        portal = self.links[0].ip(TARGET_END)
        self.shell(INITIATOR.format(portal=portal, **vars(self.patience)))
        self.wait(f"[ $(ls /sys/class/iscsi_session | wc -l) = {len(self.links)} ]", 120)

    def login_without_pings(self) -> None:
        """Anew, for links on which an answer may take longer than a session should be silent."""
        self.shell(
            "remove_map; iscsiadm -m node --logout && iscsiadm -m node -o update"
            " -n node.conn[0].timeo.noop_out_interval -v 0"
            " -n node.conn[0].timeo.noop_out_timeout -v 0 && iscsiadm -m node --login"
        )
        self.wait(f"[ $(ls /sys/class/iscsi_session | wc -l) = {len(self.links)} ]", 120)

    def disks(self, lun: int = 0) -> list[str]:
        """The initiator's paths to a disk, such as sda, in the order of the links."""
        output = self.shell(
            "for session in /sys/class/iscsi_session/*; do\n"
            "echo $(cat $session/device/connection*/iscsi_connection/*/persistent_address)"
            f" $(basename $session/device/target*/*:{lun}/block/*)\n"
            "done"
        )
        by_ip = dict(line.split() for line in output.splitlines())
        return [by_ip[link.ip(TARGET_END)] for link in self.links]

    def wait(self, condition: str, seconds: float) -> float:
        """Wait until a condition holds in the initiator; how many seconds that took."""
        started = time.monotonic()
        while self.initiator.run(self.script(condition), 60)[0]:
            if time.monotonic() - started > seconds:
                _, state = self.initiator.run(
                    "dmsetup table; dmsetup status; multipathd show paths; iscsiadm -m session;"
                    " tail -n 20 /run/multipathd.log",
                    60,
                )
                raise vm.GuestError(f"{condition}: not within {seconds} s\n{state}")
            time.sleep(0.1)
        return time.monotonic() - started

    def make_map(self, *lines: str) -> str:
        """Have multipathd make its device of all sessions; its path. For lines: see configure."""
        words = " ".join(f"'{line}'" for line in lines)
        output = self.shell(f"make_map {len(self.links)} {words} && echo map=$MAP")
        return "/dev/mapper/" + re.search(r"^map=(.*)$", output, re.M)[1]

    def plug(self, link: Link, in_place: bool) -> None:
        """Put a cable in, or pull it."""
        for guest in (self.target, self.initiator):
            guest.qmp.execute("set_link", name=f"nic{link.number}", up=in_place)

    def close(self) -> None:
        """What is left on this machine; the guests are their owner's."""
        self._directory.cleanup()
