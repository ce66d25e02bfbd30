#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# Build the modules. Arguments: KDIR OUTPUT [TARGET] [VARIABLE=VALUE...]

. "$(dirname "$0")/lib.sh"

kdir=$1 output=$2
shift 2
[ $# -gt 0 ] || set -- modules

mkdir -p "$output"
exec 8>"$output/.lock"
flock 8
arguments=(M="$FERRULE_ROOT" MO="$(realpath "$output")")
root=
if [ -e "$kdir/ferrule.make" ]; then
	# A distribution's kernel (scripts/headers.sh).
	mapfile -t -O "${#arguments[@]}" arguments <"$kdir/ferrule.make"
	root=$(<"$kdir/ferrule.root")
else
	arguments+=(RUSTC="$RUSTC" BINDGEN="$BINDGEN" HOSTRUSTC="$RUSTC"
		CLIPPY_DRIVER="$(dirname "$RUSTC")/clippy-driver")
	if grep -q '^CONFIG_CC_IS_CLANG=y' "$kdir/.config"; then
		arguments+=(LLVM="$LLVM" CC="ccache clang${LLVM#1}")
	else
		# Debian's name has the version.
		compiler=$(sed -n 's/^CONFIG_CC_VERSION_TEXT="\([^ ]*\).*/\1/p' "$kdir/.config")
		! command -v "$compiler" >/dev/null || arguments+=(CC="$compiler")
	fi
	if grep -q '^CONFIG_UML=y' "$kdir/.config"; then
		arguments+=(ARCH=um)
	fi
	# Headers that come with metadata of the kernel crate may lack what is private to the
	# source: device mapper's own headers, and which flags bindgen does not know.
	source=$kdir
	[ ! -e "$kdir/source" ] || source=$kdir/source
	if [ ! -e "$source/drivers/md/dm-path-selector.h" ] ||
		[ ! -e "$source/rust/Makefile" ]; then
		upstream=$(upstream_version "$(<"$kdir/include/config/kernel.release")")
		place=$(find_source "$upstream" "${FERRULE_SUITE:-}")
		source=$(kernel_source "$upstream" "$place")
		arguments+=(FERRULE_SOURCE="$source")
	fi
fi
[ -n "${V:-}" ] || arguments+=(-s)
in_root "$root" make -C "$kdir" -j"$(nproc)" "${arguments[@]}" "$@" || {
	status=$?
	# modpost says which symbols the kernel does not export, and not what it has in their place.
	[ ! -e "$kdir/Module.symvers" ] || find "$output" -name '*.mod' | sed 's/mod$/o/' |
		xargs -r "$FERRULE_ROOT/scripts/symbols.py" modules "$kdir"
	exit "$status"
}
