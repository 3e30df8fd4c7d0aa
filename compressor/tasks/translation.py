"""Translation: a text made of a text, in another language or as a summary."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

from compressor.tasks.base import Task
from compressor.tasks.sequence_to_sequence import SequenceToSequence
from compressor.tasks.text_classification import TextClassification
from targets.answers import TranslationAnswers, Units
from targets.answers.written import WRITTEN_METRICS
from targets.preprocessing import Preprocessing, TextPreprocessing

if TYPE_CHECKING:
    from compressor.data import Kind
    from compressor.report.schema import Comparison

__all__ = ["Translation"]


class Translation(SequenceToSequence):
    """Marian, BART, T5: an encoder of texts, and a decoder that writes another one."""

    name: ClassVar[str] = "translation"
    heads: ClassVar[tuple[str, ...]] = ("ForConditionalGeneration", "MTModel")
    kind: ClassVar[Kind] = "text"
    source: ClassVar[Task] = TextClassification()
    preprocessing_type: ClassVar[type[Preprocessing]] = TextPreprocessing
    answers: ClassVar[TranslationAnswers] = TranslationAnswers()
    metrics: ClassVar[Collection[str]] = WRITTEN_METRICS[1:]

    def compare(
        self,
        reference: Units,
        candidate: Units,
        *,
        label_names: Sequence[str],
        slices: Mapping[str, Sequence[str]],
    ) -> Comparison:
        """See the base class."""
        from compressor.means import compare_means

        before, after = (self.answers.values(each) for each in (reference, candidate))
        same = self.answers.given(reference) == self.answers.given(candidate)
        return compare_means(
            {WRITTEN_METRICS[1]: (before, after)},
            agreement=float(same.mean()),
            rows=candidate.rows,
            slices=slices,
        )
