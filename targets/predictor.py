"""Raw inputs in, labels and scores out, with one small library a kind of input and the runtime."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from targets.answers import BasePrediction
from targets.base import Session
from targets.bundle import Bundle
from targets.errors import InputError
from targets.evaluation_pack import EvaluationPack, Labels
from targets.preprocessing import Encoded, Encoder
from targets.registry import open_session, usual_batch_size

__all__ = ["Predictor", "encode", "load", "predict_lines", "read_jsonl"]


class Predictor:
    """A bundle, ready to classify raw inputs, such as texts or images.

    Safe to share between threads: their inputs are read side by side, and the model runs for
    one of them at a time. To run it for several at once, open one predictor a thread.

    Args:
        bundle: A classifier.
        threads: CPU threads of the runtime.
        batch_size: Inputs that run at a time; by default several, or one where an input has
            another answer among others (`Target.runs_alone`): as the accuracy was measured.
        session: An open session of the bundle; by default a new one.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        threads: int = 1,
        batch_size: int | None = None,
        session: Session | None = None,
    ) -> None:
        self.bundle = bundle
        self.batch_size = usual_batch_size(bundle) if batch_size is None else batch_size
        self._encoder = _encoder(bundle)
        self._answer = bundle.manifest.answers.open(bundle.folder)
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

    def predict(self, inputs: Sequence[Any]) -> list[Any]:
        """Classify raw inputs; longer ones are cut to the length the model was built for.

        Args:
            inputs: What the encoders of `targets.preprocessing` read: strings for a text model, or
                lists of words where each word gets a label; paths, bytes or arrays for images and
                recordings.

        Returns:
            One prediction an input, in their order: `targets.answers` has what each kind of model
            gives, such as a `Prediction`.

        Raises:
            InputError: Something passed cannot be read.
            TargetError: The model gives numbers that are not finite.
        """
        manifest = self.bundle.manifest
        encoded = self._encoder.encode(manifest.answers.raw(inputs))
        if not len(encoded):
            return []
        outputs = self._run(_packed(encoded, None, self.bundle))
        return manifest.answers.predictions(outputs, manifest.labels, inputs, encoded)

    async def predict_async(self, inputs: Sequence[Any]) -> list[Any]:
        """Classify inputs without holding up the event loop; see :meth:`predict`.

        Calls are answered in the order in which they were made.
        """
        import asyncio

        if self._executor is None:
            self._executor = ThreadPoolExecutor(1, thread_name_prefix="predictor")
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, self.predict, inputs)

    def logits(self, inputs: Sequence[Any]) -> NDArray[np.floating]:
        """The raw output for the inputs: logits.

        Returns:
            (inputs, labels), (tokens, labels) or (inputs, labels, height, width)
        """
        return self._run(self.encode(inputs), whole=True)

    def _run(self, samples: EvaluationPack, *, whole: bool = False) -> NDArray[Any]:
        signature = self._session.signature
        name = signature.outputs[0].name
        answers = []
        rows_at_once = self.bundle.manifest.answers.rows_at_once
        size = self._session.batch_size(min(self.batch_size, rows_at_once))
        for batch in samples.batches(size, signature):
            with self._running:
                if whole:
                    found = self._session.run(batch.feeds)[name]
                else:
                    found = self._answer(self._session, batch.feeds)[name]
            answers.append((batch, {name: found}))
        outputs = signature.model_copy(update={"outputs": signature.outputs[:1]})
        return samples.restore(answers, outputs)[name]

    def encode(self, inputs: Sequence[Any]) -> EvaluationPack:
        """Read inputs into the form that the model takes; the labels of the pack are all 0.

        Raises:
            InputError: Something passed cannot be read.
        """
        raw = self.bundle.manifest.answers.raw(inputs)
        return _packed(self._encoder.encode(raw), None, self.bundle)


def encode(bundle: Bundle, inputs: Sequence[Any], labels: Labels) -> EvaluationPack:
    """Read labelled inputs into the form that a bundle's model takes, without loading the model.

    Args:
        bundle: A classifier.
        inputs: N raw inputs.
        labels: Their class indices, (N,); or one array an input, where it gets several; or masks,
            where its pixels do.

    Raises:
        InputError: Something passed cannot be read.
    """
    answers = bundle.manifest.answers
    raw = answers.raw(inputs)
    encoded = _encoder(bundle).encode(raw)
    return _packed(encoded, answers.place(labels, raw, encoded), bundle)


def _encoder(bundle: Bundle) -> Encoder:
    return bundle.manifest.preprocessing.open(bundle.folder, source=bundle.source)


def _packed(encoded: Encoded, labels: Labels | None, bundle: Bundle) -> EvaluationPack:
    return EvaluationPack.from_rows(
        encoded.rows,
        np.zeros(len(encoded), dtype=np.int64) if labels is None else labels,
        preprocessing=bundle.manifest.preprocessing,
    )


def load(path: str | Path, *, threads: int = 1, batch_size: int | None = None) -> Predictor:
    """Open a bundle, a folder or an archive, for prediction.

    Raises:
        BundleError: The bundle is absent or damaged.
        MissingLibraryError: Its runtime is not installed.
        TargetError: Its runtime refused it.
    """
    return Predictor(Bundle.open(path), threads=threads, batch_size=batch_size)


def predict_lines(
    predictor: Predictor, lines: Iterable[str | list[str]], *, chunk: int | None = None
) -> Iterator[BasePrediction]:
    """Classify a stream of inputs, one a line: texts, or paths.

    Args:
        predictor: What answers.
        lines: Each is a text or a path; or, for a model of words, a list of words.
        chunk: Inputs that are read before the first is answered; None is a batch.
    """
    chunk = chunk or predictor.batch_size
    waiting: list[str | list[str]] = []
    for line in lines:
        waiting.append(line.rstrip("\r\n") if isinstance(line, str) else line)
        if len(waiting) == chunk:
            yield from predictor.predict(waiting)
            waiting.clear()
    yield from predictor.predict(waiting)


def read_jsonl(
    lines: Iterable[str], field: str, *, lists: bool = False
) -> Iterator[str | list[str]]:
    """The texts in lines of JSON objects; empty lines are passed over.

    Args:
        lines: One object a line.
        field: Where the text stands in it.
        lists: Whether a list may stand there as well, such as of words or numbers.

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
        if not isinstance(text, str) and not (lists and isinstance(text, list)):
            raise InputError(
                f"a line has no text in the field {field!r}",
                where=f"line {number}",
                given=f"{line.strip():.60}",
                fix=f'write {{"{field}": "..."}}, or name the field with --field',
            )
        yield text
