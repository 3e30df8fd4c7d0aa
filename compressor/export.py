"""From a torch model to an ONNX file that every target reads."""

from __future__ import annotations

import contextlib
import copy
import gc
import inspect
import logging
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from compressor.errors import PassError
from compressor.onnx_io import SINGLE_FILE_LIMIT_BYTES, save_model
from compressor.simplify import simplify
from targets.signature import Signature

if TYPE_CHECKING:
    import onnx
    from torch.onnx import ONNXProgram

    from compressor.model import TorchModel

__all__ = ["MASK_VALUE", "OPSET", "InputForm", "export_onnx", "to_onnx"]

OPSET = 21
"""The first with Q/DQ of every type and per-block scales, and what all targets' parsers read."""

MASK_VALUE = -30_000.0
"""Added to the attention scores of padding. Its softmax weight is exactly 0 in every format, and
unlike the smallest float32 it stays finite in fp16 and bf16, so that no row can become NaN."""

_EXAMPLE_SHAPE = (2, 8)  # a size of 1 would be taken for a fixed one
_SAME = 1e-5  # two ways to feed one model may round differently by this much, at most
_ROOT = "network."


@dataclass(frozen=True)
class InputForm:
    """How the exported graph feeds the network from token ids and mask alone.

    Attributes:
        additive_mask: Pass the mask as (B, 1, 1, T) floats to add to the scores.
        first_position: Pass positions that count from here, (1, T); None leaves it to the network.
        one_token_type: Pass one token type for all places, (1, 1).
    """

    additive_mask: bool = False
    first_position: int | None = None
    one_token_type: bool = False

    def arguments(self, ids: torch.Tensor, mask: torch.Tensor) -> dict[str, torch.Tensor]:
        """Arguments of the network for ``ids`` and ``mask``, (B, T) each."""
        arguments = {"input_ids": ids, "attention_mask": mask}
        if self.additive_mask:
            additive = (1.0 - mask.to(torch.float32)) * MASK_VALUE
            arguments["attention_mask"] = additive[:, None, None, :]
        if self.first_position is not None:
            first = self.first_position
            positions = torch.arange(first, first + ids.shape[1], device=ids.device)
            arguments["position_ids"] = positions[None]
        if self.one_token_type:
            arguments["token_type_ids"] = torch.zeros((1, 1), dtype=torch.long, device=ids.device)
        return arguments


class _Exportable(nn.Module):
    """The network with exactly the inputs and outputs of the signature."""

    def __init__(self, network: nn.Module, form: InputForm, output: str) -> None:
        super().__init__()
        self.network = network
        self.form = form
        self.output = output

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        outputs = self.network(**self.form.arguments(input_ids, attention_mask))
        result: torch.Tensor = outputs[self.output]
        return result


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
        signature: Its inputs ``input_ids`` and ``attention_mask``, and one output.
        path: Where to write. Weights above the limit go to ``path`` + ``.data``.
        opset: Version of the ONNX operators.
        single_file_limit_bytes: Weights above this many bytes go to a file of their own.

    Returns:
        How the graph feeds the network.

    Raises:
        PassError: torch's exporter refused the model.
    """
    proto, form = to_onnx(model, signature, opset=opset)
    save_model(proto, path, single_file_limit_bytes=single_file_limit_bytes)
    return form


def to_onnx(
    model: TorchModel, signature: Signature, *, opset: int = OPSET
) -> tuple[onnx.ModelProto, InputForm]:
    """Like :func:`export_onnx`, in memory."""
    import onnx_ir

    names = [spec.name for spec in signature.inputs]
    if names != ["input_ids", "attention_mask"] or len(signature.outputs) != 1:
        raise PassError(
            "only models with token ids and a mask as inputs and one output can be exported",
            where=f"task {model.task}",
            given=f"inputs {', '.join(names)}; {len(signature.outputs)} outputs",
            fix="use a text task",
        )
    network = _eager_copy(model.module)
    example = _example(network)
    output = signature.outputs[0].name
    try:
        form = _simplest_form(network, example, output)
        exported = _run_exporter(_Exportable(network, form, output), example, signature, opset)
        simplify(
            exported,
            root=_ROOT,
            shapes={spec.name: spec.shape for spec in (*signature.inputs, *signature.outputs)},
        )
        proto = onnx_ir.serde.serialize_model(exported)
        del proto.graph.value_info[:]  # repeats the shapes of the weights
        return proto, form
    except Exception as error:  # the exporter and the model may raise anything
        raise PassError(
            "the model cannot be exported to ONNX",
            where=type(model.module).__name__,
            given=_first_reason(error),
            fix="use a network whose forward pass has no Python branches on the data, "
            "or export it by hand and start the recipe from there",
        ) from error


def _eager_copy(module: nn.Module) -> nn.Module:
    """A copy that shares the weights and computes attention in plain operations."""
    shared = {id(each): each for each in (*module.parameters(), *module.buffers())}
    copied = copy.deepcopy(module, memo=dict(shared)).eval()
    if hasattr(copied, "set_attn_implementation"):
        cast("Any", copied).set_attn_implementation("eager")
    return copied


def _example(network: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and a mask of a batch with a padded row."""
    config: Any = network.config
    pad = config.pad_token_id or 0
    rows, length = _EXAMPLE_SHAPE
    usable = [token for token in range(config.vocab_size) if token != pad][: rows * length]
    ids = torch.tensor(usable * (rows * length))[: rows * length].reshape(rows, length)
    mask = torch.ones_like(ids)
    mask[-1, length // 2 :] = 0
    ids[mask == 0] = pad
    return ids, mask


@torch.no_grad()
def _simplest_form(
    network: nn.Module, example: tuple[torch.Tensor, torch.Tensor], output: str
) -> InputForm:
    """The form with the smallest graph under which the network computes the same.

    Networks build masks, positions and token types from the token ids in many ways, with dozens
    of nodes that some runtimes do not take. Feeding them directly saves those.
    """
    expected = network(**InputForm().arguments(*example))[output]
    for form in _forms(network):
        try:
            found = network(**form.arguments(*example))[output]
        except Exception:  # noqa: S112  (a form that the network does not take: try the next)
            continue
        if found.shape == expected.shape and torch.allclose(found, expected, atol=_SAME, rtol=0):
            return form
    return InputForm()


def _forms(network: nn.Module) -> Iterator[InputForm]:
    """Candidates, the smallest graph first."""
    accepted = inspect.signature(network.forward).parameters
    types = "token_type_ids" in accepted
    config: Any = network.config
    if "position_ids" in accepted:
        # RoBERTa's positions begin behind the padding token's id, everybody else's at 0.
        for first in (0, (config.pad_token_id or 0) + 1):
            yield InputForm(additive_mask=True, first_position=first, one_token_type=types)
    yield InputForm(additive_mask=True, one_token_type=types)
    yield InputForm(additive_mask=True)


def _run_exporter(
    network: nn.Module,
    example: tuple[torch.Tensor, torch.Tensor],
    signature: Signature,
    opset: int,
) -> Any:
    # Free without bounds of ours: networks that look positions up bound the length themselves.
    free = torch.export.Dim.DYNAMIC
    shapes = [
        {axis: free for axis, dim in enumerate(spec.shape) if isinstance(dim, str)}
        for spec in signature.inputs
    ]
    with torch.no_grad(), _quiet(), _no_garbage_collection():
        # Traced here and not by the exporter, which tries three more strategies when one fails.
        traced = torch.export.export(network, example, dynamic_shapes=tuple(shapes), strict=False)
        program = torch.onnx.export(
            traced,
            (),
            dynamo=True,
            opset_version=opset,
            input_names=[spec.name for spec in signature.inputs],
            output_names=[spec.name for spec in signature.outputs],
            optimize=False,
            verbose=False,
        )
    return cast("ONNXProgram", program).model  # None only without dynamo


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter from printing about libraries it does not find and its own deprecations."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript")]
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
