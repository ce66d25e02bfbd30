#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# What multipathd's tests and benchmarks share: udev, multipathd and its configuration in a guest
# that has none of them. Sourced, after ../lib.sh; no test by itself.

# The configuration that has to work unchanged. multipath-tools has an entry of its own for this
# vendor, with which it is merged.
SEED_CONFIGURATION='devices {
	device {
		vendor "NETAPP"
		product "LUN"
		path_grouping_policy multibus
		path_selector "round-robin 0"
		failback immediate
		no_path_retry 5
	}
}'
# Paths are checked this often, in seconds; no_path_retry counts checks.
POLLING_INTERVAL=1
MULTIPATHD_LOG=/run/multipathd.log

# configure [LINE...]: multipath.conf is that of the seed, and what a small, impatient machine needs
# beside it is in a file of its own, with the lines in the section that has the last word.
configure() {
	mkdir -p /etc/multipath/conf.d || return
	printf '%s\n' "$SEED_CONFIGURATION" >/etc/multipath.conf
	{
		# That of the vendor asks the disk what only the vendor's disks know.
		[[ " $*" == *" prio "* ]] || set -- "prio const" "$@"
		printf '%s\n' "defaults {" "find_multipaths yes" "fast_io_fail_tmo 2" \
			"polling_interval $POLLING_INTERVAL" \
			"max_polling_interval $POLLING_INTERVAL" \
			"${UID_ATTRIBUTE:+uid_attribute $UID_ATTRIBUTE}" "}" "overrides {" "$@" "}"
	} >/etc/multipath/conf.d/lab.conf
}

# start_tools: all of that, with multipathd running, which needs dm-multipath.
start_tools() {
	modprobe dm-multipath && writable_etc && start_udev && configure && start_multipathd
}

start_multipathd() {
	# In the foreground, so that it says what it does to a file.
	multipathd -d -s -v2 >>"$MULTIPATHD_LOG" 2>&1 &
	MULTIPATHD=$!
	wait_for 30 multipathd_runs || {
		diag "multipathd does not start: $(multipathd show daemon 2>&1)" \
			"$(cat "$MULTIPATHD_LOG")"
		return 1
	}
}

multipathd_runs() {
	multipathd show daemon 2>/dev/null | grep -q "running\|idle"
}

stop_multipathd() {
	[ -n "${MULTIPATHD:-}" ] || return 0
	multipathd shutdown >/dev/null
	wait "$MULTIPATHD" 2>/dev/null
	MULTIPATHD=
}

stop_tools() {
	stop_multipathd
	stop_udev
	host_etc
}

# map_name: MAP becomes that of the one multipath device that there is.
map_name() {
	MAP=$(dmsetup ls --target multipath 2>/dev/null | awk '/[0-9])$/ { print $1; exit }')
	[ -n "$MAP" ]
}

# map_has NUMBER: there is one, with so many paths.
map_has() {
	map_name && [ "$(dmsetup status "$MAP" | grep -oE ' [0-9]+:[0-9]+ [AF] ' | wc -l)" = "$1" ]
}

# make_map PATHS [LINE...]: multipathd makes it of the paths that it finds, configured so.
make_map() {
	local number=$1
	shift
	configure "$@" && multipathd reconfigure >/dev/null && wait_for 30 map_has "$number" &&
		udevadm settle && wait_for 10 test -b "/dev/mapper/$MAP" && return
	diag "no map with $number paths: $(multipathd show paths) $(tail "$MULTIPATHD_LOG")"
	return 1
}

remove_map() {
	! map_name || wait_for 20 multipath -f "$MAP" >/dev/null 2>&1 ||
		diag "$(multipath -f "$MAP" 2>&1)"
}

# path_is A|F NAME...: what multipath thinks of each of these paths, such as sda.
path_is() {
	local state=$1 name
	shift
	for name in "$@"; do
		dmsetup status "$MAP" | grep -q " $(cat "/sys/block/$name/dev") $state " || return
	done
}

# milliseconds: MILLISECONDS becomes the time.
milliseconds() {
	local now=${EPOCHREALTIME/[.,]/}
	MILLISECONDS=$((now / 1000))
}

# time_until SECONDS COMMAND...: TOOK becomes how long it took until the command succeeded, in
# milliseconds.
time_until() {
	local from
	milliseconds
	from=$MILLISECONDS
	wait_for "$@" || return
	milliseconds
	# shellcheck disable=SC2034 # for those who source this
	TOOK=$((MILLISECONDS - from))
}
