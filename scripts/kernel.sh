#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# Build the custom kernel. Argument: release, checking, uml or native.
#
# Prints the build directory. Does nothing when that build is complete; resumes an interrupted one.
# Needs LLVM, RUSTC and BINDGEN in the environment (scripts/tools.sh). KSRC= names a kernel source
# tree of your own instead of the packaged one.

. "$(dirname "$0")/lib.sh"

KERNEL_PACKAGE=linux-source-7.3
KERNEL_SUITE=trixie-backports

variant=${1:?which kernel: release, checking, uml or native}
config=$FERRULE_ROOT/scripts/config

# What each is for, and what it cost where it was measured (two cores): objects, minutes.
case $variant in
release) fragments='x86 base release' arch=x86 target=bzImage objects=1910 minutes=27 disk=1500 ;;
checking) fragments='x86 base checking' arch=x86 target=bzImage objects=1530 minutes=22 disk=3000 ;;
uml) fragments='base um uml' arch=um target=linux objects=910 minutes=12 disk=2500 ;;
native) fragments='base um' arch=um target=linux objects=900 minutes=9 disk=1200 ;;
*) die "no such kernel: $variant (release, checking, uml or native)" ;;
esac

# Options that a tool chain may be unable to give: rustc and clang of one LLVM major.
optional='CONFIG_RUST_INLINE_HELPERS=y'

cached_source() {
	printf '%s\n' "$FERRULE_CACHE/src/linux-${KERNEL_PACKAGE##*-}"*/Makefile |
		sort -V | tail -n 1
}

fetch_source() {
	local work="$FERRULE_CACHE/tmp" package tree
	mkdir -p "$work" "$FERRULE_CACHE/src"
	need_disk 2600 "$FERRULE_CACHE" "unpacking the kernel source"
	say "fetching the kernel source ($KERNEL_PACKAGE, about 170 MB)"
	rm -rf "$work"/linux-*
	apt_update "$KERNEL_PACKAGE"
	if package_exists "$KERNEL_PACKAGE"; then
		(cd "$work" && apt-get -q -o APT::Sandbox::User=root download "$KERNEL_PACKAGE")
	else
		grep -q '^ID=debian' /etc/os-release ||
			die "no package $KERNEL_PACKAGE here: set KSRC= to a kernel source of 7.3"
		with_suite "$KERNEL_SUITE" apt-get -q update
		(cd "$work" && with_suite "$KERNEL_SUITE" apt-get -q download "$KERNEL_PACKAGE")
	fi >>"$FERRULE_CACHE/apt.log" 2>&1 ||
		die "cannot fetch $KERNEL_PACKAGE (is the network there?):" \
			"$(tail -n 1 "$FERRULE_CACHE/apt.log")"
	package=$(echo "$work/$KERNEL_PACKAGE"_*.deb)
	say "unpacking the kernel source (1.8 GB, about half a minute)"
	dpkg-deb --fsys-tarfile "$package" |
		tar -xO --wildcards './usr/src/linux-source-*.tar.xz' | tar -xJ -C "$work"
	tree="$work/$KERNEL_PACKAGE"
	mv "$tree" "$FERRULE_CACHE/src/linux-$(source_version "$tree")"
	rm -f "$package"
}

# check_kdir DIR: whether the modules can be built against a kernel of the user's own.
check_kdir() {
	local source=$1 text
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
	[ ! -e "$1/source" ] || source=$1/source
	[ -e "$source/drivers/md/dm-path-selector.h" ] ||
		die "KDIR=$1 has no full kernel source (drivers/md is missing):" \
			"distribution headers are not enough"
}

if [ -n "${KDIR:-}" ] && [ "$variant" = release ]; then
	: "${RUSTC:?run scripts/tools.sh first}"
	check_kdir "$(realpath "$KDIR")"
	realpath "$KDIR"
	exit
fi

if [ -z "${KSRC:-}" ]; then
	if [ ! -e "$(cached_source)" ]; then
		lock_cache source
		[ -e "$(cached_source)" ] || fetch_source
	fi
	KSRC=$(dirname "$(cached_source)")
else
	KSRC=$(realpath "$KSRC")
	[ -e "$KSRC/rust/kernel/lib.rs" ] || die "KSRC=$KSRC is no kernel source tree with Rust"
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
	[ -e "$build/.complete" ] || return 0
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
