# SPDX-License-Identifier: GPL-2.0
"""What benchmarks do in a guest: disks, devices over them, control groups, fio."""

import json

import vm

# All I/O is that of this control group, as a service's would be. The root group, whose I/O the
# kernel does not account for, is no place for a workload.
CGROUP = "/sys/fs/cgroup/bench"
JOB_FILE = "/run/bench.fio"
OUTPUT = "/run/bench.json"


class Lab:
    """A guest with null_blk disks and the dm-qos module.

    `in_cgroup`: fio runs in a control group. Otherwise in the root group, where the kernel looks up
    nothing of the group for each device that an I/O passes.
    """

    def __init__(self, guest: vm.Guest, in_cgroup: bool = True):
        self.guest = guest
        self.procs = f"{CGROUP}/cgroup.procs" if in_cgroup else "/dev/null"
        # udev would read from each new device, and later on take time from what is measured. It
        # goes; dmsetup makes the nodes.
        self.shell(
            "udevadm control --exit 2>/dev/null\n"
            "modprobe dm-mod && modprobe null_blk nr_devices=0 || exit\n"
            "config=/sys/kernel/config\n"
            "mountpoint -q $config || mount -t configfs none $config || exit\n"
            "insmod $FERRULE_MODULES/dm-qos/dm-qos.ko || exit\n"
            "echo +io >/sys/fs/cgroup/cgroup.subtree_control\n"
        )
        self.cgroup(CGROUP)

    def shell(self, script: str, timeout: float = 120) -> str:
        """Run in the guest; it has to succeed."""
        return self.guest.check("export DM_DISABLE_UDEV=1\n" + script, timeout)

    def disk(self, name: str, **attributes) -> str:
        """A null_blk disk of 1 GiB; its path."""
        settings = {"size": 1024, "irqmode": 0, **attributes, "power": 1}
        directory = f"/sys/kernel/config/nullb/{name}"
        lines = [f"mkdir {directory} && cd {directory} || exit"]
        lines += [f"echo {value} >{key} || exit" for key, value in settings.items()]
        lines.append(f"test -b /dev/{name}")
        self.shell("\n".join(lines))
        return f"/dev/{name}"

    def device(self, name: str, *lines: str) -> str | None:
        """A device-mapper device of these table lines; its path, or None if the kernel refuses."""
        table = "\n".join(lines)
        status, output = self.guest.run(
            f"export DM_DISABLE_UDEV=1\ndmsetup create {name} <<'END'\n{table}\nEND\n"
        )
        return None if status else f"/dev/mapper/{name}"

    def remove(self, *names: str) -> None:
        """The reverse of device()."""
        for name in names:
            self.shell(f"dmsetup remove --retry {name}")

    def sectors(self, path: str) -> int:
        """How large a device is."""
        return int(self.shell(f"blockdev --getsz {path}"))

    def cgroup(self, path: str) -> None:
        """A control group below the root."""
        self.shell(f"mkdir {path}")

    def io_max(self, cgroup: str, path: str, limits: str) -> None:
        """Set io.max of a device, such as "riops=100 wiops=100"."""
        self.shell(f'echo "$(lsblk -dno MAJ:MIN {path} | xargs) {limits}" >{cgroup}/io.max')

    def fio(self, jobs: dict[str, dict], timeout: float, wrapper: str = "", **common) -> dict:
        """Run fio jobs; their results by name.

        `wrapper` is a command that runs fio and prints a line of its own, which is the result's
        "wrapper".
        """
        text = job_section("global", {"thread": 1, "direct": 1, **common})
        for name, options in jobs.items():
            text += job_section(name, options)
        output = self.shell(
            f"cat >{JOB_FILE} <<'END'\n{text}END\n"
            f"echo $$ >{self.procs} || exit\n"
            f"{wrapper} fio --output-format=json+ --output={OUTPUT} {JOB_FILE} || exit\n"
            f"sed -n '/^{{/,$p' {OUTPUT}",
            timeout,
        )
        before, brace, rest = output.partition("{\n")
        result = json.loads(brace + rest)
        return {job["jobname"]: job for job in result["jobs"]} | {"wrapper": before.strip()}


def job_section(name: str, options: dict) -> str:
    """A section of a fio job file."""
    return "\n".join([f"[{name}]", *(f"{k}={v}" for k, v in options.items())]) + "\n"
