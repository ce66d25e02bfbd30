#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# What the host scripts share: messages, the cache, distribution packages.

set -euo pipefail

# shellcheck disable=SC2034 # for those who source this
FERRULE_ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# Kernel source, kernel builds and tools live outside of the checkout, so that a fresh clone on the
# same machine finds them.
FERRULE_CACHE=${FERRULE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/ferrule}
# Not empty: a package manager is at work. There is what is installed, and nothing else.
FERRULE_INSTALLED=${FERRULE_INSTALLED:-}

say() {
	printf '== %s\n' "$*" >&2
}

die() {
	printf 'error: %s\n' "$*" >&2
	exit 1
}

# wait_for WHAT...: end, with status 77, for something that is not installed has to be first.
wait_for() {
	printf 'error: waits for %s\n' "$*" >&2
	exit 77
}

# lock_cache NAME: one make at a time writes to that part of the cache. Held until the script ends,
# or until the next lock.
lock_cache() {
	mkdir -p "$FERRULE_CACHE/locks"
	exec 9>"$FERRULE_CACHE/locks/$1"
	flock -n 9 && return
	say "another make is at work on the $1 in $FERRULE_CACHE: waiting for it"
	flock 9
}

# need_disk MIB DIR WHAT: fail before filling the disk, not after.
need_disk() {
	local free
	free=$(df -Pm "$2" | awk 'NR == 2 { print $4 }')
	[ "$free" -ge "$1" ] ||
		die "$3 needs $1 MiB in $2, which has $free MiB free" \
			"(FERRULE_CACHE= chooses another place)"
}

packages_missing() {
	local package
	for package in "$@"; do
		dpkg-query -W -f '${db:Status-Status}\n' "$package" 2>/dev/null |
			grep -qx installed ||
			printf '%s ' "$package"
	done
}

package_exists() {
	[ -n "$(apt-cache policy "$1" 2>/dev/null | awk '/Candidate:/ && $2 != "(none)"')" ]
}

APT_UPDATED=
apt_update() {
	[ -z "$APT_UPDATED" ] || return 0
	command -v apt-get >/dev/null ||
		die "this is not a Debian-like system (no apt-get): install '$*' by hand"
	[ "$(id -u)" = 0 ] || die "missing packages ($*), and installing them needs root"
	say "reading the package lists"
	apt-get -q update >"$FERRULE_CACHE/apt.log" 2>&1 ||
		die "apt-get update failed (is the network there?):" \
			"$(tail -n 1 "$FERRULE_CACHE/apt.log")"
	APT_UPDATED=1
}

# apt_install WHY PACKAGE...: only what is missing.
apt_install() {
	local why=$1 missing
	shift
	missing=$(packages_missing "$@")
	[ -n "$missing" ] || return 0
	# shellcheck disable=SC2086 # a list of words
	apt_update $missing
	say "installing $why: $missing"
	# shellcheck disable=SC2086
	DEBIAN_FRONTEND=noninteractive apt-get -q install -y --no-install-recommends $missing \
		>>"$FERRULE_CACHE/apt.log" 2>&1 && return
	tail -n 5 "$FERRULE_CACHE/apt.log" >&2
	return 1
}

# debian_mirror: the one that this machine uses, or FERRULE_MIRROR.
debian_mirror() {
	local mirror=${FERRULE_MIRROR:-}
	[ -n "$mirror" ] || mirror=$(apt-get indextargets \
		--format '$(REPO_URI) $(ORIGIN) $(LABEL)' 'Created-By: Packages' 2>/dev/null |
		awk '$2 == "Debian" && $3 == "Debian" { print $1; exit }')
	[ -n "$mirror" ] ||
		die "no Debian mirror among this machine's package sources: set FERRULE_MIRROR="
	echo "$mirror"
}

# suite_sources SUITE: what apt is told about it.
suite_sources() {
	cat <<-EOF
		Types: deb
		URIs: $(debian_mirror)
		Suites: $1
		Components: main
		Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
	EOF
}

# with_suite SUITE COMMAND...: an apt-get or apt-cache that also sees SUITE of the Debian mirror
# that this machine uses, without touching the machine's own configuration.
with_suite() {
	local suite=$1 dir="$FERRULE_CACHE/apt" sources
	shift
	sources=$(suite_sources "$suite")
	mkdir -p "$dir/sources" "$dir/lists/partial"
	cp -r /etc/apt/sources.list.d/. "$dir/sources/"
	[ ! -e /etc/apt/sources.list ] || cp /etc/apt/sources.list "$dir/sources/main.list"
	echo "$sources" >"$dir/sources/ferrule-$suite.sources"
	printf 'Package: *\nPin: release n=%s\nPin-Priority: 100\n' "$suite" >"$dir/pin-$suite"
	local command=$1
	shift
	"$command" -o Dir::Etc::sourcelist=- -o Dir::Etc::sourceparts="$dir/sources" \
		-o Dir::Etc::preferences="$dir/pin-$suite" -o Dir::State::lists="$dir/lists" \
		-o APT::Sandbox::User=root "$@"
}

# suite_only SUITE ARCHITECTURE COMMAND...: an apt-get or apt-cache that sees nothing else, and
# nothing of what is installed here.
suite_only() {
	local dir="$FERRULE_CACHE/apt/$1-$2" arch=$2 sources
	sources=$(suite_sources "$1")
	shift 2
	mkdir -p "$dir/sources" "$dir/lists/partial" "$dir/cache/archives/partial"
	echo "$sources" >"$dir/sources/only.sources"
	local command=$1
	shift
	"$command" -o Dir::Etc::sourcelist=- -o Dir::Etc::sourceparts="$dir/sources" \
		-o Dir::Etc::preferences=- -o Dir::Etc::preferencesparts=- \
		-o Dir::State::lists="$dir/lists" -o Dir::State::status=/dev/null \
		-o Dir::Cache="$dir/cache" -o Acquire::Languages=none \
		-o APT::Architecture="$arch" -o APT::Architectures="$arch" \
		-o APT::Sandbox::User=root "$@"
}

# update_suite_only SUITE ARCHITECTURE: read its package lists, at most once an hour.
update_suite_only() {
	local stamp="$FERRULE_CACHE/apt/$1-$2/.updated"
	[ -z "$(find "$stamp" -mmin -60 2>/dev/null)" ] || return 0
	say "reading the package lists of $1 ($2)"
	suite_only "$1" "$2" apt-get -q update >"$FERRULE_CACHE/apt.log" 2>&1 ||
		die "cannot read the package lists of $1 (is the network there?):" \
			"$(grep -E '^(Err|E:|W:)' "$FERRULE_CACHE/apt.log" | tail -n 1)"
	touch "$stamp"
}

# make_root ROOT SUITE PACKAGES [OPTION...]: a directory with those packages of a Debian suite and
# what they need, without documentation, by mmdebstrap with such options.
make_root() {
	local root=$1 suite=$2 packages=$3 name=${1##*/} new log mirror line options=()
	shift 3
	new=${root%/*}/.new-$name log=$FERRULE_CACHE/root-$name.log
	# What this machine's apt is told of the mirror: a proxy, or to take lists that are old.
	while read -r line; do
		options+=(--aptopt="$line")
	done < <(apt-config dump | grep -E '^Acquire::(Check-|[a-z]+::Proxy)')
	mirror=$(debian_mirror)
	command -v mmdebstrap >/dev/null || apt_install "what makes a root" mmdebstrap ||
		die "no mmdebstrap, to make a root of $suite with"
	mkdir -p "${root%/*}"
	need_disk 2500 "$FERRULE_CACHE" "a root of $suite"
	# What is left of an interrupted one. Its mounts went with it.
	rm -rf --one-file-system "$new"
	unshare --mount --propagation private mmdebstrap --mode=root --variant=apt \
		--skip=cleanup/apt --aptopt='APT::Sandbox::User "root"' \
		--aptopt='Acquire::Languages "none"' ${options[@]+"${options[@]}"} \
		--dpkgopt='path-exclude=/usr/share/doc/*' \
		--dpkgopt='path-exclude=/usr/share/man/*' \
		--dpkgopt='path-exclude=/usr/share/locale/*' "$@" \
		--include="$packages" "$suite" "$new" "$mirror" >"$log" 2>&1 ||
		die "cannot make a root of $suite:" \
			"$(grep -vE '^(I:|$)' "$log" | tail -n 2 | tr '\n' ' ')"
	touch "$new/.complete"
	rm -rf --one-file-system "${root:?}"
	mv "$new" "$root"
}

# in_root ROOT COMMAND...: in a root of another suite, or here if ROOT is empty. The cache, the
# checkout and /tmp are there under the names that they have here; the environment is not.
in_root() {
	local root=$1
	shift
	[ -n "$root" ] || {
		"$@"
		return
	}
	# shellcheck disable=SC2016 # for the inner shell
	unshare --mount --propagation private bash -c '
		root=$1 places=$2
		shift 2
		for place in /proc /dev /tmp $places; do
			mkdir -p "$root$place" && mount --bind "$place" "$root$place" || exit
		done
		exec chroot "$root" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root \
			LC_ALL=C.UTF-8 "$@"' \
		in_root "$root" "$FERRULE_CACHE $FERRULE_ROOT" "$@"
}

# source_version TREE: of a kernel source tree, such as 7.3.4.
source_version() {
	awk '/^(VERSION|PATCHLEVEL|SUBLEVEL|EXTRAVERSION) =/ { v[$1] = $3 }
		END { print v["VERSION"] "." v["PATCHLEVEL"] "." v["SUBLEVEL"] v["EXTRAVERSION"]
		}' \
		"$1/Makefile"
}

# upstream_version RELEASE: 7.3.4 of 7.3.4+deb13-cloud-amd64.
upstream_version() {
	echo "$1" | sed -n 's/^\([0-9]*\.[0-9]*\(\.[0-9]*\)\?\).*/\1/p'
}

# cached_source PATTERN: the newest tree of such a version in the cache, if any.
cached_source() {
	local trees
	# shellcheck disable=SC2206 # a pattern
	trees=("$FERRULE_CACHE/src/linux-"$1/Makefile)
	[ ! -e "${trees[0]}" ] || printf '%s\n' "${trees[@]%/Makefile}" | sort -V | tail -n 1
}

# What of the kernel source modules in Rust do not need, as patterns for tar. Kconfig reads all of
# its files. Bindings are made of headers of drivers too; most of their size is AMD's registers.
LEFT_OUT=('Documentation/*/*' 'arch/*.dts*' 'arch/[!aux]*.[chS]' 'arch/a[!r]*.[chS]'
	'drivers/*.[cS]' 'drivers/gpu/drm/amd/*.h' 'fs/*.c' 'net/*.c' 'sound/*.c'
	'tools/perf/*' 'tools/testing/*')

# unpack_source ARCHIVE: of a package linux-source-V, into the cache.
unpack_source() {
	local new="$FERRULE_CACHE/src/.new" version options=() size=2600 text='1.8 GB' top=${1##*/}
	if [ -n "$FERRULE_INSTALLED" ]; then
		options=(--anchored --wildcards "${LEFT_OUT[@]/#/--exclude=${top%.tar.*}/}")
		size=400 text='a fifth of it'
	fi
	need_disk "$size" "$FERRULE_CACHE" "unpacking the kernel source"
	say "unpacking the kernel source ($text, about half a minute)"
	rm -rf "$new"
	mkdir -p "$new"
	tar -xJ -C "$new" --strip-components=1 "${options[@]}" || die "cannot unpack $1"
	version=$(source_version "$new")
	rm -rf "$FERRULE_CACHE/src/linux-$version"
	mv "$new" "$FERRULE_CACHE/src/linux-$version"
} <"$1"

# find_source UPSTREAM SUITE [DEBIAN-VERSION]: where a source tree of that version, such as 7.3.4,
# is to be had. Prints a tree: the user's own (KSRC=) or the one in the cache; an archive: that of
# the package installed here; or a suite of the mirror and the version of its package.
find_source() {
	local upstream=$1 suite=$2 wanted=${3:-} package tree version
	package="linux-source-$(echo "$upstream" | cut -d. -f1,2)"
	tree="$FERRULE_CACHE/src/linux-$upstream"
	version=$(dpkg-query -W -f '${Version}' "$package" 2>/dev/null || true)
	if [ -n "${KSRC:-}" ]; then
		tree=$(realpath "$KSRC")
		[ -e "$tree/rust/kernel/lib.rs" ] ||
			die "KSRC=$KSRC is no kernel source tree with Rust"
		[ "$(source_version "$tree")" = "$upstream" ] ||
			die "KSRC=$KSRC is $(source_version "$tree"), the kernel is $upstream"
		echo "$tree"
	elif [ -e "$tree/Makefile" ]; then
		echo "$tree"
	elif [ "${version%%-*}" = "$upstream" ] && [ -e "/usr/src/$package.tar.xz" ]; then
		echo "/usr/src/$package.tar.xz"
	elif [ -n "$FERRULE_INSTALLED" ]; then
		wait_for "the source of $upstream, in the package $package" \
			"${version:+(what is there is of $version)}"
	else
		find_source_package "$package" "$upstream-" "$suite" "$wanted"
	fi
}

# kernel_source UPSTREAM PLACE: the tree, from where find_source found it.
kernel_source() {
	local upstream=$1 place=$2 package tree="$FERRULE_CACHE/src/linux-$1"
	package="linux-source-$(echo "$upstream" | cut -d. -f1,2)"
	case $place in
	*.tar.xz | *' '*)
		lock_cache source
		if [ -e "$tree/Makefile" ]; then
			:
		elif [ -e "$place" ]; then
			unpack_source "$place"
		else
			# shellcheck disable=SC2086 # suite and version
			fetch_source "$package" $place
		fi
		[ -e "$tree/Makefile" ] || die "$package has no source of $upstream"
		echo "$tree"
		;;
	*) echo "$place" ;;
	esac
}

# newest_source SERIES SUITE: the newest tree of a series, such as 7.3, in the cache, or else of the
# mirror.
newest_source() {
	local place
	lock_cache source
	if [ -z "$(cached_source "$1*")" ]; then
		place=$(find_source_package "linux-source-$1" "$1." "$2")
		# shellcheck disable=SC2086 # suite and version
		fetch_source "linux-source-$1" $place
	fi
	cached_source "$1*"
}

# find_source_package PACKAGE BEGIN SUITE [WANTED]: a suite of the mirror, and the version WANTED,
# or the newest one that begins so. Point releases and security updates replace packages.
find_source_package() {
	local package=$1 begin=$2 suite=$3 wanted=${4:-} found='' there='' all='' candidate
	[ -n "$suite" ] || die "which distribution's package has the source of ${begin%-}?" \
		"Set KSRC= to a tree, or FERRULE_SUITE= to a Debian suite"
	for candidate in "${suite%-backports}-backports" "$suite"; do
		case $candidate in forky-* | sid-*) continue ;; esac
		update_suite_only "$candidate" amd64
		there=$(suite_only "$candidate" amd64 apt-cache madison "$package" |
			awk -F ' *[|] *' '{ print $2 }')
		found=$(echo "$there" | awk -v begin="$begin" -v wanted="$wanted" '
			index($1, begin) == 1 && (first == "" || $1 == wanted) { first = $1 }
			END { print first }')
		[ -z "$found" ] || break
		all+="${there//$'\n'/, } "
	done
	[ -n "$found" ] || die "the mirror has no $package of ${begin%[-.]}, only" \
		"${all:-none at all}: upgrade to a kernel whose source it has, or set KSRC="
	echo "$candidate $found"
}

fetch_source() {
	local package=$1 suite=$2 version=$3 work="$FERRULE_CACHE/tmp/source"
	rm -rf "$work"
	mkdir -p "$work"
	need_disk 2800 "$FERRULE_CACHE" "the kernel source"
	say "fetching the kernel source ($package $version, about 170 MB)"
	(cd "$work" && suite_only "$suite" amd64 apt-get -q download "$package=$version") \
		>>"$FERRULE_CACHE/apt.log" 2>&1 ||
		die "cannot fetch $package (is the network there?):" \
			"$(tail -n 1 "$FERRULE_CACHE/apt.log")"
	dpkg-deb -x "$work/$package"_*.deb "$work" || die "cannot unpack $package"
	unpack_source "$work/usr/src/$package.tar.xz"
	rm -rf "$work"
}
