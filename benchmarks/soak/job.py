"""The job that is disturbed: a small recipe in a process of its own, and looks at what it left."""

from __future__ import annotations

import os
import runpy
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import psutil

from compressor.report.files import read_report
from compressor.report.schema import Report
from compressor.store import RunStore
from targets.bundle import BOM, CARD, Bundle
from targets.errors import ToolkitError

__all__ = ["Bundles", "Job", "Place", "Process", "Result", "bundles", "lost", "make_home"]

ROOT = Path(__file__).parents[2]
DEADLINE_S = 600.0
POLL_S = 0.01

# A shell without job control hands an ignored SIGINT down to its children.
_COMMAND = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from compressor.cli import main
main(sys.argv[1:])
"""


def make_home(folder: Path) -> Path:
    """Write a small fine-tuned BERT, its data and a recipe: those of the tests."""
    folder.mkdir(parents=True)
    made = runpy.run_path(str(ROOT / "tests" / "compressor" / "conftest.py"))
    made["write_home"](folder)
    return folder


@dataclass(frozen=True)
class Place:
    """Where a run keeps its things.

    Attributes:
        folder: Holds the store, the output and the temporary files of the run.
    """

    folder: Path

    @property
    def store(self) -> RunStore:
        """The run store."""
        return RunStore(self.folder / "store")

    @property
    def output(self) -> Path:
        """The report and the bundles."""
        return self.folder / "out"

    @property
    def temporary(self) -> Path:
        """What the run takes for the system's folder of temporary files."""
        return self.folder / "tmp"

    def finished(self) -> dict[str, int]:
        """Key of each finished step -> its bytes."""
        return {
            path.parent.name: sum(
                each.stat().st_size for each in path.parent.rglob("*") if each.is_file()
            )
            for path in self.store.root.glob("steps/*/step.json")
        }

    def files(self) -> frozenset[str]:
        """Every file of the store and the output, finished or not."""
        found = []
        for root in (self.store.root, self.output):
            for parent, _, names in os.walk(root):
                found += [f"{parent}/{name}" for name in names]
        return frozenset(found)

    def report(self) -> Report:
        """The report of the last run that finished."""
        return read_report(self.output)

    def leftovers(self) -> list[str]:
        """Files that no run will use or remove any more."""
        root = self.store.root
        found = [*root.glob("partial/*"), *root.rglob("*.tmp"), *self.output.rglob(".*")]
        # ONNX Runtime keeps the id of its session in one file of always the same name.
        found += [path for path in self.temporary.glob("*") if path.name != ".ses"]
        return sorted(str(path.relative_to(self.folder)) for path in found)


@dataclass(frozen=True)
class Result:
    """How a run ended."""

    code: int
    out: str
    err: str

    def __str__(self) -> str:
        lines = (self.err or self.out).strip().splitlines()
        return f"exit {self.code}: {' | '.join(line.strip() for line in lines[-8:])}"


class Process:
    """A run that goes on.

    Args:
        arguments: After ``compressor``.
        place: Where its things are.
        env: On top of this process's environment.
    """

    def __init__(self, arguments: Sequence[str], place: Place, env: Mapping[str, str]) -> None:
        place.temporary.mkdir(parents=True, exist_ok=True)
        self.place = place
        self.changes = 0
        """Changes of files that were seen."""
        self._texts: tuple[IO[str], IO[str]] = (_text(), _text())
        self.process = subprocess.Popen(
            [sys.executable, "-c", _COMMAND, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=self._texts[0],
            stderr=self._texts[1],
            start_new_session=True,
            env={
                **os.environ,
                "HF_HUB_OFFLINE": "1",
                "OMP_NUM_THREADS": "1",
                "PYTHONPATH": os.pathsep.join(
                    filter(None, (env.get("PYTHONPATH"), str(ROOT), os.environ.get("PYTHONPATH")))
                ),
                "TMPDIR": str(place.temporary),
                **{name: value for name, value in env.items() if name != "PYTHONPATH"},
            },
        )

    def goes_on_until(self, *, after_s: float | None = None, changes: int | None = None) -> bool:
        """Wait for a moment; False if the run ends before it.

        Args:
            after_s: Seconds from now.
            changes: So many changes of the files that the run keeps.
        """
        started = time.monotonic()
        seen = self.place.files()
        while self.process.poll() is None:
            passed = time.monotonic() - started
            if after_s is not None and passed >= after_s:
                return True
            if changes is not None:
                files = self.place.files()
                self.changes += len(files ^ seen)
                seen = files
                if self.changes >= changes:
                    return True
            if passed > DEADLINE_S:
                return True
            time.sleep(POLL_S if after_s is None else min(POLL_S, max(after_s - passed, 0.0)))
        return False

    def end(self, number: signal.Signals) -> list[psutil.Process]:
        """Send a signal, SIGKILL to the whole group; returns the processes that it had started."""
        try:
            children: list[psutil.Process] = psutil.Process(self.process.pid).children(
                recursive=True
            )
            if number == signal.SIGKILL:
                os.killpg(self.process.pid, number)
            else:
                self.process.send_signal(number)
        except (psutil.NoSuchProcess, ProcessLookupError):
            return []
        return children

    def result(self) -> Result:
        """Wait for the end."""
        try:
            code = self.process.wait(DEADLINE_S)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            code = self.process.wait()
        texts = []
        for stream in self._texts:
            stream.seek(0)
            texts.append(stream.read())
            stream.close()
        return Result(code, *texts)


def _text() -> IO[str]:
    return tempfile.TemporaryFile("w+", encoding="utf-8")


@dataclass(frozen=True)
class Job:
    """A recipe, and how it is run.

    Attributes:
        home: The checkpoint, the data and the recipe.
        options: More of the command line.
    """

    home: Path
    options: tuple[str, ...]

    def start(
        self,
        place: Place,
        *,
        home: Path | None = None,
        options: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
    ) -> Process:
        """Start a run."""
        recipe = (home or self.home) / "recipe.yaml"
        where = ("--output", str(place.output), "--store", str(place.store.root))
        arguments = ["run", str(recipe), *where, *self.options, *options]
        return Process(arguments, place, env or {})

    def run(
        self,
        place: Place,
        *,
        home: Path | None = None,
        options: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
    ) -> Result:
        """Run to the end."""
        return self.start(place, home=home, options=options, env=env).result()


MEASURED = (CARD, BOM)  # the bill of materials has the hash of the card

Bundles = dict[str, dict[str, str]]
"""Bundle -> its ``identity``, and file -> sha256."""


def bundles(place: Place) -> Bundles:
    """Bundle -> its identity, and the sha256 of each file but those that tell what was measured.

    The identity holds the recipe as well: with other targets beside it a bundle has the same files
    and another identity.

    Raises:
        ToolkitError: A bundle is damaged.
    """
    found = {}
    for folder in sorted(place.output.glob("bundles/*")):
        bundle = Bundle.open(folder)
        files = bundle.manifest.files
        hashes = {name: files[name].sha256 for name in sorted(files) if name not in MEASURED}
        found[folder.name] = {"identity": bundle.identity, **hashes}
    return found


def lost(place: Place, finished: Mapping[str, int]) -> list[tuple[str, int]]:
    """Those of the finished steps that are gone or no longer as they were: why, and their bytes."""
    found = []
    for key, size in finished.items():
        try:
            if place.store.find(key) is None:
                found.append((f"the step {key[:12]} is gone", size))
        except ToolkitError as error:
            found.append((f"the step {key[:12]}: {error.what}", size))
    return found
