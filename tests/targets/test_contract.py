"""What every target has to stand, whoever wrote it: one suite for all that discovery finds."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from numpy.typing import NDArray

import targets.runtimes
from targets import Bundle, Manifest, Signature, Source, Target, TensorSpec, registry
from targets.base import Precision, Session
from targets.bundle import SCHEMA_VERSION
from targets.discovery import announcer, foreign_source
from targets.errors import InputError, UnsupportedModelError
from targets.evaluation_pack import EvaluationPack
from targets.feeds import FeedsSpec, synthetic_feeds
from targets.preprocessing import TextPreprocessing
from targets.signature import Arrays
from targets.worker_client import Worker

DOCUMENT = Path(__file__).parents[2] / "docs" / "add-a-target.md"

# Largest difference from the same ONNX model run node by node, as a part of the reference's norm.
# fp32 leaves room for TF32, int8 for values that round to the next level.
TOLERANCES: dict[Precision, float] = {
    "fp32": 1e-3,
    "fp16": 1e-2,
    "bf16": 3e-2,
    "int8": 5e-2,
    "int8-dynamic": 3e-2,
    "int8-weights": 1e-2,
    "int4-weights": 3e-2,  # runtimes round the activations to 8 bits for it
}

# Files in which the compiler of a vendor writes other bytes each time; all others stay equal.
VARYING = {"tensorrt_rtx": ("model.engine",), "tensorrt": ("model.engine",)}

# Lengths of the samples of a batch. The example that the model was traced with was 2 x 8.
BATCHES = ((8, 8), (13, 4, 1, 9, 2), (1,), (20, 3, 20))

RANGES = {"batch": (1, 1, 8), "sequence": (1, 16, 32)}
FLOATS = {"fp32", "fp16", "bf16"}  # what a model that was not quantized can run in
HEAVY = ("torch", "transformers", "onnx", "onnxruntime", "openvino", "tensorrt", "tensorrt_rtx")


@dataclass(frozen=True)
class Models:
    """One small classifier in every form and precision."""

    checkpoint: Path
    onnx: dict[Precision, Path]
    signature: Signature
    num_ids: int

    def source(self, target: Target, precision: Precision = "fp32") -> Source:
        if target.form == "torch":
            return Source(self.checkpoint, self.signature, precision, task="text-classification")
        return Source(self.onnx[precision], self.signature, precision, RANGES)

    def feeds(self, lengths: tuple[int, ...]) -> Arrays:
        spec = FeedsSpec(
            lengths=lengths,
            num_ids=self.num_ids,
            seed=len(lengths),
            preprocessing=TextPreprocessing(max_length=512, pad_token_id=0),
        )
        return synthetic_feeds(self.signature, spec)


@pytest.fixture(scope="module")
def models(make_classifier: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Models:
    from compressor import quantization
    from compressor.export import export_onnx

    folder = tmp_path_factory.mktemp("models")
    classifier = make_classifier()
    classifier.save(folder / "checkpoint")
    free = ("batch", "sequence")
    signature = Signature(
        inputs=tuple(
            TensorSpec(name=name, dtype="int64", shape=free)
            for name in ("input_ids", "attention_mask")
        ),
        outputs=(TensorSpec(name="logits", dtype="float32", shape=("batch", 3)),),
    )
    paths: dict[Precision, Path] = {name: folder / f"{name}.onnx" for name in get_args(Precision)}
    export_onnx(classifier, signature, paths["fp32"])
    made = Models(folder / "checkpoint", paths, signature, len(classifier.processor))
    calibration = [made.feeds(lengths) for lengths in BATCHES]
    # 7 bits: no target has to narrow them, whatever the CPU, so that all run the same numbers.
    quantization.quantize_static(paths["fp32"], paths["int8"], calibration, weight_bits=7)
    quantization.quantize_dynamic(paths["fp32"], paths["int8-dynamic"], weight_bits=7)
    quantization.quantize_weights(paths["fp32"], paths["int8-weights"])
    quantization.quantize_weights(paths["fp32"], paths["int4-weights"], bits=4, group_size=16)
    quantization.convert_fp16(paths["fp32"], paths["fp16"])
    quantization.request_bf16(paths["fp32"], paths["bf16"])
    return made


def reference(path: Path, feeds: Arrays) -> NDArray[np.generic]:
    """The same model, node by node in numpy: no fusions, and no sums that saturate."""
    from onnx.reference import ReferenceEvaluator

    [found] = ReferenceEvaluator(str(path)).run(None, dict(feeds))
    return np.asarray(found)


def make_bundle(target: Target, source: Source, checkpoint: Path, folder: Path) -> Bundle:
    folder.mkdir(parents=True)
    target.requires(source)
    lowered = target.lower(source, folder)
    shutil.copyfile(checkpoint / "tokenizer.json", folder / "tokenizer.json")
    manifest = Manifest(
        schema_version=SCHEMA_VERSION,
        name="contract",
        task="text-classification",
        target=target.name,
        target_settings=target.settings(),
        precision=source.precision,
        signature=source.signature,
        model=lowered.model,
        options=json.loads(json.dumps(dict(lowered.options))),
        notes=lowered.notes,
        labels=("person", "place", "time"),
        preprocessing=TextPreprocessing(max_length=32, pad_token_id=0),
        files={},
    )
    Bundle.create(folder, manifest)
    return Bundle.open(folder)


def refused(target: Target, source: Source) -> UnsupportedModelError | None:
    """Why the target does not take a model, or None where it does."""
    try:
        target.requires(source)
    except UnsupportedModelError as error:
        return error
    return None


def skip_where_it_cannot(reason: str | None) -> None:
    if reason is not None:
        pytest.skip(reason)


def hash_path(path: Path) -> dict[str, str]:
    files = [path] if path.is_file() else sorted(each for each in path.rglob("*") if each.is_file())
    return {each.name: hashlib.sha256(each.read_bytes()).hexdigest() for each in files}


def check_it_is_described(target: Target, models: Models, folder: Path) -> None:
    assert re.fullmatch(r"[a-z][a-z0-9_]*", target.name)
    assert target.extra
    assert target.summary()
    assert target.form in ("onnx", "torch")
    assert target.width_multiple >= 1
    assert type(target).model_validate(target.settings()) == target
    assert target.label == target.name
    assert set(target.versions()) <= {*target.libraries, *foreign_source(type(target))}
    assert not [name for name, each in type(target).model_fields.items() if not each.description]
    precisions = target.native_precisions()
    assert precisions[0] == "fp32"
    assert set(precisions) <= FLOATS
    assert target.version >= 1


def check_a_reason_is_given_where_it_cannot(target: Target, models: Models, folder: Path) -> None:
    for reason in (target.cannot_lower(), target.cannot_run()):
        assert reason is None or (reason.strip() and "\n" not in reason)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(importlib.util, "find_spec", lambda name, package=None: None)
        reason = target.cannot_run()
    if target.libraries:
        assert reason is not None
        assert f"compressor[{target.extra}]" in reason or announcer(type(target)) is not None


def check_outputs_match_the_reference(target: Target, models: Models, folder: Path) -> None:
    skip_where_it_cannot(target.cannot_lower() or target.cannot_run())
    for precision in get_args(Precision):
        source = models.source(target, precision)
        refusal = refused(target, source)
        if refusal is not None:
            assert precision not in target.native_precisions(), refusal
            assert refusal.where
            assert refusal.fix
            continue
        bundle = make_bundle(target, source, models.checkpoint, folder / precision)
        session = target.load(bundle, threads=1)
        assert (type(session)._extend is not Session._extend) or not target.keeps_state
        for lengths in BATCHES:
            feeds = models.feeds(lengths)
            found = session.run(feeds)
            assert list(found) == ["logits"]
            logits, expected = found["logits"], reference(models.onnx[precision], feeds)
            assert (logits.shape, logits.dtype) == (expected.shape, expected.dtype)
            error_norm = np.linalg.norm(logits - expected) / np.linalg.norm(expected)
            assert error_norm < TOLERANCES[precision], (precision, lengths)
        session.close()


def check_what_it_says_it_never_runs_it_refuses(
    target: Target, models: Models, folder: Path
) -> None:
    if not target.refuses:
        pytest.skip("it says of no precision that it never runs it")
    skip_where_it_cannot(target.cannot_lower())
    assert not set(target.refuses) & set(target.native_precisions())
    for precision, reason in target.refuses.items():
        assert reason.strip()
        refusal = refused(target, models.source(target, precision))
        assert refusal is not None, precision
        assert refusal.given


def check_wrong_inputs_are_refused_by_name(target: Target, models: Models, folder: Path) -> None:
    skip_where_it_cannot(target.cannot_lower() or target.cannot_run())
    bundle = make_bundle(target, models.source(target), models.checkpoint, folder / "bundle")
    session = target.load(bundle, threads=1)
    good = models.feeds((5, 3))
    mask = good["attention_mask"]
    wrong: dict[str, Arrays] = {
        r"'attention_mask' is missing": {"input_ids": good["input_ids"]},
        r"'attention_mask' has the wrong type": {**good, "attention_mask": mask.astype(np.int32)},
        r"'attention_mask' has the wrong shape": {**good, "attention_mask": mask[0]},
        r"'input_ids' has the wrong shape": {**good, "input_ids": good["input_ids"][None]},
        r"unknown input 'positions'": {**good, "positions": mask},
    }
    for message, feeds in wrong.items():
        with pytest.raises(InputError, match=message):
            session.run(feeds)
    assert session.run(good)["logits"].shape == (2, 3)  # still in order after all that


def check_every_alternative_of_tuning_answers_the_same(
    target: Target, models: Models, folder: Path
) -> None:
    skip_where_it_cannot(target.cannot_lower() or target.cannot_run())
    lengths = BATCHES[1]
    alternatives = target.alternatives(threads=2, batch_size=len(lengths))
    if not alternatives:
        pytest.skip("it offers no runtime options to tune")
    bundle = make_bundle(target, models.source(target), models.checkpoint, folder / "bundle")
    feeds = models.feeds(lengths)
    default = target.load(bundle, threads=2).run(feeds)["logits"]
    for name, each in alternatives.items():
        assert name.strip()
        assert json.loads(json.dumps(dict(each.options))) == dict(each.options)
        found = target.load(bundle.with_options(each.options), threads=2).run(feeds)["logits"]
        tolerance = TOLERANCES["fp32" if each.keeps_outputs else "bf16"]
        assert np.linalg.norm(found - default) / np.linalg.norm(default) < tolerance, name


def check_the_same_model_gives_the_same_bytes(target: Target, models: Models, folder: Path) -> None:
    skip_where_it_cannot(target.cannot_lower())
    source = models.source(target, "fp32" if target.form == "torch" else "int8")
    before = hash_path(source.path)
    written = []
    for turn in range(2):
        (folder / str(turn)).mkdir(parents=True)
        with Worker() as worker:  # as in a run: numbers that a library counts up begin anew
            worker.lower(target, source, folder / str(turn))
        written.append(hash_path(folder / str(turn)))
    free = VARYING.get(target.name, ())
    first, second = (
        {name: sha for name, sha in each.items() if name not in free} for each in written
    )
    assert written[0].keys() == written[1].keys()
    assert first == second
    assert hash_path(source.path) == before


def check_fp64_is_refused_by_node_or_run(target: Target, models: Models, folder: Path) -> None:
    skip_where_it_cannot(target.cannot_lower())
    if target.form == "torch":
        pytest.skip("it takes checkpoints, which have no nodes")
    folder.mkdir(exist_ok=True)
    path = detour_through_fp64(models.onnx["fp32"], folder / "fp64.onnx")
    source = replace(models.source(target), path=path)
    refusal = refused(target, source)
    if refusal is not None:
        assert "to_double" in str(refusal)
        assert refusal.fix
        return
    skip_where_it_cannot(target.cannot_run())
    session = target.load(make_bundle(target, source, models.checkpoint, folder / "b"), threads=1)
    feeds = models.feeds((4, 2))
    np.testing.assert_allclose(session.run(feeds)["logits"], reference(path, feeds), rtol=1e-3)


def detour_through_fp64(source: Path, destination: Path) -> Path:
    """The model with its output cast to float64 and back."""
    import onnx
    from onnx import TensorProto, helper

    model = onnx.load(source)
    graph = model.graph
    last = next(node for node in graph.node if "logits" in node.output)
    last.output[0] = "narrow"
    graph.node.extend(
        [
            helper.make_node("Cast", ["narrow"], ["wide"], "to_double", to=TensorProto.DOUBLE),
            helper.make_node("Cast", ["wide"], ["logits"], "to_float", to=TensorProto.FLOAT),
        ]
    )
    onnx.save(model, destination)
    return destination


def check_it_works_from_lowering_to_timing(target: Target, models: Models, folder: Path) -> None:
    skip_where_it_cannot(target.cannot_lower() or target.cannot_run())
    bundle = lower_whole(target, models, folder)
    pack = EvaluationPack(
        {"input_ids": np.array([2, 9, 3, 2, 30, 31, 32, 3, 2, 3])},
        np.array([3, 5, 2]),
        np.zeros(3, np.int64),
        TextPreprocessing(max_length=512, pad_token_id=0),
    )
    pack.save(folder / "pack.safetensors")
    feeds = FeedsSpec(
        lengths=(9, 9),
        num_ids=models.num_ids,
        preprocessing=TextPreprocessing(max_length=512, pad_token_id=0),
    )
    with Worker() as worker:
        opened = worker.open(bundle.folder)
        outputs = worker.predict(folder / "pack.safetensors", batch_size=2)
        timed = worker.round(feeds, num_runs=3)
    assert opened.load_time_ms > 0
    assert len(timed.round.run_ns) == 3
    batches = [
        (batch, {"logits": reference(models.onnx["fp32"], batch.feeds)})
        for batch in pack.batches(3, models.signature)
    ]
    expected = pack.restore(batches, models.signature)["logits"]
    np.testing.assert_allclose(
        outputs["logits"], expected, atol=TOLERANCES["fp32"] * np.abs(expected).max()
    )


def lower_whole(target: Target, models: Models, folder: Path) -> Bundle:
    """Lower as a run does, from a model in the store."""
    from compressor.lowering import lower
    from compressor.model import OnnxModel
    from compressor.store import RunStore

    store = RunStore(folder / "store")

    def keep(files: Path, work: Path) -> dict[str, Any]:
        shutil.copytree(models.checkpoint, files, dirs_exist_ok=True)
        if target.form == "onnx":
            shutil.copyfile(models.onnx["fp32"], files / "model.onnx")
            labels = ("person", "place", "time")
            OnnxModel(
                files, models.signature, "fp32", "text-classification", labels, 32, RANGES
            ).save(files)
        return {"form": target.form, "precision": "fp32"}

    step = store.step("model", {}, keep)
    candidate = lower("whole", "candidate", target, [step], store=store, hand_over=folder / "over")
    assert candidate.status == "built", candidate.reason
    assert candidate.runs_here
    assert candidate.bundle is not None
    return Bundle.open(candidate.bundle.folder)


Check = Callable[[Target, Models, Path], None]
CHECKS: tuple[Check, ...] = (
    check_it_is_described,
    check_a_reason_is_given_where_it_cannot,
    check_outputs_match_the_reference,
    check_what_it_says_it_never_runs_it_refuses,
    check_wrong_inputs_are_refused_by_name,
    check_every_alternative_of_tuning_answers_the_same,
    check_the_same_model_gives_the_same_bytes,
    check_fp64_is_refused_by_node_or_run,
    check_it_works_from_lowering_to_timing,
)
every_check = pytest.mark.parametrize(
    "check", CHECKS, ids=lambda each: each.__name__.removeprefix("check_")
)


@every_check
@pytest.mark.parametrize("name", registry.available())
def test_every_target(name: str, check: Check, models: Models, tmp_path: Path) -> None:
    check(registry.get(name), models, tmp_path / "work")


def test_asking_what_can_be_done_loads_no_runtime() -> None:
    script = (
        "import sys; from targets import registry\n"
        "for cls in registry.available().values():\n"
        "    target = cls()\n"
        "    target.label, target.native_precisions(), target.settings(), target.versions()\n"
        "    target.cannot_lower(), target.cannot_run()\n"
        f"print([name for name in {HEAVY} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


@pytest.fixture
def documented(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Target]:
    """The example of the documentation as one more file of ``targets/runtimes/``.

    The file is added to a copy of the package, so that worker processes find it too.
    """
    text = DOCUMENT.read_text(encoding="utf-8")
    [code] = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    package = Path(targets.runtimes.__file__).parents[1]
    copy = tmp_path / "site" / "targets"
    shutil.copytree(package, copy, ignore=shutil.ignore_patterns("__pycache__"))
    (copy / "runtimes" / "onnx_reference.py").write_text(code, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(copy.parent))
    monkeypatch.setattr(
        targets.runtimes, "__path__", [*targets.runtimes.__path__, str(copy / "runtimes")]
    )
    registry.available.cache_clear()
    importlib.invalidate_caches()
    yield registry.get("onnx_reference")
    registry.available.cache_clear()
    sys.modules.pop("targets.runtimes.onnx_reference", None)
    vars(targets.runtimes).pop("onnx_reference", None)


@every_check
def test_the_documented_target_is_one_file_and_stands_the_suite(
    documented: Target, check: Check, models: Models, tmp_path: Path
) -> None:
    check(documented, models, tmp_path / "work")
