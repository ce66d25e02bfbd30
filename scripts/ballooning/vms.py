# SPDX-License-Identifier: GPL-2.0
"""Virtual machines with a balloon, by their QMP sockets or by libvirt."""

import asyncio
import contextlib
import dataclasses
import errno
import logging
import os
import pathlib
import re
import socket
import struct
from collections.abc import AsyncIterator, Coroutine, Iterator
from xml.etree import ElementTree

from qemu.qmp import ConnectError, ExecuteError, QMPClient, QMPError
from tooling.sizes import KIB, PAGE

TIMEOUT = 5
# libvirt itself gives up after 30 s on a domain that somebody else is at work on, and says who.
VIRSH_TIMEOUT = 35
# Pages of guests that have large ones (arm64, ppc64): their balloons go by these.
LARGE_PAGE = 64 * KIB
# How often to try a socket at which others wait as well.
RETRY_SECONDS = 0.05
NOT_KNOWN = 2**64 - 1
POLLING = "guest-stats-polling-interval"
# PCI IDs of a balloon, transitional and modern.
VIRTIO, BALLOONS = 0x1AF4, (0x1002, 0x1045)
# The balloon's registers: QEMU has a virtio-pci device's own at this place of BAR 4.
REGISTERS_BAR, REGISTERS_OFFSET = 4, 0x2000
SOCKET_PROBLEMS = {
    errno.ENOENT: "there is no such socket",
    errno.ECONNREFUSED: "nobody listens on it (is the VM running?)",
    errno.EACCES: "permission denied",
    errno.ENOTSOCK: "this is no socket",
}

# What it has to say is in its exceptions.
logging.getLogger("qemu.qmp").setLevel(logging.CRITICAL + 1)


class VmError(Exception):
    """Why a VM cannot be read or changed, in one line without its name."""

    def __init__(self, text: str, maximum: int | None = None):
        super().__init__(text)
        # All of its memory, where at least that could be read.
        self.maximum = maximum


class VmGone(VmError):
    """It does not run (any more)."""


class NoBalloon(VmError):
    """It has all of its memory, for there is nothing to take any with."""


async def to_the_end(coroutine: Coroutine) -> None:
    """Do what is not to be left half done. Who is interrupted meanwhile is so afterwards."""
    task, interrupted = asyncio.ensure_future(coroutine), None
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError as error:
            interrupted = error
    task.result()
    if interrupted:
        raise interrupted


@dataclasses.dataclass
class State:
    """What the host knows of a VM; sizes in bytes. None: not known."""

    maximum: int
    actual: int
    target: int | None = None
    resident: int | None = None
    # When they came, by the host's clock; 0: never.
    updated: int = 0
    # The guest's own statistics, by QEMU's names without "stat-".
    stats: dict[str, int] = dataclasses.field(default_factory=dict)
    paused: bool = False
    # What it has read from its disks since it was started.
    disk_read: int | None = None

    @property
    def available(self) -> int | None:
        """What the guest could use at once. Some do not say (older drivers for Windows, BSD, old
        kernels): what is free is part of that, so it is no more than the guest can spare.
        """
        return self.stats.get("available-memory", self.stats.get("free-memory"))

    @property
    def says_only_free(self) -> bool:
        """Its caches could be taken too, but nobody knows how much that is."""
        return "available-memory" not in self.stats and "free-memory" in self.stats

    def reachable(self, size: int) -> int:
        """The size that the balloon ends at when asked for one: it consists of pages."""
        return self.maximum - (self.maximum - size) // PAGE * PAGE

    def is_near(self, goal: int) -> bool:
        """Within a large page, and it has a whole number of those in its balloon."""
        in_balloon = self.maximum - self.actual
        return abs(self.actual - goal) < LARGE_PAGE and in_balloon % LARGE_PAGE == 0


class QmpVm:
    """A VM whose QEMU serves QMP at a UNIX socket.

    QEMU serves one client at a time, so no connection is kept: others wait no longer than a few
    commands take.
    """

    def __init__(self, name: str, path: pathlib.Path):
        self.name = name
        self.path = path
        self._lock = asyncio.Lock()

    @contextlib.asynccontextmanager
    async def _session(self) -> AsyncIterator["Session"]:
        """Connected, for a few commands."""
        client = QMPClient("balloonctl")
        session = Session(client)
        async with self._lock:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.setblocking(False)
                try:
                    async with asyncio.timeout(TIMEOUT):
                        await connect(connection, str(self.path))
                        session.pid = peer_of(connection)
                        await client.connect(connection)
                        yield session
                except TimeoutError:
                    raise VmError(
                        f"no answer on {self.path} in {TIMEOUT} s (another client may have it:"
                        " QEMU serves one at a time)",
                        session.maximum,
                    ) from None
                except ExecuteError as error:
                    raise VmError(f"QEMU: {error.error.desc}", session.maximum) from None
                except ConnectError as error:
                    raise VmError(f"{self.path}: what is there does not speak QMP") from error
                except OSError as error:
                    problem = SOCKET_PROBLEMS.get(error.errno, error.strerror or str(error))
                    kind = VmGone if error.errno in (errno.ENOENT, errno.ECONNREFUSED) else VmError
                    raise kind(f"{self.path}: {problem}") from None
                except (QMPError, EOFError):
                    raise VmGone(f"{self.path}: QEMU has gone") from None
                finally:
                    with contextlib.suppress(Exception):
                        await client.disconnect()

    async def read(self) -> State:
        """What it is and what it has."""
        async with self._session() as qemu:
            return await qemu.read()

    async def set_target(self, size: int) -> None:
        """Ask for a size."""
        async with self._session() as qemu:
            await qemu.client.execute("balloon", {"value": size})

    async def polling(self) -> int:
        """How often the guest is asked for its statistics, in seconds; 0: never."""
        async with self._session() as qemu:
            return await qemu.get(POLLING)

    async def set_polling(self, seconds: int) -> None:
        """Have the guest asked for its statistics so often."""
        async with self._session() as qemu:
            await qemu.set(POLLING, seconds)


class Session:
    """Commands to a QEMU that is connected."""

    def __init__(self, client: QMPClient):
        self.client = client
        self.pid = 0
        # All of the VM's memory, once it has been read.
        self.maximum: int | None = None
        self._path: str | None = None

    async def balloon_path(self) -> str:
        """The QOM path of the balloon device."""
        for parent in ("/machine/peripheral", "/machine/peripheral-anon"):
            for child in await self.client.execute("qom-list", {"path": parent}):
                if child["type"].startswith("child<virtio-balloon"):
                    return f"{parent}/{child['name']}"
        raise NoBalloon("it has no balloon device (-device virtio-balloon-pci)", self.maximum)

    async def property(self, name: str) -> dict:
        """The arguments for qom-get and qom-set."""
        self._path = self._path or await self.balloon_path()
        return {"path": self._path, "property": name}

    async def get(self, name: str):
        """A property of the balloon device."""
        return await self.client.execute("qom-get", await self.property(name))

    async def set(self, name: str, value) -> None:
        """Change a property of the balloon device."""
        await self.client.execute("qom-set", {**await self.property(name), "value": value})

    async def read(self) -> State:
        """All of it. The memory first: that much is known if there is no balloon."""
        self.maximum = maximum = await self.memory()
        answer = await self.get("guest-stats")
        actual = (await self.client.execute("query-balloon"))["actual"]
        stats = {k.removeprefix("stat-"): v for k, v in answer["stats"].items() if v != NOT_KNOWN}
        target = await self.target(maximum, actual)
        resident = resident_of(self.pid)
        # Also while a migration comes in, before the guest runs for the first time.
        paused = not (await self.client.execute("query-status"))["running"]
        read = await self.disk_read()
        return State(maximum, actual, target, resident, answer["last-update"], stats, paused, read)

    async def disk_read(self) -> int | None:
        """What the guest has read from its disks, all of them."""
        try:
            disks = await self.client.execute("query-blockstats")
        except ExecuteError:
            return None
        return sum(disk["stats"]["rd_bytes"] for disk in disks)

    async def memory(self) -> int:
        """What a balloon counts from, as QEMU has it: what the machine begins with, and DIMMs. No
        balloon reaches what virtio-mem or an NVDIMM has, which "plugged-memory" has in it.
        """
        base = (await self.client.execute("query-memory-size-summary"))["base-memory"]
        try:
            devices = await self.client.execute("query-memory-devices")
        except ExecuteError:
            return base
        return base + sum(d["data"]["size"] for d in devices if d["type"] == "dimm")

    async def target(self, maximum: int, actual: int) -> int | None:
        """What the guest is asked to have, whoever asked.

        No command tells, so this reads the device's registers, as the guest does: pages wanted and
        pages taken. If the second does not fit what QEMU says they are something else.
        """
        address = self.registers(await self.client.execute("query-pci"))
        if address is None:
            return None
        command = {"command-line": f"xp /2xw {address:#x}"}
        words = re.findall(r"0x([0-9a-f]{8})\b", await self.human(command))
        if len(words) != 2:
            return None
        wanted, taken = (int(word, 16) * PAGE for word in words)
        return maximum - wanted if maximum - taken == actual and wanted <= maximum else None

    async def human(self, command: dict) -> str:
        """A command for which there is no other; "" where there is not even this."""
        try:
            output = await self.client.execute("human-monitor-command", command)
        except ExecuteError:
            return ""
        return output.partition(":")[2]

    def registers(self, buses: list[dict]) -> int | None:
        """Where the firmware or the guest has put the balloon's registers."""
        for device in all_devices(buses):
            if device["id"]["vendor"] == VIRTIO and device["id"]["device"] in BALLOONS:
                for region in device["regions"]:
                    if region["bar"] == REGISTERS_BAR and region["address"] > 0:
                        return region["address"] + REGISTERS_OFFSET
        return None


def all_devices(buses: list[dict]) -> Iterator[dict]:
    """Devices of query-pci, those behind bridges too."""
    for bus in buses:
        for device in bus["devices"]:
            yield device
            yield from all_devices([{"devices": device.get("pci_bridge", {}).get("devices", [])}])


async def connect(connection: socket.socket, path: str) -> None:
    """Connect, however many wait for the same.

    For a UNIX socket whose queue is full the answer is EAGAIN. asyncio takes that for a connection
    that is on its way, and the socket, which may be written to, for one that is connected.
    """
    while True:
        await asyncio.get_running_loop().sock_connect(connection, path)
        try:
            connection.getpeername()
        except OSError as error:
            if error.errno != errno.ENOTCONN:
                raise
            await asyncio.sleep(RETRY_SECONDS)
        else:
            return


def peer_of(connection: socket.socket) -> int:
    """The process that listens at the other end, or 0 if it cannot be seen from here."""
    size = struct.calcsize("3i")
    pid, _, _ = struct.unpack(
        "3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
    )
    return pid


def resident_of(pid: int) -> int | None:
    """Memory of the host that a process holds."""
    try:
        status = pathlib.Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    # Huge pages (hugetlbfs, memfd) are not in what is called resident.
    found = dict(re.findall(r"^(VmRSS|HugetlbPages):\s+(\d+) kB", status, re.M))
    return sum(map(int, found.values())) * KIB if "VmRSS" in found else None


class LibvirtVm:
    """A running domain of libvirt, by virsh: what libvirt does itself, so that it knows of it."""

    # libvirt's names of balloon statistics, which are in KiB but for the counts.
    SIZES = {
        "available": "total-memory",
        "usable": "available-memory",
        "unused": "free-memory",
        "disk_caches": "disk-caches",
        "swap_in": "swap-in",
        "swap_out": "swap-out",
    }
    COUNTS = {"major_fault": "major-faults", "minor_fault": "minor-faults"}

    def __init__(self, name: str, uri: str, uuid: str, known: dict[str, int] | None = None):
        self.name = name
        self.uri = uri
        # What virsh is told: it takes a name that is a number for an ID, of another domain.
        self.uuid = uuid
        self._known = known

    async def read(self) -> State:
        """What libvirt knows; at first, what the list of all domains said."""
        known, self._known = self._known, None
        if known is None:
            known = (await domain_stats(self.uri, self.uuid)).get(self.name, {})
        if "current" not in known or "maximum" not in known:
            domain = await self.definition()
            model = domain.find("devices/memballoon")
            memory = memory_of(domain)
            if model is None or model.get("model") == "none":
                raise NoBalloon("it has no balloon (<memballoon>)", memory)
            raise VmError(
                "libvirt says nothing of its balloon just now: it is at work on the domain"
                " (virsh domjobinfo)",
                memory,
            )
        stats = {ours: known[name] * KIB for name, ours in self.SIZES.items() if name in known}
        stats |= {ours: known[name] for name, ours in self.COUNTS.items() if name in known}
        return State(
            maximum=known["maximum"] * KIB,
            actual=known["current"] * KIB,
            resident=known["rss"] * KIB if "rss" in known else None,
            updated=known.get("last-update", 0),
            stats=stats,
            paused=known.get("state", RUNNING) != RUNNING,
            disk_read=known.get("rd.bytes"),
        )

    async def definition(self) -> ElementTree.Element:
        """The domain as it is now."""
        return ElementTree.fromstring(await virsh(self.uri, "dumpxml", self.uuid))

    async def set_target(self, size: int) -> None:
        """Ask for a size; libvirt takes KiB."""
        kib = f"{-(-size // KIB)}KiB"
        # Else it might be done after what is asked for next.
        await to_the_end(virsh(self.uri, "setmem", self.uuid, kib, "--live"))

    async def polling(self) -> int:
        """How often the guest is asked for its statistics, in seconds; 0: never."""
        stats = (await self.definition()).find("devices/memballoon/stats")
        return int(stats.get("period", 0)) if stats is not None else 0

    async def set_polling(self, seconds: int) -> None:
        """Have the guest asked for its statistics so often."""
        words = ("dommemstat", self.uuid, "--period", str(seconds), "--live")
        await to_the_end(virsh(self.uri, *words))


def memory_of(domain: ElementTree.Element) -> int | None:
    """All of it, as the domain is defined; libvirt always writes KiB."""
    memory = domain.findtext("memory")
    return int(memory) * KIB if memory else None


async def virsh(uri: str, *words: str) -> str:
    """Run virsh; its output."""
    try:
        process = await asyncio.create_subprocess_exec(
            "virsh",
            *(["-c", uri] if uri else []),
            "-q",
            *words,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            # An interrupt is for us; what is under way is finished.
            start_new_session=True,
            env={**os.environ, "LC_ALL": "C"},
        )
    except FileNotFoundError:
        raise VmError("there is no virsh here (Debian: libvirt-clients)") from None
    try:
        async with asyncio.timeout(VIRSH_TIMEOUT):
            output, problem = await process.communicate()
    except TimeoutError:
        process.kill()
        raise VmError(f"virsh {words[0]}: no answer in {VIRSH_TIMEOUT} s") from None
    if process.returncode:
        lines = [line.removeprefix("error: ") for line in problem.decode().splitlines() if line]
        raise VmError(f"virsh {words[0]}: {'; '.join(lines) or process.returncode}")
    return output.decode()


# libvirt's number for a domain that runs.
RUNNING = 1


async def domain_stats(uri: str, *domains: str) -> dict[str, dict[str, int]]:
    """Statistics of balloons and disks, of these domains or of all active ones: paused ones too.

    Of a domain that is locked (a migration, a shutdown, a job) there are none, and nobody waits.
    """
    words = ["--state", "--balloon", "--block", "--nowait", *(domains or ["--list-active"])]
    return parse_stats(await virsh(uri, "domstats", *words))


def parse_stats(text: str) -> dict[str, dict[str, int]]:
    """What virsh prints, by the names of domains; of all disks together."""
    found: dict[str, dict[str, int]] = {}
    domain = None
    for line in text.splitlines():
        if match := re.match(r"Domain: '(.*)'$", line):
            domain = found.setdefault(match[1], {})
        elif domain is not None and (
            match := re.match(r"\s+(?:balloon\.([\w-]+)|state\.(state))=(\d+)$", line)
        ):
            domain[match[1] or match[2]] = int(match[3])
        elif domain is not None and (match := re.match(r"\s+block\.\d+\.(rd\.bytes)=(\d+)$", line)):
            domain[match[1]] = domain.get(match[1], 0) + int(match[2])
    return found


async def domain_uuids(uri: str) -> dict[str, str]:
    """Of all active domains, by name. A name may have blanks, and look like an ID or a UUID."""
    lines = (await virsh(uri, "list", "--uuid", "--name")).splitlines()
    return {name: uuid for uuid, _, name in (line.strip().partition(" ") for line in lines) if name}


Machine = QmpVm | LibvirtVm


@dataclasses.dataclass
class Sources:
    """Where the VMs are: given one by one, in a directory of sockets, in libvirt."""

    sockets: list[tuple[str, pathlib.Path]] = dataclasses.field(default_factory=list)
    directories: list[pathlib.Path] = dataclasses.field(default_factory=list)
    # libvirt's URI; "": its default.
    libvirt: str | None = None

    async def find(self) -> dict[str, Machine]:
        """All that there are just now. Two of one name would be taken for one."""
        found: dict[str, Machine] = {}
        for vm in await self._all():
            other = found.setdefault(vm.name, vm)
            if other is not vm and not is_same(other, vm):
                raise VmError(
                    f"two VMs have the name {vm.name}: {place_of(other)} and {place_of(vm)}"
                    " (name one of them otherwise, with --vm)"
                )
        return found

    async def _all(self) -> list[Machine]:
        found: list[Machine] = [QmpVm(name, path) for name, path in self.sockets]
        for directory in self.directories:
            try:
                paths = sorted(path for path in directory.iterdir() if path.suffix == ".sock")
            except OSError as error:
                raise VmError(f"{directory}: {error.strerror}") from None
            found += [QmpVm(path.stem, path) for path in paths if path.is_socket()]
        if self.libvirt is not None:
            known = await domain_stats(self.libvirt)
            for name, uuid in (await domain_uuids(self.libvirt)).items():
                found.append(LibvirtVm(name, self.libvirt, uuid, known.get(name)))
        return found


def is_same(one: Machine, other: Machine) -> bool:
    """Given twice."""
    return (
        isinstance(one, QmpVm)
        and isinstance(other, QmpVm)
        and os.path.realpath(one.path) == os.path.realpath(other.path)
    )


def place_of(vm: Machine) -> str:
    """Where a VM was found."""
    return str(vm.path) if isinstance(vm, QmpVm) else f"libvirt's domain {vm.uuid}"
