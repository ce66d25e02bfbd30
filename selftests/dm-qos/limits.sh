#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# Runs: vm
# Timeout: 240
#
# Each kind of limit holds: what passes in 5 s is within 5 % of it.

. "$(dirname "$0")/common.sh"

# snapshot: what all devices' status says, and when, in microseconds: STATUS and TIME. The time is
# that of the middle, so a slow dmsetup is called again.
snapshot() {
	local before try
	for ((try = 0; try < 8; try++)); do
		before=${EPOCHREALTIME/./}
		STATUS=$(dmsetup status --target qos)
		TIME=$(((before + ${EPOCHREALTIME/./}) / 2))
		[ "$((TIME - before))" -gt 50000 ] || return
	done
}

# from_status NAME FIELD: from the last snapshot.
from_status() {
	local line
	line=$(grep "^$1:" <<<"$STATUS")
	line="${line#* "$2"=}"
	echo "${line%% *}"
}

# all_wait NAME...: there is always something that waits, so that it is the limit that is measured.
all_wait() {
	local name
	for name; do
		[ "$(from_status "$name" read_held)" -gt 0 ] ||
			[ "$(from_status "$name" write_held)" -gt 0 ] ||
			return
	done
}

# measure RATE NAME:FIELD...: what the field of each device grows by in 5 s, against the rate. A
# guest that is too slow for a moment to keep the devices busy gets another chance.
measure() {
	local rate=$1 spec try names=() expected
	local -A before=()
	shift
	names=("${@%%:*}")
	for spec in "${names[@]}"; do
		check "$spec: I/O waits" wait_for 60 some_waited "$spec"
	done
	for ((try = 0; try < 5; try++)); do
		snapshot
		for spec; do
			before[$spec]=$(from_status "${spec%:*}" "${spec#*:}")
		done
		expected=$TIME
		all_wait "${names[@]}" || continue
		sleep 5
		snapshot
		expected=$((rate * (TIME - expected) / 1000000))
		! all_wait "${names[@]}" || break
		diag "the guest is too slow to reach the limit: once more"
	done
	for spec; do
		check_within "$spec in 5 s" \
			$(($(from_status "${spec%:*}" "${spec#*:}") - before[$spec])) \
			$((expected * 95 / 100)) $((expected * 105 / 100))
	done
}

some_waited() {
	[ "$(($(fields "$1" read_held_total write_held_total | paste -sd +)))" -gt 20 ]
}

# together UNIT RATE FIELD BLOCK_SIZE: the three kinds of a limit, on a device each.
together() {
	make_disk d
	make_qos "total" d "$1" "$2"
	make_qos "read" d "read_$1" "$2"
	make_qos "write" d "write_$1" "$2"
	io_starts total read 8 --bs="$4"
	io_starts read randread 8 --bs="$4"
	io_starts write randwrite 8 --bs="$4"
	measure "$2" "total:read_$3" "read:read_$3" "write:write_$3"
}

# one_by_one UNIT RATE FIELD BLOCK_SIZE: as together, when that would be too much for a slow guest.
one_by_one() {
	local kind name key rw
	make_disk d
	for kind in "total $1 randread" "read read_$1 randread" "write write_$1 randwrite"; do
		read -r name key rw <<<"$kind"
		make_qos "$name" d "$key" "$2"
		io_starts "$name" "$rw" 64 --bs="$4" \
			--iodepth_batch=16 --iodepth_batch_complete_min=8
		measure "$2" "$name:${rw#rand}_$3"
		no_limits "$name"
		io_stops "$IO_PID"
	done
}

iops_100() {
	together iops 100 ios 4k
}

iops_1000() {
	one_by_one iops 1000 ios 4k
}

iops_5000() {
	one_by_one iops 5000 ios 4k
}

bps_1m() {
	together bps $((1 << 20)) bytes 16k
}

bps_16m() {
	together bps $((16 << 20)) bytes 128k
}

bps_64m() {
	together bps $((64 << 20)) bytes 512k
}

# The total is shared, and neither direction starves.
reads_and_writes_share_a_total() {
	local reads writes start
	make_disk d
	make_qos both d iops 500 bps 1G
	io_starts both randread 8
	io_starts both randwrite 8
	check "writes wait" wait_for 60 field_is both write_held_total -gt 20
	check "reads wait" wait_for 60 field_is both read_held_total -gt 20
	snapshot
	start=$TIME
	reads=$(from_status both read_ios)
	writes=$(from_status both write_ios)
	sleep 5
	snapshot
	reads=$(($(from_status both read_ios) - reads))
	writes=$(($(from_status both write_ios) - writes))
	check_within "reads, in percent of all" $((100 * reads / (reads + writes))) 48 52
	check_within "both in 5 s" $((reads + writes)) \
		$((500 * (TIME - start) / 1050000)) $((500 * (TIME - start) / 950000))
}

# The slowest limit governs.
limits_apply_together() {
	make_disk d
	make_qos all d iops 2000 read_iops 500 bps 1G
	io_starts all randread 16
	measure 500 all:read_ios
}

# One thread that waits for each I/O is held to the same rate.
depth_one_is_held_to_the_rate() {
	make_disk d
	make_qos one d iops 200 burst_ms 0
	io_starts one randread 1
	measure 200 one:read_ios
}

# Writeback counts, whoever dirtied the pages.
buffered_writes_are_limited() {
	local start took
	make_disk d memory_backed=1
	make_qos buffered d write_bps 8M
	start=$(microseconds)
	dd if=/dev/zero of=/dev/mapper/buffered bs=1M count=32 conv=fsync status=none
	took=$((($(microseconds) - start) / 1000))
	check_within "32 MiB at 8 MiB/s, in ms" "$took" 3800 6000
	check_within "bytes" "$(field buffered write_bytes)" $((32 << 20)) $((33 << 20))
}

# After a rest, 2,000 ms of credit at 100 a second are 200 I/Os at once.
an_idle_device_saves_up_its_burst() {
	local passed
	make_disk d
	make_qos burst d iops 100 burst_ms 2000
	sleep 2
	io_starts burst randread 64
	check "credit ends" wait_for 20 field_is burst read_held -gt 0
	passed=$(field burst read_ios)
	check_within "passed at once" "$passed" 200 230
}

set_up || exit
run_cases iops_100 iops_1000 iops_5000 bps_1m bps_16m bps_64m reads_and_writes_share_a_total \
	limits_apply_together depth_one_is_held_to_the_rate buffered_writes_are_limited \
	an_idle_device_saves_up_its_burst
