"""Trainings in two processes, started by torchrun and by accelerate, on the CPU."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from compressor import distributed
from compressor.errors import PassError
from compressor.passes.distill import Distill
from compressor.passes.finetune import Finetune
from compressor.passes.prune import Prune
from compressor.planning import make_plan
from compressor.recipe import load_recipe
from compressor.report.files import read_report
from compressor.store import RunStore
from compressor.training.losses import global_mean
from compressor.training.settings import DistillSettings
from tests.compressor.conftest import make_vision, write_images

ROOT = Path(__file__).parents[2]
SCRIPT = (Path(__file__).with_name("launched.py"),)
COMPRESSOR = ("-m", "compressor")
# Both find a free port.
TORCHRUN = ("torch.distributed.run", "--standalone", "--nproc_per_node", "2")
ACCELERATE = (
    "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2",
    "--num_machines", "1", "--main_process_port", "0", "--mixed_precision", "no",
    "--dynamo_backend", "no",
)  # fmt: skip
DEADLINE_S = 300
TRAINING = ("--set", "epochs=3", "--set", "batch_size=16", "--set", "dropout=0")
TOLERANCE = 1e-5
"""Of a weight of about 1, after some twenty steps of AdamW in float32: sums over a batch round in
another order where two processes share it. Found were differences of 1e-6."""
FREE = "key.bias"
"""The softmax over the keys ignores it: its gradient is rounding noise, which AdamW blows up to the
size of the learning rate."""


def launch(launcher, command: Sequence[object], *arguments: object, **env: object):
    """Two processes of a command; what they and the launcher print, and the launcher's code."""
    return subprocess.run(
        [sys.executable, "-m", *launcher, *map(str, (*command, *arguments))],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
        cwd=ROOT,
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT),
            **{name: str(value) for name, value in env.items()},
        },
    )


def alone(*arguments: object) -> None:
    """The same in one process."""
    command = [sys.executable, *map(str, (*SCRIPT, *arguments))]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    subprocess.run(command, check=True, capture_output=True, timeout=DEADLINE_S, env=env)


def codes(outcome) -> list[int]:
    """The exit codes of the processes, from the launcher's table."""
    return [int(code) for code in re.findall(r"exitcode +: (-?\d+)", outcome.stderr)]


def assert_same(first: Path, second: Path) -> None:
    """Weights agree, and so do the sizes of all layers."""
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (first, second))
    assert {name: each.shape for name, each in ours.items()} == {
        name: each.shape for name, each in theirs.items()
    }
    for name, each in ours.items():
        if not name.endswith(FREE):
            torch.testing.assert_close(each, theirs[name], rtol=0, atol=TOLERANCE, msg=name)


def losses(folder: Path) -> list[dict[str, float]]:
    return json.loads((folder / "curves.json").read_text())


@pytest.fixture(scope="module")
def reference(home, tmp_path_factory) -> Path:
    """A fine-tuned checkpoint, made in one process."""
    folder = tmp_path_factory.mktemp("reference")
    output = folder / "out"
    alone("finetune", home / "model", home, *TRAINING, "-o", output, "--store", folder / "store")
    return output


# Two processes give what one gives


@pytest.mark.slow
def test_finetuning_in_two_processes_gives_the_weights_of_one(home, reference, tmp_path):
    output = tmp_path / "out"
    outcome = launch(
        ACCELERATE, SCRIPT, "finetune", home / "model", home, *TRAINING,
        "-o", output, "--store", tmp_path / "store",
    )  # fmt: skip
    assert outcome.returncode == 0, outcome.stderr
    assert outcome.stdout.count("test accuracy: ") == 1
    start = load_file(home / "model" / "model.safetensors")
    after = load_file(output / "model.safetensors")
    moved = max((after[name] - start[name]).abs().max() for name in after)
    assert moved > 1000 * TOLERANCE
    assert_same(output, reference)
    # 120 rows in batches of 16: process 1 has no row in the last one.
    assert [entry["step"] for entry in losses(output)][-1] == 3 * 8
    for ours, theirs in zip(losses(output), losses(reference), strict=True):
        assert ours == pytest.approx(theirs, abs=1e-5)


@pytest.mark.slow
def test_a_network_with_a_weight_that_nothing_uses_trains_in_two_processes(tmp_path):
    """The token that DINOv2 puts in the place of masked patches has no gradient."""
    make_vision("dinov2").save(tmp_path / "model")
    for number, split in enumerate(("train", "validation", "test")):
        write_images(tmp_path / "data" / split, 24, number)
    command = ("finetune", tmp_path / "model", tmp_path / "data", *TRAINING)
    alone(*command, "-o", tmp_path / "one", "--store", tmp_path / "store1")
    outcome = launch(
        TORCHRUN, SCRIPT, *command, "-o", tmp_path / "two", "--store", tmp_path / "store2"
    )
    assert outcome.returncode == 0, outcome.stderr
    assert_same(tmp_path / "one", tmp_path / "two")


@pytest.mark.slow
def test_pruning_with_recovery_and_distilling_in_two_processes_give_the_models_of_one(
    home, tmp_path
):
    alone("passes", home, tmp_path / "one")
    outcome = launch(TORCHRUN, SCRIPT, "passes", home, tmp_path / "two")
    assert outcome.returncode == 0, outcome.stderr
    for name in ("prune", "distill"):
        assert_same(tmp_path / "one" / name, tmp_path / "two" / name)


@pytest.mark.slow
def test_a_run_in_two_processes_is_one_run_and_one_process_finds_its_steps(
    home, tmp_path, compressor
):
    arguments = (
        "run", home / "recipe.yaml", "--store", tmp_path / "store", "--output", tmp_path / "out",
        "--set", "targets=[pytorch]", "--set", "variants={}",
        "--set", "passes=[{pass: distill, epochs: 2, batch_size: 16}]",
    )  # fmt: skip
    outcome = launch(TORCHRUN, COMPRESSOR, *arguments)
    assert outcome.returncode == 0, (outcome.stdout, outcome.stderr)
    assert "error" not in outcome.stderr
    assert "find_unused_parameters" not in outcome.stderr
    for line in ("load the checkpoint", "  distill  ", "BUDGET MET", "report: "):
        assert outcome.stdout.count(line) == 1, outcome.stdout
    [run] = RunStore(tmp_path / "store").runs()
    assert run.status == "finished"
    report = read_report(tmp_path / "out")
    [candidate] = [row for row in report.rows if row.kind == "candidate"]
    assert candidate.status == "measured"
    steps = {each.pass_name: each for each in report.steps[candidate.variant]}
    assert steps["distill"].metrics["num_processes"] == 2

    before = {step.key for step in RunStore(tmp_path / "store").steps()}
    again = compressor(*arguments)
    assert again.code == 0, again.err
    assert {step.key for step in RunStore(tmp_path / "store").steps()} == before


# Failures


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "killed_at", "step"),
    [((), 19, "16"), (("--set", "checkpoint_steps=5"), 13, "10")],
    ids=["after an epoch", "within an epoch"],
)
def test_a_training_whose_processes_are_all_killed_goes_on_at_its_checkpoint(
    home, reference, tmp_path, settings, killed_at, step
):
    command = (
        "finetune", home / "model", home, *TRAINING, *settings,
        "-o", tmp_path / "out", "--store", tmp_path / "store",
    )  # fmt: skip
    killed = launch(TORCHRUN, SCRIPT, *command, FAULT=f"kill * {killed_at}")
    assert killed.returncode != 0
    assert -9 in codes(killed)
    [work] = (tmp_path / "store" / "partial").glob("*/work")
    assert sorted(path.name for path in work.glob("checkpoint-*/rng_state_*")) == [
        "rng_state_0.pth", "rng_state_0.pth", "rng_state_1.pth", "rng_state_1.pth",
    ]  # fmt: skip

    outcome = launch(TORCHRUN, SCRIPT, *command, TRACE=tmp_path)
    assert outcome.returncode == 0, outcome.stderr
    assert [(tmp_path / rank).read_text() for rank in "01"] == [step, step]
    assert_same(tmp_path / "out", reference)


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["raise 1 5", "kill 1 5"])
def test_the_end_of_one_process_ends_the_other(home, tmp_path, fault):
    outcome = launch(
        TORCHRUN, SCRIPT, "finetune", home / "model", home, *TRAINING,
        "-o", tmp_path / "out", "--store", tmp_path / "store", FAULT=fault,
    )  # fmt: skip
    assert outcome.returncode != 0
    assert outcome.stderr.count("error: ") == 1, outcome.stderr
    assert "test accuracy" not in outcome.stdout
    assert not (tmp_path / "out").exists()
    [run] = RunStore(tmp_path / "store").runs()
    if fault.startswith("raise"):
        assert 4 in codes(outcome)
        assert not set(codes(outcome)) - {4, -15}  # which the launcher may have sent meanwhile
        assert "failed: MemoryError: no more memory" in outcome.stderr
        assert "where: process 1 of 2, counted from 0" in outcome.stderr
        assert "fix:   run again with --debug" in outcome.stderr
        assert run.status.startswith("failed: a process of the training failed")
    else:
        assert -9 in codes(outcome)
        assert "Connection" not in outcome.stderr or "another process of the training ended" in (
            outcome.stderr
        )
        assert "this is a bug" not in outcome.stderr


@pytest.mark.slow
def test_after_a_training_that_diverged_the_processes_train_again(home, tmp_path):
    """As `compressor auto` does, which goes on with another shape."""
    outcome = launch(TORCHRUN, SCRIPT, "again", home, tmp_path, FAULT="nan 1 2")
    assert outcome.returncode == 0, outcome.stderr
    assert (tmp_path / "failure").read_text().startswith("the training diverged")
    assert (tmp_path / "distill" / "model.safetensors").is_file()


@pytest.mark.slow
def test_a_batch_that_two_processes_cannot_share_ends_both_with_one_message(home, tmp_path):
    outcome = launch(
        TORCHRUN, COMPRESSOR, "finetune", home / "model", home, "--set", "batch_size=15",
        "-o", tmp_path / "out", "--store", tmp_path / "store",
    )  # fmt: skip
    assert outcome.returncode != 0
    assert 4 in codes(outcome)
    assert not set(codes(outcome)) - {4, -15}
    assert outcome.stderr.count("error: ") == 1
    assert "the processes cannot share a batch evenly" in outcome.stderr
    assert "given: 15 rows for 2 processes" in outcome.stderr
    assert "fix:   set batch_size to 14 or 16, or start" in outcome.stderr


# In this process


@pytest.fixture
def two(monkeypatch):
    """As if a launcher had started two processes, this one as the first."""
    values = {"RANK": 0, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 1}
    for name, value in values.items():
        monkeypatch.setenv(name, str(value))


def test_a_process_that_no_launcher_started_is_alone(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")  # as some clusters do
    assert (distributed.size(), distributed.rank()) == (1, 0)
    assert not distributed.is_follower()


def test_a_launched_process_knows_its_place(two, monkeypatch):
    assert (distributed.size(), distributed.rank(), distributed.is_follower()) == (2, 0, False)
    monkeypatch.setenv("RANK", "1")
    assert (distributed.rank(), distributed.is_follower()) == (1, True)


@pytest.mark.parametrize(
    "each",
    [
        Distill(batch_size=15),
        Finetune(batch_size=15),
        Prune(ratio=0.5, recovery=DistillSettings(batch_size=15)),
    ],
    ids=lambda each: each.name,
)
def test_a_plan_refuses_a_batch_that_cannot_be_shared(home, two, each, monkeypatch):
    recipe = load_recipe(str(home / "recipe.yaml")).model_copy(update={"variants": {}})
    export = recipe.passes[-1]
    with pytest.raises(Exception, match=r"the recipe .* has a problem|problem") as caught:
        make_plan(recipe.model_copy(update={"passes": (each, export)}))
    [problem] = caught.value.problems
    assert problem.what == "the processes cannot share a batch evenly"
    assert problem.where == "passes.0"
    monkeypatch.setenv("WORLD_SIZE", "3")
    make_plan(recipe.model_copy(update={"passes": (each, export)}))


def test_a_batch_smaller_than_the_processes_are_many_is_refused(two):
    with pytest.raises(PassError) as caught:
        distributed.check_batch(1)
    assert "set batch_size to 2, or" in str(caught.value)


def test_alone_the_mean_over_all_is_the_mean():
    values = torch.rand(7)
    assert torch.equal(global_mean(values.sum(), 7), values.mean())
    assert global_mean(values[:0].sum(), 0) == 0
