"""Make an exported graph small, readable and the same every time, with standard operators only.

Nothing here is for one runtime: fusions belong to the targets, and a fused graph is one that
quantization and the other targets cannot read.
"""

from __future__ import annotations

import ast
from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
import onnxscript.optimizer
from onnx_ir.passes import common as passes

__all__ = ["simplify"]

_SCOPES = "pkg.torch.onnx.name_scopes"  # where torch's exporter notes the module of a node


def simplify(model: ir.Model, *, root: str, shapes: dict[str, Sequence[int | str]]) -> None:
    """Simplify the graph of torch's exporter in place.

    Folds constants, transposed weights, and what scales and shifts the channels of a convolution,
    divides where a reciprocal is multiplied by, adds no zeros, makes the targets of ``Reshape``
    constant, removes what nothing reads, names nodes after the modules they come from and weights
    after the torch parameters, and drops everything that differs from machine to machine (stack
    traces, paths).

    Args:
        model: As the exporter made it.
        root: Prefix of the parameter names that is not part of the user's model.
        shapes: Input or output name -> sizes and names of free dimensions.
    """
    scopes = {node.name or "": _module_of(node, root) for node in model.graph}
    _strip_prefix(model.graph, root)
    _fold_weight_transposes(model.graph)
    weights = set(model.graph.initializers)
    onnxscript.optimizer.optimize(model)
    _divide(model.graph)
    _drop_zeros(model.graph)
    weights |= _fold_into_convolutions(model.graph)
    _make_reshapes_constant(model.graph)
    for step in (
        passes.CommonSubexpressionEliminationPass(),
        passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        passes.RemoveUnusedNodesPass(),
        passes.TopologicalSortPass(),
    ):
        step(model)
    _name_everything(model.graph, scopes, weights | set(shapes))
    for value in (*model.graph.inputs, *model.graph.outputs):
        value.shape = ir.Shape(shapes[_name(value)])
    _drop_provenance(model)


def _name(value: ir.Value) -> str:
    return value.name or ""  # torch's exporter names every value


def _module_of(node: ir.Node, root: str) -> str:
    """Dotted path of the module that a node comes from, or an empty string."""
    try:
        scopes = ast.literal_eval(node.metadata_props.get(_SCOPES, "[]"))
    except (SyntaxError, ValueError):
        return ""
    # The last scope is the operation itself; those before it are the modules from outside in.
    path = str(scopes[-2]) if len(scopes) > 1 else ""
    return path.removeprefix(root) if path.startswith(root) else ""


def _strip_prefix(graph: ir.Graph, root: str) -> None:
    for name in [name for name in graph.initializers if name.startswith(root)]:
        value = graph.initializers.pop(name)
        value.name = name.removeprefix(root)
        graph.initializers[value.name] = value


def _fold_weight_transposes(graph: ir.Graph) -> None:
    """Store linear weights as (in, out), under the parameter's name.

    The general constant folding would do the same under a name that says nothing. What is stored is
    made when the model is saved, one weight at a time: a copy of all would double a large model.
    """
    transposes: dict[tuple[str, tuple[int, ...]], list[ir.Node]] = defaultdict(list)
    for node in graph:
        source = node.inputs[0] if node.inputs else None
        if node.op_type == "Transpose" and source is not None and source.is_initializer():
            transposes[_name(source), tuple(node.attributes["perm"].as_ints())].append(node)
    for (name, permutation), nodes in transposes.items():
        source = graph.initializers[name]
        weight = source.const_value
        if weight is None:
            continue
        if len(source.uses()) == len(nodes):  # nothing else reads it: layers may share a weight
            del graph.initializers[name]
            folded = _transposed(graph, name, weight, permutation)
        else:
            folded = _transposed(graph, f"{name}.transposed", weight, permutation)
        for node in nodes:
            node.outputs[0].replace_all_uses_with(folded)
            graph.remove(node, safe=True)


def _transposed(
    graph: ir.Graph, name: str, weight: ir.TensorProtocol, permutation: Sequence[int]
) -> ir.Value:
    def made() -> ir.TensorProtocol:
        array = np.ascontiguousarray(weight.numpy().transpose(permutation))
        return ir.tensor(array, name=name)

    sizes = weight.shape.numpy()
    shape = ir.Shape([sizes[axis] for axis in permutation])
    return _initializer(graph, name, ir.LazyTensor(made, weight.dtype, shape, name=name))


def _initializer(graph: ir.Graph, name: str, tensor: ir.TensorProtocol) -> ir.Value:
    value = ir.Value(
        name=name,
        const_value=tensor,
        shape=ir.Shape(tensor.shape.numpy()),
        type=ir.TensorType(tensor.dtype),
    )
    graph.initializers[name] = value
    return value


def _divide(graph: ir.Graph) -> None:
    """Turn products with a reciprocal into quotients.

    torch writes x * rsqrt(v) for a root mean square norm, and runtimes fuse x / sqrt(v).
    """
    for node in graph:
        if node.op_type != "Mul":
            continue
        for value, factor in (node.inputs, reversed(node.inputs)):
            made_by = None if factor is None else factor.producer()
            if made_by is not None and made_by.op_type == "Reciprocal":
                node.op_type = "Div"
                node.replace_input_with(0, value)
                node.replace_input_with(1, made_by.inputs[0])
                break


def _drop_zeros(graph: ir.Graph) -> None:
    """Drop sums with zeros alone, such as the mask of a network that looks at all of an image."""
    for node in list(graph):
        if node.op_type != "Add" or node.outputs[0].is_graph_output():
            continue
        result = node.outputs[0]
        for zeros, other in (node.inputs, reversed(node.inputs)):
            if other is None or other.shape is None or other.shape != result.shape:
                continue  # the zeros make it larger
            if any(not isinstance(size, int) and size.value is None for size in other.shape):
                continue  # or may do so
            if zeros is None or zeros.const_value is not None:
                continue  # a bias that is not trained yet
            if _filled_with(zeros) == 0:
                result.replace_all_uses_with(other)
                graph.remove(node, safe=True)
                break


def _filled_with(value: ir.Value | None) -> float | None:
    """The one number that all of a value is, or None where it is not known to be."""
    if value is None:
        return None
    if value.const_value is not None:
        numbers = value.const_value.numpy().reshape(-1)
        return float(numbers[0]) if numbers.size and (numbers == numbers[0]).all() else None
    made_by = value.producer()
    if made_by is None or made_by.op_type not in ("Expand", "Where"):
        return None
    first = _filled_with(made_by.inputs[0])
    if made_by.op_type == "Expand" or first is None:
        return first
    return _filled_with(made_by.inputs[1 if first else 2])


def _fold_into_convolutions(graph: ir.Graph) -> set[str]:
    """Let convolutions scale and shift their channels themselves.

    The optimizer does so with batch norms. Frozen ones (DETR) are a product and a sum with
    constants: with int8 the values in front of them would be rounded, all channels by one scale.

    Returns:
        The names of new biases.
    """
    made: set[str] = set()
    for node in list(graph):
        if node.op_type != "Conv" or len(node.outputs) != 1:
            continue
        for kind in ("Mul", "Add"):
            found = _behind(node, kind)
            if found is None:
                continue
            reader, values = found
            weight, bias = node.inputs[1], node.inputs[2] if len(node.inputs) > 2 else None
            if weight is None or not _is_own(weight) or not (bias is None or _is_own(bias)):
                break
            kernel = weight.const_value.numpy()  # type: ignore[union-attr]  # it is its own
            shift = np.zeros_like(values) if bias is None else bias.const_value.numpy()  # type: ignore[union-attr]
            if kind == "Mul":
                kernel = kernel * values.reshape(-1, *[1] * (kernel.ndim - 1))
                shift = shift * values
            else:
                shift = shift + values
            node.replace_input_with(1, _replaced(graph, weight, kernel))
            if bias is not None:
                node.replace_input_with(2, _replaced(graph, bias, shift))
            elif kind == "Add":
                name = f"{_name(weight).removesuffix('.weight')}.bias"
                made.add(name)
                node.resize_inputs(3)
                shifting = ir.tensor(np.ascontiguousarray(shift), name=name)
                node.replace_input_with(2, _initializer(graph, name, shifting))
            reader.outputs[0].replace_all_uses_with(node.outputs[0])
            graph.remove(reader, safe=True)
    return made


def _behind(node: ir.Node, kind: str) -> tuple[ir.Node, np.ndarray] | None:
    """The one reader of a convolution, if it is of a kind, and its constant for each channel."""
    output, kernel = node.outputs[0], node.inputs[1]
    readers = [use.node for use in output.uses()]
    if len(readers) != 1 or output.is_graph_output() or readers[0].op_type != kind:
        return None
    (reader,) = readers
    others = [each for each in reader.inputs if each is not output]
    if len(others) != 1 or others[0] is None or others[0].const_value is None:
        return None
    if reader.outputs[0].is_graph_output() or kernel is None or kernel.const_value is None:
        return None
    values, sizes = others[0].const_value.numpy(), kernel.const_value.shape.numpy()
    wanted = (sizes[0], *[1] * (len(sizes) - 2))
    if values.shape not in (wanted, (1, *wanted)) or values.dtype != np.float32:
        return None
    return reader, values.reshape(-1)


def _is_own(value: ir.Value) -> bool:
    """Whether a constant is read once only: others would see that it changed."""
    return value.const_value is not None and len(value.uses()) == 1


def _replaced(graph: ir.Graph, value: ir.Value, array: np.ndarray) -> ir.Value:
    """An initializer of the same name with other values."""
    name = _name(value)
    graph.initializers.pop(name, None)
    return _initializer(graph, name, ir.tensor(np.ascontiguousarray(array), name=name))


def _make_reshapes_constant(graph: ir.Graph) -> None:
    """Replace targets computed from the input's shape by constants, such as (0, 0, heads, -1).

    A 0 copies the size of the input at that place, which is what attention asks for, and what
    runtimes look for when they fuse attention.
    """
    for node in list(graph):
        if node.op_type != "Reshape":
            continue
        data, wanted, result = node.inputs[0], node.inputs[1], node.outputs[0]
        if data is None or wanted is None or wanted.const_value is not None:
            continue
        target = _reshape_target(data.shape, result.shape)
        if target is None:
            continue
        name = f"reshape {target}"  # equal targets share one constant
        constant = graph.initializers.get(name) or _initializer(
            graph, name, ir.tensor(np.array(target, np.int64), name=name)
        )
        node.replace_input_with(1, constant)
        node.attributes["allowzero"] = ir.AttrInt64("allowzero", 0)


def _reshape_target(before: ir.Shape | None, after: ir.Shape | None) -> list[int] | None:
    """The constant target of a reshape between two partly known shapes, or None."""
    if before is None or after is None:
        return None
    target = []
    for axis, size in enumerate(after):
        if isinstance(size, int):
            target.append(size)
        elif axis < len(before) and size.value is not None and before[axis] == size:
            target.append(0)
        else:
            target.append(-1)
    if target.count(-1) > 1 or 0 in tuple(after):
        return None
    return target


def _name_everything(graph: ir.Graph, scopes: dict[str, str], kept: set[str]) -> None:
    """Names that follow from the graph alone: the exporter's count up from call to call."""
    seen = Counter(kept)

    def unique(wanted: str) -> str:
        seen[wanted] += 1
        return wanted if seen[wanted] == 1 else f"{wanted}_{seen[wanted]}"

    for node in graph:
        readers = [use.node.name or "" for value in node.outputs for use in value.uses()]
        scope = next((scopes[name] for name in (node.name or "", *readers) if scopes.get(name)), "")
        node.name = unique(f"{scope}.{node.op_type}" if scope else node.op_type)
        for index, value in enumerate(node.outputs):
            if value.name not in kept:
                suffix = "output" if index == 0 else f"output_{index}"
                value.name = unique(f"{node.name}.{suffix}")
    for name in [name for name in graph.initializers if name not in kept]:
        value = graph.initializers.pop(name)
        value.name = unique("constant")
        graph.initializers[value.name] = value


def _drop_provenance(model: ir.Model) -> None:
    passes.ClearMetadataAndDocStringPass()(model)
    model.graph.name = "main"
    model.graph.metadata_props.clear()
    model.metadata_props.clear()
    for node in model.graph:
        node.metadata_props.clear()
        for value in node.outputs:
            if value not in model.graph.outputs:
                value.shape = value.type = None  # runtimes infer both; torch's symbols are no help
            value.metadata_props.clear()
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
