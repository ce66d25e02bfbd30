#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# Everything once, for a kernel on which everything is slow: each callback of the selector, also
# against each other.
#
# Runs: checking
# Timeout: 240

. "$(dirname "$0")/common.sh"

every_callback_is_called() {
	use_paths 3
	create_map "$(table "$BIO" "$(group "$SELECTOR" 2 1 1)")" || return
	split_of read_blocks 40 || return
	check_split "weights 2:1:1" 20 10 10
	message fail_path "${PATHS[0]}" || return
	split_of read_blocks 20 || return
	check_split "one failed" 0 10 10
	message reinstate_path "${PATHS[0]}" || return
	check "status" dmsetup status "$MAP"
	check "table" dmsetup table "$MAP"
	! dmsetup create "$MAP-x" --table "$(table "$BIO" "$(group "$SELECTOR" 1 1 x)")" \
		2>/dev/null || fail "weight x was not refused"
	change_map "$(table "$BIO" "$(group "$SELECTOR" 1 1 1)")" || return
	split_of read_blocks 30 || return
	check_split "weights 1:1:1" 10 10 10
}

paths_fail_while_all_cpus_read() {
	local cpu job jobs=() path
	use_paths 2
	create_map "$(table "$BIO" "$(group "$SELECTOR" 3 1)")" || return
	for ((cpu = 0; cpu < $(nproc); cpu++)); do
		taskset -c "$cpu" dd if="/dev/mapper/$MAP" of=/dev/null bs=4k count=1000 \
			iflag=direct status=none &
		jobs+=($!)
	done
	for path in "${PATHS[@]}"; do
		message fail_path "$path" && dmsetup status "$MAP" &&
			message reinstate_path "$path" ||
			return
	done
	for job in "${jobs[@]}"; do
		check "no read failed" wait "$job"
	done
}

io_waits_for_a_path_and_is_requeued() {
	local reader
	use_paths 2
	create_map "$(table "$BIO_QUEUEING" "$(group "$SELECTOR")")" || return
	at_exit "dmsetup message $MAP 0 fail_if_no_path 2>/dev/null || :"
	change_map "0 $SECTORS error" "$MAP-p0" || return
	at_exit "change_map '0 $SECTORS linear /dev/ram0 0' $MAP-p0"
	message fail_path "${PATHS[1]}" || return
	read_blocks 5 &
	reader=$!
	sleep 1
	check "the read waits" kill -0 "$reader"
	message reinstate_path "${PATHS[1]}" || return
	check "the read ends well" wait "$reader"
	# The path with the error was found out by the read itself.
	dmsetup status "$MAP" | grep -q " F 1 " ||
		fail "the path below which is an error is in service"
}

set_up 3 && load_selectors || exit
run_cases every_callback_is_called paths_fail_while_all_cpus_read \
	io_waits_for_a_path_and_is_requeued
