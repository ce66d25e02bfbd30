# SPDX-License-Identifier: GPL-2.0
"""Rules that the compiler keeps: what safe code of a driver must not be able to do.

Each file of selftests/rules/ is a part of a driver that keeps a rule, and breaks it with
`--cfg bad`. It must compile without and be refused with it, by the error that it names: a code, or
the text of one that has none; then codes that some compilers add. A file that does not compile for
another reason proves nothing, and fails.

They are compiled as main.o of a module was, against the crate that it was built with.
"""

import dataclasses
import json
import os
import pathlib
import re
import shlex
import subprocess

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
RULES = sorted((ROOT / "selftests" / "rules").glob("*.rs"))
MODULES = ROOT / "out" / "modules" / os.environ.get("FERRULE_HOST_KERNEL", "release")
# In the root where the compilers of this kernel are, if they are in one.
IN_ROOT = '. scripts/lib.sh; root=$1; shift; in_root "$root" "$@"'
# `sh -c` in the build directory, with all that follows as its command.
THERE = 'cd "$1" && shift && exec env "$@"'


@dataclasses.dataclass(frozen=True)
class Rule:
    """A file of selftests/rules/."""

    path: pathlib.Path
    module: str
    refused: list[str]

    @classmethod
    def read(cls, path: pathlib.Path) -> "Rule":
        """By the comments that it begins with."""
        found = dict(re.findall(r"^// (Module|Refused): (.*)$", path.read_text(), re.MULTILINE))
        return cls(path, found["Module"], found["Refused"].split(", "))


def kbuild_command(module: str) -> list[str]:
    """What a module's main.o was built by, without inputs and outputs."""
    saved = (MODULES / module / ".main.o.cmd").read_text().splitlines()[0]
    words = shlex.split(saved.partition(":= ")[2])
    end = next(n for n, word in enumerate(words) if word.rstrip(";").endswith("/main.rs"))
    command, skipped = [], False
    for word in words[:end]:
        if not skipped and word != "--out-dir" and not word.startswith("--emit="):
            command.append(word)
        skipped = word == "--out-dir"
    return command


def errors_of(rule: Rule, tmp_path: pathlib.Path, *flags: str) -> list[dict]:
    """What the compiler has against it."""
    command = kbuild_command(rule.module)
    kdir = next(word.partition("=")[2] for word in command if word.startswith("OBJTREE="))
    root = pathlib.Path(kdir, "ferrule.root")
    words = [root.read_text().strip() if root.exists() else ""]
    words += ["sh", "-c", THERE, "sh", str(MODULES), "RUSTC_BOOTSTRAP=1", *command]
    words += [f"--emit=metadata={tmp_path}/rule.rmeta", "--crate-name=rule", "--cap-lints=allow"]
    words += ["--error-format=json", *flags, str(rule.path)]
    result = subprocess.run(
        ["bash", "-c", IN_ROOT, "bash", *words],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    lines = result.stderr.splitlines()
    assert all(line.startswith("{") for line in lines), result.stderr
    messages = [message for message in map(json.loads, lines) if message["level"] == "error"]
    # But "aborting due to".
    errors = [message for message in messages if message["spans"]]
    assert bool(errors) == bool(result.returncode), result.stderr
    return errors


def text_of(errors: list[dict]) -> str:
    """For people."""
    return "\n".join(error["rendered"] for error in errors)


@pytest.mark.parametrize("path", RULES, ids=lambda path: path.stem)
def test_rule(path, tmp_path):
    """Kept, the compiler accepts it. Broken, all that it has against it is this."""
    rule = Rule.read(path)
    errors = errors_of(rule, tmp_path)
    assert not errors, text_of(errors)
    errors = errors_of(rule, tmp_path, "--cfg=bad")
    assert errors, "was accepted"
    reasons = [(error["code"] or {"code": error["message"]})["code"] for error in errors]
    assert rule.refused[0] in reasons, text_of(errors)
    assert set(reasons) <= set(rule.refused), text_of(errors)
    # In the file, not in the crate.
    places = {s["file_name"] for error in errors for s in error["spans"] if s["is_primary"]}
    assert places == {str(path)}, text_of(errors)
