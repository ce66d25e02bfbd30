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

say() {
	printf '== %s\n' "$*" >&2
}

die() {
	printf 'error: %s\n' "$*" >&2
	exit 1
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

# with_suite SUITE COMMAND...: an apt-get or apt-cache that also sees SUITE of the Debian mirror
# that this machine uses, without touching the machine's own configuration.
with_suite() {
	local suite=$1 dir="$FERRULE_CACHE/apt" mirror
	shift
	mirror=$(apt-get indextargets --format '$(REPO_URI) $(ORIGIN) $(LABEL)' \
		'Created-By: Packages' |
		awk '$2 == "Debian" && $3 == "Debian" { print $1; exit }')
	[ -n "$mirror" ] || die "no Debian mirror among this machine's package sources"
	mkdir -p "$dir/sources" "$dir/lists/partial"
	cp -r /etc/apt/sources.list.d/. "$dir/sources/"
	[ ! -e /etc/apt/sources.list ] || cp /etc/apt/sources.list "$dir/sources/main.list"
	cat >"$dir/sources/ferrule-$suite.sources" <<-EOF
		Types: deb
		URIs: $mirror
		Suites: $suite
		Components: main
		Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
	EOF
	printf 'Package: *\nPin: release n=%s\nPin-Priority: 100\n' "$suite" >"$dir/pin-$suite"
	local command=$1
	shift
	"$command" -o Dir::Etc::sourcelist=- -o Dir::Etc::sourceparts="$dir/sources" \
		-o Dir::Etc::preferences="$dir/pin-$suite" -o Dir::State::lists="$dir/lists" \
		-o APT::Sandbox::User=root "$@"
}

# source_version TREE: of a kernel source tree, such as 7.3.4.
source_version() {
	awk '/^(VERSION|PATCHLEVEL|SUBLEVEL|EXTRAVERSION) =/ { v[$1] = $3 }
		END { print v["VERSION"] "." v["PATCHLEVEL"] "." v["SUBLEVEL"] v["EXTRAVERSION"]
		}' \
		"$1/Makefile"
}
