#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# Paths that fail and come back, and tables that change, under verified I/O: nothing is lost and
# nothing above sees an error while one path is left.
#
# Runs: vm uml
# Timeout: 480

. "$(dirname "$0")/common.sh"

# One path after the other fails and is reinstated.
toggle_paths() {
	local i path
	for ((i = 0; i < 12; i++)); do
		path=${PATHS[i % ${#PATHS[@]}]}
		message fail_path "$path" || return
		sleep 0.2
		message reinstate_path "$path" || return
	done
}

paths_fail_by_message() {
	use_paths 3
	create_map "$(table "$BIO" "$(group "$SELECTOR" 1 2 1)")" || return
	start_verify
	check "paths fail and come back" toggle_paths
	check "data, and no error" finish_verify
}

paths_fail_by_message_while_others_ask_for_status() {
	local asker
	use_paths 3
	create_map "$(table "$BIO" "$(group "$SELECTOR" 1 2 1)")" || return
	start_verify
	while verify_runs; do
		dmsetup status "$MAP" && dmsetup table "$MAP"
	done >/dev/null &
	asker=$!
	at_exit "kill $asker 2>/dev/null || :"
	check "paths fail and come back" toggle_paths
	check "data, and no error" finish_verify
}

path_that_returns_errors_is_taken_out_of_service() {
	use_paths 2
	create_map "$(table "$BIO" "$(group "$SELECTOR" 1 1)")" || return
	start_verify
	sleep 0.5
	change_map "0 $SECTORS error" "$MAP-p0" || return
	wait_for 60 status_has F || fail "the path is still in service" || return
	change_map "0 $SECTORS linear /dev/ram0 0" "$MAP-p0" || return
	check "reinstate" message reinstate_path "${PATHS[0]}"
	check "in service again" status_has_no F
	check "data, and no error" finish_verify
	split_of read_blocks 100 || return
	check_split "afterwards" 50 50
}

path_that_flickers_harms_nobody() {
	local i
	use_paths 2
	modprobe dm-flakey || return
	at_exit "remove_module dm-flakey"
	at_exit "change_map '0 $SECTORS linear /dev/ram0 0' $MAP-p1"
	change_map "0 $SECTORS flakey /dev/ram0 0 1 1" "$MAP-p1" || return
	create_map "$(table "$BIO" "$(group "$SELECTOR" 1 1)")" || return
	start_verify
	for ((i = 0; i < 3; i++)); do
		wait_for 30 status_has F || fail "the path is still in service" || return
		message reinstate_path "${PATHS[1]}" || return
	done
	check "data, and no error" finish_verify
}

all_paths_down_with_queueing() {
	local i
	use_paths 2
	create_map "$(table "$BIO_QUEUEING" "$(group "$SELECTOR" 1 1)")" || return
	at_exit "dmsetup message $MAP 0 fail_if_no_path 2>/dev/null || :"
	start_verify
	for i in 1 2 3; do
		sleep 0.3
		message fail_path "${PATHS[0]}" && message fail_path "${PATHS[1]}" || return
		check "what was under way is over" wait_for 60 nothing_is_in_flight
		check "nothing goes down a failed path" no_io_for 0.5
		verify_runs || fail "fio did not wait for a path"
		message reinstate_path "${PATHS[i % 2]}" || return
		sleep 0.1
		message reinstate_path "${PATHS[(i + 1) % 2]}" || return
	done
	check "data, and no error" finish_verify
}

nothing_is_in_flight() {
	local path counts
	for path in "${PATHS[@]}"; do
		read -ra counts <"/sys/block/${NODE[$path]}/inflight" || return
		[ "${counts[*]}" = "0 0" ] || return
	done
}

no_io_for() {
	split_of sleep "$1" || return
	[ "${SPLIT[*]}" = "0 0" ]
}

all_paths_down_without_queueing() {
	use_paths 2
	create_map "$(table "$BIO" "$(group "$SELECTOR" 1 1)")" || return
	start_verify
	sleep 0.5
	message fail_path "${PATHS[0]}" && message fail_path "${PATHS[1]}" || return
	! wait "$FIO" || fail "fio saw no error"
	message reinstate_path "${PATHS[0]}" || return
	check "the next I/O is served" read_blocks 10
}

tables_change_under_load() {
	local i tables other=$SELECTOR
	# Another selector, where the kernel has one.
	if modprobe dm-service-time; then
		at_exit "remove_module dm-service-time"
		other=service-time
	fi
	use_paths 3
	tables=(
		"$(table "$BIO" "$(group "$SELECTOR" 1 1 1)")"
		"$(table "$BIO" "$(group "$other")")"
		"$(table "$BIO" "$(group "$SELECTOR" 9 1 200)")"
		"$(table "$BIO" "$(group round-robin 1 1 1)" "$(group "$SELECTOR" 3 3 3)")"
	)
	create_map "${tables[0]}" || return
	start_verify
	for ((i = 1; i <= 8; i++)); do
		change_map "${tables[i % 4]}" || return
		message fail_path "${PATHS[i % 3]}" || return
		sleep 0.2
	done
	check "data, and no error" finish_verify
}

set_up 3 && load_selectors || exit
run_cases paths_fail_by_message paths_fail_by_message_while_others_ask_for_status \
	path_that_returns_errors_is_taken_out_of_service path_that_flickers_harms_nobody \
	all_paths_down_with_queueing all_paths_down_without_queueing tables_change_under_load
