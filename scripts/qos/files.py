# SPDX-License-Identifier: GPL-2.0
"""Files in /etc/qos.d, one a device, NAME.conf: what is to be attached to what.

    # comments
    attach over
    device /dev/disk/by-id/wwn-0x5000c500a0b1c2d3
    iops 500
    bps 8M

`attach` is "over" (NAME is a device of its own over `device`) or "into" (NAME is a mapped device
that somebody else makes; no `device`). All else are keys and values of a qos line.
"""

import contextlib
import dataclasses
import os
import pathlib

from tooling.metrics import replace_file

from .limits import Limits, LimitsError, show_value
from .mapper import node_of, sysfs
from .moves import Attached, QosError

DIRECTORY = pathlib.Path("/etc/qos.d")
ENDING = ".conf"
# Links that stay the same, the best first.
LINKS = ("by-id", "by-partuuid", "by-path")


@dataclasses.dataclass(frozen=True)
class Saved:
    """What a file says."""

    name: str
    how: str
    limits: Limits
    device: str | None = None

    def text(self) -> str:
        """As it is in the file."""
        lines = ["# Written by qosctl save; the format is in qosctl(1).", f"attach {self.how}"]
        lines += [f"device {self.device}"] if self.device else []
        lines += [f"{key} {show_value(key, value)}" for key, value in self.limits.values.items()]
        return "\n".join(lines) + "\n"


def parse(name: str, text: str) -> Saved:
    """What a file says; a mistake is named with its line."""
    found: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        # A comment is a line: names may have a "#".
        words = line.split(maxsplit=1)
        if not words or words[0].startswith("#"):
            continue
        if len(words) != 2:
            raise QosError(f"line {number}: {words[0]} has no value")
        key, value = words[0], words[1].strip()
        if key in found:
            raise QosError(f"line {number}: {key} is there twice")
        found[key] = value
    how, device = found.pop("attach", None), found.pop("device", None)
    if how not in ("over", "into"):
        raise QosError("it has to say: attach over, or: attach into")
    if (how == "over") != (device is not None):
        raise QosError(
            "attach over needs a device" if how == "over" else "attach into takes no device"
        )
    try:
        return Saved(name, how, Limits.of(found), device)
    except LimitsError as error:
        raise QosError(str(error)) from None


def path_of(directory: pathlib.Path, name: str) -> pathlib.Path:
    """A device's file."""
    return directory / f"{name}{ENDING}"


def names_in(directory: pathlib.Path) -> list[str]:
    """Of all files. No directory is as good as an empty one."""
    try:
        return sorted(path.name.removesuffix(ENDING) for path in directory.glob(f"*{ENDING}"))
    except OSError as error:
        raise QosError(f"{directory}: {error.strerror}") from None


def read(directory: pathlib.Path, name: str) -> Saved:
    """One file."""
    path = path_of(directory, name)
    try:
        return parse(name, path.read_text(encoding="utf-8", errors="surrogateescape"))
    except OSError as error:
        raise QosError(f"{path}: {error.strerror}") from None
    except QosError as error:
        raise QosError(f"{path}: {error}") from None


def write(directory: pathlib.Path, saved: Saved) -> pathlib.Path:
    """All of it or nothing."""
    path = path_of(directory, saved.name)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        replace_file(path, saved.text())
    except OSError as error:
        raise QosError(f"{path}: {error.strerror}") from None
    return path


def saved_of(one: Attached, path: str | None = None) -> Saved:
    """What is to be written of a qos device."""
    if one.how == "by hand":
        raise QosError(f"{one.name} was not made by qosctl: what made it has to make it again")
    if one.how == "into":
        return Saved(one.name, "into", one.limits)
    return Saved(one.name, "over", one.limits, stable_path(one.below, path))


def stable_path(number: str, path: str | None, disk: pathlib.Path | None = None) -> str:
    """A device by something that stays: its own link, else what the user said, else its name."""
    disk = disk or pathlib.Path("/dev/disk")
    for kind in LINKS:
        links = sorted((disk / kind).glob("*"), key=lambda link: (len(link.name), link.name))
        for link in links:
            with contextlib.suppress(OSError):
                found = link.stat().st_rdev
                if f"{os.major(found)}:{os.minor(found)}" == number:
                    return str(link)
    if path:
        return path
    with contextlib.suppress(OSError):
        name = (sysfs(number) / "dm/name").read_text(encoding="utf-8")
        return f"/dev/mapper/{name.strip()}"
    return f"/dev/{node_of(number)}"
