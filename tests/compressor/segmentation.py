"""Images of shapes with the class of each pixel, and a tiny network that can learn them."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from transformers import SegformerConfig, SegformerImageProcessor, SegformerModel

from targets.answers.pixel_labels import UNLABELLED

SIDE = 32


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
