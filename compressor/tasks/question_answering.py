"""Extractive question answering: which part of a text answers a question about it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from compressor.tasks.base import LABELS, Row
from compressor.tasks.text import TextTask
from compressor.tasks.token_level import AtTokens
from targets.answers import IGNORED, SpanAnswers, Units
from targets.answers.spans import ENDS, SPAN_METRICS
from targets.preprocessing import Encoded, Preprocessing, QuestionPreprocessing
from targets.preprocessing.question import TYPES, QuestionEncoder, as_question
from targets.preprocessing.text import IDS, MASK
from targets.signature import Arrays, Signature, TensorSpec

if TYPE_CHECKING:
    from torch import Tensor, nn

    from compressor.data import Kind, LabelField, Split
    from compressor.model import Model, TorchModel
    from compressor.report.schema import Comparison

__all__ = ["QuestionAnswering"]

_MASKED = -1e9  # finite: a row of -inf alone would give NaN
_FIRST_ANSWER = 1
"""Its bit in the code of a token; see `targets.answers.spans.place_answers`."""


class QuestionAnswering(AtTokens, TextTask):
    """Spans of a context, found with a transformer encoder; `targets.networks.question_answering`.

    The raw inputs are values of `targets.preprocessing.Question`, or what it is made of. The labels
    of rows are the codes of `targets.answers.spans.place_answers`.
    """

    name: ClassVar[str] = "question-answering"
    heads: ClassVar[tuple[str, ...]] = ("ForQuestionAnswering",)
    kind: ClassVar[Kind] = "question"
    label_field: ClassVar[LabelField] = "answers"
    preprocessing_type: ClassVar[type[Preprocessing]] = QuestionPreprocessing
    answers: ClassVar[SpanAnswers] = SpanAnswers()
    metrics: ClassVar[Collection[str]] = SPAN_METRICS.keys()

    def preprocessing(self, folder: Path, max_length: int) -> QuestionPreprocessing:
        """See the base class."""
        found = super().preprocessing(folder, max_length)
        return QuestionPreprocessing(max_length=max_length, pad_token_id=found.pad_token_id)

    def class_names(self, config: Any) -> tuple[str, ...]:
        """See the base class: what the two logits of a token are of."""
        return ENDS

    def label_names(self, folder: Path) -> tuple[str, ...]:
        """See the base class."""
        return ENDS

    def outputs(self, model: TorchModel) -> tuple[TensorSpec, ...]:
        """See the base class: logits of an answer's first and last token, at every token."""
        return (TensorSpec(name="logits", dtype="float32", shape=("batch", "sequence", 2)),)

    def signature(self, model: TorchModel) -> Signature:
        """See the base class: with the types of the tokens, where the network tells them apart."""
        signature = super().signature(model)
        if not _has_types(model.module):
            return signature
        types = signature.inputs[0].model_copy(update={"name": TYPES})
        return signature.model_copy(update={"inputs": (*signature.inputs, types)})

    def example(self, network: nn.Module, processor: Any) -> dict[str, Tensor]:
        """See the base class: the second half of each row is the context."""
        found = super().example(network, processor)
        if _has_types(network):
            types = found[MASK].clone()
            types[:, : types.shape[1] // 4] = 0
            found[TYPES] = types
        return found

    def encode(self, model: Model, inputs: Sequence[Any]) -> list[Row]:
        """See the base class: lists of token ids, their mask and types."""
        return _rows(self._encoded(model, inputs))

    def _encoded(self, model: Model, inputs: Sequence[Any]) -> Encoded:
        from compressor.tokenizer_json import plain_tokenizer

        how = QuestionPreprocessing(
            max_length=model.max_length, pad_token_id=model.processor.pad_token_id or 0
        )
        return QuestionEncoder(how, plain_tokenizer(model.processor)).encode(inputs)

    def collate(self, model: Model, rows: Sequence[Row]) -> Arrays:
        """See the base class."""
        batch = super().collate(model, rows)
        if _reads_types(model):
            batch[TYPES] = np.zeros_like(batch[IDS])
            for index, row in enumerate(rows):
                batch[TYPES][index, : len(row[TYPES])] = row[TYPES]
        return batch

    def num_cut(self, model: TorchModel, inputs: Sequence[Any]) -> int:
        """See the base class."""
        return sum(self._encoded(model, inputs).truncated)

    def title(self, value: Any, place: int) -> str:
        """See the base class: the question."""
        return as_question(value, "question").question

    # Answers

    def encode_labelled(self, model: Model, split: Split) -> list[dict[str, Any]]:
        """See the base class: the codes of the tokens."""
        return self._labelled(model, split.inputs, tuple(split.labels))

    def encode_unlabeled(self, model: Model, inputs: Sequence[Any]) -> list[dict[str, Any]]:
        """See the base class: codes of tokens that are in no answer."""
        return self._labelled(model, inputs, [()] * len(inputs))

    def _labelled(
        self, model: Model, inputs: Sequence[Any], answers: Sequence[Any]
    ) -> list[dict[str, Any]]:
        encoded = self._encoded(model, inputs)
        placed = self.answers.place(answers, inputs, encoded)
        return [{**row, LABELS: codes} for row, codes in zip(_rows(encoded), placed, strict=True)]

    # Losses

    def loss(
        self, outputs: Tensor, batch: Mapping[str, Tensor], *, label_smoothing: float = 0.0
    ) -> tuple[Tensor, Tensor]:
        """See the base class: the mean of the cross-entropies of first and last token, in nats.

        The classes are the tokens of the context, and the first right answer counts. A question
        whose answer the model does not read has no part in it.
        """
        import torch

        context = batch[LABELS] != IGNORED
        answer = context & (batch[LABELS] & _FIRST_ANSWER != 0)
        has_answer = answer.any(dim=1)
        number = torch.arange(answer.shape[1], device=answer.device)
        first = torch.where(answer, number, len(number)).amin(dim=1).clamp(max=len(number) - 1)
        last = torch.where(answer, number, 0).amax(dim=1)
        chances = _log_chances(outputs, context)  # (N, L, 2)
        rows = torch.arange(len(answer), device=answer.device)
        losses = -(chances[rows, first, 0] + chances[rows, last, 1]) / 2
        if label_smoothing:
            inside = context.unsqueeze(-1)
            sums = torch.where(inside, chances, 0.0).sum(dim=(1, 2))
            even = -sums / (2 * context.sum(dim=1).clamp(min=1))
            losses = (1 - label_smoothing) * losses + label_smoothing * even
        return torch.where(has_answer, losses, 0.0).sum(), has_answer.sum()

    def divergence(
        self,
        student: Tensor,
        teacher: Tensor,
        batch: Mapping[str, Tensor],
        *,
        temperature: float,
    ) -> Tensor:
        """See the base class: Kullback-Leibler, of first and last token over the context alone.

        The mean over both and over the rows, times the squared temperature; see
        `compressor.training.losses.logits_kl`.
        """
        from torch.nn import functional

        from compressor.training.losses import global_mean

        context = batch[LABELS] != IGNORED
        ours, theirs = (_log_chances(each / temperature, context) for each in (student, teacher))
        total = functional.kl_div(ours, theirs, reduction="sum", log_target=True)
        return global_mean(total, 2 * len(student)) * temperature**2

    # Comparisons

    def compare(
        self,
        reference: Units,
        candidate: Units,
        *,
        label_names: Sequence[str],
        slices: Mapping[str, Sequence[str]],
    ) -> Comparison:
        """See the base class: by F1, and by the share of answers that are exactly right."""
        from compressor.means import compare_means

        both = (reference, candidate)
        first, second = (self.answers.given(each) for each in both)
        return compare_means(
            {
                name: (reference.scores[:, place], candidate.scores[:, place])
                for name, place in SPAN_METRICS.items()
            },
            agreement=float((first == second).mean()),
            rows=candidate.rows,
            slices=slices,
        )


def _has_types(network: nn.Module) -> bool:
    """Whether a network tells the tokens of the question from those of the context."""
    config: Any = network.config
    return int(getattr(config, "type_vocab_size", 0)) > 1


def _reads_types(model: Any) -> bool:
    if model.form == "torch":
        return _has_types(model.module)
    return any(spec.name == TYPES for spec in model.signature.inputs)


def _rows(encoded: Encoded) -> list[Row]:
    return [
        {IDS: ids.tolist(), MASK: [1] * len(ids), TYPES: types.tolist()}
        for ids, types in zip(encoded.rows[IDS], encoded.rows[TYPES], strict=True)
    ]


def _log_chances(logits: Tensor, context: Tensor) -> Tensor:
    """Log-probabilities over the tokens of a context, of each of the two outputs, (N, L, 2).

    Args:
        logits: (N, L, 2)
        context: (N, L), which tokens are its own.
    """
    return logits.float().masked_fill(~context.unsqueeze(-1), _MASKED).log_softmax(dim=1)
