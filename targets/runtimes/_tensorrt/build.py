"""Build an engine from an ONNX model with TensorRT or TensorRT-RTX, and report its layers.

Imports only the standard library and, when it builds, the runtime's own module: the text of this
module with a call of `main` behind it is the script that builds an engine on another machine.
"""

from __future__ import annotations

import importlib
import json
import re
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

__all__ = [
    "ENGINE",
    "LAYERS",
    "MODEL",
    "BuildError",
    "BuildOptions",
    "Built",
    "Layer",
    "Product",
    "build",
    "layers_of_json",
    "layers_of_log",
    "main",
]

MODEL = "model.onnx"
ENGINE = "model.engine"
LAYERS = "layers.json"

DATA_TYPES = {
    "Float": r"Float|FP32",
    "Half": r"Half|FP16",
    "BFloat16": r"BFloat16|BF16",
    "Int8": r"Int8",
}
"""The runtimes' words for a data type; they differ between versions."""

NARROWEST_FIRST = ("Int8", "Half", "BFloat16", "Float")


class BuildError(Exception):
    """The runtime refused the model; the message holds its own words."""


@dataclass(frozen=True)
class BuildOptions:
    """Everything that decides what the engine looks like.

    Attributes:
        module: ``tensorrt`` or ``tensorrt_rtx``.
        shapes: Input -> (smallest, usual, largest) shape.
        products: ONNX node of each matrix product -> data type it should run in.
        product_type: Data type that at least one matrix product has to run in; None asks for none.
        weight_type: Data type in which at least one matrix product has to read its weights.
        compute_capabilities: Such as ``SM86``; empty leaves it to the builder.
        workspace_bytes: Most scratch memory that a layer may use; None for the builder's own limit.
        tf32: Let fp32 matrix products round their inputs to 10 bits of mantissa.
    """

    module: str
    shapes: Mapping[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]
    products: Mapping[str, str]
    product_type: str | None = None
    weight_type: str | None = None
    compute_capabilities: tuple[str, ...] = ()
    workspace_bytes: int | None = None
    tf32: bool = True


@dataclass(frozen=True)
class Layer:
    """One kernel of the engine, with the data types it reads and writes."""

    name: str
    type: str
    inputs: tuple[str, ...]
    constants: tuple[str, ...]
    outputs: tuple[str, ...]
    nodes: tuple[str, ...]
    """ONNX nodes that it does the work of, or a part of it."""

    @property
    def product_type(self) -> str | None:
        """Data type in which the kernel multiplies matrices; None where it does not."""
        known = r"gemm|correlation|conv|matmul|matrix_?multiply|fusion|mha"
        if not re.search(known, self.type, re.IGNORECASE) and "_gemm" not in self.name[:8]:
            return None
        if "fusion" not in self.type:
            return next(iter((*self.inputs, *self.constants)), None)
        types = {*self.inputs, *self.constants}
        if re.search(r"Cast[A-Za-z]*Fc", self.name):  # dequantizes first, then multiplies floats
            types.discard("Int8")
        # What is fused behind the product, such as a residual, may be wider than its operands.
        return next((each for each in NARROWEST_FIRST if each in types), None)


@dataclass(frozen=True)
class Product:
    """A matrix product of the ONNX model and what became of it.

    ``found`` is None where no layer of its own does it: folded at build time, or part of a kernel
    that does not say so.
    """

    node: str
    expected: str
    found: str | None
    layer: str | None


@dataclass(frozen=True)
class Built:
    """An engine and its report."""

    version: str
    plan: bytes
    layers: tuple[Layer, ...]
    products: tuple[Product, ...]

    @property
    def counts(self) -> dict[str, int]:
        """Data type -> number of matrix products that run in it."""
        return dict(Counter(each.found for each in self.products if each.found is not None))

    @property
    def mismatches(self) -> tuple[Product, ...]:
        """Matrix products that run in another type than they should."""
        return tuple(p for p in self.products if p.found is not None and p.found != p.expected)

    def meets(self, options: BuildOptions) -> bool:
        """Whether one matrix product is of the type asked for, and one has its weights in it."""
        products = [layer for layer in self.layers if layer.product_type is not None]
        return all(
            wanted is None or wanted in found
            for wanted, found in (
                (options.product_type, [layer.product_type for layer in products]),
                (options.weight_type, [each for layer in products for each in layer.constants]),
            )
        )

    def write(self, folder: Path) -> None:
        """Write the engine and its report."""
        (folder / ENGINE).write_bytes(self.plan)
        report = {
            "version": self.version,
            "products": [asdict(product) for product in self.products],
            "layers": [asdict(layer) for layer in self.layers],
        }
        (folder / LAYERS).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def build(path: Path, options: BuildOptions) -> Built:
    """Build an engine.

    Args:
        path: The ONNX model.
        options: What to build.

    Raises:
        BuildError: The parser or the builder refused the model.
    """
    trt: Any = importlib.import_module(options.module)
    log, logger = _make_logger(trt)
    builder = trt.Builder(logger)
    # From version 11 on every network is strongly typed and the flag has no effect.
    flags = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(flags)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(path)):
        raise BuildError("\n".join(_parser_errors(parser)) or "the parser gave no reason")
    plan = builder.build_serialized_network(network, _configure(trt, builder, network, options))
    if plan is None:
        raise BuildError("\n".join(log["errors"][:3]) or "the builder gave no reason")
    layers = layers_of_log(log["layers"])
    if not layers:  # the classic builder does not log them, but it has a GPU to load the engine on
        engine = trt.Runtime(logger).deserialize_cuda_engine(plan)
        if engine is not None:
            as_json = trt.LayerInformationFormat.JSON
            layers = layers_of_json(
                engine.create_engine_inspector().get_engine_information(as_json)
            )
    products = tuple(_find(node, data_type, layers) for node, data_type in options.products.items())
    return Built(trt.__version__, bytes(plan), layers, products)


def _make_logger(trt: Any) -> tuple[dict[str, list[str]], Any]:
    """A logger that keeps errors and the layer report, and prints nothing."""
    log: dict[str, list[str]] = {"errors": [], "layers": []}

    class Logger(trt.ILogger):  # type: ignore[misc]  # the class exists only once it is imported
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.Severity.ERROR:
                log["errors"].append(message)
            elif "LayerType: " in message:
                log["layers"].append(message)

    return log, Logger()


def _configure(trt: Any, builder: Any, network: Any, options: BuildOptions) -> Any:
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if options.tf32:
        config.set_flag(trt.BuilderFlag.TF32)
    else:
        config.clear_flag(trt.BuilderFlag.TF32)
    if options.workspace_bytes is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_bytes)
    if options.compute_capabilities:
        config.num_compute_capabilities = len(options.compute_capabilities)
        for index, name in enumerate(options.compute_capabilities):
            config.set_compute_capability(getattr(trt.ComputeCapability, name), index)
    profile = builder.create_optimization_profile()
    free = [each for each in map(network.get_input, range(network.num_inputs)) if -1 in each.shape]
    for tensor in free:
        if tensor.name not in options.shapes:
            raise BuildError(f"input {tensor.name} has a free dimension and no range")
        profile.set_shape(tensor.name, *options.shapes[tensor.name])
    if free:
        config.add_optimization_profile(profile)
    return config


def _parser_errors(parser: Any) -> Iterable[str]:
    for index in range(min(parser.num_errors, 5)):
        error = parser.get_error(index)
        yield f"{error.node_operator()} {error.node_name()!r}: {error.desc()}"


def layers_of_log(messages: Iterable[str]) -> tuple[Layer, ...]:
    """Read the layers out of a verbose build log."""
    layers = []
    for line in "\n".join(messages).splitlines():
        start = re.search(r"Name: (.*?), LayerType: (\w+), Inputs: ", line)
        if start is not None:
            rest = line[start.end() - len("Inputs: ") :]
            parts = re.split(r"\b(Inputs|Constants|Outputs|TacticName|Metadata): ", rest)[1:]
            found = dict(zip(parts[::2], parts[1::2], strict=True))
            types = {key: re.findall(r"Datatype: (\w+)", text) for key, text in found.items()}
            layers.append(_layer(start[1], start[2], types, found.get("Metadata", "")))
    return tuple(layers)


def layers_of_json(text: str) -> tuple[Layer, ...]:
    """Read the layers out of what the engine inspector says."""
    return tuple(
        _layer(
            layer["Name"],
            layer.get("LayerType", ""),
            {
                key: [_data_type(each) for each in layer.get(key, []) if isinstance(each, dict)]
                for key in ("Inputs", "Constants", "Outputs")
            },
            layer.get("Metadata", ""),
        )
        for layer in json.loads(text)["Layers"]
        if isinstance(layer, dict)
    )


def _layer(name: str, kind: str, types: Mapping[str, list[str]], metadata: str) -> Layer:
    inputs, constants, outputs = (
        tuple(types.get(key, ())) for key in ("Inputs", "Constants", "Outputs")
    )
    nodes = tuple(re.findall(r"\[ONNX Layer: (.*?)\](?=[\s\x1e]*(?:\[|$))", metadata))
    return Layer(name, kind, inputs, constants, outputs, nodes)


def _data_type(tensor: Mapping[str, Any]) -> str:
    """The data type of a tensor, in the words of version 11 ("Datatype") or 10 ("Format/...")."""
    text = next((str(v) for k, v in tensor.items() if "datatype" in k.lower()), "")
    for name, pattern in DATA_TYPES.items():
        if re.search(rf"\b(?:{pattern})\b", text, re.IGNORECASE):
            return name
    return text


def _find(node: str, expected: str, layers: Iterable[Layer]) -> Product:
    candidates = [layer for layer in layers if node in layer.nodes and layer.product_type]
    candidates.sort(key=lambda layer: layer.product_type != expected)
    if not candidates:
        return Product(node, expected, None, None)
    return Product(node, expected, candidates[0].product_type, candidates[0].name)


def main(options: BuildOptions) -> None:
    """Build the engine of the model beside this script."""
    folder = Path(__file__).resolve().parent
    try:
        built = build(folder / MODEL, options)
    except (BuildError, ImportError) as error:
        sys.exit(f"no engine was built: {error}")
    built.write(folder)
    types = ", ".join(f"{count} {name}" for name, count in built.counts.items()) or "not reported"
    lines = [f"wrote {folder / ENGINE}, {len(built.plan)} bytes", f"matrix products: {types}"]
    lines += [f"{p.node}: {p.found}, not {p.expected}" for p in built.mismatches]
    sys.stdout.write("\n".join(lines) + "\n")
    if built.layers and not built.meets(options):
        wanted = options.product_type or f"{options.weight_type} weights"
        sys.exit(f"not one matrix product runs in {wanted}")
