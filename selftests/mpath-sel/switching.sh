#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# Groups that take over from each other, and SCSI disks that go offline or are deleted, in both
# modes of dm-multipath, under verified I/O.
#
# Runs: vm uml
# Timeout: 300

. "$(dirname "$0")/common.sh"

# features MODE: of a map of bios or of requests.
features() {
	echo "2 queue_mode $1"
}

# io_only_through INDEX...: just now each of these PATHS has I/O, and no other.
io_only_through() {
	local i
	split_of pause 0.3 || return
	for i in "${!PATHS[@]}"; do
		if [[ " $* " == *" $i "* ]]; then
			[ "${SPLIT[i]}" -gt 0 ] || return
		else
			[ "${SPLIT[i]}" -eq 0 ] || return
		fi
	done
}

# goes_through WHAT INDEX...: I/O comes to that.
goes_through() {
	local what=$1
	shift
	wait_for 20 io_only_through "$@" ||
		fail "$what: I/O is ${SPLIT[*]}: $(dmsetup status "$MAP")"
}

# switches WHAT COMMAND... -- INDEX...: a message has I/O go there. It is said again until it does:
# an I/O that is choosing its path meanwhile makes the old group the current one again, and
# dm-multipath forgets what it was told (choose_path_in_pg() of 7.3, whatever the selector).
switches() {
	local what=$1 words=()
	shift
	while [ "$1" != -- ]; do
		words+=("$1")
		shift
	done
	shift
	wait_for 20 is_obeyed "$@" || fail "$what: I/O is ${SPLIT[*]}: $(dmsetup status "$MAP")"
}

# is_obeyed INDEX...: what the caller's words say.
is_obeyed() {
	message "${words[@]}" && io_only_through "$@"
}

# two_groups MODE: the first two disks of three, and the third.
two_groups() {
	local first second
	make_scsi_paths 3 || return
	PATHS=("/dev/${DISKS[0]}" "/dev/${DISKS[1]}")
	first=$(group "$SELECTOR" 1 1)
	PATHS=("/dev/${DISKS[2]}")
	second=$(group "$SELECTOR" 1)
	PATHS=("${DISKS[@]/#//dev/}")
	create_map "$(table "$(features "$1")" "$first" "$second")"
}

# switch_groups MODE: as one is told to.
switch_groups() {
	two_groups "$1" || return
	start_verify
	goes_through "the first group" 0 1
	switches "a switch to the second" switch_group 2 -- 2
	switches "a switch to the first" switch_group 1 -- 0 1
	switches "the first is disabled" disable_group 1 -- 2
	switches "the first is enabled" enable_group 1 -- 0 1
	! message switch_group 3 2>/dev/null || fail "there is a third group"
	check "data, and no error" finish_verify
}

# groups_fail MODE: all paths of one, and all paths of both but one.
groups_fail() {
	two_groups "$1" || return
	start_verify
	check "fail" message fail_path "${PATHS[0]}"
	goes_through "with one path left of the group" 1
	check "fail" message fail_path "${PATHS[1]}"
	goes_through "with a group that has none" 2
	check "reinstate" message reinstate_path "${PATHS[0]}"
	goes_through "it is for others to switch back" 2
	check "fail" message fail_path "${PATHS[2]}"
	goes_through "with one path left at all" 0
	check "reinstate" message reinstate_path "${PATHS[1]}"
	check "reinstate" message reinstate_path "${PATHS[2]}"
	goes_through "with all of them" 0 1
	check "data, and no error" finish_verify
}

# disks_go_offline MODE: one after the other.
disks_go_offline() {
	local disk left=(1 0)
	make_scsi_paths 2 || return
	create_map "$(table "$(features "$1")" "$(group "$SELECTOR" 1 1)")" || return
	split_of read_blocks 100 || return
	check_split "both" 50 50
	start_verify
	for disk in "${DISKS[@]}"; do
		echo offline >"/sys/block/$disk/device/state"
		wait_for 60 status_has F || fail "$disk is still in service"
		goes_through "without $disk" "${left[0]}"
		left=("${left[@]:1}")
		echo running >"/sys/block/$disk/device/state"
		check "reinstate" message reinstate_path "/dev/$disk"
		check "in service again" status_has_no F
		goes_through "with $disk again" 0 1
	done
	check "data, and no error" finish_verify
	split_of read_blocks 100 || return
	check_split "afterwards" 50 50
}

# a_disk_is_deleted MODE: with I/O on its way to it. It comes back by another name.
a_disk_is_deleted() {
	local gone host
	make_scsi_paths 3 || return
	create_map "$(table "$(features "$1")" "$(group "$SELECTOR" 1 1 1)")" || return
	gone=${DISKS[2]}
	host=$(readlink -f "/sys/block/$gone/device")
	host=${host##*/}
	host=/sys/class/scsi_host/host${host%%:*}
	# What has counters until the end.
	PATHS=("${PATHS[@]:0:2}")
	start_verify
	echo 1 >"/sys/block/$gone/device/delete"
	wait_for 60 status_has F || fail "$gone is still in service"
	goes_through "without it" 0 1
	check "the name of it is unknown" [ ! -e "/sys/block/$gone" ]
	echo "- - -" >"$host/scan"
	check "it is back" wait_for 20 find_scsi_disks 3 || return
	PATHS=("${DISKS[@]/#//dev/}")
	check "a table with it" change_map \
		"$(table "$(features "$1")" "$(group "$SELECTOR" 1 1 1)")" || return
	check "none has failed" status_has_no F
	goes_through "with it again" 0 1 2
	PATHS=("${PATHS[@]:0:2}")
	check "data, and no error" finish_verify
}

bios_switch_groups() {
	switch_groups bio
}

requests_switch_groups() {
	switch_groups rq
}

groups_fail_under_bios() {
	groups_fail bio
}

groups_fail_under_requests() {
	groups_fail rq
}

disks_go_offline_under_bios() {
	disks_go_offline bio
}

disks_go_offline_under_requests() {
	disks_go_offline rq
}

a_disk_is_deleted_under_bios() {
	a_disk_is_deleted bio
}

a_disk_is_deleted_under_requests() {
	a_disk_is_deleted rq
}

only_on vm requests_switch_groups groups_fail_under_bios groups_fail_under_requests \
	disks_go_offline_under_bios
set_up 0 && load_selectors || exit
run_cases bios_switch_groups requests_switch_groups groups_fail_under_bios \
	groups_fail_under_requests disks_go_offline_under_bios disks_go_offline_under_requests \
	a_disk_is_deleted_under_bios a_disk_is_deleted_under_requests
