"""The settings of a training run, as recipes name them. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from compressor.architecture import Architecture
from compressor.distributed import check_batch
from compressor.errors import PassError

__all__ = ["DistillSettings", "FinetuneSettings", "QuantizationAware", "TrainingSettings"]


ROUNDING_VERSION = 3
"""Goes up when a training in int8 rounds in another way."""
AUGMENTATION = 0.3
"""Share of changed tokens, where a task does not name another."""


class QuantizationAware(BaseModel):
    """How a network rounds while it trains: as the pass ``quantize`` of these settings will."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    method: Literal["static", "dynamic"] = "static"
    """Of ``quantize``: fixed ranges of activations, or those of each input."""
    percentile: float = Field(default=99.999, gt=50, le=100)
    """Share of values that a static range covers, in percent."""
    activations: Literal["uint8", "int8"] = Field(
        default="uint8", exclude_if=lambda value: value == "uint8"
    )
    """Levels of a static range: uint8, those between the smallest and the largest value, for CPUs;
    int8, symmetric around 0, for TensorRT."""
    weight_bits: Literal[7, 8] = 8
    """Of the weights."""
    num_samples: int = Field(default=256, ge=1)
    """Training inputs from which static ranges are taken, before the first step."""


class TrainingSettings(BaseModel):
    """What fine-tuning and distillation have in common."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    epochs: int = Field(default=3, ge=1, le=10_000)
    """Passes over the training data."""
    learning_rate: float = Field(default=2e-4, gt=0, le=1)
    """Peak learning rate of AdamW."""
    batch_size: int = Field(default=32, ge=1, le=4096)
    """Rows a step; several processes share them."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """How the learning rate falls after the warm-up; linear and cosine end at zero."""
    warmup: float = Field(default=0.06, ge=0, lt=1)
    """Share of the steps in which the learning rate rises from zero."""
    weight_decay: float = Field(default=0.01, ge=0, le=1)
    """Of AdamW; biases and LayerNorm are exempt."""
    max_grad_norm: float = Field(default=1.0, ge=0)
    """Longer gradients are shortened to this; 0 leaves them alone."""
    dropout: float | None = Field(default=None, ge=0, lt=1)
    """Replaces the model's own dropout during the training."""
    train_word_embeddings: bool = False
    """Whether the token table learns too. Frozen, a step is cheaper and rare tokens keep the
    neighbours that pre-training gave them."""
    keep: Literal["best", "last"] = "last"
    """Which weights to return: the last, or the best by validation accuracy, of language models by
    validation perplexity."""
    evaluate_every: int = Field(default=1, ge=1)
    """Epochs between two evaluations on the validation data; the last epoch always has one."""
    checkpoint_every: int = Field(default=1, ge=1)
    """Epochs between two checkpoints, from which an interrupted training goes on."""
    checkpoint_steps: int | None = Field(default=None, ge=1)
    """Write a checkpoint every so many steps as well, where an epoch takes long."""
    quantization_aware: QuantizationAware | None = Field(
        default=None, exclude_if=lambda value: value is None
    )
    """Round weights and what they are multiplied by as the pass ``quantize`` of the same settings
    will, so that training makes up for it; for a short training after the long one. null trains in
    floats."""

    @property
    def rounding(self) -> dict[str, int]:
        """The version of the rounding in training, where there is any."""
        return {} if self.quantization_aware is None else {"rounding": ROUNDING_VERSION}


class FinetuneSettings(TrainingSettings):
    """Settings of fine-tuning."""

    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Probability taken from the true class and spread over all classes."""


class DistillSettings(TrainingSettings):
    """Settings of distillation; each weight multiplies one term of the loss, 0 leaves it out."""

    epochs: int = Field(default=10, ge=1, le=10_000)
    """Passes over the training data."""
    learning_rate: float = Field(default=5e-4, gt=0, le=1)
    """Peak learning rate of AdamW."""
    temperature: float = Field(default=2.0, gt=0, le=100)
    """Softens the classes of teacher and student before they are compared."""
    logits_weight: float = Field(default=1.0, ge=0)
    """Of the divergence from the teacher's classes (Hinton et al., 2015); of embeddings, of the
    squared distance of their directions, 2 - 2 cos."""
    labels_weight: float = Field(default=0.15, ge=0)
    """Of the cross-entropy with the true labels, over rows without augmentation; nothing where
    there are no labels."""
    hidden_weight: float = Field(default=1.0, ge=0)
    """Of the squared difference of hidden states of paired layers (TinyBERT, 2020)."""
    relation_weight: float = Field(default=0.0, ge=0)
    """Of the divergence of query, key and value relations in the last paired layers (MiniLMv2,
    2021)."""
    relation_heads: int = Field(default=12, ge=1)
    """Heads into which queries, keys and values are cut anew; divides both models' widths."""
    augmentation: float | None = Field(default=None, ge=0, lt=1)
    """Share of the tokens that is replaced at random, by tokens of the training data, in every
    second row; the teacher labels the result. By default what suits the task: 0.3 for texts, 0.1
    for images and recordings, and 0 for models that write, whose texts would not fit to changed
    inputs. Images are mirrored and moved instead, videos
    moved, recordings moved in time and made louder or softer, signals moved in time, by up to this
    share of their size. With 0 every row stays as it is."""
    augmentation_neighbours: int = Field(
        default=0, ge=0, le=100, exclude_if=lambda value: value == 0
    )
    """Of texts: a token is replaced by one of so many that have the nearest embeddings in the
    student, in the way of TinyBERT (2020), instead of by one that is drawn by its frequency. 0
    draws by frequency."""
    augmentation_mixup: float = Field(default=0.67, ge=0, le=1)
    """Share of the augmented rows that get the beginning or the end of another row instead (after
    SSMix, 2021); of images, videos and signals, share of those that are mixed with another, of
    recordings, of those that are laid over another."""
    augmentation_windows: float = Field(default=0.5, ge=0, le=1)
    """Of a text longer than the model reads, share of the augmented rows that are another stretch
    of it, as it stands; they are not changed otherwise. Of classes and embeddings of texts."""
    augmentation_copies: int | None = Field(default=3, ge=1)
    """Different augmented versions of each row, whose teacher outputs are kept in memory; null
    makes a new one each time, which costs a run of the teacher a step."""
    unlabeled: Path | None = Field(default=None, exclude_if=lambda value: value is None)
    """A UTF-8 file that lists more inputs, one a line: texts, or paths of files from its own
    folder. The teacher labels them; they are not augmented."""
    cache_mib: int = Field(default=2048, ge=0)
    """Memory for the teacher's outputs, which are made once. 0 runs the teacher each step."""
    cache_disk_mib: int = Field(default=24_576, ge=0)
    """Longest file for the states of its layers where that does not suffice, and at most three
    quarters of the free space of the disk. Where they do not fit there either, the teacher runs
    each step."""

    def asked(self, *names: str) -> list[str]:
        """Those of some settings that are neither off nor as by default: somebody wants them."""
        fields = type(self).model_fields
        given = {name: getattr(self, name, None) for name in names}
        return [name for name, value in given.items() if value and value != fields[name].default]

    def for_task(self, usual: Mapping[str, Any]) -> Self:
        """With what suits a task in the place of what nobody has set.

        Args:
            usual: `Task.distillation`.
        """
        if self.augmentation is not None:
            return self
        return self.model_copy(update={"augmentation": usual.get("augmentation", AUGMENTATION)})

    def with_copies_seen(self) -> Self:
        """The same without the augmented versions that so few epochs do not come to."""
        if self.augmentation_copies is None:
            return self
        seen = min(self.augmentation_copies, (self.epochs + 1) // 2)
        return self.model_copy(update={"augmentation_copies": seen})

    @property
    def noise_settings(self) -> tuple[float | None, ...]:
        """All that says which rows the teacher labels, beside the data and the seed."""
        return (
            self.augmentation,
            self.augmentation_neighbours,
            self.augmentation_mixup,
            self.augmentation_windows,
            self.augmentation_copies,
        )

    @property
    def unlabeled_files(self) -> tuple[Path, ...]:
        """The list of the unlabeled inputs, and the files that it names."""
        return () if self.unlabeled is None else (self.unlabeled, *_listed(self.unlabeled))

    def check(self, architecture: Architecture) -> None:
        """Refuse what cannot be done for a model, before any work.

        Raises:
            PassError: Names the setting.
        """
        check_batch(self.batch_size)
        self.check_compared(len(architecture.layers))
        self.check_unlabeled(writes=architecture.writes)
        self.check_labels(has_labels=architecture.has_labels)
        reads_texts = architecture.vocabulary_size and not architecture.has_window
        if self.augmentation_neighbours and not reads_texts:
            raise PassError(
                "the model reads no tokens, which have neighbours",
                where="augmentation_neighbours",
                given=self.augmentation_neighbours,
                fix="leave the setting out",
            )

    def check_unlabeled(self, *, writes: bool = False) -> None:
        """Check before any work that the file of unlabeled inputs is there, and can be of use.

        Args:
            writes: Whether the model has a decoder, which learns from texts that are given.

        Raises:
            PassError: It is not.
        """
        if self.unlabeled is not None and writes:
            raise PassError(
                "a model that writes texts cannot learn from inputs without target texts",
                where="unlabeled",
                given=self.unlabeled,
                fix="let the untouched model write their texts (compressor predict), and add both "
                "to the training data",
            )
        if self.unlabeled is not None and not self.unlabeled.is_file():
            raise PassError(
                "the file of unlabeled inputs does not exist",
                where="unlabeled",
                given=self.unlabeled,
                fix="correct the path, or leave the setting out",
            )

    def check_labels(self, *, has_labels: bool) -> None:
        """Refuse to learn from labels where there are none, as of embeddings.

        Raises:
            PassError: A setting asks for it.
        """
        if self.asked("labels_weight") and not has_labels:
            raise PassError(
                "there are no labels to learn from: the untouched model alone says what is right",
                where="labels_weight",
                given=self.labels_weight,
                fix="leave the setting out",
            )

    def check_compared(self, num_layers: int) -> None:
        """Refuse to compare the layers of a network that has none, such as one of convolutions.

        Raises:
            PassError: A setting asks for it.
        """
        asked = self.asked("hidden_weight", "relation_weight", "layer_map")
        if asked and not num_layers:
            raise PassError(
                "the model is not a transformer encoder: it has no layers to compare",
                where=", ".join(asked),
                given="0 layers",
                fix="leave these settings out: the student learns from the logits alone",
            )


def _listed(path: Path) -> Iterator[Path]:
    """Files that the lines of a file name, from its folder; of a folder, those in it."""
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError):
        return  # whoever reads it says what is wrong
    for line in lines:
        with suppress(OSError, ValueError):  # a text can be no path at all
            named = path.parent / line.strip()
            if not line.strip():
                continue
            if named.is_file():
                yield named
            elif named.is_dir() and not path.resolve().is_relative_to(named.resolve()):
                yield from (each for each in sorted(named.iterdir()) if each.is_file())
