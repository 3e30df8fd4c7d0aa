"""Where the last microseconds of int8 bundles go, and how far their products are from the machine.

Each bundle runs under its runtime's own profiler. The products of its layers are compared with the
largest product that `benchmarks.gemm_peak` times, on the same runtime and in the same process.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import gemm_peak
from targets.bundle import Bundle
from targets.environment import Environment
from targets.node_times import NodeTime
from targets.profiling import Profile, profile

LENGTH, THREADS = 128, 2
MOST = 7
"""Types of nodes in a table; the others are one row."""
LAYER = ".layer."
"""In the names of what belongs to a layer, where every token is multiplied."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Profile bundles of one model, one of them for ONNX Runtime."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.where_time_goes", description=__doc__
    )
    parser.add_argument("bundles", type=Path, nargs="+", help="one for each runtime")
    parser.add_argument("--output", type=Path, help="JSON with every node")
    options = parser.parse_args(arguments)
    bundles = [Bundle.open(path) for path in options.bundles]
    sizes = _sizes(bundles)
    document: dict[str, Any] = {
        "environment": Environment.here().model_dump(mode="json"),
        "length": LENGTH,
        "threads": THREADS,
        "sizes": sizes,
        "peak_gops": gemm_peak.gops(gemm_peak.SIZES[0], THREADS),
        "bundles": [
            {
                "target": each.manifest.target,
                "profile": profile(
                    each, batch_size=1, length=LENGTH, threads=THREADS
                ).model_dump(mode="json"),
            }
            for each in bundles
        ],
    }  # fmt: skip
    if options.output is not None:
        options.output.write_text(json.dumps(document) + "\n", encoding="utf-8")
    print("\n".join(table(document)))
    return 0


def _sizes(bundles: Sequence[Bundle]) -> dict[str, tuple[int, int]]:
    """Name of a product -> rows and columns of its weights, by the bundle of ONNX Runtime."""
    import onnx

    [path] = [each.model_path for each in bundles if each.manifest.target == "onnxruntime"]
    own, joined = ".weight_quantized", ".Softmax_weight"  # those of attention are side by side
    found: dict[str, tuple[int, int]] = {}
    for each in onnx.load(path).graph.initializer:
        if LAYER in each.name and each.name.endswith(own):
            found[each.name.removesuffix(own)] = (each.dims[0], each.dims[1])
        elif LAYER in each.name and each.name.endswith(joined):
            size = (each.dims[0], each.dims[1] // 3)
            parts = ("query", "key", "value")
            found |= {f"{each.name.removesuffix(joined)}.{part}": size for part in parts}
    return found


def table(document: Mapping[str, Any]) -> Iterator[str]:
    """Types of nodes of each bundle, and the speed of its products, in Markdown."""
    for each in document["bundles"]:
        found = Profile.model_validate(each["profile"])
        yield f"| {each['target']}: type of node | nodes | ms | share |"
        yield "|---|---|---|---|"
        ops = found.by_op()
        for op in ops[:MOST]:
            yield _row(op.op, op.count, op.ms, found)
        rest = ops[MOST:]
        yield _row("others", sum(op.count for op in rest), sum(op.ms for op in rest), found)
        yield f"| all | {len(found.nodes)} | {found.nodes_ms:.2f} | |"
        yield f"| a run without the profiler | | {found.run_ms:.2f} | |"
        peak = document["peak_gops"][each["target"]]
        reached = _gops(found.nodes, document["sizes"], document["length"])
        yield (
            f"| products of the layers: {reached:.0f} billion operations a second, "
            f"{reached / peak:.0%} of {peak:.0f} | | | |"
        )
        yield ""


def _row(name: str, count: int, ms: float, found: Profile) -> str:
    return f"| {name} | {count} | {ms:.2f} | {ms / found.nodes_ms:.0%} |"


def _gops(
    nodes: Sequence[NodeTime], sizes: Mapping[str, tuple[int, int]], length: int
) -> float:  # fmt: skip
    """Of the products that have a node of their own."""
    operations, ms = 0.0, 0.0
    for node in nodes:
        size = sizes.get(node.name.partition(".MatMul")[0])
        if size is not None and ".MatMul" in node.name:
            operations += 2.0 * length * size[0] * size[1]
            ms += node.ms
    return operations / ms / 1e6 if ms else 0.0


if __name__ == "__main__":
    sys.exit(main())
