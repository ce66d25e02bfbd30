#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# Ours: a tool of its own
# Runs: vm
# Timeout: 120
#
# The rules of udev in Documentation/production.rst, as they are there.

. "$(dirname "$0")/common.sh"

DOCUMENT=$HERE/../../Documentation/production.rst

udev_set_up() {
	trap udev_tear_down EXIT
	watch_for_hangs
	modprobe null_blk nr_devices=0 && load_module "$MODULE" && writable_etc && start_udev
}

udev_tear_down() {
	remove_module "$MODULE"
	remove_module null_blk
	watch_for_hangs_ends
	stop_udev
	host_etc
}

# rule FILE: what the document has for it, in one line.
rule() {
	awk -v file="/etc/udev/rules.d/$1" '
		index($0, file) { found = 1 }
		found && /^    / { sub(/^ +/, ""); text = text separator $0; separator = " " }
		text && /^$/ { print text; exit }' "$DOCUMENT"
}

# has_limits NAME LIMITS: its table does.
has_limits() {
	dmsetup table "$1" 2>/dev/null | grep -q " $2\( \|$\)"
}

a_disk_has_its_limits_when_it_appears() {
	local serial host file=91-qos-disk.rules
	make_scsi_disk && udevadm settle || return
	serial=$(udevadm info --query=property --property=ID_SERIAL --value "/dev/$SCSI_DISK")
	check "the disk has a serial number" [ -n "$serial" ] || return
	host=$(basename "$(readlink -f "/sys/block/$SCSI_DISK/device/../..")")
	echo 1 >"/sys/block/$SCSI_DISK/device/delete"
	rule "$file" | sed "s/\.\.\./$serial/" >"/etc/udev/rules.d/$file"
	at_exit "rm /etc/udev/rules.d/$file"
	check "the document has a rule" grep -q "$serial.*dmsetup create" "/etc/udev/rules.d/$file"
	udevadm control --reload
	# It goes and comes: another host's would have another number.
	at_exit "remove_device db"
	echo "- - -" >"/sys/class/scsi_host/$host/scan"
	check "there is a device over it" wait_for 30 has_limits db "qos [0-9:]* 0 2 iops 900"
	check "udev has made its node" wait_for 30 test -b /dev/mapper/db
	check "it can be read" \
		dd if=/dev/mapper/db of=/dev/null bs=4k count=1 iflag=direct status=none
}

limits_are_set_that_are_not_in_the_table() {
	local file=90-qos.rules table
	make_disk disk memory_backed=1 || return
	rule "$file" >"/etc/udev/rules.d/$file"
	at_exit "rm /etc/udev/rules.d/$file"
	check "the document has a rule" grep -q "dmsetup message" "/etc/udev/rules.d/$file"
	udevadm control --reload
	mkdir -p /etc/dm-qos && echo "iops 300 write_iops 100" >/etc/dm-qos/db
	table="0 $(sectors disk) qos /dev/disk 0"
	dmsetup create db --table "$table" || return
	at_exit "remove_device db"
	check "before create returns" has_limits db "iops 300 write_iops 100"
	echo "iops 400" >/etc/dm-qos/db
	udevadm trigger --action=change /dev/mapper/db
	check "again, when udev is told to" wait_for 30 has_limits db "iops 400 write_iops 100"
	dmsetup suspend db && dmsetup load db --table "$table" && dmsetup resume db
	check "with the next table" has_limits db "iops 400"
	check "from which all others come" eval '! has_limits db ".*write_iops 100"'
	dmsetup create other --table "$table" || return
	at_exit "remove_device other"
	check "not those of another device" eval '! has_limits other ".*iops.*"'
}

udev_set_up || exit
run_cases \
	a_disk_has_its_limits_when_it_appears \
	limits_are_set_that_are_not_in_the_table
