# SPDX-License-Identifier: GPL-2.0
"""What scripts/soak.py counts."""

import soak


def test_counts_what_scripts_have_done():
    """Each of them once, and a fuzzer's operations as it says in the end."""
    lines = [
        "# did: 3 tables",
        "# 1000 operations in 12 s, 1904 places reached",
        "# 2000 operations in 25 s, 1914 places reached",
        "# did: 4 tables",
        "# did: 5 looks",
    ]
    assert soak.done_by(lines) == {"tables": 7, "looks": 5, "operations": 2000}
    assert not soak.done_by(["ok 1 a_case"])
