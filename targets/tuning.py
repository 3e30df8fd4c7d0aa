"""Find the runtime options that are fastest for one bundle on one machine."""

from __future__ import annotations

import dataclasses
import functools
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from targets.base import Alternative
from targets.benchmark import BenchmarkCase, BenchmarkSettings, Failure, benchmark
from targets.bundle import Bundle, Trial, Tuning, merge_options
from targets.environment import Environment
from targets.errors import BundleError, TargetError
from targets.evaluation_pack import EvaluationPack
from targets.feeds import check_length
from targets.measurement import Measurement, Speedup, speedup
from targets.registry import get
from targets.wording import plural
from targets.worker_client import Worker

__all__ = ["check_folder", "describe", "offered", "tune", "write_tuned"]

DEFAULT = "default"
COMBINED = "combined"
CONFIRMED = "confirmed"
NOISY = "the machine was noisy"
# Below this a gain is not worth options that nobody else runs with.
LEAST_GAIN = 1.02

Progress = Callable[[float, str], None]


def tune(
    bundle: Bundle,
    settings: BenchmarkSettings,
    *,
    pack: Path | None = None,
    even_if_noisy: bool = False,
    on_progress: Progress = lambda fraction, line: None,
) -> Tuning:
    """Measure what a target offers, and choose.

    All alternatives are timed side by side with the options that the bundle has. Those that are
    faster for certain, by the 95% interval of the paired rounds and by 2% at least, are put
    together and measured once more beside the default: what was fastest of many by chance does not
    stand that. An alternative that changes a single label on the test data is not taken, nor one
    that was measured while the machine was noisy.

    Args:
        bundle: What to tune; stays as it is.
        settings: How to measure. Its threads are the most to use, and its first shape counts.
        pack: Test data; by default those in the bundle. Without any, alternatives that may change
            the outputs are left out.
        even_if_noisy: Take the times as they are, also where other work disturbed them.
        on_progress: Called with (fraction done, one line).

    Raises:
        TargetError: The bundle itself does not run.
        InputError: It takes no text of the length in the settings.
    """
    check_length(bundle, settings.sequence_length)
    if pack is None and bundle.manifest.evaluation is not None:
        pack = bundle.path(bundle.manifest.evaluation)
    choices = offered(bundle, settings, has_pack=pack is not None)

    def measure(alternatives: Mapping[str, Alternative]) -> list[Trial]:
        tried = {DEFAULT: Alternative(), **alternatives}
        return _measure(bundle, tried, settings, on_progress, even_if_noisy=even_if_noisy)

    @functools.cache
    def default_labels() -> NDArray[np.int64]:
        assert pack is not None
        return _labels(bundle, {}, pack, settings)

    def keep_labels(trial: Trial) -> Trial:
        return _keep_labels(trial, bundle, pack, settings, default_labels)

    trials = [keep_labels(trial) for trial in measure(choices)]
    winners = [trial for trial in trials if _is_faster(trial)]
    chosen = None
    if winners:
        both = _together(winners, choices)
        last = keep_labels(measure({COMBINED: both})[-1])
        trials.append(last.model_copy(update={"name": CONFIRMED}))
        chosen = both if _is_faster(last) else None
    here = Environment.here()
    return Tuning(
        machine=here.machine,
        libraries=here.libraries,
        threads=settings.threads,
        batch_size=settings.batch_sizes[0],
        sequence_length=settings.sequence_length,
        trials=tuple(trials),
        options={} if chosen is None else dict(chosen.options),
        max_threads=None if chosen is None else chosen.threads,
    )


def write_tuned(bundle: Bundle, tuning: Tuning, folder: Path) -> Bundle:
    """Write a bundle with the options that a tuning chose, and the evidence for them.

    Raises:
        BundleError: The folder is not empty.
    """
    check_folder(folder)
    manifest = bundle.manifest
    for name in manifest.files:  # with permissions of its own: the bundle may be read-only
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(bundle.path(name), path)
    changes: dict[str, Any] = {
        "options": merge_options(manifest.options, tuning.options),
        "max_threads": tuning.max_threads or manifest.max_threads,
        "tuning": tuning,
    }
    return Bundle.create(folder, manifest.model_copy(update=changes))


def check_folder(folder: Path) -> None:
    """Check that a tuned bundle can go to a folder, before the work.

    Raises:
        BundleError: The folder is not empty.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise BundleError(
            "the folder for the tuned bundle is not empty",
            where=folder,
            fix="name another folder, or empty it",
        )


def describe(tuning: Tuning) -> str:
    """What was chosen, in one line."""
    parts = [f"{name} {value}" for name, value in tuning.options.items()]
    if tuning.max_threads:
        parts.append(f"at most {plural(tuning.max_threads, 'thread')}")
    gain = tuning.trials[-1].gain if tuning.trials else None
    if not parts and any((trial.rejected or "").startswith(NOISY) for trial in tuning.trials):
        return f"tuned: no option is changed, {NOISY}"
    if not parts or gain is None:
        return f"tuned: none of {len(tuning.trials)} alternatives is certainly faster"
    return f"tuned: {', '.join(parts)}: {gain}"


def offered(
    bundle: Bundle, settings: BenchmarkSettings, *, has_pack: bool
) -> dict[str, Alternative]:
    """What there is to try: the alternatives of the target, and fewer threads.

    Args:
        bundle: What to tune.
        settings: How it will be measured.
        has_pack: Whether there are test data, to see whether the outputs change.
    """
    manifest = bundle.manifest
    target = get(manifest.target, **manifest.target_settings)
    all_of_target = target.alternatives(
        threads=settings.threads, batch_size=settings.batch_sizes[0]
    )
    found = {name: each for name, each in all_of_target.items() if each.keeps_outputs or has_pack}
    fewer = settings.threads // 2
    while fewer >= 1:
        found[plural(fewer, "thread")] = Alternative(threads=fewer)
        fewer //= 2
    return found


def _measure(
    bundle: Bundle,
    alternatives: Mapping[str, Alternative],
    settings: BenchmarkSettings,
    on_progress: Progress,
    *,
    even_if_noisy: bool,
) -> list[Trial]:
    """One trial for each alternative; the first is the default."""
    results = benchmark(
        {
            name: BenchmarkCase(bundle.folder, threads=each.threads, options=each.options)
            for name, each in alternatives.items()
        },
        settings.model_copy(update={"batch_sizes": settings.batch_sizes[:1]}),
        lambda done, total, line: on_progress(done / total, line),
    )
    [shape] = {settings.shapes[0]}
    default = results[DEFAULT].at(shape)
    if not isinstance(default, Measurement):
        assert isinstance(default, Failure)
        raise default.error.to_error()
    trials = []
    for name, each in alternatives.items():
        found = results[name].at(shape)
        reason = None if isinstance(found, Measurement) else str(getattr(found, "error", found))
        if isinstance(found, Measurement) and not even_if_noisy:
            noise = [*found.noise.reasons, *default.noise.reasons]
            if found.wakes_slowly or default.wakes_slowly:  # then ratios do not stand either
                noise += found.slowed_by or default.slowed_by
            reason = f"{NOISY}: {noise[0]}" if noise else None
        trials.append(
            Trial(
                name=name,
                options=dict(each.options),
                threads=each.threads,
                median_ms=found.median_ms if isinstance(found, Measurement) else None,
                gain=speedup(default, found) if isinstance(found, Measurement) else None,
                rejected=reason,
            )
        )
    return trials


def _is_faster(trial: Trial) -> bool:
    gain: Speedup | None = trial.gain
    if trial.rejected is not None or gain is None:
        return False
    return gain.is_certain and gain.ratio >= LEAST_GAIN


def _keep_labels(
    trial: Trial,
    bundle: Bundle,
    pack: Path | None,
    settings: BenchmarkSettings,
    default_labels: Callable[[], NDArray[np.int64]],
) -> Trial:
    """Reject a trial that would be taken, but changes a label of the test data."""
    if pack is None or not trial.options or not _is_faster(trial):
        return trial
    try:
        default = default_labels()
        changed = int((_labels(bundle, trial.options, pack, settings) != default).sum())
    except TargetError as error:
        return trial.model_copy(update={"rejected": str(error)})
    if not changed:
        return trial
    return trial.model_copy(update={"rejected": f"changes {changed} of {default.size} labels"})


def _labels(
    bundle: Bundle, options: Mapping[str, Any], pack: Path, settings: BenchmarkSettings
) -> NDArray[np.int64]:
    with Worker(threads=settings.threads) as worker:
        worker.open(bundle.folder.resolve(), options=options)
        outputs = worker.predict(pack, batch_size=settings.batch_sizes[0])
    manifest = bundle.manifest
    found = outputs[manifest.signature.outputs[0].name]
    return manifest.answers.given(manifest.answers.units(found, EvaluationPack.load(pack)))


def _together(winners: list[Trial], choices: Mapping[str, Alternative]) -> Alternative:
    """All winners in one; where two set the same option, the one with the larger gain stays."""
    ordered = sorted(winners, key=lambda trial: trial.gain.ratio if trial.gain else 0.0)
    both = Alternative()
    for trial in ordered:
        each = choices[trial.name]
        both = dataclasses.replace(
            both,
            options=merge_options(both.options, each.options),
            threads=each.threads or both.threads,
        )
    return both
