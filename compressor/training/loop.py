"""Run one training from start to end, or from where it was interrupted."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn
from transformers.utils import logging

from compressor.model import TorchModel
from compressor.training.checkpoints import claim, last_checkpoint, step_of
from compressor.training.fake_quant import fake_quantized
from compressor.training.settings import TrainingSettings
from compressor.training.trainer import SteadyTrainer, is_convolutional, set_memory_format
from targets.encoder import token_table

__all__ = ["History", "TrainingResult", "quiet", "run_training", "seeded"]

History = tuple[Mapping[str, float], ...]

_VALIDATION = {
    "eval_accuracy": "validation_accuracy",
    "eval_perplexity": "validation_perplexity",
}
"""What `Trainer` logs of an evaluation -> what it is called here."""


@dataclass(frozen=True)
class TrainingResult:
    """What a training made.

    Attributes:
        model: The trained model, in eval mode, on the CPU, trainable where it was before.
        history: One entry a logging step: step and epoch, with loss and learning_rate, or
            validation_accuracy (of language models validation_perplexity too), or all of them.
        metrics: The same of the weights that are returned, num_steps, num_processes at the end,
            train_s and train_cpu_s of this process since it started or resumed; of the former
            prepare_s went before the first step, and an epoch took epoch_s.
    """

    model: TorchModel
    history: History
    metrics: Mapping[str, float]


def run_training(
    make_trainer: Callable[[], SteadyTrainer],
    model: TorchModel,
    settings: TrainingSettings,
    *,
    seed: int,
    folder: Path,
    identity: str,
) -> TrainingResult:
    """Train ``model.module`` in place, going on from the last sealed checkpoint in ``folder``.

    Args:
        make_trainer: Makes the trainer; called with the random generators seeded.
        model: What learns, by itself or as a part of the trainer's module.
        settings: Of the training.
        seed: Of everything random.
        folder: For checkpoints.
        identity: Checkpoints of a training with another identity are thrown away.

    Raises:
        PassError: The loss became NaN or infinite, or the disk is full.
    """
    wall, cpu = time.perf_counter(), time.process_time()
    with seeded(seed), quiet(), _prepared(model.module, settings):
        trainer = make_trainer()
        prepared = time.perf_counter()
        with trainer.accelerator.main_process_first():
            if trainer.args.should_save:
                claim(folder, identity)
        checkpoint = last_checkpoint(folder)
        aware = settings.quantization_aware
        seen = trainer.calibration_batches(0 if aware is None else aware.num_samples)
        with fake_quantized(model.module, aware, seen):
            started = time.perf_counter()
            trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
            trained_s = time.perf_counter() - started
        network: nn.Module = trainer.accelerator.unwrap_model(
            trainer.model, keep_fp32_wrapper=False
        )
        # What accelerate leaves there lacks the decorators that the class's own forward has.
        network.__dict__.pop("forward", None)
        if settings.keep == "best":
            trainer.accelerator.wait_for_everyone()
            network.load_state_dict(load_file(trainer.best_weights()), strict=False)
    model.module.to("cpu").eval()
    history = tuple(_history(trainer.state.log_history))
    evaluated = [entry for entry in history if "validation_accuracy" in entry]
    kept = evaluated[-1]
    if settings.keep == "best":
        choose = max if trainer.args.greater_is_better else min
        kept = choose(evaluated, key=itemgetter(f"validation_{trainer.task.trained_for}"))
    metrics = {
        **{name: kept[name] for name in _VALIDATION.values() if name in kept},
        "num_steps": float(trainer.state.global_step),
        "num_processes": float(trainer.args.world_size),
        "train_s": time.perf_counter() - wall,
        "train_cpu_s": time.process_time() - cpu,
        "prepare_s": prepared - wall,
    }
    steps = trainer.state.global_step - (0 if checkpoint is None else step_of(checkpoint))
    if steps:
        metrics["epoch_s"] = trained_s * trainer.state.max_steps / settings.epochs / steps
    return TrainingResult(model=model, history=history, metrics=metrics)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed every global random generator; put them back as they were afterwards."""
    python_state, numpy_state = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers from printing, and put its log level back afterwards."""
    level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()


@contextmanager
def _prepared(module: nn.Module, settings: TrainingSettings) -> Iterator[None]:
    """Set dropout, freeze the token table, and put channels last where that is faster.

    All is put back afterwards. What a network itself holds fixed, such as the sines of Whisper's
    encoder, stays so.
    """
    dropouts = list(_dropouts(module))
    table = token_table(module)
    learns = table is not None and table.weight.requires_grad
    if table is not None:
        table.weight.requires_grad_(learns and settings.train_word_embeddings)
    if is_convolutional(module):
        set_memory_format(module, torch.channels_last)
    if settings.dropout is not None:
        for part, name, _ in dropouts:
            setattr(part, name, settings.dropout)
    try:
        yield
    finally:
        for part, name, rate in dropouts:
            setattr(part, name, rate)
        if table is not None:
            table.weight.requires_grad_(learns)
        module.zero_grad(set_to_none=True)
        if is_convolutional(module):
            set_memory_format(module, torch.contiguous_format)


def _dropouts(module: nn.Module) -> Iterator[tuple[nn.Module, str, float]]:
    """Where a network has rates of dropout: modules, attributes, and the rates.

    Many have no module for it: Whisper's layers, or the attention of vision transformers.
    """
    for part in module.modules():
        if isinstance(part, nn.Dropout):
            yield part, "p", part.p
        for name, rate in vars(part).items():
            if "dropout" in name and isinstance(rate, int | float) and not isinstance(rate, bool):
                yield part, name, float(rate)


def _history(logs: list[dict[str, Any]]) -> Iterator[Mapping[str, float]]:
    """Rename what ``Trainer`` logged; entries of one step become one."""
    names = {"loss": "loss", "learning_rate": "learning_rate", **_VALIDATION}
    entries: dict[int, dict[str, float]] = {}
    for log in logs:
        values = {new: float(log[old]) for old, new in names.items() if old in log}
        if values:
            entry = entries.setdefault(log["step"], {"step": log["step"], "epoch": log["epoch"]})
            entry.update(values)
    yield from (entries[step] for step in sorted(entries))
