"""Distill: train a student to do as the untouched original does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, Self

from pydantic import Field, model_validator

from compressor.errors import PassError
from compressor.passes.base import Advice, Goal, Pass, PassContext, PassResult
from compressor.pruning.planning import check_untapped
from compressor.training.settings import DistillSettings
from targets.base import Form

if TYPE_CHECKING:
    from pathlib import Path

    from compressor.architecture import Architecture
    from compressor.model import TorchModel

__all__ = ["Distill"]


class Distill(Pass, DistillSettings):
    """Train a student to do as the untouched original does.

    With ``num_layers`` or ``layers`` the student is the incoming model with those layers only.
    Without, it is the incoming model as it stands, which wins back what pruning cost.
    """

    name: ClassVar[str] = "distill"
    consumes: ClassVar[Form] = "torch"
    produces: ClassVar[Form] = "torch"
    paper: ClassVar[str] = (
        "Hinton et al., Distilling the Knowledge in a Neural Network, 2015; Jiao et al., TinyBERT, "
        "2020; Wang et al., MiniLMv2, 2021"
    )
    libraries: ClassVar[tuple[str, ...]] = ("torch", "transformers", "accelerate")
    uses_original: ClassVar[bool] = True
    version: ClassVar[int] = 3
    advice: ClassVar[Mapping[Goal, Advice]] = {
        "accuracy": Advice(used="more epochs for distill", absent="a distill pass after the cuts"),
        "speed": Advice(used="fewer layers for distill", absent="a distill pass with fewer layers"),
        "size": Advice(used="fewer layers for distill", absent="a distill pass with fewer layers"),
    }

    num_layers: int | None = Field(default=None, ge=1)
    """Layers of the student, spread evenly over the incoming model's; null keeps all."""
    layers: tuple[int, ...] | None = None
    """Which layers of the incoming model the student keeps, from 0, instead of ``num_layers``."""
    layer_map: tuple[tuple[int, int], ...] | None = None
    """Pairs (student layer, original's layer) to compare, from 0; null derives them: a student
    layer learns from the layer it was, or, where layers were dropped before, from an even
    spread."""

    @model_validator(mode="after")
    def _settings_have_effect(self) -> Self:
        if self.num_layers is not None and self.layers is not None:
            raise ValueError("num_layers and layers exclude each other; give one of them")
        if self.layer_map is not None and not self.hidden_weight and not self.relation_weight:
            raise ValueError(
                "layer_map has no effect while hidden_weight and relation_weight are 0"
            )
        if not (
            self.logits_weight or self.labels_weight or self.hidden_weight or self.relation_weight
        ):
            raise ValueError("all weights of the loss are 0; give one of them")
        return self

    @property
    def parts(self) -> Mapping[str, int]:
        """See the base class."""
        return self.rounding

    @property
    def input_files(self) -> tuple[Path, ...]:
        """See the base class."""
        return self.unlabeled_files

    def plan(self, architecture: Architecture, *, width_multiple: int = 8) -> Architecture:
        """The layers that the student keeps.

        Raises:
            PassError: The model does not have them.
        """
        self.check(architecture)
        if not architecture.layers and self.num_layers is None and self.layers is None:
            return architecture
        if architecture.writes and (self.num_layers is not None or self.layers is not None):
            raise PassError(
                "the model has an encoder and a decoder, each with its own layers",
                where=f"{self.name}.{'layers' if self.num_layers is None else 'num_layers'}",
                given=architecture.describe(),
                fix="leave it out; put the pass drop_layers, with its stack set, before this one",
            )
        keep = self._kept_layers(len(architecture.layers))
        if len(keep) < len(architecture.layers):
            check_untapped(architecture)
        return replace(architecture, layers=tuple(architecture.layers[layer] for layer in keep))

    def run(self, model: TorchModel, context: PassContext) -> PassResult:
        """Train a copy of the model, or of some of its layers.

        Raises:
            PassError: The student does not fit the original, the loss became NaN or infinite, or
                the disk is full.
        """
        from compressor.pruning.layers import select_layers
        from compressor.training.distillation import distill
        from targets.encoder import encoder_layers

        num_layers = len(encoder_layers(model.module))
        teacher = context.load_original()
        notes: tuple[str, ...] = ()
        layer_map = self.layer_map
        student = model
        if self.num_layers is not None or self.layers is not None:
            keep = self._kept_layers(num_layers)
            student = replace(model, module=select_layers(model.module, keep))
            if layer_map is None and num_layers == len(encoder_layers(teacher.module)):
                layer_map = tuple(enumerate(keep))
            notes = (f"the student keeps layers {', '.join(map(str, keep))} of {num_layers}",)
        result = distill(
            student,
            teacher,
            context.splits,
            self,
            layer_map=layer_map,
            seed=context.seed,
            folder=context.folder,
            progress=context.progress,
            on_evaluation=context.on_evaluation,
            memory=context.teacher_memory,
        )
        return PassResult(
            model=result.model, metrics=result.metrics, notes=notes, history=result.history
        )

    def _kept_layers(self, num_layers: int) -> tuple[int, ...]:
        from compressor.pruning.layers import check_layers, require_layers, spread_layers

        if self.layers is not None:
            check_layers(self.layers, num_layers)
            return self.layers
        if self.num_layers is None:
            return tuple(range(num_layers))
        require_layers(num_layers)
        if self.num_layers > num_layers:
            raise PassError(
                "the student cannot have more layers than the model it comes from",
                where="pass distill, num_layers",
                given=f"{self.num_layers} of {num_layers}",
                fix=f"set num_layers to at most {num_layers}: --set passes.I.num_layers=N, where I "
                "is the place of distill among the passes, from 0",
            )
        return spread_layers(self.num_layers, num_layers)
