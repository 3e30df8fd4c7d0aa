"""What every pass offers, and what it gets and gives."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from targets.base import Form, Precision
from targets.discovery import Component

if TYPE_CHECKING:
    from compressor.architecture import Architecture
    from compressor.data import Splits
    from compressor.model import Model, TorchModel
    from compressor.training.teacher import TeacherMemory

__all__ = ["Advice", "Goal", "Pass", "PassContext", "PassResult"]


@dataclass(frozen=True)
class PassContext:
    """What a pass may use beside the model.

    Attributes:
        splits: Training and validation data. The test split is not in it: passes never see it.
        load_original: Loads the untouched model that the run began with: the teacher.
        seed: Of every random choice.
        folder: For files that must outlive an interruption, such as training checkpoints. It is
            the same folder when an interrupted pass runs again, and goes when the pass is done.
        width_multiple: Widths are rounded to multiples of this, which the targets run best.
        progress: Called with (fraction done in [0, 1], one short line).
        on_evaluation: Called by passes that do nothing but train with (epoch, validation accuracy
            in [0, 1]) after each evaluation; what it raises ends the pass.
        teacher_memory: Keeps what the untouched model says of the training data, for a search that
            trains again and again.
    """

    splits: Splits
    load_original: Callable[[], TorchModel]
    seed: int
    folder: Path
    width_multiple: int = 8
    progress: Callable[[float, str], None] = lambda fraction, line: None
    on_evaluation: Callable[[int, float], None] = lambda epoch, accuracy: None
    teacher_memory: TeacherMemory | None = None


@dataclass(frozen=True)
class PassResult:
    """What a pass made.

    Attributes:
        model: The new model.
        metrics: What the pass measured about itself, with the unit in the name.
        notes: One line each, for people: what was rounded, skipped, or left as it was.
        history: One entry a logging step of training: step, epoch, loss, learning_rate, and
            validation_accuracy where it was evaluated.
    """

    model: Model
    metrics: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    history: tuple[Mapping[str, float], ...] = ()


Goal = Literal["accuracy", "speed", "size"]
"""What a budget can be short of."""


@dataclass(frozen=True)
class Advice:
    """What to try next, completing the sentence "to try next: ...".

    Attributes:
        used: Where the recipe has the pass: which setting to change.
        absent: Where it does not: what to add.
    """

    used: str | None = None
    absent: str | None = None


class Pass(Component, ABC):
    """One step from model to model. Subclasses live in one file each in ``compressor/passes/``.

    A pass is a frozen value: its fields are its settings. It never changes the model it is given.
    Everything heavy is imported inside the methods: naming a pass costs nothing.
    """

    consumes: ClassVar[Form]
    """The form of model it takes."""

    produces: ClassVar[Form]
    """The form of model it gives."""

    paper: ClassVar[str]
    """The publication that describes the method, or what the pass is when there is none."""

    version: ClassVar[int] = 1
    """Goes up when the same settings give another result: cached steps become stale."""

    libraries: ClassVar[tuple[str, ...]] = ("torch", "transformers")
    """Distributions whose version changes the result."""

    uses_data: ClassVar[bool] = True
    """Whether the result depends on the training or validation data. Where not, an ONNX model is
    found again with other data; a torch model is made anew, as it is judged on them."""

    uses_original: ClassVar[bool] = False
    """Whether the result depends on the untouched model."""

    @property
    def parts(self) -> Mapping[str, int]:
        """Versions of what it uses with some settings only, by name: beside :attr:`version`, which
        would make the steps of all settings stale."""
        return {}

    @property
    def precision(self) -> Precision | None:
        """The number format of matrix products that it leaves; None where it changes none."""
        return None

    @property
    def static_rounding(self) -> Mapping[str, Any] | None:
        """How it rounds weights, and activations in fixed ranges, by the settings with which a
        training learns to live with that (`QuantizationAware`); None where it does not."""
        return None

    @property
    def width_multiple(self) -> int:
        """What widths have to be multiples of for it to do all that it is asked for."""
        return 1

    @property
    def input_files(self) -> tuple[Path, ...]:
        """Files beside the model and the data whose content changes the result."""
        return ()

    @classmethod
    def unsuited(cls, architecture: Architecture) -> str | None:
        """Why the pass cannot be used on such a model, whatever its settings; None where it can."""
        return None

    def plan(self, architecture: Architecture, *, width_multiple: int = 8) -> Architecture:
        """What the model will look like afterwards; loads no weights.

        Args:
            architecture: What the passes before it leave.
            width_multiple: What the run will round widths to.

        Raises:
            PassError: The settings do not fit the architecture, such as a ratio that would leave
                no head.
        """
        return architecture

    advice: ClassVar[Mapping[Goal, Advice]] = {}
    """What to try where a budget was missed, for each goal that the pass bears on."""

    def requires(self, model: Model, context: PassContext) -> None:
        """Check the model and the data before any work.

        Raises:
            PassError: Names every offender.
        """

    @abstractmethod
    def run(self, model: Any, context: PassContext) -> PassResult:
        """Do the work. ``model`` is of the form that the pass consumes, and stays untouched."""

    def ensures(self, model: Model, result: PassResult, context: PassContext) -> None:
        """Check what the pass promises about its result.

        Raises:
            PassError: The promise was broken.
        """
