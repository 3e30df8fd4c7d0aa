# ruff: noqa: N801, N802, N815  (the names are those of the CUDA runtime)
"""The session, against stand-ins for CUDA and the engine, and on a GPU where there is one."""

import ctypes
import sys
from enum import IntEnum
from types import ModuleType, SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from targets.base import Source
from targets.errors import InputError, TargetError
from targets.runtimes._tensorrt.session import EngineSession
from targets.runtimes.tensorrt_rtx import TensorRTRTX
from targets.signature import Signature, TensorSpec

SIGNATURE = Signature(
    inputs=(TensorSpec(name="x", dtype="float32", shape=("batch", 32)),),
    outputs=(TensorSpec(name="y", dtype="float32", shape=("batch", 32)),),
)


class FakeCuda(ModuleType):
    """A CUDA runtime whose device is host memory; a stream runs or records calls at once."""

    class cudaError_t(IntEnum):
        cudaSuccess = 0
        cudaErrorMemoryAllocation = 2

    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2)
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)

    def __init__(self):
        super().__init__("cuda.bindings.runtime")
        self.memory, self.recording, self.launches, self.limit = {}, None, 0, 1 << 20
        self.streams = 0

    def cudaMalloc(self, size):
        if size > self.limit:
            return self.cudaError_t.cudaErrorMemoryAllocation, None
        block = ctypes.create_string_buffer(size)
        self.memory[ctypes.addressof(block)] = block
        return self.cudaError_t.cudaSuccess, ctypes.addressof(block)

    def cudaFree(self, address):
        del self.memory[address]
        return (self.cudaError_t.cudaSuccess,)

    cudaMallocHost, cudaFreeHost = cudaMalloc, cudaFree

    def cudaMemcpyAsync(self, to, of, size, kind, stream):
        assert self.recording is None
        ctypes.memmove(to, of, size)
        return (self.cudaError_t.cudaSuccess,)

    def cudaStreamCreate(self):
        self.streams += 1
        return self.cudaError_t.cudaSuccess, 7

    def cudaStreamDestroy(self, stream):
        self.streams -= 1
        return (self.cudaError_t.cudaSuccess,)

    def cudaStreamSynchronize(self, stream):
        return (self.cudaError_t.cudaSuccess,)

    def cudaStreamBeginCapture(self, stream, mode):
        self.recording = []
        return (self.cudaError_t.cudaSuccess,)

    def cudaStreamEndCapture(self, stream):
        graph, self.recording = self.recording, None
        return self.cudaError_t.cudaSuccess, graph

    def cudaGraphInstantiate(self, graph, flags):
        return self.cudaError_t.cudaSuccess, graph

    def cudaGraphDestroy(self, graph):
        return (self.cudaError_t.cudaSuccess,)

    cudaGraphExecDestroy = cudaGraphDestroy

    def cudaGraphLaunch(self, graph, stream):
        self.launches += 1
        for call in graph:
            call()
        return (self.cudaError_t.cudaSuccess,)

    def cudaGetErrorString(self, error):
        return self.cudaError_t.cudaSuccess, b"out of memory"


class FakeEngine:
    """Doubles its one input; made for batches of 1 to 8."""

    def __init__(self, cudart):
        self.cudart, self.addresses, self.shape, self.runs, self.works = cudart, {}, None, 0, True

    def create_execution_context(self):
        return self

    def get_tensor_dtype(self, name):
        return np.float32

    def is_shape_inference_io(self, name):
        return False

    def get_tensor_profile_shape(self, name, index):
        return [(1, 32), (2, 32), (8, 32)]

    def set_input_shape(self, name, shape):
        self.shape = shape
        return 1 <= shape[0] <= 8

    def infer_shapes(self):
        return []

    def get_tensor_shape(self, name):
        return self.shape

    def set_tensor_address(self, name, address):
        self.addresses[name] = address

    def execute_async_v3(self, stream):
        assert stream == 7
        size = 4 * int(np.prod(self.shape))

        def double():
            self.runs += 1
            array = np.frombuffer(ctypes.string_at(self.addresses["x"], size), np.float32) * 2
            ctypes.memmove(self.addresses["y"], array.tobytes(), size)

        if self.cudart.recording is not None:
            self.cudart.recording.append(double)
        else:
            double()
        return self.works


@pytest.fixture
def fake(monkeypatch):
    cudart = FakeCuda()
    engine = FakeEngine(cudart)
    severity = SimpleNamespace(ERROR=1)
    logger = type("ILogger", (), {"Severity": severity, "__init__": lambda self: None})
    runtime = SimpleNamespace(deserialize_cuda_engine=lambda plan: engine if plan else None)
    trt = ModuleType("tensorrt")
    trt.__dict__.update(ILogger=logger, Runtime=lambda _: runtime, nptype=lambda dtype: dtype)
    monkeypatch.setitem(sys.modules, "tensorrt", trt)
    monkeypatch.setattr("targets.runtimes._tensorrt.session.import_runtime", lambda *_: cudart)
    return SimpleNamespace(cudart=cudart, engine=engine, trt=trt, runtime=runtime)


def open_session(*, plan=b"plan", signature=SIGNATURE, cuda_graph=True):
    return EngineSession(
        signature, plan, module="tensorrt", extra="tensorrt", cuda_graph=cuda_graph
    )


def batch(size):
    return {"x": np.arange(size * 32, dtype=np.float32).reshape(size, 32)}


def test_a_session_runs_batches_of_every_size(fake):
    session = open_session()
    for size in (2, 2, 8, 1, 2, 8):
        feeds = batch(size)
        outputs = session.run(feeds)
        np.testing.assert_array_equal(outputs["y"], feeds["x"] * 2)


def test_outputs_outlive_the_next_run(fake):
    session = open_session()
    first = session.run(batch(2))["y"]
    session.run({"x": np.zeros((2, 32), np.float32)})
    np.testing.assert_array_equal(first, batch(2)["x"] * 2)


def test_a_shape_that_was_seen_is_replayed_as_a_graph(fake):
    session = open_session()
    for size in (2, 2, 8, 2, 8):
        session.run(batch(size))
    assert fake.cudart.launches == 3
    assert fake.engine.runs == 5


def test_without_graphs_each_run_is_launched(fake):
    session = open_session(cuda_graph=False)
    for _ in range(3):
        session.run(batch(2))
    assert fake.cudart.launches == 0


@pytest.mark.parametrize("cuda_graph", [True, False])
def test_tensorrt_rtx_records_its_own_graphs(fake, cuda_graph):
    config = SimpleNamespace()
    fake.trt.CudaGraphStrategy = SimpleNamespace(WHOLE_GRAPH_CAPTURE="whole", DISABLED="off")
    fake.trt.DynamicShapesKernelSpecializationStrategy = SimpleNamespace(EAGER="eager")
    fake.engine.create_runtime_config = lambda: config
    fake.engine.create_execution_context = lambda given: fake.engine if given is config else None
    session = open_session(cuda_graph=cuda_graph)
    for _ in range(3):
        session.run(batch(2))
    assert config.cuda_graph_strategy == ("whole" if cuda_graph else "off")
    assert config.dynamic_shapes_kernel_specialization_strategy == "eager"
    assert fake.cudart.launches == 0


def test_an_engine_for_another_gpu_is_refused(fake):
    fake.trt.EngineValidity = SimpleNamespace(INVALID="invalid")
    fake.runtime.get_engine_validity = lambda plan: ("invalid", "compute capability")
    with pytest.raises(TargetError, match="not valid on this GPU") as caught:
        open_session()
    assert caught.value.given == "compute capability"


def test_what_cannot_be_recorded_still_runs(fake, monkeypatch):
    monkeypatch.setattr(
        fake.cudart,
        "cudaStreamEndCapture",
        lambda _: (setattr(fake.cudart, "recording", None), None),
    )
    fake.cudart.cudaGetLastError = lambda: (0,)
    session = open_session()
    for _ in range(3):
        np.testing.assert_array_equal(session.run(batch(2))["y"], batch(2)["x"] * 2)
    assert fake.cudart.launches == 0


def test_a_size_outside_of_the_range_is_named(fake):
    session = open_session()
    with pytest.raises(InputError, match="'x' lies outside of the range") as caught:
        session.run(batch(9))
    assert caught.value.fix.startswith("pass between (1, 32) and (8, 32)")
    np.testing.assert_array_equal(session.run(batch(8))["y"], batch(8)["x"] * 2)


def test_it_takes_no_larger_batches_than_the_engine(fake):
    session = open_session()
    assert (session.max_batch, session.batch_size(32), session.batch_size(2)) == (8, 8, 2)


def test_an_engine_of_another_type_is_refused(fake):
    half = Signature(
        inputs=(SIGNATURE.inputs[0].model_copy(update={"dtype": "float16"}),),
        outputs=SIGNATURE.outputs,
    )
    with pytest.raises(TargetError, match="tensor 'x' has another type"):
        open_session(signature=half)


def test_an_engine_that_cannot_be_loaded_is_an_error(fake):
    with pytest.raises(TargetError, match="the engine cannot be loaded"):
        open_session(plan=b"")


def test_a_failing_engine_is_an_error(fake):
    session = open_session()
    fake.engine.works = False
    with pytest.raises(TargetError, match="the engine failed"):
        session.run(batch(2))


def test_cuda_errors_are_the_toolkits(fake):
    fake.cudart.limit = 100
    with pytest.raises(TargetError, match="CUDA reported an error") as caught:
        open_session()
    assert caught.value.given == "out of memory"


def test_closing_frees_everything(fake):
    session = open_session()
    session.run(batch(2))
    assert fake.cudart.memory
    session.close()
    assert not fake.cudart.memory
    assert fake.cudart.streams == 0


@pytest.mark.skipif(
    TensorRTRTX().cannot_run() is not None, reason=f"no run: {TensorRTRTX().cannot_run()}"
)
def test_an_engine_computes_what_the_reference_computes(tmp_path):
    import onnxruntime

    weight = np.random.default_rng(0).standard_normal((32, 32)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="product")],
        "one",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 32])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 32])],
        [numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, tmp_path / "source.onnx")
    given = Source(tmp_path / "source.onnx", SIGNATURE, ranges={"batch": (1, 2, 8)})
    lowered = TensorRTRTX(tf32=False).lower(given, tmp_path)
    session = EngineSession(
        SIGNATURE,
        (tmp_path / lowered.model).read_bytes(),
        module="tensorrt_rtx",
        extra="tensorrt-rtx",
        cuda_graph=True,
    )
    reference = onnxruntime.InferenceSession(given.path, providers=["CPUExecutionProvider"])
    for size in (2, 2, 8, 1):
        expected = reference.run(None, batch(size))[0]
        np.testing.assert_allclose(session.run(batch(size))["y"], expected, rtol=1e-3)
    session.close()
