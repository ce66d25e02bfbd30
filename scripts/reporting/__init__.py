# SPDX-License-Identifier: GPL-2.0
"""The page that `make bench` writes, see report.py."""
