#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# What dm-qos's tests share: disks, qos devices over them, I/O that waits, and what status says.
# Sourced; no test by itself.

. "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"

MODULE=dm-qos
CONFIGFS=/sys/kernel/config/nullb
HERE=$(dirname "${BASH_SOURCE[0]}")
# With FERRULE_PEER=c, make_qos makes a dm-linear device with io.max instead, which is for who is in
# this cgroup: the script, and all that it starts.
PEER_CGROUP=/sys/fs/cgroup/peer
# How long something that must not hang may take, in seconds: the guest may be slow.
# shellcheck disable=SC2034 # for those who source this
PROMPT=$HANG_SECONDS

# set_up: once a script.
set_up() {
	trap tear_down EXIT
	udev_off
	watch_for_hangs
	modprobe null_blk nr_devices=0 || return
	if is_about_the_peer; then
		echo "+io +memory" >/sys/fs/cgroup/cgroup.subtree_control &&
			mkdir "$PEER_CGROUP" && echo $$ >"$PEER_CGROUP/cgroup.procs"
	else
		load_module "$MODULE"
	fi
}

tear_down() {
	io_server_ends
	remove_module "$MODULE"
	remove_module null_blk
	if [ -d "$PEER_CGROUP" ]; then
		echo $$ >/sys/fs/cgroup/cgroup.procs
		rmdir "$PEER_CGROUP"
	fi
	watch_for_hangs_ends
	udev_on
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

# need_module NAME: until the case is over.
need_module() {
	modprobe "$1" && at_exit "remove_module ${1//-/_}"
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

# make_scsi_disk [PARAMETER=VALUE...]: a scsi_debug disk of 16 MiB, which goes with the case.
# SCSI_DISK becomes its name.
# shellcheck disable=SC2120 # not all give parameters
make_scsi_disk() {
	local block="/sys/bus/pseudo/drivers/scsi_debug/adapter*/host*/target*/*/block/*"
	modprobe scsi_debug dev_size_mb=16 "$@" || return
	at_exit "remove_module scsi_debug"
	wait_for 10 compgen -G "$block" >/dev/null || return
	SCSI_DISK=$(basename "$(compgen -G "$block")")
	wait_for 10 test -b "/dev/$SCSI_DISK"
}

# make_linear NAME DISK: as make_qos, by dm-linear, to compare with.
make_linear() {
	dmsetup create "$1" --table "$(linear_table "$2")" || return
	at_exit "remove_device $1"
}

# linear_table DISK
linear_table() {
	echo "0 $(sectors "$1") linear /dev/$1 0"
}

# remove_device NAME
remove_device() {
	! node "$1" >/dev/null || dmsetup remove --retry "$1"
}

# node NAME: such as dm-0. Without a process, as sectors.
node() {
	local file name
	for file in /sys/block/dm-*/dm/name; do
		if [ -e "$file" ] && read -r name <"$file" && [ "$name" = "$1" ]; then
			file=${file#/sys/block/}
			echo "${file%%/*}"
			return 0
		fi
	done
	return 1
}

# sectors DISK: how many it has. DISK may be mapper/NAME.
sectors() {
	local disk=$1 size
	[ "${disk#mapper/}" = "$disk" ] || disk=$(node "${disk#mapper/}") || return
	read -r size <"/sys/class/block/$disk/size" && echo "$size"
}

# io_serves: once a script, for those that do I/O by io.py.
io_serves() {
	mkfifo /tmp/io.requests /tmp/io.replies || return
	python3 -I "$HERE/io.py" /tmp/io.requests /tmp/io.replies &
	IO_SERVER=$!
	exec {IO_REQUESTS}>/tmp/io.requests {IO_REPLIES}</tmp/io.replies
}

io_server_ends() {
	[ -n "${IO_SERVER:-}" ] || return 0
	exec {IO_REQUESTS}>&- {IO_REPLIES}<&-
	wait "$IO_SERVER"
	rm -f /tmp/io.requests /tmp/io.replies
}

# io NAME [at-once] OPERATION...: prints what became of them, see io.py.
io() {
	local line name=$1
	shift
	echo "- /dev/mapper/$name $*" >&"$IO_REQUESTS"
	while read -r line <&"$IO_REPLIES" && [ -n "$line" ]; do
		echo "$line"
	done
}

# io_is_well NAME [at-once] OPERATION...: nothing else than ok became of them.
io_is_well() {
	local results
	results=$(io "$@")
	[ -n "$results" ] && ! grep -v ': ok$' <<<"$results"
}

# io_in_background RESULTS NAME [at-once] OPERATION...: RESULTS, a file, is there when it is over.
io_in_background() {
	local results=$1 name=$2
	shift 2
	rm -f "$results"
	echo "$results /dev/mapper/$name $*" >&"$IO_REQUESTS"
}

# same_io WHAT EXPECTED [at-once] OPERATION...: through the devices l and then q. What becomes of
# them must be the same, and EXPECTED be the last result.
same_io() {
	local what=$1 expected=$2 linear qos
	shift 2
	linear=$(io l "$@")
	qos=$(io q "$@")
	[ "$linear" = "$qos" ] || {
		fail "$what: not as through dm-linear"$'\n'"$(diff <(echo "$linear") \
			<(echo "$qos"))"
		return
	}
	[ "${qos##*: }" = "$expected" ] || fail "$what: not $expected"$'\n'"$qos"
}

# same_with_both COMMAND...: prints the same for each target, which is its last argument.
same_with_both() {
	local linear qos
	linear=$("$@" linear 2>&1)
	qos=$("$@" qos 2>&1)
	[ "$linear" = "$qos" ] || fail "$*: dm-linear:"$'\n'"$linear"$'\n'"qos:"$'\n'"$qos"
	diag "$qos"
}

# make_qos NAME DISK [KEY VALUE...]: /dev/mapper/NAME over all of /dev/DISK; goes with the case.
make_qos() {
	local name=$1 disk=$2
	shift 2
	if is_about_the_peer; then
		make_linear "$name" "$disk" && io_max "$name" "$@"
		return
	fi
	dmsetup create "$name" --table "$(qos_table "$disk" "$@")" || return
	at_exit "remove_qos $name"
}

# io_max NAME [KEY VALUE...]: the same limits by blk-cgroup, if it has them.
io_max() {
	local name=$1 limits
	limits=$(<"/sys/block/$(node "$name")/dev")
	shift
	while [ $# -gt 0 ]; do
		case $1 in
		read_iops) limits+=" riops=$2" ;;
		write_iops) limits+=" wiops=$2" ;;
		# It takes 8M for 8.
		read_bps) limits+=" rbps=$(numfmt --from=iec "$2")" ;;
		write_bps) limits+=" wbps=$(numfmt --from=iec "$2")" ;;
		# What an idle device may save up is not for the user to say.
		burst_ms) ;;
		*) fail "io.max has no $1" || return ;;
		esac
		shift 2
	done
	echo "${limits//=0/=max}" >"$PEER_CGROUP/io.max"
}

# qos_table DISK [KEY VALUE...]
qos_table() {
	local disk=$1
	shift
	echo "0 $(sectors "$disk") qos /dev/$disk 0 $#${*:+ $*}"
}

# remove_qos NAME: whatever waits there is let go first.
remove_qos() {
	node "$1" >/dev/null || return 0
	no_limits "$1"
	dmsetup remove --retry "$1"
}

# no_limits NAME
no_limits() {
	if is_about_the_peer; then
		io_max "$1" read_iops 0 write_iops 0 read_bps 0 write_bps 0
		return
	fi
	dmsetup message "$1" 0 \
		set iops 0 read_iops 0 write_iops 0 bps 0 read_bps 0 write_bps 0 2>/dev/null
}

# limit NAME KEY VALUE...: from now on.
limit() {
	local name=$1
	shift
	if is_about_the_peer; then
		io_max "$name" "$@"
	else
		dmsetup message "$name" 0 set "$@"
	fi
}

# have_waited NAME DIRECTION NUMBER: more than so many. With the C driver, who knows.
have_waited() {
	is_about_the_peer || field_is "$1" "$2_held_total" -gt "$3"
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

# held NAME DIRECTION NUMBER: wait until so many wait. fio takes its time to start.
held() {
	wait_for $((2 * PROMPT)) field_is "$1" "$2_held" -ge "$3"
}

# logged TEXT: by the target, since kmsg_mark.
logged() {
	[[ $(kmsg_since_mark) == *"qos: $1"* ]] || {
		diag "log: $(kmsg_since_mark)"
		return 1
	}
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
