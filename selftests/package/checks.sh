#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# What the checks share that run in a Debian with our packages (selftests/host/test_package.py).
# Sourced: prints a line for each check.

export PATH=/usr/sbin:/usr/bin:/sbin:/bin
failed=0

# check NAME COMMAND...
check() {
	local name=$1
	shift
	if "$@" >/run/output 2>&1; then
		echo "check: $name: ok"
	else
		echo "check: $name: failed"
		cat /run/output
		dmesg | tail -n 5
		failed=1
	fi
}

all_checked() {
	echo "tainted: $(cat /proc/sys/kernel/tainted)"
	echo "check: all: $([ "$failed" = 0 ] && echo ok || echo failed)"
}
