#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# Loading and unloading: which names are registered, and for how long.
#
# Runs: vm uml
# Timeout: 480

. "$(dirname "$0")/common.sh"

# uses_selector NAME: a table with this selector is accepted.
uses_selector() {
	dmsetup create "$MAP" --table "$(table "$BIO" "$(group "$1" 1)")" 2>/dev/null &&
		dmsetup remove --retry "$MAP"
}

without_autoload() {
	local was
	was=$(cat /proc/sys/kernel/modprobe)
	at_exit "echo '$was' >/proc/sys/kernel/modprobe"
	echo /bin/false >/proc/sys/kernel/modprobe
}

c_selector_that_is_there_keeps_its_name() {
	kmsg_mark
	use_paths 1
	at_exit remove_selectors
	load_selectors || return
	kmsg_since_mark | grep -q "registered as round-robin-rs (round-robin is taken)" ||
		fail "the log does not say which names"
	check "round-robin-rs" uses_selector round-robin-rs
	check "round-robin" uses_selector round-robin
	# The name is the C selector's: it can go, and nothing of ours is left under its name.
	without_autoload
	check "C selector not in use" rmmod dm-round-robin
	! uses_selector round-robin || fail "round-robin is still there"
	check "round-robin-rs" uses_selector round-robin-rs
}

free_name_is_taken_and_given_back() {
	at_exit remove_selectors
	modprobe dm-multipath || return
	use_paths 1
	kmsg_mark
	load_module "$MODULE" || return
	kmsg_since_mark | grep -q "registered as round-robin-rs and round-robin" ||
		fail "the log does not say which names"
	check "round-robin-rs" uses_selector round-robin-rs
	check "round-robin" uses_selector round-robin
	module_is_loaded dm-round-robin && fail "that was the C selector"
	! modprobe dm-round-robin 2>/dev/null || fail "two selectors have one name"

	check "unload" rmmod "$MODULE"
	check "the C selector may have its name now" modprobe dm-round-robin
	check "round-robin" uses_selector round-robin
}

unload_is_refused_while_a_table_uses_it() {
	use_paths 1
	at_exit remove_selectors
	load_selectors || return
	create_map "$(table "$BIO" "$(group "$SELECTOR" 1)")" || return
	! rmmod "$MODULE" 2>/dev/null || fail "unloaded under a live table"
	# An inactive table counts, too.
	change_map "0 $SECTORS error" || return
	dmsetup reload "$MAP" --table "$(table "$BIO" "$(group "$SELECTOR" 1)")" || return
	! rmmod "$MODULE" 2>/dev/null || fail "unloaded under an inactive table"
	dmsetup clear "$MAP" || return
	check "unload" rmmod "$MODULE"
}

unload_is_refused_while_a_table_uses_the_second_name() {
	at_exit remove_selectors
	modprobe dm-multipath || return
	load_module "$MODULE" || return
	use_paths 1
	create_map "$(table "$BIO" "$(group round-robin 1)")" || return
	! rmmod "$MODULE" 2>/dev/null || fail "unloaded under a live table"
	dmsetup remove --retry "$MAP" || return
	check "unload" rmmod "$MODULE"
}

loads_and_unloads_50_times() {
	local i file command=(modprobe "$MODULE")
	at_exit remove_selectors
	modprobe dm-multipath || return
	use_paths 1
	# Finding it anew each time would take longest.
	[ -z "$FERRULE_MODULES" ] || file=$(find "$FERRULE_MODULES" -name "$MODULE.ko" -print -quit)
	[ -z "${file:-}" ] || command=(insmod "$file")
	for ((i = 0; i < 50; i++)); do
		"${command[@]}" || return
		if ((i % 10 == 0)); then
			check "round $i" uses_selector "$SELECTOR"
		fi
		wait_for 5 rmmod "$MODULE" || return
	done
}

device_mapper_loads_it_by_name() {
	[ -n "$FERRULE_MODULES" ] || skip "FERRULE_MODULES does not say where the modules are"
	at_exit remove_selectors
	modprobe dm-multipath || return
	use_paths 1
	private_modules || return

	check "round-robin-rs" uses_selector round-robin-rs
	module_is_loaded "$MODULE" || fail "not loaded"
	check "unload" wait_for 5 rmmod "$MODULE"

	# The C selector's name is not ours until somebody says so.
	check "round-robin" uses_selector round-robin
	module_is_loaded "$MODULE" && fail "loaded in place of the C selector, unasked"
	check "unload the C selector" wait_for 5 rmmod dm-round-robin

	echo "alias dm-round-robin $MODULE" >/run/fsel-root/config/round-robin.conf
	check "round-robin" uses_selector round-robin
	module_is_loaded "$MODULE" || fail "not loaded in place of the C selector"
}

ours_only "has a second name" c_selector_that_is_there_keeps_its_name \
	free_name_is_taken_and_given_back unload_is_refused_while_a_table_uses_the_second_name \
	device_mapper_loads_it_by_name
set_up 1 || exit
run_cases c_selector_that_is_there_keeps_its_name free_name_is_taken_and_given_back \
	unload_is_refused_while_a_table_uses_it \
	unload_is_refused_while_a_table_uses_the_second_name loads_and_unloads_50_times \
	device_mapper_loads_it_by_name
