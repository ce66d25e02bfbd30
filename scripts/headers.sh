#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# From a distribution's header package to a build directory for modules in Rust. Arguments: the
# headers' directory (/lib/modules/VERSION/build), and what to call the build directory in the
# cache.
#
# Header packages have no metadata of the kernel crate, so rust/ is built here: once a kernel, from
# the source package of the same version, by the compilers that built the kernel. If this machine
# does not have those, they run in a root of the kernel's own suite, in the cache.
#
# Prints the build directory. ferrule.make in it has what make has to be told, ferrule.root the root
# that make runs in, if there is one. KSRC= names a kernel source tree of your own, FERRULE_SUITE=
# the suite, where the kernel's version does not tell.

. "$(dirname "$0")/lib.sh"

headers=$(realpath "${1:?which headers}") name=${2:-headers}
# The oldest bindgen that the kernel takes.
BINDGEN_MIN=0.71.1
ROOT_PACKAGES=bc,bison,cpio,flex,kmod,libelf-dev,libssl-dev,make,openssl,pahole,perl,pkgconf
ROOT_PACKAGES+=,python3-minimal
ROOT_PACKAGES+=,rust-clippy,rust-src,rustc,bindgen,rustfmt,xz-utils

# option NAME: its value, without quotes.
option() {
	sed -n "s/^CONFIG_$1=\"\?\([^\"]*\)\"\?\$/\1/p" "$headers/.config"
}

[ -e "$headers/.config" ] ||
	die "$headers has no .config: it is not the directory of a header package"
release=$(<"$headers/include/config/kernel.release") ||
	die "$headers has no include/config/kernel.release: the header package is not whole"
[ "$(option RUST)" = y ] ||
	die "the kernel $release was built without Rust (CONFIG_RUST), so no module in Rust can" \
		"be loaded into it: those of trixie-backports and forky have Rust"
[ -e "$headers/Module.symvers" ] ||
	die "$headers has no Module.symvers: the header package is not whole"
[ "$(option MODULE_SIG_FORCE)" != y ] ||
	say "the kernel $release loads signed modules only (CONFIG_MODULE_SIG_FORCE):" \
		"sign them, see Documentation/packages.rst"

rustc_text=$(option RUSTC_VERSION_TEXT)
cc_text=$(option CC_VERSION_TEXT)
compiler=${cc_text%% *}
[ "$(option CC_IS_GCC)" = y ] || compiler=clang-$(($(option CLANG_VERSION) / 10000))
upstream=$(upstream_version "$release")
if [ "$(option X86_64)" = y ]; then
	arch=x86 triplet=x86_64-linux-gnu
elif [ "$(option ARM64)" = y ]; then
	arch=arm64 triplet=aarch64-linux-gnu
else
	die "the kernel $release is for neither x86-64 nor arm64: nobody has tried that"
fi
suite=${FERRULE_SUITE:-}
suite=${suite%-backports}
if [ -z "$suite" ]; then
	case $release in
	*+deb13-*) suite=trixie ;;
	*+deb14-*) suite=forky ;;
	esac
fi

# rustc_fits COMMAND: whether it is the kernel's, and has core's source. The names of symbols depend
# on all of the version's text.
rustc_fits() {
	local sysroot
	[ "$("$1" --version 2>/dev/null)" = "$rustc_text" ] || return 1
	sysroot=$("$1" --print sysroot)
	[ -e "$sysroot/lib/rustlib/src/rust/library/core/src/lib.rs" ]
}

bindgen_fits() {
	local version
	version=$("$1" --version 2>/dev/null | awk '{ print $2 }')
	[ "$(printf '%s\n' "$BINDGEN_MIN" "${version:-0}" | sort -V | head -n 1)" = "$BINDGEN_MIN" ]
}

# What of the tools there is on this machine: sets rustc and bindgen; or says what is missing.
find_tools() {
	local candidate command
	missing=
	rustc=
	for candidate in ${RUSTC:+"$RUSTC"} /usr/bin/rustc rustc /usr/lib/rust-*/bin/rustc; do
		! rustc_fits "$candidate" || { rustc=$(command -v "$candidate") && break; }
	done
	[ -n "$rustc" ] || missing+="'$rustc_text' with core's source; "
	bindgen=
	for candidate in ${BINDGEN:+"$BINDGEN"} bindgen "$FERRULE_CACHE/tools/bin/bindgen"; do
		! bindgen_fits "$candidate" || { bindgen=$(command -v "$candidate") && break; }
	done
	[ -n "$bindgen" ] || missing+="bindgen $BINDGEN_MIN or later; "
	for command in "$compiler" bc bison flex make pahole perl; do
		command -v "$command" >/dev/null || missing+="$command; "
	done
	[ -z "$missing" ]
}

# The packages that have the compilers: Debian's names.
compiler_packages() {
	case $compiler in
	clang-*) echo "$compiler,lld-${compiler#clang-},llvm-${compiler#clang-}" ;;
	"$(uname -m)"-*-gcc-*) echo "gcc-${compiler##*-}" ;;
	*-gcc-*) echo "gcc-${compiler##*-},gcc-${compiler##*-}-${triplet//_/-}" ;;
	*) die "$compiler built the kernel $release, and no package is known to have that" ;;
	esac
}

# Sets root, rustc and bindgen.
find_compilers() {
	root=
	! find_tools || return 0
	[ -z "$FERRULE_INSTALLED" ] || wait_for "what built the kernel: ${missing%; }"
	[ -n "$suite" ] || die "the kernel $release needs what built it, and this machine lacks:" \
		"$missing(FERRULE_SUITE= names a Debian suite that has them)"
	[ "$(id -u)" = 0 ] || die "the kernel $release needs what built it, and this machine" \
		"lacks: $missing(root could make a root of $suite for them)"
	if [ "$(. /etc/os-release && echo "${VERSION_CODENAME:-}")" = "$suite" ]; then
		# shellcheck disable=SC2046 # a list of words
		apt_install "what built the kernel" \
			$(echo "$ROOT_PACKAGES,$(compiler_packages)" | tr ',' ' ') && find_tools &&
			return
	fi
	root="$FERRULE_CACHE/roots/$suite"
	[ -e "$root/.complete" ] || {
		lock_cache "root $suite"
		[ -e "$root/.complete" ] || {
			say "making a root of $suite, for its compilers are the kernel's" \
				"(about two minutes)"
			make_root "$root" "$suite" "$ROOT_PACKAGES,$(compiler_packages)"
		}
	}
	rustc=rustc bindgen=bindgen
	local package text
	for package in $(compiler_packages | tr ',' ' '); do
		in_root "$root" dpkg-query -W "$package" >/dev/null 2>&1 || {
			say "installing $package in the root of $suite"
			in_root "$root" env DEBIAN_FRONTEND=noninteractive apt-get -q install -y \
				--no-install-recommends "$package" \
				>>"$FERRULE_CACHE/root-$suite.log" 2>&1 ||
				die "cannot install $package in the root of $suite:" \
					"$(tail -n 1 "$FERRULE_CACHE/root-$suite.log")"
		}
	done
	text=$(in_root "$root" rustc --version)
	if [ "$text" != "$rustc_text" ]; then
		say "bringing the root of $suite up to date: its compiler is another one"
		in_root "$root" sh -c 'apt-get -q update && apt-get -q -y dist-upgrade' \
			>>"$FERRULE_CACHE/root-$suite.log" 2>&1 || true
		text=$(in_root "$root" rustc --version)
	fi
	[ "$text" = "$rustc_text" ] ||
		die "the kernel $release was built by '$rustc_text', $suite has '$text':" \
			"symbols of Rust have other names then. Take a newer kernel," \
			"or set RUSTC= to that compiler"
}

# What can be seen to fail does so before anything is fetched. Then both are, at once: each takes a
# minute or two, and waits for other things.
debian=$(sed -n 's/.*" Debian \([^"]*\)".*/\1/p' "$headers/include/generated/package.h" \
	2>/dev/null || true)
place=$(find_source "$upstream" "$suite" "$debian")
[ -d "$place" ] || [ -n "$FERRULE_INSTALLED" ] ||
	need_disk 5300 "$FERRULE_CACHE" "the kernel's source and a root with its compilers"
fetched=$(mktemp)
trap 'rm -f "$fetched"' EXIT
[ -z "$FERRULE_INSTALLED" ] || find_compilers
kernel_source "$upstream" "$place" >"$fetched" &
fetching=$!
[ -n "$FERRULE_INSTALLED" ] || find_compilers
# Nothing of the output depends on the rest of the headers.
key=$({
	cat "$headers/.config" "$headers/Module.symvers"
	echo "$rustc_text"
	in_root "$root" "$bindgen" --version
} | sha256sum | cut -c1-12)
build="$FERRULE_CACHE/build/$name-$release-$key"

arguments() {
	local gcc=${compiler##*-gcc-}
	printf '%s\n' "ARCH=$arch" "RUSTC=$rustc" "BINDGEN=$bindgen" "KERNELRELEASE=$release"
	if [ "$(option CC_IS_GCC)" = y ]; then
		printf '%s\n' "CC=$compiler" "CROSS_COMPILE=${compiler%gcc-*}" "HOSTCC=gcc-$gcc"
	else
		echo "LLVM=-${compiler#clang-}"
	fi
	# For the types of modules in BPF, which leaves out Rust's, a library and a program would be
	# built.
	printf '%s\n' CONFIG_DEBUG_INFO_BTF= CONFIG_DEBUG_INFO_BTF_MODULES=
}

make_headers() {
	local words
	mapfile -t words <"$build/ferrule.make"
	in_root "$root" make -C "$source" O="$build" -j"$(nproc)" "${words[@]}" "$@"
}

# Programs that the header package brings along are not built here, so that nobody needs the
# libraries which they are built from.
PREBUILT=()
[ ! -x "$headers/tools/objtool/objtool" ] || PREBUILT+=(CONFIG_OBJTOOL=)
[ ! -x "$headers/scripts/sign-file" ] || PREBUILT+=(CONFIG_MODULE_SIG_FORMAT=)

prepare() {
	lock_cache "$name-$release"
	[ ! -e "$build/.prepared" ] || return 0
	need_disk 600 "$FERRULE_CACHE" "what modules in Rust need of $release"
	wait "$fetching" || exit
	source=$(<"$fetched")
	mkdir -p "$build"
	arguments >"$build/ferrule.make"
	echo "$root" >"$build/ferrule.root"
	cp "$headers/.config" "$headers/Module.symvers" "$build"
	say "building what modules in Rust need of $release (about two minutes on two cores)"
	{ make_headers -s olddefconfig && make_headers "${PREBUILT[@]}" modules_prepare; } \
		>"$build/prepare.log" 2>&1 ||
		die "cannot build rust/ of $release:" \
			"$(grep -E '[Ee]rror|\*\*\*' "$build/prepare.log" | head -n 2 |
				tr '\n' ' ')(all of it: $build/prepare.log)"
	if [ -x "$headers/tools/objtool/objtool" ]; then
		# It looks for others beside it.
		mkdir -p "$build/tools"
		ln -sfn "$(realpath "$headers/tools/objtool")" "$build/tools/objtool"
	fi
	# prepare starts over with an empty one.
	cp "$headers/Module.symvers" "$build"
	"$FERRULE_ROOT/scripts/symbols.py" crate "$build" ||
		die "rust/ of $release came out otherwise than the kernel has it, see above"
	touch "$build/.prepared"
}

if [ ! -e "$build/.prepared" ]; then
	prepare
fi
echo "$build"
