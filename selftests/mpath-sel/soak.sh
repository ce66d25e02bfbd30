#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# Runs: vm uml
# Timeout: 240
#
# Paths that come and go and tables that change, by chance and in any order, under I/O that is
# verified. A little of it: SEED= and COUNT= (of steps) say otherwise, as `make soak` does.

. "$(dirname "$0")/common.sh"

: "${SEED:=$((RANDOM << 15 | RANDOM))}"
: "${COUNT:=24}"

# any_table: of the device, as TABLE.
any_table() {
	local first second
	any "1 1 1 1" "4 3 2 1" "1 1000 1 1" "0 1 2 3"
	# shellcheck disable=SC2086 # they are words
	first=$(group "$SELECTOR" $ANY)
	# The C selector passes over these.
	any 0 "1 latency" "1 nearest" "2 latency nearest"
	first=${first/"$SELECTOR 0"/"$SELECTOR $ANY"}
	second=$(group "$SELECTOR" 1 2 3 4)
	any "$first" "$first $second"
	TABLE="0 $SECTORS multipath $BIO_QUEUEING 0 $(grep -o "$SELECTOR" <<<"$ANY" | wc -l) 1 $ANY"
}

# step: DONE says what was done.
step() {
	local path=${PATHS[RANDOM % ${#PATHS[@]}]}
	case $((RANDOM % 8)) in
	0 | 1 | 2)
		DONE=flaps
		message fail_path "$path" && message reinstate_path "$path"
		;;
	3)
		# All of them: what comes waits.
		DONE=outages
		for path in "${PATHS[@]}"; do
			message fail_path "$path" || return
		done
		for path in "${PATHS[@]}"; do
			message reinstate_path "$path" || return
		done
		;;
	4 | 5)
		DONE=tables
		any_table
		change_map "$TABLE"
		;;
	6)
		DONE=switches
		message switch_group 1
		;;
	7)
		DONE=looks
		dmsetup status "$MAP" >/dev/null && dmsetup table "$MAP" >/dev/null
		;;
	esac
}

paths_come_and_go_under_verified_io() {
	local number verify name
	local -A did=()
	RANDOM=$SEED
	use_paths 4
	any_table
	create_map "$TABLE" || return
	mkfifo /tmp/soak || return
	at_exit "rm /tmp/soak"
	control verify --no-errors "/dev/mapper/$MAP" - "$SEED" 4 </tmp/soak &
	verify=$!
	exec {VERIFIED}>/tmp/soak
	for ((number = 0; number < COUNT; number++)); do
		step || fail "SEED=$SEED, step $number: $DONE" || break
		did[$DONE]=$((${did[$DONE]:-0} + 1))
	done
	for name in "${PATHS[@]}"; do
		message reinstate_path "$name"
	done
	exec {VERIFIED}>&-
	check "SEED=$SEED: what was written is there" wait "$verify"
	for name in "${!did[@]}"; do
		diag "did: ${did[$name]} $name"
	done
}

the_module_comes_and_goes_with_its_devices() {
	local number rounds=$((COUNT / 4))
	use_paths 2
	for ((number = 0; number < rounds; number++)); do
		dmsetup create "$MAP" --table "$(table "$BIO" "$(group "$SELECTOR" 1 1)")" &&
			read_blocks 4 && dmsetup remove --retry "$MAP" || return
		unload_module "$MODULE" && load_module "$MODULE" ||
			fail "round $number" || return
	done
	diag "did: $number loads of $MODULE"
}

set_up 4 && load_selectors || exit
run_cases paths_come_and_go_under_verified_io the_module_comes_and_goes_with_its_devices
