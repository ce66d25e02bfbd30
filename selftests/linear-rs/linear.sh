#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# Ours: a target that shows the crate
# Runs: vm uml checking
# Timeout: 240
#
# The smallest target on the abstractions that dm-qos stands on: selftests/modules/main.rs.

. "$(dirname "$0")/../dm-qos/common.sh"
MODULE=dm-linear-rs

verified_writes_read_back() {
	make_disk d memory_backed=1
	dmsetup create l --table "0 65536 linear-rs /dev/d 4096"
	at_exit "dmsetup remove --retry l"
	check "fio" fio --eta=never --name=verify --filename=/dev/mapper/l --rw=randwrite \
		--bsrange=4k-64k \
		--size=4M --direct=1 --ioengine=libaio --iodepth=16 --verify=crc32c \
		--verify_state_save=0 --output=/tmp/verify
	check "no error" grep -q "err= 0" /tmp/verify
	check "what is written is where it should be" \
		cmp -n 4194304 -i 0:2097152 /dev/mapper/l /dev/d
	check "its table" [ "$(dmsetup table l | awk '{ print $3, $5 }')" = "linear-rs 4096" ]
}

several_lines_share_a_disk() {
	make_disk d memory_backed=1
	printf '%s\n' "0 64 linear-rs /dev/d 64" "64 64 linear-rs /dev/d 0" | dmsetup create l
	at_exit "dmsetup remove --retry l"
	dd if=/dev/urandom of=/tmp/pattern bs=32k count=2 status=none
	check "write" dd if=/tmp/pattern of=/dev/mapper/l bs=64k oflag=direct conv=fsync status=none
	check "the first half" cmp -n 32768 -i 0:32768 /tmp/pattern /dev/d
	check "the second half" cmp -n 32768 -i 32768:0 /tmp/pattern /dev/d
}

a_target_decides_how_bios_end() {
	make_disk d memory_backed=1
	dmsetup create f --table "0 64 full-rs /dev/d 0"
	at_exit "dmsetup remove --retry f"
	dd if=/dev/urandom of=/tmp/pattern bs=4k count=1 status=none
	dd if=/tmp/pattern of=/dev/mapper/f bs=4k oflag=direct status=none 2>/tmp/errors
	check "what is written does not fit" grep -q "No space left on device" /tmp/errors
	check "what is read is there" cmp -n 4096 /tmp/pattern /dev/mapper/f
}

loads_and_unloads_many_times() {
	local rounds=10
	[ "$FERRULE_KERNEL" != checking ] || rounds=5
	check "$rounds times" comes_and_goes "$rounds"
}

set_up || exit
run_cases verified_writes_read_back several_lines_share_a_disk a_target_decides_how_bios_end \
	loads_and_unloads_many_times
