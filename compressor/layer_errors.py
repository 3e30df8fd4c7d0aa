"""How far the inside of a quantized bundle is from float32, layer by layer, on its own target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from compressor.lowering import Candidate
from compressor.measuring import pack_file
from compressor.model import OnnxModel, load_model
from compressor.report.schema import LayerError
from compressor.report.wording import percent
from compressor.store import RunStore, StoredStep
from targets.answers import LabelAnswers
from targets.base import Source, Target
from targets.bundle import Bundle
from targets.environment import Environment, cpu_features
from targets.evaluation_pack import EvaluationPack
from targets.signature import Arrays, Signature, TensorSpec
from targets.worker_client import Worker

__all__ = ["compare_values", "inner_tensors", "inner_values", "measure_layers", "unlike"]

VERSION = 3
_UNLIKE = 3.0
_SMALL = 0.05
NUM_ROWS = 32
THREADS = 2
PACK = "pack.safetensors"
VALUES = "values.safetensors"
MAX_BYTES = 1_500_000_000
"""Above this a model is not looked into: the probe would not fit into one ONNX file."""

NORM = "LayerNormalization"
_FP16_SUFFIX = "_cast_to_fp16"
"""What an fp16 model calls the value before it is rounded to fp16."""


def unlike(by_target: Mapping[str, Sequence[LayerError]]) -> tuple[str, ...]:
    """What to warn of where one target computes a model in another way than the others.

    All are given the same integers, so that they are about as far from float32; one that is much
    further off has rewritten the model into something else.

    Args:
        by_target: Target -> the errors of one quantized model there.

    Returns:
        A line for each such target, with the first layer where it shows.
    """
    found = []
    for target, layers in by_target.items():
        others = [each for name, each in by_target.items() if name != target]
        for place, layer in enumerate(layers):
            usual = min((each[place].error for each in others if place < len(each)), default=None)
            if usual is None or layer.error < max(_UNLIKE * usual, _SMALL):
                continue
            found.append(
                f"{target} is much further from float32 than other targets running the same "
                f"integers, {percent(layer.error)} against {percent(usual)} after {layer.name}: "
                "it may compute something different; trust only its accuracy on your data"
            )
            break
    return tuple(found)


def measure_layers(
    candidate: Candidate,
    chain: Sequence[StoredStep],
    *,
    store: RunStore,
    packs: StoredStep,
    environment: Environment,
) -> StoredStep | None:
    """Measure the error of each layer of a quantized candidate.

    The quantized model and the float32 one that it was made from get the output of every layer
    norm as an output of their own, are lowered to the target, and answer some validation rows. What
    is fused across a layer norm may run unfused there, so the error is that of the numbers, not of
    the exact kernels.

    Args:
        candidate: Has a bundle that runs here.
        chain: The steps that made its model, the imported checkpoint first.
        store: Where the result is kept.
        packs: See `compressor.measuring.evaluation_packs`.
        environment: This machine.

    Returns:
        The step, whose facts hold ``layers``, the values of a `LayerError` each; None where there
        is nothing to compare: a target that takes no ONNX, a model that is not quantized, or a very
        large one.

    Raises:
        TargetError: The target failed.
    """
    models = [step for step in chain if step.record.facts.get("form") == "onnx"]
    if candidate.target.form != "onnx" or candidate.bundle is None or len(models) < 2:
        return None
    plain = [step for step in models if step.record.facts["precision"] == "fp32"]
    quantized = models[-1]
    if not plain or quantized.record.facts["precision"] == "fp32":
        return None
    if plain[-1].record.facts["size_bytes"] > MAX_BYTES:
        return None
    bundle = Bundle.open(candidate.bundle.folder, verify=False)
    reference = _onnx_model(plain[-1])
    where = {
        "reference": plain[-1].content_hash,
        "target": candidate.target.name,
        "settings": candidate.target.settings(),
        "versions": candidate.target.versions(),
        "target_version": candidate.target.version,
        "cpu": cpu_features(),
        "data": packs.content_hash,
        "machine": environment.machine,
        "version": VERSION,
    }

    def values(model: OnnxModel, work: Path) -> Arrays:
        same = inner_tensors(model.path)
        names = {
            name: width for name, width in inner_tensors(reference.path).items() if name in same
        }
        num_rows = min(NUM_ROWS, bundle.manifest.answers.rows_at_once)
        pack = EvaluationPack.load(packs.folder / pack_file("validation")).head(num_rows)
        return inner_values(model, names, candidate.target, bundle, pack, work)

    def make_reference(files: Path, work: Path) -> dict[str, Any]:
        arrays = values(reference, work)
        save_file(
            {name: np.ascontiguousarray(each) for name, each in arrays.items()}, files / VALUES
        )
        return {}

    def make(files: Path, work: Path) -> dict[str, Any]:
        # One for all variants that were quantized from it.
        before = load_file(store.step("inner values", where, make_reference).folder / VALUES)
        found = compare_values(reference, before, values(_onnx_model(quantized), work))
        return {"layers": [each.model_dump() for each in found]}

    return store.step("layers", {**where, "model": quantized.content_hash}, make)


def _onnx_model(step: StoredStep) -> OnnxModel:
    model = load_model(step.folder)
    assert isinstance(model, OnnxModel)
    return model


def inner_values(
    model: OnnxModel,
    names: dict[str, int],
    target: Target,
    bundle: Bundle,
    pack: EvaluationPack,
    work: Path,
) -> Arrays:
    """The inner tensors of a model and its outputs, as its target computes them.

    Args:
        model: Runs in a process of its own.
        names: What `inner_tensors` gave for the model or for the one that it was made from.
        target: Runs it.
        bundle: Its manifest and tokenizer stand for those of the model.
        pack: What the model answers; in one batch.
        work: A folder for what is made on the way; what an earlier attempt left there is no matter.

    Raises:
        TargetError: The target failed.
    """
    with TemporaryDirectory(dir=work) as own, Worker(threads=THREADS) as worker:
        pack.save(Path(own) / PACK)
        folder = Path(own) / "model"
        folder.mkdir()
        return _answers(worker, model, names, target, bundle, folder)


def compare_values(reference: OnnxModel, before: Arrays, after: Arrays) -> tuple[LayerError, ...]:
    """The error after every layer norm and at the outputs, in the order of the graph.

    Args:
        reference: The model in float32.
        before: Its inner values.
        after: Those of the other one.
    """
    order = [*inner_tensors(reference.path), *(spec.name for spec in reference.signature.outputs)]
    return tuple(
        LayerError(name=_title(name), error=_error(before[name], after[name]))
        for name in order
        if name in before and name in after
    )


def inner_tensors(path: Path) -> dict[str, int]:
    """The output of every layer norm of an ONNX model -> its width, in the order of the graph.

    But for those whose channels were scaled for what reads them: see `smooth_quant` and `awq`.
    """
    import onnx

    from compressor.quantization.scaling import SMOOTHED

    model = onnx.load(path, load_external_data=False)
    widths = {each.name: each.dims[0] for each in model.graph.initializer if len(each.dims) == 1}
    return {
        node.output[0]: widths[node.input[1]]
        for node in model.graph.node
        if node.op_type == NORM and node.input[1] in widths
        if not node.input[1].endswith(SMOOTHED)
    }


def _answers(
    worker: Worker,
    model: OnnxModel,
    names: dict[str, int],
    target: Target,
    bundle: Bundle,
    folder: Path,
) -> Arrays:
    """The inner tensors and the outputs on the pack beside ``folder``; name -> values."""
    probe, found = folder / "probe.onnx", folder / "bundle"
    signature, aliases = _write_probe(model, names, probe)
    found.mkdir()
    lowered = worker.lower(target, Source(probe, signature, model.precision, model.ranges), found)
    for name in bundle.manifest.preprocessing.files:
        (found / name).write_bytes(bundle.path(name).read_bytes())
    changes = {
        "signature": signature,
        "precision": model.precision,
        "model": lowered.model,
        "encoder": lowered.encoder,
        "options": dict(lowered.options),
        "cpu_features": lowered.cpu_features,
        "evaluation": None,
        "answers": LabelAnswers(),  # keeps the whole of the outputs
        "files": {},
    }
    Bundle.create(found, bundle.manifest.model_copy(update=changes))
    worker.open(found)
    arrays = worker.predict(folder.parent / PACK, batch_size=NUM_ROWS)
    return {aliases.get(name, name): values for name, values in arrays.items()}


def _write_probe(
    model: OnnxModel, names: dict[str, int], path: Path
) -> tuple[Signature, dict[str, str]]:
    """Write a model that gives its inner tensors as well.

    Returns:
        Its signature, and the name that a tensor has there -> the one it has in ``names``.
    """
    import onnx

    graph = onnx.load(model.path)
    present = {name for node in graph.graph.node for name in node.output}
    aliases: dict[str, str] = {}
    for name in names:
        actual = next((each for each in (name + _FP16_SUFFIX, name) if each in present), None)
        if actual is not None:
            aliases[actual] = name
    free = model.signature.inputs[0].shape
    outputs = list(model.signature.outputs)
    for actual, name in aliases.items():
        kind = onnx.TensorProto.FLOAT  # norms stay float32, also where all around them is fp16
        graph.graph.output.append(onnx.helper.make_tensor_value_info(actual, kind, None))
        outputs.append(TensorSpec(name=actual, dtype="float32", shape=(*free, names[name])))
    onnx.save(graph, path)
    return model.signature.model_copy(update={"outputs": tuple(outputs)}), aliases


def _error(reference: NDArray[np.generic], values: NDArray[np.generic]) -> float:
    """Relative error in the Euclidean norm; there is no padding in what a pack gives back."""
    before, after = (np.asarray(each, dtype=np.float64) for each in (reference, values))
    return float(np.linalg.norm(after - before) / (np.linalg.norm(before) or 1.0))


def _title(name: str) -> str:
    """The part of the network that a tensor comes from: what stands before its layer norm."""
    for end in (f".{NORM}.output", ".LayerNorm", ".layer_norm"):
        name = name.removesuffix(end)
    return name
