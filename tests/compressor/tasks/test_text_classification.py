"""How tokenizers of checkpoints are read, whatever names their special tokens have."""

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from compressor.errors import CheckpointError
from compressor.tasks import get_task

TASK = get_task("text-classification")


def write_tokenizer(folder: Path, tokens: list[str], unknown: str) -> None:
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=unknown))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))


def test_special_tokens_written_as_objects_are_read(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, ["<s>", "<pad>", "</s>", "<unk>", "word"], "<unk>")
    config = {"pad_token": {"content": "<pad>", "lstrip": False}, "unk_token": "<unk>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = TASK.load_processor(tmp_path)
    assert tokenizer.pad_token_id == 1
    assert tokenizer.unk_token_id == 3


def test_special_tokens_of_roberta_need_no_config(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, ["<s>", "<pad>", "</s>", "<unk>", "word", "<mask>"], "<unk>")
    tokenizer = TASK.load_processor(tmp_path)
    assert (tokenizer.pad_token_id, tokenizer.mask_token_id) == (1, 5)
    assert sorted(tokenizer.all_special_ids) == [0, 1, 2, 3, 5]
    assert len(tokenizer) == 6


def test_no_token_is_added_beyond_the_rows_of_the_model(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, ["<s>", "<pad>", "</s>", "<unk>", "word"], "<unk>")
    assert len(TASK.load_processor(tmp_path)) == 5


def test_a_missing_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        TASK.load_processor(tmp_path)
    assert str(tmp_path / "tokenizer.json") in str(caught.value)
    assert "AutoTokenizer.from_pretrained" in str(caught.value)
