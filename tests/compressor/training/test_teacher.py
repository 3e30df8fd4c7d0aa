import errno
import gc
import os
import shutil
from pathlib import Path

import pytest
import torch

from compressor.errors import PassError
from compressor.training.augmentation import ImageNoise
from compressor.training.batches import collator, encode, lengths
from compressor.training.taps import TappedEncoder
from compressor.training.teacher import Teacher, vocabulary_table


def make_teacher(word_model):
    encoder = TappedEncoder(word_model().module, hidden_layers=(0, 1), relation_layer=1)
    return Teacher(encoder, ("input_ids", "attention_mask"), None)


@pytest.fixture
def teacher(word_model):
    return make_teacher(word_model)


def rows_of(model, split):
    return [{**row, "slot": slot} for slot, row in enumerate(encode(model, split))]


def test_remembered_outputs_are_those_of_a_run(teacher, word_model, word_splits):
    model = word_model()
    rows, collate = rows_of(model, word_splits.train), collator(model)
    batch = collate([rows[3], rows[70], rows[1]])
    live = teacher.outputs(batch)
    assert teacher.remember(rows, lengths(model, rows), collate, limit_bytes=2**30)
    recalled = teacher.outputs(batch)
    mask = batch["attention_mask"][..., None]
    torch.testing.assert_close(recalled.logits, live.logits)
    for name in ("hidden", "projections"):
        for ours, theirs in zip(getattr(recalled, name), getattr(live, name), strict=True):
            torch.testing.assert_close(ours * mask, theirs * mask, rtol=2e-3, atol=2e-3)


def test_memory_limit_is_kept(teacher, word_model, word_splits):
    model = word_model()
    rows = rows_of(model, word_splits.train)
    assert not teacher.remember(rows, lengths(model, rows), collator(model), limit_bytes=1000)
    assert teacher.kept is None


def on_disk(teacher, model, rows, folder, **changes):
    settings = {"limit_bytes": 10_000, "folder": folder, "disk_bytes": 2**30, **changes}
    return teacher.remember(rows, lengths(model, rows), collator(model), **settings)


def nameless_files(folder):
    links = [each for each in Path("/proc/self/fd").iterdir() if each.is_symlink()]
    opened = [os.readlink(each) for each in links if os.path.lexists(each)]
    return [each for each in opened if each.startswith(str(folder)) and "(deleted)" in each]


def test_states_that_memory_does_not_suffice_for_lie_in_a_file_without_a_name(
    word_model, word_splits, tmp_path
):
    teacher = make_teacher(word_model)
    model = word_model()
    rows, done = rows_of(model, word_splits.train), []
    batch = collator(model)([rows[3], rows[70], rows[1]])
    live = teacher.outputs(batch)
    assert on_disk(teacher, model, rows, tmp_path, progress=done.append)
    assert teacher.kept is not None
    assert not list(tmp_path.iterdir())
    assert done[-1] == len(rows)
    recalled = teacher.outputs(batch)
    mask = batch["attention_mask"][..., None]
    torch.testing.assert_close(recalled.logits, live.logits)
    for ours, theirs in zip(recalled.hidden, live.hidden, strict=True):
        torch.testing.assert_close(ours * mask, theirs * mask, rtol=2e-3, atol=2e-3)
    assert nameless_files(tmp_path)
    del teacher
    gc.collect()
    assert not nameless_files(tmp_path)


@pytest.mark.parametrize(
    ("changes", "free"),
    [
        ({"disk_bytes": 10_000}, 2**40),
        ({"limit_bytes": 100}, 2**40),  # the answers are to be in memory
        ({}, 10_000),
    ],
)
def test_what_neither_memory_nor_disk_suffices_for_is_not_kept(
    changes, free, teacher, word_model, word_splits, tmp_path, monkeypatch
):
    usage = shutil.disk_usage(tmp_path)._replace(free=free)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    model = word_model()
    assert not on_disk(teacher, model, rows_of(model, word_splits.train), tmp_path, **changes)
    assert teacher.kept is None
    assert not list(tmp_path.iterdir())


def test_a_disk_that_fills_up_meanwhile_leaves_nothing(
    teacher, word_model, word_splits, tmp_path, monkeypatch
):
    def full(handle, offset, length):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    model = word_model()
    assert not on_disk(teacher, model, rows_of(model, word_splits.train), tmp_path)
    assert not list(tmp_path.iterdir())


def test_hidden_states_are_those_of_transformers(word_model, word_splits):
    model = word_model()
    batch = collator(model)(encode(model, word_splits.train)[:4])
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    expected = model.module(**inputs, output_hidden_states=True).hidden_states
    found = TappedEncoder(model.module, hidden_layers=(1, 0)).eval()(**inputs)
    torch.testing.assert_close(found.hidden, (expected[2], expected[1]))


@pytest.mark.parametrize("family", ["Bert", "Roberta", "Electra", "DistilBert", "XLMRoberta"])
def test_projections_of_every_family_are_found(family):
    import transformers

    names = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    names |= {"intermediate_size": 64}
    if family == "DistilBert":
        names = {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64}
    config = getattr(transformers, family + "Config")(vocab_size=40, num_labels=3, **names)
    module = getattr(transformers, family + "ForSequenceClassification")(config)
    encoder = TappedEncoder(module, hidden_layers=(0, 1), relation_layer=1).eval()
    ids = torch.randint(5, 40, (2, 6))
    found = encoder(input_ids=ids, attention_mask=torch.ones_like(ids))
    assert [tuple(part.shape) for part in (*found.hidden, *found.projections)] == [(2, 6, 32)] * 5


def test_table_maps_tokens_by_their_text(word_model, vocabulary):
    teacher = word_model()
    student = word_model(words=[*reversed(vocabulary), "new"])
    table = vocabulary_table(student, teacher)
    for token, index in student.processor.get_vocab().items():
        known = "[UNK]" if index == len(table) - 1 else token
        assert teacher.processor.convert_ids_to_tokens(int(table[index])) == known


def test_equal_vocabularies_need_no_table(word_model):
    assert vocabulary_table(word_model(), word_model()) is None


def test_foreign_vocabularies_are_refused(word_model):
    student = word_model(words=[f"other{number}" for number in range(40)])
    with pytest.raises(PassError, match="too few tokens in common") as caught:
        vocabulary_table(student, word_model())
    assert "5 of the student's 45 tokens" in str(caught.value)


# Images


@pytest.mark.parametrize("family", ["vit", "dinov2", "resnet"])
def test_remembered_outputs_for_images_are_those_of_a_run(vision_model, image_splits, family):
    model = vision_model(family)
    taps = {} if family == "resnet" else {"hidden_layers": (0, 1), "relation_layer": 1}
    teacher = Teacher(TappedEncoder(model.module, **taps), ("pixel_values",), None)
    noise = ImageNoise(encode(model, image_splits.train), share=0.2, mixup=0.5, copies=2, seed=0)
    rows = noise.variants(noise.rows)
    collate = collator(model)
    batch = collate([rows[slot] for slot in (3, 70, 1, 287)])
    live = teacher.outputs(batch)
    assert teacher.remember(rows, [0] * len(rows), collate, limit_bytes=2**30)
    assert teacher.kept is not None
    recalled = teacher.outputs(batch)
    torch.testing.assert_close(recalled.logits, live.logits, rtol=1e-4, atol=1e-5)
    assert [part.shape for part in recalled.hidden] == [part.shape for part in live.hidden]
    assert len(recalled.projections) == len(live.projections) == (3 if taps else 0)
    for name in ("hidden", "projections"):
        for ours, theirs in zip(getattr(recalled, name), getattr(live, name), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=2e-3, atol=2e-3)


def test_memory_limit_is_kept_for_images(vision_model, image_splits):
    model = vision_model("vit")
    teacher = Teacher(TappedEncoder(model.module, hidden_layers=(0,)), ("pixel_values",), None)
    rows = [{**row, "slot": slot} for slot, row in enumerate(encode(model, image_splits.train))]
    # 96 rows of 17 states of 32 float16 each, and 3 float32.
    needed = 96 * (17 * 32 * 2 + 3 * 4)
    lengths_of = [0] * len(rows)
    assert not teacher.remember(rows, lengths_of, collator(model), limit_bytes=needed - 1)
    assert teacher.kept is None
    assert teacher.remember(rows, lengths_of, collator(model), limit_bytes=needed)


def test_images_need_no_table_of_tokens(vision_model):
    assert vocabulary_table(vision_model("vit"), vision_model("dinov2")) is None
