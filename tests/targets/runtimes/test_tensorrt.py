import ctypes
import dataclasses
import importlib.util
import json
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from targets.base import Source
from targets.errors import TargetError
from targets.runtimes._tensorrt import build, cuda
from targets.runtimes.tensorrt import TensorRT
from targets.runtimes.tensorrt_rtx import TensorRTRTX
from targets.signature import PAST, Signature, StateSpec, TensorSpec

SIGNATURE = Signature(
    inputs=(TensorSpec(name="x", dtype="float32", shape=("batch", 32)),),
    outputs=(TensorSpec(name="y", dtype="float32", shape=("batch", 32)),),
)
RANGES = {"batch": (1, 2, 8)}


def source(folder, precision="fp32", *, zero_point=0):
    """One matrix product; with Q/DQ nodes where the precision is int8."""
    random = np.random.default_rng(0)
    weight = random.standard_normal((32, 32)).astype(np.float32)
    nodes, arrays = [], {"w": weight}
    if precision == "int8":
        arrays = {
            "w": np.clip(np.rint(weight * 30), -127, 127).astype(np.int8),
            "ws": np.full(32, 1 / 30, np.float32),
            "wz": np.zeros(32, np.int8),
            "xs": np.float32(0.02),
            "xz": np.int8(zero_point),
        }
        nodes = [
            helper.make_node("QuantizeLinear", ["x", "xs", "xz"], ["xq"], name="quantize"),
            helper.make_node("DequantizeLinear", ["xq", "xs", "xz"], ["xd"]),
            helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wd"], axis=1),
        ]
    operands = ["xd", "wd"] if precision == "int8" else ["x", "w"]
    nodes.append(helper.make_node("MatMul", operands, ["y"], name="product"))
    graph = helper.make_graph(
        nodes,
        "one",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 32])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 32])],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in arrays.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    folder.mkdir(exist_ok=True)
    onnx.save(model, folder / "source.onnx")
    return Source(folder / "source.onnx", SIGNATURE, precision, RANGES)


@pytest.mark.skipif(
    importlib.util.find_spec("tensorrt") is not None, reason="the library is installed"
)
def test_it_says_which_library_is_missing(tmp_path):
    reason = "tensorrt is not installed: pip install 'compressor[tensorrt]'"
    assert TensorRT().cannot_lower() == reason
    assert TensorRT().cannot_run() == reason
    with pytest.raises(TargetError, match="tensorrt cannot build an engine here"):
        TensorRT().lower(source(tmp_path), tmp_path)


@pytest.mark.parametrize(
    ("gpu", "reason"),
    [
        (None, "there is no CUDA driver or no GPU"),
        (cuda.Gpu("V100", 70), "V100 has compute capability 70, it needs 75"),
        (cuda.Gpu("H100", 90), None),
    ],
)
def test_it_says_why_it_cannot_run(monkeypatch, gpu, reason):
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *_: name)
    monkeypatch.setattr(cuda, "find_gpu", lambda: gpu)
    assert TensorRT().cannot_run() == reason


def test_it_builds_only_on_a_gpu(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *_: name)
    monkeypatch.setattr("targets.runtimes.tensorrt.find_gpu", lambda: None)
    assert "builds engines on the GPU that will run them" in TensorRT().cannot_lower()


def test_where_there_is_no_driver_there_is_no_gpu(monkeypatch):
    def absent(name):
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", absent)
    assert cuda.find_gpu() is None


def test_a_gpu_is_described_by_its_driver(monkeypatch):
    values = {cuda.COMPUTE_CAPABILITY_MAJOR: 8, cuda.COMPUTE_CAPABILITY_MINOR: 9}

    def attribute(number, which, _device):
        number._obj.value = values[which]
        return 0

    def name(buffer, _size, _device):
        buffer.value = b"NVIDIA L4"
        return 0

    driver = SimpleNamespace(
        cuInit=lambda _: 0,
        cuDeviceGet=lambda *_: 0,
        cuDeviceGetAttribute=attribute,
        cuDeviceGetName=name,
    )
    monkeypatch.setattr(ctypes, "CDLL", lambda _: driver)
    assert cuda.find_gpu() == cuda.Gpu("NVIDIA L4", 89)
    driver.cuInit = lambda _: 100
    assert cuda.find_gpu() is None


def test_the_build_script_is_complete(tmp_path):
    target = TensorRT(workspace_mib=256, tf32=False)
    (line,) = target.hand_over(source(tmp_path, "int8"), tmp_path / "left")
    assert "build_engine.py" in line
    script = (tmp_path / "left" / "build_engine.py").read_text()
    assert "pip install tensorrt; the GPU that the engine is for" in script
    assert "module='tensorrt'" in script
    assert "workspace_bytes=268435456" in script
    assert "tf32=False" in script
    assert (tmp_path / "left" / "model.onnx").exists()
    compile(script, "build_engine.py", "exec")


def test_nothing_is_left_of_a_model_that_is_refused(tmp_path):
    (line,) = TensorRT().hand_over(source(tmp_path, "int8", zero_point=3), tmp_path / "left")
    assert "quantize has a zero point that is not 0" in line
    assert not (tmp_path / "left").exists()


def test_nothing_is_left_of_a_model_that_keeps_a_state(tmp_path):
    given = source(tmp_path)
    past = StateSpec(name="past", dtype="float32", shape=("batch", PAST, 32), output="present")
    signature = given.signature.model_copy(update={"state": (past,)})
    given = dataclasses.replace(given, signature=signature)
    (line,) = TensorRT().hand_over(given, tmp_path / "left")
    assert "does not run models that keep a state between runs (1 tensors of state)" in line
    assert not (tmp_path / "left").exists()


def test_without_the_library_the_script_says_so(tmp_path):
    script = TensorRT().write_build_script(source(tmp_path), tmp_path / "left")
    done = run_script(script)
    if importlib.util.find_spec("tensorrt") is None:
        assert done.returncode == 1
        assert "no engine was built: No module named 'tensorrt'" in done.stderr


def run_script(script):
    command = [sys.executable, "-I", str(script)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize(("precision", "kind"), [("fp32", "Float"), ("int8", "Int8")])
def test_the_script_builds_the_engine_that_lower_builds(tmp_path, precision, kind):
    pytest.importorskip("tensorrt_rtx")
    given, lowered = source(tmp_path, precision), tmp_path / "lowered"
    lowered.mkdir()
    TensorRTRTX().lower(given, lowered)
    script = TensorRTRTX().write_build_script(given, tmp_path / "left")
    done = run_script(script)
    assert done.returncode == 0, done.stderr
    assert f"matrix products: 1 {kind}" in done.stdout
    reports = [
        json.loads((folder / "layers.json").read_text()) for folder in (lowered, script.parent)
    ]
    assert reports[0]["products"] == reports[1]["products"]
    assert [each["type"] for each in reports[0]["layers"]] == [
        each["type"] for each in reports[1]["layers"]
    ]
    sizes = [(folder / "model.engine").stat().st_size for folder in (lowered, script.parent)]
    assert abs(sizes[0] - sizes[1]) < 1000  # an engine holds the time of its making


def test_the_script_fails_where_the_precision_is_missing(tmp_path):
    pytest.importorskip("tensorrt_rtx")
    script = TensorRTRTX().write_build_script(source(tmp_path), tmp_path / "left")
    text = script.read_text()
    assert "product_type=None" in text
    script.write_text(text.replace("product_type=None", "product_type='Int8'"))
    done = run_script(script)
    assert done.returncode == 1
    assert "not one matrix product runs in Int8" in done.stderr


@pytest.mark.parametrize(
    "tensor",
    [
        {"Name": "t", "Format/Datatype": "Row major linear FP16 format"},
        {"Name": "t", "Format/Datatype": "Half"},
        {"Name": "t", "Datatype": "Half", "Format": "Row major linear FP16 format (kLINEAR)"},
        {"Name": "t", "DataType": "Half", "Format": "Row major linear FP16 format (kLINEAR)"},
    ],
)
def test_the_inspectors_json_is_read_in_every_version(tensor):
    layer = {
        "Name": "a + b",
        "LayerType": "gemm",
        "Inputs": [tensor],
        "Outputs": [tensor],
        "Metadata": "[ONNX Layer: /a]\x1e[ONNX Layer: b[0]]",
    }
    (read,) = build.layers_of_json(json.dumps({"Layers": [layer, "only a name"]}))
    assert read.product_type == "Half"
    assert read.outputs == ("Half",)
    assert read.nodes == ("/a", "b[0]")


def test_the_log_is_read_line_by_line():
    tensor = "{ Name: t, Dimensions: [-1,32], Datatype: Int8, Format: (Linear) Row major }"
    line = (
        f"Name: q+k_myl0_2, LayerType: gemm, Inputs: [ {tensor}], Constants: [ {tensor}], "
        f"Outputs: [ {tensor.replace('Int8', 'Float')}], TacticName: stub, StreamId: 0, "
        "Metadata: [ONNX Layer: q][ONNX Layer: k]"
    )
    (layer,) = build.layers_of_log(["Engine Layer Information:", line])
    assert layer == build.Layer("q+k_myl0_2", "gemm", ("Int8",), ("Int8",), ("Float",), ("q", "k"))


def layer(name, kind, inputs, constants=()):
    return build.Layer(name, kind, inputs, constants, (), ())


@pytest.mark.parametrize(
    ("kernel", "expected"),
    [
        (layer("q", "gemm", ("Int8",), ("Int8", "Float")), "Int8"),
        (layer("c", "correlation", ("Half",)), "Half"),
        (layer("_gemm_mha_v2_myl0_6", "kgen", ("Int8", "Int8", "Int8")), "Int8"),
        (
            layer("__myl_FcCastAdd", "runtime_fusion", ("Float", "BFloat16"), ("BFloat16",)),
            "BFloat16",
        ),
        (layer("__myl_CastMulCastFc", "runtime_fusion", ("Half",), ("Half", "Int8")), "Half"),
        (layer("__myl_AddMul", "kgen", ("Int8",)), None),
    ],
)
def test_the_type_of_a_product_is_that_of_its_operands(kernel, expected):
    assert kernel.product_type == expected
