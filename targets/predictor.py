"""Raw text in, labels and scores out, with nothing but the tokenizers library and the runtime."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from targets.base import Session
from targets.bundle import Bundle
from targets.errors import BundleError, InputError
from targets.evaluation_pack import EvaluationPack
from targets.feeds import IDS
from targets.registry import open_session

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

__all__ = [
    "LIBRARIES",
    "Prediction",
    "Predictor",
    "load",
    "predict_lines",
    "read_jsonl",
    "read_tokenizer",
    "softmax",
    "tokenize",
]


LIBRARIES = ("numpy", "tokenizers")
"""Distributions that answers depend on, beside the runtime."""


class Prediction(BaseModel):
    """The answer to one text."""

    model_config = ConfigDict(frozen=True)

    label: str
    """The most probable label."""
    score: float
    """Its probability."""
    scores: dict[str, float]
    """The probability of every label; they add up to 1."""
    truncated: bool = False
    """Whether the text was longer than the model reads, and its end was left out."""


class Predictor:
    """A bundle, ready to classify raw text.

    Safe to share between threads: their texts are tokenized side by side, and the model runs for
    one of them at a time. To run it for several at once, open one predictor a thread.

    Args:
        bundle: A text classifier.
        threads: CPU threads of the runtime.
        batch_size: Texts that run at a time.
        session: An open session of the bundle; by default a new one.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        threads: int = 1,
        batch_size: int = 32,
        session: Session | None = None,
    ) -> None:
        self.bundle = bundle
        self.batch_size = batch_size
        self._tokenizer = read_tokenizer(bundle)
        self._session = session or open_session(bundle, threads=threads)
        self._running = threading.Lock()
        self._executor: ThreadPoolExecutor | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the model, after what was asked for is done."""
        if self._executor is not None:
            self._executor.shutdown()
        with self._running:
            self._session.close()

    def predict(self, texts: Sequence[str]) -> list[Prediction]:
        """Classify texts; longer ones are cut to the length the model was built for.

        Returns:
            One prediction a text, in the order of the texts.

        Raises:
            InputError: Something passed is not a string.
        """
        encodings = _encode(self._tokenizer, texts)
        if not encodings:
            return []
        labels = self.bundle.manifest.labels
        probabilities = softmax(self._run(_packed(encodings, None, self.bundle)))
        return [
            Prediction(
                label=labels[int(row.argmax())],
                score=float(row.max()),
                scores=dict(zip(labels, map(float, row), strict=True)),
                truncated=bool(encoding.overflowing),
            )
            for encoding, row in zip(encodings, probabilities, strict=True)
        ]

    async def predict_async(self, texts: Sequence[str]) -> list[Prediction]:
        """Classify texts without holding up the event loop; see :meth:`predict`.

        Calls are answered in the order in which they were made.
        """
        import asyncio

        if self._executor is None:
            self._executor = ThreadPoolExecutor(1, thread_name_prefix="predictor")
        return await asyncio.get_running_loop().run_in_executor(self._executor, self.predict, texts)

    def logits(self, texts: Sequence[str]) -> NDArray[np.floating]:
        """The raw output for each text.  # (texts, labels)"""
        return self._run(self.tokenize(texts))

    def _run(self, samples: EvaluationPack) -> NDArray[np.floating]:
        signature = self._session.signature
        answers = []
        for batch in samples.batches(self.batch_size, signature):
            with self._running:
                answers.append((batch, self._session.run(batch.feeds)))
        return samples.restore(answers, signature)[signature.outputs[0].name]  # type: ignore[return-value]

    def tokenize(self, texts: Sequence[str]) -> EvaluationPack:
        """Turn texts into the inputs of the model; the labels of the pack are all 0.

        Raises:
            InputError: Something passed is not a string.
        """
        return _packed(_encode(self._tokenizer, texts), None, self.bundle)


def tokenize(bundle: Bundle, texts: Sequence[str], labels: NDArray[np.int64]) -> EvaluationPack:
    """Turn labelled texts into the inputs of a bundle's model, without loading the model.

    Args:
        bundle: A text classifier.
        texts: N texts.
        labels: (N,) class indices.

    Raises:
        InputError: Something passed is not a string.
    """
    return _packed(_encode(read_tokenizer(bundle), texts), labels, bundle)


def _encode(tokenizer: Tokenizer, texts: Sequence[str]) -> list[Encoding]:
    _check_texts(texts)
    return tokenizer.encode_batch(list(texts)) if texts else []


def _packed(
    encodings: Sequence[Encoding], labels: NDArray[np.int64] | None, bundle: Bundle
) -> EvaluationPack:
    return EvaluationPack.from_rows(
        {
            IDS: [encoding.ids for encoding in encodings],
            "token_type_ids": [encoding.type_ids for encoding in encodings],
        },
        np.zeros(len(encodings), dtype=np.int64) if labels is None else labels,
        pad_token_id=bundle.manifest.preprocessing.pad_token_id,
    )


def load(path: str | Path, *, threads: int = 1, batch_size: int = 32) -> Predictor:
    """Open a bundle, a folder or an archive, for prediction.

    Raises:
        BundleError: The bundle is absent or damaged.
        MissingLibraryError: Its runtime is not installed.
        TargetError: Its runtime refused it.
    """
    return Predictor(Bundle.open(path), threads=threads, batch_size=batch_size)


def predict_lines(
    predictor: Predictor, lines: Sequence[str] | Iterator[str], *, chunk: int = 1024
) -> Iterator[Prediction]:
    """Classify a stream of texts, one a line, in pieces that fit in memory."""
    waiting: list[str] = []
    for line in lines:
        waiting.append(line.rstrip("\r\n"))
        if len(waiting) == chunk:
            yield from predictor.predict(waiting)
            waiting.clear()
    yield from predictor.predict(waiting)


def read_jsonl(lines: Iterable[str], field: str) -> Iterator[str]:
    """The texts in lines of JSON objects; empty lines are passed over.

    Args:
        lines: One object a line.
        field: Where the text stands in it.

    Raises:
        InputError: Names the line that is no JSON object with such a text.
    """
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except ValueError as error:
            raise InputError(
                "a line is not valid JSON",
                where=f"line {number}",
                given=f"{line.strip():.60}: {error}",
                fix="pass one JSON object a line, or leave out --jsonl for plain text",
            ) from error
        text = value.get(field) if isinstance(value, dict) else None
        if not isinstance(text, str):
            raise InputError(
                f"a line has no text in the field {field!r}",
                where=f"line {number}",
                given=f"{line.strip():.60}",
                fix=f'write {{"{field}": "..."}}, or name the field with --field',
            )
        yield text


def read_tokenizer(bundle: Bundle) -> Tokenizer:
    """The tokenizer of a text bundle, set to cut to the length the model was built for.

    Raises:
        BundleError: The file is not a tokenizer.
    """
    from tokenizers import Tokenizer

    preprocessing = bundle.manifest.preprocessing
    path = bundle.path(preprocessing.tokenizer)
    try:
        tokenizer: Tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises Exception itself
        raise BundleError(
            "the tokenizer of the bundle cannot be read",
            where=bundle.source / preprocessing.tokenizer,
            given=error,
            fix="build the bundle again",
        ) from error
    tokenizer.enable_truncation(preprocessing.max_length)
    tokenizer.no_padding()
    return tokenizer


def softmax(logits: NDArray[np.floating]) -> NDArray[np.float64]:
    """Probabilities from logits, over the last axis."""
    shifted = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=-1, keepdims=True))


def _check_texts(texts: object) -> None:
    if isinstance(texts, str | bytes) or not isinstance(texts, Sequence):
        raise InputError(
            "the predictor takes a list of texts",
            given=f"{type(texts).__name__} {texts!r:.60}",
            fix="put a single text into a list",
        )
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise InputError(
                "a text is not a string",
                where=f"texts[{index}]",
                given=f"{type(text).__name__} {text!r:.60}",
                fix="pass strings only; leave empty cells out or turn them into ''",
            )
