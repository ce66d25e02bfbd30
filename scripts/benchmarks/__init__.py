# SPDX-License-Identifier: GPL-2.0
"""The benchmarks of `make bench`: a module each, with a docstring and run(results)."""

import pkgutil

# What is in the package and is no benchmark.
SHARED = {"blind", "guests", "lab", "results"}
# What is part of another one, and can be run alone.
PARTS = {"readers"}


def names() -> list[str]:
    """All benchmarks."""
    return sorted({module.name for module in pkgutil.iter_modules(__path__)} - SHARED - PARTS)
