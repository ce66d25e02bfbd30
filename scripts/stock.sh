#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# Fetch a distribution's kernel, and make it ready to build modules for it and to boot it. Argument:
# a name in scripts/config/stock.list.
#
# Prints the build directory, which looks like that of a kernel built here: image, modules and
# configuration are the distribution's, what modules in Rust need is built (scripts/headers.sh).

. "$(dirname "$0")/lib.sh"

name=${1:?which kernel: a name in scripts/config/stock.list}
list=$FERRULE_ROOT/scripts/config/stock.list
read -r suite arch pattern < <(awk -v name="$name" '$1 == name { print $2, $3, $4 }' "$list") ||
	die "no such kernel: stock:$name" \
		"(there are: $(awk '!/^#/ { printf "%s%s", sep, $1; sep = ", " }' "$list"))"
flavour=${pattern##*+}
kernels=$FERRULE_CACHE/stock
mkdir -p "$kernels"

# The newest of this name that is here.
cached_version() {
	find "$kernels" -path "$kernels/*+$flavour/.complete" 2>/dev/null |
		sed 's|/\.complete$||; s|.*/||' | sort -V | tail -n 1
}

# One package by its name, into the current directory.
download() {
	suite_only "$suite" "$arch" apt-get -q download "$@" >>"$FERRULE_CACHE/apt.log" 2>&1 ||
		die "cannot fetch $1 (is the network there?): $(tail -n 1 "$FERRULE_CACHE/apt.log")"
}

# Image, modules and headers, unpacked.
fetch() {
	local version work="$kernels/.new-$name" package
	update_suite_only "$suite" "$arch"
	version=$(suite_only "$suite" "$arch" apt-cache pkgnames linux-image- |
		sed -n 's/^linux-image-//p' |
		grep -xE "$(echo "$pattern" | sed 's/[.+]/\\&/g; s/\\.\*/.*/')" |
		sort -V | tail -n 1 || true)
	[ -n "$version" ] || die "the mirror has no kernel $pattern in $suite: it has moved on" \
		"(scripts/config/stock.list)"
	need_disk 2000 "$FERRULE_CACHE" "a kernel of $suite"
	say "fetching Debian's kernel $version"
	rm -rf "$work"
	mkdir -p "$work"
	(cd "$work" && download "linux-headers-$version" "linux-base-$version" \
		"linux-binary-$version" "linux-modules-$version")
	for package in "$work"/*.deb; do
		dpkg-deb -x "$package" "$work" || die "cannot unpack $package"
	done
	rm -f "$work"/*.deb
	touch "$work/.complete"
	rm -rf "${kernels:?}/$version"
	mv "$work" "$kernels/$version"
}

version=$(cached_version)
if [ -z "$version" ]; then
	lock_cache "stock kernel $name"
	version=$(cached_version)
	if [ -z "$version" ]; then
		fetch
		version=$(cached_version)
	fi
fi

build=$(FERRULE_SUITE=$suite "$FERRULE_ROOT/scripts/headers.sh" \
	"$kernels/$version/usr/src/linux-headers-$version" "stock-$name")

# Options of the kernel's own source that the distribution leaves out: the file system through which
# a guest has its root, and a target and a disk that tests need.
EXTRA=(NET_9P NET_9P_VIRTIO 9P_FS DM_DUST SCSI_DEBUG)

build_extra() {
	local extra="$build/extra" option words flags='' source
	source=$(realpath "$build/source")
	mapfile -t words <"$build/ferrule.make"
	for option in "${EXTRA[@]}"; do
		grep -q "^CONFIG_$option=[ym]" "$build/.config" || {
			words+=("CONFIG_$option=m")
			flags+=" -DCONFIG_${option}_MODULE"
		}
	done
	rm -rf "$extra"
	mkdir -p "$extra/dm" "$extra/scsi"
	[ -n "$flags" ] || return 0
	say "building what $version leaves out and tests need:${flags//-DCONFIG_/ }"
	cp -r "$source/net/9p" "$extra/net"
	cp -r "$source/fs/9p" "$extra/fs"
	cp "$source/drivers/md/dm-dust.c" "$extra/dm"
	# shellcheck disable=SC2016 # for make
	echo 'obj-$(CONFIG_DM_DUST) += dm-dust.o' >"$extra/dm/Kbuild"
	# Its headers are private to that folder.
	cp "$source"/drivers/scsi/{scsi_debug.c,*.h} "$extra/scsi"
	# shellcheck disable=SC2016
	echo 'obj-$(CONFIG_SCSI_DEBUG) += scsi_debug.o' >"$extra/scsi/Kbuild"
	# shellcheck disable=SC2016
	printf 'obj-$(CONFIG_%s) += %s/\n' NET_9P net 9P_FS fs DM_DUST dm SCSI_DEBUG scsi \
		>"$extra/Kbuild"
	in_root "$(<"$build/ferrule.root")" make -C "$build" -j"$(nproc)" M="$extra" "${words[@]}" \
		KCFLAGS="$flags -g0" -s modules >"$build/extra.log" 2>&1 ||
		die "cannot build modules of $version: $(tail -n 3 "$build/extra.log")"
}

# As virtme-ng finds them in a build directory: the image, and modules under a version of 0.0.0.
lay_out() {
	local mods="$build/.virtme_mods" from="$kernels/$version/usr/lib/modules/$version"
	local target="$mods/lib/modules/0.0.0" image
	case $arch in
	amd64) image=$build/arch/x86/boot/bzImage ;;
	arm64) image=$build/arch/arm64/boot/Image ;;
	esac
	mkdir -p "${image%/*}"
	ln -sf "$from/vmlinuz" "$image"
	touch "$build/modules.order"
	rm -rf "$mods"
	mkdir -p "$target/extra"
	cp "$from"/modules.* "$target"
	cp -al "$from/kernel" "$target/kernel"
	find "$build/extra" -name '*.ko' -exec cp -t "$target/extra" {} +
	depmod -b "$mods" 0.0.0
	# What the initramfs loads must not be compressed.
	modprobe -C /var/empty -d "$mods" -S 0.0.0 --show-depends --all 9p 9pnet_virtio \
		virtio_console virtio_pci 2>/dev/null |
		sed -n 's/^insmod \(.*\.xz\) *$/\1/p' | sort -u | xargs -r xz -d -f
	depmod -b "$mods" 0.0.0
}

# What runs in a guest of another architecture: unpacked only, for nothing of it runs here.
ARM_PACKAGES=base-files,bash,busybox-static,coreutils,dash,debianutils,diffutils,dmsetup,e2fsprogs
ARM_PACKAGES+=,findutils,fio,gawk,grep,gzip,iproute2,kmod,libc-bin,mount,multipath-tools,procps
ARM_PACKAGES+=,psmisc,python3,sed,sg3-utils,util-linux,xfsprogs,xz-utils

guest_root() {
	local root="$FERRULE_CACHE/roots/guest-$arch"
	command -v qemu-system-aarch64 >/dev/null ||
		apt_install "the emulator of $arch" qemu-system-arm || die "no QEMU for $arch"
	[ ! -e "$root/.complete" ] || return 0
	make_root "$root" "${suite%-backports}" "$ARM_PACKAGES" --variant=extract \
		--architectures="$arch"
	# What the packages would do when they are configured.
	ln -s gawk "$root/usr/bin/awk"
}

if [ "$arch" != "$(dpkg --print-architecture)" ]; then
	lock_cache "guest $arch"
	guest_root
fi
is_complete() {
	[ -e "$build/.complete" ] && [ "$(<"$build/.complete")" = "${EXTRA[*]}" ]
}

if ! is_complete; then
	lock_cache "stock-$name"
	if ! is_complete; then
		build_extra
		lay_out
		echo "${EXTRA[*]}" >"$build/.complete"
	fi
fi
echo "$build"
