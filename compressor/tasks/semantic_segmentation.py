"""Semantic segmentation: a class for each pixel of an image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from compressor.errors import CheckpointError
from compressor.tasks.base import LABELS, Row
from compressor.tasks.image_classification import ImageClassification
from compressor.tasks.image_processor import write_processor
from targets.answers import IGNORED, AnyAnswers, PixelLabelAnswers
from targets.answers.pixel_labels import MAX_CLASSES, place_masks
from targets.preprocessing.image import PIXELS
from targets.signature import TensorSpec

if TYPE_CHECKING:
    from torch import Tensor, nn

    from compressor.data import LabelField, Split
    from compressor.model import Model, TorchModel
    from targets.preprocessing import ImagePreprocessing

__all__ = ["SemanticSegmentation"]


class SemanticSegmentation(ImageClassification):
    """Semantic segmentation with any network that transformers has such a head for."""

    name: ClassVar[str] = "semantic-segmentation"
    heads: ClassVar[tuple[str, ...]] = ("ForSemanticSegmentation",)
    answers: ClassVar[AnyAnswers] = PixelLabelAnswers()
    not_compared: ClassVar[frozenset[str]] = ImageClassification.not_compared | {
        "max_probability_difference",
        "max_calibration_error",
    }
    label_field: ClassVar[LabelField] = "mask"
    has_class_indices: ClassVar[bool] = True

    def check_fit(self, network: nn.Module, processor: ImagePreprocessing) -> None:
        """See the base class; and masks have values for all classes."""
        num_classes = len(network.config.id2label)  # type: ignore[union-attr,arg-type]
        if num_classes > MAX_CLASSES:
            raise CheckpointError(
                "the model has more classes than a mask has values for",
                where=type(network).__name__,
                given=f"{num_classes} classes",
                fix=f"use a model with at most {MAX_CLASSES} classes",
            )
        super().check_fit(network, processor)

    def save_processor(self, processor: ImagePreprocessing, folder: Path) -> None:
        """See the base class: the one of transformers that has the post-processing too."""
        write_processor(processor, folder, kind="Segformer")

    def outputs(self, model: TorchModel) -> tuple[TensorSpec, ...]:
        """See the base class: logits at fewer places than the image has pixels."""
        import torch

        with torch.no_grad():
            example = self.example(model.module, model.processor)
            logits = model.module(**{name: each[:1] for name, each in example.items()}).logits
        shape = ("batch", *logits.shape[1:])
        return (TensorSpec(name="logits", dtype="float32", shape=shape),)

    def encode_labelled(self, model: Model, split: Split) -> list[dict[str, Any]]:
        """See the base class: labels of all pixels that the model sees, (height, width) int16."""
        encoded = model.processor.open(Path()).encode(split.inputs)
        placed = place_masks(split.labels, encoded.views)
        return [
            {PIXELS: pixels, LABELS: labels}
            for pixels, labels in zip(encoded.rows[PIXELS], placed, strict=True)
        ]

    def encode_unlabeled(self, model: Model, inputs: Sequence[Any]) -> list[dict[str, Any]]:
        """See the base class."""
        nothing = np.full((model.processor.height, model.processor.width), IGNORED, np.int16)
        return [{**row, LABELS: nothing} for row in self.encode(model, inputs)]

    def collate_labels(self, rows: Sequence[Row]) -> NDArray[np.int64]:
        """See the base class.  # (N, height, width)"""
        return np.stack([row[LABELS] for row in rows]).astype(np.int64)

    def judged(self, logits: Tensor, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """See the base class: all pixels that have a label."""
        labels = batch[LABELS]
        counted = labels != IGNORED
        return _at_pixels(logits, labels).movedim(1, -1)[counted], labels[counted]

    def answered(self, logits: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        """See the base class: every place that the network itself has logits for."""
        return logits.movedim(1, -1).flatten(0, -2)

    def evaluated(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """See the base class: classes, for the scores of all pixels would not fit in memory."""
        import torch

        return _at_pixels(logits.float(), labels).argmax(dim=1).to(torch.int16), labels.short()


def _at_pixels(logits: Tensor, labels: Tensor) -> Tensor:
    """Logits of every pixel; see `targets.answers.PixelLabelAnswers`.

    Args:
        logits: (N, classes, h, w)
        labels: (N, height, width)

    Returns:
        (N, classes, height, width)
    """
    from torch.nn import functional

    size = list(labels.shape[1:])
    return functional.interpolate(logits, size=size, mode="bilinear", align_corners=False)
