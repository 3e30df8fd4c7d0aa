"""OpenVINO on Intel and AMD CPUs, ARM CPUs, and Intel GPUs and NPUs."""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray

from targets.base import Alternative, Lowered, Precision, Session, Source, Target
from targets.bundle import Bundle, check_options
from targets.context import split_context
from targets.convolutions import widen_kernels
from targets.environment import BF16_FEATURES, INT8_FEATURES, cpu_features
from targets.errors import (
    MissingLibraryError,
    TargetError,
    UnsupportedModelError,
    is_of_the_machine,
)
from targets.node_times import NodeTime
from targets.runtimes._openvino_lengths import (
    LARGEST_BYTES,
    LEAST_PADDING,
    LENGTHS,
    FixedLengths,
    agree,
    fixed_lengths,
)
from targets.runtimes._openvino_state import BEAMS, keep_state
from targets.signature import Arrays, Signature, StateSpec
from targets.wording import plural

if TYPE_CHECKING:
    import onnx
    import openvino

__all__ = ["OpenVINO", "OpenVINOSession"]

MODEL_FILE = "model.xml"
ENCODER_FILE = "encoder.xml"
_PROPERTIES = frozenset(
    {
        "ENABLE_CPU_PINNING",
        "ENABLE_HYPER_THREADING",
        "INFERENCE_PRECISION_HINT",
        "NUM_STREAMS",
        "PERFORMANCE_HINT",
        LENGTHS,
    }
)
"""That bundles may set."""
_REFUSED_TYPES = {"DOUBLE": "fp64"}
_REFUSED_OPS = frozenset({"DynamicQuantizeLinear", "MatMulInteger", "ConvInteger"})


class OpenVINO(Target):
    """OpenVINO: the fastest int8 and bf16 on recent x86 CPUs; also Intel GPUs and NPUs."""

    name = "openvino"
    version: ClassVar[int] = 4
    extra = "openvino"
    libraries = ("openvino",)
    keeps_state: ClassVar[bool] = True
    served_devices: ClassVar[tuple[str, ...]] = ("CPU", "AUTO")
    refuses: ClassVar[Mapping[Precision, str]] = {
        "int8-dynamic": "it has no integers with scales computed at run time"
    }

    device: Literal["CPU", "GPU", "NPU", "AUTO"] = "CPU"
    """Where to run."""
    fixed_lengths: bool = True
    """Whether single texts run at fixed lengths, where the model is small: each is a model of its
    own, compiled when the first text of it comes. Faster, and larger in memory."""

    def cannot_lower(self) -> str | None:
        """Why no model can be lowered to this target here, or None."""
        for library, extra in (("openvino", self.extra), ("onnx", "build")):
            if importlib.util.find_spec(library) is None:
                return f"the library {library} is not installed: pip install 'compressor[{extra}]'"
        return None

    def cannot_run(self) -> str | None:
        """Why no bundle of this target can run here, or None."""
        if importlib.util.find_spec("openvino") is None:
            return f"the library openvino is not installed: pip install 'compressor[{self.extra}]'"
        if self.device in ("GPU", "NPU"):
            import openvino

            present = openvino.Core().available_devices
            if not any(name.split(".")[0] == self.device for name in present):
                return f"OpenVINO finds no {self.device} here, only {', '.join(present)}"
        return None

    def native_precisions(self) -> tuple[Precision, ...]:
        """``fp32``, ``bf16`` where the CPU has it, and ``fp16`` on a GPU or NPU."""
        if self.device in ("GPU", "NPU"):
            return ("fp32", "fp16")
        return ("fp32", "bf16") if _has_bf16() else ("fp32",)

    def requires(self, source: Source) -> None:
        """Refuse fp64, dynamic quantization, absent bf16, and what OpenVINO cannot read."""
        import onnx

        from targets.onnx_types import refuse_types

        model = onnx.load(source.path, load_external_data=False)
        refuse_types(
            model,
            _REFUSED_TYPES,
            path=source.path,
            target=self.label,
            fix="export these nodes in float32",
        )
        _refuse_ops(model, source.path, _REFUSED_OPS, "quantize statically for this target")
        self._refuse_bf16(source)
        if self.cannot_run() is None:
            _try_read(source.path, model)

    def lower(self, source: Source, folder: Path) -> Lowered:
        """Write OpenVINO's own form, ``model.xml`` and ``model.bin``."""
        import onnx

        from targets import qdq

        self._refuse_bf16(source)
        model = onnx.load(source.path)
        notes: list[str] = []
        needed: frozenset[str] = BF16_FEATURES if source.precision == "bf16" else frozenset()
        tables = qdq.gather_before_dequantize(model)
        if tables:
            notes.append(f"{tables} embedding tables stay int8 in memory")
        joined = qdq.join_as_floats(model)
        if joined:
            notes.append(f"{plural(joined, 'value')} left float, as what they are joined with is")
        if self.device in ("CPU", "AUTO"):
            widened = widen_kernels(model)
            if widened:
                notes.append(f"{plural(widened, 'kernel')} widened, else wrong on CPUs with AMX")
        has_integer_products = qdq.quantizes_activations(model) and not source.has_float_products
        if self.device in ("CPU", "AUTO") and has_integer_products:
            notes += _fit_to_cpu(model)
            if qdq.can_saturate(model):
                needed = INT8_FEATURES
        context = source.signature.context
        if context:
            encoder, model = split_context(model, context)
            _convert(encoder, folder / ENCODER_FILE, source, state=())
        _convert(model, folder / MODEL_FILE, source, state=source.signature.state)
        options: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": self._precision_hint(source.precision)
        }
        lengths = self._lengths(source, folder / MODEL_FILE, options)
        if lengths:
            options[LENGTHS] = list(lengths)
            named = ", ".join(map(str, lengths))
            notes.append(f"single texts run at fixed lengths: {named} tokens")
        hint = options["INFERENCE_PRECISION_HINT"]
        return Lowered(
            model=MODEL_FILE,
            options=options,
            notes=(*notes, f"inference precision {hint}"),
            cpu_features=tuple(sorted(needed)),
            encoder=ENCODER_FILE if context else None,
        )

    def load(self, bundle: Bundle, *, threads: int) -> Session:
        """Open a bundle; all threads work on one sample, unless its options ask for streams.

        Threads are not pinned to cores: pinning loses on a machine that does other work as well.
        """
        return self._session(bundle, threads)

    def _session(
        self, bundle: Bundle, threads: int, more: Mapping[str, Any] | None = None
    ) -> OpenVINOSession:
        signature, given = bundle.manifest.signature, bundle.manifest.options
        check_options(bundle, given, _PROPERTIES)
        options = self._options(given, threads) | dict(more or {})
        encoder = None
        if bundle.encoder_path is not None:
            encoder = _compile(bundle.encoder_path, self.device, options)
        lengths = given.get(LENGTHS, ())
        compiled, fixed = _compile_all(signature, lengths, bundle.model_path, self.device, options)
        return OpenVINOSession(signature, compiled, encoder, fixed)

    def runs_alone(self, bundle: Bundle) -> bool:
        """See the base class: single texts may run at fixed lengths, as models of their own."""
        return LENGTHS in bundle.manifest.options or super().runs_alone(bundle)

    def _lengths(self, source: Source, path: Path, options: Mapping[str, Any]) -> tuple[int, ...]:
        """For which lengths of single texts a model is compiled as well."""
        if self.device != "CPU" or not self.fixed_lengths:
            return ()
        signature, size = source.signature, path.with_suffix(".bin").stat().st_size
        lengths = fixed_lengths(signature, source.ranges, size)
        if not lengths:
            return ()
        options = self._options(options, threads=1)
        try:
            compiled, fixed = _compile_all(signature, lengths, path, self.device, options)
            assert fixed is not None
            free = OpenVINOSession(signature, compiled)
            most = lengths[-1] - lengths[-2] - 1 if len(lengths) > 1 else LEAST_PADDING
            tried = ((lengths[0], LEAST_PADDING), (lengths[-1], most))
            same = all(agree(signature, free.run, fixed, *each) for each in tried)
            return lengths if same else ()
        except (RuntimeError, TargetError):  # it cannot run such a text: whoever uses it finds out
            return ()

    def profile(
        self, bundle: Bundle, feeds: Arrays, *, threads: int, num_runs: int
    ) -> tuple[NodeTime, ...]:
        """See the base class; a kernel names the implementation and what it computes in.

        The runtime tells the mean of all runs so far: that of the last ones follows from two of it.
        """
        session = self._session(bundle, threads, {"PERF_COUNT": True})
        warm = 1 + num_runs // 10
        for _ in range(warm):
            session.run(feeds)
        before = _node_times(session)
        for _ in range(num_runs):
            session.run(feeds)
        after = _node_times(session)
        return tuple(
            NodeTime(
                name=node[0],
                op=node[1],
                kernel=node[2],
                ms=_later_mean(before.get(node, 0.0), after.get(node, 0.0), warm, num_runs),
            )
            for node in {**before, **after}
        )

    def _options(self, given: Mapping[str, Any], threads: int) -> dict[str, Any]:
        """Properties of the runtime: those that a bundle has, over those that are usual."""
        given = {name: value for name, value in given.items() if name != LENGTHS}
        options: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY"}
        if self.device == "CPU":
            if "PERFORMANCE_HINT" not in given:  # a hint chooses the streams, unless they are given
                options["NUM_STREAMS"] = 1
            options |= {
                "INFERENCE_NUM_THREADS": threads,
                "ENABLE_CPU_PINNING": False,
                # Else activations of weight-only models become int8 without having been asked for.
                "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
                # And keys and values that are kept from token to token.
                "KV_CACHE_PRECISION": "f32",
            }
        return {**options, **given}

    def alternatives(self, *, threads: int, batch_size: int) -> Mapping[str, Alternative]:
        """On a CPU: pinning, hyper-threading, the hint, streams, and bf16 where it is native.

        Streams share the samples of a batch, each with a part of the threads.
        """
        if self.device != "CPU":
            return {}
        found = {
            "pinned threads": Alternative({"ENABLE_CPU_PINNING": True}),
            "one thread a core": Alternative({"ENABLE_HYPER_THREADING": False}),
            "throughput hint": Alternative({"PERFORMANCE_HINT": "THROUGHPUT"}),
        }
        streams = 2
        while streams <= min(threads, batch_size):
            found[plural(streams, "stream")] = Alternative({"NUM_STREAMS": streams})
            streams *= 2
        if _has_bf16():
            hint = {"INFERENCE_PRECISION_HINT": "bf16"}
            found["bf16"] = Alternative(hint, keeps_outputs=False)
        return found

    def for_size(self, num_bytes: int) -> Self:
        """See the base class: large models have no fixed lengths."""
        if num_bytes <= LARGEST_BYTES:
            return self
        return self.model_copy(update={"fixed_lengths": False})

    def _precision_hint(self, precision: Precision) -> str:
        if precision == "bf16":
            return "bf16"
        return "f16" if precision == "fp16" and self.device in ("GPU", "NPU") else "f32"

    def _refuse_bf16(self, source: Source) -> None:
        if source.precision != "bf16":
            return
        if self.device == "CPU" and _has_bf16():
            return
        raise UnsupportedModelError(
            f"{self.label} does not run bf16 on this CPU",
            where=source.path,
            given=f"precision bf16; the CPU has {', '.join(cpu_features()) or 'none known'}",
            fix="use fp32 or int8, or lower on a CPU with avx512_bf16 or amx_bf16",
        )


class OpenVINOSession(Session):
    """A model in OpenVINO.

    Args:
        signature: What the model takes and gives.
        compiled: The runtime's own compiled model. Its streams share a batch, where that is free.
        encoder: The part that reads the context, where the signature has one.
        fixed: Runs single texts, where it has a model for their length.
    """

    def __init__(
        self,
        signature: Signature,
        compiled: openvino.CompiledModel,
        encoder: openvino.CompiledModel | None = None,
        fixed: FixedLengths | None = None,
    ) -> None:
        super().__init__(signature)
        self._fixed = fixed
        self._fixed_length: int | None = None
        """Of the last run; None where that was of the model of free shape."""
        self._encoder = None if encoder is None else encoder.create_infer_request()
        self._context: dict[str, Any] = {}
        shares = _has_free_batch(signature) and not signature.state
        streams = _num_streams(compiled) if shares else 1
        self._requests = [compiled.create_infer_request() for _ in range(max(streams, 1))]
        self._outputs = [(spec.name, compiled.output(spec.name)) for spec in signature.outputs]

    def _run(self, feeds: Mapping[str, NDArray[np.generic]]) -> Arrays:
        if not self._requests:
            raise TargetError("the session is closed", fix="load the bundle again")
        self._fixed_length = None if self._fixed is None else self._fixed.length_for(feeds)
        if self._fixed is not None and self._fixed_length is not None:
            return self._fixed.run(feeds, self._fixed_length)
        if len(self._requests) > 1:
            size = len(next(iter(feeds.values())))
            if size > 1:
                return self._run_parts(feeds, size)
        if self.signature.state:
            self._requests[0].reset_state()
            if self._encoder is not None:
                read = {name: feeds[name] for name in self.signature.context}
                found = self._encoder.infer(read, share_inputs=True)
                # Its memory, which stays as it is until the next run.
                self._context = {
                    output.get_any_name(): found[output] for output in self._encoder.model_outputs
                }
                feeds = {name: array for name, array in feeds.items() if name not in read}
            return self._extend(feeds, None)
        results = self._requests[0].infer(feeds, share_inputs=True)
        return {name: results[output] for name, output in self._outputs}

    def _extend(
        self, feeds: Mapping[str, NDArray[np.generic]], rows: NDArray[np.integer] | None
    ) -> Arrays:
        if not self._requests:
            raise TargetError("the session is closed", fix="load the bundle again")
        if rows is None:
            rows = np.arange(len(next(iter(feeds.values()))))
        given = {**feeds, BEAMS: rows.astype(np.int32), **self._context}
        results = self._requests[0].infer(given, share_inputs=True)
        return {name: np.array(results[output]) for name, output in self._outputs}

    @property
    def requests(self) -> tuple[openvino.InferRequest, ...]:
        """Those of the runtime that the last run needed, in their order."""
        if self._fixed is not None and self._fixed_length is not None:
            return (self._fixed.request(self._fixed_length),)
        first = () if self._encoder is None else (self._encoder,)
        return (*first, *self._requests)

    def _run_parts(self, feeds: Mapping[str, NDArray[np.generic]], size: int) -> Arrays:
        requests = self._requests[:size]
        edges = [size * number // len(requests) for number in range(len(requests) + 1)]
        parts = [
            {name: array[start:stop] for name, array in feeds.items()}
            for start, stop in itertools.pairwise(edges)
        ]
        for request, part in zip(requests, parts, strict=True):
            request.start_async(part, share_inputs=True)
        for request in requests:
            request.wait()
        return {
            name: np.concatenate([request.get_tensor(output).data for request in requests])
            for name, output in self._outputs
        }

    def close(self) -> None:
        """Free the compiled model and its threads."""
        self._requests = []
        self._outputs = []
        self._encoder = None
        self._fixed = None
        self._context = {}


def _has_free_batch(signature: Signature) -> bool:
    """Whether the first dimension of every input and output is one and the same free one."""
    first = {spec.shape[:1] for spec in (*signature.inputs, *signature.outputs)}
    return len(first) == 1 and all(isinstance(dim, str) for shape in first for dim in shape)


def _num_streams(compiled: openvino.CompiledModel) -> int:
    """How many samples a model runs at a time; of several devices it does not say."""
    try:
        return int(compiled.get_property("NUM_STREAMS"))
    except RuntimeError:
        return 1


def _node_times(session: OpenVINOSession) -> dict[tuple[str, str, str], float]:
    """Name, type and kernel of each node that ran -> its mean over all runs so far, in ms.

    One of less than a microsecond counts as not run, and may be among them at one time only.
    """
    found: dict[tuple[str, str, str], list[float]] = {}
    for request in session.requests:  # of which several may share a batch
        for each in request.get_profiling_info():
            if each.status == each.Status.EXECUTED:
                node = (each.node_name, each.node_type, each.exec_type)
                found.setdefault(node, []).append(1e3 * each.real_time.total_seconds())
    return {node: sum(times) / len(times) for node, times in found.items()}


def _later_mean(before: float, after: float, num_before: int, num_later: int) -> float:
    """The mean of later runs, from that of the first ones and that of all."""
    return max(0.0, after + num_before / num_later * (after - before))


def _has_bf16() -> bool:
    return not BF16_FEATURES.isdisjoint(cpu_features())


def _fit_to_cpu(model: Any) -> list[str]:
    """Narrow weights to 7 bits where this CPU would let sums of int8 products saturate."""
    from targets import qdq

    if not INT8_FEATURES.isdisjoint(cpu_features()):
        return []
    notes = ["this CPU has no VNNI: expect int8 to be no faster than fp32 in OpenVINO"]
    narrowed = qdq.narrow_weights(model)
    if narrowed:
        notes.append(f"{narrowed} weights narrowed to 7 bits, else sums saturate on this CPU")
    return notes


def _convert(
    model: onnx.ModelProto, destination: Path, source: Source, *, state: Sequence[StateSpec]
) -> None:
    import onnx

    openvino = _import()
    compress = source.precision == "fp16"
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / f"{destination.stem}.onnx"
        onnx.save(model, path, save_as_external_data=True, location="weights", size_threshold=1024)
        try:
            read = openvino.Core().read_model(os.fspath(path))
            if state:
                keep_state(read, state, source.signature.going_on.inputs[0].name)
            openvino.save_model(read, os.fspath(destination), compress_to_fp16=compress)
        except RuntimeError as error:
            raise TargetError(
                "OpenVINO cannot convert the model",
                where=path.name,
                given=error,
                fix="leave out the operators that are named above, or use another target",
            ) from error


def _compile(path: Path, device: str, options: Mapping[str, Any]) -> openvino.CompiledModel:
    with _refusals(path, device):
        return _import().Core().compile_model(os.fspath(path), device, dict(options))


def _compile_all(
    signature: Signature,
    lengths: Sequence[int],
    path: Path,
    device: str,
    options: Mapping[str, Any],
) -> tuple[openvino.CompiledModel, FixedLengths | None]:
    """The model of free shape, and what runs single texts of fixed lengths.

    It is read once: its file may be another one when the first text of a length comes.
    """
    if not lengths:
        return _compile(path, device, options), None
    core = _import().Core()
    with _refusals(path, device):
        model = core.read_model(os.fspath(path))
        free = core.compile_model(model, device, dict(options))

    def compiled(shape: tuple[int, int]) -> openvino.CompiledModel:
        reshaped = model.clone()
        reshaped.reshape({spec.name: list(shape) for spec in signature.inputs})
        return core.compile_model(reshaped, device, dict(options))

    return free, FixedLengths(signature, lengths, compiled)


@contextlib.contextmanager
def _refusals(path: Path, device: str) -> Iterator[None]:
    """Say what a bundle cannot be compiled for, instead of the runtime's own words."""
    try:
        yield
    except RuntimeError as error:
        raise TargetError(
            "OpenVINO refused the bundle",
            where=path,
            given=error,
            fix=f"check that the device {device} is there and that this version reads the bundle",
        ) from error


def _import() -> Any:
    """The openvino module, untyped: its stubs differ between releases."""
    try:
        import openvino
    except ImportError as error:
        raise MissingLibraryError.for_extra("openvino", "openvino", "this target") from error
    return openvino


def _refuse_ops(model: Any, path: Path, refused: frozenset[str], fix: str) -> None:
    named = [
        f"{node.name or node.output[0]} ({node.op_type})"
        for node in model.graph.node
        if node.op_type in refused
    ]
    if named:
        more = f" and {len(named) - 8} more" if len(named) > 8 else ""
        kinds = sorted({node.op_type for node in model.graph.node} & refused)
        raise UnsupportedModelError(
            f"OpenVINO does not run {' and '.join(kinds)}",
            where=path,
            given=", ".join(named[:8]) + more,
            fix=fix,
        )


def _try_read(path: Path, model: Any) -> None:
    try:
        _import().Core().read_model(os.fspath(path))
    except RuntimeError as error:
        text = str(error)
        if is_of_the_machine(text):
            raise TargetError(
                "OpenVINO could not read the model",
                where=path,
                given=text,
                fix="free memory, and run again",
            ) from error
        named = [
            f"{node.name or node.output[0]} ({node.op_type})"
            for node in model.graph.node
            if node.op_type in text
        ]
        raise UnsupportedModelError(
            "OpenVINO does not read this model",
            where=path,
            given=", ".join(named[:8]) or text,
            fix="change or leave out these nodes, or use another target",
        ) from error
