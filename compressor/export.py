"""From a torch model to an ONNX file that every target reads."""

from __future__ import annotations

import contextlib
import copy
import gc
import inspect
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import onnx
import torch
from torch import nn
from torch.nn.utils import parametrize

from compressor.errors import PassError
from compressor.onnx_io import DATA_SUFFIX, save_model
from compressor.simplify import simplify
from compressor.tasks import Task, get_task
from targets.onnx_files import SINGLE_FILE_LIMIT_BYTES
from targets.preprocessing.text import IDS, MASK
from targets.signature import PAST, TOTAL, Signature, TensorSpec

if TYPE_CHECKING:
    from torch.onnx import ONNXProgram

    from compressor.model import TorchModel

__all__ = ["MASK_VALUE", "OPSET", "InputForm", "export_onnx", "kept_outputs", "to_onnx"]

OPSET = 21
"""The first with Q/DQ of every type and per-block scales, and what all targets' parsers read."""

MASK_VALUE = -30_000.0
"""Added to the attention scores of padding. Its softmax weight is exactly 0 in every format, and
unlike the smallest float32 it stays finite in fp16 and bf16, so that no row can become NaN."""

_EXAMPLE_PAST = 3  # tokens; another number than those of the example itself
_SAME = 1e-5  # two ways to feed one model may round differently by this much, at most
_ROOT = "network."

Tensors: TypeAlias = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class InputForm:
    """How the exported graph feeds the network from the inputs of its signature.

    Attributes:
        additive_mask: Pass the mask as (B, 1, 1, T) floats to add to the scores.
        first_position: Pass positions that count from here, (1, T); None leaves it to the network.
        one_token_type: Pass one token type for all places, (1, 1).
    """

    additive_mask: bool = False
    first_position: int | None = None
    one_token_type: bool = False

    def arguments(self, inputs: Tensors) -> dict[str, torch.Tensor]:
        """Arguments of the network; only those of text, (B, T) each, have other forms than one."""
        arguments = dict(inputs)
        if self.additive_mask:
            additive = (1.0 - inputs[MASK].to(torch.float32)) * MASK_VALUE
            arguments[MASK] = additive[:, None, None, :]
        if self.first_position is not None:
            first, ids = self.first_position, inputs[IDS]
            positions = torch.arange(first, first + ids.shape[1], device=ids.device)
            arguments["position_ids"] = positions[None]
        if self.one_token_type:
            zeros = torch.zeros((1, 1), dtype=torch.long, device=inputs[IDS].device)
            arguments["token_type_ids"] = zeros
        return arguments


class _Exportable(nn.Module):
    """The network with exactly the inputs and outputs of the signature, in their order."""

    def __init__(self, network: nn.Module, form: InputForm, signature: Signature):
        super().__init__()
        self.network = network
        self.form = form
        self.names = [spec.name for spec in signature.inputs]
        self.output = signature.outputs[0].name
        self.reads_context = bool(signature.context)

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
        count = len(self.names)
        arguments: dict[str, Any] = self.form.arguments(
            dict(zip(self.names, inputs[:count], strict=True))
        )
        past = inputs[count:]
        if not past:
            result: torch.Tensor = self.network(**arguments)[self.output]
            return result
        cache = _cache(past, of_decoder=self.reads_context)
        found = self.network(**arguments, past_key_values=cache, use_cache=True)
        cache = found.past_key_values
        layers = (cache.self_attention_cache if self.reads_context else cache).layers
        kept = [part for layer in layers for part in (layer.keys, layer.values)]
        return (found[self.output], *kept)


def _cache(past: Sequence[torch.Tensor], *, of_decoder: bool) -> Any:
    """What a network has kept of the tokens before, out of keys and values in turn.

    Args:
        past: Of each layer.
        of_decoder: Whether it attends to an encoder as well, whose keys and values it computes.
    """
    from transformers import DynamicCache, EncoderDecoderCache

    cache = DynamicCache()
    for layer, (keys, values) in enumerate(zip(past[::2], past[1::2], strict=True)):
        cache.update(keys, values, layer)
    return EncoderDecoderCache(cache, DynamicCache()) if of_decoder else cache


def kept_outputs(signature: Signature) -> tuple[TensorSpec, ...]:
    """The outputs that a model with a state has beside those of its signature."""
    return tuple(
        TensorSpec(
            name=spec.output,
            dtype=spec.dtype,
            shape=tuple(TOTAL if dim == PAST else dim for dim in spec.shape),
        )
        for spec in signature.state
    )


def export_onnx(
    model: TorchModel,
    signature: Signature,
    path: Path,
    *,
    opset: int = OPSET,
    single_file_limit_bytes: int = SINGLE_FILE_LIMIT_BYTES,
) -> InputForm:
    """Write a torch model as ONNX; the model stays as it is.

    One model always gives the same bytes with the same versions of the libraries.

    Args:
        model: The model.
        signature: Its inputs, and one output.
        path: Where to write. Weights above the limit go to ``path`` + ``.data``.
        opset: Version of the ONNX operators.
        single_file_limit_bytes: Weights above this many bytes go to a file of their own.

    Returns:
        How the graph feeds the network.

    Raises:
        PassError: torch's exporter refused the model.
    """
    import onnx_ir

    exported, form = _exported(model, signature, opset)
    size_bytes = sum(each.const_value.nbytes for each in exported.graph.initializers.values())
    if size_bytes <= single_file_limit_bytes:
        save_model(_serialized(exported), path, single_file_limit_bytes=single_file_limit_bytes)
        return form
    path.parent.mkdir(parents=True, exist_ok=True)
    data = path.with_name(path.name + DATA_SUFFIX)
    data.unlink(missing_ok=True)
    # Tensor by tensor, from torch's memory.
    onnx_ir.save(exported, path, external_data=data.name, max_workers=1)
    graph = onnx.load(path, load_external_data=False)
    del graph.graph.value_info[:]
    path.write_bytes(graph.SerializeToString())
    return form


def to_onnx(
    model: TorchModel, signature: Signature, *, opset: int = OPSET
) -> tuple[onnx.ModelProto, InputForm]:
    """Like :func:`export_onnx`, in memory."""
    exported, form = _exported(model, signature, opset)
    return _serialized(exported), form


def _serialized(exported: Any) -> onnx.ModelProto:
    import onnx_ir

    proto = onnx_ir.serde.serialize_model(exported)
    del proto.graph.value_info[:]  # repeats the shapes of the weights
    return proto


def _exported(model: TorchModel, signature: Signature, opset: int) -> tuple[Any, InputForm]:
    """The model in the exporter's own form, whose weights are torch's."""
    if len(signature.outputs) != 1:
        raise PassError(
            "only models with one output can be exported",
            where=f"task {model.task}",
            given=f"{len(signature.outputs)} outputs",
            fix="use a task with one output",
        )
    network = _eager_copy(model.module)
    example = get_task(model.task).example(network, model.processor)
    names = [spec.name for spec in signature.inputs]
    if set(names) != set(example):
        raise PassError(
            "the inputs of the signature are not those of the task",
            where=f"task {model.task}",
            given=", ".join(names),
            fix=f"take the signature of the task, with {', '.join(example)}",
        )
    output = signature.outputs[0].name
    specs = (*signature.inputs, *signature.state, *signature.outputs, *kept_outputs(signature))
    try:
        form = InputForm()
        if signature.context or not signature.state:
            form = _simplest_form(network, example, output, get_task(model.task))
        if signature.state:
            example = _with_past(example, signature)
        exported = _run_exporter(_Exportable(network, form, signature), example, signature, opset)
        simplify(exported, root=_ROOT, shapes={spec.name: spec.shape for spec in specs})
        return exported, form
    except Exception as error:  # the exporter and the model may raise anything
        raise PassError(
            "the model cannot be exported to ONNX",
            where=type(model.module).__name__,
            given=_first_reason(error),
            fix="use a network whose forward pass has no Python branches on the data, "
            "or export it by hand and start the recipe from there",
        ) from error


def _with_past(example: Tensors, signature: Signature) -> dict[str, torch.Tensor]:
    """The inputs as those of a later run, after some others."""
    rows = len(next(iter(example.values())))
    sizes: dict[int | str, int] = {"batch": rows, PAST: _EXAMPLE_PAST}
    past = {
        spec.name: torch.zeros([sizes.get(dim, 0) or int(dim) for dim in spec.shape])
        for spec in signature.state
    }
    if signature.context:  # its mask is that of the encoder
        return {**example, **past}
    read = torch.ones((rows, _EXAMPLE_PAST), dtype=torch.long)
    return {**example, MASK: torch.cat([read, example[MASK]], dim=1), **past}


def _eager_copy(module: nn.Module) -> nn.Module:
    """A copy that shares the weights and computes attention in plain operations."""
    shared = {id(each): each for each in (*module.parameters(), *module.buffers())}
    copied = copy.deepcopy(module, memo=dict(shared)).eval()
    if hasattr(copied, "set_attn_implementation"):
        cast("Any", copied).set_attn_implementation("eager")
    for part in list(copied.modules()):
        if parametrize.is_parametrized(part):
            _compute_weights(part)
    return copied


def _compute_weights(part: nn.Module) -> None:
    """Compute weights that follow from others, as by weight_norm, once and for all, in place.

    torch's own function would change the class, which the original shares with its copy.
    """
    computed = {name: getattr(part, name).detach() for name in cast("Any", part.parametrizations)}
    part.__class__ = parametrize.type_before_parametrizations(part)
    del part.parametrizations
    for name, value in computed.items():
        part.register_parameter(name, nn.Parameter(value))


@torch.no_grad()
def _simplest_form(network: nn.Module, example: Tensors, output: str, task: Task) -> InputForm:
    """The form with the smallest graph under which the network computes the same.

    Networks build masks, positions and token types from the token ids in many ways, with dozens
    of nodes that some runtimes do not take. Feeding them directly saves those.
    """
    if not {IDS, MASK} <= example.keys():
        return InputForm()

    def answers(form: InputForm) -> torch.Tensor:
        return task.answered(network(**form.arguments(example))[output], example)

    expected = answers(InputForm())
    for form in _forms(network, example):
        try:
            found = answers(form)
        except Exception:  # noqa: S112  (a form that the network does not take: try the next)
            continue
        if found.shape == expected.shape and torch.allclose(found, expected, atol=_SAME, rtol=0):
            return form
    return InputForm()


def _forms(network: nn.Module, example: Tensors) -> Iterator[InputForm]:
    """Candidates, the smallest graph first."""
    if "sliding_attention" in (getattr(network.config, "layer_types", None) or ()):
        return  # layers that see their neighbours alone (ModernBERT) narrow the mask themselves
    accepted = inspect.signature(network.forward).parameters
    types = "token_type_ids" in accepted and "token_type_ids" not in example
    config: Any = network.config
    if "position_ids" in accepted:
        # RoBERTa's positions begin behind the padding token's id, everybody else's at 0.
        for first in (0, (config.pad_token_id or 0) + 1):
            yield InputForm(additive_mask=True, first_position=first, one_token_type=types)
    yield InputForm(additive_mask=True, one_token_type=types)
    yield InputForm(additive_mask=True)


def _run_exporter(
    network: nn.Module,
    example: Tensors,
    signature: Signature,
    opset: int,
) -> Any:
    # Free without bounds of ours: networks that look positions up bound the length themselves.
    free = torch.export.Dim.DYNAMIC
    given = (*signature.inputs, *signature.state)
    made = (*signature.outputs, *kept_outputs(signature))
    shapes = [
        {axis: free for axis, dim in enumerate(spec.shape) if isinstance(dim, str)}
        for spec in given
    ]
    with torch.no_grad(), _quiet(), _no_garbage_collection():
        # Traced here and not by the exporter, which tries three more strategies when one fails.
        inputs = tuple(example[spec.name] for spec in given)
        traced = torch.export.export(network, inputs, dynamic_shapes=(tuple(shapes),), strict=False)
        program = torch.onnx.export(
            traced,
            (),
            dynamo=True,
            opset_version=opset,
            input_names=[spec.name for spec in given],
            output_names=[spec.name for spec in made],
            optimize=False,
            verbose=False,
        )
    return cast("ONNXProgram", program).model  # None only without dynamo


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter from printing about libraries it does not find and its own deprecations."""
    loggers = [
        logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")
    ]
    levels: Mapping[logging.Logger, int] = {each: each.level for each in loggers}
    try:
        for each in loggers:
            each.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for each, level in levels.items():
            each.setLevel(level)


@contextlib.contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Tracing makes millions of objects that live until its end: looking for dead ones is waste."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _first_reason(error: BaseException) -> str:
    """The innermost error in one line: the exporter wraps it in pages of advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = lines[0] if lines else "no message"
    return f"{type(error).__name__}: {reason[:300]}"
