"""What a run reports: ``report.json``, versioned.

Each row is one variant on one target; a row that could not be measured says why.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from targets.base import Precision
from targets.environment import Environment
from targets.measurement import Measurement, Speedup
from targets.scoring import Accuracy
from targets.writing import Writing

__all__ = [
    "REPORT_SCHEMA_VERSION",
    "Accuracy",
    "Change",
    "ChangedExample",
    "Check",
    "Comparison",
    "DeviceFacts",
    "Group",
    "LayerError",
    "ModelFacts",
    "OnDevice",
    "Perplexity",
    "Report",
    "Row",
    "Step",
    "Verdict",
    "Writing",
]

REPORT_SCHEMA_VERSION = 2


Unbounded = Annotated[float, Field(allow_inf_nan=True)]
"""A number that tells of a computation that may have overflowed; nothing is judged by it."""
Size = Annotated[int, Field(ge=0)]


class _Frozen(BaseModel):
    # What a verdict rests on is a number. The loss of a training run that diverged is none, which
    # JSON can only write as text.
    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        allow_inf_nan=False,
        ser_json_inf_nan="strings",
    )


class Change(_Frozen):
    """A metric of a row beside that of the untouched model on the same examples."""

    value: float
    """Of the row, in [0, 1]."""
    reference: float
    """Of the untouched model, in [0, 1]."""
    drop_points: float
    """Lost, in percentage points; negative when it was gained."""
    low_points: float
    high_points: float
    """95% interval of the drop, from a paired bootstrap."""


class Perplexity(_Frozen):
    """Perplexity of a row beside that of the untouched model on the same texts.

    The exponential of the mean cross-entropy in nats over all tokens that are judged. The 95%
    intervals come from a paired bootstrap of the texts.
    """

    value: float
    """Of the row, at least 1."""
    low: float
    high: float
    reference: float
    """Of the untouched model."""
    rise: float
    """What was lost, in percent of that of the untouched model; negative when it fell."""
    rise_low: float
    rise_high: float


class Group(_Frozen):
    """A part of the examples: those of one class, or with one value in a column."""

    column: str | None
    """None for a class."""
    value: str
    """Name of the class, or what stands in the column."""
    num_rows: int
    """How many are judged: rows of the data, or what a row has several of, such as words."""
    accuracy: float
    """Of the row, in [0, 1]; for a class this is its recall, of boxes its average precision."""
    reference: float
    """Of the untouched model."""
    drop_points: float
    """Lost, in percentage points."""
    low_points: float
    high_points: float
    """95% interval of the drop, from the paired differences."""

    @property
    def title(self) -> str:
        """Such as ``class ABBR`` or ``source = web``."""
        return f"class {self.value}" if self.column is None else f"{self.column} = {self.value}"


class ChangedExample(_Frozen):
    """An example that got another label than the untouched model gives it, or a part of one."""

    index: int
    """Row of the split, from 0."""
    text: str | None
    """None where the data is to stay private."""
    label: str
    """The true one."""
    before: str
    after: str
    confidence_before: Unbounded
    """Probability that the untouched model gives its label, in [0, 1]."""
    confidence_after: Unbounded


class LayerError(_Frozen):
    """How far a quantized model is from float32 after one layer."""

    name: str
    """The part of the network, such as ``bert.encoder.layer.0.output``; last the model's output."""
    error: Unbounded
    """Norm of the difference over the norm of the float32 values, on some validation rows."""


class Check(_Frozen):
    """A row beside one limit of the budget."""

    limit: str
    """Its name in the budget."""
    subject: str = ""
    """The metric, class, slice or device that it is about, where there are several."""
    wanted: float
    found: float | None
    """None where it could not be measured."""
    met: bool
    shortfall: float = 0.0
    """How far it is missed, as a share of the limit; 0 where it is met."""
    text: str
    """The same in words: what was found, and what is allowed."""
    noisy: bool = False
    """Whether it rests on a latency that other work disturbed."""


class Comparison(_Frozen):
    """A row against the untouched model on the same examples."""

    drop_points: float
    """Accuracy lost, in percentage points; negative when it was gained."""
    low_points: float
    high_points: float
    """95% interval of the drop, from the paired differences."""
    p_value: float
    """Chance of a difference this large if the two were equally good. McNemar's exact test; where a
    row has several units, that of random signs of the differences of rows; of boxes, that of a
    random exchange of the answers to images."""
    agreement: float
    """Share of examples with the same answer as the untouched model, in [0, 1]: the same label, or
    of embeddings the same nearest other text; of boxes the same objects."""
    reference_accuracy: float | None = None
    """Of the untouched model, in [0, 1]."""
    metrics: dict[str, Change] = {}
    """Metric -> what was lost of it."""
    groups: tuple[Group, ...] = ()
    """Every class, then every value of each column that the data is sliced by."""
    max_probability_difference: float | None = None
    """Largest difference of a class's probability on any example, in [0, 1]."""
    calibration_error: float | None = None
    """Expected calibration error of the row, in [0, 1] (Guo et al., 2017; 15 bins)."""
    reference_calibration_error: float | None = None
    """The same of the untouched model."""
    perplexity: Perplexity | None = None
    """Where what is judged is the next token of a text."""


class ModelFacts(_Frozen):
    """The untouched model."""

    name: str
    sha256: str
    architecture: str
    num_parameters: int
    size_bytes: Size


class Step(_Frozen):
    """One pass as it ran."""

    key: str
    pass_name: str
    settings: dict[str, Any]
    cached: bool
    duration_s: float = Field(ge=0)
    """Of the run that really did the work, also where it was cached."""
    num_parameters: int | None
    size_bytes: Size
    architecture: str | None
    metrics: dict[str, Unbounded]
    """What the pass measured; ``validation_accuracy`` where the result is a torch model."""
    notes: tuple[str, ...]
    history: tuple[dict[str, Unbounded], ...]
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

    key: str = ""
    """Names the row among those of its report, such as ``int8-onnxruntime``."""
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
    size_bytes: Size | None = None
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
    writing: Writing | None = None
    """Of a language model with a state: tokens read and written a second."""
    writing_speedup: Speedup | None = None
    """In writing, against the untouched model that writes fastest on the same target."""
    writing_speedup_eager: Speedup | None = None
    """In writing, against eager PyTorch fp32."""
    size_ratio: float | None = Field(default=None, gt=0)
    """Size of the untouched model in fp32 on the same target over the size of this bundle."""
    checks: tuple[Check, ...] = ()
    """A measured candidate beside every limit of the budget, on the test data; of a target that
    cannot run here, the nearest one beside the limits that the target has of its own."""
    changed: tuple[ChangedExample, ...] = ()
    """The worst of the test examples that got another label: those that are wrong now and were
    right first, then the most confident."""
    chosen: bool = False
    """Whether this was picked for its target: the fastest that met the budget on the validation
    data, or, where none did, the nearest. It is one to ship only where ``unmet`` is empty."""
    layers: tuple[LayerError, ...] = ()
    """Of a quantized candidate, in the order of the network: where precision was lost."""
    notes: tuple[str, ...] = ()

    @property
    def measure(self) -> str:
        """What its accuracy is of: `rank correlation` where answers are embeddings."""
        found = self.test or self.validation
        return "accuracy" if found is None else found.measure

    def slowness(self, shape: str) -> tuple[bool, float]:
        """What the rows of a target are sorted by, the fastest first: milliseconds.

        Those of a token, of a language model that writes; else of the latency at a shape.
        """
        if self.writing is not None:
            return False, 1e3 / self.writing.written_per_s
        measured = self.latency.get(shape)
        return True, float("inf") if measured is None else measured.median_ms

    @property
    def unmet(self) -> tuple[str, ...]:
        """Each limit of the budget that this row misses, in words."""
        return tuple(check.text for check in self.checks if not check.met)


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
    duration_s: float = Field(ge=0)
    peak_memory_bytes: int | None = Field(None, ge=0)
    """Largest resident size of a process of the run; None in reports from before it was kept."""
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
    advice: dict[str, tuple[str, ...]] = {}
    """Goal (accuracy, speed, size) -> what to try next where it is missed."""
    predictions: str | None = None
    """The sha256 of ``predictions.safetensors`` beside the report: the probabilities that every row
    gives to what is judged of the test examples, and its labels and rows."""
    verdict: Verdict

    def row(self, **wanted: str) -> Row:
        """The first row with such values, as ``report.row(variant="int8", target="openvino")``.

        Raises:
            LookupError: None is like that.
        """
        for row in self.rows:
            if all(getattr(row, name) == value for name, value in wanted.items()):
                return row
        found = ", ".join(f"{row.variant} on {row.target}" for row in self.rows)
        raise LookupError(f"no row has {wanted}; the report {self.name!r} has {found}")
