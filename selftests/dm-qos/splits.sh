#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# Ours: counts of its own
# Runs: vm uml
# Timeout: 300
#
# An I/O is one that the device below gets. How many that will be is foretold by a copy of what the
# block layer does with a bio: here it is compared with what the disk has counted, over queue limits
# and bios drawn at random, some 10,000 in all. SEED=, printed, repeats a run.

. "$(dirname "$0")/common.sh"

: "${SEED:=$RANDOM}"
ROUNDS=12
[ "$FERRULE_KERNEL" != uml ] || ROUNDS=4

# pick VALUE...: one of them.
pick() {
	echo "${@:RANDOM % $# + 1:1}"
}

# disk_counts NAME: reads, sectors read, writes, sectors written.
disk_counts() {
	local stat
	read -ra stat <"/sys/block/$1/stat"
	echo "${stat[0]} ${stat[2]} ${stat[4]} ${stat[6]}"
}

# same_counts WHAT NAME BEFORE: since then, by the disk and by qos.
same_counts() {
	local disk qos old new i seen=
	read -ra old <<<"$3"
	read -ra new <<<"$(disk_counts "$2")"
	for i in 0 1 2 3; do
		seen+="$((new[i] - old[i])) "
	done
	read -ra qos <<<"$(fields q read_ios read_bytes write_ios write_bytes | xargs)"
	qos[1]=$((qos[1] / 512)) qos[3]=$((qos[3] / 512))
	diag "$1: the disk had $seen"
	[ "${qos[*]} " = "$seen" ] || fail "$1: qos says ${qos[*]}"
}

# through NAME FIO_OPTION...: some I/O, and the counts of it. Nothing is merged.
through() {
	local name=$1 before
	shift
	echo 2 >"/sys/block/$name/queue/nomerges"
	make_qos q "$name" iops 10000000 || return
	dmsetup message q 0 reset
	before=$(disk_counts "$name")
	fio --name=splits --filename=/dev/mapper/q --direct=1 --ioengine=libaio --iodepth=8 \
		--thread --randseed="$SEED" --number_ios=900 --size=48M --io_size=2G \
		"$@" >/tmp/splits.fio 2>&1 || fail "$(cat /tmp/splits.fio)"
	same_counts "$*" "$name" "$before"
	remove_qos q
}

the_disk_gets_as_many_as_are_counted() {
	local round block options
	RANDOM=$SEED
	diag "SEED=$SEED"
	for ((round = 0; round < ROUNDS; round++)); do
		block=$(pick 512 4096)
		options=(blocksize="$block" max_sectors="$(pick 8 24 120 256 1000 0)"
			virt_boundary="$(pick 0 1)")
		[ "$(pick 0 0 1)" = 0 ] || options+=(zoned=1 zone_size=4 zone_nr_conv=16)
		diag "disk: ${options[*]}"
		make_disk "d$round" "${options[@]}" || return
		through "d$round" --rw=randrw --bsrange="$block-$(pick 4k 64k 300k 1M)" \
			--blockalign="$block" --iomem_align="$(pick 512 4096)" --mem=malloc ||
			return
	done
}

segments_and_chunks_of_a_scsi_disk() {
	make_scsi_disk physblk_exp=3 sector_size=512
	pick 4 8 64 >"/sys/block/$SCSI_DISK/queue/max_sectors_kb"
	through "$SCSI_DISK" --rw=randrw --bsrange=512-256k --blockalign=512 --size=15M
}

set_up || exit
run_cases the_disk_gets_as_many_as_are_counted segments_and_chunks_of_a_scsi_disk
