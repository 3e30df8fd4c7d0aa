"""ONNX Runtime on CPUs and NVIDIA GPUs."""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from targets import onnx_files
from targets.base import Alternative, Lowered, Precision, Session, Source, Target
from targets.bundle import Bundle, check_options
from targets.context import split_context
from targets.environment import INT8_FEATURES, cpu_features
from targets.errors import (
    MissingLibraryError,
    TargetError,
    UnsupportedModelError,
    is_of_the_machine,
)
from targets.external_data import check_external_data
from targets.fused import ATTENTION, PRODUCT, fuse_attention, fuse_products
from targets.nbits import multiply_by_integers
from targets.node_times import NodeTime, median_times
from targets.signature import Arrays, Signature

if TYPE_CHECKING:
    import onnxruntime

__all__ = ["OnnxRuntime", "OnnxRuntimeSession", "create_session", "open_model"]

MODEL_FILE = "model.onnx"
ENCODER_FILE = "encoder.onnx"
_EXACT = "session.x64quantprecision"
"""Exact sums of the products of uint8 on CPUs without VNNI, with kernels that are slower. On others
they would be slower too, and no more exact."""
_ENTRIES = frozenset(
    {
        "optimization.disable_specified_optimizers",
        "session.disable_quant_qdq",
        "session.intra_op.allow_spinning",
        "session.set_denormal_as_zero",
        _EXACT,
    }
)
"""Session entries that bundles may set."""
_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
_ERRORS_ONLY = 3
_REFUSED_TYPES = {"DOUBLE": "fp64", "BFLOAT16": "bf16"}


class OnnxRuntime(Target):
    """ONNX Runtime: runs anywhere, the widest operator coverage."""

    name = "onnxruntime"
    extra = "onnxruntime"
    version: ClassVar[int] = 2
    libraries = ("onnxruntime",)
    keeps_state: ClassVar[bool] = True
    served_devices: ClassVar[tuple[str, ...]] = ("cpu",)

    device: Literal["cpu", "cuda"] = "cpu"
    """Where to run. ``cuda`` needs the onnxruntime-gpu distribution."""

    def cannot_lower(self) -> str | None:
        """Why no model can be lowered to this target here, or None."""
        if importlib.util.find_spec("onnx") is None:
            return "the library onnx is not installed: pip install 'compressor[build]'"
        return None

    def cannot_run(self) -> str | None:
        """Why no bundle of this target can run here, or None."""
        if importlib.util.find_spec("onnxruntime") is None:
            return (
                f"the library onnxruntime is not installed: pip install 'compressor[{self.extra}]'"
            )
        if self.device == "cuda":
            import onnxruntime

            if _PROVIDERS["cuda"] not in onnxruntime.get_available_providers():
                return (
                    "this onnxruntime has no CUDAExecutionProvider: "
                    "pip uninstall onnxruntime, then pip install onnxruntime-gpu"
                )
        return None

    refuses: ClassVar[Mapping[Precision, str]] = {"bf16": "it has no bf16 kernels for this model"}

    def native_precisions(self) -> tuple[Precision, ...]:
        """``fp32``, and ``fp16`` on a GPU."""
        return ("fp32",) if self.device == "cpu" else ("fp32", "fp16")

    def requires(self, source: Source) -> None:
        """Refuse fp64 and bf16 by the names of the nodes, and what ONNX Runtime cannot load."""
        import onnx

        from targets.onnx_types import refuse_types

        if source.precision == "bf16":
            raise UnsupportedModelError(
                f"{self.label} has no bf16 kernels for this model",
                where=source.path,
                given="precision bf16",
                fix="quantize to int8 for this target, or use openvino or tensorrt-rtx for bf16",
            )
        model = onnx.load(source.path, load_external_data=False)
        refuse_types(
            model,
            _REFUSED_TYPES,
            path=source.path,
            target=self.label,
            fix="export these nodes in float32",
        )
        if self.cannot_run() is None:
            _try_load(source.path, self.device)

    def lower(self, source: Source, folder: Path) -> Lowered:
        """Write an ONNX file with the Q/DQ form that has fast kernels here.

        The graph stays in standard operators where ONNX Runtime fuses them itself, which costs
        milliseconds at load. Those that it does not fuse are its own: int8 products with their bias
        and int8 attention, see `targets.fused`, and the products of models that write, see
        `targets.nbits`.
        """
        import onnx

        from targets import qdq

        model = onnx.load(source.path)
        notes = []
        options: dict[str, Any] = {"session": {}}
        fuses = False
        by_integers = (
            source.has_float_products and self.device == "cpu" and bool(source.signature.state)
        )
        tables = qdq.gather_before_dequantize(model)
        if qdq.quantizes_activations(model) and not source.has_float_products:
            # Else two-dimensional products and their bias become a Gemm, which runs in float.
            options["session"]["optimization.disable_specified_optimizers"] = "MatMulAddFusion"
            turned = qdq.activations_to_uint8(model) if self.device == "cpu" else 0
            if turned:
                notes.append(f"{turned} int8 activations re-encoded as uint8, value for value")
            if qdq.can_saturate(model):
                # Which of its own operators the exact kernels cover, ONNX Runtime does not promise.
                # Products of uint8 and full int8 overflow the 16-bit sums of CPUs without VNNI.
                options["session"][_EXACT] = "1"
                notes.append(
                    "8-bit weights: CPUs without VNNI use exact kernels, which are slower; "
                    "weight_bits 7 avoids that"
                )
            else:
                fuses = self.device == "cpu"
        elif qdq.has_int8_weights(model):
            # Restore the weights once, at load, not at every run.
            options["session"]["session.disable_quant_qdq"] = "1"
            if not by_integers:
                notes.append("int8 weights become float32 when the model is loaded")
        if tables:
            notes.append(f"{tables} embedding tables stay int8 in memory")
        if source.precision == "fp16" and self.device == "cpu":
            notes.append("fp16 saves bytes only: ONNX Runtime computes it in float32 on CPUs")
        context = source.signature.context
        parts = [model]
        if context:
            parts = [*split_context(model, context)]
        if fuses:  # the parts: what types values does not know these operators
            for part in parts:
                fuse_products(part)
                fuse_attention(part)
            kinds = [node.op_type for part in parts for node in part.graph.node]
            if PRODUCT in kinds:
                notes.append(
                    f"{kinds.count(PRODUCT)} products fused with what is added to them, and "
                    f"{kinds.count(ATTENTION)} times attention with its products"
                )
        *encoders, model = parts
        for encoder in encoders:
            onnx_files.save(encoder, folder / ENCODER_FILE)
        # What writes reads all of its weights for one token: their bytes are its time.
        turned = multiply_by_integers(model) if by_integers else 0
        if turned:
            notes.append(
                f"{turned} products multiply the integers of their weights; what they read is "
                "rounded to 8 bits in blocks of 32"
            )
        onnx_files.save(model, folder / MODEL_FILE)
        return Lowered(
            model=MODEL_FILE,
            options=options,
            notes=tuple(notes),
            encoder=ENCODER_FILE if context else None,
        )

    def load(self, bundle: Bundle, *, threads: int) -> Session:
        """Open a bundle.

        ``threads`` is the number of threads inside an operator; operators run one after another.
        The worker threads spin for a moment after each run, which is fastest but shows as CPU time
        and slows down whatever else runs in the process; there are none with one thread.
        """
        return OnnxRuntimeSession(
            bundle.manifest.signature,
            self._session(bundle, bundle.model_path, threads),
            None
            if bundle.encoder_path is None
            else self._session(bundle, bundle.encoder_path, threads),
        )

    def profile(
        self, bundle: Bundle, feeds: Arrays, *, threads: int, num_runs: int
    ) -> tuple[NodeTime, ...]:
        """See the base class; a kernel is the provider of its node."""
        with tempfile.TemporaryDirectory() as folder:
            parts = [
                self._session(bundle, path, threads, profile_to=Path(folder) / path.stem)
                for path in (bundle.encoder_path, bundle.model_path)
                if path is not None
            ]
            session = OnnxRuntimeSession(bundle.manifest.signature, parts[-1], *parts[:-1])
            for _ in range(num_runs + num_runs // 10):
                session.run(feeds)
            runs = [
                _node_runs(json.loads(Path(part.end_profiling()).read_bytes())) for part in parts
            ]
        return median_times(
            [list(itertools.chain(*run)) for run in zip(*runs, strict=True)][-num_runs:]
        )

    def _session(
        self, bundle: Bundle, path: Path, threads: int, profile_to: Path | None = None
    ) -> onnxruntime.InferenceSession:
        check_external_data(path, bundle.manifest.files)
        options = bundle.manifest.options
        check_options(bundle, options.get("session", {}), _ENTRIES)
        return create_session(
            path,
            device=self.device,
            threads=threads,
            options=options.get("session", {}),
            optimization=options.get("optimization", "all"),
            profile_to=profile_to,
        )

    def alternatives(self, *, threads: int, batch_size: int) -> Mapping[str, Alternative]:
        """On a CPU: threads that sleep between runs, and fewer graph optimizations."""
        if self.device != "cpu":
            return {}
        spinning = {"session.intra_op.allow_spinning": "0"}
        return {
            "no spinning": Alternative({"session": spinning}),
            "denormals as zero": Alternative({"session": {"session.set_denormal_as_zero": "1"}}),
            "extended optimization": Alternative({"optimization": "extended"}),
            "basic optimization": Alternative({"optimization": "basic"}),
        }


class OnnxRuntimeSession(Session):
    """A model in ONNX Runtime.

    Args:
        signature: What the model takes and gives.
        session: The runtime's own session.
        encoder: Of the part that reads the context, where the signature has one.
    """

    def __init__(
        self,
        signature: Signature,
        session: onnxruntime.InferenceSession,
        encoder: onnxruntime.InferenceSession | None = None,
    ) -> None:
        super().__init__(signature)
        self._session: onnxruntime.InferenceSession | None = session
        self._encoder = encoder
        self._names = [spec.name for spec in signature.outputs]
        self._state: dict[str, Any] = {}
        self._context: dict[str, Any] = {}

    def _run(self, feeds: Mapping[str, NDArray[np.generic]]) -> Arrays:
        if not self.signature.state:
            return dict(zip(self._names, self._opened.run(self._names, feeds), strict=True))
        batch_size = len(next(iter(feeds.values())))
        self._state = _values(self.signature.initial_state(batch_size))
        if self._encoder is not None:
            read = {name: feeds[name] for name in self.signature.context}
            names = [value.name for value in self._encoder.get_outputs()]
            found = self._encoder.run_with_ort_values(names, _values(read))
            self._context = dict(zip(names, found, strict=True))
            feeds = {name: array for name, array in feeds.items() if name not in read}
        return self._extend(feeds, None)

    def _extend(
        self, feeds: Mapping[str, NDArray[np.generic]], rows: NDArray[np.integer] | None
    ) -> Arrays:
        if rows is not None:
            self._state = _values(
                {name: value.numpy()[rows] for name, value in self._state.items()}
            )
        names = [*self._names, *(spec.output for spec in self.signature.state)]
        # The runtime's own values: what is kept is not copied from run to run.
        given = {**_values(feeds), **self._context, **self._state}
        found = self._opened.run_with_ort_values(names, given)
        kept = found[len(self._names) :]
        self._state = {
            spec.name: value for spec, value in zip(self.signature.state, kept, strict=True)
        }
        return {name: value.numpy() for name, value in zip(self._names, found, strict=False)}

    @property
    def _opened(self) -> onnxruntime.InferenceSession:
        if self._session is None:
            raise TargetError("the session is closed", fix="load the bundle again")
        return self._session

    def close(self) -> None:
        """Free the runtime's session and its threads."""
        self._session = self._encoder = None
        self._state = {}
        self._context = {}


def _values(arrays: Mapping[str, NDArray[np.generic]]) -> dict[str, Any]:
    """Arrays as values of the runtime."""
    import onnxruntime

    wrap = onnxruntime.OrtValue.ortvalue_from_numpy
    return {name: wrap(np.ascontiguousarray(array)) for name, array in arrays.items()}


def create_session(
    path: Path,
    *,
    device: Literal["cpu", "cuda"] = "cpu",
    threads: int = 1,
    options: Mapping[str, str] | None = None,
    optimization: Literal["all", "extended", "basic", "none"] = "all",
    profile_to: Path | None = None,
) -> onnxruntime.InferenceSession:
    """Open an ONNX file in ONNX Runtime.

    Args:
        path: The file.
        device: Where to run; there is no silent fallback to the CPU.
        threads: Threads inside an operator.
        options: Session configuration entries.
        optimization: How much to fuse and fold; without it loading is fast and running slow.
        profile_to: Beginning of the path of the file that the profiler writes; None leaves it off.

    Raises:
        MissingLibraryError: onnxruntime is not installed.
        TargetError: ONNX Runtime refused the model, or the device is not there.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingLibraryError.for_extra("onnxruntime", "onnxruntime", "this target") from error
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads
    settings.inter_op_num_threads = 1
    settings.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    settings.log_severity_level = _ERRORS_ONLY
    if profile_to is not None:
        settings.enable_profiling = True
        settings.profile_file_prefix = os.fspath(profile_to)
    level = "DISABLE_ALL" if optimization == "none" else f"ENABLE_{optimization.upper()}"
    settings.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, f"ORT_{level}")
    sums_in_32_bits = not INT8_FEATURES.isdisjoint(cpu_features())
    for key, value in (options or {}).items():
        if key != _EXACT or not sums_in_32_bits:
            settings.add_session_config_entry(key, value)
    try:
        session = onnxruntime.InferenceSession(
            os.fspath(path), settings, providers=[_PROVIDERS[device]]
        )
    except Exception as error:  # the runtime's errors share no base class but this one
        raise TargetError(
            "ONNX Runtime refused the model",
            where=path,
            given=error,
            fix="check that the file is an ONNX model and that this version runs its operators",
        ) from error
    if _PROVIDERS[device] not in session.get_providers():
        raise TargetError(
            "ONNX Runtime cannot use the device",
            where=path,
            given=device,
            fix="check the GPU, its driver and CUDA libraries, or use device: cpu",
        )
    session.disable_fallback()  # else it retries on other devices and prints
    return session


def _opened(path: Path) -> onnxruntime.InferenceSession:
    """A model in the portable form, as well optimized as it can be.

    Of convolutions with int8 activations in that form the optimizer makes graphs that it refuses
    itself; what is lowered has another form.
    """
    try:
        return create_session(path)
    except TargetError:
        return create_session(path, optimization="basic")


def open_model(path: Path, signature: Signature) -> OnnxRuntimeSession:
    """Open an ONNX file as it is, with one thread, without making a bundle of it.

    Args:
        path: The file.
        signature: Its inputs, outputs and state.
    """
    if not signature.context:
        return OnnxRuntimeSession(signature, _opened(path))
    import onnx

    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / name for name in (MODEL_FILE, ENCODER_FILE)]
        encoder, decoder = split_context(onnx.load(path), signature.context)
        for part, file in zip((decoder, encoder), files, strict=True):
            onnx_files.save(part, file)
        return OnnxRuntimeSession(signature, *map(_opened, files))


def _node_runs(events: Sequence[Mapping[str, Any]]) -> list[list[NodeTime]]:
    """The nodes of each run, out of what the profiler of ONNX Runtime writes.

    A run is reported after its nodes.
    """
    runs: list[list[NodeTime]] = []
    nodes: list[NodeTime] = []
    for event in events:
        name = event.get("name", "")
        if name.endswith("_kernel_time"):
            details = event["args"]
            nodes.append(
                NodeTime(
                    name=name.removesuffix("_kernel_time"),
                    op=details["op_name"],
                    kernel=details["provider"].removesuffix("ExecutionProvider"),
                    ms=event["dur"] / 1e3,
                )
            )
        elif name == "model_run":
            runs.append(nodes)
            nodes = []
    return runs


def _try_load(path: Path, device: Literal["cpu", "cuda"]) -> None:
    try:
        create_session(path, device=device, optimization="none")
    except TargetError as error:
        if error.__cause__ is None or is_of_the_machine(error.given):
            raise  # another time it may
        raise UnsupportedModelError(
            "ONNX Runtime does not run this model",
            where=path,
            given=error.given,
            fix="change or leave out the node that is named above",
        ) from error
