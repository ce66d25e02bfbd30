# SPDX-License-Identifier: GPL-2.0
"""What scripts/check.py makes of guest selftests that fail, and of guests that die under them.

A small suite of scripts, in guests on user-mode Linux. They fail while the file `busy` is there.
"""

import re

import check
import pytest
import verdicts
import vm

pytestmark = pytest.mark.ours("no driver")

SCRIPTS = {
    "1-steady": "one() { :; }\nrun_cases one",
    "2-flaky": """
steady() { :; }
flaky() { check "nothing is beside it" [ ! -e "$BUSY" ]; }
run_cases steady flaky
""",
    # What is asked of the kernel, it does in its own time.
    "3-dies": """
dies() { [ ! -e "$BUSY" ] || { echo o >/proc/sysrq-trigger; sleep 600; }; }
run_cases dies
""",
    "4-panics": """
panics() { [ ! -e "$BUSY" ] || { echo c >/proc/sysrq-trigger; sleep 600; }; }
run_cases panics
""",
    "5-warns": """
warns() { [ ! -e "$BUSY" ] || echo "WARNING: it is wrong" >/dev/kmsg; }
run_cases warns
""",
    # As a warning of the kernel's own does.
    "6-taints": """
taints() { [ ! -e "$BUSY" ] || echo 512 >/proc/sys/kernel/tainted; }
run_cases taints
""",
}


@pytest.fixture(name="queue")
def queue_fixture(tmp_path, monkeypatch):
    """A queue of all of these scripts."""
    monkeypatch.setattr(check, "SELFTESTS", tmp_path / "suite")
    monkeypatch.setattr(check, "OUT", tmp_path / "out/check")
    check.OUT.mkdir(parents=True)
    (tmp_path / "suite/small").mkdir(parents=True)
    for name, text in SCRIPTS.items():
        lines = ["#!/bin/bash", "# Runs: uml", f"BUSY={tmp_path}/busy"]
        lines.append(f". {check.ROOT}/selftests/lib.sh")
        (tmp_path / f"suite/small/{name}.sh").write_text("\n".join([*lines, text]))
    (tmp_path / "busy").touch()
    report = verdicts.Report(tmp_path / "again")
    kdir = vm.find_kdir("uml")
    return check.Queue(report, "uml", kdir, check.chosen_scripts("uml", ""))


def test_once_more_in_a_guest_of_its_own(queue, tmp_path, capsys):
    """What fails by accident is forgiven, what a kernel log says, taint and leaks are not."""
    check.run_guest(queue)
    assert not queue.left
    (tmp_path / "busy").unlink()
    queue.report.run_again()
    assert queue.report.finish() == 1
    printed = capsys.readouterr().out.splitlines()

    small = "uml: small"
    assert printed[-2] == f"2 unstable: {small}/2-flaky/flaky, {small}/3-dies/guest"
    failed = {line.partition(" ")[2] for line in printed if line.startswith("failed: ")}
    # The first guest dies, the second panics, the third has the rest.
    assert failed == {
        f"{small}/4-panics/kernel log",
        f"{small}/4-panics/guest",
        f"{small}/5-warns/kernel log",
        "uml: guest uml-3: no splat, no leak",
    }
    passed = {line.split(maxsplit=1)[1] for line in printed if line.startswith("ok ")}
    assert passed == {
        f"{small}/1-steady/one",
        f"{small}/2-flaky/steady",
        # It was not reached before the guest died.
        f"{small}/3-dies/dies",
        f"{small}/5-warns/warns",
        f"{small}/6-taints/taints",
        # Those of what was run once more.
        "uml: guest uml-4: no splat, no leak",
        "uml: guest uml-5: no splat, no leak",
    }
    assert printed[-1].startswith(f"{len(passed) + 2} passed, ")
    assert re.search(r"(?m)^ +the kernel is tainted: \d+$", "\n".join(printed))

    kept = {file.name: file.read_text() for file in queue.report.folder.iterdir()}
    assert len(kept) == 4
    assert "not ok 2 flaky" in kept["uml-small-2-flaky-flaky.first.txt"]
    assert "ok 1 flaky" in kept["uml-small-2-flaky-flaky.second.txt"]
    assert "steady" not in kept["uml-small-2-flaky-flaky.second.txt"]
    assert "the guest ended" in kept["uml-small-3-dies-guest.first.txt"]
    # Nobody had looked for leaks of what the guest had run before.
    assert re.findall(r"^ok \d+ (\w+)$", kept["uml-small-3-dies-guest.second.txt"], re.M) == [
        "one",
        "steady",
        "flaky",
        "dies",
    ]
    assert any("guests uml" in line for line in printed)


def test_no_guest_boots_for_nothing(queue):
    """A second one boots only if a script is left for it."""
    del queue.left[1:]
    guest = check.Job(check.run_guest, (queue,))
    check.run_at_once([guest, guest])
    assert [log.name for log in check.OUT.glob("*.log")] == ["uml-1.log"]
    assert {status for _, status, _ in queue.report.entries} == {"passed"}


def test_what_no_guest_runs_has_failed(queue, monkeypatch):
    """A guest that does not boot leaves its script to others, and to be reported."""
    monkeypatch.setattr(queue, "kdir", check.OUT)
    check.run_guest(queue)
    assert len(queue.left) == len(SCRIPTS)
    queue.fail_what_is_left()
    names = [name for name, status, _ in queue.report.entries if status == "failed"]
    assert names == ["uml: guest uml-1", *(f"uml: small/{name}" for name in SCRIPTS)]
