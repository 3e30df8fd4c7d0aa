"""What a measurement runs again and again: a synthetic batch, requests of texts, or writing."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from targets.base import Session
from targets.bundle import Bundle
from targets.errors import BundleError, InputError
from targets.evaluation_pack import EvaluationPack
from targets.feeds import FeedsSpec, synthetic_feeds
from targets.predictor import Predictor
from targets.preprocessing.base import DECODER_IDS
from targets.preprocessing.text import IDS, MASK, TextEncoder

__all__ = [
    "NUM_REQUESTS",
    "Request",
    "TextsSpec",
    "Workload",
    "WritingSpec",
    "bundle_texts",
    "read_texts",
    "requests",
]

NUM_REQUESTS = 32
"""Different requests of a workload of real texts: enough for the spread of their lengths."""

Request = Callable[[], object]
"""Runs one request to its end."""


class TextsSpec(BaseModel):
    """Requests of real texts, the same ones each time."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    texts: Path
    """A JSON file with a list of texts."""
    batch_size: int = Field(ge=1)
    """Texts a request."""
    tokenization: bool = False
    """Whether a request begins with the text and ends with labels, or has tokens already."""
    seed: int = 0


class WritingSpec(BaseModel):
    """One text that is read, and then tokens that are written after it, a run each."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompt: FeedsSpec
    """What is read: one sample."""
    num_tokens: int = Field(ge=1)
    """How many are written; the first of them comes with the reading."""


Workload = FeedsSpec | TextsSpec | WritingSpec
"""What a worker can be asked to run."""


def requests(spec: Workload, session: Session, bundle: Bundle) -> list[Request]:
    """The requests of a workload, in the order in which to run them.

    Args:
        spec: The workload.
        session: Runs them.
        bundle: The session's bundle.

    Raises:
        InputError: The model takes an input that no text provides.
        BundleError: The tokenizer cannot be read.
    """
    if isinstance(spec, FeedsSpec):
        feeds = synthetic_feeds(session.signature, spec)
        return [lambda: session.run(feeds)]
    if isinstance(spec, WritingSpec):
        return _writing(spec, session)
    predictor = Predictor(bundle, session=session, batch_size=spec.batch_size)
    made: list[Request] = []
    for texts in _batches(json.loads(spec.texts.read_bytes()), predictor, spec):
        if spec.tokenization:
            made.append(lambda texts=texts: predictor.predict(texts))  # type: ignore[misc]
        else:
            [batch] = predictor.encode(texts).batches(spec.batch_size, session.signature)
            made.append(lambda feeds=batch.feeds: session.run(feeds))  # type: ignore[misc]
    return made


def _writing(spec: WritingSpec, session: Session) -> list[Request]:
    """The reading of a prompt first, then a run for each further token, whatever it is."""
    prompt = synthetic_feeds(session.signature, spec.prompt)
    made: list[Request] = [lambda: session.run(prompt)]
    if session.signature.context:
        last = {DECODER_IDS: prompt[DECODER_IDS][:, -1:]}
        return made + [lambda: session.extend(last)] * (spec.num_tokens - 1)
    read = prompt[IDS].shape[1]
    for number in range(1, spec.num_tokens):
        feeds = {
            IDS: prompt[IDS][:, number % read : number % read + 1],
            MASK: np.ones((1, read + number), dtype=np.int64),
        }
        made.append(lambda feeds=feeds: session.extend(feeds))  # type: ignore[misc]
    return made


def bundle_texts(bundle: Bundle) -> list[str]:
    """The texts of a bundle's test data, put together again from its tokens.

    What the tokenizer changes, such as capitals, is not brought back; the lengths in tokens are
    those of the data.

    Raises:
        BundleError: The bundle carries no test data.
    """
    name = bundle.manifest.evaluation
    if name is None:
        raise BundleError(
            "the bundle carries no test data to take texts from",
            where=bundle.source,
            given="evaluation null in its manifest",
            fix="pass a file of texts, or build it with bundle.evaluation_data: true",
        )
    preprocessing = bundle.manifest.preprocessing
    encoder = preprocessing.open(bundle.folder, source=bundle.source)
    if not isinstance(encoder, TextEncoder):
        raise BundleError(
            "only text models are measured on real texts",
            where=bundle.source,
            given=f"a model of {preprocessing.noun}s",
            fix="leave real texts out: all inputs of such a model take the same work",
        )
    pack = EvaluationPack.load(bundle.path(name))
    return encoder.decode(np.split(pack.inputs[IDS], pack.offsets[1:]))


def read_texts(path: Path) -> list[str]:
    """One text a line; empty lines are passed over.

    Raises:
        InputError: The file cannot be read or holds no text.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            "the file of texts cannot be read",
            where=path,
            given=error,
            fix="pass a UTF-8 file with one text a line",
        ) from error
    texts = [line for line in lines if line.strip()]
    if not texts:
        raise InputError(
            "the file of texts holds no text",
            where=path,
            given="only empty lines",
            fix="write one text a line",
        )
    return texts


def _batches(texts: Sequence[str], predictor: Predictor, spec: TextsSpec) -> list[list[str]]:
    """Texts whose lengths are spread as those of all, shuffled into batches."""
    ordered = np.argsort(predictor.encode(texts).lengths, kind="stable")
    wanted = NUM_REQUESTS * spec.batch_size
    # The middles of equal slices of the sorted texts; few texts stand in several slices.
    places = ((np.arange(wanted) + 0.5) / wanted * len(texts)).astype(np.int64)
    chosen = np.random.default_rng(spec.seed).permutation(ordered[places])
    return [[texts[index] for index in row] for row in chosen.reshape(NUM_REQUESTS, -1)]
