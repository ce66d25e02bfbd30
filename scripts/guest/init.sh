#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# Process 1 of a guest that does without virtme-ng's, as most tests do, over the host's root file
# system, which it must not change.

export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root TERM=dumb

mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev 2>/dev/null
mkdir -p /dev/pts /dev/shm
[ -e /dev/fd ] || ln -s /proc/self/fd /dev/fd
mount -t devpts devpts /dev/pts
for dir in /dev/shm /run /var/tmp /mnt; do
	mount -t tmpfs tmpfs "$dir"
done
mkdir -p /run/lock /run/lvm /run/tmp/upper /run/tmp/work

for word in $(</proc/cmdline); do
	case $word in
	ferrule_scripts=*) scripts=${word#*=} ;;
	ferrule_modules=*)
		mount -t tmpfs tmpfs /lib/modules
		ln -s "${word#*=}" "/lib/modules/$(uname -r)"
		;;
	esac
done

# Kernels of distributions have as modules what the custom one has built in, and udev, which would
# load drivers for what is there, does not run.
[ -e /sys/bus/scsi/drivers/sd ] ||
	modprobe -a -q configfs loop sd_mod sg virtio_blk virtio_net virtio_scsi

# The checkout may be there.
mount -t overlay -o lowerdir=/tmp,upperdir=/run/tmp/upper,workdir=/run/tmp/work tmp /tmp
mount -t configfs configfs /sys/kernel/config
mount -t debugfs debugfs /sys/kernel/debug
mount -t cgroup2 cgroup2 /sys/fs/cgroup

ip link set lo up
# Under QEMU the session finds its ports.
if [ ! -e /sys/class/virtio-ports ]; then
	exec </dev/tty0 >/dev/tty0 2>&1
	stty raw -echo
fi
setsid bash "$scripts/session.sh"
sync
# Drivers take their time. The end of this process would be a panic, and it can start no other when
# the root file system's driver is gone.
exec {never}<> <(:)
echo o >/proc/sysrq-trigger
read -r -t 120 -u "$never"
