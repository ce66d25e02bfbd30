# SPDX-License-Identifier: GPL-2.0
"""The benchmarks of `make bench`: a module each, with a docstring and run(results)."""

import pkgutil

# What is in the package and is no benchmark.
SHARED = {"lab", "results"}


def names() -> list[str]:
    """All benchmarks."""
    return sorted({module.name for module in pkgutil.iter_modules(__path__)} - SHARED)
