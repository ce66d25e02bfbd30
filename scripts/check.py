#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Run the tests, as `make check` does.

Host unit tests (cargo, pytest), the guest selftests in a VM on the release kernel, host-driven
tests (pytest), KUnit and the selftests once more on user-mode Linux with KASAN and kmemleak, and a
short list on a distribution's own kernel. With --kernel release: the same without the last. With
--kernel checking: the functional selftests on a kernel with lockdep, KASAN and object checks. With
--kernel stock-NAME: what depends on the kernel.

The last line is "N passed, N failed, N skipped"; the status is non-zero when anything failed.
"""

import argparse
import concurrent.futures
import copy
import dataclasses
import itertools
import os
import pathlib
import re
import signal
import subprocess
import sys
import threading
import time
import xml.etree.ElementTree
from collections.abc import Callable, Iterator
from typing import ClassVar

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
RUNS = {"release": "vm", "uml": "uml", "checking": "checking", **dict.fromkeys(vm.STOCK, "vm")}
# A test may run this much longer than it says, beside others.
BUSY = 3
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
# What also runs on a distribution's kernel when all tests do, and all that runs on an architecture
# that is not this machine's, which takes long.
SHORT = {
    "balloon/module",
    "dm-qos/data",
    "dm-qos/module",
    "dm-qos/text",
    "linear-rs/linear",
    "mpath-sel/names",
    "mpath-sel/text",
}
# Host-driven tests that need no kernel of a distribution: they build their own, or are in user-mode
# Linux.
ANY_KERNEL = {
    "test_balloon_vhost",
    "test_headers_shipped",
    "test_in_tree",
    "test_in_tree_build",
}
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
    # What it measures depends on what else the machine does.
    alone: bool
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
            bool(re.search(r"^# Alone:", text, re.M)),
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
        if leaves == [(name, test)]:
            report.add(name, "failed", f"there is no test in it:\n{output[-4000:]}")
            return
        known = {status.SUCCESS: "passed", status.SKIPPED: "skipped"}
        good = True
        for leaf, node in leaves:
            verdict = known.get(node.status, "failed")
            good = good and verdict != "failed"
            report.add(leaf, verdict, "\n".join([*node.log, node.skip_reason]).strip())
        if good and (test.counts.errors or not leaves):
            report.add(f"{name}/output", "failed", f"this is not whole KTAP:\n{output[-4000:]}")


def run_unit(report: Report, match: str, name: str = "unit") -> None:
    """Host unit tests of the code that decides, or of another crate of the tests."""
    say(f"host unit tests (cargo test, {name})")
    # It runs beside tests that measure rates.
    command = ["nice", "-n", "19", "cargo", "test", "--quiet"]
    command += ["--manifest-path", str(SELFTESTS / name / "Cargo.toml")]
    command += ["--target-dir", str(ROOT / "out" / name), "--", "--format=pretty"]
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
    for test, verdict in re.findall(
        r"^test (\S+)(?: - should panic)? \.\.\. (ok|FAILED|ignored)", result.stdout, re.M
    ):
        if re.search(match, f"{name}/{test}"):
            report.add(f"{name}/{test}", verdicts[verdict], result.stdout[-6000:])
            failed += verdict == "FAILED"
    if result.returncode and not failed:
        report.add(f"{name}/cargo test", "failed", result.stdout[-6000:])


class Queue:
    """The guest selftests of one kernel that are still to be run, for all of its guests."""

    def __init__(
        self, report: Report, kernel: str, kdir: pathlib.Path, match: str, short: bool = False
    ):
        self.report, self.kernel, self.kdir = report, kernel, kdir
        self.ktap = KtapParser(kdir)
        self.numbers = itertools.count(1)
        self.left: list[tuple[Script, list[str]]] = []
        for script in [Script.read(path) for path in sorted(SELFTESTS.glob("*/*.sh"))]:
            if script and RUNS[kernel] in script.runs and (not short or script.name in SHORT):
                cases = script.chosen_cases(match)
                if cases is not None:
                    self.left.append((script, cases))

    def take_alone(self) -> "Queue":
        """A queue of those that are to run alone."""
        alone = copy.copy(self)
        alone.left = [entry for entry in self.left if entry[0].alone]
        self.left = [entry for entry in self.left if not entry[0].alone]
        return alone

    def next(self) -> tuple[Script, list[str]] | None:
        """Other guests take from it, too."""
        try:
            return self.left.pop(0)
        except IndexError:
            return None

    def fail_what_is_left(self) -> None:
        """When no guest boots."""
        for script, _ in self.left:
            self.report.add(f"{self.kernel}: {script.name}", "failed", "no guest boots")


def run_guest(queue: Queue) -> None:
    """Scripts from a queue, as many a boot as nothing goes wrong."""
    while queue.left:
        ran = False
        name = f"{queue.kernel}-{next(queue.numbers)}"
        log = OUT / f"{name}.log"
        options = vm.Options(kernel=queue.kernel, kdir=queue.kdir, memory="1G", log=log)
        options.udev = False
        options.boot_timeout *= vm.SLOWNESS[queue.kernel]
        say(f"booting a guest on the {queue.kernel} kernel (kernel log: {log.relative_to(ROOT)})")
        try:
            with vm.Guest(options) as guest:
                # What was allocated before the first of our modules is none of ours.
                booted = int(guest.check("awk '/^jiffies:/ { print $2; exit }' /proc/timer_list"))
                while entry := queue.next():
                    ran = True
                    run_script(queue, guest, *entry)
                finish_guest(queue.report, guest, f"{queue.kernel}: guest {name}", booted)
        except vm.GuestError as error:
            queue.report.add(f"{queue.kernel}: guest {name}", "failed", str(error))
            if not ran:
                return


def run_script(queue: Queue, guest: vm.Guest, script: Script, cases: list[str]) -> None:
    """One script; a guest that dies under it is reported by name."""
    report, name = queue.report, f"{queue.kernel}: {script.name}"
    say(name)
    started, cpu = time.monotonic(), guest.cpu_seconds()
    timeout = script.timeout * max(BUSY, vm.SLOWNESS[queue.kernel])
    command = f"CASES={' '.join(cases)!r} bash {script.path}"
    lines: list[str] = []
    before = len(guest.check_log())
    try:
        _, output = guest.run(command, timeout, lines.append)
    except vm.GuestError as error:
        report.add(f"{name}/guest", "failed", "\n".join([*lines[-30:], str(error)]))
        raise
    queue.ktap.add(report, name, output)
    for line in guest.check_log()[before:]:
        report.add(f"{name}/kernel log", "failed", line)
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
    def run(cls, report: Report, path: pathlib.Path, match: str) -> None:
        """The tests of a file."""
        prefix = {"host": "host: ", "tools": "unit/"}[path.parent.name]
        say(f"{prefix}{path.stem}")
        results, log = OUT / f"{path.stem}.xml", OUT / f"{path.stem}.txt"
        results.unlink(missing_ok=True)
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(path)]
        command += [f"--junitxml={results}", "--tb=short"]
        # For selftests/conftest.py.
        environment = os.environ | {"FERRULE_MATCH": match}
        started = time.monotonic()
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
            _, status, usage = os.wait4(pytest.pid, 0)
            pytest.returncode = os.waitstatus_to_exitcode(status)
            cls.running.discard(pytest)
        # All passed, some failed, none chosen.
        if pytest.returncode not in (0, 1, 5) or not results.exists():
            report.add(f"{prefix}{path.stem}/pytest", "failed", log.read_text()[-6000:])
            return
        cases = list(xml.etree.ElementTree.parse(results).iter("testcase"))
        for case in cases:
            name = f"{prefix}{path.stem}/{case.get('name')}"
            problem = next((e for e in case if e.tag in ("failure", "error", "skipped")), None)
            if problem is None:
                report.add(name, "passed")
            else:
                verdict = "skipped" if problem.tag == "skipped" else "failed"
                report.add(name, verdict, f"{problem.get('message', '')}\n{problem.text or ''}")
        if cases:
            elapsed, cpu = time.monotonic() - started, usage.ru_utime + usage.ru_stime
            say(f"{prefix}{path.stem}: {elapsed:.0f} s, CPU time {cpu:.0f} s")

    @classmethod
    def end(cls) -> None:
        """They have guests of their own to end."""
        cls.no_more = True
        for pytest in list(cls.running):
            pytest.terminate()


def names_of_tests() -> Iterator[str]:
    """All of them, but for what parameters make of them."""
    for path in sorted(SELFTESTS.rglob("*.sh")):
        script = Script.read(path)
        if script:
            yield from (script.name, *(f"{script.name}/{case}" for case in script.cases))
    for path in sorted(SELFTESTS.glob("*/test_*.py")):
        prefix = {"host": "host", "tools": "unit", "package": "host"}[path.parent.name]
        for test in re.findall(r"^ *def (test_\w+)", path.read_text(), re.M):
            yield f"{prefix}/{path.stem}/{test}"
    for crate in ("unit", "vhost"):
        for path in sorted((SELFTESTS / crate / "src").rglob("*.rs")):
            # Its module, as cargo names it, and what is in there.
            for test in re.findall(r"\bfn (\w+)", path.read_text()):
                yield f"{crate}/{path.stem}::tests::{test}"


def build(kernel: str) -> pathlib.Path:
    """The kernel and the modules for it."""
    kdir = subprocess.run(
        [ROOT / "scripts/kernel.sh", kernel], stdout=subprocess.PIPE, text=True, check=True
    ).stdout.strip()
    say(f"building the modules for the {kernel} kernel")
    output = ROOT / "out/modules" / kernel
    subprocess.run([ROOT / "scripts/modules.sh", kdir, output], check=True)
    return pathlib.Path(kdir)


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


def jobs_of(report: Report, match: str, files: list[pathlib.Path]) -> list[Job]:
    """Host-driven tests, the longest first."""
    first = {stem: number for number, stem in enumerate(LONGEST)}
    return [
        Job(HostTests.run, (report, path, match), path.stem in TWO_GUESTS, path.stem in WAITING)
        for path in sorted(files, key=lambda path: (first.get(path.stem, len(first)), path))
    ]


def run_all(report: Report, kernel: str, match: str) -> None:
    """All that needs no slow kernel, with this one in the VM."""
    vm_queue, uml = (Queue(report, name, build(name), match) for name in (kernel, "uml"))
    os.environ["FERRULE_HOST_KERNEL"] = kernel
    units = [Job(run_unit, (report, match, crate)) for crate in ("unit", "vhost")]
    run_at_once([Job(run_guest, (vm_queue.take_alone(),)), *units])
    files = [path for area in ("host", "tools") for path in (SELFTESTS / area).glob("test_*.py")]
    files = [path for path in files if path.stem not in SLOW]
    # A further guest of a kernel shortens the end: it takes what scripts are left.
    guests = [Job(run_guest, (queue,)) for queue in (vm_queue, uml)]
    run_at_once([*guests, *jobs_of(report, match, files), *guests])
    vm_queue.fail_what_is_left()
    uml.fail_what_is_left()


def run_checking(report: Report, match: str) -> None:
    """The functional tests on a kernel with all checks."""
    queue = Queue(report, "checking", build("checking"), match)
    run_guest(queue)
    queue.fail_what_is_left()
    os.environ["FERRULE_HOST_KERNEL"] = "checking"
    for name in CHECKED:
        HostTests.run(report, SELFTESTS / "host" / f"{name}.py", match)


def run_stock(report: Report, kernel: str, match: str) -> None:
    """What depends on the kernel, on one of a distribution."""
    if kernel in vm.ARM:
        run_short(report, kernel, match)
        return
    queue = Queue(report, kernel, build(kernel), match)
    run_guest(queue.take_alone())
    os.environ["FERRULE_HOST_KERNEL"] = kernel
    files = [
        path
        for path in (SELFTESTS / "host").glob("test_*.py")
        if path.stem not in ANY_KERNEL | SLOW
    ]
    # Compilers differ in what they refuse, and in how they say so.
    files.append(SELFTESTS / "tools" / "test_rules.py")
    guest = Job(run_guest, (queue,))
    run_at_once([guest, *jobs_of(report, match, files), guest])
    queue.fail_what_is_left()


def run_short(report: Report, kernel: str, match: str) -> None:
    """Whether the modules load and work on a distribution's kernel, and what only that has."""
    queue = Queue(report, kernel, build(kernel), match, short=True)
    os.environ["FERRULE_HOST_KERNEL"] = kernel
    files = [] if kernel in vm.ARM else [SELFTESTS / "host" / "test_dax.py"]
    run_at_once([Job(run_guest, (queue,)), *jobs_of(report, match, files)])
    queue.fail_what_is_left()


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kernel", choices=[*RUNS, "stock-all"], help="none: all tests")
    parser.add_argument("--match", default="", help="only tests whose name has this (a regex)")
    args = parser.parse_args()
    vm.kill_guests_on_signal()
    signal.signal(signal.SIGINT, signal.getsignal(signal.SIGTERM))
    OUT.mkdir(parents=True, exist_ok=True)
    report = Report()
    # What has parameters in it cannot be known before.
    if "[" not in args.match and not any(re.search(args.match, n) for n in names_of_tests()):
        print(f"error: no test matches {args.match!r}", file=sys.stderr)
        return 2
    started = time.monotonic()
    try:
        match args.kernel:
            case None:
                run_all(report, "release", args.match)
                run_short(report, vm.STOCK[0], args.match)
            case "release":
                run_all(report, args.kernel, args.match)
            case "checking":
                run_checking(report, args.match)
            case "stock-all":
                for kernel in vm.STOCK:
                    run_stock(report, kernel, args.match)
                HostTests.run(report, SELFTESTS / "host/test_package.py", args.match)
            case "uml":
                queue = Queue(report, args.kernel, build(args.kernel), args.match)
                run_guest(queue)
                queue.fail_what_is_left()
            case _:
                run_stock(report, args.kernel, args.match)
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
