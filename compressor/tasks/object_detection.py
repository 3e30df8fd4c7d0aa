"""Object detection: boxes around the objects of an image, each with a class."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from compressor.checkpoint import read_config
from compressor.errors import CheckpointError, DataError
from compressor.tasks import image_processor
from compressor.tasks.base import LABELS, Row
from compressor.tasks.image_classification import ImageClassification
from compressor.tasks.preprocessor_config import config_path, read_preprocessor_config
from targets.answers import IGNORED, AnyAnswers, BoxAnswers, Units
from targets.answers.boxes import BOX_METRICS, MAX_BOXES, place_boxes
from targets.average_precision import BOX, CLASS, SCORE
from targets.preprocessing.image import ImagePreprocessing
from targets.signature import TensorSpec

if TYPE_CHECKING:
    from torch import Tensor

    from compressor.data import LabelField, Split
    from compressor.model import Model, TorchModel
    from compressor.report.schema import ChangedExample, Comparison

__all__ = ["ObjectDetection"]

FAMILIES = ("yolos", "detr", "table-transformer")
"""Networks whose queries have a class for no object; those of others are learnt in other ways."""
_OF_TIMM = "timm_backbone"
_PROCESSORS: image_processor.Defaults = {"Yolos": {"resample": 2}, "Detr": {"resample": 2}}
_SIDES = 4
_NO_OBJECT_WEIGHT = 0.1
_DISTANCE_WEIGHT = 5.0
_OVERLAP_WEIGHT = 2.0
"""Of the parts of the loss, those of DETR; also what they cost where queries are matched."""


class ObjectDetection(ImageClassification):
    """Object detection with YOLOS and DETR; see `targets.networks.object_detection`.

    The labels of rows are tables of boxes; see `targets.average_precision`.
    """

    name: ClassVar[str] = "object-detection"
    heads: ClassVar[tuple[str, ...]] = ("ForObjectDetection",)
    answers: ClassVar[AnyAnswers] = BoxAnswers()
    metrics: ClassVar[Collection[str]] = BOX_METRICS.keys()
    not_compared: ClassVar[frozenset[str]] = ImageClassification.not_compared | {
        "max_probability_difference",
        "max_calibration_error",
    }
    label_field: ClassVar[LabelField] = "boxes"

    def named_columns(self, inputs: str | None, labels: str | None) -> dict[str, str]:
        """See the base class: files as COCO has them have none."""
        if inputs is None and labels is None:
            return {}
        raise DataError(
            "images with boxes are read from COCO files, which have no columns",
            where="the column with labels" if inputs is None else "the column with the input",
            given=inputs or labels,
            fix="leave it out",
        )

    def check_network(self, folder: Path) -> None:
        """See the base class: of a known family, and whole without the library timm."""
        config = read_config(folder / "config.json")
        family = config.get("model_type")
        if family not in FAMILIES:
            raise CheckpointError(
                "this kind of network for object detection is not supported",
                where=folder / "config.json",
                given=f"model_type {family!r}",
                fix=f"use one of {', '.join(FAMILIES)}, whose queries have a class for no object",
            )
        backbone = config.get("backbone_config")
        kind = backbone.get("model_type") if isinstance(backbone, dict) else _OF_TIMM
        if family != "yolos" and kind == _OF_TIMM:
            raise CheckpointError(
                "the backbone of the network comes from the library timm",
                where=f"{folder / 'config.json'}, field backbone_config",
                given=f"{config.get('backbone') or kind}",
                fix="use a checkpoint whose backbone is part of transformers, such as the "
                "revision no_timm of facebook/detr-resnet-50",
            )

    def load_processor(self, folder: Path) -> ImagePreprocessing:
        """See the base class: whole images, brought to one size."""
        config = read_preprocessor_config(folder, noun="images", saver="AutoImageProcessor")
        path = config_path(folder)
        size = config.get("size") if isinstance(config, dict) else None
        if not isinstance(size, dict) or set(size) != {"height", "width"}:
            raise CheckpointError(
                "images keep their proportions, and a compressed network reads one size",
                where=path,
                given=f"size {size!r:.100}",
                fix='set one size, such as "size": {"height": 512, "width": 512}, and fine-tune '
                "the network on images of that size: compressor finetune",
            )
        # Images of one size have nothing to be padded.
        found = image_processor.parse_processor({**config, "do_pad": False}, folder, _PROCESSORS)
        if found.resized is not None or found.shortest_edge is not None:
            raise CheckpointError(
                "the preprocessing crops the images, which cuts off parts of the boxes",
                where=path,
                given="do_center_crop",
                fix='write "do_center_crop": false',
            )
        return found

    def save_processor(self, processor: ImagePreprocessing, folder: Path) -> None:
        """See the base class: the one of transformers that has the post-processing too."""
        image_processor.write_processor(processor, folder, kind="Yolos")

    def outputs(self, model: TorchModel) -> tuple[TensorSpec, ...]:
        """See the base class: logits and boxes of the queries."""
        config: Any = model.module.config
        queries = getattr(config, "num_detection_tokens", None) or config.num_queries
        shape = ("batch", int(queries), len(model.labels) + 1 + _SIDES)
        return (TensorSpec(name="logits", dtype="float32", shape=shape),)

    def adopt(self, student: TorchModel, model: TorchModel) -> Any:
        """See the base class: no other network can, for its queries look for other objects."""
        raise CheckpointError(
            "one network for object detection cannot learn from another: their queries look for "
            "objects in different places",
            where=type(student.module).__name__,
            given=f"as a student of {type(model.module).__name__}",
            fix="fine-tune the smaller network on the labels: compressor finetune; or prune the "
            "existing one",
        )

    # Labels

    def encode_labelled(self, model: Model, split: Split) -> list[dict[str, Any]]:
        """See the base class: tables of boxes, (`MAX_BOXES`, 6)."""
        rows = self.encode(model, split.inputs)
        placed = place_boxes(split.labels)
        return [{**row, LABELS: labels} for row, labels in zip(rows, placed, strict=True)]

    def encode_unlabeled(self, model: Model, inputs: Sequence[Any]) -> list[dict[str, Any]]:
        """See the base class."""
        nothing = np.full((MAX_BOXES, 6), IGNORED, dtype=np.float32)
        return [{**row, LABELS: nothing} for row in self.encode(model, inputs)]

    def collate_labels(self, rows: Sequence[Row]) -> NDArray[np.float32]:
        """See the base class.  # (N, `MAX_BOXES`, 6)"""
        return np.stack([row[LABELS] for row in rows])

    # Losses

    def loss(
        self, outputs: Tensor, batch: Mapping[str, Tensor], *, label_smoothing: float = 0.0
    ) -> tuple[Tensor, Tensor]:
        """See the base class: that of DETR, of each image.

        Queries are matched with the boxes that are wanted; cross-entropy, the L1 distance and
        generalized intersection over union are added (Carion et al., "End-to-End Object Detection
        with Transformers", 2020, section 3.1). Boxes of crowds are not learnt.
        """
        import torch

        counted = batch[LABELS][:, 0, CLASS] != IGNORED
        outputs, labels = outputs.float()[counted], batch[LABELS][counted]
        if not len(outputs) or not torch.isfinite(outputs).all():  # the second cannot be matched
            return outputs.sum(), counted.sum()
        logits, boxes = outputs[..., :-_SIDES], outputs[..., -_SIDES:]
        wanted = [_wanted(each) for each in labels]
        images, queries, targets = _matched(logits, boxes, wanted)
        classes = torch.full(logits.shape[:2], logits.shape[-1] - 1, device=logits.device)
        classes[images, queries] = torch.cat([each["class_labels"] for each in wanted])[targets]
        weights = torch.ones(logits.shape[-1], device=logits.device)
        weights[-1] = _NO_OBJECT_WEIGHT
        total = torch.nn.functional.cross_entropy(
            logits.transpose(1, 2), classes, weights, label_smoothing=label_smoothing
        )
        theirs = torch.cat([each["boxes"] for each in wanted])
        apart = _distances(boxes[images, queries], theirs[targets])
        total = total + apart.sum() / max(len(theirs), 1)
        return total * counted.sum(), counted.sum()

    def divergence(
        self,
        student: Tensor,
        teacher: Tensor,
        batch: Mapping[str, Tensor],
        *,
        temperature: float,
    ) -> Tensor:
        """See the base class: query by query, that of the classes and the distance of the boxes.

        A query of a network that was made out of its teacher goes on looking for the same objects.
        Boxes count as much as the teacher sees an object in them.
        """
        from compressor.training.losses import global_mean, logits_kl

        ours, theirs = student.float(), teacher.float()
        classes = [each[..., :-_SIDES].flatten(0, 1) for each in (ours, theirs)]
        boxes = [each[..., -_SIDES:].flatten(0, 1) for each in (ours, theirs)]
        sure = 1 - classes[1].softmax(dim=-1)[:, -1]
        apart = (_distances(*boxes) * sure).sum()
        return logits_kl(*classes, temperature=temperature) + global_mean(apart, sure.sum())

    # Comparisons

    def kept(self, units: Units) -> NDArray[Any]:
        """See the base class: what was found, and behind it what was wanted.

        Returns:
            (units, queries + `MAX_BOXES`, 6)
        """
        return np.concatenate([units.scores, units.labels], axis=1)

    def drop(
        self,
        before: NDArray[Any],
        after: NDArray[Any],
        labels: NDArray[Any] | None,
        rows: NDArray[np.int64] | None,
    ) -> tuple[float, float, float]:
        """See the base class: of the mean average precision."""
        from compressor.detection import box_drop

        numbers = np.arange(len(before), dtype=np.int32)
        first, second = (
            Units(each[:, :-MAX_BOXES], each[:, -MAX_BOXES:], numbers) for each in (before, after)
        )
        return box_drop(first, second)

    def compare(
        self,
        reference: Units,
        candidate: Units,
        *,
        label_names: Sequence[str],
        slices: Mapping[str, Sequence[str]],
    ) -> Comparison:
        """See the base class: by the mean average precision."""
        from compressor.detection import compare_boxes

        return compare_boxes(reference, candidate, label_names=label_names, slices=slices)

    def changed(
        self,
        reference: Units,
        candidate: Units,
        *,
        label_names: Sequence[str],
        title: Callable[[int, int], str] | None,
    ) -> tuple[ChangedExample, ...]:
        """See the base class: none, for an image has no one label."""
        return ()


def _wanted(table: Tensor) -> dict[str, Tensor]:
    """The single objects of a table of boxes as transformers has them."""
    import torch

    lines = table[(table[:, CLASS] >= 0) & (table[:, SCORE] == 0)]
    low, high = lines[:, BOX].chunk(2, dim=1)
    return {
        "class_labels": lines[:, CLASS].long(),
        "boxes": torch.cat([(low + high) / 2, high - low], dim=1),
    }


def _matched(
    logits: Tensor, boxes: Tensor, wanted: list[dict[str, Tensor]]
) -> tuple[Tensor, Tensor, Tensor]:
    """Images and queries that are matched, and each one's place among all that is wanted, (M,)."""
    import torch
    from transformers.loss.loss_for_object_detection import HungarianMatcher

    matcher = HungarianMatcher(bbox_cost=_DISTANCE_WEIGHT, giou_cost=_OVERLAP_WEIGHT)
    pairs = matcher({"logits": logits, "pred_boxes": boxes}, wanted)
    images, targets, begin = [], [], 0
    for image, (queries, places) in enumerate(pairs):
        images.append(torch.full_like(queries, image))
        targets.append(places + begin)
        begin += len(wanted[image]["boxes"])
    joined = (images, [queries for queries, _ in pairs], targets)
    one, two, three = (torch.cat(each).to(logits.device) for each in joined)
    return one, two, three


def _distances(ours: Tensor, theirs: Tensor) -> Tensor:
    """How far pairs of boxes are apart, as the loss of DETR weighs it, (M,) of (M, 4).

    The L1 distance, and 1 minus the generalized intersection over union (Rezatofighi et al., 2019).
    """
    import torch

    def area(sides: Tensor) -> Tensor:
        return sides.clamp(min=0).prod(dim=1)

    (low, high), (other_low, other_high) = (
        (each[:, :2] - each[:, 2:] / 2, each[:, :2] + each[:, 2:] / 2) for each in (ours, theirs)
    )
    shared = area(torch.minimum(high, other_high) - torch.maximum(low, other_low))
    union = area(high - low) + area(other_high - other_low) - shared
    around = area(torch.maximum(high, other_high) - torch.minimum(low, other_low))
    least = torch.finfo(union.dtype).tiny
    overlap = shared / union.clamp(min=least) - (around - union) / around.clamp(min=least)
    return _DISTANCE_WEIGHT * (ours - theirs).abs().sum(dim=1) + _OVERLAP_WEIGHT * (1 - overlap)
