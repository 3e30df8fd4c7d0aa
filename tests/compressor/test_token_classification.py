"""Labels of words through the whole toolkit: fine-tuned, compressed, measured, predicted."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel

import targets
from compressor.gate.regression import compare_releases
from compressor.report.files import read_answers, read_report
from targets.bundle import Bundle
from targets.evaluation_pack import EvaluationPack
from tests.compressor.conftest import NOUNS, QUESTIONS, Finished, Outcome, make_wordpiece

TAGS = ("ADV", "NOUN", "OTHER", "VERB")
RECIPE = """
model: trained
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


def tag(words: list[str], place: int) -> str:
    """By the word, and for nouns by the word before them."""
    word = words[place]
    if word in QUESTIONS:
        return "ADV"
    if word not in NOUNS:
        return "OTHER"
    return "VERB" if place and words[place - 1] in QUESTIONS else "NOUN"


def make_sentences(num_rows: int, seed: int) -> list[list[str]]:
    generator = random.Random(seed)
    pool = [*QUESTIONS, *QUESTIONS, *NOUNS, "Oslo", "Rome", "o'er"]
    return [generator.choices(pool, k=generator.randint(2, 7)) for _ in range(num_rows)]


def write_sentences(path: Path, sentences: list[list[str]]) -> None:
    rows = [
        {"tokens": words, "tags": [tag(words, place) for place in range(len(words))]}
        for words in sentences
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture(scope="module")
def tagged(tmp_path_factory: pytest.TempPathFactory, compressor: Callable[..., Outcome]) -> Path:
    """An encoder without a head, data, and what `finetune` makes of them."""
    folder = tmp_path_factory.mktemp("tagged")
    for seed, (name, count) in enumerate((("train", 160), ("validation", 40), ("test", 60))):
        write_sentences(folder / f"{name}.jsonl", make_sentences(count, seed))
    tokenizer = make_wordpiece()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=64,
            max_position_embeddings=40,
            initializer_range=0.1,
        )
        BertModel(config).save_pretrained(folder / "encoder")
    tokenizer.save_pretrained(folder / "encoder")
    found = compressor(
        "finetune", folder / "encoder", folder, "--output", folder / "trained",
        "--task", "token-classification", "--store", folder / "store",
        "--set", "epochs=16", "--set", "learning_rate=3e-3", "--set", "batch_size=16",
    )  # fmt: skip
    assert found.code == 0, found.err
    (folder / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def run(tagged: Path, compressor: Callable[..., Outcome]) -> Finished:
    store = tagged / "store"
    outcome = compressor("run", tagged / "recipe.yaml", "--store", store)
    return Finished(outcome, tagged / "out", store)


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_words_are_learnt_and_counted(tagged: Path) -> None:
    facts = json.loads((tagged / "trained" / "finetune.json").read_text())["accuracy"]["test"]
    words = sum(len(each["tags"]) for each in rows_of(tagged / "test.jsonl"))
    assert facts["num_rows"] == 60
    assert (facts["unit"], facts["num_units"]) == ("word", words)
    assert facts["value"] > 0.9
    config = json.loads((tagged / "trained" / "config.json").read_text())
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


def test_the_answers_of_a_report_are_units(run: Finished, tagged: Path) -> None:
    report = read_report(run.output)
    answers = read_answers(report, run.output)
    assert answers is not None
    sentences = rows_of(tagged / "test.jsonl")
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
    run: Finished, target: str, compressor: Callable[..., Outcome], tagged: Path
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
    sentences = rows_of(tagged / "test.jsonl")
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


def test_the_pack_of_a_bundle_judges_first_pieces(run: Finished, tagged: Path) -> None:
    bundle = Bundle.open(run.output / "bundles" / "fp32-onnxruntime")
    assert bundle.manifest.answers.kind == "token_labels"
    assert bundle.manifest.evaluation is not None
    pack = EvaluationPack.load(bundle.path(bundle.manifest.evaluation))
    assert pack.label_counts is not None
    assert pack.label_counts.tolist() == pack.lengths.tolist()
    words = [len(each["tags"]) for each in rows_of(tagged / "test.jsonl")]
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
    run: Finished, tagged: Path, command: str, more: tuple[str, ...],
    compressor: Callable[..., Outcome],
) -> None:  # fmt: skip
    subject = (
        tagged / "trained"
        if command == "inspect"
        else (run.output / "bundles" / "fp32-onnxruntime")
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
    tagged: Path, compressor: Callable[..., Outcome]
) -> None:
    found = compressor("validate", tagged / "recipe.yaml", "--set", "task=text-classification")
    assert found.code == 3
    assert "the checkpoint is one for token-classification" in found.err
    assert "set task: token-classification" in found.err
