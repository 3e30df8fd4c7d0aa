"""Waves of two lengths, and a tiny network that can learn to tell them apart."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PatchTSTConfig, PatchTSTModel

CLASSES = ("fast", "slow")
LENGTH = 32


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


def write_encoder(folder: Path) -> None:
    """A PatchTST without a head."""
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
        ).save_pretrained(folder)
