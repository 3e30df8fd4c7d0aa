"""Embeddings through the whole toolkit: compressed without labels, measured, judged, predicted."""

from __future__ import annotations

import csv
import io
import json
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import targets
from compressor.answering import answer
from compressor.data import Split
from compressor.gate.regression import compare_releases
from compressor.report.files import read_answers, read_report
from compressor.tasks import get_task
from targets.bundle import Bundle
from targets.evaluation_pack import EvaluationPack
from tests.compressor.conftest import NOUNS, QUESTIONS, Finished, Outcome
from tests.compressor.tasks.test_text_embedding import save_encoder

RECIPE = """
model: encoder
task: text-embedding
data: {train: train.csv, test: test.csv, slices: [source]}
passes:
  - {pass: trim_vocabulary, keep_first: 0}
  - {pass: prune, ffn: 0.5, steps: 1, recovery: null, examples: 32}
  - {pass: drop_layers, num_layers: 1, strategy: importance, examples: 16}
  - {pass: distill, epochs: 12, batch_size: 16, learning_rate: 0.003, logits_weight: 10,
     unlabeled: more.txt}
  - export
variants:
  fp32: []
  int8: [{pass: quantize, method: static, num_samples: 32}]
  int8-dynamic: [{pass: quantize, method: dynamic}]
targets: [onnxruntime, openvino, tensorrt_rtx, pytorch]
budget: {max_accuracy_drop: 70, max_metric_drop: {recall_at_10: 90}, min_label_agreement: 0.02}
benchmark: {rounds: 2, min_round_s: 0.001, pause_s: 0, sequence_length: 16, batch_sizes: [1]}
bundle: {tune: true}
output: out
"""
NAME = "rank correlation"


def make_texts(num_rows: int, seed: int) -> list[str]:
    generator = random.Random(seed)
    words = [*QUESTIONS, *NOUNS]
    return [" ".join(generator.choices(words, k=generator.randint(2, 9))) for _ in range(num_rows)]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("embeddings")
    save_encoder(folder / "encoder")
    for seed, (name, count) in enumerate((("train", 120), ("test", 40))):
        with (folder / f"{name}.csv").open("w", newline="") as stream:
            rows = [(text, "ab"[index % 2]) for index, text in enumerate(make_texts(count, seed))]
            csv.writer(stream).writerows([("text", "source"), *rows])
    (folder / "more.txt").write_text("\n".join(make_texts(60, 9)))
    (folder / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def run(place: Path, compressor: Callable[..., Outcome]) -> Finished:
    outcome = compressor("run", place / "recipe.yaml", "--store", place / "store")
    return Finished(outcome, place / "out", place / "store")


def test_a_run_builds_and_measures_every_target(run: Finished) -> None:
    assert run.outcome.code == 0, run.outcome.err
    report = read_report(run.output)
    measured = {row.key: row for row in report.rows if row.test is not None}
    assert {row.target for row in measured.values()} == {"onnxruntime", "openvino", "pytorch"}
    for row in measured.values():
        assert row.test is not None
        assert row.test_comparison is not None
        assert row.test.measure == row.measure == NAME
        assert {each.title for each in row.test_comparison.groups} == {"source = a", "source = b"}
        untouched = row.kind != "candidate"
        assert row.test.value > (0.999 if untouched else 0.3)
        assert (row.test_comparison.drop_points > 0.1) is not untouched
    assert "tensorrt_rtx" in {row.target for row in report.rows if row.bundle is not None}
    assert report.data["labels"] == []
    steps = {each.pass_name: each.metrics for each in report.steps["fp32"]}
    assert steps["distill"]["validation_accuracy"] > steps["drop_layers"]["validation_accuracy"]


def test_a_report_says_what_is_measured(run: Finished) -> None:
    for name in ("report.md", "report.html"):
        page = (run.output / name).read_text()
        assert f"test {NAME}" in page
        assert "recall at 10" in page
        assert f"{NAME.capitalize()} is on 40 test examples" in page
        assert "95% bootstrap interval" in page
    report = read_report(run.output)
    assert any(f"points of {NAME}" in line for line in report.verdict.lines)
    assert any("loses" in check.text for row in report.rows for check in row.checks)
    card = (run.output / "bundles" / "fp32-onnxruntime" / "README.md").read_text()
    assert f"| {NAME} |" in card
    assert "Labels:" not in card


def test_a_second_run_finds_all_and_a_gate_takes_it(
    run: Finished, place: Path, compressor: Callable[..., Outcome]
) -> None:
    again = compressor("run", place / "recipe.yaml", "--store", run.store)
    assert again.code == 0, again.err
    gate = compressor("gate", run.output, "--set", "max_accuracy_drop=0.01")
    assert gate.code == 5
    assert f"points of {NAME}" in gate.out + gate.err


def test_a_release_is_compared_text_by_text(run: Finished) -> None:
    report = read_report(run.output)
    answers = read_answers(report, run.output)
    assert answers is not None
    assert "labels" not in answers
    before = {
        name: each if name == "rows" else np.ones_like(each) for name, each in answers.items()
    }
    found = compare_releases(report, report, answers_now=answers, answers_before=before)
    checks = [check for check in found.checks if check.limit == "accuracy"]
    rows = {row.target: row for row in report.rows if row.chosen and not row.unmet}
    assert {check.subject for check in checks} == rows.keys()
    for check in checks:
        test = rows[check.subject].test
        assert test is not None
        assert check.found == pytest.approx(100 * (1 - test.value), abs=1e-3)
        assert f"points of {NAME}" in check.text


def test_a_bundle_is_evaluated_by_the_embeddings_that_it_carries(
    run: Finished, place: Path, compressor: Callable[..., Outcome]
) -> None:
    folder = run.output / "bundles" / "int8-onnxruntime"
    bundle = Bundle.open(folder)
    assert bundle.manifest.answers.kind == "embeddings"
    assert bundle.manifest.labels == ()
    assert bundle.manifest.evaluation is not None
    pack = EvaluationPack.load(bundle.path(bundle.manifest.evaluation))
    model = get_task("text-embedding").load_checkpoint(place / "encoder")
    texts = make_texts(40, 1)
    split = Split(tuple(texts), np.empty((len(texts), 0), np.float32))
    np.testing.assert_allclose(pack.labels, answer(model, split).scores, atol=1e-6)
    found = compressor("evaluate", folder)
    assert found.code == 0, found.err
    here, built = found.out.splitlines()
    assert here.startswith(f"{NAME} here:")
    assert here.partition(":")[2].strip() == built.partition(":")[2].strip()


def test_predict_gives_embeddings(
    run: Finished, place: Path, compressor: Callable[..., Outcome],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    folder = run.output / "bundles" / "fp32-onnxruntime"
    texts = ["who cat", "where dog house"]
    with targets.load(folder) as predictor:
        expected = np.array([each.embedding for each in predictor.predict(texts)])
    assert np.linalg.norm(expected, axis=1) == pytest.approx(1, abs=1e-5)
    found = compressor("predict", folder, "--text", texts[0], "--text", texts[1])
    lines = [json.loads(line) for line in found.out.splitlines()]
    assert np.array([line["embedding"] for line in lines]) == pytest.approx(expected, abs=1e-6)
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(texts)))
    found = compressor("predict", folder, "--output", place / "found.npy")
    assert (found.code, found.out) == (0, "")
    array = np.load(place / "found.npy")
    assert array.dtype == np.float32
    assert array == pytest.approx(expected, abs=1e-6)
    assert not list(place.glob(".*.tmp"))


@pytest.mark.parametrize(
    ("output", "code", "words"),
    [
        ("found.txt", 2, "does not end with .npy"),
        ("notes.txt/found.npy", 8, "the result cannot be written"),
    ],
)
def test_a_file_that_cannot_be_written_is_named(
    run: Finished,
    place: Path,
    output: str,
    code: int,
    words: str,
    compressor: Callable[..., Outcome],
) -> None:
    (place / "notes.txt").write_text("mine")
    folder = run.output / "bundles" / "fp32-onnxruntime"
    found = compressor("predict", folder, "--text", "who", "--output", place / output)
    assert found.code == code
    assert words in " ".join(found.err.replace("│", " ").split())


@pytest.mark.parametrize(
    ("command", "more"),
    [
        ("bench", ("--rounds", "2", "--sequence-length", "8", "--real-texts")),
        ("verify", ()),
        ("inspect", ()),
    ],
)
def test_the_other_commands_take_it(
    run: Finished, place: Path, command: str, more: tuple[str, ...],
    compressor: Callable[..., Outcome],
) -> None:  # fmt: skip
    bundle = run.output / "bundles" / "fp32-onnxruntime"
    found = compressor(command, place / "encoder" if command == "inspect" else bundle, *more)
    assert found.code == 0, found.err
    if command == "inspect":
        assert "text-embedding" in found.out


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("passes.1.hidden=0.5", ("size of its embeddings, which cannot", "leave hidden out")),
        ("passes.3.labels_weight=0.5", ("no labels to learn from", "leave the setting out")),
        (
            "passes.1={pass: finetune}",
            ("finetune cannot be used on this model: it has no head that learns from labels",),
        ),
    ],
)
def test_what_cannot_work_is_refused_before_anything_starts(
    place: Path, change: str, words: tuple[str, ...], compressor: Callable[..., Outcome]
) -> None:
    found = compressor("validate", place / "recipe.yaml", "--set", change)
    assert found.code == 3, found.out
    for each in words:
        assert each in " ".join(found.err.split())


def test_finetuning_it_is_refused(place: Path, compressor: Callable[..., Outcome]) -> None:
    found = compressor(
        "finetune", place / "encoder", place, "--output", place / "tuned",
        "--task", "text-embedding",
    )  # fmt: skip
    assert found.code == 3
    assert "nothing to fine-tune: the data of this task has no labels" in found.err


def test_a_classifier_is_no_encoder(
    place: Path, home: Path, compressor: Callable[..., Outcome]
) -> None:
    found = compressor("validate", place / "recipe.yaml", "--model", home / "model")
    assert found.code == 3
    assert "set task: text-classification" in found.err
