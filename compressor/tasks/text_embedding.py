"""Text embedding: a vector for a text, to find texts that are alike."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from compressor.checkpoint import read_settings_file
from compressor.similarity import SIMILARITY_METRICS
from compressor.tasks.base import LABELS, Row
from compressor.tasks.text import TextTask
from targets.answers import AnyAnswers, EmbeddingAnswers, Units
from targets.preprocessing.text import IDS
from targets.signature import TensorSpec

if TYPE_CHECKING:
    from torch import Tensor

    from compressor.data import LabelField, Split
    from compressor.model import Model, TorchModel
    from compressor.report.schema import Comparison

__all__ = ["TextEmbedding"]

_MODULES = "modules.json"
"""Names the parts of an embedder of sentence-transformers."""
_READING = "sentence_bert_config.json"
"""Where sentence-transformers says how long inputs may be, and that they are lower-cased first."""


class TextEmbedding(TextTask):
    """Embeddings of texts from a bare transformer encoder; `targets.networks.text_embedding` pools.

    The data has no labels: the embeddings of the untouched model are what is right.
    """

    name: ClassVar[str] = "text-embedding"
    heads: ClassVar[tuple[str, ...]] = ("BertModel", "RobertaModel", "ElectraModel")
    reads_stretches: ClassVar[bool] = True
    label_field: ClassVar[LabelField | None] = None
    answers: ClassVar[AnyAnswers] = EmbeddingAnswers()
    metrics: ClassVar[Collection[str]] = SIMILARITY_METRICS.keys()
    distillation: ClassVar[Mapping[str, Any]] = MappingProxyType(
        {"dropout": 0.0, "logits_weight": 10.0}
    )

    @classmethod
    def heads_in(cls, folder: Path) -> tuple[str, ...]:
        """See the base class: a network that sentence-transformers wraps is read without a head."""
        return ("",) if (folder / _MODULES).is_file() else cls.heads

    def longest(self, folder: Path, processor: Any) -> int:
        """See the base class: what sentence-transformers cuts at, where the checkpoint says so."""
        limit = super().longest(folder, processor)
        found = read_settings_file(folder / _READING).get("max_seq_length")
        return min(limit, found) if isinstance(found, int) and found > 0 else limit

    def load_processor(self, folder: Path) -> Any:
        """See the base class: lower-casing becomes a part of the tokenizer."""
        from tokenizers import normalizers

        processor = super().load_processor(folder)
        if read_settings_file(folder / _READING).get("do_lower_case") is True:
            backend = processor.backend_tokenizer
            own = [] if backend.normalizer is None else [backend.normalizer]
            backend.normalizer = normalizers.Sequence([normalizers.Lowercase(), *own])
        return processor

    def class_names(self, config: Any) -> tuple[str, ...]:
        """See the base class: none."""
        return ()

    def label_names(self, folder: Path) -> tuple[str, ...]:
        """See the base class: none."""
        return ()

    def outputs(self, model: TorchModel) -> tuple[TensorSpec, ...]:
        """See the base class."""
        config: Any = model.module.config
        shape = ("batch", int(config.hidden_size))
        return (TensorSpec(name="embeddings", dtype="float32", shape=shape),)

    def encode_labelled(self, model: Model, split: Split) -> list[dict[str, Any]]:
        """See the base class."""
        rows = self.encode(model, split.inputs)
        return [{**row, LABELS: label} for row, label in zip(rows, split.labels, strict=True)]

    def encode_unlabeled(self, model: Model, inputs: Sequence[Any]) -> list[dict[str, Any]]:
        """See the base class."""
        return [{**row, LABELS: np.empty(0, np.float32)} for row in self.encode(model, inputs)]

    def collate_labels(self, rows: Sequence[Row]) -> NDArray[Any]:
        """See the base class.  # (N, size), or (N, 0) where there are none"""
        return np.stack([row[LABELS] for row in rows])

    def loss(
        self, outputs: Tensor, batch: Mapping[str, Tensor], *, label_smoothing: float = 0.0
    ) -> tuple[Tensor, Tensor]:
        """See the base class: the squared distance of the directions, 2 - 2 cos."""
        import torch

        distances = _distances(outputs, batch[LABELS])
        return distances.sum(), torch.tensor(len(distances))

    def sensitivity(self, outputs: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        """See the base class: the embeddings along a random direction each.

        At the untouched model itself the loss is at its minimum, and has no derivatives to tell
        parts from each other. Squared and summed, those along random directions tell in expectation
        how much each part moves the embeddings (Hutchinson, "A stochastic estimator of the trace",
        1989).
        """
        import torch

        generator = torch.Generator().manual_seed(int(batch[IDS].sum()))  # another one each batch
        directions = torch.randn(outputs.shape, generator=generator).to(outputs.device)
        return (outputs * directions).sum()

    def divergence(
        self,
        student: Tensor,
        teacher: Tensor,
        batch: Mapping[str, Tensor],
        *,
        temperature: float,
    ) -> Tensor:
        """See the base class: the squared distance of the directions, 2 - 2 cos."""
        from compressor.training.losses import global_mean

        distances = _distances(student, teacher)
        return global_mean(distances.sum(), len(distances))

    def compare(
        self,
        reference: Units,
        candidate: Units,
        *,
        label_names: Sequence[str],
        slices: Mapping[str, Sequence[str]],
    ) -> Comparison:
        """See the base class."""
        from compressor.similarity import compare_embeddings

        return compare_embeddings(reference, candidate, slices=slices)


def _distances(first: Tensor, second: Tensor) -> Tensor:
    """Squared distances of the directions of vectors, (N,) of (N, size)."""
    from torch.nn import functional

    directions = (functional.normalize(each.float(), dim=-1) for each in (first, second))
    one, other = directions
    return (one - other).square().sum(dim=-1)
