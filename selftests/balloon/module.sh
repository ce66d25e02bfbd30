#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# The balloon driver as a module, without a device. What it does with one is tested from the host,
# which has to play its part: selftests/host/test_balloon.py.
#
# Runs: vm uml checking
# Timeout: 480

. "$(dirname "$0")/../lib.sh"

MODULE=virtio_balloon_rs
! is_about_the_peer || MODULE=virtio_balloon
DRIVER=/sys/bus/virtio/drivers/$MODULE
LOADS=50
[ "$FERRULE_KERNEL" != checking ] || LOADS=5

loads_and_unloads_again_and_again() {
	local i
	for ((i = 1; i <= LOADS; i++)); do
		load_module "$MODULE" || fail "load $i" || return
		[ -d "$DRIVER" ] || fail "not registered after load $i" || return
		unload_module "$MODULE" || fail "unload $i" || return
		[ ! -e "$DRIVER" ] || fail "still registered after unload $i" || return
	done
}

module_file() {
	local file=
	[ -z "$FERRULE_MODULES" ] ||
		file=$(find "$FERRULE_MODULES" -name "$MODULE.ko" -print -quit)
	echo "${file:-$(modinfo -n "$MODULE")}"
}

module_info() {
	modinfo -F "$1" "$(module_file)"
}

is_found_for_balloon_devices_of_any_vendor() {
	check "alias" grep -qx 'virtio:d00000005v\*' <(module_info alias)
	check "one alias" [ "$(module_info alias | wc -l)" = 1 ]
	check "licence" [ "$(module_info license)" = GPL ]
}

loading_twice_is_refused() {
	load_module "$MODULE" || return
	at_exit "unload_module $MODULE"
	! insmod "$(module_file)" 2>/dev/null || fail "loaded twice"
	check "still registered" [ -d "$DRIVER" ]
}

run_cases loads_and_unloads_again_and_again is_found_for_balloon_devices_of_any_vendor \
	loading_twice_is_refused
