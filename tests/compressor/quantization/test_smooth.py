import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator

from compressor.onnx_io import node_types
from compressor.quantization.smooth import smooth


def run(model, feeds):
    return ReferenceEvaluator(model).run(None, feeds)[0]


def test_the_outputs_stay_and_the_source_too(make_encoder, make_feeds):
    model = make_encoder(outliers=60.0)
    before = model.SerializeToString()
    smoothed = smooth(model, [make_feeds(seed=1)], strength=0.5)
    feeds = make_feeds(seed=2)
    np.testing.assert_allclose(run(smoothed, feeds), run(model, feeds), atol=1e-4)
    assert model.SerializeToString() == before


def test_products_that_read_one_tensor_share_one_multiplication(make_encoder, make_feeds):
    model = make_encoder()
    smoothed = smooth(model, [make_feeds()], strength=0.5)
    added = node_types(smoothed)["Mul"] - node_types(model)["Mul"]
    assert added == 4  # query, key and value share one; output, up and down have their own


def test_excluded_products_keep_their_weights(make_encoder, make_feeds):
    smoothed = smooth(make_encoder(), [make_feeds()], strength=0.5, exclude=("up",))
    node = next(node for node in smoothed.graph.node if node.name == "up")
    assert node.input[1] == "up_weight"


def test_a_normalisation_that_nothing_else_reads_takes_the_factors(make_encoder, make_feeds):
    model = make_encoder()
    for node in model.graph.node:  # the residual reads the embedding: the norm is read once only
        if node.name == "residual2":
            node.input[0] = "norm0_out"
    onnx.checker.check_model(model)
    smoothed = smooth(model, [make_feeds()], strength=0.5)
    norm = next(node for node in smoothed.graph.node if node.name == "n1")
    assert list(norm.input)[1:] == ["n1_scale_smoothed", "n1_shift_smoothed"]
    feeds = make_feeds(seed=4)
    np.testing.assert_allclose(run(smoothed, feeds), run(model, feeds), atol=1e-4)
