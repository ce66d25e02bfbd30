#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# Ours: groups
# Runs: vm uml checking
# Timeout: 300
# Alone: it measures rates
#
# Devices that share a capacity: who gets how much of it, what is refused, and that members come and
# go as they like.

. "$(dirname "$0")/common.sh"

# What is in flight must last for as long as a busy host keeps fio from running.
DEPTH=128

# count NODE...: COUNTS becomes how many reads are done, TIME when. Starts no process, which would
# take as long as it likes.
count() {
	local node stat
	COUNTS=()
	for node; do
		read -r -a stat <"/sys/block/$node/stat"
		COUNTS+=("${stat[0]}")
	done
	TIME=${EPOCHREALTIME/./}
}

# rates_of NAME...: over some seconds, with all of them busy. RATES becomes I/Os per second.
rates_of() {
	local before time index name nodes=()
	for name; do
		check "$name: I/O waits" wait_for 60 field_is "$name" read_held_total -gt 20
		nodes+=("$(node "$name")")
	done
	count "${nodes[@]}"
	before=("${COUNTS[@]}") time=$TIME
	sleep 4
	count "${nodes[@]}"
	RATES=()
	for index in "${!COUNTS[@]}"; do
		RATES+=($(((COUNTS[index] - before[index]) * 1000000 / (TIME - time))))
	done
	diag "I/Os per second: $* are ${RATES[*]}"
}

capacity_is_shared_by_weight() {
	make_disk d
	make_qos one d group g group_iops 800 weight 100
	make_qos three d group g weight 300
	io_starts one randread "$DEPTH"
	io_starts three randread "$DEPTH"
	rates_of one three
	check_within "in all" $((RATES[0] + RATES[1])) 680 840
	check_alike "of weight 1 and 3" $((RATES[0] * 3)) "${RATES[1]}" 10
	check "weights can be changed" dmsetup message one 0 set weight 300
	rates_of one three
	check_alike "of equal weight" "${RATES[0]}" "${RATES[1]}" 10
}

# windows_are_met SEEN MISSED: but for those in which the guest's CPUs had no host CPU. (Where that
# cannot be, `make bench B=accuracy` counts all of them.)
windows_are_met() {
	diag "windows missed: $2 of $1"
	check "windows were looked at" [ "$1" -gt 20 ]
	check "most were met" [ $(($2 * 2)) -le "$1" ]
}

# check_alike WHAT ONE OTHER PERCENT
check_alike() {
	check_within "$1" "$2" $(($3 * (100 - $4) / 100)) $(($3 * (100 + $4) / 100))
}

a_reservation_holds_whatever_the_neighbours_do() {
	make_disk d
	make_qos small d group g group_iops 800 reserve_iops 300 weight 1
	make_qos big d group g weight 10000
	make_qos bigger d group g weight 10000
	io_starts big randread "$DEPTH"
	io_starts bigger randread "$DEPTH"
	io_starts small randread "$DEPTH"
	rates_of small big bigger
	# By weight it would get one in 25 s. What a stall of the guest delayed is made up for.
	check_within "reserved" "${RATES[0]}" 270 330
	check_alike "left over, shared" "${RATES[1]}" "${RATES[2]}" 10
	# shellcheck disable=SC2046 # two numbers
	windows_are_met $(fields small reserve_windows reserve_missed)
	check "the others have none" [ "$(field big reservation)" = none ]
}

what_one_does_not_use_the_others_get() {
	make_disk d
	make_qos idle d group g group_iops 800 reserve_iops 700
	make_qos busy d group g weight 1
	io_starts busy randread "$DEPTH"
	rates_of busy
	check_within "all of it" "${RATES[0]}" 700 840
}

a_members_own_limit_holds_in_a_group() {
	make_disk d
	make_qos slow d group g group_iops 800 iops 100 weight 10000
	make_qos fast d group g weight 1
	io_starts slow randread "$DEPTH"
	io_starts fast randread "$DEPTH"
	rates_of slow fast
	check_within "limited" "${RATES[0]}" 90 110
	check_within "the rest" "${RATES[1]}" 580 740
}

in_flight() {
	local reads writes
	read -r reads writes <"/sys/block/d/inflight"
	echo $((reads + writes))
}

no_more_are_in_flight_than_the_depth() {
	local sample most=0 above=0 now
	make_disk d irqmode=2 completion_nsec=20000000 hw_queue_depth=256
	make_qos one d group g group_depth 6
	make_qos two d group g
	io_starts one randread "$DEPTH"
	io_starts two randread "$DEPTH"
	rates_of one two
	for ((sample = 0; sample < 200; sample++)); do
		now=$(in_flight)
		most=$((now > most ? now : most))
		above=$((above + (now > 6)))
	done
	# When nothing has ended for 100 ms, as on a machine that is busy, who has none in flight
	# may have one.
	check_within "in flight below" "$most" 1 8
	check_within "of 200 times more than the depth" "$above" 0 20
	check "they share" [ "${RATES[0]}" -lt $((RATES[1] * 2)) ]
	check "they share" [ "${RATES[1]}" -lt $((RATES[0] * 2)) ]
	check "a larger depth" dmsetup message one 0 set group_depth 60
	check "is used" wait_for 20 eval '[ "$(in_flight)" -gt 20 ]'
}

bytes_can_be_shared_too() {
	make_disk d
	make_qos large d group g group_bps 16M
	make_qos small d group g
	io_starts large randread "$DEPTH" --bs=64k
	io_starts small randread "$DEPTH" --bs=16k
	rates_of large small
	check_within "16 KiB per second" $((RATES[0] * 4 + RATES[1])) 870 1075
	check_alike "half of the bytes each" $((RATES[0] * 4)) "${RATES[1]}" 10
}

the_capacity_belongs_to_the_group() {
	make_disk d
	make_qos one d group g group_iops 800
	make_qos two d group g
	check "every member shows it" table_has two "group_iops 800"
	check "any may change it" dmsetup message two 0 set group_iops 400 group_bps 1G
	check "the change shows" table_has one "group_iops 400 group_bps 1073741824"
	check "it survives a suspend" dmsetup suspend one
	check "and a resume" dmsetup resume one
	check "as it is" table_has two "group_iops 400 group_bps 1073741824"
	check "what a table says counts from its resume on" dmsetup reload two \
		--table "$(qos_table d group g group_iops 500)"
	check "not before" table_has one "group_iops 400"
	check "the table is resumed" dmsetup suspend two
	check "the table is resumed" dmsetup resume two
	check "now it counts" table_has one "group_iops 500"
	remove_qos one
	remove_qos two
	make_qos three d group g
	check "a group that was left is forgotten" table_has three "2 group g"
}

table_has() {
	[[ $(dmsetup table "$1") == *" $2"* ]] || {
		diag "table: $(dmsetup table "$1")"
		return 1
	}
}

no_more_is_reserved_than_there_is() {
	make_disk d
	make_qos one d group g group_iops 800 reserve_iops 500
	kmsg_mark
	check "too much is refused" fails dmsetup create two \
		--table "$(qos_table d group g reserve_iops 301)"
	check "with the reason" logged \
		"reserve_iops: all reservations in group g come to 801, group_iops is 800"
	make_qos two d group g reserve_iops 300
	check "not by message either" fails dmsetup message two 0 set reserve_iops 301
	check "nor by a smaller capacity" fails dmsetup message two 0 set group_iops 799
	check "nothing has changed" table_has two "reserve_iops 300 group_iops 800"
	check "a reload does not count twice" dmsetup reload one \
		--table "$(qos_table d group g reserve_iops 500)"
	check "but with the larger one" fails dmsetup reload one \
		--table "$(qos_table d group g reserve_iops 501)"
	check "a smaller one makes room" dmsetup message one 0 set reserve_iops 100
	dmsetup clear one
	check "for others" dmsetup message two 0 set reserve_iops 700
}

what_needs_a_group_is_refused_without() {
	local key
	make_disk d
	for key in "reserve_iops 1" "reserve_bps 1M" "weight 5" "group_iops 1" "group_bps 1" \
		"group_depth 1"; do
		kmsg_mark
		# shellcheck disable=SC2086 # a key and its value
		check "$key" fails dmsetup create q --table "$(qos_table d $key)"
		check "$key" logged "${key% *}: needs a group"
	done
	make_qos q d group g
	kmsg_mark
	check "a message cannot change it" fails dmsetup message q 0 set group h
	check "and says so" logged "message: group: \"h\" needs a new table"
	check "a name" fails dmsetup create r --table "$(qos_table d group 'a;b')"
	check "a name has rules" logged 'group: "a;b" is not a name'
	kmsg_mark
	check "no more reserved than allowed" fails dmsetup create r \
		--table "$(qos_table d group g iops 10 reserve_iops 11)"
	check "and says so" logged 'reserve_iops: "11" is more than iops 10'
}

# At two a second, what waits would take minutes to leave by itself.
one_leaves_while_others_wait() {
	make_disk d
	make_qos one d group g group_iops 2
	make_qos two d group g
	io_starts one randread "$DEPTH"
	io_starts two randread "$DEPTH"
	at_exit "dmsetup message two 0 set group_iops 0"
	held one read 10
	held two read 10
	check "a suspend lets its own I/O go" takes_at_most "$PROMPT" dmsetup suspend one
	check "nothing of it waits" field_is one read_held -eq 0
	check "the others wait" field_is two read_held -ge 10
	check "it comes back" dmsetup resume one
	check "and waits again" held one read 10
	check "to another group" dmsetup reload one --table "$(qos_table d group h)"
	check "it goes" takes_at_most "$PROMPT" dmsetup resume one
	check "and waits for nobody" wait_for "$PROMPT" field_is one read_held -eq 0
	check "the capacity stays" table_has two "group_iops 2"
}

members_come_and_go_under_load() {
	local round rounds=10
	[ "$FERRULE_KERNEL" != checking ] || rounds=2
	make_disk d
	make_qos stays d group g group_iops 2000 group_depth 16
	io_starts stays randread 64
	for ((round = 0; round < rounds; round++)); do
		make_qos "comes$round" d group g reserve_iops 100
		dd "if=/dev/mapper/comes$round" of=/dev/null bs=4k count=20 iflag=direct \
			status=none || fail "round $round"
	done
	for ((round = 0; round < rounds; round++)); do
		check "round $round" dmsetup remove --retry "comes$round"
	done
	check "who stays goes on" wait_for 10 field_is stays read_ios -gt \
		$(($(field stays read_ios) + 100))
}

# in_cgroup NAME COMMAND... &: with a cgroup of its own, as the process that the shell started.
in_cgroup() {
	local cgroup=/sys/fs/cgroup/$1
	shift
	mkdir -p "$cgroup" && echo "$BASHPID" >"$cgroup/cgroup.procs" && exec "$@"
}

# A deep queue of one does not starve another's shallow one.
cgroups_take_turns() {
	local deep shallow before
	echo +io >/sys/fs/cgroup/cgroup.subtree_control || return
	make_disk d
	make_qos q d iops 50 burst_ms 0
	at_exit "rmdir /sys/fs/cgroup/deep /sys/fs/cgroup/shallow"
	in_cgroup deep fio --name=deep --filename=/dev/mapper/q --rw=randread --bs=4k --direct=1 \
		--ioengine=libaio --iodepth=64 --time_based --runtime=600 --thread \
		>/tmp/deep.fio 2>&1 &
	deep=$!
	at_exit "no_limits q; io_stops $deep"
	held q read 50
	# In line it would get a 65th of what the device does, in turn half.
	before=$(fields q read_ios)
	in_cgroup shallow dd if=/dev/mapper/q of=/dev/null bs=4k count=60 iflag=direct \
		status=none &
	shallow=$!
	wait "$shallow"
	check_within "I/Os of all, for 60 of one" $(($(fields q read_ios) - before)) 60 240
	check "the other goes on" held q read 30
}

# Other kernels are too slow for rates.
only_on vm capacity_is_shared_by_weight a_reservation_holds_whatever_the_neighbours_do \
	what_one_does_not_use_the_others_get a_members_own_limit_holds_in_a_group \
	bytes_can_be_shared_too
only_on "vm uml" no_more_are_in_flight_than_the_depth the_capacity_belongs_to_the_group \
	no_more_is_reserved_than_there_is what_needs_a_group_is_refused_without cgroups_take_turns
set_up || exit
run_cases capacity_is_shared_by_weight a_reservation_holds_whatever_the_neighbours_do \
	what_one_does_not_use_the_others_get a_members_own_limit_holds_in_a_group \
	no_more_are_in_flight_than_the_depth bytes_can_be_shared_too \
	the_capacity_belongs_to_the_group no_more_is_reserved_than_there_is \
	what_needs_a_group_is_refused_without one_leaves_while_others_wait \
	members_come_and_go_under_load cgroups_take_turns
