"""Question answering through the whole toolkit: fine-tuned, compressed, measured, predicted."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest

import targets
from compressor.answering import answer
from compressor.report.files import read_answers, read_report
from compressor.tasks import get_task
from targets.bundle import Bundle
from targets.evaluation_pack import EvaluationPack
from tests.compressor.conftest import Finished, Outcome
from tests.compressor.questions import squad_splits

HOME = "questions"
RECIPE = """
model: model
task: question-answering
data: {train: train.json, test: test.json, slices: [title]}
passes:
  - {pass: trim_vocabulary, keep_first: 0}
  - {pass: prune, ffn: 0.5, hidden: 0.5, steps: 1, recovery: null, examples: 8}
  - {pass: drop_layers, num_layers: 1, strategy: importance, examples: 8}
  - {pass: distill, epochs: 2, batch_size: 8, unlabeled: more.jsonl}
  - export
variants:
  fp32: []
  int8: [{pass: quantize, method: static, num_samples: 8}]
targets: [onnxruntime, pytorch]
budget: {max_accuracy_drop: 100, max_metric_drop: {exact_match: 100}, min_label_agreement: 0.0}
benchmark: {rounds: 2, min_round_s: 0.001, pause_s: 0, sequence_length: 16, batch_sizes: [1]}
output: out
"""


@pytest.fixture(scope="module")
def place(tuned: Path) -> Path:
    """The home, with questions that have no answers."""
    asked = {"question": "who sings", "context": "birds sing at dawn and frogs at night"}
    (tuned / "more.jsonl").write_text(f"{json.dumps(asked)}\n" * 4)
    return tuned


@pytest.fixture(scope="module")
def run(place: Path, compressor: Callable[..., Outcome]) -> Finished:
    outcome = compressor("run", place / "recipe.yaml", "--store", place / "store")
    return Finished(outcome, place / "out", place / "store")


def test_a_bare_encoder_learns_to_answer(place: Path) -> None:
    model = get_task("question-answering").load_checkpoint(place / "model")
    task = get_task(model.task)
    found = task.answers.score(answer(model, squad_splits().test))
    assert found.measure == "F1"
    assert found.value > 0.5
    judged = json.loads((place / "model" / "finetune.json").read_text())["accuracy"]
    assert judged["test"]["value"] == pytest.approx(found.value, abs=0.01)


def test_a_run_builds_and_measures_every_variant(run: Finished) -> None:
    assert run.outcome.code == 0, run.outcome.err
    report = read_report(run.output)
    measured = {row.key: row for row in report.rows if row.test is not None}
    assert {row.target for row in measured.values()} == {"onnxruntime", "pytorch"}
    for row in measured.values():
        assert row.test is not None
        assert row.test_comparison is not None
        assert row.test.measure == row.measure == "F1"
        assert [*row.test_comparison.metrics] == ["f1", "exact_match"]
        assert {each.title for each in row.test_comparison.groups} == {
            "title = Bread",
            "title = Lighthouse",
        }
        if row.kind != "candidate":
            assert row.test_comparison.drop_points == pytest.approx(0, abs=0.01)
    answers = read_answers(report, run.output)
    assert answers is not None
    assert "labels" not in answers
    for key, row in measured.items():
        assert row.test is not None
        assert answers[key].mean() == pytest.approx(row.test.value, abs=1e-6)
    page = (run.output / "report.md").read_text()
    assert "test F1" in page
    assert "exact match" in page


def test_a_bundle_scores_itself_without_texts(
    run: Finished, compressor: Callable[..., Outcome]
) -> None:
    folder = run.output / "bundles" / "int8-onnxruntime"
    bundle = Bundle.open(folder)
    assert bundle.manifest.answers.kind == "spans"
    assert bundle.manifest.preprocessing.kind == "question"
    assert [each.name for each in bundle.manifest.signature.inputs][-1] == "token_type_ids"
    assert bundle.manifest.evaluation is not None
    pack = EvaluationPack.load(bundle.path(bundle.manifest.evaluation))
    assert len(pack) == 13
    found = compressor("evaluate", folder)
    assert found.code == 0, found.err
    here, built = found.out.splitlines()
    assert here.startswith("F1 here:")
    assert here.partition(":")[2].strip() == built.partition(":")[2].strip()


def test_predict_gives_the_answer_and_its_place(
    run: Finished, compressor: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = run.output / "bundles" / "fp32-onnxruntime"
    questions = [each._asdict() for each in squad_splits().test.inputs]
    with targets.load(folder) as predictor:
        expected = [each.model_dump() for each in predictor.predict(questions)]
    for asked, each in zip(questions, expected, strict=True):
        assert each["answer"] == asked["context"][each["start"] : each["end"]] != ""
        assert 0 < each["score"] <= 1
        assert not each["truncated"]
    lines = "\n \n".join([*map(json.dumps, questions), ""])  # empty lines are passed over
    for more in ((), ("--jsonl",)):
        monkeypatch.setattr("sys.stdin", io.StringIO(lines))
        found = compressor("predict", folder, *more)
        assert found.code == 0, found.err
        given = [json.loads(line) for line in found.out.splitlines()]
        assert [each["answer"] for each in given] == [each["answer"] for each in expected]
    found = compressor("predict", folder, "--text", json.dumps(questions[0]))
    assert json.loads(found.out)["answer"] == expected[0]["answer"]
    found = compressor("predict", folder, "--text", "who sings?")
    assert found.code != 0
    assert "a question is not valid JSON" in found.err


def test_a_question_that_is_too_long_is_cut_and_said_so(
    run: Finished, compressor: Callable[..., Outcome]
) -> None:
    folder = run.output / "bundles" / "fp32-onnxruntime"
    asked = {"question": "who sings", "context": "birds sing " * 100}
    found = compressor("predict", folder, "--text", json.dumps(asked))
    assert found.code == 0
    assert json.loads(found.out)["truncated"]
    assert "1 of 1 questions were longer than the 256 tokens" in " ".join(found.err.split())


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
    found = compressor(command, place / "model" if command == "inspect" else bundle, *more)
    assert found.code == 0, found.err
    if command == "inspect":
        assert "question-answering" in found.out
