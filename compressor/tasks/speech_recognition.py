"""Automatic speech recognition: the words of a recording."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from compressor.tasks.audio_classification import AudioClassification
from compressor.tasks.base import Task
from compressor.tasks.sequence_to_sequence import SequenceToSequence
from targets.answers import TranscriptAnswers, Units
from targets.answers.written import WRITTEN_METRICS
from targets.preprocessing import AudioPreprocessing, Preprocessing

if TYPE_CHECKING:
    from compressor.data import Kind
    from compressor.report.schema import Comparison

__all__ = ["SpeechRecognition"]


class SpeechRecognition(SequenceToSequence):
    """Whisper: an encoder of spectrograms, and a decoder that writes what was said."""

    name: ClassVar[str] = "automatic-speech-recognition"
    heads: ClassVar[tuple[str, ...]] = ("ForConditionalGeneration",)
    kind: ClassVar[Kind] = "audio"
    source: ClassVar[Task] = AudioClassification()
    preprocessing_type: ClassVar[type[Preprocessing]] = AudioPreprocessing
    answers: ClassVar[TranscriptAnswers] = TranscriptAnswers()
    metrics: ClassVar[Collection[str]] = WRITTEN_METRICS[:1]

    def begun(self, text: str) -> str:
        """See the base class: with the space that Whisper begins with."""
        return f" {text.strip()}"

    def kept(self, units: Units) -> NDArray[Any]:
        """See the base class: wrong words, and words, of each recording.  # (units, 2)"""
        return self.answers.errors(units).astype(np.float32)

    def drop(
        self,
        before: NDArray[Any],
        after: NDArray[Any],
        labels: NDArray[Any] | None,
        rows: NDArray[np.int64] | None,
    ) -> tuple[float, float, float]:
        """See the base class: points of the word error rate."""
        from compressor.means import mean_drop

        return mean_drop(-before[:, 0], -after[:, 0], before[:, 1])

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

        (wrong, words), (now, _) = (self.answers.errors(each).T for each in (reference, candidate))
        same = self.answers.given(reference) == self.answers.given(candidate)
        return compare_means(
            {WRITTEN_METRICS[0]: (words - wrong, words - now)},
            weights=words,
            agreement=float(same.mean()),
            rows=candidate.rows,
            slices=slices,
        )
