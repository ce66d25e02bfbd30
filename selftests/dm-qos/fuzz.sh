#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# Runs: uml
# Ours: says anything to our own code
# Timeout: 240
#
# Anything at all is said to device mapper about qos devices, while they have I/O
# (selftests/control). A minute of it: SEED=, OPERATIONS= and PROGRAM= (a file for the program that
# runs) say otherwise, as `make fuzz` does, and REPEAT= has a program from such a file run a hundred
# times.

. "$(dirname "$0")/common.sh"

: "${SEED:=$((RANDOM << 15 | RANDOM))}"
: "${OPERATIONS:=5000}"

fuzz_disks() {
	local name
	for name in fz0 fz1; do
		make_disk "$name" memory_backed=1 discard=1 || return
	done
	rcu_in_haste
	# Each refusal is a line.
	at_exit "dmesg -n $(awk '{ print $1 }' /proc/sys/kernel/printk)"
	dmesg -n 1
}

nothing_that_is_said_does_harm() {
	fuzz_disks || return
	if [ -n "${REPEAT:-}" ]; then
		check "once more" control fuzz repeat "$REPEAT" 100
		return
	fi
	check "SEED=$SEED" control fuzz qos "$SEED" "$OPERATIONS" ${PROGRAM:+"$PROGRAM"}
}

set_up || exit
run_cases nothing_that_is_said_does_harm
