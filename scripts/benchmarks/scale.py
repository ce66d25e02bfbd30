# SPDX-License-Identifier: GPL-2.0
"""Many devices: what each costs in memory, threads and time, beside dm-linear."""

import time

import vm

from .lab import Lab
from .results import Goal, Results

DEVICES = 1000
ROUNDS = 5
SECTORS = 2048
LINEAR = "dm-linear"
VARIANTS = {
    LINEAR: "linear {disk} 0",
    "qos: iops": "qos {disk} 0 2 iops 1000",
    "qos: in one group": "qos {disk} 0 6 group g group_iops 100000 weight 10",
}


class Many:
    """A thousand of one kind, in a guest."""

    def __init__(self, lab: Lab):
        self.lab = lab
        self.disk = lab.disk("raw")

    def names(self) -> str:
        """As the shell lists them."""
        return f"$(seq -f many%g {DEVICES})"

    def memory(self) -> int:
        """What is in use, in KiB, once all that can go has gone."""
        text = self.lab.shell(
            "sync; echo 3 >/proc/sys/vm/drop_caches; sleep 0.5; cat /proc/meminfo", 300
        )
        values = {line.split(":")[0]: int(line.split()[1]) for line in text.splitlines()}
        return values["MemTotal"] - values["MemFree"]

    def threads(self) -> int:
        """Of the kernel and of all processes."""
        return int(self.lab.shell("ls -d /proc/[0-9]*/task/[0-9]* | wc -l", 300))

    def create(self, line: str) -> float:
        """All of them, by one dmsetup; in seconds."""
        table = line.format(disk=self.disk)
        self.lab.shell(
            f"for name in {self.names()}; do"
            f' echo -n "$name,,,rw,0 {SECTORS} {table};"; done >/run/many',
            300,
        )
        started = time.monotonic()
        self.lab.shell('dmsetup create --concise "$(sed s/.$// /run/many)"', 900)
        return time.monotonic() - started

    def remove(self) -> float:
        """All of them; in seconds."""
        started = time.monotonic()
        self.lab.shell(f"dmsetup remove --retry {self.names()}", 900)
        return time.monotonic() - started


def run(results: Results) -> None:
    """In turn, so that what else the machine does is the same for all."""
    seen: dict[str, dict[str, list[float]]] = {
        name: {"memory": [], "threads": [], "create": [], "remove": []} for name in VARIANTS
    }
    with results.guest(f"{DEVICES:,} devices", vm.Options(memory="2G")) as guest:
        many = Many(Lab(guest))
        for turn in range(ROUNDS):
            results.say(f"round {turn + 1} of {ROUNDS}")
            for name, line in VARIANTS.items():
                memory, threads = many.memory(), many.threads()
                create = many.create(line)
                figures = {
                    "memory": (many.memory() - memory) / DEVICES,
                    "threads": (many.threads() - threads) / DEVICES,
                    "create": 1e3 * create / DEVICES,
                    "remove": 1e3 * many.remove() / DEVICES,
                }
                # The first one warms up.
                for figure, value in figures.items():
                    if turn:
                        seen[name][figure].append(value)
    units = {"memory": "KiB", "threads": "number", "create": "ms", "remove": "ms"}
    for name in list(VARIANTS)[1:]:
        for figure, unit in units.items():
            results.add(
                f"{figure} a device: {name}",
                unit,
                seen[name][figure],
                peer=seen[LINEAR][figure],
                peer_name=LINEAR,
                goal=Goal("ratio", "<=", 1.2),
                paired=True,
                better="less",
            )
