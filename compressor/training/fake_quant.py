"""Round weights and activations of a network while it trains, as int8 will round them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from compressor.errors import PassError
from compressor.quantization.channels import WeightBits, largest_level
from compressor.quantization.histogram import Histogram
from compressor.quantization.ranges import Activations, ClippingRange, clipping_range
from compressor.training.settings import QuantizationAware

__all__ = [
    "fake_quantized",
    "input_ranges",
    "round_dynamic",
    "round_static",
    "round_weight",
]

Round = Callable[[Tensor], Tensor]


@contextmanager
def fake_quantized(
    module: nn.Module,
    settings: QuantizationAware | None,
    batches: Iterable[Mapping[str, Tensor]],
) -> Iterator[None]:
    """Let the layers of a network round, in training and in evaluation.

    Quantization-aware training with straight-through gradients (Jacob et al., "Quantization and
    Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference", 2018, section 3).
    Weights are rounded as `compressor.quantization` rounds them: symmetric, a scale for each output
    channel, anew in each step. Differs from the paper in that the ranges of activations are not
    averaged while the network trains: static ones are calibrated before its first step, in the way
    in which the pass ``quantize`` calibrates after its last, and stay, so that the network learns
    to live in them and a resumed training finds the same; dynamic ones are those of each batch.

    What rounds are the layers that the pass of the same method quantizes: linear ones, and of fixed
    ranges convolutions too, whose outputs the pass rounds as well and the training does not.

    The weights, their names and gradients stay those of the network; on leaving it is as it was.

    Args:
        module: Its layers are changed in place.
        settings: How to round; None changes nothing.
        batches: Inputs of the network for the calibration; read for static ranges only.

    Raises:
        PassError: The network has no layer to quantize, or there are no batches.
    """
    if settings is None:
        yield
        return
    layers = _layers(module, settings.method)
    if not layers:
        raise PassError(
            "the model has no layer to quantize",
            where="quantization_aware",
            given=f"method {settings.method}",
            fix="leave the setting out",
        )
    rounds: dict[str, Round] = dict.fromkeys(layers, round_dynamic)
    if settings.method == "static":
        found = input_ranges(
            module, batches, percentile=settings.percentile, activations=settings.activations
        )
        rounds = {name: partial(round_static, clipped=found[name]) for name in layers}
    try:
        for name, layer in layers.items():
            # In the instance, not the class: it goes again below.
            vars(layer)["forward"] = partial(_forward, layer, rounds[name], settings.weight_bits)
        yield
    finally:
        for layer in layers.values():
            vars(layer).pop("forward", None)


def input_ranges(
    module: nn.Module,
    batches: Iterable[Mapping[str, Tensor]],
    *,
    percentile: float,
    activations: Activations = "uint8",
) -> dict[str, ClippingRange]:
    """The range of the input of each layer that static quantization has.

    Args:
        module: Stays as it was.
        batches: Its inputs.
        percentile: Share of the magnitudes that are not clipped, in percent.
        activations: See `ClippingRange`.

    Raises:
        PassError: There are no batches.
    """
    layers = _layers(module, "static")
    seen = {name: Histogram.empty() for name in layers}

    def look(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            seen[name] = seen[name].add(inputs[0].detach().float().cpu().numpy())

        return hook

    handles = [layer.register_forward_pre_hook(look(name)) for name, layer in layers.items()]
    training, is_empty = module.training, True
    try:
        module.eval()
        with torch.inference_mode():
            for batch in batches:
                module(**batch)
                is_empty = False
    finally:
        module.train(training)
        for handle in handles:
            handle.remove()
    if is_empty:
        raise PassError(
            "calibration got no data",
            where="quantization_aware",
            fix="train on at least one row",
        )
    return {
        name: clipping_range(each, "percentile", percentile=percentile, activations=activations)
        for name, each in seen.items()
    }


def round_static(values: Tensor, *, clipped: ClippingRange) -> Tensor:
    """Values on the 256 levels of a fixed range.

    Args:
        values: Any shape.
        clipped: The range.
    """
    lowest, highest = (-128, 127) if clipped.activations == "int8" else (0, 255)
    return torch.fake_quantize_per_tensor_affine(
        values.float(), float(clipped.scale), int(clipped.zero_point), lowest, highest
    )


def round_dynamic(values: Tensor) -> Tensor:
    """Values on the 256 levels between the smallest and the largest of them, 0 among them.

    The arithmetic of ONNX's ``DynamicQuantizeLinear``.
    """
    values = values.float()
    low, high = torch.aminmax(values.detach())
    low, high = low.clamp(max=0.0), high.clamp(min=0.0)
    scale = ((high - low) / 255).clamp(min=torch.finfo(torch.float32).tiny)
    zero_point = (-low / scale).round().clamp(0, 255).to(torch.int32)
    return torch.fake_quantize_per_tensor_affine(values, scale, zero_point, 0, 255)


def round_weight(weight: Tensor, *, bits: WeightBits) -> Tensor:
    """A weight on symmetric levels with one scale for each output channel.

    See `compressor.quantization.channels.quantize_channels`, which it equals.

    Args:
        weight: (outputs, ...).
        bits: 8 uses -127 to 127; 7 uses -63 to 63.
    """
    largest = largest_level(bits)
    maxima = weight.detach().abs().flatten(1).amax(dim=1)  # (outputs,)
    scales = (maxima / largest).clamp(min=torch.finfo(torch.float32).tiny)
    scales = torch.where(maxima > 0, scales, 1.0)
    zero = torch.zeros_like(scales, dtype=torch.int32)
    return torch.fake_quantize_per_channel_affine(weight, scales, zero, 0, -largest, largest)


_PLAIN = frozenset(kind.forward for kind in (nn.Linear, Conv1D, nn.Conv1d, nn.Conv2d, nn.Conv3d))
_Layer: TypeAlias = nn.Linear | Conv1D | nn.Conv1d | nn.Conv2d | nn.Conv3d


def _layers(module: nn.Module, method: Literal["static", "dynamic"]) -> dict[str, _Layer]:
    """Name -> each layer that a method quantizes."""
    kinds: tuple[Any, ...] = (nn.Linear, Conv1D)  # the latter is a linear layer too, that of GPT-2
    if method == "static":
        kinds += (nn.Conv1d, nn.Conv2d, nn.Conv3d)
    found = {name: each for name, each in module.named_modules() if isinstance(each, kinds)}
    # One that computes its weight itself, such as a standardized one (BiT), is none that the pass
    # quantize sees.
    return {name: each for name, each in found.items() if type(each).forward in _PLAIN}


def _forward(layer: _Layer, round_input: Round, bits: WeightBits, values: Tensor) -> Tensor:
    values = round_input(values)
    made: Tensor
    if isinstance(layer, Conv1D):  # its weight is (inputs, outputs)
        made = functional.linear(values, round_weight(layer.weight.T, bits=bits), layer.bias)
        return made
    weight = round_weight(layer.weight, bits=bits)
    if isinstance(layer, nn.Linear):
        made = functional.linear(values, weight, layer.bias)
    else:
        made = layer._conv_forward(values, weight, layer.bias)
    return made
