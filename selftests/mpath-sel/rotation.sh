#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# Which path gets how much: by turns, by weight, with paths out of service.
#
# Runs: vm uml
# Timeout: 480

. "$(dirname "$0")/common.sh"

ios_are_split_evenly() {
	use_paths 4
	create_map "$(table "$BIO" "$(group "$SELECTOR" 1 1 1 1)")" || return
	split_of read_blocks 400 || return
	check_split "weights 1:1:1:1" 100 100 100 100
}

ios_are_split_evenly_without_arguments() {
	use_paths 3
	create_map "$(table "$BIO" "$(group "$SELECTOR")")" || return
	split_of read_blocks 300 || return
	check_split "no weights" 100 100 100
}

ios_are_split_by_weight() {
	use_paths 3
	create_map "$(table "$BIO" "$(group "$SELECTOR" 5 3 2)")" || return
	split_of read_blocks 400 || return
	check_split "weights 5:3:2" 200 120 80
	# As multipathd writes them with rr_min_io 1000 and rr_weight priorities.
	change_map "$(table "$BIO" "$(group "$SELECTOR" 50000 10000 20000)")" || return
	split_of read_blocks 400 || return
	check_split "weights 50000:10000:20000" 250 50 100
}

turns_of_a_heavy_path_are_spread_out() {
	local i turns=
	use_paths 2
	create_map "$(table "$BIO" "$(group "$SELECTOR" 3 1)")" || return
	for ((i = 0; i < 12; i++)); do
		split_of read_blocks 1 || return
		case "${SPLIT[*]}" in
		"1 0") turns+=a ;;
		"0 1") turns+=b ;;
		*) fail "turn $i went to: ${SPLIT[*]}" ;;
		esac
	done
	diag "turns: $turns"
	# It may have begun anywhere.
	[[ aabaaabaaabaaaba == *"$turns"* ]] || fail "turns are not a a b a"
}

all_cpus_share_out_evenly() {
	local cpu cpus job jobs=()
	use_paths 2
	create_map "$(table "$BIO" "$(group "$SELECTOR" 1 1)")" || return
	cpus=$(nproc)
	on_each_cpu() {
		for ((cpu = 0; cpu < cpus; cpu++)); do
			taskset -c "$cpu" dd if="/dev/mapper/$MAP" of=/dev/null bs=4k count=200 \
				iflag=direct status=none &
			jobs+=($!)
		done
		for job in "${jobs[@]}"; do
			wait "$job" || return
		done
	}
	split_of on_each_cpu || return
	# Each CPU has a cursor of its own: off by one each at most.
	check_within "first path" "${SPLIT[0]}" $((100 * cpus - cpus - 1)) \
		$((100 * cpus + cpus + 1))
	check_within "both paths" $((SPLIT[0] + SPLIT[1])) $((200 * cpus)) $((200 * cpus + 2))
}

requests_are_split_by_weight() {
	local PATH_SECTORS
	modprobe null_blk nr_devices=3 gb=1 queue_mode=2 irqmode=0 || return
	at_exit "remove_module null_blk"
	PATHS=(/dev/nullb0 /dev/nullb1 /dev/nullb2)
	PATH_SECTORS=$(blockdev --getsz /dev/nullb0)
	create_map "$(table 0 "$(group "$SELECTOR" 1 1 1)")" || return
	split_of read_blocks 300 || return
	check_split "requests, weights 1:1:1" 100 100 100
	change_map "$(table 0 "$(group "$SELECTOR" 2 1 1)")" || return
	split_of read_blocks 400 || return
	check_split "requests, weights 2:1:1" 200 100 100
}

failed_paths_get_nothing_and_the_others_share() {
	use_paths 4
	create_map "$(table "$BIO" "$(group "$SELECTOR" 1 1 1 3)")" || return
	check "fail" message fail_path "${PATHS[1]}"
	split_of read_blocks 500 || return
	check_split "1 of 4 failed" 100 0 100 300
	check "fail" message fail_path "${PATHS[3]}"
	split_of read_blocks 300 || return
	check_split "2 of 4 failed" 150 0 150 0
	check "fail" message fail_path "${PATHS[0]}"
	split_of read_blocks 100 || return
	check_split "3 of 4 failed" 0 0 100 0
	check "reinstate" message reinstate_path "${PATHS[1]}"
	check "reinstate" message reinstate_path "${PATHS[0]}"
	check "reinstate" message reinstate_path "${PATHS[3]}"
	split_of read_blocks 600 || return
	check_split "all back" 100 100 100 300
}

failing_and_reinstating_twice_is_harmless() {
	use_paths 2
	create_map "$(table "$BIO" "$(group "$SELECTOR" 1 1)")" || return
	message fail_path "${PATHS[0]}" && message fail_path "${PATHS[0]}" || return
	split_of read_blocks 50 || return
	check_split "failed twice" 0 50
	message reinstate_path "${PATHS[0]}" && message reinstate_path "${PATHS[0]}" || return
	message reinstate_path "${PATHS[1]}" || return
	split_of read_blocks 100 || return
	check_split "reinstated twice" 50 50
}

a_group_without_paths_hands_over_to_the_next() {
	local all
	use_paths 3
	all=("${PATHS[@]}")
	PATHS=("${all[@]:0:2}")
	local first
	first=$(group "$SELECTOR" 1 1)
	PATHS=("${all[2]}")
	create_map "$(table "$BIO" "$first" "$(group "$SELECTOR" 1)")" || return
	PATHS=("${all[@]}")
	split_of read_blocks 100 || return
	check_split "first group" 50 50 0
	message fail_path "${PATHS[0]}" && message fail_path "${PATHS[1]}" || return
	split_of read_blocks 100 || return
	check_split "second group" 0 0 100
}

without_queueing_io_fails_when_all_paths_are_down() {
	use_paths 2
	create_map "$(table "$BIO" "$(group "$SELECTOR" 1 1)")" || return
	message fail_path "${PATHS[0]}" && message fail_path "${PATHS[1]}" || return
	! read_blocks 1 2>/dev/null || fail "a read without a path did not fail"
	check "reinstate" message reinstate_path "${PATHS[1]}"
	split_of read_blocks 20 || return
	check_split "one path back" 0 20
}

with_queueing_io_waits_for_a_path() {
	local reader
	use_paths 2
	create_map "$(table "$BIO_QUEUEING" "$(group "$SELECTOR" 1 1)")" || return
	message fail_path "${PATHS[0]}" && message fail_path "${PATHS[1]}" || return
	read_blocks 20 &
	reader=$!
	# Else a failed case would leave a reader that nothing ends.
	at_exit "dmsetup message $MAP 0 fail_if_no_path 2>/dev/null || :"
	sleep 0.5
	check "the read waits" kill -0 "$reader"
	check "reinstate" message reinstate_path "${PATHS[0]}"
	check "the read ends well" wait "$reader"
}

set_up 4 && load_selectors || exit
run_cases ios_are_split_evenly ios_are_split_evenly_without_arguments ios_are_split_by_weight \
	turns_of_a_heavy_path_are_spread_out all_cpus_share_out_evenly \
	requests_are_split_by_weight failed_paths_get_nothing_and_the_others_share \
	failing_and_reinstating_twice_is_harmless a_group_without_paths_hands_over_to_the_next \
	without_queueing_io_fails_when_all_paths_are_down with_queueing_io_waits_for_a_path
