"""Channels: who reads them, what can be said without them; against least squares of numpy."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch_pruning
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModelForImageClassification, RegNetConfig

from compressor.data import Splits
from compressor.errors import PassError
from compressor.model import TorchModel
from compressor.passes.base import PassContext
from compressor.passes.finetune import Finetune
from compressor.passes.prune import Prune
from compressor.pruning import channels
from compressor.pruning.channels import prune_channels
from compressor.pruning.prune import mean_loss, sample_batches
from compressor.pruning.reading import (
    SecondOrderImportance,
    Widths,
    channel_moments,
    recalibrate,
    refit_channels,
)
from tests.compressor.conftest import make_vision

CONVOLUTIONS = ("resnet", "convnext", "efficientnet-lite")


class Net(nn.Module):
    """Two convolutions and a projection, where every other channel of the first is a copy."""

    def __init__(self, *, norm: bool = False, bias: bool = True, **reader: Any) -> None:
        super().__init__()
        settings = {"kernel_size": 3, "padding": 1, "bias": bias, **reader}
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8) if norm else nn.Identity()
        self.second = nn.Conv2d(8, 6, **settings)
        self.last = nn.Linear(6, 4)
        with torch.no_grad():
            self.first.weight[1::2] = 2 * self.first.weight[::2]
            self.first.bias[1::2] = 2 * self.first.bias[::2]

    def forward(self, pixels: Tensor) -> Tensor:
        made = self.second(functional.relu(self.norm(self.first(pixels))))
        found: Tensor = self.last(functional.relu(made).mean(dim=(2, 3)))
        return found


class Read(nn.Module):
    """A part that is given pixels by name."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part

    def forward(self, pixels: Tensor) -> Tensor:
        found: Tensor = self.part(pixels)
        return found


def copied(part: nn.Conv2d) -> nn.Conv2d:
    """A convolution of which every other channel is a copy, twice as large."""
    with torch.no_grad():
        part.weight[1::2] = 2 * part.weight[::2]
        if part.bias is not None:
            part.bias[1::2] = 2 * part.bias[::2]
    return part


class Branches(nn.Module):
    """Two convolutions side by side, one in depth behind them, and one that reads both."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = (copied(nn.Conv2d(3, 8, 3, padding=1)) for _ in "ab")
        self.norm = nn.BatchNorm2d(8)
        self.depth = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
        with torch.no_grad():
            self.depth.weight[1::2] = self.depth.weight[::2]
        self.both = copied(nn.Conv2d(16, 8, 1))
        self.last = nn.Linear(8, 4)

    def forward(self, pixels: Tensor) -> Tensor:
        left = functional.relu(self.depth(self.norm(self.left(pixels))))
        read = torch.cat([left, functional.relu(self.right(pixels))], dim=1)
        found: Tensor = self.last(functional.relu(self.both(read)).mean(dim=(2, 3)))
        return found


class Flat(nn.Module):
    """A projection that reads every place of every channel."""

    def __init__(self) -> None:
        super().__init__()
        self.first = copied(nn.Conv2d(3, 8, 3, padding=1))
        self.last = nn.Linear(8 * 36, 4)

    def forward(self, pixels: Tensor) -> Tensor:
        found: Tensor = self.last(functional.relu(self.first(pixels)).flatten(1))
        return found


class Signals(nn.Module):
    """Convolutions of one and of three axes, over the rows and the whole of an image."""

    def __init__(self) -> None:
        super().__init__()
        self.line, self.behind = nn.Conv1d(18, 8, 3), nn.Conv1d(8, 6, 2, padding=1)
        self.space, self.after = nn.Conv3d(1, 8, 2), nn.Conv3d(8, 6, 2, stride=2)
        self.last = nn.Linear(12, 4)
        with torch.no_grad():
            for part in (self.line, self.space, self.behind, self.after):
                assert part.bias is not None
                part.weight[1::2] = 2 * part.weight[::2]
                part.bias[1::2] = 2 * part.bias[::2]

    def forward(self, pixels: Tensor) -> Tensor:
        line = functional.relu(self.behind(functional.relu(self.line(pixels.flatten(1, 2)))))
        space = functional.relu(self.after(functional.relu(self.space(pixels[:, None]))))
        read = torch.cat([line.mean(dim=2), space.mean(dim=(2, 3, 4))], dim=1)
        found: Tensor = self.last(read)
        return found


class Answers(nn.Module):
    """A network that answers as those of transformers do."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.config = SimpleNamespace(id2label=dict(enumerate("abcd")))

    def forward(self, pixels: Tensor) -> Any:
        return SimpleNamespace(logits=self.network(pixels))


def make_net(**settings: Any) -> Net:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Net(**settings).eval()


def make_pixels(num_batches: int = 3, size: int = 9) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        {"pixels": torch.randn((4, 3, size, size), generator=generator)} for _ in range(num_batches)
    ]


def cut(
    net: nn.Module, channels: Sequence[int], batches: Sequence[Mapping[str, Tensor]], part: str
) -> nn.Module:
    """The network without channels of a part, those that read them fitted."""
    moments = channel_moments(net, batches)
    pruned = copy.deepcopy(net)
    left = Widths(pruned)
    graph = torch_pruning.DependencyGraph().build_dependency(pruned, batches[0])
    target = pruned.get_submodule(part)
    group = graph.get_pruning_group(
        target, torch_pruning.prune_conv_out_channels, idxs=list(channels)
    )
    left.note(group)
    group.prune()
    refit_channels(pruned, moments, left)
    return pruned


def whole_group(net: nn.Module, batches: Sequence[Mapping[str, Tensor]]) -> Any:
    graph = torch_pruning.DependencyGraph().build_dependency(net, batches[0])
    return graph.get_pruning_group(
        net.get_submodule("first"), torch_pruning.prune_conv_out_channels, idxs=list(range(8))
    )


@pytest.mark.parametrize(
    "reader",
    [
        {},
        {"stride": 2},
        {"dilation": 2, "padding": 2},
        {"padding_mode": "reflect"},
        {"kernel_size": 1, "padding": 0},
        {"padding": "same"},
        {"bias": False},
    ],
    ids=str,
)
def test_copies_of_channels_are_not_missed(reader: dict[str, Any]) -> None:
    net, batches = make_net(**reader), make_pixels()
    pruned = cut(net, range(1, 8, 2), batches, "first")
    assert tuple(pruned.get_submodule("second").weight.shape[:2]) == (6, 4)
    inputs = make_pixels(4)[-1]["pixels"]
    with torch.no_grad():
        found, wanted = pruned(inputs), net(inputs)
    # The damping of the variance leaves a little.
    assert float((found - wanted).square().mean()) < 1e-4 * float(wanted.var())


@pytest.mark.parametrize("bias", [True, False])
def test_what_stays_says_as_much_as_least_squares_can(bias: bool) -> None:
    net, batches = make_net(bias=bias), make_pixels(30)
    pruned: Any = cut(net, [2, 3, 6, 7], batches, "first")
    with torch.no_grad():
        read = torch.cat([functional.relu(net.first(each["pixels"])) for each in batches])
        columns = functional.unfold(read, 3, padding=1).transpose(1, 2).reshape(-1, 72)
    rows = columns.double().numpy()
    weight = net.second.weight.detach().flatten(1).double().numpy()
    wanted = rows @ weight.T + (net.second.bias.detach().double().numpy() if bias else 0)
    stays = [channel * 9 + place for channel in (0, 1, 4, 5) for place in range(9)]
    known = rows[:, stays]
    if bias:
        known = np.concatenate([known, np.ones((len(known), 1))], axis=1)
    best = wanted - known @ np.linalg.lstsq(known, wanted, rcond=None)[0]
    fitted = pruned.second.weight.detach().flatten(1).double().numpy()
    error = wanted - rows[:, stays] @ fitted.T
    error -= pruned.second.bias.detach().double().numpy() if bias else 0
    plain = wanted - rows[:, stays] @ weight[:, stays].T
    plain -= net.second.bias.detach().double().numpy() if bias else 0
    assert (best**2).mean() <= (error**2).mean() < 1.02 * (best**2).mean()
    assert (error**2).mean() < 0.9 * (plain**2).mean()


def test_means_count_where_nothing_makes_up_for_them() -> None:
    moments = channel_moments(make_net(bias=False, norm=True), make_pixels())
    assert moments["first"].centred, "a normalization is behind it, and it has a bias"
    assert not moments["second"].centred
    assert not moments["second"].mean.any()
    behind = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4))
    (only,) = channel_moments(Read(behind), make_pixels()).values()
    assert only.centred
    assert only.mean.any()


def test_large_images_are_looked_at_in_some_places() -> None:
    net = make_net()
    small = channel_moments(net, make_pixels(1, size=16))["second"]
    large = channel_moments(net, make_pixels(1, size=40))["second"]
    assert (small.num_tokens, large.num_tokens) == (4 * 16 * 16, 4 * 13 * 13)


def test_the_second_of_two_that_say_the_same_costs_more() -> None:
    net, batches = make_net(), make_pixels(30)
    moments = channel_moments(net, batches)
    parts = {net.get_submodule(name): each for name, each in moments.items()}
    scores = SecondOrderImportance(parts)(whole_group(net, batches)).reshape(4, 2)
    first, second = scores.sort(dim=1).values.unbind(dim=1)
    assert float(first.max()) < 0.05 * float(second.min())


def test_errors_are_shares_of_what_is_written() -> None:
    net, batches = make_net(), make_pixels()

    def scores() -> Tensor:
        moments = channel_moments(net, batches)
        parts = {net.get_submodule(name): each for name, each in moments.items()}
        found: Tensor = SecondOrderImportance(parts)(whole_group(net, batches))
        return found

    before = scores()
    assert float(before.max()) == pytest.approx(1, rel=0.05), "all gone: nothing is told"
    with torch.no_grad():
        net.second.weight.mul_(7)
    assert torch.allclose(before, scores(), rtol=1e-4)


def test_channels_that_nothing_reads_are_judged_by_their_weights() -> None:
    net, batches = make_net(), make_pixels()
    scores = SecondOrderImportance({})(whole_group(net, batches))
    expected = torch_pruning.importance.GroupMagnitudeImportance()(whole_group(net, batches))
    assert torch.equal(scores, expected)


@pytest.mark.parametrize("num_rows", [1, 65, 130])
def test_normalizations_are_taken_anew_and_nothing_else(num_rows: int) -> None:
    net = make_net(norm=True)
    batches = make_rows(num_rows)
    net.norm.momentum = 0.3
    state = copy.deepcopy(net.state_dict())
    recalibrate(net, batches)
    with torch.no_grad():
        made = net.first(torch.cat([each["pixels"] for each in batches]))
    norm: Any = net.norm
    assert torch.allclose(norm.running_mean, made.mean(dim=(0, 2, 3)), atol=0.02)
    assert torch.allclose(norm.running_var, made.var(dim=(0, 2, 3)), rtol=0.05)
    assert norm.momentum == 0.3
    assert not any(part.training for part in net.modules())
    anew = {"norm.running_mean", "norm.running_var", "norm.num_batches_tracked"}
    kept = {name: each for name, each in net.state_dict().items() if name not in anew}
    assert all(torch.equal(state[name], each) for name, each in kept.items())


def make_rows(count: int) -> list[dict[str, Tensor]]:
    """Batches of eight images of unlike brightness, the last of fewer."""
    generator = torch.Generator().manual_seed(2)
    pixels = torch.randn((count, 3, 9, 9), generator=generator)
    pixels += torch.randn((count, 1, 1, 1), generator=generator)
    return [{"pixels": each} for each in pixels.split(8)]


@pytest.mark.parametrize("across_layers", [False, True])
@pytest.mark.parametrize("network", [Branches, Flat, Signals])
def test_half_of_the_channels_are_not_missed_where_they_are_copies(
    network: Callable[[], nn.Module], across_layers: bool
) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = Answers(network()).eval()
    batches = make_pixels(16, size=6)
    recalibrate(module, batches)  # as if it were trained on them
    model = TorchModel(module, None, "image-classification", 0)
    pruned = prune_channels(
        model,
        0.5,
        batches,
        importance="second-order",
        across_layers=across_layers,
        multiple=1,
        refits=True,
        seed=0,
    )
    widths = {name: part.weight.shape[0] for name, part in convolutions(pruned.module)}
    assert widths == {name: part.weight.shape[0] // 2 for name, part in convolutions(module)}
    inputs = torch.cat([each["pixels"] for each in batches])
    with torch.no_grad():
        found, wanted = (each(inputs).logits for each in (pruned.module, module))
    assert float((found - wanted).square().mean()) < 2e-3 * float(wanted.var(dim=0).mean())


def convolutions(module: nn.Module) -> list[tuple[str, nn.modules.conv._ConvNd]]:
    return [
        (name, part)
        for name, part in module.named_modules()
        if isinstance(part, nn.modules.conv._ConvNd)
    ]


def test_channels_of_other_groups_are_no_help() -> None:
    """Two branches that say the same: neither may count on the other, for both may go."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Branches().eval()
    net.right.load_state_dict(net.left.state_dict())
    net.norm, net.depth = nn.Identity(), nn.Identity()  # type: ignore[assignment]
    batches = make_pixels(16)
    moments = channel_moments(net, batches)
    graph = torch_pruning.DependencyGraph().build_dependency(net, batches[0])
    group = graph.get_pruning_group(
        net.left, torch_pruning.prune_conv_out_channels, idxs=list(range(8))
    )
    scores = SecondOrderImportance({net.both: moments["both"]})(group).reshape(4, 2)
    first, second = scores.sort(dim=1).values.unbind(dim=1)
    assert float(first.max()) < 0.2 * float(second.min())
    assert float(second.min()) > 0.01


def test_what_computes_its_weights_anew_is_left_alone() -> None:
    class Standardized(nn.Conv2d):
        def forward(self, given: Tensor) -> Tensor:
            weight = self.weight - self.weight.mean(dim=(1, 2, 3), keepdim=True)
            return functional.conv2d(given, weight, self.bias)

    net = Read(nn.Sequential(nn.Conv2d(3, 4, 3), Standardized(4, 4, 3)))
    assert list(channel_moments(net, make_pixels())) == ["part.0"]


def test_channels_that_groups_read_do_not_compete_with_those_of_other_layers(
    image_splits: Splits, tmp_path: Path
) -> None:
    config = RegNetConfig(
        embedding_size=16, hidden_sizes=[16, 32], depths=[1, 1], groups_width=8, num_labels=3
    )
    module = AutoModelForImageClassification.from_config(config).eval()
    model = replace(make_vision("resnet"), module=module)
    context = PassContext(image_splits, model.clone, seed=0, folder=tmp_path)
    step = Prune(ratio=0.5, importance="second-order", refit=True)
    pruned: Any = step.run(model, context).model
    assert pruned.num_parameters < model.num_parameters
    with pytest.raises(PassError, match="channels of all layers cannot be ranked") as caught:
        step.model_copy(update={"scope": "global"}).run(model, context)
    assert caught.value.fix == "set scope to layer, or importance to taylor"


@pytest.fixture(scope="module", params=CONVOLUTIONS)
def trained(
    request: pytest.FixtureRequest, image_splits: Splits, tmp_path_factory: pytest.TempPathFactory
) -> TorchModel:
    """A network of convolutions that has learnt the colours."""
    model = make_vision(request.param)
    folder = tmp_path_factory.mktemp("trained")
    context = PassContext(image_splits, load_original=lambda: model, seed=0, folder=folder)
    found = Finetune(epochs=12, batch_size=16, learning_rate=3e-3).run(model, context).model
    assert isinstance(found, TorchModel)
    return found


@pytest.mark.parametrize("importance", ["taylor", "second-order"])
def test_networks_that_are_fitted_know_more_of_what_they_knew(
    trained: TorchModel,
    importance: Any,
    image_splits: Splits,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    context = PassContext(image_splits, trained.clone, seed=0, folder=tmp_path)
    held_out = sample_batches(trained, image_splits.test, num_rows=36, batch_size=36, seed=1)
    before = copy.deepcopy(trained.module.state_dict())

    def loss(**settings: Any) -> float:
        pruned: Any = Prune(ratio=0.5, **settings).run(trained, context).model
        return mean_loss(pruned, held_out)

    fitted = loss(importance=importance, refit=True)
    monkeypatch.setattr(channels, "refit_channels", lambda *_: None)
    assert fitted < loss(importance=importance, refit=True), "taking statistics anew is not all"
    assert fitted < loss()
    after = trained.module.state_dict()
    assert all(torch.equal(before[name], each) for name, each in after.items())


def test_second_order_channels_repeat(image_splits: Splits) -> None:
    model = make_vision("resnet")
    batches = sample_batches(model, image_splits.train, num_rows=32, batch_size=8, seed=0)
    first, second = (
        prune_channels(
            model,
            0.5,
            batches,
            importance="second-order",
            across_layers=False,
            multiple=8,
            refits=True,
            seed=0,
        )
        for _ in "ab"
    )
    states = [each.module.state_dict() for each in (first, second)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert mean_loss(first, batches) == mean_loss(second, batches)
