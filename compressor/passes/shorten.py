"""Let a model read the beginning of its inputs only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from compressor.errors import CheckpointError, PassError
from compressor.passes.base import Advice, Goal, Pass, PassContext, PassResult
from targets.base import Form

if TYPE_CHECKING:
    from compressor.model import Model, TorchModel

__all__ = ["Shorten"]


class Shorten(Pass):
    """Cut the longest input: what computes as much for every input as for the longest gets faster.

    Whisper does: its table of positions is cut, to whole seconds. The end of an input that is
    longer is not read.
    """

    name: ClassVar[str] = "shorten"
    consumes: ClassVar[Form] = "torch"
    produces: ClassVar[Form] = "torch"
    paper: ClassVar[str] = "none: the first rows of the table of positions stay"
    advice: ClassVar[Mapping[Goal, Advice]] = {
        "accuracy": Advice(used="a longer max_length for shorten"),
        "speed": Advice(used="a shorter max_length for shorten"),
    }

    max_length: int = Field(ge=2)
    """Longest input that is left, in tokens or in samples of a recording."""

    def requires(self, model: Model, context: PassContext) -> None:
        """See the base class."""
        if self.max_length >= model.max_length:
            raise PassError(
                "the model reads no longer inputs: nothing would be cut",
                where=f"{self.name}.max_length",
                given=f"{self.max_length}, of {model.max_length}",
                fix="use less, or leave the pass out",
            )

    def run(self, model: TorchModel, context: PassContext) -> PassResult:
        """Cut a copy.

        Raises:
            PassError: The model does not take this length.
        """
        from compressor.tasks import get_task

        task, short = get_task(model.task), model.clone()
        try:
            processor = task.shortened(short.module, short.processor, self.max_length)
        except CheckpointError as error:
            raise PassError(
                error.what, where=f"{self.name}.max_length", given=error.given, fix=error.fix
            ) from error
        cut = task.num_cut(
            replace(short, processor=processor, max_length=self.max_length),
            context.splits.validation.inputs,
        )
        return PassResult(
            model=replace(short, processor=processor, max_length=self.max_length),
            metrics={"validation_inputs_cut": float(cut)},
            notes=(
                f"{cut} of the {len(context.splits.validation)} inputs for validation are longer "
                f"than {self.max_length} {task.preprocessing_type.unit}",
            ),
        )
