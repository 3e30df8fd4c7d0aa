"""Another network in the place of the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import ViTConfig, ViTForImageClassification

from compressor.architecture import Architecture
from compressor.errors import PassError
from compressor.manager import PassManager
from compressor.model import TorchModel
from compressor.passes.student import Student
from compressor.passes.trim_vocabulary import TrimVocabulary
from compressor.progress import Silent
from compressor.store import RunStore
from targets.preprocessing import ImagePreprocessing


def vision(size: int, *, hidden: int = 16, channels: int = 3) -> TorchModel:
    config = ViTConfig(
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=size,
        patch_size=4,
        num_channels=channels,
        id2label={0: "cat", 1: "dog", 2: "owl"},
    )
    processor = ImagePreprocessing(height=size, width=size, channels=channels)
    return TorchModel(
        ViTForImageClassification(config).eval(), processor, "image-classification", 0
    )


def test_it_reads_what_the_model_reads_and_knows_its_classes(tmp_path: Path, context: Any) -> None:
    vision(16, hidden=8).save(tmp_path)
    model = vision(12)
    found = Student(checkpoint=tmp_path).run(model, context).model
    assert isinstance(found, TorchModel)
    assert found.labels == model.labels
    assert found.processor == model.processor
    assert Architecture.of(found.module).hidden_size == 8
    pixels = torch.rand(2, 3, 12, 12)
    assert found.module(pixel_values=pixels).logits.shape == (2, 3)  # positions were brought along


def test_a_student_for_other_images_is_refused(tmp_path: Path, context: Any) -> None:
    vision(12, channels=1).save(tmp_path)
    with pytest.raises(PassError, match="a different number of channels") as caught:
        Student(checkpoint=tmp_path).run(vision(12), context)
    assert caught.value.given == "1 instead of 3"


def test_all_that_is_read_of_a_checkpoint_is_part_of_the_key(tmp_path: Path) -> None:
    vision(16).save(tmp_path)
    found = {path.name for path in Student(checkpoint=tmp_path).input_files}
    assert found >= {"config.json", "model.safetensors", "preprocessor_config.json"}


def test_a_folder_that_is_no_checkpoint_is_found_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(PassError, match=r"the student cannot be used: .*no readable config"):
        Student(checkpoint=tmp_path).plan(Architecture.of(vision(12).module))


@pytest.fixture
def context(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from compressor.passes import PassContext

    return PassContext(
        splits=None,  # type: ignore[arg-type]
        load_original=lambda: vision(12),
        seed=0,
        folder=tmp_path_factory.mktemp("work"),
    )


def test_other_content_in_a_file_beside_the_data_is_another_step(
    tmp_path: Path, word_model: Any, word_splits: Any
) -> None:
    store = RunStore(tmp_path / "store")

    def make(files: Path, work: Path) -> dict[str, Any]:
        word_model().save(files)
        return {"form": "torch"}

    manager = PassManager(
        store=store,
        original=store.step("import", {}, make),
        splits=lambda: word_splits,
        data_hash="d",
        seed=0,
        width_multiple=8,
        progress=Silent(),
    )
    extra = tmp_path / "extra.txt"
    keys = []
    for text in ("who", "who where", "who"):
        extra.write_text(text)
        manager._done.clear()
        (step,) = manager.run([TrimVocabulary(keep_first=0, extra_text=(extra,))])
        keys.append(step.record.key)
    assert keys[0] == keys[2] != keys[1]
    assert np.unique(keys).size == 2
