#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# The guest's end of vm.py: each line of input is a script in base64, whose status follows its
# output, or "exit". (A console that loses its other end upsets user-mode Linux.)

# virtme-ng finds its ports by links that udev makes. Without udev they are found here.
port() {
	grep -lx "virtme.$1" /sys/class/virtio-ports/*/name 2>/dev/null |
		sed 's|.*/\(vport[^/]*\)/name|/dev/\1|'
}

if [ ! -e /dev/virtio-ports ] && [ -n "$(port stdin)" ]; then
	exec {both}<>"$(port stdin)" <&"$both"
	# There may be one port only.
	if [ -n "$(port stdout)" ]; then
		exec >"$(port stdout)"
	else
		exec >&"$both"
	fi
	exec {both}>&-
fi

mark=$'\x1eferrule-status '

# Guests start with a small console loglevel: let the log have everything.
echo 7 >/proc/sys/kernel/printk

printf '%s0\n' "$mark"
while read -r line && [ "$line" != exit ]; do
	bash -c "$(base64 -d <<<"$line")" 2>&1 </dev/null
	printf '%s%d\n' "$mark" "$?"
done
