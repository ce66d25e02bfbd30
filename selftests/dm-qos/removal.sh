#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# Ours: has dm-linear beside it already
# Runs: vm uml
# Timeout: 300
#
# Whatever happens to the device or to the disk below: nothing hangs, nothing is lost, and errors
# are those of dm-linear in the same place. See held.sh for what happens every day.

. "$(dirname "$0")/common.sh"

SLOW=(iops 1 burst_ms 0)

# io_waits: 40 writes, of which most wait on q for long enough, and none is still to come. Results
# come to the file WAITED.
WAITED=/tmp/waited
io_waits() {
	local before
	before=$(field q write_ios)
	at_exit "no_limits q; io_is_over || :"
	io_in_background "$WAITED" q at-once write:0:4K*40
	check "all have come" wait_for $((2 * PROMPT)) have_come $((before + 40))
	check "I/O waits" field_is q write_held -ge 8
}

# have_come NUMBER: of writes to q, whether they have passed or wait.
have_come() {
	local counts
	mapfile -t counts < <(fields q write_ios write_held)
	[ $((counts[0] + counts[1])) -ge "$1" ]
}

io_is_over() {
	wait_for "$PROMPT" test -e "$WAITED"
}

# results NUMBER RESULT: of what waited, once that is over.
results() {
	check "what waited is over" io_is_over
	[ "$(grep -c ": $2\$" "$WAITED")" = "$1" ] || fail "not $1 times $2:"$'\n'"$(cat "$WAITED")"
}

# table_of TARGET DISK: of dm-linear or qos, with limits at which almost all waits.
table_of() {
	case $1 in
	linear) linear_table "$2" ;;
	qos) qos_table "$2" "${SLOW[@]}" ;;
	esac
}

what_waits_goes_to_the_disk_of_its_time() {
	make_disk old memory_backed=1
	make_disk new memory_backed=1
	make_qos q old "${SLOW[@]}"
	io_waits
	check "load" dmsetup reload q --table "$(qos_table new)"
	check "suspend is prompt" takes_at_most "$PROMPT" dmsetup suspend --noflush --nolockfs q
	check "resume" dmsetup resume q
	results 40 ok
	io q write:1M:4K >/dev/null
	make_linear old-disk old && make_linear new-disk new
	check "what waited" io_is_well old-disk verify:0:4K*40
	check "is there only" io_is_well new-disk verify-zero:0:4K*40 verify:1M:4K
}

a_removal_that_is_deferred_happens_at_the_last_close() {
	make_disk d
	make_qos q d "${SLOW[@]}"
	io_waits
	check "remove later" takes_at_most "$PROMPT" dmsetup remove --deferred q
	check "it is there still" dmsetup status q >/dev/null
	check "limits apply" field_is q write_held -gt 0
	check "let it go" dmsetup message q 0 set iops 0
	results 40 ok
	check "it is gone" wait_for "$PROMPT" fails dmsetup info q >/dev/null
	check "nothing holds the module" unload_module "$MODULE"
	load_module "$MODULE"
}

a_table_that_is_refused_changes_nothing() {
	make_disk d
	make_qos q d "${SLOW[@]}"
	io_waits
	check "bad key" fails dmsetup reload q --table "$(qos_table d speed 1)"
	check "bad disk" fails dmsetup reload q --table "0 131072 qos /dev/nowhere 0"
	check "I/O waits" field_is q write_held -gt 0
	check "suspend" takes_at_most "$PROMPT" dmsetup suspend q
	results 40 ok
	check "bad again" fails dmsetup reload q --table "$(qos_table d speed 1)"
	check "resume" dmsetup resume q
	check "limits apply as before" io_waits
	no_limits q
	results 40 ok
}

# after_forced_removal TARGET: errors of who has the device open still.
after_forced_removal() {
	local open
	dmsetup create gone --table "$(table_of "$1" d)" || return
	exec {open}</dev/mapper/gone
	dmsetup remove --force gone 2>/dev/null
	io gone write:0:4K read:0:4K flush discard:0:4K
	exec {open}<&-
	remove_device gone
}

a_forced_removal_fails_what_comes_after() {
	make_disk d discard=1
	same_with_both after_forced_removal
	make_qos q d "${SLOW[@]}"
	io_waits
	dmsetup remove --force q 2>/dev/null
	# What waited went to the disk, as it would have through dm-linear long ago.
	results 40 ok
	check "it goes" takes_at_most "$PROMPT" remove_device q
}

# after_forced_removal_suspended TARGET: what came while it was suspended.
after_forced_removal_suspended() {
	dmsetup create gone --table "$(table_of "$1" d)" && dmsetup suspend gone || return
	io_in_background "$WAITED" gone at-once write:0:4K*2 read:0:4K*2
	wait_for "$PROMPT" pending gone
	dmsetup remove --force gone 2>/dev/null
	io_is_over
	cat "$WAITED"
	remove_device gone
}

# pending NAME: somebody has it open, and has had the time to do I/O.
pending() {
	[ "$(dmsetup info -c --noheadings -o open "$1")" -gt 0 ] && sleep 1
}

a_forced_removal_of_a_suspended_device_fails_what_came() {
	make_disk d
	same_with_both after_forced_removal_suspended
}

# without_disk TARGET KIND: I/O to a disk that is gone, and the removal of the device.
without_disk() {
	local disk
	case $1 in
	null_blk) make_disk d discard=1 && disk=d ;;
	scsi) make_scsi_disk lbpu=1 && disk=$SCSI_DISK ;;
	esac
	dmsetup create gone --table "$(table_of "$2" "$disk")" || return
	case $1 in
	null_blk) echo 0 >"$CONFIGFS/d/power" ;;
	scsi) echo 1 >"/sys/block/$disk/device/delete" ;;
	esac
	io gone write:0:4K read:0:4K flush discard:0:4K zeroout:0:4K
	takes_at_most "$PROMPT" dmsetup suspend gone >/dev/null || echo "suspend failed"
	dmsetup resume gone
	takes_at_most "$PROMPT" dmsetup remove gone >/dev/null || echo "remove failed"
	__case_cleanup
	CASE_AT_EXIT=()
}

a_disk_that_is_gone_fails_as_through_dm_linear() {
	same_with_both without_disk null_blk
	same_with_both without_disk scsi
}

what_waits_for_a_disk_that_goes_fails_with_it() {
	make_disk d
	# Now, for device mapper would take one with the numbers of d for d.
	make_disk e
	make_qos q d "${SLOW[@]}"
	io_waits
	echo 0 >"$CONFIGFS/d/power"
	check "what waited is over" io_is_over
	# Some had been written before.
	check_within "failed" "$(grep -c ": EIO$" "$WAITED")" 8 40
	check "all have ended" [ "$(grep -cE ": (EIO|ok)$" "$WAITED")" = 40 ]
	check "suspend" takes_at_most "$PROMPT" dmsetup suspend q
	check "another disk in its place" dmsetup reload q --table "$(qos_table e)"
	check "resume" dmsetup resume q
	check "I/O goes on" io_is_well q write:0:4K*4
}

the_module_is_kept_by_each_table() {
	make_disk d
	make_linear l d
	check "not in use" unload_module "$MODULE"
	load_module "$MODULE"
	check "a table that is not live" dmsetup reload l --table "$(qos_table d)"
	check "keeps it" fails unload_module "$MODULE"
	dmsetup clear l
	check "cleared" unload_module "$MODULE"
	load_module "$MODULE"
	make_qos q d "${SLOW[@]}"
	check "suspend" dmsetup suspend q
	check "a suspended device keeps it" fails unload_module "$MODULE"
	check "resume" dmsetup resume q
	check "the module is there" module_is_loaded "$MODULE"
}

# mount_qos: /tmp/qos-mount, on q over d, without limits.
mount_qos() {
	make_disk d memory_backed=1
	mke2fs -q -t ext4 /dev/d && make_qos q d || return
	mkdir -p /tmp/qos-mount
	mount /dev/mapper/q /tmp/qos-mount || return
	at_exit "umount /tmp/qos-mount"
}

# dirty: data that would take a minute and more to be written.
dirty() {
	python3 "$HERE/files.py" load /tmp/qos-mount/files 1 100 /tmp/model
	at_exit "no_limits q"
	dmsetup message q 0 set "${SLOW[@]}"
}

# It opens the limits first, so that the file system can be made to write what it has.
suspending_writes_what_a_file_system_has() {
	mount_qos
	dirty
	check "suspend is prompt" takes_at_most "$PROMPT" dmsetup suspend q
	check "nothing waits" field_is q write_held -eq 0
	e2fsck -fn /dev/d >/tmp/fsck 2>&1 || fail "not clean on the disk: $(cat /tmp/fsck)"
	check "resume" dmsetup resume q
	no_limits q
	umount /tmp/qos-mount && mount /dev/mapper/q /tmp/qos-mount
	check "files" python3 "$HERE/files.py" check /tmp/qos-mount/files /tmp/model
}

a_frozen_file_system_is_whole_and_thaws() {
	local pid
	mount_qos
	dirty
	fsfreeze --freeze /tmp/qos-mount &
	pid=$!
	at_exit "no_limits q; wait $pid; fsfreeze --unfreeze /tmp/qos-mount 2>/dev/null || :"
	check "it has to wait" held q write 1
	check "limits off" dmsetup message q 0 set iops 0
	check "frozen" takes_at_most "$PROMPT" wait "$pid"
	e2fsck -fn /dev/d >/tmp/fsck 2>&1 || fail "not clean on the disk: $(cat /tmp/fsck)"
	# Who writes now waits for the thaw, not we.
	dmsetup message q 0 set "${SLOW[@]}"
	check "suspend" takes_at_most "$PROMPT" dmsetup suspend --nolockfs q
	check "load" dmsetup reload q --table "$(qos_table d iops 100)"
	check "resume" dmsetup resume q
	check "thaw" takes_at_most "$PROMPT" fsfreeze --unfreeze /tmp/qos-mount
	check "write" takes_at_most "$PROMPT" touch /tmp/qos-mount/after
	no_limits q
	check "files" python3 "$HERE/files.py" check /tmp/qos-mount/files /tmp/model
}

# use_memory: more than there is for it, twice over, and looks whether it is still what it was.
use_memory() {
	echo "$BASHPID" >/tmp/cgroup/swapping/cgroup.procs
	exec python3 - <<'END'
import mmap
size = 24 << 20
memory = mmap.mmap(-1, size)
for turn in range(2):
    for page in range(0, size, 4096):
        memory[page:page + 8] = (page + turn).to_bytes(8, "little")
    for page in range(0, size, 4096):
        if memory[page:page + 8] != (page + turn).to_bytes(8, "little"):
            raise SystemExit(f"page {page} has changed")
END
}

# What is swapped out, that is: the kernel does not mark what is read back.
swap_out_is_not_held() {
	local pid
	make_disk d memory_backed=1
	make_qos q d
	mkswap /dev/mapper/q >/dev/null && swapon /dev/mapper/q || return
	at_exit "swapoff /dev/mapper/q"
	mkdir -p /tmp/cgroup && mount -t cgroup2 none /tmp/cgroup || return
	at_exit "umount /tmp/cgroup"
	echo +memory >/tmp/cgroup/cgroup.subtree_control && mkdir /tmp/cgroup/swapping || return
	at_exit "wait_for 10 rmdir /tmp/cgroup/swapping"
	echo 16M >/tmp/cgroup/swapping/memory.max
	dmsetup message q 0 set write_iops 1 burst_ms 0
	dmsetup message q 0 reset
	use_memory &
	pid=$!
	check "it swaps" wait_for 60 field_is q write_ios -gt 100
	check "suspend" takes_at_most "$PROMPT" dmsetup suspend q
	check "resume" dmsetup resume q
	check "memory is what it was" wait "$pid"
	check "it was read again" field_is q read_ios -gt 100
	check "nothing waits" [ "$(fields q read_held write_held | xargs)" = "0 0" ]
	check "swap can go" takes_at_most "$PROMPT" swapoff /dev/mapper/q
	CASE_AT_EXIT=("${CASE_AT_EXIT[@]/swapoff*/:}")
}

set_up && io_serves || exit
run_cases what_waits_goes_to_the_disk_of_its_time \
	a_removal_that_is_deferred_happens_at_the_last_close \
	a_table_that_is_refused_changes_nothing a_forced_removal_fails_what_comes_after \
	a_forced_removal_of_a_suspended_device_fails_what_came \
	a_disk_that_is_gone_fails_as_through_dm_linear \
	what_waits_for_a_disk_that_goes_fails_with_it the_module_is_kept_by_each_table \
	suspending_writes_what_a_file_system_has a_frozen_file_system_is_whole_and_thaws \
	swap_out_is_not_held
