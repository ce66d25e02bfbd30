#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# Ours: counts of its own
# Runs: vm
# Timeout: 240
#
# Tiers: a cache of a fast and a slow device. What the fast one has does not use up what the slow
# one is limited to; a limit above the cache counts all.

. "$(dirname "$0")/common.sh"

# What is used again and again, in blocks of the cache.
HOT=16
HOT_RANGE="0:64K*$HOT"

# make_tiers MODE: the device tiers, with the qos device slow under it.
make_tiers() {
	modprobe dm-cache-smq && at_exit "remove_module dm_cache_smq; remove_module dm_cache"
	make_disk disk-slow memory_backed=1 size=16 discard=1 && make_qos slow disk-slow &&
		make_disk disk-fast memory_backed=1 size=4 &&
		make_disk metadata memory_backed=1 size=4 || return
	dmsetup create tiers --table "0 32768 cache /dev/metadata /dev/disk-fast /dev/mapper/slow \
128 1 $1 smq 0" || return
	at_exit "no_limits slow; remove_device tiers"
	check "hot data" io_is_well tiers at-once "write:$HOT_RANGE"
	check "they become hot" wait_for 60 hot_data_hit
}

# hits: of reads, so far.
hits() {
	dmsetup status tiers | cut -d ' ' -f 8
}

# hot_data_hit: each read of a block.
hot_data_hit() {
	local before
	before=$(hits)
	io_is_well tiers "verify:$HOT_RANGE" && [ "$(hits)" = $((before + HOT)) ]
}

limits_of_the_slow_device_count_what_the_fast_one_has_not() {
	local before passed round
	make_tiers writethrough || return
	dmsetup message slow 0 set iops 1 burst_ms 0
	before=$(hits) passed=$(field slow read_ios)
	for ((round = 0; round < 10; round++)); do
		check "hot data" takes_at_most "$PROMPT" io_is_well tiers at-once \
			"verify:$HOT_RANGE" || return
	done
	check "hits" [ "$(hits)" = $((before + 10 * HOT)) ]
	check "none of them came to the slow device" [ "$(field slow read_ios)" = "$passed" ]
	check "none has waited" field_is slow read_held_total -eq 0
	# Nothing was there before.
	io_in_background /tmp/results tiers at-once "read:8M:64K*24"
	check "what is cold waits" held slow read 4
	check "hot data do not" takes_at_most "$PROMPT" io_is_well tiers "verify:$HOT_RANGE"
	no_limits slow
	check "it is over" wait_for "$PROMPT" test -e /tmp/results
	check "and well" fails grep -v ": ok" /tmp/results
}

what_is_written_through_is_limited() {
	local passed
	make_tiers writethrough || return
	passed=$(field slow write_ios)
	dmsetup message slow 0 set iops 20 burst_ms 0
	check "write hot data" io_is_well tiers at-once "write:$HOT_RANGE"
	# The cache's own, such as those of a promotion, come on top.
	check "all came to the slow device" field_is slow write_ios -ge $((passed + HOT))
	check "and waited" field_is slow write_held_total -ge $((HOT / 2))
	no_limits slow
	check "hot data still hit" hot_data_hit
}

limits_above_count_hits_and_misses() {
	local passed
	make_tiers writeback || return
	passed=$(field slow read_ios)
	make_qos top mapper/tiers iops 20 burst_ms 0
	check "hot data" io_is_well top at-once "verify:$HOT_RANGE"
	check "not from the slow device" [ "$(field slow read_ios)" = "$passed" ]
	check "all counted" field_is top read_ios -eq "$HOT"
	check "and they waited" field_is top read_held_total -ge $((HOT / 2))
	check "cold data" io_is_well top at-once "read:8M:64K*8"
	check "from the slow device" field_is slow read_ios -ge $((passed + 8))
	check "counted as well" field_is top read_ios -eq $((HOT + 8))
	remove_qos top
}

set_up && io_serves || exit
run_cases limits_of_the_slow_device_count_what_the_fast_one_has_not \
	what_is_written_through_is_limited limits_above_count_hits_and_misses
