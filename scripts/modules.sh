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
arguments=(M="$FERRULE_ROOT" MO="$(realpath "$output")"
	RUSTC="$RUSTC" BINDGEN="$BINDGEN" HOSTRUSTC="$RUSTC"
	CLIPPY_DRIVER="$(dirname "$RUSTC")/clippy-driver")
if grep -q '^CONFIG_CC_IS_CLANG=y' "$kdir/.config"; then
	arguments+=(LLVM="$LLVM" CC="ccache clang${LLVM#1}")
fi
if grep -q '^CONFIG_UML=y' "$kdir/.config"; then
	arguments+=(ARCH=um)
fi
[ -n "${V:-}" ] || arguments+=(-s)
make -C "$kdir" -j"$(nproc)" "${arguments[@]}" "$@"
