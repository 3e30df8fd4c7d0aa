"""Latency of a run's bundles on remote devices, side by side on each of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compressor.lowering import Candidate
from compressor.measuring import have_died
from compressor.progress import Progress
from compressor.report.schema import DeviceFacts
from compressor.store import RunStore, StoredStep, step_key
from targets.bench import BenchReport
from targets.benchmark import BenchmarkSettings, CaseResult
from targets.bundle import Bundle
from targets.errors import ToolkitError
from targets.preprocessing import FIXED_SIZE

if TYPE_CHECKING:
    from compressor.devices.inventory import Device

__all__ = ["OnDevices", "measure_on_devices"]

DEVICES_VERSION = 1
RESULT = "bench.json"


@dataclass(frozen=True)
class OnDevices:
    """What devices found.

    Attributes:
        facts: Name of a device -> what it is, or why it measured nothing.
        results: Name of a device -> candidate key -> its times.
    """

    facts: Mapping[str, DeviceFacts] = field(default_factory=dict)
    results: Mapping[str, Mapping[str, CaseResult]] = field(default_factory=dict)


def measure_on_devices(
    inventory: Path,
    candidates: Sequence[Candidate],
    settings: BenchmarkSettings,
    *,
    store: RunStore,
    progress: Progress,
    again: bool = False,
) -> OnDevices:
    """Measure every bundle on every device; one that fails is a reason, and the others go on.

    A result is found again while the bundles, the settings and the entry of the device stay, but
    for one in which a worker died.

    Args:
        inventory: The devices file.
        candidates: Those with a bundle of an ONNX target are measured, also where they do not run
            on this machine.
        settings: How to measure.
        store: Where results are kept.
        progress: Is told what happens.
        again: Forget results that are kept.

    Raises:
        InventoryError: The devices file does not hold.
        MissingLibraryError: The SSH library is not installed.
    """
    from compressor.devices.fleet import bench_devices
    from compressor.devices.inventory import read_devices
    from compressor.devices.session import Job

    devices = read_devices(inventory)
    bundles = {
        each.key: each.bundle
        for each in candidates
        if each.bundle is not None and each.target.form == "onnx"
    }
    inputs = {name: _inputs(device, bundles, settings) for name, device in devices.items()}
    absent = {}
    for name, device in devices.items():
        key = step_key("devices", inputs[name])
        kept = store.find(key)
        if again or (kept is not None and have_died(_results(_report(kept)).values())):
            store.remove(key)
            kept = None
        if kept is None:
            absent[name] = device
        else:
            _keep(store, inputs[name], None)  # from here on it is of this run
    found: Mapping[str, BenchReport | ToolkitError] = {}
    progress.start(f"measure {len(bundles)} bundles on {len(devices)} devices")
    if absent:
        job = Job(
            bundles={key: Bundle.open(step.folder, verify=False) for key, step in bundles.items()},
            options=_options(settings),
            threads=settings.threads,
        )
        found = bench_devices(
            absent, job, lambda name, line: progress.update(0.0, f"{name}: {line}")
        )
    facts: dict[str, DeviceFacts] = {}
    results: dict[str, dict[str, CaseResult]] = {}
    for name, device in devices.items():
        address = str(device.address)
        outcome = found.get(name)
        if isinstance(outcome, ToolkitError):
            facts[name] = DeviceFacts(address=address, reason=store.without_paths(str(outcome)))
            continue
        step = _keep(store, inputs[name], outcome)
        report = _report(step)
        facts[name] = DeviceFacts(address=address, environment=report.environment)
        results[name] = _results(report)
    failed = [name for name, each in facts.items() if each.reason]
    progress.finish(f"failed on {', '.join(failed)}" if failed else "", cached=not absent)
    return OnDevices(facts, results)


def _keep(store: RunStore, inputs: Mapping[str, Any], report: BenchReport | None) -> StoredStep:
    def make(files: Path, work: Path) -> dict[str, Any]:
        assert report is not None  # it is only where the step is there
        (files / RESULT).write_text(report.model_dump_json(), encoding="utf-8")
        return {}

    return store.step("devices", inputs, make)


def _report(step: StoredStep) -> BenchReport:
    return BenchReport.model_validate_json((step.folder / RESULT).read_bytes())


def _results(report: BenchReport) -> dict[str, CaseResult]:
    return {entry.bundle: entry.result for entry in report.entries}


def _inputs(
    device: Device, bundles: Mapping[str, StoredStep], settings: BenchmarkSettings
) -> dict[str, Any]:
    return {
        "device": device.model_dump(mode="json"),
        "bundles": {key: step.content_hash for key, step in bundles.items()},
        "settings": settings.of_latency(),
        "version": DEVICES_VERSION,
    }


def _options(settings: BenchmarkSettings) -> tuple[str, ...]:
    options = ["--threads", str(settings.threads), "--rounds", str(settings.rounds)]
    if settings.sequence_length != FIXED_SIZE:
        options += ["--sequence-length", str(settings.sequence_length)]
    for size in settings.batch_sizes:
        options += ["--batch-size", str(size)]
    return tuple(options)
