#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# Runs: uml
# Ours: has the C selector beside it already
# Timeout: 240
#
# Anything at all is said to a path selector, and the same to the C round-robin, which must answer
# the same (selftests/control). SEED=, OPERATIONS= and PROGRAM= as in dm-qos/fuzz.sh.

. "$(dirname "$0")/common.sh"

: "${SEED:=$((RANDOM << 15 | RANDOM))}"
: "${OPERATIONS:=5000}"

what_is_said_is_answered_as_by_the_c_selector() {
	local i
	for i in 0 1; do
		ln -sfn "${ALL_PATHS[i]}" "/dev/fz$i" && at_exit "rm -f /dev/fz$i" || return
	done
	rcu_in_haste
	at_exit "dmesg -n $(awk '{ print $1 }' /proc/sys/kernel/printk)"
	dmesg -n 1
	check "SEED=$SEED" control fuzz selector "$SEED" "$OPERATIONS" ${PROGRAM:+"$PROGRAM"}
}

set_up 2 && load_selectors || exit
run_cases what_is_said_is_answered_as_by_the_c_selector
