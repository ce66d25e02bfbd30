# SPDX-License-Identifier: GPL-2.0
"""The benchmarks of `make bench`: a module each, with a docstring and run(results)."""
