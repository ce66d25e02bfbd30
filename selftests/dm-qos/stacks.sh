#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# Runs: vm
# Timeout: 300
#
# Above and below other targets, and under file systems: data are what was written, also when much
# of it waits, in both places, and when the device below is suspended or goes meanwhile.

. "$(dirname "$0")/common.sh"

# make_below NAME [ATTRIBUTE=VALUE...]: a disk and a qos device over it, under something else.
make_below() {
	make_disk "disk-$1" memory_backed=1 size=16 "${@:2}" && make_qos "$1" "disk-$1"
}

# make_device NAME TABLE
make_device() {
	dmsetup create "$1" --table "$2" || return
	at_exit "remove_device $1"
}

# waits_below NUMBER NAME...: so many writes, on all of them together.
waits_below() {
	local least=$1 name sum=0
	shift
	for name in "$@"; do
		sum=$((sum + $(field "$name" write_held)))
	done
	[ "$sum" -ge "$least" ]
}

# works BELOW...: the device middle, with qos above as top, over the devices BELOW, which together
# are slower.
works() {
	local name
	make_qos top mapper/middle
	for name in "$@"; do
		dmsetup message "$name" 0 set iops $((60 / $#)) burst_ms 1
	done
	dmsetup message top 0 set iops 100 burst_ms 1
	check "write" io_is_well top at-once write:0:16K*48 flush
	check "read" io_is_well top at-once verify:0:16K*48
	check "it waited above" field_is top write_held_total -gt 0
	check "and below" field_is "$1" write_held_total -gt 0
	no_limits top
	# What waits below is let go by a suspension there.
	for name in "$@"; do
		dmsetup message "$name" 0 set iops 1 burst_ms 0
		at_exit "no_limits $name"
	done
	io_in_background /tmp/results top at-once write:1M:8K*48
	check "it waits below" wait_for 20 waits_below 4 "$@"
	for name in "$@"; do
		check "suspend $name" takes_at_most "$PROMPT" dmsetup suspend --nolockfs "$name"
		no_limits "$name"
		check "resume $name" dmsetup resume "$name"
	done
	check "it is over" wait_for "$PROMPT" test -e /tmp/results
	check "and well" fails grep -v ": ok" /tmp/results
	check "suspend above" takes_at_most "$PROMPT" dmsetup suspend top
	check "resume" dmsetup resume top
	check "all that was written" io_is_well top verify:0:16K*48 verify:1M:8K*48
	remove_qos top
}

above_and_below_crypt() {
	need_module dm-crypt
	make_below data
	make_device middle \
		"0 32768 crypt aes-xts-plain64 $(printf '%064d' 7) 0 /dev/mapper/data 0"
	works data
	make_linear raw mapper/data
	check "it is another thing on the disk" fails io_is_well raw verify:0:16K
	remove_device raw
}

above_and_below_thin() {
	need_module dm-thin-pool
	make_below data discard=1
	make_below metadata
	make_device pool "0 32768 thin-pool /dev/mapper/metadata /dev/mapper/data 128 0"
	dmsetup message pool 0 create_thin 0
	make_device middle "0 32768 thin /dev/mapper/pool 0"
	works data metadata
	make_qos top mapper/middle write_iops 50 burst_ms 0
	check "discard" io_is_well top at-once discard:0:256K*3
	check "is gone" io_is_well top verify-zero:0:16K*48 verify:1M:8K*48
	check "given back" [ "$(dmsetup status pool | awk '{ print $6 }')" = 6/256 ]
}

above_and_below_cache() {
	need_module dm-cache
	need_module dm-cache-smq
	make_below origin
	make_below fast
	make_below metadata
	make_device middle "0 32768 cache /dev/mapper/metadata /dev/mapper/fast \
/dev/mapper/origin 128 1 writeback smq 0"
	works origin fast metadata
}

above_and_below_multipath() {
	need_module dm-round-robin
	make_disk shared memory_backed=1 size=16
	make_qos a shared && make_qos b shared
	make_device middle "0 32768 multipath 2 queue_mode bio 0 1 1 \
round-robin 0 2 0 /dev/mapper/a /dev/mapper/b"
	works a b
	make_qos top mapper/middle
	dmsetup message a 0 set iops 1 burst_ms 0
	io_in_background /tmp/results top at-once write:2M:4K*64
	check "some wait on a path" held a write 4
	# It turns into an error: what comes after that has to take the other.
	check "the path fails" takes_at_most "$PROMPT" dmsetup wipe_table a
	check "more" io_is_well top at-once write:3M:4K*8
	check "it is over" wait_for "$PROMPT" test -e /tmp/results
	check "nothing failed" fails grep -v ": ok" /tmp/results
	check "but the path" grep -q " F " <(dmsetup status middle)
	check "data" io_is_well top verify:2M:4K*64 verify:3M:4K*8
}

# loaded_file_system MKFS... : random changes of files, twice at one time, while limits change and
# the device is suspended.
loaded_file_system() {
	local round pids=()
	make_disk d memory_backed=1 size=320 discard=1
	"$@" /dev/d && make_qos q d write_iops 1000 write_bps 8M || return
	mkdir -p /tmp/files
	mount /dev/mapper/q /tmp/files || return
	at_exit "no_limits q; wait; ! mountpoint -q /tmp/files || umount /tmp/files"
	for round in 1 2; do
		python3 -I "$HERE/files.py" load "/tmp/files/$round" "$round" 250 \
			"/tmp/model-$round" &
		pids+=($!)
	done
	for ((round = 1; round <= 6; round++)); do
		sleep 0.5
		check "set" limit q write_iops $((round * 50)) write_bps "${round}M"
		check "suspend" takes_at_most "$PROMPT" dmsetup suspend q
		check "resume" dmsetup resume q
	done
	check "some waited" have_waited q write 0
	limit q write_iops 1000 write_bps 0
	check "files 1" wait "${pids[0]}"
	check "files 2" wait "${pids[1]}"
	check "trim" fstrim /tmp/files
	check "unmount" takes_at_most 30 umount /tmp/files
}

# has_files: they are what they should be, when read from the disk.
has_files() {
	local round
	mount /dev/mapper/q /tmp/files || return
	for round in 1 2; do
		check "files $round" python3 -I "$HERE/files.py" check \
			"/tmp/files/$round" "/tmp/model-$round"
	done
	umount /tmp/files
}

ext4_keeps_its_files_under_load() {
	loaded_file_system mke2fs -q -t ext4
	check "consistent" e2fsck -fn /dev/mapper/q >/tmp/fsck 2>&1 || diag "$(cat /tmp/fsck)"
	has_files
}

xfs_keeps_its_files_under_load() {
	loaded_file_system mkfs.xfs -q
	check "consistent" xfs_repair -n /dev/mapper/q >/tmp/fsck 2>&1 || diag "$(cat /tmp/fsck)"
	has_files
}

# make_target: a disk that knows persistent reservations. SCSI_DISK becomes its name.
make_target() {
	local target=/sys/kernel/config/target
	local block="/sys/devices/tcm_loop_0/tcm_loop_adapter_0/host*/target*/*/block/*"
	# With the back ends that it loads.
	at_exit "for module in target_core_{file,iblock,pscsi,user,mod}; do
			remove_module \$module
		done"
	modprobe target_core_mod || return
	# Where it keeps who has registered.
	mkdir -p /tmp/target/pr && echo /tmp/target >"$target/dbroot" || return
	need_module tcm_loop
	mkdir -p "$target/core/rd_mcp_0/disk"
	at_exit "rmdir $target/core/rd_mcp_0/disk $target/core/rd_mcp_0"
	echo rd_pages=2048 >"$target/core/rd_mcp_0/disk/control" &&
		echo 1 >"$target/core/rd_mcp_0/disk/enable" || return
	at_exit "rmdir $target/loopback"
	at_exit "rmdir $target/loopback/naa.6001405000000001"
	mkdir -p "$target/loopback/naa.6001405000000001/tpgt_1/lun/lun_0"
	at_exit "rmdir $target/loopback/naa.6001405000000001/tpgt_1"
	cd "$target/loopback/naa.6001405000000001/tpgt_1" || return
	at_exit "rmdir $PWD/lun/lun_0"
	echo naa.6001405000000002 >nexus &&
		ln -s "$target/core/rd_mcp_0/disk" lun/lun_0/disk || return
	at_exit "rm $PWD/lun/lun_0/disk"
	cd /
	wait_for 10 compgen -G "$block" >/dev/null || return
	SCSI_DISK=$(basename "$(compgen -G "$block")")
}

btrfs_keeps_its_files_under_load() {
	loaded_file_system mkfs.btrfs -q
	check "consistent" btrfs check --readonly /dev/mapper/q >/tmp/fsck 2>&1 ||
		diag "$(cat /tmp/fsck)"
	has_files
}

reservations_are_those_of_the_disk() {
	local name
	make_target || return
	make_linear l "$SCSI_DISK" && make_qos q "$SCSI_DISK" iops 1 burst_ms 0
	for name in l q; do
		check "register" io_is_well "$name" pr-register:0:7
		sg_persist --in --read-keys "/dev/$SCSI_DISK" >"/tmp/keys.$name"
		check "reserve" io_is_well "$name" pr-reserve:7
		sg_persist --in --read-reservation "/dev/mapper/$name" >"/tmp/reservation.$name"
		check "release" io_is_well "$name" pr-release:7
		check "forget" io_is_well "$name" pr-clear:7
	done
	check "the disk has the key" grep -q 0x7 /tmp/keys.q
	check "and has it reserved" grep -q "Exclusive" /tmp/reservation.q
	sed -i 's/generation=[^,]*//' /tmp/keys.?
	check "as through dm-linear" diff /tmp/keys.l /tmp/keys.q
	# An I/O error, and a reservation conflict.
	same_io "not registered" "status 2" pr-reserve:7
	check "register" io_is_well q pr-register:0:7
	same_io "another key" "status 24" pr-reserve:8
	remove_device l && remove_qos q
}

ours_only "counts of its own" above_and_below_crypt above_and_below_thin above_and_below_cache \
	above_and_below_multipath
ours_only "has dm-linear beside it already" reservations_are_those_of_the_disk
set_up && io_serves || exit
run_cases above_and_below_crypt above_and_below_thin above_and_below_cache \
	above_and_below_multipath ext4_keeps_its_files_under_load xfs_keeps_its_files_under_load \
	btrfs_keeps_its_files_under_load reservations_are_those_of_the_disk
