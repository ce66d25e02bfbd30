#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# A kernel to build modules for and to boot. Argument: release, checking, uml or native, the custom
# kernel, built here; or stock-NAME, one of a distribution (scripts/stock.sh). With a second
# argument, "prepare", only what it takes to compile modules is built, not the kernel: for static
# checks.
#
# Prints the build directory. Does nothing when that build is complete; resumes an interrupted one.
# Needs LLVM, RUSTC and BINDGEN in the environment (scripts/tools.sh). KSRC= names a kernel source
# tree of your own instead of the packaged one.

. "$(dirname "$0")/lib.sh"

KERNEL_PACKAGE=linux-source-7.3
KERNEL_SUITE=trixie-backports

variant=${1:?which kernel: release, checking, uml, native or stock-NAME}
only_prepare=${2:-}
config=$FERRULE_ROOT/scripts/config

# What each is for, and what it cost where it was measured (two cores): objects, minutes.
case $variant in
release) fragments='x86 base release' arch=x86 target=bzImage objects=1910 minutes=27 disk=1500 ;;
checking) fragments='x86 base checking' arch=x86 target=bzImage objects=1530 minutes=22 disk=3000 ;;
uml) fragments='base um uml' arch=um target=linux objects=910 minutes=12 disk=2500 ;;
native) fragments='base um' arch=um target=linux objects=900 minutes=9 disk=1200 ;;
stock-*) [ -n "${KDIR:-}" ] || exec "$FERRULE_ROOT/scripts/stock.sh" "${variant#stock-}" ;;
*) die "no such kernel: $variant (release, checking, uml, native or stock:NAME)" ;;
esac

# Options that a tool chain may be unable to give: rustc and clang of one LLVM major.
optional='CONFIG_RUST_INLINE_HELPERS=y'

# check_kdir DIR: whether the modules can be built against a kernel of the user's own.
check_kdir() {
	local text
	[ -e "$1/.config" ] ||
		die "KDIR=$1 has no .config: name the build directory of a built kernel"
	grep -q '^CONFIG_RUST=y' "$1/.config" ||
		die "KDIR=$1 was configured without Rust: enable CONFIG_RUST" \
			"(make LLVM=1 rustavailable says what is missing)"
	[ -e "$1/rust/libkernel.rmeta" ] || die "KDIR=$1 is not built: run make there first"
	text=$(sed -n 's/^CONFIG_RUSTC_VERSION_TEXT="\(.*\)"/\1/p' "$1/.config")
	[ "$text" = "$("$RUSTC" --version)" ] ||
		die "KDIR=$1 was built by $text, RUSTC is $("$RUSTC" --version):" \
			"set RUSTC= to the same compiler"
}

case $variant,${KDIR:-} in
*,) ;;
release,* | stock-*)
	KDIR=$(realpath "$KDIR")
	# A header package has neither what rust/ is built from nor what it is built to.
	[ -e "$KDIR/rust" ] || [ -e "$KDIR/source" ] ||
		exec "$FERRULE_ROOT/scripts/headers.sh" "$KDIR"
	: "${RUSTC:?run scripts/tools.sh first}"
	check_kdir "$KDIR"
	echo "$KDIR"
	exit
	;;
esac

if [ -n "${KSRC:-}" ]; then
	KSRC=$(realpath "$KSRC")
	[ -e "$KSRC/rust/kernel/lib.rs" ] || die "KSRC=$KSRC is no kernel source tree with Rust"
else
	KSRC=$(newest_source "${KERNEL_PACKAGE##*-}" "$KERNEL_SUITE")
fi

: "${LLVM:?run scripts/tools.sh first}" "${RUSTC:?}" "${BINDGEN:?}"
llvm_suffix=${LLVM#1}
version=$(source_version "$KSRC")
fragment_files=()
for fragment in $fragments; do
	fragment_files+=("$config/$fragment.config")
done
key=$({
	grep -h '^CONFIG_' "${fragment_files[@]}" | sort
	echo "$KSRC $version"
	"$RUSTC" --version
	"clang$llvm_suffix" --version
	"$BINDGEN" --version
} | sha256sum | cut -c1-12)
build="$FERRULE_CACHE/build/$variant-$version-$key"

done_already() {
	[ -e "$build/.complete" ] || { [ -n "$only_prepare" ] && [ -e "$build/.prepared" ]; } ||
		return 0
	echo "$build"
	exit
}

done_already
lock_cache "$variant kernel"
done_already
mkdir -p "$build"
make_kernel() {
	make -C "$KSRC" O="$build" ARCH="$arch" LLVM="$LLVM" CC="ccache clang$llvm_suffix" \
		RUSTC="$RUSTC" BINDGEN="$BINDGEN" "$@"
}

if [ ! -e "$build/.configured" ]; then
	need_disk "$disk" "$build" "building the $variant kernel"
	make_kernel -s rustavailable >"$build/rustavailable.log" 2>&1 ||
		die "the kernel refuses this tool chain:" \
			"$(grep -v '^make' "$build/rustavailable.log" | head -n 3)"
	say "configuring the $variant kernel ($version)"
	cat "${fragment_files[@]}" >"$build/fragment"
	make_kernel -s KCONFIG_ALLCONFIG="$build/fragment" allnoconfig >"$build/config.log" 2>&1 ||
		die "configuration failed: $(tail -n 3 "$build/config.log")"
	missing=$(grep '^CONFIG_' "$build/fragment" | grep -vxF "$optional" | while read -r line; do
		case $line in
		*=n) ! grep -q "^${line%=n}=" "$build/.config" || echo "$line" ;;
		*) grep -qxF "$line" "$build/.config" || echo "$line" ;;
		esac
	done)
	[ -z "$missing" ] || die "the configuration does not take: $(echo "$missing" | tr '\n' ' ')"
	touch "$build/.configured"
fi

if [ -n "$only_prepare" ]; then
	say "building what modules need of the $variant kernel (two minutes or so on two cores)"
	make_kernel -s -j"$(nproc)" modules_prepare >"$build/prepare.log" 2>&1 ||
		die "modules_prepare failed: $(tail -n 3 "$build/prepare.log")"
	touch "$build/.prepared"
	echo "$build"
	exit
fi

have=$(find "$build" -name '*.o' | wc -l)
left=$((minutes * (objects > have ? objects - have : 0) / objects + 1))
say "building the $variant kernel in $build: $have of about $objects objects are there," \
	"about $left minutes to go on two cores"
make_kernel -j"$(nproc)" "$target" modules 2>"$build/errors.log" |
	"$VENV/bin/python3" "$FERRULE_ROOT/scripts/progress.py" "$objects" "$have" >&2 || {
	tail -n 20 "$build/errors.log" >&2
	die "the $variant kernel does not build: see $build/errors.log"
}
if [ "$arch" = um ]; then
	make_kernel -s INSTALL_MOD_PATH="$build/modules" modules_install \
		>>"$build/errors.log" 2>&1 ||
		die "modules_install failed: see $build/errors.log"
fi
touch "$build/.complete"
say "the $variant kernel is ready"
echo "$build"
