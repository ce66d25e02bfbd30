#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# Ours: a tool of its own
# Runs: vm uml
# Timeout: 1800
#
# scripts/qosctl: limits over a disk and into a device that is in use, and away again; what fails or
# is killed in the middle; save and restore; a logical volume under LVM's own commands.

. "$(dirname "$0")/common.sh"

SCRIPTS=$(realpath "$HERE/../../scripts")
REAL=$(command -v dmsetup)
SAVED=/tmp/qos.d
FAKE=/tmp/fake

# By the system's Python, as the package has it; finding one takes as long as most of the commands.
qosctl() {
	PYTHONPATH=$SCRIPTS /usr/bin/python3 -m qos "$@"
}

# For tables: on a Python that has rich.
qosctl_shown() {
	"$SCRIPTS/qosctl" "$@"
}

# A dmsetup that does as FAIL says: "NUMBER before|after fails|kills", of those calls that change
# something. "kills": whoever called it.
make_fake() {
	mkdir -p "$FAKE"
	cat >"$FAKE/dmsetup" <<-EOF
		#!/bin/bash
		read -r number when what <<<"\$FAIL"
		case " \$* " in
		*" info "*|*" table "*|*" status "*) exec $REAL "\$@" ;;
		esac
		count=\$((\$(cat $FAKE/count 2>/dev/null || echo 0) + 1))
		echo \$count >$FAKE/count
		[ "\$count" = "\$number" ] || exec $REAL "\$@"
		[ "\$when" = before ] || $REAL "\$@"
		[ "\$what" = fails ] || kill -KILL \$PPID
		echo "it fails" >&2
		exit 1
	EOF
	chmod +x "$FAKE/dmsetup"
}

# with_failure NUMBER WHEN WHAT COMMAND...
with_failure() {
	local fail="$1 $2 $3"
	shift 3
	rm -f "$FAKE/count"
	(
		FAIL=$fail PATH=$FAKE:$PATH
		export FAIL PATH
		"$@"
	) >/tmp/said 2>&1
}

hidden() {
	node "$1-qos-below" >/dev/null
}

# table_is NAME PATTERN: its live table.
table_is() {
	dmsetup table "$1" | grep -q "$2"
}

is_not_suspended() {
	[ "$(dmsetup info -c --noheadings -o suspended "$1")" = Active ]
}

# works NAME: I/O to it ends.
works() {
	is_not_suspended "$1" && timeout "$PROMPT" dd if="/dev/mapper/$1" of=/dev/null bs=4k \
		count=1 iflag=direct status=none
}

nothing_is_loaded() {
	[ "$(dmsetup info -c --noheadings -o tables_loaded "$1")" = Live ]
}

# make_mounted: the linear device l over the disk d, with ext4 at /tmp/m.
make_mounted() {
	make_disk d memory_backed=1 size=64 && make_linear l d || return
	mkfs.ext4 -q /dev/mapper/l && mkdir -p /tmp/m && mount /dev/mapper/l /tmp/m || return
	at_exit "! mountpoint -q /tmp/m || umount /tmp/m"
}

goes_over_a_disk_and_away() {
	make_disk d memory_backed=1
	check "attach" qosctl attach /dev/d --iops 500 --bps 8M --name q
	check "the table" table_is q "qos [0-9:]* 0 4 iops 500 bps 8388608"
	check "again" fails qosctl attach /dev/d --iops 5 --name q
	check "by the disk's name" qosctl set /dev/d --iops 700
	check "the limit" table_is q "iops 700 bps 8388608"
	check "show" [ "$(qosctl show q --json | grep -c '"iops": 700')" = 1 ]
	check "list" eval 'qosctl_shown list | grep -q "^q .* over .* iops 700 bps 8M"'
	check "why" eval 'qosctl why q | grep -q "nobody asks"'
	check "another group" qosctl set q --group g --weight 300
	check "the table with it" table_is q "iops 700 bps 8388608 group g weight 300"
	check "what cannot be" fails qosctl set q --reserve-iops 1000
	check "nothing of it" table_is q "group g weight 300$"
	exec {file}</dev/mapper/q
	check "not while it is in use" fails qosctl detach q
	exec {file}<&-
	check "detach" qosctl detach q
	check "it is gone" fails node q
}

goes_into_a_device_in_use_and_out() {
	local round pid
	make_mounted || return
	fio --eta=never --name=verify --directory=/tmp/m --rw=randwrite --bsrange=4k-64k \
		--size=16M --direct=1 --ioengine=libaio --iodepth=8 --verify=crc32c \
		--verify_state_save=0 --loops=1000 --time_based --runtime=600 \
		--verify_backlog=64 --verify_fatal=1 --output=/tmp/verify &
	pid=$!
	at_exit "io_stops $pid"
	sleep 2
	for round in 1 2 3; do
		check "attach $round" qosctl attach l --iops 2000 || return
		check "qos $round" table_is l "^0 131072 qos [0-9:]* 0 2 iops 2000$"
		check "hidden $round" hidden l
		check "fio goes on" kill -0 "$pid"
		sleep 1
		check "I/O passes $round" field_is l write_ios -gt 10
		check "detach $round" qosctl detach l || return
		check "linear $round" table_is l "^0 131072 linear"
		check "nothing is left $round" fails hidden l
	done
	check "by its path" qosctl attach /dev/mapper/l --iops 50 --burst-ms 0
	check "it waits" held l write 1
	check "why" eval 'qosctl why l | tee /tmp/why | grep -q "for its own limit: iops 50"'
	diag "$(cat /tmp/why)"
	qosctl top --count 1 --json >/tmp/top
	check "top" grep -q '"device": "l"' /tmp/top
	check "what I/Os take below" grep -q '"disk_p99_ms": [0-9]' /tmp/top
	check "nobody counts that any more" \
		[ -z "$(dmsetup message l-qos-below 0 @stats_list)" ]
	diag "$(qosctl_shown top --count 1)"
	check "set" qosctl set l --iops 0
	check "detach" qosctl detach l
	io_stops "$pid"
	check "no error" grep -q "err= 0" /tmp/verify
	umount /tmp/m
	check "the file system is whole" e2fsck -fn /dev/mapper/l
}

# Each call that changes something fails, before or after it was done.
what_fails_in_the_middle_is_undone() {
	local number when worked
	make_fake
	make_mounted || return
	for when in before after; do
		for number in 1 2 3 4; do
			worked=no
			! with_failure "$number" "$when" fails qosctl attach l --iops 900 ||
				worked=yes
			diag "attach, $number $when: $(tail -n 1 /tmp/said)"
			check "it works" works l
			if [ "$worked" = yes ]; then
				check "qos is there" table_is l " qos "
				check "away again" qosctl detach l
				break
			fi
			check "as before" table_is l " linear "
			check "nothing is left" fails hidden l
			check "nothing is loaded" nothing_is_loaded l
		done
		# A resume that was done is done, whatever dmsetup says after that.
		check "three calls" [ "$number" -ge 3 ]
		for number in 1 2; do
			table_is l " qos " || check "attach" qosctl attach l --iops 900
			with_failure "$number" "$when" fails qosctl detach l
			diag "detach, $number $when: $(tail -n 1 /tmp/said)"
			check "it works" works l
			check "nothing is loaded" nothing_is_loaded l
			if table_is l " qos "; then
				check "the hidden one is there" hidden l
			fi
		done
		table_is l " qos " || check "attach" qosctl attach l --iops 900
		check "the last step fails" fails with_failure 3 "$when" fails qosctl detach l
		check "as before" table_is l " linear "
		check "it works" works l
		! hidden l || qosctl detach l
		check "nothing is left" fails hidden l
	done
}

# Killed, it can undo nothing. The device works, and the next call puts it right.
who_is_killed_in_the_middle_leaves_a_working_device() {
	local number when
	make_fake
	make_mounted || return
	for number in 1 2 3; do
		for when in before after; do
			with_failure "$number" "$when" kills qosctl attach l --iops 900
			check "attach killed, $number $when" works l
			table_is l " qos " || check "attach" qosctl attach l --iops 900
			check "qos" table_is l " qos "
			with_failure "$number" "$when" kills qosctl detach l
			check "detach killed, $number $when" works l
			qosctl detach l
			check "as before" table_is l " linear "
			check "nothing is left" fails hidden l
			check "works" works l
		done
	done
}

# The device below is suspended, so that I/O to it does not end.
io_that_does_not_come_back_is_waited_for_only_so_long() {
	local file reader
	make_disk d memory_backed=1 && make_linear b d && make_linear l mapper/b || return
	# What blkid reads is in the page cache as long as the device is open.
	exec {file}</dev/mapper/l
	blkid -p /dev/mapper/l
	dmsetup suspend --noflush b
	at_exit "dmsetup resume b"
	dd if=/dev/mapper/l of=/dev/null bs=4k count=1 iflag=direct status=none &
	reader=$!
	sleep 2
	check "it gives up" eval '! qosctl attach l --iops 9 --patience 2 2>/tmp/said'
	check "it says so" grep "not done in 2 s" /tmp/said
	check "as before" table_is l " linear "
	check "not suspended" is_not_suspended l
	check "nothing is loaded" nothing_is_loaded l
	check "nothing is left" fails hidden l
	check "it waits still" kill -0 "$reader"
	dmsetup resume b
	check "it ends" wait "$reader"
	check "it works" works l
	check "attach" qosctl attach l --iops 9
	check "detach" qosctl detach l
	exec {file}<&-
}

saved_limits_come_back_with_the_module() {
	make_mounted && make_disk e memory_backed=1 || return
	at_exit "rm -rf $SAVED"
	check "attach" qosctl attach l --iops 300 --save --directory "$SAVED"
	check "attach" qosctl attach /dev/e --bps 2M --name q
	check "save" qosctl save --directory "$SAVED"
	diag "$(head -n 9 "$SAVED"/*)"
	check "detach" qosctl detach l
	check "detach" qosctl detach q
	check "reload" comes_and_goes 1
	echo "attach into" >"$SAVED/absent.conf"
	check "restore" qosctl restore --directory "$SAVED"
	check "into" table_is l "iops 300"
	check "over" table_is q "bps 2097152"
	echo "attach over" >"$SAVED/broken.conf"
	qosctl set q --bps 3M
	check "one has trouble" fails qosctl restore --directory "$SAVED"
	check "the others have not" table_is q "bps 2097152"
	check "for one device" qosctl restore --on /dev/e --directory "$SAVED"
	qosctl_shown --metrics >/tmp/metrics
	check "metrics" grep -q '^ferrule_qos_limit_ios_per_second{device="l"} 300' /tmp/metrics
	qosctl detach l && qosctl detach q
}

# make_volume: LVM with nothing but the disk d, and its volume v/a with ext4 at /tmp/m.
make_volume() {
	command -v lvm >/dev/null || skip "there is no lvm here"
	LVM_SETTINGS='devices { use_devicesfile=0 scan="/dev" filter=[ "a|/dev/d$|", "r|.*|" ]'
	LVM_SETTINGS+=' types=[ "nullb", 16 ] } backup { backup=0 archive=0 }'
	LVM_SETTINGS+=' activation { udev_sync=0 udev_rules=0 verify_udev_operations=0 }'
	make_disk d memory_backed=1
	lvm pvcreate -y /dev/d && lvm vgcreate v /dev/d && lvm lvcreate -y -Wn -l 8 -n a v || return
	at_exit "remove_device v-a; remove_device v-a-qos-below; wipefs -aq /dev/d"
	mkfs.ext4 -q /dev/mapper/v-a && mkdir -p /tmp/m && mount /dev/mapper/v-a /tmp/m || return
	at_exit "! mountpoint -q /tmp/m || umount /tmp/m"
	dd if=/dev/urandom of=/tmp/m/file bs=1M count=8 status=none
	md5sum /tmp/m/file >/tmp/sum
}

lvm() {
	command lvm "$1" --config "$LVM_SETTINGS" "${@:2}" 2>&1
}

has_its_data() {
	echo 3 >/proc/sys/vm/drop_caches
	md5sum -c /tmp/sum
}

# LVM gives its volume a table of its own whenever it changes it: the limits go, the data stay.
lvm_takes_the_limits_away_and_nothing_else() {
	make_volume || return
	check "attach" qosctl attach v-a --iops 900
	check "qos" table_is v-a " qos "
	check "lvextend" lvm lvextend -l +2 v/a
	diag "$(dmsetup table)"
	check "the limits have gone" eval '! table_is v-a " qos "'
	check "which is said" eval 'qosctl_shown list 2>&1 | grep -q "v-a: has lost its limits"'
	check "attach again" qosctl attach v-a --iops 900
	check "with the new length" table_is v-a "^0 81920 qos"
	check "the data are there" has_its_data
	check "refresh" lvm lvchange --refresh v/a
	check "the limits have gone" eval '! table_is v-a " qos "'
	check "what is left goes" qosctl detach v-a
	check "it has gone" fails hidden v-a
	umount /tmp/m
	check "a snapshot" lvm lvcreate -y -s -l 2 -n s v/a
	check "is LVM's" fails qosctl attach v-a --iops 900
	check "with its parts" fails qosctl attach v-a-real --iops 900
	check "remove" lvm vgremove -y v
}

# A renamed volume gets a table of LVM's, too. One that is taken away takes its limits with it.
lvm_renames_and_takes_away() {
	make_volume || return
	at_exit "rm -rf $SAVED; remove_device v-b; remove_device v-b-qos-below"
	check "attach" qosctl attach v-a --iops 900
	check "lvrename" lvm lvrename v/a v/b
	check "the limits have gone" table_is v-b " linear "
	check "which is said" eval 'qosctl_shown list 2>&1 | grep -q "v-a: has gone, or has"'
	check "attach" qosctl attach v-b --iops 800 --save --directory "$SAVED"
	check "its file" grep -x "iops 800" "$SAVED/v-b.conf"
	check "what is left goes" qosctl detach v-a
	check "it has gone" fails hidden v-a
	check "the limits are those of the new one" table_is v-b "iops 800"
	umount /tmp/m
	check "deactivate" lvm lvchange -an v/b
	check "it is gone" fails node v-b
	check "activate" lvm lvchange -ay v/b
	check "the limits are gone" table_is v-b " linear "
	check "restore" qosctl restore --directory "$SAVED"
	check "they are back" table_is v-b "iops 800"
	mount /dev/mapper/v-b /tmp/m
	check "the data are there" has_its_data
	umount /tmp/m
	check "remove" lvm lvremove -y v/b
	check "it is gone" fails node v-b
	check "what is left goes" qosctl detach v-b
	check "nothing holds the disk" lvm vgremove -y v
}

# Its key is moved with its table; to the data in use it is the same device.
goes_into_a_crypt_device_in_use() {
	local key table
	need_module dm-crypt || skip "there is no dm-crypt here"
	key=$(printf '%064d' 7)
	make_disk d memory_backed=1
	dmsetup create c --uuid CRYPT-PLAIN-c \
		--table "0 $(sectors d) crypt aes-xts-plain64 $key 0 /dev/d 0" || return
	at_exit "remove_device c; remove_device c-qos-below"
	table=$(dmsetup table --showkeys c)
	mkfs.ext4 -q /dev/mapper/c && mkdir -p /tmp/m && mount /dev/mapper/c /tmp/m || return
	at_exit "! mountpoint -q /tmp/m || umount /tmp/m"
	dd if=/dev/urandom of=/tmp/m/file bs=1M count=8 status=none && sync
	md5sum /tmp/m/file >/tmp/sum
	check "attach" qosctl attach c --iops 5000
	check "the key is below" [ "$(dmsetup table --showkeys c-qos-below)" = "$table" ]
	check "the limit" table_is c " qos .* iops 5000"
	check "the data are there" has_its_data
	dd if=/dev/urandom of=/tmp/m/file bs=1M count=4 conv=fsync status=none
	md5sum /tmp/m/file >/tmp/sum
	check "detach" qosctl detach c
	check "the table is as before" [ "$(dmsetup table --showkeys c)" = "$table" ]
	check "what was written is there" has_its_data
	umount /tmp/m
	check "the file system is whole" e2fsck -fn /dev/mapper/c
}

# The device over the old one is there still, and keeps what is left of it.
a_disk_that_comes_back_has_its_limits_again() {
	local file
	make_disk d memory_backed=1
	at_exit "rm -rf $SAVED; remove_device q"
	check "attach" qosctl attach /dev/d --iops 300 --name q --save --directory "$SAVED"
	echo 0 >"$CONFIGFS/d/power"
	check "the disk has gone" wait_for 10 [ ! -e /sys/block/d ]
	check "nothing to do" eval 'qosctl restore --directory "$SAVED" | grep "is not there"'
	echo 1 >"$CONFIGFS/d/power"
	wait_for 10 test -b /dev/d
	exec {file}</dev/mapper/q
	check "not while the old one is in use" fails qosctl restore --directory "$SAVED"
	exec {file}<&-
	check "restore" qosctl restore --on /dev/d --directory "$SAVED"
	check "the limits" table_is q "iops 300"
	check "it works" works q
	check "once more" qosctl restore --on /dev/d --directory "$SAVED"
	check "for a disk that has gone" qosctl restore --on /dev/gone --directory "$SAVED"
	check "detach" qosctl detach q
}

# A disk that can do no more than a limit lets it.
measures_what_a_disk_can_do() {
	make_disk d memory_backed=1
	make_qos q d iops 500 bps 8M
	dd if=/dev/urandom of=/dev/mapper/q bs=1M count=1 oflag=direct status=none
	md5sum /dev/d >/tmp/sum
	qosctl measure /dev/mapper/q --seconds 2 --json >/tmp/measured
	diag "$(cat /tmp/measured)"
	check "I/Os" measured_is group_iops 1 500
	check "bytes" measured_is group_bps 1 8388608
	check "a depth" measured_is group_depth 2 10000
	check "nothing was written" md5sum -c /tmp/sum
	check "nobody is there to ask" fails qosctl measure /dev/mapper/q --write </dev/null
	mkfs.ext4 -q /dev/mapper/q && mkdir -p /tmp/m && mount /dev/mapper/q /tmp/m || return
	at_exit "! mountpoint -q /tmp/m || umount /tmp/m"
	check "not a disk in use" fails qosctl measure /dev/mapper/q --write --yes
	umount /tmp/m
	qosctl measure /dev/mapper/q --write --yes --seconds 1 --json >/tmp/measured
	check "writes" grep -q '"write_bps"' /tmp/measured
	check "they were writes" field_is q write_bytes -gt 1048576
}

# measured_is KEY FROM TO
measured_is() {
	local found
	found=$(sed -n "s/^ *\"$1\": \([0-9]*\),\?$/\1/p" /tmp/measured)
	[ -n "$found" ] && [ "$found" -ge "$2" ] && [ "$found" -le "$3" ]
}

# Of real devices, as prometheus_client's own parser reads them.
metrics_of_limits_and_paths() {
	local paths="/dev/mapper/l 3 /dev/mapper/m 1"
	need_module dm-multipath
	load_module dm-round-robin-rs || return
	at_exit "remove_module dm-round-robin-rs; remove_module dm-multipath"
	make_disk d memory_backed=1 && make_linear l d && make_linear m d || return
	make_qos q d iops 100 burst_ms 0
	dmsetup create p --table "0 $(sectors d) multipath 2 queue_mode bio 0 1 1 \
		round-robin-rs 1 latency 2 1 $paths" || return
	at_exit "remove_device p"
	dd if=/dev/mapper/q of=/dev/null bs=4k count=20 iflag=direct status=none
	dd if=/dev/mapper/p of=/dev/null bs=4k count=2000 iflag=direct status=none
	sleep 1
	qosctl_shown --metrics >/tmp/metrics
	diag "$(grep -v '^#' /tmp/metrics)"
	check "I/Os" metric_is 'ferrule_qos_ios_total{device="q",direction="read"} 20.0'
	check "held" metric_is \
		'ferrule_qos_hold_seconds_bucket{.*direction="read".*le="+Inf"} [1-9][0-9]*\.0'
	check "a weight" metric_is "ferrule_path_weight{.*path=\"$(node l)\"} 3.0"
	check "in service" metric_is "ferrule_path_active{.*path=\"$(node m)\"} 1.0"
	check "a latency" metric_is "ferrule_path_latency_seconds{.*path=\"$(node l)\"} [0-9.e-]*"
	check "a share" metric_is "ferrule_path_share_ratio{.*path=\"$(node m)\"} 0\.[0-9]*"
	dmsetup message p 0 fail_path /dev/mapper/m
	qosctl_shown --metrics >/tmp/metrics
	check "it has failed" metric_is "ferrule_path_failures_total{.*path=\"$(node m)\"} 1.0"
	check "and is not in service" metric_is "ferrule_path_active{.*path=\"$(node m)\"} 0.0"
}

metric_is() {
	grep -qx "$1" /tmp/metrics
}

what_cannot_be_is_refused() {
	make_disk d memory_backed=1
	make_linear l d
	check "no such device" fails qosctl attach nothing --iops 5
	check "a disk in use" fails qosctl attach /dev/d --iops 5
	check "a limit that is none" fails qosctl attach l --iops x
	check "what the kernel refuses" fails qosctl attach l --iops 5 --group-iops 100
	check "it says why" eval \
		'qosctl attach l --group-iops 100 2>&1 | tee /tmp/said | grep -q "group_iops"'
	diag "$(cat /tmp/said)"
	check "nothing is left" fails hidden l
	dmsetup suspend l
	check "a suspended one" fails qosctl attach l --iops 5
	check "it stays so" eval '! is_not_suspended l'
	dmsetup resume l
	dmsetup load l --table "$(linear_table d)"
	check "one that somebody changes" fails qosctl attach l --iops 5
	dmsetup clear l
	check "into itself" qosctl attach l --iops 5
	check "twice" fails qosctl attach l --iops 5
	check "the hidden one" fails qosctl attach l-qos-below --iops 5
	check "detach" qosctl detach l
	make_qos q mapper/l iops 5
	check "what was made by hand" fails qosctl detach q
}

# The same file system is found twice, and what is below is not to be mounted, nor linked to.
what_is_below_is_hidden_from_udev() {
	[ -x /lib/systemd/systemd-udevd ] || skip "there is no udev here"
	local uuid=8d5a3c1e-7d4f-4e6a-9f53-0b1f6d2c7a11
	at_exit "stop_udev; host_etc"
	writable_etc && cp "$SCRIPTS"/../debian/udev/*.rules /etc/udev/rules.d && start_udev ||
		return
	unset DM_DISABLE_UDEV
	make_disk d memory_backed=1 && make_linear l d || return
	mkfs.ext4 -q -U "$uuid" /dev/mapper/l && udevadm trigger --action=change /dev/mapper/l
	udevadm settle
	check "attach" qosctl attach l --iops 900
	udevadm trigger --action=change "/dev/$(node l-qos-below)" /dev/mapper/l
	udevadm settle
	udevadm info "/dev/$(node l-qos-below)" >/tmp/below
	check "the rest of the rules is off" grep -q DM_UDEV_DISABLE_OTHER_RULES_FLAG=1 /tmp/below
	check "nothing was looked for" fails grep -q ID_FS_UUID /tmp/below
	check "no link to it" fails grep -q "^S: disk/" /tmp/below
	check "the link" [ "$(readlink -f "/dev/disk/by-uuid/$uuid")" = "/dev/$(node l)" ]
	check "no unit, for nothing is saved" fails grep -rq qosctl-restore /run/udev/data
	check "detach" qosctl detach l
	check "its node has gone" [ ! -e /dev/mapper/l-qos-below ]
}

set_up || exit
# Each call starts a Python, which takes seconds on an emulated CPU. What needs no distribution's
# kernel is done where that takes less.
only_on uml \
	what_fails_in_the_middle_is_undone \
	who_is_killed_in_the_middle_leaves_a_working_device \
	io_that_does_not_come_back_is_waited_for_only_so_long \
	saved_limits_come_back_with_the_module \
	a_disk_that_comes_back_has_its_limits_again \
	lvm_renames_and_takes_away \
	what_cannot_be_is_refused
only_on vm \
	goes_over_a_disk_and_away \
	goes_into_a_device_in_use_and_out \
	goes_into_a_crypt_device_in_use \
	lvm_takes_the_limits_away_and_nothing_else \
	measures_what_a_disk_can_do \
	metrics_of_limits_and_paths \
	what_is_below_is_hidden_from_udev
run_cases \
	goes_over_a_disk_and_away \
	goes_into_a_device_in_use_and_out \
	what_fails_in_the_middle_is_undone \
	who_is_killed_in_the_middle_leaves_a_working_device \
	io_that_does_not_come_back_is_waited_for_only_so_long \
	saved_limits_come_back_with_the_module \
	a_disk_that_comes_back_has_its_limits_again \
	goes_into_a_crypt_device_in_use \
	lvm_takes_the_limits_away_and_nothing_else \
	lvm_renames_and_takes_away \
	measures_what_a_disk_can_do \
	metrics_of_limits_and_paths \
	what_is_below_is_hidden_from_udev \
	what_cannot_be_is_refused
