# SPDX-License-Identifier: GPL-2.0
"""A storage server and a machine that works on it, with all layers in between that people use.

Guest A, the storage: disks, an LVM thin pool on them, two thin volumes, exported by LIO over two
portals. Guest B: open-iscsi, multipathd with the configuration that has to work unchanged and our
path selector, a qos device on each LUN; on one of them ext4 and a database, on the other LVM, and
verified I/O to a logical volume.

Both loads run while one thing after the other happens to what is below. `make demo-stack` shows the
steps, selftests/host/test_stack.py asserts the same: they are the methods named in STEPS.
"""

import dataclasses
import pathlib
import tempfile
import time
from collections.abc import Callable

import iscsi_lab
import vm

MIB = 1 << 20
LINKS = 2
# multipathd looks at its paths so often; no_path_retry is five times that.
POLLING_SECONDS = 10
POOL_DISKS = 3
DISK_MIB = 64
# All of the pool is less than one of the LUNs, let alone both.
POOL_MIB = 36
LUN_MIB = {"db": 64, "volumes": 64}
# What the pool gives out at one time.
BLOCK = 64 << 10
# A file that does not fit into the pool as it is at first.
FILE_MIB = 28
NEARLY_FULL = 0.8
LIMITS = {"db": 300, "volumes": 40}
# Low enough for guests that are emulated on a busy machine.
TRIED_LIMITS = (10, 20)
# Of such a guest fio asks for less at times, between what it writes and what it verifies.
LEAST, MOST = 0.7, 1.1
LEDGER = f"python3 -I {vm.GUEST_SCRIPTS / 'ledger.py'}"

# For guest A, which has no udev: LVM makes its nodes itself.
STORAGE_LVM = """
mkdir -p /run/lvm-system && cat >/run/lvm-system/lvm.conf <<'END'
devices { obtain_device_list_from_udev = 0 }
activation { udev_sync = 0 udev_rules = 0 monitoring = 0 }
backup { backup = 0 archive = 0 }
END
"""
STORAGE = "export DM_DISABLE_UDEV=1 LVM_SYSTEM_DIR=/run/lvm-system\n"

# As after `make install`: modprobe, device mapper and udev find them.
INSTALL = """
modules=/lib/modules/$(uname -r)
rm $modules && ln -s {installed} $modules
"""
# What is found on a qos device is found on the multipath device below it as well. Commands of LVM
# must not look there. Nor must udev: while it looks at a device for the first time, that has none
# of the names yet that a filter knows it by. And of two devices that have the same, the multipath
# device asks for the links with a priority of 50.
RULES = """
sed -i 's~^devices {{~&\\nglobal_filter = [ "r|^/dev/mapper/36|" ]~' /etc/lvm/lvm.conf
cat >/etc/udev/rules.d/61-qos.rules <<'END'
ENV{{DM_UUID}}=="QOS-?*", OPTIONS+="link_priority=60"
ENV{{DM_UUID}}=="mpath-{wwid}", ENV{{ID_FS_TYPE}}="qos_member"
END
udevadm control --reload
"""
# fio writes blocks of all sizes and reads them back, over and over, until told to end.
VERIFY = """
fio --name=verify --filename=/dev/vol/blocks --rw=randwrite --bsrange=4k-64k --size=4m \
	--direct=1 --ioengine=libaio --iodepth=8 --verify=crc32c --verify_fatal=1 \
	--loops=1000000 >/run/verify.log 2>&1 &
echo $! >/run/verify.pid
"""
# Once it has read, and so verified, as much as there is.
END_VERIFY = """
has_verified() {
	[ $(($(awk '{ print $3 }' $(cat /run/verify.stat)) - $(cat /run/verify.from))) -ge 8192 ]
}
wait_for 120 has_verified || too_little="fio has verified too little"
kill -INT $(cat /run/verify.pid)
wait_for 30 eval '! kill -0 $(cat /run/verify.pid) 2>/dev/null'
[ -z "$too_little" ] && grep -q 'err= *0' /run/verify.log &&
	! grep -qi 'error\\|bad magic' /run/verify.log && exit
echo "$too_little"
cat /run/verify.log
exit 1
"""


@dataclasses.dataclass
class Row:
    """What was expected, and what there was."""

    step: str
    what: str
    expected: str
    measured: str
    good: bool


class Rows:
    """Takes what Stack reports, and keeps the rows."""

    def __init__(self):
        self.rows: list[Row] = []

    def row(self, *fields) -> None:
        """Something that has to be so."""
        self.rows.append(Row(*fields))

    def take(self) -> list[Row]:
        """Those that came since they were taken last."""
        taken, self.rows = self.rows, []
        return taken

    def step(self, text: str) -> None:
        """What comes."""

    def say(self, text: str) -> None:
        """What happens."""

    def commands(self, script: str, prompt: str) -> None:
        """What is run."""


class ThinPool:
    """The storage of guest A: volumes of a thin pool on several disks, and one disk to spare."""

    def __init__(self, directory: pathlib.Path, shell: Callable[[vm.Guest, str], str]):
        self.shell = shell
        self.qemu_opts = []
        for number in range(POOL_DISKS + 1):
            disk = directory / f"disk{number}.img"
            with open(disk, "wb") as image:
                image.truncate(DISK_MIB * MIB)
            self.qemu_opts += [
                f"-drive if=none,id=disk{number},format=raw,discard=unmap,file={disk}",
                f"-device virtio-blk-pci,drive=disk{number}",
            ]
        self.luns = [
            iscsi_lab.Lun(
                name,
                f"ferrule-{name}",
                "iblock_0",
                f"udev_path=/dev/mapper/storage-{name}",
                ("emulate_tpu", "emulate_tpws"),
            )
            for name in LUN_MIB
        ]

    def make(self, target: vm.Guest) -> None:
        """As an administrator would."""
        target.check(STORAGE_LVM)
        self.shell(
            target,
            "vgcreate storage /dev/vd[a-c]\n"
            f"lvcreate --type thin-pool --stripes {POOL_DISKS} --size {POOL_MIB}M"
            f" --chunksize {BLOCK >> 10}K --name luns storage",
        )
        for name, mib in LUN_MIB.items():
            self.shell(target, f"lvcreate --virtualsize {mib}M --thin --name {name} storage/luns")

    def used(self, target: vm.Guest) -> tuple[int, int]:
        """Blocks that are given out, and all that there are."""
        status = target.check(STORAGE + "dmsetup status storage-luns-tpool").split()
        used, total = status[5].split("/")
        return int(used), int(total)


class Stack:
    """The two guests and what happens to them; `report` is told (see Rows)."""

    def __init__(self, boot: Callable[[str, vm.Options], vm.Guest], report: Rows):
        self.report = report
        self.name = ""
        self._directory = tempfile.TemporaryDirectory(prefix="ferrule-stack-")
        self.pool = ThinPool(pathlib.Path(self._directory.name), self.on_storage)
        self.lab = iscsi_lab.Lab(boot, LINKS, self.pool)
        self.lab.polling = POLLING_SECONDS
        self.storage, self.machine = self.lab.target, self.lab.initiator

    def close(self) -> None:
        """What is left on this machine; the guests are their owner's."""
        self.lab.close()
        self._directory.cleanup()

    def run(self, step: Callable[["Stack"], None]) -> None:
        """A step, whose rows have its name."""
        self.name = step.__name__.replace("_", " ")
        self.report.step(step.__doc__)
        step(self)

    def row(self, what: str, expected: str, measured: object, good: bool) -> None:
        """Something that has to be so."""
        self.report.row(self.name, what, expected, str(measured), good)

    def on_storage(self, guest: vm.Guest, script: str, timeout: float = 120) -> str:
        """Run in guest A, and show what is run."""
        self.report.commands(script, "A#")
        return guest.check(STORAGE + "set -e\n" + script, timeout)

    def a(self, script: str) -> str:
        """Run in guest A, and show what is run."""
        return self.on_storage(self.storage, script)

    def b(self, script: str) -> str:
        """Run in guest B, and show what is run."""
        self.report.commands(script, "B#")
        return self.lab.shell("set -e\n" + script)

    # What there is.

    def acknowledged(self) -> int:
        """How many transactions the database has committed."""
        return int(self.machine.check("cat /run/ledger.acknowledged"))

    def goes_on(self) -> int:
        """Wait until both loads have got on; how many transactions that was."""
        before = self.acknowledged()
        ios = "awk '{ print $1 + $5 }' $(cat /run/verify.stat)"
        done = int(self.machine.check(ios))
        self.lab.wait(
            f"[ $(cat /run/ledger.acknowledged) -ge {before + 5} ] && [ $({ios}) -ge {done + 20} ]",
            180,
        )
        return self.acknowledged() - before

    def paths(self, state: str) -> set[str]:
        """Those that multipath has in this state, A or F, such as 8:16."""
        status = self.machine.check("dmsetup status --target multipath")
        words = status.split()
        return {word for word, after in zip(words, words[1:], strict=False) if after == state}

    def wait_for_paths(self, state: str, number: int) -> float:
        """Until so many are in this state; how long that took."""
        return self.lab.wait(
            "[ $(dmsetup status --target multipath | grep -oE '[0-9]+:[0-9]+ "
            f"{state} ' | wc -l) = {number} ]",
            180,
        )

    def link(self, path: str) -> str:
        """The device that a link of udev leads to, by the name that device mapper has for it."""
        return self.machine.check(
            f"cat /sys/block/$(basename $(readlink -f {path}))/dm/name || echo none"
        ).strip()

    def counted(self, name: str) -> tuple[int, float, bool]:
        """I/Os that a qos device let pass so far, when that was, and whether some waited then."""
        output = self.machine.check(f"dmsetup status qos-{name}; date +%s%N").split()
        fields = dict(word.split("=", 1) for word in output if "=" in word)
        ios, held = (
            int(fields[f"read_{what}"]) + int(fields[f"write_{what}"]) for what in ("ios", "held")
        )
        return ios, int(output[-1]) / 1e9, held > 0

    # Setting it up.

    def log_in(self) -> None:
        """iSCSI, multipath and our selector in guest B."""
        used, total = self.pool.used(self.storage)
        disks = self.a("dmsetup deps storage-luns_tdata").count("(")
        self.row("thin pool", f"on {POOL_DISKS} disks", f"on {disks} disks", disks == POOL_DISKS)
        self.row(
            "volumes of it",
            f"{sum(LUN_MIB.values())} of {POOL_MIB} MiB, nothing used",
            f"{sum(LUN_MIB.values())} of {total * BLOCK // MIB} MiB, {used} blocks used",
            (used, total) == (0, POOL_MIB * MIB // BLOCK),
        )
        options = self.machine.options
        installed = vm.installed_modules(options.kernel, self.machine.kdir)
        self.machine.check(INSTALL.format(installed=installed))
        self.b("modprobe dm-round-robin-rs")
        self.report.commands("multipathd; iscsiadm -m discovery; iscsiadm -m node --login", "B#")
        self.lab.login()
        self.wait_for_paths("A", LINKS * len(LUN_MIB))
        tables = self.b("dmsetup table --target multipath").splitlines()
        good = [
            f" round-robin 0 {LINKS} 1 " in line and "queue_if_no_path" in line for line in tables
        ]
        self.row(
            "multipath devices, by the seed's configuration",
            f"{len(LUN_MIB)}, round robin over {LINKS} paths",
            f"{sum(good)} of {len(good)}",
            good == [True] * len(LUN_MIB),
        )

    def multipath_of(self, name: str) -> str:
        """The name of the multipath device of a LUN, which is its WWID."""
        disk = self.lab.disks(list(LUN_MIB).index(name))[0]
        return self.machine.check(f"cat /sys/block/{disk}/holders/*/dm/name").strip()

    def create_qos(self, name: str) -> None:
        """A qos device on a LUN."""
        below = f"/dev/mapper/{self.multipath_of(name)}"
        self.b(
            f"dmsetup create qos-{name} --uuid QOS-{name} --table "
            f'"0 $(blockdev --getsz {below}) qos {below} 0 2 iops {LIMITS[name]}"'
        )

    def make_qos(self) -> None:
        """Device mapper loads the module when a table names it."""
        self.b(RULES.format(wwid=self.multipath_of("volumes")))
        before = self.machine.run("grep -c ^dm_qos /proc/modules")[1].strip()
        for name in LUN_MIB:
            self.create_qos(name)
        after = self.machine.run("grep -c ^dm_qos /proc/modules")[1].strip()
        self.row(
            "dm-qos loaded by the first table that names it",
            "not loaded, loaded",
            f"{before}, {after}",
            (before, after) == ("0", "1"),
        )
        # udev has made the links when dmsetup returns.
        links = [self.link(f"/dev/disk/by-id/dm-name-qos-{name}") for name in LUN_MIB]
        self.row(
            "/dev/disk/by-id/dm-name-qos-*",
            "lead to them",
            ", ".join(links),
            links == [f"qos-{name}" for name in LUN_MIB],
        )

    def make_volumes(self) -> None:
        """A file system on one device, LVM on the other."""
        self.b(
            "mke2fs -q -t ext4 /dev/mapper/qos-db\n"
            # udev finds it there as well.
            f"multipathd reload map {self.multipath_of('db')}\n"
            "udevadm settle\n"
            "mkdir -p /mnt/db\n"
            "mount /dev/disk/by-uuid/$(blkid -s UUID -o value /dev/mapper/qos-db) /mnt/db"
        )
        source = self.link("$(findmnt -n -o SOURCE /mnt/db)")
        self.row("ext4, mounted by /dev/disk/by-uuid", "qos-db", source, source == "qos-db")
        self.b(
            "pvcreate /dev/mapper/qos-volumes\n"
            "vgcreate vol /dev/mapper/qos-volumes\n"
            "lvcreate --size 16M --name blocks --wipesignatures n vol\n"
            "udevadm settle"
        )
        found = [
            self.link("/dev/disk/by-id/lvm-pv-uuid-$(pvs --noheadings -o pv_uuid | tr -d ' ')"),
            self.link("/dev/vol/blocks"),
        ]
        expected = ["qos-volumes", "vol-blocks"]
        self.row(
            "links to the PV and the LV", " ".join(expected), " ".join(found), found == expected
        )

    def start_loads(self) -> None:
        """A database on ext4: transactions, one after the other. Verified I/O on the LV."""
        self.b(
            f"{LEDGER} run /mnt/db/ledger /run/ledger.acknowledged >/run/ledger.log 2>&1 &\n"
            "echo $! >/run/ledger.pid"
        )
        self.lab.wait("[ -s /run/ledger.acknowledged ]", 60)
        self.start_verify()

    def start_verify(self) -> None:
        """Verified I/O to the logical volume."""
        self.machine.check(
            "stat=/sys/block/$(basename $(readlink -f /dev/vol/blocks))/stat;"
            " echo $stat >/run/verify.stat; awk '{ print $3 }' $stat >/run/verify.from"
        )
        self.report.commands(VERIFY, "B#")
        self.machine.check(VERIFY)
        self.goes_on()

    def end_verify(self) -> None:
        """What it has read has been what it has written."""
        status, output = self.machine.run(self.lab.script(END_VERIFY), 180)
        self.row("verified I/O to the LV", "no error", output or "no error", status == 0)

    # What happens then.

    def cut_portals(self) -> None:
        """One portal after the other is cut, and comes back, while the database commits."""
        for number, link in enumerate(self.lab.links):
            self.report.say(f"the cable of portal {link.ip(iscsi_lab.TARGET_END)} is pulled")
            self.lab.plug(link, False)
            self.wait_for_paths("F", len(LUN_MIB))
            disks = [self.lab.disks(lun)[number] for lun in range(len(LUN_MIB))]
            expected = set(
                self.machine.check(
                    f"cat {' '.join(f'/sys/block/{disk}/dev' for disk in disks)}"
                ).split()
            )
            failed = self.paths("F")
            self.row(
                f"portal {number + 1} cut: paths that failed",
                " ".join(sorted(expected)),
                " ".join(sorted(failed)),
                failed == expected,
            )
            commits = self.goes_on()
            self.row("meanwhile the database", "commits", f"{commits} commits", commits > 0)
            self.report.say("... and is put back")
            self.lab.plug(link, True)
            seconds = self.wait_for_paths("A", LINKS * len(LUN_MIB))
            failed = self.paths("F")
            self.row(
                "paths out of service when it is back",
                "none",
                " ".join(failed) or f"none after {seconds:.1f} s",
                not failed,
            )
            self.goes_on()

    def change_limits(self) -> None:
        """Limits by message, under load."""
        for limit in TRIED_LIMITS:
            self.b(f"dmsetup message qos-volumes 0 set iops {limit}")
            time.sleep(0.5)
            # A guest that is too slow for a moment to ask for that much gets another chance, and so
            # does one that stood still. More than the limit is too much at once.
            for _ in range(5):
                first, begin, waited = self.counted("volumes")
                time.sleep(5)
                last, end, waits = self.counted("volumes")
                rate = (last - first) / (end - begin)
                if rate > limit * MOST or (waited and waits and end - begin < 8):
                    break
            self.row(
                f"iops {limit}, under the verified I/O",
                f"{limit * LEAST:.0f} to {limit * MOST:.0f} IOPS",
                f"{rate:.1f} IOPS",
                limit * LEAST <= rate <= limit * MOST,
            )
        self.b(f"dmsetup message qos-volumes 0 set iops {LIMITS['volumes']}")

    def grow_pool(self) -> None:
        """A file is written that does not fit into the pool: it grows while that goes on."""
        before, total = self.pool.used(self.storage)
        self.b(
            f"(dd if=/dev/urandom bs=1M count={FILE_MIB} status=none | tee /mnt/db/file |"
            " sha256sum >/run/file.sum && sync -f /mnt/db/file && echo written >/run/file.log)"
            " 2>/run/file.log &"
        )
        deadline = time.monotonic() + 120
        while self.pool.used(self.storage)[0] < total * NEARLY_FULL:
            if time.monotonic() > deadline:
                raise vm.GuestError(f"the pool does not fill: {self.pool.used(self.storage)}")
            time.sleep(0.2)
        at = self.pool.used(self.storage)
        self.report.say(f"the pool is nearly full: {at[0]} of {at[1]} blocks, {before} before")
        self.a("vgextend storage /dev/vdd\nlvextend --stripes 1 --size +36M storage/luns /dev/vdd")
        self.lab.wait("grep -q . /run/file.log", 120)
        self.b("echo 3 >/proc/sys/vm/drop_caches")
        log = self.machine.check("cat /run/file.log").strip()
        used, larger = self.pool.used(self.storage)
        self.row(
            "blocks used of the pool",
            f"more than the {total} that there were",
            f"{used} of {larger}",
            total < used <= larger,
        )
        same = self.machine.run("sha256sum </mnt/db/file | cmp - /run/file.sum", 120)[0] == 0
        self.row(
            "the file",
            "written, and the same when read from the disk",
            log + (", the same" if same else ", another"),
            same and log == "written",
        )
        self.goes_on()

    def trim(self) -> None:
        """What is freed above is free in the pool."""
        before, _ = self.pool.used(self.storage)
        self.b("rm /mnt/db/file\nsync -f /mnt/db\nfstrim -v /mnt/db")
        after, _ = self.pool.used(self.storage)
        least = FILE_MIB * MIB // BLOCK * 9 // 10
        self.row(
            "fstrim, through qos, multipath and iSCSI: blocks that the pool has back",
            f"{least} or more",
            before - after,
            before - after >= least,
        )
        self.b(
            "lvcreate --size 4M --name old --wipesignatures n vol\n"
            "dd if=/dev/urandom of=/dev/vol/old bs=1M count=4 oflag=direct status=none\n"
            "blkdiscard --zeroout --length 1M /dev/vol/old"
        )
        zero = self.machine.run("cmp -n 1048576 /dev/vol/old /dev/zero")[0] == 0
        self.row("zeroes written to an LV", "zero", "zero" if zero else "not zero", zero)
        before, _ = self.pool.used(self.storage)
        self.b("blkdiscard /dev/vol/old")
        after, _ = self.pool.used(self.storage)
        least = 4 * MIB // BLOCK * 9 // 10
        self.row(
            "discard of the LV: blocks that the pool has back",
            f"{least} or more",
            before - after,
            before - after >= least,
        )
        self.b("lvremove --yes vol/old")

    def snapshot(self) -> None:
        """A snapshot in guest A, under load: it has what the database acknowledged before."""
        least = self.acknowledged()
        self.a(
            "lvcreate --snapshot --name backup storage/db\n"
            "lvchange --activate y --ignoreactivationskip storage/backup\n"
            "mkdir -p /run/backup\n"
            "mount /dev/mapper/storage-backup /run/backup"
        )
        status, output = self.storage.run(f"{LEDGER} check /run/backup/ledger {least}")
        self.row(
            "snapshot under load: the database in it",
            f"whole, {least} transactions or more",
            output,
            status == 0,
        )
        self.a("umount /run/backup\nlvremove --yes storage/backup")
        self.goes_on()

    def reactivate(self) -> None:
        """The devices under LVM go and come again, as at boot: udev activates its volumes."""
        self.machine.check(
            "dd if=/dev/urandom of=/run/pattern bs=1M count=2 status=none;"
            " dd if=/run/pattern of=/dev/vol/blocks bs=1M seek=8 oflag=direct status=none"
        )
        self.end_verify()
        below = self.multipath_of("volumes")
        self.b(
            "vgchange --activate n vol\n"
            "dmsetup remove qos-volumes\n"
            f"multipathd remove map {below}\n"
            "rm -f /run/lvm/*_online/*\n"
            f"multipathd add map {below}\n"
            "udevadm settle\n"
            f"test -b /dev/mapper/{below}"
        )
        early = self.machine.run("ls /dev/vol/blocks 2>/dev/null")[1]
        self.row(
            "its multipath device is there again: volumes",
            "none yet",
            early or "none yet",
            not early,
        )
        self.create_qos("volumes")
        self.lab.wait("test -b /dev/vol/blocks", 60)
        on = self.machine.check(
            "cat /sys/block/$(basename $(readlink -f /dev/vol/blocks))/slaves/*/dm/name"
        ).strip()
        self.row(
            "and its qos device: volumes",
            "activated by udev, on qos-volumes",
            f"activated, on {on}",
            on == "qos-volumes",
        )
        self.b("vgchange --activate n vol\nvgchange --activate y vol")
        differs = self.machine.run(
            "dd if=/dev/vol/blocks bs=1M skip=8 count=2 iflag=direct status=none |"
            " cmp - /run/pattern"
        )[0]
        self.row("data", "as they were", "others" if differs else "as they were", not differs)
        self.start_verify()

    def restart_service(self) -> None:
        """The service of guest A ends and begins again; both loads wait."""
        self.report.say("the configuration of LIO is taken down")
        self.lab.withdraw()
        self.wait_for_paths("F", LINKS * len(LUN_MIB))
        at = self.acknowledged()
        time.sleep(1)
        waited = self.acknowledged() == at
        self.report.say("... and made again")
        self.lab.export()
        seconds = self.wait_for_paths("A", LINKS * len(LUN_MIB))
        commits = self.goes_on()
        self.row(
            "storage gone: the database",
            "waits, then goes on",
            f"{'waited' if waited else 'did not wait'}, {commits} commits after {seconds:.1f} s",
            waited,
        )

    def end(self) -> None:
        """Everything is taken down, and the data are looked at where they lie."""
        self.end_verify()
        self.b("kill $(cat /run/ledger.pid)")
        self.lab.wait("! kill -0 $(cat /run/ledger.pid) 2>/dev/null", 30)
        log = self.machine.check("cat /run/ledger.log").strip()
        least = self.acknowledged()
        self.row("the database ended", f"ended: {least}", log, log == f"ended: {least}")
        errors = self.machine.run("dmesg | grep -E 'EXT4-fs (error|warning)|I/O error, dev dm-'")[1]
        self.row("errors above multipath, in the log", "none", errors or "none", not errors)
        self.b(
            "umount /mnt/db\nvgchange --activate n vol\n"
            "dmsetup remove qos-db\ndmsetup remove qos-volumes\nrmmod dm-qos"
        )
        self.lab.withdraw()
        self.a(
            "e2fsck -fn /dev/mapper/storage-db\nmkdir -p /run/db\n"
            "mount /dev/mapper/storage-db /run/db"
        )
        status, output = self.storage.run(f"{LEDGER} check /run/db/ledger {least}")
        self.row(
            "in the storage: the database",
            f"whole, {least} transactions",
            output,
            status == 0 and output == f"transactions: {least}",
        )
        self.a("umount /run/db")


# In this order: until both loads run, and what happens then.
SET_UP = (
    Stack.log_in,
    Stack.make_qos,
    Stack.make_volumes,
    Stack.start_loads,
)
STEPS = (
    Stack.cut_portals,
    Stack.change_limits,
    Stack.grow_pool,
    Stack.trim,
    Stack.snapshot,
    Stack.reactivate,
    Stack.restart_service,
    Stack.end,
)
