# SPDX-License-Identifier: GPL-2.0
"""Memory balloons of virtual machines, driven from the host: scripts/balloonctl."""
