"""What a run leaves for the gate: answers, losses by class and slice, and what changed."""

from __future__ import annotations

import numpy as np
import pytest

from compressor.evaluation import compare
from compressor.report.files import read_answers, read_report
from targets import load


@pytest.mark.slow
def test_the_answers_beside_the_report_are_those_of_the_bundles(finished, home):
    report = read_report(finished.output)
    answers = read_answers(report, finished.output)
    assert answers is not None
    measured = {row.key: row for row in report.rows if row.test is not None}
    assert set(answers) == {"labels", "rows", *measured}
    labels = answers["labels"]
    assert np.array_equal((answers["original-pytorch"].sum(axis=1)).round(5), np.ones(len(labels)))
    for key, row in measured.items():
        predicted = answers[key].argmax(axis=1)
        assert (predicted == labels).mean() == pytest.approx(row.test.value)
        plain = compare(answers["original-pytorch"].argmax(axis=1), predicted, labels)
        assert plain.drop_points == row.test_comparison.drop_points
        assert len(row.changed) == (predicted != answers["original-pytorch"].argmax(axis=1)).sum()
    row = measured["fp32-onnxruntime"]
    texts = [line.split(",")[0] for line in (home / "test.csv").read_text().splitlines()[1:]]
    with load(finished.output / row.bundle) as predictor:
        scores = [each.scores for each in predictor.predict(texts)]
        names = predictor.bundle.manifest.labels
    found = np.array([[each[name] for name in names] for each in scores])
    assert np.abs(found - answers[row.key]).max() < 1e-5


def cut(home, store, output, compressor, *more):
    """A run of a model that was pruned and not trained again."""
    return compressor(
        "run", home / "recipe.yaml", "--output", output, "--store", store,
        "--set", "passes=[{pass: drop_layers, num_layers: 1}, {pass: prune, ratio: 0.75, steps: 1, "
        "recovery: null, importance: random}, export]",
        "--set", "variants={cut: []}", "--set", "targets=[onnxruntime]",
        "--set", "data.slices=[label]",
        "--set", "budget={max_class_drop: 10, max_slice_drop: 10, max_metric_drop: {macro_f1: 1}}",
        *more,
    )  # fmt: skip


@pytest.mark.slow
def test_a_run_is_judged_by_class_and_slice(finished, home, tmp_path, compressor):
    outcome = cut(home, finished.store, tmp_path / "open", compressor)
    assert outcome.code == 5, (outcome.out, outcome.err)
    report = read_report(tmp_path / "open")
    [row] = [each for each in report.rows if each.chosen]
    names = report.data["labels"]
    classes, slices = ([f"{kind} {name}" for name in names] for kind in ("class", "label ="))
    subjects = [check.subject for check in row.checks]
    assert subjects[: 1 + len(names)] == ["macro_f1", *classes]
    assert sorted(subjects[1 + len(names) :]) == sorted(slices)
    # Slices by the label are the classes.
    found = {check.subject: check.found for check in row.checks}
    assert [found[each] for each in classes] == [found[each] for each in slices]
    assert not row.checks[0].met
    texts = [line.rpartition(",")[0] for line in (home / "test.csv").read_text().splitlines()[1:]]
    assert row.changed
    for each in row.changed:
        assert each.text == texts[each.index].strip('"')
        assert each.before != each.after

    # What is to stay private is told by its number only.
    private = ("--set", "bundle.evaluation_data=false")
    again = cut(home, finished.store, tmp_path / "private", compressor, *private)
    assert again.code == 5, (again.out, again.err)
    [closed] = [each for each in read_report(tmp_path / "private").rows if each.chosen]
    assert [each.index for each in closed.changed] == [each.index for each in row.changed]
    assert {each.text for each in closed.changed} == {None}
    words = {text for text in texts if len(text) > 8}
    written = (tmp_path / "private" / "report.json").read_text()
    assert not [text for text in words if text in written]
