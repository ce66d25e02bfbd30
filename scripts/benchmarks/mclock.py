# SPDX-License-Identifier: GPL-2.0
"""The scheduler of dm-qos groups by itself, on the host: a simulation of many tenants.

selftests/unit/src/bin/mclock-sim.rs says what is simulated and what the figures mean.
"""

import json
import os
import subprocess

import vm

from .results import BenchmarkError, Goal, Results

UNIT = vm.ROOT / "selftests" / "unit"
TARGET = vm.ROOT / "out" / "unit"
MEMBERS = (1_000, 10_000)
SECONDS = 10
SEEDS = (1, 2, 3)
# What the simulation prints, its unit, what is made of the seeds' figures (None: their median), and
# the goal.
FIGURES = {
    "ns_per_decision": ("ns", None, None),
    "decisions_per_s": ("1/s", None, None),
    "windows": ("number", sum, None),
    "missed": ("number", sum, Goal("ferrule", "<=", 0)),
    "windows_recounted": ("number", sum, None),
    "missed_recounted": ("number", sum, Goal("ferrule", "<=", 0)),
    "share_error_mean": ("fraction", None, None),
    "share_error_max": ("fraction", max, Goal("ferrule", "<=", 0.02)),
}


def run(results: Results) -> None:
    """Build the simulation and run it for each number of members."""
    if not (UNIT / "src" / "bin" / "mclock-sim.rs").exists():
        raise BenchmarkError("selftests/unit has no mclock-sim")
    results.say("building the simulation")
    command = ["cargo", "build", "--quiet", "--release", "--bin", "mclock-sim"]
    command += ["--manifest-path", str(UNIT / "Cargo.toml"), "--target-dir", str(TARGET)]
    environment = {k: v for k, v in os.environ.items() if k not in ("RUSTC", "MAKEFLAGS")}
    subprocess.run(command, env=environment, check=True)
    simulation = TARGET / "release" / "mclock-sim"
    for members in MEMBERS:
        samples: dict[str, list[float]] = {name: [] for name in FIGURES}
        for seed in SEEDS:
            results.say(f"{members:,} members, {SECONDS} s, seed {seed}")
            command = [str(simulation), str(members), str(SECONDS), str(seed)]
            output = subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout
            seen = json.loads(output)
            for name, values in samples.items():
                values.append(seen[name])
        for name, (unit, combine, goal) in FIGURES.items():
            values = [combine(samples[name])] if combine else samples[name]
            results.add(f"{members:,} members: {name}", unit, values, goal=goal)
