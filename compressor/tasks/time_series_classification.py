"""Time series classification: one label out of several for a signal."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from pydantic import ValidationError

from compressor.errors import CheckpointError
from compressor.tasks.base import Row, batches_of
from compressor.tasks.classification import Classification
from compressor.tasks.preprocessor_config import PROCESSOR
from targets.preprocessing import FIXED_SIZE, Preprocessing, SeriesPreprocessing
from targets.preprocessing.series import VALUES
from targets.signature import Arrays, Signature, TensorSpec

if TYPE_CHECKING:
    from torch import Tensor, nn

    from compressor.data import Kind
    from compressor.model import Model, TorchModel
    from compressor.training.augmentation import Material, SeriesNoise
    from compressor.training.settings import DistillSettings

__all__ = ["TimeSeriesClassification"]

_FIELDS = {"length": "context_length", "channels": "num_input_channels"}
"""Of the preprocessing -> its name in the config of a network."""


class TimeSeriesClassification(Classification):
    """Classification of signals with a network of patches: PatchTST or PatchTSMixer."""

    name: ClassVar[str] = "time-series-classification"
    heads: ClassVar[tuple[str, ...]] = ("ForTimeSeriesClassification", "ForClassification")
    kind: ClassVar[Kind] = "series"
    preprocessing_type: ClassVar[type[Preprocessing]] = SeriesPreprocessing

    def check_processor(self, folder: Path) -> None:
        """See the base class."""
        self.load_processor(folder)

    def load_processor(self, folder: Path) -> SeriesPreprocessing:
        """See the base class: the config of a network says all, which an exported one has not."""
        path = folder / PROCESSOR
        if not path.is_file():
            path = folder / "config.json"
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
            return SeriesPreprocessing(**{name: config[field] for name, field in _FIELDS.items()})
        except (OSError, LookupError, TypeError, ValidationError, ValueError) as error:
            raise CheckpointError(
                "the checkpoint does not say which signals it reads",
                where=path,
                given=f"{error} is missing" if isinstance(error, KeyError) else error,
                fix=f"pass a time series checkpoint, with {' and '.join(_FIELDS.values())}",
            ) from error

    def save_processor(self, processor: SeriesPreprocessing, folder: Path) -> None:
        """See the base class."""
        config = {field: getattr(processor, name) for name, field in _FIELDS.items()}
        (folder / PROCESSOR).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")

    def processor_files(self, folder: Path) -> list[Path]:
        """See the base class."""
        return [folder / PROCESSOR]

    def longest(self, folder: Path, processor: Any) -> int:
        """See the base class."""
        return FIXED_SIZE

    def preprocessing(self, folder: Path, max_length: int) -> SeriesPreprocessing:
        """See the base class."""
        return self.load_processor(folder)

    def signature(self, model: TorchModel) -> Signature:
        """See the base class."""
        shape = ("batch", model.processor.length, model.processor.channels)
        values = TensorSpec(name=VALUES, dtype="float32", shape=shape)
        return Signature(inputs=(values,), outputs=self.outputs(model))

    def example(self, network: nn.Module, processor: SeriesPreprocessing) -> dict[str, Tensor]:
        """See the base class."""
        import torch

        generator = torch.Generator().manual_seed(0)
        shape = (2, processor.length, processor.channels)
        return {VALUES: torch.randn(shape, generator=generator)}

    def shortened(
        self, network: nn.Module, processor: SeriesPreprocessing, max_length: int
    ) -> SeriesPreprocessing:
        """See the base class: no other length is possible."""
        raise CheckpointError(
            "the network reads signals of one length",
            where="max_length",
            given=f"{max_length}, where it reads {processor.length} points in time",
            fix="leave the length out",
        )

    def adopt(self, student: TorchModel, model: TorchModel) -> SeriesPreprocessing:
        """See the base class: signals of the same form."""
        ours: SeriesPreprocessing = student.processor
        theirs: SeriesPreprocessing = model.processor
        if ours != theirs:
            raise CheckpointError(
                "it reads signals of a different form from the model",
                where="preprocessing",
                given=f"{ours.length} points in time of {ours.channels} channels instead of "
                f"{theirs.length} of {theirs.channels}",
                fix="use a student that reads signals of the same form",
            )
        return theirs

    def encode(self, model: Model, inputs: Sequence[Any]) -> list[Row]:
        """See the base class: values, (length, channels) float32."""
        encoded = model.processor.open(Path()).encode(list(inputs))
        return [{VALUES: values} for values in encoded.rows[VALUES]]

    def collate(self, model: Model, rows: Sequence[Row]) -> Arrays:
        """See the base class.  # (N, length, channels) float32"""
        return {VALUES: np.stack([row[VALUES] for row in rows])}

    def length(self, row: Row) -> int:
        """See the base class."""
        return FIXED_SIZE

    def num_cut(self, model: TorchModel, inputs: Sequence[Any]) -> int:
        """See the base class."""
        return 0

    def probes(self, model: TorchModel, rows: Sequence[Row]) -> Mapping[str, Arrays]:
        """See the base class: real signals alone and together, and one that never changes."""
        still = {VALUES: np.ones_like(rows[0][VALUES])}
        several = batches_of(rows)
        several["a signal that never changes beside a real one"] = [still, rows[0]]
        return {what: self.collate(model, each) for what, each in several.items()}

    def noise(
        self, model: TorchModel, material: Material, settings: DistillSettings, seed: int
    ) -> SeriesNoise:
        """See the base class."""
        from compressor.training.augmentation import SeriesNoise

        return SeriesNoise(
            material.rows,
            share=settings.augmentation or 0.0,
            mixup=settings.augmentation_mixup,
            copies=settings.augmentation_copies,
            seed=seed,
        )
