from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx.reference import ReferenceEvaluator

from compressor.simplify import simplify


def simplified(body: str, result: str, weight: str = "6, 4", known: str = "") -> onnx.ModelProto:
    text = f"""
        <ir_version: 10, opset_import: ["" : 21]>
        main (float[b, s, 6] x) => ({result} y)
        <float[{weight}] network_weight = {{{", ".join(map(str, range(24)))}}}{known}>
        {{ {body} }}
    """
    model = ir.serde.deserialize_model(onnx.parser.parse_model(text))
    simplify(model, root="network_", shapes={"x": ("b", "s", 6), "y": ("any", "any2", "any3")})
    return ir.serde.serialize_model(model)


SIZES = """
    b = Shape<start = 0, end = 1>(x)
    s = Shape<start = 1, end = 2>(x)
    six = Constant<value_ints = [6]>()
    two = Constant<value_ints = [2]>()
    three = Constant<value_ints = [3]>()
"""


@pytest.mark.parametrize(
    ("target", "shape", "is_constant"),
    [
        ("b, s, six", "b, s, 6", True),
        ("b, six, s", "b, 6, s", True),
        ("b, s, two, three", "b, s, 2, 3", True),
        ("s, b, six", "s, b, 6", False),  # neither size stands where it stood
    ],
)
def test_reshapes_get_constant_targets_where_one_constant_fits(
    target: str, shape: str, is_constant: bool
) -> None:
    body = SIZES + f"target = Concat<axis = 0>({target})\n y = Reshape<allowzero = 1>(x, target)"
    model = simplified(body, f"float[{shape}]")
    types = {node.op_type for node in model.graph.node}
    assert ({"Concat", "Shape"} & types == set()) == is_constant
    x = np.arange(36, dtype=np.float32).reshape(2, 3, 6)
    sizes = {"b": 2, "s": 3}
    wanted = [sizes.get(dim.strip()) or int(dim) for dim in shape.split(",")]
    (found,) = ReferenceEvaluator(model).run(None, {"x": x})
    np.testing.assert_array_equal(found, x.reshape(wanted))


def test_a_transposed_weight_is_stored_transposed_under_its_own_name() -> None:
    body = """
        turned = Transpose<perm = [1, 0]>(network_weight)
        other = Transpose<perm = [1, 0]>(turned)
        y = MatMul(x, other)
    """
    model = simplified(body, "float[b, s, 4]")
    assert [node.op_type for node in model.graph.node] == ["MatMul"]
    weight = np.arange(24, dtype=np.float32).reshape(6, 4)
    x = np.ones((1, 2, 6), np.float32)
    np.testing.assert_array_equal(ReferenceEvaluator(model).run(None, {"x": x})[0], x @ weight)


def test_a_weight_that_several_layers_share_is_stored_once() -> None:
    body = """
        first = Transpose<perm = [1, 0]>(network_weight)
        second = Transpose<perm = [1, 0]>(network_weight)
        third = Transpose<perm = [1, 0]>(network_weight)
        a = MatMul(x, first)
        b = MatMul(x, second)
        c = MatMul(x, third)
        ab = Add(a, b)
        y = Add(ab, c)
    """
    model = simplified(body, "float[b, s, 4]", weight="4, 6")
    assert [(each.name, *each.dims) for each in model.graph.initializer] == [("weight", 6, 4)]
    weight = np.arange(24, dtype=np.float32).reshape(4, 6)
    x = np.ones((1, 2, 6), np.float32)
    found = ReferenceEvaluator(model).run(None, {"x": x})[0]
    np.testing.assert_array_equal(found, 3 * (x @ weight.T))


def test_a_weight_that_is_read_both_ways_is_kept_both_ways() -> None:
    body = """
        turned = Transpose<perm = [1, 0]>(network_weight)
        narrow = MatMul(x, network_weight)
        y = MatMul(narrow, turned)
    """
    model = simplified(body, "float[b, s, 6]")
    shapes = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    assert shapes == {"weight": (6, 4), "weight.transposed": (4, 6)}


@pytest.mark.parametrize("product", ["Mul(x, once)", "Mul(once, x)"])
def test_a_product_with_a_reciprocal_is_a_quotient(product: str) -> None:
    body = f"""
        two = Constant<value_float = 2.0>()
        whole = Exp(x)
        once = Reciprocal(whole)
        first = {product}
        second = Mul(two, once)
        y = Sub(first, second)
    """
    model = simplified(body, "float[b, s, 6]")
    assert [node.op_type for node in model.graph.node] == ["Exp", "Div", "Div", "Sub"]
    x = np.linspace(-1, 1, 12, dtype=np.float32).reshape(1, 2, 6)
    (found,) = ReferenceEvaluator(model).run(None, {"x": x})
    np.testing.assert_allclose(found, (x - 2) / np.exp(x), rtol=1e-5)


@pytest.mark.parametrize(
    ("seen", "rows", "is_dropped"),
    [
        ([1, 1, 1, 1, 1, 1], "b", True),
        ([1, 1, 1, 1, 0, 1], "b", False),  # one place is not attended to
        ([1, 1, 1, 1, 1, 1], "two", False),  # the sum has more rows than its other operand
    ],
)
def test_a_mask_of_zeros_alone_is_not_added(seen: list[int], rows: str, is_dropped: bool) -> None:
    model = simplified(
        SIZES
        + f"""
        seen = Constant<value = bool[6] {{{", ".join(map(str, seen))}}}>()
        sizes = Concat<axis = 0>({rows}, s, six)
        spread = Expand(seen, sizes)
        zero = Constant<value_float = 0.0>()
        never = Constant<value_float = -9.0>()
        mask = Where(spread, zero, never)
        twice = Add(x, x)
        masked = Add(twice, mask)
        y = MatMul(masked, network_weight)
        """,
        "float[b, s, 4]",
        known=f", float[b, s, 6] twice, float[{rows}, s, 6] masked",
    )
    types = [node.op_type for node in model.graph.node]
    assert ({"Where", "Expand"} & set(types) == set()) == is_dropped
    x = np.arange(18, dtype=np.float32).reshape(1, 3, 6)
    wanted = (2 * x + np.where(seen, 0, -9)) @ np.arange(24, dtype=np.float32).reshape(6, 4)
    (found,) = ReferenceEvaluator(model).run(None, {"x": x})
    np.testing.assert_array_equal(found, np.repeat(wanted, 2, 0) if rows == "two" else wanted)


def test_a_bias_of_zeros_stays() -> None:
    model = simplified(
        """
        zeros = Constant<value_floats = [0.0, 0.0, 0.0, 0.0]>()
        product = MatMul(x, network_weight)
        shifted = Add(product, zeros)
        y = Add(shifted, shifted)
        """,
        "float[b, s, 4]",
        known=", float[b, s, 4] product, float[b, s, 4] shifted",
    )
    assert [node.op_type for node in model.graph.node].count("Add") == 2


def test_names_come_from_modules_and_not_from_the_exporters_counting() -> None:
    body = "val_7 = Relu(x)\n val_9 = Relu(val_7)\n y = Add(val_9, val_7)"
    other = body.replace("val_7", "val_70").replace("val_9", "val_90")
    model = simplified(body, "float[b, s, 6]")
    assert model == simplified(other, "float[b, s, 6]")
    assert [node.name for node in model.graph.node] == ["Relu", "Relu_2", "Add"]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rank", [3, 4])
def test_a_convolution_scales_and_shifts_its_channels_itself(bias: bool, rank: int) -> None:
    """As the frozen batch norms of DETR are exported."""
    generator = np.random.default_rng(0)
    ones = (1,) * (rank - 2)
    constants = {
        "network_conv.weight": generator.normal(size=(4, 3, *(3,) * (rank - 2))),
        "factor": generator.normal(size=(1, 4, *ones)),
        "shift": generator.normal(size=(4, *ones)),
        **({"network_conv.bias": generator.normal(size=4)} if bias else {}),
    }
    inputs = ["x", "network_conv.weight", *(["network_conv.bias"] if bias else [])]
    make = onnx.helper.make_node
    graph = onnx.helper.make_graph(
        [
            make("Conv", inputs, ["h"], "conv"),
            make("Mul", ["h", "factor"], ["scaled"], "mul"),
            make("Add", ["shift", "scaled"], ["shifted"], "add"),
            make("Relu", ["shifted"], ["y"], "relu"),
        ],
        "graph",
        [
            onnx.helper.make_tensor_value_info(
                "x", onnx.TensorProto.FLOAT, [2, 3, *(8,) * (rank - 2)]
            )
        ],
        [
            onnx.helper.make_tensor_value_info(
                "y", onnx.TensorProto.FLOAT, [2, 4, *(6,) * (rank - 2)]
            )
        ],
        [
            onnx.numpy_helper.from_array(array.astype(np.float32), name)
            for name, array in constants.items()
        ],
    )
    opset = [onnx.helper.make_opsetid("", 21)]
    before = onnx.helper.make_model(graph, opset_imports=opset, ir_version=10)
    copied = onnx.ModelProto.FromString(before.SerializeToString())
    model = ir.serde.deserialize_model(copied)
    shapes = {"x": (2, 3, *(8,) * (rank - 2)), "y": (2, 4, *(6,) * (rank - 2))}
    simplify(model, root="network_", shapes=shapes)
    after = ir.serde.serialize_model(model)
    assert [node.op_type for node in after.graph.node] == ["Conv", "Relu"]
    assert {each.name for each in after.graph.initializer} == {"conv.weight", "conv.bias"}
    feeds = {"x": generator.normal(size=shapes["x"]).astype(np.float32)}
    expected, found = (ReferenceEvaluator(each).run(None, feeds)[0] for each in (before, after))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_what_else_reads_a_convolution_keeps_its_own_scale() -> None:
    """A factor for each place is none for each channel, and a second reader sees the raw values."""
    for factor, outputs in (((1, 1, 6, 6), ["y"]), ((1, 4, 1, 1), ["y", "h"])):
        make, value = onnx.helper.make_node, onnx.helper.make_tensor_value_info
        graph = onnx.helper.make_graph(
            [
                make("Conv", ["x", "weight"], ["h"], "conv"),
                make("Mul", ["h", "factor"], ["scaled"], "mul"),
                make("Relu", ["scaled"], ["y"], "relu"),
            ],
            "graph",
            [value("x", onnx.TensorProto.FLOAT, [1, 3, 8, 8])],
            [value(name, onnx.TensorProto.FLOAT, [1, 4, 6, 6]) for name in outputs],
            [
                onnx.numpy_helper.from_array(np.full(shape, 2, np.float32), name)
                for name, shape in (("weight", (4, 3, 3, 3)), ("factor", factor))
            ],
        )
        opset = [onnx.helper.make_opsetid("", 21)]
        model = ir.serde.deserialize_model(
            onnx.helper.make_model(graph, opset_imports=opset, ir_version=10)
        )
        sizes = {"x": (1, 3, 8, 8), **dict.fromkeys(outputs, (1, 4, 6, 6))}
        simplify(model, root="", shapes=sizes)
        kinds = [node.op_type for node in ir.serde.serialize_model(model).graph.node]
        assert kinds == ["Conv", "Mul", "Relu"]
