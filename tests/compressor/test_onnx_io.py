import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from compressor.errors import CheckpointError
from compressor.onnx_io import (
    Graph,
    load_model,
    open_model,
    prune_unused,
    save_model,
    sort_nodes,
    weights_size_bytes,
)
from compressor.quantization import (
    quantize_dynamic,
    quantize_static,
    quantize_weights,
    request_bf16,
)


def test_weights_above_the_limit_go_to_a_second_file(tmp_path, make_encoder, make_feeds):
    model = make_encoder()
    before = model.SerializeToString()
    path = tmp_path / "big.onnx"
    save_model(model, path, single_file_limit_bytes=1000)
    assert path.stat().st_size < 20_000
    assert (tmp_path / "big.onnx.data").stat().st_size > 50_000
    expected = ReferenceEvaluator(model).run(None, make_feeds())[0]
    np.testing.assert_array_equal(
        ReferenceEvaluator(load_model(path)).run(None, make_feeds())[0], expected
    )
    assert weights_size_bytes(model) > 50_000  # saving took nothing out of the model
    assert len(model.SerializeToString()) == pytest.approx(len(before), rel=0.01)


def test_saving_again_does_not_append_to_the_weights(tmp_path, make_encoder):
    path = tmp_path / "big.onnx"
    for _ in range(2):
        save_model(make_encoder(), path, single_file_limit_bytes=1000)
    once = tmp_path / "once.onnx"
    save_model(make_encoder(), once, single_file_limit_bytes=1000)
    data = [each.with_name(each.name + ".data").stat().st_size for each in (path, once)]
    assert data[0] == data[1]


def test_a_small_model_leaves_no_stale_weights_behind(tmp_path, make_encoder):
    path = tmp_path / "model.onnx"
    save_model(make_encoder(), path, single_file_limit_bytes=1000)
    save_model(make_encoder(), path)
    assert [each.name for each in tmp_path.iterdir()] == ["model.onnx"]


@pytest.mark.parametrize("limit", [0, 10**9])
def test_an_opened_model_leaves_its_weights_in_their_file(
    tmp_path, make_encoder, make_feeds, limit
):
    path, again = tmp_path / "big.onnx", tmp_path / "elsewhere" / "again.onnx"
    save_model(make_encoder(), path, single_file_limit_bytes=1000)
    model = open_model(path)
    assert len(model.SerializeToString()) < 20_000
    assert weights_size_bytes(model) == weights_size_bytes(make_encoder())
    names = {each.name for each in make_encoder().graph.initializer}
    for name in names & set(Graph(make_encoder()).initializers):
        if Graph(model).is_weight(name):
            expected = Graph(make_encoder()).weight(name)
            np.testing.assert_array_equal(Graph(model).weight(name), expected)
    save_model(model, again, single_file_limit_bytes=limit)
    assert (again.parent / "again.onnx.data").exists() == (limit == 0)
    path.unlink()
    (tmp_path / "big.onnx.data").unlink()
    np.testing.assert_array_equal(
        ReferenceEvaluator(load_model(again)).run(None, make_feeds())[0],
        ReferenceEvaluator(make_encoder()).run(None, make_feeds())[0],
    )


def test_an_opened_model_can_be_saved_over_itself(tmp_path, make_encoder, make_feeds):
    path = tmp_path / "big.onnx"
    save_model(make_encoder(), path, single_file_limit_bytes=1000)
    expected = ReferenceEvaluator(make_encoder()).run(None, make_feeds())[0]
    for limit in (1000, 10**9):
        save_model(open_model(path), path, single_file_limit_bytes=limit)
        found = ReferenceEvaluator(load_model(path)).run(None, make_feeds())[0]
        np.testing.assert_array_equal(found, expected)
    assert [each.name for each in tmp_path.iterdir()] == ["big.onnx"]


@pytest.mark.parametrize("method", ["weights", "dynamic", "static", "bf16"])
def test_models_with_weights_elsewhere_are_quantized_alike(
    tmp_path, make_encoder, make_feeds, method
):
    paths = [tmp_path / "one.onnx", tmp_path / "two.onnx"]
    for path, limit in zip(paths, (10**9, 1000), strict=True):
        save_model(make_encoder(), path, single_file_limit_bytes=limit)
    quantized = []
    for path in paths:
        found = tmp_path / f"{path.stem}-{method}.onnx"
        if method == "weights":
            quantize_weights(path, found, bits=4, group_size=16)
        elif method == "dynamic":
            quantize_dynamic(path, found)
        elif method == "static":
            quantize_static(path, found, [make_feeds()], smooth_quant=0.5)
        else:
            request_bf16(path, found)
        quantized.append(found.read_bytes())
    assert quantized[0] == quantized[1]


@pytest.mark.parametrize("content", [None, b"not a model"])
def test_what_is_no_model_is_refused_by_name(tmp_path, content):
    path = tmp_path / "model.onnx"
    if content:
        path.write_bytes(content)
    with pytest.raises(CheckpointError, match="not an ONNX model") as caught:
        load_model(path)
    assert caught.value.where == str(path)


def test_new_names_never_collide(make_encoder):
    graph = Graph(make_encoder())
    assert graph.new_name("up") == "up_2"
    assert graph.new_name("up") == "up_3"
    assert graph.add_initializer("table", np.zeros(1, np.float32)) == "table_2"


def test_pruning_removes_what_nothing_reads_and_keeps_the_rest(make_encoder):
    model = make_encoder()
    count = len(model.graph.initializer)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros(3), "unused"))
    prune_unused(model)
    assert len(model.graph.initializer) == count
    onnx.checker.check_model(model)


def test_sorting_repairs_an_order_that_no_runtime_takes(make_encoder, make_feeds):
    model = make_encoder()
    expected = ReferenceEvaluator(model).run(None, make_feeds())[0]
    nodes = list(reversed(make_encoder().graph.node))
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    with pytest.raises(onnx.checker.ValidationError, match="topologically"):
        onnx.checker.check_model(model)
    sort_nodes(model)
    onnx.checker.check_model(model)
    np.testing.assert_array_equal(ReferenceEvaluator(model).run(None, make_feeds())[0], expected)


def test_sorting_keeps_an_order_that_holds(make_encoder):
    model = make_encoder()
    sort_nodes(model)
    assert model == make_encoder()
