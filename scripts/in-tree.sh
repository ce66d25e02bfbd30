#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# Add Ferrule to a kernel source tree, as drivers/ferrule, or bring it up to date there.
# Arguments: KSRC [undo]
#
# Two lines make it known, at the end of drivers/Kconfig and drivers/Makefile: it is initialised
# after device mapper and virtio when all are built in. drivers/ferrule/SHA256SUMS lists what was
# put there, so that what somebody else wrote is never touched; "undo" leaves the tree as it was.

. "$(dirname "$0")/lib.sh"

# The kernel that the bindings are written for.
KERNEL_VERSION=7.3

kconfig_line='source "drivers/ferrule/Kconfig"'
makefile_line=$'obj-$(CONFIG_FERRULE)\t\t+= ferrule/'

[ -n "${1:-}" ] || die "which kernel source tree? make in-tree KSRC=DIR"
[ -d "$1" ] || die "KSRC=$1 is no directory"
tree=$(realpath "$1")
action=${2:-add}
there=$tree/drivers/ferrule
staged=$there.new

check_tree() {
	local file
	for file in Makefile Kconfig drivers/Kconfig drivers/Makefile; do
		[ -e "$tree/$file" ] || die "$tree is no kernel source tree: it has no $file"
	done
	[ -w "$tree/drivers" ] || die "$tree/drivers cannot be written to"
}

# What has to be there for Ferrule to work there. Not to take it away: the tree may have moved on.
check_suitable() {
	local version
	[ -e "$tree/rust/kernel/lib.rs" ] ||
		die "$tree is no kernel source tree with Rust: it has no rust/kernel/lib.rs"
	version=$(source_version "$tree")
	case $version in
	"$KERNEL_VERSION" | "$KERNEL_VERSION"[!0-9]*) ;;
	*) die "$tree is Linux $version: Ferrule is written for $KERNEL_VERSION" ;;
	esac
	case $tree/ in
	"$(realpath -m "$FERRULE_CACHE")"/*)
		die "$tree is what make kernel builds from: take a copy of it (cp -r)"
		;;
	esac
	[ "$(grep -v '^$' "$tree/drivers/Kconfig" | tail -n 1)" = endmenu ] ||
		die "$tree/drivers/Kconfig does not end in endmenu: where to add Ferrule?"
}

# What belongs to a kernel tree, by its name from the root of ours.
our_files() {
	(cd "$FERRULE_ROOT" &&
		find Kbuild Kconfig .kunitconfig rust balloon dm-qos mpath-sel -type f \
			\( -name '*.rs' -o -name '*.[ch]' -o -name Kbuild -o -name Kconfig \
			-o -name Makefile.ferrule -o -name bindgen_parameters \
			-o -name .kunitconfig \))
}

# files_there: all that is there but the list and what a build leaves, which is what the kernel's
# "make clean" takes for that.
files_there() {
	(cd "$there" &&
		find . -type f ! -name SHA256SUMS ! -name bindings_generated.rs \
			! -name '*.[adios]' ! -name '*.o.*' ! -name '.*.cmd' ! -name '*.rmeta' \
			! -name '*.rsi' ! -name '*.bc' ! -name '*.ll' ! -name '*.dwo' \
			! -name '*.su' ! -name '*.gcno' ! -name '*.symtypes' ! -name '*.ko' \
			! -name '*.mod' ! -name '*.mod.c' ! -name modules.order \
			! -name modules.builtin |
		sed 's|^\./||')
}

# Nobody's work but ours is in drivers/ferrule.
check_there() {
	local foreign
	[ -e "$there" ] || return 0
	[ -e "$there/SHA256SUMS" ] || die "$there is there, and not from make in-tree"
	foreign=$({
		(cd "$there" && sha256sum --check --quiet --ignore-missing SHA256SUMS 2>/dev/null |
			sed 's/: FAILED.*//') || true
		files_there | grep -vxFf <(sed 's/^[0-9a-f]*  //' "$there/SHA256SUMS") || true
	} | sort | xargs)
	[ -z "$foreign" ] ||
		die "in $there somebody has changed: $foreign" \
			"(take it over into $FERRULE_ROOT, or delete it)"
}

# replace FILE: by the standard input. A new file: the old one may be a hard link of another tree's.
replace() {
	cat >"$1.new"
	chmod --reference="$1" "$1.new"
	mv "$1.new" "$1"
}

# without LINE FILE
without() {
	grep -vxF -- "$1" "$2"
}

remove_lines() {
	local file=$tree/drivers/Kconfig
	if grep -qxF -- "$kconfig_line" "$file"; then
		without "$kconfig_line" "$file" | replace "$file"
	fi
	file=$tree/drivers/Makefile
	if grep -qxF -- "$makefile_line" "$file"; then
		without "$makefile_line" "$file" | replace "$file"
	fi
}

add_lines() {
	local file=$tree/drivers/Kconfig
	if ! grep -qxF -- "$kconfig_line" "$file"; then
		awk -v line="$kconfig_line" '
			{ lines[NR] = $0 }
			$0 == "endmenu" { last = NR }
			END {
				for (n = 1; n <= NR; n++) {
					if (n == last)
						print line
					print lines[n]
				}
			}' "$file" | replace "$file"
	fi
	file=$tree/drivers/Makefile
	grep -qxF -- "$makefile_line" "$file" ||
		{ cat "$file" && printf '%s\n' "$makefile_line"; } | replace "$file"
}

stage() {
	local file sums
	rm -rf "$staged"
	our_files | while read -r file; do
		mkdir -p "$staged/$(dirname "$file")"
		# With their times, for make.
		cp -p "$FERRULE_ROOT/$file" "$staged/$file"
	done
	sums=$(cd "$staged" && find . -type f -printf '%P\n' | sort | xargs sha256sum)
	echo "$sums" >"$staged/SHA256SUMS"
}

check_tree
check_there
case $action in
add)
	check_suitable
	stage
	rm -rf "$there"
	mv "$staged" "$there"
	add_lines
	say "Ferrule is in $there: choose it in Device Drivers (CONFIG_FERRULE)"
	;;
undo)
	remove_lines
	rm -rf "$there" "$staged"
	say "$tree is without Ferrule"
	;;
*) die "what is '$action'? undo, or nothing" ;;
esac
