# SPDX-License-Identifier: GPL-2.0
"""Sizes of memory as people write them."""

import re
import reprlib

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30
PAGE = 4096
UNITS = {"": 1, "K": KIB, "M": MIB, "G": GIB, "T": 1 << 40}
# QEMU takes 63 bits.
MOST = 1 << 63
SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", re.IGNORECASE)


def parse_size(text: str) -> int:
    """Bytes: "512M", "1.5G", "536870912". Units are binary."""
    match = SIZE.fullmatch(text.strip())
    size = float(match[1]) * UNITS[match[2].upper()] if match else 0
    if not 1 <= size < MOST:
        raise ValueError(f"{reprlib.repr(text)} is not a size: 512M, 1.5G or a number of bytes")
    return int(size)


def in_words(size: int) -> str:
    """For who may have meant another unit."""
    return f"{size} bytes" if size < MIB else show_size(size)


def sensible(maximum: int) -> int:
    """With less than this no guest of that memory is likely to work."""
    return max(min(64 * MIB, maximum // 2), maximum // 16)


def show_size(size: int | None) -> str:
    """Such as "512M" or "1.5G": what parse_size takes, as exact as a person wants it."""
    if size is None:
        return "-"
    # MiB up to where they get too many, as people write the sizes of machines.
    for unit, bound in (("M", 10 * GIB), ("G", 1 << 44), ("T", None)):
        if bound is None or size < bound:
            return f"{size / UNITS[unit]:.1f}".rstrip("0").rstrip(".") + unit
    raise AssertionError
