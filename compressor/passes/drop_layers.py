"""Remove whole layers of a transformer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import Field, model_validator

from compressor.architecture import Architecture
from compressor.errors import PassError
from compressor.passes.base import Advice, Goal, Pass, PassContext, PassResult
from compressor.pruning.layers import (
    check_layers,
    first_layers,
    require_layers,
    select_layers,
    spread_layers,
)
from targets.base import Form

if TYPE_CHECKING:
    from compressor.model import Model, TorchModel

__all__ = ["DropLayers"]


class DropLayers(Pass):
    """Keep some layers of a transformer and drop the others."""

    name: ClassVar[str] = "drop_layers"
    consumes: ClassVar[Form] = "torch"
    produces: ClassVar[Form] = "torch"
    paper: ClassVar[str] = (
        "Sajjad et al., On the Effect of Dropping Layers of Pre-trained Transformer Models, "
        "Computer Speech & Language 2023 (arXiv 2004.03844)"
    )
    advice: ClassVar[Mapping[Goal, Advice]] = {
        "accuracy": Advice(used="more layers left by drop_layers"),
        "speed": Advice(used="fewer layers left by drop_layers"),
        "size": Advice(used="fewer layers left by drop_layers"),
    }

    num_layers: int | None = Field(default=None, ge=1)
    """How many layers to keep; `strategy` says which."""
    keep: tuple[int, ...] | None = Field(default=None, min_length=1)
    """Which layers to keep, from 0, in ascending order."""
    strategy: Literal["spread", "first", "importance"] = "spread"
    """Evenly spread with the last among them, the lowest ones, or those whose removal raises the
    loss on validation data the most."""
    stack: Literal["encoder", "decoder"] | None = Field(
        default=None, exclude_if=lambda stack: stack is None
    )
    """Of a model that has both: whose layers. The other one keeps all of its own."""
    examples: int = Field(default=256, ge=8)
    """Validation rows on which the strategy "importance" measures the loss."""

    @model_validator(mode="after")
    def _check_effect(self) -> Self:
        """Require exactly one way to choose, and no setting without effect."""
        if (self.num_layers is None) == (self.keep is None):
            raise ValueError("set num_layers or keep, not " + ("both" if self.keep else "neither"))
        if self.keep is not None and self.strategy != "spread":
            raise ValueError("strategy has no effect where keep names the layers")
        usual = type(self).model_fields["examples"].default
        if self.strategy != "importance" and self.examples != usual:
            raise ValueError(f"examples has no effect with strategy {self.strategy}")
        return self

    @classmethod
    def unsuited(cls, architecture: Architecture) -> str | None:
        """See the base class."""
        if architecture.tapped_layers:
            numbers = ", ".join(map(str, architecture.tapped_layers))
            return f"other parts of the network read its layers {numbers} by index"
        if architecture.has_unknown_layers:
            return "its layers are of an unknown kind"
        return None if architecture.layers else "it has no layers of a transformer encoder"

    def plan(self, architecture: Architecture, *, width_multiple: int = 8) -> Architecture:
        """See the base class. With strategy "importance" layers of unlike sizes may differ."""
        stack = self._stack(architecture)
        self._check_count(len(stack))
        keep = self._chosen(len(stack)) or spread_layers(self.num_layers or 1, len(stack))
        decoder = architecture.num_decoder_layers
        return replace(
            architecture,
            layers=tuple(
                architecture.layers[layer] for layer in self._all(architecture, stack, keep)
            ),
            num_decoder_layers=len(keep) if self.stack == "decoder" else decoder,
        )

    def _stack(self, architecture: Architecture) -> range:
        """The numbers of the layers that are chosen from.

        Raises:
            PassError: The model has two stacks and none is named, or one and one is.
        """
        total, decoder = len(architecture.layers), architecture.num_decoder_layers
        if (self.stack is None) == bool(decoder):
            raise PassError(
                "the model has an encoder and a decoder, each with its own layers"
                if decoder
                else "the model has one stack of layers",
                where=f"{self.name}.stack",
                given=self.stack or "nothing",
                fix="set stack to encoder or decoder; use one pass for each"
                if decoder
                else "leave stack out",
            )
        return {
            None: range(total),
            "encoder": range(total - decoder),
            "decoder": range(total - decoder, total),
        }[self.stack]

    def _all(
        self, architecture: Architecture, stack: range, keep: Sequence[int]
    ) -> tuple[int, ...]:
        """The numbers of all layers that stay, those of the other stack too."""
        kept = {stack[layer] for layer in keep}
        return tuple(
            layer
            for layer in range(len(architecture.layers))
            if layer in kept or layer not in stack
        )

    def requires(self, model: Model, context: PassContext) -> None:
        """See the base class."""
        from targets.encoder import encoder_layers

        module = model.module  # type: ignore[union-attr]
        require_layers(len(encoder_layers(module)))
        self._check_count(len(self._stack(Architecture.of(module))))

    def run(self, model: TorchModel, context: PassContext) -> PassResult:
        """See the base class."""
        architecture = Architecture.of(model.module)
        stack = self._stack(architecture)
        num_layers = len(stack)
        metrics: dict[str, float] = {}
        keep = self._chosen(num_layers)
        if keep is None:
            keep, metrics = self._by_importance(model, architecture, stack, context)
        dropped = [layer for layer in range(num_layers) if layer not in keep]
        chosen = self._all(architecture, stack, keep)
        pruned = replace(model, module=select_layers(model.module, chosen))
        metrics["num_parameters_before"] = model.num_parameters
        metrics["num_parameters_after"] = pruned.num_parameters
        metrics["num_layers_before"] = num_layers
        metrics["num_layers_after"] = len(keep)
        kept = ", ".join(map(str, keep))
        of = f"{num_layers}" if self.stack is None else f"the {num_layers} of the {self.stack}"
        note = f"kept layers {kept} of {of}, dropped {', '.join(map(str, dropped))}"
        return PassResult(model=pruned, metrics=metrics, notes=(note,))

    def ensures(self, model: Model, result: PassResult, context: PassContext) -> None:
        """See the base class."""
        from compressor.pruning.prune import check_finite

        found = len(self._stack(Architecture.of(result.model.module)))  # type: ignore[union-attr]
        expected = self.num_layers or len(self.keep or ())
        if found != expected:
            raise PassError(
                "the model does not have the planned number of layers",
                where=self.name,
                given=f"{found} instead of {expected}",
                fix="leave the pass out, or report this model",
            )
        check_finite(result.model, context.splits.validation, self.name)  # type: ignore[arg-type]

    def _check_count(self, num_layers: int) -> None:
        """Check that the settings fit the model and drop something.

        Raises:
            PassError: They do not.
        """
        require_layers(num_layers)
        if self.keep is not None:
            check_layers(self.keep, num_layers)
        count = self.num_layers or len(self.keep or ())
        if count >= num_layers:
            raise PassError(
                f"the model has {num_layers} layers: nothing would be dropped",
                where=self.name,
                given=f"{count} layers to keep",
                fix=f"keep at most {num_layers - 1}, or leave the pass out"
                if num_layers > 1
                else "leave the pass out",
            )

    def _chosen(self, num_layers: int) -> tuple[int, ...] | None:
        """The layers to keep, or None where they have to be measured."""
        if self.keep is not None:
            return self.keep
        count = self.num_layers or 1
        if self.strategy == "importance":
            return None
        return (
            spread_layers(count, num_layers) if self.strategy == "spread" else first_layers(count)
        )

    def _by_importance(
        self, model: TorchModel, architecture: Architecture, stack: range, context: PassContext
    ) -> tuple[tuple[int, ...], dict[str, float]]:
        """Drop, one at a time, the layer whose absence raises the loss least."""
        from compressor.pruning.prune import drop_least_missed

        num_drops = len(stack) - (self.num_layers or 1)

        def told(left: tuple[int, ...]) -> None:
            share = (len(stack) - len(left)) / num_drops
            context.progress(share, f"{len(left)} layers left")

        return drop_least_missed(
            model,
            range(len(stack)),
            num_drops,
            lambda rest: select_layers(model.module, self._all(architecture, stack, rest)),
            context.splits.validation,
            num_rows=self.examples,
            seed=context.seed,
            progress=told,
        )
