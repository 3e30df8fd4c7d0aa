"""Video classification: one label out of several for a video."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from compressor.errors import CheckpointError
from compressor.tasks.image_classification import ImageClassification
from compressor.tasks.video_processor import read_video_processor, write_video_processor
from targets.preprocessing import Preprocessing, VideoPreprocessing

if TYPE_CHECKING:
    from torch import nn

    from compressor.data import Kind
    from compressor.model import TorchModel
    from compressor.training.augmentation import Material, Noise
    from compressor.training.settings import DistillSettings

__all__ = ["VideoClassification"]


class VideoClassification(ImageClassification):
    """Video classification with a transformer: VideoMAE, ViViT or TimeSformer.

    What is read of a video has one size, as an image has: some frames of one height and width.
    """

    name: ClassVar[str] = "video-classification"
    heads: ClassVar[tuple[str, ...]] = ("ForVideoClassification",)
    kind: ClassVar[Kind] = "video"
    preprocessing_type: ClassVar[type[Preprocessing]] = VideoPreprocessing
    unfit_fix: ClassVar[str] = "correct preprocessor_config.json, or num_frames there"

    def load_processor(self, folder: Path) -> VideoPreprocessing:
        """See the base class."""
        return read_video_processor(folder)

    def save_processor(self, processor: VideoPreprocessing, folder: Path) -> None:
        """See the base class."""
        write_video_processor(processor, folder)

    def shape(self, processor: VideoPreprocessing) -> tuple[int, ...]:
        """See the base class.  # (num_frames, channels, height, width)"""
        return (processor.num_frames, *super().shape(processor.image))

    def resized(self, network: nn.Module, processor: Any, image_size: int) -> Any:
        """See the base class: the positions of these networks are for one size."""
        raise CheckpointError(
            "video networks keep the image size that they were trained with",
            where="image_size",
            given=f"{image_size}, where it reads {processor.image.height}",
            fix="leave the image size out",
        )

    def adopt(self, student: TorchModel, model: TorchModel) -> VideoPreprocessing:
        """See the base class: videos are prepared as for the model."""
        ours, theirs = self.shape(student.processor), self.shape(model.processor)
        if ours != theirs:
            raise CheckpointError(
                "it reads videos of another size than the model",
                where="preprocessing",
                given="{} x {} x {} x {} instead of {} x {} x {} x {}".format(*ours, *theirs),
                fix="take a student for as many frames of the same size",
            )
        processor: VideoPreprocessing = model.processor
        return processor

    def noise(
        self, model: TorchModel, material: Material, settings: DistillSettings, seed: int
    ) -> Noise:
        """See the base class."""
        from compressor.training.augmentation import VideoNoise

        return VideoNoise(
            material.rows,
            share=settings.augmentation or 0.0,
            mixup=settings.augmentation_mixup,
            copies=settings.augmentation_copies,
            seed=seed,
        )
