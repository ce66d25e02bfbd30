#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# Runs twice in a Debian with systemd that has ferrule-tools and ferrule-dkms
# (selftests/host/test_package.py): attaches and saves limits, and boots again; looks whether they
# are back, and asks whoever reads this to take a disk away and to bring it back.

# shellcheck source=selftests/package/checks.sh
. /ferrule-checks
DISK=/dev/disk/by-id/scsi-0QEMU_QEMU_HARDDISK_db
VOLUMES=/dev/disk/by-id/scsi-0QEMU_QEMU_HARDDISK_lv
UNIT=balloonctl-auto.service
SECONDS_FOR_ALL=120

# soon COMMAND...: within a while.
soon() {
	local end=$((SECONDS + SECONDS_FOR_ALL))
	until "$@"; do
		[ "$SECONDS" -lt "$end" ] || return
		sleep 0.5
	done
}

# has_limits NAME LIMITS
has_limits() {
	[[ $(dmsetup table "$1" 2>/dev/null) == *" $2" ]]
}

# is_quiet COMMAND...: it says nothing, and ends well.
is_quiet() {
	local said
	if ! said=$("$@" 2>&1) || [ -n "$said" ]; then
		echo "$said"
		return 1
	fi
}

logged() {
	journalctl -q -o cat -u "$UNIT" | grep -q "$1"
}

make_file_system() {
	vgcreate v "$VOLUMES" && lvcreate -q -l 8 -n a v && mkfs.ext4 -q /dev/v/a &&
		echo "/dev/v/a /srv ext4 defaults 0 2" >>/etc/fstab &&
		systemctl daemon-reload && systemctl start srv.mount && echo kept >/srv/file
}

its_disk_is_said_to_stay() {
	grep "^device /dev/disk/by-id/" /etc/qos.d/db.conf
}

volume_comes_back() {
	systemctl stop srv.mount && vgchange -q -an v && vgchange -q -ay v &&
		soon has_limits v-a "iops 500" && systemctl start srv.mount &&
		[ "$(cat /srv/file)" = kept ]
}

is_gone() {
	[ ! -e "$1" ]
}

# The device over it has lost its disk, and one that comes has another number.
disk_comes_back() {
	soon test -e "$DISK" && soon lies_on_it && has_limits db "iops 300 bps 8388608" &&
		dd if=/dev/mapper/db of=/dev/null bs=4k count=1 iflag=direct
}

lies_on_it() {
	[ -e "/sys/block/$(basename "$(readlink -f "$DISK")")/holders/$(basename \
		"$(readlink -f /dev/mapper/db)")" ]
}

auto_starts() {
	mkdir -p /run/vms
	printf 'budget 1G\nsockets /run/vms\ninterval 1\n' >/etc/balloonctl.conf
	systemctl start "$UNIT" && soon systemctl -q is-active "$UNIT"
}

# auto_is_told CONFIGURATION SAYS: and goes on.
auto_is_told() {
	local before
	before=$(systemctl show -P MainPID "$UNIT")
	echo "$1" >>/etc/balloonctl.conf
	soon took_signals "$before" && systemctl reload "$UNIT" && soon logged "$2" &&
		[ "$(systemctl show -P MainPID "$UNIT")" = "$before" ]
}

# took_signals PID: it has a handler for SIGHUP, the first of all, and would not end by it.
took_signals() {
	[ $((0x$(awk '/^SigCgt:/ { print $2 }' "/proc/$1/status") & 1)) = 1 ]
}

auto_comes_back() {
	sed -i '/^budget none/d' /etc/balloonctl.conf
	local before
	before=$(systemctl show -P MainPID "$UNIT")
	kill -KILL "$before" && soon is_another "$before"
}

is_another() {
	systemctl -q is-active "$UNIT" && [ "$(systemctl show -P MainPID "$UNIT")" != "$1" ]
}

auto_ends() {
	soon took_signals "$(systemctl show -P MainPID "$UNIT")" && systemctl stop "$UNIT" &&
		[ "$(systemctl show -P Result "$UNIT")" = success ]
}

if [ ! -e /var/lib/ferrule-saved ]; then
	cp "/usr/share/doc/ferrule-tools/examples/systemd/$UNIT" /etc/systemd/system
	systemctl daemon-reload
	check 'the unit of limits' is_quiet systemd-analyze verify --man=no \
		qosctl-restore@sda.service
	check 'the unit of auto' is_quiet systemd-analyze verify --man=no "$UNIT"
	check 'rules of udev' udevadm verify /usr/lib/udev/rules.d/{12,91}-ferrule-qos.rules
	check 'a volume' make_file_system
	check 'limits of a volume' qosctl attach v-a --iops 500 --save
	check 'limits of a disk' qosctl attach "$DISK" --iops 300 --bps 8M --name db --save
	check 'its disk is said to stay' its_disk_is_said_to_stay
	touch /var/lib/ferrule-saved
	[ "$failed" = 1 ] || exec systemctl reboot
	all_checked
	exec systemctl poweroff
fi
check 'the volume has limits after a boot' soon has_limits v-a "iops 500"
check 'the disk has limits after a boot' soon has_limits db "iops 300 bps 8388608"
check 'the file system is mounted' grep kept /srv/file
check 'a volume that comes back has limits' volume_comes_back
echo "ready: unplug"
check 'the disk is gone' soon is_gone "$DISK"
echo "ready: plug"
check 'a disk that comes back has limits' disk_comes_back
check 'no unit has failed' is_quiet systemctl --failed --no-legend
check 'auto starts' auto_starts
check 'auto reads its file again' auto_is_told "budget 2G" "was read again"
check 'auto does not take a mistake' auto_is_told "budget none" "is not taken"
check 'auto comes back' auto_comes_back
check 'auto ends' auto_ends
all_checked
systemctl poweroff
