#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# The selector under multipathd, with the configuration that it has to serve unchanged, on three
# SCSI hosts that have one disk. Nothing is lost, and nothing above sees an error while one path is
# left.
#
# Runs: vm
# Timeout: 480

. "$(dirname "$0")/common.sh"
. "$(dirname "$0")/tools.sh"

# What scsi_debug says about the disk differs from host to host, but for this.
UID_ATTRIBUTE=SCSI_IDENT_LUN_UUID
HOSTS=3

set_up_hosts() {
	trap tear_down_hosts EXIT
	start_tools && modprobe scsi_debug add_host="$HOSTS" \
		per_host_store=0 max_luns=1 dev_size_mb=16 uuid_ctl=2 inq_vendor=NETAPP \
		inq_product=LUN || return
	# With what the kernel loads for it.
	wait_for 20 find_disks && wait_for 30 map_has "$HOSTS" && remove_map && both_are_unloaded
}

# What multipathd needs stays.
both_are_unloaded() {
	remove_module dm-round-robin
	remove_module "$MODULE"
}

tear_down_hosts() {
	remove_map
	# First, as it keeps the disks open.
	stop_multipathd
	udevadm settle
	remove_module scsi_debug
	stop_tools
	remove_selectors
}

# find_disks: DISKS becomes one for each host.
find_disks() {
	local disk
	DISKS=()
	for disk in /sys/bus/pseudo/drivers/scsi_debug/adapter*/host*/target*/*:*/block/sd*; do
		[ ! -e "$disk" ] || DISKS+=("${disk##*/}")
	done
	PATHS=("${DISKS[@]/#//dev/}")
	[ "${#DISKS[@]}" -eq "$HOSTS" ]
}

# use_map [LINE...]: until the case is over.
use_map() {
	at_exit remove_map
	make_map "$HOSTS" "$@"
}

# text_of: table and status, once what udev reads from a new device has been read.
text_of() {
	udevadm settle
	dmsetup table "$MAP" && dmsetup status "$MAP"
}

unchanged_configuration_uses_what_has_the_name() {
	local theirs ours
	at_exit both_are_unloaded
	load_selectors || return
	use_map || return
	theirs=$(text_of)
	check "the C selector is in use" module_is_used dm-round-robin
	! module_is_used "$MODULE" || fail "ours is in use"
	remove_map
	both_are_unloaded

	load_module "$MODULE" || return
	make_map "$HOSTS" || return
	ours=$(text_of)
	diag "$ours"
	diag "$(multipath -ll)"
	check "ours is in use" module_is_used "$MODULE"
	! module_is_loaded dm-round-robin || fail "the C selector was loaded"
	[ "$ours" = "$theirs" ] || fail "with the C selector it was: $theirs"
	settled_split_of read_blocks 300 || return
	check_split "I/O" 100 100 100
}

module_is_used() {
	grep -q "^${1//-/_} [0-9]* [1-9]" /proc/modules
}

multipathd_has_it_loaded() {
	[ -n "$FERRULE_MODULES" ] || skip "FERRULE_MODULES does not say where the modules are"
	at_exit both_are_unloaded
	private_modules || return
	use_map 'path_selector "round-robin-rs 0"' || return
	dmsetup table "$MAP" | grep -q " round-robin-rs 0 $HOSTS 1 " ||
		fail "$(dmsetup table "$MAP")"
	module_is_loaded "$MODULE" || fail "not loaded"
	remove_map
	both_are_unloaded
	echo "alias dm-round-robin $MODULE" >/run/fsel-root/config/round-robin.conf
	make_map "$HOSTS" || return
	module_is_loaded "$MODULE" || fail "not loaded in place of the C selector"
	settled_split_of read_blocks 300 || return
	check_split "I/O" 100 100 100
}

# paths_fail_and_come_back SELECTOR [LINE...]
paths_fail_and_come_back() {
	local disk selector=$1
	shift
	use_map "path_selector \"$selector 0\"" "$@" || return
	diag "$(dmsetup table "$MAP")"
	start_verify
	sleep 1
	for disk in "${DISKS[@]:0:2}"; do
		fail_disk "$disk"
		time_until 60 path_is F "$disk" || fail "$disk is still in service"
		diag "$selector: $disk is out of service after $TOOK ms"
		restore_disk "$disk"
		time_until 60 path_is A "$disk" || fail "$disk is still out of service"
		diag "$selector: $disk is in service again after $TOOK ms"
	done
	check "data, and no error" finish_verify
	settled_split_of read_blocks 300 || return
	check_split "afterwards" 100 100 100
	remove_map
}

# What udev reads when a device is new, or was written, is not counted.
settled_split_of() {
	udevadm settle
	split_of "$@"
}

# fail_disk NAME: all commands fail, as with a cable that is not there.
fail_disk() {
	local type=2 count=1 opcode=0xff host_byte=0x0f
	echo "$type $count $opcode $host_byte 0 0 0 0 0" >"$(error_file "$1")"
}

restore_disk() {
	echo "- 2 0xff" >"$(error_file "$1")"
}

error_file() {
	local device
	device=$(readlink -f "/sys/block/$1/device")
	echo "/sys/kernel/debug/scsi_debug/${device##*/}/error"
}

# The C selector's times stand beside ours.
requests_survive_failing_paths() {
	at_exit both_are_unloaded
	load_selectors || return
	paths_fail_and_come_back "$SELECTOR" || return
	[ "$SELECTOR" = round-robin ] || paths_fail_and_come_back round-robin
}

bios_survive_failing_paths() {
	at_exit both_are_unloaded
	load_module "$MODULE" || return
	paths_fail_and_come_back round-robin 'features "2 queue_mode bio"'
}

take_offline() {
	local disk
	for disk in "$@"; do
		echo offline >"/sys/block/$disk/device/state"
	done
}

bring_back() {
	local disk
	for disk in "$@"; do
		echo running >"/sys/block/$disk/device/state"
	done
}

io_waits_while_no_path_is_there() {
	# A busy machine takes its time until all paths are in service again: no_path_retry is 20 s.
	local POLLING_INTERVAL=4
	at_exit both_are_unloaded
	load_module "$MODULE" || return
	use_map || return
	start_verify
	sleep 1
	take_offline "${DISKS[@]}"
	at_exit 'bring_back "${DISKS[@]}"'
	check "all are out of service" wait_for 30 path_is F "${DISKS[@]}"
	sleep 2
	bring_back "${DISKS[@]}"
	check "all are in service again" wait_for 60 path_is A "${DISKS[@]}"
	check "data, and no error" finish_verify
}

# pattern CHECK|WRITE: data that is there before everything fails, beyond what start_verify uses.
pattern() {
	local file=/run/fsel-pattern
	if [ "$1" = WRITE ]; then
		dd if=/dev/urandom of="$file" bs=64k count=32 status=none || return
		at_exit "rm -f $file"
		dd if="$file" of="/dev/mapper/$MAP" bs=64k seek=192 oflag=direct status=none
	else
		dd if="/dev/mapper/$MAP" bs=64k skip=192 count=32 iflag=direct status=none |
			cmp - "$file"
	fi
}

io_fails_when_no_path_comes_back_in_time() {
	# As above.
	local POLLING_INTERVAL=4 reader
	at_exit both_are_unloaded
	load_module "$MODULE" || return
	use_map || return
	check "write" pattern WRITE
	# (fio does not always end when it reads and all I/O fails.)
	while read_blocks 100 2>/dev/null; do :; done &
	reader=$!
	at_exit "message fail_if_no_path; wait_for 10 has_ended $reader"
	take_offline "${DISKS[@]}"
	at_exit 'bring_back "${DISKS[@]}"'
	check "all are out of service" wait_for 30 path_is F "${DISKS[@]}"
	sleep 2
	! has_ended "$reader" || fail "I/O failed before no_path_retry was over"
	check "then it fails" wait_for $((10 * POLLING_INTERVAL + 10)) has_ended "$reader" || return
	bring_back "${DISKS[@]}"
	check "all are in service again" wait_for 60 path_is A "${DISKS[@]}"
	check "what was written before is there" pattern CHECK
	# And again, it would wait.
	dmsetup table "$MAP" | grep -q queue_if_no_path || fail "it does not queue any more"
	start_verify
	check "data, and no error" finish_verify
}

paths_go_and_come() {
	local disk=${DISKS[0]} host hctl
	at_exit both_are_unloaded
	load_module "$MODULE" || return
	use_map || return
	hctl=$(basename "$(readlink -f "/sys/block/$disk/device")")
	host=/sys/class/scsi_host/host${hctl%%:*}
	PATHS=("${PATHS[@]:1}")
	start_verify
	sleep 1
	echo 1 >"/sys/block/$disk/device/delete"
	at_exit "find_disks || echo '- - -' >$host/scan; wait_for 20 find_disks"
	check "the map goes on without it" wait_for 20 map_has $((HOSTS - 1))
	sleep 1
	echo "- - -" >"$host/scan"
	check "the map has it again" wait_for 30 map_has "$HOSTS"
	sleep 1
	check "data, and no error" finish_verify
	find_disks
	settled_split_of read_blocks 300 || return
	check_split "afterwards" 100 100 100
}

weights_follow_priorities() {
	local disk host arguments=
	at_exit both_are_unloaded
	load_module "$MODULE" || return
	use_map || return
	start_verify
	sleep 1
	for disk in "${DISKS[@]}"; do
		host=$(basename "$(readlink -f "/sys/block/$disk/device")")
		# The first one three times as much as the others.
		arguments+="${host%%:*}:.:.:. $([ "$disk" = "${DISKS[0]}" ] && echo 3 || echo 1) "
	done
	configure "rr_weight priorities" "detect_prio no" "prio weightedpath" \
		"prio_args \"hbtl $arguments\"" || return
	multipathd reconfigure >/dev/null
	check "the weights are in the table" wait_for 20 reloaded_weights_are "3 1 1"
	check "data, and no error" finish_verify
	settled_split_of read_blocks 500 || return
	check_split "I/O" 300 100 100
	start_verify
	configure && multipathd reconfigure >/dev/null
	check "they are equal again" wait_for 20 reloaded_weights_are "1 1 1"
	check "data, and no error" finish_verify
	settled_split_of read_blocks 300 || return
	check_split "I/O" 100 100 100
}

# Of itself multipathd loads a new table when paths change, not when only their weights do. It reads
# its configuration in its own time.
reloaded_weights_are() {
	multipathd reload map "$MAP" >/dev/null && weights_are "$1"
}

# weights_are "WEIGHT...": for DISKS, as the table has them.
weights_are() {
	local disk table weights=
	table=$(dmsetup table "$MAP")
	for disk in "${DISKS[@]}"; do
		[[ $table =~ \ $(cat "/sys/block/$disk/dev")\ ([0-9]+) ]] || return
		weights+="${BASH_REMATCH[1]} "
	done
	[ "$weights" = "$1 " ]
}

ours_only "takes the place of the C selector" unchanged_configuration_uses_what_has_the_name \
	multipathd_has_it_loaded
set_up_hosts || exit
run_cases unchanged_configuration_uses_what_has_the_name multipathd_has_it_loaded \
	requests_survive_failing_paths bios_survive_failing_paths io_waits_while_no_path_is_there \
	io_fails_when_no_path_comes_back_in_time paths_go_and_come weights_follow_priorities
