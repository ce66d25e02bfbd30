#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# Ours: bios that the target holds
# Runs: vm
# Timeout: 300
#
# File servers whose files are on qos devices: NFSv4 of the kernel, and GlusterFS over three bricks.
# Limits hold for what the servers write, when they are told to and when they write back, and data
# are what was written. The programs are those that scripts/tools.sh has unpacked.

. "$(dirname "$0")/common.sh"

# Where clients mount.
FILES=/run/files
# By their names, so many files are on all bricks.
FILES_AT_ONCE=12
# The first port of the bricks.
BRICK_PORT=24100

# has_servers PROGRAM: they lie over the machine's own programs, and what they write goes to memory.
has_servers() {
	local dir memory
	memory=$(mktemp -d /run/servers-XXXXXX)
	for dir in etc usr var; do
		[ -d "$FERRULE_SERVERS/$dir" ] || continue
		mkdir -p "$memory/$dir/upper" "$memory/$dir/work"
		mount -t overlay -o "lowerdir=$FERRULE_SERVERS/$dir:/$dir,\
upperdir=$memory/$dir/upper,workdir=$memory/$dir/work" servers "/$dir" || return
		at_exit "umount --lazy /$dir"
	done
	mkdir -p "$FILES"
	command -v "$1" >/dev/null || skip "no $1"
}

# make_file_system NAME: a qos device over a disk, with ext4, at /run/NAME.
make_file_system() {
	make_disk "disk-$1" memory_backed=1 size=128 && make_qos "$1" "disk-$1" || return
	mke2fs -q -t ext4 -E lazy_itable_init=0,lazy_journal_init=0 "/dev/mapper/$1" || return
	mkdir -p "/run/$1" && mount "/dev/mapper/$1" "/run/$1" || return
	at_exit "wait_for 10 umount /run/$1"
}

# sum NAME...: how many writes and bytes of them went to the devices: WRITES and BYTES, at TIME.
sum() {
	local name counts
	WRITES=0 BYTES=0
	for name; do
		mapfile -t counts < <(fields "$name" write_ios write_bytes)
		WRITES=$((WRITES + counts[0])) BYTES=$((BYTES + counts[1]))
	done
	TIME=$(microseconds)
}

# have_more_than BYTES NAME...: of writes.
have_more_than() {
	local bytes=$1
	shift
	sum "$@"
	[ "$BYTES" -gt "$bytes" ]
}

# at_most WHAT RATE NAME...: what goes to the devices in the next 4 s, RATE bytes a second on all
# of them together and somewhat more, while something waits. One write passes whole, on each: at
# 256 KiB a second one of 1 MiB is of four seconds, and it may be larger.
at_most() {
	local what=$1 rate=$2 before start
	shift 2
	check "$what: some waits" wait_for 60 waits "$@"
	sum "$@"
	before=$BYTES start=$TIME
	sleep 4
	# Between two files, none may for a moment.
	check "$what: some waits still" wait_for 30 waits "$@"
	check "$what: it goes on" wait_for 30 have_more_than "$before" "$@"
	check_within "$what: in $(((TIME - start) / 1000)) ms" $((BYTES - before)) \
		1 $((rate * (TIME - start) / 1000000 + 6 * rate))
}

# waits NAME...: some write does, on any.
waits() {
	local name
	for name; do
		! field_is "$name" write_held -gt 0 || return 0
	done
	return 1
}

# limits NAME VALUE DEVICE...
limits() {
	local limit=$1 value=$2 name
	shift 2
	for name; do
		dmsetup message "$name" 0 set "$limit" "$value" burst_ms 0
	done
}

# limits_hold_for_files NAME...: in $FILES, of a server whose files are on these devices.
limits_hold_for_files() {
	local start before writer rate count=$#
	head -c 2M /dev/urandom >/run/data
	check "copied" copy_files first
	# Without limits first, for comparison.
	sum "$@"
	start=$TIME before=$WRITES
	check "written" write_through 32
	sum "$@"
	diag "without limits: $(((WRITES - before) * 1000000 / (TIME - start))) writes per second"
	# Each is an I/O at least. How many more the journal makes of it is not for us to say.
	limits write_iops 40 "$@"
	start=$(microseconds)
	check "written slowly" write_through 32
	rate=$((FILES_AT_ONCE * 32 * 1000000 / ($(microseconds) - start)))
	check "at most 40 writes per second" [ "$rate" -le $((42 * count)) ]
	limits write_iops 0 "$@"
	# What the client and the server write back when they please.
	limits write_bps 256K "$@"
	{ copy_files again && sync; } &
	writer=$!
	at_most "256 KiB per second" $((count << 18)) "$@"
	limits write_bps 0 "$@"
	check "copied" wait "$writer"
}

# write_through COUNT: so many pages of each file once more, what they are already. The server has
# to have each on the disk before it answers.
write_through() {
	local number pid pids=()
	for ((number = 0; number < FILES_AT_ONCE; number++)); do
		dd if=/run/data of="$FILES/first$number" bs=4k count="$1" oflag=dsync \
			conv=notrunc status=none &
		pids+=($!)
	done
	# All at once, they would have the status of the last one.
	for pid in "${pids[@]}"; do
		wait "$pid" || return
	done
}

# copy_files NAME
copy_files() {
	local number
	for ((number = 0; number < FILES_AT_ONCE; number++)); do
		cp /run/data "$FILES/$1$number" || return
	done
}

# files_are_whole: after the client has forgotten them.
files_are_whole() {
	local number
	for ((number = 0; number < FILES_AT_ONCE; number++)); do
		check "first $number" cmp /run/data "$FILES/first$number"
		check "again $number" cmp /run/data "$FILES/again$number"
	done
}

# start_nfs DIRECTORY: version 4 of the protocol, which needs no other service. The directory is
# the root of what it exports, for the guest's own root is on 9p, which cannot be exported.
start_nfs() {
	mkdir -p /var/lib/nfs/rpc_pipefs /var/lib/nfs/v4recovery
	mount -t nfsd nfsd /proc/fs/nfsd || return
	at_exit "umount /proc/fs/nfsd"
	# Who writes waits so long for clients of before to come back: the least there is.
	echo 10 >/proc/fs/nfsd/nfsv4gracetime
	: >>/etc/exports
	exportfs -o rw,no_root_squash,insecure,fsid=0 "127.0.0.1:$1" || return
	at_exit "exportfs -u 127.0.0.1:$1; exportfs -f"
	rpc.mountd --no-nfs-version 3 || return
	at_exit "killall rpc.mountd"
	rpc.nfsd --no-nfs-version 3 --nfs-version 4.1 2 || return
	at_exit "rpc.nfsd 0"
}

mount_nfs() {
	timeout 60 mount -t nfs4 -o vers=4.1,sec=sys 127.0.0.1:/ "$FILES"
}

nfs_keeps_the_limits_of_its_disk() {
	# The programs lie over /lib/modules, too.
	modprobe -a nfsd nfsv4 && has_servers rpc.nfsd || return
	make_file_system export && start_nfs /run/export || return
	check "mount" mount_nfs || return
	at_exit "! mountpoint -q $FILES || umount $FILES"
	limits_hold_for_files export
	check "unmount" umount "$FILES"
	check "mount again" mount_nfs
	files_are_whole
	check "as the server has them" cmp /run/data /run/export/again3
}

# volume TYPE: the volume file for clients, by way of example from the document that the project
# started from.
volume() {
	local number
	for number in 1 2 3; do
		printf '%s\n' "volume brick$number" "type protocol/client" \
			"option transport-type tcp" "option remote-host 127.0.0.1" \
			"option remote-port $((BRICK_PORT + number))" \
			"option remote-subvolume locks" "end-volume"
	done
	printf '%s\n' "volume data" "type $1" "subvolumes brick1 brick2 brick3" \
		"option read-hash-mode key-on-read" "end-volume"
}

# start_brick NUMBER
start_brick() {
	printf '%s\n' "volume disk" "type storage/posix" "option directory /run/brick$1/files" \
		"end-volume" "volume locks" "type features/locks" "subvolumes disk" "end-volume" \
		"volume server" "type protocol/server" "option transport-type tcp" \
		"option transport.socket.listen-port $((BRICK_PORT + $1))" \
		"option auth.addr.locks.allow 127.0.0.1" "subvolumes locks" "end-volume" \
		>"/run/brick$1.vol"
	mkdir "/run/brick$1/files"
	glusterfsd --volfile="/run/brick$1.vol" --log-file="/run/brick$1.log" \
		--pid-file="/run/brick$1.pid" || return
	at_exit "brick_ends $1"
}

brick_ends() {
	local pid
	pid=$(<"/run/brick$1.pid")
	kill "$pid" && wait_for 20 test ! -e "/proc/$pid"
}

# mount_volume FILE
mount_volume() {
	glusterfs --volfile="$1" --log-file=/run/client.log "$FILES"
	wait_for 60 mountpoint -q "$FILES" && wait_for 60 ls "$FILES" >/dev/null
}

glusterfs_keeps_the_limits_of_its_bricks() {
	local number
	has_servers glusterfsd || return
	mkdir -p /run/gluster
	for number in 1 2 3; do
		make_file_system "brick$number" && start_brick "$number" || return
	done
	# As the document has it, but for the type, whose name was longer even then.
	volume distribute >/run/short.vol
	volume cluster/distribute >/run/data.vol
	check "the short name is refused" fails mount_volume_at_once /run/short.vol
	check "mount" mount_volume /run/data.vol || return
	at_exit "! mountpoint -q $FILES || umount $FILES"
	limits_hold_for_files brick1 brick2 brick3
	check "unmount" umount "$FILES"
	check "mount again" mount_volume /run/data.vol
	files_are_whole
	for number in 1 2 3; do
		check "brick $number has some" [ -n "$(ls "/run/brick$number/files")" ]
	done
	# One that is limited holds up nobody but itself.
	dmsetup message brick1 0 set write_iops 1 burst_ms 0
	check "others are fast" takes_at_most $((3 * PROMPT)) write_beside
	no_limits brick1
}

mount_volume_at_once() {
	glusterfs --volfile="$1" --log-file=/run/short.log "$FILES"
	sleep 2
	mountpoint -q "$FILES"
}

# write_beside: to what lies on the second brick.
write_beside() {
	local file
	file=$(compgen -G "/run/brick2/files/first*" | head -n 1)
	dd if=/dev/zero of="$FILES/${file##*/}" bs=4k count=64 oflag=sync conv=notrunc status=none
}

set_up || exit
run_cases nfs_keeps_the_limits_of_its_disk glusterfs_keeps_the_limits_of_its_bricks
