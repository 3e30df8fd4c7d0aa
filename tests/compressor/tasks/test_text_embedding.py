"""Text embedding in the build half: pooling, losses, importance, the export, what is refused."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch.nn import functional
from transformers import AutoModel, BertConfig, BertForMaskedLM

from compressor.answering import answer
from compressor.architecture import Architecture
from compressor.data import DataSpec, Split, Splits, data_fingerprint, read_splits
from compressor.errors import CheckpointError, DataError, PassError
from compressor.export import export_onnx
from compressor.model import TorchModel
from compressor.parity import measure_parity
from compressor.passes import available_passes
from compressor.passes.prune import Prune
from compressor.pruning.importance import labelled_loss, taylor_scores
from compressor.pruning.prune import mean_loss
from compressor.similarity import compare_embeddings
from compressor.tasks import get_task, infer_task
from compressor.training.batches import collator, encode
from compressor.training.distillation import distill, distillation_loss
from compressor.training.settings import DistillSettings
from compressor.training.taps import TappedOutputs
from targets.answers import EmbeddingAnswers
from targets.answers.embeddings import neighbour_recall, rank_correlations
from targets.encoder import encoder_layers
from targets.provenance import checkpoint_hashes
from tests.compressor.conftest import make_rows, make_wordpiece

TASK = get_task("text-embedding")
TEXTS = tuple(text for text, _ in make_rows(12, 1))
SPLIT = Split(TEXTS, np.empty((len(TEXTS), 0), np.float32))


def save_encoder(folder: Path, family: str = "Bert", **more: Any) -> Path:
    tokenizer = make_wordpiece()
    sizes: dict[str, Any] = {"vocab_size": len(tokenizer), "max_position_embeddings": 24}
    if family == "DistilBert":
        sizes |= {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32}
    else:
        sizes |= {
            "hidden_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 32,
        }
    config = getattr(transformers, family + "Config")(
        **sizes, pad_token_id=0, initializer_range=0.3, **more
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        getattr(transformers, family + "Model")(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_modules(folder: Path, *kinds: str, **pooling: Any) -> None:
    """The files of sentence-transformers."""
    paths = {"Transformer": "", "Pooling": "1_Pooling", "Normalize": "2_Normalize"}
    modules = [
        {
            "idx": index,
            "name": str(index),
            "path": paths.get(kind, kind),
            "type": f"sentence_transformers.models.{kind}",
        }
        for index, kind in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> TorchModel:
    return TASK.load_checkpoint(save_encoder(tmp_path_factory.mktemp("encoder")))


def hidden_states(folder: Path, text: str) -> torch.Tensor:
    """Of one text by transformers itself, (tokens, size)."""
    tokens = make_wordpiece()(text, return_tensors="pt", return_token_type_ids=False)
    with torch.no_grad():
        states: torch.Tensor = AutoModel.from_pretrained(folder)(**tokens).last_hidden_state[0]
    return states


MEAN = {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}
CLS = {"pooling_mode_mean_tokens": False, "pooling_mode_cls_token": True}


@pytest.mark.parametrize(
    ("kinds", "pooling", "wanted"),
    [
        (None, {}, lambda states: functional.normalize(states.mean(0), dim=0)),
        (("Transformer", "Pooling"), MEAN, lambda states: states.mean(0)),
        (
            ("Transformer", "Pooling", "Normalize"),
            MEAN,
            lambda states: functional.normalize(states.mean(0), dim=0),
        ),
        (("Transformer", "Pooling"), CLS, lambda states: states[0]),
        (("Transformer", "Pooling"), {"pooling_mode": "cls"}, lambda states: states[0]),
    ],
)
def test_texts_are_pooled_as_the_checkpoint_says(
    tmp_path: Path,
    kinds: tuple[str, ...] | None,
    pooling: dict[str, Any],
    wanted: Callable[[torch.Tensor], torch.Tensor],
) -> None:
    """In a batch with padding, against transformers with one text at a time."""
    save_encoder(tmp_path)
    before = checkpoint_hashes(tmp_path)
    if kinds is not None:
        write_modules(tmp_path, *kinds, **pooling)
        assert {"modules.json", "1_Pooling/config.json"} == {
            *checkpoint_hashes(tmp_path)
        } - before.keys()
    model = TASK.load_checkpoint(tmp_path)
    expected = torch.stack([wanted(hidden_states(tmp_path, text)) for text in TEXTS])
    found = answer(model, SPLIT).scores
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)
    model.save(tmp_path / "saved")
    again = TorchModel.load(tmp_path / "saved")
    assert np.array_equal(answer(again, SPLIT).scores, found)
    assert type(again.module) is type(model.module)


@pytest.mark.parametrize(
    ("kinds", "pooling", "words"),
    [
        (("Transformer", "Pooling", "Dense"), MEAN, ("in a way that is not known", "Dense")),
        (("Transformer", "Normalize"), MEAN, ("in a way that is not known", "Normalize")),
        (("Transformer",), MEAN, ("does not say how it pools", "no module Pooling")),
        (("Transformer", "Pooling"), {**MEAN, **CLS, "pooling_mode_mean_tokens": True},
         ("pools its hidden states in a way", "pooling_mode_mean_tokens, pooling_mode_cls_token")),
        (("Transformer", "Pooling"), {"pooling_mode": "lasttoken"}, ("pooling_mode_lasttoken",)),
        (("Transformer", "Pooling"), {}, ("no pooling_mode", "take the mean of all tokens")),
    ],
)  # fmt: skip
def test_other_ways_to_pool_are_refused(
    tmp_path: Path, kinds: tuple[str, ...], pooling: dict[str, Any], words: tuple[str, ...]
) -> None:
    write_modules(save_encoder(tmp_path), *kinds, **pooling)
    with pytest.raises(CheckpointError) as raised:
        TASK.load_checkpoint(tmp_path)
    for each in words:
        assert each.replace("take the mean", "takes the mean") in str(raised.value)


@pytest.mark.parametrize(("text", "words"), [("{", "cannot be read"), ("{}", "unexpected form")])
def test_damaged_files_of_sentence_transformers_are_named(
    tmp_path: Path, text: str, words: str
) -> None:
    (save_encoder(tmp_path) / "modules.json").write_text(text)
    with pytest.raises(CheckpointError, match=words) as raised:
        TASK.load_checkpoint(tmp_path)
    assert "modules.json" in str(raised.value)


def test_the_longest_input_is_that_of_sentence_transformers(tmp_path: Path) -> None:
    save_encoder(tmp_path)
    for text, limit in (('{"max_seq_length": 9}', 9), ('{"max_seq_length": 99}', 24), ("[]", 24)):
        (tmp_path / "sentence_bert_config.json").write_text(text)
        assert TASK.load_checkpoint(tmp_path).max_length == limit


def test_texts_are_lower_cased_where_sentence_transformers_does(tmp_path: Path) -> None:
    save_encoder(tmp_path)
    tokenizer = json.loads((tmp_path / "tokenizer.json").read_text())
    (tmp_path / "tokenizer.json").write_text(json.dumps({**tokenizer, "normalizer": None}))
    plain = TASK.load_processor(tmp_path)
    (tmp_path / "sentence_bert_config.json").write_text('{"do_lower_case": true}')
    found = TASK.load_processor(tmp_path)
    assert plain(TEXTS[0].upper())["input_ids"] != plain(TEXTS[0].lower())["input_ids"]
    assert found(TEXTS[0].upper())["input_ids"] == plain(TEXTS[0].lower())["input_ids"]
    (tmp_path / "step").mkdir()
    TASK.save_processor(found, tmp_path / "step")
    again = TASK.load_processor(tmp_path / "step")
    assert again(TEXTS[0].upper())["input_ids"] == plain(TEXTS[0].lower())["input_ids"]


@pytest.mark.parametrize("family", ["Bert", "DistilBert", "Electra", "Roberta"])
def test_an_export_gives_embeddings_of_the_same_numbers(tmp_path: Path, family: str) -> None:
    model = TASK.load_checkpoint(save_encoder(tmp_path, family))
    signature = TASK.signature(model)
    assert [(each.name, each.shape) for each in signature.outputs] == [
        ("embeddings", ("batch", 16))
    ]
    form = export_onnx(model, signature, tmp_path / "model.onnx")
    assert form.additive_mask
    found = measure_parity(model, tmp_path / "model.onnx", TEXTS)
    assert found.max_abs_difference < 1e-5
    described = Architecture.read(tmp_path)
    assert described.num_labels == 0
    assert described.num_parameters == model.num_parameters == Architecture.of(
        model.module
    ).num_parameters  # fmt: skip


def test_a_bare_encoder_embeds_and_may_get_a_head(tmp_path: Path) -> None:
    save_encoder(tmp_path)
    assert infer_task(tmp_path) == "text-embedding"
    assert infer_task(tmp_path, labelled=True) == "text-classification"
    BertForMaskedLM(BertConfig(hidden_size=8, num_attention_heads=2)).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="no head for this task"):
        TASK.load_checkpoint(tmp_path)


@pytest.mark.parametrize("family", ["MPNet", "Bert", "Roberta"])
def test_an_embedder_may_have_been_saved_with_the_head_of_its_pre_training(
    tmp_path: Path, family: str
) -> None:
    """As sentence-transformers/all-mpnet-base-v2 and all-distilroberta-v1 are published."""
    save_encoder(tmp_path, family)
    bare = AutoModel.from_pretrained(tmp_path)
    network = getattr(transformers, f"{family}ForMaskedLM")(bare.config)
    getattr(network, network.base_model_prefix).load_state_dict(bare.state_dict(), strict=False)
    network.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="no head for this task"):
        TASK.load_checkpoint(tmp_path)
    write_modules(tmp_path, "Transformer", "Pooling", **MEAN)
    assert infer_task(tmp_path) == "text-embedding"
    found = answer(TASK.load_checkpoint(tmp_path), Split(TEXTS[:1], SPLIT.labels[:1]))
    with torch.no_grad():
        tokens = make_wordpiece()(TEXTS[0], return_tensors="pt", return_token_type_ids=False)
        expected = bare(**tokens).last_hidden_state[0].mean(0)
    np.testing.assert_allclose(found.scores[0], expected.numpy(), atol=1e-5)


def test_networks_can_be_sent_to_another_process(encoder: TorchModel) -> None:
    sent = pickle.loads(pickle.dumps(encoder.module))  # noqa: S301
    assert type(sent) is type(encoder.module)
    assert sent.config.embedding_pooling == "mean"


# Losses


def labelled(model: TorchModel) -> Split:
    return replace(SPLIT, labels=answer(model, SPLIT).scores)


def test_the_loss_is_the_squared_distance_of_directions(encoder: TorchModel) -> None:
    split = replace(SPLIT, labels=np.random.default_rng(0).normal(size=(12, 16)).astype(np.float32))
    batch = collator(encoder)(encode(encoder, split))
    mine = answer(encoder, split).scores
    cosines = (mine * split.labels).sum(1) / np.linalg.norm(split.labels, axis=1)
    with torch.no_grad():
        found = float(labelled_loss(encoder.module, batch, TASK))
        total = float(labelled_loss(encoder.module, batch, TASK, reduction="sum"))
    assert found == pytest.approx((2 - 2 * cosines).mean(), rel=1e-4)
    assert total == pytest.approx((2 - 2 * cosines).sum(), rel=1e-4)
    assert mean_loss(encoder, [batch]) == pytest.approx(found, rel=1e-4)


def test_a_student_learns_from_the_teacher_alone(encoder: TorchModel) -> None:
    batch = collator(encoder)(encode(encoder, SPLIT))
    assert batch["labels"].shape == (12, 0)
    generator = torch.Generator().manual_seed(0)
    ours, theirs = (torch.randn(12, 16, generator=generator) for _ in range(2))
    settings = DistillSettings(logits_weight=3)
    found = distillation_loss(
        TappedOutputs(ours, (), ()), TappedOutputs(theirs, (), ()), batch, settings, task=TASK
    )
    cosines = functional.cosine_similarity(ours, theirs)
    torch.testing.assert_close(found, 3 * (2 - 2 * cosines).mean())


def test_labels_to_learn_from_are_refused(encoder: TorchModel, tmp_path: Path) -> None:
    with pytest.raises(PassError, match="there are no labels to learn from") as raised:
        distill(
            encoder, encoder, Splits(SPLIT, SPLIT, SPLIT, ()), DistillSettings(labels_weight=0.5),
            layer_map=None, seed=0, folder=tmp_path, progress=lambda fraction, line: None,
        )  # fmt: skip
    assert "labels_weight" in str(raised.value)


def test_importance_tells_units_apart_where_the_loss_is_at_its_minimum(
    encoder: TorchModel,
) -> None:
    """A head whose outputs are nearly cut off moves the embeddings least."""
    weak = encoder.clone()
    layer = encoder_layers(weak.module)[0]
    with torch.no_grad():
        layer.attention_output.weight[:, : layer.head_size] *= 1e-3
        layer.ffn_output.weight[:, 5] *= 1e-3
    batches = [
        collator(weak)(encode(weak, labelled(weak).take(range(start, start + 4))))
        for start in range(0, 12, 4)
    ]
    scores = taylor_scores(weak.module, batches, task=TASK)
    assert scores.heads[0][0] < 1e-3 * scores.heads[0][1]
    assert scores.ffn[0].argmin() == 5
    again = taylor_scores(weak.module, batches, task=TASK)
    assert np.array_equal(scores.ffn[0], again.ffn[0])


# Comparisons


def test_a_comparison_has_the_drop_and_the_neighbours() -> None:
    generator = np.random.default_rng(0)
    labels = generator.normal(size=(60, 8)).astype(np.float32)
    noisy = labels + 0.5 * generator.normal(size=labels.shape).astype(np.float32)
    answers = EmbeddingAnswers()
    reference, candidate = answers.judged(labels, labels), answers.judged(noisy, labels)
    source = ["a"] * 40 + ["b"] * 20
    found = compare_embeddings(reference, candidate, slices={"source": source})
    values = rank_correlations(labels, noisy)
    assert found.reference_accuracy == pytest.approx(1)
    assert found.drop_points == pytest.approx(100 * (1 - values.mean()))
    assert found.low_points < found.drop_points < found.high_points
    assert found.p_value < 1e-3
    assert found.metrics["rank_correlation"].drop_points == found.drop_points
    recall = neighbour_recall(labels, noisy).mean()
    assert found.metrics["recall_at_10"].value == pytest.approx(recall)
    nearest = neighbour_recall(labels, noisy, count=1).mean()
    assert found.agreement == pytest.approx(nearest)
    assert [(each.title, each.num_rows) for each in found.groups] == [
        ("source = a", 40),
        ("source = b", 20),
    ]
    assert found.groups[1].accuracy == pytest.approx(values[40:].mean())
    kept = [TASK.kept(each) for each in (reference, candidate)]
    assert TASK.drop(*kept, None, None) == pytest.approx(
        (found.drop_points, found.low_points, found.high_points), abs=1e-3
    )


def test_the_untouched_model_loses_nothing() -> None:
    labels = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)
    units = EmbeddingAnswers().judged(labels, labels)
    found = compare_embeddings(units, units, slices={})
    assert (found.drop_points, found.low_points, found.high_points) == (0, 0, 0)
    assert (found.p_value, found.agreement) == (1, 1)


# Data


def write(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def read(folder: Path, **more: Any) -> Splits:
    spec = DataSpec(train=folder / "train.csv", test=folder / "test.csv", **more)
    return read_splits(spec, label_names=(), labels=None)


def test_data_needs_texts_alone(tmp_path: Path) -> None:
    write(tmp_path / "train.csv", "text,kind", *(f"text {index},k" for index in range(30)))
    write(tmp_path / "test.csv", "text,kind", "a,x", "b,y", "c,x")
    found = read(tmp_path, slices=("kind",))
    assert (len(found.train), len(found.validation), len(found.test)) == (27, 3, 3)
    assert {*found.train.inputs, *found.validation.inputs} == {
        f"text {index}" for index in range(30)
    }
    assert found.test.labels.shape == (3, 0)  # type: ignore[union-attr]
    assert found.test.slices == {"kind": ("x", "y", "x")}
    assert found.label_names == ()


def test_too_little_to_set_validation_data_apart_is_named(tmp_path: Path) -> None:
    write(tmp_path / "train.csv", "text", *(f"text {index}" for index in range(14)))
    write(tmp_path / "test.csv", "text", "a", "b", "c")
    with pytest.raises(DataError, match="too small to judge by") as raised:
        read(tmp_path)
    assert raised.value.given == "1 of 14 rows"
    assert "at least 3 rows" in str(raised.value)


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (("text", "a", "b"), ("too few texts to compare", "2 rows", "at least 3")),
        (("text,n", "a,1", ",2", "c,3"), ("a row has no text", "row 2")),
        (
            ("words", "a", "b", "c"),
            ("the text column 'text' is missing", "name it: --input COLUMN"),
        ),
        (("text",), ("the file has no rows", "pass a file with rows")),
    ],
)
def test_data_that_cannot_be_used_is_named(
    tmp_path: Path, lines: tuple[str, ...], words: tuple[str, ...]
) -> None:
    write(tmp_path / "train.csv", *lines)
    write(tmp_path / "test.csv", "text", "a", "b", "c")
    with pytest.raises(DataError) as raised:
        read(tmp_path)
    for each in words:
        assert each in str(raised.value)


def test_a_folder_is_no_data_of_texts(tmp_path: Path) -> None:
    (tmp_path / "train.csv").mkdir()
    write(tmp_path / "test.csv", "text", "a", "b", "c")
    with pytest.raises(DataError, match="texts are read from a table"):
        read(tmp_path)


def test_a_label_column_does_not_count(tmp_path: Path) -> None:
    hashes = {"train": "a", "test": "b"}
    specs = [
        DataSpec(train=tmp_path / "a.csv", test=tmp_path / "b.csv", label=name)
        for name in ("label", "other")
    ]
    found = {data_fingerprint(each, labels=None, hashes=hashes) for each in specs}
    assert len(found) == 1
    assert found != {data_fingerprint(specs[0], hashes=hashes)}


# Passes


def test_passes_that_need_classes_are_not_offered(encoder: TorchModel) -> None:
    architecture = Architecture.of(encoder.module)
    refused = {
        name: reason
        for name, each in available_passes().items()
        if (reason := each.unsuited(architecture)) is not None
    }
    assert refused == {
        "drop_blocks": "its layers are those of a transformer: drop_layers",
        "finetune": "it has no head that learns from labels: the command compressor finetune "
        "makes one",
        "merge_tokens": "it is not an image classifier that attends to patches",
        "student": "its answers are not classes",
        "variable_window": "it does not read audio in windows of one size",
    }


def test_the_size_of_the_embeddings_stays(encoder: TorchModel) -> None:
    with pytest.raises(PassError, match="size of its embeddings, which cannot change") as raised:
        Prune(hidden=0.5).plan(Architecture.of(encoder.module))
    assert "prune.hidden" in str(raised.value)
