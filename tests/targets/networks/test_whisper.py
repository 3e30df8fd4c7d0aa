"""Whisper's encoder for shorter spectrograms than its window."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from compressor.tasks.positions import shorten_positions
from targets.checkpoint import load_module, save_module
from tests.compressor.writers import SPEECH, START, make_writer

FRAMES = 100  # of the window of the tiny network


def networks(tmp_path: Path) -> tuple[Any, Any]:
    """One network, as transformers has it and as it is loaded."""
    plain: Any = make_writer("whisper").module
    plain.save_pretrained(tmp_path)
    return plain, load_module(tmp_path, SPEECH)


def spectrogram(frames: int) -> Tensor:
    return torch.rand((2, 8, frames), generator=torch.Generator().manual_seed(frames))


@torch.no_grad()
def logits(network: Any, frames: int) -> Tensor:
    found: Tensor = network(
        input_features=spectrogram(frames), decoder_input_ids=torch.tensor([[START, 5, 6]] * 2)
    ).logits
    return found


def test_on_a_whole_window_it_computes_what_transformers_does(tmp_path: Path) -> None:
    plain, ours = networks(tmp_path)
    assert type(plain) is transformers.WhisperForConditionalGeneration
    torch.testing.assert_close(logits(ours, FRAMES), logits(plain, FRAMES))


@pytest.mark.parametrize("frames", [2, 30, 98])
def test_on_less_it_computes_what_a_network_of_that_window_does(
    tmp_path: Path, frames: int
) -> None:
    plain, ours = networks(tmp_path)
    with pytest.raises(ValueError, match="expects the mel input features"):
        logits(plain, frames)
    cut = copy.deepcopy(plain)
    shorten_positions(cut, frames / FRAMES)
    torch.testing.assert_close(logits(ours, frames), logits(cut, frames))


def test_transformers_reads_what_is_written(tmp_path: Path) -> None:
    _, ours = networks(tmp_path)
    (tmp_path / "again").mkdir()
    save_module(ours, tmp_path / "again")
    again = transformers.WhisperForConditionalGeneration.from_pretrained(tmp_path / "again")
    torch.testing.assert_close(logits(ours, FRAMES), logits(again.eval(), FRAMES))
