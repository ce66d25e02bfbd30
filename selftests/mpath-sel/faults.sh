#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# Runs: uml
# Ours: faults in our own code
# Timeout: 240
#
# Allocations that fail, and commands that are never answered. (What kmemleak finds at the end
# fails the guest.)

. "$(dirname "$0")/common.sh"

each_allocation_fails_once() {
	rcu_in_haste
	use_paths 3
	check "an error, nothing changed, and the next try works" \
		control faults --every "${FAULTS_EVERY:-9}" \
		multipath round-robin-rs "${PATHS[@]}"
}

# scsi_paths: SCSI_PATHS becomes two paths to one disk, that time out after a second.
scsi_paths() {
	local name
	modprobe scsi_debug dev_size_mb=16 add_host=2 || return
	at_exit "remove_module scsi_debug"
	wait_for 10 two_scsi_disks || return
	SCSI_PATHS=()
	for name in $(scsi_disks); do
		echo 1 >"/sys/block/$name/device/timeout" || return
		echo 1 >"/sys/block/$name/device/eh_timeout" || return
		wait_for 10 test -b "/dev/$name" || return
		SCSI_PATHS+=("/dev/$name")
	done
}

scsi_disks() {
	local disks
	disks=$(compgen -G "/sys/bus/pseudo/drivers/scsi_debug/adapter*/host*/target*/*/block/*")
	[ -z "$disks" ] || xargs -n1 basename <<<"$disks"
}

two_scsi_disks() {
	[ "$(scsi_disks | wc -l)" -eq 2 ]
}

# timed_out: how many commands were given up, of both.
timed_out() {
	local path count sum=0
	for path in "${SCSI_PATHS[@]}"; do
		read -r count <"/sys/block/${path#/dev/}/device/iotmo_cnt" || return
		sum=$((sum + count))
	done
	echo "$sum"
}

# verify_without_answers FEATURES: now and then a command is never answered.
verify_without_answers() {
	local before path
	scsi_paths || return
	PATHS=("${SCSI_PATHS[@]}")
	PATH_SECTORS=32768 create_map "$(table "$1" "$(group round-robin-rs 1 2)")" || return
	for path in "${SCSI_PATHS[@]}"; do
		echo 1 >"/sys/block/${path#/dev/}/io-timeout-fail" || return
	done
	before=$(timed_out)
	fault fail_io_timeout probability=1
	check "what was written is there" control verify --no-errors \
		"/dev/mapper/$MAP" 6 "${SEED:-$RANDOM}"
	no_more_faults fail_io_timeout
	check "commands have timed out" [ "$(timed_out)" -gt "$before" ]
}

commands_without_an_answer_in_bio_mode() {
	verify_without_answers "$BIO_QUEUEING"
}

commands_without_an_answer_in_request_mode() {
	verify_without_answers "1 queue_if_no_path"
}

# A path from which no answer comes any more is given up, and the other takes over.
a_path_that_never_answers_is_left() {
	scsi_paths || return
	PATHS=("${SCSI_PATHS[@]}")
	PATH_SECTORS=32768 create_map "$(table "0" "$(group round-robin-rs 1 1)")" || return
	echo 1 >"/sys/block/${SCSI_PATHS[0]#/dev/}/io-timeout-fail" || return
	fault fail_io_timeout probability=100
	check "no error above" control verify --no-errors "/dev/mapper/$MAP" 2 "${SEED:-$RANDOM}" 1
	check "it has failed" grep -q ' F ' <(dmsetup status "$MAP")
	no_more_faults fail_io_timeout
	check "reinstate" message reinstate_path "${SCSI_PATHS[0]}"
	check "the next I/O is served" read_blocks 10
}

set_up 3 && load_selectors || exit
run_cases each_allocation_fails_once loading_and_unloading_with_each_allocation_failing \
	commands_without_an_answer_in_bio_mode commands_without_an_answer_in_request_mode \
	a_path_that_never_answers_is_left
