"""Rows and batches of models that write, and how their answers are compared."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    MPNetConfig,
    SwitchTransformersConfig,
    SwitchTransformersForConditionalGeneration,
)

from compressor.architecture import Architecture
from compressor.data import DataSpec, read_splits, split_hashes
from compressor.errors import CheckpointError, DataError, PassError
from compressor.model import TorchModel
from compressor.passes.distill import Distill
from compressor.passes.drop_layers import DropLayers
from compressor.passes.export import Export
from compressor.passes.prune import Prune
from compressor.passes.trim_vocabulary import TrimVocabulary
from compressor.pruning.layers import pair_layers, select_layers
from compressor.pruning.slicing import Kept, keep_units
from compressor.tasks import get_task, infer_task
from targets.answers import IGNORED, TranscriptAnswers
from targets.answers.written import as_codes
from targets.encoder import encoder_layers
from targets.preprocessing.base import DECODER_IDS
from tests.compressor.writers import (
    END,
    FAMILIES,
    LONGEST,
    QUIET,
    SPEECH,
    START,
    TRANSLATION,
    make_split,
    make_splits,
    make_tokenizer,
    make_writer,
    write_writer,
)


@pytest.fixture(scope="module")
def whisper() -> TorchModel:
    return make_writer("whisper")


def test_rows_are_the_tokens_up_to_each_that_is_to_be_written(whisper: TorchModel) -> None:
    task, split = get_task(SPEECH), make_split(SPEECH, 3, 1)
    [row, *_] = task.encode_labelled(whisper, split)
    words = [5 + int(word[1:]) for word in split.labels[0].split()]
    assert row[DECODER_IDS] == [START, QUIET, *words]
    assert row["labels"] == [IGNORED, *words, END]
    [plain, *_] = task.encode(whisper, split.inputs)
    assert plain[DECODER_IDS] == [START, QUIET]


def test_a_text_is_cut_where_the_decoder_ends(whisper: TorchModel) -> None:
    split = replace(make_split(SPEECH, 1, 1), labels=(" ".join(["w1"] * 50),))
    [row] = get_task(SPEECH).encode_labelled(whisper, split)
    longest = whisper.processor.writing.longest
    assert len(row["labels"]) == len(row[DECODER_IDS]) == longest + 1


def test_what_is_to_be_answered_is_not_given(whisper: TorchModel) -> None:
    task = get_task(SPEECH)
    rows = task.encode_labelled(whisper, make_split(SPEECH, 2, 1))
    assert task.collate_unanswered(whisper, rows)[DECODER_IDS].tolist() == [[START, QUIET]] * 2


def test_padding_has_no_part_in_the_loss(whisper: TorchModel) -> None:
    from compressor.training.batches import collator, encode

    task = get_task(SPEECH)
    rows = encode(whisper, make_split(SPEECH, 6, 1))
    rows.sort(key=task.length)
    apart = [collator(whisper)([row]) for row in (rows[0], rows[-1])]
    together = collator(whisper)([rows[0], rows[-1]])
    assert task.length(rows[0]) < task.length(rows[-1])

    def loss(batch: dict[str, torch.Tensor]) -> tuple[float, int]:
        inputs = {name: each for name, each in batch.items() if name != "labels"}
        total, count = task.loss(whisper.module(**inputs)[0], batch)
        return float(total), int(count)

    with torch.inference_mode():
        (one, few), (other, many) = map(loss, apart)
        total, count = loss(together)
    assert count == few + many
    assert total == pytest.approx(one + other, rel=1e-4)


def test_unlabelled_inputs_are_refused(whisper: TorchModel) -> None:
    with pytest.raises(PassError, match="cannot learn from inputs without target texts"):
        get_task(SPEECH).encode_unlabeled(whisper, ["a.wav"])


def test_points_of_the_word_error_rate_are_lost() -> None:
    task, answers = get_task(SPEECH), TranscriptAnswers()
    wanted = as_codes(["a b c d", "e", "f g"] * 20)
    before = answers.judged(as_codes(["a b c d", "e", "f g"] * 20), wanted)
    after = answers.judged(as_codes(["a b x", "e", "f g"] * 20), wanted)
    slices = {"kind": ["long", "short", "short"] * 20}
    compared = task.compare(before, after, label_names=(), slices=slices)
    assert compared.drop_points == pytest.approx(100 * 2 / 7)
    assert compared.low_points < compared.drop_points < compared.high_points
    assert compared.agreement == pytest.approx(2 / 3)
    assert compared.reference_accuracy == 1
    lost = {group.value: group.drop_points for group in compared.groups}
    assert lost == {"long": pytest.approx(50), "short": 0}
    found = task.drop(task.kept(before), task.kept(after), None, before.rows)
    assert found == pytest.approx((compared.drop_points, compared.low_points, compared.high_points))


# Data


def write_table(path: Path, rows: list[tuple[str, str]]) -> None:
    with path.open("w", newline="") as stream:
        csv.writer(stream).writerows([("text", "target"), *rows])


def spec_of(folder: Path) -> DataSpec:
    return DataSpec(train=folder / "train.csv", test=folder / "test.csv")


def test_texts_to_write_are_read_beside_their_inputs(tmp_path: Path) -> None:
    write_table(tmp_path / "train.csv", [(f"in {n}", f"out {n}") for n in range(20)])
    write_table(tmp_path / "test.csv", [("a", "b")])
    splits = read_splits(spec_of(tmp_path), label_names=None, labels="target")
    assert (splits.test.inputs, splits.test.labels) == (("a",), ("b",))
    assert len(splits.train) + len(splits.validation) == 20
    assert all(
        text.replace("in", "out") == target
        for text, target in zip(splits.train.inputs, splits.train.labels, strict=True)
    )


def test_a_row_without_a_text_is_named(tmp_path: Path) -> None:
    write_table(tmp_path / "train.csv", [("a", "b"), ("c", " ")])
    write_table(tmp_path / "test.csv", [("a", "b")])
    with pytest.raises(DataError, match="no text or no text to write") as caught:
        read_splits(spec_of(tmp_path), label_names=None, labels="target")
    assert "row 2" in str(caught.value.where)


def test_a_changed_text_is_other_data(tmp_path: Path) -> None:
    write_writer(tmp_path, "whisper")
    spec = spec_of(tmp_path)
    before = split_hashes(spec, "audio", "target")
    table = (tmp_path / "test.csv").read_text()
    (tmp_path / "test.csv").write_text(table.replace("w1", "w2"))
    after = split_hashes(spec, "audio", "target")
    assert before["train"] == after["train"]
    assert before["test"] != after["test"]


# Checkpoints and sizes


@pytest.mark.parametrize(("family", "task"), [("whisper", SPEECH), ("t5", TRANSLATION)])
def test_the_task_follows_from_the_head(tmp_path: Path, family: str, task: str) -> None:
    write_writer(tmp_path, family)
    assert infer_task(tmp_path / "model") == task
    model = get_task(task).load_checkpoint(tmp_path / "model")
    assert model.processor.writing == make_writer(family).processor.writing


def num_stored(model: TorchModel) -> int:
    """Values of a checkpoint, where tables that serve twice are once."""
    stored = {each.data_ptr(): each.numel() for each in model.module.state_dict().values()}
    return sum(stored.values())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_comes_back_as_it_was(tmp_path: Path, family: str) -> None:
    model = make_writer(family)
    model.save(tmp_path)
    again = TorchModel.load(tmp_path)
    for name, value in model.module.state_dict().items():
        assert torch.equal(again.module.state_dict()[name], value)
    assert again.processor.writing == model.processor.writing
    described = Architecture.read(tmp_path)
    assert described == Architecture.of(again.module)
    assert described.num_parameters == num_stored(again)
    assert described.writes


def test_a_student_writes_the_tokens_of_the_model(whisper: TorchModel) -> None:
    other = make_tokenizer()
    other.add_tokens(["more"])
    student = replace(whisper, processor=replace(whisper.processor, tokenizer=other))
    with pytest.raises(CheckpointError, match="does not write the same tokens as the model"):
        get_task(SPEECH).adopt(student, whisper)
    assert get_task(SPEECH).adopt(whisper, whisper).writing == whisper.processor.writing


def test_a_shorter_window_leaves_the_decoder_as_it_is(tmp_path: Path) -> None:
    """A window that is half as long: the positions of the encoder go, and no others."""
    model, task = make_writer("whisper"), get_task(SPEECH)
    model = replace(
        model,
        processor=replace(
            model.processor,
            reader=model.processor.reader.model_copy(
                update={"sampling_rate": 8000, "max_samples": 16_000}
            ),
        ),
    )
    processor = task.shortened(model.module, model.processor, 8000)
    short = replace(model, processor=processor, max_length=8000)
    module: Any = short.module
    assert module.model.encoder.embed_positions.num_embeddings == 25
    assert module.model.decoder.embed_positions.num_embeddings == LONGEST
    feeds = task.collate(short, task.encode(short, [np.zeros(8000, np.int16)]))
    assert feeds["input_features"].shape == (1, 8, 50)
    short.save(tmp_path)
    again = TorchModel.load(tmp_path)
    given = {name: torch.from_numpy(each) for name, each in feeds.items()}
    with torch.inference_mode():
        torch.testing.assert_close(again.module(**given)[0], module(**given)[0])


# Passes


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("stack", ["encoder", "decoder"])
def test_layers_of_one_stack_go(tmp_path: Path, family: str, stack: str) -> None:
    model = make_writer(family)
    dropping = DropLayers(stack=stack, keep=(1,))  # type: ignore[arg-type]
    planned = dropping.plan(Architecture.of(model.module))
    keep = {"encoder": (1, 2, 3), "decoder": (0, 1, 3)}[stack]
    pruned = replace(model, module=select_layers(model.module, keep))
    found = Architecture.of(pruned.module)
    assert found == planned
    assert found.num_decoder_layers == (1 if stack == "decoder" else 2)
    assert found.num_parameters == num_stored(pruned)
    pruned.save(tmp_path)
    again = TorchModel.load(tmp_path)
    task = get_task(model.task)
    feeds = task.collate(pruned, task.encode(pruned, make_splits(model.task).test.inputs[:2]))
    given = {name: torch.from_numpy(each) for name, each in feeds.items()}
    with torch.inference_mode():
        torch.testing.assert_close(again.module(**given)[0], pruned.module(**given)[0])
    for each in (pruned, again):
        assert len(task.signature(each).state) == 2 * found.num_decoder_layers


@pytest.mark.parametrize("family", FAMILIES)
def test_neurons_of_both_stacks_go(tmp_path: Path, family: str) -> None:
    model = make_writer(family)
    kept = Kept([range(4)] * 4, [range(16), range(8, 40), range(24), range(40)])
    module = keep_units(model.module, kept, {})
    found = Architecture.of(module)
    assert [each.ffn_width for each in found.layers] == [16, 32, 24, 40]
    pruned = replace(model, module=module)
    assert found.num_parameters == num_stored(pruned)
    pruned.save(tmp_path)
    again = TorchModel.load(tmp_path)
    assert Architecture.of(again.module) == Architecture.read(tmp_path) == found
    for name, value in module.state_dict().items():
        assert torch.equal(again.module.state_dict()[name], value)


def test_neurons_that_give_nothing_go_without_a_trace() -> None:
    """Those whose weights out are zero: what a gated T5 writes stays the same."""
    model = make_writer("flan-t5")
    for layer in encoder_layers(model.module):
        layer.ffn_output.weight.data[:, 20:] = 0
    module: Any = keep_units(model.module, Kept([range(4)] * 4, [range(20)] * 4), {})
    task = get_task(model.task)
    feeds = task.collate(model, task.encode(model, make_splits(model.task).test.inputs[:2]))
    given = {name: torch.from_numpy(each) for name, each in feeds.items()}
    with torch.inference_mode():
        torch.testing.assert_close(module(**given)[0], model.module(**given)[0])


def test_the_first_layer_that_stays_reads_the_positions() -> None:
    model: Any = make_writer("t5").module
    pruned: Any = select_layers(model, (1, 3))
    for side in ("encoder", "decoder"):
        [before, _], [after] = (getattr(each, side).block for each in (model, pruned))
        table = after.layer[0].SelfAttention.relative_attention_bias.weight
        assert torch.equal(table, before.layer[0].SelfAttention.relative_attention_bias.weight)


def test_layers_are_paired_within_their_stack(whisper: TorchModel) -> None:
    student = select_layers(whisper.module, (0, 1, 3))
    assert pair_layers(student, whisper.module) == ((0, 0), (1, 1), (2, 3))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (DropLayers(num_layers=1), "has an encoder and a decoder, each with its own layers"),
        (Prune(ratio=0.5), "the heads of a model with a decoder cannot be pruned"),
        (Prune(ffn=0.5, hidden=0.1), "the hidden size of this model|the residual stream"),
        (
            Prune.model_validate({"shape": [{"layer": 0, "heads": 4, "ffn": 16}]}),
            "shape describes a single stack of layers",
        ),
        (Distill(num_layers=1), "has an encoder and a decoder, each with its own layers"),
        (Export(cache=True), "always keeps its keys and values"),
    ],
)
def test_what_does_not_fit_two_stacks_is_refused(
    whisper: TorchModel, settings: object, message: str
) -> None:
    with pytest.raises(PassError, match=message):
        settings.plan(Architecture.of(whisper.module))  # type: ignore[attr-defined]


def test_a_stack_is_refused_where_there_is_one() -> None:
    from tests.compressor.conftest import make_model

    with pytest.raises(PassError, match="the model has one stack of layers"):
        DropLayers(stack="decoder", num_layers=1).plan(Architecture.of(make_model().module))


def test_vocabularies_of_what_is_written_stay(whisper: TorchModel) -> None:
    reason = TrimVocabulary.unsuited(Architecture.of(whisper.module))
    assert reason == "it writes text, so any token may be needed"


def test_layers_with_experts_are_not_known() -> None:
    config = SwitchTransformersConfig(
        vocab_size=30, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, num_experts=2,
        num_sparse_encoder_layers=1, num_sparse_decoder_layers=1,
    )  # fmt: skip
    described = Architecture.of(SwitchTransformersForConditionalGeneration(config))
    assert not encoder_layers(SwitchTransformersForConditionalGeneration(config))
    assert described.writes


@pytest.mark.parametrize(("family", "taken"), [("t5", 1000), ("marian", LONGEST)])
def test_where_positions_do_not_end_longer_texts_are_taken(
    tmp_path: Path, family: str, taken: int
) -> None:
    write_writer(tmp_path, family)
    task = get_task(TRANSLATION)
    folder = tmp_path / "model"
    assert task.load_checkpoint(folder, max_length=1000).max_length == taken
    assert task.read_length(folder, max_length=1000) == taken
    assert task.read_length(folder) == min(512, taken)
    assert task.read_length(folder, max_length=10) == 10
    assert Architecture.read(folder).has_open_positions == (family == "t5")


def test_positions_that_are_relative_beside_a_table_do_end(tmp_path: Path) -> None:
    MPNetConfig(max_position_embeddings=514).save_pretrained(tmp_path)
    found = Architecture.read(tmp_path)
    assert not found.has_open_positions
    assert found.max_positions == 512
