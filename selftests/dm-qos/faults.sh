#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# Runs: uml
# Ours: faults in our own code
# Timeout: 240
#
# Allocations that fail, and I/O that does. (What kmemleak finds at the end fails the guest.)

. "$(dirname "$0")/common.sh"

each_allocation_fails_once() {
	rcu_in_haste
	make_disk d
	check "an error, nothing changed, and the next try works" \
		control faults --every "${FAULTS_EVERY:-9}" qos /dev/d
}

# disk_fails NAME [KNOB=VALUE...]: I/O to a disk does.
disk_fails() {
	local file="/sys/block/$1/make-it-fail"
	echo 1 >"$file" && at_exit "echo 0 >$file"
	fault fail_make_request "${@:2}"
}

# same_failures DEVICE OPERATION...: as through l, on which some fail and some do not.
same_failures() {
	local device=$1 linear qos
	shift
	linear=$(io l "$@")
	qos=$(io "$device" "$@")
	[ "$linear" = "$qos" ] || {
		fail "$device: not as through dm-linear"$'\n'"$(diff <(echo "$linear") \
			<(echo "$qos"))"
		return
	}
	check "some fail" grep -q ': EIO$' <<<"$qos"
	check "and some do not" grep -q ': ok$' <<<"$qos"
}

# Every third request to the disk fails, whoever sends it. Each list of them is so long that the
# next one begins at the same place.
requests_fail_as_through_dm_linear() {
	local device operation
	make_disk d memory_backed=1 discard=1 cache_size=1
	make_linear l d
	make_qos q d
	make_qos held d iops 300 burst_ms 0
	disk_fails d probability=100 interval=3
	for device in q held; do
		for operation in write read flush discard zeroout read-nowait; do
			[ "$device $operation" != "held read-nowait" ] || continue
			same_failures "$device" "$operation:0:4K*30"
		done
	done
	check "some were held" field_is held write_held_total -gt 30
	no_more_faults fail_make_request
	check "and are over" io_is_well held write:0:4K*3 verify:0:4K*3
}

# One in twenty requests fails, and each I/O waits for its time.
data_are_whole_where_requests_fail() {
	make_disk d memory_backed=1
	make_qos q d iops 2000 bps 16M burst_ms 1
	disk_fails d probability=5
	check "what was written is there" control verify /dev/mapper/q 8 "${SEED:-$RANDOM}"
	check "some had to wait" field_is q write_held_total -gt 100
	check "nothing waits" field_is q write_held -eq 0
}

# The disk has taken some of what waits when a table comes, or the device goes.
tables_change_while_requests_fail() {
	local round verify
	make_disk d memory_backed=1
	make_qos q d iops 2000
	disk_fails d probability=5
	control verify /dev/mapper/q 8 "${SEED:-$RANDOM}" &
	verify=$!
	for ((round = 0; round < 20; round++)); do
		dmsetup reload q --table "$(qos_table d iops $((1000 + round * 100)))" &&
			dmsetup suspend --nolockfs q && dmsetup resume q || return
		sleep 0.2
	done
	check "what was written is there" wait "$verify"
}

set_up && io_serves || exit
run_cases each_allocation_fails_once loading_and_unloading_with_each_allocation_failing \
	requests_fail_as_through_dm_linear data_are_whole_where_requests_fail \
	tables_change_while_requests_fail
