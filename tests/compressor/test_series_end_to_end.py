"""Time series from the table to the device: fine-tuned, compressed, measured and judged again."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

import targets
from compressor.checkpoint import label_names
from targets import Bundle

pytestmark = pytest.mark.slow

CLASSES = ("fast", "slow")
LENGTH = 32
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
"""


class Run(NamedTuple):
    """A fine-tuned checkpoint, and a run of the recipe on it."""

    tuned: Any
    outcome: Any
    folder: Path

    @property
    def output(self) -> Path:
        return self.folder / "out"

    @property
    def bundles(self) -> list[Path]:
        return sorted((self.output / "bundles").iterdir())


def signal(label: int, seed: int) -> NDArray[np.float64]:
    """A sine with noise in two channels, of another phase each: fast, or half as fast."""
    random = np.random.default_rng((label, seed))
    turns = np.arange(LENGTH)[:, None] / (5, 10)[label] + random.random(2)
    return np.round(np.sin(2 * np.pi * turns) + random.normal(0, 0.3, (LENGTH, 2)), 4)


def write_split(path: Path, count: int, seed: int) -> None:
    rows = [(signal(index % 2, 1000 * seed + index), CLASSES[index % 2]) for index in range(count)]
    with path.open("w", encoding="utf-8") as stream:
        if path.suffix == ".csv":
            stream.write("series,label\n")
        for number, (values, label) in enumerate(rows):
            cell: Any = values.tolist()
            if number % 3 == 0:  # a file beside the table
                cell = f"{path.stem}-{number}.npy"
                np.save(path.parent / cell, values)
            if path.suffix == ".csv":
                stream.write(f'"{cell}",{label}\n')
            else:
                stream.write(json.dumps({"series": cell, "label": label}) + "\n")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, compressor: Callable[..., Any]) -> Run:
    import torch
    from transformers import PatchTSTConfig, PatchTSTModel

    folder = tmp_path_factory.mktemp("series")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        PatchTSTModel(
            PatchTSTConfig(
                context_length=LENGTH,
                num_input_channels=2,
                patch_length=4,
                patch_stride=4,
                d_model=32,
                num_attention_heads=4,
                num_hidden_layers=2,
                ffn_dim=64,
            )
        ).save_pretrained(folder / "start")
    for seed, (name, count) in enumerate(
        {"train.jsonl": 96, "validation.csv": 24, "test.jsonl": 40}.items()
    ):
        write_split(folder / name, count, seed)
    settings = ("--set", "epochs=8", "--set", "learning_rate=3e-3", "--set", "batch_size=16")
    arguments = ("--output", folder / "model", "--store", folder / "store")
    tuned = compressor("finetune", folder / "start", folder, *settings, *arguments)
    (folder / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    outcome = compressor(
        "run", folder / "recipe.yaml", "--output", folder / "out", "--store", folder / "store"
    )
    return Run(tuned, outcome, folder)


def test_finetuning_learns_from_a_bare_encoder(run: Run) -> None:
    assert run.tuned.code == 0, run.tuned.err
    assert label_names(run.folder / "model") == CLASSES
    found = json.loads((run.folder / "model" / "finetune.json").read_text())["accuracy"]["test"]
    assert found["value"] > 0.85


def test_transformers_reads_what_was_fine_tuned(run: Run) -> None:
    import torch
    from transformers import PatchTSTForClassification

    network = PatchTSTForClassification.from_pretrained(run.folder / "model").eval()
    values = np.stack([signal(index % 2, 77 + index) for index in range(10)]).astype(np.float32)
    with torch.inference_mode():
        found = network(torch.from_numpy(values)).prediction_logits.argmax(-1)
    assert (found.numpy() == np.arange(10) % 2).mean() > 0.75


def test_the_run_builds_every_bundle_and_keeps_the_accuracy(run: Run) -> None:
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
def test_fp32_bundles_answer_as_the_network(run: Run, target: str) -> None:
    """In every size of batch, and from all forms of an input."""
    import torch

    from compressor.model import TorchModel
    from compressor.store import RunStore

    steps = [
        each for each in RunStore(run.folder / "store").steps() if each.kind.endswith(":distill")
    ]
    [step] = steps
    model = TorchModel.load(run.folder / "store" / "steps" / step.key / "files")
    values = np.stack([signal(index % 2, 500 + index) for index in range(7)]).astype(np.float32)
    with torch.inference_mode():
        expected = model.module(torch.from_numpy(values)).logits.numpy()
    np.save(run.folder / "one.npy", values[0])
    inputs = [
        run.folder / "one.npy",
        (run.folder / "one.npy").read_bytes(),
        values[0].tolist(),
        *values,
    ]
    for batch_size in (1, 4):
        with targets.load(run.output / f"bundles/fp32-{target}", batch_size=batch_size) as found:
            logits = found.logits(inputs)
        np.testing.assert_allclose(logits[:3], expected[[0, 0, 0]], atol=1e-4, rtol=0)
        np.testing.assert_allclose(logits[3:], expected, atol=1e-4, rtol=0)


def test_devices_measure_the_accuracy_that_the_build_found(
    run: Run, compressor: Callable[..., Any]
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
    run: Run, compressor: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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
    run: Run, compressor: Callable[..., Any]
) -> None:
    outcome = compressor("bench", *run.bundles[::3], "--rounds", "1", "--batch-size", "2")
    assert outcome.code == 0, outcome.err
    assert "tokens" not in outcome.out
    assert "tokens" not in (run.output / "report.md").read_text()
    card = (run.bundles[0] / "README.md").read_text()
    assert "compressor predict . --file signal.npy" in card
    assert "compressor[onnxruntime]" in card
    outcome = compressor("inspect", run.folder / "model")
    assert outcome.code == 0, outcome.err
    assert "a signal" in outcome.out
    assert "2 layers x 4 heads x 64 FFN, hidden 32" in outcome.out
