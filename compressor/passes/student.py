"""Student: another network in the place of the model, to be distilled."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from compressor.architecture import Architecture
from compressor.errors import CheckpointError, PassError
from compressor.passes.base import Advice, Goal, Pass, PassContext, PassResult
from targets.base import Form
from targets.provenance import checkpoint_hashes
from targets.shapes import weight_files

if TYPE_CHECKING:
    from compressor.model import TorchModel

__all__ = ["Student"]


class Student(Pass):
    """Put another pre-trained network in the place of the model, with a fresh head.

    It knows nothing of the classes yet: a ``distill`` after it teaches it what the model knows. It
    reads what the model reads: the same images, or the same tokens.
    """

    name: ClassVar[str] = "student"
    consumes: ClassVar[Form] = "torch"
    produces: ClassVar[Form] = "torch"
    paper: ClassVar[str] = (
        "Hinton et al., Distilling the Knowledge in a Neural Network, 2015: teacher and student "
        "need not be alike"
    )
    advice: ClassVar[Mapping[Goal, Advice]] = {
        "accuracy": Advice(used="a larger network for student"),
        "speed": Advice(used="a smaller network for student"),
        "size": Advice(used="a smaller network for student"),
    }

    checkpoint: Path
    """A Hugging Face folder; its own head is dropped."""

    @classmethod
    def unsuited(cls, architecture: Architecture) -> str | None:
        """See the base class."""
        return None if architecture.num_labels else "its answers are not classes"

    @property
    def input_files(self) -> tuple[Path, ...]:
        """See the base class."""
        try:
            weight_files(self.checkpoint)
            return tuple(self.checkpoint / name for name in checkpoint_hashes(self.checkpoint))
        except CheckpointError:
            return ()  # `plan` says what is wrong

    def plan(self, architecture: Architecture, *, width_multiple: int = 8) -> Architecture:
        """The network of the checkpoint.

        Raises:
            PassError: There is none.
        """
        with _as_pass_errors():
            found = Architecture.read(self.checkpoint)
            weight_files(self.checkpoint)
        return replace(
            found,
            num_labels=architecture.num_labels,
            has_inner_head=architecture.has_inner_head,
        )

    def run(self, model: TorchModel, context: PassContext) -> PassResult:
        """Load the checkpoint with a head for the classes of the model.

        Raises:
            PassError: It cannot do the task of the model, or reads other inputs.
        """
        from compressor.tasks import get_task
        from compressor.training.finetuning import new_classifier

        with _as_pass_errors():
            student = new_classifier(
                self.checkpoint,
                model.labels,
                task=model.task,
                seed=context.seed,
                max_length=model.max_length or None,
            )
            processor = get_task(model.task).adopt(student, model)
        student = replace(student, processor=processor)
        return PassResult(
            model=student,
            metrics={
                "num_parameters_before": model.num_parameters,
                "num_parameters_after": student.num_parameters,
            },
            notes=(f"{type(model.module).__name__} -> {type(student.module).__name__}",),
        )


@contextmanager
def _as_pass_errors() -> Iterator[None]:
    """What is wrong with the checkpoint is wrong with a setting of the pass."""
    try:
        yield
    except CheckpointError as error:
        raise PassError(
            f"the student cannot be used: {error.what}",
            where=error.where,
            given=error.given,
            fix=error.fix,
        ) from error
