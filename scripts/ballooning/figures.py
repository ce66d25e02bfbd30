# SPDX-License-Identifier: GPL-2.0
"""VMs and their balloons as metrics."""

from tooling.metrics import Family

SIZES = {
    "maximum": "All memory of the VM.",
    "actual": "What its balloon leaves to the guest.",
    "target": "What it was last asked to have.",
    "resident": "What its emulator holds of the host's memory.",
}
STATISTICS = {
    "available-memory": ("available_bytes", "What the guest could use at once."),
    "free-memory": ("free_bytes", "What is free in the guest."),
    "swap-in": ("swap_in_bytes_total", "What the guest has read from swap."),
    "swap-out": ("swap_out_bytes_total", "What the guest has written to swap."),
    "major-faults": ("major_faults_total", "Page faults of the guest that had to read."),
}
DECISIONS = {
    "need": "What the guest cannot do without.",
    "least": "What it is not to be without.",
    "fair": "Its fair share.",
}


def families_of(rows: list[dict]) -> list[Family]:
    """Of what `balloonctl status --json` prints."""
    up = Family("ferrule_balloon_up", "Whether the VM could be asked.", ("vm",))
    read = Family("ferrule_balloon_disk_read_bytes_total", "What it read from its disks.", ("vm",))
    age = Family("ferrule_balloon_statistics_age_seconds", "Of what the guest says.", ("vm",))
    sizes = {
        key: Family(f"ferrule_balloon_{key}_bytes", text, ("vm",)) for key, text in SIZES.items()
    }
    statistics = {
        key: Family(f"ferrule_balloon_{name}", text, ("vm",))
        for key, (name, text) in STATISTICS.items()
    }
    for row in rows:
        name = row["vm"]
        up.add(name, value=0 if "error" in row else 1)
        if "error" in row:
            continue
        for key, family in sizes.items():
            family.add(name, value=row[key])
        for key, family in statistics.items():
            family.add(name, value=row["statistics"].get(key))
        age.add(name, value=row["statistics"]["age"])
        read.add(name, value=row["disk_read"])
    return [up, age, read, *sizes.values(), *statistics.values()]


def families_of_round(report: dict, rows: list[dict]) -> list[Family]:
    """Of a round of `balloonctl auto`: all that status has, and what was decided."""
    budget = Family("ferrule_balloon_budget_bytes", "For all VMs together.")
    budget.add(value=report["budget"])
    missing = Family("ferrule_balloon_missing_bytes", "What the VMs need beyond the budget.")
    missing.add(value=report["missing"])
    problems = Family("ferrule_balloon_problems", "Of how many VMs something is wrong.")
    problems.add(value=len(report["problems"]))
    families = {
        key: Family(f"ferrule_balloon_{key}_bytes", text, ("vm",))
        for key, text in DECISIONS.items()
    }
    thrashes = Family("ferrule_balloon_thrashing", "Reads again what it had to drop.", ("vm",))
    for vm in report["vms"]:
        for key, family in families.items():
            family.add(vm["name"], value=vm[key])
        thrashes.add(vm["name"], value=int(vm["thrashes"]))
    return [*families_of(rows), budget, missing, problems, thrashes, *families.values()]
