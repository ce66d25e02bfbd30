#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Run the tests, as `make check` does.

Host unit tests (cargo), the guest selftests in a VM on the release kernel, host-driven tests
(pytest), and KUnit and the selftests once more on user-mode Linux with KASAN and kmemleak. With
--kernel checking: the functional selftests on a kernel with lockdep, KASAN and object checks.

The last line is "N passed, N failed, N skipped"; the status is non-zero when anything failed.
"""

import argparse
import concurrent.futures
import dataclasses
import os
import pathlib
import re
import subprocess
import sys
import time
import xml.etree.ElementTree

import vm

ROOT = vm.ROOT
SELFTESTS = ROOT / "selftests"
OUT = ROOT / "out" / "check"
# Taint that is expected: out of tree (O), unsigned (E), in-kernel tests (N).
TAINT_ALLOWED = 1 << 12 | 1 << 13 | 1 << 18
KERNELS_OWN = re.compile(r'comm "(swapper/\d+|hardirq|softirq|kworker/\d+:\d+H?|swapon)"')
ALLOCATED_AT = re.compile(r"jiffies (\d+)")
KMEMLEAK = "leaks=/sys/kernel/debug/kmemleak; [ -e $leaks ]"
# What "# Runs:" calls the kernels.
RUNS = {"release": "vm", "uml": "uml", "checking": "checking"}
# A test may run this much longer than it says on an emulated kernel with all checks on.
SLOWNESS = {"release": 1, "uml": 1, "checking": 6}
# User-mode Linux has one CPU, and mostly waits.
UML_GUESTS = 2


def say(text: str) -> None:
    """A progress line."""
    print(f"== {text}", flush=True)


class Report:
    """What passed, failed and was skipped."""

    def __init__(self):
        self.counts = {"passed": 0, "failed": 0, "skipped": 0}
        self.failed: list[str] = []

    def add(self, name: str, status: str, detail: str = "") -> None:
        """One test: passed, failed or skipped."""
        self.counts[status] += 1
        mark = {"passed": "ok", "failed": "FAILED", "skipped": "skipped"}[status]
        print(f"{mark:8}{name}", flush=True)
        if status != "passed" and detail:
            print("\n".join(f"    {line}" for line in detail.splitlines()), flush=True)
        if status == "failed":
            self.failed.append(name)

    def summary(self) -> str:
        """The last line."""
        return ", ".join(f"{self.counts[s]} {s}" for s in ("passed", "failed", "skipped"))


@dataclasses.dataclass
class Script:
    """A guest selftest: a shell script that prints KTAP."""

    path: pathlib.Path
    runs: list[str]
    timeout: int
    cases: list[str]

    @property
    def name(self) -> str:
        """Such as dm-qos/limits."""
        return str(self.path.relative_to(SELFTESTS).with_suffix(""))

    @classmethod
    def read(cls, path: pathlib.Path) -> "Script | None":
        """The header of a script says where it runs; one without is no test."""
        text = path.read_text()
        runs = re.search(r"^# Runs: (.*)$", text, re.M)
        if not runs:
            return None
        timeout = re.search(r"^# Timeout: (\d+)$", text, re.M)
        cases = re.search(r"^run_cases\s+((?:\\\n|.)*)", text, re.M)
        return cls(
            path,
            runs[1].split(),
            int(timeout[1]) if timeout else 60,
            re.findall(r"[\w-]+", cases[1].replace("\\\n", " ")) if cases else [],
        )

    def chosen_cases(self, match: str) -> list[str] | None:
        """Which cases match: [] for all of them, None for none."""
        if re.search(match, self.name):
            return []
        return [case for case in self.cases if re.search(match, f"{self.name}/{case}")] or None


class KtapParser:
    """KTAP by the kernel's own parser, tools/testing/kunit/kunit_parser.py."""

    def __init__(self, kdir: pathlib.Path):
        source = kdir / "source" if (kdir / "source").exists() else kdir
        sys.path.insert(0, str(source / "tools" / "testing" / "kunit"))
        import kunit_parser  # noqa: PLC0415
        import kunit_printer  # noqa: PLC0415

        self.parser = kunit_parser
        self.silent = kunit_printer.Printer(print=False)

    def add(self, report: Report, name: str, output: str) -> None:
        """Add the leaves of a document to the report."""
        test = self.parser.parse_run_tests(output.splitlines(), self.silent)
        status = self.parser.TestStatus
        leaves = []

        def walk(node, prefix):
            for subtest in node.subtests:
                walk(subtest, f"{prefix}/{subtest.name}")
            if not node.subtests:
                leaves.append((prefix, node))

        walk(test, name)
        known = {status.SUCCESS: "passed", status.SKIPPED: "skipped"}
        good = True
        for leaf, node in leaves:
            verdict = known.get(node.status, "failed")
            good = good and verdict != "failed"
            report.add(leaf, verdict, "\n".join([*node.log, node.skip_reason]).strip())
        if good and (test.counts.errors or not leaves):
            report.add(f"{name}/output", "failed", f"this is not whole KTAP:\n{output[-4000:]}")


def run_unit(report: Report, match: str) -> None:
    """Host unit tests of the code that decides."""
    say("host unit tests (cargo test)")
    command = ["cargo", "test", "--quiet", "--manifest-path", str(SELFTESTS / "unit/Cargo.toml")]
    command += ["--target-dir", str(ROOT / "out/unit"), "--", "--format=pretty"]
    environment = {k: v for k, v in os.environ.items() if k not in ("RUSTC", "MAKEFLAGS")}
    result = subprocess.run(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    verdicts = {"ok": "passed", "FAILED": "failed", "ignored": "skipped"}
    failed = 0
    for name, verdict in re.findall(
        r"^test (\S+)(?: - should panic)? \.\.\. (ok|FAILED|ignored)", result.stdout, re.M
    ):
        if re.search(match, f"unit/{name}"):
            report.add(f"unit/{name}", verdicts[verdict], result.stdout[-6000:])
            failed += verdict == "FAILED"
    if result.returncode and not failed:
        report.add("unit/cargo test", "failed", result.stdout[-6000:])


def run_guests(
    report: Report, kernel: str, kdir: pathlib.Path, match: str, at_once: int = 1
) -> None:
    """The guest selftests of one kernel, in so many guests at once."""
    chosen = []
    for script in [Script.read(path) for path in sorted(SELFTESTS.glob("*/*.sh"))]:
        if script and RUNS[kernel] in script.runs:
            cases = script.chosen_cases(match)
            if cases is not None:
                chosen.append((script, cases))
    with concurrent.futures.ThreadPoolExecutor() as pool:
        guests = [
            pool.submit(run_guest, report, kernel, kdir, chosen, number + 1)
            for number in range(min(at_once, len(chosen)))
        ]
        for guest in guests:
            guest.result()
    for script, _ in chosen:
        report.add(f"{kernel}: {script.name}", "failed", "no guest boots")


def run_guest(report, kernel, kdir, chosen, number) -> None:
    """Scripts from those that are left, as many a boot as nothing goes wrong."""
    ktap = KtapParser(kdir)
    boots = 0
    while chosen:
        ran = False
        boots += 1
        name = f"{kernel}-{number}-{boots}"
        log = OUT / f"{name}.log"
        options = vm.Options(kernel=kernel, kdir=kdir, memory="1G", log=log)
        options.udev = False
        options.boot_timeout *= SLOWNESS[kernel]
        say(f"booting a guest on the {kernel} kernel (kernel log: {log.relative_to(ROOT)})")
        try:
            with vm.Guest(options) as guest:
                # What was allocated before the first of our modules is none of ours.
                booted = int(guest.check("awk '/^jiffies:/ { print $2; exit }' /proc/timer_list"))
                while chosen:
                    # Other guests take from the same list.
                    try:
                        script, cases = chosen.pop(0)
                    except IndexError:
                        break
                    ran = True
                    run_script(report, ktap, guest, kernel, script, cases)
                finish_guest(report, guest, f"{kernel}: guest {name}", booted)
        except vm.GuestError as error:
            report.add(f"{kernel}: guest {name}", "failed", str(error))
            if not ran:
                return


def run_script(report, ktap, guest, kernel, script, cases) -> None:
    """One script; a guest that dies under it is reported by name."""
    name = f"{kernel}: {script.name}"
    say(name)
    started = time.monotonic()
    command = f"CASES={' '.join(cases)!r} bash {script.path}"
    lines: list[str] = []
    before = len(guest.check_log())
    try:
        _, output = guest.run(command, script.timeout * SLOWNESS[kernel], lines.append)
    except vm.GuestError as error:
        report.add(f"{name}/guest", "failed", "\n".join([*lines[-30:], str(error)]))
        raise
    ktap.add(report, name, output)
    for line in guest.check_log()[before:]:
        report.add(f"{name}/kernel log", "failed", line)
    say(f"{name}: {time.monotonic() - started:.0f} s")


def find_leaks(guest, since: int) -> list[str]:
    """kmemleak's reports on what was allocated since then, in jiffies.

    It looks twice, for it takes nothing younger than 5 s for a leak. User-mode Linux has no
    backtraces, so the task that allocated it tells whose memory it is. The kernel's own interrupts,
    per-CPU workers (blk-mq, SCSI) and swapon(2) keep pointers where the scanner does not look; our
    modules allocate in none of them.
    """
    _, output = guest.run(
        f"{KMEMLEAK} || exit 0; echo scan >$leaks; sleep 6; echo scan >$leaks; cat $leaks",
        timeout=120 * SLOWNESS[guest.options.kernel],
    )
    reports = re.split(r"^(?=unreferenced object)", output, flags=re.M)
    return [
        report
        for report in reports
        if (allocated := ALLOCATED_AT.search(report))
        and int(allocated[1]) >= since
        and not KERNELS_OWN.search(report)
    ]


def finish_guest(report, guest, name, booted) -> None:
    """What must hold at the end of each guest: a clean log, no leak, no unexpected taint."""
    _, taint = guest.run("cat /proc/sys/kernel/tainted")
    problems = guest.check_log()
    problems += find_leaks(guest, booted)
    if int(taint) & ~TAINT_ALLOWED:
        problems.append(f"the kernel is tainted: {taint}")
    report.add(
        f"{name}: no splat, no leak", "failed" if problems else "passed", "\n".join(problems)
    )


def run_host(report: Report, match: str) -> None:
    """Tests that the host drives: QMP, several guests, unplug."""
    say("host-driven tests (pytest)")
    results = OUT / "host.xml"
    results.unlink(missing_ok=True)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        str(SELFTESTS / "host"),
    ]
    command += [f"--junitxml={results}", "--tb=short"]
    with subprocess.Popen([*command, *matching_nodes(match)]) as pytest:
        try:
            status = pytest.wait()
        except BaseException:
            # It has guests of its own to end.
            pytest.terminate()
            raise
    if not results.exists():
        report.add("host/pytest", "failed", f"pytest ended with {status}")
        return
    for case in xml.etree.ElementTree.parse(results).iter("testcase"):
        name = f"host: {case.get('classname').split('.')[-1]}/{case.get('name')}"
        problem = next((e for e in case if e.tag in ("failure", "error", "skipped")), None)
        if problem is None:
            report.add(name, "passed")
        else:
            verdict = "skipped" if problem.tag == "skipped" else "failed"
            report.add(name, verdict, problem.get("message", ""))


def matching_nodes(match: str) -> list[str]:
    """pytest's selection for a pattern: -k takes words, so that is what a pattern may have."""
    if not match:
        return []
    return ["-k", " or ".join(re.findall(r"\w+", match))]


def build(kernel: str) -> pathlib.Path:
    """The kernel and the modules for it."""
    kdir = subprocess.run(
        [ROOT / "scripts/kernel.sh", kernel], stdout=subprocess.PIPE, text=True, check=True
    ).stdout.strip()
    say(f"building the modules for the {kernel} kernel")
    output = ROOT / "out/modules" / kernel
    subprocess.run([ROOT / "scripts/modules.sh", kdir, output], check=True)
    return pathlib.Path(kdir)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kernel", default="release", choices=["release", "checking", "uml"])
    parser.add_argument("--match", default="", help="only tests whose name has this (a regex)")
    args = parser.parse_args()
    vm.kill_guests_on_signal()
    OUT.mkdir(parents=True, exist_ok=True)
    report = Report()
    started = time.monotonic()
    try:
        if args.kernel == "release":
            release, uml = build("release"), build("uml")
            # What is timed runs alone; the rest waits more than it computes.
            run_guests(report, "release", release, args.match)
            with concurrent.futures.ThreadPoolExecutor() as pool:
                beside = pool.submit(run_guests, report, "uml", uml, args.match, UML_GUESTS)
                run_unit(report, args.match)
                run_host(report, args.match)
                beside.result()
        else:
            run_guests(report, args.kernel, build(args.kernel), args.match)
    except subprocess.CalledProcessError as error:
        report.add(f"build ({pathlib.Path(error.cmd[0]).name})", "failed", str(error))
    for name in report.failed:
        print(f"failed: {name}")
    say(f"{(time.monotonic() - started) / 60:.0f} minutes")
    if not any(report.counts.values()):
        print(f"error: no test matches {args.match!r}", file=sys.stderr)
        return 2
    print(report.summary())
    return 1 if report.counts["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
