import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from compressor.quantization import channels
from compressor.quantization.channels import quantize_channels
from compressor.quantization.smooth import smoothing_factors

FINITE = st.floats(-1e4, 1e4, width=32)


@settings(deadline=None, max_examples=60)
@given(
    hnp.arrays(np.float32, (3, 5), elements=FINITE),
    st.sampled_from([0, 1]),
    st.sampled_from([7, 8]),
)
def test_every_value_is_restored_to_half_a_step(weight, axis, bits):
    integers, scales = quantize_channels(weight, axis=axis, bits=bits)
    assert integers.dtype == np.int8
    assert np.abs(integers.astype(int)).max() <= {7: 63, 8: 127}[bits]
    shape = (-1, 1) if axis == 0 else (1, -1)
    restored = integers * scales.reshape(shape)
    assert (np.abs(restored - weight) <= 0.5001 * scales.reshape(shape) + 1e-30).all()


def test_a_channel_of_zeros_has_a_scale_that_divides():
    integers, scales = quantize_channels(np.zeros((2, 3), np.float32), axis=0)
    assert not integers.any()
    assert (scales == 1).all()


@pytest.mark.parametrize("axis", [0, 1])
def test_large_weights_are_rounded_some_channels_at_a_time(axis, monkeypatch):
    weight = np.random.default_rng(0).standard_normal((30, 50)).astype(np.float32)
    weight.setflags(write=False)  # as those of a mapped file
    whole = quantize_channels(weight, axis=axis)
    monkeypatch.setattr(channels, "_VALUES_AT_ONCE", 110)
    parts = quantize_channels(weight, axis=axis)
    for found, expected in zip(parts, whole, strict=True):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0])
def test_smoothing_evens_out_what_the_strength_says(strength):
    activations = np.array([100.0, 1.0, 4.0], np.float32)
    weights = np.array([1.0, 1.0, 0.25], np.float32)
    factors = smoothing_factors(activations, weights, strength)
    if strength == 1.0:
        np.testing.assert_allclose(activations / factors, 1, rtol=1e-6)
    elif strength == 0.0:
        np.testing.assert_allclose(weights * factors, 1, rtol=1e-6)
    else:
        np.testing.assert_allclose(activations / factors, weights * factors, rtol=1e-6)


def test_channels_in_which_nothing_was_seen_are_left_alone():
    factors = smoothing_factors(np.array([0.0, 2.0]), np.array([1.0, 0.0]), 0.5)
    assert (factors == 1).all()
