"""Audio classification: one label out of several for a recording."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from compressor.checkpoint import read_config
from compressor.errors import CheckpointError, PassError
from compressor.model import Model, TorchModel
from compressor.tasks.base import Row, batches_of
from compressor.tasks.classification import Classification
from compressor.tasks.feature_extractor import read_extractor, write_extractor
from compressor.tasks.positions import shorten_positions
from compressor.tasks.preprocessor_config import PROCESSOR
from targets.preprocessing import AudioPreprocessing, Preprocessing
from targets.preprocessing.audio import FEATURES, MASK, SAMPLES, WAVEFORM
from targets.signature import Arrays, Signature, TensorSpec

if TYPE_CHECKING:
    from torch import Tensor, nn

    from compressor.data import Kind
    from compressor.training.augmentation import AudioNoise, Material
    from compressor.training.settings import DistillSettings

__all__ = ["AudioClassification"]

_EXAMPLE_SAMPLES = 4000  # a quarter of a second, or eight times the least that a model takes


class AudioClassification(Classification):
    """Audio classification with an encoder of waveforms, or of the spectrograms of Whisper."""

    name: ClassVar[str] = "audio-classification"
    heads: ClassVar[tuple[str, ...]] = ("ForAudioClassification", "ForSequenceClassification")
    kind: ClassVar[Kind] = "audio"
    preprocessing_type: ClassVar[type[Preprocessing]] = AudioPreprocessing
    distillation: ClassVar[Mapping[str, Any]] = MappingProxyType(
        {"learning_rate": 1e-4, "augmentation": 0.1}
    )

    def check_processor(self, folder: Path) -> None:
        """See the base class."""
        read_extractor(folder)

    def check_network(self, folder: Path) -> None:
        """See the base class: Whisper's classifiers read the last layer alone."""
        config = read_config(folder / "config.json")
        if config.get("model_type") == "whisper" and config.get("use_weighted_layer_sum"):
            raise CheckpointError(
                "the classifier reads all layers of Whisper's encoder, which is not supported",
                where=f"{folder / 'config.json'}, field use_weighted_layer_sum",
                given=True,
                fix="train one that reads the last layer: compressor finetune --task "
                "audio-classification",
            )

    def load_processor(self, folder: Path) -> AudioPreprocessing:
        """See the base class."""
        return read_extractor(folder)

    def save_processor(self, processor: AudioPreprocessing, folder: Path) -> None:
        """See the base class."""
        write_extractor(processor, folder)

    def processor_files(self, folder: Path) -> list[Path]:
        """See the base class."""
        return [folder / PROCESSOR]

    def longest(self, folder: Path, processor: AudioPreprocessing) -> int:
        """See the base class."""
        return processor.max_samples

    def read_length(self, folder: Path, *, max_length: int | None = None) -> int:
        """See the base class."""
        limit = read_extractor(folder).max_samples
        return min(max_length or limit, limit)

    def preprocessing(self, folder: Path, max_length: int) -> AudioPreprocessing:
        """See the base class."""
        return read_extractor(folder).model_copy(update={"max_samples": max_length})

    def shortened(
        self, network: nn.Module, processor: AudioPreprocessing, max_length: int
    ) -> AudioPreprocessing:
        """See the base class: a spectrogram, which has one size, is cut to whole seconds."""
        if processor.log_mel is None:
            return processor.model_copy(update={"max_samples": max_length})
        rate, longest = processor.sampling_rate, processor.log_mel.window
        if max_length % rate or max_length > longest:
            seconds = min(max(1, round(max_length / rate)), longest // rate)
            raise CheckpointError(
                "the model takes whole seconds only, and no more than it has positions for",
                where="max_length",
                given=f"{max_length} samples at {rate} per second; at most {longest}",
                fix=f"use {seconds * rate}",
            )
        log_mel = processor.log_mel.model_copy(update={"window": max_length})
        shorten_positions(network, max_length / longest)
        return processor.model_copy(update={"max_samples": max_length, "log_mel": log_mel})

    def signature(self, model: TorchModel) -> Signature:
        """See the base class."""
        processor: AudioPreprocessing = model.processor
        free: tuple[int | str, ...] = ("batch", "sequence")
        if processor.log_mel is not None:
            log_mel = processor.log_mel
            frames = log_mel.num_frames if log_mel.step is None else "sequence"
            shape = ("batch", log_mel.num_mel, frames)
            inputs = [TensorSpec(name=FEATURES, dtype="float32", shape=shape)]
        else:
            inputs = [TensorSpec(name=WAVEFORM, dtype="float32", shape=free)]
            if processor.attention_mask:
                inputs.append(TensorSpec(name=MASK, dtype="int64", shape=free))
        return Signature(inputs=tuple(inputs), outputs=self.outputs(model))

    def with_variable_window(
        self, processor: AudioPreprocessing, seconds: float
    ) -> AudioPreprocessing:
        """See the base class."""
        log_mel = processor.log_mel
        if log_mel is None:
            refused: AudioPreprocessing = super().with_variable_window(processor, seconds)
            return refused
        step = round(seconds * processor.sampling_rate)
        if step % log_mel.hop or not log_mel.fft_size // 2 < step <= log_mel.window:
            raise PassError(
                "the window cannot grow in steps of this size",
                where="step",
                given=f"{seconds:g} seconds, {step} samples",
                fix=f"use a multiple of {log_mel.hop / processor.sampling_rate:g} seconds, such as "
                f"0.5, and at most the window",
            )
        log_mel = log_mel.model_copy(update={"step": step})
        return processor.model_copy(update={"log_mel": log_mel})

    def shortest(self, model: TorchModel) -> int:
        """See the base class."""
        return int(model.processor.min_samples)

    def extent(self, model: TorchModel, length: int) -> int:
        """See the base class: samples, or columns of the spectrogram."""
        log_mel = model.processor.log_mel
        return length if log_mel is None else int(log_mel.frames_of(length))

    def example(self, network: nn.Module, processor: AudioPreprocessing) -> dict[str, Tensor]:
        """See the base class."""
        import torch

        generator = torch.Generator().manual_seed(0)
        log_mel = processor.log_mel
        if log_mel is not None:
            shape = (2, log_mel.num_mel, log_mel.num_frames)
            return {FEATURES: torch.rand(shape, generator=generator)}
        length = max(8 * processor.min_samples, _EXAMPLE_SAMPLES)
        inputs = {WAVEFORM: torch.randn((2, length), generator=generator)}
        if processor.attention_mask:
            mask = torch.ones((2, length), dtype=torch.int64)
            mask[-1, length // 2 :] = 0
            inputs = {WAVEFORM: inputs[WAVEFORM] * mask, MASK: mask}
        return inputs

    def adopt(self, student: TorchModel, model: TorchModel) -> AudioPreprocessing:
        """See the base class: recordings are prepared as for the model."""
        ours: AudioPreprocessing = student.processor
        theirs: AudioPreprocessing = model.processor
        if (ours.log_mel, ours.sampling_rate) != (theirs.log_mel, theirs.sampling_rate):
            raise CheckpointError(
                "it reads audio in a different form from the model",
                where="preprocessing",
                given=f"{_form(ours)} instead of {_form(theirs)}",
                fix="use a student that reads the same form of audio",
            )
        return theirs.model_copy(update={"min_samples": max(ours.min_samples, theirs.min_samples)})

    def encode(self, model: Model, inputs: Sequence[Any]) -> list[Row]:
        """See the base class: int16 samples."""
        processor = model.processor.model_copy(update={"max_samples": model.max_length})
        encoded = processor.open(Path()).encode(list(inputs))
        return [{SAMPLES: samples} for samples in encoded.rows[SAMPLES]]

    def collate(self, model: Model, rows: Sequence[Row]) -> Arrays:
        """See the base class."""
        signature = self.signature(model) if isinstance(model, TorchModel) else model.signature
        feeds: Arrays = model.processor.feeds({SAMPLES: [row[SAMPLES] for row in rows]}, signature)
        return feeds

    def length(self, row: Row) -> int:
        """See the base class."""
        return len(row[SAMPLES])

    def num_cut(self, model: TorchModel, inputs: Sequence[Any]) -> int:
        """See the base class."""
        processor = model.processor.model_copy(update={"max_samples": model.max_length})
        encoder = processor.open(Path())  # one at a time: all of them may not fit into memory
        return sum(encoder.encode([each]).truncated[0] for each in inputs)

    def probes(self, model: TorchModel, rows: Sequence[Row]) -> Mapping[str, Arrays]:
        """See the base class: short and long, with and without padding, and silence."""
        longest = {SAMPLES: np.resize(max(rows, key=self.length)[SAMPLES], model.max_length)}
        shortest = {SAMPLES: rows[0][SAMPLES][: self.shortest(model)]}
        silence = {SAMPLES: np.zeros_like(rows[0][SAMPLES])}
        several = batches_of(rows)
        several["the shortest input alone"] = [shortest]
        several["the longest input beside the shortest"] = [longest, shortest]
        several["silence beside a real recording"] = [silence, rows[0]]
        return {what: self.collate(model, each) for what, each in several.items()}

    def noise(
        self, model: TorchModel, material: Material, settings: DistillSettings, seed: int
    ) -> AudioNoise:
        """See the base class."""
        from compressor.training.augmentation import AudioNoise

        return AudioNoise(
            material.rows,
            share=settings.augmentation or 0.0,
            mixup=settings.augmentation_mixup,
            copies=settings.augmentation_copies,
            seed=seed,
        )


def _form(processor: AudioPreprocessing) -> str:
    log_mel = processor.log_mel
    rate = f"{processor.sampling_rate} Hz"
    if log_mel is None:
        return f"waveforms at {rate}"
    return f"spectrograms of {log_mel.num_mel} bands and {log_mel.num_frames} frames at {rate}"
