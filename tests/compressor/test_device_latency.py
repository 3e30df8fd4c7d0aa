"""Results of devices are kept, but for those in which a worker died."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from compressor.device_latency import measure_on_devices
from compressor.progress import Silent
from compressor.store import RunStore
from targets.bench import BenchEntry, BenchReport, Sweep
from targets.benchmark import BenchmarkSettings, CaseResult, Failure
from targets.environment import Environment
from targets.protocol import ErrorRecord


def report(error: str | None) -> BenchReport:
    failures = () if error is None else (Failure(error=ErrorRecord(type=error, what="it ended")),)
    entry = BenchEntry(
        bundle="int8", identity="0" * 64, threads=1, result=CaseResult(failures=failures)
    )
    return BenchReport(
        created="2026-01-01T00:00:00+00:00",
        environment=Environment.here(),
        settings=BenchmarkSettings(),
        sweep=Sweep(),
        entries=(entry,),
    )


def test_what_a_crash_left_is_measured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may have been too little memory, once; what a runtime refuses it refuses again."""
    inventory = tmp_path / "devices.yaml"
    inventory.write_text("board: {address: 'ssh://me@nowhere.invalid'}\n")
    errors = iter(["WorkerError", "TargetError", None])
    asked: list[str] = []

    def bench_devices(devices: Mapping[str, Any], *given: Any) -> dict[str, BenchReport]:
        asked.extend(devices)
        return {name: report(next(errors)) for name in devices}

    monkeypatch.setattr("compressor.devices.fleet.bench_devices", bench_devices)

    def measure(*, again: bool = False) -> CaseResult:
        store, settings = RunStore(tmp_path / "store"), BenchmarkSettings()
        found = measure_on_devices(
            inventory, [], settings, store=store, progress=Silent(), again=again
        )
        return found.results["board"]["int8"]

    assert [each.error.type for each in measure().failures] == ["WorkerError"]
    assert [each.error.type for each in measure().failures] == ["TargetError"]
    assert [each.error.type for each in measure().failures] == ["TargetError"]
    assert asked == ["board"] * 2
    assert measure(again=True).failures == ()
    assert asked == ["board"] * 3
