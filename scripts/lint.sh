#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# Format and static checks. Argument: the build directory of the kernel.

. "$(dirname "$0")/lib.sh"

kdir=$1
source=$kdir
[ ! -e "$kdir/source" ] || source=$(realpath "$kdir/source")
cd "$FERRULE_ROOT"
failed=0

files() {
	git ls-files --cached --others --exclude-standard "$@" | while read -r file; do
		[ ! -e "$file" ] || echo "$file"
	done
}

step() {
	local name=$1
	shift
	if "$@"; then
		say "$name: clean"
	else
		say "$name: FAILED"
		failed=$((failed + 1))
	fi
}

mapfile -t rust < <(files '*.rs')
mapfile -t c < <(files '*.c' '*.h')
mapfile -t shell < <(files '*.sh' .ci/run scripts/balloonctl scripts/qosctl)
mapfile -t python < <(files '*.py' debian/balloonctl debian/qosctl)

# Whole files. "tmpfs tmpfs" is a repeated word to checkpatch, and a command to a shell. Without a
# tree it does not know the kernel's own names in CamelCase. A total for each clean file would bury
# what was found.
checkpatch() {
	"$source/scripts/checkpatch.pl" --strict --no-tree --terse --quiet --show-types \
		--ignore REPEATED_WORD,CAMELCASE --file "$@" |
		{ grep -v '^total: 0 errors, 0 warnings, 0 checks' || true; }
}

clippy() {
	# Every feature of the crate is in some module. What is compiled is not linked: the kernel's
	# symbols are not there.
	scripts/modules.sh "$kdir" out/lint clean >/dev/null 2>&1 || true
	scripts/modules.sh "$kdir" out/lint CLIPPY=1 \
		KRUSTFLAGS='-Dwarnings -Dclippy::undocumented_unsafe_blocks' .
}

# What runs on the host, by its own compiler.
host_clippy() {
	local crate
	for crate in unit vhost control; do
		env -u RUSTC cargo clippy --quiet --locked --all-targets --target-dir "out/$crate" \
			--manifest-path "selftests/$crate/Cargo.toml" -- -Dwarnings || return
	done
}

no_unsafe_in_drivers() {
	! grep -rnE --include='*.rs' '\bunsafe\b' balloon dm-qos mpath-sel |
		grep -vE 'unsafe_code|//'
}

spdx() {
	local missing
	missing=$(files | grep -vE '\.md$|^LICENSES/|Cargo.lock$' |
		grep -vE '^debian/(changelog|copyright|source/)' |
		xargs grep -L 'SPDX-License-Identifier')
	[ -z "$missing" ] || echo "no SPDX header: $missing"
	[ -z "$missing" ]
}

# Warnings are errors. The manual pages are made of some of them.
documentation() {
	local page
	for page in Documentation/*.rst Documentation/*/*.rst; do
		"$VENV/bin/docutils" --writer=null --halt=2 "$page" || return
	done
	"$VENV/bin/python3" scripts/man.py out/man
}

step rustfmt rustfmt --check --edition 2021 --config-path "$source/.rustfmt.toml" "${rust[@]}"
step clippy clippy
step 'clippy, host' host_clippy
step 'unsafe only in rust/' no_unsafe_in_drivers
step checkpatch checkpatch "${c[@]}" "${shell[@]}"
step shellcheck shellcheck --severity=style --external-sources "${shell[@]}"
step 'ruff check' "$VENV/bin/ruff" check --quiet "${python[@]}"
step 'ruff format' "$VENV/bin/ruff" format --check --quiet "${python[@]}"
step documentation documentation
step 'SPDX headers' spdx
[ "$failed" = 0 ] || die "$failed of the checks failed"
