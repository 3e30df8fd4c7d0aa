"""The disturbances, one function each; every one ends with a run that has to be as undisturbed."""

from __future__ import annotations

import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from benchmarks.soak.faulty import FAULT_VARIABLE, FAULTS, MOMENTS, announce
from benchmarks.soak.job import Bundles, Job, Place, Process, Result, bundles, lost
from benchmarks.soak.ledger import Ledger

__all__ = ["Trials"]

LEAVE_S = 20.0
"""How long a process may stay whose parent is gone."""

_CODES = {signal.SIGKILL: -signal.SIGKILL, signal.SIGINT: 130, signal.SIGTERM: 143}
_MOMENTS_BY_CHANGE = 0.4  # the rest are moments in time
_MADE = re.compile(r"^  (\S.*?)\s+[\d.]+ s  ", re.MULTILINE)
_MEND = re.compile(r"`compressor (runs remove [0-9a-f]+ [^`]*)`")


@dataclass
class Trials:
    """All disturbances of one job.

    Attributes:
        job: What is disturbed.
        folder: Where to work.
        ledger: Is told what happens.
    """

    job: Job
    folder: Path
    ledger: Ledger
    generator: random.Random = field(init=False)
    undisturbed: Place = field(init=False)
    expected: Bundles = field(init=False)
    seconds: float = field(init=False, default=0.0)
    changes: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        self.generator = random.Random(self.ledger.seed)

    def run_undisturbed(self) -> None:
        """The run that all others have to equal.

        Raises:
            RuntimeError: It does not finish.
        """
        self.undisturbed = Place(self.folder / "undisturbed")
        started = time.monotonic()
        process = self.job.start(self.undisturbed)
        process.goes_on_until(changes=sys.maxsize)
        result = process.result()
        self.seconds = time.monotonic() - started
        if result.code != 0:
            raise RuntimeError(f"the undisturbed run failed: {result}")
        self.expected = bundles(self.undisturbed)
        self.changes = process.changes
        size = sum(self.undisturbed.finished().values())
        self.ledger.facts |= {
            "undisturbed_s": round(self.seconds, 1),
            "steps": len(self.undisturbed.finished()),
            "bundles": sorted(self.expected),
            "store_bytes": size,
        }
        self.ledger.event(
            "undisturbed",
            f"{self.seconds:.1f} s, {len(self.undisturbed.finished())} steps, "
            f"{len(self.expected)} bundles, {size / 1e6:.1f} MB",
        )

    def end_at_random(self, numbers: list[signal.Signals], *, like: Place | None = None) -> None:
        """End runs by signals at random moments, going on in the same store until one finishes.

        Args:
            numbers: The signals.
            like: Begin each time with a copy of this place.
        """
        left = list(numbers)
        while left and not self.ledger.is_over:
            with self._place(like) as place:
                self._end_until_finished(place, left)

    def _end_until_finished(self, place: Place, left: list[signal.Signals]) -> None:
        started: list[psutil.Process] = []
        statuses = [run.status for run in place.store.runs()]
        number = None
        while True:
            process = self.job.start(place)
            number = left[0] if left and not self.ledger.is_over else number
            told = number.name if number is not None else "end"
            reached = bool(left) and not self.ledger.is_over and self._wait(process)
            if not reached:
                self._check_finished(told, place, process.result())
                break
            number = left.pop(0)
            finished = place.finished()
            started += process.end(number)
            result = process.result()
            if result.code == 0:  # it finished before the signal came
                left.insert(0, number)
                self._check_finished(told, place, result)
                break
            self.ledger.count(told, f"{len(finished)} steps finished")
            begun = len(place.store.runs()) > len(statuses)
            status = self._check_ended(number, place, result, finished, begun=begun)
            if status is not None:
                statuses.append(status)
        _, alive = psutil.wait_procs(started, timeout=LEAVE_S)
        self.ledger.check(told, not alive, f"processes stay behind: {alive}")
        for each in alive:
            each.kill()
        found = [run.status for run in place.store.runs()]
        wanted = sorted(["finished", *statuses])
        self.ledger.check(told, sorted(found) == wanted, f"runs list: {found}")
        self._check_tidy(told, place)

    def _wait(self, process: Process) -> bool:
        if self.generator.random() < _MOMENTS_BY_CHANGE:
            return process.goes_on_until(changes=self.generator.randint(1, self.changes))
        return process.goes_on_until(after_s=self.generator.uniform(0.05, self.seconds))

    def _check_ended(
        self,
        number: signal.Signals,
        place: Place,
        result: Result,
        finished: dict[str, int],
        *,
        begun: bool,
    ) -> str | None:
        """Check what a run left that a signal ended.

        Returns:
            How `runs list` has to call it; None where it had not begun.
        """
        kind = number.name
        self._check_kept(kind, place, finished)
        runs = place.store.runs()
        wanted = "killed" if number == signal.SIGKILL else "interrupted"
        if begun and runs[0].status == "finished":
            return "finished"  # the signal came between its last word and its end
        began = begun and runs[0].status == wanted
        if number != signal.SIGKILL and result.code == -number:
            # It came before there was a command: the interpreter was still starting.
            self.ledger.check(kind, not result.out and not began, f"left by the signal: {result}")
            return None
        self.ledger.check(kind, result.code == _CODES[number], str(result))
        if number != signal.SIGKILL:
            polite = "interrupted; finished work is kept" in result.err
            self.ledger.check(kind, polite and "Traceback" not in result.err, str(result))
        return wanted if began else None

    def fill_disks(self, count: int) -> None:
        """Run on disks that are too small, then give them space."""
        whole = sum(path.stat().st_size for path in map(Path, self.undisturbed.files()))
        for index in range(count):
            if self.ledger.is_over:
                return
            share = (index + self.generator.random()) / count
            size = max(64, int(share * whole / 1024))
            with self._place() as place:
                refusal = _mount(place.folder, size)
                if refusal is not None:
                    self.ledger.skip("full disk", refusal)
                    return
                try:
                    self._fill(place, size)
                finally:
                    subprocess.run(["umount", "--lazy", str(place.folder)], check=True)  # noqa: S607

    def _fill(self, place: Place, size: int) -> None:
        result = self.job.run(place)
        self.ledger.count("full disk", f"{size} KiB: {result}")
        clear = "the disk is full" in result.err or "cannot be written" in result.err
        clear = clear and "Traceback" not in result.err and "fix:" in result.err
        self.ledger.check("full disk", result.code == 8 and clear, str(result))
        finished = place.finished()
        self._check_kept("full disk", place, finished)
        grow = ["mount", "-o", "remount,size=256m", str(place.folder)]
        subprocess.run(grow, check=True)
        self._check_finished("full disk", place, self.job.run(place))
        self._check_kept("full disk", place, finished)
        self._check_tidy("full disk", place)

    def flip_bits(self, count: int) -> None:
        """Change one bit of one file of a finished step, run, mend, and run again."""
        with self._place(self.undisturbed) as place:
            for _ in range(count):
                if self.ledger.is_over:
                    return
                self._flip(place)

    def _flip(self, place: Place) -> None:
        runs = [run for run in place.store.runs() if run.status == "finished"]
        key = self.generator.choice(sorted(runs[0].steps))
        step = place.store.root / "steps" / key
        files = sorted(path for path in step.rglob("*") if path.is_file() and path.stat().st_size)
        path = self.generator.choice(files)
        content = path.read_bytes()
        flip_bit(path, self.generator)
        told = f"{path.relative_to(step.parent.parent)}"
        result = self.job.run(place)
        self.ledger.count("flipped bit", f"{told}: {result if result.code else 'not used'}")
        if result.code == 0:
            used = key in place.store.runs()[0].steps and path.read_bytes() != content
            self.ledger.check("flipped bit", not used, f"{told} was used")
            path.write_bytes(content)
            return
        named = result.code == 8 and key in result.err and "Traceback" not in result.err
        command = _MEND.search(" ".join(result.err.split()))
        if not self.ledger.check("flipped bit", named and command is not None, str(result)):
            path.write_bytes(content)
            return
        assert command is not None
        mended = Process(shlex.split(command[1]), place, {}).result()
        self.ledger.check("flipped bit", mended.code == 0, f"{command[1]}: {mended}")
        self._check_finished("flipped bit", place, self.job.run(place))

    def run_twice_at_once(self, count: int) -> None:
        """Two runs in one store, the second a little later."""
        for _ in range(count):
            if self.ledger.is_over:
                return
            with self._place() as place:
                other = Place(place.folder / "other")
                other.folder.mkdir()
                (other.folder / "store").symlink_to(place.store.root)
                place.store.root.mkdir()
                first = self.job.start(place)
                delay = self.generator.uniform(0, self.seconds / 2)
                time.sleep(delay)
                second = self.job.start(other)
                results = [first.result(), second.result()]
                self.ledger.count("two at once", f"the second {delay:.1f} s later")
                made = [set(_MADE.findall(result.out)) for result in results]
                twice = sorted(made[0] & made[1])
                self.ledger.check("two at once", not twice, f"made twice: {twice}")
                for where, result in ((place, results[0]), (other, results[1])):
                    self._check_finished("two at once", where, result)
                shutil.rmtree(other.folder)
                self._check_tidy("two at once", place)

    def break_a_target(self) -> None:
        """A runtime crashes, is killed, or gets no memory, at each moment of a bundle's way."""
        site = announce(self.folder / "site")
        options = ("--set", "targets=[onnxruntime, faulty, openvino]")
        for fault in FAULTS:
            for moment in MOMENTS:
                if self.ledger.is_over:
                    return
                with self._place(self.undisturbed) as place:
                    env = {"PYTHONPATH": str(site)}
                    broken = {**env, FAULT_VARIABLE: f"{fault}@{moment}"}
                    result = self.job.run(place, options=options, env=broken)
                    self.ledger.count(f"runtime {fault}", f"while it has to {moment}")
                    self._check_rows(f"runtime {fault}", place, result)
                    # The fault was the machine's, not the bundle's: nothing of it is kept.
                    again = self.job.run(place, options=options, env=env)
                    statuses = {row.status for row in place.report().rows}
                    healed = again.code == 0 and statuses == {"measured"}
                    self.ledger.check(f"runtime {fault}", healed, f"then: {statuses}, {again}")
                    self._check_tidy(f"runtime {fault}", place)

    def _check_rows(self, kind: str, place: Place, result: Result) -> None:
        if not self.ledger.check(kind, result.code == 5, str(result)):
            return
        for row in place.report().rows:
            if row.target == "faulty":
                told = row.status == "failed" and bool(row.reason)
                words = ("SIGSEGV", "SIGKILL", "MemoryError")
                told = told and any(word in str(row.reason) for word in words)
                self.ledger.check(kind, told, f"{row.key}: {row.status}, {row.reason}")
            else:
                self.ledger.check(kind, row.status == "measured", f"{row.key}: {row.status}")
        found = {name: each for name, each in bundles(place).items() if name in self.expected}
        differing = _differing(found, self.expected, but=("identity",))
        self.ledger.check(kind, not differing, f"the other bundles differ: {differing}")

    def change_inputs(self) -> None:
        """One byte of an input differs, under the same name, size and time: it is another input."""
        home = self.folder / "changed"
        shutil.copytree(self.job.home, home)
        with self._place(self.undisturbed) as place:
            for name in ("train.csv", "validation.csv", "test.csv", "model/model.safetensors"):
                if self.ledger.is_over:
                    break
                before = place.finished()
                path = home / name
                content, status = path.read_bytes(), path.stat()
                _change_byte(path)
                os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
                process = self.job.start(place, home=home)
                missed = process.goes_on_until(changes=1) and self._wait_for_step(process, before)
                process.end(signal.SIGKILL)
                process.result()
                self.ledger.count("changed input", name)
                self.ledger.check("changed input", missed, f"{name}: the old steps were used")
                path.write_bytes(content)
            result = self.job.run(place, home=home)
            self._check_finished("changed input", place, result)
            made = _MADE.findall(result.out)
            self.ledger.check("changed input", not made, f"made again without a change: {made}")
        shutil.rmtree(home)

    def _wait_for_step(self, process: Process, before: dict[str, int]) -> bool:
        """Wait for a step that was not there before."""
        while not set(process.place.finished()) - set(before):
            if not process.goes_on_until(after_s=0.05):
                return False
        return True

    def repeat(self, count: int) -> None:
        """Run with the same seed in fresh stores: the bundles have to be the same bytes."""
        for _ in range(count):
            if self.ledger.is_over:
                return
            with self._place() as place:
                result = self.job.run(place)
                self.ledger.count("repeated", f"exit {result.code}")
                self._check_finished("repeated", place, result)

    def _check_finished(self, kind: str, place: Place, result: Result) -> None:
        if self.ledger.check(kind, result.code == 0, str(result)):
            found = bundles(place)
            differing = _differing(found, self.expected, but=())
            self.ledger.check(kind, found == self.expected, f"bundles differ: {differing}")

    def _check_kept(self, kind: str, place: Place, finished: dict[str, int]) -> None:
        self.ledger.steps_checked += len(finished)
        for why, size in lost(place, finished):
            self.ledger.bytes_lost += size
            self.ledger.check(kind, False, why)

    def _check_tidy(self, kind: str, place: Place) -> None:
        left = place.leftovers()
        self.ledger.check(kind, not left, f"{len(left)} files are left: {left[:5]}")

    @contextmanager
    def _place(self, like: Place | None = None) -> Iterator[Place]:
        """A fresh place, or one with a copy of a store and its output."""
        place = Place(self.folder / "place")
        place.folder.mkdir()
        if like is not None:
            shutil.copytree(like.folder, place.folder, dirs_exist_ok=True)
        try:
            yield place
        finally:
            shutil.rmtree(place.folder)


def _differing(found: Bundles, expected: Bundles, *, but: Collection[str]) -> list[str]:
    """What is not as it was."""
    return [
        f"{bundle}/{name}"
        for bundle, files in expected.items()
        for name, digest in files.items()
        if name not in but and found.get(bundle, {}).get(name) != digest
    ]


def flip_bit(path: Path, generator: random.Random) -> None:
    """Change one bit of a file."""
    content = bytearray(path.read_bytes())
    content[generator.randrange(len(content))] ^= 1 << generator.randrange(8)
    path.write_bytes(content)


def _change_byte(path: Path) -> None:
    """Another letter in a text, or the last bit of the last weight."""
    content = path.read_bytes()
    if path.suffix == ".csv":
        path.write_bytes(content.replace(b"cat", b"bat", 1))
    else:
        path.write_bytes(content[:-4] + bytes([content[-4] ^ 1]) + content[-3:])


def _mount(folder: Path, size_kib: int) -> str | None:
    """Mount a small disk; why not, where it is not allowed."""
    mount = shutil.which("mount")
    if mount is None:
        return "there is no mount here"
    command = [mount, "-t", "tmpfs", "-o", f"size={size_kib}k", "tmpfs", str(folder)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    return f"no right to mount a small disk: {done.stderr.strip()}" if done.returncode else None
