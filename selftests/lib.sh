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
#	only_on vm rates_are_kept ...
#	run_cases held_bios_leave_on_suspend rates_are_kept ...
#
# "# Runs:" in its header says on which kernels it runs: vm, uml (user-mode Linux) or checking. Some
# cases are for fewer of them: only_on. (scripts/check.py reads all three.)
#
# With FERRULE_PEER=c a script tests the C driver of the kernel in place of ours, by the same cases.
# "# Ours: REASON" in the header of a script, or ours_only for cases, says what makes no sense
# of it.
#
# A case fails when a check in it fails or when it returns non-zero. `skip REASON` in a case
# skips it. Clean-up commands given to `at_exit` run when the case ends, last first.

# Which kernel this is: release, checking or uml. Timing is asserted on release only.
: "${FERRULE_KERNEL:=release}"
# Which implementation: ours, or with "c" the C driver that it takes the place of.
: "${FERRULE_PEER:=}"
# Where the modules are: the output of `make modules`, or empty for modprobe.
: "${FERRULE_MODULES:=}"

KSFT_SKIP=4

# In an emulated guest it is the start of processes that takes longest: what is called often starts
# none.

diag() {
	local text="$*"
	printf '# %s\n' "${text//$'\n'/$'\n'# }"
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

# By a trap, where a bare "return" in a function returns the status that the case ended with.
__case_cleanup() {
	local command
	for command in "${CASE_AT_EXIT[@]}"; do
		eval "$command" || diag "clean-up failed: $command"
	done
}

# pause SECONDS: as sleep(1).
exec {NEVER}<> <(:)
pause() {
	read -r -t "$1" -u "$NEVER"
	return 0
}

# any WORD...: one of them, by chance, as ANY. RANDOM=SEED first decides which.
any() {
	shift $((RANDOM % $#))
	# shellcheck disable=SC2034 # for those who source this
	ANY=$1
}

# wait_for SECONDS COMMAND...: until the command succeeds.
wait_for() {
	local deadline=$((SECONDS + $1))
	shift
	until "$@"; do
		[ "$SECONDS" -lt "$deadline" ] || return 1
		pause 0.1
	done
}

module_is_loaded() {
	# A module that is built in has no state.
	[ -e "/sys/module/${1//-/_}/initstate" ]
}

# load_module NAME [PARAM=VALUE...]: one of ours by insmod, after what it depends on; any other by
# modprobe.
load_module() {
	local name=$1
	shift
	if find_module "$name"; then
		module_is_loaded "$name" || {
			load_dependencies "$name" "$MODULE_FILE" && insmod "$MODULE_FILE" "$@"
		}
	else
		modprobe "$name" "$@"
	fi
}

# find_module NAME: MODULE_FILE becomes the file of one of ours; it is looked for once.
declare -A MODULE_FILES=()
find_module() {
	[ -n "$FERRULE_MODULES" ] || return
	[ -n "${MODULE_FILES[$1]:-}" ] ||
		MODULE_FILES[$1]=$(find "$FERRULE_MODULES" -name "$1.ko" -print -quit)
	MODULE_FILE=${MODULE_FILES[$1]}
	[ -n "$MODULE_FILE" ]
}

# load_dependencies NAME FILE: once, for it takes several processes.
declare -A HAS_DEPENDENCIES=()
load_dependencies() {
	[ -z "${HAS_DEPENDENCIES[$1]:-}" ] || return 0
	modinfo -F depends "$2" | tr ',' '\n' | xargs -r modprobe -a && HAS_DEPENDENCIES[$1]=yes
}

unload_module() {
	rmmod "$1"
}

# remove_module NAME: if it is loaded. What has just let go of it may be on its way still.
remove_module() {
	! module_is_loaded "$1" || wait_for 10 unload_module "$1" 2>/dev/null
}

# What udev would do to each new device takes longer than the tests, and its I/O would be counted,
# and held. So dmsetup makes the nodes itself, and does not find udev, which it would complain
# about each time.
udev_off() {
	export DM_DISABLE_UDEV=1
	[ -S /run/udev/control ] || return 0
	udevadm control --stop-exec-queue && mv /run/udev/control /run/udev/control.off
}

udev_on() {
	[ -S /run/udev/control.off ] || return 0
	mv /run/udev/control.off /run/udev/control && udevadm control --start-exec-queue
}

# start_udev: for what comes from now on; what is there already is left alone.
start_udev() {
	[ ! -S /run/udev/control ] || return 0
	/lib/systemd/systemd-udevd >/dev/null 2>&1 &
	OUR_UDEV=$!
	wait_for 20 test -S /run/udev/control
}

# stop_udev: what it still does ends before this returns, for it reads from new devices.
stop_udev() {
	[ -n "${OUR_UDEV:-}" ] || return 0
	udevadm settle
	udevadm control --exit
	wait_for 20 has_ended "$OUR_UDEV" || {
		diag "udev does not end"
		pkill -KILL systemd-udevd
	}
	wait "$OUR_UDEV" 2>/dev/null
	rm -rf /run/udev
	OUR_UDEV=
}

has_ended() {
	! kill -0 "$1" 2>/dev/null
}

# writable_etc: until host_etc. The host's stays as it is.
writable_etc() {
	mkdir -p /run/etc/upper /run/etc/work &&
		mount -t overlay -o lowerdir=/etc,upperdir=/run/etc/upper,workdir=/run/etc/work \
			etc /etc
}

host_etc() {
	! mountpoint -q /etc || umount /etc
	rm -rf /run/etc
}

# How long a task may be in uninterruptible sleep, in seconds.
case $FERRULE_KERNEL in
checking) HANG_SECONDS=60 ;;
*) HANG_SECONDS=10 ;;
esac
HUNG_TASK=/proc/sys/kernel/hung_task
HUNG_TASK_BEFORE=()

# watch_for_hangs: once a script. A case fails from now on when a task hung meanwhile, which is for
# the kernel to see, or does still when the case is over. (The kernel does not count who waits for
# direct I/O of its own.) Until watch_for_hangs_ends.
watch_for_hangs() {
	mapfile -t HUNG_TASK_BEFORE < \
		<(cat ${HUNG_TASK}_timeout_secs ${HUNG_TASK}_check_interval_secs)
	echo "$HANG_SECONDS" >${HUNG_TASK}_timeout_secs && echo 2 >${HUNG_TASK}_check_interval_secs
}

watch_for_hangs_ends() {
	[ "${#HUNG_TASK_BEFORE[@]}" -gt 0 ] || return 0
	echo "${HUNG_TASK_BEFORE[0]}" >${HUNG_TASK}_timeout_secs
	echo "${HUNG_TASK_BEFORE[1]}" >${HUNG_TASK}_check_interval_secs
	HUNG_TASK_BEFORE=()
}

# How many tasks the kernel has seen hang.
hung_tasks() {
	[ "${#HUNG_TASK_BEFORE[@]}" -eq 0 ] || echo "$(<${HUNG_TASK}_detect_count)"
}

# tasks_in_d_state: process and thread of each.
tasks_in_d_state() {
	cat /proc/[0-9]*/task/[0-9]*/stat 2>/dev/null |
		sed -n 's/^\([0-9]*\) (\(.*\)) D .*/\1 \2/p'
}

no_task_is_in_d_state() {
	[ -z "$(tasks_in_d_state)" ]
}

# no_task_hangs BEFORE: BEFORE is what hung_tasks said.
no_task_hangs() {
	local pid name
	[ "${#HUNG_TASK_BEFORE[@]}" -gt 0 ] || return 0
	if ! wait_for "$HANG_SECONDS" no_task_is_in_d_state; then
		while read -r pid name; do
			diag "in D state: $pid $name"
			diag "$(cat "/proc/$pid/stack" 2>&1)"
		done < <(tasks_in_d_state)
		return 1
	fi
	[ "$(hung_tasks)" = "$1" ] || {
		diag "tasks hung meanwhile: $(($(hung_tasks) - $1)), see the kernel log"
		return 1
	}
}

# control NAME ARGUMENT...: a program of selftests/control. What it prints goes to the case's log.
control() {
	"$(dirname "${BASH_SOURCE[0]}")/../out/control/release/$1" "${@:2}" |& sed 's/^/# /'
	return "${PIPESTATUS[0]}"
}

# fault KIND [KNOB=VALUE...]: KIND, such as fail_make_request, happens as the knobs say, until the
# case ends (Documentation/fault-injection/ in the kernel).
fault() {
	local knobs=/sys/kernel/debug/$1 setting
	[ -d "$knobs" ] || skip "a kernel without $1"
	at_exit "echo 0 >$knobs/probability"
	for setting in verbose=0 times=-1 interval=1 task-filter=N "${@:2}"; do
		echo "${setting#*=}" >"$knobs/${setting%%=*}" || return
	done
}

# A case: MODULE, which is loaded again in the end.
loading_and_unloading_with_each_allocation_failing() {
	local file every=${FAULTS_EVERY:-29}
	file=$(find "$FERRULE_MODULES" -name "$MODULE.ko" -print -quit)
	rcu_in_haste
	remove_module "$MODULE"
	check "an error, nothing left, and the next try works" \
		control faults --every "$every" modules "$file" "$MODULE"
	load_module "$MODULE"
}

# no_more_faults KIND
no_more_faults() {
	echo 0 >"/sys/kernel/debug/$1/probability"
}

# rcu_in_haste: until the case ends. Devices that come and go wait for RCU most of the time.
rcu_in_haste() {
	at_exit "echo $(</sys/kernel/rcu_expedited) >/sys/kernel/rcu_expedited"
	echo 1 >/sys/kernel/rcu_expedited
}

# kmsg_mark, then kmsg_since_mark: what the kernel logged in between.
kmsg_mark() {
	CASE_KMSG_MARK="ferrule-selftest-mark-$$-$RANDOM"
	echo "$CASE_KMSG_MARK" >/dev/kmsg
}

kmsg_since_mark() {
	dmesg | sed "1,/$CASE_KMSG_MARK/d"
}

# only_on "KERNEL..." CASE...: run_cases leaves them out on other kernels, even if CASES has them.
declare -A ONLY_ON=()
only_on() {
	local kernels=$1 name
	shift
	for name in "$@"; do
		ONLY_ON[$name]=$kernels
	done
}

# is_for_this_kernel CASE
is_for_this_kernel() {
	local here=vm
	case $FERRULE_KERNEL in
	uml | checking) here=$FERRULE_KERNEL ;;
	native) here=uml ;;
	esac
	[ -z "${ONLY_ON[$1]:-}" ] || [[ " ${ONLY_ON[$1]} " == *" $here "* ]]
}

# ours_only REASON CASE...: with FERRULE_PEER=c run_cases skips these, for they make no sense of the
# C driver. (A case that the C driver fails is none of them: it is in selftests/peer-c.txt.)
declare -A OURS_ONLY=()
ours_only() {
	local reason=$1 name
	shift
	for name in "$@"; do
		OURS_ONLY[$name]=$reason
	done
}

is_about_the_peer() {
	[ -n "$FERRULE_PEER" ]
}

# run_cases NAME...: each in a subshell of its own, in order. CASES="a b" selects.
run_cases() {
	local name number=0 failed=0 status hung cases=()
	for name in ${CASES:-"$@"}; do
		! is_for_this_kernel "$name" || cases+=("$name")
	done
	CASE_SKIP=$(mktemp)
	echo "KTAP version 1"
	echo "1..${#cases[@]}"
	for name in "${cases[@]}"; do
		number=$((number + 1))
		if is_about_the_peer && [ -n "${OURS_ONLY[$name]:-}" ]; then
			echo "ok $number $name # SKIP only ours: ${OURS_ONLY[$name]}"
			continue
		fi
		hung=$(hung_tasks)
		(
			CASE_FAILED=0
			CASE_AT_EXIT=()
			trap __case_cleanup EXIT
			"$name" || CASE_FAILED=1
			exit "$CASE_FAILED"
		)
		status=$?
		no_task_hangs "$hung" || status=1
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
