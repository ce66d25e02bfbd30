# SPDX-License-Identifier: GPL-2.0
"""What scripts/check.py makes of tests that fail: small suites of real tests, run by it.

Those in a guest are in selftests/host/test_check_guests.py.
"""

import os
import pathlib
import re
import shutil
import subprocess
import sys

import check
import pytest
import verdicts

STOCK = check.vm.STOCK[0]
# Fails unless it was run before: what it depends on is in a file.
FLAKY = """
import pathlib


def test_flaky_{number}():
    was_here = pathlib.Path(__file__).with_suffix(".{number}")
    before = was_here.exists()
    was_here.touch()
    print("before:", before)
    assert before
"""
CARGO = """
[package]
name = "small"
version = "0.0.0"
edition = "2021"

[workspace]
"""
CRATE = """
#[test]
fn is_flaky() {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/was-here");
    let before = std::path::Path::new(file).exists();
    std::fs::write(file, "").unwrap();
    assert!(before, "it was not here");
}

#[test]
fn is_steady() {}

#[test]
fn is_wrong() {
    panic!("it is wrong");
}
"""


@pytest.fixture(name="suite")
def suite_fixture(tmp_path, monkeypatch):
    """An empty suite, and a place for what comes of it."""
    monkeypatch.setattr(check, "SELFTESTS", tmp_path / "suite")
    monkeypatch.setattr(check, "OUT", tmp_path / "out/check")
    (tmp_path / "suite/tools").mkdir(parents=True)
    check.OUT.mkdir(parents=True)
    return tmp_path / "suite"


@pytest.fixture(name="report")
def report_fixture(suite):
    """Of a run of it."""
    return verdicts.Report(suite.parent / "again")


def end(report, capsys) -> tuple[int, list[str]]:
    """Run again what failed; the status of the run, and all that was printed."""
    report.run_again()
    status = report.finish()
    return status, capsys.readouterr().out.splitlines()


def run_pytest(report, suite, text) -> None:
    """A file of these tests."""
    file = suite / "tools/test_it.py"
    file.write_text(text)
    check.HostTests.run(report, file, "", STOCK)


def test_what_passes_by_itself_is_unstable(suite, report, capsys):
    """It counts as passed, is named, and both outputs are kept."""
    run_pytest(report, suite, FLAKY.format(number=1) + "\n\ndef test_steady():\n    pass\n")
    status, printed = end(report, capsys)
    assert status == 0
    assert "FAILED  unit/test_it/test_flaky_1" in printed
    assert any(line.split()[:2] == ["unstable", "unit/test_it/test_flaky_1"] for line in printed)
    assert printed[-2:] == [
        "1 unstable: unit/test_it/test_flaky_1",
        "2 passed, 0 failed, 0 skipped",
    ]
    assert not any(line.startswith("failed: ") for line in printed)
    first, second = sorted(report.folder.iterdir())
    assert first.name == "unit-test-it-test-flaky-1.first.txt"
    assert "before: False" in first.read_text() and "1 failed, 1 passed" in first.read_text()
    assert second.name == "unit-test-it-test-flaky-1.second.txt"
    # By itself.
    assert "1 passed" in second.read_text() and "failed" not in second.read_text()


def test_what_fails_twice_has_failed(suite, report, capsys):
    """And so has what is skipped the second time."""
    run_pytest(
        report,
        suite,
        FLAKY.format(number=1).replace("assert before", "assert False")
        + "\n\nimport pytest\n"
        + FLAKY.format(number=2).replace("assert before", "pytest.skip() if before else 1 / 0"),
    )
    status, printed = end(report, capsys)
    assert status == 1
    assert printed[-1] == "0 passed, 2 failed, 0 skipped"
    assert "failed: unit/test_it/test_flaky_1" in printed
    assert "failed: unit/test_it/test_flaky_2" in printed
    assert len(list(report.folder.iterdir())) == 4


@pytest.mark.parametrize("number", [2, 3])
def test_more_than_two_unstable_ones_fail_the_run(suite, report, capsys, number):
    """All of them."""
    run_pytest(report, suite, "".join(FLAKY.format(number=n) for n in range(number)))
    status, printed = end(report, capsys)
    assert status == (number > 2)
    assert printed[-2].startswith(f"{number} unstable: unit/test_it/test_flaky_0, ")
    counts = (0, number) if number > 2 else (number, 0)
    assert printed[-1] == "{} passed, {} failed, 0 skipped".format(*counts)
    assert sum(line.startswith("failed: ") for line in printed) == counts[1]


def test_many_failures_are_no_accident(suite, report, capsys):
    """They are not run once more."""
    number = verdicts.AGAIN_AT_MOST + 1
    run_pytest(report, suite, "".join(FLAKY.format(number=n) for n in range(number)))
    assert end(report, capsys)[1][-1] == f"0 passed, {number} failed, 0 skipped"
    assert not report.folder.exists()


def test_a_kernel_log_is_not_forgiven(suite, report, capsys):
    """However the test fails: by itself, in its clean-up, or both."""
    # A test that asks for the fixture is told what is wrong when it is over.
    text = f"""
import sys

import pytest

sys.path.insert(0, {str(pathlib.Path(check.__file__).parent)!r})
import vm


@pytest.fixture
def guest():
    yield
    raise vm.Splat(["WARNING: it is wrong"])


def test_alone():
    raise vm.Splat(["WARNING: it is wrong"])


def test_cleanup(guest):
    pass


@pytest.fixture
def other():
    yield
    raise RuntimeError("it does not end")


def test_two_in_cleanup(guest, other):
    pass


"""
    text += FLAKY.format(number=1).replace("test_flaky_1()", "test_both(guest)").lstrip()
    run_pytest(report, suite, text)
    status, printed = end(report, capsys)
    assert status == 1
    assert printed[-1] == "0 passed, 4 failed, 0 skipped"
    assert not report.folder.exists()


def test_one_of_a_crate(suite, report, capsys):
    """cargo's tests are run once more in the same way."""
    (suite / "small/src").mkdir(parents=True)
    (suite / "small/Cargo.toml").write_text(CARGO)
    (suite / "small/src/lib.rs").write_text(CRATE)
    check.run_unit(report, "", "small")
    status, printed = end(report, capsys)
    assert status == 1
    assert printed[-2:] == ["1 unstable: small/is_flaky", "2 passed, 1 failed, 0 skipped"]
    assert "failed: small/is_wrong" in printed
    second = (report.folder / "small-is-flaky.second.txt").read_text()
    assert "is_flaky" in second and "is_steady" not in second
    assert "it was not here" in (report.folder / "small-is-flaky.first.txt").read_text()


def test_a_crate_that_does_not_compile_has_failed(suite, report, capsys):
    """That is no test which could be run once more."""
    (suite / "small/src").mkdir(parents=True)
    (suite / "small/Cargo.toml").write_text(CARGO)
    (suite / "small/src/lib.rs").write_text("this is no Rust")
    check.run_unit(report, "", "small")
    assert end(report, capsys)[1][-1] == "0 passed, 1 failed, 0 skipped"


def test_each_part_is_in_the_table(suite, report, capsys):
    """What took most CPU time comes first."""
    spin = "sum(range(3_000_000))"
    check.run_measured(report, "small", ["true"])
    check.run_measured(report, "large", [sys.executable, "-c", spin])
    # Also of what it has started.
    check.run_measured(report, "larger", ["sh", "-c", f"{sys.executable} -c '{spin};{spin}'; :"])
    run_pytest(report, suite, "def test_it():\n    pass\n")
    printed = end(report, capsys)[1]
    rows = [re.fullmatch(r"== +(\d+) s +(\d+) s  (.*)", line) for line in printed]
    names = [row[3] for row in rows if row]
    assert names[-1] == "all"
    assert set(names[:-1]) == {"small", "large", "larger", "tests of the tools"}
    assert names.index("larger") < names.index("large") < names.index("small")
    seconds = [int(row[1]) for row in rows if row]
    assert seconds[:-1] == sorted(seconds[:-1], reverse=True)
    assert seconds[-1] >= seconds[0]


def test_parts_beside_each_other():
    """Time in which two spans of a part last is counted once."""
    covered = verdicts.Parts._covered
    assert covered([(0, 10), (2, 5), (8, 12), (20, 21)]) == 13
    assert covered([(3, 4), (0, 1)]) == 2


SCRIPT = f"""#!/bin/bash
# Runs: vm uml
. {check.ROOT}/selftests/lib.sh
a() {{ :; }}
b() {{ :; }}
c() {{ :; }}
only_on vm \\
	a
only_on "vm checking" b
run_cases a b \\
	c
"""


@pytest.mark.parametrize(
    "kernel, cases", [("release", "a b c"), (STOCK, "a b c"), ("uml", "c"), ("checking", "")]
)
def test_cases_are_for_some_kernels(suite, kernel, cases):
    """A case that is not for a kernel is not chosen there, even by its name."""
    (suite / "area").mkdir()
    (suite / "area/script.sh").write_text(SCRIPT)
    for case in "abc":
        chosen = [c for _, c in check.chosen_scripts(kernel, f"script/{case}")]
        assert chosen == ([[case]] if case in cases else [])
    assert len(check.chosen_scripts(kernel, "area/script")) == bool(cases)


@pytest.mark.parametrize(
    "kernel, cases", [("release", "a b c"), (STOCK, "a b c"), ("uml", "c"), ("checking", "b c")]
)
@pytest.mark.parametrize("asked", ["", "a b c"])
def test_a_script_leaves_out_what_is_not_for_its_kernel(suite, kernel, cases, asked):
    """Also when it is asked for it. (Whether the script is for the kernel its caller knows.)"""
    script = suite / "script.sh"
    script.write_text(SCRIPT)
    environment = os.environ | {"FERRULE_KERNEL": kernel, "CASES": asked}
    result = subprocess.run(
        ["bash", script], env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    assert re.findall(r"^ok \d+ (\w)$", result.stdout, re.M) == cases.split()
    assert f"1..{len(cases.split())}" in result.stdout.splitlines()


def test_names_of_cases_are_right():
    """Those that are for some kernels only are cases, and the script runs on these kernels."""
    scripts = [check.Script.read(path) for path in check.SELFTESTS.glob("*/*.sh")]
    scripts = [script for script in scripts if script]
    assert any(script.only_on for script in scripts)
    for script in scripts:
        for case, kernels in script.only_on.items():
            assert case in script.cases, (script.name, case)
            assert set(kernels) < set(script.runs), (script.name, case)


@pytest.mark.parametrize(
    "arguments",
    [
        ("--match", "no_such_test"),
        # It is for the VM only.
        ("--kernel", "uml", "--match", "who_is_not_known"),
        # User-mode Linux has guest selftests only.
        ("--kernel", "uml", "--match", "test_balloon"),
    ],
)
def test_nothing_matches(arguments):
    """That is said before anything is built."""
    result = subprocess.run(
        [sys.executable, check.__file__, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": "/no/such/folder"},
    )
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == f"error: no test matches {arguments[-1]!r}\n"


PEER_SCRIPT = f"""#!/bin/bash
# Runs: vm
. {check.ROOT}/selftests/lib.sh
a() {{ echo "# a is run"; }}
b() {{ echo "# b is run"; }}
ours_only "a reason" \\
	b
run_cases a b
"""


def test_what_is_only_ours_is_not_run_on_the_peer(suite):
    """It is said to be skipped, and why."""
    script = suite / "script.sh"
    script.write_text(PEER_SCRIPT)
    for peer, ran in (("", "ab"), ("c", "a")):
        environment = os.environ | {"FERRULE_PEER": peer, "CASES": ""}
        result = subprocess.run(
            ["bash", script], env=environment, stdout=subprocess.PIPE, text=True, check=True
        )
        assert re.findall(r"^# (\w) is run$", result.stdout, re.M) == list(ran)
        line = "ok 2 b # SKIP only ours: a reason" if peer else "ok 2 b"
        assert line in result.stdout.splitlines()
    assert check.Script.read(script).ours_only == {"b": "a reason"}


@pytest.mark.parametrize("peer", ["", "c"])
def test_what_is_only_ours_among_the_hosts(suite, peer):
    """A marker says so; of a test, or of all in a file."""
    shutil.copy(check.ROOT / "selftests/conftest.py", suite)
    file = suite / "tools/test_it.py"
    file.write_text(
        "import pytest\n@pytest.mark.ours('a reason')\ndef test_a():\n    pass\n"
        "def test_b():\n    pass\n"
    )
    command = [sys.executable, "-m", "pytest", "-rs", "-p", "no:cacheprovider", str(file)]
    environment = os.environ | {"FERRULE_PEER": peer, "FERRULE_MATCH": ""}
    result = subprocess.run(
        command, env=environment, stdout=subprocess.PIPE, text=True, check=True, cwd=suite
    )
    assert ("1 passed, 1 skipped" in result.stdout) == bool(peer), result.stdout
    assert ("only ours: a reason" in result.stdout) == bool(peer)


def test_differences_are_those_that_are_known(tmp_path, capsys):
    """A failure that is known is no failure, and one that is gone is."""
    file = tmp_path / "known.txt"
    file.write_text(
        "# Comment.\n\narea/a/one: the C driver cannot: it is C\nhost/test_b/two: why\n"
    )
    known = verdicts.read_differences(file)
    assert known == {"area/a/one": "the C driver cannot: it is C", "host/test_b/two": "why"}
    for statuses, end_line in (
        (("failed", "failed"), "3 passed, 0 failed, 0 skipped"),
        (("failed", "passed"), "2 passed, 1 failed, 0 skipped"),
        (("skipped", "failed"), "2 passed, 0 failed, 1 skipped"),
    ):
        report = verdicts.Report(tmp_path, differences=known)
        never = verdicts.Again("", lambda second: pytest.fail("it is run once more"))
        report.add("stock-x: area/a/one", statuses[0], "details", never)
        report.add("host: test_b/two", statuses[1], "details", never)
        report.add("stock-x: area/a/three", "passed", "", never)
        status, printed = end(report, capsys)
        assert printed[-1] == end_line
        assert status == ("1 failed" in end_line)
        differ = statuses.count("failed")
        assert printed[-2] == f"{differ} differ as is known"
        assert sum(line.startswith("differs ") for line in printed) == differ
        assert ("failed: host: test_b/two" in printed) == (statuses[1] == "passed")


def test_known_differences_are_tests():
    """Each is there, and not among those that are only ours."""
    scripts = [check.Script.read(path) for path in check.SELFTESTS.glob("*/*.sh")]
    scripts = [script for script in scripts if script]
    cases = {
        f"{script.name}/{case}"
        for script in scripts
        for case in script.cases
        if not script.ours and case not in script.ours_only
    }
    cases |= {f"{script.name}/guest" for script in scripts}
    files = sorted((check.SELFTESTS / "host").glob("test_*.py"))
    tests = {name for file in files for name in check.names_in(file)}
    for name, reason in verdicts.read_differences(check.DIFFERENCES).items():
        assert name in cases or name.partition("[")[0] in tests, name
        assert reason
    for script in scripts:
        assert set(script.ours_only) <= set(script.cases), script.name
