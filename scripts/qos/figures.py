# SPDX-License-Identifier: GPL-2.0
"""The status of qos devices as metrics."""

from tooling.metrics import Family, Histogram

from .limits import BYTES, KEYS, NAME
from .live import DIRECTIONS, Held, Sample

MICROSECONDS = 1e-6
# The module's buckets end at powers of two. These are from 128 microseconds to 17 seconds.
HOLD_BOUNDS = [(1 << power) * MICROSECONDS for power in range(7, 25)]


def families_of(
    samples: dict[str, Sample], holds: dict[str, dict[str, Held]]
) -> list[Family | Histogram]:
    """Counters, what waits now, limits, reservations."""
    way = ("device", "direction")
    ios = Family("ferrule_qos_ios_total", "I/Os that went to the device below.", way)
    size = Family("ferrule_qos_bytes_total", "Their bytes.", way)
    held = Family("ferrule_qos_held_ios_total", "I/Os that had to wait.", way)
    waiting = Family("ferrule_qos_waiting_ios", "I/Os that wait now.", way)
    ahead = Family("ferrule_qos_ahead_ios_total", "Urgent I/Os that passed ahead of a limit.", way)
    debt = Family("ferrule_qos_debt_seconds", "How long until what passed is paid for.", way)
    hold = Histogram("ferrule_qos_hold_seconds", "How long I/Os waited.", way, HOLD_BOUNDS)
    windows = Family("ferrule_qos_reserve_windows_total", "Times looked at.", ("device", "group"))
    missed = Family(
        "ferrule_qos_reserve_missed_total",
        "In how many of those the reservation was not met.",
        ("device", "group"),
    )
    limits = [
        Family(
            f"ferrule_qos_limit_{limit_unit(key.name)}",
            f"The key {key.name}: {key.text}; 0 is none.",
            ("device",),
        )
        for key in KEYS.values()
        if key.kind != NAME
    ]
    for name, sample in samples.items():
        for direction in DIRECTIONS:
            number = sample.number
            ios.add(name, direction, value=number(f"{direction}_ios"))
            size.add(name, direction, value=number(f"{direction}_bytes"))
            held.add(name, direction, value=number(f"{direction}_held_total"))
            waiting.add(name, direction, value=number(f"{direction}_held"))
            ahead.add(name, direction, value=number(f"{direction}_ahead_ios"))
            debt.add(name, direction, value=number(f"{direction}_debt_us") * MICROSECONDS)
        for direction, counts in holds.get(name, {}).items():
            seconds = [(low * MICROSECONDS, high * MICROSECONDS, n) for low, high, n in counts]
            hold.add(name, direction, counts=seconds)
        if group := sample.one.limits.values.get("group"):
            windows.add(name, group, value=sample.number("reserve_windows"))
            missed.add(name, group, value=sample.number("reserve_missed"))
        of_limits = (key for key in KEYS.values() if key.kind != NAME)
        for family, key in zip(limits, of_limits, strict=True):
            value = sample.one.limits.number(key.name)
            family.add(name, value=value / 1000 if key.name == "burst_ms" else value)
    return [ios, size, held, waiting, ahead, debt, hold, windows, missed, *limits]


def limit_unit(key: str) -> str:
    """The name of a limit with its unit in it, as Prometheus has it."""
    if key == "burst_ms":
        return "burst_seconds"
    if KEYS[key].kind == BYTES:
        return key.replace("bps", "bytes_per_second") if "bps" in key else f"{key}_bytes"
    return key.replace("iops", "ios_per_second")
