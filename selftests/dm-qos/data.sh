#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# Ours: counts of its own
# Runs: vm uml
# Timeout: 480
#
# Data arrive whole and in order, and I/Os are counted as the device below gets them.

. "$(dirname "$0")/common.sh"

verified_writes_read_back() {
	make_disk d memory_backed=1
	make_qos q d iops 300 write_bps 64M
	check "fio" fio --eta=never --name=verify --filename=/dev/mapper/q --rw=randwrite \
		--bsrange=4k-64k \
		--size=8M --direct=1 --ioengine=libaio --iodepth=16 --verify=crc32c \
		--verify_state_save=0 --output=/tmp/verify
	check "I/O waited" field_is q write_held_total -gt 0
	check "no error" grep -q "err= 0" /tmp/verify
}

# A zone is written in order or not at all: one bio that overtakes another is an error.
order_is_kept_within_a_direction() {
	make_disk z zoned=1 zone_size=4 zone_nr_conv=0 memory_backed=1
	make_qos q z write_iops 500 burst_ms 1
	check "zones are reported through it" [ "$(blkzone report -c 4 /dev/mapper/q | wc -l)" = 4 ]
	check "fio" fio --eta=never --name=zones --filename=/dev/mapper/q --rw=write \
		--bs=4k --size=4M \
		--direct=1 --ioengine=libaio --iodepth=32 --zonemode=zbd --verify=crc32c \
		--verify_state_save=0 --output=/tmp/zones
	check "no error" grep -q "err= 0" /tmp/zones
	check "most I/O waited" field_is q write_held_total -gt 500
}

an_io_counts_as_often_as_the_device_gets_it() {
	local page
	# No disk takes less at once.
	page=$(getconf PAGESIZE)
	make_disk small max_sectors=$((page / 512))
	make_qos q small
	dd if=/dev/zero of=/dev/mapper/q bs=1M count=1 oflag=direct status=none
	check "1 MiB in pieces of a page" \
		[ "$(fields q write_ios write_bytes | xargs)" = "$((1048576 / page)) 1048576" ]
	dmsetup message q 0 reset
	dd if=/dev/mapper/q of=/dev/null bs=$((page * 3 / 2)) count=1 iflag=direct status=none
	check "a page and a half" \
		[ "$(fields q read_ios read_bytes | xargs)" = "2 $((page * 3 / 2))" ]
	dmsetup message q 0 reset
	dmsetup message q 0 set write_iops 1 burst_ms 0
	io_starts q write 2 --bs=$((16 * page))
	# The second one waits for 16.
	check "it pays for all of them" held q write 1
	sleep 3
	check_within "I/Os in 3 s" "$(field q write_ios)" 16 16
	dmsetup message q 0 set write_iops 0
	io_stops "$IO_PID"
}

what_carries_no_data_counts_as_one_write() {
	make_disk d discard=1 memory_backed=1 cache_size=1
	make_qos q d
	check "discard" blkdiscard -o 0 -l 1048576 /dev/mapper/q
	check "counts 1" [ "$(fields q write_ios write_bytes | xargs)" = "1 0" ]
	dmsetup message q 0 reset
	python3 -c 'import os; os.fsync(os.open("/dev/mapper/q", os.O_RDWR))'
	check "so does a flush" [ "$(fields q write_ios write_bytes | xargs)" = "1 0" ]
}

an_offset_is_kept() {
	make_disk d memory_backed=1
	dmsetup create q --table "0 8192 qos /dev/d 4096"
	at_exit "remove_qos q"
	dd if=/dev/urandom of=/tmp/pattern bs=1M count=4 status=none
	check "write" dd if=/tmp/pattern of=/dev/mapper/q bs=1M oflag=direct status=none
	check "it is where it should be" \
		cmp -n 4194304 -i 0:2097152 /tmp/pattern /dev/d
	check "and read from there" cmp -n 4194304 /tmp/pattern /dev/mapper/q
}

ioctls_reach_a_whole_device() {
	make_disk d
	make_qos q d
	check "whole" blockdev --getiomin /dev/mapper/q
	make_scsi_disk delay=0
	make_qos s "$SCSI_DISK"
	check "SCSI inquiry" sg_inq /dev/mapper/s >/dev/null
}

# Polled I/O is not polled for while it waits.
polled_io_ends() {
	make_disk d poll_queues=1 submit_queues=1
	make_qos q d iops 200
	check "fio" timeout 60 fio --eta=never --name=poll --filename=/dev/mapper/q --rw=randread \
		--bs=4k \
		--direct=1 \
		--ioengine=io_uring --hipri --iodepth=4 --number_ios=100 --output=/tmp/poll
	check "no error" grep -q "err= 0" /tmp/poll
	check "some waited" field_is q read_held_total -gt 0
}

set_up || exit
run_cases verified_writes_read_back order_is_kept_within_a_direction \
	an_io_counts_as_often_as_the_device_gets_it what_carries_no_data_counts_as_one_write \
	an_offset_is_kept ioctls_reach_a_whole_device polled_io_ends
