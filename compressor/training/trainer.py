"""The training loop: Hugging Face ``Trainer``, made quiet, repeatable and safe to interrupt."""

from __future__ import annotations

import errno
import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from compressor import distributed
from compressor.errors import DivergenceError, PassError
from compressor.training.batches import EncodedRows, LengthBucketSampler
from compressor.training.checkpoints import seal
from compressor.training.losses import global_mean
from compressor.training.settings import TrainingSettings
from targets.environment import BF16_FEATURES, cpu_features
from targets.errors import is_disk_full

if TYPE_CHECKING:
    from transformers import EvalPrediction, TrainerControl, TrainerState

    from compressor.tasks import Task

__all__ = [
    "OnEvaluation",
    "Progress",
    "SteadyTrainer",
    "arguments",
    "has_bf16",
    "is_convolutional",
    "set_memory_format",
]

Progress = Callable[[float, str], None]
OnEvaluation = Callable[[int, float], None]
"""Called with (epoch, validation accuracy in [0, 1])."""

_BEST = "best.safetensors"
_LOGS_PER_EPOCH = 4
_MOST_STEPS = 100  # between two logs: a large data set is not silent for minutes
_SCHEDULES = {"linear": "linear", "cosine": "cosine", "constant": "constant_with_warmup"}
_WRITER_FAILED = ("PytorchStreamWriter failed", "inline_container.cc")
"""What torch's own writer says where a write came short; it does not say why."""
_CALIBRATION_BATCH = 16
_KEPT_CHECKPOINTS = 2  # the one before stays until the new one has been sealed


def has_bf16(module: nn.Module) -> bool:
    """Whether a network is run fastest in bfloat16 on the processor that trains.

    Where it multiplies bfloat16 natively; but on CPUs convolutions are faster in fp32 (1.6x, for
    EfficientNet-Lite2 with the channels last).
    """
    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(BF16_FEATURES & set(cpu_features())) and not is_convolutional(module)


def is_convolutional(module: nn.Module) -> bool:
    """Whether more weights are in convolutions of images than elsewhere."""
    inside = sum(part.weight.numel() for part in module.modules() if isinstance(part, nn.Conv2d))
    return 2 * inside > sum(each.numel() for each in module.parameters())


def set_memory_format(module: nn.Module, layout: torch.memory_format) -> None:
    """Lay the weights of convolutions of images out in another way, in place."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            part.weight.data = part.weight.data.contiguous(memory_format=layout)


def arguments(
    settings: TrainingSettings,
    *,
    num_rows: int,
    seed: int,
    folder: Path,
    bf16: bool,
    eval_rows: int = 64,
    best_by: str = "accuracy",
) -> Any:
    """Translate the settings into ``TrainingArguments``; saving and evaluating stay with us."""
    steps_per_epoch = math.ceil(num_rows / settings.batch_size)
    on_cuda = torch.cuda.is_available()
    found = TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=settings.epochs,
        learning_rate=settings.learning_rate,
        per_device_train_batch_size=settings.batch_size,
        per_device_eval_batch_size=eval_rows * distributed.size(),
        accelerator_config={"split_batches": True},  # sizes are those of all processes together
        lr_scheduler_type=_SCHEDULES[settings.schedule],
        warmup_steps=settings.warmup,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        bf16=bf16,
        use_cpu=not on_cuda,
        optim="adamw_torch_fused",
        seed=seed,
        logging_steps=min(max(1, steps_per_epoch // _LOGS_PER_EPOCH), _MOST_STEPS),
        logging_nan_inf_filter=False,
        save_strategy="no",
        eval_strategy="no",
        save_total_limit=_KEPT_CHECKPOINTS,
        metric_for_best_model=best_by,
        greater_is_better=best_by == "accuracy",
        label_names=["labels"],
        remove_unused_columns=False,
        dataloader_pin_memory=on_cuda,
        ddp_find_unused_parameters=False,
        ddp_static_graph=True,  # some weights have no use, as DINOv2's token of masked patches
        report_to="none",
        disable_tqdm=True,
        log_level="error",
    )
    # A process trains on one GPU, however many it sees: with several, batches would grow.
    found._n_gpu = min(found.n_gpu, 1)
    return found


class SteadyTrainer(Trainer):  # type: ignore[misc]  # transformers has no types
    """Trains with the loss of the task on the labels; subclasses override :meth:`loss`.

    Checkpoints are sealed, hold no pickle that is read back unsafely, and leave nothing half
    written behind. A loss that is not finite stops the training.

    Args:
        module: What learns; its forward takes the inputs of a batch, and gives the answers first.
        inputs: Names of the inputs of the module.
        task: Says what of the outputs the labels judge.
        settings: Of the training.
        train: Training rows.
        validation: Validation rows.
        collate: Pads rows into a batch.
        seed: Of order, dropout and whatever else is random.
        folder: For checkpoints.
        progress: Called with (fraction done, one line).
        on_evaluation: Called after each evaluation; where the training goes on from a checkpoint,
            first for those before it. What it raises ends the training.
        label_smoothing: See :class:`~compressor.training.settings.FinetuneSettings`.
    """

    def __init__(
        self,
        module: nn.Module,
        settings: TrainingSettings,
        *,
        inputs: Sequence[str],
        task: Task,
        train: EncodedRows,
        validation: EncodedRows,
        collate: Callable[..., dict[str, Tensor]],
        seed: int,
        folder: Path,
        progress: Progress,
        on_evaluation: OnEvaluation,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(
            model=module,
            args=arguments(
                settings,
                num_rows=len(train),
                seed=seed,
                folder=folder,
                bf16=has_bf16(module),
                eval_rows=task.answers.rows_at_once,
                best_by=task.trained_for,
            ),
            data_collator=collate,
            train_dataset=train,
            eval_dataset=validation.by_length(),
            compute_metrics=partial(_metrics, task),
            callbacks=[_Flow(settings, progress, on_evaluation)],
        )
        self.remove_callback(PrinterCallback)
        self.model_accepts_loss_kwargs = False  # our losses are means over the batch
        self.inputs = tuple(inputs)
        self.task = task
        self.label_smoothing = label_smoothing
        self.keep = settings.keep

    def loss(self, module: nn.Module, batch: Mapping[str, Tensor], num_rows: int) -> Tensor:
        """The loss of one batch, a scalar; see :func:`compressor.training.losses.global_mean`.

        Args:
            module: What learns.
            batch: Goes through the module as a whole.
            num_rows: So many of its first rows count; 0 is possible.
        """
        outputs = module(**self.inputs_of(batch))[0]
        counted = {name: each[:num_rows] for name, each in batch.items()}
        return global_mean(
            *self.task.loss(outputs[:num_rows], counted, label_smoothing=self.label_smoothing)
        )

    def compute_loss(self, model: nn.Module, inputs: Any, *_: Any, **__: Any) -> Tensor:
        """See the base class."""
        loss = self.loss(model, inputs, self._num_rows(inputs))
        found = self.accelerator.reduce(loss.detach(), "mean")  # all processes stop, or none
        if not torch.isfinite(found):
            raise DivergenceError(
                "the training diverged: the loss is not a finite number",
                where=f"step {self.state.global_step + 1} of {self.state.max_steps}",
                given=f"loss {found.item()} at learning rate {self._get_learning_rate():.2g}",
                fix="lower learning_rate, lengthen warmup, or set max_grad_norm",
            )
        return loss

    def prediction_step(
        self, model: nn.Module, inputs: Any, *_: Any, **__: Any
    ) -> tuple[None, Tensor, Tensor]:
        """See the base class: no loss is computed in evaluation."""
        inputs = self._prepare_inputs(inputs)
        with torch.inference_mode():
            outputs = model(**self.inputs_of(inputs))
        return None, *self.task.evaluated(outputs[0], inputs["labels"])

    def inputs_of(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What of a batch goes into the module."""
        return {name: batch[name] for name in self.inputs}

    def calibration_batches(self, num_rows: int) -> Iterator[dict[str, Tensor]]:
        """Inputs of the module, of a seeded choice of training rows without noise.

        Rows of like length go together, so that padding does not shape what is seen.
        """
        rows, lengths = self.train_dataset.rows, self.train_dataset.lengths
        generator = np.random.default_rng(self.args.seed)
        chosen = generator.permutation(len(rows))[:num_rows].tolist()
        chosen.sort(key=lambda index: lengths[index])
        device = self.args.device
        for start in range(0, len(chosen), _CALIBRATION_BATCH):
            batch = self.data_collator(
                [rows[i] for i in chosen[start : start + _CALIBRATION_BATCH]]
            )
            yield {name: each.to(device) for name, each in self.inputs_of(batch).items()}

    def best_weights(self) -> Path:
        """Where the best weights so far lie."""
        return Path(self.args.output_dir) / _BEST

    def _get_train_sampler(self, *_: Any) -> LengthBucketSampler:
        self._order = LengthBucketSampler(
            self.train_dataset.lengths,
            batch_size=self.args.train_batch_size,
            seed=self.args.seed,
        )
        return self._order

    def _run_epoch(self, *, epoch: int, **rest: Any) -> Any:
        # Where several processes go on within an epoch, accelerate does not reach the sampler: it
        # lies behind two wrappers then.
        self._order.set_epoch(epoch)
        return super()._run_epoch(epoch=epoch, **rest)

    def _num_rows(self, batch: Mapping[str, Tensor]) -> int:
        """How many rows of this process's part of a batch count.

        To split the last batch of an epoch, accelerate fills it up with rows of the first one,
        which have been learnt from already.
        """
        size: int = self.args.train_batch_size
        part = len(batch["labels"])
        in_last = len(self.train_dataset) % size
        is_last = (self.state.global_step + 1) % math.ceil(len(self.train_dataset) / size) == 0
        if not is_last or not in_last or self.args.world_size == 1:
            return part
        before: int = part * self.args.process_index
        return min(max(in_last - before, 0), part)

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        is_best = bool(super()._determine_best_metric(metrics, trial))
        if is_best and self.keep == "best" and self.args.should_save:
            path = self.best_weights()
            partial = path.with_suffix(".partial")
            with _disk_errors(partial):
                save_file(_learnt(self.model), partial)
            partial.replace(path)
        return is_best

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        with _disk_errors(folder):
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                seal(folder)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        # The base class would also write what is frozen, and pickle its arguments.
        if self.args.should_save:
            folder = Path(output_dir or self.args.output_dir)
            folder.mkdir(parents=True, exist_ok=True)
            save_file(_learnt(self.model), folder / "model.safetensors")

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """The frozen weights are missing by design."""


class _disk_errors:  # noqa: N801  (a context manager that reads as a phrase)
    """Removes what a failed write left behind, and names a full disk as such."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if not isinstance(error, OSError | RuntimeError | SafetensorError):
            return
        if self.path.is_dir():
            shutil.rmtree(self.path, ignore_errors=True)
        else:
            self.path.unlink(missing_ok=True)
        if is_disk_full(error) or any(words in str(error) for words in _WRITER_FAILED):
            reason = str(error).strip().splitlines()[0]
            raise PassError(
                "a training checkpoint could not be written: the disk is full",
                where=self.path,
                given=reason,
                fix="free some space and run again: the training goes on from the checkpoint "
                "before this one",
            ) from OSError(errno.ENOSPC, reason)


class _Flow(TrainerCallback):  # type: ignore[misc]  # transformers has no types
    """Decides when to log, evaluate and save, and reports the progress and the accuracies."""

    def __init__(
        self, settings: TrainingSettings, progress: Progress, on_evaluation: OnEvaluation
    ) -> None:
        self.settings = settings
        self.progress = progress
        self.on_evaluation = on_evaluation

    def on_train_begin(
        self, args: Any, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Give each process a dropout of its own, and report what a checkpoint knows."""
        if args.process_index > 0:
            torch.manual_seed(args.seed + args.process_index)  # they see different rows
        for entry in state.log_history:
            self._report(state, entry["epoch"], entry)

    def on_evaluate(
        self,
        args: Any,
        state: TrainerState,
        control: TrainerControl,
        metrics: Mapping[str, float],
        **_: Any,
    ) -> None:
        """Report the accuracy."""
        self._report(state, state.epoch or 0.0, metrics)

    def _report(self, state: TrainerState, epoch: float, found: Mapping[str, float]) -> None:
        if state.is_world_process_zero and "eval_accuracy" in found:
            self.on_evaluation(round(epoch), found["eval_accuracy"])

    def on_step_end(
        self, args: Any, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Save where ``checkpoint_steps`` asks for it, except where an epoch ends anyway."""
        every = self.settings.checkpoint_steps
        at_end_of_epoch = float(state.epoch or 0).is_integer()
        if every is not None and state.global_step % every == 0 and not at_end_of_epoch:
            control.should_save = control.should_log = True

    def on_epoch_end(
        self, args: Any, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Log each epoch; evaluate and save as set, and at the end."""
        epoch = round(state.epoch or 0)
        is_last = state.global_step >= state.max_steps
        # A log at each checkpoint: the running mean of the loss is not part of it.
        control.should_log = True
        control.should_evaluate = is_last or epoch % self.settings.evaluate_every == 0
        control.should_save = not is_last and epoch % self.settings.checkpoint_every == 0

    def on_log(
        self,
        args: Any,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, float] | None = None,
        **_: Any,
    ) -> None:
        """Report the progress."""
        if not state.is_world_process_zero or not logs:
            return
        line = f"epoch {state.epoch or 0:.1f} of {self.settings.epochs}"
        if "loss" in logs:
            line += f", loss {logs['loss']:.3f}"
        elif "eval_perplexity" in logs:
            line += f", validation perplexity {logs['eval_perplexity']:.1f}"
        elif "eval_accuracy" in logs:
            line += f", validation accuracy {logs['eval_accuracy']:.1%}"
        else:
            return
        self.progress(state.global_step / max(state.max_steps, 1), line)


def _metrics(task: Task, outputs: EvalPrediction) -> dict[str, float]:
    return task.training_metrics(outputs.predictions, outputs.label_ids)


def _learnt(module: nn.Module) -> dict[str, Tensor]:
    """Buffers and the weights that learn; the frozen ones are known when a training resumes."""
    frozen = {name for name, each in module.named_parameters() if not each.requires_grad}
    seen: set[int] = set()
    state = {}
    for name, tensor in module.state_dict().items():
        if name in frozen:
            continue
        tensor = tensor.detach().cpu().contiguous()
        # safetensors refuses tensors that share memory, as tied ones do.
        state[name] = tensor.clone() if tensor.data_ptr() in seen else tensor
        seen.add(tensor.data_ptr())
    return state
