"""What is tracked of a report, whatever keeps it: parameters, metrics, curves, tags and files."""

from __future__ import annotations

import hashlib
import json
import math
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from compressor.errors import BudgetError, ReportError
from compressor.gate.gate import NOISY, GateResult
from compressor.gate.limits import target_label
from compressor.gate.verdict import BUDGET_UNMET, MET, NOTHING_MEASURED
from compressor.report.files import PREDICTIONS_NAME, read_report, report_file
from compressor.report.schema import Comparison, Report, Row, Step
from targets.bundle import Bundle, hash_file
from targets.measurement import Measurement, Speedup
from targets.scoring import Accuracy

__all__ = [
    "EXPERIMENT",
    "Entry",
    "ModelVersion",
    "Point",
    "Record",
    "make_record",
    "read_gate",
    "version_key",
]

EXPERIMENT = "compressor"

OUTCOMES = {
    MET: "pass",
    BUDGET_UNMET: "missed",
    NOTHING_MEASURED: "nothing measured",
    NOISY: "undecided",
}
"""Exit code of a run or a gate -> the verdict in a word."""


class _Frozen(BaseModel):
    # A metric may be no number, which JSON can only write as text.
    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, ser_json_inf_nan="strings"
    )


class Point(_Frozen):
    """One value of a training curve."""

    step: int
    value: float


class Entry(_Frozen):
    """One run of a tracker: the whole report, or one of its rows."""

    name: str
    params: dict[str, str]
    metrics: dict[str, float] = {}
    curves: dict[str, tuple[Point, ...]] = {}
    """Name, such as ``3-distill/loss`` -> its values."""
    tags: dict[str, str]
    files: tuple[Path, ...] = ()
    bundle: Path | None = None
    """Folder of the bundle, of a row that was chosen."""
    bundle_sha256: str | None = None
    """Of all of its files, a signature too."""


class ModelVersion(_Frozen):
    """A bundle that becomes a version of a registered model."""

    model: str
    row: str
    """Name of the entry that has the bundle."""
    tags: dict[str, str]


class Record(_Frozen):
    """All that is tracked of one report."""

    experiment: str
    """The group of records that this one belongs to."""
    report_sha256: str
    run: Entry
    rows: tuple[Entry, ...]
    models: tuple[ModelVersion, ...] = ()
    gate: dict[str, str] = {}
    """Tags of the gate that judged the report; empty where there is none."""
    gate_file: Path | None = None


def version_key(tags: Mapping[str, str]) -> tuple[str | None, ...]:
    """What makes a version of a model, of its tags: another signature makes another version."""
    return tuple(tags.get(name) for name in ("report_sha256", "row", "bundle_sha256"))


def make_record(
    path: Path,
    *,
    experiment: str = EXPERIMENT,
    gate: Path | None = None,
    register: str | None = None,
    even_if_missed: bool = False,
) -> Record:
    """Collect what there is to track of a report.

    Args:
        path: ``report.json``, or the folder that holds it.
        experiment: The group of records that this one belongs to.
        gate: What ``compressor gate --output`` wrote of this report. It then decides what passes.
        register: Name of a model, of which the bundles to ship become versions.
        even_if_missed: Register what was chosen also where the verdict is not a pass.

    Raises:
        ReportError: The report or the gate cannot be read, or they do not belong together.
        BudgetError: There is something to register, and the verdict is not a pass.
        BundleError: A bundle is damaged, or one to register is absent.
    """
    file = report_file(path)
    report = read_report(file)
    digest = hash_file(file)
    result = None if gate is None else read_gate(gate, digest)
    verdict = _outcome(report.verdict.exit_code if result is None else result.exit_code)
    ships = _ships(report, result, even_if_missed=even_if_missed)
    if register is not None:
        _check_register(report, result, verdict, ships, file, even_if_missed=even_if_missed)
    folder = file.parent
    rows, models = [], []
    for row in report.rows:
        bundle = None
        wanted = register is not None and row.bundle in ships
        kept = row.bundle in ships and (folder / str(row.bundle)).exists()
        if row.bundle and (wanted or kept):
            bundle = Bundle.open(folder / row.bundle)
        entry = _row(report, row, digest, bundle)
        rows.append(entry)
        if wanted and bundle is not None and register is not None:
            tags = {
                "bundle_sha256": str(entry.bundle_sha256),
                "target": target_label(row),
                "precision": row.precision,
                "bundle_identity": bundle.identity,
                "verdict": verdict,
                "report_sha256": digest,
                "row": entry.name,
            }
            models.append(ModelVersion(model=register, row=entry.name, tags=tags))
    judged = {}
    if result is not None:
        judged = {"gate_verdict": verdict, "gate_exit_code": str(result.exit_code)}
    return Record(
        experiment=experiment,
        report_sha256=digest,
        run=_run(report, digest, folder, file),
        rows=tuple(rows),
        models=tuple(models),
        gate=judged,
        gate_file=gate,
    )


def read_gate(path: Path, report_sha256: str) -> GateResult:
    """Read the result of a gate, which has to be one on the given report.

    Raises:
        ReportError: It cannot be read, or it judged another report.
    """
    fix = "pass the file that `compressor gate --output` wrote for this report, or run it again"
    try:
        result = GateResult.model_validate_json(path.read_bytes())
    except (OSError, ValueError) as error:
        given = error.strerror if isinstance(error, OSError) else str(error).splitlines()[0]
        raise ReportError(
            "this is not the result of a gate", where=path, given=given, fix=fix
        ) from error
    if result.report_sha256 != report_sha256:
        raise ReportError(
            "the gate judged another report",
            where=path,
            given=f"sha256 {result.report_sha256[:12]}…; this one has {report_sha256[:12]}…",
            fix=fix,
        )
    return result


def _outcome(exit_code: int) -> str:
    return OUTCOMES.get(exit_code, f"exit code {exit_code}")


def _ships(report: Report, gate: GateResult | None, *, even_if_missed: bool) -> tuple[str, ...]:
    """The bundles to register."""
    if gate is not None and even_if_missed:
        return tuple(each.bundle for each in gate.targets if each.bundle)
    if gate is not None:
        return gate.ships
    return tuple(
        row.bundle
        for row in report.rows
        if row.chosen and row.bundle and (even_if_missed or not row.unmet)
    )


def _check_register(
    report: Report,
    gate: GateResult | None,
    verdict: str,
    ships: tuple[str, ...],
    file: Path,
    *,
    even_if_missed: bool,
) -> None:
    if verdict != "pass" and not even_if_missed:
        lines = report.verdict.lines if gate is None else gate.lines
        raise BudgetError(
            f"nothing is registered: the verdict of the {'run' if gate is None else 'gate'} "
            "is not a pass",
            where=file,
            given=f"{verdict}: {'; '.join(lines)}",
            fix="meet the limits that are missed, track it without --register, or register it "
            "anyway with --even-if-missed",
        )
    if not ships:
        raise BudgetError(
            "there is no bundle to register: no row with a bundle was chosen",
            where=file,
            fix="track it without --register",
        )


def _run(report: Report, digest: str, folder: Path, file: Path) -> Entry:
    targets = [each["target"] for each in report.recipe.get("targets", ())]
    params = {
        "recipe": report.name,
        "seed": report.seed,
        "model": report.model.name,
        "model_sha256": report.model.sha256,
        "architecture": report.model.architecture,
        "data_sha256": report.data.get("sha256"),
        "targets": ", ".join(targets),
        "machine": report.environment.machine,
        "primary_shape": report.primary_shape,
    }
    tags = {
        "verdict": _outcome(report.verdict.exit_code),
        "exit_code": report.verdict.exit_code,
        "noisy": report.verdict.noisy,
        "report_sha256": digest,
        "created": report.created,
        "git_commit": _git_commit(),
    }
    beside = (folder / name for name in ("report.md", "report.html", PREDICTIONS_NAME))
    return Entry(
        name=report.name,
        params=_texts(params),
        metrics={"duration_s": report.duration_s},
        tags=_texts(tags),
        files=(file, *(each for each in beside if each.is_file())),
    )


def _row(report: Report, row: Row, digest: str, bundle: Bundle | None) -> Entry:
    steps = report.steps.get(row.variant, ())
    params = {
        "variant": row.variant,
        "target": target_label(row),
        "precision": row.precision,
        **{
            f"{number}-{step.pass_name}/{name}": value
            for number, step in enumerate(steps, 1)
            for name, value in step.settings.items()
        },
    }
    tags = {
        "report_sha256": digest,
        "kind": row.kind,
        "status": row.status,
        "reason": row.reason,
        "chosen": row.chosen,
        "missed": "; ".join(row.unmet) or None,
        "bundle_identity": None if bundle is None else bundle.identity,
    }
    return Entry(
        name=row.key or f"{row.variant}-{target_label(row)}-{row.precision}",
        params=_texts(params),
        metrics=dict(_metrics(row, report.primary_shape)),
        curves=_curves(steps),
        tags=_texts(tags),
        bundle=None if bundle is None else bundle.folder,
        bundle_sha256=None if bundle is None else _all_files(bundle),
    )


def _all_files(bundle: Bundle) -> str:
    """The sha256 over the manifest, which has the hashes of all others, and the signature."""
    unrecorded = [bundle.path(name) for name in bundle.names if name not in bundle.manifest.files]
    return hashlib.sha256(json.dumps([hash_file(path) for path in unrecorded]).encode()).hexdigest()


def _metrics(row: Row, primary_shape: str) -> Iterator[tuple[str, float]]:
    for split, found in (("test", row.test), ("validation", row.validation)):
        if found is not None:
            yield from _with_interval(f"{split}/accuracy", found)
    comparisons = (("test", row.test_comparison), ("validation", row.validation_comparison))
    for split, compared in comparisons:
        if compared is not None:
            yield from _comparison(split, compared)
    yield from _latencies("", row.latency)
    if row.writing is not None:
        yield "first_token_ms", row.writing.first_token_ms
        yield "tokens_per_s", row.writing.written_per_s
    gains = ("speedup", "speedup_eager", "writing_speedup", "writing_speedup_eager")
    for name, gain in ((each, getattr(row, each)) for each in gains):
        if gain is not None:
            yield from _with_interval(name, gain)
    if row.size_bytes is not None:
        yield "size_mb", row.size_bytes / 1e6
    if row.size_ratio is not None:
        yield "size_ratio", row.size_ratio
    if primary_shape in row.latency:
        yield "load_time_ms", row.latency[primary_shape].load_time_ms
        yield "peak_memory_mb", row.latency[primary_shape].peak_memory_bytes / 1e6
    for name, device in row.devices.items():
        yield from _latencies(f"device/{name}/", device.latency)
        if device.speedup is not None:
            yield from _with_interval(f"device/{name}/speedup", device.speedup)


def _comparison(split: str, compared: Comparison) -> Iterator[tuple[str, float]]:
    yield f"{split}/drop_points", compared.drop_points
    yield f"{split}/drop_points_low", compared.low_points
    yield f"{split}/drop_points_high", compared.high_points
    yield f"{split}/agreement", compared.agreement
    for name in ("calibration_error", "max_probability_difference"):
        if (value := getattr(compared, name)) is not None:
            yield f"{split}/{name}", value
    for name, change in compared.metrics.items():
        if name != "accuracy":  # is there as such
            yield f"{split}/{name}", change.value


def _latencies(prefix: str, latency: Mapping[str, Measurement]) -> Iterator[tuple[str, float]]:
    for shape, measured in latency.items():
        yield f"{prefix}latency_ms/{shape}/median", measured.median_ms
        yield f"{prefix}latency_ms/{shape}/p90", measured.p90_ms
        yield f"{prefix}latency_ms/{shape}/p99", measured.p99_ms


def _with_interval(name: str, found: Accuracy | Speedup) -> Iterator[tuple[str, float]]:
    yield name, found.ratio if isinstance(found, Speedup) else found.value
    yield f"{name}_low", found.low
    yield f"{name}_high", found.high


def _curves(steps: tuple[Step, ...]) -> dict[str, tuple[Point, ...]]:
    """Curves of all passes. What diverged is no number any more, and ends there."""
    found: dict[str, list[Point]] = {}
    for number, step in enumerate(steps, 1):
        for index, point in enumerate(step.history):
            for name, value in point.items():
                if name != "step" and math.isfinite(value):
                    at = Point(step=int(point.get("step", index)), value=value)
                    found.setdefault(f"{number}-{step.pass_name}/{name}", []).append(at)
    return {name: tuple(points) for name, points in found.items()}


def _texts(values: Mapping[str, Any]) -> dict[str, str]:
    """Values as text; what there is not is left out."""
    return {
        name: value if isinstance(value, str) else json.dumps(value)
        for name, value in values.items()
        if value is not None
    }


def _git_commit() -> str | None:
    """The commit of the working directory; None where it is no checkout."""
    command = ("git", "rev-parse", "--verify", "HEAD")
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
