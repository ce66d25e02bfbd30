#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# What every guest selftest sources: KTAP output (Documentation/dev-tools/ktap.rst), module loading,
# and clean-up that runs whatever happens.
#
# A test script lists its cases, each a shell function named after the behaviour that it tests:
#
#	. "$(dirname "$0")/../lib.sh"
#	held_bios_leave_on_suspend() { ...; check "..." COMMAND; }
#	run_cases held_bios_leave_on_suspend ...
#
# A case fails when a check in it fails or when it returns non-zero. `skip REASON` in a case
# skips it. Clean-up commands given to `at_exit` run when the case ends, last first.

# Which kernel this is: release, checking or uml. Timing is asserted on release only.
: "${FERRULE_KERNEL:=release}"
# Where the modules are: the output of `make modules`, or empty for modprobe.
: "${FERRULE_MODULES:=}"

KSFT_SKIP=4

diag() {
	printf '%s\n' "$*" | sed 's/^/# /'
}

# check WHAT COMMAND...: the case fails when the command does.
check() {
	local what=$1
	shift
	"$@" && return 0
	diag "check failed: $what ($*)"
	CASE_FAILED=1
	return 1
}

# check_within WHAT VALUE LOW HIGH: integers, both ends included.
check_within() {
	if [ "$2" -ge "$3" ] && [ "$2" -le "$4" ]; then
		diag "$1: $2 (expected $3..$4)"
		return 0
	fi
	diag "check failed: $1: $2 is not within $3..$4"
	CASE_FAILED=1
	return 1
}

fail() {
	diag "failed: $*"
	CASE_FAILED=1
	return 1
}

# skip REASON: end the case as skipped. CI takes a skip as a failure.
skip() {
	echo "$*" >"$CASE_SKIP"
	exit "$KSFT_SKIP"
}

at_exit() {
	CASE_AT_EXIT=("$*" "${CASE_AT_EXIT[@]}")
}

__case_cleanup() {
	local command
	for command in "${CASE_AT_EXIT[@]}"; do
		eval "$command" || diag "clean-up failed: $command"
	done
}

# wait_for SECONDS COMMAND...: until the command succeeds.
wait_for() {
	local deadline=$((SECONDS + $1))
	shift
	until "$@"; do
		[ "$SECONDS" -lt "$deadline" ] || return 1
		sleep 0.1
	done
}

module_is_loaded() {
	grep -q "^${1//-/_} " /proc/modules
}

# load_module NAME [PARAM=VALUE...]: one of ours by insmod, any other by modprobe.
load_module() {
	local name=$1 file=
	shift
	[ -z "$FERRULE_MODULES" ] || file=$(find "$FERRULE_MODULES" -name "$name.ko" -print -quit)
	if [ -n "$file" ]; then
		module_is_loaded "$name" || insmod "$file" "$@"
	else
		modprobe "$name" "$@"
	fi
}

unload_module() {
	rmmod "$1"
}

# kmsg_mark, then kmsg_since_mark: what the kernel logged in between.
kmsg_mark() {
	CASE_KMSG_MARK="ferrule-selftest-mark-$$-$RANDOM"
	echo "$CASE_KMSG_MARK" >/dev/kmsg
}

kmsg_since_mark() {
	dmesg | sed "1,/$CASE_KMSG_MARK/d"
}

# run_cases NAME...: each in a subshell of its own, in order. CASES="a b" selects.
run_cases() {
	local name number=0 failed=0 status
	local cases=("$@")
	# shellcheck disable=SC2206 # a list of words
	[ -z "${CASES:-}" ] || cases=($CASES)
	CASE_SKIP=$(mktemp)
	echo "KTAP version 1"
	echo "1..${#cases[@]}"
	for name in "${cases[@]}"; do
		number=$((number + 1))
		(
			CASE_FAILED=0
			CASE_AT_EXIT=()
			trap __case_cleanup EXIT
			"$name" || CASE_FAILED=1
			exit "$CASE_FAILED"
		)
		status=$?
		case $status in
		0) echo "ok $number $name" ;;
		"$KSFT_SKIP") echo "ok $number $name # SKIP $(cat "$CASE_SKIP")" ;;
		*)
			echo "not ok $number $name"
			failed=1
			;;
		esac
	done
	rm -f "$CASE_SKIP"
	exit "$failed"
}
