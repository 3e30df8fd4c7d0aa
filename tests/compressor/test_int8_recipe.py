"""The recipe `int8` on a model of every task: built, judged, and asked."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import MobileNetV2Config, MobileNetV2ForSemanticSegmentation

from compressor.metrics import ENTITY_METRICS
from compressor.report.files import read_report
from compressor.report.schema import Comparison
from compressor.tasks import TASKS, get_task
from tests.compressor.conftest import Outcome
from tests.compressor.homes import HOMES

VARIANTS = ["fp32", "int8", "int8-dynamic", "int8-weights"]
QUICK = [
    part
    for setting in (
        "targets=[onnxruntime]",
        "benchmark={rounds: 1, min_round_s: 0.001, pause_s: 0, batch_sizes: [1]}",
    )
    for part in ("--set", setting)
]


def test_every_task_has_a_model() -> None:
    assert {home.task for home in HOMES.values()} == set(TASKS)


@pytest.mark.slow
@pytest.mark.parametrize("name", HOMES)
def test_every_variant_of_every_task_is_built_and_keeps_its_score(
    name: str,
    make_home: Callable[[str], Path],
    compressor: Callable[..., Outcome],
    tmp_path: Path,
) -> None:
    home, folder = HOMES[name], make_home(name)
    found = compressor(
        "run", "int8", "--model", folder / "model", "--data", folder, "--output", tmp_path / "out",
        "--store", tmp_path / "store", *QUICK, *home.run,
    )  # fmt: skip
    assert found.code in (0, 5), found.err + found.out
    report = read_report(tmp_path / "out")
    assert report.recipe["task"] == home.task
    rows = {row.variant: row for row in report.rows if row.kind == "candidate"}
    assert list(rows) == VARIANTS
    [untouched] = [row for row in report.rows if row.kind == "baseline"]
    assert untouched.test is not None
    _has_what_a_budget_may_limit(rows["int8"].test_comparison, home.task)
    for row in rows.values():
        assert row.status == "measured", row.reason
        assert row.test is not None
        assert row.test.value == pytest.approx(untouched.test.value, abs=0.15)
        answer = compressor("predict", tmp_path / "out" / str(row.bundle), *home.asked(folder))
        assert answer.code == 0, answer.err
        assert json.loads(answer.out)


def _has_what_a_budget_may_limit(found: Comparison | None, name: str) -> None:
    assert found is not None
    task = get_task(name)
    assert set(task.metrics) - found.metrics.keys() <= ENTITY_METRICS.keys()  # of tags in IOB2
    assert found.metrics.keys() <= set(task.metrics)
    limited = {
        "max_perplexity_rise": found.perplexity,
        "max_class_drop": [each for each in found.groups if each.column is None] or None,
        "max_probability_difference": found.max_probability_difference,
        "max_calibration_error": found.calibration_error,
    }
    assert {limit for limit, value in limited.items() if value is None} == task.not_compared


@pytest.mark.slow
def test_a_variant_that_changes_nothing_is_a_row_with_its_reason(
    make_home: Callable[[str], Path], compressor: Callable[..., Outcome], tmp_path: Path
) -> None:
    """A network of convolutions alone has no products to quantize dynamically."""
    folder = make_home("segmentation")
    names = {str(index): str(index) for index in range(3)}
    config = MobileNetV2Config(
        image_size=32, depth_multiplier=0.1, id2label=names, label2id={n: int(n) for n in names}
    )
    MobileNetV2ForSemanticSegmentation(config).save_pretrained(tmp_path / "model")
    shutil.copy(folder / "model" / "preprocessor_config.json", tmp_path / "model")
    found = compressor(
        "run", "int8", "--model", tmp_path / "model", "--data", folder, "--output",
        tmp_path / "out", "--store", tmp_path / "store", *QUICK,
    )  # fmt: skip
    assert found.code in (0, 5), found.err + found.out
    rows = {row.variant: row for row in read_report(tmp_path / "out").rows}
    assert rows["int8-dynamic"].status == "refused"
    assert str(rows["int8-dynamic"].reason).startswith("the same model as fp32 there; none of")
    for variant in ("fp32", "int8", "int8-weights"):
        assert rows[variant].status == "measured", rows[variant].reason
