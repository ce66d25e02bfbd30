#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# Ours: the module
# Runs: vm uml checking
# Timeout: 480
#
# The module comes and goes.

. "$(dirname "$0")/common.sh"

loads_and_unloads_many_times() {
	local rounds=50
	[ "$FERRULE_KERNEL" != checking ] || rounds=5
	check "$rounds times" comes_and_goes "$rounds"
	check "it works" make_disk d
	check "it works" make_qos q d iops 10
}

a_name_is_taken_once() {
	check "the target is there" grep -q "^qos" <(dmsetup targets)
	unload_module "$MODULE"
	check "and goes" fails grep -q "^qos" <(dmsetup targets)
	load_module "$MODULE"
}

set_up || exit
run_cases loads_and_unloads_many_times a_name_is_taken_once
