"""Images from the folder to the server: fine-tuned, compressed, measured, judged and packaged."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image

from compressor.checkpoint import label_names
from compressor.store import RunStore
from targets import Bundle

pytestmark = pytest.mark.slow

COLOURS = ("blue", "green", "red")
RECIPE = """
task: image-classification
data: {train: train, validation: validation, test: test}
passes:
  - {pass: prune, ratio: 0.5}
  - {pass: distill, epochs: 1, batch_size: 16, augmentation_copies: 1}
  - export
variants:
  int8: [{pass: quantize, method: static, num_samples: 24}]
budget: {max_accuracy_drop: 100}
benchmark: {rounds: 1, min_round_s: 0.001, pause_s: 0, batch_sizes: [1]}
"""
# A transformer on one target and a network of convolutions on another: both on both take long.
MORE = {
    "vit": ("onnxruntime", "int8-dynamic: [{pass: quantize, method: dynamic}]"),
    "resnet": ("openvino", "fp32: []"),
}


class Run(NamedTuple):
    """A fine-tuned checkpoint, and a run of the recipe on it."""

    outcome: Any
    checkpoint: Path
    data: Path
    output: Path
    store: Path

    @property
    def bundles(self) -> list[Path]:
        return sorted((self.output / "bundles").iterdir())

    @property
    def int8(self) -> Path:
        """The bundle that was quantized statically."""
        return next(each for each in self.bundles if each.name.startswith("int8-o"))

    @property
    def untouched(self) -> list[Path]:
        """Bundles of the checkpoint as it was."""
        return [
            self.store / "steps" / record.key / "files"
            for record in RunStore(self.store).steps()
            if record.kind in ("lower:onnxruntime", "lower:openvino")
            and record.inputs["name"] == "original"
        ]


@pytest.fixture(scope="module", params=["vit", "resnet"])
def run(
    request: pytest.FixtureRequest, make_home: Callable[[str], Path], compressor: Callable[..., Any]
) -> Run:
    folder = make_home(request.param)
    target, variant = MORE[request.param]
    recipe = RECIPE.replace("budget:", f"  {variant}\ntargets: [{target}]\nbudget:")
    (folder / "recipe.yaml").write_text(f"model: model\n{recipe}", encoding="utf-8")
    outcome = compressor(
        "run", folder / "recipe.yaml", "--output", folder / "out", "--store", folder / "store"
    )
    return Run(outcome, folder / "model", folder, folder / "out", folder / "store")


def test_finetuning_learns_the_folders_as_classes(run: Run) -> None:
    assert label_names(run.checkpoint) == COLOURS
    assert json.loads((run.checkpoint / "preprocessor_config.json").read_text())["size"] == {
        "shortest_edge": 18
    }
    found = json.loads((run.checkpoint / "finetune.json").read_text())["accuracy"]["test"]
    assert found["value"] > 0.8


def test_the_run_ends_well_and_builds_every_bundle(run: Run) -> None:
    assert run.outcome.code == 0, run.outcome.out + run.outcome.err
    assert len(run.bundles) == 2
    for folder in run.bundles:
        manifest = Bundle.open(folder).manifest
        assert manifest.preprocessing.kind == "image"
        assert manifest.labels == COLOURS


def test_reports_count_images_and_no_tokens(run: Run) -> None:
    page = (run.output / "report.html").read_text()
    for text in (page, (run.output / "report.md").read_text(), run.outcome.out):
        assert "tokens" not in text.replace("min_tokens_per_s", "")  # a limit of the budget
        assert "1x128" not in text
    assert "batch 1" in " ".join(run.outcome.out.split())
    report = json.loads((run.output / "report.json").read_text())
    assert "128" not in report["primary_shape"]


def test_bundles_answer_as_the_pipeline_of_transformers(
    run: Run, compressor: Callable[..., Any]
) -> None:
    from transformers import pipeline

    files = sorted((run.data / "test").rglob("*.png"))[::5]
    classify = pipeline(
        "image-classification",
        model=str(run.checkpoint),
        image_processor=_processor(run.checkpoint),
        top_k=None,
        device="cpu",
    )
    expected = [{each["label"]: each["score"] for each in classify(str(path))} for path in files]
    options = [option for path in files for option in ("--file", path)]
    fp32 = [each for each in run.untouched if Bundle.open(each).manifest.precision == "fp32"]
    assert len(fp32) == 1
    for bundle in fp32:
        outcome = compressor("predict", bundle, *options)
        assert outcome.code == 0, outcome.err
        found = [json.loads(line) for line in outcome.out.splitlines()]
        assert len(found) == len(files)
        for answer, scores in zip(found, expected, strict=True):
            assert answer["scores"] == pytest.approx(scores, abs=1e-4)
            assert answer["label"] == max(scores, key=scores.__getitem__)
            assert not answer["truncated"]


def _processor(folder: Path) -> Any:
    from transformers import AutoImageProcessor

    return AutoImageProcessor.from_pretrained(folder, backend="pil")


def test_compressed_bundles_still_know_the_colours(
    run: Run, compressor: Callable[..., Any]
) -> None:
    outcome = compressor("evaluate", run.int8)
    assert outcome.code == 0, outcome.err
    assert "24" in outcome.out
    report = json.loads((run.output / "report.json").read_text())
    accuracies = [row["test"]["value"] for row in report["rows"] if row["test"] is not None]
    assert len(accuracies) >= 4
    assert min(accuracies) > 0.5  # a third by chance


def test_the_bench_counts_batches_only(run: Run, compressor: Callable[..., Any]) -> None:
    outcome = compressor("bench", *run.bundles, "--rounds", "2", "--batch-size", "2")
    assert outcome.code == 0, outcome.err
    assert "tokens" not in outcome.out
    assert "128" not in outcome.out


def test_real_texts_are_for_texts(run: Run, compressor: Callable[..., Any]) -> None:
    outcome = compressor("bench", run.bundles[0], "--rounds", "1", "--sequence-length", "64")
    assert outcome.code == 3
    assert "images all have the size that the model takes: there is no length" in outcome.err
    assert "fix:   leave the length out" in outcome.err
    outcome = compressor("bench", run.bundles[0], "--rounds", "1", "--real-texts")
    assert outcome.code == 6
    assert "only text models are measured on real texts" in outcome.err


def test_texts_are_refused_and_so_is_what_is_no_image(
    run: Run, compressor: Callable[..., Any], tmp_path: Path
) -> None:
    bundle = run.bundles[0]
    outcome = compressor("predict", bundle, "--text", "a red square")
    assert outcome.code == 2
    assert "the bundle reads images: give them with --file" in " ".join(outcome.err.split())
    (tmp_path / "image.png").write_bytes(b"no image")
    outcome = compressor("predict", bundle, "--file", tmp_path / "image.png")
    assert outcome.code == 3
    assert "the image cannot be read" in outcome.err


def test_a_broken_test_image_is_told_before_anything_is_trained(
    run: Run, compressor: Callable[..., Any], tmp_path: Path
) -> None:
    shutil.copytree(run.data, tmp_path / "home", ignore=shutil.ignore_patterns("store", "out"))
    broken = sorted((tmp_path / "home" / "test").rglob("*.png"))[-1]
    broken.write_bytes(broken.read_bytes()[:40])
    outcome = compressor(
        "run", tmp_path / "home" / "recipe.yaml", "--output", tmp_path / "out",
        "--store", tmp_path / "store",
    )  # fmt: skip
    assert outcome.code == 3
    assert "the image cannot be read" in outcome.err
    assert broken.name in outcome.err
    assert not list(RunStore(tmp_path / "store").steps())


def test_servers_are_given_images_of_one_size(
    run: Run, compressor: Callable[..., Any], tmp_path: Path
) -> None:
    for name, bundle, *options in (
        ("triton", run.int8),
        ("ovms", run.int8),
        ("kserve", run.int8, "--set", "storage_uri=s3://models/colours"),
        ("docker", run.int8),
    ):
        outcome = compressor(
            "package", bundle, "--for", name, "--output", tmp_path / name, *options
        )
        assert outcome.code == 0, outcome.err
    config = next((tmp_path / "triton").rglob("config.pbtxt")).read_text()
    dims = [line.strip() for line in config.splitlines() if "dims" in line]
    assert [each for each in dims if each != "dims: -1"] == [
        "dims: 3",
        "dims: 16",
        "dims: 16",
        "dims: 3",
    ]
    pins = (tmp_path / "docker" / "requirements.txt").read_text()
    assert "pillow==" in pins
    assert "mount the folder of the files" in " ".join((outcome.out + outcome.err).split())
    outcome = compressor(
        "package", run.int8, "--for", "triton", "--output", tmp_path / "text",
        "--set", "text=true",
    )  # fmt: skip
    assert outcome.code == 6
    assert "the model takes no text" in outcome.err


def test_bundles_predict_from_arrays_as_from_files(run: Run) -> None:
    import targets

    files = sorted((run.data / "test").rglob("*.png"))[:6]
    with targets.load(run.int8, batch_size=4) as predictor:
        by_path = predictor.logits(files)
        by_array = predictor.logits([np.asarray(Image.open(path)) for path in files])
        by_bytes = predictor.logits([path.read_bytes() for path in files])
    np.testing.assert_array_equal(by_path, by_array)
    np.testing.assert_array_equal(by_path, by_bytes)
