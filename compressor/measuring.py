"""Measure bundles: held-out data as they read it, predictions on it, and latency side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from compressor.lowering import Candidate
from compressor.store import RunStore, StoredStep, step_key
from targets.answers import Units
from targets.base import Target
from targets.benchmark import BenchmarkCase, BenchmarkSettings, CaseResult, benchmark
from targets.bundle import Bundle
from targets.environment import Environment, library_versions
from targets.errors import ToolkitError, WorkerError
from targets.evaluation_pack import EvaluationPack
from targets.predictor import encode
from targets.preprocessing.text import IDS, TextEncoder
from targets.tuning import describe, tune, write_tuned
from targets.worker_client import Worker
from targets.writing import Writing, continues_texts, measure_writing

if TYPE_CHECKING:
    from compressor.data import Split, Splits

__all__ = [
    "SPLITS",
    "Evaluators",
    "Predictions",
    "evaluate",
    "evaluation_packs",
    "have_died",
    "measure_latency",
    "measure_writing_speed",
    "pack_file",
    "tuned",
    "writers_among",
]

SPLITS = ("validation", "test")
PACK_VERSION = 5
EVALUATE_VERSION = 3
BENCHMARK_VERSION = 1
WRITING_VERSION = 1
TUNE_VERSION = 2
EVALUATION_THREADS = 2
RESULTS = "latency.json"
WRITING = "writing.json"
OUTPUTS = "outputs.safetensors"
_PARTS = ("scores", "labels", "rows", "losses")  # of the units, as they are kept

Predictions = Mapping[str, Units]
"""Split -> what is judged of the answers to it."""


def pack_file(split: str) -> str:
    """Name of the file with the inputs of a split."""
    return f"{split}.safetensors"


def evaluation_packs(
    bundle: Bundle,
    *,
    store: RunStore,
    splits: Callable[[], Splits],
    data_hash: str,
    names: Sequence[str] = SPLITS,
) -> StoredStep:
    """Splits of the data in the form that a bundle's model reads.

    Bundles with equal preprocessing share them.
    """
    manifest = bundle.manifest

    def make(files: Path, work: Path) -> dict[str, Any]:
        data = splits()
        packs: dict[str, EvaluationPack] = {}
        for name in names:
            split: Split = getattr(data, name)
            packs[name] = encode(bundle, split.inputs, split.labels)
            packs[name].save(files / pack_file(name))
        return {"unknown_rates": {name: _unknown_rate(bundle, packs[name]) for name in names}}

    return store.step(
        "encode",
        {
            "files": [manifest.files[name].sha256 for name in manifest.preprocessing.files],
            "preprocessing": manifest.preprocessing.model_dump(mode="json"),
            "data": data_hash,
            "labels": list(manifest.labels),  # numbers in the packs are places among them
            "splits": list(names),
            "libraries": library_versions(("numpy", *manifest.preprocessing.libraries)),
            "version": PACK_VERSION,
        },
        make,
    )


class Evaluators:
    """The processes in which bundles predict; a context manager that ends them.

    The bundles of one target take turns in one process, for importing a runtime takes longer than
    predicting. After a failure the next bundle gets a new one.
    """

    def __init__(self) -> None:
        self._workers: dict[str, Worker] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        while self._workers:
            _, worker = self._workers.popitem()
            worker.close(kindly=error is None)

    @contextmanager
    def worker(self, target: Target) -> Iterator[Worker]:
        """The process of a target, started where there is none."""
        if target.label not in self._workers:
            self._workers[target.label] = Worker(threads=EVALUATION_THREADS)
        try:
            yield self._workers[target.label]
        except BaseException:
            self._workers.pop(target.label).close(kindly=False)
            raise


def evaluate(
    candidate: Candidate,
    *,
    store: RunStore,
    packs: StoredStep,
    environment: Environment,
    evaluators: Evaluators,
    names: Sequence[str] = SPLITS,
) -> tuple[StoredStep, Predictions]:
    """Run a bundle on the whole of some splits, on its own target.

    Args:
        candidate: Its bundle.
        store: Where the answers are kept.
        packs: What `evaluation_packs` made for the bundle.
        environment: This machine.
        evaluators: Where it predicts.
        names: Of the splits; the packs hold them.

    Raises:
        TargetError: The target failed.
    """
    bundle = candidate.bundle
    assert bundle is not None
    opened = Bundle.open(bundle.folder, verify=False)

    def make(files: Path, work: Path) -> dict[str, Any]:
        arrays: dict[str, NDArray[np.generic]] = {}
        manifest = opened.manifest
        with evaluators.worker(candidate.target) as worker:
            worker.open(bundle.folder)
            for name in names:
                pack = packs.folder / pack_file(name)
                outputs = worker.predict(pack)[manifest.signature.outputs[0].name]
                units = manifest.answers.units(outputs, EvaluationPack.load(pack))
                parts = {part: getattr(units, part) for part in _PARTS}
                arrays |= {
                    f"{name}.{part}": each for part, each in parts.items() if each is not None
                }
        whole = {key: np.ascontiguousarray(value) for key, value in arrays.items()}
        save_file(whole, files / OUTPUTS)
        return {}

    step = store.step(
        "evaluate",
        {
            "bundle": bundle.content_hash,
            "data": packs.content_hash,
            "machine": environment.machine,
            "version": EVALUATE_VERSION,
            **({"alone": True} if candidate.target.runs_alone(opened) else {}),
        },
        make,
    )
    kept: dict[str, Any] = load_file(step.folder / OUTPUTS)
    found = {
        name: {part: kept[key] for part in _PARTS if (key := f"{name}.{part}") in kept}
        for name in names
    }
    return step, {name: Units(**parts) for name, parts in found.items()}


def tuned(
    candidate: Candidate,
    settings: BenchmarkSettings,
    *,
    store: RunStore,
    packs: StoredStep,
    environment: Environment,
    on_progress: Callable[[float, str], None],
    again: bool = False,
) -> StoredStep:
    """The bundle with the runtime options that are fastest on this machine.

    Args:
        candidate: Has a bundle that runs here.
        settings: How to measure.
        store: Where the result is kept.
        packs: See :func:`evaluation_packs`. The validation data tell whether labels change.
        environment: This machine.
        on_progress: Called with (fraction done, one line).
        again: Forget a cached result.

    Raises:
        TargetError: The target failed.
    """
    bundle = candidate.bundle
    assert bundle is not None

    def make(files: Path, work: Path) -> dict[str, Any]:
        opened = Bundle.open(bundle.folder, verify=False)
        pack = packs.folder / pack_file("validation")
        with store.measuring():
            tuning = tune(opened, settings, pack=pack, on_progress=on_progress)
        written = write_tuned(opened, tuning, files)
        facts = bundle.record.facts
        return {"size_bytes": written.size_bytes, "notes": [*facts["notes"], describe(tuning)]}

    inputs = {
        "bundle": bundle.content_hash,
        "data": packs.content_hash,
        "settings": settings.of_latency(),
        "machine": environment.machine,
        "version": TUNE_VERSION,
    }
    if again:
        store.remove(step_key("tune", inputs))
    return store.step("tune", inputs, make)


def measure_latency(
    candidates: Sequence[Candidate],
    settings: BenchmarkSettings,
    *,
    store: RunStore,
    environment: Environment,
    on_progress: Callable[[float, str], None],
    again: bool = False,
    purpose: str = "report",
) -> tuple[StoredStep, dict[str, CaseResult]]:
    """Time all bundles side by side; a cached result is of this machine and these bundles.

    One in which a worker died is not used again: what crashed may have been the machine's fault,
    such as too little memory. Runs of one store do not measure at the same time on one machine.

    Args:
        candidates: What to measure.
        settings: How.
        store: Where the result is kept.
        environment: This machine.
        on_progress: Called with (fraction done, one line).
        again: Forget a cached result.
        purpose: What was measured for one is not used for another: what was chosen for its time
            would look faster than it is.

    Returns:
        The step, and a result for each candidate's key.
    """
    bundles = {each.key: each.bundle for each in candidates if each.bundle is not None}

    def make(files: Path, work: Path) -> dict[str, Any]:
        with store.measuring():
            results = benchmark(
                {key: BenchmarkCase(step.folder) for key, step in bundles.items()},
                settings,
                lambda done, total, line: on_progress(done / total, line),
            )
        for key, result in results.items():
            (files / key).mkdir()
            (files / key / RESULTS).write_text(result.model_dump_json(), encoding="utf-8")
        return {"environment": Environment.here().model_dump(mode="json")}

    inputs = {
        "bundles": {key: each.content_hash for key, each in bundles.items()},
        "settings": settings.of_latency(),
        "machine": environment.machine,
        "purpose": purpose,
        "version": BENCHMARK_VERSION,
    }

    def results_of(step: StoredStep) -> dict[str, CaseResult]:
        return {
            key: CaseResult.model_validate_json((step.folder / key / RESULTS).read_bytes())
            for key in bundles
        }

    key = step_key("benchmark", inputs)
    kept = store.find(key)
    if again or (kept is not None and have_died(results_of(kept).values())):
        store.remove(key)
    step = store.step("benchmark", inputs, make)
    return step, results_of(step)


def measure_writing_speed(
    writers: Sequence[Candidate],
    settings: BenchmarkSettings,
    num_tokens: int,
    *,
    store: RunStore,
    environment: Environment,
    on_progress: Callable[[float, str], None],
    again: bool = False,
    purpose: str = "report",
) -> tuple[StoredStep, dict[str, Writing]]:
    """Let all bundles of language models write after a prompt, in rounds that alternate.

    Other arguments are as of :func:`measure_latency`.

    Args:
        writers: Those that :func:`writers_among` found.
        settings: How.
        num_tokens: How many each writes.

    Returns:
        The step, in whose facts stands why some of them failed; and what the others took, by the
        candidate's key. Where a worker died, all are measured again the next time.
    """
    bundles = {each.key: each.bundle for each in writers if each.bundle is not None}

    def make(files: Path, work: Path) -> dict[str, Any]:
        failures: dict[str, ToolkitError] = {}
        with store.measuring():
            results = measure_writing(
                {key: Bundle.open(each.folder, verify=False) for key, each in bundles.items()},
                threads=settings.threads,
                prompt_tokens=settings.sequence_length,
                num_tokens=num_tokens,
                num_rounds=settings.rounds,
                on_progress=lambda done, total, line: on_progress(done / total, line),
                on_failure=lambda key, error: failures.update({key: error}),
                timeout_s=settings.timeout_s,
            )
        for key, result in results.items():
            (files / key).mkdir()
            (files / key / WRITING).write_text(result.model_dump_json(), encoding="utf-8")
        return {
            "failures": {key: error.what for key, error in failures.items()},
            "has_died": any(isinstance(error, WorkerError) for error in failures.values()),
        }

    inputs = {
        "bundles": {key: each.content_hash for key, each in bundles.items()},
        "settings": settings.model_dump(
            mode="json", include={"threads", "sequence_length", "rounds", "timeout_s"}
        ),
        "num_tokens": num_tokens,
        "machine": environment.machine,
        "purpose": purpose,
        "version": WRITING_VERSION,
    }
    key = step_key("write", inputs)
    kept = store.find(key)
    if again or (kept is not None and kept.record.facts["has_died"]):
        store.remove(key)
    step = store.step("write", inputs, make)
    files = {each: step.folder / each / WRITING for each in bundles}
    return step, {
        each: Writing.model_validate_json(path.read_bytes())
        for each, path in files.items()
        if path.is_file()
    }


def writers_among(
    candidates: Sequence[Candidate], settings: BenchmarkSettings
) -> tuple[list[Candidate], int]:
    """The language models with a state, and how many tokens each can write after the prompt.

    There are none where none is asked to write, or where the untouched model in eager PyTorch alone
    has a state, beside which there is nothing to compare. Fewer than two tokens are too few.
    """
    opened = [
        (each, Bundle.open(each.bundle.folder, verify=False))
        for each in candidates
        if each.bundle is not None and settings.write_tokens is not None
    ]
    writers = [(each, bundle) for each, bundle in opened if continues_texts(bundle)]
    if settings.write_tokens is None or all(each.kind != "candidate" for each, _ in writers):
        return [], 0
    longest = min(bundle.manifest.preprocessing.longest for _, bundle in writers)
    room = min(settings.write_tokens, longest - settings.sequence_length)
    return [each for each, _ in writers], room


def have_died(results: Iterable[CaseResult]) -> bool:
    """Whether a worker died in a measurement: it may have been the machine's fault."""
    failures = (each for result in results for each in result.failures)
    return any(each.error.type == WorkerError.__name__ for each in failures)


def _unknown_rate(bundle: Bundle, pack: EvaluationPack) -> float:
    """Share of the tokens of a split that the tokenizer does not know, in [0, 1]."""
    encoder = bundle.manifest.preprocessing.open(bundle.folder)
    if not isinstance(encoder, TextEncoder):
        return 0.0
    model = encoder.tokenizer.model
    token = getattr(model, "unk_token", None)
    unknown = None if token is None else model.token_to_id(token)
    if unknown is None:
        return 0.0
    return float((pack.inputs[IDS] == unknown).mean())
