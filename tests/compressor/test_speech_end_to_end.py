"""Speech and translation from the command line: a checkpoint and data, to bundles that write."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.compressor.conftest import Outcome
from tests.compressor.writers import write_writer

RECIPE = """
model: model
task: {task}
data: {{train: train.csv, validation: validation.csv, test: test.csv}}
passes:
  - {{pass: drop_layers, stack: decoder, num_layers: 1}}
  - {{pass: prune, ffn: 0.5, recovery: null}}
  - {{pass: distill, epochs: 1, batch_size: 8, relation_weight: 0}}
  - export
variants:
  int8: [{{pass: quantize, method: static, num_samples: 16}}]
  int8-dynamic: [{{pass: quantize, method: dynamic}}]
  int8-weights: [{{pass: quantize, method: weights}}]
targets: [onnxruntime, openvino, pytorch, tensorrt_rtx]
budget: {{max_accuracy_drop: 100}}
bundle: {{evaluation_data: true}}
benchmark: {{rounds: 2, min_round_s: 0.001, pause_s: 0, batch_sizes: [1]}}
output: out
"""


@pytest.fixture(scope="module", params=["whisper", "bart"])
def home(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    compressor: Callable[..., Outcome],
) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    write_writer(folder, request.param)
    task = "automatic-speech-recognition" if request.param == "whisper" else "translation"
    (folder / "recipe.yaml").write_text(RECIPE.format(task=task))
    outcome = compressor("run", folder / "recipe.yaml", "--store", folder / "store")
    assert outcome.code == 0, outcome.err + outcome.out
    return folder


def bundles(home: Path) -> list[Path]:
    return sorted((home / "out" / "bundles").iterdir())


def test_every_variant_is_built_judged_and_timed(home: Path) -> None:
    report = json.loads((home / "out" / "report.json").read_text())
    rows = {row["key"]: row for row in report["rows"]}
    assert rows
    for key, row in rows.items():
        if "tensorrt" in key:
            assert "does not run models that keep a state" in (row["reason"] or "")
            continue
        if row["status"] == "refused":
            continue
        assert row["status"] == "measured", (key, row["status"], row["reason"])
        assert row["test"]["measure"] == ("word accuracy" if (home / "sounds").exists() else "chrF")


def test_a_bundle_writes_texts(home: Path, compressor: Callable[..., Outcome]) -> None:
    spoken = (home / "sounds").exists()
    given = ("--audio", home / "sounds" / "test0.wav") if spoken else ("--text", "w1 w2 w3")
    for bundle in bundles(home):
        outcome = compressor("predict", bundle, *given)
        assert outcome.code == 0, outcome.err
        print(outcome.out)


def test_evaluate_finds_what_the_report_says(
    home: Path, compressor: Callable[..., Outcome]
) -> None:
    for bundle in bundles(home)[:2]:
        outcome = compressor("evaluate", bundle)
        assert outcome.code == 0, outcome.err
        here, built = (line.partition(":")[2].strip() for line in outcome.out.splitlines()[-2:])
        assert here == built
