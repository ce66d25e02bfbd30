#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Show the three modules at work in one guest, on real I/O and real memory.

Ends with a table of what was expected and what was measured; fails when a measured value is not
what was expected.
"""

import argparse
import json
import pathlib
import sys
import tempfile
import time

import vm
from demo_table import DemoTable

MIB = 1 << 20
DISK_MIB = 512
# What is measured in a guest that is emulated on a busy machine may be off by this much.
LIMIT_SLACK = 0.10
SPLIT_SLACK = 0.05
IO_SECONDS = 6
BALLOON_TIMEOUT = 120
# The host gives back most of what the balloon takes; QEMU keeps some for itself.
RESIDENT_SHARE = 0.8


class Demo(DemoTable):
    """The steps, and the rows of the table."""

    def __init__(self, guest: vm.Guest):
        super().__init__("module")
        self.guest = guest

    def within(self, module, what, expected, measured, unit, slack=LIMIT_SLACK) -> None:
        """A line whose measured value has to be near the expected one."""
        good = abs(measured - expected) <= expected * slack
        self.row(module, what, f"{expected:,.0f} {unit}", f"{measured:,.0f} {unit}", good)

    def shell(self, script: str, timeout: float = 120) -> str:
        """Run in the guest, and show what is run."""
        self.commands(script)
        return self.guest.check(script, timeout)

    def fio(self, device: str, *options: str) -> dict:
        """Run fio for a few seconds; the job's result."""
        command = f"fio --name=demo --filename={device} --output-format=json "
        command += f"--runtime={IO_SECONDS} --time_based " + " ".join(options)
        output = self.shell(command)
        return json.loads(output[output.index("{") :])["jobs"][0]

    def load_modules(self) -> None:
        """insmod, as a user would."""
        self.step("Loading the three modules")
        self.shell(
            # udev has loaded the C driver for the balloon device.
            "modprobe dm-multipath; rmmod virtio_balloon\n"
            "insmod $FERRULE_MODULES/dm-qos/dm-qos.ko\n"
            "insmod $FERRULE_MODULES/mpath-sel/dm-round-robin-rs.ko\n"
            "insmod $FERRULE_MODULES/balloon/virtio_balloon_rs.ko\n"
            "ls -d /sys/bus/virtio/drivers/virtio_balloon_rs/virtio*"
        )

    def qos(self) -> None:
        """A disk held to its limits."""
        self.step("dm-qos: a virtio disk held to 500 I/Os per second")
        self.shell(
            "disk=/dev/disk/by-id/virtio-qos\n"
            "sectors=$(blockdev --getsz $disk)\n"
            'dmsetup create qos --table "0 $sectors qos $disk 0 2 iops 500"'
        )
        random_read = ("--rw=randread", "--bs=4k", "--direct=1", "--ioengine=libaio", "--iodepth=8")
        job = self.fio("/dev/mapper/qos", *random_read)
        self.within("dm-qos", "iops 500, random reads", 500, job["read"]["iops"], "IOPS")
        self.step("... then to 2,000, by message, while the device is in use")
        self.shell("dmsetup message qos 0 set iops 2000")
        job = self.fio("/dev/mapper/qos", *random_read)
        self.within("dm-qos", "iops 2000, set by message", 2000, job["read"]["iops"], "IOPS")
        self.step("... then large writes to 8 MiB/s, direct and through the page cache")
        self.shell("dmsetup message qos 0 set iops 0 bps 8M")
        sequential = ("--rw=write", "--bs=1M", "--ioengine=psync")
        job = self.fio("/dev/mapper/qos", *sequential, "--direct=1")
        self.within("dm-qos", "bps 8M, direct writes", 8, job["write"]["bw_bytes"] / MIB, "MiB/s")
        rate = self.buffered_write()
        self.within("dm-qos", "bps 8M, buffered writes", 8, rate, "MiB/s")
        self.console.print(self.guest.check("dmsetup status qos"), highlight=False)
        self.shell("dmsetup remove qos")

    def buffered_write(self) -> float:
        """Write through the page cache; MiB per second while writeback is going on."""
        output = self.shell(
            "written() { dmsetup status qos | grep -o 'write_bytes=[0-9]*' | cut -d= -f2; }\n"
            "dd if=/dev/zero of=/dev/mapper/qos bs=1M count=80 conv=fsync status=none &\n"
            "sleep 3; from=$(written) begin=$(date +%s%N)\n"
            f"sleep {IO_SECONDS - 1}; to=$(written) end=$(date +%s%N); wait\n"
            "echo $((to - from)) $((end - begin))"
        )
        written, nanoseconds = map(int, output.split()[-2:])
        return written / MIB / (nanoseconds / 1e9)

    def multipath(self) -> None:
        """Two paths to one disk, one of them failing under load."""
        self.step("Path selector: two paths to one SCSI disk, round robin")
        self.shell(
            "paths=$(for host in /sys/bus/scsi/drivers/sd/*:*; do"
            " basename $host/block/sd*; done | sort | head -n 2)\n"
            "echo $paths >/run/paths; set -- $paths\n"
            "sectors=$(blockdev --getsz /dev/$1)\n"
            'dmsetup create mpath --table "0 $sectors multipath 0 0 1 1 round-robin-rs 0 2 1'
            ' /dev/$1 1 /dev/$2 1"'
        )
        before = self.path_ios()
        self.fio(
            "/dev/mapper/mpath",
            *("--rw=randread", "--bs=4k", "--direct=1", "--ioengine=libaio", "--iodepth=8"),
        )
        after = self.path_ios()
        done = [end - begin for begin, end in zip(before, after, strict=True)]
        share = done[0] / max(sum(done), 1)
        self.row(
            "path selector",
            "share of the first of two paths",
            "50 %",
            f"{share:.1%} of {sum(done):,} I/Os",
            abs(share - 0.5) <= SPLIT_SLACK,
        )
        self.step("... one path goes away under verified I/O, and comes back")
        self.guest.send(
            "fio --name=verify --filename=/dev/mapper/mpath --rw=randwrite --bs=4k --size=16M"
            " --direct=1 --ioengine=libaio --iodepth=8 --verify=crc32c --loops=4"
            " --verify_fatal=1 --verify_state_save=0 --rate_iops=1500 --output=/run/verify.json"
            " --output-format=json & fio=$!\n"
            "set -- $(cat /run/paths)\n"
            "sleep 3; echo offline >/sys/block/$1/device/state\n"
            "sleep 3; dmsetup status mpath\n"
            "echo running >/sys/block/$1/device/state\n"
            "dmsetup message mpath 0 reinstate_path /dev/$1\n"
            "sleep 1; dmsetup status mpath; wait $fio; echo fio=$?"
        )
        _, output = self.guest.wait(180)
        self.console.print(output, highlight=False, markup=False)
        states = [line for line in output.splitlines() if "multipath" in line]
        job = json.loads(self.guest.check("sed -n '/^{/,$p' /run/verify.json"))["jobs"][0]
        failed = len(states) == 2 and " F " in states[0] and " F " not in states[1]
        self.row(
            "path selector",
            "path failed, then reinstated",
            "F, then A A",
            "as expected" if failed else str(states),
            failed,
        )
        good = "fio=0" in output and job["error"] == 0
        self.row(
            "path selector",
            "verified I/O meanwhile",
            "no error",
            f"{job['write']['total_ios']:,} writes, {job['read']['total_ios']:,} verified, "
            f"{'no error' if good else job['error']}",
            good,
        )
        self.shell("dmsetup remove mpath")

    def path_ios(self) -> list[int]:
        """I/Os done so far by each path."""
        output = self.guest.check(
            "for path in $(cat /run/paths); do awk '{ print $1 + $5 }' /sys/block/$path/stat; done"
        )
        return [int(word) for word in output.split()]

    def balloon(self) -> None:
        """Memory given to the host and taken back."""
        self.step("Balloon: the guest touches its memory, then gives half of it to the host")
        self.shell(
            "dd if=/dev/zero of=/dev/shm/touch bs=1M count=420 status=none; rm /dev/shm/touch"
        )
        before = self.guest.resident_mib()
        seconds = self.resize(512)
        during = self.guest.resident_mib()
        actual = self.actual_mib()
        self.row(
            "balloon",
            "guest after a target of 512 MiB",
            "512 MiB",
            f"{actual} MiB in {seconds:.1f} s",
            actual == 512,
        )
        fell = before - during
        self.row(
            "balloon",
            "host's resident memory",
            f"falls by {420 * RESIDENT_SHARE:.0f} MiB or more",
            f"{before} to {during} MiB",
            fell >= 420 * RESIDENT_SHARE,
        )
        self.step("... and takes it back")
        seconds = self.resize(1024)
        actual = self.actual_mib()
        self.row(
            "balloon",
            "guest after a target of 1 GiB",
            "1024 MiB",
            f"{actual} MiB in {seconds:.1f} s",
            actual == 1024,
        )
        self.shell(
            "dd if=/dev/zero of=/dev/shm/touch bs=1M count=420 status=none; rm /dev/shm/touch"
        )
        after = self.guest.resident_mib()
        self.row(
            "balloon",
            "host's resident memory, memory used again",
            f"{before} MiB or so",
            f"{after} MiB",
            after - during >= 420 * RESIDENT_SHARE,
        )

    def resize(self, mib: int) -> float:
        """Set the target over QMP, and wait until the guest has reached it: seconds."""
        self.console.print(f"   QMP: balloon value={mib * MIB}", style="dim")
        started = time.monotonic()
        self.guest.qmp.execute("balloon", value=mib * MIB)
        while self.actual_mib() != mib and time.monotonic() - started < BALLOON_TIMEOUT:
            time.sleep(0.05)
        return time.monotonic() - started

    def actual_mib(self) -> int:
        """The guest's memory, less its balloon."""
        return self.guest.qmp.execute("query-balloon")["actual"] // MIB


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kernel", default="release", choices=vm.KERNELS)
    parser.add_argument("--kdir", type=pathlib.Path)
    args = parser.parse_args()
    vm.kill_guests_on_signal()
    with tempfile.TemporaryDirectory(prefix="ferrule-demo-") as directory:
        disks = [pathlib.Path(directory) / name for name in ("qos.img", "shared.img")]
        for disk in disks:
            with open(disk, "wb") as image:
                image.truncate(DISK_MIB * MIB)
        scsi = "virtio-scsi-pci,id=scsi{0}"
        path = "scsi-hd,bus=scsi{0}.0,drive=path{0},serial=ferrule,share-rw=on"
        qemu_opts = [
            f"-drive if=none,id=qos,format=raw,file={disks[0]}",
            "-device virtio-blk-pci,drive=qos,serial=qos",
            "-device virtio-balloon-pci,id=balloon0",
        ]
        for number in (0, 1):
            qemu_opts += [
                f"-drive if=none,id=path{number},format=raw,cache=none,file.locking=off,"
                f"file={disks[1]}",
                f"-device {scsi.format(number)}",
                f"-device {path.format(number)}",
            ]
        options = vm.Options(
            kernel=args.kernel,
            kdir=args.kdir,
            memory="1G",
            qmp=True,
            qemu_opts=qemu_opts,
            log=vm.ROOT / "out" / "demo.log",
        )
        print(f"== booting a guest of 1 GiB and 2 CPUs (kernel log: {options.log})", flush=True)
        try:
            with vm.Guest(options) as guest:
                demo = Demo(guest)
                demo.load_modules()
                demo.qos()
                demo.multipath()
                demo.balloon()
                guest.check("rmmod dm-qos dm-round-robin-rs virtio_balloon_rs")
                wrong = guest.check_log()
        except vm.GuestError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
    demo.row("all", "kernel log", "no warning", "\n".join(wrong) or "no warning", not wrong)
    demo.console.print(demo.table)
    return 1 if demo.failed else 0


if __name__ == "__main__":
    sys.exit(main())
