"""A square that moves to one side, and a tiny network that can learn to which."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from transformers import VideoMAEConfig, VideoMAEModel

CLASSES = ("left", "right")
FRAMES = 4
SIDE = 16


def video(label: int, seed: int) -> NDArray[np.uint8]:
    """A light square that goes to the left or to the right over a dark ground, in 8 frames."""
    random = np.random.default_rng((label, seed))
    frames = random.integers(0, 40, (2 * FRAMES, SIDE, SIDE, 3), dtype=np.uint8)
    top, begin = random.integers(0, SIDE - 5), random.integers(0, 4)
    for number in range(2 * FRAMES):
        start = begin + number
        start = start if label else SIDE - 5 - start
        frames[number, top : top + 5, max(start, 0) : start + 5] += 180
    return frames


def write_videos(folder: Path, count: int, seed: int) -> None:
    """Every third as an animation, as a folder of images, and as an array."""
    for index in range(count):
        label = index % 2
        frames = video(label, 1000 * seed + index)
        path = folder / CLASSES[label] / str(index)
        path.parent.mkdir(parents=True, exist_ok=True)
        images = list(map(Image.fromarray, frames))
        if index % 3 == 0:
            images[0].save(path.with_suffix(".png"), save_all=True, append_images=images[1:])
        elif index % 3 == 1:
            path.mkdir()
            for number, image in enumerate(images):
                image.save(path / f"{number}.png")
        else:
            np.save(path.with_suffix(".npy"), frames)


def write_encoder(folder: Path) -> None:
    """A VideoMAE without a head, and its preprocessing."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        VideoMAEModel(
            VideoMAEConfig(
                image_size=SIDE,
                patch_size=4,
                num_frames=FRAMES,
                tubelet_size=2,
                hidden_size=32,
                num_hidden_layers=2,
                num_attention_heads=4,
                intermediate_size=64,
                initializer_range=0.1,
            )
        ).save_pretrained(folder)
    config = {
        "image_processor_type": "VideoMAEImageProcessor",
        "size": {"height": SIDE, "width": SIDE},
        "do_center_crop": False,
        "image_mean": [0.5] * 3,
        "image_std": [0.25] * 3,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(config))
