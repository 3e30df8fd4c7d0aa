"""What every task offers: how its models load and how raw inputs become batches."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from compressor.data import input_field
from compressor.errors import CheckpointError, DataError, PassError
from targets.answers import AnyAnswers, Units
from targets.preprocessing import AnyPreprocessing, Preprocessing
from targets.signature import Arrays, Signature, TensorSpec

if TYPE_CHECKING:
    from torch import Tensor, nn

    from compressor.data import Kind, LabelField, Split
    from compressor.model import Model, TorchModel
    from compressor.report.schema import ChangedExample, Comparison
    from compressor.training.augmentation import Material, Noise
    from compressor.training.settings import DistillSettings

__all__ = [
    "LABELS",
    "Row",
    "Task",
    "batches_of",
    "inputs_of",
    "padded",
]

LABELS = "labels"
"""What rows and batches that have labels call them."""

Row = Mapping[str, Any]
"""One input, read: name -> its tokens, its pixels, its samples."""

Value = TypeVar("Value")


def batches_of(rows: Sequence[Row]) -> dict[str, Sequence[Row]]:
    """Batches by which a network is compared with its export: one row, several, and all."""
    return {f"batch of {count}": rows[:count] for count in (1, 3, len(rows))}


def inputs_of(batch: Mapping[str, Value]) -> dict[str, Value]:
    """What a model reads of a batch: all but its labels."""
    return {name: each for name, each in batch.items() if name != LABELS}


class Task(ABC):
    """One kind of problem. Subclasses live in one file each in ``compressor/tasks/``.

    A *processor* is what turns raw inputs into rows: a tokenizer for text, else a value of
    :mod:`targets.preprocessing`.
    """

    name: ClassVar[str]
    """As Hugging Face names it."""

    heads: ClassVar[tuple[str, ...]]
    """How the class names of checkpoints with this task's head end."""

    kind: ClassVar[Kind]
    """Of the raw inputs."""

    label_field: ClassVar[LabelField | None] = "label"
    """The field of `compressor.data.DataSpec` that names the column with the labels. None where the
    data has none: what the untouched model answers is then what is right."""

    has_class_indices: ClassVar[bool] = False
    """Whether the labels of the data are indices of classes, which have no names there."""

    fresh_head: ClassVar[bool] = True
    """Whether fine-tuning begins with a new head; else with the one that the checkpoint has."""

    keeps_state: ClassVar[bool] = False
    """Whether its models go on from what they computed before; see :meth:`with_state`."""

    preprocessing_type: ClassVar[type[Preprocessing]]
    """How the device half reads the same inputs."""

    answers: ClassVar[AnyAnswers]
    """What the outputs say, and what of it is judged."""

    metrics: ClassVar[Collection[str]]
    """All that :meth:`compare` may find, which a budget may limit with `max_metric_drop`."""

    not_compared: ClassVar[frozenset[str]] = frozenset(
        {
            "max_perplexity_rise",
            "max_class_drop",
            "max_probability_difference",
            "max_calibration_error",
        }
    )
    """Limits of a budget on what :meth:`compare` does not find."""

    distillation: ClassVar[Mapping[str, Any]] = MappingProxyType(
        {"dropout": 0.0, "hidden_weight": 10.0, "temperature": 1.0}
    )
    """Settings of the pass ``distill`` that suit its models: for small students of text, which do
    not overfit. `compressor auto` takes all of them, the pass by itself its ``augmentation``."""

    trains_by_its_measure: ClassVar[bool] = True
    """Whether the accuracy of :meth:`training_metrics` is that of :attr:`answers`."""

    trained_for: ClassVar[Literal["accuracy", "perplexity"]] = "accuracy"
    """Which of :meth:`training_metrics` tells the best weights of a training."""

    # Checkpoints

    @classmethod
    def heads_in(cls, folder: Path) -> tuple[str, ...]:
        """How the class name of a checkpoint in this folder may end."""
        return cls.heads

    def load_checkpoint(self, folder: Path, *, max_length: int | None = None) -> TorchModel:
        """Load a fine-tuned Hugging Face folder that a user brings.

        Raises:
            CheckpointError: Absent, damaged, pickle-only, with NaN weights, or another task's head.
        """
        from compressor.checkpoint import check_checkpoint, check_weights
        from compressor.model import TorchModel
        from compressor.tasks.layerdrop import keep_whole
        from targets.checkpoint import load_module

        check_checkpoint(folder, head=self.heads_in(folder), kind=self.kind)
        self.check_network(folder)
        check_weights(folder)
        processor = self.load_processor(folder)
        length = self.cut_at(folder, processor, max_length)
        network = load_module(folder, self.name)
        keep_whole(network)
        self.check_fit(network, processor)
        return TorchModel(
            module=network,
            processor=processor,
            task=self.name,
            max_length=length,
        )

    def cut_at(self, folder: Path, processor: Any, max_length: int | None) -> int:
        """The longest input of a checkpoint, or one that is asked for and that it takes."""
        limit = self.longest(folder, processor)
        if max_length is not None and self.is_open(folder):
            return max_length
        return min(max_length or limit, limit)

    def is_open(self, folder: Path) -> bool:
        """Whether the inputs of a network may be longer than its checkpoint says."""
        return False

    def check_network(self, folder: Path) -> None:
        """Check cheaply, by its config, that the network of a checkpoint is one that is known.

        Raises:
            CheckpointError: It is not, or there is no config.
        """
        return

    @abstractmethod
    def check_processor(self, folder: Path) -> None:
        """Check cheaply, without its library, that a checkpoint has the processor that is needed.

        Raises:
            CheckpointError: It has none.
        """

    @abstractmethod
    def load_processor(self, folder: Path) -> Any:
        """Load the processor of a checkpoint folder.

        Raises:
            CheckpointError: There is none.
        """

    @abstractmethod
    def save_processor(self, processor: Any, folder: Path) -> None:
        """Write a processor into a model folder."""

    @abstractmethod
    def processor_files(self, folder: Path) -> list[Path]:
        """The files of the processor in a model folder."""

    @abstractmethod
    def longest(self, folder: Path, processor: Any) -> int:
        """Longest input of a checkpoint; `targets.preprocessing.FIXED_SIZE` where all have one."""

    def read_length(self, folder: Path, *, max_length: int | None = None) -> int:
        """Where inputs are cut of a checkpoint that is not loaded; `FIXED_SIZE` as in `longest`.

        Args:
            folder: The checkpoint.
            max_length: What the data is to be cut at.

        Raises:
            CheckpointError: Its files do not tell.
        """
        return self.cut_at(folder, None, max_length)

    def metrics_with(self, label_names: Sequence[str]) -> Collection[str]:
        """Those of :attr:`metrics` that are found with such classes."""
        return self.metrics

    @abstractmethod
    def preprocessing(self, folder: Path, max_length: int) -> AnyPreprocessing:
        """How the device half reads inputs for the model in a folder."""

    def answers_with(self, processor: Any) -> AnyAnswers:
        """What the outputs of a model say that has a processor."""
        return self.answers

    @abstractmethod
    def class_names(self, config: Any) -> tuple[str, ...]:
        """The names of the classes of a network, in the order of the logits; empty without classes.

        Args:
            config: Of the network.
        """

    @abstractmethod
    def label_names(self, folder: Path) -> tuple[str, ...]:
        """The same of a checkpoint that is not loaded.

        Raises:
            CheckpointError: Its config names none.
        """

    # The network

    @abstractmethod
    def outputs(self, model: TorchModel) -> tuple[TensorSpec, ...]:
        """The outputs of the signature."""

    @abstractmethod
    def signature(self, model: TorchModel) -> Signature:
        """Inputs and outputs of the exported model, batch and lengths free."""

    def with_state(self, model: TorchModel, signature: Signature) -> Signature:
        """The same model as one that keeps what it computed, and goes on from there.

        Args:
            model: Of this task.
            signature: That of the model without a state.

        Raises:
            PassError: Models of this task have nothing to keep.
        """
        raise PassError(
            "models of this task keep nothing from one run to the next",
            where=self.name,
            fix="leave cache out of the pass export",
        )

    @abstractmethod
    def example(self, network: nn.Module, processor: Any) -> dict[str, Tensor]:
        """A small batch to trace the network with: name -> (2, ...), lengths differing if any."""

    def resized(self, network: nn.Module, processor: Any, image_size: int) -> Any:
        """The processor for images of another size; the network is brought to it in place.

        Args:
            network: Is changed where it has a table of positions.
            processor: Of its size now.
            image_size: Side of the images in pixels.

        Raises:
            CheckpointError: The model reads no images, or none of this size.
        """
        raise CheckpointError(
            "only models that read images have an image size",
            where=self.name,
            given=image_size,
            fix="leave the image size out",
        )

    def shortened(self, network: nn.Module, processor: Any, max_length: int) -> Any:
        """The processor for inputs of at most this length; the network is cut to it in place.

        Args:
            network: Is changed where a shorter input does not make it faster by itself.
            processor: Of its longest input now.
            max_length: Longest input, such as in tokens.

        Raises:
            CheckpointError: The model does not take this length.
        """
        return processor

    def with_variable_window(self, processor: Any, seconds: float) -> Any:
        """The processor of a model that hears recordings as long as they are.

        Args:
            processor: Gives the model windows of one size.
            seconds: Windows grow in steps of these.

        Raises:
            PassError: The model hears no windows of one size, or steps are not to be of this size.
        """
        raise PassError(
            "only models that read audio in windows of one size can read shorter ones",
            where=self.name,
            fix="leave the pass variable_window out: the work of this model already follows the "
            "length of its inputs, or its inputs are not audio",
        )

    def shortest(self, model: TorchModel) -> int:
        """Shortest input of a model, such as in tokens."""
        return 1

    def extent(self, model: TorchModel, length: int) -> int:
        """Size of the free dimension of the inputs of a model, for an input of a length alone."""
        return length

    def check_fit(self, network: nn.Module, processor: Any) -> None:
        """Check that a network takes what its processor makes.

        Raises:
            CheckpointError: It does not.
        """
        return

    @abstractmethod
    def adopt(self, student: TorchModel, model: TorchModel) -> Any:
        """The processor with which a student reads the same inputs as a model.

        Args:
            student: Another network; changed in place where its inputs have another size.
            model: What it is to stand for.

        Raises:
            CheckpointError: It cannot read them.
        """

    # Rows and batches

    def named_columns(self, inputs: str | None, labels: str | None) -> dict[str, str]:
        """The fields of `compressor.data.DataSpec` -> the columns that a user names for them.

        Those of the inputs and of what is right; None where one is not named.

        Raises:
            DataError: The data of the task has no such column.
        """
        if labels is not None and self.label_field is None:
            raise DataError(
                f"the data of the task {self.name} has no column with labels",
                where="the column with labels",
                given=labels,
                fix="leave it out",
            )
        fields = (input_field(self.kind, self.label_field), str(self.label_field))  # may be one
        named = zip(fields, (inputs, labels), strict=True)
        return {name: column for name, column in named if column is not None}

    @abstractmethod
    def encode(self, model: Model, inputs: Sequence[Any]) -> list[Row]:
        """Read raw inputs; longer ones are cut at the model's longest input."""

    @abstractmethod
    def collate(self, model: Model, rows: Sequence[Row]) -> Arrays:
        """The inputs of the model for one batch of rows, (N, ...) each, padded where needed."""

    def collate_unanswered(self, model: Model, rows: Sequence[Row]) -> Arrays:
        """The same of rows of which some have their answers in them, which are left out."""
        return self.collate(model, rows)

    @abstractmethod
    def length(self, row: Row) -> int:
        """Length of a row; `targets.preprocessing.FIXED_SIZE` where all have one size."""

    def length_read(self, row: Row) -> int:
        """The same of what is read once, where something is written about it."""
        return self.length(row)

    @abstractmethod
    def num_cut(self, model: TorchModel, inputs: Sequence[Any]) -> int:
        """How many raw inputs are longer than the model reads."""

    @abstractmethod
    def probes(self, model: TorchModel, rows: Sequence[Row]) -> Mapping[str, Arrays]:
        """Batches in which an exported model has to agree with the torch model, by description.

        Args:
            model: Reads them.
            rows: A few real ones, N >= 1.
        """

    @abstractmethod
    def noise(
        self, model: TorchModel, material: Material, settings: DistillSettings, seed: int
    ) -> Noise:
        """Makes more rows for a teacher to label, out of those of the training data.

        Args:
            model: The student.
            material: The training data.
            settings: How much is changed.
            seed: Of the choices.
        """

    # Answers

    @abstractmethod
    def encode_labelled(self, model: Model, split: Split) -> list[dict[str, Any]]:
        """Read a split: rows that have ``labels`` as well, where the outputs have the answers."""

    @abstractmethod
    def encode_unlabeled(self, model: Model, inputs: Sequence[Any]) -> list[dict[str, Any]]:
        """Read raw inputs: rows whose ``labels`` count for nothing."""

    @abstractmethod
    def collate_labels(self, rows: Sequence[Row]) -> NDArray[Any]:
        """The labels of a batch of rows, (N, ...); `targets.answers.IGNORED` counts for nothing."""

    def answered(self, outputs: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        """All that a model answers for a batch, padding left out: what a student learns from.

        Args:
            outputs: For the batch, (N, ...).
            batch: The inputs.

        Returns:
            (M, classes), or (M, size) where there are none.
        """
        return outputs

    def evaluated(self, outputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """What the evaluation of a training keeps of a batch; see `targets.answers.Answers.judged`.

        Args:
            outputs: For the batch, (N, ...).
            labels: Of the batch, (N, ...).
        """
        return outputs.float(), labels

    def training_metrics(self, kept: NDArray[Any], labels: NDArray[Any]) -> dict[str, float]:
        """How good a model is as it trains.

        Args:
            kept: What :meth:`evaluated` kept of all batches, (N, ...).
            labels: Of all, (N, ...).

        Returns:
            ``accuracy``, the mean value of its answers in [0, 1]; of a language model
            ``perplexity`` as well.
        """
        return {"accuracy": self.answers.overall(self.answers.judged(kept, labels))}

    def judged_rows(
        self, kept: NDArray[Any], rows: Sequence[Row], split: Split, places: NDArray[np.int64]
    ) -> Units:
        """What is judged of the answers to some rows of a split.

        Args:
            kept: What is kept of the answers, (N, ...).
            rows: Those of the split that were answered.
            split: All of it.
            places: Where they stand in it, (N,).
        """
        return self.answers.judged(kept, self.collate_labels(rows), places)

    # Losses

    @abstractmethod
    def loss(
        self, outputs: Tensor, batch: Mapping[str, Tensor], *, label_smoothing: float = 0.0
    ) -> tuple[Tensor, Tensor]:
        """How far the outputs are from the labels.

        Args:
            outputs: For the batch, (N, ...).
            batch: With ``labels``, (N, ...).
            label_smoothing: Share of each label that is given to all classes alike.

        Returns:
            The sum over all that is judged, and how many that are; scalars.
        """

    def sensitivity(self, outputs: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        """What tells by its derivatives which parts of a network matter: the mean loss, a scalar.

        Args:
            outputs: For the batch, (N, ...).
            batch: With ``labels``, (N, ...).
        """
        total, count = self.loss(outputs, batch)
        return total / (count or 1)

    @abstractmethod
    def divergence(
        self,
        student: Tensor,
        teacher: Tensor,
        batch: Mapping[str, Tensor],
        *,
        temperature: float,
    ) -> Tensor:
        """How far a student's outputs are from its teacher's: a mean, a scalar.

        Args:
            student: For the batch, (N, ...).
            teacher: For the same, (N, ...).
            batch: The inputs.
            temperature: See `DistillSettings`.
        """

    # Comparisons

    def kept(self, units: Units) -> NDArray[Any]:
        """What a report keeps of the answers, for comparisons with later ones; see :meth:`drop`.

        Returns:
            (units, ...), a number or several each.
        """
        return np.asarray(self.answers.values(units), dtype=np.float32)

    def drop(
        self,
        before: NDArray[Any],
        after: NDArray[Any],
        labels: NDArray[Any] | None,
        rows: NDArray[np.int64] | None,
    ) -> tuple[float, float, float]:
        """What is lost from one model to another, in points: estimate and 95% interval.

        Of the mean of what was kept, where a task says nothing else.

        Args:
            before: What was :meth:`kept` of the first.
            after: And of the second, of the same units.
            labels: Of the units, where they are classes.
            rows: The row of the data that each unit belongs to; None where each is one.
        """
        from compressor.means import mean_drop

        return mean_drop(before, after)

    @abstractmethod
    def compare(
        self,
        reference: Units,
        candidate: Units,
        *,
        label_names: Sequence[str],
        slices: Mapping[str, Sequence[str]],
    ) -> Comparison:
        """What is lost from one model to another: as a whole, by other metrics, and by slice.

        Args:
            reference: What the untouched model answers.
            candidate: What the other one answers to the same.
            label_names: Of the classes.
            slices: Column -> its values, one a row.
        """

    def changed(
        self,
        reference: Units,
        candidate: Units,
        *,
        label_names: Sequence[str],
        title: Callable[[int, int], str] | None,
    ) -> tuple[ChangedExample, ...]:
        """The units that got another answer, the worst first; none where no answer stands alone.

        Args:
            reference: What the untouched model answers.
            candidate: What the other one answers to the same.
            label_names: Of the classes.
            title: What to call a unit, by its row and its place in it; None where that is private.
        """
        return ()

    def title(self, value: Any, place: int) -> str:
        """What a report calls a part of an input that is judged.

        Args:
            value: The raw input: a text, or the path of a file.
            place: Which of its parts, from 0.
        """
        return str(value)


def padded(rows: Sequence[Any], value: int) -> NDArray[np.int64]:
    """Rows of whole numbers side by side, filled up with a value.  # (N, longest)"""
    filled = np.full((len(rows), max(map(len, rows))), value, dtype=np.int64)
    for index, row in enumerate(rows):
        filled[index, : len(row)] = row
    return filled
