"""Train a student to do as its teacher does."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from compressor.data import Splits
from compressor.distributed import check_batch, size, together
from compressor.errors import PassError
from compressor.model import TorchModel
from compressor.pruning.layers import pair_layers
from compressor.tasks import Task, get_task
from compressor.tasks.base import LABELS
from compressor.training.augmentation import Material, Noise
from compressor.training.batches import EncodedRows, collator, encode, input_names, lengths
from compressor.training.checkpoints import identity
from compressor.training.loop import TrainingResult, run_training
from compressor.training.losses import (
    global_mean,
    hidden_mse,
    relation_kl,
    token_mask,
)
from compressor.training.settings import DistillSettings
from compressor.training.taps import TappedEncoder, TappedOutputs
from compressor.training.teacher import (
    Remembered,
    Teacher,
    TeacherMemory,
    vocabulary_table,
)
from compressor.training.trainer import OnEvaluation, Progress, SteadyTrainer
from targets.answers import IGNORED
from targets.encoder import encoder_layers, layer_stacks

__all__ = ["DistillSettings", "LayerMap", "distill", "distillation_loss", "read_unlabeled"]

LayerMap = tuple[tuple[int, int], ...]
"""Pairs (student layer, teacher layer), from 0."""


def distill(
    student: TorchModel,
    teacher: TorchModel,
    splits: Splits,
    settings: DistillSettings,
    *,
    layer_map: LayerMap | None,
    seed: int,
    folder: Path,
    progress: Progress,
    on_evaluation: OnEvaluation = lambda epoch, accuracy: None,
    memory: TeacherMemory | None = None,
) -> TrainingResult:
    """Train a copy of the student on the teacher's outputs.

    The two may differ in depth, in heads, in widths and in their vocabularies, not in their
    classes.

    Args:
        student: Where to start from; stays untouched.
        teacher: Stays untouched.
        splits: Training and validation data.
        settings: Of the training and the losses.
        layer_map: Pairs of layers whose hidden states are compared; the last pair also has its
            relations compared. None spreads the student's layers evenly over the teacher's.
        seed: Of order, dropout and augmentation.
        folder: For checkpoints; a call with equal arguments goes on from the last one.
        progress: Called with (fraction done, one line).
        on_evaluation: Called with (epoch, validation accuracy), also for the epochs before the last
            checkpoint; what it raises ends the training.
        memory: What the teacher gave for an earlier training on the same rows, and what it gives
            now. In one process only.

    Raises:
        PassError: The models do not fit each other, the loss became NaN or infinite, or the disk
            is full.
    """
    settings = settings.for_task(get_task(student.task).distillation)
    check_batch(settings.batch_size)
    _check_classes(student, teacher)
    _check_inputs(student, teacher)
    settings.check_labels(has_labels=get_task(student.task).label_field is not None)
    train = partial(
        _train,
        student.clone(),
        teacher,
        splits,
        settings,
        _pairs(student, teacher, settings, layer_map),
        seed=seed,
        folder=folder,
        memory=memory if size() == 1 else None,
    )
    return together(train, progress=progress, on_evaluation=on_evaluation)


def _train(
    student: TorchModel,
    teacher: TorchModel,
    splits: Splits,
    settings: DistillSettings,
    pairs: LayerMap,
    *,
    seed: int,
    folder: Path,
    memory: TeacherMemory | None,
    progress: Progress,
    on_evaluation: OnEvaluation,
) -> TrainingResult:
    limit = min(student.max_length, teacher.max_length)
    reader = replace(student, max_length=limit)
    train = encode(reader, splits.train)
    validation = encode(student, splits.validation)
    material = Material(train, splits.train.inputs)
    # Longer trainings on the same rows come to copies that a short one does not.
    changes = settings.with_copies_seen() if memory is None else settings
    noise = get_task(student.task).noise(reader, material, changes, seed)
    if settings.unlabeled is not None:
        more = read_unlabeled(settings.unlabeled, student)
        train = [*train, *get_task(student.task).encode_unlabeled(reader, more)]
    return run_training(
        lambda: _DistillTrainer(
            _tapped(student, settings, pairs, side=0, hidden_size=_hidden_size(teacher)),
            settings,
            decoders=_decoders(student, pairs),
            teach=partial(
                _taught, student, teacher, settings, pairs, noise, train, folder, memory, progress
            ),
            inputs=input_names(student),
            task=get_task(student.task),
            train=EncodedRows(train, lengths(student, train), noise),
            validation=EncodedRows(validation, lengths(student, validation)),
            collate=collator(student),
            seed=seed,
            folder=folder,
            progress=progress,
            on_evaluation=on_evaluation,
        ),
        student,
        settings,
        seed=seed,
        folder=folder,
        identity=identity(
            (settings, seed, pairs, train, validation, noise.beyond),
            (student.module, teacher.module),
        ),
    )


class _DistillTrainer(SteadyTrainer):
    def __init__(
        self,
        module: nn.Module,
        settings: DistillSettings,
        *,
        teach: Callable[[torch.device], Teacher],
        decoders: Collection[int],
        **keywords: Any,
    ) -> None:
        super().__init__(module, settings, **keywords)
        self.settings = settings
        self.decoders = decoders
        self.teacher = teach(self.args.device)

    def loss(self, module: nn.Module, batch: Mapping[str, Tensor], num_rows: int) -> Tensor:
        target = self.teacher.outputs(batch).first(num_rows)
        outputs: TappedOutputs = module(**self.inputs_of(batch))
        counted = {name: each[:num_rows] for name, each in batch.items()}
        return distillation_loss(
            outputs.first(num_rows),
            target,
            counted,
            self.settings,
            task=self.task,
            decoders=self.decoders,
        )


def distillation_loss(
    student: TappedOutputs,
    teacher: TappedOutputs,
    batch: Mapping[str, Tensor],
    settings: DistillSettings,
    *,
    task: Task,
    decoders: Collection[int] = (),
) -> Tensor:
    """The weighted sum of all terms, a scalar.

    Args:
        student: Outputs with gradients.
        teacher: Outputs for the same rows.
        batch: noisy (N,) and labels (N, ...); where rows are padded, attention_mask (N, L).
        settings: Weights and temperature.
        task: Says how outputs are compared with each other and with the labels.
        decoders: Which of the hidden states are those of a decoder: padded as the labels are.
    """
    mask = batch.get("attention_mask")
    loss = settings.logits_weight * task.divergence(
        student.logits, teacher.logits, batch, temperature=settings.temperature
    )
    if settings.labels_weight and task.label_field is not None:
        # The labels of noisy rows no longer hold; a batch may have no other rows.
        noisy = (batch["noisy"] == 1).reshape(-1, *[1] * (batch[LABELS].ndim - 1))
        clean = {**batch, LABELS: batch[LABELS].masked_fill(noisy, IGNORED)}
        loss = loss + settings.labels_weight * global_mean(*task.loss(student.logits, clean))
    for place, (ours, theirs) in enumerate(zip(student.hidden, teacher.hidden, strict=True)):
        weight = settings.hidden_weight / len(student.hidden)
        own = batch[LABELS] != IGNORED if place in decoders else mask
        loss = loss + weight * hidden_mse(ours, theirs, token_mask(own, ours))
    for ours, theirs in zip(student.projections, teacher.projections, strict=True):
        weight = settings.relation_weight / len(student.projections)
        # Of the last layer, which is the decoder's where there is one.
        own = batch[LABELS] != IGNORED if decoders else mask
        loss = loss + weight * relation_kl(
            ours, theirs, token_mask(own, ours), num_heads=settings.relation_heads
        )
    return loss


def read_unlabeled(path: Path, model: TorchModel) -> list[str]:
    """The inputs that a file lists, one a line: texts, or paths of files from its own folder.

    Args:
        path: UTF-8; empty lines are passed over.
        model: Says of which kind the inputs are.

    Raises:
        PassError: The file cannot be read, lists nothing, or names a file that does not exist.
    """
    task = get_task(model.task)
    kind = task.kind
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").split("\n")]
    except (OSError, UnicodeDecodeError) as error:
        raise PassError(
            "the file of unlabeled inputs cannot be read",
            where=path,
            given=error,
            fix=f"pass a UTF-8 file with one {kind} a line",
        ) from error
    found = [line for line in lines if line]
    if task.preprocessing_type.reads_files():
        found = [str(path.parent / line) for line in found]
        absent = next((each for each in found if not Path(each).exists()), None)
        if absent is not None:
            raise PassError(
                f"a file of the unlabeled {kind} inputs does not exist",
                where=path,
                given=absent,
                fix="correct the path: it is read from the folder of the list",
            )
    if not found:
        raise PassError(
            "the file of unlabeled inputs lists nothing",
            where=path,
            given="only empty lines",
            fix=f"write one {kind} a line, or leave the setting out",
        )
    return found


def _check_classes(student: TorchModel, teacher: TorchModel) -> None:
    if student.labels != teacher.labels:
        raise PassError(
            "student and teacher do not have the same classes",
            given=f"student {', '.join(student.labels)}; teacher {', '.join(teacher.labels)}",
            fix="fine-tune the teacher on the student's classes, in the same order",
        )


def _check_inputs(student: TorchModel, teacher: TorchModel) -> None:
    ours, theirs = input_names(student), input_names(teacher)
    if ours != theirs:
        raise PassError(
            "student and teacher do not take the same inputs",
            given=f"student {', '.join(ours)}; teacher {', '.join(theirs)}",
            fix="distil from a teacher whose family takes the same inputs as the student",
        )


def _pairs(
    student: TorchModel,
    teacher: TorchModel,
    settings: DistillSettings,
    layer_map: LayerMap | None,
) -> LayerMap:
    """The pairs of layers to compare; empty where no loss compares layers."""
    if not settings.hidden_weight and not settings.relation_weight:
        return ()
    ours, theirs = encoder_layers(student.module), encoder_layers(teacher.module)
    asked = [*settings.asked("hidden_weight", "relation_weight"), *(layer_map or ())]
    if not asked and not (ours and theirs):
        return ()  # a network without layers of that kind learns from the logits
    pairs = pair_layers(student.module, teacher.module) if layer_map is None else layer_map
    wrong = [
        pair for pair in pairs if not (0 <= pair[0] < len(ours) and 0 <= pair[1] < len(theirs))
    ]
    if wrong or not pairs:
        raise PassError(
            "the layer map does not fit the models",
            where=f"a student of {len(ours)} layers and a teacher of {len(theirs)}",
            given=f"pairs {wrong or list(pairs)}",
            fix="pair (student layer, teacher layer), each counted from 0",
        )
    if settings.relation_weight:
        compared = (ours[pairs[-1][0]], theirs[pairs[-1][1]])
        widths = [(each.query.out_features, each.key.out_features) for each in compared]
        if any(width % settings.relation_heads for each in widths for width in each):
            raise PassError(
                "relation_heads does not divide the widths of the queries and keys",
                where="student {} and {}, teacher {} and {}".format(*widths[0], *widths[1]),
                given=settings.relation_heads,
                fix="choose a common divisor of both widths",
            )
    counts = [
        [len(states[0]) for states in _states(model, student, [pair[side] for pair in pairs])]
        for side, model in enumerate((student, teacher))
    ]
    if counts[0] != counts[1]:
        if not asked:
            return ()  # such as of smaller patches: there is no pairing their states
        raise PassError(
            "student and teacher split their inputs into different numbers of parts",
            where="the hidden states of their layers",
            given=f"student {counts[0][0]}, teacher {counts[1][0]}",
            fix="set hidden_weight and relation_weight to 0: the student learns from the logits",
        )
    return pairs


def _decoders(student: TorchModel, pairs: LayerMap) -> frozenset[int]:
    """Which of the pairs are of layers of a decoder that follows an encoder."""
    first, *others = map(len, layer_stacks(student.module) or ((),))
    return frozenset(place for place, (layer, _) in enumerate(pairs) if others and layer >= first)


def _states(model: TorchModel, student: TorchModel, layers: list[int]) -> tuple[Tensor, ...]:
    """The hidden states of some layers for an example of the student's inputs."""
    example = get_task(student.task).example(student.module, student.processor)
    tapped = TappedEncoder(model.module, hidden_layers=layers).eval()
    with torch.inference_mode():
        outputs: TappedOutputs = tapped(**example)
    return outputs.hidden


def _hidden_size(model: TorchModel) -> int | None:
    layers = encoder_layers(model.module)
    return layers[0].query.in_features if layers else None


def _tapped(
    model: TorchModel,
    settings: DistillSettings,
    pairs: LayerMap,
    *,
    side: int,
    hidden_size: int | None = None,
) -> TappedEncoder:
    layers = [pair[side] for pair in pairs]
    return TappedEncoder(
        model.module,
        hidden_layers=layers if settings.hidden_weight else (),
        relation_layer=layers[-1] if layers and settings.relation_weight else None,
        hidden_size=hidden_size,
    )


def _taught(
    student: TorchModel,
    teacher: TorchModel,
    settings: DistillSettings,
    pairs: LayerMap,
    noise: Noise,
    train: list[dict[str, Any]],
    folder: Path,
    memory: TeacherMemory | None,
    progress: Progress,
    device: torch.device,
) -> Teacher:
    """The teacher, on a device, with its outputs where there is the space to keep them."""
    table = vocabulary_table(student, teacher)

    def tapped(pairs: LayerMap) -> Teacher:
        return Teacher(
            _tapped(teacher.clone(), settings, pairs, side=1).to(device),
            input_names(student),
            table,
            get_task(student.task).answers.rows_at_once,
        )

    taught = tapped(pairs)
    # Of a model with a decoder there are too many: every token of the vocabulary at each token.
    reads_context = bool(get_task(student.task).signature(student).context)
    if noise.copies is None or not settings.cache_mib or reads_context:
        return taught
    variants, counts = noise.variants(train), noise.num_forms(len(train))
    folder.mkdir(parents=True, exist_ok=True)

    def remember(asked: Teacher) -> Remembered | None:
        return asked.remember(
            variants,
            np.repeat(lengths(student, train), counts).tolist(),
            collator(student),
            forms=[form for count in counts for form in range(count)],
            limit_bytes=settings.cache_mib * 2**20,
            folder=folder,
            disk_bytes=settings.cache_disk_mib * 2**20,
            progress=lambda count: progress(
                0.0, f"the teacher labels rows: {count} of {len(variants)}"
            ),
        )

    if memory is not None:
        reads = (settings.noise_settings, noise.seed, train, noise.beyond)
        words = None if table is None else table.numpy()
        key = identity((*reads, words), (teacher.module,))
        kept = memory.find(key)
        if kept is None:  # of all layers: the next training may compare others
            every = range(len(encoder_layers(teacher.module)) if pairs else 0)
            kept = remember(tapped(tuple((layer, layer) for layer in every)))
        if kept is not None and kept.covers(taught.encoder):
            memory.keep(key, kept)
            taught.kept = kept
            return taught
    remember(taught)
    return taught
