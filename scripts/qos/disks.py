# SPDX-License-Identifier: GPL-2.0
"""What a disk can do, measured with fio, and the keys to write down for it."""

import dataclasses
import json
import os
import subprocess

from .moves import QosError

# What is run: name, pattern, size of an I/O, depth.
RUNS = {
    "read_iops": ("randread", "4k", 32),
    "read_bps": ("read", "1M", 8),
    "write_iops": ("randwrite", "4k", 32),
    "write_bps": ("write", "1M", 8),
    # How long an I/O takes when it is alone.
    "read_alone": ("randread", "4k", 1),
}
# A capacity is for what a disk does all the time, not at its best.
PART = 0.9


@dataclasses.dataclass(frozen=True)
class Measured:
    """Of a run."""

    iops: float
    bps: float
    mean_us: float


def command_of(path: str, run: str, seconds: float) -> list[str]:
    """fio's."""
    pattern, size, depth = RUNS[run]
    return [
        "fio",
        f"--name={run}",
        # A ":" would end the name.
        f"--filename={path.replace(':', chr(92) + ':')}",
        f"--rw={pattern}",
        f"--bs={size}",
        f"--iodepth={depth}",
        "--direct=1",
        "--ioengine=libaio",
        "--time_based",
        f"--runtime={seconds:g}",
        "--ramp_time=1",
        "--group_reporting",
        "--output-format=json",
        *([] if "write" in pattern else ["--readonly"]),
    ]


def measure_run(path: str, run: str, seconds: float) -> Measured:
    """One of them."""
    try:
        done = subprocess.run(
            command_of(path, run, seconds),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError:
        raise QosError("there is no fio here (Debian: fio)") from None
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()
        raise QosError(f"fio: {said[-1] if said else done.returncode}")
    return parse_fio(done.stdout, "write" if "write" in RUNS[run][0] else "read")


def parse_fio(text: str, way: str) -> Measured:
    """fio may say something before its JSON."""
    try:
        job = json.loads(text[text.index("{") :])["jobs"][0][way]
        return Measured(job["iops"], job["bw_bytes"], job["clat_ns"]["mean"] / 1000)
    except (ValueError, KeyError, IndexError) as error:
        raise QosError(f"fio said something else: {error!r}") from None


def check_writable(path: str) -> None:
    """Nothing may be written to what somebody uses."""
    try:
        os.close(os.open(path, os.O_RDWR | os.O_EXCL))
    except OSError as error:
        raise QosError(f"{path} cannot be written to: {error.strerror}") from None


def keys_of(found: dict[str, Measured]) -> dict[str, int]:
    """Capacities of a group for this disk: the least of what it did, and some less."""
    keys = {}
    for key, field in (("iops", "iops"), ("bps", "bps")):
        values = [getattr(m, field) for run, m in found.items() if run.endswith(f"_{key}")]
        if values:
            keys[f"group_{key}"] = round_down(min(values) * PART)
    alone, busy = found.get("read_alone"), found.get("read_iops")
    if alone and busy:
        # Twice what keeps the disk busy, by Little's law.
        keys["group_depth"] = max(2, round(2 * busy.iops * alone.mean_us / 1e6))
    return keys


def round_down(number: float) -> int:
    """To two digits: the rest is noise."""
    unit = 10 ** max(0, len(str(int(number))) - 2)
    return max(1, int(number) // unit * unit)
