#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# Ours: bios that the target holds
# Runs: vm uml checking
# Timeout: 480
#
# What becomes of bios that wait, whatever is done to the device. At one I/O a second, all that
# waits would take a minute and more to leave by itself.

. "$(dirname "$0")/common.sh"

# many_wait [RW]: 32 I/Os wait on device q at 1 a second.
many_wait() {
	make_disk d
	make_qos q d iops 1 burst_ms 0
	io_starts q "${1:-randwrite}" 32 --number_ios=64
	check "I/O waits" held q "$([ "${1:-randwrite}" = randread ] && echo read || echo write)" 24
}

# Nothing is lost: fio ends, and without an error.
fio_is_content() {
	io_stops "$IO_PID"
	grep -q "err= 0" /tmp/q.fio || {
		diag "$(cat /tmp/q.fio)"
		return 1
	}
}

held_bios_leave_on_suspend() {
	many_wait
	check "suspend is prompt" takes_at_most "$PROMPT" dmsetup suspend q
	check "nothing waits" field_is q write_held -eq 0
	check "resume" dmsetup resume q
	check "limits apply again" held q write 1
	check "no error" takes_at_most "$PROMPT" finish
}

# finish: let go of what waits, and see that it was well.
finish() {
	dmsetup message q 0 set iops 0
	fio_is_content
}

held_bios_leave_on_suspend_without_flush() {
	many_wait randread
	check "suspend is prompt" takes_at_most "$PROMPT" dmsetup suspend --noflush --nolockfs q
	check "nothing waits" field_is q read_held -eq 0
	check "resume" dmsetup resume q
	check "no error" takes_at_most "$PROMPT" finish
}

a_table_can_be_replaced_while_bios_wait() {
	many_wait
	check "load" dmsetup reload q --table "$(qos_table d iops 1000000)"
	check "swap is prompt" takes_at_most "$PROMPT" dmsetup resume q
	check "I/O goes on with the new limits" \
		takes_at_most "$PROMPT" wait_for "$PROMPT" field_is q write_ios -gt 8
	check "no error" fio_is_content
}

a_table_that_is_cleared_was_never_used() {
	make_disk d
	make_qos q d iops 5
	check "load" dmsetup reload q --table "$(qos_table d iops 10)"
	check "clear" dmsetup clear q
	check "the old one is there still" [ "$(dmsetup table q | awk '{ print $NF }')" = 5 ]
}

a_message_sets_free_what_waits() {
	many_wait
	check "set" dmsetup message q 0 set iops 100000
	# What comes then may wait, too, for a moment.
	check "it leaves" takes_at_most "$PROMPT" wait_for "$PROMPT" field_is q write_ios -ge 32
	check "no error" fio_is_content
}

a_device_in_use_is_not_removed() {
	many_wait
	check "remove is refused" fails dmsetup remove q
	check "rmmod is refused" fails rmmod "$MODULE"
	check "the module is there" module_is_loaded "$MODULE"
	check "no error" takes_at_most "$PROMPT" finish
}

# A forced removal puts the error target in its place: what waited leaves, what comes fails.
a_forced_removal_lets_bios_leave() {
	many_wait
	dmsetup remove --force q 2>/dev/null
	check "fio ends" takes_at_most "$PROMPT" io_stops "$IO_PID"
	# It may have been gone with the first try, had fio ended by then.
	check "it goes" takes_at_most "$PROMPT" remove_qos q
}

a_disk_that_is_gone_is_not_waited_for() {
	many_wait
	echo 0 >"$CONFIGFS/d/power"
	check "what waited failed" takes_at_most "$PROMPT" fails wait "$IO_PID"
	check "nothing waits" field_is q write_held -eq 0
	check "what comes fails at once" takes_at_most "$PROMPT" fails \
		dd if=/dev/zero of=/dev/mapper/q bs=4k count=4 oflag=direct status=none
	check "remove" takes_at_most "$PROMPT" dmsetup remove q
}

a_scsi_disk_can_be_deleted_below() {
	make_scsi_disk delay=0
	make_qos q "$SCSI_DISK" iops 1 burst_ms 0
	io_starts q randwrite 16
	check "I/O waits" held q write 12
	echo 1 >"/sys/block/$SCSI_DISK/device/delete"
	check "what waited failed" takes_at_most "$PROMPT" fails wait "$IO_PID"
	check "remove" takes_at_most "$PROMPT" dmsetup remove q
}

suspend_and_resume_under_load() {
	local round rounds=20
	[ "$FERRULE_KERNEL" != checking ] || rounds=2
	make_disk d
	make_qos q d iops 500
	io_starts q randrw 16
	for ((round = 0; round < rounds; round++)); do
		check "suspend" dmsetup suspend q
		check "resume" dmsetup resume q
		check "suspend without flush" dmsetup suspend --noflush --nolockfs q
		check "resume" dmsetup resume q
		check "new table" dmsetup reload q --table "$(qos_table d iops $((400 + round)))"
		check "suspend for it" dmsetup suspend q
		check "resume with it" dmsetup resume q
		check "message" dmsetup message q 0 set iops $((500 + round)) \
			bps $((round * 1048576))
	done
	check "I/O goes on" wait_for "$PROMPT" field_is q read_ios -gt 0
	dmsetup message q 0 set iops 0 bps 0
	check "no error" fio_is_content
}

# nowait N: that many reads that must not wait; prints how many were told to come again.
nowait() {
	python3 - "$1" <<'END'
import errno, mmap, os, sys
fd = os.open("/dev/mapper/q", os.O_RDONLY | os.O_DIRECT)
buffer = mmap.mmap(-1, 4096)
again = 0
for i in range(int(sys.argv[1])):
    try:
        os.preadv(fd, [buffer], 4096 * i, os.RWF_NOWAIT)
    except OSError as error:
        if error.errno != errno.EAGAIN:
            raise
        again += 1
print(again)
END
}

who_must_not_wait_is_told_so_and_not_charged() {
	make_disk d
	make_qos q d
	check "without limits they pass" [ "$(nowait 10)" = 0 ]
	dmsetup message q 0 set read_bps 512 burst_ms 0
	dmsetup message q 0 reset
	# One read of 4 KiB takes 8 s.
	check "one passes, the others do not" [ "$(nowait 50)" = 49 ]
	check "they are not counted" field_is q read_ios -eq 1
	check "nothing waits" field_is q read_held -eq 0
	# Had they been charged, this would take 400 s.
	check "nor were they charged" takes_at_most $((8 + PROMPT)) \
		dd if=/dev/mapper/q of=/dev/null bs=4k count=1 iflag=direct status=none
}

# Looking a file up that is not cached reads metadata, which is not held behind data. (What ext4
# reads ahead of the inode tables is not marked as metadata.)
metadata_passes_what_waits() {
	local passed
	make_disk d memory_backed=1
	mke2fs -q -t ext4 /dev/d && make_qos q d || return
	mkdir -p /tmp/qos-mount
	mount /dev/mapper/q /tmp/qos-mount || return
	at_exit "umount /tmp/qos-mount"
	mkdir /tmp/qos-mount/{a,b,c} && touch /tmp/qos-mount/{a,b,c}/file
	umount /tmp/qos-mount &&
		mount -o ro,inode_readahead_blks=0 /dev/mapper/q /tmp/qos-mount || return
	# A minute for each.
	dmsetup message q 0 set read_bps 64 burst_ms 0
	io_starts q randread 16
	check "data waits" held q read 12
	dmsetup message q 0 reset
	check "metadata does not" takes_at_most "$PROMPT" test -e /tmp/qos-mount/a/file -a \
		-e /tmp/qos-mount/b/file -a -e /tmp/qos-mount/c/file
	passed=$(field q read_ios)
	check_within "I/Os that passed" "$passed" 5 1000
	check "data waits still" held q read 12
	sleep 3
	check_within "until their cost is paid back" "$(field q read_ios)" "$passed" "$passed"
	no_limits q
	io_stops "$IO_PID"
}

set_up || exit
run_cases held_bios_leave_on_suspend held_bios_leave_on_suspend_without_flush \
	a_table_can_be_replaced_while_bios_wait a_table_that_is_cleared_was_never_used \
	a_message_sets_free_what_waits a_device_in_use_is_not_removed \
	a_forced_removal_lets_bios_leave a_disk_that_is_gone_is_not_waited_for \
	a_scsi_disk_can_be_deleted_below suspend_and_resume_under_load \
	who_must_not_wait_is_told_so_and_not_charged metadata_passes_what_waits
