"""Remove the least important heads, neurons and hidden units of an encoder, or channels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from compressor.architecture import Architecture
from compressor.errors import PassError
from compressor.passes.base import Advice, Goal, Pass, PassContext, PassResult
from compressor.pruning.planning import KeptLayer, Ratios, plan_shape, plan_sizes
from compressor.pruning.widths import step_ratio
from compressor.training.settings import DistillSettings
from targets.base import Form

if TYPE_CHECKING:
    from pathlib import Path

    from compressor.model import Model, TorchModel
    from compressor.pruning.gradual import StepResult

__all__ = ["Prune"]

_SCORING_SHARE = 0.1  # of a step's time, where training follows


class Prune(Pass):
    """Remove whole heads, neurons and hidden units of an encoder, or channels of convolutions."""

    name: ClassVar[str] = "prune"
    consumes: ClassVar[Form] = "torch"
    produces: ClassVar[Form] = "torch"
    paper: ClassVar[str] = (
        "Molchanov et al., Importance Estimation for Neural Network Pruning, CVPR 2019 "
        "(arXiv 1906.10771); Michel et al., Are Sixteen Heads Really Better than One?, "
        "NeurIPS 2019 (arXiv 1905.10650); Fang et al., DepGraph, CVPR 2023 (arXiv 2301.12900); "
        "He et al., Channel Pruning for Accelerating Very Deep Neural Networks, ICCV 2017; "
        "Hassibi and Stork, Optimal Brain Surgeon, NIPS 1992; Kurtic et al., ZipLM, NeurIPS 2023; "
        "Li et al., EagleEye, ECCV 2020 (arXiv 2007.02491)"
    )
    libraries: ClassVar[tuple[str, ...]] = (
        "torch",
        "transformers",
        "torch-pruning",
        "accelerate",
    )
    uses_original: ClassVar[bool] = True
    version: ClassVar[int] = 3
    advice: ClassVar[Mapping[Goal, Advice]] = {
        "accuracy": Advice(used="a lower ratio for prune, or more steps with recovery"),
        "speed": Advice(used="a higher ratio for prune", absent="a prune pass"),
        "size": Advice(used="a higher ratio for prune", absent="a prune pass"),
    }

    ratio: float | None = Field(default=None, gt=0, lt=1)
    """Share of the heads and of the feed-forward neurons to remove, where `heads` and `ffn` do not
    say otherwise; of a network of convolutions, share of the channels."""
    heads: float | None = Field(default=None, ge=0, lt=1)
    """Share of the attention heads to remove."""
    ffn: float | None = Field(default=None, ge=0, lt=1)
    """Share of the feed-forward neurons to remove."""
    hidden: float = Field(default=0.0, ge=0, lt=1)
    """Share of the residual stream to remove: costs the most accuracy for each weight."""
    shape: tuple[KeptLayer, ...] | None = None
    """The layers that stay, each with its own heads and neurons, instead of shares: what
    `compressor auto` finds. The other layers are dropped."""
    importance: Literal["taylor", "second-order", "magnitude", "random"] = "taylor"
    """How units are scored: by the change of the loss on training data; by what the others cannot
    say in their place (second-order, with `refit`); by the size of their weights; or at random (a
    control)."""
    scope: Literal["layer", "global"] = "layer"
    """Whether each layer loses the same share, or all layers compete and may end up different."""
    steps: int = Field(default=1, ge=1, le=100)
    """Number of cuts on the way to the ratios; each scores anew and takes the same share of what is
    left."""
    recovery: DistillSettings | None = None
    """Distillation from the untouched model after each cut."""
    refit: bool = Field(default=False, exclude_if=lambda refit: not refit)
    """Whether the heads and neurons, or channels, that stay are fitted to say what those that go
    have said, by least squares on training data."""
    examples: int = Field(default=512, ge=8)
    """Training rows that Taylor and second-order importance look at, and that `refit` fits on."""

    @model_validator(mode="after")
    def _check_effect(self) -> Self:
        """Refuse settings that together do nothing, or of which one does nothing."""
        if self.ratio is not None and self.heads is not None and self.ffn is not None:
            raise ValueError("ratio has no effect where both heads and ffn are set: drop one")
        ratios = self.ratios
        if self.shape is not None:
            self._check_shape(self.shape)
        elif ratios == Ratios(0.0, 0.0, 0.0):
            raise ValueError("nothing to prune: set ratio, or heads, ffn or hidden, above 0")
        if self.refit and self.shape is None and not (ratios.heads or ratios.ffn):
            raise ValueError("refit has no effect when neither heads nor neurons are removed")
        if self.importance == "second-order" and not self.refit:
            raise ValueError("importance second-order needs refit: set refit to true")
        if self.importance == "second-order" and self.hidden:
            raise ValueError("importance second-order cannot score hidden units: remove hidden")
        if (
            self.importance != "taylor"
            and not self.refit
            and self.examples != type(self).model_fields["examples"].default
        ):
            raise ValueError(f"examples has no effect with importance {self.importance}")
        return self

    def _check_shape(self, shape: tuple[KeptLayer, ...]) -> None:
        layers = [each.layer for each in shape]
        if not layers or layers != sorted(set(layers)):
            raise ValueError("shape must name the layers to keep in ascending order, each once")
        if self.ratios != Ratios(0.0, 0.0, 0.0):
            raise ValueError("shape replaces ratio, heads, ffn and hidden: remove them")
        if self.scope == "global":
            raise ValueError("scope global has no effect with a shape: drop it")

    @property
    def ratios(self) -> Ratios:
        """The shares to remove, with the shorthand ``ratio`` written out."""
        usual = self.ratio or 0.0
        return Ratios(
            heads=usual if self.heads is None else self.heads,
            ffn=usual if self.ffn is None else self.ffn,
            hidden=self.hidden,
        )

    @property
    def parts(self) -> Mapping[str, int]:
        """See the base class."""
        return {} if self.recovery is None else self.recovery.rounding

    @property
    def input_files(self) -> tuple[Path, ...]:
        """See the base class."""
        return () if self.recovery is None else self.recovery.unlabeled_files

    @classmethod
    def unsuited(cls, architecture: Architecture) -> str | None:
        """See the base class."""
        known = not architecture.has_unknown_layers
        return None if known else "its layers are of an unknown kind"

    def plan(self, architecture: Architecture, *, width_multiple: int = 8) -> Architecture:
        """See the base class. With scope "global" the layers will differ; the totals hold.

        How many weights are left where channels go is a rough guess.
        """
        if self.recovery is not None:
            self.recovery.check(architecture)
        if not architecture.layers:
            left = (1 - self._channel_ratio()) ** 2
            weights = round((architecture.num_other_parameters or 0) * left)
            return replace(architecture, num_other_parameters=weights)
        return self._sizes(architecture, self.steps, width_multiple)

    def _channel_ratio(self) -> float:
        """Share of the channels to remove, of a network that is no encoder.

        Raises:
            PassError: The settings are about parts that such a network does not have.
        """
        wrong = [name for name in ("heads", "ffn", "shape") if getattr(self, name) is not None]
        if self.hidden:
            wrong.append("hidden")
        if wrong or self.ratio is None:
            raise PassError(
                "the model is not a transformer encoder: it has channels, but no heads or layers",
                where=self.name,
                given=", ".join(wrong),
                fix="set ratio alone, or leave the pass out",
            )
        return self.ratio

    def requires(self, model: Model, context: PassContext) -> None:
        """See the base class."""
        from targets.encoder import encoder_layers

        before = _measure(model)
        if not before.layers:
            self._channel_ratio()
            return
        if not encoder_layers(model.module):  # type: ignore[union-attr]
            raise PassError(
                "the model is not a BERT-like encoder: its layers were not found",
                where=type(model.module).__name__,  # type: ignore[union-attr]
                given=f"model_type {before.family}",
                fix="leave the pass out",
            )
        self._sizes(before, self.steps, context.width_multiple)
        if self.hidden:
            from compressor.pruning.slicing import check_hidden

            check_hidden(model.module)  # type: ignore[union-attr]

    def run(self, model: TorchModel, context: PassContext) -> PassResult:
        """See the base class."""
        from compressor.pruning.gradual import StepResult

        before = _measure(model)
        result = StepResult(model)
        history: list[Mapping[str, float]] = []
        for step in range(1, self.steps + 1):
            result = self._step(result.model, before, step, context)
            history.extend(result.history)
        after = _measure(result.model)
        return PassResult(
            model=result.model,
            metrics=_metrics(model, before, result.model, after),
            notes=tuple(self._notes(before, after, context.width_multiple)),
            history=tuple(history),
        )

    def ensures(self, model: Model, result: PassResult, context: PassContext) -> None:
        """See the base class."""
        from compressor.pruning.prune import check_finite

        check_finite(result.model, context.splits.validation, self.name)  # type: ignore[arg-type]
        before = _measure(model)
        if not before.layers:
            return
        planned = self._sizes(before, self.steps, context.width_multiple)
        found = _measure(result.model)
        # What a layer has besides, such as scales, goes with it, and plans do not know of it.
        held = replace(found, num_other_parameters=None) == replace(
            planned, num_other_parameters=None
        )
        if self.scope == "global":
            held = found.hidden_size == planned.hidden_size and all(
                0 < total <= limit
                for total, limit in zip(_totals(found), _totals(planned), strict=True)
            )
        if not held:
            raise PassError(
                "pruning did not reach the planned sizes",
                where=self.name,
                given=f"{found.describe()}; planned {planned.describe()}",
                fix="leave the pass out, or report this model",
            )

    def _sizes(self, architecture: Architecture, step: int, multiple: int) -> Architecture:
        """What a step leaves of the incoming model.

        Raises:
            PassError: The settings do not fit it.
        """
        if self.hidden and not architecture.num_labels:
            raise PassError(
                "the hidden size of this model is the size of its embeddings, which cannot change",
                where=f"{self.name}.hidden",
                given=self.hidden,
                fix="leave hidden out; heads, ffn and layers can be pruned",
            )
        if self.shape is not None:
            return plan_shape(
                architecture, self.shape, step=step, num_steps=self.steps, multiple=multiple
            )
        return plan_sizes(
            architecture,
            self.ratios.after(step, self.steps),
            multiple=multiple,
            at_least_one_head=self.scope == "global",
        )

    def _step(
        self, model: TorchModel, before: Architecture, step: int, context: PassContext
    ) -> StepResult:
        """One cut and, where asked for, the recovery after it."""
        from compressor.pruning.gradual import StepResult, stored_step

        target = None
        label = f"step {step} of {self.steps}"
        if before.layers:
            target = self._sizes(before, step, context.width_multiple)
            label += f", {target.describe()}"

        def tell(fraction: float, line: str) -> None:
            context.progress((step - 1 + min(fraction, 1.0)) / self.steps, line)

        def cut(share: float) -> TorchModel:
            return self._cut(
                model, target, step, context, lambda fraction: tell(share * fraction, label)
            )

        if self.recovery is None:
            return StepResult(cut(1.0))

        def make(work: Path) -> StepResult:
            depth = len(before.layers)
            return self._recover(cut(_SCORING_SHARE), depth, context, work, step, tell)

        return stored_step(context.folder / f"step-{step}", make)

    def _cut(
        self,
        model: TorchModel,
        target: Architecture | None,
        step: int,
        context: PassContext,
        progress: Callable[[float], None],
    ) -> TorchModel:
        """The model of a step without what goes in it; no target: channels go."""
        from compressor.pruning.prune import TAYLOR_BATCH, prune_to, sample_batches

        seed = context.seed + step
        if target is not None:
            return prune_to(
                model,
                target,
                context.splits.train,
                layers=self._layers(model),
                importance=self.importance,
                scope=self.scope,
                multiple=context.width_multiple,
                num_examples=self.examples,
                refits=self.refit,
                seed=seed,
                progress=progress,
            )
        from compressor.pruning.channels import prune_channels

        looks = self.refit or self.importance == "taylor"
        num_rows = self.examples if looks else TAYLOR_BATCH
        gone = [step_ratio(self._channel_ratio(), each, self.steps) for each in (step - 1, step)]
        return prune_channels(
            model,
            1 - (1 - gone[1]) / (1 - gone[0]),
            sample_batches(
                model, context.splits.train, num_rows=num_rows, batch_size=TAYLOR_BATCH, seed=seed
            ),
            importance=self.importance,
            across_layers=self.scope == "global",
            multiple=context.width_multiple,
            refits=self.refit,
            seed=seed,
        )

    def _layers(self, model: TorchModel) -> tuple[int, ...] | None:
        """The layers that stay, where the model still has others."""
        if self.shape is None or len(_measure(model).layers) == len(self.shape):
            return None
        return tuple(each.layer for each in self.shape)

    def _recover(
        self,
        student: TorchModel,
        depth: int,
        context: PassContext,
        work: Path,
        step: int,
        tell: Any,
    ) -> StepResult:
        """The model of a step after its training; before its layers went it had ``depth``."""
        from compressor.pruning.gradual import StepResult
        from compressor.pruning.layers import pair_layers
        from compressor.training.distillation import distill

        assert self.recovery is not None
        teacher = context.load_original()
        pairs = pair_layers(student.module, teacher.module)
        if self.shape is not None and depth == len(_measure(teacher).layers):
            pairs = tuple((number, each.layer) for number, each in enumerate(self.shape))
        result = distill(
            student,
            teacher,
            context.splits,
            self.recovery,
            layer_map=pairs,
            seed=context.seed + step,
            folder=work,
            progress=lambda fraction, line: tell(
                _SCORING_SHARE + (1 - _SCORING_SHARE) * fraction, f"step {step}: {line}"
            ),
        )
        return StepResult(
            model=result.model,
            history=tuple({**entry, "prune_step": step} for entry in result.history),
        )

    def _notes(self, before: Architecture, after: Architecture, multiple: int) -> Iterator[str]:
        if not before.layers:
            was, now = before.num_parameters, after.num_parameters
            yield f"{was / 1e6:.2f}M parameters -> {now / 1e6:.2f}M"
            return
        yield f"{before.describe()} -> {after.describe()}"
        if self.shape is not None:
            return
        ratios, was_units, now_units = self.ratios, _totals(before), _totals(after)
        asked = (ratios.heads, ratios.ffn, ratios.hidden)
        names = ("heads", "feed-forward neurons", "hidden units")
        sizes = (*zip(was_units, now_units, strict=True), (before.hidden_size, after.hidden_size))
        for name, ratio, (old, new) in zip(names, asked, sizes, strict=True):
            removed = 1 - new / old
            if abs(removed - ratio) >= 0.005:
                yield (
                    f"{name}: {removed:.1%} removed instead of {ratio:.1%}, "
                    f"rounded to whole heads and multiples of {multiple}"
                )


def _measure(model: Model) -> Architecture:
    """The sizes of a loaded model."""
    return Architecture.of(model.module)  # type: ignore[union-attr]


def _totals(architecture: Architecture) -> tuple[int, int]:
    return (
        sum(layer.num_heads for layer in architecture.layers),
        sum(layer.ffn_width for layer in architecture.layers),
    )


def _metrics(
    model: TorchModel, before: Architecture, pruned: TorchModel, after: Architecture
) -> dict[str, float]:
    from compressor.pruning.channels import count_channels

    metrics: dict[str, float] = {}
    for when, each, sizes in (("before", model, before), ("after", pruned, after)):
        metrics[f"num_parameters_{when}"] = each.num_parameters
        if not sizes.layers:
            metrics[f"num_channels_{when}"] = count_channels(each.module)
            continue
        heads, ffn = _totals(sizes)
        metrics[f"num_heads_{when}"] = heads
        metrics[f"num_ffn_neurons_{when}"] = ffn
        metrics[f"hidden_size_{when}"] = sizes.hidden_size
    return metrics
