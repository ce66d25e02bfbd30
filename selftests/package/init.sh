#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# Init of a Debian that has ferrule-dkms (selftests/host/test_package.py): checks, and turns the
# machine off.

# shellcheck source=selftests/package/checks.sh
. /ferrule-checks
table="0 8192"

loaded() {
	grep -q "^$1 " /proc/modules
}

# driver_of DRIVER: whether it has the balloon.
driver_of() {
	[ -n "$(find "/sys/bus/virtio/drivers/$1/" -name 'virtio[0-9]*' 2>/dev/null)" ]
}

# As udev does it.
modprobe_devices() {
	cat /sys/bus/virtio/devices/*/modalias | xargs modprobe -a
}

by_modprobe() {
	modprobe dm-qos && loaded dm_qos && modprobe -r dm-qos && ! loaded dm_qos
}

by_its_table() {
	dmsetup create slow --table "$table qos /dev/ram0 0 2 iops 500" && loaded dm_qos &&
		dd if=/dev/mapper/slow of=/dev/null bs=4k count=50 iflag=direct &&
		dmsetup status slow && [[ $(dmsetup status slow) == *read_ios=* ]]
}

selector_by_its_table() {
	local paths="/dev/ram0 1 /dev/ram1 3"
	dmsetup create paths --table \
		"$table multipath 2 queue_mode bio 0 1 1 round-robin-rs 0 2 1 $paths" &&
		loaded dm_round_robin_rs &&
		dd if=/dev/mapper/paths of=/dev/null bs=4k count=50 iflag=direct
}

kernels_own_has_the_balloon() {
	modprobe_devices
	driver_of virtio_balloon && ! loaded virtio_balloon_rs
}

ours_has_it_by_the_example() {
	cp /usr/share/doc/ferrule-dkms/examples/modprobe.d/ferrule-dkms.conf /etc/modprobe.d &&
		modprobe -r virtio_balloon || return
	modprobe_devices
	driver_of virtio_balloon_rs && ! loaded virtio_balloon
}

mountpoint -q /proc || mount -t proc proc /proc
mountpoint -q /sys || mount -t sysfs sysfs /sys
mountpoint -q /run || mount -t tmpfs tmpfs /run
mountpoint -q /tmp || mount -t tmpfs tmpfs /tmp
/usr/lib/systemd/systemd-udevd --daemon
udevadm settle
modprobe brd rd_nr=2 rd_size=4096
udevadm settle
check 'modprobe loads dm-qos' by_modprobe
check 'a table loads dm-qos' by_its_table
check 'a table loads the path selector' selector_by_its_table
check 'the balloon is for the driver of the kernel' kernels_own_has_the_balloon
check 'the balloon is for ours by the example' ours_has_it_by_the_example
dmsetup remove_all
echo "signed: $(modinfo -F signer dm-qos)"
all_checked
sync
echo o >/proc/sysrq-trigger
sleep 60
