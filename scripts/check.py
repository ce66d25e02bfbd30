#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Run the tests, as `make check` does.

Host unit tests (cargo, pytest), the guest selftests in a VM on a distribution's own kernel,
host-driven tests (pytest), KUnit and the selftests once more on user-mode Linux with KASAN and
kmemleak. With --kernel release: the same on the custom kernel, which is built first. With --kernel
checking: the functional selftests on a kernel with lockdep, KASAN and object checks. With --kernel
stock-NAME: what depends on the kernel.

With --peer c the tests of our drivers are run against the C drivers that they take the place of.
What those are known to fail is in selftests/peer-c.txt: it must fail, and nothing else may.

A case that fails is run once more by itself, when all others are done. If it passes then, it is
printed as unstable and counts as passed; more than two unstable ones fail. What a kernel log says,
leaks and taint stay failures whatever happens then. Both outputs are in out/check/again/.

The last line is "N passed, N failed, N skipped"; the status is non-zero when anything failed.
"""

import argparse
import concurrent.futures
import copy
import dataclasses
import functools
import glob
import itertools
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import xml.etree.ElementTree
from collections.abc import Callable, Iterator
from typing import ClassVar

import vm
from verdicts import Again, Report, read_differences, say

ROOT = vm.ROOT
SELFTESTS = ROOT / "selftests"
OUT = ROOT / "out" / "check"
# Taint that is expected: out of tree (O), unsigned (E), in-kernel tests (N).
TAINT_ALLOWED = 1 << 12 | 1 << 13 | 1 << 18
KERNELS_OWN = re.compile(r'comm "(swapper/\d+|hardirq|softirq|kworker/\d+:\d+H?|swapon)"')
ALLOCATED_AT = re.compile(r"jiffies (\d+)")
# The rest of a shell command.
WORDS = r"((?:\\\n|.)*)"
# A test fails by this when a kernel log says that something is wrong.
SPLAT = re.compile(r"^[E| ]*vm\.Splat: ", re.M)
KMEMLEAK = "leaks=/sys/kernel/debug/kmemleak; [ -e $leaks ]"
# What "# Runs:" calls the kernels.
RUNS = {"release": "vm", "uml": "uml", "checking": "checking", **dict.fromkeys(vm.STOCK, "vm")}
# A test may run this much longer than it says, beside others.
BUSY = 3
# Which implementation is tested: "c", or ours. Guests and pytest are told.
PEER = vm.PEER
DIFFERENCES = SELFTESTS / "peer-c.txt"
# How many guests at once: more find no time for their timers.
AT_ONCE = max(os.cpu_count() or 2, 2)
# Host-driven tests that run with the checking kernel, and those that take too long otherwise.
CHECKED = (
    "test_balloon_locks",
    "test_balloon_sleep",
    "test_balloon_migration",
    "test_in_tree_build",
)
SLOW = {"test_in_tree_build", "test_package"}
# Of host unit tests.
CRATES = ("unit", "vhost", "control")
# All that runs on an architecture that is not this machine's, which takes long.
SHORT = {
    "balloon/module",
    "dm-qos/data",
    "dm-qos/module",
    "dm-qos/text",
    "linear-rs/linear",
    "mpath-sel/names",
    "mpath-sel/text",
}
# Host-driven tests of which the kernel is user-mode Linux, whatever the others run on.
ON_UML = {"test_balloon_vhost", "test_check_guests", "test_in_tree"}
# Host-driven tests that boot none.
ON_NONE = {"test_headers_shipped"}
# Host-driven tests that begin first, so that none of them is left alone in the end.
LONGEST = (
    "test_stack",
    "test_balloon_vhost",
    "test_iscsi",
    "test_balloonctl",
    "test_balloon_kind",
)
# They have two guests each, which together have more CPUs than there are: one of them at a time.
TWO_GUESTS = {"test_stack", "test_iscsi", "test_balloonctl"}
# They wait for most of their time: one of them may run beside AT_ONCE others.
WAITING = {"test_balloon_vhost", "test_balloonctl", "test_balloonctl_libvirt"}


def run_measured(report: Report, part: str, command: list, **options) -> tuple[int, str]:
    """Run a command as a part of the run; its status and its standard output, if that is a pipe."""
    began = time.monotonic()
    with subprocess.Popen(command, text=True, **options) as process:
        output = process.stdout.read() if process.stdout else ""
        report.parts.add(part, began, reap(process))
    return process.returncode, output


def reap(process: subprocess.Popen) -> float:
    """Wait for its end; the CPU time that it took, with what it has waited for itself."""
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return usage.ru_utime + usage.ru_stime


def words_of(text: str) -> list[str]:
    """The words of a shell command that may go over several lines."""
    return re.findall(r"[\w-]+", text.replace("\\\n", " "))


@dataclasses.dataclass
class Script:
    """A guest selftest: a shell script that prints KTAP."""

    path: pathlib.Path
    runs: list[str]
    # What it measures depends on what else the machine does.
    alone: bool
    timeout: int
    cases: list[str]
    # Cases that are for some of these kernels only.
    only_on: dict[str, list[str]]
    # Why it makes no sense of the C driver, if it does not; and cases that do not.
    ours: str | None
    ours_only: dict[str, str]

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
        # Commands of selftests/lib.sh.
        cases = re.search(rf"^run_cases\s+{WORDS}", text, re.M)
        only = re.findall(rf'^only_on\s+(\w+|"[\w ]+")\s+{WORDS}', text, re.M)
        ours = re.search(r"^# Ours: (.*)$", text, re.M)
        ours_only = re.findall(rf'^ours_only\s+"(.*?)"\s+{WORDS}', text, re.M)
        return cls(
            path,
            runs[1].split(),
            bool(re.search(r"^# Alone:", text, re.M)),
            int(timeout[1]) if timeout else 60,
            words_of(cases[1]) if cases else [],
            {case: words_of(kernels) for kernels, names in only for case in words_of(names)},
            ours[1] if ours else None,
            {case: reason for reason, names in ours_only for case in words_of(names)},
        )

    def cases_on(self, kernel: str) -> list[str]:
        """Which cases are for this kernel."""
        return [case for case in self.cases if RUNS[kernel] in self.only_on.get(case, self.runs)]

    def chosen_cases(self, kernel: str, match: str) -> list[str] | None:
        """Which cases are for this kernel and match: [] for all of them, None for none."""
        if RUNS[kernel] not in self.runs:
            return None
        cases = self.cases_on(kernel)
        if re.search(match, self.name):
            return [] if cases or not self.cases else None
        return [case for case in cases if re.search(match, f"{self.name}/{case}")] or None


class KtapParser:
    """KTAP by the kernel's own parser, tools/testing/kunit/kunit_parser.py."""

    def __init__(self, kdir: pathlib.Path):
        source = kdir / "source" if (kdir / "source").exists() else kdir
        sys.path.insert(0, str(source / "tools" / "testing" / "kunit"))
        import kunit_parser  # noqa: PLC0415
        import kunit_printer  # noqa: PLC0415

        self.parser = kunit_parser
        self.silent = kunit_printer.Printer(print=False)

    def add(
        self, report: Report, name: str, output: str, again: Callable[[str | None], Again]
    ) -> None:
        """Add the leaves of a document to the report.

        `again` says how a case is run once more, or all of them.
        """
        test = self.parser.parse_run_tests(output.splitlines(), self.silent)
        status = self.parser.TestStatus
        leaves = []

        def walk(node, prefix):
            for subtest in node.subtests:
                walk(subtest, f"{prefix}/{subtest.name}")
            if not node.subtests:
                leaves.append((prefix, node))

        walk(test, name)
        if leaves == [(name, test)]:
            detail = f"there is no test in it:\n{output[-4000:]}"
            report.add(name, "failed", detail, again(None))
            return
        known = {status.SUCCESS: "passed", status.SKIPPED: "skipped"}
        good = True
        for leaf, node in leaves:
            verdict = known.get(node.status, "failed")
            good = good and verdict != "failed"
            detail = "\n".join([*node.log, node.skip_reason]).strip()
            report.add(leaf, verdict, detail, again(leaf.removeprefix(f"{name}/")))
        if good and (test.counts.errors or not leaves):
            detail = f"this is not whole KTAP:\n{output[-4000:]}"
            report.add(f"{name}/output", "failed", detail, again(None))


def run_unit(report: Report, match: str, name: str = "unit", only: str | None = None) -> str:
    """Host unit tests of the code that decides, or of another crate of the tests; what cargo says.

    All that match, or only the one that is named.
    """
    say(f"host unit tests (cargo test, {name})")
    # It runs beside tests that measure rates.
    command = ["nice", "-n", "19", "cargo", "test", "--quiet"]
    command += ["--manifest-path", str(SELFTESTS / name / "Cargo.toml")]
    command += ["--target-dir", str(OUT.parent / name), "--", "--format=pretty"]
    if only:
        command += ["--exact", only]
    status, output = run_measured(
        report,
        "unit tests",
        command,
        env={k: v for k, v in os.environ.items() if k not in ("RUSTC", "MAKEFLAGS")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    verdicts = {"ok": "passed", "FAILED": "failed", "ignored": "skipped"}
    failed = 0
    for test, verdict in re.findall(
        r"^test (\S+)(?: - should panic)? \.\.\. (ok|FAILED|ignored)", output, re.M
    ):
        if re.search(match, f"{name}/{test}"):
            again = Again(output, lambda second, test=test: run_unit(second, "", name, test))
            report.add(f"{name}/{test}", verdicts[verdict], output[-6000:], again)
            failed += verdict == "FAILED"
    if status and not failed:
        report.add(f"{name}/cargo test", "failed", output[-6000:])
    return output


Entry = tuple[Script, list[str]]


def chosen_scripts(kernel: str, match: str, short: bool = False) -> list[Entry]:
    """The guest selftests that are for a kernel and match, with those of their cases that do."""
    chosen = []
    for path in sorted(SELFTESTS.glob("*/*.sh")):
        script = Script.read(path)
        if script and (not short or script.name in SHORT):
            cases = script.chosen_cases(kernel, match)
            if cases is not None:
                chosen.append((script, cases))
    return chosen


class Queue:
    """The guest selftests of one kernel that are still to be run, for all of its guests."""

    def __init__(self, report: Report, kernel: str, kdir: pathlib.Path, entries: list[Entry]):
        self.report, self.kernel, self.kdir = report, kernel, kdir
        self.ktap = KtapParser(kdir)
        self.numbers = itertools.count(1)
        self.left = list(entries)
        # What scripts said, if somebody wants to know.
        self.said: list[str] = []
        if PEER:
            for script, _ in self.left:
                if script.ours:
                    report.add(f"{kernel}: {script.name}", "skipped", f"only ours: {script.ours}")
            self.left = [entry for entry in self.left if not entry[0].ours]
        config = kdir / ".config"
        self.finds_leaks = "\nCONFIG_DEBUG_KMEMLEAK=y" in config.read_text()

    def take_alone(self) -> "Queue":
        """A queue of those that are to run alone."""
        alone = copy.copy(self)
        alone.left = [entry for entry in self.left if entry[0].alone]
        self.left = [entry for entry in self.left if not entry[0].alone]
        return alone

    def next(self) -> Entry | None:
        """Other guests take from it, too."""
        try:
            return self.left.pop(0)
        except IndexError:
            return None

    def fail_what_is_left(self) -> None:
        """When no guest boots."""
        for script, _ in self.left:
            self.report.add(f"{self.kernel}: {script.name}", "failed", "no guest boots")

    def again(self, output: str, log: pathlib.Path, entries: list[Entry]) -> Again:
        """How these are run once more, in a guest of their own."""

        def run(second: Report) -> str:
            by_themselves = copy.copy(self)
            by_themselves.report, by_themselves.left = second, list(entries)
            by_themselves.said = []
            run_guest(by_themselves)
            by_themselves.fail_what_is_left()
            return "\n".join(by_themselves.said)

        return Again(f"{output}\nkernel log: {log}\n", run)


class GuestDiedError(vm.GuestError):
    """A guest died under a script, which is reported."""


def run_guest(queue: Queue) -> None:
    """Scripts from a queue, as many a boot as nothing goes wrong."""
    # Taken before the guest boots, so that none boots for what another one takes meanwhile.
    while entry := queue.next():
        ran: list[Entry] = []
        name = f"{queue.kernel}-{next(queue.numbers)}"
        log = OUT / f"{name}.log"
        options = vm.Options(kernel=queue.kernel, kdir=queue.kdir, memory="1G", log=log)
        options.udev = False
        options.boot_timeout *= vm.SLOWNESS[queue.kernel]
        say(f"booting a guest on the {queue.kernel} kernel (kernel log: {log})")
        began = time.monotonic()
        guest = vm.Guest(options)
        try:
            with guest:
                # What was allocated before the first of our modules is none of ours.
                booted = int(guest.check("awk '/^jiffies:/ { print $2; exit }' /proc/timer_list"))
                while entry:
                    ran.append(entry)
                    run_script(queue, guest, ran)
                    entry = queue.next()
                finish_guest(queue.report, guest, f"{queue.kernel}: guest {name}", booted)
        except GuestDiedError:
            pass
        except vm.GuestError as error:
            queue.report.add(f"{queue.kernel}: guest {name}", "failed", str(error))
            if not ran:
                queue.left.insert(0, entry)
                return
        finally:
            queue.report.parts.add(f"guests {queue.kernel}", began, guest.cpu)


def run_script(queue: Queue, guest: vm.Guest, ran: list[Entry]) -> None:
    """The last one of what a guest ran. One under which the guest dies is reported by name."""
    script, cases = ran[-1]
    report, name = queue.report, f"{queue.kernel}: {script.name}"
    say(name)
    started, cpu = time.monotonic(), guest.cpu_seconds()
    timeout = script.timeout * max(BUSY, vm.SLOWNESS[queue.kernel])
    command = f"CASES={' '.join(cases)!r} bash {script.path}"
    lines: list[str] = []
    before = len(guest.check_log())
    died = None
    try:
        guest.run(command, timeout, lines.append)
    except vm.GuestError as error:
        died = error
    output = "\n".join(lines)
    queue.said += [output, f"kernel log: {guest.log}", str(died or "")]
    splats = guest.check_log()[before:]
    for line in splats:
        report.add(f"{name}/kernel log", "failed", line)
    if died:
        # Nobody has looked for leaks of what it ran before: that is done then.
        entries = ran if queue.finds_leaks else ran[-1:]
        again = queue.again(f"{output}\n{died}", guest.log, entries)
        detail = "\n".join([*lines[-30:], str(died)])
        report.add(f"{name}/guest", "failed", detail, None if splats else again)
        raise GuestDiedError(str(died))
    queue.ktap.add(
        report,
        name,
        output,
        lambda case: queue.again(
            output, guest.log, [(script, [case] if case in script.cases else cases)]
        ),
    )
    elapsed, cpu = time.monotonic() - started, guest.cpu_seconds() - cpu
    say(f"{name}: {elapsed:.0f} s, CPU time {cpu:.0f} s")


def find_leaks(guest, since: int) -> list[str]:
    """kmemleak's reports on what was allocated since then, in jiffies.

    It looks twice, for it takes nothing younger than 5 s for a leak. User-mode Linux has no
    backtraces, so the task that allocated it tells whose memory it is. The kernel's own interrupts,
    per-CPU workers (blk-mq, SCSI) and swapon(2) keep pointers where the scanner does not look; our
    modules allocate in none of them.
    """
    _, output = guest.run(
        f"{KMEMLEAK} || exit 0; echo scan >$leaks; sleep 6; echo scan >$leaks; cat $leaks",
        timeout=120 * vm.SLOWNESS[guest.options.kernel],
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


class HostTests:
    """Tests that the host drives, and those of the host's tools. A file at a time."""

    running: ClassVar[set[subprocess.Popen]] = set()
    no_more: ClassVar[bool] = False

    @classmethod
    def run(
        cls, report: Report, path: pathlib.Path, match: str, kernel: str, only: str | None = None
    ) -> str:
        """The tests of a file that match, or only the one that is named; what pytest says.

        `kernel` is that of their guests.
        """
        prefix = {"host": "host: ", "tools": "unit/"}[path.parent.name]
        say(f"{prefix}{path.stem}")
        stem = f"{path.stem}.again" if only else path.stem
        results, log = OUT / f"{stem}.xml", OUT / f"{stem}.txt"
        results.unlink(missing_ok=True)
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
        command += [f"{path}::{only}" if only else str(path)]
        command += [f"--junitxml={results}", "--tb=short"]
        # For selftests/conftest.py, and for vm.py.
        environment = os.environ | {"FERRULE_MATCH": match, "FERRULE_HOST_KERNEL": kernel}
        began = time.monotonic()
        with (
            log.open("w") as output,
            subprocess.Popen(
                command, env=environment, stdout=output, stderr=subprocess.STDOUT
            ) as pytest,
        ):
            cls.running.add(pytest)
            if cls.no_more:
                pytest.terminate()
            # With what its guests have used.
            cpu = reap(pytest)
            cls.running.discard(pytest)
        part = {"host": f"host tests {kernel}", "tools": "tests of the tools"}[path.parent.name]
        report.parts.add(part, began, cpu)
        said = log.read_text(errors="replace")
        # All passed, some failed, none chosen.
        if pytest.returncode not in (0, 1, 5) or not results.exists():
            report.add(f"{prefix}{path.stem}/pytest", "failed", said[-6000:])
            return said
        # One that fails, and then in its clean-up, too, is there twice.
        cases: dict[str, list[xml.etree.ElementTree.Element]] = {}
        for case in xml.etree.ElementTree.parse(results).iter("testcase"):
            problems = [e for e in case if e.tag in ("failure", "error", "skipped")]
            cases.setdefault(case.get("name"), []).extend(problems)
        for name, problems in cases.items():
            details = [
                f"{problem.get('message', '')}\n{problem.text or ''}" for problem in problems
            ]
            verdict = "failed" if problems else "passed"
            if problems and all(problem.tag == "skipped" for problem in problems):
                verdict = "skipped"
            again = None
            if verdict == "failed" and not any(map(SPLAT.search, details)):
                again = Again(
                    said, functools.partial(cls._run_again, path=path, kernel=kernel, only=name)
                )
            report.add(f"{prefix}{path.stem}/{name}", verdict, "\n".join(details), again)
        if cases:
            elapsed = time.monotonic() - began
            say(f"{prefix}{path.stem}: {elapsed:.0f} s, CPU time {cpu:.0f} s")
        return said

    @classmethod
    def _run_again(cls, report: Report, path: pathlib.Path, kernel: str, only: str) -> str:
        """One test. The kernel logs of the first time are kept, too."""
        for name in (only, path.stem):
            for log in OUT.glob(f"host-{glob.escape(name)}-*.log"):
                report.folder.mkdir(parents=True, exist_ok=True)
                shutil.copy(log, report.folder)
        return cls.run(report, path, "", kernel, only)

    @classmethod
    def end(cls) -> None:
        """They have guests of their own to end."""
        cls.no_more = True
        for pytest in list(cls.running):
            pytest.terminate()


def names_in(path: pathlib.Path) -> list[str]:
    """The tests of a file for pytest, but for what parameters make of them."""
    prefix = {"host": "host", "tools": "unit"}[path.parent.name]
    tests = re.findall(r"^ *def (test_\w+)", path.read_text(), re.M)
    return [f"{prefix}/{path.stem}/{test}" for test in tests]


def chosen_crates(match: str) -> list[str]:
    """The crates of host unit tests that have one that may match."""

    def names_in_crate(crate: str) -> Iterator[str]:
        for path in sorted((SELFTESTS / crate / "src").rglob("*.rs")):
            # Its module, as cargo names it, and what is in there.
            for test in re.findall(r"\bfn (\w+)", path.read_text()):
                yield f"{crate}/{path.stem}::tests::{test}"

    return [crate for crate in CRATES if any(re.search(match, n) for n in names_in_crate(crate))]


def chosen_files(match: str, files: list[pathlib.Path]) -> list[pathlib.Path]:
    """The files for pytest with a test that may match."""

    def may_match(path: pathlib.Path) -> bool:
        # check.py also prints "host: ". What has parameters in it cannot be known before.
        names = [name for test in names_in(path) for name in (test, test.replace("/", ": ", 1))]
        return "[" in match or any(re.search(match, name) for name in names)

    return [path for path in files if may_match(path)]


def build(report: Report, kernel: str) -> pathlib.Path:
    """The kernel and the modules for it."""
    command = [ROOT / "scripts/kernel.sh", kernel]
    status, output = run_measured(report, f"kernel {kernel}", command, stdout=subprocess.PIPE)
    if status:
        raise subprocess.CalledProcessError(status, command)
    kdir = output.strip()
    say(f"building the modules for the {kernel} kernel")
    command = [ROOT / "scripts/modules.sh", kdir, ROOT / "out/modules" / kernel]
    status, _ = run_measured(report, f"modules {kernel}", command)
    if status:
        raise subprocess.CalledProcessError(status, command)
    if kernel not in vm.ARM:
        build_programs()
    return pathlib.Path(kdir)


def build_programs() -> None:
    """What tests run in a guest."""
    command = ["cargo", "build", "--quiet", "--locked", "--release"]
    command += ["--manifest-path", str(SELFTESTS / "control/Cargo.toml")]
    command += ["--target-dir", str(ROOT / "out/control")]
    environment = {k: v for k, v in os.environ.items() if k not in ("RUSTC", "MAKEFLAGS")}
    subprocess.run(command, env=environment, check=True)


@dataclasses.dataclass(eq=False)
class Job:
    """Something to run."""

    function: Callable[..., None]
    arguments: tuple
    # Not beside another one of which this is true.
    heavy: bool = False
    # It mostly waits.
    light: bool = False


class Jobs:
    """What is to be run, for workers that take what comes next and may run."""

    def __init__(self, jobs: list[Job]):
        self.left = list(jobs)
        self.heavy_runs = False
        self.changed = threading.Condition()

    def _take(self, only_light: bool) -> Job | None:
        with self.changed:
            while left := [job for job in self.left if job.light or not only_light]:
                for job in left:
                    if not (job.heavy and self.heavy_runs):
                        self.left.remove(job)
                        self.heavy_runs |= job.heavy
                        return job
                self.changed.wait()
            return None

    def work(self, only_light: bool) -> None:
        """Until there is nothing left to take."""
        while job := self._take(only_light):
            try:
                job.function(*job.arguments)
            finally:
                with self.changed:
                    self.heavy_runs &= not job.heavy
                    self.changed.notify_all()

    def forget(self) -> None:
        """What is left is not run."""
        with self.changed:
            self.left.clear()
            self.changed.notify_all()


def run_at_once(jobs: list[Job]) -> None:
    """AT_ONCE at once and a light one, in order as far as they may."""
    left = Jobs(jobs)
    with concurrent.futures.ThreadPoolExecutor(AT_ONCE + 1) as pool:
        try:
            workers = [pool.submit(left.work, n == AT_ONCE) for n in range(AT_ONCE + 1)]
            for worker in concurrent.futures.as_completed(workers):
                worker.result()
        except BaseException:
            left.forget()
            HostTests.end()
            for guest in list(vm.Guest.running):
                guest.kill()
            raise


def jobs_of(report: Report, match: str, kernel: str, files: list[pathlib.Path]) -> list[Job]:
    """Host-driven tests with this kernel, the longest first."""
    first = {stem: number for number, stem in enumerate(LONGEST)}
    return [
        Job(
            HostTests.run,
            (report, path, match, kernel),
            path.stem in TWO_GUESTS,
            path.stem in WAITING,
        )
        for path in sorted(files, key=lambda path: (first.get(path.stem, len(first)), path))
    ]


@dataclasses.dataclass
class Chosen:
    """Which tests match of those that are run with a kernel."""

    kernel: str
    match: str
    scripts: list[Entry]
    # For pytest.
    files: list[pathlib.Path]

    @classmethod
    def of(cls, kernel: str, match: str, whole: bool = False) -> "Chosen":
        """`whole`: also what does not depend on the kernel."""
        host, tools = (sorted((SELFTESTS / area).glob("test_*.py")) for area in ("host", "tools"))
        if kernel == "uml" or kernel in vm.ARM:
            files = []
        elif kernel == "checking":
            files = [path for path in host if path.stem in CHECKED]
        elif whole:
            files = [path for path in (*host, *tools) if path.stem not in SLOW]
        else:
            files = [path for path in host if path.stem not in ON_UML | ON_NONE | SLOW]
            # Compilers differ in what they refuse, and in how they say so.
            files += [path for path in tools if path.stem == "test_rules"]
        if PEER:
            # What is left is not about a driver.
            files = [path for path in files if path in host]
        scripts = chosen_scripts(kernel, match, kernel in vm.ARM)
        return cls(kernel, match, scripts, chosen_files(match, files))

    def __bool__(self) -> bool:
        return bool(self.scripts or self.files)

    def needs_kernel(self) -> bool:
        """Most tests of the host's tools need none, and some have user-mode Linux."""
        stems = {path.stem for path in self.files if path.parent.name == "host"}
        stems -= ON_UML | ON_NONE
        return bool(self.scripts or stems or "test_rules" in [path.stem for path in self.files])

    def queue(self, report: Report) -> Queue:
        """Its scripts, once the kernel is built."""
        return Queue(report, self.kernel, build(report, self.kernel), self.scripts)

    def host_jobs(self, report: Report) -> list[Job]:
        """Its files."""
        return jobs_of(report, self.match, self.kernel, self.files)


def run_all(report: Report, chosen: Chosen, uml: Chosen, crates: list[str]) -> None:
    """All that needs no slow kernel, with the one that is chosen in the VM."""
    queues = [chosen.queue(report)] if chosen.needs_kernel() else []
    # Some files have user-mode Linux for their guests.
    if uml.scripts or [path for path in chosen.files if path.stem in ON_UML]:
        queues.append(uml.queue(report))
    units = [Job(run_unit, (report, chosen.match, crate)) for crate in crates]
    alone = [Job(run_guest, (queue.take_alone(),)) for queue in queues[:1] if chosen.scripts]
    run_at_once([*alone, *units])
    # A further guest of a kernel shortens the end: it takes what scripts are left.
    guests = [Job(run_guest, (queue,)) for queue in queues]
    run_at_once([*guests, *chosen.host_jobs(report), *guests])
    for queue in queues:
        queue.fail_what_is_left()


def run_on(report: Report, chosen: Chosen) -> None:
    """All that is chosen, on another kernel, beside each other where that is fast enough."""
    queue = chosen.queue(report)
    if chosen.kernel == "checking":
        run_guest(queue)
        for job in chosen.host_jobs(report):
            job.function(*job.arguments)
    else:
        run_guest(queue.take_alone())
        guest = Job(run_guest, (queue,))
        run_at_once([guest, *chosen.host_jobs(report), guest])
    queue.fail_what_is_left()


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kernel", choices=[*RUNS, "stock-all"], help="none: all tests")
    parser.add_argument("--match", default="", help="only tests whose name has this (a regex)")
    parser.add_argument("--peer", choices=["c"], help="which implementation; none: ours")
    args = parser.parse_args()
    if args.peer and not PEER:
        # From the start, as all that is imported looks at it.
        os.environ["FERRULE_PEER"] = args.peer
        os.execv(sys.executable, [sys.executable, *sys.argv])
    vm.kill_guests_on_signal()
    signal.signal(signal.SIGINT, signal.getsignal(signal.SIGTERM))
    is_whole = args.kernel in (None, "release")
    kernels = [args.kernel]
    if is_whole:
        kernels = [args.kernel or vm.STOCK[0], "uml"]
    elif args.kernel == "stock-all":
        kernels = vm.STOCK
    chosen = [Chosen.of(name, args.match, is_whole) for name in kernels]
    crates = chosen_crates(args.match) if is_whole and not PEER else []
    packages = [SELFTESTS / "host/test_package.py"] if args.kernel == "stock-all" else []
    packages = chosen_files(args.match, packages)
    if not any((*chosen, crates, packages)):
        print(f"error: no test matches {args.match!r}", file=sys.stderr)
        return 2
    OUT.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(OUT / "again", ignore_errors=True)
    differences = read_differences(DIFFERENCES) if PEER else {}
    report = Report(OUT / "again", differences=differences)
    try:
        if is_whole:
            run_all(report, *chosen, crates)
        else:
            for one in filter(None, chosen):
                run_on(report, one)
        for path in packages:
            HostTests.run(report, path, args.match, vm.STOCK[0])
    except subprocess.CalledProcessError as error:
        report.add(f"build ({pathlib.Path(error.cmd[0]).name})", "failed", str(error))
    report.run_again()
    if not report.entries:
        print(f"error: no test matches {args.match!r}", file=sys.stderr)
        return 2
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
