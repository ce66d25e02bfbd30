#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# Ours: has dm-linear beside it already
# Runs: vm uml
# Timeout: 240
#
# Whatever dm-linear passes on to the disk below, qos does, and with the same result: l and q are
# such devices over one disk. Flush and FUA are in powercut.sh.

. "$(dirname "$0")/common.sh"

# make_both DISK [KEY VALUE...]
make_both() {
	make_linear l "$1" && make_qos q "$@"
}

# remove_both: before the case is over.
remove_both() {
	remove_device l && remove_qos q
}

# attributes NAME: all that sysfs says of the queue, its limits and the alignment.
attributes() {
	cd "/sys/block/$(node "$1")" || return
	grep -rs . queue integrity alignment_offset discard_alignment
}

# attribute NAME FILE
attribute() {
	cat "/sys/block/$(node "$1")/$2"
}

# same_attributes WHAT
same_attributes() {
	local linear qos
	linear=$(attributes l)
	qos=$(attributes q)
	check_within "$1: attributes" "$(wc -l <<<"$qos")" 40 100
	[ "$linear" = "$qos" ] || fail "$1: $(diff <(echo "$linear") <(echo "$qos"))"
}

limits_of_the_queue_are_those_of_dm_linear() {
	local disk size
	make_disk plain
	make_disk odd blocksize=4096 max_sectors=64 cache_size=1 rotational=1 virt_boundary=1 \
		memory_backed=1 discard=1
	make_disk zoned zoned=1 zone_size=4 zone_nr_conv=2 zone_max_open=4 zone_max_active=6 \
		memory_backed=1
	make_scsi_disk physblk_exp=3 lowest_aligned=1 lbpu=1 lbpws=1 unmap_granularity=16 \
		unmap_alignment=8 atomic_wr=1 dif=1 dix=1
	for disk in plain odd zoned "$SCSI_DISK"; do
		make_both "$disk" iops 100
		same_attributes "$disk"
		case $disk in
		odd) check "small I/Os" [ "$(attribute q queue/max_hw_sectors_kb)" = 32 ] ;;
		zoned)
			check "zones" [ "$(attribute q queue/zoned)" = host-managed ]
			check "zone append" [ "$(attribute q queue/zone_append_max_bytes)" -gt 0 ]
			;;
		sd*)
			check "discard" [ "$(attribute q queue/discard_max_bytes)" -gt 0 ]
			check "zeroes" [ "$(attribute q queue/write_zeroes_max_bytes)" -gt 0 ]
			check "atomic" [ "$(attribute q queue/atomic_write_unit_max_bytes)" -gt 0 ]
			check "integrity" [ "$(attribute q integrity/format)" = T10-DIF-TYPE1-CRC ]
			;;
		esac
		remove_both
	done
	# Part of a disk, which is not aligned to what is below.
	size=$(($(sectors "$SCSI_DISK") - 5))
	dmsetup create l --table "0 $size linear /dev/$SCSI_DISK 5"
	dmsetup create q --table "0 $size qos /dev/$SCSI_DISK 5"
	same_attributes "part of $SCSI_DISK"
	check "its alignment" [ "$(attribute q alignment_offset)" != 0 ]
	remove_both
}

# counters: what the disk had, but for times: I/Os and sectors, discards and flushes.
counters() {
	local stat
	read -ra stat <"/sys/block/$SCSI_DISK/stat"
	echo "${stat[*]:4:1} ${stat[*]:6:1} ${stat[*]:11:1} ${stat[*]:13:1} ${stat[*]:15:1}"
}

# difference "NUMBER..." "NUMBER...": of each.
difference() {
	local old new i
	read -ra old <<<"$1"
	read -ra new <<<"$2"
	for i in "${!new[@]}"; do
		echo -n "$((new[i] - old[i])) "
	done
}

discards_and_zeroes_arrive() {
	local operations linear qos before name
	operations=(write:0:64K*16 discard:0:512K punch-hole:512K:256K zeroout:768K:128K flush
		verify:896K:64K*2 verify-zero:0:64K*14)
	make_scsi_disk lbpu=1 lbpws=1 lbprz=1
	make_both "$SCSI_DISK" write_iops 50 burst_ms 0
	# Buffered writes would be merged or not, as it happens.
	same_io "all" ok "${operations[@]}"
	check "each is one I/O" [ "$(fields q write_ios write_bytes | xargs)" = "20 1048576" ]
	check "some waited" field_is q write_held_total -gt 0
	for name in l q; do
		before=$(counters)
		io "$name" "${operations[@]}" >/dev/null
		[ "$name" = l ] && linear=$(difference "$before" "$(counters)")
		[ "$name" = q ] && qos=$(difference "$before" "$(counters)")
	done
	diag "the disk had: $qos"
	check "the disk had the same" [ "$linear" = "$qos" ]
	same_io "waiting together" ok at-once discard:0:64K*4 zeroout:256K:64K*4 \
		write:512K:64K*4 flush flush
	check "and all arrived" io_is_well q verify-zero:0:64K*8 verify:512K:64K*4
}

what_the_disk_cannot_do_fails_as_through_dm_linear() {
	make_disk d
	make_both d write_iops 100
	same_io "discard" ENOTSUP discard:0:64K
	same_io "secure erase" ENOTSUP secure-erase:0:64K
	same_io "zeroes without writing them" ENOTSUP punch-hole:0:64K
	same_io "atomic writes" ENOTSUP write-atomic:0:4K
	same_io "zones" ENOTTY zone-reset:0:4M
	same_io "reservations" ENOTSUP pr-register:0:1
	same_io "beyond the end" ENOSPC write:64M:4K
	same_io "not a sector" EINVAL read:0:100
}

what_must_not_wait_passes() {
	make_disk d
	make_both d iops 1000000
	same_io "nothing is in its way" ok read-nowait:0:4K*8
}

zones_are_those_of_the_disk() {
	local operations
	# Zones of 4 MiB, from 8 MiB on to be written in order.
	operations=(zone-reset:8M:56M write:0:4K write:8M:64K*4 verify:8M:64K*4
		write:12292K:4K write:12M:64K zone-finish:12M:4M write:12352K:4K
		zone-open:16M:4M write:16M:4K zone-close:16M:4M zone-open:20M:4M
		zone-reset:8M:4M write:8M:4K zone-reset:1M:4M zone-finish:0:4M verify:8M:4K)
	make_disk z zoned=1 zone_size=4 zone_nr_conv=2 memory_backed=1
	make_both z write_iops 50 burst_ms 0
	check "zones" [ "$(blkzone report /dev/mapper/q | wc -l)" = 16 ]
	same_io "zones" ok "${operations[@]}"
	check "not in order fails" [ "$(io q write:12292K:4K)" = "write 12587008 4096: EIO" ]
	check "some waited" field_is q write_held_total -gt 0
	check "zones as they are" diff <(blkzone report /dev/z) <(blkzone report /dev/mapper/q)
	check "or through dm-linear" diff <(blkzone report /dev/mapper/l) \
		<(blkzone report /dev/mapper/q)
	remove_both
	dmsetup create l --table "0 24576 linear /dev/z 8192"
	dmsetup create q --table "0 24576 qos /dev/z 8192"
	check "some of the zones" diff <(blkzone report /dev/mapper/l) \
		<(blkzone report /dev/mapper/q)
	check "there are 3" [ "$(blkzone report /dev/mapper/q | wc -l)" = 3 ]
	remove_both
	check "not from within a zone" fails dmsetup create l --table "0 8192 linear /dev/z 4"
	check "nor by qos" fails dmsetup create q --table "0 8192 qos /dev/z 4"
}

# The disk checks what the block layer adds to each sector, and the block layer what the disk adds.
protection_information_passes() {
	local integrity
	make_scsi_disk dif=1 dix=1
	integrity=/sys/block/$SCSI_DISK/integrity
	make_both "$SCSI_DISK" iops 50 burst_ms 0
	same_io "good" ok write:0:32K*8 verify:0:32K*8
	same_io "waiting together" ok at-once write:1M:8K*8 read:0:8K*8
	check "some waited" field_is q write_held_total -gt 0
	# Data without any: now there is the old one, which is wrong.
	echo 0 >"$integrity/write_generate"
	dd if=/dev/zero of="/dev/$SCSI_DISK" bs=4k count=1 oflag=direct status=none
	echo 1 >"$integrity/write_generate"
	same_io "bad" EILSEQ read:4K:4K read:0:4K
	check "only the one" [ "$(io q read:4K:4K)" = "read 4096 4096: ok" ]
	same_io "mended" ok write:0:4K verify:0:32K*8
}

atomic_writes_stay_whole() {
	local max
	make_scsi_disk atomic_wr=1
	make_both "$SCSI_DISK" write_iops 50 burst_ms 0
	max=$(attribute q queue/atomic_write_unit_max_bytes)
	check_within "largest" "$max" 4096 1048576
	same_io "atomic" ok write-atomic:0:4K*4 write-atomic:1M:"$max" verify:0:4K*4 \
		verify:1M:"$max"
	check "one I/O each" field_is q write_ios -eq 5
	same_io "too large" EINVAL write-atomic:0:$((2 * max))
	same_io "not aligned" EINVAL write-atomic:4K:8K
	check "waiting together" \
		io_is_well q at-once write-atomic:2M:"$max"*8
	check "arrived" io_is_well q verify:2M:"$max"*8
	check "some waited" field_is q write_held_total -gt 0
}

# unprivileged COMMAND...: without the right to send a disk whatever one likes.
unprivileged() {
	setpriv --inh-caps=-sys_rawio --bounding-set=-sys_rawio "$@" >/dev/null 2>&1
}

# scsi_ioctls NAME: what becomes of them.
scsi_ioctls() {
	sg_inq "/dev/mapper/$1" 2>&1
	sg_readcap "/dev/mapper/$1" 2>&1
	unprivileged sg_inq "/dev/mapper/$1"
	echo "unprivileged: $?"
}

# same_scsi_ioctls WHAT UNPRIVILEGED: with the status of an unprivileged one.
same_scsi_ioctls() {
	local linear qos
	linear=$(scsi_ioctls l)
	qos=$(scsi_ioctls q)
	[ "${linear//mapper\/l/mapper/q}" = "$qos" ] ||
		fail "$1: $(diff <(echo "$linear") <(echo "$qos"))"
	check "$1: a disk answers" grep -q scsi_debug <<<"$qos"
	[ "$([[ $qos == *"unprivileged: 0" ]] && echo yes || echo no)" = "$2" ] ||
		fail "$1: not $2: $qos"
}

scsi_commands_reach_the_disk() {
	make_scsi_disk
	make_both "$SCSI_DISK" iops 1
	same_scsi_ioctls "whole" yes
	remove_both
	# Who may use part of a disk may not send commands to all of it.
	dmsetup create l --table "0 8192 linear /dev/$SCSI_DISK 0"
	dmsetup create q --table "0 8192 qos /dev/$SCSI_DISK 0"
	same_scsi_ioctls "part" no
	remove_both
}

errors_are_those_of_dm_linear() {
	local name
	make_disk d memory_backed=1
	modprobe -a dm-dust dm-flakey || return
	at_exit "remove_module dm-dust; remove_module dm-flakey"
	dmsetup create dust --table "0 131072 dust /dev/d 0 4096"
	at_exit "remove_device dust"
	dmsetup message dust 0 enable
	make_both mapper/dust iops 50 burst_ms 0
	for name in l q; do
		dmsetup message dust 0 addbadblock 3
		io "$name" at-once read:0:4K*8 >"/tmp/$name.results"
		# Writing mends it.
		io "$name" write:12K:4K verify:12K:4K >>"/tmp/$name.results"
	done
	check "bad block" diff /tmp/l.results /tmp/q.results
	check "one and only one of those that waited" [ "$(grep -c EIO /tmp/q.results)" = 1 ]
	remove_both
	remove_device dust
	dmsetup create dust --table "0 131072 flakey /dev/d 0 0 60 1 error_writes"
	# Slow enough that one waits for the other on a slow machine, too.
	make_both mapper/dust iops 10 burst_ms 0
	same_io "writes fail, reads do not" EIO at-once read:0:4K*8 write:0:4K*8
	check "some waited" field_is q write_held_total -gt 0
	remove_both
	remove_device dust
	make_scsi_disk opts=2 medium_error_start=64 medium_error_count=8
	# What is merged with what cannot be read may fail with it.
	echo 2 >"/sys/block/$SCSI_DISK/queue/nomerges"
	make_both "$SCSI_DISK" iops 50 burst_ms 0
	same_io "medium error" ENODATA at-once read:0:4K*8 read:32K:4K
	remove_both
}

set_up && io_serves || exit
run_cases limits_of_the_queue_are_those_of_dm_linear discards_and_zeroes_arrive \
	what_the_disk_cannot_do_fails_as_through_dm_linear what_must_not_wait_passes \
	zones_are_those_of_the_disk protection_information_passes atomic_writes_stay_whole \
	scsi_commands_reach_the_disk errors_are_those_of_dm_linear
