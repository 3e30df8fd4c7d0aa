import numpy as np
import pytest

from compressor.quantization.histogram import (
    Histogram,
    entropy_threshold,
    percentile_threshold,
)


def of(*batches):
    histogram = Histogram.empty()
    for batch in batches:
        histogram = histogram.add(np.asarray(batch, np.float32))
    return histogram


def test_every_value_is_counted_once_whatever_the_batches_are():
    values = np.random.default_rng(0).normal(size=10_000).astype(np.float32)
    streamed = of(values[:10], values[10:500] * 50, values[500:])
    assert streamed.counts.sum() == values.size


def test_growing_the_range_merges_bins_without_moving_a_value():
    small = np.linspace(0.01, 1, 1000, dtype=np.float32)
    grown = of(small, [7.5])
    at_once = np.histogram([*small, 7.5], bins=grown.counts.size, range=(0, grown.limit))[0]
    assert np.abs(np.cumsum(grown.counts) - np.cumsum(at_once)).max() <= 1  # values on an edge


def test_adding_leaves_the_old_histogram_as_it_was():
    before = of([1.0, 2.0])
    before.add(np.array([100.0], np.float32))
    assert before.maximum == 2.0
    assert before.counts.sum() == 2


def test_both_ends_are_kept_with_0_among_them():
    assert (of([0.5, -3.0], [1.0]).low, of([0.5, -3.0], [1.0]).high) == (-3.0, 1.0)
    assert (of([2.0, 3.0]).low, of([2.0, 3.0]).high) == (0.0, 3.0)
    assert of([0.5, -3.0], [1.0]).maximum == 3.0


@pytest.mark.parametrize("percentile", [50.0, 90.0, 99.0, 99.9])
def test_percentile_agrees_with_numpy_to_one_bin(percentile):
    values = np.random.default_rng(1).laplace(size=50_000).astype(np.float32)
    histogram = of(*np.split(values, 10))
    expected = np.percentile(np.abs(values), percentile)
    assert percentile_threshold(histogram, percentile) == pytest.approx(
        expected, abs=2 * histogram.bin_width
    )


def test_hundredth_percentile_clips_nothing():
    assert percentile_threshold(of([0.25, 8.0, -9.5]), 100) == 9.5


def test_entropy_clips_rare_outliers_but_keeps_the_body():
    generator = np.random.default_rng(2)
    values = generator.normal(size=100_000)
    values[:5] = 60.0
    threshold = entropy_threshold(of(values))
    assert 3 < threshold < 30


def test_entropy_clips_nothing_where_all_values_matter_alike():
    values = np.random.default_rng(3).uniform(-1, 1, 100_000)
    assert entropy_threshold(of(values)) > 0.95


def test_a_tensor_of_zeros_has_threshold_zero():
    zeros = of(np.zeros(10), np.zeros(3))
    assert entropy_threshold(zeros) == percentile_threshold(zeros, 100) == 0.0


def test_zeros_seen_first_do_not_fix_the_range():
    histogram = of(np.zeros(10), [4.0])
    assert histogram.limit == 4.0
    assert histogram.counts[0] == 10
