#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# Build the Debian packages, in a root of Debian 13 in the cache. Argument: the output directory.

. "$(dirname "$0")/lib.sh"

output=$(realpath -m "${1:?where to}")
root="$FERRULE_CACHE/roots/deb-trixie"
packages=build-essential,debhelper,dh-dkms,dh-python,lintian,man-db,python3,python3-docutils

[ "$(id -u)" = 0 ] || die "a root of Debian 13, which packages are built in, needs root"
lock_cache deb
[ -e "$root/.complete" ] || {
	say "making a root of Debian 13 to build packages in (about three minutes)"
	make_root "$root" trixie "$packages"
}

# What is tracked, or would be: nothing of what was built here.
work="$output/work"
rm -rf "$output"
mkdir -p "$work/ferrule"
cd "$FERRULE_ROOT"
git ls-files -z --cached --others --exclude-standard | while IFS= read -r -d '' file; do
	[ ! -e "$file" ] || printf '%s\0' "$file"
done | tar -c --null -T - | tar -x -C "$work/ferrule"

say "building the packages"
in_root "$root" sh -c 'cd "$1" && dpkg-buildpackage -us -uc -b' sh "$work/ferrule" \
	>"$work/build.log" 2>&1 || {
	tail -n 15 "$work/build.log" >&2
	die "the packages cannot be built: all of it is in $work/build.log"
}
cp "$work"/*.deb "$output"
say "lintian"
in_root "$root" lintian --allow-root --fail-on error,warning --display-info "$work"/*.changes ||
	die "lintian has objections, see above"
ls "$output"/*.deb
