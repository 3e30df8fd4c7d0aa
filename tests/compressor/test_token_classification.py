"""Labels of words through the whole toolkit: fine-tuned, compressed, measured, predicted."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import targets
from compressor.gate.regression import compare_releases
from compressor.report.files import read_answers, read_report
from targets.bundle import Bundle
from targets.evaluation_pack import EvaluationPack
from tests.compressor.conftest import Finished, Outcome
from tests.compressor.tagged import TAGS

HOME = "words"
RECIPE = """
model: model
task: token-classification
data: {train: train.jsonl, validation: validation.jsonl, test: test.jsonl}
passes:
  - {pass: trim_vocabulary, keep_first: 0}
  - {pass: prune, ratio: 0.5, steps: 1, recovery: null, examples: 32}
  - {pass: drop_layers, num_layers: 1, strategy: importance, examples: 16}
  - {pass: distill, epochs: 4, batch_size: 16, labels_weight: 0.5}
  - export
variants:
  fp32: []
  int8: [{pass: quantize, method: static, num_samples: 32}]
targets: [onnxruntime, openvino, tensorrt_rtx, pytorch]
budget: {max_accuracy_drop: 90, max_class_drop: 100}
benchmark: {rounds: 2, min_round_s: 0.001, pause_s: 0, sequence_length: 16, batch_sizes: [1]}
bundle: {tune: true}
output: out
"""


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_words_are_learnt_and_counted(tuned: Path) -> None:
    facts = json.loads((tuned / "model" / "finetune.json").read_text())["accuracy"]["test"]
    words = sum(len(each["tags"]) for each in rows_of(tuned / "test.jsonl"))
    assert facts["num_rows"] == 60
    assert (facts["unit"], facts["num_units"]) == ("word", words)
    assert facts["value"] > 0.9
    config = json.loads((tuned / "model" / "config.json").read_text())
    assert config["architectures"] == ["BertForTokenClassification"]
    assert tuple(config["id2label"].values()) == TAGS


def test_a_run_builds_and_measures_every_target(run: Finished) -> None:
    assert run.outcome.code == 0, run.outcome.err
    report = read_report(run.output)
    measured = [row for row in report.rows if row.kind == "candidate" and row.test is not None]
    assert {row.target for row in measured} == {"onnxruntime", "openvino", "pytorch"}
    for row in measured:
        assert row.test is not None
        assert row.test_comparison is not None
        assert row.test.unit == "word"
        assert row.test.value > 0.6
        assert {each.value for each in row.test_comparison.groups} == set(TAGS)
    built = {row.target for row in report.rows if row.bundle is not None}
    assert "tensorrt_rtx" in built
    assert (report.data["test"], report.data["labels"]) == (60, list(TAGS))
    page = (run.output / "report.md").read_text()
    assert "test words" in page
    assert "sign-flip test of the test rows, of which there are 60" in page


def test_the_answers_of_a_report_are_units(run: Finished, tuned: Path) -> None:
    report = read_report(run.output)
    answers = read_answers(report, run.output)
    assert answers is not None
    sentences = rows_of(tuned / "test.jsonl")
    labels = [TAGS.index(tag) for each in sentences for tag in each["tags"]]
    rows = [index for index, each in enumerate(sentences) for _ in each["tags"]]
    assert answers["labels"].tolist() == labels
    assert answers["rows"].tolist() == rows
    for row in report.rows:
        if row.test is not None:
            found = answers[row.key].argmax(axis=1)
            assert (found == labels).mean() == pytest.approx(row.test.value)
            for each in row.changed:
                word, _, rest = (each.text or "").partition(" (in: ")
                assert word in sentences[each.index]["tokens"]
                assert rest.rstrip(")") in " ".join(sentences[each.index]["tokens"])


@pytest.mark.parametrize("target", ["onnxruntime", "openvino", "pytorch"])
def test_a_device_finds_the_accuracy_that_was_built(
    run: Finished, target: str, compressor: Callable[..., Outcome], tuned: Path
) -> None:
    row = next(
        each
        for each in read_report(run.output).rows
        if each.kind == "candidate" and each.target == target and each.bundle
    )
    assert row.bundle is not None
    assert row.test is not None
    folder = run.output / row.bundle
    found = compressor("evaluate", folder)
    assert found.code == 0, found.err
    here, built = found.out.splitlines()
    assert here.split(": ")[1].strip() == built.split(": ")[1].strip() == str(row.test)
    # and by a way of its own: word by word, as a user gets them
    sentences = rows_of(tuned / "test.jsonl")
    with targets.load(folder) as predictor:
        predictions = predictor.predict([each["tokens"] for each in sentences])
    right = [
        word.label == wanted
        for prediction, sentence in zip(predictions, sentences, strict=True)
        for word, wanted in zip(prediction.words, sentence["tags"], strict=True)
    ]
    assert np.mean(right) == pytest.approx(row.test.value)


def test_texts_and_lists_of_words_on_the_command_line(
    run: Finished, compressor: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    import io

    bundle = run.output / "bundles" / "fp32-onnxruntime"
    found = compressor("predict", bundle, "--text", "who house, cat")
    [line] = found.out.splitlines()
    words = json.loads(line)["words"]
    assert [(each["text"], each["start"], each["end"]) for each in words] == [
        ("who", 0, 3), ("house", 4, 9), (",", 9, 10), ("cat", 11, 14),
    ]  # fmt: skip
    assert words[0]["label"] == "ADV"
    monkeypatch.setattr("sys.stdin", io.StringIO('{"tokens": ["who", "o\'er", "Oslo"]}\n'))
    found = compressor("predict", bundle, "--jsonl", "--field", "tokens")
    [line] = found.out.splitlines()
    words = json.loads(line)["words"]
    assert [each["text"] for each in words] == ["who", "o'er", "Oslo"]
    assert [each["label"] for each in words] == ["ADV", "OTHER", "OTHER"]


def test_the_pack_of_a_bundle_judges_first_pieces(run: Finished, tuned: Path) -> None:
    bundle = Bundle.open(run.output / "bundles" / "fp32-onnxruntime")
    assert bundle.manifest.answers.kind == "token_labels"
    assert bundle.manifest.evaluation is not None
    pack = EvaluationPack.load(bundle.path(bundle.manifest.evaluation))
    assert pack.label_counts is not None
    assert pack.label_counts.tolist() == pack.lengths.tolist()
    words = [len(each["tags"]) for each in rows_of(tuned / "test.jsonl")]
    judged = np.bincount(pack.label_rows[pack.labels != -100])
    assert judged.tolist() == words


@pytest.mark.parametrize(
    ("command", "more"),
    [
        ("bench", ("--rounds", "2", "--sequence-length", "8", "--real-texts")),
        ("verify", ()),
        ("inspect", ()),
    ],
)
def test_the_other_commands_take_it(
    run: Finished, tuned: Path, command: str, more: tuple[str, ...],
    compressor: Callable[..., Outcome],
) -> None:  # fmt: skip
    subject = (
        tuned / "model" if command == "inspect" else (run.output / "bundles" / "fp32-onnxruntime")
    )
    found = compressor(command, subject, *more)
    assert found.code == 0, found.err


def test_a_release_is_compared_by_the_rows_of_its_words(run: Finished) -> None:
    """A release before that had all words of every second row right."""
    report = read_report(run.output)
    answers = read_answers(report, run.output)
    assert answers is not None
    better = answers["rows"] % 2 == 0
    truth = np.eye(len(TAGS), dtype=np.float32)[answers["labels"]]
    before = {
        name: np.where(better[:, None], truth, each) if each.ndim == 2 else each
        for name, each in answers.items()
    }
    texts = []
    for rows in (True, False):  # as now, and as of a report that does not say the rows
        now = {name: each for name, each in answers.items() if rows or name != "rows"}
        found = compare_releases(report, report, answers_now=now, answers_before=before)
        assert not [note for note in found.notes if "accuracy" in note]
        checks = [check for check in found.checks if check.limit == "accuracy"]
        assert checks
        assert all((check.found or 0) > 0 for check in checks)
        texts.append([check.text for check in checks])
    assert texts[0] != texts[1]


def test_a_recipe_for_another_task_is_refused(
    tuned: Path, compressor: Callable[..., Outcome]
) -> None:
    found = compressor("validate", tuned / "recipe.yaml", "--set", "task=text-classification")
    assert found.code == 3
    assert "the checkpoint is for token-classification" in found.err
    assert "set task: token-classification" in found.err


def test_the_task_is_told_before_a_run(tuned: Path, compressor: Callable[..., Outcome]) -> None:
    recipe = "".join(RECIPE.splitlines(keepends=True)[:2] + RECIPE.splitlines(keepends=True)[3:])
    assert "task:" not in recipe
    (tuned / "untold.yaml").write_text(recipe, encoding="utf-8")
    found = compressor("validate", tuned / "untold.yaml")
    assert found.code == 0, found.err
    assert "untold: valid, task token-classification" in found.out
    assert compressor("plan", tuned / "untold.yaml").out.startswith("task: token-classification\n")
