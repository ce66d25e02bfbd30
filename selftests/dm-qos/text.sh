#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# Ours: its own table and messages
# Runs: vm uml
# Timeout: 240
#
# Table lines and messages: what is taken, what is printed, and how the rest is refused.

. "$(dirname "$0")/common.sh"

SECTORS=131072

table_is() {
	local table
	table=$(dmsetup table "$1") || return
	[ "${table##* qos * 0}" = "$2" ] || {
		diag "table: $table"
		return 1
	}
}

the_table_loads_again_to_the_same_state() {
	local table
	make_disk d
	make_qos q d iops 1000 read_bps 3M write_iops 7 burst_ms 25
	check "only what differs is printed, in bytes" table_is q \
		" 8 iops 1000 write_iops 7 read_bps 3145728 burst_ms 25"
	table=$(dmsetup table q)
	dmsetup remove q
	check "it loads" dmsetup create q --table "$table"
	check "to the same" [ "$(dmsetup table q)" = "$table" ]
	check "what a message set" dmsetup message q 0 set iops 2000 burst_ms 10 bps 1G
	check "is in the table" table_is q \
		" 8 iops 2000 write_iops 7 bps 1073741824 read_bps 3145728"
}

a_table_without_keys_is_linear() {
	make_disk d
	check "no number of words" dmsetup create q --table "0 $SECTORS qos /dev/d 0"
	at_exit "remove_qos q"
	check "prints as it was" table_is q ""
	dmsetup remove q
	check "none of them" dmsetup create q --table "0 $SECTORS qos /dev/d 0 0"
	check "a read passes" dd if=/dev/mapper/q of=/dev/null bs=4k count=1 iflag=direct \
		status=none
}

# refused TABLE TEXT: the table is refused, and the log says why, which all_logged looks up.
refused() {
	if dmsetup create bad --table "$1" 2>/dev/null; then
		dmsetup remove bad
		fail "taken: $1"
	fi
	EXPECTED+=("$1" "qos: $2")
}

# all_logged: one look at the log for all of them.
all_logged() {
	local log index missing=
	log=$(kmsg_since_mark)
	for ((index = 0; index < ${#EXPECTED[@]}; index += 2)); do
		[[ $log == *"${EXPECTED[index + 1]}"* ]] ||
			missing+="${EXPECTED[index]}: ${EXPECTED[index + 1]}"$'\n'
	done
	[ -z "$missing" ] || fail "not in the log:"$'\n'"$missing$log"
}

bad_tables_are_refused_with_word_and_reason() {
	local EXPECTED=()
	make_disk d
	kmsg_mark
	refused "0 $SECTORS qos" '<device> is missing'
	refused "0 $SECTORS qos /dev/d" '<offset> is missing'
	refused "0 $SECTORS qos /dev/nowhere 0" 'device: "/dev/nowhere" cannot be opened (error -2)'
	refused "0 $SECTORS qos /dev/d x" 'offset: "x" is not a number'
	refused "0 $SECTORS qos /dev/d 12x" 'offset: "12x" is not a number'
	refused "0 $SECTORS qos /dev/d -1" 'offset: "-1" is not a number'
	refused "0 $SECTORS qos /dev/d 18446744073709551616" \
		'offset: "18446744073709551616" is not a number'
	refused "0 $SECTORS qos /dev/d 18446744073709551615" \
		'offset: "18446744073709551615" is not within 0 to'
	refused "0 $SECTORS qos /dev/d 8" \
		"offset: \"/dev/d\" has $SECTORS sectors, too few for $SECTORS from \"8\" on"
	refused "0 8 qos /dev/d $((SECTORS - 4))" \
		"offset: \"/dev/d\" has $SECTORS sectors, too few for 8 from \"$((SECTORS - 4))\" on"
	refused "0 $SECTORS qos /dev/d 0 x" 'number of words: "x" is not a number'
	refused "0 $SECTORS qos /dev/d 0 4 iops 1" 'number of words: "4", but 2 follow'
	refused "0 $SECTORS qos /dev/d 0 0 iops 1" 'number of words: "0", but 2 follow'
	refused "0 $SECTORS qos /dev/d 0 2 iops 1 bps" 'number of words: "2", but 3 follow'
	refused "0 $SECTORS qos /dev/d 0 3 iops 1 bps" 'bps: has no value (odd number of words)'
	refused "0 $SECTORS qos /dev/d 0 2 speed 1" '"speed" is not a key'
	refused "0 $SECTORS qos /dev/d 0 2 IOPS 1" '"IOPS" is not a key'
	refused "0 $SECTORS qos /dev/d 0 4 iops 1 iops 2" 'iops: given twice'
	refused "0 $SECTORS qos /dev/d 0 2 iops many" 'iops: "many" is not a number'
	refused "0 $SECTORS qos /dev/d 0 2 iops 1K" 'iops: "1K" is not a number'
	refused "0 $SECTORS qos /dev/d 0 2 iops -1" 'iops: "-1" is not a number'
	refused "0 $SECTORS qos /dev/d 0 2 iops 100000001" \
		'iops: "100000001" is not within 0 to 100000000'
	refused "0 $SECTORS qos /dev/d 0 2 bps 1X" 'bps: "1X" is not a number of bytes'
	refused "0 $SECTORS qos /dev/d 0 2 bps 2T" 'bps: "2T" is not within 0 to 1099511627776'
	refused "0 $SECTORS qos /dev/d 0 2 bps 99999999999T" 'bps: "99999999999T" is not a number'
	refused "0 $SECTORS qos /dev/d 0 2 burst_ms 10001" \
		'burst_ms: "10001" is not within 0 to 10000'
	all_logged
	[[ $(kmsg_since_mark) == *"device-mapper: table: 25"*": qos: <device> is missing"* ]] ||
		fail "the log does not name the device"
}

# message_refused TEXT WORDS...: the message is refused, and the log says why.
message_refused() {
	local text=$1
	shift
	fails dmsetup message q 0 "$@" || fail "taken: $*"
	EXPECTED+=("$*" "qos: message: $text")
}

bad_messages_are_refused_and_change_nothing() {
	local EXPECTED=() table
	make_disk d
	make_qos q d iops 1000
	table=$(dmsetup table q)
	kmsg_mark
	message_refused '"faster" is not a command (set, reset, histogram)' faster
	message_refused 'set: nothing to set' set
	message_refused 'iops: has no value' set iops
	message_refused '"speed" is not a key' set iops 5 speed 1
	message_refused 'bps: "x" is not a number of bytes' set iops 5 bps x
	message_refused 'iops: given twice' set iops 5 iops 6
	message_refused 'burst_ms: "10001" is not within' set iops 5 burst_ms 10001
	message_refused '"now" is one word too many' reset now
	all_logged
	check "nothing changed" [ "$(dmsetup table q)" = "$table" ]
}

counters_count_and_reset() {
	make_disk d
	make_qos q d
	dd if=/dev/mapper/q of=/dev/null bs=8k count=3 iflag=direct status=none
	dd if=/dev/zero of=/dev/mapper/q bs=4k count=2 oflag=direct status=none
	check "reads" [ "$(fields q read_ios read_bytes | xargs)" = "3 24576" ]
	check "writes" [ "$(fields q write_ios write_bytes | xargs)" = "2 8192" ]
	check "reset" dmsetup message q 0 reset
	check "all 0" [ "$(fields q read_ios read_bytes write_ios write_bytes read_held_total \
		write_hold_max_us | xargs)" = "0 0 0 0 0 0" ]
}

# The buffer that device mapper offers first is not asked to hold more than it can.
status_of_many_lines_is_whole() {
	local table='' line
	make_disk d
	for ((line = 0; line < 100; line++)); do
		table+="$((line * 8)) 8 qos /dev/d $((line * 8)) 2 iops 100000000"$'\n'
	done
	dmsetup create many <<<"$table"
	at_exit "dmsetup remove --retry many"
	check "100 lines of status" \
		[ "$(dmsetup status many | grep -c write_hold_max_us=0$)" = 100 ]
	check "100 lines of table" [ "$(dmsetup table many | grep -c 'iops 100000000$')" = 100 ]
}

set_up || exit
run_cases the_table_loads_again_to_the_same_state a_table_without_keys_is_linear \
	bad_tables_are_refused_with_word_and_reason bad_messages_are_refused_and_change_nothing \
	counters_count_and_reset status_of_many_lines_is_whole
