"""Images of shapes with boxes around them, and tiny networks that can learn to find them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from transformers import (
    DetrConfig,
    PretrainedConfig,
    ResNetConfig,
    TableTransformerConfig,
    YolosConfig,
    YolosImageProcessorPil,
    YolosModel,
)

from compressor.data import Split
from compressor.model import TorchModel
from targets.checkpoint import auto_class
from targets.preprocessing import ImagePreprocessing

SIDE = 32
NAMES = ("circle", "square")
QUERIES = 5
_DETR = {
    "d_model": 32, "encoder_layers": 1, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32,
    "num_queries": QUERIES, "init_std": 0.2,
}  # fmt: skip


def _resnet() -> ResNetConfig:
    return ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic",
        out_features=["stage2"],
    )  # fmt: skip


def yolos_config(*, middle: bool = False, **more: Any) -> YolosConfig:
    """The config of a YOLOS of a few ten thousand weights."""
    sizes = {
        "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4,
        "intermediate_size": 64, "image_size": [SIDE, SIDE], "patch_size": 4,
        "num_detection_tokens": QUERIES, "initializer_range": 0.1,
    }  # fmt: skip
    return YolosConfig(**{**sizes, "use_mid_position_embeddings": middle, **more})


FAMILIES: dict[str, Callable[..., PretrainedConfig]] = {
    "yolos": yolos_config,
    "yolos-middle": lambda **more: yolos_config(middle=True, **more),
    "detr": lambda **more: DetrConfig(backbone_config=_resnet(), **_DETR, **more),
    "table-transformer": lambda **more: TableTransformerConfig(
        backbone_config=_resnet(), **_DETR, **more
    ),
}


def make_network(
    family: str, *, names: tuple[str, ...] = NAMES, seed: int = 0, **more: Any
) -> TorchModel:
    """A random network."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = FAMILIES[family](
            id2label=dict(enumerate(names)),
            label2id={name: index for index, name in enumerate(names)},
            **more,
        )
        found = auto_class("object-detection").from_config(config, attn_implementation="eager")
        _tell_apart(found)
    processor = ImagePreprocessing(
        height=SIDE, width=SIDE, resample="bilinear", mean=(0.5,) * 3, std=(0.25,) * 3
    )
    return TorchModel(found.eval(), processor, "object-detection", 0)


def _tell_apart(module: torch.nn.Module) -> None:
    """Give places and queries another vector each."""
    with torch.no_grad():
        for name, each in module.named_parameters():
            if "position_embeddings" in name or "tokens" in name:
                each.normal_(std=0.5)


def make_scene(seed: int, *, side: int = SIDE) -> tuple[NDArray[np.uint8], list[list[float]]]:
    """Noise with one shape or two, and their boxes: class, left, top, right and bottom in pixels.

    A circle is reddish, a square bluish.
    """
    generator = np.random.default_rng(seed)
    pixels = generator.integers(0, 80, size=(side, side, 3), dtype=np.uint8)
    rows, columns = np.mgrid[:side, :side]
    boxes = []
    halves = np.array_split(np.arange(side), 2)  # each in its half: none lies on another
    kinds = generator.permutation([0, 1])
    for kind, half in zip(kinds[: generator.integers(1, 3)], halves, strict=False):
        size = int(generator.integers(side // 4, side // 2 - 1))
        left = int(generator.integers(half[0], half[-1] + 2 - size))
        top = int(generator.integers(0, side - size + 1))
        inside = (rows >= top) & (rows < top + size) & (columns >= left) & (columns < left + size)
        if kind == 0:
            middle = (size - 1) / 2
            inside &= np.hypot(rows - top - middle, columns - left - middle) <= size / 2
        pixels[..., 0 if kind == 0 else 2][inside] += 170
        boxes.append([int(kind), left, top, left + size, top + size])
    return pixels, boxes


def make_scenes(count: int, seed: int) -> Split:
    """Images as arrays of pixels, and their tables of boxes."""
    scenes = [make_scene(1000 * seed + index) for index in range(count)]
    tables = []
    for pixels, boxes in scenes:
        table = np.zeros((len(boxes), 6), dtype=np.float32)
        table[:, :5] = boxes
        table[:, 1:5] /= len(pixels)
        tables.append(table)
    return Split(tuple(pixels for pixels, _ in scenes), tuple(tables))


def write_scenes(folder: Path, name: str, count: int, seed: int) -> None:
    """The same as files, as COCO has them."""
    (folder / name).mkdir(parents=True)
    images, annotations = [], []
    for index in range(count):
        pixels, boxes = make_scene(1000 * seed + index)
        file = f"{name}/{index}.png"
        Image.fromarray(pixels).save(folder / file)
        images.append({"id": index, "file_name": file, "shapes": len(boxes)})
        for kind, left, top, right, bottom in boxes:
            box = [left, top, right - left, bottom - top]
            annotations.append({"image_id": index, "category_id": int(kind) + 1, "bbox": box})
    categories = [{"id": index, "name": each} for index, each in enumerate(NAMES, 1)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")


def write_encoder(folder: Path, **more: Any) -> None:
    """A YOLOS without a head, and its preprocessing."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = YolosModel(yolos_config(**more))
        _tell_apart(encoder)
    encoder.save_pretrained(folder)
    YolosImageProcessorPil(size={"height": SIDE, "width": SIDE}).save_pretrained(folder)
