"""Classes of pixels through the whole toolkit: fine-tuned, compressed, measured, predicted."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from transformers import SegformerConfig, SegformerImageProcessor, SegformerModel

import targets
from compressor.checkpoint import label_names
from compressor.report.files import read_answers, read_report
from compressor.report.schema import Row
from compressor.tasks import get_task, infer_task
from targets.answers.pixel_labels import UNLABELLED
from targets.bundle import Bundle
from targets.evaluation_pack import EvaluationPack
from tests.compressor.conftest import Finished, Outcome

SIDE = 32
CLASSES = 3  # noise, circles, squares
RECIPE = """
model: trained
task: semantic-segmentation
data: {train: train.csv, validation: validation.csv, test: test.csv}
passes:
  - {pass: distill, epochs: 1, batch_size: 12, augmentation_copies: 1, labels_weight: 0.5}
  - export
variants:
  fp32: []
  int8: [{pass: quantize, method: static, num_samples: 16}]
targets: [onnxruntime, openvino]
budget: {max_accuracy_drop: 90, max_metric_drop: {mean_iou: 90}}
benchmark: {rounds: 2, min_round_s: 0.001, pause_s: 0, batch_sizes: [1]}
output: out
"""


def make_shapes(seed: int, *, side: int = SIDE) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Noise with a reddish circle and a bluish square, whose borders count for nothing."""
    generator = np.random.default_rng(seed)
    pixels = generator.integers(0, 120, size=(side, side, 3), dtype=np.uint8)
    mask = np.zeros((side, side), dtype=np.uint8)
    rows, columns = np.mgrid[:side, :side]
    radius, half = generator.integers(side // 6, side // 4, size=2)
    row, column = generator.integers(radius, side - radius, size=2)
    far = np.hypot(rows - row, columns - column)
    mask[far < radius] = 1
    mask[np.abs(far - radius) < 0.7] = UNLABELLED
    top, left = generator.integers(0, side - 2 * half, size=2)
    mask[top : top + 2 * half, left : left + 2 * half] = 2
    pixels[..., 0][mask == 1] += 120
    pixels[..., 2][mask == 2] += 120
    return pixels, mask


def write_shapes(folder: Path, name: str, count: int, seed: int) -> None:
    (folder / name).mkdir()
    rows = []
    for index in range(count):
        pixels, mask = make_shapes(1000 * seed + index)
        Image.fromarray(pixels).save(folder / name / f"{index}.png")
        Image.fromarray(mask).save(folder / name / f"{index}-mask.png")
        rows.append((f"{name}/{index}.png", f"{name}/{index}-mask.png"))
    write_table(folder / f"{name}.csv", rows)


def write_table(path: Path, rows: list[tuple[str, str]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows([("image", "mask"), *rows])


def read_shapes(folder: Path, name: str, count: int) -> tuple[list[str], NDArray[np.uint8]]:
    masks = [np.asarray(Image.open(folder / name / f"{each}-mask.png")) for each in range(count)]
    return [str(folder / name / f"{each}.png") for each in range(count)], np.stack(masks)


def write_encoder(folder: Path) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = SegformerConfig(
            num_encoder_blocks=2,
            depths=[1, 1],
            sr_ratios=[2, 1],
            hidden_sizes=[16, 32],
            patch_sizes=[3, 3],
            strides=[2, 2],
            num_attention_heads=[1, 2],
            mlp_ratios=[2, 2],
            decoder_hidden_size=32,
            classifier_dropout_prob=0.0,
            drop_path_rate=0.0,
        )
        SegformerModel(config).save_pretrained(folder)
    SegformerImageProcessor(size={"height": SIDE, "width": SIDE}).save_pretrained(folder)


def mean_iou(found: NDArray[np.generic], wanted: NDArray[np.generic]) -> float:
    """Pixel by pixel, class by class."""
    counted = wanted != UNLABELLED
    shares = []
    for each in range(CLASSES):
        ours, theirs = (found == each) & counted, wanted == each
        shares.append((ours & theirs).sum() / (ours | theirs).sum())
    return float(np.mean(shares))


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory, compressor: Callable[..., Outcome]) -> Path:
    """An encoder without a head, data, and what `finetune` makes of them."""
    folder = tmp_path_factory.mktemp("shapes")
    for seed, (name, count) in enumerate((("train", 48), ("validation", 12), ("test", 16))):
        write_shapes(folder, name, count, seed)
    write_encoder(folder / "encoder")
    found = compressor(
        "finetune", folder / "encoder", folder, "--output", folder / "trained",
        "--task", "semantic-segmentation", "--store", folder / "store",
        "--set", "epochs=12", "--set", "learning_rate=5e-3", "--set", "batch_size=12",
    )  # fmt: skip
    assert found.code == 0, found.err
    (folder / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def run(shapes: Path, compressor: Callable[..., Outcome]) -> Finished:
    store = shapes / "store"
    outcome = compressor("run", shapes / "recipe.yaml", "--store", store)
    return Finished(outcome, shapes / "out", store)


def rows_with_bundles(run: Finished) -> list[Row]:
    assert run.outcome.code == 0, run.outcome.out + run.outcome.err
    return [each for each in read_report(run.output).rows if each.bundle is not None]


def test_shapes_are_learnt_and_pixels_counted(shapes: Path) -> None:
    facts = json.loads((shapes / "trained" / "finetune.json").read_text())["accuracy"]["test"]
    _, masks = read_shapes(shapes, "test", 16)
    assert (facts["num_rows"], facts["unit"]) == (16, "pixel")
    assert facts["num_units"] == (masks != UNLABELLED).sum()
    # Units of an image hang together: the interval is wider than that of so many alone.
    alone = 1.96 * np.sqrt(facts["value"] * (1 - facts["value"]) / facts["num_units"])
    assert facts["high"] - facts["low"] > 3 * alone
    assert infer_task(shapes / "trained") == "semantic-segmentation"
    assert label_names(shapes / "trained") == ("0", "1", "2")


def test_a_run_counts_every_pixel_of_every_bundle(run: Finished, shapes: Path) -> None:
    rows = rows_with_bundles(run)
    assert {(row.target, row.precision) for row in rows} == {
        (target, precision)
        for target in ("onnxruntime", "openvino")
        for precision in ("fp32", "int8")
    }
    images, masks = read_shapes(shapes, "test", 16)
    answers = read_answers(read_report(run.output), run.output)
    assert answers is not None
    for row in rows:
        assert row.test is not None
        assert row.test_comparison is not None
        with targets.load(run.output / str(row.bundle)) as predictor:
            found = np.stack([each.classes for each in predictor.predict(images)])
        counted = masks != UNLABELLED
        right = (found == masks)[counted]
        assert row.test.value == pytest.approx(right.mean())
        expected = mean_iou(found, masks)
        assert row.test_comparison.metrics["mean_iou"].value == pytest.approx(expected)
        assert expected > 0.6  # all noise would be a third of its share, at most 0.33
        groups = {each.value: each.num_rows for each in row.test_comparison.groups}
        assert groups == {str(each): (masks == each).sum() for each in range(CLASSES)}
        assert row.changed == ()
        assert answers[row.key].tolist() == found[counted].tolist()
    assert "test pixels" in (run.output / "report.md").read_text()


@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
def test_a_device_finds_the_accuracy_that_was_built(
    run: Finished, target: str, compressor: Callable[..., Outcome]
) -> None:
    row = next(each for each in rows_with_bundles(run) if each.target == target)
    folder = run.output / str(row.bundle)
    found = compressor("evaluate", folder)
    assert found.code == 0, found.err
    here, built = found.out.splitlines()
    assert here.split(": ")[1].strip() == built.split(": ")[1].strip() == str(row.test)
    manifest = Bundle.open(folder).manifest
    assert manifest.evaluation is not None
    pack = EvaluationPack.load(folder / manifest.evaluation)
    assert pack.labels.dtype == np.int16


def test_a_bundle_answers_as_the_post_processing_of_transformers(
    run: Finished, shapes: Path
) -> None:
    images, _ = read_shapes(shapes, "test", 16)
    untouched = next(
        each
        for each in (run.store / "steps").glob("*/files")
        if (each / "manifest.json").is_file()
        and (manifest := Bundle.open(each).manifest).name == "original"
        and (manifest.target, manifest.precision) == ("onnxruntime", "fp32")
    )
    with targets.load(untouched) as predictor:
        found = predictor.predict(images)
    model = get_task("semantic-segmentation").load_checkpoint(shapes / "trained").module
    processor = SegformerImageProcessor.from_pretrained(shapes / "trained")
    with torch.no_grad():
        outputs = model(**processor([Image.open(each) for each in images], return_tensors="pt"))
    assert outputs.logits.shape[2:] == (SIDE // 2, SIDE // 2)
    maps = processor.post_process_semantic_segmentation(outputs, [(SIDE, SIDE)] * len(images))
    for prediction, wanted in zip(found, maps, strict=True):
        np.testing.assert_array_equal(prediction.classes, wanted.numpy())
        assert sum(prediction.shares.values()) == pytest.approx(1)
        assert prediction.shares["1"] == pytest.approx(float((wanted == 1).float().mean()))


def test_masks_are_written_only_where_they_are_asked_for(
    run: Finished, compressor: Callable[..., Outcome], tmp_path: Path
) -> None:
    bundle = run.output / str(rows_with_bundles(run)[0].bundle)
    pixels, _ = make_shapes(7, side=48)
    Image.fromarray(pixels).save(tmp_path / "photo.jpg")
    before = sorted(tmp_path.iterdir())
    plain = compressor("predict", bundle, "--file", tmp_path / "photo.jpg")
    assert sorted(tmp_path.iterdir()) == before
    asked = compressor(
        "predict", bundle, "--file", tmp_path / "photo.jpg", "--masks", tmp_path / "masks"
    )
    assert asked.code == 0, asked.err
    assert asked.out == plain.out
    assert set(json.loads(asked.out)["shares"]) == {"0", "1", "2"}
    written = np.asarray(Image.open(tmp_path / "masks" / "photo.png"))
    with targets.load(bundle) as predictor:
        [found] = predictor.predict([tmp_path / "photo.jpg"])
    assert written.shape == (48, 48)
    np.testing.assert_array_equal(written, found.mask())
    # the nearest pixel, of three to two
    np.testing.assert_array_equal(written[::3, ::3], found.classes[::2, ::2])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "give them with --file"),
        (("--file", "a/1.png", "--file", "b/1.jpg"), "two images would have the mask"),
        (("--file", "masks/1.png"), "would replace the image"),
    ],
)
def test_masks_have_a_file_each(
    run: Finished, compressor: Callable[..., Outcome], arguments: tuple[str, ...], message: str
) -> None:
    bundle = run.output / str(rows_with_bundles(run)[0].bundle)
    found = compressor("predict", bundle, *arguments, "--masks", "masks")
    assert found.code == 2
    assert message in " ".join(found.err.replace("\u2502", " ").split())
