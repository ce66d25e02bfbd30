#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# Runs: vm
# Timeout: 240
#
# Each kind of limit holds: what passes in 5 s is within 5 % of it.

. "$(dirname "$0")/common.sh"

SECONDS_MEASURED=5

# measure NAME:FIELD:RATE...: what the fields grow by in 5 s, against the rates.
measure() {
	local spec name what rate after now expected index=0
	local start=()
	local -A before=()
	# The credit of the beginning is spent, and fio is up.
	for spec; do
		IFS=: read -r name what rate <<<"$spec"
		check "$name waits" wait_for 20 field_is "$name" "${what%%_*}_held_total" -gt 20
	done
	for spec; do
		IFS=: read -r name what rate <<<"$spec"
		start[${#start[@]}]=$(microseconds)
		before[$spec]=$(field "$name" "$what")
	done
	sleep "$SECONDS_MEASURED"
	for spec; do
		IFS=: read -r name what rate <<<"$spec"
		now=$(microseconds)
		after=$(field "$name" "$what")
		expected=$((rate * (now - start[index]) / 1000000))
		check_within "$name: $what in 5 s" $((after - before[$spec])) \
			$((expected * 95 / 100)) $((expected * 105 / 100))
		index=$((index + 1))
	done
}

# three_kinds UNIT RATE BLOCK_SIZE DEPTH FIELD: the three kinds of a limit, on a device each.
three_kinds() {
	local unit=$1 rate=$2 bs=$3 depth=$4 field=$5
	make_disk d
	make_qos "total" d "$unit" "$rate"
	make_qos "read" d "read_$unit" "$rate"
	make_qos "write" d "write_$unit" "$rate"
	io_starts total read "$depth" --bs="$bs"
	io_starts read randread "$depth" --bs="$bs"
	io_starts write randwrite "$depth" --bs="$bs"
	measure "total:read_$field:$rate" "read:read_$field:$rate" "write:write_$field:$rate"
}

iops_100() {
	three_kinds iops 100 4k 8 ios
}

iops_1000() {
	three_kinds iops 1000 4k 16 ios
}

# One at a time: three of them are more than a slow guest can do.
iops_5000() {
	local kind name field key rw
	make_disk d
	for kind in total:read_ios:iops:randread read:read_ios:read_iops:randread \
		write:write_ios:write_iops:randwrite; do
		IFS=: read -r name field key rw <<<"$kind"
		make_qos "$name" d "$key" 5000
		io_starts "$name" "$rw" 64 --iodepth_batch=16 --iodepth_batch_complete_min=8
		measure "$name:$field:5000"
		no_limits "$name"
		io_stops "$IO_PID"
	done
}

bps_1m() {
	three_kinds bps $((1 << 20)) 16k 8 bytes
}

bps_16m() {
	three_kinds bps $((16 << 20)) 64k 8 bytes
}

bps_64m() {
	three_kinds bps $((64 << 20)) 256k 8 bytes
}

# The total is shared, and neither direction starves.
reads_and_writes_share_a_total() {
	local reads writes start expected
	make_disk d
	make_qos both d iops 1000 bps 1G
	io_starts both randread 16
	io_starts both randwrite 16
	check "writes wait" wait_for 20 field_is both write_held_total -gt 20
	start=$(microseconds)
	mapfile -t before < <(fields both read_ios write_ios)
	sleep "$SECONDS_MEASURED"
	mapfile -t after < <(fields both read_ios write_ios)
	reads=$((after[0] - before[0]))
	writes=$((after[1] - before[1]))
	expected=$(((${EPOCHREALTIME/./} - start) / 1000))
	check_within "reads and writes" $((reads + writes)) \
		$((expected * 95 / 100)) $((expected * 105 / 100))
	check_within "reads" "$reads" $((expected * 45 / 100)) $((expected * 55 / 100))
}

# The slowest limit governs.
limits_apply_together() {
	make_disk d
	make_qos all d iops 2000 read_iops 500 bps 1G
	io_starts all randread 16
	measure "all:read_ios:500"
}

# One thread that waits for each I/O is held to the same rate.
depth_one_is_held_to_the_rate() {
	make_disk d
	make_qos one d iops 200 burst_ms 0
	io_starts one randread 1
	measure "one:read_ios:200"
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
