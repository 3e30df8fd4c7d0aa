"""What a run of MLPerf LoadGen gave, read from its own logs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from targets.errors import TargetError
from targets.load_scenario import LoadSettings
from targets.measurement import Noise

__all__ = ["LoadLatency", "LoadResult", "MachineState", "read_logs"]

DETAIL = "mlperf_log_detail.txt"
LINE = ":::MLLOG "
NS_PER_MS = 1e6
TIME_FORMAT = "%m-%d-%Y %H:%M:%S.%f"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class LoadLatency(_Frozen):
    """Latency from the moment a query is due to its answer, in ms. Multi-stream: to the last one.

    Offline: from the begin of the run, as all samples arrive then.
    """

    mean_ms: float
    p50_ms: float
    p90_ms: float
    p99_ms: float
    p999_ms: float


class MachineState(_Frozen):
    """What the machine did while LoadGen ran."""

    cpus: float
    """CPUs that the process used, on average."""
    others_cpus: float
    """CPUs that other processes kept busy, on average."""
    steal: float
    """Share of the machine's CPU time that its host gave to others, 0 to 1."""
    load_average: float
    peak_memory_bytes: int
    noise: Noise


class LoadResult(_Frozen):
    """One run of LoadGen, as its logs tell it."""

    settings: LoadSettings
    threads: int
    valid: bool
    """LoadGen's own verdict."""
    reasons: tuple[str, ...]
    """Why it is not valid; empty if it is."""
    bound_kept: bool
    """Whether the latency bound was kept and the run went to its end, however few the queries."""
    num_queries: int
    num_samples: int
    num_late: int | None
    """Server: queries over the bound."""
    duration_s: float
    """From the first query to the last answer."""
    samples_per_s: float
    """Samples answered a second."""
    scheduled_qps: float | None
    """Server: rate at which queries did arrive; a short run draws a little more or less than asked
    for."""
    latency: LoadLatency
    machine: MachineState
    seeds: dict[str, int]
    loadgen_version: str
    loadgen_settings: dict[str, Any]
    """Every effective setting in LoadGen's log."""


def read_logs(
    folder: Path, settings: LoadSettings, *, threads: int, machine: MachineState
) -> LoadResult:
    """Read what LoadGen wrote.

    Args:
        folder: Where its logs are.
        settings: What was asked for.
        threads: CPU threads of the target.
        machine: What else happened.

    Raises:
        TargetError: The detail log is absent, or lacks what a finished run writes.
    """
    path = folder / DETAIL
    try:
        found, errors = _read_detail(path)
        return _result(found, errors, settings, threads, machine)
    except (OSError, ValueError, KeyError) as error:
        raise TargetError(
            "LoadGen left no complete log",
            where=path,
            given=f"{type(error).__name__}: {error}",
            fix="install mlcommons-loadgen 6.0 or newer, and check that the disk is not full",
        ) from error


def _read_detail(path: Path) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The last value of each key, and the errors that LoadGen met."""
    values: dict[str, Any] = {}
    errors = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith(LINE):
            entry = json.loads(line.removeprefix(LINE))
            values[entry["key"]] = entry["value"]
            if entry["metadata"]["is_error"]:
                errors.append(str(entry["value"]))
    return values, tuple(errors)


def _result(
    found: Mapping[str, Any],
    errors: tuple[str, ...],
    settings: LoadSettings,
    threads: int,
    machine: MachineState,
) -> LoadResult:
    rules = settings.rules
    num_queries = int(found["result_query_count"])
    num_samples = num_queries * int(found["effective_samples_per_query"])
    begin, end = (datetime.strptime(found[f"power_{at}"], TIME_FORMAT) for at in ("begin", "end"))
    duration_s = (end - begin).total_seconds()

    def percentile_ms(percent: float) -> float:
        return float(found[rules.latency_key.format(percent)]) / NS_PER_MS

    latency = LoadLatency(
        mean_ms=float(found[rules.mean_key]) / NS_PER_MS,
        p50_ms=percentile_ms(50),
        p90_ms=percentile_ms(90),
        p99_ms=percentile_ms(99),
        p999_ms=percentile_ms(99.9),
    )
    return LoadResult(
        settings=settings,
        threads=threads,
        valid=found["result_validity"] == "VALID" and not errors,
        reasons=_reasons(found, errors, settings),
        bound_kept=bool(found.get("result_perf_constraints_met", True)) and not errors,
        num_queries=num_queries,
        num_samples=num_samples,
        num_late=found.get("result_overlatency_query_count"),
        duration_s=duration_s,
        samples_per_s=float(found[rules.rate_key]) if rules.rate_key else num_samples / duration_s,
        scheduled_qps=found.get("result_scheduled_samples_per_sec"),
        latency=latency,
        machine=machine,
        seeds={name: int(found[f"effective_{name}"]) for name in settings.seeds},
        loadgen_version=str(found["loadgen_version"]),
        loadgen_settings={
            key.removeprefix("effective_"): value
            for key, value in found.items()
            if key.startswith("effective_")
        },
    )


def _reasons(
    found: Mapping[str, Any], errors: tuple[str, ...], settings: LoadSettings
) -> tuple[str, ...]:
    num_queries, num_late = found["result_query_count"], found.get("result_overlatency_query_count")
    late = "" if num_late is None else f"{num_late} late of "
    told = {
        "result_perf_constraints_met": f"{num_late} of {num_queries} queries took longer than "
        f"{settings.p99_ms} ms",
        "result_min_duration_met": f"the run was shorter than {settings.run_s:g} s",
        "result_min_queries_met": f"there were fewer than {settings.rules.min_queries} queries",
        "early_stopping_met": f"{late}{num_queries} queries are too few to be 99% sure of the "
        "percentile; a longer run may tell",
    }
    failed = [reason for key, reason in told.items() if not found.get(key, True)]
    # The later ones follow from the first.
    return (*failed[:1], *(f"LoadGen: {error}" for error in errors))
