# SPDX-License-Identifier: GPL-2.0
"""The status of qos devices as metrics."""

from tooling.metrics import Family

from .limits import BYTES, KEYS, NAME
from .live import DIRECTIONS, Sample

MICROSECONDS = 1e-6


def families_of(samples: dict[str, Sample]) -> list[Family]:
    """Counters, what waits now, limits, reservations."""
    way = ("device", "direction")
    ios = Family("ferrule_qos_ios_total", "I/Os that went to the device below.", way)
    size = Family("ferrule_qos_bytes_total", "Their bytes.", way)
    held = Family("ferrule_qos_held_total", "Bios that had to wait.", way)
    waiting = Family("ferrule_qos_waiting", "Bios that wait now.", way)
    ahead = Family("ferrule_qos_ahead_total", "Urgent bios that passed ahead of a limit.", way)
    debt = Family("ferrule_qos_debt_seconds", "How long until what passed is paid for.", way)
    hold = Family(
        "ferrule_qos_hold_seconds",
        "How long bios waited, since the last reset.",
        (*way, "quantile"),
    )
    most = Family("ferrule_qos_hold_max_seconds", "The longest of that.", way)
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
            for part, quantile in (("p50", "0.5"), ("p99", "0.99")):
                value = number(f"{direction}_hold_{part}_us") * MICROSECONDS
                hold.add(name, direction, quantile, value=value)
            most.add(name, direction, value=number(f"{direction}_hold_max_us") * MICROSECONDS)
        group = sample.status.get("group")
        if group is not None:
            windows.add(name, str(group), value=sample.number("reserve_windows"))
            missed.add(name, str(group), value=sample.number("reserve_missed"))
        of_limits = (key for key in KEYS.values() if key.kind != NAME)
        for family, key in zip(limits, of_limits, strict=True):
            value = sample.one.limits.number(key.name)
            family.add(name, value=value / 1000 if key.name == "burst_ms" else value)
    return [ios, size, held, waiting, ahead, debt, hold, most, windows, missed, *limits]


def limit_unit(key: str) -> str:
    """The name of a limit with its unit in it, as Prometheus has it."""
    if key == "burst_ms":
        return "burst_seconds"
    if KEYS[key].kind == BYTES:
        return key.replace("bps", "bytes_per_second") if "bps" in key else f"{key}_bytes"
    return key.replace("iops", "ios_per_second")
