"""What every kind of input offers: how raw inputs become rows, and rows the arrays of a batch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from targets.errors import InputError
from targets.signature import Arrays, Signature

if TYPE_CHECKING:
    from tokenizers import Encoding

    from targets.preprocessing.image import View

__all__ = ["DECODER_IDS", "FIXED_SIZE", "Encoded", "Encoder", "Preprocessing", "Rows"]

FIXED_SIZE = 0
"""Length of an input of a kind whose inputs all have one size, such as an image."""

DECODER_IDS = "decoder_input_ids"
"""Input of a model with a decoder: the tokens that stand before those it is to write, (N, T)."""

Rows = Mapping[str, Sequence[NDArray[np.generic]]]
"""Name -> one array a sample: what is kept of each, as small as it can be."""


@dataclass(frozen=True)
class Encoded:
    """Raw inputs, read and brought into the form of rows.

    Attributes:
        rows: One array a sample and name.
        truncated: For each sample, whether it was longer than the model reads.
        tokens: Of texts, what the tokenizer gave for each: it tells where its tokens stand.
        views: Of images, which pixels of each the model sees.
    """

    rows: dict[str, list[NDArray[np.generic]]]
    truncated: tuple[bool, ...]
    tokens: Sequence[Encoding] = ()
    views: Sequence[View] = ()

    def __len__(self) -> int:
        return len(self.truncated)


class Encoder(ABC):
    """Reads raw inputs of one kind; safe to share between threads."""

    num_ids: int = 1
    """Token ids that the model knows, where its inputs are token ids."""

    @abstractmethod
    def encode(self, inputs: Sequence[Any]) -> Encoded:
        """Read raw inputs.

        Raises:
            InputError: One of them is not what it should be; names it.
        """


class Preprocessing(BaseModel, ABC):
    """How raw inputs become what a model reads: a value that a bundle's manifest keeps.

    The work is cut in two. An :class:`Encoder` reads raw inputs into rows, which are small and are
    kept: tokens, pixels, samples of sound. :meth:`feeds` makes the arrays of one batch out of rows:
    it pads, adds masks, brings pixels to floats.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    kind: str
    """Of the raw inputs."""
    decoder_start: tuple[int, ...] = Field(default=(), exclude_if=lambda ids: not ids)
    """Tokens that the decoder of a model goes on from, where it has one."""

    noun: ClassVar[str]
    """What a raw input is called, such as ``text``."""
    needs: ClassVar[str]
    """Name of the rows that are always there."""
    unit: ClassVar[str | None]
    """What its length is counted in, such as ``tokens``; None where all have one size."""
    usual_length: ClassVar[int]
    """Length of a synthetic input where none is asked for."""
    libraries: ClassVar[tuple[str, ...]]
    """Distributions that answers depend on, beside numpy and the runtime."""
    extra: ClassVar[str | None] = None
    """Extra of the toolkit that brings them; None where its base install does."""
    wanted: ClassVar[str]
    """What a cell of a table holds, such as ``a text``."""
    suffixes: ClassVar[tuple[str, ...]] = ()
    """Of files that hold one raw input each, the usual one first; empty where inputs are texts."""
    reads_lists: ClassVar[bool] = False
    """Whether a list, as JSON has it, is a raw input as well."""
    reads_objects: ClassVar[bool] = False
    """Whether a raw input is a JSON object."""
    folders: ClassVar[bool] = False
    """Whether a folder of files is a raw input as well."""

    @property
    def has_common_window(self) -> bool:
        """Whether what a model reads of a sample depends on the others of its batch."""
        return False

    @property
    def ragged(self) -> bool:
        """Whether samples have lengths of their own: rows then agree in all but the first axis."""
        return self.unit is not None

    @property
    @abstractmethod
    def longest(self) -> int:
        """Longest input that the model reads, in ``unit``; `FIXED_SIZE` where there is none."""

    @classmethod
    def reads_files(cls) -> bool:
        """Whether raw inputs are files, and not texts."""
        return bool(cls.suffixes)

    @classmethod
    def content(cls, cell: object, where: str) -> bytes | None:
        """The content of a file, of a cell that holds the raw input itself in another form.

        Args:
            cell: Of a table.
            where: What to call it in messages.

        Returns:
            None where the cell holds something else.

        Raises:
            InputError: The input in it is not what it should be.
        """
        return None

    @property
    def files(self) -> tuple[str, ...]:
        """Names of the files that it needs, in the folder of the model."""
        return ()

    @abstractmethod
    def open(self, folder: Path, *, source: Path | None = None) -> Encoder:
        """Open the encoder.

        Args:
            folder: Holds ``files``.
            source: What to call the folder in messages.

        Raises:
            BundleError: A file is damaged.
            MissingLibraryError: A library of ``libraries`` is not installed.
        """

    @abstractmethod
    def feeds(self, rows: Rows, signature: Signature) -> Arrays:
        """The arrays of one batch.

        Args:
            rows: Of the samples in it, N >= 1.
            signature: Decides which inputs are made, and their types.

        Returns:
            One array for each input of the signature.  # (N, ...)

        Raises:
            InputError: The model takes an input that this kind does not provide.
        """

    @abstractmethod
    def synthetic(
        self, lengths: Sequence[int], *, num_ids: int, random: np.random.Generator
    ) -> dict[str, list[NDArray[np.generic]]]:
        """Rows of random values.

        Args:
            lengths: One a sample, in ``unit``; `FIXED_SIZE` where all have one size.
            num_ids: Token ids are drawn from 0 to this, exclusive.
            random: Where the values come from.
        """

    @property
    def limit_note(self) -> str | None:
        """What becomes of inputs that are too long, as a sentence; None where all have one size."""
        if not self.ragged:
            return None
        return f"{self.noun.capitalize()} longer than {self.longest} {self.unit} is cut."

    def unknown_input(self, name: str, known: Sequence[str]) -> InputError:
        """The error about an input of the model that this kind of raw input does not provide."""
        return InputError(
            f"the model takes an input {name!r}, which {self.noun} does not provide",
            given=", ".join(known),
            fix="export the model with the inputs of its preprocessing only",
        )

    def started(self, num_rows: int) -> NDArray[np.int64]:
        """What the decoder goes on from, for each of some samples.  # (num_rows, start)"""
        return np.tile(np.array(self.decoder_start, dtype=np.int64), (num_rows, 1))

    def check_inputs(self, inputs: object) -> None:
        """Refuse a single raw input where several are expected.

        Raises:
            InputError: It is no list.
        """
        if isinstance(inputs, str | bytes | Path) or not isinstance(inputs, Sequence):
            raise InputError(
                f"the predictor takes a list of {self.noun}s",
                given=f"{type(inputs).__name__} {inputs!r:.60}",
                fix=f"put a single {self.noun} into a list",
            )
