"""Networks that find objects: loaded, exported, trained, pruned where that is known."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import pytest
import torch
from transformers import AutoModelForObjectDetection
from transformers.image_transforms import center_to_corners_format
from transformers.loss.loss_for_object_detection import (
    ForObjectDetectionLoss,
    generalized_box_iou,
)

from compressor.answering import answer
from compressor.architecture import Architecture
from compressor.data import Splits
from compressor.errors import CheckpointError, PassError
from compressor.export import export_onnx
from compressor.inspection import inspect_checkpoint
from compressor.model import TorchModel
from compressor.parity import measure_parity
from compressor.passes import PassContext
from compressor.passes.distill import Distill
from compressor.passes.export import Export
from compressor.passes.finetune import Finetune
from compressor.passes.prune import Prune
from compressor.passes.quantize import Quantize
from compressor.passes.student import Student
from compressor.pruning.layers import select_layers
from compressor.tasks import get_task, infer_task
from compressor.tasks.base import LABELS
from compressor.tasks.object_detection import _distances
from compressor.training.batches import collator, encode, lengths
from compressor.training.finetuning import new_classifier
from compressor.training.taps import TappedEncoder
from compressor.training.teacher import Teacher
from targets.answers import IGNORED
from targets.checkpoint import load_module
from targets.encoder import encoder_layers
from targets.runtimes.onnxruntime import create_session
from tests.compressor.detection import (
    FAMILIES,
    NAMES,
    QUERIES,
    SIDE,
    make_network,
    make_scenes,
    write_encoder,
)

TASK = get_task("object-detection")
SPLIT = make_scenes(6, 0)


def batch_of(model: TorchModel) -> dict[str, torch.Tensor]:
    return collator(model)(encode(model, SPLIT))


@pytest.mark.parametrize("family", FAMILIES)
def test_networks_answer_as_those_of_transformers_and_as_their_exports(
    family: str, tmp_path: Path
) -> None:
    model = make_network(family)
    model.save(tmp_path)
    assert infer_task(tmp_path) == TASK.name
    loaded = TASK.load_checkpoint(tmp_path)
    assert loaded.labels == NAMES
    assert loaded.processor == model.processor
    pixels = batch_of(model)["pixel_values"]
    reference = AutoModelForObjectDetection.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        wanted, given = reference(pixels), loaded.module(pixels).logits
    assert given.shape == (6, QUERIES, len(NAMES) + 1 + 4)
    torch.testing.assert_close(given[..., :3], wanted.logits, atol=1e-5, rtol=0)
    torch.testing.assert_close(given[..., 3:], wanted.pred_boxes, atol=1e-5, rtol=0)
    assert float(given.std(dim=1).mean()) > 0.01  # queries differ, and so a wrong export is seen
    signature = TASK.signature(model)
    assert signature.outputs[0].shape == ("batch", QUERIES, 7)
    export_onnx(model, signature, tmp_path / "model.onnx")
    parity = measure_parity(model, tmp_path / "model.onnx", SPLIT.inputs)
    assert parity.max_abs_difference < 1e-4
    exact = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.compile_model(tmp_path / "model.onnx", "CPU", exact)
    for count in (1, 6):
        np.testing.assert_allclose(compiled(pixels[:count].numpy())[0], given[:count], atol=1e-4)
    assert Architecture.read(tmp_path) == Architecture.of(loaded.module)
    assert type(pickle.loads(pickle.dumps(loaded.module))) is type(loaded.module)  # noqa: S301


# Losses


def test_the_loss_is_that_of_transformers() -> None:
    model = make_network("yolos")
    batch = batch_of(model)
    outputs = model.module(batch["pixel_values"]).logits
    labels = []
    for table in SPLIT.labels:
        low, high = np.split(table[:, 1:5], 2, axis=1)
        boxes = np.concatenate([(low + high) / 2, high - low], axis=1)
        labels.append(
            {
                "class_labels": torch.from_numpy(table[:, 0]).long(),
                "boxes": torch.from_numpy(boxes),
            }
        )
    expected, *_ = ForObjectDetectionLoss(
        outputs[..., :3], labels, "cpu", outputs[..., 3:], model.module.config
    )
    total, count = TASK.loss(outputs, batch)
    assert int(count) == 6
    torch.testing.assert_close(total / count, expected, atol=0, rtol=1e-5)
    gradients = [
        torch.autograd.grad(each, outputs, retain_graph=True)[0] for each in (total / 6, expected)
    ]
    torch.testing.assert_close(*gradients, atol=1e-6, rtol=1e-4)


def test_boxes_are_as_far_apart_as_transformers_says() -> None:
    generator = torch.Generator().manual_seed(0)
    ours, theirs = (torch.rand((20, 4), generator=generator) for _ in range(2))
    corners = [center_to_corners_format(each) for each in (ours, theirs)]
    expected = 5 * (ours - theirs).abs().sum(dim=1) + 2 * (
        1 - generalized_box_iou(*corners).diagonal()
    )
    torch.testing.assert_close(_distances(ours, theirs), expected)
    assert _distances(ours, ours).abs().max() < 1e-5
    nothing = torch.zeros((1, 4))
    assert torch.isfinite(_distances(nothing, nothing)).all()


def test_images_that_count_for_nothing_and_crowds_are_not_learnt() -> None:
    model = make_network("yolos")
    batch = batch_of(model)
    outputs = model.module(batch["pixel_values"]).logits.detach()
    four = {LABELS: batch[LABELS][:4]}
    rest = {LABELS: batch[LABELS].clone()}
    rest[LABELS][4:] = IGNORED
    wanted = TASK.loss(outputs[:4], four)
    assert [float(each) for each in TASK.loss(outputs, rest)] == [float(each) for each in wanted]
    nothing = {LABELS: torch.full_like(batch[LABELS], IGNORED)}
    total, count = TASK.loss(outputs, nothing)
    assert (float(total), int(count)) == (0, 0)
    crowds, alone = ({LABELS: batch[LABELS].clone()} for _ in range(2))
    crowds[LABELS][:, 0, 5] = 1
    alone[LABELS][:, 0, 0] = -1
    assert float(TASK.loss(outputs, crowds)[0]) == float(TASK.loss(outputs, alone)[0])
    empty = {LABELS: torch.full_like(batch[LABELS], -1)}
    logits = outputs[..., :3].log_softmax(-1)[..., 2]
    assert float(TASK.loss(outputs, empty)[0]) == pytest.approx(-6 * float(logits.mean()), rel=1e-5)


def test_a_diverged_training_gives_a_loss_that_is_not_finite() -> None:
    batch = batch_of(make_network("yolos"))
    assert TASK.loss(torch.full((6, QUERIES, 7), torch.nan), batch)[0].isnan()


def test_labels_may_be_smooth() -> None:
    model = make_network("yolos")
    batch = batch_of(model)
    outputs = model.module(batch["pixel_values"]).logits.detach()
    outputs[..., :3] *= 20  # very sure
    sharp, smooth = (
        float(TASK.loss(outputs, batch, label_smoothing=each)[0]) for each in (0.0, 0.2)
    )
    assert sharp != pytest.approx(smooth, rel=0.01)


def test_queries_are_compared_with_themselves_and_objects_by_their_boxes() -> None:
    generator = torch.Generator().manual_seed(0)
    teacher = torch.rand((2, 3, 7), generator=generator)
    teacher[:, 0, :3] = torch.tensor([9.0, 0, 0])  # an object
    teacher[:, 1:, :3] = torch.tensor([0, 0, 20.0])  # none

    def divergence(student: torch.Tensor) -> float:
        return float(TASK.divergence(student, teacher, {}, temperature=2.0))

    assert divergence(teacher) == pytest.approx(0, abs=1e-5)
    swapped = teacher[:, [1, 0, 2]]
    assert divergence(swapped) > 5
    moved_object, moved_nothing = teacher.clone(), teacher.clone()
    moved_object[:, 0, 3:] = 0.9 - 0.5 * moved_object[:, 0, 3:]
    moved_nothing[:, 1, 3:] = 0.9 - 0.5 * moved_nothing[:, 1, 3:]
    assert divergence(moved_nothing) < 1e-3
    apart = _distances(moved_object[:, 0, 3:], teacher[:, 0, 3:]).mean()
    assert divergence(moved_object) == pytest.approx(float(apart), rel=0.01)


def test_a_teacher_recalls_what_it_found() -> None:
    model = make_network("yolos")
    rows = [{**row, "slot": slot} for slot, row in enumerate(encode(model, SPLIT))]
    encoder = TappedEncoder(model.module, hidden_layers=(0, 2))
    teacher = Teacher(encoder, ("pixel_values",), None)
    batch = collator(model)([rows[4], rows[0]])
    live = teacher.outputs(batch)
    assert teacher.remember(rows, lengths(model, rows), collator(model), limit_bytes=2**30)
    found = teacher.outputs(batch)
    torch.testing.assert_close(found.logits, live.logits, rtol=2e-2, atol=2e-2)
    assert found.hidden[1].shape == live.hidden[1].shape


@pytest.mark.parametrize("family", ["yolos-middle", "detr"])
def test_networks_learn_and_are_quantized(family: str, tmp_path: Path) -> None:
    model = make_network(family)
    splits = Splits(make_scenes(24, 1), SPLIT, SPLIT.take(()), NAMES)
    context = PassContext(splits, load_original=lambda: model, seed=0, folder=tmp_path / "work")
    quick = {"epochs": 2, "batch_size": 8, "learning_rate": 1e-3}
    tuned = Finetune(**quick).run(model, context)
    rows = collator(model)(encode(model, splits.train))
    with torch.no_grad():
        before, after = (
            float(TASK.loss(each.module(rows["pixel_values"]).logits, rows)[0])
            for each in (model, tuned.model)
        )
    assert after < before
    context = replace(context, folder=tmp_path / "more")
    taught = Distill(**quick, labels_weight=0.5, augmentation_copies=1).run(tuned.model, context)
    context = replace(context, folder=tmp_path / "export")
    context.folder.mkdir()
    exported = Export().run(taught.model, context).model
    feeds = TASK.collate(taught.model, TASK.encode(taught.model, SPLIT.inputs))
    with torch.no_grad():
        expected = taught.model.module(torch.from_numpy(feeds["pixel_values"])).logits.numpy()
    for method in ("static", "dynamic"):
        context = replace(context, folder=tmp_path / method)
        context.folder.mkdir()
        rounded = Quantize(method=method).run(exported, context).model
        # As it is written: the target re-encodes it before the runtime optimizes it.
        session = create_session(rounded.path, threads=1, optimization="none")
        away = np.abs(session.run(None, dict(feeds))[0] - expected)
        assert 0 < away.max() < 0.3 * np.ptp(expected)
        assert away[..., -4:].max() < 0.1  # of the sides of an image


# Other shapes


@pytest.mark.parametrize("family", ["yolos", "yolos-middle"])
def test_heads_neurons_and_layers_of_yolos_go(family: str, tmp_path: Path) -> None:
    model = make_network(family)
    pixels = batch_of(model)["pixel_values"]
    assert len(encoder_layers(model.module)) == 3
    splits = Splits(SPLIT, SPLIT, SPLIT.take(()), NAMES)
    context = PassContext(splits, load_original=lambda: model, seed=0, folder=tmp_path / "w")
    pruned = Prune(ratio=0.5).run(model, context).model
    assert isinstance(pruned, TorchModel)
    assert {each.num_heads for each in encoder_layers(pruned.module)} == {2}
    assert {each.ffn_width for each in encoder_layers(pruned.module)} == {32}
    fewer = replace(pruned, module=select_layers(pruned.module, (0, 2)))
    fewer.save(tmp_path / "fewer")
    again = TASK.load_checkpoint(tmp_path / "fewer")
    assert len(encoder_layers(again.module)) == 2
    with torch.no_grad():
        assert torch.equal(again.module(pixels).logits, fewer.module(pixels).logits)
    if family == "yolos-middle":
        kept = again.module.vit.encoder.interpolation.mid_position_embeddings
        before = model.module.vit.encoder.interpolation.mid_position_embeddings
        assert torch.equal(kept, before[:1])
    export_onnx(again, TASK.signature(again), tmp_path / "model.onnx")
    parity = measure_parity(again, tmp_path / "model.onnx", SPLIT.inputs)
    assert parity.max_abs_difference < 1e-4


@pytest.mark.parametrize("family", ["yolos", "yolos-middle"])
def test_another_size_of_images_moves_the_positions_of_patches_alone(family: str) -> None:
    model = make_network(family)
    embeddings = model.module.vit.embeddings
    before = embeddings.position_embeddings.detach().clone()
    scaled = torch.nn.functional.interpolate(
        before[:, 1:-QUERIES].reshape(1, 8, 8, 32).permute(0, 3, 1, 2),
        size=(12, 12), mode="bicubic",
    )  # fmt: skip
    with torch.no_grad():
        larger = torch.rand((2, 3, 48, 48), generator=torch.Generator().manual_seed(0))
        wanted = model.module(larger).logits  # interpolates in every run
        processor = TASK.resized(model.module, model.processor, 48)
        found = model.module(larger).logits
    assert (processor.height, processor.width) == (48, 48)
    after = embeddings.position_embeddings
    assert torch.equal(after[:, :1], before[:, :1])
    assert torch.equal(after[:, -QUERIES:], before[:, -QUERIES:])
    torch.testing.assert_close(after[:, 1:-QUERIES], scaled.flatten(2).transpose(1, 2))
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)
    assert list(model.module.config.image_size) == [48, 48]


def test_passes_say_what_they_do_not_do(tmp_path: Path) -> None:
    make_network("detr").save(tmp_path / "detr")
    make_network("yolos").save(tmp_path / "yolos")
    unknown = "its layers are of an unknown kind"
    found = inspect_checkpoint(tmp_path / "detr")
    assert found.passes["prune"] == unknown
    assert found.passes["drop_layers"] == "its layers are of an unknown kind"
    found = inspect_checkpoint(tmp_path / "yolos")
    assert (found.task, found.has_head, found.input) == (TASK.name, True, "an image")
    assert found.passes["prune"] is found.passes["drop_layers"] is found.passes["distill"] is None


def test_no_other_network_takes_the_place_of_one(tmp_path: Path) -> None:
    model = make_network("yolos")
    make_network("yolos", seed=1).save(tmp_path / "other")
    step = Student(checkpoint=tmp_path / "other")
    splits = Splits(SPLIT, SPLIT, SPLIT.take(()), NAMES)
    context = PassContext(splits, load_original=lambda: model, seed=0, folder=tmp_path / "w")
    with pytest.raises((CheckpointError, PassError), match="objects in different places"):
        step.run(model, context)


# Checkpoints


def test_a_bare_encoder_gets_a_head(tmp_path: Path) -> None:
    write_encoder(tmp_path)
    made = new_classifier(tmp_path, NAMES, task=TASK.name, image_size=48)
    assert type(made.module).__name__ == "YolosForObjectDetection"
    assert made.processor.height == 48
    assert answer(replace(made), SPLIT).scores.shape == (6, QUERIES, 6)
    with pytest.raises(CheckpointError, match="no head for this task"):
        TASK.load_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("change", "what", "given"),
    [
        ({"model_type": "rt_detr"}, "this kind of network for object detection", "'rt_detr'"),
        ({"backbone_config": None, "backbone": "resnet50"}, "from the library timm", "resnet50"),
        ({"backbone_config": {"model_type": "timm_backbone"}}, "from the library timm", "timm"),
    ],
)
def test_networks_that_are_not_known_are_refused(
    change: dict[str, Any], what: str, given: str, tmp_path: Path
) -> None:
    make_network("detr").save(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    for load in (TASK.load_checkpoint, lambda each: new_classifier(each, NAMES, task=TASK.name)):
        with pytest.raises(CheckpointError, match=what) as raised:
            load(tmp_path)
        assert given in str(raised.value.given)


@pytest.mark.parametrize(
    ("change", "what", "given"),
    [
        ({"size": {"shortest_edge": 800, "longest_edge": 1333}}, "keep their proportions", "1333"),
        ({"size": 800}, "keep their proportions", "800"),
        ({"do_center_crop": True, "crop_size": 16}, "the preprocessing crops the images", "crop"),
        ({"image_processor_type": "ViTImageProcessor"}, "is not supported", "ViTImageProcessor"),
    ],
)
def test_preprocessing_that_moves_boxes_is_refused(
    change: dict[str, Any], what: str, given: str, tmp_path: Path
) -> None:
    make_network("yolos").save(tmp_path)
    path = tmp_path / "preprocessor_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "do_pad": True}))  # of one size nothing is padded
    assert TASK.load_processor(tmp_path).height == SIDE
    path.write_text(json.dumps(config | change))
    with pytest.raises(CheckpointError, match=what) as raised:
        TASK.load_processor(tmp_path)
    assert given in str(raised.value.given)


def test_a_checkpoint_comes_back_through_its_task(tmp_path: Path) -> None:
    model = make_network("yolos")
    model.save(tmp_path)
    module = load_module(tmp_path, TASK.name)
    assert all(
        torch.equal(each, module.state_dict()[name])
        for name, each in model.module.state_dict().items()
    )
