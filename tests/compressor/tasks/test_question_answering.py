"""Question answering in the build half: the network, losses, the export, comparisons."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional
from transformers import AutoModelForQuestionAnswering

from compressor.answering import answer
from compressor.architecture import Architecture
from compressor.data import Split
from compressor.errors import CheckpointError, PassError
from compressor.export import export_onnx
from compressor.means import mean_drop
from compressor.model import TorchModel
from compressor.parity import measure_parity
from compressor.tasks import get_task, infer_task
from compressor.training.batches import collator, encode
from compressor.training.distillation import distill, distillation_loss
from compressor.training.finetuning import new_classifier
from compressor.training.settings import DistillSettings
from compressor.training.taps import TappedOutputs
from targets.answers import IGNORED, SpanAnswers, Units
from targets.preprocessing import Question
from tests.compressor.questions import make_pair_tokenizer, save_network, squad_splits

TASK = get_task("question-answering")
FAMILIES = ("Bert", "Roberta", "DistilBert", "Electra")
SPLIT = squad_splits().test


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> TorchModel:
    return TASK.load_checkpoint(save_network(tmp_path_factory.mktemp("network")))


@pytest.mark.parametrize("family", FAMILIES)
def test_networks_answer_as_those_of_transformers_and_as_their_exports(
    tmp_path: Path, family: str
) -> None:
    found = TASK.load_checkpoint(save_network(tmp_path, family))
    assert infer_task(tmp_path) == TASK.name
    assert found.labels == ("start", "end")
    reference = AutoModelForQuestionAnswering.from_pretrained(tmp_path).eval()
    question = SPLIT.inputs[0]
    has_types = family in ("Bert", "Electra")
    tokens = make_pair_tokenizer()(
        *question,
        truncation="only_second",
        max_length=found.max_length,
        return_tensors="pt",
        return_token_type_ids=has_types,
    )
    batch = TASK.collate(found, TASK.encode(found, [question, Question("who", "w")]))
    feeds = {name: torch.from_numpy(each) for name, each in batch.items()}
    assert ("token_type_ids" in feeds) == has_types
    assert {*feeds} == {each.name for each in TASK.signature(found).inputs}
    with torch.no_grad():
        wanted, given = reference(**tokens), found.module(**feeds).logits
    length = tokens["input_ids"].shape[1]
    torch.testing.assert_close(given[0, :length, 0], wanted.start_logits[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(given[0, :length, 1], wanted.end_logits[0], atol=1e-5, rtol=0)
    form = export_onnx(found, TASK.signature(found), tmp_path / "model.onnx")
    assert form.additive_mask
    assert not (form.one_token_type and has_types)
    parity = measure_parity(found, tmp_path / "model.onnx", SPLIT.inputs)
    assert parity.max_relative_difference < 1e-5
    described = Architecture.read(tmp_path)
    assert described.num_parameters == found.num_parameters
    found.save(tmp_path / "saved")
    again = TorchModel.load(tmp_path / "saved")
    assert np.array_equal(answer(again, SPLIT).scores, answer(found, SPLIT).scores)
    assert type(pickle.loads(pickle.dumps(again.module))) is type(found.module)  # noqa: S301


def test_the_types_of_tokens_change_the_answer(model: TorchModel) -> None:
    batch = {
        name: torch.from_numpy(each)
        for name, each in TASK.collate(model, TASK.encode(model, SPLIT.inputs)).items()
    }
    with torch.no_grad():
        given = model.module(**batch)[0]
        without = model.module(**{**batch, "token_type_ids": 0 * batch["token_type_ids"]})[0]
    assert (given - without).abs().max() > 1e-2


@pytest.mark.parametrize("family", FAMILIES)
def test_a_bare_encoder_gets_a_head(tmp_path: Path, family: str) -> None:
    save_network(tmp_path, family, "Model")
    made = new_classifier(tmp_path, ("start", "end"), task=TASK.name)
    assert type(made.module).__name__ == f"{family}ForQuestionAnswering"
    assert answer(made, SPLIT).scores.shape == (13, 4)
    with pytest.raises(CheckpointError, match="no head for this task"):
        TASK.load_checkpoint(tmp_path)


def test_what_is_too_long_is_counted(model: TorchModel) -> None:
    assert TASK.num_cut(model, SPLIT.inputs) == 10  # the last three are about a short text
    assert TASK.num_cut(replace(model, max_length=400), SPLIT.inputs) == 0


# Losses


def test_the_loss_is_that_of_transformers_over_the_context(model: TorchModel) -> None:
    batch = collator(model)(encode(model, SPLIT))
    codes = batch["labels"]
    generator = torch.Generator().manual_seed(0)
    outputs = torch.randn(*codes.shape, 2, generator=generator)
    total, count = TASK.loss(outputs, batch)
    smooth, _ = TASK.loss(outputs, batch, label_smoothing=0.2)
    expected, expected_smooth, number = 0.0, 0.0, 0
    for row, each in zip(outputs, codes, strict=True):
        context = torch.nonzero(each != IGNORED)[:, 0]
        inside = torch.nonzero(each[context] & 1)[:, 0]
        if not len(inside):
            continue
        number += 1
        ends = torch.stack([inside[0], inside[-1]])
        logits = row[context].T
        expected += float(functional.cross_entropy(logits, ends))
        expected_smooth += float(functional.cross_entropy(logits, ends, label_smoothing=0.2))
    assert int(count) == number < 13  # the answers to some lie beyond what the model reads
    assert float(total) == pytest.approx(expected, rel=1e-5)
    assert float(smooth) == pytest.approx(expected_smooth, rel=1e-5)


def test_the_divergence_is_that_of_the_positions_of_the_context(model: TorchModel) -> None:
    batch = {**collator(model)(encode(model, SPLIT)), "noisy": torch.zeros(13)}
    codes = batch["labels"]
    generator = torch.Generator().manual_seed(0)
    ours, theirs = (torch.randn(*codes.shape, 2, generator=generator) for _ in range(2))
    expected = 0.0
    for mine, wanted, each in zip(ours, theirs, codes, strict=True):
        inside = each != IGNORED
        first, second = ((logits[inside] / 2).log_softmax(0) for logits in (mine, wanted))
        expected += float(functional.kl_div(first, second, reduction="sum", log_target=True)) / 26
    settings = DistillSettings(logits_weight=3, labels_weight=0, temperature=2)

    def loss(outputs: torch.Tensor) -> float:
        taught = TappedOutputs(theirs, (), ())
        return float(
            distillation_loss(TappedOutputs(outputs, (), ()), taught, batch, settings, task=TASK)
        )

    assert loss(ours) == pytest.approx(3 * expected * 2**2, rel=1e-4)
    outside = torch.where((codes == IGNORED).unsqueeze(-1), 1000.0, ours)
    assert loss(outside) == pytest.approx(loss(ours), rel=1e-5)


def test_rows_without_answers_are_learnt_from_by_their_context(model: TorchModel) -> None:
    lines = ['{"question": "who sings", "context": "birds sing at dawn"}']
    (row,) = TASK.encode_unlabeled(model, lines)
    (wanted,) = TASK.encode_labelled(
        model, Split((Question("who sings", "birds sing at dawn"),), (((0, 5),),))
    )
    assert np.array_equal(row["labels"] == IGNORED, wanted["labels"] == IGNORED)
    assert (row["labels"][row["labels"] != IGNORED] & 0xFFFF == 0).all()
    total, count = TASK.loss(torch.zeros(1, len(row["labels"]), 2), collator(model)([row]))
    assert (float(total), int(count)) == (0, 0)


def test_a_teacher_that_is_told_more_is_refused(model: TorchModel, tmp_path: Path) -> None:
    student = TASK.load_checkpoint(save_network(tmp_path, "DistilBert"))
    with pytest.raises(PassError, match="do not take the same inputs") as raised:
        distill(
            student, model, squad_splits(), DistillSettings(), layer_map=None, seed=0,
            folder=tmp_path, progress=lambda fraction, line: None,
        )  # fmt: skip
    assert "teacher input_ids, attention_mask, token_type_ids" in str(raised.value)


# Comparisons


def units(scores: list[float], exact: list[float], starts: list[int]) -> Units:
    columns = [starts, starts, scores, exact]
    return Units(
        np.array(columns, np.float32).T, np.zeros((len(scores), 2), int), np.arange(len(scores))
    )


def test_a_comparison_has_f1_and_exact_match() -> None:
    before = units([1, 1, 0.5, 1], [1, 1, 0, 1], [3, 4, 5, 6])
    after = units([1, 0.5, 0.5, 0], [1, 0, 0, 0], [3, 4, 5, 7])
    found = TASK.compare(before, after, label_names=(), slices={"title": ["a", "a", "b", "b"]})
    assert found.drop_points == pytest.approx(37.5)
    assert found.metrics["f1"].value == pytest.approx(0.5)
    assert found.metrics["exact_match"].drop_points == pytest.approx(50)
    assert found.agreement == 0.75
    assert [(each.title, each.drop_points) for each in found.groups] == [
        ("title = a", pytest.approx(25)),
        ("title = b", pytest.approx(50)),
    ]
    kept = [TASK.kept(each) for each in (before, after)]
    assert TASK.drop(*kept, None, None) == mean_drop(*kept)
    assert SpanAnswers().score(after).value == pytest.approx(0.5)


@pytest.mark.parametrize(("count", "is_certain"), [(1, False), (5, False), (6, True)])
def test_what_a_few_questions_lose_may_be_chance(count: int, is_certain: bool) -> None:
    """However alike they are: of five, random signs give a p of 0.06."""
    drop, low, high = mean_drop(np.ones(count), np.full(count, 0.5))
    assert drop == 50
    assert (low > 0) is is_certain
    assert high == 50


def test_a_report_names_the_question() -> None:
    assert TASK.title(SPLIT.inputs[0], 0) == "When was the lighthouse built?"
