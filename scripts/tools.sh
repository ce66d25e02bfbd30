#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# Find the tools, installing what is missing (as root, on Debian and Ubuntu). Arguments:
#
#	build	compilers, bindgen, kernel build dependencies
#	stock	what it takes to fetch a distribution's kernel and to build modules for it
#	vm	QEMU, virtme-ng, and what runs in the guest
#	test	cargo, for the host unit tests; libvirt, for those of balloonctl; file servers, for
#		guests, and Prometheus: both unpacked in the cache
#	lint	rustfmt, clippy, shellcheck
#
# Prints shell assignments: LLVM, RUSTC, BINDGEN, VENV. Set RUSTC, LLVM (a suffix such as "-22") or
# BINDGEN to use your own.

. "$(dirname "$0")/lib.sh"

BINDGEN_MIN=0.71.1
BINDGEN_VERSION=0.73.2
RUSTC_MIN=1.85.0

BUILD_PACKAGES=(bc bison ccache cpio flex gcc kmod libc6-dev libelf-dev libssl-dev make perl
	pkg-config util-linux xz-utils zstd)
STOCK_PACKAGES=(make mmdebstrap util-linux xz-utils)
VM_PACKAGES=(btrfs-progs busybox-static dmsetup e2fsprogs fio iproute2 kmod lvm2 multipath-tools
	open-iscsi procps psmisc sg3-utils sysstat thin-provisioning-tools udev util-linux xfsprogs)
# Their services are not for this machine: they would start here, and each time that it starts.
SERVER_PACKAGES=(glusterfs-client glusterfs-server nfs-kernel-server)
LIBVIRT_PACKAGES=(libvirt-clients libvirt-daemon libvirt-daemon-driver-qemu)
VM_COMMANDS=(qemu-system-x86_64 dmsetup fio iostat multipath)

version_at_least() {
	[ "$(printf '%s\n%s\n' "$2" "$1" | sort -V | head -n 1)" = "$2" ]
}

# The compiler must have core's source: the kernel builds its own core.
rustc_usable() {
	local sysroot version
	[ -x "$(command -v "$1")" ] || return 1
	sysroot=$("$1" --print sysroot 2>/dev/null) || return 1
	version=$("$1" --version | awk '{ print $2 }')
	if ! version_at_least "$version" "$RUSTC_MIN"; then
		RUSTC_REASON="$1 is $version, the kernel needs $RUSTC_MIN or later"
		return 1
	fi
	[ -e "$sysroot/lib/rustlib/src/rust/library/core/src/lib.rs" ] && return 0
	RUSTC_REASON="$1 has no source of core (rustup component add rust-src)"
	return 1
}

find_rustc() {
	local candidate
	RUSTC_REASON=
	if [ -n "${RUSTC:-}" ]; then
		rustc_usable "$RUSTC" ||
			die "RUSTC=$RUSTC cannot build the kernel: ${RUSTC_REASON:-not found}"
		return
	fi
	for candidate in /usr/bin/rustc rustc /usr/lib/rust-*/bin/rustc; do
		rustc_usable "$candidate" && RUSTC=$(command -v "$candidate") && return
	done
	return 1
}

install_rustc() {
	local version
	apt_update rustc
	if package_exists rustc-web; then
		apt_install "a Rust compiler with core's source" \
			rustc-web rust-web-src rust-web-clippy ||
			die "apt-get could not install rustc-web"
		return
	fi
	for version in $(apt-cache pkgnames rustc-1. | sed -n 's/^rustc-\(1\.[0-9]*\)$/\1/p' |
		sort -rV); do
		package_exists "rust-$version-src" || continue
		apt_install "a Rust compiler with core's source" \
			"rustc-$version" "rust-$version-src" "rust-$version-clippy" && return
	done
	apt_install "a Rust compiler with core's source" rustc rust-src rust-clippy ||
		die "no Rust compiler with core's source (${RUSTC_REASON:-none found}): set RUSTC="
}

llvm_usable() {
	command -v "clang$1" >/dev/null && command -v "ld.lld$1" >/dev/null &&
		command -v "llvm-nm$1" >/dev/null && command -v "llvm-link$1" >/dev/null
}

# rustc's own LLVM major first: then C helpers can be inlined into Rust.
llvm_majors() {
	[ -z "${RUSTC:-}" ] ||
		"$RUSTC" --version --verbose | sed -n 's/^LLVM version: \([0-9]*\).*/\1/p'
	printf '%s\n' 22 21 20 19 18
}

find_llvm() {
	local major
	if [ -n "${LLVM:-}" ]; then
		llvm_usable "${LLVM#1}" ||
			die "LLVM=$LLVM: no clang$LLVM with ld.lld and llvm tools"
		return
	fi
	for major in $(llvm_majors); do
		llvm_usable "-$major" &&
			ls "/usr/lib/llvm-$major/lib/"libclang*.so* >/dev/null 2>&1 &&
			LLVM="-$major" && return
	done
	return 1
}

install_llvm() {
	local major
	apt_update clang
	for major in $(llvm_majors); do
		package_exists "libclang-$major-dev" || continue
		apt_install "clang $major" "clang-$major" "lld-$major" "llvm-$major" \
			"libclang-$major-dev" && return
	done
	die "no clang of version 18 to 22 among the packages: set LLVM="
}

bindgen_usable() {
	[ -x "$(command -v "$1")" ] &&
		version_at_least "$("$1" --version 2>/dev/null | awk '{ print $2 }')" "$BINDGEN_MIN"
}

find_bindgen() {
	local candidate
	if [ -n "${BINDGEN:-}" ]; then
		bindgen_usable "$BINDGEN" ||
			die "BINDGEN=$BINDGEN is missing or older than $BINDGEN_MIN" \
				"(cargo install --locked bindgen-cli)"
		return
	fi
	for candidate in "$FERRULE_CACHE/tools/bin/bindgen" bindgen; do
		bindgen_usable "$candidate" && BINDGEN=$(command -v "$candidate") && return
	done
	return 1
}

install_bindgen() {
	command -v cargo >/dev/null || install_cargo
	say "building bindgen $BINDGEN_VERSION (2 to 4 minutes)," \
		"for there is none here of $BINDGEN_MIN or later"
	cargo install --locked --quiet --root "$FERRULE_CACHE/tools" \
		--version "$BINDGEN_VERSION" bindgen-cli >"$FERRULE_CACHE/bindgen.log" 2>&1 ||
		die "cargo could not install bindgen: $(tail -n 1 "$FERRULE_CACHE/bindgen.log")"
}

install_cargo() {
	apt_update cargo
	if package_exists cargo-web; then
		apt_install cargo cargo-web
	else
		apt_install cargo cargo
	fi || die "no cargo among the packages: install one"
}

# Python tools at pinned versions, in an environment of their own. Each version of the list has
# one: checkouts that differ do not disturb each other.
ensure_venv() {
	VENV=$(cksum <"$FERRULE_ROOT/scripts/requirements.txt" | cut -d ' ' -f 1)
	VENV="$FERRULE_CACHE/tools/venv-$VENV"
	[ ! -e "$VENV/.complete" ] || return 0
	/usr/bin/python3 -c 'import ensurepip' 2>/dev/null ||
		apt_install "Python's venv" python3 python3-venv || die "no python3-venv"
	say "installing the Python tools of scripts/requirements.txt"
	rm -rf "$VENV"
	/usr/bin/python3 -m venv "$VENV"
	"$VENV/bin/pip" install -q -r "$FERRULE_ROOT/scripts/requirements.txt" \
		>"$FERRULE_CACHE/pip.log" 2>&1 ||
		die "pip failed (is the network there?): $(tail -n 1 "$FERRULE_CACHE/pip.log")"
	touch "$VENV/.complete"
}

build_tools() {
	apt_install "what a kernel build needs" "${BUILD_PACKAGES[@]}" ||
		die "apt-get failed, see above"
	find_rustc || { install_rustc && find_rustc; } ||
		die "no Rust compiler can build the kernel: ${RUSTC_REASON:-none found}"
	find_llvm || { install_llvm && find_llvm; } || die "clang was installed but is not found"
	find_bindgen || { install_bindgen && find_bindgen; } ||
		die "bindgen was built but does not run"
}

stock_tools() {
	apt_install "what a distribution's kernel needs" "${STOCK_PACKAGES[@]}" ||
		die "apt-get failed, see above"
}

install_qemu() {
	apt_update qemu-system-x86
	apt_install "the emulator" qemu-system-x86 2>/dev/null && return
	# Where other QEMU packages are from the backports, this one has to be.
	say "taking QEMU from the backports, as the qemu packages here are"
	local suite
	suite=$(. /etc/os-release && echo "$VERSION_CODENAME-backports")
	with_suite "$suite" apt-get -q update >>"$FERRULE_CACHE/apt.log" 2>&1
	DEBIAN_FRONTEND=noninteractive with_suite "$suite" apt-get -q install -y \
		--no-install-recommends -t "$suite" qemu-system-x86 >>"$FERRULE_CACHE/apt.log" 2>&1
}

vm_tools() {
	local name missing=
	for name in "${VM_COMMANDS[@]}"; do
		command -v "$name" >/dev/null || missing+="$name "
	done
	if [ -n "$missing" ] || [ "$(id -u)" = 0 ]; then
		apt_install "what the guest runs" "${VM_PACKAGES[@]}" ||
			die "apt-get failed, see above"
		command -v qemu-system-x86_64 >/dev/null || install_qemu ||
			die "no QEMU: $(tail -n 1 "$FERRULE_CACHE/apt.log")"
		# Guests mount their modules there.
		mkdir -p /lib/modules
	fi
}

test_tools() {
	command -v cargo >/dev/null || install_cargo
}

# Only a few tests need it: they are skipped without.
libvirt_tools() {
	[ "$(id -u)" = 0 ] || return 0
	apt_install "libvirt, to test balloonctl with" "${LIBVIRT_PACKAGES[@]}" ||
		say "no libvirt: its tests will be skipped"
}

# unpack NAME WHAT PACKAGE...: packages, with all that this machine lacks for them, in a directory
# of the cache. Only a few tests need them: they are skipped without.
unpack() {
	local dir="$FERRULE_CACHE/tools/$1" what=$2 package
	shift 2
	[ "$(cat "$dir/.complete" 2>/dev/null)" != "$*" ] && [ "$(id -u)" = 0 ] || return 0
	say "unpacking $what: $*"
	rm -rf "$dir"
	mkdir -p "$dir/archives/partial" "$dir"/{etc,var} "$dir"/usr/{bin,lib,sbin}
	ln -s usr/bin usr/lib usr/sbin "$dir"
	apt_update "$@"
	apt-get -q -y --download-only --no-install-recommends \
		-o Dir::Cache::archives="$dir/archives" -o APT::Sandbox::User=root \
		install "$@" >>"$FERRULE_CACHE/apt.log" 2>&1 || {
		say "not to be had: $what; their tests will be skipped"
		return 0
	}
	for package in "$dir"/archives/*.deb; do
		[ ! -e "$package" ] || dpkg-deb --fsys-tarfile "$package" |
			tar -x --keep-directory-symlink -C "$dir" || die "cannot unpack $package"
	done
	rm -rf "$dir/archives"
	echo "$*" >"$dir/.complete"
}

lint_tools() {
	apt_install shellcheck shellcheck || die "no shellcheck"
	command -v rustfmt >/dev/null && rustfmt --version >/dev/null 2>&1 ||
		{ apt_update rustfmt && { apt_install rustfmt rustfmt-web ||
			apt_install rustfmt rustfmt; }; } ||
		die "no rustfmt"
	[ -x "$(dirname "$(readlink -f "$RUSTC")")/clippy-driver" ] ||
		apt_install clippy rust-web-clippy || apt_install clippy rust-clippy ||
			die "no clippy-driver"
}

lock_cache tools
mkdir -p "$FERRULE_CACHE/tools"
for group in "$@"; do
	case $group in
	build) build_tools ;;
	stock) stock_tools ;;
	vm) vm_tools ;;
	test)
		test_tools
		libvirt_tools
		unpack servers "file servers for guests" "${SERVER_PACKAGES[@]}"
		unpack prometheus "Prometheus, to test metrics with" prometheus \
			prometheus-node-exporter
		;;
	lint) test_tools && lint_tools ;;
	*) die "no such group of tools: $group" ;;
	esac
done
ensure_venv
printf '%s=%q\n' LLVM "${LLVM:-}" RUSTC "${RUSTC:-}" BINDGEN "${BINDGEN:-}" VENV "$VENV" \
	FERRULE_CACHE "$FERRULE_CACHE"
