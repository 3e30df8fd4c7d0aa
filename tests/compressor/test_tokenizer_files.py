"""Tokenizers out of the files that checkpoints have, against those of transformers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import (
    BertTokenizer,
    GPT2Tokenizer,
    MarianTokenizer,
    PreTrainedTokenizerFast,
    T5Tokenizer,
)

from compressor import tokenizer_files
from compressor.errors import CheckpointError
from compressor.tasks import get_task
from compressor.tokenizer_files import TARGET, read_target_tokenizer, read_tokenizer
from tests.compressor.marian import (
    LANGUAGE,
    english,
    foreign,
    write_marian,
    write_spm,
    write_tokenizer,
)

ODD = [
    "",
    "  two   spaces\tand a tab ",
    "\ufb01ne ½ \uff21 — “quoted”…",
    f"{LANGUAGE} in another language",
    "a </s> within",
    "1.5 %\n2",
]


@pytest.fixture(scope="module", params=[False, True], ids=["one vocabulary", "two vocabularies"])
def marian(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, MarianTokenizer]:
    folder = tmp_path_factory.mktemp("marian")
    return folder, write_tokenizer(folder, separate=request.param)


def test_marian_reads_what_transformers_reads(marian: tuple[Path, MarianTokenizer]) -> None:
    folder, expected = marian
    found = read_tokenizer(folder)
    for text in [*english(), *ODD]:
        assert found(text)["input_ids"] == expected(text)["input_ids"], text
    assert (found.pad_token_id, found.eos_token_id) == (expected.pad_token_id, 0)


def test_marian_learns_and_writes_what_transformers_does(
    marian: tuple[Path, MarianTokenizer],
) -> None:
    folder, expected = marian
    found = read_target_tokenizer(folder)
    assert found is not None
    for text in [*foreign(), *ODD[:3]]:
        ids = expected(text_target=text)["input_ids"]
        assert found(text)["input_ids"] == ids, text
        written = found.decode(ids, skip_special_tokens=True)
        assert written.strip() == expected.decode(ids, skip_special_tokens=True)


def test_a_character_that_only_the_other_language_has_keeps_its_token(tmp_path: Path) -> None:
    """Names are copied: what the source lacks may still be a token of the model."""
    expected = write_tokenizer(tmp_path, separate=False)
    ids = json.loads((tmp_path / "vocab.json").read_text())
    ids["ж"] = len(ids)
    (tmp_path / "vocab.json").write_text(json.dumps(ids))
    expected.encoder["ж"] = ids["ж"]
    text = "a ж and a ю"
    found = read_tokenizer(tmp_path)(text)["input_ids"]
    assert found == expected(text)["input_ids"]
    assert {ids["ж"], ids["<unk>"]} < set(found)


def test_a_checkpoint_of_marian_comes_back_from_its_own_files(tmp_path: Path) -> None:
    write_marian(tmp_path)
    task = get_task("translation")
    model = task.load_checkpoint(tmp_path / "model")
    assert model.processor.file == TARGET
    [shape] = [spec.shape for spec in task.outputs(model)]
    assert shape[-1] == len(json.loads((tmp_path / "model/target_vocab.json").read_text()))
    saved = tmp_path / "saved"
    task.save_processor(model.processor, saved)
    names = {path.name for path in task.processor_files(saved)}
    assert {"tokenizer.json", TARGET, "generation_config.json"} <= names
    again = task.load_processor(saved)
    for text in english()[:50]:
        assert again.reader(text)["input_ids"] == model.processor.reader(text)["input_ids"]
        assert again.tokenizer(text)["input_ids"] == model.processor.tokenizer(text)["input_ids"]
    assert task.preprocessing(saved, 16).model_dump()["pad_token_id"] == again.reader.pad_token_id
    assert task.answers_with(again).files == (TARGET,)


def test_two_vocabularies_with_one_tokenizer_are_refused(tmp_path: Path) -> None:
    write_marian(tmp_path)
    folder = tmp_path / "model"
    task = get_task("translation")
    task.save_processor(task.load_checkpoint(folder).processor, folder)
    for name in ("target.spm", TARGET):
        (folder / name).unlink()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "decoder_vocab_size": 299}))
    with pytest.raises(CheckpointError, match="has only one tokenizer") as caught:
        task.load_processor(folder)
    assert "299 written" in str(caught.value)


def words_of(folder: Path) -> Path:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))  # noqa: S106
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    lower = [line.lower() for line in english()]
    tokenizer.train_from_iterator(
        lower, trainers.WordPieceTrainer(vocab_size=400, special_tokens=special)
    )
    tokenizer.model.save(str(folder))
    return folder / "vocab.txt"


@pytest.mark.parametrize("kept", ["tokenizer.json", "tokenizer_config.json"])
def test_which_end_of_a_text_is_read_survives_every_step(tmp_path: Path, kept: str) -> None:
    words = words_of(tmp_path)
    first = BertTokenizer(vocab=str(words), truncation_side="left")
    first(["a text that is cut"], truncation=True, max_length=4)  # which leaves it in the file
    folder = tmp_path / "given"
    first.save_pretrained(folder)
    if kept == "tokenizer.json":
        (folder / "tokenizer_config.json").unlink()
    else:
        tokenizer_files.write_tokenizer(read_tokenizer(folder), folder / "tokenizer.json")
    task = get_task("text-classification")
    for name in ("first", "second"):  # steps write what they read
        found = read_tokenizer(folder)
        assert found.truncation_side == "left"
        assert task.preprocessing(folder, 4).truncation_side == "left"
        folder = tmp_path / name
        folder.mkdir()
        task.save_processor(found, folder)


def test_a_list_of_words_is_enough(tmp_path: Path) -> None:
    words = words_of(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    found, expected = read_tokenizer(tmp_path), BertTokenizer(vocab=str(words))
    for text in english()[:200]:
        assert found(text)["input_ids"] == expected(text)["input_ids"]
    assert found.pad_token == "[PAD]"  # noqa: S105


def test_merge_rules_are_enough(tmp_path: Path) -> None:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.train_from_iterator(
        english(), trainers.BpeTrainer(vocab_size=400, special_tokens=["<|endoftext|>"])
    )
    tokenizer.model.save(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    found = read_tokenizer(tmp_path)
    expected = GPT2Tokenizer(
        vocab=str(tmp_path / "vocab.json"), merges=str(tmp_path / "merges.txt")
    )
    for text in english()[:200]:
        assert found(text)["input_ids"] == expected(text)["input_ids"]


def test_a_model_of_sentencepiece_is_enough(tmp_path: Path) -> None:
    write_spm(tmp_path / "spiece.model", english())
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "t5"}))
    found = read_tokenizer(tmp_path)
    expected = T5Tokenizer.from_pretrained(tmp_path)
    for text in english()[:200]:
        assert found(text)["input_ids"] == expected(text)["input_ids"]
    assert read_target_tokenizer(tmp_path) is None


@pytest.mark.parametrize("is_marian", [False, True])
def test_tokenizer_json_goes_before_other_files_but_those_of_two_sides(
    tmp_path: Path, is_marian: bool
) -> None:
    write_tokenizer(tmp_path, separate=True)
    if not is_marian:
        (tmp_path / "target.spm").unlink()
    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0, "a": 1}, unk_token="<unk>"))  # noqa: S106
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(tmp_path)
    assert (read_tokenizer(tmp_path)("a")["input_ids"] == [1]) is not is_marian
    assert (read_target_tokenizer(tmp_path) is None) is not is_marian


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="the checkpoint has no tokenizer") as caught:
        get_task("text-classification").check_processor(tmp_path)
    assert "none of tokenizer.json, vocab.txt" in str(caught.value)


@pytest.mark.parametrize(
    ("file", "content", "given"),
    [
        ("source.spm", b"no model", ""),
        ("source.spm", b"", "0 pieces"),
        ("vocab.json", b"{", "Expecting"),
        ("vocab.json", b'{"a": 0, "b": 2}', "its ids are not 0, 1, 2"),
        ("vocab.json", b'{"<unk>": 0, "</s>": 1}', "it lacks <pad>"),
    ],
)
def test_broken_files_are_named(
    marian: tuple[Path, Any], tmp_path: Path, file: str, content: bytes, given: str
) -> None:
    folder = shutil.copytree(marian[0], tmp_path / "copy")
    (folder / file).write_bytes(content)
    with pytest.raises(CheckpointError, match="cannot be read") as caught:
        read_tokenizer(folder)
    assert str(folder / file) in str(caught.value)
    assert given in str(caught.value)


def test_a_broken_tokenizer_json_is_named(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0", "model": {"type": "New"}}')
    with pytest.raises(CheckpointError, match="cannot be read") as caught:
        read_tokenizer(tmp_path)
    assert str(tmp_path / "tokenizer.json") in str(caught.value)


def test_a_list_of_words_keeps_the_end_that_is_read(tmp_path: Path) -> None:
    words_of(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    (tmp_path / "tokenizer_config.json").write_text('{"truncation_side": "left"}')
    assert read_tokenizer(tmp_path).truncation_side == "left"


def test_a_tokenizer_that_transformers_cannot_make_is_refused(tmp_path: Path) -> None:
    (tmp_path / "spiece.model").write_bytes(b"no model")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "t5"}))
    with pytest.raises(CheckpointError, match="cannot be read") as caught:
        read_tokenizer(tmp_path)
    assert "with all files of its tokenizer" in str(caught.value)


def test_pieces_of_another_kind_are_refused(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, separate=False)
    write_spm(tmp_path / "source.spm", english(), model_type="bpe")
    with pytest.raises(CheckpointError, match="cannot be read") as caught:
        read_tokenizer(tmp_path)
    assert "model type 2" in str(caught.value)


def test_one_of_two_files_is_not_enough(tmp_path: Path) -> None:
    words_of(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "roberta"}))
    with pytest.raises(CheckpointError, match="cannot be read") as caught:
        read_tokenizer(tmp_path)
    assert "no vocab.json" in str(caught.value)


def test_more_tokens_than_the_model_has_rows_are_refused(tmp_path: Path) -> None:
    words_of(tmp_path)
    config = {"model_type": "bert", "vocab_size": 100}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="cannot be read") as caught:
        read_tokenizer(tmp_path)
    assert "where the model has rows for 100" in str(caught.value)


def test_a_tokenizer_without_a_fast_form_is_refused(tmp_path: Path) -> None:
    write_spm(tmp_path / "spm.model", english())
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "speech_to_text"}))
    (tmp_path / "vocab.json").write_text(json.dumps({"<unk>": 0, "<s>": 1, "</s>": 2, "<pad>": 3}))
    write_spm(tmp_path / "sentencepiece.bpe.model", english())
    with pytest.raises(CheckpointError, match="has no fast version"):
        read_tokenizer(tmp_path)
