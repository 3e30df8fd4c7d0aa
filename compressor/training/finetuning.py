"""Fine-tune a classifier on labelled data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from compressor.checkpoint import check_folder
from compressor.data import Splits
from compressor.distributed import check_batch, together
from compressor.errors import CheckpointError
from compressor.model import TorchModel
from compressor.tasks import get_task
from compressor.tasks.layerdrop import keep_whole
from compressor.training.batches import EncodedRows, collator, encode, input_names, lengths
from compressor.training.checkpoints import identity
from compressor.training.loop import TrainingResult, quiet, run_training, seeded
from compressor.training.settings import FinetuneSettings
from compressor.training.trainer import OnEvaluation, Progress, SteadyTrainer
from targets.checkpoint import auto_class, drop_auxiliary_head
from targets.networks import register_network
from targets.shapes import SHAPES_FILE, ShapeManifest

__all__ = ["finetune", "new_classifier"]


def finetune(
    model: TorchModel,
    splits: Splits,
    settings: FinetuneSettings,
    *,
    seed: int,
    folder: Path,
    progress: Progress,
    on_evaluation: OnEvaluation = lambda epoch, accuracy: None,
) -> TrainingResult:
    """Train a copy of the model on the labels.

    Args:
        model: A classifier whose labels are those of the data; stays untouched.
        splits: Training and validation data.
        settings: Of the training.
        seed: Of order and dropout.
        folder: For checkpoints; a call with equal arguments goes on from the last one.
        progress: Called with (fraction done, one line).
        on_evaluation: Called with (epoch, validation accuracy), also for the epochs before the last
            checkpoint; what it raises ends the training.

    Raises:
        PassError: The loss became NaN or infinite, or the disk is full.
    """
    check_batch(settings.batch_size)
    train = partial(_train, model.clone(), splits, settings, seed=seed, folder=folder)
    return together(train, progress=progress, on_evaluation=on_evaluation)


def _train(
    student: TorchModel,
    splits: Splits,
    settings: FinetuneSettings,
    *,
    seed: int,
    folder: Path,
    progress: Progress,
    on_evaluation: OnEvaluation,
) -> TrainingResult:
    train, validation = encode(student, splits.train), encode(student, splits.validation)
    return run_training(
        lambda: SteadyTrainer(
            student.module,
            settings,
            inputs=input_names(student),
            task=get_task(student.task),
            train=EncodedRows(train, lengths(student, train)),
            validation=EncodedRows(validation, lengths(student, validation)),
            collate=collator(student),
            seed=seed,
            folder=folder,
            progress=progress,
            on_evaluation=on_evaluation,
            label_smoothing=settings.label_smoothing,
        ),
        student,
        settings,
        seed=seed,
        folder=folder,
        identity=identity((settings, seed, train, validation), (student.module,)),
    )


def new_classifier(
    folder: Path,
    label_names: Sequence[str],
    *,
    task: str = "text-classification",
    seed: int = 0,
    max_length: int | None = None,
    image_size: int | None = None,
) -> TorchModel:
    """Put a fresh classification head on a pre-trained encoder.

    Args:
        folder: A Hugging Face checkpoint with or without a head; its own head is dropped.
        label_names: Class names, in the order of the logits.
        task: Name of the task.
        seed: Of the head's weights.
        max_length: Longest input; the default is the model's limit.
        image_size: Side of the images in pixels; the default is the model's.

    Raises:
        CheckpointError: There is no encoder in safetensors form, a part of it is missing, or it is
            of a network that transformers does not know.
    """
    found = get_task(task)
    if not found.fresh_head:
        model = found.load_checkpoint(folder, max_length=max_length)
        if max_length is None:
            return model
        return replace(model, processor=found.shortened(model.module, model.processor, max_length))
    found.check_network(folder)
    with seeded(seed), quiet():
        encoder, config = _load_encoder(folder)
        config.architectures = []  # the usual class of its kind, not one with a second head
        config.num_labels = len(label_names)
        config.problem_type = None  # of the head that is dropped
        config.id2label = dict(enumerate(label_names))
        config.label2id = {name: index for index, name in enumerate(label_names)}
        module = _classifier(config, folder, task)
        drop_auxiliary_head(module)
        keep_whole(module)
        # Whisper's classifier keeps the encoder itself, not the model that it is a part of.
        body = getattr(module, module.base_model_prefix, module)
        # Encoder and classifier may differ in their pooler, and in nothing else.
        body.load_state_dict(encoder.state_dict(), strict=False)
    processor = found.load_processor(folder)
    if image_size is not None:
        processor = found.resized(module, processor, image_size)
    if max_length is not None:
        processor = found.shortened(module, processor, max_length)
    module = module.float().eval()
    found.check_fit(module, processor)
    return TorchModel(
        module=module,
        processor=processor,
        task=task,
        max_length=found.cut_at(folder, processor, max_length),
    )


def _load_encoder(folder: Path) -> tuple[nn.Module, Any]:
    from transformers import AutoConfig, AutoModel

    check_folder(folder)
    register_network(folder)
    manifest = ShapeManifest.read(folder)
    if manifest is not None and manifest.merged is not None:
        raise CheckpointError(
            "the checkpoint merges tokens, which does not work with a new head",
            where=folder / SHAPES_FILE,
            given="merged",
            fix="fine-tune the checkpoint that it was made from, then merge tokens",
        )
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        encoder, info = AutoModel.from_pretrained(
            folder,
            config=config,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except Exception as error:  # transformers raises many kinds here
        raise CheckpointError(
            "the encoder cannot be loaded",
            where=folder,
            given=str(error).strip().splitlines()[0]
            if str(error).strip()
            else type(error).__name__,
            fix="check that the checkpoint is complete and holds a transformer encoder",
        ) from error
    # A pooler is part of the head for our purpose: masked-language checkpoints have none.
    missing = [name for name in sorted(info["missing_keys"]) if "pooler" not in name]
    if missing:
        raise CheckpointError(
            "the checkpoint lacks a part of the encoder",
            where=folder,
            given=", ".join(missing[:5]) + (" ..." if len(missing) > 5 else ""),
            fix="download or save the checkpoint again",
        )
    return encoder, config


def _classifier(config: Any, folder: Path, task: str) -> Any:
    try:
        return auto_class(task).from_config(
            config, attn_implementation="eager", trust_remote_code=False
        )
    except ValueError as error:
        raise CheckpointError(
            f"this kind of model has no head for {task}",
            where=folder / "config.json",
            given=f"model_type {config.model_type!r}",
            fix="pass an encoder for which transformers has such a head, or name another --task",
        ) from error
