# SPDX-License-Identifier: GPL-2.0
"""What balloonctl and qosctl share."""
