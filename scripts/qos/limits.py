# SPDX-License-Identifier: GPL-2.0
"""The keys of a qos line, as Documentation/dm-qos.rst has them, and lines made of them."""

import dataclasses
import re

from tooling.sizes import UNITS

from .mapper import Line

COUNT, BYTES, NAME = "N", "SIZE", "NAME"


class LimitsError(ValueError):
    """What is wrong with a key or its value."""


@dataclasses.dataclass(frozen=True)
class Key:
    """A key: what its value is, and what for."""

    name: str
    kind: str
    text: str
    # Its value when nothing is said.
    default: str = "0"

    @property
    def option(self) -> str:
        """On the command line."""
        return f"--{self.name.replace('_', '-')}"


KEYS = {
    key.name: key
    for key in (
        Key("iops", COUNT, "I/Os per second"),
        Key("read_iops", COUNT, "reads per second"),
        Key("write_iops", COUNT, "writes per second"),
        Key("bps", BYTES, "bytes per second"),
        Key("read_bps", BYTES, "bytes read per second"),
        Key("write_bps", BYTES, "bytes written per second"),
        Key("burst_ms", COUNT, "credit of an idle device, as time at its limit", "10"),
        Key("io_size", BYTES, "so many bytes count as one I/O"),
        Key("group", NAME, "share a capacity with the other devices of that name", ""),
        Key("reserve_iops", COUNT, "I/Os per second that it gets at least"),
        Key("reserve_bps", BYTES, "bytes per second that it gets at least"),
        Key("weight", COUNT, "share of what is left over (100)", "100"),
        Key("group_iops", COUNT, "the group's capacity: I/Os per second"),
        Key("group_bps", BYTES, "the group's capacity: bytes per second"),
        Key("group_depth", COUNT, "how many of the group's I/Os may be in flight"),
    )
}
# Those that a message cannot change.
BY_TABLE = {"group"}
# Those that need a group.
OF_GROUPS = {"reserve_iops", "reserve_bps", "weight", "group_iops", "group_bps", "group_depth"}


def parse_value(key: str, text: str) -> str:
    """A value as the kernel takes it. Of keys that are not known here the kernel knows more."""
    kind = KEYS[key].kind if key in KEYS else None
    if key in KEYS and text == KEYS[key].default:
        return text
    if kind == NAME or kind is None:
        if not re.fullmatch(r"[A-Za-z0-9_.:@+/-]{1,63}", text):
            raise LimitsError(f"{key}: {text!r}: names have up to 63 letters, digits and _-.:@+/")
        return text
    pattern = r"(\d{1,19})([KMGT]?)(?:i?B)?" if kind == BYTES else r"(\d{1,19})()"
    match = re.fullmatch(pattern, text, re.ASCII | re.IGNORECASE)
    if not match:
        raise LimitsError(
            f"{key}: {text!r} is no {'size: 512K, 8M' if kind == BYTES else 'number'}"
        )
    return str(int(match[1]) * UNITS[match[2].upper()])


@dataclasses.dataclass(frozen=True)
class Limits:
    """Keys and values, in the order of KEYS; without those that say nothing."""

    values: dict[str, str]

    @classmethod
    def of(cls, values: dict[str, str]) -> "Limits":
        """Checked, and in order."""
        known = [key for key in KEYS if key in values]
        others = [key for key in values if key not in KEYS]
        for key in others:
            if not re.fullmatch(r"[a-z][a-z0-9_]*", key):
                raise LimitsError(f"{key!r} is no key")
        parsed = {key: parse_value(key, values[key]) for key in (*known, *others)}
        return cls(
            {k: v for k, v in parsed.items() if k not in KEYS or v not in ("", KEYS[k].default)}
        )

    def changed(self, values: dict[str, str]) -> "Limits":
        """The same but for these. Who leaves its group leaves what it has of it."""
        new = {**self.values, **values}
        if values.get("group") == "":
            new = {key: value for key, value in new.items() if key not in OF_GROUPS - set(values)}
        return Limits.of(new)

    def difference(self, wanted: "Limits") -> dict[str, str]:
        """What is to be set so that they become the wanted ones."""
        keys = [*wanted.values, *(key for key in self.values if key not in wanted.values)]
        new = {k: wanted.values.get(k, KEYS[k].default if k in KEYS else "0") for k in keys}
        return {key: value for key, value in new.items() if value != self.values.get(key)}

    def words(self) -> str:
        """As in a table."""
        return " ".join(f"{key} {value}" for key, value in self.values.items())

    def shown(self) -> str:
        """For people: sizes with a suffix."""
        return " ".join(f"{key} {show_value(key, value)}" for key, value in self.values.items())

    def number(self, key: str) -> int:
        """A value; 0 for none."""
        return int(self.values.get(key, KEYS[key].default) or 0)


def show_value(key: str, value: str) -> str:
    """8388608 as 8M, if it is so many bytes."""
    if key not in KEYS or KEYS[key].kind != BYTES:
        return value
    number = int(value)
    for suffix, unit in reversed(UNITS.items()):
        if number and number % unit == 0:
            return f"{number // unit}{suffix}"
    return value


def make_line(length: int, device: str, limits: Limits, offset: int = 0, start: int = 0) -> Line:
    """So much of a device, from an offset on, for a table in which it begins there."""
    words = limits.words()
    count = len(words.split())
    arguments = f"{device} {offset}" + (f" {count} {words}" if count else "")
    return Line(start, length, "qos", arguments)


def parse_line(line: Line) -> tuple[str, int, Limits]:
    """Device, offset and limits of a qos line."""
    device, offset, *words = line.arguments.split()
    words = words[1:]
    return device, int(offset), Limits(dict(zip(words[::2], words[1::2], strict=True)))


def parse_status(line: Line) -> dict[str, int | str]:
    """The fields of `dmsetup status`."""
    fields = dict(word.split("=", 1) for word in line.arguments.split() if "=" in word)
    return {key: int(value) if value.isdecimal() else value for key, value in fields.items()}
