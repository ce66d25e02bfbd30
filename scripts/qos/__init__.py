# SPDX-License-Identifier: GPL-2.0
"""I/O limits of block devices, by dm-qos: scripts/qosctl."""
