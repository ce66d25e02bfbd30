# SPDX-License-Identifier: GPL-2.0
"""Unit tests of the host tools: no guest, no device."""

import os
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "scripts"))

from hypothesis import settings  # noqa: E402

# The machine may be busy, and the checkout is not the place for a database of examples. They are
# the same each time, so that a test that fails does so for whoever runs it; others with
# HYPOTHESIS_PROFILE=random.
settings.register_profile(
    "ferrule", deadline=None, database=None, print_blob=True, derandomize=True
)
settings.register_profile("random", settings.get_profile("ferrule"), derandomize=False)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ferrule"))
