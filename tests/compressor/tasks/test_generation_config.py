"""How a text begins and ends, out of what checkpoints of several families say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from compressor.errors import CheckpointError
from compressor.tasks.generation_config import read_writing, write_writing
from targets.beam_search import Beams

START = {"decoder_start_token_id": 7, "eos_token_id": 2}
WHISPER = {
    **START,
    "no_timestamps_token_id": 9,
    "suppress_tokens": [1, 3],
    "begin_suppress_tokens": [2, 5],
    "max_length": 448,
}
LANGUAGES = {
    **WHISPER,
    "is_multilingual": True,
    "lang_to_id": {"<|en|>": 20, "<|fr|>": 21},
    "task_to_id": {"transcribe": 30, "translate": 31},
}


def save(folder: Path, config: dict[str, Any], generation: dict[str, Any] | None) -> Path:
    (folder / "config.json").write_text(json.dumps(config))
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    return folder


@pytest.mark.parametrize(
    ("generation", "start"),
    [
        ({**WHISPER, "is_multilingual": False}, (7, 9)),
        ({**LANGUAGES, "language": "fr", "task": "transcribe"}, (7, 21, 30, 9)),
        ({**LANGUAGES, "language": "<|en|>", "task": "translate"}, (7, 20, 31, 9)),
        ({**LANGUAGES, "language": "French", "task": "transcribe"}, (7, 21, 30, 9)),
        ({**START, "forced_bos_token_id": 0}, (7, 0)),
        (START, (7,)),
        # Translators of several languages: of all of them, of two, and of others than these.
        ({"decoder_start_token_id": 2, "eos_token_id": 2, "forced_bos_token_id": 5}, (2, 5)),
        ({**START, "model_type": "mbart"}, (7,)),
        ({"decoder_start_token_id": 2, "eos_token_id": 2}, (2,)),
    ],
)
def test_what_the_decoder_goes_on_from(
    tmp_path: Path, generation: dict[str, Any], start: tuple[int, ...]
) -> None:
    found = read_writing(save(tmp_path, {}, generation))
    assert (found.start, found.end) == (start, 2)


def test_tokens_that_are_never_written_and_the_longest_text(tmp_path: Path) -> None:
    config = {"max_target_positions": 100}
    generation = {**WHISPER, "is_multilingual": False, "bad_words_ids": [[4]]}
    found = read_writing(save(tmp_path, config, generation))
    assert found.suppressed == (1, 3, 4)
    assert found.suppressed_first == (2, 5)
    assert found.longest == 98  # as many as there are positions after the two that begin it


BEAMS = {**START, "num_beams": 3, "length_penalty": 0.6, "early_stopping": True}


def test_how_texts_are_looked_for(tmp_path: Path) -> None:
    assert read_writing(save(tmp_path, {}, START)).beams is None
    assert read_writing(save(tmp_path, {}, {**BEAMS, "num_beams": 1})).beams is None
    found = read_writing(save(tmp_path, {}, BEAMS))
    assert found.beams == Beams(num_beams=3, length_penalty=0.6, early_stopping=True)
    assert not found.forced_end
    forced = {**BEAMS, "forced_bos_token_id": 0, "forced_eos_token_id": 2}
    found = read_writing(save(tmp_path, {}, forced))
    assert found.beams is not None
    assert (found.beams.counted, found.forced_end) == (1, True)
    write_writing(found, tmp_path)
    assert read_writing(tmp_path) == found


def test_what_the_config_says_of_looking_counts_only_alone(tmp_path: Path) -> None:
    """As in transformers, which takes one file or the other."""
    assert read_writing(save(tmp_path, BEAMS, None)).beams is not None
    assert read_writing(save(tmp_path, BEAMS, {"max_length": 20})).beams is None


@pytest.mark.parametrize("settings", [{"num_beams": "many"}, {"num_beams": 100}])
def test_beams_that_there_are_not_are_refused(tmp_path: Path, settings: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match="beam search settings that are not valid") as caught:
        read_writing(save(tmp_path, {}, {**START, **settings}))
    assert str(settings["num_beams"]) in str(caught.value.given)
    assert "num_beams to 1" in str(caught.value.fix)


@pytest.mark.parametrize(
    ("settings", "shortest"),
    [
        ({}, 0),
        ({"min_length": 1}, 0),
        ({"min_length": 6}, 5),
        ({"min_new_tokens": 6}, 6),
        ({"min_new_tokens": 6, "forced_bos_token_id": 0}, 5),
        ({"min_length": 6, "forced_bos_token_id": 0}, 4),
    ],
)
def test_the_shortest_text_counts_what_is_written(
    tmp_path: Path, settings: dict[str, Any], shortest: int
) -> None:
    found = read_writing(save(tmp_path, {}, {**START, **settings, "no_repeat_ngram_size": 3}))
    assert (found.shortest, found.no_repeat) == (shortest, 3)
    write_writing(found, tmp_path)
    assert read_writing(tmp_path) == found


@pytest.mark.parametrize(
    ("settings", "longest"),
    [
        ({"max_length": 20}, 19),
        ({"max_new_tokens": 20, "max_length": 5}, 20),
        ({"max_new_tokens": 20, "forced_bos_token_id": 0}, 19),
        ({}, 256),
    ],
)
def test_the_longest_text_counts_what_is_written(
    tmp_path: Path, settings: dict[str, Any], longest: int
) -> None:
    assert read_writing(save(tmp_path, {}, {**START, **settings})).longest == longest


def test_what_a_whisper_is_told_does_not_count_to_its_longest_text(tmp_path: Path) -> None:
    """As in its own way to generate; positions are counted all the same."""
    told = {**LANGUAGES, "language": "en", "task": "transcribe"}
    found = read_writing(save(tmp_path, {}, {**told, "max_length": 225}))
    assert (len(found.start), found.longest) == (4, 225)
    write_writing(found, tmp_path)
    assert read_writing(tmp_path) == found
    found = read_writing(save(tmp_path, {"max_target_positions": 448}, {**told, "max_length": 448}))
    assert found.longest == 444


def test_the_config_says_what_the_other_file_does_not(tmp_path: Path) -> None:
    found = read_writing(save(tmp_path, {**START, "forced_bos_token_id": 0}, None))
    assert found.start == (7, 0)


def test_it_comes_back_without_the_config(tmp_path: Path) -> None:
    """A model in ONNX form has none, and knows nothing of positions."""
    config = {"max_position_embeddings": 64}
    generation = {**LANGUAGES, "language": "en", "task": "transcribe"}
    found = read_writing(save(tmp_path, config, generation))
    (tmp_path / "other").mkdir()
    write_writing(found, tmp_path / "other")
    assert read_writing(tmp_path / "other") == found


@pytest.mark.parametrize(
    ("generation", "given"),
    [
        (
            {**START, "decoder_start_token_id": 2, "model_type": "m2m_100"},
            "no forced_bos_token_id, so that any language could be written",
        ),
        (
            {**START, "model_type": "whisper"},
            "no no_timestamps_token_id, which generation_config.json of every Whisper has",
        ),
        ({"eos_token_id": 2}, "decoder_start_token_id"),
        ({**START, "eos_token_id": [2, 3]}, "eos_token_id names 2 tokens, of which any ends"),
        ({**START, "bad_words_ids": [[7], [5, 6]]}, "bad_words_ids forbids [5, 6], several tokens"),
        (LANGUAGES, "language"),
        ({**LANGUAGES, "language": "de", "task": "transcribe"}, "'de' is not one of en, fr"),
        ({**LANGUAGES, "language": "en", "task": "sing"}, "'sing' is not one of transcribe, tr"),
    ],
)
def test_what_is_missing_is_named(tmp_path: Path, generation: dict[str, Any], given: str) -> None:
    with pytest.raises(CheckpointError, match="of how a text begins and ends cannot be") as caught:
        read_writing(save(tmp_path, {}, generation))
    assert given.replace("\\", "") in str(caught.value.given)
    assert "decoder_start_token_id and eos_token_id" in str(caught.value.fix)
    assert "forced_bos_token_id" in str(caught.value.fix)


def test_an_end_may_be_a_list_of_one_token(tmp_path: Path) -> None:
    writing = read_writing(save(tmp_path, {}, {**START, "eos_token_id": [2]}))
    assert writing.end == 2
    assert writing.settings["eos_token_id"] == 2
