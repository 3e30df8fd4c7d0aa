"""What every target offers: say whether it can run here, lower a model, load a bundle."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray

from targets.discovery import Component, foreign_source
from targets.errors import InputError, TargetError, UnsupportedModelError
from targets.signature import Arrays, Signature

if TYPE_CHECKING:
    from targets.bundle import Bundle
    from targets.node_times import NodeTime

__all__ = ["Alternative", "Form", "Lowered", "Precision", "Session", "Source", "Target"]

Form = Literal["onnx", "torch"]
"""The form in which a target takes a model: an ONNX file, or a folder with a torch checkpoint."""

Precision = Literal["fp32", "fp16", "bf16", "int8", "int8-dynamic", "int8-weights", "int4-weights"]
"""The number format in which the matrix products of a model run.

It lives in the model as Q/DQ nodes or casts; the one exception is ``bf16``, which the model only
asks for and each target grants in its own way.
"""


@dataclass(frozen=True)
class Source:
    """A model on its way to a target.

    Attributes:
        path: ``model.onnx``, or a checkpoint folder for targets whose form is ``torch``.
        signature: Inputs and outputs.
        precision: What the model asks for.
        ranges: Free dimension -> (smallest, usual, largest) size. Targets that compile for a range
            of shapes use it; the others ignore it. Empty for a checkpoint.
        task: Of a checkpoint, for `targets.checkpoint.load_module`; None where the path is ONNX.
    """

    path: Path
    signature: Signature
    precision: Precision = "fp32"
    ranges: Mapping[str, tuple[int, int, int]] = field(default_factory=dict)
    task: str | None = None

    @property
    def has_float_products(self) -> bool:
        """Whether its integers are weights, and perhaps what it keeps from token to token."""
        return self.precision in ("int8-weights", "int4-weights")


@dataclass(frozen=True)
class Lowered:
    """What lowering wrote.

    Attributes:
        model: Path of the main file, relative to the bundle folder.
        options: Settings that ``Target.load`` needs later; JSON values only.
        notes: One line each, for the report: what was rewritten, what was left as it was.
        cpu_features: Instruction sets of which the CPU that runs the model has to have one, as
            `targets.environment.cpu_features` names them; empty where every CPU will do.
        encoder: Path of the part that reads the context, where the signature has one: it runs once,
            and the main file goes on from what it gives.
    """

    model: str
    options: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    cpu_features: tuple[str, ...] = ()
    encoder: str | None = None


@dataclass(frozen=True)
class Alternative:
    """Runtime options that may be faster than those a bundle has.

    Attributes:
        options: On top of the options of the bundle; JSON values only.
        threads: CPU threads, where not all that may be used.
        keeps_outputs: Whether the outputs are known to stay the same up to rounding.
    """

    options: Mapping[str, Any] = field(default_factory=dict)
    threads: int | None = None
    keeps_outputs: bool = True


class Session(ABC):
    """A loaded model, ready to run. Not thread-safe: use one session a thread.

    Args:
        signature: What the model takes and gives.
    """

    max_batch: int | None = None
    """Most rows of a run; None where there is no limit."""

    def __init__(self, signature: Signature) -> None:
        self.signature = signature
        self._going_on = signature.going_on

    def batch_size(self, wanted: int) -> int:
        """As many rows as are wanted, or as a run may have."""
        return wanted if self.max_batch is None else min(wanted, self.max_batch)

    def run(self, feeds: Mapping[str, NDArray[np.generic]]) -> Arrays:
        """Run the model once; one that keeps a state begins anew.

        Args:
            feeds: One array for each input of the signature.

        Returns:
            One array for each output of the signature.

        Raises:
            InputError: The feeds do not match the signature.
        """
        self.signature.check(feeds)
        return self._run(feeds)

    def extend(
        self, feeds: Mapping[str, NDArray[np.generic]], rows: NDArray[np.integer] | None = None
    ) -> Arrays:
        """Run the model on what follows the inputs of the last run, whose state it has kept.

        Args:
            feeds: See :meth:`run`, without the context; a mask covers all inputs so far.
            rows: The row of the last run that each goes on from, (N,); by default itself. Each has
                to have the context of that row: it stays as it is.

        Raises:
            InputError: The feeds do not match the signature, or there are no such rows.
            TargetError: The model keeps no state.
        """
        if not self.signature.state:
            raise TargetError(
                "the model keeps nothing from one run to the next",
                given="a signature without state",
                fix="build it with cache: true in the pass export",
            )
        self._going_on.check(feeds)
        count = len(next(iter(feeds.values())))
        if rows is not None and (len(rows) != count or not ((rows >= 0) & (rows < count)).all()):
            raise InputError(
                "the rows to continue from are not those of the last run",
                given=f"{len(rows)} rows, from {min(rows, default=0)} to {max(rows, default=0)}",
                fix=f"name {count} rows, from 0 to {count - 1}",
            )
        return self._extend(feeds, rows)

    def _extend(
        self, feeds: Mapping[str, NDArray[np.generic]], rows: NDArray[np.integer] | None
    ) -> Arrays:
        """Run on from the state; sessions of targets with `Target.keeps_state` do."""
        raise NotImplementedError(type(self).__name__)

    @abstractmethod
    def _run(self, feeds: Mapping[str, NDArray[np.generic]]) -> Arrays:
        """Run the model on checked feeds."""

    def close(self) -> None:  # noqa: B027  (most runtimes free their memory by themselves)
        """Free what the session holds."""


class Target(Component, ABC):
    """A runtime on a device. Subclasses live in one file each under ``targets/runtimes/``.

    Everything heavy is imported inside the methods: naming a target costs nothing.
    """

    extra: ClassVar[str]
    """The extra of this distribution that brings the runtime's library."""

    form: ClassVar[Form] = "onnx"

    version: ClassVar[int] = 1
    """Goes up when the same model gives another bundle: those in the store become stale."""

    keeps_state: ClassVar[bool] = False
    """Whether its sessions run on from a state; see `Session.extend`."""

    symmetric_activations: ClassVar[bool] = False
    """Whether static int8 has symmetric ranges there: those of other activations are widened."""
    width_multiple: ClassVar[int] = 8
    """Matrix widths that are multiples of this run best: pruning rounds to it."""

    served_devices: ClassVar[tuple[str, ...]] = ()
    """Devices for which the libraries of its extra bring all that a run takes, the usual one first:
    the images of ``compressor package --for docker`` are for these."""

    refuses: ClassVar[Mapping[Precision, str]] = {}
    """Precisions that it never runs, and why: a recipe that asks for one is told before the run.
    ``requires`` refuses such a model by the names of its nodes."""

    @property
    def label(self) -> str:
        """Name for tables: the target, and the device where it is not the default."""
        device = getattr(self, "device", None)
        default = type(self).model_fields["device"].default if device is not None else None
        return self.name if device == default else f"{self.name} ({device})"

    def for_size(self, num_bytes: int) -> Self:
        """The target as it treats models whose weights take so many bytes.

        A small model that stands for parts of a large one is lowered by it.
        """
        return self

    @abstractmethod
    def cannot_lower(self) -> str | None:
        """Why no model can be lowered to this target here, or None. Cheap: loads no runtime."""

    @abstractmethod
    def cannot_run(self) -> str | None:
        """Why no bundle of this target can run here, or None. Cheap where it can be."""

    @abstractmethod
    def native_precisions(self) -> tuple[Precision, ...]:
        """Precisions an uncompressed model can run in on this machine, fp32 first.

        The fastest of them is the baseline that a compressed model has to beat.
        """

    def check(self, source: Source) -> None:
        """Check a model before it is lowered, or left for another machine to do it.

        Raises:
            UnsupportedModelError: It keeps a state and the target does not, or see `requires`.
        """
        signature = source.signature
        if signature.state and not self.keeps_state:
            raise UnsupportedModelError(
                f"{self.label} does not run models that keep a state between runs",
                where=source.path,
                given=f"{len(signature.state)} tensors of state",
                fix="use another target"
                if signature.context
                else "remove cache: true from the pass export, or use another target",
            )
        self.requires(source)

    @abstractmethod
    def requires(self, source: Source) -> None:
        """Check that the target runs everything in the model.

        Raises:
            UnsupportedModelError: Names each node or type that the target does not run.
        """

    @abstractmethod
    def lower(self, source: Source, folder: Path) -> Lowered:
        """Write the model in the target's own form into ``folder``; ``source`` stays untouched.

        Raises:
            TargetError: The target's compiler refused the model.
        """

    def hand_over(self, source: Source, folder: Path) -> tuple[str, ...]:
        """Leave something in ``folder`` with which the model can be lowered on another machine.

        Called where ``cannot_lower`` gives a reason.

        Returns:
            One line for each thing that was left, for the report; by default nothing.
        """
        return ()

    @abstractmethod
    def load(self, bundle: Bundle, *, threads: int) -> Session:
        """Open a bundle of this target with ``threads`` CPU threads.

        Raises:
            MissingLibraryError: The runtime is not installed.
            TargetError: The runtime refused the bundle.
        """

    def runs_alone(self, bundle: Bundle) -> bool:
        """Whether the accuracy of a bundle is that of inputs that run one at a time.

        Where one alone may have another answer than among others: by default where scales are
        computed at run time, which are those of a whole batch, and where the audio window is that
        of the longest recording of a batch.
        """
        is_dynamic = bundle.manifest.precision == "int8-dynamic"
        return is_dynamic or bundle.manifest.preprocessing.has_common_window

    def alternatives(self, *, threads: int, batch_size: int) -> Mapping[str, Alternative]:
        """What ``tune`` may try on this machine, by name; by default nothing.

        Args:
            threads: The most CPU threads to use.
            batch_size: Samples of each run.
        """
        return {}

    def profile(
        self, bundle: Bundle, feeds: Arrays, *, threads: int, num_runs: int
    ) -> tuple[NodeTime, ...]:
        """Run a bundle under the profiler of the runtime.

        Args:
            bundle: Of this target.
            feeds: One array for each input of its signature.
            threads: CPU threads.
            num_runs: That count, after a tenth as many that do not.

        Returns:
            The median of each node over the runs, or its mean where a runtime tells no other.

        Raises:
            TargetError: The target has no profiler, which is the default, or refused the bundle.
        """
        raise TargetError(
            "this target has no profiler",
            where=bundle.source,
            given=self.label,
            fix="profile a bundle for onnxruntime or openvino, or use the profiler of its vendor",
        )

    def versions(self) -> dict[str, str]:
        """Versions of the libraries whose change makes a lowered model stale.

        Of a target of another distribution its own code as well.
        """
        from targets.environment import library_versions

        return library_versions(self.libraries) | foreign_source(type(self))

    libraries: ClassVar[tuple[str, ...]] = ()
    """Distributions that ``versions`` names."""
