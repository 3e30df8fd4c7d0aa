"""What the processes of test_distributed.py run: a command, or the passes that train.

In float32: in bfloat16 the gradients of each process are rounded before they are averaged.

usage: launched.py ARGUMENT ...             a command of the toolkit
       launched.py passes HOME OUTPUT       prunes with recovery, then distils
       launched.py again HOME OUTPUT        distils, and once more where that fails

FAULT="raise 1 5" makes process 1 fail at the step 5 of a training; kill ends it by SIGKILL, and
with * every process does so; nan makes a loss NaN there, the first time. TRACE names a folder where
each process notes its first step.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

from compressor import distributed
from compressor.cli import main
from compressor.data import DataSpec, Splits, read_splits
from compressor.errors import PassError
from compressor.model import TorchModel
from compressor.passes import PassContext
from compressor.passes.distill import Distill
from compressor.passes.prune import Prune
from compressor.tasks import get_task
from compressor.training import teacher, trainer
from compressor.training.settings import DistillSettings

RECOVERY = DistillSettings(epochs=1, batch_size=16, dropout=0.0)
PRUNE = Prune(ratio=0.5, steps=2, recovery=RECOVERY)
DISTILL = Distill(
    epochs=3, batch_size=16, dropout=0.0, relation_weight=1.0, relation_heads=4, learning_rate=1e-3
)


def passes(home: Path, output: Path) -> None:
    """Save the pruned model to ``output/prune`` and the distilled one to ``output/distill``."""
    files = {split: str(home / f"{split}.csv") for split in ("train", "validation", "test")}
    splits: Splits = read_splits(DataSpec(**files), label_names=None, seed=0)
    original = get_task("text-classification").load_checkpoint(home / "model", max_length=None)
    model: TorchModel = original
    for each in (PRUNE, DISTILL):
        context = PassContext(
            splits=splits.without_test(),
            load_original=lambda: original,
            seed=0,
            folder=output / "work" / each.name,
        )
        result = each.run(model, context)
        each.ensures(model, result, context)
        assert isinstance(result.model, TorchModel)
        model = result.model
        model.save(output / each.name)


def again(home: Path, output: Path) -> None:
    """Distil in spite of a first failure, whose message goes to ``output/failure``."""
    files = {split: str(home / f"{split}.csv") for split in ("train", "validation", "test")}
    splits: Splits = read_splits(DataSpec(**files), label_names=None, seed=0)
    original = get_task("text-classification").load_checkpoint(home / "model", max_length=None)
    for attempt in ("failure", "distill"):
        context = PassContext(
            splits=splits.without_test(),
            load_original=lambda: original,
            seed=0,
            folder=output / "work" / attempt,
        )
        try:
            result = DISTILL.run(original, context)
        except PassError as error:
            (output / "failure").write_text(error.what)
            continue
        assert isinstance(result.model, TorchModel)
        result.model.save(output / attempt)


def disturb() -> None:
    """Note the first step, and fail where it was asked for."""
    plain = trainer.SteadyTrainer.compute_loss
    rank = os.environ.get("RANK", "0")
    failed: list[int] = []
    kind, who, when = os.environ.get("FAULT", "none 0 0").split()

    def compute_loss(self: trainer.SteadyTrainer, *arguments: Any, **keywords: Any) -> Any:
        step = self.state.global_step
        if "TRACE" in os.environ:
            note = Path(os.environ["TRACE"]) / rank
            if not note.exists():
                note.write_text(str(step))
        if who in (rank, "*") and step == int(when):
            if kind == "raise":
                raise MemoryError("no more memory")
            if kind == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if kind == "nan" and not failed:
                failed.append(step)
                loss = self.loss
                self.loss = lambda *more, **named: loss(*more, **named) * float("nan")
        return plain(self, *arguments, **keywords)

    trainer.SteadyTrainer.compute_loss = compute_loss


if __name__ == "__main__":
    trainer.has_bf16 = teacher.has_bf16 = lambda module: False
    disturb()
    jobs = {"passes": passes, "again": again}
    if sys.argv[1] in jobs and not distributed.is_follower():
        with distributed.leading():
            jobs[sys.argv[1]](Path(sys.argv[2]), Path(sys.argv[3]))
            sys.exit(0)
    main()
