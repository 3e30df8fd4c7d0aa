"""What stays is fitted to what goes: against least squares of numpy, and on models' answers."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from torch import Tensor, nn

from compressor.data import Splits
from compressor.model import TorchModel
from compressor.passes.base import PassContext
from compressor.passes.prune import Prune
from compressor.pruning.importance import second_order_scores
from compressor.pruning.moments import LayerMoments
from compressor.pruning.prune import sample_batches
from compressor.pruning.refit import refit
from compressor.pruning.slicing import Kept, keep_units
from compressor.tasks.base import LABELS
from targets.encoder import EncoderLayer, encoder_layers
from tests.compressor.conftest import make_image_splits, make_vision
from tests.compressor.decoders import make_decoder, plain_splits
from tests.compressor.writers import SPEECH, make_writer
from tests.compressor.writers import make_splits as speech_splits

Array = NDArray[np.float64]
Batches = Sequence[Mapping[str, Tensor]]


def parts_of(layer: EncoderLayer) -> tuple[nn.Linear, nn.Linear]:
    return layer.attention_output, layer.ffn_output


def read_by(module: nn.Module, batches: Batches) -> list[list[Array]]:
    """What each output projection reads, (tokens, width), of one row without padding at a time."""
    layers = encoder_layers(module)
    found: list[list[list[Array]]] = [[[], []] for _ in layers]
    hooks = [
        part.register_forward_pre_hook(
            lambda _, given, place=found[number][which]: place.append(
                given[0].reshape(-1, given[0].shape[-1]).double().numpy()
            )
        )
        for number, layer in enumerate(layers)
        for which, part in enumerate(parts_of(layer))
    ]
    with torch.no_grad():
        for batch in batches:
            for row in range(len(next(iter(batch.values())))):
                module(**_row(batch, row))
    for hook in hooks:
        hook.remove()
    return [[np.concatenate(part) for part in layer] for layer in found]


def _row(batch: Mapping[str, Tensor], row: int) -> dict[str, Tensor]:
    """A row without its padding."""
    one = {name: each[row : row + 1] for name, each in batch.items() if name != LABELS}
    mask = one.get("attention_mask")
    if mask is not None:
        width, length = mask.shape[1], int(mask.sum())
        one = {
            name: each[:, :length] if each.ndim > 1 and each.shape[1] == width else each
            for name, each in one.items()
        }
    if "decoder_input_ids" in one:
        length = int(torch.nonzero(batch[LABELS][row] != -100).max()) + 1
        one["decoder_input_ids"] = one["decoder_input_ids"][:, :length]
    return one


def half_of(module: nn.Module) -> Kept:
    """Every other head and neuron, and all of the last layer."""
    *layers, last = encoder_layers(module)
    return Kept(
        [*(range(0, each.num_heads, 2) for each in layers), range(last.num_heads)],
        [*(range(0, each.ffn_width, 2) for each in layers), range(last.ffn_width)],
    )


def columns(layer: EncoderLayer, heads: Sequence[int]) -> list[int]:
    width = layer.head_size * layer.queries_per_head
    return [head * width + place for head in heads for place in range(width)]


MODELS = {
    "vit": (lambda: make_vision("vit"), make_image_splits),
    "llama": (make_decoder, plain_splits),
    "qwen2": (lambda: make_decoder("qwen2"), plain_splits),
    "whisper": (make_writer, lambda: speech_splits(SPEECH)),
}


def batches_of(model: TorchModel, splits: Splits, num_rows: int = 64) -> list[dict[str, Tensor]]:
    return sample_batches(model, splits.train, num_rows=num_rows, batch_size=8, seed=0)


@pytest.mark.parametrize("family", MODELS)
def test_what_stays_says_as_much_as_least_squares_can(family: str) -> None:
    make, make_splits = MODELS[family]
    model = make()
    batches = batches_of(model, make_splits())
    kept = half_of(model.module)
    before = copy.deepcopy(model.module.state_dict())
    fitted = refit(model.module, kept, batches)
    after = model.module.state_dict()
    assert all(torch.equal(after[name], each) for name, each in before.items())
    given = read_by(model.module, batches)
    for number, (old, new) in enumerate(
        zip(encoder_layers(model.module), encoder_layers(fitted), strict=True)
    ):
        units = (columns(old, kept.heads[number]), list(kept.ffn[number]))
        for part, refitted, stays, inputs in zip(
            parts_of(old), parts_of(new), units, given[number], strict=True
        ):
            if len(stays) == part.in_features:
                assert torch.equal(part.weight, refitted.weight)
                continue
            gone = [unit for unit in range(part.in_features) if unit not in set(stays)]
            assert not refitted.weight[:, gone].any()
            wanted = apply(part, inputs)
            best = least_squares(inputs[:, stays], wanted, bias=part.bias is not None)
            cut = error(inputs[:, stays] @ weight_of(part)[:, stays].T + bias_of(part), wanted)
            found = error(apply(refitted, inputs), wanted)
            assert best <= found * (1 + 1e-6)
            assert found - best < 0.1 * (cut - best)


def weight_of(part: nn.Linear) -> Array:
    return part.weight.detach().double().numpy()


def bias_of(part: nn.Linear) -> Array | float:
    return 0.0 if part.bias is None else part.bias.detach().double().numpy()


def apply(part: nn.Linear, inputs: Array) -> Array:
    return np.asarray(inputs @ weight_of(part).T + bias_of(part))


def least_squares(inputs: Array, wanted: Array, *, bias: bool) -> float:
    """The least error that a linear map can have, as a share of what is wanted of each row."""
    if bias:
        inputs = np.hstack([inputs, np.ones((len(inputs), 1))])
    scale = 1 / np.sqrt(np.square(wanted).mean(axis=1, keepdims=True))
    best = np.linalg.lstsq(scale * inputs, scale * wanted, rcond=None)[0]
    return error(inputs @ best, wanted)


def error(found: Array, wanted: Array) -> float:
    size = np.square(wanted).mean(axis=1)
    lost = np.square(found - wanted).mean(axis=1)
    return float((lost / size).sum() / (1 / size).sum())


def test_a_unit_that_says_the_same_as_another_is_not_missed(encoder: nn.Module) -> None:
    layer = encoder_layers(encoder)[0]
    with torch.no_grad():
        layer.ffn_input.weight[1::2] = layer.ffn_input.weight[::2]
        layer.ffn_input.bias[1::2] = layer.ffn_input.bias[::2]
    kept = Kept([range(4)] * 2, [range(0, 64, 2), range(64)])
    generator = torch.Generator().manual_seed(0)
    batches = [{"input_ids": torch.randint(2, 50, (8, 12), generator=generator)} for _ in range(16)]
    example = batches[0]
    with torch.no_grad():
        whole = encoder(**example).logits
        cut = keep_units(encoder, kept, example)(**example).logits
        fitted = keep_units(refit(encoder, kept, batches), kept, example)(**example).logits
    assert (fitted - whole).abs().max() < 0.05 * (cut - whole).abs().max()


def test_tokens_count_alike_however_large_their_states_are(encoder: nn.Module) -> None:
    layer = encoder_layers(encoder)[0]
    with torch.no_grad():  # one neuron answers to one token, a thousand times as much as any other
        layer.ffn_input.weight[0] *= 1000
    generator = torch.Generator().manual_seed(0)
    batches = [{"input_ids": torch.randint(2, 50, (8, 12), generator=generator)} for _ in range(16)]
    kept = Kept([range(4)] * 2, [range(0, 64, 2), range(64)])
    [(_, inputs), *_] = read_by(encoder, batches)
    fitted = refit(encoder, kept, batches)
    wanted = apply(layer.ffn_output, inputs)
    found = apply(encoder_layers(fitted)[0].ffn_output, inputs)
    cut = inputs[:, ::2] @ weight_of(layer.ffn_output)[:, ::2].T + bias_of(layer.ffn_output)
    relative = [
        np.square(each - wanted).mean(axis=1) / np.square(wanted).mean(axis=1)
        for each in (found, cut)
    ]
    assert np.median(relative[0]) < np.median(relative[1])


@pytest.mark.parametrize("family", ["vit", "llama"])
def test_second_order_importance_is_what_least_squares_cannot_make_up_for(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("compressor.pruning.moments._DAMPING", 1e-6)
    make, make_splits = MODELS[family]
    model = make()
    batches = batches_of(model, make_splits())
    scores = second_order_scores(model.module, LayerMoments(model.module, batches))
    inputs = read_by(model.module, batches)[0]
    layer = encoder_layers(model.module)[0]
    kinds = (
        (layer.attention_output, [columns(layer, [head]) for head in range(layer.num_heads)]),
        (layer.ffn_output, [[unit] for unit in range(layer.ffn_width)]),
    )
    for found, (part, groups), read in zip(
        (scores.heads[0], scores.ffn[0]), kinds, inputs, strict=True
    ):
        wanted = apply(part, read)
        size = np.square(wanted).mean(axis=1)
        total = (1 / size).mean()  # what turns error(), a weighted mean, into the mean of shares

        def lost(gone: set[int], read: Array = read, part: nn.Linear = part) -> float:
            stays = [unit for unit in range(part.in_features) if unit not in gone]
            return least_squares(read[:, stays], apply(part, read), bias=part.bias is not None)

        alone = [lost(set(group)) for group in groups]
        first = int(np.argmin(found))
        assert alone[first] < np.quantile(alone, 0.2) + 1e-12
        order = np.argsort(found)
        half = {unit for group in order[: len(order) // 2] for unit in groups[group]}
        dearest = {unit for group in order[len(order) // 2 :] for unit in groups[group]}
        assert lost(half) < lost(dearest)
        assert found[order[len(order) // 2 - 1]] == pytest.approx(lost(half) * total, rel=0.3)


def test_two_units_that_say_the_same_are_worth_one(
    encoder: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("compressor.pruning.moments._DAMPING", 1e-6)
    monkeypatch.setattr("compressor.pruning.importance._REMOVALS", 8)  # eight of 64 at once
    monkeypatch.setattr("compressor.pruning.moments._AT_ONCE", 1)  # one projection a pass
    layer = encoder_layers(encoder)[0]
    with torch.no_grad():
        for number in range(5):
            layer.ffn_input.weight[number] = layer.ffn_input.weight[40]
            layer.ffn_input.bias[number] = layer.ffn_input.bias[40]
    generator = torch.Generator().manual_seed(0)
    batches = [{"input_ids": torch.randint(2, 50, (8, 12), generator=generator)} for _ in range(16)]
    alike = [0, 1, 2, 3, 4, 40]
    with torch.no_grad():  # what they say together matters much
        layer.ffn_output.weight[:, alike] *= 10
    found = second_order_scores(encoder, LayerMoments(encoder, batches)).ffn[0]
    order = np.argsort(found).tolist()
    *early, last = sorted(order.index(unit) for unit in alike)
    assert early == list(range(5))
    assert last >= 60


@pytest.mark.parametrize("family", ["llama", "whisper"])
def test_padding_of_decoders_tells_nothing(family: str) -> None:
    make, make_splits = MODELS[family]
    model, split = make(), make_splits().train
    kept = half_of(model.module)
    together, apart = (
        refit(
            model.module,
            kept,
            sample_batches(model, split, num_rows=32, batch_size=size, seed=0),
        )
        for size in (8, 1)
    )
    for one, other in zip(encoder_layers(together), encoder_layers(apart), strict=True):
        for first, second in zip(parts_of(one), parts_of(other), strict=True):
            torch.testing.assert_close(first.weight, second.weight, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(("at_once", "passes"), [(2**30, 1), (1, 8)])
def test_the_data_are_read_once_where_all_moments_fit(
    encoder: nn.Module,
    inputs: dict[str, Tensor],
    monkeypatch: pytest.MonkeyPatch,
    at_once: int,
    passes: int,
) -> None:
    monkeypatch.setattr("compressor.pruning.moments._AT_ONCE", at_once)
    runs = []
    encoder.register_forward_pre_hook(lambda *_: runs.append(1))
    moments = LayerMoments(encoder, [inputs])
    first, again = list(moments), list(moments)
    assert len(runs) == passes  # two of each of the four projections
    for one, other in zip(first, again, strict=True):
        assert one.part is other.part
        torch.testing.assert_close(one.products, other.products)
    kept = Kept([(0, 2)] * 2, [range(20)] * 2)
    alone, shared = refit(encoder, kept, [inputs]), refit(encoder, kept, [], moments=moments)
    for one, other in zip(encoder_layers(alone), encoder_layers(shared), strict=True):
        for mine, theirs in zip(parts_of(one), parts_of(other), strict=True):
            torch.testing.assert_close(mine.weight, theirs.weight)


def test_padding_tells_nothing(encoder: nn.Module, inputs: dict[str, Tensor]) -> None:
    kept = Kept([(0, 2)] * 2, [range(20)] * 2)
    rows = [{name: each[:1] for name, each in inputs.items()}]
    rows.append({name: each[1:, :3] for name, each in inputs.items()})
    together, apart = refit(encoder, kept, [inputs]), refit(encoder, kept, rows)
    # Eight tokens tell little of 32 units: what float32 rounds away is seen a thousandfold.
    close = {"atol": 1e-2, "rtol": 1e-2}
    for one, other in zip(encoder_layers(together), encoder_layers(apart), strict=True):
        for first, second in zip(parts_of(one), parts_of(other), strict=True):
            torch.testing.assert_close(first.weight, second.weight, **close)
            torch.testing.assert_close(first.bias, second.bias, **close)


def test_the_pass_brings_a_model_nearer_to_what_it_was(tmp_path: Path) -> None:
    model, splits = make_decoder(), plain_splits()
    context = PassContext(splits, model.clone, seed=0, folder=tmp_path)
    held_out = sample_batches(model, splits.validation, num_rows=24, batch_size=24, seed=1)[0]
    inputs = {name: each for name, each in held_out.items() if name != LABELS}
    real = inputs["attention_mask"] != 0

    def distance(refits: bool) -> float:
        pruned: Any = Prune(ratio=0.5, refit=refits).run(model, context).model
        with torch.no_grad():
            found, wanted = (each.module(**inputs).logits[real] for each in (pruned, model))
        return float((found - wanted).square().mean())

    assert distance(True) < 0.8 * distance(False)


def test_rows_to_fit_on_have_an_effect() -> None:
    assert Prune(ratio=0.5, importance="magnitude", refit=True, examples=32).examples == 32
    with pytest.raises(ValidationError, match="examples has no effect"):
        Prune(ratio=0.5, importance="magnitude", examples=32)


def test_second_order_importance_counts_on_the_fit() -> None:
    with pytest.raises(ValidationError, match="second-order needs refit"):
        Prune(ratio=0.5, importance="second-order")
    with pytest.raises(ValidationError, match="cannot score hidden units"):
        Prune(ratio=0.5, hidden=0.5, importance="second-order", refit=True)
    with pytest.raises(ValidationError, match="refit has no effect when neither"):
        Prune(hidden=0.5, refit=True)
