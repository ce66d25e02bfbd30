#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# What DKMS and the package ferrule-dkms call. Arguments:
#
#	prepare KERNEL HEADERS	build what modules in Rust need of a kernel, once. Status 77:
#				something has to be installed first
#	build KERNEL HEADERS	build the modules
#	update			build for the kernels that waited for what is there now
#	report			say why a kernel has no modules, in a line for each
#
# All of it is done from packages that are installed, without a network.

export FERRULE_INSTALLED=1
export FERRULE_CACHE=/var/cache/ferrule-dkms
. "$(dirname "$0")/lib.sh"

# What each kernel waits for, by its name.
WAITING=/var/lib/ferrule-dkms/waiting

# setting NAME: a variable of dkms.conf.
setting() {
	# shellcheck disable=SC2034 # for that file
	local kernelver="" kernel_source_dir=""
	# shellcheck source=/dev/null
	. "$FERRULE_ROOT/dkms.conf"
	echo "${!1}"
}

# What was built for kernels whose headers are gone, and source that no other kernel needs.
prune() {
	local entry release tree
	for entry in "$FERRULE_CACHE"/build/*/; do
		release=$(sed -n 's/^KERNELRELEASE=//p' "$entry/ferrule.make" 2>/dev/null || true)
		[ -e "/lib/modules/$release/build/include" ] || rm -rf "$entry"
	done
	for entry in "$WAITING"/*; do
		[ -e "/lib/modules/${entry##*/}/build/include" ] || rm -f "$entry"
	done
	for tree in "$FERRULE_CACHE"/src/linux-*; do
		for entry in "$FERRULE_CACHE"/build/*/source; do
			[ "$(readlink -f "$entry")" != "$(readlink -f "$tree")" ] || continue 2
		done
		rm -rf "$tree"
	done
}

# prepare KERNEL HEADERS: prints the build directory.
prepare() {
	local output status=0
	mkdir -p "$FERRULE_CACHE" "$WAITING"
	output=$(mktemp)
	"$FERRULE_ROOT/scripts/headers.sh" "$2" dkms 2>"$output" || status=$?
	cat "$output" >&2
	rm -f "$WAITING/$1"
	[ "$status" != 77 ] || sed -n 's/^error: //p' "$output" >"$WAITING/$1"
	rm -f "$output"
	return "$status"
}

# Also in PRE_BUILD, which has no output.
build() {
	local kdir
	kdir=$(prepare "$@")
	"$FERRULE_ROOT/scripts/modules.sh" "$kdir" out CONFIG_FERRULE_SELFTESTS= modules
	prune
}

installed() {
	dkms status -m "$(setting PACKAGE_NAME)" -v "$(setting PACKAGE_VERSION)" -k "$1" |
		grep -q ': installed'
}

update() {
	local entry kernel
	[ ! -d "$FERRULE_CACHE" ] || prune
	for entry in "$WAITING"/*; do
		kernel=${entry##*/}
		prepare "$kernel" "/lib/modules/$kernel/build" >/dev/null 2>&1 || continue
		dkms install -m "$(setting PACKAGE_NAME)" -v "$(setting PACKAGE_VERSION)" \
			-k "$kernel" || true
	done
}

# reason KERNEL: why it has no modules.
reason() {
	local build="/lib/modules/$1/build" config option
	for config in "$build/.config" "/boot/config-$1" "/lib/modules/$1/config"; do
		[ ! -e "$config" ] || break
	done
	if [ -e "$config" ] && ! grep -q '^CONFIG_RUST=y' "$config"; then
		echo "none, for it was built without Rust (CONFIG_RUST)." \
			"Those of trixie-backports and forky have it"
	elif [[ ! $1 =~ $(setting BUILD_EXCLUSIVE_KERNEL) ]]; then
		echo "none, for this version of Ferrule is for Linux 7.2 and 7.3"
	elif [ ! -e "$build/include" ]; then
		echo "none yet, waits for its headers: linux-headers-$1"
	elif [ -e "$WAITING/$1" ]; then
		echo "none yet, $(<"$WAITING/$1")"
	else
		for option in $(setting BUILD_EXCLUSIVE_CONFIG); do
			grep -q "^$option=[ym]" "$config" || {
				echo "none, for it lacks $option"
				return
			}
		done
		echo "none, see DKMS: dkms status, /var/lib/dkms/$(setting PACKAGE_NAME)"
	fi
}

report() {
	local kernel why
	for kernel in $(find /lib/modules -mindepth 1 -maxdepth 1 -printf '%f\n' | sort -V); do
		[ -e "/lib/modules/$kernel/build/include" ] ||
			[ "$kernel" = "$(uname -r)" ] || continue
		installed "$kernel" || {
			why=$(reason "$kernel")
			[ -z "$why" ] || say "modules for $kernel: $why"
		}
	done
}

shopt -s nullglob
cd "$FERRULE_ROOT"
case ${1:-} in
prepare) prepare "$2" "$3" >/dev/null ;;
build) build "$2" "$3" ;;
update) update ;;
report) report ;;
*) die "usage: dkms.sh prepare|build KERNEL HEADERS, or dkms.sh update|report" ;;
esac
