#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# Runs: vm uml
# Ours: changes of our own tables
# Timeout: 240
#
# What an operator may do to devices in use, by chance and in any order, under I/O that is verified.
# A little of it: SEED= and COUNT= (of steps) say otherwise, as `make soak` does.

. "$(dirname "$0")/common.sh"

: "${SEED:=$((RANDOM << 15 | RANDOM))}"
: "${COUNT:=24}"

# any_keys: a device's keys, as KEYS.
any_keys() {
	KEYS=()
	any "" "iops 5000" "read_iops 2000 write_iops 3000" "bps 40M" "iops 4000 bps 80M burst_ms 1"
	# shellcheck disable=SC2206 # they are words
	KEYS+=($ANY)
	any "" "" "group soak weight 50" "group soak group_iops 20000 reserve_iops 300"
	# shellcheck disable=SC2206
	KEYS+=($ANY)
}

# any_suspension: options of dmsetup suspend, as ANY.
any_suspension() {
	any "" "--nolockfs" "--noflush" "--noflush --nolockfs"
}

# change_table NAME DISK: DONE says what was done.
change_table() {
	any_keys
	dmsetup reload "$1" --table "$(qos_table "$2" "${KEYS[@]}")" || return
	DONE=tables
	# One in eight is thought better of.
	if [ $((RANDOM % 8)) = 0 ]; then
		dmsetup clear "$1"
		return
	fi
	any_suspension
	# shellcheck disable=SC2086
	dmsetup suspend $ANY "$1" && dmsetup resume "$1"
}

# step: one thing, to one of the devices.
step() {
	local name disk
	any "q d" "r e"
	read -r name disk <<<"$ANY"
	case $((RANDOM % 6)) in
	0 | 1) change_table "$name" "$disk" ;;
	2)
		DONE=messages
		any "iops 3000" "iops 0" "bps 30M" "read_bps 20M write_bps 0" "write_iops 20" \
			"iops 100000 bps 1G"
		# shellcheck disable=SC2086
		dmsetup message "$name" 0 set $ANY || return
		# As slow as that only for a moment.
		dmsetup message "$name" 0 set write_iops 0
		;;
	3)
		DONE=suspensions
		any_suspension
		# shellcheck disable=SC2086
		dmsetup suspend $ANY "$name" && dmsetup resume "$name"
		;;
	4)
		DONE=looks
		dmsetup status "$name" >/dev/null && dmsetup table "$name" >/dev/null &&
			dmsetup message "$name" 0 reset
		;;
	5)
		DONE=members
		dmsetup create guest --table "$(qos_table f group soak weight 20)" || return
		dd if=/dev/mapper/guest of=/dev/null bs=4k count=4 iflag=direct status=none
		dmsetup remove --retry guest
		;;
	esac
}

tables_and_limits_change_under_verified_io() {
	local number name verify
	local -A did=()
	RANDOM=$SEED
	for name in d e f; do
		make_disk "$name" memory_backed=1 || return
	done
	make_qos q d group soak group_iops 20000 weight 300 || return
	make_qos r e group soak reserve_iops 500 || return
	mkfifo /tmp/soak || return
	at_exit "rm /tmp/soak"
	control verify --no-errors /dev/mapper/q - "$SEED" 2 </tmp/soak &
	verify=$!
	control verify --no-errors /dev/mapper/r - "$SEED" 2 </tmp/soak &
	verify+=" $!"
	exec {VERIFIED}>/tmp/soak
	for ((number = 0; number < COUNT; number++)); do
		step || fail "SEED=$SEED, step $number: $DONE" || break
		did[$DONE]=$((${did[$DONE]:-0} + 1))
	done
	no_limits q
	no_limits r
	exec {VERIFIED}>&-
	for name in $verify; do
		check "SEED=$SEED: what was written is there" wait "$name"
	done
	for name in "${!did[@]}"; do
		diag "did: ${did[$name]} $name"
	done
}

the_module_comes_and_goes_with_its_devices() {
	local number rounds=$((COUNT / 4))
	make_disk d memory_backed=1 || return
	for ((number = 0; number < rounds; number++)); do
		dmsetup create q --table "$(qos_table d iops 50000)" || return
		dd if=/dev/zero of=/dev/mapper/q bs=4k count=8 oflag=direct status=none || return
		dmsetup remove --retry q && comes_and_goes 1 || fail "round $number" || return
	done
	diag "did: $number loads of dm-qos"
}

set_up || exit
run_cases tables_and_limits_change_under_verified_io the_module_comes_and_goes_with_its_devices
