"""What a run reports: ``report.json``, versioned.

Each row is one variant on one target; a row that could not be measured says why.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from targets.base import Precision
from targets.environment import Environment
from targets.measurement import Measurement, Speedup
from targets.scoring import Accuracy

__all__ = [
    "REPORT_SCHEMA_VERSION",
    "Accuracy",
    "Comparison",
    "DeviceFacts",
    "ModelFacts",
    "OnDevice",
    "Report",
    "Row",
    "Step",
    "Verdict",
]

REPORT_SCHEMA_VERSION = 1


class _Frozen(BaseModel):
    # The loss of a training run that diverged is not a number, which JSON can only write as text.
    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, ser_json_inf_nan="strings"
    )


class Comparison(_Frozen):
    """A row against the untouched model on the same examples."""

    drop_points: float
    """Accuracy lost, in percentage points; negative when it was gained."""
    low_points: float
    high_points: float
    """95% interval of the drop, from the paired differences."""
    p_value: float
    """Exact McNemar test: chance of a difference this large if the two were equally good."""
    agreement: float
    """Share of examples with the same label as the untouched model, in [0, 1]."""


class ModelFacts(_Frozen):
    """The untouched model."""

    name: str
    sha256: str
    architecture: str
    num_parameters: int
    size_bytes: int


class Step(_Frozen):
    """One pass as it ran."""

    key: str
    pass_name: str
    settings: dict[str, Any]
    cached: bool
    duration_s: float
    """Of the run that really did the work, also where it was cached."""
    num_parameters: int | None
    size_bytes: int
    architecture: str | None
    metrics: dict[str, float]
    """What the pass measured; ``validation_accuracy`` where the result is a torch model."""
    notes: tuple[str, ...]
    history: tuple[dict[str, float], ...]
    """Training curve: step, epoch, loss, learning_rate, validation_accuracy where known."""


class OnDevice(_Frozen):
    """What a remote device found of one bundle."""

    latency: dict[str, Measurement] = {}
    """Shape such as ``1x128`` (batch x tokens) -> measurement with its raw times."""
    speedup: Speedup | None = None
    """Against the fastest baseline of the same target on that device, at the primary shape."""
    reason: str | None = None
    """Why it was not measured there."""


class DeviceFacts(_Frozen):
    """A remote device of a run."""

    address: str
    environment: Environment | None = None
    reason: str | None = None
    """Why nothing was measured there."""


class Row(_Frozen):
    """One variant on one target."""

    variant: str
    """Name of the variant; ``original`` for the untouched model."""
    kind: Literal["reference", "baseline", "candidate"]
    """``reference``: eager PyTorch fp32. ``baseline``: the untouched model on this target."""
    target: str
    device: str | None
    precision: Precision
    status: Literal["measured", "built", "unavailable", "refused", "failed"]
    """``built``: a bundle exists, but it cannot run on this machine."""
    reason: str | None = None
    bundle: str | None = None
    """Folder of the bundle, relative to the report."""
    size_bytes: int | None = None
    validation: Accuracy | None = None
    test: Accuracy | None = None
    validation_comparison: Comparison | None = None
    test_comparison: Comparison | None = None
    latency: dict[str, Measurement] = {}
    """Shape such as ``1x128`` (batch x tokens) -> measurement with its raw times."""
    devices: dict[str, OnDevice] = {}
    """Name of a remote device -> what it found."""
    speedup: Speedup | None = None
    """Against the fastest baseline on the same target, at the primary shape."""
    speedup_eager: Speedup | None = None
    """Against eager PyTorch fp32, at the primary shape."""
    size_ratio: float | None = None
    """Size of the untouched model in fp32 on the same target over the size of this bundle."""
    unmet: tuple[str, ...] = ()
    """Each line of the budget that this row misses, with its margin."""
    chosen: bool = False
    """Whether this was picked for its target: the fastest that met the budget on the validation
    data, or, where none did, the nearest. It is one to ship only where ``unmet`` is empty."""
    notes: tuple[str, ...] = ()


class Verdict(_Frozen):
    """Whether the budget was met, and by what."""

    met: bool
    exit_code: int
    lines: tuple[str, ...]
    """For people: what was met or missed on each target, by how much, and what to try next."""
    noisy: bool
    """Whether the machine was too busy for the latencies to be trusted."""


class Report(_Frozen):
    """Everything that a run found."""

    schema_version: int = REPORT_SCHEMA_VERSION
    name: str
    created: str
    """UTC, ISO 8601."""
    duration_s: float
    seed: int
    recipe: dict[str, Any]
    """The recipe with all defaults filled in."""
    budget: dict[str, Any]
    model: ModelFacts
    data: dict[str, Any]
    """rows of each split, label names, sha256 of the data."""
    environment: Environment
    primary_shape: str
    """The shape that speed-ups and the budget refer to, such as ``1x128``."""
    devices: dict[str, DeviceFacts] = {}
    """Name -> the remote devices on which the bundles were measured as well."""
    rows: tuple[Row, ...]
    steps: dict[str, tuple[Step, ...]]
    """Variant -> its passes in order; ``original`` -> the export of the baseline."""
    verdict: Verdict
