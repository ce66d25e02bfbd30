#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# Ours: counts of its own
# Runs: vm uml
# Timeout: 180
#
# What iostat, dmstats and the files in /sys/block that they read say of a qos device is true, of
# the I/O that waits as well.

. "$(dirname "$0")/common.sh"

# statistics NAME: as in Documentation/block/stat.rst, in the array STAT. NAME may be a disk's.
statistics() {
	read -r -a STAT <"/sys/class/block/$(node "$1" || echo "$1")/stat"
}

# done_so_far NAME: reads, sectors read, writes, sectors written.
done_so_far() {
	statistics "$1"
	echo "${STAT[0]} ${STAT[2]} ${STAT[4]} ${STAT[6]}"
}

# in_flight NAME: reads and writes.
in_flight() {
	xargs <"/sys/class/block/$(node "$1" || echo "$1")/inflight"
}

what_is_done_is_counted_above_and_below() {
	local before
	make_disk d memory_backed=1
	make_qos q d iops 500
	# Who made the devices has read from them.
	read -r -a before <<<"$(done_so_far d) $(done_so_far q)"
	check "I/O" io_is_well q write:0:4K*8 read:0:16K*2
	check "at once" io_is_well q at-once read:0:4K*3
	check "of the disk" [ "$(done_so_far d)" = "$((before[0] + 5)) \
$((before[1] + 88)) $((before[2] + 8)) $((before[3] + 64))" ]
	check "of the device" [ "$(done_so_far q)" = "$((before[4] + 5)) \
$((before[5] + 88)) $((before[6] + 8)) $((before[7] + 64))" ]
	check "of status" [ "$(fields q read_ios read_bytes write_ios write_bytes | xargs)" = \
		"5 45056 8 32768" ]
	check "nothing is in flight" [ "$(in_flight q)" = "0 0" ]
}

# It is when it leaves for the disk. (So has device mapper it for who submits later: dm-delay,
# dm-crypt.)
what_waits_is_in_the_times_and_not_in_flight() {
	make_disk d
	# A minute for each.
	make_qos q d bps 64 burst_ms 0
	at_exit "no_limits q"
	io_in_background /tmp/results q at-once write:0:4K*6 read:0:4K*6
	# One of them is done.
	check "reads wait" held q read 5
	check "writes wait" held q write 5
	check "not in flight" [ "$(in_flight q)" = "0 0" ]
	check "nor below" [ "$(in_flight d)" = "0 0" ]
	sleep 1
	no_limits q
	check "it is over" wait_for "$PROMPT" test -e /tmp/results
	check "and well" fails grep -v ": ok" /tmp/results
	check "nothing is in flight" [ "$(in_flight q)" = "0 0" ]
	# In milliseconds: ten that waited for a second.
	statistics q
	check_within "time of all" $((STAT[3] + STAT[7])) 9000 200000
	statistics d
	check_within "time of all, below" $((STAT[3] + STAT[7])) 0 2000
}

dmstats_counts_what_is_done() {
	local seen
	make_disk d memory_backed=1 discard=1
	make_qos q d
	check "a region" dmstats create --precise q >/dev/null
	check "I/O" io_is_well q write:0:4K*8 read:0:16K*2 discard:0:64K
	seen=$(dmstats report --noheadings --separator , q \
		-o read_count,read_sector_count,write_count,write_sector_count)
	diag "$seen"
	# A discard counts as a write.
	check "what it saw" [ "$seen" = "2,64,9,192" ]
	check "no region" dmstats delete --allregions q
}

# start_limited: q, with writes at its limit of 4 MiB/s until the end of the case. What is in
# flight lasts for a second in which fio does not run.
start_limited() {
	local writer
	make_disk d memory_backed=1
	make_qos q d write_bps 4M burst_ms 100
	fio --name=w --filename=/dev/mapper/q --rw=write --bs=32k --direct=1 --ioengine=libaio \
		--iodepth=128 --size=16m --time_based --runtime=300 >/dev/null 2>&1 &
	writer=$!
	at_exit "kill $writer; wait $writer || :"
	check "as many wait as will" held q write 120
}

# counted_during COMMAND...: what the device itself counts meanwhile: IOS, KB and, in microseconds,
# TOOK.
counted_during() {
	local start before after
	start=$(microseconds)
	mapfile -t before < <(fields q write_ios write_bytes)
	"$@" || return
	mapfile -t after < <(fields q write_ios write_bytes)
	TOOK=$(($(microseconds) - start))
	IOS=$((after[0] - before[0]))
	KB=$(((after[1] - before[1]) / 1024))
}

# check_seen WHAT VALUE COUNTED MOST: a rate, against what was counted while it was measured. A
# machine that stood still for a while was slower than the limit; faster it never was.
check_seen() {
	diag "counted: $3 in $((TOOK / 1000)) ms"
	check_within "$1" "$2" $(($3 * 700000 / TOOK)) "$4"
}

iostat_shows_the_limit() {
	command -v iostat >/dev/null || skip "no iostat"
	start_limited
	# From then on; for the two devices, in kB per second.
	LC_ALL=C counted_during iostat -dky 5 1 "$(node q)" d >/tmp/iostat || return
	diag "$(grep -E "^$(node q) |^d |^Device" /tmp/iostat)"
	check_seen "I/Os of the device" "$(iostat_of "$(node q)" 2)" "$IOS" 141
	check_seen "kB of the device" "$(iostat_of "$(node q)" 4)" "$KB" 4506
	check_seen "kB of the disk" "$(iostat_of d 4)" "$KB" 4506
}

vmstat_shows_the_limit() {
	start_limited
	counted_during vmstat -n 5 2 >/tmp/vmstat || return
	diag "$(tail -n 1 /tmp/vmstat)"
	# It takes it for 5 s, however long they were.
	check_seen "vmstat's blocks out" "$(awk 'END { print $10 }' /tmp/vmstat)" "$KB" \
		$((KB / 5 + 64))
}

# iostat_of DEVICE COLUMN: without its fraction.
iostat_of() {
	awk -v device="$1" -v column="$2" '$1 == device { print int($column) }' /tmp/iostat
}

set_up && io_serves || exit
# procps' vmstat does not start where /proc/cpuinfo names no cores.
only_on vm vmstat_shows_the_limit
run_cases what_is_done_is_counted_above_and_below what_waits_is_in_the_times_and_not_in_flight \
	dmstats_counts_what_is_done iostat_shows_the_limit vmstat_shows_the_limit
