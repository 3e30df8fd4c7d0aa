"""Images as a task: rows, batches, probes, signature, and the task that the files tell."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from transformers import DeiTForImageClassificationWithTeacher

from compressor.data import Splits
from compressor.errors import CheckpointError, PassError
from compressor.model import TorchModel
from compressor.tasks import TASKS, TaskName, get_task, infer_task
from targets.preprocessing import FIXED_SIZE

MakeVision = Callable[..., TorchModel]
TASK = get_task("image-classification")
FAMILIES = ["vit", "deit", "dinov2", "resnet", "convnext", "efficientnet-lite"]
PIXELS = "pixel_values"


@pytest.mark.parametrize("family", FAMILIES)
def test_batches_fit_the_signature_and_the_network(
    vision_model: MakeVision, image_splits: Splits, family: str
) -> None:
    model = vision_model(family)
    signature = TASK.signature(model)
    rows = TASK.encode(model, image_splits.validation.inputs[:5])
    batch = TASK.collate(model, rows)
    signature.check(batch)
    assert batch[PIXELS].shape == (5, 3, 16, 16)
    with torch.no_grad():
        logits = model.module(torch.from_numpy(batch[PIXELS])).logits
    assert logits.shape == (5, 3)
    assert [spec.shape for spec in signature.outputs] == [("batch", 3)]
    example = TASK.example(model.module, model.processor)
    signature.check({name: each.numpy() for name, each in example.items()})


def test_rows_are_bytes_and_batches_are_normalized(
    vision_model: MakeVision, image_splits: Splits
) -> None:
    model = vision_model("resnet")
    rows = TASK.encode(model, image_splits.validation.inputs[:3])
    assert all(row[PIXELS].dtype == np.uint8 and row[PIXELS].shape == (16, 16, 3) for row in rows)
    assert [TASK.length(row) for row in rows] == [FIXED_SIZE] * 3
    assert TASK.num_cut(model, image_splits.validation.inputs) == 0
    expected = (np.stack([row[PIXELS] for row in rows]) / 255 - 0.5) / 0.25
    found = TASK.collate(model, rows)[PIXELS]
    np.testing.assert_allclose(found, expected.transpose(0, 3, 1, 2), atol=1e-6)


def test_probes_are_real_images_alone_and_together_and_a_white_one(
    vision_model: MakeVision, image_splits: Splits
) -> None:
    model = vision_model("resnet")
    rows = TASK.encode(model, image_splits.validation.inputs[:6])
    probes = TASK.probes(model, rows)
    assert sorted(len(batch[PIXELS]) for batch in probes.values()) == [1, 2, 3, 6]
    white = probes["a white image beside a real one"][PIXELS]
    np.testing.assert_allclose(white[0], (1 - 0.5) / 0.25)
    np.testing.assert_array_equal(white[1:], TASK.collate(model, rows[:1])[PIXELS])
    for batch in TASK.probes(model, rows[:1]).values():
        TASK.signature(model).check(batch)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_checkpoint_comes_back_bit_equal(
    vision_model: MakeVision, tmp_path: Path, family: str
) -> None:
    model = vision_model(family)
    model.save(tmp_path / "model")
    loaded = TASK.load_checkpoint(tmp_path / "model")
    assert (loaded.processor, loaded.labels) == (model.processor, model.labels)
    assert (loaded.task, loaded.max_length) == ("image-classification", FIXED_SIZE)
    before, after = model.module.state_dict(), loaded.module.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert TASK.processor_files(tmp_path / "model") == [
        tmp_path / "model" / "preprocessor_config.json"
    ]
    assert TASK.preprocessing(tmp_path / "model", 0) == model.processor


def test_a_checkpoint_of_another_task_is_refused(vision_model: MakeVision, tmp_path: Path) -> None:
    vision_model("vit").save(tmp_path / "model")
    with pytest.raises(CheckpointError):
        get_task("text-classification").load_checkpoint(tmp_path / "model")


def test_a_checkpoint_without_preprocessing_is_refused(
    vision_model: MakeVision, tmp_path: Path
) -> None:
    vision_model("vit").save(tmp_path / "model")
    (tmp_path / "model" / "preprocessor_config.json").unlink()
    for check in (TASK.check_processor, TASK.load_checkpoint):
        with pytest.raises(CheckpointError, match="does not say how images are prepared"):
            check(tmp_path / "model")


def test_a_head_that_was_distilled_is_a_head(vision_model: MakeVision, tmp_path: Path) -> None:
    model = vision_model("deit")
    config = model.module.config
    config.architectures = ["DeiTForImageClassificationWithTeacher"]  # type: ignore[union-attr]
    network = DeiTForImageClassificationWithTeacher(config).eval()
    replace(model, module=network).save(tmp_path / "model")
    assert infer_task(tmp_path / "model") == "image-classification"
    loaded = TASK.load_checkpoint(tmp_path / "model")
    assert type(loaded.module) is DeiTForImageClassificationWithTeacher
    images = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(loaded.module(images)[0], network(images).logits)


# Which task


@pytest.mark.parametrize(
    ("config", "processor", "expected"),
    [
        ({"architectures": ["ViTForImageClassification"]}, None, "image-classification"),
        ({"architectures": ["BertForSequenceClassification"]}, None, "text-classification"),
        ({"architectures": ["Dinov2Model"], "model_type": "dinov2"}, None, "image-classification"),
        ({"architectures": ["BertModel"], "vocab_size": 5}, None, "text-embedding"),
        ({"model_type": "bert", "vocab_size": 5}, None, "text-classification"),
        ({"model_type": "clip"}, {"size": 224}, "image-classification"),
        (None, None, "text-classification"),
        ([], None, "text-classification"),
    ],
)
def test_the_task_is_told_by_the_files(
    tmp_path: Path, config: Any, processor: Any, expected: str
) -> None:
    for name, value in (("config.json", config), ("preprocessor_config.json", processor)):
        if value is not None:
            (tmp_path / name).write_text(json.dumps(value))
    assert infer_task(tmp_path) == expected


def test_a_task_is_known_by_its_name() -> None:
    adapter = TypeAdapter(TaskName)
    assert adapter.validate_python("image-classification") == "image-classification"
    with pytest.raises(ValidationError) as caught:
        adapter.validate_python("image-clasification")
    [details] = caught.value.errors()
    assert details["msg"] == "there is no task 'image-clasification'"
    known = f"known: {', '.join(TASKS)}"
    assert details["ctx"]["fix"] == f"did you mean 'image-classification'? {known}"
    assert adapter.json_schema() == {"enum": list(TASKS)}
    with pytest.raises(PassError, match="there is no task 'vision'") as refused:
        get_task("vision")
    assert "image-classification" in str(refused.value.fix)
