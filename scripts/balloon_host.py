# SPDX-License-Identifier: GPL-2.0
"""The host of a balloon in user-mode Linux: a program of ours (selftests/vhost)."""

import contextlib
import json
import os
import pathlib
import queue
import subprocess
import tempfile
import threading
import time

import vm

PROGRAM = vm.ROOT / "out" / "vhost" / "debug" / "vhost-balloon"
# Feature bits of the device (VIRTIO_BALLOON_F_*).
MUST_TELL_HOST, STATS, OOM, HINT, POISON, REPORTING = (1 << bit for bit in range(6))
KNOWN = (1 << 6) - 1
VERSION_1 = 1 << 32
PAGES_PER_MIB = 256


def build() -> None:
    """Build the program."""
    environment = {k: v for k, v in os.environ.items() if k not in ("RUSTC", "MAKEFLAGS")}
    manifest = vm.ROOT / "selftests/vhost/Cargo.toml"
    target = PROGRAM.parents[1]
    command = ["cargo", "build", "--quiet", "--locked", "--manifest-path", str(manifest)]
    subprocess.run([*command, "--target-dir", str(target)], env=environment, check=True)


class Host:
    """The program, which serves one device."""

    def __init__(self, *options: str):
        self.directory = tempfile.TemporaryDirectory(prefix="ferrule-vhost-")
        self.socket = pathlib.Path(self.directory.name) / "socket"
        self.process = subprocess.Popen(  # pylint: disable=consider-using-with
            [str(PROGRAM), "--socket", str(self.socket), *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.events: queue.Queue[dict] = queue.Queue()
        self.summary: dict | None = None
        threading.Thread(target=self._read, daemon=True).start()
        self.expect("listening")

    def _read(self) -> None:
        for line in self.process.stdout:
            self.events.put(json.loads(line))
        self.events.put({"event": "end"})

    def event(self, timeout: float) -> dict | None:
        """The next thing that the program says, or None."""
        try:
            return self.events.get(timeout=timeout)
        except queue.Empty:
            return None

    def expect(self, name: str, timeout: float = 30) -> dict:
        """Wait for an event of this name; others are passed over."""
        deadline = time.monotonic() + timeout
        while True:
            event = self.event(max(deadline - time.monotonic(), 0))
            assert event, f"{name}: not within {timeout} s: {self.state()}"
            if event["event"] == name:
                return event
            assert event["event"] not in ("end", "summary"), event

    def tell(self, command: str) -> None:
        """Give a command."""
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()

    def state(self) -> dict:
        """What the host knows."""
        self.tell("state")
        deadline = time.monotonic() + 60
        passed = []
        while True:
            event = self.event(max(deadline - time.monotonic(), 0))
            assert event, "the host does not say what it knows"
            if event["event"] == "state":
                break
            assert event["event"] not in ("end", "summary"), event
            passed.append(event)
        for other in passed:
            self.events.put(other)
        return event

    def plug_into(self, guest: vm.Guest) -> None:
        """Give a guest this device."""
        guest.mconsole(f"config virtio_uml.device={self.socket}:5")

    def end(self) -> dict:
        """Close the connection; what was seen."""
        if self.process.poll() is None:
            with contextlib.suppress(BrokenPipeError):
                self.tell("quit")
        while (event := self.event(30)) and event["event"] != "end":
            if event["event"] == "summary":
                self.summary = event
        self.process.wait(30)
        self.process.stdin.close()
        self.directory.cleanup()
        assert self.summary, "the host died"
        return self.summary
