import json
import warnings
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from targets import onnx_files
from targets.base import Source
from targets.errors import TargetError, UnsupportedModelError
from targets.runtimes._tensorrt import cuda
from targets.runtimes.tensorrt_rtx import TensorRTRTX
from targets.signature import Signature, TensorSpec

pytest.importorskip("tensorrt_rtx")

VOCABULARY, WIDTH, HEADS = 512, 32, 4
RANGES = {"batch": (1, 2, 4), "sequence": (1, 16, 32)}
BERT_INPUTS = ("input_ids", "attention_mask", "token_type_ids")


class Graph:
    """One transformer block over an embedding table, in the form of portable Q/DQ models."""

    def __init__(self, *, dtype=np.float32, quantized=False, table="float"):
        self.random, self.dtype, self.quantized = np.random.default_rng(0), dtype, quantized
        self.nodes, self.initializers = [], []
        hidden = self.embed(table)
        heads = self.constant("heads", np.array([0, 0, HEADS, WIDTH // HEADS]))
        flat = self.constant("flat", np.array([0, 0, WIDTH]))
        q, k, v = (self.linear(hidden, name) for name in "qkv")
        turns = ((q, [0, 2, 1, 3]), (k, [0, 2, 3, 1]), (v, [0, 2, 1, 3]))
        q, k, v = (
            self.add("Transpose", [self.add("Reshape", [x, heads])], perm=perm) for x, perm in turns
        )
        weights = self.add("Softmax", [self.add("MatMul", [q, k], name="scores")], axis=-1)
        context = self.add("MatMul", [weights, v], name="context")
        context = self.add("Transpose", [context], perm=[0, 2, 1, 3])
        out = self.linear(self.add("Reshape", [context, flat]), "out")
        self.add("Add", [out, hidden], output="y")

    def constant(self, name, array):
        self.initializers.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def add(self, kind, inputs, *, output=None, name=None, **attributes):
        output = output or f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [output], name=name, **attributes))
        return output

    def embed(self, table):
        weights = self.random.standard_normal((VOCABULARY, WIDTH))
        if table == "float":
            return self.add("Gather", [self.constant("table", weights.astype(self.dtype)), "ids"])
        data = self.constant("table", np.clip(np.rint(weights * 30), -127, 127).astype(np.int8))
        rows = table == "dequantize rows"
        size = (VOCABULARY,) if rows else (WIDTH,) if table == "gather columns" else ()
        scale = self.constant("table_scale", np.full(size, 1 / 30, self.dtype))
        zero = self.constant("table_zero", np.zeros(size, np.int8))
        if table.startswith("gather"):
            found = self.add("Gather", [data, "ids"], name="lookup")
            return self.add("DequantizeLinear", [found, scale, zero], axis=-1)
        return self.add(
            "Gather", [self.add("DequantizeLinear", [data, scale, zero], axis=0), "ids"]
        )

    def linear(self, x, name):
        weight = self.random.standard_normal((WIDTH, WIDTH))
        if not self.quantized:
            w = self.constant(f"{name}_w", weight.astype(self.dtype))
            return self.add("MatMul", [x, w], name=name)
        w = self.constant(f"{name}_w", np.clip(np.rint(weight * 30), -127, 127).astype(np.int8))
        scales = self.constant(f"{name}_s", np.full(WIDTH, 1 / 30, self.dtype))
        zeros = self.constant(f"{name}_z", np.zeros(WIDTH, np.int8))
        w = self.add("DequantizeLinear", [w, scales, zeros], axis=1)
        if self.quantized != "weights":
            grid = [
                self.constant(f"{name}_xs", self.dtype(0.02)),
                self.constant(f"{name}_xz", np.int8(0)),
            ]
            x = self.add("QuantizeLinear", [x, *grid], name=f"{name}_quantize")
            x = self.add("DequantizeLinear", [x, *grid])
        return self.add("MatMul", [x, w], name=name)

    def model(self):
        element = helper.np_dtype_to_tensor_dtype(np.dtype(self.dtype))
        shape = ["batch", "sequence"]
        graph = helper.make_graph(
            self.nodes,
            "block",
            [helper.make_tensor_value_info("ids", TensorProto.INT64, shape)],
            [helper.make_tensor_value_info("y", element, [*shape, WIDTH])],
            self.initializers,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
        onnx.checker.check_model(model)
        return model


def block(folder, precision="fp32", *, ranges=RANGES, change=None, **kinds):
    graph = Graph(**kinds)
    model = graph.model()
    if change is not None:
        change(model)
    onnx.save(model, folder / "source.onnx")
    free = ("batch", "sequence")
    signature = Signature(
        inputs=(TensorSpec(name="ids", dtype="int64", shape=free),),
        outputs=(TensorSpec(name="y", dtype=np.dtype(graph.dtype).name, shape=(*free, WIDTH)),),
    )
    return Source(folder / "source.onnx", signature, precision, ranges)


def lower(source, **settings):
    folder = source.path.parent / "bundle"
    folder.mkdir()
    lowered = TensorRTRTX(**settings).lower(source, folder)
    assert (folder / lowered.model).stat().st_size > 0
    assert sorted(path.name for path in folder.iterdir()) == ["layers.json", "model.engine"]
    report = json.loads((folder / "layers.json").read_text())
    return {each["node"]: each["found"] for each in report["products"]}, report, lowered


def add_node(kind, inputs, *, name="culprit", domain="", **attributes):
    def change(model):
        outputs = ["extra", "scale", "zero"] if kind == "DynamicQuantizeLinear" else ["extra"]
        node = helper.make_node(kind, inputs, outputs, name=name, domain=domain, **attributes)
        model.graph.node.append(node)
        if domain:
            model.opset_import.append(helper.make_opsetid(domain, 1))

    return change


def set_tensor(name, array):
    def change(model):
        tensor = next(each for each in model.graph.initializer if each.name == name)
        tensor.CopyFrom(numpy_helper.from_array(np.asarray(array), name))

    return change


def test_it_lowers_without_a_gpu():
    assert TensorRTRTX().cannot_lower() is None


def test_every_product_of_an_fp32_model_is_float(tmp_path):
    products, report, lowered = lower(block(tmp_path))
    assert products == dict.fromkeys(("q", "k", "v", "scores", "context", "out"), "Float")
    assert lowered.notes == ("matrix products: 6 Float",)
    assert any(layer["type"] == "gemm" for layer in report["layers"])


def test_every_product_of_an_fp16_model_is_half(tmp_path):
    products, _, _ = lower(block(tmp_path, "fp16", dtype=np.float16))
    assert set(products.values()) == {"Half"}


def test_quantized_products_are_int8_and_the_others_stay_float(tmp_path):
    products, _, lowered = lower(block(tmp_path, "int8", quantized=True))
    assert {node for node, kind in products.items() if kind == "Int8"} == {"q", "k", "v", "out"}
    assert products["scores"] == products["context"] == "Float"
    assert lowered.notes == ("matrix products: 2 Float, 4 Int8",)


def test_bf16_is_granted_by_casts_around_the_products(tmp_path):
    source = block(tmp_path, "bf16")
    before = source.path.read_bytes()
    products, _, lowered = lower(source)
    assert set(products.values()) == {"BFloat16"}
    assert lowered.notes[0] == "6 matrix products were cast to bf16"
    assert source.path.read_bytes() == before


@pytest.mark.parametrize("limit_bytes", [1 << 30, 0])
def test_weights_in_files_of_their_own_are_found(tmp_path, monkeypatch, limit_bytes):
    monkeypatch.setattr(onnx_files, "SINGLE_FILE_LIMIT_BYTES", limit_bytes)
    source = block(tmp_path, "bf16")
    loaded = onnx.load(source.path)
    onnx.save(loaded, source.path, save_as_external_data=True, location="w", size_threshold=0)
    products, _, _ = lower(source)
    assert set(products.values()) == {"BFloat16"}
    assert (tmp_path / "bundle" / "model.engine").stat().st_size > VOCABULARY * WIDTH * 4


def test_zero_points_in_files_of_their_own_are_checked(tmp_path):
    source = block(tmp_path, "int8", quantized=True, change=set_tensor("q_z", np.full(32, 2, "i1")))
    loaded = onnx.load(source.path)
    onnx.save(loaded, source.path, save_as_external_data=True, location="w", size_threshold=0)
    with pytest.raises(UnsupportedModelError) as caught:
        TensorRTRTX().requires(source)
    assert "has a zero point that is not 0" in caught.value.given


def test_uint8_activations_get_symmetric_ranges(tmp_path):
    changed = set_tensor("q_xz", np.uint8(90))
    source = block(tmp_path, "int8", quantized=True, change=changed)
    before = source.path.read_bytes()
    products, _, lowered = lower(source)
    assert products["q"] == "Int8"
    assert "1 range of activations made symmetric" in lowered.notes
    assert source.path.read_bytes() == before


def test_weight_only_int8_reads_int8_weights(tmp_path):
    products, report, lowered = lower(block(tmp_path, "int8-weights", quantized="weights"))
    assert set(products.values()) == {"Float"}
    assert lowered.notes == ("matrix products: 6 Float",)
    fused = [layer for layer in report["layers"] if "q" in layer["nodes"]]
    assert any("Int8" in layer["constants"] for layer in fused)


@pytest.mark.parametrize(
    ("precision", "kinds"),
    [
        ("int8", {}),
        ("fp16", {}),
        ("int8-weights", {}),
        ("int8", {"quantized": "weights"}),
        ("int8", {"table": "dequantize rows"}),
    ],
)
def test_a_model_without_the_precision_that_it_claims_is_an_error(tmp_path, precision, kinds):
    with pytest.raises(TargetError, match=f"not one matrix product runs in {precision}") as caught:
        lower(block(tmp_path, precision, **kinds))
    assert "matrix products: 6 Float" in caught.value.given
    assert not (tmp_path / "bundle" / "model.engine").exists()


def test_products_that_were_built_in_another_type_are_named(tmp_path, monkeypatch):
    from targets.runtimes._tensorrt import model

    wrong = {"q": "Int8", "scores": "Int8", "out": "Float"}
    monkeypatch.setattr(model, "expected_products", lambda _: wrong)
    _, _, lowered = lower(block(tmp_path))
    note = "built in another type than the model has: q (Float, not Int8), scores (Float, not Int8)"
    assert note in lowered.notes


@pytest.mark.parametrize("table", ["dequantize", "dequantize rows", "gather", "gather columns"])
def test_an_int8_table_stays_int8_in_the_engine(tmp_path, table):
    _, report, lowered = lower(block(tmp_path, table=table))
    assert any("Int8" in layer["constants"] for layer in report["layers"])
    assert ("before the lookup" in lowered.notes[0]) == table.startswith("gather")


@pytest.mark.parametrize("table", ["gather", "gather columns"])
def test_moving_the_dequantization_changes_no_bit(tmp_path, table):
    import onnxruntime

    from targets.runtimes._tensorrt import model

    before = Graph(table=table).model()
    after = onnx.ModelProto()
    after.CopyFrom(before)
    model.rewrite(after, bf16=False)
    onnx.checker.check_model(after, full_check=True)
    kinds = [node.op_type for node in after.graph.node][:2]
    assert kinds == ["DequantizeLinear", "Gather"]
    ids = {"ids": np.arange(12).reshape(2, 6)}
    outputs = [
        onnxruntime.InferenceSession(
            each.SerializeToString(), providers=["CPUExecutionProvider"]
        ).run(None, ids)[0]
        for each in (before, after)
    ]
    np.testing.assert_array_equal(*outputs)


def test_the_native_log_prints_nothing(tmp_path, capfd):
    lower(block(tmp_path))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("change", "offender"),
    [
        (
            set_tensor("q_xz", np.int8(3)),
            "QuantizeLinear q_quantize has a zero point that is not 0",
        ),
        (set_tensor("heads", np.zeros(4)), "heads is float64"),
        (add_node("Cast", ["y"], to=TensorProto.DOUBLE), "culprit holds float64"),
        (add_node("QuantizeLinear", ["y", "q_xs"]), "QuantizeLinear culprit uses uint8"),
        (add_node("DequantizeLinear", ["flat32", "q_xs"]), "DequantizeLinear culprit uses int32"),
        (add_node("DynamicQuantizeLinear", ["y"]), "DynamicQuantizeLinear culprit"),
        (add_node("MatMulInteger", ["q_w", "q_w"]), "MatMulInteger culprit"),
        (add_node("ConvInteger", ["q_w", "q_w"]), "ConvInteger culprit"),
        (add_node("QLinearMatMul", ["q_w"] * 8), "QLinearMatMul culprit"),
        (
            add_node("Gelu", ["y"], domain="com.microsoft"),
            "Gelu culprit is of the domain com.micro",
        ),
        (add_node("Gather", ["q_w", "ids"]), "Gather culprit takes the int8 constant q_w"),
        (add_node("QLinearAdd", ["y"], name=""), "QLinearAdd node_of_extra"),
    ],
)
def test_what_the_runtime_refuses_is_named(tmp_path, change, offender):
    def changed(model):
        bias = numpy_helper.from_array(np.zeros(4, np.int32), "flat32")
        model.graph.initializer.append(bias)
        change(model)

    with pytest.raises(UnsupportedModelError, match="tensorrt_rtx does not run") as caught:
        TensorRTRTX().requires(block(tmp_path, "int8", quantized=True, change=changed))
    assert offender in caught.value.given


def test_offenders_in_subgraphs_are_found(tmp_path):
    def change(model):
        node = helper.make_node("DynamicQuantizeLinear", ["y"], ["a", "b", "c"], name="inner")
        out = helper.make_tensor_value_info("a", TensorProto.UINT8, None)
        branch = helper.make_graph([node], "branch", [], [out])
        add_node("If", ["flag"], then_branch=branch, else_branch=branch)(model)

    with pytest.raises(UnsupportedModelError) as caught:
        TensorRTRTX().requires(block(tmp_path, change=change))
    assert "DynamicQuantizeLinear inner" in caught.value.given


def test_many_offenders_are_counted(tmp_path):
    def change(model):
        for index in range(8):
            add_node("ConvInteger", ["y", "y"], name=f"c{index}")(model)

    with pytest.raises(UnsupportedModelError) as caught:
        TensorRTRTX().requires(block(tmp_path, change=change))
    assert caught.value.given.endswith("ConvInteger c4; and 3 more")


def test_dynamic_int8_is_refused(tmp_path):
    with pytest.raises(UnsupportedModelError) as caught:
        TensorRTRTX().requires(block(tmp_path, "int8-dynamic"))
    assert caught.value.given == "int8-dynamic: it has no integers with scales computed at run time"


def test_a_broken_model_is_an_error_of_the_toolkit(tmp_path):
    with pytest.raises(UnsupportedModelError, match="not valid ONNX"):
        TensorRTRTX().requires(block(tmp_path, change=add_node("TopK", ["y", "y", "y"])))


@pytest.mark.parametrize(
    ("ranges", "message"),
    [
        ({"batch": (1, 2, 4)}, "the free dimension 'sequence' has no range"),
        ({"batch": (1, 2, 4), "sequence": (1, 64, 32)}, "'sequence' is not in order"),
        ({"batch": (0, 2, 4), "sequence": (1, 8, 32)}, "'batch' is not in order"),
    ],
)
def test_ranges_are_checked(tmp_path, ranges, message):
    with pytest.raises(TargetError, match=message):
        TensorRTRTX().requires(block(tmp_path, ranges=ranges))


def test_what_the_parser_refuses_is_a_target_error(tmp_path):
    def change(model):
        model.graph.node[-1].op_type = "StringConcat"

    with pytest.raises(TargetError, match="tensorrt_rtx refused the model") as caught:
        lower(block(tmp_path, change=change))
    assert "StringConcat" in caught.value.given


def test_sm75_has_no_fp32_products(tmp_path):
    target = TensorRTRTX(compute_capabilities=("SM75",))
    with pytest.raises(TargetError, match="SM75 runs no fp32 matrix products"):
        target.requires(block(tmp_path))


def test_engines_are_built_for_the_gpus_asked_for(tmp_path):
    products, _, _ = lower(
        block(tmp_path, "fp16", dtype=np.float16), compute_capabilities=("SM75", "SM86")
    )
    assert set(products.values()) == {"Half"}


def test_unknown_compute_capabilities_are_refused():
    with pytest.raises(ValueError, match="SM90"):
        TensorRTRTX(compute_capabilities=("SM90",))


def test_tf32_changes_the_engine(tmp_path):
    plans = []
    for name, tf32 in (("on", True), ("off", False)):
        (tmp_path / name).mkdir()
        lower(block(tmp_path / name), tf32=tf32)
        plans.append((tmp_path / name / "bundle" / "model.engine").read_bytes())
    assert plans[0] != plans[1]


@pytest.mark.parametrize(
    ("gpu", "settings", "reason"),
    [
        (None, {}, "there is no CUDA driver or no GPU"),
        (cuda.Gpu("H100", 90), {}, "H100 has compute capability 90"),
        (cuda.Gpu("T4", 75), {}, "T4 has compute capability 75"),
        (cuda.Gpu("T4", 75), {"compute_capabilities": ("SM75",)}, None),
        (cuda.Gpu("L4", 89), {"compute_capabilities": ("SM86",)}, "engines are built for 86"),
        (cuda.Gpu("RTX 5090", 120), {}, None),
    ],
)
def test_it_says_why_it_cannot_run(monkeypatch, gpu, settings, reason):
    found = lambda name, *_: name  # noqa: E731  (every library is there)
    monkeypatch.setattr("importlib.util.find_spec", found)
    monkeypatch.setattr(cuda, "find_gpu", lambda: gpu)
    said = TensorRTRTX(**settings).cannot_run()
    assert said is None if reason is None else reason in said


def test_a_missing_library_is_named_with_its_extra(monkeypatch, tmp_path):
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *_: None)
    assert "pip install 'compressor[tensorrt-rtx]'" in TensorRTRTX().cannot_lower()
    assert "pip install 'compressor[tensorrt-rtx]'" in TensorRTRTX().cannot_run()
    with pytest.raises(TargetError, match="cannot build an engine here"):
        TensorRTRTX().lower(block(tmp_path), tmp_path)


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """A tiny BERT, exported as the toolkit's own export does it."""
    torch = pytest.importorskip("torch")
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=300,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=64,
        attn_implementation="eager",
    )
    module = BertForSequenceClassification(config).eval()
    feeds = {name: torch.ones((2, 8), dtype=torch.int64) for name in BERT_INPUTS}
    path = tmp_path_factory.mktemp("bert") / "model.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own
        torch.onnx.export(
            module,
            (),
            path,
            kwargs=feeds,
            dynamo=True,
            dynamic_shapes={name: {0: "batch", 1: "sequence"} for name in BERT_INPUTS},
            output_names=["logits"],
            opset_version=20,
            external_data=False,
            verbose=False,
        )
    return path


def bert_source(path, precision):
    free = ("batch", "sequence")
    inputs = tuple(TensorSpec(name=name, dtype="int64", shape=free) for name in BERT_INPUTS)
    outputs = (TensorSpec(name="logits", dtype="float32", shape=("batch", 2)),)
    return Source(path, Signature(inputs=inputs, outputs=outputs), precision, RANGES)


def quantize(path, out):
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quantize_static,
    )

    class Reader(CalibrationDataReader):
        def __init__(self):
            self.batches = iter([{name: np.ones((2, 8), np.int64) for name in BERT_INPUTS}])

        def get_next(self):
            return next(self.batches, None)

    quantize_static(
        str(path),
        str(out),
        Reader(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        op_types_to_quantize=["MatMul", "Gemm"],
        activation_type=QuantType.QInt8,
        weight_type=QuantType.QInt8,
        extra_options={
            "ActivationSymmetric": True,
            "WeightSymmetric": True,
            "QuantizeBias": False,
            "OpTypesToExcludeOutputQuantization": ["MatMul", "Gemm"],
            "QDQOpTypePerChannelSupportToAxis": {"MatMul": 1, "Gemm": 0},
        },
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("precision", "kind"), [("fp32", "Float"), ("bf16", "BFloat16"), ("int8", "Int8")]
)
def test_an_exported_bert_builds(bert, tmp_path, precision, kind):
    path = tmp_path / "model.onnx"
    if precision == "int8":
        quantize(bert, path)
    else:
        path.write_bytes(Path(bert).read_bytes())
    products, _, _ = lower(bert_source(path, precision))
    assert len(products) == 10
    assert set(products.values()) == {kind}
