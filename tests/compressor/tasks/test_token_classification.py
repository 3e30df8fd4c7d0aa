"""Token classification in the build half: labels of tokens, losses, the teacher, the export."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from torch.nn import functional

from compressor.answering import answer
from compressor.architecture import Architecture
from compressor.data import Split
from compressor.errors import CheckpointError
from compressor.export import export_onnx
from compressor.model import TorchModel
from compressor.parity import measure_parity
from compressor.pruning.importance import labelled_loss, taylor_scores
from compressor.pruning.prune import mean_loss
from compressor.tasks import get_task, infer_task
from compressor.training.batches import collator, encode, input_names, lengths
from compressor.training.distillation import distillation_loss
from compressor.training.settings import DistillSettings
from compressor.training.taps import TappedEncoder, TappedOutputs
from compressor.training.teacher import Teacher
from targets import Bundle, Manifest, Predictor, get
from targets.base import Source
from targets.bundle import SCHEMA_VERSION
from targets.predictor import encode as evaluation_pack
from tests.compressor.conftest import make_wordpiece

TASK = get_task("token-classification")
TAGS = ("NOUN", "OTHER", "VERB")
IGNORED = -100
# "xyz" falls apart into three tokens, the others are one each.
SPLIT = Split(
    ("who cat xyz", "house", "xyz dog xyz tree"),
    (np.array([2, 0, 1]), np.array([0]), np.array([1, 0, 1, 0])),
)
PLACES = [[1, 2, 3], [1], [1, 4, 5, 8]]
"""Of each text, where the first tokens of its words are; [CLS] is before them."""


def make_tagger(family: str = "Bert", **more: object) -> TorchModel:
    tokenizer = make_wordpiece()
    sizes = {"vocab_size": len(tokenizer), "max_position_embeddings": 24, "pad_token_id": 0}
    if family == "DistilBert":
        sizes |= {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32}
    else:
        sizes |= {
            "hidden_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 32,
        }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = getattr(transformers, family + "Config")(
            **{**sizes, "id2label": dict(enumerate(TAGS)), "initializer_range": 0.3, **more}
        )
        config.label2id = {name: index for index, name in enumerate(TAGS)}
        cls = getattr(transformers, family + "ForTokenClassification")
        module = cls._from_config(config, attn_implementation="eager")
    return TorchModel(module.eval(), tokenizer, TASK.name, 20)


@pytest.fixture(scope="module")
def tagger() -> TorchModel:
    return make_tagger()


def test_labels_stand_at_the_first_tokens_and_are_padded(tagger: TorchModel) -> None:
    rows = encode(tagger, SPLIT)
    for row, places, labels in zip(rows, PLACES, SPLIT.labels, strict=True):
        assert len(row["labels"]) == len(row["input_ids"])
        assert np.flatnonzero(row["labels"] != IGNORED).tolist() == places
        assert row["labels"][places].tolist() == labels.tolist()
    batch = collator(tagger)(rows)
    assert batch["labels"].shape == batch["input_ids"].shape == (3, 10)
    assert batch["labels"].dtype == torch.int64
    assert (batch["labels"][batch["attention_mask"] == 0] == IGNORED).all()
    plain = collator(tagger)(list(TASK.encode(tagger, SPLIT.inputs)))  # type: ignore[arg-type]
    assert "labels" not in plain


def test_words_beyond_the_longest_input_are_not_judged(tagger: TorchModel) -> None:
    short = replace(tagger, max_length=5)
    judged = answer(short, SPLIT)
    assert judged.labels.tolist() == [2, 0, 1, 0, 1]
    assert judged.rows.tolist() == [0, 0, 0, 1, 2]


def test_the_loss_is_that_of_one_text_after_the_other(tagger: TorchModel) -> None:
    rows = encode(tagger, SPLIT)
    batch = collator(tagger)(rows)
    losses = []
    for row, places, labels in zip(rows, PLACES, SPLIT.labels, strict=True):
        alone = {name: torch.tensor([row[name]]) for name in ("input_ids", "attention_mask")}
        with torch.no_grad():
            logits = tagger.module(**alone).logits[0, places]
        losses.append(functional.cross_entropy(logits, torch.tensor(labels), reduction="none"))
    expected = torch.cat(losses)
    with torch.no_grad():
        found = labelled_loss(tagger.module, batch, TASK)
        total = labelled_loss(tagger.module, batch, TASK, reduction="sum")
    torch.testing.assert_close(found, expected.mean())
    torch.testing.assert_close(total, expected.sum())
    assert mean_loss(tagger, [batch]) == pytest.approx(float(expected.mean()), rel=1e-5)


def test_what_counts_for_nothing_has_no_part_in_the_importance(tagger: TorchModel) -> None:
    batch = collator(tagger)(encode(tagger, SPLIT))
    scores = taylor_scores(tagger.module, [batch], task=TASK)
    wider = {
        name: functional.pad(each, (0, 3), value=IGNORED if name == "labels" else 0)
        for name, each in batch.items()
    }
    again = taylor_scores(tagger.module, [wider], task=TASK)
    for ours, theirs in zip(scores.heads, again.heads, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-12)
    other = {**batch, "labels": batch["labels"].where(batch["labels"] == IGNORED, 0)}
    assert not np.allclose(
        scores.heads[0], taylor_scores(tagger.module, [other], task=TASK).heads[0]
    )


def test_answers_come_back_in_the_order_of_the_split(tagger: TorchModel) -> None:
    judged = answer(tagger, SPLIT)
    assert judged.labels.tolist() == np.concatenate(SPLIT.labels).tolist()
    assert judged.rows.tolist() == [0, 0, 0, 1, 2, 2, 2, 2]
    alone = np.concatenate([answer(tagger, SPLIT.take([row])).scores for row in range(3)])
    np.testing.assert_allclose(judged.scores, alone, rtol=1e-4, atol=1e-5)


def outputs(logits: torch.Tensor) -> TappedOutputs:
    return TappedOutputs(logits, (), ())


def test_a_student_learns_at_every_token_but_not_from_padding() -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(2, 3, 4, generator=generator) for _ in range(2))
    batch = {
        "attention_mask": torch.tensor([[1, 1, 1], [1, 1, 0]]),
        "labels": torch.tensor([[IGNORED, 2, IGNORED], [IGNORED, 1, IGNORED]]),
        "noisy": torch.tensor([0, 1]),
    }
    settings = DistillSettings(temperature=2.0, labels_weight=0.0)
    found = distillation_loss(outputs(student), outputs(teacher), batch, settings, task=TASK)
    flat = [each.reshape(6, 4)[:5] / 2 for each in (student, teacher)]
    expected = functional.kl_div(
        flat[0].log_softmax(-1), flat[1].log_softmax(-1), log_target=True, reduction="batchmean"
    )
    torch.testing.assert_close(found, 4 * expected * settings.logits_weight)
    changed = teacher.clone()
    changed[1, 2] += torch.arange(4)
    again = distillation_loss(outputs(student), outputs(changed), batch, settings, task=TASK)
    torch.testing.assert_close(found, again)


def test_labels_count_at_first_tokens_of_clean_rows_only() -> None:
    student = torch.zeros(2, 2, 3)
    student[0, 1] = torch.tensor([1.0, 0.0, 0.0])
    student[1, 1] = torch.tensor([-9.0, 9.0, 9.0])
    batch = {
        "attention_mask": torch.ones(2, 2, dtype=torch.int64),
        "labels": torch.tensor([[IGNORED, 0], [IGNORED, 0]]),
        "noisy": torch.tensor([0, 1]),
    }
    settings = DistillSettings(logits_weight=0.0, labels_weight=2.0)
    found = distillation_loss(outputs(student), outputs(student), batch, settings, task=TASK)
    assert found.item() == pytest.approx(2 * np.log(1 + 2 * np.exp(-1)))
    noisy = {**batch, "noisy": torch.ones(2, dtype=torch.int64)}
    assert distillation_loss(outputs(student), outputs(student), noisy, settings, task=TASK) == 0


def test_the_teacher_remembers_logits_of_tokens(tagger: TorchModel) -> None:
    taps = TappedEncoder(tagger.module, hidden_layers=(0,), relation_layer=1)
    teacher = Teacher(taps, input_names(tagger), None)
    rows = [{**row, "slot": slot, "noisy": 0} for slot, row in enumerate(encode(tagger, SPLIT))]
    sizes = lengths(tagger, rows)
    # Of each token 3 float32 logits, and 16 hidden and 3 x 16 projected float16 values.
    needed = sum(sizes) * (3 * 4 + 64 * 2)
    collate = collator(tagger)
    batch = collate([rows[2], rows[0]])
    live = teacher.outputs(batch)
    assert not teacher.remember(rows, sizes, collate, limit_bytes=needed - 1)
    assert teacher.remember(rows, sizes, collate, limit_bytes=needed)
    recalled = teacher.outputs(batch)
    assert recalled.logits.shape == live.logits.shape == (2, 10, 3)
    real = batch["attention_mask"] == 1
    torch.testing.assert_close(recalled.logits[real], live.logits[real], rtol=1e-4, atol=1e-5)
    assert (recalled.logits[~real] == 0).all()
    assert recalled.first(1).logits.shape == (1, 10, 3)


@pytest.mark.parametrize("family", ["Bert", "Roberta", "DistilBert", "Electra"])
def test_parameters_are_counted_and_checkpoints_come_back(family: str, tmp_path: Path) -> None:
    more = {"embedding_size": 8} if family == "Electra" else {}
    model = make_tagger(family, **more)
    assert Architecture.of(model.module).num_parameters == model.num_parameters
    model.save(tmp_path)
    assert infer_task(tmp_path) == TASK.name
    assert Architecture.read(tmp_path).num_parameters == model.num_parameters
    again = TASK.load_checkpoint(tmp_path)
    assert again.labels == TAGS
    batch = {k: v for k, v in collator(model)(encode(model, SPLIT)).items() if k != "labels"}
    with torch.no_grad():
        assert torch.equal(model.module(**batch).logits, again.module(**batch).logits)
    with pytest.raises(CheckpointError, match="no head for this task"):
        get_task("text-classification").load_checkpoint(tmp_path)


@pytest.mark.parametrize("family", ["Bert", "Roberta"])
def test_the_export_answers_every_token_as_torch_does(family: str, tmp_path: Path) -> None:
    """RoBERTa gives padding other positions than the exported graph, and what it answers there."""
    model = make_tagger(family)
    signature = TASK.signature(model)
    assert signature.outputs[0].shape == ("batch", "sequence", 3)
    form = export_onnx(model, signature, tmp_path / "model.onnx")
    assert form.additive_mask
    assert form.first_position is not None
    parity = measure_parity(model, tmp_path / "model.onnx", SPLIT.inputs)
    assert parity.max_relative_difference < 1e-4


@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
def test_a_bundle_answers_word_by_word_as_the_model_does(
    target: str, tagger: TorchModel, tmp_path: Path
) -> None:
    signature = TASK.signature(tagger)
    path = tmp_path / "model.onnx"
    export_onnx(tagger, signature, path)
    folder = tmp_path / "bundle"
    folder.mkdir()
    source = Source(path, signature, "fp32", {"batch": (1, 2, 8), "sequence": (1, 8, 20)})
    lowered = get(target).lower(source, folder)
    TASK.save_processor(tagger.processor, folder)
    manifest = Manifest(
        schema_version=SCHEMA_VERSION,
        name="tagger",
        task=TASK.name,
        target=target,
        target_settings={},
        precision="fp32",
        signature=signature,
        model=lowered.model,
        options=dict(lowered.options),
        labels=TAGS,
        preprocessing=TASK.preprocessing(folder, tagger.max_length),
        answers=TASK.answers,
        files={},
    )
    bundle = Bundle.create(folder, manifest)
    expected = answer(tagger, SPLIT)
    pack = evaluation_pack(bundle, SPLIT.inputs, SPLIT.labels)
    with Predictor(Bundle.open(folder), batch_size=2) as predictor:
        units = manifest.answers.units(predictor.logits(SPLIT.inputs), pack)
        found = predictor.predict([text.split(" ") for text in SPLIT.inputs])
    assert units.labels.tolist() == expected.labels.tolist()
    assert units.rows.tolist() == expected.rows.tolist()
    np.testing.assert_allclose(units.scores, expected.scores, rtol=1e-3, atol=1e-4)
    words = [word for each in found for word in each.words]
    assert [word.text for word in words] == " ".join(SPLIT.inputs).split(" ")
    assert [word.label for word in words] == [TAGS[each] for each in expected.classes]
    scores = expected.probabilities.max(axis=1)
    assert [word.score for word in words] == pytest.approx(scores, abs=1e-3)


@pytest.mark.parametrize(
    ("place", "expected"),
    [(0, "a (in: a b c d e f)"), (6, "g (in: b c d e f g h i)"), (8, "i (in: d e f g h i)")],
)
def test_a_word_is_shown_among_its_neighbours(place: int, expected: str) -> None:
    assert TASK.title("a b c d e f g h i", place) == expected


def test_a_word_that_tokenizers_drop_is_none_of_those_that_are_counted() -> None:
    assert TASK.title("\u200b Paris is", 0) == "Paris (in: Paris is)"
    assert TASK.title("\u200b Paris is", 1) == "is (in: Paris is)"


def test_what_else_is_there_stays_as_it_was(word_model: Callable[..., TorchModel]) -> None:
    model = word_model()
    task = get_task(model.task)
    logits, labels = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    assert task.judged(logits, {"labels": labels})[0] is logits
    assert task.answered(logits, {}) is logits
    assert task.title("who", 0) == "who"
