"""From a bundle in the store to the one that is shipped, with its card, figures and origin."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compressor.bom import bill_of_materials
from compressor.errors import ReportError
from compressor.measuring import pack_file
from compressor.passes import Pass
from compressor.recipe.schema import Recipe
from compressor.report.schema import ModelFacts, Row, Step
from compressor.report.wording import perplexity_text
from compressor.rows import shape_key
from compressor.storage import records_of
from compressor.store import StoredStep
from compressor.tasks import get_task
from targets import registry
from targets.archive import MANIFEST, SIGNATURE
from targets.base import Form
from targets.benchmark import Shape
from targets.bundle import (
    BOM,
    CARD,
    EVALUATION,
    Bundle,
    FileRecord,
    Latency,
    Manifest,
    Measured,
    hash_file,
)
from targets.discovery import announcer
from targets.environment import Environment, library_versions
from targets.errors import BundleError
from targets.measurement import Measurement

__all__ = ["Publisher", "applied_passes", "recipe_hash", "remove_leftovers", "set_aside"]

_PARTIAL = ".partial"
_EARLIER = "earlier-bundles"
_ORIGIN = {"name", "task", "seed"}
"""What of a recipe makes a bundle, beside the passes of its variant."""

_OUTSIDE: dict[str, bool | dict[str, bool]] = {
    "model": True,
    "data": {"train": True, "validation": True, "test": True, "images": True},
    "devices": True,
    "output": True,
    "budget": True,
}
"""What of a recipe is no part of a bundle: where something lies, and how bundles are judged."""

_LIBRARIES = frozenset({"torch", "transformers"})
"""Distributions that read the checkpoint, whatever the passes need besides."""


def recipe_hash(recipe: Recipe) -> str:
    """The sha256 of a recipe as JSON with sorted keys, without paths and budget, in hex."""
    document = recipe.model_dump(mode="json", exclude=_OUTSIDE)
    document["passes"] = [_portable(each) for each in recipe.passes]
    document["variants"] = {
        name: [_portable(each) for each in tail] for name, tail in recipe.variants.items()
    }
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def _portable(each: Pass) -> dict[str, Any]:
    return {"pass": each.name, **each.portable_settings()}


@dataclass(frozen=True)
class Publisher:
    """Writes the bundles of a run into its output folder.

    Attributes:
        recipe: The recipe of the run.
        model: The untouched model.
        checkpoint_files: Name -> sha256 of its files.
        data_hash: The sha256 of the data.
        split_hashes: Split -> sha256 of its file.
        environment: Where it was measured.
    """

    recipe: Recipe
    model: ModelFacts
    checkpoint_files: Mapping[str, str]
    data_hash: str
    split_hashes: Mapping[str, str]
    environment: Environment

    def publish(
        self,
        bundle: StoredStep,
        row: Row,
        steps: tuple[Step, ...],
        packs: StoredStep,
        destination: Path,
    ) -> str | None:
        """Write one bundle; a reader of ``destination`` sees the old one or the new one.

        One that is there and whole is left alone. One that is written again keeps its signature if
        nothing of it changes.

        Args:
            bundle: As it was lowered.
            row: What was measured of it.
            steps: The passes that made its model.
            packs: The evaluation data as its model reads it.
            destination: The folder to write.

        Returns:
            What a user has to know of it, if anything.

        Raises:
            ReportError: It cannot be written.
        """
        manifest, texts = self._describe(bundle, row, steps, packs)
        temporary = destination.with_name(f".{destination.name}{_PARTIAL}")
        try:
            if _is_there(destination, manifest):
                return None
            destination.parent.mkdir(parents=True, exist_ok=True)
            shutil.copytree(bundle.folder, temporary)
            if manifest.evaluation is not None:
                shutil.copyfile(packs.folder / pack_file("test"), temporary / EVALUATION)
            for name, content in texts.items():
                (temporary / name).write_bytes(content)
            written = Bundle.create(temporary, manifest).manifest
            if written.files != manifest.files:
                raise OSError("what was written is not what was read")
            note = _keep_signature(destination, temporary)
            former = destination.with_name(f".{destination.name}.former{_PARTIAL}")
            shutil.rmtree(former, ignore_errors=True)
            if destination.exists():
                os.rename(destination, former)
            os.rename(temporary, destination)
            shutil.rmtree(former, ignore_errors=True)
            return note
        except OSError as error:
            shutil.rmtree(temporary, ignore_errors=True)
            raise ReportError(
                "a bundle cannot be written to the output folder",
                where=destination,
                given=error.strerror or error,
                fix="free some space there, or pass another folder with --output; "
                "the store has kept every finished step",
            ) from error

    def _describe(
        self, bundle: StoredStep, row: Row, steps: tuple[Step, ...], packs: StoredStep
    ) -> tuple[Manifest, dict[str, bytes]]:
        """The manifest of what is shipped, of files that the store has checked.

        And what describes it: name -> content of its card and its bill of materials.
        """
        manifest = Bundle.open(bundle.folder, verify=False).manifest
        applied = applied_passes(
            self.recipe.chains[row.variant], registry.available()[row.target].form
        )
        steps = steps[: len(applied)]
        files = {name: each for name, each in bundle.record.files.items() if name != MANIFEST}
        changes: dict[str, Any] = {
            "provenance": {**manifest.provenance, **self._provenance(applied, steps)},
            "measured": self._measured(row),
        }
        if self.recipe.bundle.evaluation_data:
            files[EVALUATION] = packs.record.files[pack_file("test")]
            changes["evaluation"] = EVALUATION
        manifest = manifest.model_copy(update=changes)
        texts = {CARD: _card(manifest, row).encode()}
        files[CARD] = _record(texts[CARD])
        manifest = manifest.model_copy(update={"files": files})
        architecture = _architecture(self.model, steps)
        texts[BOM] = bill_of_materials(manifest, architecture=architecture).encode()
        files = {**files, BOM: _record(texts[BOM])}
        return manifest.model_copy(update={"files": files}), texts

    def _provenance(self, passes: Sequence[Pass], steps: tuple[Step, ...]) -> dict[str, Any]:
        task = get_task(self.recipe.task)
        needed = _LIBRARIES.union(*(each.libraries for each in passes))
        return {
            "checkpoint": {
                "name": self.model.name,
                "sha256": self.model.sha256,
                "files": dict(self.checkpoint_files),
            },
            "data": {"sha256": self.data_hash, "files": dict(self.split_hashes)},
            "recipe": {
                **self.recipe.model_dump(mode="json", include=_ORIGIN),
                "sha256": recipe_hash(self.recipe),
            },
            "passes": [
                {
                    "pass": step.pass_name,
                    "settings": step.settings,
                    **({"files": files} if files else {}),
                    # Seconds differ from run to run of one recipe; the report has them.
                    "metrics": {
                        name: value
                        for name, value in step.metrics.items()
                        if not name.endswith("_s")
                    },
                }
                for step, files in zip(steps, map(_read_files, passes), strict=True)
            ],
            "predict_libraries": library_versions(("numpy", *task.preprocessing_type.libraries)),
            "build_libraries": library_versions(sorted(needed)),
            "compressor": library_versions(("compressor",)).get("compressor"),
        }

    def _measured(self, row: Row) -> Measured:
        measured = row.latency.get(shape_key(self.recipe.benchmark.shapes[0]))
        return Measured(
            machine=self.environment.machine,
            libraries=self.environment.libraries,
            accuracy=row.test,
            latency=None if measured is None else _latency(measured),
        )


def applied_passes(passes: Sequence[Pass], form: Form) -> tuple[Pass, ...]:
    """Those of a chain after which a target takes the model: one for torch has none in ONNX."""
    last = max((i for i, each in enumerate(passes, 1) if each.produces == form), default=0)
    return tuple(passes[:last])


def _read_files(each: Pass) -> dict[str, str]:
    """The files beside the model and the data that a pass read: name in their folder -> sha256."""
    paths = [path for path in each.input_files if path.is_file()]
    folder = os.path.commonpath([path.parent for path in paths]) if paths else ""
    return {path.relative_to(folder).as_posix(): hash_file(path) for path in paths}


def _record(content: bytes) -> FileRecord:
    return FileRecord(size_bytes=len(content), sha256=hashlib.sha256(content).hexdigest())


def _architecture(model: ModelFacts, steps: tuple[Step, ...]) -> str:
    """What the last pass that tells it says of the network."""
    told = (step.architecture for step in reversed(steps) if step.architecture is not None)
    return next(told, model.architecture)


def _keep_signature(before: Path, now: Path) -> str | None:
    """Keep the signature of a bundle that was written again; says so where it cannot be kept."""
    signature, manifest = before / SIGNATURE, before / MANIFEST
    if not signature.is_file() or not manifest.is_file():
        return None
    if manifest.read_bytes() == (now / MANIFEST).read_bytes():  # it has the hashes of all others
        shutil.copyfile(signature, now / SIGNATURE)
        return None
    return f"{before} was signed; it has changed, so it is not signed any more: sign it again"


def remove_leftovers(output: Path) -> None:
    """Remove what a run left in its output folder that was ended while it wrote there.

    Raises:
        ReportError: It cannot be removed.
    """
    try:
        for path in (output / "bundles").glob(f".*{_PARTIAL}"):
            shutil.rmtree(path)
        for pattern in (".report.*.tmp", ".predictions.*.tmp"):
            for path in output.glob(pattern):
                path.unlink(missing_ok=True)
    except OSError as error:
        raise ReportError(
            "the files that an earlier run left in the output folder cannot be removed",
            where=output,
            given=error,
            fix="remove them, or pass another folder with --output",
        ) from error


def set_aside(output: Path, named: Collection[str]) -> Iterator[str]:
    """Move bundles of an earlier run away from where those of this report are taken from.

    Args:
        output: The output folder.
        named: The bundles of the report, relative to it.

    Yields:
        A line on each that was moved.

    Raises:
        ReportError: It cannot be moved.
    """
    for folder in sorted((output / "bundles").glob("*")):
        if folder.relative_to(output).as_posix() in named or not (folder / MANIFEST).is_file():
            continue
        numbers = (f"{folder.name}{f'-{number}' if number else ''}" for number in itertools.count())
        free = (output / _EARLIER / name for name in numbers)
        destination = next(path for path in free if not path.exists())
        try:
            destination.parent.mkdir(exist_ok=True)
            os.rename(folder, destination)
        except OSError as error:
            raise ReportError(
                "a bundle of an earlier run cannot be moved away from those of this one",
                where=folder,
                given=error,
                fix="move it, or pass another folder with --output",
            ) from error
        yield f"{folder} is of an earlier run and not in this report: it is in {destination} now"


def _is_there(folder: Path, manifest: Manifest) -> bool:
    """Whether a folder holds this bundle, every byte of it, and nothing else but a signature."""
    try:
        found = Bundle.open(folder, verify=False).manifest
    except BundleError:
        return False
    if found.model_dump(mode="json") != json.loads(manifest.model_dump_json()):
        return False
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    if names - {SIGNATURE} != {*manifest.files, MANIFEST}:
        return False
    return records_of(folder, manifest.files) == manifest.files


def _latency(measured: Measurement) -> Latency:
    interval = measured.interval
    return Latency(
        batch_size=measured.batch_size,
        sequence_length=measured.sequence_length,
        threads=measured.threads,
        median_ms=measured.median_ms,
        low_ms=interval.low,
        high_ms=interval.high,
        p90_ms=measured.p90_ms,
        p99_ms=measured.p99_ms,
        noisy=measured.noise.verdict != "quiet",
    )


def _card(manifest: Manifest, row: Row) -> str:
    """The model card: what the bundle is, how good and how fast it is, and how to use it."""
    origin, preprocessing = manifest.provenance, manifest.preprocessing
    target = registry.get(manifest.target)
    extras = dict.fromkeys(filter(None, (target.extra, preprocessing.extra)))
    owner = announcer(type(target))
    example = '--text "..."'
    if preprocessing.reads_objects:
        example = """--text '{"question": "...", "context": "..."}'"""
    elif preprocessing.reads_files():
        example = f"--file {preprocessing.noun}{preprocessing.suffixes[0]}"
    lines = [
        f"# {manifest.name} for {manifest.target}",
        "",
        f"A model for {manifest.task} in {manifest.precision}, compressed from "
        f"`{origin['checkpoint']['name']}` (sha256 {origin['checkpoint']['sha256'][:12]}…).",
        "",
        " ".join(filter(None, (_labels(manifest), preprocessing.limit_note))),
        "",
        "## Use",
        "",
        "```",
        f"pip install 'compressor[{','.join(extras)}]'{f' {owner}' if owner else ''}",
        f"compressor predict . {example}",
        "compressor evaluate ." if manifest.evaluation else "compressor bench .",
        "```",
        "",
        "## Measured when it was built",
        "",
        *_figures(manifest, row),
        "",
        "## How it was made",
        "",
    ]
    for number, step in enumerate(origin["passes"], start=1):
        lines.append(f"{number}. {step['pass']}{_settings(step['settings'])}")
    lines += [
        "",
        f"Recipe `{origin['recipe']['name']}`, seed {origin['recipe']['seed']}, data sha256 "
        f"{origin['data']['sha256'][:12]}…. All of it stands in `manifest.json`.",
        "",
        "## Limits",
        "",
        "The accuracy holds for data like the held-out split that it was measured on. Latency "
        "holds for the machine above: measure again where the bundle will run.",
    ]
    return "\n".join(lines) + "\n"


def _labels(manifest: Manifest) -> str | None:
    return f"Labels: {', '.join(manifest.labels)}." if manifest.labels else None


def _figures(manifest: Manifest, row: Row) -> list[str]:
    measured = manifest.measured
    if measured is None or (measured.accuracy is None and measured.latency is None):
        return [f"Nothing: {row.reason or 'it did not run on the machine that built it'}."]
    lines = ["| | |", "|---|---|"]
    found = measured.accuracy
    if found is not None:
        lines.append(
            f"| {found.measure} | {100 * found.value:.1f}% ({100 * found.low:.1f} to "
            f"{100 * found.high:.1f}) on {found.counted}, held out |"
        )
    if row.test_comparison is not None:
        drop = row.test_comparison
        if drop.perplexity is not None:
            lines.append(f"| perplexity | {perplexity_text(drop.perplexity)} |")
        lines.append(
            f"| lost against the untouched model | {drop.drop_points:.1f} points "
            f"({drop.low_points:.1f} to {drop.high_points:.1f}) |"
        )
    latency = measured.latency
    if latency is not None:
        noisy = "; the machine was busy, do not trust it" if latency.noisy else ""
        lines.append(
            f"| latency at {Shape(latency.batch_size, latency.sequence_length)}, "
            f"{latency.threads} threads | {latency.median_ms:.3g} ms "
            f"({latency.low_ms:.3g} to {latency.high_ms:.3g}){noisy} |"
        )
    if row.speedup is not None:
        lines.append(f"| against the untouched model there | {row.speedup.ratio:.2f}x as fast |")
    if row.writing is not None:
        lines.append(
            f"| writes after {row.writing.prompt_tokens} tokens | "
            f"{row.writing.written_per_s:.3g} tokens/s, the first after "
            f"{row.writing.first_token_ms:.3g} ms |"
        )
    if row.writing_speedup is not None:
        lines.append(
            f"| against the untouched model there | writes {row.writing_speedup.ratio:.2f}x as "
            "fast |"
        )
    lines.append(f"| machine | {measured.machine} |")
    return lines


def _settings(settings: Mapping[str, Any]) -> str:
    told = [f"{name} {value}" for name, value in settings.items() if value not in (None, [], {})]
    return f": {', '.join(told)}" if told else ""
