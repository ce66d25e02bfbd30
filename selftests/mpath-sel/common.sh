#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# What the path selector's tests share: paths to one disk, a multipath device over them, and how
# much I/O went down each. Sourced; no test by itself.

. "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"

# Which selector is tested, and its module.
MODULE=dm-round-robin-rs
SELECTOR=round-robin-rs
if is_about_the_peer; then
	MODULE=dm-round-robin
	# shellcheck disable=SC2034 # for those who source this
	SELECTOR=round-robin
fi
MAP=fsel
# Of the disk, in sectors.
SECTORS=32768

# set_up PATHS: once a script. So many paths, for use_paths.
set_up() {
	trap tear_down EXIT
	udev_off
	make_paths "$1"
}

# load_selectors: dm-multipath with the C selector, then ours, which so has only its own name.
load_selectors() {
	modprobe -a dm-multipath dm-round-robin && load_module "$MODULE"
}

tear_down() {
	local name
	for name in "${ALL_PATHS[@]}"; do
		remove_device "$(basename "$name")"
	done
	remove_selectors
	remove_module brd
	udev_on
}

remove_selectors() {
	local name
	for name in "$MODULE" dm-round-robin dm-multipath; do
		remove_module "$name"
	done
}

remove_device() {
	! dmsetup info "$1" >/dev/null 2>&1 || dmsetup remove --retry "$1"
}

ALL_PATHS=()
# The kernel's name of each path's device, such as dm-3: where its counters are.
declare -A NODE

# make_paths NUMBER: that many dm-linear devices over one memory disk: paths to the same data, each
# with counters of its own.
make_paths() {
	local name numbers i
	modprobe brd rd_nr=1 rd_size=$((SECTORS / 2)) || return
	for ((i = 0; i < $1; i++)); do
		dmsetup create "$MAP-p$i" --table "0 $SECTORS linear /dev/ram0 0" || return
		ALL_PATHS+=("/dev/mapper/$MAP-p$i")
	done
	while IFS=: read -r name numbers; do
		NODE[/dev/mapper/$name]=dm-$numbers
	done < <(dmsetup info -c --noheadings -o name,minor)
}

# use_paths NUMBER: the first ones, as PATHS.
use_paths() {
	PATHS=("${ALL_PATHS[@]:0:$1}")
}

# group SELECTOR [ARGUMENT...]: a priority group with all PATHS; one argument a path, or none.
group() {
	local selector=$1 i
	shift
	printf '%s 0 %d %d' "$selector" "${#PATHS[@]}" "$(($# > 0))"
	for i in "${!PATHS[@]}"; do
		printf ' %s' "${PATHS[i]}" ${1+"${*:i+1:1}"}
	done
}

# table FEATURES GROUP...: of a multipath device.
table() {
	local features=$1 sectors=${PATH_SECTORS:-$SECTORS}
	shift
	echo "0 $sectors multipath $features 0 $# 1 $*"
}

# shellcheck disable=SC2034 # for those who source this
BIO="2 queue_mode bio"
# shellcheck disable=SC2034
BIO_QUEUEING="3 queue_if_no_path queue_mode bio"

# create_map TABLE [NAME]
create_map() {
	local name=${2:-$MAP}
	dmsetup create "$name" --table "$1" || return
	at_exit "remove_device $name"
}

# change_map TABLE [NAME]: suspends, replaces the table, resumes.
change_map() {
	local name=${2:-$MAP}
	dmsetup reload "$name" --table "$1" && dmsetup suspend --nolockfs "$name" &&
		dmsetup resume "$name"
}

# ios: IOS becomes how many I/Os each of PATHS has had.
ios() {
	local path stat
	IOS=()
	for path in "${PATHS[@]}"; do
		read -ra stat <"/sys/block/${NODE[$path]:-${path#/dev/}}/stat" || return
		IOS+=($((stat[0] + stat[4])))
	done
}

# read_blocks NUMBER: that many I/Os, one after the other, on one CPU.
read_blocks() {
	taskset -c 0 dd if="/dev/mapper/$MAP" of=/dev/null bs=4k count="$1" iflag=direct status=none
}

# split_of COMMAND...: SPLIT becomes how many I/Os each of PATHS had meanwhile.
split_of() {
	local before i
	ios || return
	before=("${IOS[@]}")
	"$@" || return
	ios || return
	SPLIT=()
	for i in "${!PATHS[@]}"; do
		SPLIT+=($((IOS[i] - before[i])))
	done
}

# check_split WHAT EXPECTED...: SPLIT, to within 2 I/Os a path.
check_split() {
	local what=$1 i=0 expected
	shift
	for expected in "$@"; do
		check_within "$what: path $i" "${SPLIT[i]}" $((expected - (expected ? 2 : 0))) \
			$((expected + (expected ? 2 : 0)))
		i=$((i + 1))
	done
}

message() {
	dmsetup message "$MAP" 0 "$@"
}

# make_scsi_paths NUMBER: so many SCSI hosts with one disk, as DISKS and PATHS, until the case is
# over.
make_scsi_paths() {
	modprobe scsi_debug add_host="$1" per_host_store=0 dev_size_mb=16 delay=0 max_luns=1 ||
		return
	at_exit "remove_module scsi_debug"
	wait_for 10 find_scsi_disks "$1" || return
	PATHS=("${DISKS[@]/#//dev/}")
	PATH_SECTORS=$(blockdev --getsz "${PATHS[0]}")
}

# find_scsi_disks NUMBER: scsi_debug's, as DISKS, once there are so many.
find_scsi_disks() {
	local disk
	DISKS=()
	for disk in /sys/bus/pseudo/drivers/scsi_debug/adapter*/host*/target*/*:*/block/sd*; do
		[ ! -e "$disk" ] || DISKS+=("${disk##*/}")
	done
	[ "${#DISKS[@]}" -eq "$1" ]
}

# status_has WORD: such as F, for a path that has failed.
status_has() {
	dmsetup status "$MAP" | grep -q " $1 "
}

status_has_no() {
	! status_has "$1"
}

# private_modules: what modprobe finds when the kernel calls it: this module and the C selector, as
# `make install` would leave them.
private_modules() {
	local root=/run/fsel-root modules
	modules=$root/lib/modules/$(uname -r)
	mkdir -p "$modules/updates" "$root/config" || return
	at_exit "rm -rf $root"
	find "$FERRULE_MODULES" -name "$MODULE.ko" -exec cp {} "$modules/updates/" \; -quit
	find "/lib/modules/$(uname -r)/" -name 'dm-round-robin.ko*' -exec cp {} "$modules/" \; -quit
	depmod -b "$root" 2>/dev/null
	printf '#!/bin/sh\nexec modprobe -d %s -C %s/config "$@"\n' "$root" "$root" \
		>"$root/modprobe"
	chmod +x "$root/modprobe"
	at_exit "echo '$(cat /proc/sys/kernel/modprobe)' >/proc/sys/kernel/modprobe"
	echo "$root/modprobe" >/proc/sys/kernel/modprobe
}

# start_verify: fio writes blocks of all sizes and reads them back, over and over, in background,
# until finish_verify. Its first blocks are written when this returns.
start_verify() {
	FIO_LOG=$(mktemp)
	at_exit "rm -f $FIO_LOG"
	READ_BEFORE=$(sectors 2)
	WRITTEN_BEFORE=$(sectors 6)
	fio --name=verify --filename="/dev/mapper/$MAP" --rw=randwrite --bsrange=4k-64k \
		--size=8m --direct=1 --ioengine=libaio --iodepth=8 --verify=crc32c \
		--verify_fatal=1 --loops=1000000 >"$FIO_LOG" 2>&1 &
	FIO=$!
	at_exit "kill $FIO 2>/dev/null || :"
	wait_for 60 has_written || fail "fio does not write: $(cat "$FIO_LOG")"
}

verify_runs() {
	kill -0 "$FIO" 2>/dev/null
}

# sectors FIELD: of the paths' stat files (from 0: 2 sectors read, 6 written), over all of PATHS.
sectors() {
	local path stat sum=0
	for path in "${PATHS[@]}"; do
		read -ra stat <"/sys/block/${NODE[$path]:-${path#/dev/}}/stat" || return
		sum=$((sum + stat[$1]))
	done
	echo "$sum"
}

has_written() {
	[ "$(sectors 6)" -gt "$WRITTEN_BEFORE" ]
}

# What fio reads is what it verifies: all of it twice.
has_verified() {
	[ "$(($(sectors 2) - READ_BEFORE))" -ge $((2 * 16384)) ]
}

# finish_verify: lets fio verify what it has written, stops it, and succeeds if it saw no error.
finish_verify() {
	local status
	wait_for 60 has_verified || diag "fio has verified nothing"
	verify_runs || diag "fio has ended by itself"
	kill -INT "$FIO" 2>/dev/null
	wait "$FIO"
	status=$?
	# 128: ended by a signal.
	[ "$status" -eq 128 ] && grep -q 'err= *0' "$FIO_LOG" && has_verified && return 0
	diag "fio's status is $status"
	diag "$(cat "$FIO_LOG")"
	return 1
}
