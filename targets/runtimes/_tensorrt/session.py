"""Run an engine: inputs and outputs in page-locked memory, kernels replayed as a CUDA graph."""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from targets.base import Session
from targets.errors import InputError, MissingLibraryError, TargetError
from targets.runtimes._tensorrt.cuda import Buffer, Stream, import_runtime
from targets.signature import Arrays, Signature

__all__ = ["EngineSession"]

MAX_GRAPHS = 32
"""Input shapes that are recorded; each graph holds device memory, and later shapes run without."""

Shapes = tuple[tuple[int, ...], ...]


class EngineSession(Session):
    """An engine on the GPU; ``run`` includes the copies to and from it.

    TensorRT-RTX compiles kernels for each new input shape on its first run and records its own
    graphs. For TensorRT the session records one graph for each input shape.

    Args:
        signature: What the model takes and gives.
        plan: The serialized engine.
        module: ``tensorrt`` or ``tensorrt_rtx``.
        extra: The extra that brings the libraries.
        cuda_graph: Replay graphs instead of launching each kernel.

    Raises:
        MissingLibraryError: The runtime or cuda-python is not installed.
        TargetError: The engine cannot run here.
    """

    def __init__(
        self, signature: Signature, plan: bytes, *, module: str, extra: str, cuda_graph: bool
    ) -> None:
        super().__init__(signature)
        try:
            trt: Any = importlib.import_module(module)
        except ImportError as error:
            library = module.replace("_", "-")
            raise MissingLibraryError.for_extra(library, extra, f"target {module}") from error
        cudart = import_runtime(extra, f"target {module}")
        self._errors: list[str] = []
        self._logger = _make_logger(trt, self._errors)
        self._runtime = trt.Runtime(self._logger)
        self._engine = self._deserialize(trt, plan)
        self._context, self._records = self._make_context(trt, cuda_graph)
        self._stream = Stream(cudart)
        self._graphs: dict[Shapes, Any] = {}
        self._shapes: Shapes | None = None
        self._output_shapes: Shapes = ()
        names = [spec.name for spec in (*signature.inputs, *signature.outputs)]
        self._buffers = {name: Buffer(cudart) for name in names}
        self._check_tensors(trt)
        largest = tuple(self._range(spec.name)[2] for spec in signature.inputs)
        self.max_batch = min(shape[0] for shape in largest)
        self._set_shapes(largest)

    def _deserialize(self, trt: Any, plan: bytes) -> Any:
        if hasattr(self._runtime, "get_engine_validity"):
            validity, reason = self._runtime.get_engine_validity(plan)
            if validity == trt.EngineValidity.INVALID:
                raise self._refusal("the engine is not valid on this GPU", reason)
        engine = self._runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise self._refusal("the engine cannot be loaded", "; ".join(self._errors[-2:]))
        return engine

    def _refusal(self, what: str, given: object) -> TargetError:
        fix = "build it again for this GPU, with the version of the runtime that is installed here"
        return TargetError(what, given=given, fix=fix)

    def _make_context(self, trt: Any, cuda_graph: bool) -> tuple[Any, bool]:
        """The context, and whether this session has to record graphs by itself."""
        if hasattr(trt, "CudaGraphStrategy"):
            config = self._engine.create_runtime_config()
            strategies = trt.CudaGraphStrategy
            config.cuda_graph_strategy = (
                strategies.WHOLE_GRAPH_CAPTURE if cuda_graph else strategies.DISABLED
            )
            # The default compiles in the background and runs slower kernels meanwhile: latencies
            # would change while they are measured.
            eager = trt.DynamicShapesKernelSpecializationStrategy.EAGER
            config.dynamic_shapes_kernel_specialization_strategy = eager
            context, records = self._engine.create_execution_context(config), False
        else:
            context, records = self._engine.create_execution_context(), cuda_graph
        if context is None:
            raise self._refusal("the engine cannot be prepared", "; ".join(self._errors[-2:]))
        return context, records

    def _check_tensors(self, trt: Any) -> None:
        for spec in (*self.signature.inputs, *self.signature.outputs):
            dtype = np.dtype(trt.nptype(self._engine.get_tensor_dtype(spec.name))).name
            if dtype != spec.dtype:
                given = f"{dtype} in the engine, {spec.dtype} in the signature"
                raise self._refusal(f"tensor {spec.name!r} has another type", given)
            if self._engine.is_shape_inference_io(spec.name):
                raise self._refusal(f"tensor {spec.name!r} holds a shape", "not supported")

    def _range(self, name: str) -> Shapes:
        """Smallest, usual and largest shape of an input."""
        return tuple(tuple(each) for each in self._engine.get_tensor_profile_shape(name, 0))

    def _set_shapes(self, shapes: Shapes) -> None:
        self._shapes = None  # stays so where a shape is refused half way
        for spec, shape in zip(self.signature.inputs, shapes, strict=True):
            if not self._context.set_input_shape(spec.name, shape):
                smallest, _, largest = self._range(spec.name)
                raise InputError(
                    f"input {spec.name!r} lies outside of the range that the engine was built for",
                    given=shape,
                    fix=f"pass between {smallest} and {largest}, or build for a wider range",
                )
        self._context.infer_shapes()
        outputs = tuple(
            tuple(self._context.get_tensor_shape(spec.name)) for spec in self.signature.outputs
        )
        specs = (*self.signature.inputs, *self.signature.outputs)
        moved = False
        for spec, shape in zip(specs, shapes + outputs, strict=True):
            if min(shape, default=0) < 0:
                raise self._refusal(f"the shape of output {spec.name!r} depends on data", shape)
            buffer = self._buffers[spec.name]
            if buffer.reserve(_size_bytes(shape, spec.dtype)):
                moved = True
                self._context.set_tensor_address(spec.name, buffer.device)
        if moved:  # a graph holds the addresses that it was recorded with
            self._forget_graphs()
        self._shapes, self._output_shapes = shapes, outputs

    def _run(self, feeds: Mapping[str, NDArray[np.generic]]) -> Arrays:
        inputs, outputs = self.signature.inputs, self.signature.outputs
        shapes = tuple(feeds[spec.name].shape for spec in inputs)
        if shapes != self._shapes:
            self._set_shapes(shapes)
        for spec in inputs:
            array, buffer = feeds[spec.name], self._buffers[spec.name]
            buffer.view(array.shape, array.dtype)[...] = array
            buffer.upload(array.nbytes, self._stream)
        self._execute(shapes)
        for spec, shape in zip(outputs, self._output_shapes, strict=True):
            self._buffers[spec.name].download(_size_bytes(shape, spec.dtype), self._stream)
        self._stream.synchronize()
        return {
            spec.name: self._buffers[spec.name].view(shape, np.dtype(spec.dtype)).copy()
            for spec, shape in zip(outputs, self._output_shapes, strict=True)
        }

    def _execute(self, shapes: Shapes) -> None:
        graph = self._graphs.get(shapes)
        if graph is not None:
            self._stream.launch(graph)
            return
        if not self._enqueue():
            given = "; ".join(self._errors[-2:])
            raise TargetError("the engine failed", given=given, fix="check the GPU's free memory")
        if self._records and len(self._graphs) < MAX_GRAPHS:
            self._record(shapes)

    def _record(self, shapes: Shapes) -> None:
        """Record the graph of one shape, after its first run: that does work no graph can hold."""
        self._stream.synchronize()
        self._stream.begin_recording()
        complete = self._enqueue()
        graph = self._stream.end_recording()
        if complete and graph is not None:
            self._graphs[shapes] = graph
        else:
            self._records = False

    def _enqueue(self) -> bool:
        return bool(self._context.execute_async_v3(int(self._stream.handle)))

    def _forget_graphs(self) -> None:
        for graph in self._graphs.values():
            self._stream.forget(graph)
        self._graphs.clear()

    def close(self) -> None:
        """Free graphs, buffers, stream and engine."""
        self._forget_graphs()
        for buffer in self._buffers.values():
            buffer.free()
        self._stream.close()
        self._context = self._engine = self._runtime = None


def _size_bytes(shape: tuple[int, ...], dtype: str) -> int:
    return math.prod(shape) * np.dtype(dtype).itemsize


def _make_logger(trt: Any, errors: list[str]) -> Any:
    class Logger(trt.ILogger):  # type: ignore[misc]  # the class exists only once it is imported
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.Severity.ERROR:
                errors.append(message)

    return Logger()
