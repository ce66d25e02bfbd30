#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# Tables in, tables and status out: what the selector reads and prints, beside the C selector.
#
# Runs: vm uml
# Timeout: 480

. "$(dirname "$0")/common.sh"

# same_text WHAT: table and status of $MAP and $MAP-c differ in nothing but the selector's name.
same_text() {
	local what ours theirs
	for what in table status; do
		ours=$(dmsetup "$what" "$MAP" | sed 's/round-robin-rs/round-robin/g')
		theirs=$(dmsetup "$what" "$MAP-c")
		diag "$1: $what: $ours"
		[ "$ours" = "$theirs" ] || fail "$1: the C selector's $what is: $theirs"
	done
}

text_is_that_of_the_c_selector() {
	local path
	use_paths 3
	create_map "$(table "$BIO" "$(group "$SELECTOR" 1 1 1)")" || return
	create_map "$(table "$BIO" "$(group round-robin 1 1 1)")" "$MAP-c" || return
	same_text "new"
	dd if="/dev/mapper/$MAP" of=/dev/null bs=4k count=10 iflag=direct status=none || return
	dd if="/dev/mapper/$MAP-c" of=/dev/null bs=4k count=10 iflag=direct status=none || return
	same_text "used"
	for path in "${PATHS[0]}" "${PATHS[2]}"; do
		dmsetup message "$MAP" 0 fail_path "$path" || return
		dmsetup message "$MAP-c" 0 fail_path "$path" || return
		same_text "failed"
	done
	dmsetup message "$MAP" 0 reinstate_path "${PATHS[2]}" || return
	dmsetup message "$MAP-c" 0 reinstate_path "${PATHS[2]}" || return
	same_text "reinstated"
}

text_is_that_of_the_c_selector_without_arguments() {
	use_paths 2
	create_map "$(table "$BIO_QUEUEING" "$(group "$SELECTOR")" "$(group "$SELECTOR")")" ||
		return
	create_map "$(table "$BIO_QUEUEING" "$(group round-robin)" "$(group round-robin)")" \
		"$MAP-c" || return
	same_text "two groups, no arguments"
}

weights_are_in_the_table() {
	local first second
	use_paths 3
	create_map "$(table "$BIO" "$(group "$SELECTOR" 5 65535 010)")" || return
	first=$(dmsetup table "$MAP")
	diag "$first"
	[[ $first == *" $SELECTOR 0 3 1 "*" 5 "*" 65535 "*" 10" ]] ||
		[[ $first == *" $SELECTOR 0 3 1 "*" 5 "*" 65535 "*" 10 " ]] ||
			fail "other weights"
	# What is printed loads again, to the same.
	create_map "$first" "$MAP-again" || return
	second=$(dmsetup table "$MAP-again")
	[ "$first" = "$second" ] || fail "came back as: $second"
}

long_texts_come_whole() {
	local disk group i weight weights=
	use_paths 1
	disk=${PATHS[0]}
	# More than the 16 KiB with which dmsetup asks first: dm must see that it was full.
	group="$SELECTOR 0 1024 1"
	for ((i = 0; i < 1024; i++)); do
		weight=$((i * i % 7 ? 40000 : 60000))
		group+=" $disk $weight"
		weights+="$weight "
	done
	create_map "$(table "$BIO" "$group" "$group")" || return
	dmsetup table "$MAP" >/run/fsel-table || return
	at_exit "rm -f /run/fsel-table"
	diag "the table has $(wc -c </run/fsel-table) bytes"
	[ "$(tr ' ' '\n' </run/fsel-table | awk '$1 + 0 >= 40000' | tr '\n' ' ')" = \
		"$weights$weights" ] || fail "not all weights came back in order"
	[ "$(dmsetup status "$MAP" | tr ' ' '\n' | grep -c '^A$')" -eq $((2 * 1024)) ] ||
		fail "not all paths are in the status"
	check "it takes I/O" read_blocks 10
}

# refused TEXT GROUP: a table with this group is refused, and the log says why.
refused() {
	kmsg_mark
	if dmsetup create "$MAP" --table "$(table "$BIO" "$2")" 2>/dev/null; then
		dmsetup remove --retry "$MAP"
		fail "not refused: $2"
		return
	fi
	kmsg_since_mark | grep -q "multipath: $1" || {
		diag "$(kmsg_since_mark)"
		fail "the log does not say \"$1\": $2"
	}
}

module_is_unused() {
	grep -q "^${MODULE//-/_} [0-9]* 0 " /proc/modules
}

malformed_arguments_are_refused() {
	local word
	use_paths 2
	for word in -1 +1 1x 0x10 4294967297 99999999999999999999; do
		refused "round-robin ps: invalid repeat count" "$(group "$SELECTOR" 1 "$word")"
	done
	refused "round-robin ps: incorrect number of arguments" \
		"$SELECTOR 0 1 2 ${PATHS[0]} 1 1"
	refused "round-robin ps: incorrect number of arguments" \
		"$SELECTOR 0 2 2 ${PATHS[0]} 1 1 ${PATHS[1]} 1 1"
	refused "invalid number of paths" \
		"$SELECTOR 0 1025 1 $(yes "${PATHS[0]} 1" | head -n 1025 | tr '\n' ' ')"
	refused "invalid number of paths" "$SELECTOR 0 0 1"
	# Nothing was left over from any of them.
	check "the module is not in use" module_is_unused
}

the_log_names_the_word_that_is_refused() {
	use_paths 2
	refused "round-robin ps: invalid repeat count" "$(group "$SELECTOR" '*' 1)"
	kmsg_since_mark | grep -qF 'round-robin-rs: path: weight: "*"' ||
		fail "the log does not name the word: $(kmsg_since_mark)"
}

# As multipath-tools computes them: rr_min_io_rq times the priority.
any_weight_of_the_c_selector_is_taken() {
	local large
	use_paths 3
	large=$(group "$SELECTOR" 0 130000 2147483647)
	create_map "$(table "$BIO" "$large")" || return
	check "they are printed as given" [ "$(dmsetup table "$MAP" | grep -oE \
		'[0-9:]+ (0|130000|2147483647)( |$)' | wc -l)" = 3 ]
	check "they take I/O" read_blocks 10
	change_map "$(table "$BIO" "$(group "$SELECTOR" 0 1 0)")" || return
	split_of read_blocks 30 || return
	check_split "0 is as 1" 10 10 10
	change_map "$(table "$BIO" "$(group "$SELECTOR" 4294967294 2147483647 2147483647)")" ||
		return
	split_of read_blocks 40 || return
	check_split "large ones are shares" 20 10 10
}

error_texts_are_those_of_the_c_selector() {
	use_paths 1
	refused "round-robin ps: invalid repeat count" "$(group round-robin x)"
	refused "round-robin ps: incorrect number of arguments" "round-robin 0 1 2 ${PATHS[0]} 1 1"
}

selector_arguments_are_ignored() {
	use_paths 1
	create_map "$(table "$BIO" "$SELECTOR 2 some thing 1 0 ${PATHS[0]}")" || return
	check "it takes I/O" read_blocks 10
}

ours_only "compares ours with the C selector" text_is_that_of_the_c_selector \
	text_is_that_of_the_c_selector_without_arguments error_texts_are_those_of_the_c_selector
ours_only "a line in the log of our own" the_log_names_the_word_that_is_refused
set_up 3 && load_selectors || exit
run_cases text_is_that_of_the_c_selector text_is_that_of_the_c_selector_without_arguments \
	weights_are_in_the_table any_weight_of_the_c_selector_is_taken \
	long_texts_come_whole malformed_arguments_are_refused \
	the_log_names_the_word_that_is_refused \
	error_texts_are_those_of_the_c_selector selector_arguments_are_ignored
