"""Time series from the table to the device: fine-tuned, compressed, measured and judged again."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import targets
from compressor.checkpoint import label_names
from targets import Bundle
from tests.compressor.conftest import Finished
from tests.compressor.series import CLASSES, LENGTH, signal

pytestmark = pytest.mark.slow

HOME = "series"
RECIPE = """
task: time-series-classification
model: model
data: {train: train.jsonl, validation: validation.csv, test: test.jsonl}
passes:
  - {pass: prune, ratio: 0.4, recovery: null}
  - {pass: distill, epochs: 2, batch_size: 16, learning_rate: 1.0e-3, augmentation_copies: 1}
  - export
variants:
  fp32: []
  int8: [{pass: quantize, method: static, num_samples: 24}]
targets: [onnxruntime, openvino]
budget: {max_accuracy_drop: 100}
benchmark: {rounds: 1, min_round_s: 0.001, pause_s: 0, batch_sizes: [1]}
output: out
"""


def test_finetuning_learns_from_a_bare_encoder(run: Finished, tuned: Path) -> None:
    assert label_names(tuned / "model") == CLASSES
    found = json.loads((tuned / "model" / "finetune.json").read_text())["accuracy"]["test"]
    assert found["value"] > 0.85


def test_transformers_reads_what_was_fine_tuned(run: Finished) -> None:
    import torch
    from transformers import PatchTSTForClassification

    network = PatchTSTForClassification.from_pretrained(run.output.parent / "model").eval()
    values = np.stack([signal(index % 2, 77 + index) for index in range(10)]).astype(np.float32)
    with torch.inference_mode():
        found = network(torch.from_numpy(values)).prediction_logits.argmax(-1)
    assert (found.numpy() == np.arange(10) % 2).mean() > 0.75


def test_the_run_builds_every_bundle_and_keeps_the_accuracy(run: Finished) -> None:
    assert run.outcome.code == 0, run.outcome.out + run.outcome.err
    assert [each.name for each in run.bundles] == [
        "fp32-onnxruntime",
        "fp32-openvino",
        "int8-onnxruntime",
        "int8-openvino",
    ]
    for folder in run.bundles:
        manifest = Bundle.open(folder).manifest
        assert manifest.preprocessing.model_dump() == {
            "kind": "series",
            "length": LENGTH,
            "channels": 2,
        }
        assert manifest.measured is not None
        assert manifest.measured.accuracy is not None
        assert manifest.measured.accuracy.value > 0.8


@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
def test_fp32_bundles_answer_as_the_network(run: Finished, target: str) -> None:
    """In every size of batch, and from all forms of an input."""
    import torch

    from compressor.model import TorchModel
    from compressor.store import RunStore

    steps = [each for each in RunStore(run.store).steps() if each.kind.endswith(":distill")]
    [step] = steps
    model = TorchModel.load(run.store / "steps" / step.key / "files")
    values = np.stack([signal(index % 2, 500 + index) for index in range(7)]).astype(np.float32)
    with torch.inference_mode():
        expected = model.module(torch.from_numpy(values)).logits.numpy()
    np.save(run.output.parent / "one.npy", values[0])
    inputs = [
        run.output.parent / "one.npy",
        (run.output.parent / "one.npy").read_bytes(),
        values[0].tolist(),
        *values,
    ]
    for batch_size in (1, 4):
        with targets.load(run.output / f"bundles/fp32-{target}", batch_size=batch_size) as found:
            logits = found.logits(inputs)
        np.testing.assert_allclose(logits[:3], expected[[0, 0, 0]], atol=1e-4, rtol=0)
        np.testing.assert_allclose(logits[3:], expected, atol=1e-4, rtol=0)


def test_devices_measure_the_accuracy_that_the_build_found(
    run: Finished, compressor: Callable[..., Any]
) -> None:
    for folder in run.bundles:
        measured = Bundle.open(folder).manifest.measured
        outcome = compressor("evaluate", folder)
        assert outcome.code == 0, outcome.err
        assert measured is not None
        assert measured.accuracy is not None
        assert f"{100 * measured.accuracy.value:.1f}%" in outcome.out
        assert compressor("verify", folder).code == 0


def test_files_are_predicted_and_wrong_ones_told(
    run: Finished, compressor: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = run.output / "bundles" / "int8-onnxruntime"
    files = []
    for label in (0, 1):
        files += ["--file", tmp_path / f"{label}.npy"]
        np.save(tmp_path / f"{label}.npy", signal(label, 9001))
    outcome = compressor("predict", bundle, *files)
    assert outcome.code == 0, outcome.err
    assert [json.loads(line)["label"] for line in outcome.out.splitlines()] == list(CLASSES)
    lines = [json.dumps({"series": signal(label, 9001).tolist()}) for label in (0, 1)]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines)))
    from_lines = compressor("predict", bundle, "--jsonl")
    assert from_lines.code == 0, from_lines.err
    assert from_lines.out == outcome.out
    np.save(tmp_path / "short.npy", signal(0, 1)[:-1])
    outcome = compressor("predict", bundle, "--file", tmp_path / "short.npy")
    assert outcome.code == 3
    assert "the signal has another length or another number of channels" in outcome.err
    assert "31 points in time of 2 channels" in outcome.err
    outcome = compressor("predict", bundle, "--text", "1, 2, 3")
    assert outcome.code == 2
    assert "the bundle reads signals: give them with --file" in " ".join(outcome.err.split())


def test_lengths_are_no_subject_of_benches_reports_and_cards(
    run: Finished, compressor: Callable[..., Any]
) -> None:
    outcome = compressor("bench", *run.bundles[::3], "--rounds", "1", "--batch-size", "2")
    assert outcome.code == 0, outcome.err
    assert "tokens" not in outcome.out
    report = (run.output / "report.md").read_text()
    assert "tokens" not in report.replace("min_tokens_per_s", "")  # a limit of the budget
    card = (run.bundles[0] / "README.md").read_text()
    assert "compressor predict . --file signal.npy" in card
    assert "compressor[onnxruntime]" in card
    outcome = compressor("inspect", run.output.parent / "model")
    assert outcome.code == 0, outcome.err
    assert "a signal" in outcome.out
    assert "2 layers x 4 heads x 64 FFN, hidden 32" in outcome.out
