#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# Ours: groups, and a table that changes
# Runs: vm uml
# Timeout: 600
# Alone: it measures rates
#
# Who else is there, and what does a device do to them? What one member's metadata, disk, table or
# operator does is not paid by the others.

. "$(dirname "$0")/common.sh"

# How many reads a device has done.
reads() {
	local stat
	read -r -a stat <"/sys/block/$(node "$1")/stat" && echo "${stat[0]}"
}

# reads_in SECONDS NAME: RATE becomes how many a second.
reads_in() {
	local before start
	before=$(reads "$2") start=$(microseconds)
	sleep "$1"
	RATE=$((($(reads "$2") - before) * 1000000 / ($(microseconds) - start)))
	diag "$2: $RATE reads per second"
}

# storm_starts NAME DISK: creates and syncs files on a file system there, without end.
storm_starts() {
	local where=/tmp/storm-$1
	mke2fs -q -t ext4 "$2" && mkdir -p "$where" && mount "$2" "$where" || return
	at_exit "umount $where"
	python3 -I "$HERE/storm.py" "$where" &
	STORM_PID=$!
	at_exit "no_limits $1; storm_ends"
}

storm_ends() {
	[ -z "$STORM_PID" ] || kill -KILL "$STORM_PID" 2>/dev/null
	wait "$STORM_PID" 2>/dev/null
	STORM_PID=
}

metadata_leaves_room_for_the_rest() {
	make_disk d memory_backed=1
	make_qos q d
	storm_starts q /dev/mapper/q || return
	check "the storm has begun" wait_for 60 field_is q write_ios -gt 100
	dmsetup message q 0 set iops 20
	io_starts q randread 8
	check "ordinary I/O waits" held q read 4
	reads_in 8 q
	# Half is for ordinary I/O, which the storm has, too.
	check_within "beside a storm" "$RATE" 3 20
	check_within "what the device owes, in ms" $(($(field q read_debt_us) / 1000)) 0 1000
	check "some ran ahead" field_is q write_ahead_ios -gt 0
	storm_ends
	sleep 2
	reads_in 5 q
	check_within "after it" "$RATE" 13 21
}

a_reservation_holds_beside_metadata() {
	make_disk d memory_backed=1
	make_disk e memory_backed=1
	make_qos noisy d group g group_iops 400
	make_qos sure e group g reserve_iops 200
	storm_starts noisy /dev/mapper/noisy || return
	io_starts sure randread 32
	check "it is busy" wait_for 60 field_is sure read_held_total -gt 20
	reads_in 5 sure
	check_within "beside a storm" "$RATE" 190 410
	storm_ends
	reads_in 3 sure
	check_within "after it" "$RATE" 190 410
}

# slow_disk NAME NANOSECONDS DEPTH: takes so long for each I/O.
slow_disk() {
	make_disk "$1" irqmode=2 "completion_nsec=$2" "hw_queue_depth=$3"
}

a_slow_disk_delays_its_own_only() {
	make_disk fast
	slow_disk slow 500000000 2
	make_qos sure fast group g group_iops 1000 reserve_iops 600
	make_qos stuck slow group g
	io_starts stuck randread 64
	io_starts sure randread 64
	check "both are busy" wait_for 60 field_is sure read_held_total -gt 20
	dmsetup message sure 0 reset
	reads_in 5 sure
	check_within "beside a disk that is slow" "$RATE" 570 1010
}

# hang DISK NAME: a device on which nothing ends until it is resumed.
hang() {
	make_linear "$2" "$1"
	at_exit "dmsetup resume $2"
	dmsetup suspend --nolockfs --noflush "$2"
}

a_disk_that_hangs_takes_no_depth_from_who_reserved() {
	make_disk fast
	make_disk d
	make_linear hangs d
	at_exit "dmsetup resume hangs"
	make_qos sure fast group g group_depth 4 reserve_iops 100
	make_qos other fast group g
	make_qos stuck mapper/hangs group g
	dmsetup suspend --nolockfs --noflush hangs
	io_starts stuck randread 64
	check "all of the depth is taken" held stuck read 32
	io_starts sure randread 16
	io_starts other randread 16
	wait_for 20 field_is sure read_ios -gt 0
	reads_in 4 sure
	# A busy host may not be quick enough for all 100. Without a depth it would be none.
	check "who reserved gets it" [ "$RATE" -ge 50 ]
	reads_in 3 other
	check "the others get some" [ "$RATE" -ge 3 ]
	check "the disk comes back" dmsetup resume hangs
	check "for all" wait_for 20 field_is stuck read_ios -gt 100
}

a_group_on_top_of_itself_is_refused() {
	make_disk d
	make_qos a d group g group_depth 1
	kmsg_mark
	check "directly" fails dmsetup create b --table "$(qos_table mapper/a group g)"
	check "with a reason" logged 'group: "g" has a device that this one lies on'
	make_linear l mapper/a
	check "with another in between" fails dmsetup create b \
		--table "$(qos_table mapper/l group g)"
	make_linear m mapper/l
	check "or two" fails dmsetup create b --table "$(qos_table mapper/m group g)"
	check "another group is well" make_qos b mapper/m group h
	check "and works" dd if=/dev/mapper/b of=/dev/null bs=4k count=10 iflag=direct status=none
	remove_qos b
	check "so is none" make_qos c mapper/m iops 1000
	check "a reload is of the same device" dmsetup reload a \
		--table "$(qos_table d group g group_depth 2)"
	check "it can be resumed" dmsetup resume a
}

a_group_on_top_of_itself_by_a_loop_goes_on() {
	local loop
	make_disk d memory_backed=1
	make_qos a d group g group_depth 1
	mke2fs -q -t ext4 /dev/mapper/a && mkdir -p /tmp/looped &&
		mount /dev/mapper/a /tmp/looped || return
	at_exit "umount /tmp/looped"
	dd if=/dev/zero of=/tmp/looped/file bs=1M count=4 conv=fsync status=none || return
	loop=$(losetup --find --show --direct-io=on /tmp/looped/file) || return
	at_exit "losetup -d $loop"
	make_qos b "${loop#/dev/}" group g
	check "reads end" takes_at_most "$PROMPT" dd if=/dev/mapper/b of=/dev/null bs=4k count=10 \
		iflag=direct status=none
	check "so do writes" takes_at_most "$PROMPT" dd if=/dev/zero of=/dev/mapper/b bs=4k \
		count=10 oflag=direct status=none
}

# again_and_again SECONDS COMMAND...: as an agent does that sees to it.
again_and_again() {
	local until=$(($(microseconds) + $1 * 1000000))
	shift
	while [ "$(microseconds)" -lt "$until" ]; do
		"$@" || return
	done
}

the_same_limit_again_opens_nothing() {
	local before
	make_disk d
	make_qos q d bps 256K
	io_starts q write 4 --bs=1M
	check "writes wait" held q write 2
	before=$(field q write_bytes)
	again_and_again 8 dmsetup message q 0 set bps 256K
	# One MiB each 4 s.
	check_within "KiB in 8 s" $((($(field q write_bytes) - before) / 1024)) 1024 4096
	before=$(field q write_bytes)
	flip() {
		dmsetup message q 0 set bps 128K &&
			dmsetup message q 0 set bps 256K write_iops 1000 &&
			dmsetup message q 0 set write_iops 0
	}
	again_and_again 8 flip
	check_within "back and forth" $((($(field q write_bytes) - before) / 1024)) 0 4096
	no_limits q
	io_stops "$IO_PID"
	dmsetup message q 0 set iops 5
	dmsetup message q 0 reset
	io_starts q randread 4
	check "reads wait" held q read 2
	before=$(field q read_ios)
	again_and_again 6 dmsetup message q 0 set iops 5
	check_within "I/Os in 6 s" $(($(field q read_ios) - before)) 24 38
}

a_new_table_forgives_nothing() {
	make_disk d
	make_qos q d bps 64K
	# 16 s.
	dd if=/dev/zero of=/dev/mapper/q bs=1M count=1 oflag=direct status=none
	check "it owes" field_is q write_debt_us -gt 8000000
	check "another table" dmsetup reload q --table "$(qos_table d bps 32K)"
	check "takes its place" dmsetup resume q
	check "and owes the same" field_is q write_debt_us -gt 16000000
}

lines_that_say_the_same_are_one_device() {
	make_disk d
	dmsetup create two --table "0 65536 qos /dev/d 0 2 iops 160
65536 65536 qos /dev/d 65536 2 iops 160" || return
	at_exit "remove_qos two"
	io_starts two randread 64
	check "it is busy" wait_for 60 eval 'dmsetup status two | grep -q read_held=[1-9][0-9]'
	reads_in 5 two
	check_within "both together" "$RATE" 140 165
	check "a message" dmsetup message two 0 set iops 320
	check "reaches both" [ "$(dmsetup table two | grep -c 'iops 320')" = 2 ]
	reads_in 5 two
	check_within "both together" "$RATE" 290 330
	no_limits two
	io_stops "$IO_PID"
	check "other limits are others" dmsetup reload two \
		--table "0 65536 qos /dev/d 0 2 iops 100
65536 65536 qos /dev/d 65536 2 iops 200"
	check "which a message" dmsetup resume two
	check "to each" dmsetup message two 65536 set iops 300
	check "changes alone" [ "$(dmsetup table two | grep -o 'iops .*' | xargs)" = \
		"iops 100 iops 300" ]
}

what_was_accepted_can_be_resumed_in_any_order() {
	make_disk d
	dmsetup create a --notable
	at_exit "dmsetup remove a"
	dmsetup load a --table "$(qos_table d group g group_iops 1000 reserve_iops 800)"
	check "there will be no room" fails dmsetup create b \
		--table "$(qos_table d group g group_iops 3000 reserve_iops 2000)"
	check "with less there is" make_qos b d group g group_iops 3000 reserve_iops 200
	check "not for more by message" fails dmsetup message b 0 set reserve_iops 201
	check "it can be resumed" dmsetup resume a
	check "and says what there is" [ "$(dmsetup table b | grep -c 'group_iops 1000')" = 1 ]
}

two_who_change_a_group_lose_nothing() {
	local round both
	make_disk d
	make_qos one d group g group_iops 1000
	make_qos two d group g
	for ((round = 1; round <= 50; round++)); do
		dmsetup message one 0 set group_iops $((1000 + round)) &
		dmsetup message two 0 set group_depth $((10 + round))
		wait $!
		both="group_iops $((1000 + round)) group_depth $((10 + round))"
		[[ $(dmsetup table one) == *"$both"* ]] ||
			fail "round $round: $(dmsetup table one)" || return
	done
}

swapped_in_at_once() {
	make_disk d memory_backed=1
	make_qos q d
	mkswap /dev/mapper/q >/dev/null && swapon /dev/mapper/q || return
	at_exit "no_limits q; swapoff /dev/mapper/q"
	python3 -I - >/tmp/swapped <<'END'
import ctypes, mmap, subprocess, time
size = 4 << 20
memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
for page in range(0, size, 4096):
    memory[page:page + 8] = page.to_bytes(8, "little")
libc = ctypes.CDLL(None, use_errno=True)
address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
# MADV_PAGEOUT
assert libc.madvise(ctypes.c_void_p(address), ctypes.c_size_t(size), 21) == 0
subprocess.run("dmsetup message q 0 set read_iops 1 burst_ms 0", shell=True, check=True)
start = time.monotonic()
for page in range(0, size, 4096):
    assert memory[page:page + 8] == page.to_bytes(8, "little")
print(round(time.monotonic() - start))
END
	check "it was swapped in" field_is q read_ios -gt 50
	check_within "seconds that took" "$(cat /tmp/swapped)" 0 "$PROMPT"
}

# of_ours: threads of the module's, but for workers that all share.
of_ours() {
	grep -l '^dm-qos' /proc/[0-9]*/comm 2>/dev/null | wc -l
}

no_thread_for_each_device() {
	local number before
	make_disk d
	make_qos first d iops 100
	before=$(of_ours)
	for number in 1 2 3 4 5 6 7 8; do
		make_qos "more$number" d iops 100
		make_qos "group$number" d group "g$number"
		dmsetup load "more$number" --table "$(qos_table d iops 200)"
	done
	check "threads of the module's" [ "$(of_ours)" = "$before" ]
}

a_file_system_that_is_frozen_writes_within_the_limits() {
	make_disk d memory_backed=1
	make_qos q d
	mke2fs -q -t ext4 /dev/mapper/q && mkdir -p /tmp/frozen &&
		mount /dev/mapper/q /tmp/frozen || return
	at_exit "umount /tmp/frozen"
	dmsetup message q 0 set write_bps 2M
	at_exit "no_limits q"
	dd if=/dev/zero of=/tmp/frozen/file bs=1M count=8 status=none
	START=$(microseconds)
	check "a suspend writes what there is" dmsetup suspend q
	check_within "at the limit, in ms" $((($(microseconds) - START) / 1000)) 2500 30000
	check "it goes on" dmsetup resume q
	dmsetup message q 0 set write_bps 64K
	dd if=/dev/zero of=/tmp/frozen/file bs=1M count=8 status=none
	check "without its file system at once" takes_at_most "$PROMPT" \
		dmsetup suspend --nolockfs --noflush q
	check "it goes on" dmsetup resume q
	no_limits q
}

# Bios of dm-crypt come from its own threads, whoever wrote.
who_is_not_known_does_not_wait_for_all_the_others() {
	local deep shallow before
	modprobe dm-crypt || return
	make_disk d memory_backed=1
	make_qos q d write_iops 200 burst_ms 0
	dmsetup create c --table "0 $(sectors d) crypt aes-xts-plain64 $(printf '%064d' 7) 0 \
		/dev/mapper/q 0" || return
	at_exit "no_limits q; dmsetup remove --retry c"
	fio --name=deep --filename=/dev/mapper/c --rw=randwrite --bs=4k --direct=1 --size=16M \
		--ioengine=libaio --iodepth=128 --time_based --runtime=600 --thread \
		>/tmp/deep.fio 2>&1 &
	deep=$!
	at_exit "no_limits q; io_stops $deep"
	held q write 100
	before=$(field q write_ios)
	dd if=/dev/zero of=/dev/mapper/c bs=4k count=20 seek=12288 oflag=direct status=none &
	shallow=$!
	wait "$shallow"
	# In one line each would wait for 128 others.
	check_within "I/Os of all, for 20 of one" $(($(field q write_ios) - before)) 20 800
}

# User-mode Linux is too slow for rates.
only_on vm metadata_leaves_room_for_the_rest a_reservation_holds_beside_metadata \
	a_slow_disk_delays_its_own_only the_same_limit_again_opens_nothing \
	lines_that_say_the_same_are_one_device swapped_in_at_once \
	a_file_system_that_is_frozen_writes_within_the_limits \
	who_is_not_known_does_not_wait_for_all_the_others
set_up || exit
run_cases metadata_leaves_room_for_the_rest a_reservation_holds_beside_metadata \
	a_slow_disk_delays_its_own_only a_disk_that_hangs_takes_no_depth_from_who_reserved \
	a_group_on_top_of_itself_is_refused a_group_on_top_of_itself_by_a_loop_goes_on \
	the_same_limit_again_opens_nothing a_new_table_forgives_nothing \
	lines_that_say_the_same_are_one_device what_was_accepted_can_be_resumed_in_any_order \
	two_who_change_a_group_lose_nothing swapped_in_at_once no_thread_for_each_device \
	a_file_system_that_is_frozen_writes_within_the_limits \
	who_is_not_known_does_not_wait_for_all_the_others
