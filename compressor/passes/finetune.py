"""Finetune: train the model on the labels of the training data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from compressor.distributed import check_batch
from compressor.errors import PassError
from compressor.passes.base import Pass, PassContext, PassResult
from compressor.training.settings import FinetuneSettings
from targets.base import Form

if TYPE_CHECKING:
    from compressor.architecture import Architecture
    from compressor.model import Model, TorchModel

__all__ = ["Finetune"]

_WITHOUT_HEAD = "it has no head that learns from labels: the command compressor finetune makes one"


class Finetune(Pass, FinetuneSettings):
    """Train the model on the labels of the training data."""

    name: ClassVar[str] = "finetune"
    consumes: ClassVar[Form] = "torch"
    produces: ClassVar[Form] = "torch"
    paper: ClassVar[str] = (
        "Devlin et al., BERT: Pre-training of Deep Bidirectional Transformers for Language "
        "Understanding, 2019, section 4"
    )
    libraries: ClassVar[tuple[str, ...]] = ("torch", "transformers", "accelerate")

    @property
    def parts(self) -> Mapping[str, int]:
        """See the base class."""
        return self.rounding

    @classmethod
    def unsuited(cls, architecture: Architecture) -> str | None:
        """See the base class."""
        return None if architecture.has_labels else _WITHOUT_HEAD

    def plan(self, architecture: Architecture, *, width_multiple: int = 8) -> Architecture:
        """See the base class."""
        check_batch(self.batch_size)
        return architecture

    def requires(self, model: Model, context: PassContext) -> None:
        """Check that model and data have the same classes.

        Raises:
            PassError: They do not.
        """
        if model.labels != context.splits.label_names:
            raise PassError(
                "the model and the data do not have the same classes",
                where="pass finetune",
                given=f"model {', '.join(model.labels)}; "
                f"data {', '.join(context.splits.label_names)}",
                fix="give the model a fresh head: compressor finetune",
            )

    def run(self, model: TorchModel, context: PassContext) -> PassResult:
        """Train a copy of the model.

        Raises:
            PassError: The loss became NaN or infinite, or the disk is full.
        """
        from compressor.training.finetuning import finetune

        result = finetune(
            model,
            context.splits,
            self,
            seed=context.seed,
            folder=context.folder,
            progress=context.progress,
            on_evaluation=context.on_evaluation,
        )
        return PassResult(model=result.model, metrics=result.metrics, history=result.history)
