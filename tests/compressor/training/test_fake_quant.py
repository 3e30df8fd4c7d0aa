"""Rounding in training is the rounding of the quantized model."""

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from torch import nn
from transformers.pytorch_utils import Conv1D

from compressor.errors import PassError
from compressor.export import export_onnx
from compressor.quantization import quantize_dynamic, quantize_static
from compressor.quantization.channels import quantize_channels
from compressor.quantization.ranges import ClippingRange
from compressor.tasks import get_task
from compressor.training.distillation import distill
from compressor.training.fake_quant import (
    fake_quantized,
    input_ranges,
    round_dynamic,
    round_static,
    round_weight,
)
from compressor.training.finetuning import finetune
from compressor.training.settings import DistillSettings, FinetuneSettings, QuantizationAware


def silent(fraction, line):
    pass


def by_onnx(values, clipped=None):
    """What a node of ONNX makes of values, turned back into floats; without a range, of theirs."""
    quantize = helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "scale", "zero"])
    constants = []
    if clipped is not None:
        quantize = helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"])
        grid = {"scale": np.asarray(clipped.scale), "zero": clipped.zero_point}
        constants = [numpy_helper.from_array(each, name) for name, each in grid.items()]
    nodes = [quantize, helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["y"])]
    whole = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "rounding",
        [whole("x", TensorProto.FLOAT, list(values.shape))],
        [whole("y", TensorProto.FLOAT, list(values.shape))],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])
    onnx.checker.check_model(model)
    return ReferenceEvaluator(model).run(None, {"x": values})[0]


def normal(*shape, scale=1.0):
    return (scale * np.random.default_rng(0).standard_normal(shape)).astype(np.float32)


@pytest.mark.parametrize("bits", [7, 8])
def test_weights_are_rounded_as_those_of_the_quantized_model(bits):
    weight = normal(6, 10)
    weight[3] = 0
    integers, scales = quantize_channels(weight, axis=0, bits=bits)
    found = round_weight(torch.from_numpy(weight), bits=bits).numpy()
    np.testing.assert_allclose(found, integers * scales[:, None], atol=1e-7)
    assert len(np.unique(integers)) > 10


@pytest.mark.parametrize("shift", [0.0, 5.0, -5.0])
def test_dynamic_ranges_are_those_of_the_node_of_onnx(shift):
    values = normal(4, 16) + np.float32(shift)
    expected = by_onnx(values)
    np.testing.assert_allclose(round_dynamic(torch.from_numpy(values)).numpy(), expected, atol=1e-6)


def test_static_ranges_clip_and_round_to_even():
    scale = 0.1
    values = torch.tensor([0.0, 0.05, 0.15, -0.26, 12.7, 99.0, -99.0])
    symmetric = ClippingRange(-5.0, 127 * scale, "int8")
    found = round_static(values, clipped=symmetric) / scale
    assert torch.allclose(found, torch.tensor([0.0, 0, 2, -3, 127, 127, -128]), atol=1e-4)
    found = round_static(values, clipped=ClippingRange(-5 * scale, 250 * scale)) / scale
    assert torch.allclose(found, torch.tensor([0.0, 0, 2, -3, 127, 250, -5]), atol=1e-4)


@pytest.mark.parametrize(
    ("clipped", "shift"),
    [
        (ClippingRange(-0.17, 6.0), 0.0),  # as after GELU
        (ClippingRange(-3.0, 0.0), -5.0),
        (ClippingRange(0.0, 2.0), 5.0),
        (ClippingRange(0.0, 0.0), 0.0),  # nothing but zeros was seen
        (ClippingRange(-1.0, 2.0, "int8"), 0.0),
    ],
)
def test_static_ranges_are_those_of_the_nodes_of_onnx(clipped, shift):
    values = normal(4, 16) + np.float32(shift)
    expected = by_onnx(values, clipped)
    found = round_static(torch.from_numpy(values), clipped=clipped).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_gradients_go_straight_through_but_where_values_are_clipped():
    values = torch.tensor([0.3, 5.0], requires_grad=True)
    round_static(values, clipped=ClippingRange(-1.0, 1.0)).sum().backward()
    assert values.grad.tolist() == [1.0, 0.0]


@pytest.fixture
def batches(word_model, word_splits):
    model = word_model()
    task = get_task(model.task)
    rows = sorted(task.encode(model, word_splits.train.inputs), key=task.length)
    return [dict(task.collate(model, rows[start : start + 16])) for start in range(0, 96, 16)]


def tensors(batch):
    return {name: torch.from_numpy(array) for name, array in batch.items()}


def outputs_of(folder, batch):
    import onnxruntime

    return onnxruntime.InferenceSession(str(folder)).run(None, dict(batch))[0]


@pytest.mark.parametrize(
    ("method", "activations"), [("static", "uint8"), ("static", "int8"), ("dynamic", "uint8")]
)
@pytest.mark.parametrize("bits", [7, 8])
def test_a_rounding_network_gives_what_the_quantized_model_gives(
    word_model, batches, tmp_path, method, activations, bits
):
    model = word_model()
    exported = tmp_path / "float.onnx"
    export_onnx(model, get_task(model.task).signature(model), exported)
    path = tmp_path / "int8.onnx"
    if method == "static":
        quantize_static(
            exported, path, batches, weight_bits=bits, tables=False,
            calibration="percentile", percentile=99.999, activations=activations,
        )  # fmt: skip
    else:
        quantize_dynamic(exported, path, weight_bits=bits)
    settings = QuantizationAware(method=method, weight_bits=bits, activations=activations)
    network = model.module
    with fake_quantized(network, settings, map(tensors, batches)), torch.no_grad():
        found = network(**tensors(batches[3])).logits.numpy()
    with torch.no_grad():
        exact = network(**tensors(batches[3])).logits.numpy()
    quantized = outputs_of(path, batches[3])
    error = np.abs(quantized - exact).max()
    assert error > 1e-3  # else rounding could not be told from none
    assert np.abs(found - quantized).max() < 0.1 * error


def test_the_network_is_left_as_it_was(word_model, batches):
    network = word_model().module
    names = set(network.state_dict())
    with torch.no_grad():
        before = network(**tensors(batches[0])).logits
        with fake_quantized(network, QuantizationAware(), map(tensors, batches)):
            inside = network(**tensors(batches[0])).logits
            assert set(network.state_dict()) == names
        after = network(**tensors(batches[0])).logits
    assert torch.equal(before, after)
    assert not torch.equal(before, inside)
    assert not any("forward" in vars(part) for part in network.modules())


def test_no_settings_change_nothing(word_model, batches):
    network = word_model().module
    with torch.no_grad():
        before = network(**tensors(batches[0])).logits
        with fake_quantized(network, None, ()):
            assert torch.equal(network(**tensors(batches[0])).logits, before)


@pytest.mark.parametrize("activations", ["uint8", "int8"])
def test_ranges_are_percentiles_of_the_inputs(activations):
    network = nn.Sequential(nn.Linear(1000, 2))
    network.forward = lambda x: network[0](x)
    values = torch.arange(-100.0, 900.0)[None] / 1000
    found = input_ranges(network, [{"x": values}], percentile=90, activations=activations)["0"]
    assert (found.low, found.high) == (pytest.approx(-0.1), pytest.approx(0.8, abs=1e-3))
    assert found.activations == activations


def test_convolutions_round_too(vision_model, image_splits):
    model = vision_model("resnet")
    task = get_task(model.task)
    rows = task.encode(model, image_splits.train.inputs[:8])
    batch = tensors(task.collate(model, rows))
    with torch.no_grad():
        before = model.module(**batch).logits
        with fake_quantized(model.module, QuantizationAware(), [batch]):
            after = model.module(**batch).logits
    error = (before - after).abs().max()
    assert 0 < error < 0.2 * before.abs().max()


@pytest.mark.parametrize("method", ["static", "dynamic"])
@pytest.mark.parametrize(
    ("layer", "shape", "outputs_last"),
    [
        (nn.Linear(6, 4), (2, 6), False),
        (Conv1D(4, 6), (2, 6), True),  # a linear layer too, whose weight is (inputs, outputs)
        (nn.Conv1d(6, 4, 3, padding=1), (2, 6, 5), False),
        (nn.Conv2d(6, 4, 3, stride=2), (2, 6, 5, 5), False),
        (nn.Conv3d(6, 4, 2), (2, 6, 3, 3, 3), False),
    ],
)
def test_the_layers_that_round_are_those_that_the_pass_quantizes(
    layer, shape, outputs_last, method
):
    network = nn.Module()
    network.layer = layer
    network.forward = lambda x: network.layer(x)
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(shape, generator=generator)
    nn.init.normal_(layer.weight, generator=generator)
    settings = QuantizationAware(method=method, percentile=100, weight_bits=7)
    is_convolution = layer.weight.dim() > 2
    with torch.no_grad():
        if is_convolution and method == "dynamic":
            with pytest.raises(PassError), fake_quantized(network, settings, ()):
                pass
            return
        with fake_quantized(network, settings, [{"x": values}]):
            found = network(values)
        weight = layer.weight.clone()
        turned = weight.T if outputs_last else weight
        rounded = round_weight(turned, bits=7)
        if method == "static":
            ends = (float(end) for end in torch.aminmax(values))
            values = round_static(values, clipped=ClippingRange(*ends))
        else:
            values = round_dynamic(values)
        layer.weight.copy_(rounded.T if outputs_last else rounded)
        torch.testing.assert_close(found, network(values), rtol=0, atol=0.02)
        layer.weight.copy_(weight)
        assert (found - network(values)).abs().max() > 0.02


class Standardized(nn.Conv2d):
    """A convolution that computes its weight, as that of BiT."""

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return self._conv_forward(values, self.weight - self.weight.mean(), self.bias)


def test_a_layer_that_computes_its_weight_keeps_its_own_way():
    network = nn.Sequential(Standardized(3, 4, 3), nn.Conv2d(4, 2, 1))
    network.forward = lambda x: network[1](network[0](x))
    values = torch.randn((2, 3, 6, 6), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = network[0](values)
        with fake_quantized(network, QuantizationAware(), [{"x": values}]):
            torch.testing.assert_close(network[0](values), expected, rtol=0, atol=0)
            assert not torch.equal(network[1](expected), network(values) * 0)


def test_a_network_without_layers_to_round_is_refused():
    with (
        pytest.raises(PassError, match="no layer to quantize"),
        fake_quantized(nn.LayerNorm(4), QuantizationAware(), ()),
    ):
        pass


def test_no_calibration_data_is_refused(word_model):
    with (
        pytest.raises(PassError, match="calibration got no data"),
        fake_quantized(word_model().module, QuantizationAware(), ()),
    ):
        pass


AWARE = QuantizationAware(method="static", weight_bits=7, num_samples=32)


@pytest.fixture(scope="module")
def trained(word_model, word_splits, tmp_path_factory):
    settings = FinetuneSettings(
        epochs=12, batch_size=16, learning_rate=3e-3, train_word_embeddings=True
    )
    folder = tmp_path_factory.mktemp("trained")
    return finetune(
        word_model(), word_splits, settings, seed=0, folder=folder, progress=silent
    ).model


def coarse_loss(model, splits, levels):
    """Cross-entropy on the training data with weights rounded to a few levels."""
    task = get_task(model.task)
    batch = tensors(task.collate(model, task.encode(model, splits.train.inputs)))
    labels = torch.from_numpy(splits.train.labels)
    network = model.clone().module
    with torch.no_grad():
        for part in network.modules():
            if isinstance(part, nn.Linear):
                scale = part.weight.abs().amax(dim=1, keepdim=True) / levels
                part.weight.copy_((part.weight / scale).round() * scale)
        return nn.functional.cross_entropy(network(**batch).logits, labels).item()


def test_training_makes_up_for_the_rounding(trained, word_splits, tmp_path, monkeypatch):
    """With ternary weights, where rounding hurts, training with it does better than without."""
    from compressor.training import fake_quant

    def to_ternary(weight, *, bits):
        scale = weight.detach().abs().amax(dim=1).clamp(min=1e-9)
        zero = torch.zeros_like(scale, dtype=torch.int32)
        return torch.fake_quantize_per_channel_affine(weight, scale, zero, 0, -1, 1)

    monkeypatch.setattr(fake_quant, "round_weight", to_ternary)
    losses = {}
    for aware in (None, AWARE):
        settings = DistillSettings(
            epochs=8, batch_size=16, learning_rate=2e-3, quantization_aware=aware
        )
        result = distill(
            trained,
            trained,
            word_splits,
            settings,
            layer_map=None,
            seed=0,
            folder=tmp_path / str(aware is None),
            progress=silent,
        )
        losses[aware is None] = coarse_loss(result.model, word_splits, levels=1)
    assert losses[False] < 0.3 * losses[True]


def test_an_interrupted_training_ends_as_an_undisturbed_one(trained, word_splits, tmp_path):
    settings = FinetuneSettings(
        epochs=3, batch_size=16, quantization_aware=AWARE, checkpoint_steps=4
    )

    class CrashError(Exception):
        pass

    def crash(fraction, line):
        if fraction > 0.5:
            raise CrashError

    def run(folder, progress=silent):
        return finetune(
            trained, word_splits, settings, seed=0, folder=folder, progress=progress
        ).model.module.state_dict()

    expected = run(tmp_path / "undisturbed")
    with pytest.raises(CrashError):
        run(tmp_path / "resumed", crash)
    found = run(tmp_path / "resumed")
    assert all(torch.equal(found[name], expected[name]) for name in expected)
