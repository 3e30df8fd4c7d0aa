"""Time series as a task: the networks of transformers, their checkpoints, passes and refusals."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from transformers import PatchTSMixerConfig, PatchTSTConfig

from compressor.architecture import Architecture
from compressor.data import DataSpec, Split, Splits, data_fingerprint, read_splits
from compressor.errors import CheckpointError, DataError, PassError
from compressor.model import OnnxModel, TorchModel
from compressor.passes.base import PassContext
from compressor.passes.distill import Distill
from compressor.passes.drop_layers import DropLayers
from compressor.passes.export import Export
from compressor.passes.prune import Prune
from compressor.passes.quantize import Quantize
from compressor.tasks import get_task, infer_task
from compressor.training.augmentation import SeriesNoise
from compressor.training.finetuning import new_classifier
from compressor.training.taps import TappedEncoder
from targets.networks import time_series
from targets.preprocessing import FIXED_SIZE, SeriesPreprocessing
from targets.runtimes.onnxruntime import create_session

TASK = get_task("time-series-classification")
VALUES = "past_values"
CLASSES = ("fast", "slow", "still")
LENGTH, CHANNELS = 24, 2
_SIZES = {
    "context_length": LENGTH,
    "num_input_channels": CHANNELS,
    "patch_length": 4,
    "patch_stride": 4,
}
_TRANSFORMER = {
    **_SIZES,
    "d_model": 32,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "ffn_dim": 64,
}
CONFIGS: dict[str, Callable[..., Any]] = {
    "patchtst": lambda **more: PatchTSTConfig(**_TRANSFORMER, **more),
    "patchtst across channels": lambda **more: PatchTSTConfig(
        **_TRANSFORMER, channel_attention=True, use_cls_token=True, norm_type="layernorm", **more
    ),
    "patchtsmixer": lambda **more: PatchTSMixerConfig(
        **_SIZES, d_model=16, num_layers=2, dropout=0.0, head_dropout=0.0, **more
    ),
}
TRANSFORMERS = ["patchtst", "patchtst across channels"]
NETWORKS = {
    "patchtst": (time_series.PatchTSTForClassification, "prediction_logits"),
    "patchtsmixer": (time_series.PatchTSMixerForTimeSeriesClassification, "prediction_outputs"),
}


def make(family: str, *, seed: int = 0, labels: tuple[str, ...] = CLASSES) -> TorchModel:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = CONFIGS[family](
            id2label=dict(enumerate(labels)),
            label2id={name: index for index, name in enumerate(labels)},
        )
        module = NETWORKS[family.split()[0]][0]._from_config(config, attn_implementation="eager")
        for each in module.parameters():  # far from where a training begins
            torch.nn.init.normal_(each, std=0.2)
    processor = SeriesPreprocessing(length=LENGTH, channels=CHANNELS)
    return TorchModel(module.eval(), processor, TASK.name, FIXED_SIZE)


def signals(count: int, seed: int = 0) -> Any:
    random = np.random.default_rng(seed)
    return random.normal(size=(count, LENGTH, CHANNELS)).astype(np.float32)


def logits(model: TorchModel, values: Any) -> Any:
    with torch.no_grad():
        return model.module(torch.from_numpy(values)).logits.numpy()


def make_splits() -> Splits:
    splits = [
        Split(tuple(signals(12, seed)), np.arange(12, dtype=np.int64) % 3) for seed in range(3)
    ]
    return Splits(*splits, CLASSES)


@pytest.fixture
def context(tmp_path: Path) -> PassContext:
    return PassContext(
        make_splits(),
        load_original=lambda: make("patchtst"),
        seed=0,
        folder=tmp_path / "work",
    )


# Checkpoints


@pytest.mark.parametrize("family", CONFIGS)
def test_a_checkpoint_comes_back_bit_equal_and_transformers_reads_it(
    tmp_path: Path, family: str
) -> None:
    model = make(family)
    model.save(tmp_path)
    loaded = TASK.load_checkpoint(tmp_path)
    assert (loaded.processor, loaded.labels) == (model.processor, CLASSES)
    assert (loaded.task, loaded.max_length) == (TASK.name, FIXED_SIZE)
    assert infer_task(tmp_path) == TASK.name
    values = signals(5)
    np.testing.assert_array_equal(logits(loaded, values), logits(model, values))
    _, output = NETWORKS[family.split()[0]]
    network = getattr(transformers, type(model.module).__name__).from_pretrained(
        tmp_path, attn_implementation="eager"
    )
    with torch.no_grad():
        theirs = network.eval()(torch.from_numpy(values))[output].numpy()
    np.testing.assert_allclose(logits(model, values), theirs, atol=1e-5)


def test_a_checkpoint_of_transformers_alone_is_read(tmp_path: Path) -> None:
    network = transformers.PatchTSTForClassification(
        CONFIGS["patchtst"](num_targets=3, id2label=dict(enumerate(CLASSES)))
    )
    network.save_pretrained(tmp_path)
    assert not (tmp_path / "preprocessor_config.json").exists()
    assert infer_task(tmp_path) == TASK.name
    loaded = TASK.load_checkpoint(tmp_path)
    assert loaded.processor == SeriesPreprocessing(length=LENGTH, channels=CHANNELS)
    assert TASK.preprocessing(tmp_path, FIXED_SIZE) == loaded.processor
    assert TASK.signature(loaded).inputs[0].shape == ("batch", LENGTH, CHANNELS)
    TASK.signature(loaded).check(TASK.collate(loaded, TASK.encode(loaded, list(signals(3)))))


@pytest.mark.parametrize("family", ["patchtst", "patchtsmixer"])
def test_an_encoder_without_head_gets_one(tmp_path: Path, family: str) -> None:
    model = make(family)
    model.module.model.save_pretrained(tmp_path)  # type: ignore[union-attr,operator]
    assert infer_task(tmp_path) == TASK.name
    found = new_classifier(tmp_path, ("a", "b"), task=TASK.name)
    assert found.labels == ("a", "b")
    assert logits(found, signals(4)).shape == (4, 2)
    ours, theirs = found.module.model.state_dict(), model.module.model.state_dict()  # type: ignore[union-attr,operator]
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_other_checkpoints_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert", "vocab_size": 5}))
    for config, given in (
        ({"vocab_size": 5}, "'context_length' is missing"),
        ({"context_length": 0, "num_input_channels": 1}, "length"),
        ([], "list indices"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(config))
        with pytest.raises(CheckpointError) as caught:
            TASK.check_processor(tmp_path)
        assert caught.value.what == "the checkpoint does not say which signals it reads"
        assert given in str(caught.value.given)
        assert "with context_length and num_input_channels" in str(caught.value.fix)


def test_a_length_of_its_own_is_refused(tmp_path: Path) -> None:
    make("patchtst").save(tmp_path)
    with pytest.raises(CheckpointError, match="the network reads signals of one length") as caught:
        new_classifier(tmp_path, CLASSES, task=TASK.name, max_length=12)
    assert caught.value.given == "12, where it reads 24 points in time"


def test_a_student_reads_signals_of_the_same_form() -> None:
    model = make("patchtst")
    assert TASK.adopt(make("patchtsmixer"), model) == model.processor
    other = TorchModel(
        model.module, SeriesPreprocessing(length=LENGTH, channels=1), TASK.name, FIXED_SIZE
    )
    with pytest.raises(CheckpointError, match="reads signals of a different form") as caught:
        TASK.adopt(other, model)
    assert caught.value.given == "24 points in time of 1 channels instead of 24 of 2"


# Passes


@pytest.mark.parametrize("family", TRANSFORMERS)
def test_layers_are_known(family: str) -> None:
    found = Architecture.of(make(family).module)
    assert found.describe() == "2 layers x 4 heads x 64 FFN, hidden 32"


@pytest.mark.parametrize("family", TRANSFORMERS)
def test_pruned_networks_come_back_equal(tmp_path: Path, context: PassContext, family: str) -> None:
    model = make(family)
    step = Prune(ratio=0.5, recovery=None)
    planned = step.plan(Architecture.of(model.module))
    pruned = step.run(model, context).model
    assert isinstance(pruned, TorchModel)
    assert Architecture.of(pruned.module).layers == planned.layers
    assert pruned.num_parameters < model.num_parameters
    pruned.save(tmp_path / "pruned")
    config = json.loads((tmp_path / "pruned/config.json").read_text())
    assert config["ffn_dim"] == max(layer.ffn_width for layer in planned.layers) < 64
    assert Architecture.read(tmp_path / "pruned").layers == planned.layers
    loaded = TorchModel.load(tmp_path / "pruned")
    np.testing.assert_array_equal(logits(loaded, signals(5)), logits(pruned, signals(5)))


def test_layers_are_dropped(tmp_path: Path, context: PassContext) -> None:
    dropped = DropLayers(num_layers=1).run(make("patchtst"), context).model
    assert isinstance(dropped, TorchModel)
    dropped.save(tmp_path / "dropped")
    assert json.loads((tmp_path / "dropped/config.json").read_text())["num_hidden_layers"] == 1
    loaded = TASK.load_checkpoint(tmp_path / "dropped")
    np.testing.assert_array_equal(logits(loaded, signals(5)), logits(dropped, signals(5)))


def test_a_mixer_is_not_pruned(context: PassContext) -> None:
    model = make("patchtsmixer")
    assert Architecture.of(model.module).layers == ()
    assert DropLayers.unsuited(Architecture.of(model.module))
    with pytest.raises(PassError, match="neither the layers of a known transformer encoder"):
        Prune(ratio=0.5, recovery=None).run(model, context)


@pytest.mark.parametrize("family", TRANSFORMERS)
def test_states_of_all_channels_are_compared(family: str) -> None:
    model = make(family)
    tapped = TappedEncoder(model.module, hidden_layers=(0, 1), relation_layer=1)
    with torch.no_grad():
        found = tapped(past_values=torch.from_numpy(signals(3)))
        hidden = model.module(torch.from_numpy(signals(3)), output_hidden_states=True).hidden_states
    tokens = CHANNELS * (LENGTH // 4 + ("across" in family))
    assert [tuple(each.shape) for each in found.hidden] == [(3, tokens, 32)] * 2
    assert [tuple(each.shape) for each in found.projections] == [(3, tokens, 32)] * 3
    # Those of transformers are the inputs of the layers.
    torch.testing.assert_close(found.hidden[0], hidden[1].reshape(3, tokens, 32))


@pytest.mark.slow
@pytest.mark.parametrize("cache_mib", [0, 64])
def test_distillation_lowers_the_loss(context: PassContext, cache_mib: int) -> None:
    step = Distill(
        epochs=3, batch_size=4, relation_weight=1.0, relation_heads=4, cache_mib=cache_mib
    )
    result = step.run(make("patchtst", seed=1), context)
    losses = [entry["loss"] for entry in result.history if "loss" in entry]
    assert losses[-1] < losses[0]


def test_noise_moves_and_mixes() -> None:
    rows = [
        {VALUES: np.full((20, 2), index, np.float32) + np.arange(20)[:, None]} for index in (0, 9)
    ]
    rows = [{VALUES: row[VALUES].astype(np.float32)} for row in rows]
    moving = SeriesNoise(rows, share=0.25, mixup=0.0, copies=1, seed=0)
    mixing = SeriesNoise(rows, share=0.25, mixup=1.0, copies=1, seed=0)
    generator = np.random.default_rng(0)
    starts = set()
    for _ in range(50):
        moved = moving.change(rows[0], 0, generator)[VALUES]
        assert (moved.shape, moved.dtype) == ((20, 2), np.float32)
        starts.add(float(moved[10, 0]) - 10)  # what was there is now elsewhere
        assert set(np.diff(moved[:, 0])) <= {0.0, 1.0}
        mixed = mixing.change(rows[0], 0, generator)[VALUES]
        assert mixed.dtype == np.float32
        assert (mixed - rows[0][VALUES]).min() >= -1e-5
        assert (rows[1][VALUES] - mixed).min() >= -1e-5
    assert starts == set(map(float, range(-5, 6)))


@pytest.mark.slow
@pytest.mark.parametrize("family", CONFIGS)
def test_networks_are_exported_with_a_free_batch_and_quantized(
    context: PassContext, family: str
) -> None:
    model = make(family)
    exported = Export().run(model, context).model
    assert isinstance(exported, OnnxModel)
    exported.save(context.folder / "exported")
    quantized = Quantize(method="static", num_samples=8).run(exported, context).model
    assert isinstance(quantized, OnnxModel)
    assert quantized.precision == "int8"
    for count in (1, 5):
        feeds = TASK.collate(model, TASK.encode(model, list(signals(count))))
        expected = logits(model, signals(count))
        found = create_session(exported.path, threads=1).run(None, dict(feeds))[0]
        np.testing.assert_allclose(found, expected, atol=1e-4, rtol=1e-4)
        # As it is written: the target re-encodes it before the runtime optimizes it.
        rounded = create_session(quantized.path, threads=1, optimization="none").run(
            None, dict(feeds)
        )[0]
        assert 0 < np.abs(rounded - expected).max() < np.ptp(expected)


# Data


def write(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def read(path: Path) -> Splits:
    spec = DataSpec(train=path, validation=path, test=path)
    return read_splits(spec, label_names=None, kind="series")


def test_tables_hold_signals_or_name_files(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([[1, 2], [3, 4]]))
    json_lines = write(
        tmp_path / "a.jsonl",
        '{"series": [[1, 2], [3, 4]], "label": "x"}',
        '{"series": "a.npy", "label": "y"}',
    )
    table = write(tmp_path / "a.csv", "series,label", '"[[1, 2], [3, 4]]",x', "a.npy,y")
    encoder = SeriesPreprocessing(length=2, channels=2).open(tmp_path)
    for path in (json_lines, table):
        splits = read(path)
        assert splits.label_names == ("x", "y")
        for row in encoder.encode(splits.test.inputs).rows[VALUES]:
            np.testing.assert_array_equal(row, [[1, 2], [3, 4]])


def test_the_content_of_named_files_counts(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "series,label", "a.npy,x", '"[1, 2]",y')
    spec = DataSpec(train=path, test=path, validation=path)
    prints = []
    for last in (2, 2, 3):
        np.save(tmp_path / "a.npy", np.array([1, last]))
        prints.append(data_fingerprint(spec, kind="series"))
    assert prints[0] == prints[1] != prints[2]


@pytest.mark.parametrize(
    ("cell", "what", "given"),
    [
        ('"[1, oops]"', "this is not a signal", "[1, oops]"),
        ('"[[1, 2], [3]]"', "this is not a signal", "lists of different lengths"),
        ('"[1, NaN]"', "the signal has values that are missing or infinite", "1 of 2"),
        ("b.npy", "the file of the series does not exist", "b.npy"),
        ("", "a row has no series or no label", "series=''"),
    ],
)
def test_wrong_cells_are_named(tmp_path: Path, cell: str, what: str, given: str) -> None:
    path = write(tmp_path / "a.csv", "series,label", '"[1, 2]",x', f"{cell},y")
    with pytest.raises(DataError) as caught:
        read(path)
    assert caught.value.what == what
    assert caught.value.where == f"{path}, row 2"
    assert given in str(caught.value.given)
