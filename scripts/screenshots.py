#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Make Documentation/images/ anew: what the tools show in a guest, under real I/O."""

import argparse
import io
import pathlib
import re
import sys

import vm
from rich.console import Console
from rich.text import Text

IMAGES = vm.ROOT / "Documentation" / "images"
SPDX = "<!-- SPDX-License-Identifier: GPL-2.0 -->\n"
# Of a terminal.
WIDTH = 110
# Three devices on slow disks; two of them share what they get.
DEVICES = {
    "db": "group disk group_iops 400 group_depth 32 reserve_iops 200 weight 300",
    "backup": "group disk group_iops 400 group_depth 32",
    "logs": "iops 100 bps 8M",
}
TOOL = f"FORCE_COLOR=1 TERM=xterm-256color COLUMNS={WIDTH} {vm.ROOT}/scripts/qosctl"


def shoot(guest: vm.Guest, name: str, *commands: str) -> None:
    """What commands print, as a picture of a terminal."""
    console = Console(record=True, width=WIDTH, file=io.StringIO())
    for command in commands:
        console.print(Text(f"# qosctl {command}", style="bold"))
        lines = guest.check(f"{TOOL} {command}", 120).replace("\r", "").rstrip().splitlines()
        # `top` shows one table in the place of another.
        heads = [number for number, line in enumerate(lines) if "DEVICE" in line]
        shown = lines[heads[-1] :] if heads else lines
        console.print(Text.from_ansi("\n".join(shown)))
    path = IMAGES / f"{name}.svg"
    picture = console.export_svg(title=name.replace("-", " "))
    # No fonts from elsewhere: any of fixed width will do.
    picture = re.sub(r"@font-face {[^}]*}", "", picture)
    lines = [line.rstrip() for line in picture.splitlines()]
    path.write_text(SPDX + "\n".join(line for line in lines if line) + "\n")
    print(path.relative_to(vm.ROOT))


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kernel", default=vm.KERNEL)
    parser.add_argument("--kdir", type=pathlib.Path, required=True)
    args = parser.parse_args()
    vm.kill_guests_on_signal()
    IMAGES.mkdir(exist_ok=True)
    with vm.Guest(vm.Options(kernel=args.kernel, kdir=args.kdir)) as guest:
        guest.check(
            "modprobe -a dm-mod null_blk nr_devices=0; insmod $FERRULE_MODULES/dm-qos/dm-qos.ko\n"
            "mountpoint -q /sys/kernel/config || mount -t configfs none /sys/kernel/config\n"
        )
        for name, keys in DEVICES.items():
            # Two milliseconds an I/O.
            guest.check(
                f"disk=/sys/kernel/config/nullb/disk-{name}; mkdir $disk; cd $disk\n"
                "echo 1024 >size; echo 2 >irqmode; echo 2000000 >completion_nsec; echo 1 >power\n"
                f'dmsetup create {name} --table "0 2097152 qos /dev/disk-{name} 0'
                f' {len(keys.split())} {keys}"\n'
                f"fio --name={name} --filename=/dev/mapper/{name} --rw=randrw --rwmixread=70"
                " --bs=16k --direct=1 --ioengine=libaio --iodepth=16 --time_based --runtime=300"
                " >/dev/null 2>&1 </dev/null &"
            )
        guest.check("sleep 5")
        shoot(guest, "qosctl-top", "top --count 2 --interval 3")
        shoot(guest, "qosctl-list", "list", "why db", "why logs")
        guest.check("pkill fio; sleep 1")
    return 0


if __name__ == "__main__":
    sys.exit(main())
