"""The command ``compressor finetune``."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertModel

from compressor.architecture import Architecture
from compressor.checkpoint import check_checkpoint, label_names
from compressor.tasks import get_task


@pytest.fixture(scope="module")
def encoder(home, tmp_path_factory) -> Path:
    """A bare encoder: no head, no classes."""
    folder = tmp_path_factory.mktemp("encoder")
    config = BertConfig.from_pretrained(home / "model")
    plain = BertConfig(
        **{
            name: getattr(config, name)
            for name in (
                "vocab_size",
                "hidden_size",
                "num_hidden_layers",
                "num_attention_heads",
                "intermediate_size",
                "max_position_embeddings",
            )
        }
    )
    with torch.random.fork_rng():
        torch.manual_seed(1)
        BertModel(plain).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(home / "model" / name, folder / name)
    return folder


def test_a_bare_encoder_becomes_a_classifier_and_is_found_again(
    home, encoder, tmp_path, compressor
):
    arguments = (
        "finetune", encoder, home, "--output", tmp_path / "out", "--store", tmp_path / "store",
        "--set", "epochs=2", "--set", "learning_rate=1e-3",
    )  # fmt: skip
    outcome = compressor(*arguments)
    assert outcome.code == 0, outcome.err
    assert "test accuracy: " in outcome.out
    output = tmp_path / "out"
    check_checkpoint(output, head="ForSequenceClassification")
    assert label_names(output) == ("person", "place", "time")
    assert json.loads((output / "curves.json").read_text())
    assert "<svg" in (output / "curves.svg").read_text()
    assert [path.name for path in output.glob(".*")] == [".finetune"]
    assert compressor(*arguments).code == 0  # the same call may write there again

    weights = (output / "model.safetensors").read_bytes()
    shutil.rmtree(output)
    listed = compressor("runs", "list", "--store", tmp_path / "store")
    for line in listed.out.splitlines():
        assert line.split()[1:] == ["finetune", "1", "steps", "finished"]
    assert compressor("runs", "prune", "--store", tmp_path / "store").out.startswith("removed 0 ")
    outcome = compressor(*arguments)
    assert " cached " in outcome.out
    assert (output / "model.safetensors").read_bytes() == weights


def test_the_longest_input_counts(home, encoder, tmp_path, compressor):
    def weights(name: str, *options: str) -> bytes:
        arguments = ("--store", tmp_path / "store", "--set", "epochs=1", *options)
        outcome = compressor("finetune", encoder, home, "--output", tmp_path / name, *arguments)
        assert outcome.code == 0, outcome.err
        return (tmp_path / name / "model.safetensors").read_bytes()

    assert weights("whole") != weights("cut", "--max-length", "3")
    assert weights("whole") == weights("long", "--max-length", "9999")  # the model has its limit


@pytest.mark.parametrize(
    ("task", "column", "label", "found"),
    [
        ("text-classification", "review", "sentiment", {"text": "review", "label": "sentiment"}),
        ("text-classification", None, "sentiment", {"label": "sentiment"}),
        ("token-classification", "words", None, {"tokens": "words"}),
        ("text-generation", "body", None, {"text": "body"}),
        ("image-classification", None, None, {}),
    ],
)
def test_columns_are_named_by_what_the_task_reads(task, column, label, found):
    assert get_task(task).named_columns(column, label) == found


def test_an_output_that_cannot_be_written_is_found_before_the_training(
    home, encoder, tmp_path, compressor
):
    outcome = compressor(
        "finetune", encoder, home, "--output", "/proc/nowhere", "--store", tmp_path / "store"
    )
    assert outcome.code == 8
    assert "the checkpoint cannot be written" in outcome.err
    assert not (tmp_path / "store").exists()


def test_what_stands_in_the_output_is_not_lost(home, encoder, tmp_path, compressor):
    output = tmp_path / "out"
    output.mkdir()
    (output / "thesis.txt").write_text("mine")
    (output / "shapes.json").write_text("{}")  # of a pruned checkpoint
    arguments = ("finetune", encoder, home, "--store", tmp_path / "store", "--set", "epochs=1")
    refused = compressor(*arguments, "--output", output)
    assert refused.code == 8
    assert "the output folder already holds other files" in refused.err
    assert "given: shapes.json, thesis.txt" in refused.err
    assert "--overwrite" in refused.err
    for folder in (encoder, home):
        before = sorted(path.name for path in folder.iterdir())
        refused = compressor(*arguments, "--output", folder, "--overwrite")
        assert refused.code == 8
        assert "that of the model or the data" in refused.err
        assert sorted(path.name for path in folder.iterdir()) == before
    assert not (tmp_path / "store").exists()
    assert compressor(*arguments, "--output", output, "--overwrite").code == 0
    assert (output / "thesis.txt").read_text() == "mine"
    check_checkpoint(output, head="ForSequenceClassification")
    assert Architecture.read(output).layers
    other = compressor(*arguments, "--output", output, "--set", "learning_rate=1")
    assert other.code == 8  # another model would take the place of that one


def test_a_model_that_learned_nothing_is_told(home, encoder, tmp_path, compressor):
    outcome = compressor(
        "finetune", encoder, home, "--output", tmp_path / "out", "--store", tmp_path / "store",
        "--set", "epochs=1", "--set", "learning_rate=1",
    )  # fmt: skip
    assert outcome.code == 0
    assert "no better than one that always gives the most frequent label" in outcome.out


def test_a_misspelt_setting_names_the_nearest_one(home, encoder, tmp_path, compressor):
    outcome = compressor("finetune", encoder, home, "--output", tmp_path, "--set", "epohcs=2")
    assert outcome.code == 3
    assert "there is no setting 'epohcs'" in outcome.err
    assert "--set epohcs" in outcome.err
    assert "did you mean 'epochs'?" in outcome.err


def test_a_setting_without_a_value_is_refused(home, encoder, tmp_path, compressor):
    outcome = compressor("finetune", encoder, home, "--output", tmp_path, "--set", "epochs")
    assert outcome.code == 3
    assert "an override has no value" in outcome.err


def test_an_output_that_cannot_be_written_exits_8(home, encoder, tmp_path, monkeypatch):
    from compressor import finetuning
    from compressor.errors import StoreError

    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreError, match="the checkpoint cannot be written") as caught:
        finetuning._publish(encoder, tmp_path / "file", "key")
    assert caught.value.fix is not None


def test_a_data_folder_without_files_says_what_it_should_hold(encoder, tmp_path, compressor):
    outcome = compressor("finetune", encoder, tmp_path / "none", "--output", tmp_path / "out")
    assert outcome.code == 3
    assert "the data folder does not exist" in outcome.err


def test_a_model_folder_that_is_not_there_is_said_as_elsewhere(home, encoder, tmp_path, compressor):
    wrong = encoder.parent / (encoder.name + "x")
    for command in (
        ("finetune", wrong, home, "--output", tmp_path / "out", "--store", tmp_path / "store"),
        ("inspect", wrong),
    ):
        outcome = compressor(*command)
        assert outcome.code == 3
        assert "the checkpoint does not exist" in outcome.err
        assert f"did you mean {encoder.name!r}?" in outcome.err
