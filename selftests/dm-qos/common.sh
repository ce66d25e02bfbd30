#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# What dm-qos's tests share: disks, qos devices over them, I/O that waits, and what status says.
# Sourced; no test by itself.

. "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"

MODULE=dm-qos
CONFIGFS=/sys/kernel/config/nullb

# set_up: once a script.
set_up() {
	trap tear_down EXIT
	udev_off
	modprobe null_blk nr_devices=0 && load_module "$MODULE"
}

tear_down() {
	! module_is_loaded "$MODULE" || wait_for 10 unload_module "$MODULE" 2>/dev/null
	! module_is_loaded null_blk || wait_for 10 rmmod null_blk 2>/dev/null
	udev_on
}

# What udev reads from each new device would be counted and held. So dmsetup makes the nodes.
udev_off() {
	export DM_DISABLE_UDEV=1
	[ -S /run/udev/control ] || return 0
	udevadm control --stop-exec-queue && mv /run/udev/control /run/udev/control.off
}

udev_on() {
	[ -S /run/udev/control.off ] || return 0
	mv /run/udev/control.off /run/udev/control && udevadm control --start-exec-queue
}

# comes_and_goes ROUNDS: unload and load the module. Finding it anew each time would take longest.
comes_and_goes() {
	local round command=(modprobe "$MODULE")
	[ -z "$FERRULE_MODULES" ] ||
		command=(insmod "$(find "$FERRULE_MODULES" -name "$MODULE.ko" -print -quit)")
	for ((round = 0; round < $1; round++)); do
		rmmod "$MODULE" && "${command[@]}" || return
	done
}

# make_disk NAME [ATTRIBUTE=VALUE...]: a null_blk disk /dev/NAME of 64 MiB that goes with the case.
make_disk() {
	local name=$1 setting
	shift
	mkdir "$CONFIGFS/$name" || return
	at_exit "rmdir $CONFIGFS/$name"
	for setting in size=64 irqmode=0 "$@"; do
		echo "${setting#*=}" >"$CONFIGFS/$name/${setting%%=*}" || return
	done
	echo 1 >"$CONFIGFS/$name/power" && wait_for 5 test -b "/dev/$name"
}

# make_qos NAME DISK [KEY VALUE...]: /dev/mapper/NAME over all of /dev/DISK; goes with the case.
make_qos() {
	local name=$1 disk=$2
	shift 2
	dmsetup create "$name" --table "$(qos_table "$disk" "$@")" || return
	at_exit "remove_qos $name"
}

# qos_table DISK [KEY VALUE...]
qos_table() {
	local disk=$1
	shift
	echo "0 $(blockdev --getsz "/dev/$disk") qos /dev/$disk 0 $#${*:+ $*}"
}

# remove_qos NAME: whatever waits there is let go first.
remove_qos() {
	dmsetup info "$1" >/dev/null 2>&1 || return 0
	no_limits "$1"
	dmsetup remove --retry "$1"
}

# no_limits NAME
no_limits() {
	dmsetup message "$1" 0 \
		set iops 0 read_iops 0 write_iops 0 bps 0 read_bps 0 write_bps 0 2>/dev/null
}

# field NAME FIELD: from dmsetup status.
field() {
	local status word
	status=$(dmsetup status "$1")
	for word in $status; do
		[ "${word%%=*}" != "$2" ] || echo "${word#*=}"
	done
}

# fields NAME FIELD...: several at one time.
fields() {
	local name=$1 status word
	shift
	status=" $(dmsetup status "$name") "
	for word in "$@"; do
		word=${status#* "$word"=}
		echo "${word%% *}"
	done
}

# field_is NAME FIELD OPERATOR NUMBER, as for test(1).
field_is() {
	test "$(field "$1" "$2")" "$3" "$4"
}

# io_starts NAME RW [DEPTH [FIO OPTION...]]: fio in the background until stopped. Sets IO_PID.
io_starts() {
	local name=$1 rw=$2 depth=${3:-16}
	shift $(($# < 3 ? $# : 3))
	fio --name="$name" --filename="/dev/mapper/$name" --rw="$rw" --bs=4k --direct=1 \
		--ioengine=libaio --iodepth="$depth" --time_based --runtime=600 --thread \
		"$@" >"/tmp/$name.fio" 2>&1 &
	IO_PID=$!
	at_exit "no_limits $name; io_stops $IO_PID"
}

# io_stops PID: waits for what is in flight, so limits should be off.
io_stops() {
	kill -INT "$1" 2>/dev/null
	wait "$1" 2>/dev/null
	return 0
}

# held NAME DIRECTION NUMBER: wait until so many wait.
held() {
	wait_for 20 field_is "$1" "$2_held" -ge "$3"
}

microseconds() {
	echo "${EPOCHREALTIME/./}"
}

# takes_at_most SECONDS COMMAND...: fails when it takes longer or fails.
takes_at_most() {
	local limit=$1 start took
	shift
	start=$(microseconds)
	"$@" || return
	took=$(($(microseconds) - start))
	diag "$1 $2: $((took / 1000)) ms"
	[ "$took" -le $((limit * 1000000)) ]
}

# fails COMMAND...
fails() {
	! "$@" 2>/dev/null
}
