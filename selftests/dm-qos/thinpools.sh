#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# Ours: has dm-linear beside it already
# Runs: vm
# Timeout: 240
#
# What becomes of a thin pool whose metadata or data are on a qos device, when the disk below fails,
# when the pool is full, and of its snapshots: the same as on dm-linear. Each case is run with both,
# and what it prints is compared: results of I/O, the pool's state, and what its metadata say.

. "$(dirname "$0")/common.sh"

# lower NAME TARGET [SECTORS]: the device NAME over NAME-path, which is the disk NAME-disk.
lower() {
	local sectors=${3:-$(sectors "mapper/$1-path")}
	dmsetup create "$1" --table "$(lower_table "$1" "$2" "$sectors")" || return
	at_exit "no_limits $1; remove_device $1"
}

# lower_table NAME TARGET SECTORS
lower_table() {
	local limits="iops 400 burst_ms 1"
	case $2 in
	linear) echo "0 $3 linear /dev/mapper/$1-path 0" ;;
	qos) echo "0 $3 qos /dev/mapper/$1-path 0 4 $limits" ;;
	esac
}

# path NAME linear|WORD...: what NAME-path is: the disk, or one that fails by dm-flakey's WORDs.
path() {
	local name=$1
	shift
	[ "$1" != linear ] || {
		linear_table "$name-disk"
		return
	}
	echo "0 $(sectors "$name-disk") flakey /dev/$name-disk 0 0 60 $# $*"
}

# becomes NAME TABLE
becomes() {
	dmsetup suspend --nolockfs "$1" && dmsetup reload "$1" --table "$2" && dmsetup resume "$1"
}

# make_lower TARGET [SECTORS]: the devices metadata and data, the latter of so many sectors.
make_lower() {
	local name
	modprobe -a dm-thin-pool dm-flakey || return
	at_exit "remove_module dm_thin_pool; remove_module dm_flakey"
	for name in metadata data; do
		make_disk "$name-disk" memory_backed=1 size=16 discard=1 &&
			dmsetup create "$name-path" --table "$(path "$name" linear)" || return
		at_exit "remove_device $name-path"
	done
	lower metadata "$1" && lower data "$1" "${2:-}"
}

# make_pool SECTORS [FEATURE...]: over the two, in blocks of 64 KiB.
make_pool() {
	dmsetup create pool --table "$(pool_table "$@")" || return
	at_exit "remove_device thin; remove_device snap; remove_device pool"
}

pool_table() {
	local sectors=$1
	shift
	echo "0 $sectors thin-pool /dev/mapper/metadata /dev/mapper/data 128 0 $# $*"
}

# make_thin: the device number 0, which there may be already.
make_thin() {
	dmsetup message pool 0 create_thin 0 2>/dev/null
	dmsetup create thin --table "0 32768 thin /dev/mapper/pool 0"
}

# state: blocks of data in use, mode, and what goes with it.
state() {
	local status
	read -ra status < <(dmsetup status pool)
	if [ "${status[3]}" = Fail ]; then
		echo "state: Fail"
	else
		echo "state: ${status[*]:5:1} ${status[*]:7:4}"
	fi
}

# last_of NAME OPERATION...: what became of the last one. How far others came depends on when the
# pool committed.
last_of() {
	io "$@" | tail -n 1
}

# metadata_are: as a tool says that reads the device.
metadata_are() {
	thin_check -q /dev/mapper/metadata >/dev/null 2>&1 && echo "thin_check: ok" ||
		echo "thin_check: not ok"
}

# pool_with_metadata_that_fail TARGET: writes of them do.
pool_with_metadata_that_fail() {
	make_lower "$1" && make_pool 16384 && make_thin || return
	io thin write:0:64K*4 flush
	becomes metadata-path "$(path metadata error_writes)"
	last_of thin write:1M:64K*4 flush
	state
	echo "what was there is read and written:"
	io thin verify:0:64K*4 write:0:64K*2 verify:0:64K*4
	echo "nothing new:"
	last_of thin write:4M:64K
	becomes metadata-path "$(path metadata linear)"
	remove_device thin && remove_device pool
	metadata_are
	thin_check -q --clear-needs-check-flag /dev/mapper/metadata >/dev/null 2>&1
	make_pool 16384 && make_thin
	state
	io thin verify:0:64K*4 write:1M:64K*4 flush verify:1M:64K*4
	remove_device thin && remove_device pool
	metadata_are
	__case_cleanup
	CASE_AT_EXIT=()
}

a_pool_survives_metadata_that_cannot_be_written() {
	same_with_both pool_with_metadata_that_fail
}

# pool_with_metadata_that_are_gone TARGET: when it begins, and when it runs.
pool_with_metadata_that_are_gone() {
	make_lower "$1" && make_pool 16384 && make_thin || return
	io thin write:0:64K*4 flush
	remove_device thin && remove_device pool
	becomes metadata-path "0 $(sectors metadata-disk) error"
	make_pool 16384 2>/dev/null || echo "no pool"
	remove_device pool
	becomes metadata-path "$(path metadata linear)"
	make_pool 16384 && make_thin || return
	io thin verify:0:64K*4
	becomes metadata-path "0 $(sectors metadata-disk) error"
	last_of thin write:1M:64K flush
	state
	becomes metadata-path "$(path metadata linear)"
	remove_device thin && remove_device pool
	thin_check -q --clear-needs-check-flag /dev/mapper/metadata >/dev/null 2>&1
	make_pool 16384 && make_thin
	io thin verify:0:64K*4
	__case_cleanup
	CASE_AT_EXIT=()
}

a_pool_survives_metadata_that_are_gone() {
	same_with_both pool_with_metadata_that_are_gone
}

# pool_with_data_that_fail TARGET
pool_with_data_that_fail() {
	make_lower "$1" && make_pool 16384 && make_thin || return
	io thin write:0:64K*4 flush
	becomes data-path "$(path data error_writes)"
	io thin write:0:4K*2 verify:0:64K*4
	# It has to be filled with zeroes first.
	last_of thin write:1M:4K
	state
	becomes data-path "$(path data linear)"
	io thin write:0:64K*4 write:1M:64K*4 flush verify:0:64K*4 verify:1M:64K*4
	state
	becomes data-path "$(path data error_reads)"
	io thin read:0:4K*2 write:0:4K*2
	becomes data-path "$(path data linear)"
	io thin verify:0:64K*4
	remove_device thin && remove_device pool
	metadata_are
	__case_cleanup
	CASE_AT_EXIT=()
}

a_pool_survives_data_that_fail() {
	same_with_both pool_with_data_that_fail
}

# full_pool TARGET: 16 blocks, 20 writes; then it grows, and who waits goes on.
full_pool() {
	make_lower "$1" 2048 && make_pool 2048 error_if_no_space && make_thin || return
	io thin write:0:64K*20 flush
	state
	becomes data "$(lower_table data "$1" 4096)"
	becomes pool "$(pool_table 4096)"
	state
	io thin write:1M:64K*12 flush verify:0:64K*28
	state
	rm -f /tmp/full
	io_in_background /tmp/full thin at-once write:3M:64K*8
	wait_for 20 pool_is_full || echo "it is not full"
	# The last four wait.
	becomes data "$(lower_table data "$1" 8192)"
	becomes pool "$(pool_table 8192)"
	wait_for 20 test -e /tmp/full && cat /tmp/full
	io thin verify:0:64K*28 verify:3M:64K*8
	state
	__case_cleanup
	CASE_AT_EXIT=()
}

pool_is_full() {
	[[ $(state) == *out_of_data_space* ]]
}

a_pool_that_is_full_grows() {
	same_with_both full_pool
}

# pool_with_snapshots TARGET
pool_with_snapshots() {
	make_lower "$1" && make_pool 16384 && make_thin || return
	io thin write:0:64K*16 flush
	dmsetup suspend --nolockfs thin
	dmsetup message pool 0 create_snap 1 0
	dmsetup resume thin
	dmsetup create snap --table "0 32768 thin /dev/mapper/pool 1"
	# Half of the blocks are shared no more, some of the others are not needed any more.
	io thin zeroout:0:64K*8 discard:512K:64K*4 flush
	io thin verify-zero:0:64K*12 verify:768K:64K*4
	io snap verify:0:64K*16
	state
	io snap write:2M:64K*2 discard:0:64K*4 flush
	remove_device snap
	dmsetup message pool 0 delete 1
	io thin write:4M:64K flush
	state
	remove_device thin && remove_device pool
	metadata_are
	thin_dump /dev/mapper/metadata
	__case_cleanup
	CASE_AT_EXIT=()
}

snapshots_and_discards_are_those_of_dm_linear() {
	same_with_both pool_with_snapshots
}

set_up && io_serves || exit
run_cases a_pool_survives_metadata_that_cannot_be_written a_pool_survives_metadata_that_are_gone \
	a_pool_survives_data_that_fail a_pool_that_is_full_grows \
	snapshots_and_discards_are_those_of_dm_linear
