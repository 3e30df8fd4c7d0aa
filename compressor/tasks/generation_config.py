"""How a decoder begins and ends, as Hugging Face writes it down, and what of it is supported."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compressor.checkpoint import read_settings_file
from compressor.errors import CheckpointError
from targets.beam_search import Beams

__all__ = ["GENERATION", "Writing", "read_ends", "read_writing", "write_ends", "write_writing"]

GENERATION = "generation_config.json"
USUAL_LONGEST = 256
"""Most tokens of a text, where a checkpoint does not say."""
_POSITIONS = ("max_target_positions", "max_position_embeddings")
"""Where configs say how many tokens a decoder has positions for."""
_OF_SEVERAL_LANGUAGES = frozenset({"m2m_100", "mbart", "nllb-moe"})
"""Kinds of translators that are told the language to write as the first token of a text."""
_WHISPER = "whisper"
_LANGUAGE = (("language", "lang_to_id"), ("task", "task_to_id"))
"""What a model of several languages is told first, and the tokens that tell it."""
_LOOKING = (
    "forced_eos_token_id",
    "min_length",
    "min_new_tokens",
    "no_repeat_ngram_size",
    "num_beams",
    "length_penalty",
    "early_stopping",
    "renormalize_logits",
)
"""How texts are looked for; as in transformers what config.json says of it counts only where there
is no generation_config.json."""
_SETTINGS = (
    "decoder_start_token_id",
    "eos_token_id",
    "pad_token_id",
    "forced_bos_token_id",
    "suppress_tokens",
    "begin_suppress_tokens",
    "bad_words_ids",
    "no_timestamps_token_id",
    "is_multilingual",
    *(name for pair in _LANGUAGE for name in pair),
    "max_length",
    "max_new_tokens",
    *_LOOKING,
)
"""What is read, and written again."""


@dataclass(frozen=True)
class Writing:
    """How texts are written; see `targets.answers.WrittenAnswers`.

    Attributes:
        start: Tokens that the decoder goes on from, at least one.
        end: The token that ends a text.
        suppressed: Tokens that are never written.
        suppressed_first: Tokens that no text begins with.
        longest: Most tokens of a text, the one that ends it included.
        shortest: Least tokens before the one that ends a text.
        no_repeat: Length of the runs of tokens that come once only; 0 for none.
        forced_end: Whether the longest text ends with the token that says so.
        beams: How texts are looked for; None for the most probable token at each step.
        settings: The same in the words of Hugging Face.
    """

    start: tuple[int, ...]
    end: int
    suppressed: tuple[int, ...]
    suppressed_first: tuple[int, ...]
    longest: int
    shortest: int
    no_repeat: int
    forced_end: bool
    beams: Beams | None
    settings: Mapping[str, Any]


def read_writing(folder: Path) -> Writing:
    """What a checkpoint says in generation_config.json or, where that is silent, in its config.

    Raises:
        CheckpointError: It does not say with which token a text begins or ends, or not in which of
            several languages.
    """
    named: dict[str, Any] = {}
    for path in (folder / "config.json", folder / GENERATION):
        if path.name == GENERATION and path.is_file():
            named = {name: value for name, value in named.items() if name not in _LOOKING}
        named |= {
            name: value for name, value in read_settings_file(path).items() if value is not None
        }
    try:
        beams = _beams(named)
    except ValueError as error:
        raise CheckpointError(
            "the checkpoint has beam search settings that are not valid",
            where=folder / GENERATION,
            given={name: named[name] for name in Beams.model_fields if name in named},
            fix="set num_beams to 1 for no beams, or to 2 to 64; length_penalty to a number, and "
            "early_stopping to true, false or never",
        ) from error
    try:
        return _from_settings(named, beams)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            "what the checkpoint says of how a text begins and ends cannot be used",
            where=folder / GENERATION,
            given=f"{type(error).__name__}: {error}",
            fix="set decoder_start_token_id and eos_token_id, one number each, and in "
            "bad_words_ids single tokens only; for a model of "
            "several languages also set language and task (Whisper), or forced_bos_token_id, the "
            "token of the language to write (M2M100, NLLB, mBART); for a Whisper copy "
            "generation_config.json from the model that it was fine-tuned from",
        ) from error


def read_ends(folder: Path) -> tuple[int, ...]:
    """The tokens that end what a language model writes, as transformers finds them.

    They stand in generation_config.json or else in config.json; there may be several, or none.

    Raises:
        CheckpointError: What stands there is no token.
    """
    found = [
        read_settings_file(folder / name).get("eos_token_id")
        for name in (GENERATION, "config.json")
    ]
    ends: Any = next((each for each in found if each is not None), [])
    try:
        return tuple(map(_token, ends if isinstance(ends, list) else [ends]))
    except ValueError as error:
        raise CheckpointError(
            "the checkpoint does not say how a text ends",
            where=folder / GENERATION,
            given=f"eos_token_id: {error}",
            fix="set eos_token_id to the number of a token, or to a list of such numbers",
        ) from error


def write_ends(ends: Sequence[int], folder: Path) -> None:
    """Write it so that :func:`read_ends` reads the same, and transformers too."""
    text = json.dumps({"eos_token_id": list(ends)}) + "\n"
    (folder / GENERATION).write_text(text, encoding="utf-8")


def write_writing(writing: Writing, folder: Path) -> None:
    """Write it so that :func:`read_writing` reads the same, and transformers too."""
    text = json.dumps(writing.settings, indent=2) + "\n"
    (folder / GENERATION).write_text(text, encoding="utf-8")


def _from_settings(named: Mapping[str, Any], beams: Beams | None = None) -> Writing:
    settings = {name: named[name] for name in _SETTINGS if name in named}
    start = [_token(settings["decoder_start_token_id"])]
    settings["eos_token_id"] = _end(settings["eos_token_id"])
    is_told = settings.get("forced_bos_token_id") or start != [settings.get("eos_token_id")]
    if named.get("model_type") in _OF_SEVERAL_LANGUAGES and not is_told:
        raise ValueError("no forced_bos_token_id, so that any language could be written")
    if named.get("model_type") == _WHISPER and "no_timestamps_token_id" not in settings:
        raise ValueError(f"no no_timestamps_token_id, which {GENERATION} of every Whisper has")
    is_forced = "forced_bos_token_id" in settings and "no_timestamps_token_id" not in settings
    if "no_timestamps_token_id" in settings:
        if settings.get("is_multilingual", True):
            start += [_told(settings, *names) for names in _LANGUAGE]
        start.append(_token(settings["no_timestamps_token_id"]))
    elif is_forced:
        start.append(_token(settings["forced_bos_token_id"]))
    never = [*settings.get("suppress_tokens", ())]
    for words in settings.get("bad_words_ids", ()):
        if len(words) != 1:
            raise ValueError(f"bad_words_ids forbids {words}, several tokens in a row")
        never += words
    # What a Whisper is told does not count to its max_length.
    counted = 0 if "no_timestamps_token_id" in settings else len(start)
    if "max_new_tokens" in settings:
        longest = int(settings.pop("max_new_tokens")) - int(is_forced)
    else:
        longest = int(settings.get("max_length", USUAL_LONGEST + counted)) - counted
    shortest = int(settings.pop("min_length", 0)) - len(start)
    if "min_new_tokens" in settings:
        shortest = int(settings.pop("min_new_tokens")) - int(is_forced)
    shortest = max(0, shortest)
    positions = [int(named[name]) - len(start) for name in _POSITIONS if name in named]
    longest = max(1, min([longest, *positions]))
    return Writing(
        start=tuple(start),
        end=settings["eos_token_id"],
        suppressed=tuple(map(_token, never)),
        suppressed_first=tuple(map(_token, settings.get("begin_suppress_tokens", ()))),
        longest=longest,
        shortest=shortest,
        no_repeat=int(settings.get("no_repeat_ngram_size", 0)),
        forced_end=settings.get("forced_eos_token_id") is not None,
        beams=beams and beams.model_copy(update={"counted": int(is_forced)}),
        settings={
            **settings,
            "max_length": counted + longest,
            **({"min_length": len(start) + shortest} if shortest else {}),
        },
    )


def _beams(settings: Mapping[str, Any]) -> Beams | None:
    """How a checkpoint looks for texts; a penalty and an end have no effect without beams."""
    if settings.get("num_beams", 1) == 1:
        return None
    named = {name: settings[name] for name in Beams.model_fields if name in settings}
    return Beams.model_validate(named)


def _told(settings: Mapping[str, Any], name: str, table: str) -> int:
    """The token of the language or of the task that a checkpoint is set to."""
    tokens, value = settings[table], str(settings[name]).lower()
    if value not in tokens and f"<|{value}|>" not in tokens and name == "language":
        value = _language_codes().get(value, value)
    found = tokens.get(value, tokens.get(f"<|{value}|>"))
    if found is None:
        known = ", ".join(str(each).strip("<|>") for each in tokens)
        raise ValueError(f"{name} {settings[name]!r} is not one of {known:.200}")
    return _token(found)


def _language_codes() -> Mapping[str, str]:
    """Name of a language, such as hindi -> its code, as transformers has them for Whisper."""
    from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE

    codes: Mapping[str, str] = TO_LANGUAGE_CODE
    return codes


def _end(value: Any) -> int:
    """The token that ends a text: one number, or a list of one."""
    if isinstance(value, list):
        if len(value) != 1:
            raise ValueError(f"eos_token_id names {len(value)} tokens, of which any ends a text")
        [value] = value
    return _token(value)


def _token(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"{value!r} is not a token id")
    return value
