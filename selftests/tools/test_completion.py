# SPDX-License-Identifier: GPL-2.0
"""Completion for bash, as the package has it: what it offers is what the tools take."""

import os
import re
import shlex
import subprocess

import pytest
from test_commands import SCRIPTS

FOLDER = SCRIPTS.parent / "debian/completion"
DMSETUP = "#!/bin/sh\nprintf 'vg-data\\t(253:0)\\nvg-data-qos-below\\t(253:1)\\n'\n"


def complete(folder, tool, *words, **environment) -> list[str]:
    """What is offered for the last word."""
    script = (
        f". {FOLDER / tool}\nCOMP_WORDS=({tool} {shlex.join(words)})\n"
        f'COMP_CWORD={len(words)}\n_{tool}\nprintf "%s\\n" "${{COMPREPLY[@]}}"'
    )
    path = f"{folder}:{SCRIPTS}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", script],
        env={**os.environ, "PATH": path, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.split()


def help_of(tool, *words) -> str:
    """What a tool says of itself."""
    command = [SCRIPTS / tool, *words, "--help"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("tool", ["qosctl", "balloonctl"])
def test_commands_and_their_options(tmp_path, tool):
    """All that there are, and none that is another command's."""
    commands = re.findall(r"^    (\w+) ", help_of(tool), re.M)
    assert commands
    assert set(complete(tmp_path, tool, "")) == {*commands, "--help", "--metrics"}
    for command in commands:
        usage = help_of(tool, command).split("\n\n")[0]
        options = {"--help", *re.findall(r"\[(--[a-z-]+)", usage)}
        assert set(complete(tmp_path, tool, command, "--")) == options, command


def test_names_of_devices_and_vms(tmp_path):
    """Hidden devices are nobody's business."""
    (tmp_path / "dmsetup").write_text(DMSETUP)
    (tmp_path / "dmsetup").chmod(0o755)
    assert complete(tmp_path, "qosctl", "set", "v") == ["vg-data"]
    assert complete(tmp_path, "qosctl", "attach", f"{tmp_path}/d") == [f"{tmp_path}/dmsetup"]
    for name in ("db", "web"):
        (tmp_path / f"{name}.sock").touch()
    found = complete(tmp_path, "balloonctl", "set", "w", BALLOONCTL_SOCKETS=str(tmp_path))
    assert found == ["web"]
