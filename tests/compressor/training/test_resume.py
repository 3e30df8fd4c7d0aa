"""A training that was interrupted ends with the weights of one that was not."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from compressor.errors import PassError
from compressor.training import trainer as trainer_module
from compressor.training.distillation import distill
from compressor.training.finetuning import finetune
from compressor.training.settings import DistillSettings, FinetuneSettings
from targets.errors import is_disk_full

SETTINGS = FinetuneSettings(
    epochs=4, batch_size=16, learning_rate=3e-3, train_word_embeddings=True, checkpoint_steps=4
)
DISTILL = DistillSettings(epochs=4, batch_size=16, learning_rate=3e-3)
STEPS = 24  # of either: 4 epochs of 6


class CrashError(Exception):
    """Stands for a crash."""


def silent(fraction, line):
    pass


def stop_at(step):
    def progress(fraction, line):
        if round(fraction * STEPS) >= step:
            raise CrashError

    return progress


def weights(result):
    return result.model.module.state_dict()


def same(first, second):
    return all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture(scope="module")
def train(word_model, word_splits):
    def run(folder, *, progress=silent, settings=SETTINGS, seed=0, **keywords):
        return finetune(
            word_model(),
            word_splits,
            settings,
            seed=seed,
            folder=folder,
            progress=progress,
            **keywords,
        )

    return run


@pytest.fixture(scope="module")
def undisturbed(train, tmp_path_factory):
    """What an undisturbed training gives; nobody writes to its folder."""
    return train(tmp_path_factory.mktemp("undisturbed"))


def test_equal_seeds_give_equal_weights_and_others_do_not(train, undisturbed, tmp_path):
    second = train(tmp_path / "b")
    assert same(weights(undisturbed), weights(second))
    assert undisturbed.history == second.history
    assert not same(weights(undisturbed), weights(train(tmp_path / "c", seed=1)))


def test_the_accuracies_are_told_as_they_come_and_again_after_an_interruption(
    train, undisturbed, tmp_path
):
    found = [
        (round(entry["epoch"]), entry["validation_accuracy"])
        for entry in undisturbed.history
        if "validation_accuracy" in entry
    ]
    assert [epoch for epoch, _ in found] == [1, 2, 3, 4]
    told = []

    def tell(epoch, accuracy):
        told.append((epoch, accuracy))
        if epoch == 3:
            raise CrashError

    with pytest.raises(CrashError):
        train(tmp_path / "b", on_evaluation=tell)
    assert told == found[:3]
    again = []
    train(tmp_path / "b", on_evaluation=lambda *each: again.append(each))
    assert again == found


@pytest.mark.parametrize("step", [7, 14, 23])
def test_resumed_finetuning_equals_an_undisturbed_one(train, undisturbed, tmp_path, step):
    with pytest.raises(CrashError):
        train(tmp_path / "b", progress=stop_at(step))
    steps = []
    resumed = train(tmp_path / "b", progress=lambda f, line: steps.append(round(f * STEPS)))
    assert steps[0] > step - 6, "it began anew"
    assert same(weights(undisturbed), weights(resumed))
    assert resumed.history[-1] == undisturbed.history[-1]


@pytest.mark.parametrize("copies", [2, None])
def test_resumed_distillation_equals_an_undisturbed_one(word_model, word_splits, tmp_path, copies):
    settings = DISTILL.model_copy(update={"augmentation_copies": copies})

    def run(folder, progress=silent):
        return distill(
            word_model(num_layers=1, hidden_size=16, seed=1),
            word_model(),
            word_splits,
            settings,
            layer_map=None,
            seed=3,
            folder=folder,
            progress=progress,
        )

    undisturbed = run(tmp_path / "a")
    with pytest.raises(CrashError):
        run(tmp_path / "b", stop_at(14))
    assert same(weights(undisturbed), weights(run(tmp_path / "b")))


def test_best_weights_survive_an_interruption(train, tmp_path):
    settings = SETTINGS.model_copy(update={"keep": "best", "learning_rate": 2e-2})
    undisturbed = train(tmp_path / "a", settings=settings)
    with pytest.raises(CrashError):
        train(tmp_path / "b", settings=settings, progress=stop_at(20))
    resumed = train(tmp_path / "b", settings=settings)
    assert same(weights(undisturbed), weights(resumed))
    assert resumed.metrics["validation_accuracy"] == max(
        entry.get("validation_accuracy", 0) for entry in resumed.history
    )


KILLED = """
import importlib.util, os, signal, sys
from pathlib import Path
spec = importlib.util.spec_from_file_location("words", sys.argv[1])
words = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = words
spec.loader.exec_module(words)
from compressor.data import Splits
from compressor.training.finetuning import finetune
from compressor.training.settings import FinetuneSettings
settings = FinetuneSettings.model_validate_json(sys.argv[3])
parts = [words.make_split(96, 1), words.make_split(48, 2), words.make_split(48, 3)]
splits = Splits(*parts, words.LABELS)

def progress(fraction, line):
    if fraction > 0.6:
        # What a kill in the middle of a save leaves behind.
        partial = Path(sys.argv[2]) / "checkpoint-15"
        partial.mkdir()
        (partial / "model.safetensors").write_bytes(b"half")
        os.kill(os.getpid(), signal.SIGKILL)

finetune(words.make_model(), splits, settings, seed=0, folder=Path(sys.argv[2]), progress=progress)
"""


def test_a_killed_process_is_taken_up_again(train, undisturbed, tmp_path):
    conftest = Path(__file__).parents[1] / "conftest.py"
    killed = subprocess.run(
        [
            sys.executable,
            "-c",
            KILLED,
            str(conftest),
            str(tmp_path / "b"),
            SETTINGS.model_dump_json(),
        ],
        capture_output=True,
        text=True,
        # The number of threads changes the rounding of sums.
        env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert killed.stdout == ""
    assert same(weights(undisturbed), weights(train(tmp_path / "b")))


def test_checkpoints_of_other_settings_are_not_taken_up(train, tmp_path):
    with pytest.raises(CrashError):
        train(tmp_path / "b", progress=stop_at(14))
    others = SETTINGS.model_copy(update={"learning_rate": 1e-3})
    fresh = train(tmp_path / "a", settings=others)
    assert same(weights(fresh), weights(train(tmp_path / "b", settings=others)))


@pytest.mark.parametrize(
    "failure",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 18944 vs 18836"),
        RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed"),
    ],
)
def test_a_full_disk_names_the_way_out_and_keeps_earlier_checkpoints(
    train, undisturbed, tmp_path, monkeypatch, failure
):
    calls = []

    def save_file(*arguments):
        calls.append(arguments)
        if len(calls) == 3:
            raise failure
        return original(*arguments)

    original = trainer_module.save_file
    monkeypatch.setattr(trainer_module, "save_file", save_file)
    with pytest.raises(PassError, match="the disk is full") as caught:
        train(tmp_path / "b")
    assert "free some space and run again" in str(caught.value)
    assert is_disk_full(caught.value)  # which decides the exit code, whoever told it
    assert {path.name for path in (tmp_path / "b").glob("checkpoint-*")} == {
        "checkpoint-4",
        "checkpoint-6",
    }
    assert same(weights(undisturbed), weights(train(tmp_path / "b")))


def test_no_checkpoint_file_is_a_pickle_that_runs_code(train, tmp_path):
    train(tmp_path)
    checkpoint = tmp_path / "checkpoint-18"
    names = {path.name for path in checkpoint.iterdir()}
    assert "training_args.bin" not in names
    assert load_file(checkpoint / "model.safetensors")
    assert list((checkpoint / "sealed.json").parent.glob("*.bin")) == []
    torch.load(checkpoint / "optimizer.pt", weights_only=True)


def test_a_diverged_training_names_the_step_and_the_way_out(train, tmp_path):
    wild = SETTINGS.model_copy(
        update={"learning_rate": 1.0, "max_grad_norm": 0.0, "weight_decay": 1.0, "epochs": 40}
    )

    def poison(fraction, line):
        if fraction > 0.01:
            torch.nn.functional.cross_entropy = broken

    def broken(*arguments, **keywords):
        return original(*arguments, **keywords) * float("nan")

    original = torch.nn.functional.cross_entropy
    try:
        with pytest.raises(PassError) as caught:
            train(tmp_path, settings=wild, progress=poison)
    finally:
        torch.nn.functional.cross_entropy = original
    message = str(caught.value)
    assert "the training diverged" in message
    assert "of 240" in message
    assert "lower learning_rate" in message


def test_global_state_is_as_it_was(train, tmp_path):
    from transformers.utils import logging

    torch.manual_seed(7)
    before = torch.random.get_rng_state(), logging.get_verbosity(), torch.get_num_threads()
    train(tmp_path)
    assert torch.equal(torch.random.get_rng_state(), before[0])
    assert (logging.get_verbosity(), torch.get_num_threads()) == before[1:]


def test_nothing_is_printed(train, tmp_path, capfd):
    train(tmp_path)
    assert capfd.readouterr() == ("", "")


def test_frozen_weights_are_not_written_again_and_again(train, tmp_path):
    frozen = SETTINGS.model_copy(update={"train_word_embeddings": False})
    train(tmp_path, settings=frozen)
    names = load_file(tmp_path / "checkpoint-18" / "model.safetensors").keys()
    assert "bert.embeddings.position_embeddings.weight" in names
    assert "bert.embeddings.word_embeddings.weight" not in names
