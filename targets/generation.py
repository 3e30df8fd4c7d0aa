"""Write how a text goes on, or answer in a chat: a bundle that keeps a state, token by token."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Self

import numpy as np
from tokenizers import Tokenizer

from targets.answers import NextTokenAnswers, most_probable
from targets.answers.base import check_finite
from targets.base import Session
from targets.bundle import Bundle
from targets.chat import ChatTemplate, named_tokens, read_chat_template
from targets.errors import BundleError, InputError
from targets.preprocessing.text import IDS, MASK, TextPreprocessing, read_tokenizer
from targets.registry import open_session
from targets.writing import continues_texts

__all__ = ["Generator", "load_generator"]

_NUM_BEFORE = 4
"""Tokens of a text that goes on, with which what is written is decoded."""
_UNFINISHED = "\ufffd"  # what bytes of a character become before the last of them is there


class Generator:
    """Writes texts with the most probable token at each step (greedy search).

    A context manager. Not thread-safe, and one text at a time.

    Args:
        bundle: Of a language model.
        session: The open bundle.

    Raises:
        BundleError: The bundle is none of a language model that keeps a state.
    """

    def __init__(self, bundle: Bundle, session: Session) -> None:
        preprocessing, signature = bundle.manifest.preprocessing, bundle.manifest.signature
        if signature.context:
            raise BundleError(
                "the bundle writes a text about an input; it does not continue texts",
                where=bundle.source,
                given=f"task {bundle.manifest.task}",
                fix="use compressor predict without --stream, or targets.load",
            )
        if not continues_texts(bundle) or not isinstance(preprocessing, TextPreprocessing):
            raise BundleError(
                "the bundle does not write texts: its model keeps nothing from token to token",
                where=bundle.source,
                given=f"task {bundle.manifest.task}",
                fix="build it from a language model, with cache: true in the pass export",
            )
        self.bundle = bundle
        self.session = session
        self.max_length = preprocessing.longest
        self.tokenizer: Tokenizer = read_tokenizer(
            bundle.path(preprocessing.tokenizer), where=bundle.source
        )
        self.ends = _ends(bundle, self.tokenizer)
        self._last = 0  # texts that were begun: the session keeps the state of the last

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.session.close()

    def tokens(self, prompt: Sequence[int], *, max_tokens: int) -> Iterator[int]:
        """The tokens that follow others, until the text ends, without the token that says so.

        Args:
            prompt: Token ids, at least one.
            max_tokens: Most to write; prompt and answer together never pass the longest text that
                the bundle was built for.

        Raises:
            InputError: The prompt is empty or leaves no room, or another text was begun since.
            TargetError: The model gives no finite scores.
        """
        if not 0 < len(prompt) < self.max_length:
            raise InputError(
                "the text to continue is empty"
                if not prompt
                else "the text is too long to be continued",
                given=f"{len(prompt)} tokens",
                fix=f"pass 1 to {self.max_length - 1} tokens; data.max_length of the recipe sets "
                "how long texts may become",
            )
        self._last += 1
        own, read, given = self._last, 0, list(prompt)
        for number in range(min(max_tokens, self.max_length - len(prompt))):
            if own != self._last:
                raise InputError(
                    "another text was started before this one was finished",
                    given=f"{number} tokens written",
                    fix="read a text to its end before the next; for several at once load the "
                    "bundle several times",
                )
            read += len(given)
            feeds = {
                IDS: np.array([given], dtype=np.int64),
                MASK: np.ones((1, read), dtype=np.int64),
            }
            outputs = self.session.extend(feeds) if number else self.session.run(feeds)
            [logits] = outputs[self.session.signature.outputs[0].name]
            check_finite(logits[-1], {})
            token = int(most_probable(logits[-1]))
            if token in self.ends:
                return
            yield token
            given = [token]

    def stream(self, prompt: str, *, max_tokens: int) -> Iterator[str]:
        """How a text goes on, in pieces that come as soon as they are whole characters.

        Raises:
            InputError: The prompt is empty or leaves no room.
        """
        tokens = self.tokenizer.encode(prompt).ids
        ends = (tokens[-count:] for count in range(_NUM_BEFORE, len(tokens)))
        # Not from within a character: its bytes would spoil those that follow.
        whole = (end for end in ends if _UNFINISHED not in self._decoded(end))
        return self._pieces(tokens, max_tokens, before=next(whole, tokens))

    def chat(self, messages: Sequence[Mapping[str, str]], *, max_tokens: int) -> Iterator[str]:
        """The answer to the last message of a chat, in pieces as those of :meth:`stream`.

        Args:
            messages: ``[{"role": "user", "content": "..."}]``; see `targets.chat.ChatTemplate`.
            max_tokens: Most to write.

        Raises:
            BundleError: The bundle has no chat template, or one that cannot be read.
            InputError: The template does not take the messages, or they leave no room.
            MissingLibraryError: Jinja is not installed.
        """
        text = self.template.render(messages)  # with all special tokens that belong there
        return self._pieces(self.tokenizer.encode(text, add_special_tokens=False).ids, max_tokens)

    @functools.cached_property
    def template(self) -> ChatTemplate:
        """The chat template of the bundle.

        Raises:
            BundleError: It has none, or one that cannot be read.
            MissingLibraryError: Jinja is not installed.
        """
        return read_chat_template(self.bundle)

    def _pieces(
        self, prompt: Sequence[int], max_tokens: int, *, before: Sequence[int] = ()
    ) -> Iterator[str]:
        """What is written, as text; ``before`` is the end of the text that it goes on from.

        A tokenizer may leave out the space with which a text begins, but not one within.
        """
        tokens = list(before)
        shown = self._decoded(tokens)
        for token in self.tokens(prompt, max_tokens=max_tokens):
            tokens.append(token)
            text = self._decoded(tokens)
            if not text.endswith(_UNFINISHED):
                yield text[len(shown) :]
                shown = text
        rest = self._decoded(tokens)[len(shown) :]
        if rest:
            yield rest

    def _decoded(self, tokens: list[int]) -> str:
        return str(self.tokenizer.decode(tokens, skip_special_tokens=True))


def load_generator(path: str | Path, *, threads: int = 1) -> Generator:
    """Open a bundle, a folder or an archive, for writing.

    Raises:
        BundleError: The bundle is absent, damaged, or none of a language model that keeps a state.
        MissingLibraryError: Its runtime is not installed.
        TargetError: Its runtime refused it.
    """
    bundle = Bundle.open(path)
    session = open_session(bundle, threads=threads)
    try:
        return Generator(bundle, session)
    except BundleError:
        session.close()
        raise


def _ends(bundle: Bundle, tokenizer: Tokenizer) -> frozenset[int]:
    """The tokens that end a text; none where nothing names one."""
    answers = bundle.manifest.answers
    named = answers.ends if isinstance(answers, NextTokenAnswers) else ()
    token = named_tokens(bundle).get("eos_token")
    found = None if token is None else tokenizer.token_to_id(token)
    return frozenset((*named, *(() if found is None else (int(found),))))
