"""Image classification: one label out of several for an image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from compressor.errors import CheckpointError
from compressor.tasks.base import Row, batches_of
from compressor.tasks.classification import Classification
from compressor.tasks.image_processor import read_processor, write_processor
from compressor.tasks.positions import resize_positions
from compressor.tasks.preprocessor_config import PROCESSOR
from targets.preprocessing import FIXED_SIZE, ImagePreprocessing, Preprocessing
from targets.preprocessing.image import PIXELS
from targets.signature import Arrays, Signature, TensorSpec

if TYPE_CHECKING:
    from torch import Tensor, nn

    from compressor.data import Kind
    from compressor.model import Model, TorchModel
    from compressor.training.augmentation import Material, Noise
    from compressor.training.settings import DistillSettings

__all__ = ["ImageClassification"]


class ImageClassification(Classification):
    """Image classification with a vision transformer or a convolutional network."""

    name: ClassVar[str] = "image-classification"
    heads: ClassVar[tuple[str, ...]] = (
        "ForImageClassification",
        "ForImageClassificationWithTeacher",
    )
    kind: ClassVar[Kind] = "image"
    preprocessing_type: ClassVar[type[Preprocessing]] = ImagePreprocessing
    distillation: ClassVar[Mapping[str, Any]] = MappingProxyType(
        {"learning_rate": 1e-4, "augmentation": 0.1}
    )
    unfit_fix: ClassVar[str] = (
        "correct preprocessor_config.json, or fine-tune it with an --image-size"
    )
    """What to do about a network that does not take what its preprocessing makes."""

    def check_processor(self, folder: Path) -> None:
        """See the base class."""
        self.load_processor(folder)

    def load_processor(self, folder: Path) -> Any:
        """See the base class."""
        return read_processor(folder)

    def save_processor(self, processor: Any, folder: Path) -> None:
        """See the base class."""
        write_processor(processor, folder)

    def processor_files(self, folder: Path) -> list[Path]:
        """See the base class."""
        return [folder / PROCESSOR]

    def longest(self, folder: Path, processor: Any) -> int:
        """See the base class."""
        return FIXED_SIZE

    def preprocessing(self, folder: Path, max_length: int) -> Any:
        """See the base class."""
        return self.load_processor(folder)

    def shape(self, processor: Any) -> tuple[int, ...]:
        """Of what the network reads of one input."""
        return (processor.channels, processor.height, processor.width)

    def signature(self, model: TorchModel) -> Signature:
        """See the base class."""
        shape = ("batch", *self.shape(model.processor))
        return Signature(
            inputs=(TensorSpec(name=PIXELS, dtype="float32", shape=shape),),
            outputs=self.outputs(model),
        )

    def example(self, network: nn.Module, processor: Any) -> dict[str, Tensor]:
        """See the base class."""
        import torch

        generator = torch.Generator().manual_seed(0)
        return {PIXELS: torch.rand((2, *self.shape(processor)), generator=generator)}

    def resized(self, network: nn.Module, processor: Any, image_size: int) -> ImagePreprocessing:
        """See the base class: positions are interpolated once and for all."""
        resize_positions(network, image_size)

        def scaled(side: int, was: int) -> int:
            return max(image_size, round(side * image_size / was))

        was = (processor.height, processor.width)
        update: dict[str, Any] = {"height": image_size, "width": image_size}
        if processor.shortest_edge is not None:
            update["shortest_edge"] = scaled(processor.shortest_edge, min(was))
        if processor.resized is not None:
            update["resized"] = tuple(map(scaled, processor.resized, was))
        found: ImagePreprocessing = processor.model_copy(update=update)
        return found

    def check_fit(self, network: nn.Module, processor: Any) -> None:
        """See the base class: transformers look up positions for one size of images."""
        import torch

        try:
            with torch.no_grad():
                network(**self.example(network, processor))
        except Exception as error:  # any network may raise anything
            raise CheckpointError(
                f"the network does not take the {self.preprocessing_type.noun}s that its "
                "preprocessing makes",
                where=type(network).__name__,
                given=f"{' x '.join(map(str, self.shape(processor)))}: {error}",
                fix=self.unfit_fix,
            ) from error

    def adopt(self, student: TorchModel, model: TorchModel) -> Any:
        """See the base class: images are prepared as for the model, in its size."""
        processor: ImagePreprocessing = model.processor
        if student.processor.channels != processor.channels:
            raise CheckpointError(
                "it reads images with a different number of channels from the model",
                where="preprocessing",
                given=f"{student.processor.channels} instead of {processor.channels}",
                fix="take a student for the same kind of images",
            )
        resize_positions(student.module, processor.height)
        self.check_fit(student.module, processor)
        return processor

    def encode(self, model: Model, inputs: Sequence[Any]) -> list[Row]:
        """See the base class: pixels, (..., height, width, channels) uint8."""
        encoded = model.processor.open(Path()).encode(list(inputs))
        return [{PIXELS: pixels} for pixels in encoded.rows[PIXELS]]

    def collate(self, model: Model, rows: Sequence[Row]) -> Arrays:
        """See the base class.  # (N, ..., channels, height, width) float32"""
        return {PIXELS: model.processor.batch([row[PIXELS] for row in rows])}

    def length(self, row: Row) -> int:
        """See the base class."""
        return FIXED_SIZE

    def num_cut(self, model: TorchModel, inputs: Sequence[Any]) -> int:
        """See the base class."""
        return 0

    def probes(self, model: TorchModel, rows: Sequence[Row]) -> Mapping[str, Arrays]:
        """See the base class: real ones alone and together, and one that is all white."""
        white = {PIXELS: np.full_like(rows[0][PIXELS], 255)}
        several = batches_of(rows)
        several[f"a white {self.preprocessing_type.noun} beside a real one"] = [white, rows[0]]
        return {what: self.collate(model, each) for what, each in several.items()}

    def noise(
        self, model: TorchModel, material: Material, settings: DistillSettings, seed: int
    ) -> Noise:
        """See the base class."""
        from compressor.training.augmentation import ImageNoise

        return ImageNoise(
            material.rows,
            share=settings.augmentation or 0.0,
            mixup=settings.augmentation_mixup,
            copies=settings.augmentation_copies,
            seed=seed,
        )
