# SPDX-License-Identifier: GPL-2.0
"""A guest that fills memory when it is freed, and relies on what it has filled it with."""

import pytest
import vm
from balloonguest import report_after
from smallguest import PORT, small_guests

MEMORY = 512
# What free memory is filled with, and what is negotiated for it with a host that has PAGE_POISON.
ZEROED, POISONED = "init_on_free=1", "page_poison=1"
# MUST_TELL_HOST, STATS, DEFLATE_ON_OOM, FREE_PAGE_HINT, PAGE_POISON, REPORTING
POISON, REPORTING = 4, 5


# Debian's cloud kernels cannot poison; its general ones can.
WAYS = [ZEROED, POISONED] if vm.has_option("PAGE_POISONING") else [ZEROED]


@pytest.fixture(name="guest", scope="function" if vm.PEER else "module", params=WAYS)
def guest_fixture(request):
    """A guest for each way of filling memory, without a device."""
    with small_guests(f"balloon-{request.param.partition('=')[0]}") as boot:
        guest = boot(qemu_opts=PORT, append=request.param, memory=MEMORY)
        guest.filled_with = request.param
        guest.load()
        yield guest


@pytest.fixture(name="plug")
def plug_fixture(guest):
    """plug(poison): plug a device in; it is taken out in the end."""
    yield lambda poison: guest.plug(**{"free-page-reporting": True, "page-poison": poison})
    guest.unplug()


def use_all_memory(guest):
    """Have all memory allocated, whose contents the kernel then looks at, and keep data in it."""
    guest.sh(
        "dd if=/dev/urandom of=/tmp/1 bs=1M count=8 2>/dev/null; cat /tmp/1 >/tmp/2;"
        "for i in $(seq 44); do cat /tmp/1; done >/tmp/3;"
        "tail -c 8388608 /tmp/3 | cmp - /tmp/2 || exit; rm /tmp/1 /tmp/2 /tmp/3"
    )
    assert not [line for line in guest.log_lines() if "pagealloc:" in line]


@pytest.mark.parametrize("has_poison", [True, False], ids=["page-poison", "no-page-poison"])
def test_negotiates_what_keeps_memory_as_it_was_filled(guest, plug, has_poison):
    """And all memory is, when it comes back from the host: what was reported, blocks and pages."""
    plug(has_poison)
    features = guest.features()
    # Without it the host cannot know, so it must not discard what is free.
    assert features[POISON] == features[REPORTING] == str(int(has_poison))
    if has_poison:
        report_after(guest, 10)
    use_all_memory(guest)
    guest.resize(MEMORY // 2)
    if not vm.PEER:
        blocks = guest.sh("cat /sys/kernel/debug/virtio_balloon_rs/*/blocks").splitlines()
        taken_by_blocks = int(blocks[0].removeprefix("pages ")) < MEMORY // 4 * 256
        # A host that fills memory with anything else discards nothing that is only reported.
        assert taken_by_blocks == (has_poison and guest.filled_with == ZEROED)
    for size in (MEMORY * 3 // 4, 301):
        guest.resize(size)
    guest.resize(MEMORY)
    use_all_memory(guest)
