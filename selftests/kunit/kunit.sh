#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# The KUnit suites of the modules: they run when a module is loaded on a kernel with KUnit, and
# leave their results, as KTAP, in the kernel log.
#
# Ours: KUnit suites of our own
# Runs: uml
# Timeout: 480

. "$(dirname "$0")/../lib.sh"

MODULES=(dm-qos dm-round-robin-rs virtio_balloon_rs dm-linear-rs)

kunit_results() {
	kmsg_since_mark | sed -n 's/^\[[^]]*\] //; /^ *KTAP version/,$p' |
		grep -E '^ *(KTAP version|1\.\.|ok |not ok |#)'
}

# Guests start with a filter that lets none run.
FILTER=/sys/module/kunit/parameters/filter_glob
before=$(cat "$FILTER")
trap 'printf %s "$before" >"$FILTER"' EXIT
# (A newline would become part of it.)
printf "*" >"$FILTER"

modprobe dm-multipath
echo "KTAP version 1"
echo "1..${#MODULES[@]}"
number=0
status=0
for module in "${MODULES[@]}"; do
	number=$((number + 1))
	kmsg_mark
	verdict=ok
	load_module "$module" || verdict='not ok'
	results=$(kunit_results)
	unload_module "$module" || verdict='not ok'
	# A module without a suite is a test that cannot fail.
	[ -n "$results" ] || verdict='not ok'
	! grep -q '^ *not ok' <<<"$results" || verdict='not ok'
	[ "$verdict" = ok ] || status=1
	# One document: the module's is a subtest.
	printf '%s\n' "$results" | sed 's/^/    /'
	echo "$verdict $number $module"
done
exit "$status"
