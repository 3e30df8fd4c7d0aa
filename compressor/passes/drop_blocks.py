"""Remove whole residual blocks of a network of convolutions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, Self

from pydantic import Field, model_validator

from compressor.architecture import Architecture
from compressor.errors import PassError
from compressor.passes.base import Advice, Goal, Pass, PassContext, PassResult
from compressor.pruning.widths import kept_units
from targets.base import Form

if TYPE_CHECKING:
    from compressor.model import Model, TorchModel

__all__ = ["DropBlocks"]


class DropBlocks(Pass):
    """Remove whole residual blocks: what they read goes on as it is.

    Blocks that change the size of what they read, such as the first of a stage, always stay.
    """

    name: ClassVar[str] = "drop_blocks"
    consumes: ClassVar[Form] = "torch"
    produces: ClassVar[Form] = "torch"
    paper: ClassVar[str] = (
        "Veit et al., Residual Networks Behave Like Ensembles of Relatively Shallow Networks, "
        "NIPS 2016 (arXiv 1605.06431); Elkerdawy et al., To Filter Prune, or to Layer Prune, That "
        "Is The Question, ACCV 2020 (arXiv 2007.05667)"
    )
    advice: ClassVar[Mapping[Goal, Advice]] = {
        "accuracy": Advice(used="a lower ratio for drop_blocks"),
        "speed": Advice(used="a higher ratio for drop_blocks", absent="a drop_blocks pass"),
        "size": Advice(used="a higher ratio for drop_blocks"),
    }

    ratio: float | None = Field(default=None, gt=0, le=1)
    """Share of the residual blocks to remove: one at a time that without which the loss on
    validation data is lowest."""
    blocks: tuple[str, ...] | None = Field(default=None, min_length=1)
    """Names of the blocks to remove, as in the network, instead of `ratio`."""
    examples: int = Field(default=256, ge=8)
    """Validation rows on which the loss is measured."""

    @model_validator(mode="after")
    def _check_effect(self) -> Self:
        """Require exactly one way to choose, and no setting without effect."""
        if (self.ratio is None) == (self.blocks is None):
            raise ValueError("set ratio or blocks, not " + ("both" if self.blocks else "neither"))
        if self.blocks is not None:
            if len(set(self.blocks)) < len(self.blocks):
                raise ValueError("blocks names a block twice")
            if self.examples != type(self).model_fields["examples"].default:
                raise ValueError("examples has no effect when blocks names the blocks to drop")
        return self

    @classmethod
    def unsuited(cls, architecture: Architecture) -> str | None:
        """See the base class."""
        if architecture.has_unknown_layers:
            return "its layers are of an unknown kind"
        return "its layers are those of a transformer: drop_layers" if architecture.layers else None

    def requires(self, model: Model, context: PassContext) -> None:
        """See the base class."""
        if reason := self.unsuited(Architecture.of(model.module)):  # type: ignore[union-attr]
            raise PassError(
                "the model has no residual blocks of convolutions",
                where=self.name,
                given=reason,
                fix="leave the pass out",
            )
        self._check(_blocks(model, context))  # type: ignore[arg-type]

    def run(self, model: TorchModel, context: PassContext) -> PassResult:
        """See the base class."""
        from compressor.pruning.blocks import drop_blocks

        blocks = _blocks(model, context)
        metrics: dict[str, float] = {}
        if self.blocks is not None:
            dropped = self.blocks
        else:
            dropped, metrics = self._by_loss(model, blocks, context)
        pruned = replace(model, module=drop_blocks(model.module, dropped))
        metrics["num_parameters_before"] = model.num_parameters
        metrics["num_parameters_after"] = pruned.num_parameters
        metrics["num_blocks_before"] = len(blocks)
        metrics["num_blocks_after"] = len(blocks) - len(dropped)
        note = f"dropped {len(dropped)} of {len(blocks)} residual blocks: {', '.join(dropped)}"
        return PassResult(model=pruned, metrics=metrics, notes=(note,))

    def ensures(self, model: Model, result: PassResult, context: PassContext) -> None:
        """See the base class."""
        from compressor.pruning.prune import check_finite

        check_finite(result.model, context.splits.validation, self.name)  # type: ignore[arg-type]

    def _check(self, blocks: Sequence[str]) -> None:
        """Check that the blocks are there, and that something goes.

        Raises:
            PassError: They are not, or nothing does.
        """
        if not blocks:
            raise PassError(
                "the network has no residual blocks that can be dropped",
                where=self.name,
                given="no part adds its input to its output",
                fix="leave the pass out",
            )
        unknown = [name for name in self.blocks or () if name not in blocks]
        if unknown:
            raise PassError(
                "blocks names parts that are not residual blocks of the network",
                where=f"{self.name}.blocks",
                given=", ".join(unknown),
                fix=f"name some of {', '.join(blocks)}",
            )
        if self.blocks is None and not self._count(blocks):
            raise PassError(
                f"the network has {len(blocks)} residual blocks: none would be dropped",
                where=f"{self.name}.ratio",
                given=self.ratio,
                fix=f"set ratio to {1 / len(blocks):.2g} or more, or leave the pass out",
            )

    def _count(self, blocks: Sequence[str]) -> int:
        """How many go."""
        return len(blocks) - kept_units(len(blocks), self.ratio or 0.0)

    def _by_loss(
        self, model: TorchModel, blocks: Sequence[str], context: PassContext
    ) -> tuple[tuple[str, ...], dict[str, float]]:
        """The blocks to drop, in the order of the network."""
        from compressor.pruning.blocks import drop_blocks
        from compressor.pruning.prune import drop_least_missed

        count = self._count(blocks)

        def gone(left: Sequence[str]) -> tuple[str, ...]:
            return tuple(name for name in blocks if name not in left)

        def told(left: tuple[str, ...]) -> None:
            dropped = len(gone(left))
            context.progress(dropped / count, f"{dropped} of {count} blocks dropped")

        kept, metrics = drop_least_missed(
            model,
            blocks,
            count,
            lambda rest: drop_blocks(model.module, gone(rest)),
            context.splits.validation,
            num_rows=self.examples,
            seed=context.seed,
            progress=told,
        )
        return gone(kept), metrics


def _blocks(model: TorchModel, context: PassContext) -> tuple[str, ...]:
    """The residual blocks of a network, found on a row of the validation data."""
    from compressor.pruning.blocks import residual_blocks
    from compressor.pruning.prune import sample_batches
    from compressor.tasks.base import inputs_of

    (batch,) = sample_batches(
        model, context.splits.validation, num_rows=1, batch_size=1, seed=context.seed
    )
    return residual_blocks(model.module, inputs_of(batch))
