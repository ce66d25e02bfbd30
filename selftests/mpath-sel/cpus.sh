#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# CPUs that go and come. Those of user-mode Linux cannot.
#
# Runs: vm
# Timeout: 120

. "$(dirname "$0")/common.sh"

cpus_come_and_go() {
	local online=/sys/devices/system/cpu/cpu1/online i reader
	use_paths 2
	at_exit "echo 1 >$online"
	echo 0 >"$online" || return
	# Made while the CPU is away.
	create_map "$(table "$BIO" "$(group "$SELECTOR" 3 1)")" || return
	echo 1 >"$online" || return
	split_of taskset -c 1 dd if="/dev/mapper/$MAP" of=/dev/null bs=4k count=400 iflag=direct \
		status=none || return
	check_split "on a CPU that came" 300 100
	dd if="/dev/mapper/$MAP" of=/dev/null bs=4k count=2000 iflag=direct status=none &
	reader=$!
	for i in 1 2; do
		echo 0 >"$online" && echo 1 >"$online" || return
	done
	check "no read failed" wait "$reader"
	split_of read_blocks 400 || return
	check_split "afterwards" 300 100
}

set_up 2 && load_selectors || exit
run_cases cpus_come_and_go
