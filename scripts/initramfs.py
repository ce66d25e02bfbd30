# SPDX-License-Identifier: GPL-2.0
"""The initramfs of guests: an archive, and one that mounts the root file system by modules."""

import pathlib
import stat
import subprocess

PROGRAM, FOLDER, LINK = stat.S_IFREG | 0o755, stat.S_IFDIR | 0o755, stat.S_IFLNK | 0o777
# What the root file system of a guest needs of a kernel that has all as modules.
ROOT_MODULES = ("virtio_pci", "9pnet_virtio", "9p", "virtio_console")
# Nobody else writes what is read: let it be cached.
ROOT_OPTIONS = "version=9p2000.L,trans=virtio,access=any,msize=524288,cache=loose"
# Where a guest whose root is not this machine's has this machine's files, and the mount tags.
HOST, ROOT_TAG, HOST_TAG = "/host", "/dev/root", "host"
INIT = f"""#!/bin/busybox sh
/bin/busybox mount -t proc proc /proc
while read -r module; do
	/bin/busybox insmod "/modules/$module"
done </modules/order
for word in $(/bin/busybox cat /proc/cmdline); do
	case $word in
	init=*) init=${{word#*=}} ;;
	ferrule_host=*) places="$places ${{word#*=}}" ;;
	esac
done
/bin/busybox mount -t 9p -o ro,{ROOT_OPTIONS} {ROOT_TAG} /newroot
if [ -n "$places" ]; then
	/bin/busybox mount -t 9p -o ro,{ROOT_OPTIONS} {HOST_TAG} /newroot{HOST}
fi
for place in $places; do
	/bin/busybox mount -o bind "/newroot{HOST}$place" "/newroot$place"
done
/bin/busybox umount /proc
exec /bin/busybox switch_root /newroot "$init" "$@"
"""


def cpio(files: dict[str, tuple[int, bytes]]) -> bytes:
    """An archive as the kernel unpacks it (newc): mode and contents by name."""
    archive = b""
    for inode, (name, (mode, data)) in enumerate([*files.items(), ("TRAILER!!!", (0, b""))], 1):
        encoded = name.encode() + b"\0"
        fields = [inode, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(encoded), 0]
        archive += b"070701" + b"".join(b"%08X" % field for field in fields) + encoded
        archive += b"\0" * (-len(archive) % 4) + data
        archive += b"\0" * (-len(archive) % 4)
    return archive


def root_by_modules(modules: pathlib.Path, busybox: pathlib.Path) -> bytes:
    """For a kernel whose modules are there, those that this needs not compressed."""
    base, release = modules.parents[2], modules.name
    command = ["modprobe", "-C", "/var/empty", "-d", str(base), "-S", release, "--show-depends"]
    order = []
    for name in ROOT_MODULES:
        # What is built in, or not there, is no file.
        output = subprocess.run(
            [*command, name],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            check=False,
        ).stdout
        files = [line.split()[1] for line in output.splitlines() if line.startswith("insmod ")]
        order += [pathlib.Path(file) for file in files if pathlib.Path(file) not in order]
    return cpio(
        {
            **{name: (FOLDER, b"") for name in ("bin", "dev", "modules", "newroot", "proc")},
            "bin/busybox": (PROGRAM, busybox.read_bytes()),
            "init": (PROGRAM, INIT.encode()),
            "modules/order": (PROGRAM, "".join(f"{file.name}\n" for file in order).encode()),
            **{f"modules/{file.name}": (PROGRAM, file.read_bytes()) for file in order},
        }
    )
