"""Questions about a context: tokens of both, one behind the other."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import chain, groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from targets.errors import InputError
from targets.preprocessing.base import Encoded
from targets.preprocessing.text import (
    IDS,
    TextEncoder,
    TextPreprocessing,
    check_characters,
    read_tokenizer,
)

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

__all__ = ["TYPES", "Question", "QuestionEncoder", "QuestionPreprocessing", "as_question"]

TYPES = "token_type_ids"
"""Which tokens are those of the context, for the models that are told."""
_FIX = 'write {"question": "Who sings?", "context": "Birds sing at dawn."}'


class Question(NamedTuple):
    """A question and the text that it is about."""

    question: str
    context: str


class QuestionPreprocessing(TextPreprocessing):
    """Tokenize question and context as a pair; of one that is too long the context is cut."""

    kind: Literal["question"] = "question"  # type: ignore[assignment]  # the rest is that of texts

    noun: ClassVar[str] = "question"
    usual_length: ClassVar[int] = 384
    wanted: ClassVar[str] = "a question"
    reads_objects: ClassVar[bool] = True

    def open(self, folder: Path, *, source: Path | None = None) -> QuestionEncoder:
        """See the base class."""
        tokenizer = read_tokenizer(folder / self.tokenizer, where=(source or folder))
        return QuestionEncoder(self, tokenizer)


class QuestionEncoder(TextEncoder):
    """A tokenizer of pairs, set to cut the second to the length that the model was built for."""

    def __init__(self, preprocessing: TextPreprocessing, tokenizer: Tokenizer) -> None:
        super().__init__(preprocessing, tokenizer)
        tokenizer.enable_truncation(preprocessing.max_length, strategy="only_second")

    def encode(self, inputs: Sequence[Any]) -> Encoded:
        """See the base class: each input is what :func:`as_question` reads.

        Raises:
            InputError: An input is no question with a context, or the question alone is longer
                than the model reads.
        """
        self.preprocessing.check_inputs(inputs)
        questions = [as_question(each, f"questions[{i}]") for i, each in enumerate(inputs)]
        found = self._tokens(questions)
        return Encoded(
            {
                IDS: [np.array(each.ids, dtype=np.int64) for each in found],
                TYPES: [np.array(each.type_ids, dtype=np.int64) for each in found],
            },
            tuple(bool(each.overflowing) for each in found),
            found,
        )

    def decode(self, rows: Sequence[NDArray[np.generic]]) -> list[str]:
        """See the base class: JSON objects."""
        around = set(self.tokenizer.encode("", "").ids)
        parts = []
        for row in rows:
            runs = groupby(row.tolist(), key=around.__contains__)
            question, *rest = (list(ids) for is_around, ids in runs if not is_around)
            parts += [question, list(chain(*rest))]
        texts = iter(self.decode_parts(parts))
        return [json.dumps(Question(*pair)._asdict()) for pair in zip(texts, texts, strict=True)]

    def _tokens(self, questions: Sequence[Question]) -> list[Encoding]:
        for index, each in enumerate(questions):
            for part in each:
                check_characters(part, f"questions[{index}]")
        try:
            return list(self.tokenizer.encode_batch(list(questions))) if questions else []
        except Exception:  # the library raises Exception itself, and does not say for which
            for index, each in enumerate(questions):
                self._check(each, f"questions[{index}]")
            raise

    def _check(self, question: Question, where: str) -> None:
        try:
            self.tokenizer.encode(*question)
        except Exception as error:
            raise InputError(
                "a question is so long that nothing of its context fits",
                where=where,
                given=f"{question.question:.60}: {error}",
                fix=f"ask a shorter one: the model reads {self.preprocessing.max_length} tokens of "
                "both together",
            ) from error


def as_question(given: object, where: str) -> Question:
    """A question with its context.

    Args:
        given: One, an object with both, or that as JSON.
        where: What to call it in messages.

    Raises:
        InputError: It is none of these, or one of the two is not there.
    """
    if isinstance(given, Question):
        return given
    value = given
    if isinstance(given, str):
        try:
            value = json.loads(given)
        except ValueError as error:
            raise InputError(
                "a question is not valid JSON",
                where=where,
                given=f"{given:.60}: {error}",
                fix=_FIX,
            ) from error
    if not isinstance(value, Mapping):
        raise InputError(
            "a question is not an object with a question and a context",
            where=where,
            given=f"{type(value).__name__} {value!r:.60}",
            fix=_FIX,
        )
    found = Question(*(value.get(name) for name in Question._fields))  # type: ignore[arg-type]
    for name, text in found._asdict().items():
        if not isinstance(text, str) or not text.strip():
            raise InputError(
                f"a question has no text in the field {name!r}",
                where=where,
                given=f"{name}={text!r:.60}",
                fix=_FIX,
            )
    return found
