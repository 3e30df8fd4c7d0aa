"""Variable window: let a network hear recordings as long as they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from compressor.passes.base import Advice, Goal, Pass, PassContext, PassResult
from targets.base import Form

if TYPE_CHECKING:
    from compressor.architecture import Architecture
    from compressor.model import TorchModel

__all__ = ["VariableWindow"]


class VariableWindow(Pass):
    """Let a network that hears windows of one size, as Whisper does, hear shorter ones.

    A recording is followed by silence up to the next step, and no longer up to the whole window,
    so that the work grows with its length. Its weights stay; what was trained on whole windows
    alone has to be trained on short ones (``finetune``): it writes on and on otherwise.
    """

    name: ClassVar[str] = "variable_window"
    consumes: ClassVar[Form] = "torch"
    produces: ClassVar[Form] = "torch"
    paper: ClassVar[str] = (
        "Radford et al., Robust Speech Recognition via Large-Scale Weak Supervision, 2022 (arXiv "
        "2212.04356), section 2.2, on the window; that it is shortened is ours"
    )
    advice: ClassVar[Mapping[Goal, Advice]] = {
        "accuracy": Advice(used="a longer step of variable_window, or more training after it"),
        "speed": Advice(used="a shorter step of variable_window"),
    }

    step: float = Field(default=0.5, gt=0, le=30)
    """Seconds: windows are multiples of it, the least that holds the longest recording of a
    batch."""

    @classmethod
    def unsuited(cls, architecture: Architecture) -> str | None:
        """See the base class."""
        return None if architecture.has_window else "it does not read audio in windows of one size"

    def run(self, model: TorchModel, context: PassContext) -> PassResult:
        """Change how inputs are read, and nothing else.

        Raises:
            PassError: The model hears no windows of one size, or none in steps of this one.
        """
        from compressor.tasks import get_task

        task = get_task(model.task)
        processor = task.with_variable_window(model.processor, self.step)
        changed = replace(model, processor=processor)
        inputs = context.splits.validation.inputs
        windows = [
            task.extent(changed, task.length_read(row)) for row in task.encode(changed, inputs)
        ]
        longest = task.extent(changed, model.max_length)
        share = sum(windows) / (len(windows) * longest)
        return PassResult(
            model=changed,
            metrics={"mean_share_of_window": share},
            notes=(f"on average, recordings take {share:.0%} of the window",),
        )
