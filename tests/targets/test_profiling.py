"""Where the time of a run goes: what the profilers of the runtimes say of a real bundle."""

import json

import pytest

from targets.bundle import Bundle
from targets.errors import TargetError
from targets.node_times import NodeTime, median_times
from targets.profiling import Profile, profile


def node(name, ms, op="MatMul", kernel="CPU"):
    return NodeTime(name=name, op=op, kernel=kernel, ms=ms)


def test_a_node_is_the_median_of_its_runs():
    runs = [[node("a", ms), node("b", 1.0)] for ms in (3.0, 1.0, 9.0)]
    assert {each.name: each.ms for each in median_times(runs)} == {"a": 3.0, "b": 1.0}


def test_a_node_that_most_runs_do_without_takes_no_time():
    assert [each.ms for each in median_times([[node("a", 5.0)], [], []])] == [0.0]


def test_nodes_of_one_type_and_kernel_are_added_up_the_most_expensive_first():
    nodes = (
        node("a", 1.0),
        node("b", 2.0),
        node("c", 9.0, op="Softmax"),
        node("d", 4.0, kernel="other"),
    )
    found = Profile(batch_size=1, length=8, threads=1, run_ms=1.0, nodes=nodes)
    assert [(each.op, each.kernel, each.count, each.ms) for each in found.by_op()] == [
        ("Softmax", "CPU", 1, 9.0),
        ("MatMul", "other", 1, 4.0),
        ("MatMul", "CPU", 2, 3.0),
    ]
    assert found.nodes_ms == 16.0


@pytest.mark.parametrize(
    ("target", "products", "kernel"),
    [
        ("onnxruntime", {"MatMul", "Gemm", "FusedMatMul"}, "CPU"),
        ("openvino", {"FullyConnected"}, ""),
    ],
)
def test_every_product_with_weights_is_among_the_nodes(make_small_bundle, target, products, kernel):
    bundle = Bundle.open(make_small_bundle(target))
    found = profile(bundle, batch_size=2, length=8, threads=1, num_runs=5)
    assert found.run_ms > 0
    assert len({each.name for each in found.nodes}) == len(found.nodes)
    assert all(each.ms >= 0 for each in found.nodes)
    assert sum(each.op in products for each in found.nodes) >= 6  # of each layer of the classifier
    assert all(kernel in each.kernel for each in found.nodes)
    assert found.nodes_ms == pytest.approx(sum(each.ms for each in found.by_op()))


def test_a_target_without_a_profiler_says_so(make_small_bundle, monkeypatch):
    from targets.base import Target
    from targets.runtimes.onnxruntime import OnnxRuntime

    monkeypatch.setattr(OnnxRuntime, "profile", Target.profile)
    with pytest.raises(TargetError, match="this target has no profiler") as caught:
        profile(
            Bundle.open(make_small_bundle("onnxruntime")),
            batch_size=1,
            length=8,
            threads=1,
            num_runs=1,
        )
    assert "onnxruntime" in str(caught.value.given)


def test_profile_prints_types_or_nodes_and_writes_all(make_small_bundle, tmp_path):
    from typer.testing import CliRunner

    from compressor.cli.app import app

    bundle, path = str(make_small_bundle("onnxruntime")), tmp_path / "profile.json"
    run = CliRunner().invoke
    outcome = run(app, ["profile", bundle, "--sequence-length", "8", "--json", str(path)])
    assert outcome.exit_code == 0, outcome.output
    written = Profile.model_validate(json.loads(path.read_bytes()))
    assert f"its {len(written.nodes)} nodes take" in outcome.output
    assert written.by_op()[0].op in outcome.output
    assert "100%" not in outcome.output
    whole = run(app, ["profile", bundle, "--sequence-length", "8", "--nodes"])
    assert all(each.name[:20] in whole.output for each in written.nodes)
