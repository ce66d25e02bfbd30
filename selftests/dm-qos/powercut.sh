#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# Runs: vm
# Timeout: 300
#
# Flushes and FUA arrive, and in their place: dm-log-writes below qos keeps what is sure to be on
# the disk when, so that the power can be cut at any time.

. "$(dirname "$0")/common.sh"

SECTORS=98304

# make_disks: d, and e for the log.
make_disks() {
	make_disk d memory_backed=1 cache_size=1 fua=1 discard=1 size=$((SECTORS / 2048))
	make_disk e memory_backed=1
}

# make_log: what goes to the device log, which is the disk d, is kept on the disk e.
make_log() {
	modprobe dm-log-writes || return
	at_exit "remove_module dm-log-writes"
	dmsetup create log --table "0 $SECTORS log-writes /dev/d /dev/e"
	at_exit "remove_device log"
}

log_writes() {
	python3 "$HERE/logwrites.py" "$@"
}

# between FROM TO: entries between two marks.
between() {
	log_writes list /dev/e | sed -n "/^mark $1\$/,/^mark $2\$/{/^mark/!p}"
}

flush_and_fua_arrive_as_through_dm_linear() {
	local name operations
	operations=(write:0:4K*4 flush write-through:64K:4K*4 discard:1M:64K write:128K:64K
		write-through:256K:64K flush flush write:8K:4K flush)
	make_disks && make_log
	make_linear l mapper/log && make_qos q mapper/log write_iops 20 burst_ms 0
	for name in l q; do
		dmsetup message log 0 mark "$name-begins"
		check "$name" io_is_well "$name" "${operations[@]}"
		dmsetup message log 0 mark "$name-ends"
	done
	check "some waited" field_is q write_held_total -gt 4
	remove_device l && remove_qos q && remove_device log
	between q-begins q-ends >/tmp/entries
	diag "$(cat /tmp/entries)"
	check "the same arrived" diff <(between l-begins l-ends) /tmp/entries
	check "FUA" [ "$(grep -c fua /tmp/entries)" = 5 ]
	check "flushes" [ "$(grep -c flush /tmp/entries)" -ge 4 ]
	check "what comes before the first" [ "$(sed '/flush/q' /tmp/entries | wc -l)" = 5 ]
}

# make_file_system TYPE DEVICE
make_file_system() {
	case $1 in
	ext4) mke2fs -q -t ext4 "$2" ;;
	xfs) mkfs.xfs -q --unsupported "$2" >/dev/null 2>&1 ;;
	btrfs) mkfs.btrfs -q --mixed "$2" ;;
	esac
}

# record TYPE CACHE: a file system on qos gets loaded, with all that arrives below kept on the disk
# e. Marks in it say what should be sure by then. CACHE is what qos says of the disk's. ENTRIES
# becomes how many the log has.
record() {
	make_disks && make_file_system "$1" /dev/d || return
	at_exit "rm -f /tmp/image /tmp/image.copy"
	dd if=/dev/d of=/tmp/image bs=1M conv=sparse status=none
	make_log && make_qos q mapper/log || return
	echo "$2" >"/sys/block/$(node q)/queue/write_cache"
	mkdir -p /tmp/cut
	mount /dev/mapper/q /tmp/cut || return
	at_exit "! mountpoint -q /tmp/cut || umount /tmp/cut"
	limit q write_iops 20 burst_ms 1
	python3 -I "$HERE/files.py" rounds /tmp/cut/files 7 2 25 /tmp/model \
		dmsetup message log 0 mark || return
	check "some waited" have_waited q write 10
	no_limits q
	umount /tmp/cut && read -r _ _ _ ENTRIES _ < <(dmsetup status log)
	remove_qos q && remove_device log
}

# cut_power TYPE POINT...: the power is cut at marks or after so many entries. What is wrong after
# each.
cut_power() {
	local fsck disk
	case $1 in
	ext4) fsck="e2fsck -fn" ;;
	xfs) fsck="xfs_repair -n -f" ;;
	btrfs) fsck="btrfs check --readonly" ;;
	esac
	cp --sparse=always /tmp/image /tmp/image.copy
	disk=$(losetup --find --show /tmp/image.copy) || return
	log_writes cut /dev/e /tmp/image /tmp/image.copy "$disk" "$1" /tmp/cut files /tmp/model \
		"$fsck" "${@:2}"
	losetup --detach "$disk"
}

MARKS=({fsync,all}-{0,1})

# power_cuts TYPE
power_cuts() {
	local results
	record "$1" "write back" || return
	diag "$ENTRIES entries in the log"
	results=$(cut_power "$1" "${MARKS[@]}" $((ENTRIES / 3)) $((ENTRIES * 2 / 3)))
	diag "$results"
	check "all are well" [ "$(grep -c ': ok$' <<<"$results")" = 6 ]
}

# The same with a device that keeps flush and FUA from the disk: had qos lost some, this is how it
# would be seen.
power_cuts_without_flushes() {
	local results
	record "$1" "write through" || return
	results=$(cut_power "$1" "${MARKS[@]}")
	diag "$results"
	check_within "cuts at which something was missing" "$(grep -vc ': ok$' <<<"$results")" 3 4
}

ext4_survives_power_cuts() {
	power_cuts ext4
}

xfs_survives_power_cuts() {
	power_cuts xfs
}

btrfs_survives_power_cuts() {
	power_cuts btrfs
}

lost_flushes_are_noticed() {
	power_cuts_without_flushes ext4
}

ours_only "has dm-linear beside it already" flush_and_fua_arrive_as_through_dm_linear
set_up && io_serves || exit
run_cases flush_and_fua_arrive_as_through_dm_linear ext4_survives_power_cuts \
	xfs_survives_power_cuts btrfs_survives_power_cuts lost_flushes_are_noticed
