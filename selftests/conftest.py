# SPDX-License-Identifier: GPL-2.0
"""What is chosen of the tests that pytest runs, by `make check T=PATTERN`."""

import os
import re

import pytest

# As scripts/check.py prints them.
PREFIXES = {"host": ("host: ", "host/"), "tools": ("unit/",)}


def pytest_configure(config):
    """Our markers."""
    config.addinivalue_line("markers", "ours(reason): makes no sense of the C driver (PEER=c)")


def pytest_collection_modifyitems(config, items):
    """Those whose name has what FERRULE_MATCH says."""
    match = os.environ.get("FERRULE_MATCH", "")

    def is_chosen(item):
        prefixes = PREFIXES.get(item.path.parent.name, ("",))
        return any(re.search(match, f"{p}{item.path.stem}/{item.name}") for p in prefixes)

    chosen = [item for item in items if is_chosen(item)]
    config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
    items[:] = chosen
    if os.environ.get("FERRULE_PEER"):
        for item in items:
            for mark in item.iter_markers("ours"):
                item.add_marker(pytest.mark.skip(reason=f"only ours: {mark.args[0]}"))
