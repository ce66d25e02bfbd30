#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# Runs: vm
# Timeout: 600
# Alone: it measures rates
#
# Each kind of limit holds: what passes in 5 s is within 5 % of it.

. "$(dirname "$0")/common.sh"

# sample NAME COUNTER: how many reads, writes, read_bytes or write_bytes are done, and when: COUNT
# and TIME, in microseconds. Starts no process, which would take as long as it likes.
declare -A MINOR
sample() {
	local stat
	[ -n "${MINOR[$1]}" ] || MINOR[$1]=$(dmsetup info -c --noheadings -o minor "$1")
	read -r -a stat <"/sys/block/dm-${MINOR[$1]}/stat"
	TIME=${EPOCHREALTIME/./}
	case $2 in
	reads) COUNT=${stat[0]} ;;
	read_bytes) COUNT=$((stat[2] * 512)) ;;
	writes) COUNT=${stat[4]} ;;
	write_bytes) COUNT=$((stat[6] * 512)) ;;
	esac
}

# all_wait NAME...: there is always something that waits, so that it is the limit that is measured.
# (io.max does not say: with it fio's depth has to do.)
all_wait() {
	local name
	! is_about_the_peer || return 0
	for name; do
		[ "$(($(fields "$name" read_held write_held | paste -sd +)))" -gt 0 ] || return
	done
}

# measure RATE NAME:COUNTER...: what is done in 5 s, against the rate. A guest that is too slow for
# a moment to keep the devices busy gets another chance, and so does one that stood still: no more
# than the burst is made up for.
measure() {
	local rate=$1 spec try slept names=()
	local -A start=() count=() time=()
	shift
	names=("${@%%:*}")
	for spec in "${names[@]}"; do
		check "$spec: I/O waits" wait_for 60 some_waited "$spec"
	done
	for ((try = 0; try < 5; try++)); do
		for spec; do
			sample "${spec%:*}" "${spec#*:}"
			start[$spec]=$TIME
			count[$spec]=$COUNT
		done
		all_wait "${names[@]}" || continue
		slept=${EPOCHREALTIME/./}
		sleep 5
		slept=$((${EPOCHREALTIME/./} - slept))
		for spec; do
			sample "${spec%:*}" "${spec#*:}"
			time[$spec]=$((TIME - start[$spec]))
			count[$spec]=$((COUNT - count[$spec]))
		done
		! all_wait "${names[@]}" || [ "$slept" -gt 5500000 ] || break
		diag "the guest is too slow, or stood still: once more"
	done
	for spec; do
		check_within "$spec in $((time[$spec] / 1000)) ms" "${count[$spec]}" \
			$((rate * time[$spec] * 95 / 100000000)) \
			$((rate * time[$spec] * 105 / 100000000))
	done
}

some_waited() {
	if is_about_the_peer; then
		sample "$1" reads
		[ "$COUNT" -gt 20 ] || { sample "$1" writes && [ "$COUNT" -gt 20 ]; }
		return
	fi
	[ "$(($(fields "$1" read_held_total write_held_total | paste -sd +)))" -gt 20 ]
}

# What is in flight must last for as long as a busy host keeps fio from running, and the burst for
# as long as it keeps dm-qos from it: no more is made up for.
DEPTH=128
PATIENT=(burst_ms 100)

# together UNIT RATE COUNTER BLOCK_SIZE: the three kinds of a limit, on a device each. (io.max has
# no total.)
together() {
	local total=("total:read$3")
	make_disk d
	if is_about_the_peer; then
		total=()
	else
		make_qos "total" d "$1" "$2" "${PATIENT[@]}"
		io_starts total read "$DEPTH" --bs="$4"
	fi
	make_qos "read" d "read_$1" "$2" "${PATIENT[@]}"
	make_qos "write" d "write_$1" "$2" "${PATIENT[@]}"
	io_starts read randread "$DEPTH" --bs="$4"
	io_starts write randwrite "$DEPTH" --bs="$4"
	measure "$2" "${total[@]}" "read:read$3" "write:write$3"
}

# one_by_one UNIT RATE COUNTER BLOCK_SIZE: as together, when that is too much for a slow guest.
one_by_one() {
	local kind name key rw kinds=("read read_$1 randread" "write write_$1 randwrite")
	is_about_the_peer || kinds+=("total $1 randread")
	make_disk d
	for kind in "${kinds[@]}"; do
		read -r name key rw <<<"$kind"
		make_qos "$name" d "$key" "$2" "${PATIENT[@]}"
		io_starts "$name" "$rw" 1024 --bs="$4" \
			--iodepth_batch=64 --iodepth_batch_complete_min=32
		measure "$2" "$name:${rw#rand}$3"
		no_limits "$name"
		io_stops "$IO_PID"
	done
}

iops_100() {
	together iops 100 s 4k
}

iops_1000() {
	one_by_one iops 1000 s 4k
}

iops_5000() {
	one_by_one iops 5000 s 4k
}

bps_1m() {
	together bps $((1 << 20)) _bytes 16k
}

bps_16m() {
	together bps $((16 << 20)) _bytes 128k
}

bps_64m() {
	together bps $((64 << 20)) _bytes 512k
}

# The total is shared, and neither direction starves.
reads_and_writes_share_a_total() {
	local reads writes start
	make_disk d
	make_qos both d iops 500 bps 1G "${PATIENT[@]}" || return
	io_starts both randread "$DEPTH"
	io_starts both randwrite "$DEPTH"
	check "reads wait" wait_for 60 field_is both read_held_total -gt 20
	check "writes wait" wait_for 60 field_is both write_held_total -gt 20
	sample both reads
	start=$TIME
	reads=$COUNT
	sample both writes
	writes=$COUNT
	sleep 5
	sample both reads
	reads=$((COUNT - reads))
	sample both writes
	writes=$((COUNT - writes))
	check_within "both, in percent of the limit" \
		$((100 * (reads + writes) * 1000000 / (500 * (TIME - start)))) 95 105
	check_within "reads, in percent of all" $((100 * reads / (reads + writes))) 48 52
}

# The slowest limit governs.
limits_apply_together() {
	make_disk d
	make_qos all d iops 2000 read_iops 500 bps 1G "${PATIENT[@]}" || return
	io_starts all randread "$DEPTH"
	measure 500 all:reads
}

# One thread that waits for each I/O is held to the same rate. It may not be quick enough to use
# all of it, though.
depth_one_is_held_to_the_rate() {
	local start ios
	make_disk d
	make_qos one d read_iops 200 burst_ms 0
	io_starts one randread 1
	check "I/O waits" wait_for 60 some_waited one
	sample one reads
	start=$TIME
	ios=$COUNT
	sleep 5
	sample one reads
	ios=$((COUNT - ios))
	check_within "I/Os in 5 s, in percent of the limit" \
		$((100 * ios * 1000000 / (200 * (TIME - start)))) 50 105
}

# Writeback counts, whoever dirtied the pages.
buffered_writes_are_limited() {
	local start took
	make_disk d memory_backed=1
	make_qos buffered d write_bps 8M
	start=$(microseconds)
	dd if=/dev/zero of=/dev/mapper/buffered bs=1M count=32 conv=fsync status=none
	took=$((($(microseconds) - start) / 1000))
	check_within "32 MiB at 8 MiB/s, in ms" "$took" 3800 10000
	sample buffered write_bytes
	check_within "bytes" "$COUNT" $((32 << 20)) $((33 << 20))
}

# 5,000 ms of credit at 10 a second are 50 I/Os at once.
an_idle_device_saves_up_its_burst() {
	local start passed
	make_disk d
	start=$(microseconds)
	make_qos burst d iops 10 burst_ms 5000
	io_starts burst randread 64
	check "credit ends" wait_for 60 field_is burst read_held -gt 0
	passed=$(field burst read_ios)
	# And what the time until then has let pass.
	check_within "passed at once" "$passed" 50 \
		$((52 + ($(microseconds) - start) / 100000))
}

ours_only "a burst that can be chosen" an_idle_device_saves_up_its_burst
set_up || exit
run_cases iops_100 iops_1000 iops_5000 bps_1m bps_16m bps_64m reads_and_writes_share_a_total \
	limits_apply_together depth_one_is_held_to_the_rate buffered_writes_are_limited \
	an_idle_device_saves_up_its_burst
