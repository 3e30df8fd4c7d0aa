"""Merge patches that are alike, from layer to layer of a vision transformer."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from compressor.architecture import Architecture
from compressor.errors import PassError
from compressor.passes.base import Advice, Goal, Pass, PassContext, PassResult
from targets.base import Form

if TYPE_CHECKING:
    from compressor.model import Model, TorchModel

__all__ = ["MergeTokens"]


class MergeTokens(Pass):
    """Merge the patches of an image, or a video, that are most alike: later layers read fewer.

    After each layer but the last the same number goes. It needs no training, and gains from one.
    """

    name: ClassVar[str] = "merge_tokens"
    consumes: ClassVar[Form] = "torch"
    produces: ClassVar[Form] = "torch"
    paper: ClassVar[str] = (
        "Bolya et al., Token Merging: Your ViT But Faster, ICLR 2023 (arXiv 2210.09461)"
    )
    advice: ClassVar[Mapping[Goal, Advice]] = {
        "accuracy": Advice(used="a lower ratio for merge_tokens"),
        "speed": Advice(used="a higher ratio for merge_tokens", absent="a merge_tokens pass"),
    }

    ratio: float = Field(gt=0, lt=1)
    """Share of the patches that is gone before the last layer."""
    first_layer: int = Field(default=0, ge=0)
    """The layer behind which merging begins, counted from 0."""

    @classmethod
    def unsuited(cls, architecture: Architecture) -> str | None:
        """See the base class."""
        if architecture.has_unknown_layers:
            return "its layers are of an unknown kind"
        if not architecture.has_patches:
            return "it is not an image classifier that attends to patches"
        return None

    def plan(self, architecture: Architecture, *, width_multiple: int = 8) -> Architecture:
        """See the base class. The weights stay."""
        num_layers = len(architecture.layers)
        if self.first_layer > num_layers - 2:
            raise PassError(
                f"the network has {num_layers} layers: merging must begin before the last one to "
                "have an effect",
                where=f"{self.name}.first_layer",
                given=self.first_layer,
                fix=f"use at most {num_layers - 2}"
                if num_layers > 1
                else "leave the pass out: it has one layer",
            )
        return architecture

    def counts(self, num_patches: int, num_layers: int) -> tuple[int, ...]:
        """How many patches go behind each layer.

        Raises:
            PassError: None, or more than half of those that are left.
        """
        num_steps = num_layers - 1 - self.first_layer
        total = round(self.ratio * num_patches)
        gone = [round(total * step / num_steps) for step in range(num_steps + 1)]
        counts = [later - before for before, later in itertools.pairwise(gone)]
        if not total:
            raise PassError(
                f"none of the {num_patches} patches would be merged",
                where=f"{self.name}.ratio",
                given=self.ratio,
                fix=f"set ratio to {1 / num_patches:.2g} or more, or leave the pass out",
            )
        if any(
            count > (num_patches - before) // 2 for before, count in zip(gone, counts, strict=False)
        ):
            raise PassError(
                f"of {num_patches} patches, more than half of those left would be merged after a "
                f"single one of {num_steps} layers",
                where=f"{self.name}.ratio",
                given=self.ratio,
                fix="lower the ratio" + (", or first_layer" if self.first_layer else ""),
            )
        return (*[0] * self.first_layer, *counts, 0)

    def requires(self, model: Model, context: PassContext) -> None:
        """See the base class."""
        architecture = Architecture.of(model.module)  # type: ignore[union-attr]
        if reason := self.unsuited(architecture):
            raise PassError(
                "the model has no patches to merge",
                where=self.name,
                given=reason,
                fix="leave the pass out",
            )
        self.plan(architecture)
        self._merged(model, context)  # type: ignore[arg-type]

    def run(self, model: TorchModel, context: PassContext) -> PassResult:
        """See the base class."""
        merged, num_first, num_patches, counts = self._merged(model, context)
        left = [num_patches - sum(counts[:layer]) for layer in range(len(counts))]
        share = (num_first + sum(left) / len(left)) / (num_first + num_patches)
        return PassResult(
            model=merged,
            metrics={
                "num_patches_before": num_patches,
                "num_patches_after": left[-1],
                "mean_share_of_tokens": share,
            },
            notes=(
                f"{num_patches} patches, {left[-1]} in the last layer; {share:.0%} of the tokens "
                "on average over the layers",
            ),
        )

    def ensures(self, model: Model, result: PassResult, context: PassContext) -> None:
        """See the base class."""
        from compressor.pruning.prune import check_finite

        check_finite(result.model, context.splits.validation, self.name)  # type: ignore[arg-type]

    def _merged(
        self, model: TorchModel, context: PassContext
    ) -> tuple[TorchModel, int, int, tuple[int, ...]]:
        """The model that merges, its tokens before the patches, its patches, and those that go.

        Raises:
            PassError: The model cannot do without some of its patches.
        """
        import torch

        from compressor.pruning.prune import sample_batches
        from compressor.tasks.base import inputs_of
        from targets.networks.token_merging import count_tokens, merge_tokens
        from targets.shapes import MergedTokens

        (batch,) = sample_batches(
            model, context.splits.validation, num_rows=1, batch_size=1, seed=context.seed
        )
        try:
            num_first, num_patches = count_tokens(model.module, inputs_of(batch))
            counts = self.counts(num_patches, len(Architecture.of(model.module).layers))
            merged = model.clone()
            merge_tokens(merged.module, MergedTokens(num_first=num_first, counts=counts))
            with torch.inference_mode():
                merged.module(**inputs_of(batch))
        except (ValueError, RuntimeError) as error:
            raise PassError(
                "the patches of this model cannot be merged",
                where=f"{self.name}: {type(model.module).__name__}",
                given=str(error).splitlines()[0],
                fix="leave the pass out",
            ) from error
        return merged, num_first, num_patches, counts
