#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# Weights that follow latency: a path with 30 ms of delay, one that gets or loses it, all alike.
#
# Ours: weights that follow latency
# Runs: vm uml
# Timeout: 600

. "$(dirname "$0")/common.sh"

# latency_group [WEIGHT...]
latency_group() {
	group round-robin-rs "$@" | sed 's/^round-robin-rs 0/round-robin-rs 1 latency/'
}

# delays MS...: of each of PATHS.
delays() {
	local i name
	for i in "${!PATHS[@]}"; do
		name=$(basename "${PATHS[i]}")
		dmsetup reload "$name" --table "0 $SECTORS delay /dev/ram0 0 ${*:i+1:1}" &&
			dmsetup suspend --nolockfs "$name" && dmsetup resume "$name" || return
	done
}

# read_for SECONDS [DEPTH [exec]]: reads all the time, on $CPUS; with exec in place of the shell.
read_for() {
	${3:-} fio --name=read --filename="/dev/mapper/$MAP" --rw=randread --bs=4k --direct=1 \
		--ioengine=libaio --iodepth="${2:-16}" ${CPUS:+--cpus_allowed="$CPUS"} \
		--time_based --runtime="$1" >/dev/null
}

# check_share WHAT PATH LOW HIGH: PATH's part of SPLIT, in percent.
check_share() {
	local sum=0 part
	for part in "${SPLIT[@]}"; do
		sum=$((sum + part))
	done
	diag "$1: ${SPLIT[*]}"
	check_within "$1: percent on path $2" $((SPLIT[$2] * 100 / (sum ? sum : 1))) "$3" "$4"
}

# share_becomes WHAT PATH MIN MAX: of a second's I/Os, before long. (When, is a matter of how many
# there are; selftests/unit has a second for it.)
share_becomes() {
	local i percent
	for ((i = 0; i < 15; i++)); do
		split_of sleep 1 || return
		percent=$((SPLIT[$2] * 100 / (SPLIT[0] + SPLIT[1] + 1)))
		((percent < $3 || percent > $4)) || break
	done
	diag "$1: after $i s"
	check_share "$@"
}

# field PATH NUMBER: of the status: 1 weight, 2 latency in us, 3 share in percent.
field() {
	dmsetup status "$MAP" |
		awk -v n="$(cat "/sys/block/${NODE[${PATHS[$1]}]}/dev")" -v f="$2" \
			'{ for (i = 1; i <= NF; i++) if ($i == n) print $(i + 2 + f) }'
}

a_slow_path_gets_little() {
	local with without
	use_paths 2
	delays 0 30 || return
	create_map "$(table "$BIO" "$(latency_group 1 1)")" || return
	split_of read_for 3 || return
	diag "the first 3 s: ${SPLIT[*]}"
	split_of read_for 3 || return
	diag "status: $(dmsetup status "$MAP")"
	check_share "30 ms more" 1 0 10
	check_within "but enough to notice" "${SPLIT[1]}" 4 1000000
	with=$((SPLIT[0] + SPLIT[1]))
	# dm-delay counts in jiffies: 30 ms are two whole ones and more where HZ is 100.
	check_within "its latency in us" "$(field 1 2)" 20000 200000
	change_map "$(table "$BIO" "$(group round-robin-rs 1 1)")" || return
	split_of read_for 3 || return
	diag "by turns: ${SPLIT[*]}"
	without=$((SPLIT[0] + SPLIT[1]))
	check_within "I/Os, in percent of those by turns" $((with * 100 / without)) 200 100000
}

a_change_is_noticed() {
	local reader
	use_paths 2
	delays 0 30 || return
	create_map "$(table "$BIO" "$(latency_group 1 1)")" || return
	# In place of the shell, so that it can be told to end.
	(read_for 120 16 exec) &
	reader=$!
	at_exit "kill $reader 2>/dev/null || :"
	share_becomes "the second is slow" 1 0 15 || return
	delays 30 0 || return
	share_becomes "the first is slow" 0 0 20 || return
	delays 0 0 || return
	share_becomes "none is slow" 0 35 65 || return
	kill -INT "$reader"
	wait "$reader"
	# What fio says when it was told to end, and all was well.
	check "no read failed" [ $? -eq 128 ]
}

paths_alike_are_left_alone() {
	use_paths 4
	delays 0 0 0 0 || return
	create_map "$(table "$BIO" "$(latency_group 1 1 1 1)")" || return
	split_of read_for 4 || return
	check_share "alike" 0 20 30
	check_share "alike" 3 20 30
	delays 2 2 2 2 || return
	split_of read_for 4 || return
	check_share "alike, with delay" 0 20 30
	check_share "alike, with delay" 2 20 30
	split_of read_for 3 1 || return
	check_share "alike, one at a time" 1 20 30
}

own_weights_count() {
	use_paths 3
	delays 0 0 30 || return
	create_map "$(table "$BIO" "$(latency_group 3 1 4)")" || return
	read_for 2 || return
	split_of read_for 3 || return
	check_share "weight 3" 0 65 82
	check_share "slow, weight 4" 2 0 10
}

a_failed_path_is_not_used() {
	use_paths 2
	delays 0 30 || return
	create_map "$(table "$BIO" "$(latency_group 1 1)")" || return
	read_for 2 || return
	message fail_path "${PATHS[0]}" || return
	split_of read_for 2 || return
	check_share "only the slow one is left" 0 0 0
	message reinstate_path "${PATHS[0]}" || return
	read_for 2 || return
	split_of read_for 2 || return
	check_share "the fast one is back" 0 90 100
	message fail_path "${PATHS[0]}" && message fail_path "${PATHS[1]}" || return
	sleep 0.5
	check "no path, no I/O" eval '! read_blocks 1 2>/dev/null'
}

# null_paths NS...: paths whose I/Os take so long, and end on the CPU that has started them.
null_paths() {
	local configfs=/sys/kernel/config/nullb disk i
	modprobe null_blk nr_devices=0 || return
	[ -d "$configfs" ] || mount -t configfs none /sys/kernel/config || return
	at_exit "remove_module null_blk"
	PATHS=()
	for ((i = 1; i <= $#; i++)); do
		disk=null$i
		mkdir "$configfs/$disk" || return
		at_exit "rmdir $configfs/$disk"
		echo 64 >"$configfs/$disk/size" && echo 2 >"$configfs/$disk/irqmode" ||
			return
		echo "${!i}" >"$configfs/$disk/completion_nsec" || return
		echo 1 >"$configfs/$disk/power" || return
		PATHS+=("/dev/$disk")
		# Nobody else wants to know when requests start.
		! [ -w "/sys/block/$disk/queue/wbt_lat_usec" ] ||
			echo 0 >"/sys/block/$disk/queue/wbt_lat_usec"
	done
}

requests_too() {
	null_paths 100000 30000000 || return
	create_map "$(table "2 queue_mode mq" "$(latency_group 1 1)")" || return
	split_of read_for 3 || return
	diag "the first 3 s: ${SPLIT[*]}"
	split_of read_for 3 || return
	diag "status: $(dmsetup status "$MAP")"
	check_share "request-based, 30 ms" 1 0 10
	remove_device "$MAP"
}

# So few I/Os, and times so much alike, tell nothing of latency; what is in flight does.
in_flight_is_balanced() {
	local mode
	null_paths 20000000 36000000 || return
	for mode in "$BIO" "2 queue_mode mq"; do
		create_map "$(table "$mode" "$(latency_group 1 1)")" || return
		CPUS=0 split_of read_for 4 8 || return
		diag "status: $(dmsetup status "$MAP")"
		check_share "$mode: 20 and 36 ms" 1 30 45
		remove_device "$MAP"
	done
}

table_and_status() {
	local first words
	use_paths 2
	delays 0 0 || return
	create_map "$(table "$BIO" "$(latency_group 3 1)")" || return
	first=$(dmsetup table "$MAP")
	diag "$first"
	[[ $first == *" round-robin-rs 1 latency 2 1 "*" 3 "*" 1"* ]] || fail "another table"
	create_map "$first" "$MAP-again" || return
	[ "$first" = "$(dmsetup table "$MAP-again")" ] || fail "comes back as another"
	words=$(dmsetup status "$MAP-again" | sed -E 's/.* (0 2 3 )/\1/')
	diag "$words"
	[[ $words =~ ^'0 2 3 '[0-9:]+' A 0 3 0 75.00 '[0-9:]+' A 0 1 0 25.00'' '?$ ]] ||
		fail "another status"
	# The word is found among others, which are ignored.
	change_map "$(table "$BIO" "round-robin-rs 3 any latency thing 1 0 ${PATHS[0]}")" || return
	[[ $(dmsetup table "$MAP") == *" round-robin-rs 1 latency 1 1 "* ]] || fail "not found"
	change_map "$(table "$BIO" "round-robin-rs 1 latencies 1 0 ${PATHS[0]}")" || return
	[[ $(dmsetup table "$MAP") == *" round-robin-rs 0 1 1 "* ]] || fail "found another"
}

goes_with_its_work_pending() {
	local i
	use_paths 2
	delays 0 0 || return
	for ((i = 0; i < 5; i++)); do
		dmsetup create "$MAP" --table "$(table "$BIO" "$(latency_group 1 1)")" || return
		read_blocks 50 || return
		sleep "0.0$i"
		dmsetup remove --retry "$MAP" && unload_module "$MODULE" || return
		load_module "$MODULE" || return
	done
}

set_up 4 && modprobe dm-delay && load_selectors || exit
run_cases table_and_status a_slow_path_gets_little a_change_is_noticed paths_alike_are_left_alone \
	own_weights_count a_failed_path_is_not_used requests_too \
	in_flight_is_balanced goes_with_its_work_pending
