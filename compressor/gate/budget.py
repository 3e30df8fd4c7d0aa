"""What a bundle has to reach: the limits of a budget, for all targets, for one, or for a device."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_serializer
from pydantic_core import PydanticCustomError

from compressor.metrics import ENTITY_METRICS, METRICS
from compressor.similarity import SIMILARITY_METRICS
from targets.answers.boxes import BOX_METRICS
from targets.answers.spans import SPAN_METRICS
from targets.answers.written import WRITTEN_METRICS

__all__ = ["WRITING_LIMITS", "Budget", "DeviceLimits", "Limits"]

WRITING_LIMITS = frozenset(
    {
        "max_first_token_ms",
        "min_tokens_per_s",
        "min_writing_speedup",
        "min_writing_speedup_eager",
    }
)
"""Limits on how fast a language model writes."""


def _no_switch(value: Any) -> Any:
    """Refuse true and false, which pydantic takes for 1 and 0."""
    if isinstance(value, bool):
        raise PydanticCustomError("float_type", "input should be a valid number")
    return value


Points = Annotated[float, Field(ge=-100, le=100), BeforeValidator(_no_switch)]
Positive = Annotated[float, Field(gt=0), BeforeValidator(_no_switch)]
Share = Annotated[float, Field(ge=0, le=1), BeforeValidator(_no_switch)]
Metric = Literal[
    "accuracy",
    "balanced_accuracy",
    "macro_f1",
    "mean_iou",
    "entity_f1",
    "rank_correlation",
    "recall_at_10",
    "f1",
    "exact_match",
    "map",
    "map_50",
    "word_accuracy",
    "chrf",
]

assert set(Metric.__args__) == {  # type: ignore[attr-defined]
    *METRICS,
    *ENTITY_METRICS,
    *SIMILARITY_METRICS,
    *SPAN_METRICS,
    *BOX_METRICS,
    *WRITTEN_METRICS,
}  # fmt: skip


class _Frozen(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False
    )


class DeviceLimits(_Frozen):
    """Limits on what one machine measures. Those that are not given do not count."""

    max_latency_ms: Positive | None = None
    """Median latency at the primary shape."""
    max_p90_ms: Positive | None = None
    """90th percentile of the latency of all runs at the primary shape."""
    max_p99_ms: Positive | None = None
    """99th percentile of the latency of all runs at the primary shape."""
    min_speedup: Positive | None = None
    """Median latency of the fastest untouched model on the same target over that of the bundle."""
    max_load_time_ms: Positive | None = None
    """Time to load the bundle in a fresh process, the import of the runtime included."""
    max_peak_memory_mb: Positive | None = None
    """Largest resident size of the process that runs the bundle, in 10^6 bytes."""

    @property
    def given(self) -> frozenset[str]:
        """Names of the limits that there are."""
        return frozenset(
            name
            for name in type(self).model_fields
            if name.startswith(("max_", "min_")) and getattr(self, name) not in (None, {})
        )


class Limits(DeviceLimits):
    """All limits. Those that are not given do not count."""

    max_accuracy_drop: Points | None = None
    """Accuracy lost against the untouched model on the test split, in percentage points."""
    max_relative_drop: Points | None = None
    """The same, in per cent of the accuracy of the untouched model."""
    max_perplexity_rise: Points | None = None
    """Perplexity lost against the untouched model on the test split, in percent of that one's,
    where what is judged is the next token of a text."""
    drop_at: Literal["estimate", "upper"] | None = None
    """Which drop counts for those above and for `max_metric_drop`: the estimate (the default), or
    the upper end of its 95% interval, so that only what is certain passes."""
    max_metric_drop: dict[Metric, Points] = Field(default_factory=dict)
    """Metric -> loss against the untouched model, in percentage points."""
    max_class_drop: Points | None = None
    """Recall lost on any class, in points; of boxes its average precision. A loss that may be
    chance (its 95% interval holds 0) does not count, so that a class with few rows neither fails
    by one row nor collapses unseen."""
    max_slice_drop: Points | None = None
    """Accuracy lost on any value of a column in `data.slices`, in points; judged as a class is."""
    min_speedup_eager: Positive | None = None
    """Median latency of the untouched model in eager PyTorch over that of the bundle."""
    max_first_token_ms: Positive | None = None
    """Median time to the first token after a prompt, of language models with a state."""
    min_tokens_per_s: Positive | None = None
    """Tokens after the first that such a model writes in a second, in the median round."""
    min_writing_speedup: Positive | None = None
    """These, over those of the untouched model that writes fastest on the same target."""
    min_writing_speedup_eager: Positive | None = None
    """The same, over those of the untouched model in eager PyTorch."""
    max_size_mb: Positive | None = None
    """Size of the bundle, in 10^6 bytes."""
    min_size_ratio: Positive | None = None
    """Size of the untouched fp32 bundle on the same target over that of the bundle."""
    min_label_agreement: Share | None = None
    """Share of the examples that get the label that the untouched model gives."""
    max_probability_difference: Share | None = None
    """Largest difference of a class's probability to that of the untouched model on any example."""
    max_calibration_error: Share | None = None
    """Expected calibration error: how far confidence and accuracy are apart, on average."""


class Budget(Limits):
    """What a bundle has to reach for a run or a gate to pass."""

    require: Literal["every", "any"] = "every"
    """Whether every target that can run here needs a bundle within the budget, or one is enough."""
    targets: dict[str, Limits] = Field(default_factory=dict)
    """Target, such as `onnxruntime` or `onnxruntime (cuda)` -> limits that stand in there for those
    above."""
    devices: dict[str, DeviceLimits] = Field(default_factory=dict)
    """Remote device -> limits on what it measures; the bundle that is chosen for a target has to
    keep them."""

    @field_serializer("targets")
    def _as_given(self, targets: dict[str, Limits]) -> dict[str, Any]:
        """Without what was not given: `on` tells that from what null takes away for a target."""
        return {
            name: each.model_dump(mode="json", exclude_unset=True) for name, each in targets.items()
        }

    def on(self, target: str) -> Limits:
        """The limits for a target: its own, and for the rest those of all."""
        shared: dict[str, Any] = {name: getattr(self, name) for name in Limits.model_fields}
        own = self.targets.get(target, Limits())
        return Limits.model_validate(
            shared | {name: getattr(own, name) for name in own.model_fields_set}
        )

    def alone(self, target: str) -> Budget:
        """Only those limits that a target has of its own."""
        own = self.targets.get(target, Limits())
        limits: dict[str, Any] = {name: getattr(own, name) for name in own.given}
        return Budget.model_validate(limits | {"drop_at": self.on(target).drop_at})

    @property
    def here(self) -> Budget:
        """The same without the limits on remote devices."""
        return self.model_copy(update={"devices": {}})

    @property
    def is_empty(self) -> bool:
        """Whether there is no limit at all."""
        return not any(
            each.given for each in (self, *self.targets.values(), *self.devices.values())
        )
