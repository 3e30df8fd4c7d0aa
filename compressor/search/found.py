"""What a search found, and the recipe of it: the precisions that a run compares."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from compressor.gate.budget import Budget
from compressor.passes import Pass
from compressor.passes.distill import Distill
from compressor.passes.export import Export
from compressor.passes.quantize import Quantize, TableBits
from compressor.recipe.schema import Recipe
from compressor.search.latency import LatencyTable
from compressor.search.solver import Solution
from compressor.training.settings import QuantizationAware
from targets.base import Target

__all__ = ["Search", "Trial", "describe", "found_recipe", "holds", "int8_variants", "variants"]

AS_FAST = 1.05
"""Latencies that differ by no more than this are about the same."""
KEEP_FLOAT = 4
"""Matrix products that stay float in a variant, where int8 loses too much."""
SMOOTHING = 0.5
"""Strength of SmoothQuant in a variant, where int8 loses too much."""
AWARE_EPOCHS = 4
"""Of the training in int8, where post-training int8 loses too much."""
SIXTEEN_BITS: tuple[Literal["fp16", "bf16"], ...] = ("fp16", "bf16")


@dataclass(frozen=True)
class Trial:
    """A shape that was trained.

    Attributes:
        solution: The shape, with its predicted latency.
        epochs: Of its training.
        drop_points: Accuracy lost on the validation data.
        passes: What makes it.
        distance: Mean Kullback-Leibler divergence of its answers there from those of the untouched
            model, in nats; None where they are no classes.
    """

    solution: Solution
    epochs: int
    drop_points: float
    passes: tuple[Pass, ...]
    distance: float | None = None

    @property
    def loss(self) -> float:
        """What is small where a trial is good: on few rows answers tell more than how many of them
        are right."""
        return self.drop_points if self.distance is None else self.distance


@dataclass
class Search:
    """What a search found, in the order in which it was found.

    Attributes:
        table: Of the target that the search is for, in the precision that is fastest there.
        whole_ms: Predicted time of the whole model at the same precision.
        trials: Every training.
        best: What to take of them; None where the accuracy of none holds.
        stopped: Why it ended before all was looked at, in words; None where it did not.
        int8_drop_points: Accuracy that the best loses in the int8 of the table without further
            training, on the validation data; None where that was not looked at, or is no int8.
        table_bits: Of embedding tables in int8.
        share_of_epochs: Of those that few rows are trained for; see `AutoSettings.epochs`.
    """

    table: LatencyTable
    whole_ms: float
    table_bits: TableBits = 8
    share_of_epochs: float = 1.0
    trials: list[Trial] = field(default_factory=list)
    best: Trial | None = None
    stopped: str | None = None
    int8_drop_points: float | None = None

    def add(self, trial: Trial, budget: Budget) -> None:
        """Keep a trial, as the best where it is that.

        The best is the fastest whose accuracy holds, of shapes about as fast the one that is
        nearest to the untouched model; or, where the budget has a latency, the nearest of all whose
        accuracy holds, if any does. Of a shape the longest training counts, be it a short one: it
        may be all that there was time for.
        """
        self.trials.append(trial)
        candidates = [each for each in self.trials if not self._is_superseded(each)]
        if budget.max_latency_ms is None:
            holding = [each for each in candidates if holds(each, budget)]
            limit = AS_FAST * min((each.solution.latency_ms for each in holding), default=0.0)
            candidates = [each for each in holding if each.solution.latency_ms <= limit]
        self.best = min(
            candidates, key=lambda each: (not holds(each, budget), each.loss), default=None
        )

    def _is_superseded(self, trial: Trial) -> bool:
        """Whether the same shape was trained for longer: a lucky draw of the rows is no merit."""
        return any(
            each.solution == trial.solution and each.epochs > trial.epochs for each in self.trials
        )


def describe(found: Search) -> dict[str, Any]:
    """What was measured, solved for and trained, of JSON's types; latencies in ms."""
    return {
        "table": found.table.model_dump(mode="json"),
        "table_error": found.table.error,
        "whole_ms": found.whole_ms,
        "stopped": found.stopped,
        "int8_drop_points": found.int8_drop_points,
        "trials": [
            {
                "layers": [each.model_dump(mode="json") for each in trial.solution.kept],
                "predicted_ms": trial.solution.latency_ms,
                "lost_importance": trial.solution.lost,
                "epochs": trial.epochs,
                "drop_points": trial.drop_points,
                "distance": trial.distance,
                "is_best": trial is found.best,
            }
            for trial in found.trials
        ],
    }


def holds(trial: Trial, budget: Budget) -> bool:
    """Whether the accuracy of a trial is within the budget."""
    return budget.max_accuracy_drop is None or trial.drop_points <= budget.max_accuracy_drop


def found_recipe(recipe: Recipe, found: Search) -> Recipe:
    """The recipe with the best of a search: a run of it finds the training in the store.

    Where the int8 that is fastest loses more than the budget allows, one variant more is trained in
    it for some epochs more (Jacob et al., 2018), and one has int8 weights alone. Of fixed ranges
    one moves outliers into the weights (Xiao et al., "SmoothQuant", 2023), and one keeps the most
    sensitive products in float.

    Args:
        recipe: What was searched for.
        found: With a best.
    """
    assert found.best is not None
    passes, made = found.best.passes, variants(recipe.targets, found.table_bits)
    lost, limit = found.int8_drop_points, recipe.budget.max_accuracy_drop
    if limit is None or lost is None or lost <= limit:
        return recipe.model_copy(update={"passes": (*passes, Export()), "variants": made})
    exported = {name: (Export(), *tail) for name, tail in made.items()}
    name = found.table.variant
    [int8] = int8_variants(found.table_bits)[name]
    if int8.method == "static":
        smooth = int8.model_copy(update={"smooth_quant": SMOOTHING})
        exported[f"{name}-smooth"] = (Export(), smooth)
        mixed = int8.model_copy(update={"keep_float": KEEP_FLOAT})
        exported[f"{name}-mixed"] = (Export(), mixed)
    exported["int8-weights"] = (Export(), Quantize(method="weights", table_bits=found.table_bits))
    epochs = max(1, round(AWARE_EPOCHS * found.share_of_epochs))
    if int8.method == "static" and all(each.symmetric_activations for each in recipe.targets):
        int8 = int8.model_copy(update={"activations": "int8"})  # so that it learns these ranges
    exported[f"{name}-aware"] = _in_int8(passes[-1], int8, epochs)
    return recipe.model_copy(update={"passes": passes, "variants": exported})


def _in_int8(distill: Pass, quantize: Quantize, epochs: int) -> tuple[Pass, ...]:
    """A short training like the one before it, with the rounding of the quantization after it."""
    assert isinstance(distill, Distill)
    assert quantize.method in ("static", "dynamic")
    assert quantize.weight_bits != 4
    rounding = QuantizationAware(
        method=quantize.method, weight_bits=quantize.weight_bits, activations=quantize.activations
    )
    training = distill.model_copy(
        update={
            "epochs": min(epochs, distill.epochs),
            "learning_rate": distill.learning_rate / 5,
            "quantization_aware": rounding,
        }
    )
    if quantize.method == "static":
        ranges = {"calibration": "percentile", "percentile": rounding.percentile}
        quantize = quantize.model_copy(update=ranges)
    return training, Export(), quantize


def int8_variants(table_bits: TableBits = 8) -> dict[str, tuple[Quantize]]:
    """The ways into int8 that a search compares.

    Args:
        table_bits: Of large embedding tables.
    """
    return {
        "int8": (Quantize(method="static", weight_bits=7, table_bits=table_bits),),
        "int8-dynamic": (Quantize(method="dynamic", weight_bits=7, table_bits=table_bits),),
    }


def variants(
    targets: Sequence[Target], table_bits: TableBits = 8
) -> dict[str, tuple[Quantize, ...]]:
    """Every precision that some target runs natively: the run measures all, and ships the fastest.

    int8 is slower than floats on some processors, and int8 with fixed ranges than with dynamic
    ones.

    Args:
        targets: To run on.
        table_bits: Of large embedding tables in int8.
    """
    native = {each for target in targets for each in target.native_precisions()}
    floats: dict[str, tuple[Quantize, ...]] = {
        name: (Quantize(method=name),) for name in SIXTEEN_BITS if name in native
    }
    int8: dict[str, tuple[Quantize, ...]] = {
        name: passes
        for name, passes in int8_variants(table_bits).items()
        if any(passes[-1].precision not in target.refuses for target in targets)
    }
    return {"fp32": (), **floats, **int8}
