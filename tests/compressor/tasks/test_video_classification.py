"""Videos as a task: their networks, how their frames are prepared, passes and refusals."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    AutoModelForVideoClassification,
    TimesformerConfig,
    VideoMAEConfig,
    VivitConfig,
)

from compressor.architecture import Architecture
from compressor.data import DataSpec, Split, Splits, data_fingerprint, read_splits
from compressor.errors import CheckpointError, DataError, PassError
from compressor.model import OnnxModel, TorchModel
from compressor.passes.base import PassContext
from compressor.passes.drop_layers import DropLayers
from compressor.passes.export import Export
from compressor.passes.merge_tokens import MergeTokens
from compressor.passes.prune import Prune
from compressor.passes.quantize import Quantize
from compressor.tasks import get_task, infer_task
from compressor.tasks.video_processor import read_video_processor, write_video_processor
from compressor.training.augmentation import VideoNoise
from compressor.training.finetuning import new_classifier
from targets.networks.token_merging import merged_tokens
from targets.preprocessing import FIXED_SIZE, ImagePreprocessing, VideoPreprocessing
from targets.runtimes.onnxruntime import create_session

TASK = get_task("video-classification")
PIXELS = "pixel_values"
CLASSES = ("left", "right")
FRAMES, SIDE = 4, 16
_SIZES = {
    "image_size": SIDE,
    "num_frames": FRAMES,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "initializer_range": 0.1,
}
CONFIGS: dict[str, Callable[..., Any]] = {
    "videomae": lambda **more: VideoMAEConfig(**_SIZES, patch_size=8, tubelet_size=2, **more),
    "vivit": lambda **more: VivitConfig(**_SIZES, tubelet_size=[2, 8, 8], **more),
    "timesformer": lambda **more: TimesformerConfig(**_SIZES, patch_size=8, **more),
}
KNOWN = ["videomae", "vivit"]


def make(family: str, *, seed: int = 0, **settings: Any) -> TorchModel:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = CONFIGS[family](
            id2label=dict(enumerate(CLASSES)),
            label2id={name: index for index, name in enumerate(CLASSES)},
            **settings,
        )
        module = AutoModelForVideoClassification.from_config(config, attn_implementation="eager")
    image = ImagePreprocessing(height=SIDE, width=SIDE, mean=(0.5,) * 3, std=(0.25,) * 3)
    processor = VideoPreprocessing(num_frames=FRAMES, image=image)
    return TorchModel(module.eval(), processor, TASK.name, FIXED_SIZE)


def videos(count: int, seed: int = 0) -> tuple[Any, ...]:
    random = np.random.default_rng(seed)
    return tuple(random.integers(0, 256, (count, 6, 20, 24, 3), dtype=np.uint8))


def batch_of(model: TorchModel, count: int = 3) -> torch.Tensor:
    rows = TASK.encode(model, videos(count))
    return torch.from_numpy(TASK.collate(model, rows)[PIXELS])


def logits(model: TorchModel, count: int = 3) -> Any:
    with torch.no_grad():
        return model.module(batch_of(model, count)).logits.numpy()


@pytest.fixture
def context(tmp_path: Path) -> PassContext:
    splits = [Split(videos(8, seed), np.arange(8, dtype=np.int64) % 2) for seed in range(3)]
    return PassContext(
        Splits(*splits, CLASSES),
        load_original=lambda: make("videomae"),
        seed=0,
        folder=tmp_path / "work",
    )


# Checkpoints


@pytest.mark.parametrize("family", CONFIGS)
def test_a_checkpoint_comes_back_bit_equal(tmp_path: Path, family: str) -> None:
    model = make(family)
    TASK.check_fit(model.module, model.processor)
    TASK.signature(model).check({PIXELS: batch_of(model).numpy()})
    model.save(tmp_path)
    assert infer_task(tmp_path) == TASK.name
    loaded = TASK.load_checkpoint(tmp_path)
    assert (loaded.processor, loaded.labels) == (model.processor, CLASSES)
    assert loaded.max_length == FIXED_SIZE
    np.testing.assert_array_equal(logits(loaded), logits(model))


def test_an_encoder_without_head_gets_one(tmp_path: Path) -> None:
    model = make("videomae")
    model.module.videomae.save_pretrained(tmp_path)  # type: ignore[union-attr,operator]
    write_video_processor(model.processor, tmp_path)
    assert infer_task(tmp_path) == TASK.name
    found = new_classifier(tmp_path, ("a", "b", "c"), task=TASK.name)
    assert logits(found).shape == (3, 3)


def test_sizes_do_not_change(tmp_path: Path) -> None:
    make("videomae").save(tmp_path)
    with pytest.raises(CheckpointError, match="image size that they were trained with") as caught:
        new_classifier(tmp_path, CLASSES, task=TASK.name, image_size=32)
    assert caught.value.given == "32, where it reads 16"


def test_a_network_for_other_frames_is_told() -> None:
    model = make("videomae")
    other = model.processor.model_copy(update={"num_frames": 8})
    with pytest.raises(CheckpointError) as caught:
        TASK.check_fit(model.module, other)
    assert caught.value.what == (
        "the network does not take the videos that its preprocessing makes"
    )
    assert str(caught.value.given).startswith("8 x 3 x 16 x 16: ")
    assert "num_frames" in str(caught.value.fix)


def test_a_student_sees_as_many_frames() -> None:
    model, student = make("videomae"), make("vivit")
    assert TASK.adopt(student, model) == model.processor
    other = student.processor.model_copy(update={"num_frames": 8})
    with pytest.raises(CheckpointError, match="videos of another size") as caught:
        TASK.adopt(TorchModel(student.module, other, TASK.name, FIXED_SIZE), model)
    assert caught.value.given == "8 x 3 x 16 x 16 instead of 4 x 3 x 16 x 16"


# Preprocessing


PUBLISHED = {
    "size": {"shortest_edge": 18},
    "crop_size": {"height": SIDE, "width": SIDE},
    "do_center_crop": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
}


def write_processor(folder: Path, name: str, **more: Any) -> None:
    config = {**PUBLISHED, "image_processor_type": name, **more}
    (folder / "preprocessor_config.json").write_text(json.dumps(config))


def test_a_processor_of_videos_has_a_file_of_its_own_name(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"num_frames": 6}')
    write_processor(tmp_path, "VideoMAEImageProcessor")
    alone = read_video_processor(tmp_path)
    (tmp_path / "preprocessor_config.json").unlink()
    config = {**PUBLISHED, "video_processor_type": "VideoMAEVideoProcessor"}
    (tmp_path / "video_preprocessor_config.json").write_text(json.dumps(config))
    assert read_video_processor(tmp_path) == alone


def test_frames_are_prepared_as_by_transformers(tmp_path: Path) -> None:
    from transformers.models.videomae.image_processing_pil_videomae import VideoMAEImageProcessorPil

    (tmp_path / "config.json").write_text('{"num_frames": 6}')
    write_processor(tmp_path, "VideoMAEImageProcessor")
    processor = read_video_processor(tmp_path)
    [video] = videos(1)
    theirs = VideoMAEImageProcessorPil(**PUBLISHED)([Image.fromarray(each) for each in video])
    rows = processor.open(tmp_path).encode([video]).rows[PIXELS]
    found = processor.batch(rows)
    np.testing.assert_allclose(found, np.asarray(theirs[PIXELS]), atol=1e-5)


def test_frames_are_shifted_as_by_vivit(tmp_path: Path) -> None:
    from transformers import VivitImageProcessor

    (tmp_path / "config.json").write_text('{"num_frames": 6}')
    write_processor(tmp_path, "VivitImageProcessor", rescale_factor=1 / 127.5, offset=True)
    processor = read_video_processor(tmp_path)
    [video] = videos(1)
    theirs = VivitImageProcessor(**PUBLISHED, rescale_factor=1 / 127.5)(
        [Image.fromarray(each) for each in video], return_tensors="np"
    )
    found = processor.batch(processor.open(tmp_path).encode([video]).rows[PIXELS])
    np.testing.assert_allclose(found, theirs[PIXELS], atol=1e-4)
    write_video_processor(processor, tmp_path)
    assert read_video_processor(tmp_path) == processor


def test_the_preprocessing_says_the_number_of_frames_or_the_network(tmp_path: Path) -> None:
    write_processor(tmp_path, "VideoMAEFeatureExtractor", size=SIDE)
    with pytest.raises(CheckpointError, match="does not say how many frames") as caught:
        read_video_processor(tmp_path)
    assert str(caught.value.where).endswith("config.json, field num_frames")
    (tmp_path / "config.json").write_text('{"num_frames": 6}')
    assert read_video_processor(tmp_path).num_frames == 6
    assert read_video_processor(tmp_path).image.shortest_edge == SIDE
    write_processor(tmp_path, "VideoMAEImageProcessor", num_frames=8)
    assert read_video_processor(tmp_path).num_frames == 8


def test_other_preprocessing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not say how videos are prepared"):
        read_video_processor(tmp_path)
    write_processor(tmp_path, "CLIPImageProcessor")
    with pytest.raises(CheckpointError, match="preprocessing of the checkpoint is not") as caught:
        read_video_processor(tmp_path)
    assert "none of VideoMAEImageProcessor" in str(caught.value.given)


# Passes


@pytest.mark.parametrize(("family", "num_first"), [("videomae", 0), ("vivit", 1)])
def test_patches_of_videos_are_merged(
    family: str, num_first: int, context: PassContext, tmp_path: Path
) -> None:
    model, step = make(family), MergeTokens(ratio=0.4)
    step.requires(model, context)
    result = step.run(model, context)
    merged: Any = result.model
    found = merged_tokens(merged.module)
    assert found is not None
    assert found.num_first == num_first
    assert sum(found.counts) == round(0.4 * result.metrics["num_patches_before"])
    merged.save(tmp_path / "saved")
    np.testing.assert_array_equal(logits(TASK.load_checkpoint(tmp_path / "saved")), logits(merged))
    exported: Any = Export().run(merged, context).model
    [found_logits] = create_session(exported.path).run(None, {PIXELS: batch_of(merged).numpy()})
    np.testing.assert_allclose(found_logits, logits(merged), atol=1e-4)


def test_a_head_that_reads_one_patch_of_a_video_keeps_them_all(context: PassContext) -> None:
    with pytest.raises(PassError, match="cannot be merged") as caught:
        MergeTokens(ratio=0.4).requires(make("videomae", use_mean_pooling=False), context)
    assert "on the order of the patches after the last layer" in str(caught.value.given)


@pytest.mark.parametrize("family", KNOWN)
def test_pruned_networks_come_back_equal(tmp_path: Path, context: PassContext, family: str) -> None:
    model = make(family)
    step = Prune(ratio=0.5, recovery=None)
    planned = step.plan(Architecture.of(model.module))
    pruned = step.run(model, context).model
    assert isinstance(pruned, TorchModel)
    found = Architecture.of(pruned.module)
    assert found.layers == planned.layers
    assert found.num_parameters == pruned.num_parameters == planned.num_parameters
    pruned.save(tmp_path / "pruned")
    np.testing.assert_array_equal(logits(TorchModel.load(tmp_path / "pruned")), logits(pruned))


@pytest.mark.parametrize("family", KNOWN)
def test_layers_are_dropped(tmp_path: Path, context: PassContext, family: str) -> None:
    dropped = DropLayers(num_layers=1).run(make(family), context).model
    assert isinstance(dropped, TorchModel)
    dropped.save(tmp_path / "dropped")
    loaded = TASK.load_checkpoint(tmp_path / "dropped")
    assert len(Architecture.of(loaded.module).layers) == 1
    np.testing.assert_array_equal(logits(loaded), logits(dropped))


def test_layers_of_timesformer_are_not_known(context: PassContext) -> None:
    with pytest.raises(PassError, match="its layers were not found") as caught:
        Prune(ratio=0.5, recovery=None).requires(make("timesformer"), context)
    assert caught.value.given == "model_type timesformer"
    with pytest.raises(PassError):
        DropLayers(num_layers=1).requires(make("timesformer"), context)


def test_all_frames_move_alike_and_none_is_mirrored() -> None:
    ramp = np.arange(16, dtype=np.uint8)[None, None, :, None] * 4
    pixels = np.broadcast_to(ramp, (4, 16, 16, 3)).copy()
    noise = VideoNoise([{PIXELS: pixels}], share=0.2, mixup=0.0, copies=1, seed=0)
    generator = np.random.default_rng(0)
    for _ in range(20):
        moved = noise.change({PIXELS: pixels}, 0, generator)[PIXELS]
        assert (moved.shape, moved.dtype) == (pixels.shape, np.uint8)
        np.testing.assert_array_equal(moved, np.broadcast_to(moved[:1], moved.shape))
        assert moved[0, 8, 10, 0] > moved[0, 8, 5, 0]


@pytest.mark.slow
@pytest.mark.parametrize("family", CONFIGS)
def test_networks_are_exported_with_a_free_batch_and_quantized(
    context: PassContext, family: str
) -> None:
    model = make(family)
    exported = Export().run(model, context).model
    assert isinstance(exported, OnnxModel)
    exported.save(context.folder / "exported")
    quantized = Quantize(method="static", num_samples=8).run(exported, context).model
    assert isinstance(quantized, OnnxModel)
    assert quantized.precision == "int8"
    for count in (1, 5):
        feeds = TASK.collate(model, TASK.encode(model, videos(count)))
        expected = logits(model, count)
        found = create_session(exported.path, threads=1).run(None, dict(feeds))[0]
        np.testing.assert_allclose(found, expected, atol=1e-4, rtol=1e-4)
        # As it is written: the target re-encodes it before the runtime optimizes it.
        rounded = create_session(quantized.path, threads=1, optimization="none").run(
            None, dict(feeds)
        )[0]
        assert 0 < np.abs(rounded - expected).max() < np.ptp(expected)


# Data


def write_clip(path: Path, seed: int) -> None:
    [frames] = videos(1, seed)
    if path.suffix == ".npy":
        np.save(path, frames)
        return
    path.mkdir(parents=True)
    for number, frame in enumerate(frames):
        Image.fromarray(frame).save(path / f"{number}.png")


def test_folders_of_classes_hold_files_and_folders(tmp_path: Path) -> None:
    for label in CLASSES:
        (tmp_path / label).mkdir()
        write_clip(tmp_path / label / "a", 0)
        write_clip(tmp_path / label / "b.npy", 0)
        (tmp_path / label / "notes.txt").write_text("no clip")
    (tmp_path / "left" / ".cache").mkdir()
    spec = DataSpec(train=tmp_path, validation=tmp_path, test=tmp_path)
    splits = read_splits(spec, label_names=None, kind="video")
    names = [str(Path(each).relative_to(tmp_path)) for each in splits.test.inputs]
    assert names == ["left/a", "left/b.npy", "right/a", "right/b.npy"]
    rows = make("videomae").processor.open(tmp_path).encode(splits.test.inputs).rows[PIXELS]
    for row in rows[1:]:
        np.testing.assert_array_equal(row, rows[0])
    before = data_fingerprint(spec, kind="video")
    (tmp_path / "left/a/0.png").write_bytes((tmp_path / "left/a/1.png").read_bytes())
    assert data_fingerprint(spec, kind="video") != before


def test_tables_name_folders_and_absent_ones_are_told(tmp_path: Path) -> None:
    write_clip(tmp_path / "a", 0)
    table = tmp_path / "a.csv"
    table.write_text("video,label\na,left\na,right\n", encoding="utf-8")
    spec = DataSpec(train=table, validation=table, test=table)
    assert read_splits(spec, label_names=None, kind="video").test.inputs == (
        str(tmp_path / "a"),
        str(tmp_path / "a"),
    )
    table.write_text("video,label\na,left\nb,right\n", encoding="utf-8")
    with pytest.raises(DataError) as caught:
        read_splits(spec, label_names=None, kind="video")
    assert caught.value.what == "the file of the video does not exist"
    table.write_text("video,label\na,left\n,right\n", encoding="utf-8")
    with pytest.raises(DataError, match="a row has no video or no label") as caught:
        read_splits(spec, label_names=None, kind="video")
    assert "write the path of an animated image" in str(caught.value.fix)
