# SPDX-License-Identifier: GPL-2.0
"""The stack of production: a thin pool, iSCSI over two portals, multipath, qos, a file system with
a database, LVM. What `make demo-stack` shows is asserted here, step by step; see stack_lab.py.
"""

import contextlib

import pytest
import stack_lab

pytestmark = pytest.mark.ours("all of our own modules")


@pytest.fixture(name="stack", scope="module")
def stack_fixture(boot_for_module):
    """The two guests, with nothing on top of the storage yet."""

    def boot(_what, options):
        return boot_for_module(
            udev=options.udev, memory=options.memory, qemu_opts=options.qemu_opts
        )

    stack = stack_lab.Stack(boot, stack_lab.Rows())
    with contextlib.closing(stack):
        yield stack


@pytest.fixture(name="loaded", scope="module")
def loaded_fixture(stack):
    """Both loads run."""
    for step in stack_lab.SET_UP:
        stack.run(step)
    assert_rows(stack)
    return stack


def assert_rows(stack) -> None:
    """What has been reported until now."""
    rows = stack.report.take()
    assert rows
    assert not [row for row in rows if not row.good], rows


@pytest.mark.parametrize("step", stack_lab.STEPS, ids=lambda step: step.__name__)
def test_stack(loaded, step):
    """One after the other; the last one ends it all, and looks at the data."""
    loaded.run(step)
    assert_rows(loaded)
