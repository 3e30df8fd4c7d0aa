"""Text: tokens of the ``tokenizers`` library, padded to the longest of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from targets.errors import BundleError, InputError
from targets.preprocessing.base import DECODER_IDS, Encoded, Encoder, Preprocessing, Rows
from targets.signature import Arrays, Signature

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = [
    "IDS",
    "MASK",
    "ZEROS_IF_ABSENT",
    "Side",
    "TextEncoder",
    "TextPreprocessing",
    "check_characters",
    "read_tokenizer",
]

Side = Literal["left", "right"]

IDS = "input_ids"
MASK = "attention_mask"
ZEROS_IF_ABSENT = ("token_type_ids",)
"""Inputs that are zero for a single text."""


class TextPreprocessing(Preprocessing):
    """Tokenize, and cut to the longest input."""

    kind: Literal["text"] = "text"
    tokenizer: str = "tokenizer.json"
    """The file of the tokenizer."""
    max_length: int = Field(ge=1)
    """Longest input in tokens."""
    pad_token_id: int = Field(ge=0)
    """What ``input_ids`` are padded with; all other inputs are padded with 0."""
    truncation_side: Side = Field(default="right", exclude_if=lambda side: side == "right")
    """Which end of a text is left out where it is too long."""

    noun: ClassVar[str] = "text"
    needs: ClassVar[str] = IDS
    unit: ClassVar[str | None] = "tokens"
    usual_length: ClassVar[int] = 128
    libraries: ClassVar[tuple[str, ...]] = ("tokenizers",)
    wanted: ClassVar[str] = "a text"

    @property
    def longest(self) -> int:
        """See the base class."""
        return self.max_length

    @property
    def files(self) -> tuple[str, ...]:
        """See the base class."""
        return (self.tokenizer,)

    def open(self, folder: Path, *, source: Path | None = None) -> TextEncoder:
        """See the base class."""
        tokenizer = read_tokenizer(folder / self.tokenizer, where=(source or folder))
        tokenizer.enable_truncation(self.max_length, direction=self.truncation_side)
        return TextEncoder(self, tokenizer)

    def feeds(self, rows: Rows, signature: Signature) -> Arrays:
        """See the base class: ``input_ids`` is always among the rows; masks follow from it."""
        ids = rows[IDS]
        feeds: Arrays = {}
        for spec in signature.inputs:
            if spec.name in rows:
                values = rows[spec.name]
            elif spec.name == DECODER_IDS and self.decoder_start:
                values = list(self.started(len(ids)))
            elif spec.name == MASK:
                values = [np.ones_like(row) for row in ids]
            elif spec.name in ZEROS_IF_ABSENT:
                values = [np.zeros_like(row) for row in ids]
            else:
                raise self.unknown_input(spec.name, list(rows))
            pad = self.pad_token_id if spec.name == IDS else 0
            feeds[spec.name] = _pad(values, pad).astype(spec.dtype)
        return feeds

    def synthetic(
        self, lengths: Sequence[int], *, num_ids: int, random: np.random.Generator
    ) -> dict[str, list[NDArray[np.generic]]]:
        """See the base class."""
        ids = random.integers(0, num_ids, size=sum(lengths))
        # RoBERTa counts positions from the ids that are not padding.
        ids[ids == self.pad_token_id] = (self.pad_token_id + 1) % num_ids
        return {IDS: list(np.split(ids, np.cumsum(lengths)[:-1]))}


def check_characters(text: str, where: str) -> None:
    """Refuse half of a character: a text that was cut in UTF-16.

    Raises:
        InputError: It has one.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(
            "a text contains half of a character, a lone surrogate",
            where=f"{where}, character {error.start + 1}",
            given=ascii(text[error.start : error.end]),
            fix="cut texts between characters, not between the surrogates of one in UTF-16",
        ) from error


class TextEncoder(Encoder):
    """A tokenizer, set to cut to the length that the model was built for."""

    def __init__(self, preprocessing: TextPreprocessing, tokenizer: Tokenizer) -> None:
        self.preprocessing = preprocessing
        self.tokenizer = tokenizer
        self.num_ids = int(tokenizer.get_vocab_size(with_added_tokens=True))

    def encode(self, inputs: Sequence[Any]) -> Encoded:
        """See the base class: each input is a string."""
        self.preprocessing.check_inputs(inputs)
        for index, text in enumerate(inputs):
            if not isinstance(text, str):
                raise InputError(
                    "a text is not a string",
                    where=f"texts[{index}]",
                    given=f"{type(text).__name__} {text!r:.60}",
                    fix="pass strings only; leave empty cells out or turn them into ''",
                )
            check_characters(text, f"texts[{index}]")
        found = self.tokenizer.encode_batch(list(inputs)) if inputs else []
        for index, each in enumerate(found):
            if not each.ids:
                raise InputError(
                    "a text has no tokens",
                    where=f"texts[{index}]",
                    given=repr(inputs[index]),
                    fix="leave it out: this model adds no special tokens to a text",
                )
        return Encoded(
            {
                IDS: [np.array(each.ids, dtype=np.int64) for each in found],
                "token_type_ids": [np.array(each.type_ids, dtype=np.int64) for each in found],
            },
            tuple(bool(each.overflowing) for each in found),
            found,
        )

    def decode(self, rows: Sequence[NDArray[np.generic]]) -> list[str]:
        """Inputs that are as long as those that were read, as a user may give them.

        Args:
            rows: Of each its token ids.
        """
        around = set(self.tokenizer.encode("").ids)  # what is put around every text
        return self.decode_parts(
            [[int(token) for token in row if token not in around] for row in rows]
        )

    def decode_parts(self, parts: Sequence[Sequence[int]]) -> list[str]:
        """Texts out of token ids. Unknown tokens stay, as "[UNK]" or the like, for the length."""
        return list(self.tokenizer.decode_batch(parts, skip_special_tokens=False))


def read_tokenizer(path: Path, *, where: Path | None = None) -> Tokenizer:
    """Read a tokenizer that neither pads nor cuts.

    Args:
        path: The file.
        where: What to call its folder in messages.

    Raises:
        BundleError: The file is not a tokenizer.
    """
    from tokenizers import Tokenizer

    try:
        tokenizer: Tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises Exception itself
        raise BundleError(
            "the tokenizer of the bundle cannot be read",
            where=(where or path.parent) / path.name,
            given=error,
            fix="build the bundle again",
        ) from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _pad(rows: Sequence[NDArray[np.generic]], pad: int) -> NDArray[np.generic]:
    padded = np.full((len(rows), max(len(row) for row in rows)), pad, dtype=rows[0].dtype)
    for index, row in enumerate(rows):
        padded[index, : len(row)] = row
    return padded
