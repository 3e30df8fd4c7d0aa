"""The solver against exhaustive search, and the table against known times."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pytest

from compressor.architecture import Architecture
from compressor.search.latency import LatencyTable, Probe, fit_table, probe_shapes
from compressor.search.probing import _cut, _largest, _within
from compressor.search.solver import ImportanceCurves, Room, solve
from targets.shapes import LayerShape

NUM_LAYERS, HEADS, FFN = 3, 3, 24
WHOLE = Architecture("bert", (LayerShape(HEADS, FFN),) * NUM_LAYERS, 8, 24, 100, 2, 64)


def time_of(layers: tuple[LayerShape, ...]) -> float:
    return 0.5 + sum(0.2 + 0.3 * each.num_heads + 0.05 * each.ffn_width for each in layers)


def fit(probes: Sequence[Probe]) -> LatencyTable:
    return fit_table(
        probes,
        target="t",
        variant="int8",
        precision="int8",
        batch_size=1,
        sequence_length=128,
        threads=1,
    )


def table(scale: float = 1.0) -> LatencyTable:
    shapes = probe_shapes(HEADS, FFN, num_layers=2, multiple=8)
    probes = [
        Probe(layers=each, median_ms=scale * time_of(each), low_ms=1, high_ms=1) for each in shapes
    ]
    return fit(probes)


def curves(seed: int) -> ImportanceCurves:
    generator = np.random.default_rng(seed)
    return ImportanceCurves.of(
        [generator.exponential(size=HEADS) for _ in range(NUM_LAYERS)],
        [generator.exponential(size=FFN) for _ in range(NUM_LAYERS)],
    )


def test_the_table_gives_back_times_that_add_up() -> None:
    found = table()
    assert found.error < 1e-6
    assert found.base_ms == pytest.approx(0.5)
    mixed = (LayerShape(1, 8), LayerShape(3, 24), LayerShape(2, 16))
    assert found.predict(mixed) == pytest.approx(time_of(mixed))
    assert found.predict((LayerShape(2, 20),)) == pytest.approx(time_of((LayerShape(2, 20),)))


def test_noise_never_makes_more_work_cheaper() -> None:
    generator = np.random.default_rng(0)
    probes = [
        Probe(
            layers=each, median_ms=time_of(each) * generator.uniform(0.7, 1.3), low_ms=1, high_ms=1
        )
        for each in probe_shapes(12, 1536, num_layers=2, multiple=8)
    ]
    found = fit(probes)
    for entries in (found.attention_ms, found.ffn_ms):
        times = [entries[size] for size in sorted(entries)]
        assert times == sorted(times)
    assert 0 < found.error < 0.5


def test_the_probes_cover_small_and_whole_layers() -> None:
    shapes = probe_shapes(12, 1536, num_layers=2, multiple=32)
    layers = {layer for each in shapes for layer in each}
    assert {layer.num_heads for layer in layers} == {1, 2, 3, 4, 6, 8, 12}
    assert {layer.ffn_width for layer in layers} == {96, 192, 384, 768, 1536}
    assert sorted({len(each) for each in shapes}) == [1, 2]
    assert len(shapes) == len(set(shapes))


def test_no_probe_is_wider_than_a_layer() -> None:
    shapes = probe_shapes(2, 1020, num_layers=2, multiple=8)
    assert max(layer.ffn_width for each in shapes for layer in each) == 1020


def test_probes_are_cut_from_the_largest_layers() -> None:
    sizes = ((2, 192), (3, 64), (1, 256), (4, 192))
    layers = [LayerShape(heads, ffn) for heads, ffn in sizes]
    chosen = _largest(layers)
    assert chosen == [2, 3]
    (first, second) = _cut(chosen, (LayerShape(1, 64), LayerShape(1, 64))).shape or ()
    assert (first.layer, second.layer) == (2, 3)
    assert [each.layer for each in _cut(chosen, (LayerShape(1, 64),)).shape or ()] == [2]


def test_the_largest_of_unlike_layers_has_a_price_of_its_own() -> None:
    """Twelve heads in one layer, 1,536 neurons in another: both are timed at their full size."""
    layers = [LayerShape(1, 64), LayerShape(12, 64), LayerShape(1, 1536), LayerShape(1, 64)]
    chosen = _largest(layers)
    assert chosen == [1, 2]
    sizes = [layers[number] for number in chosen]
    shapes = [_within(each, sizes) for each in probe_shapes(12, 1536, num_layers=2, multiple=8)]
    assert {max(layer.num_heads for layer in each) for each in shapes} >= {1, 2, 3, 12}
    assert {max(layer.ffn_width for layer in each) for each in shapes} >= {96, 768, 1536}
    for each in shapes:
        for layer, size in zip(each, sizes, strict=False):
            assert layer.num_heads <= size.num_heads
            assert layer.ffn_width <= size.ffn_width
    probes = [Probe(layers=each, median_ms=time_of(each), low_ms=1, high_ms=1) for each in shapes]
    fitted = fit(probes)
    assert fitted.predict(layers) == pytest.approx(time_of(tuple(layers)), rel=0.02)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("limit", [2.03, 3.53, 5.03])
def test_no_shape_within_the_latency_keeps_more(seed: int, limit: float) -> None:
    found, importance = table(), curves(seed)
    solutions = solve(WHOLE, found, importance, limit_ms=limit)
    layer_options = [None, *(LayerShape(h, f) for h in (1, 2, 3) for f in (8, 16, 24))]
    best: dict[int, float] = {}
    total = sum(importance.lost(layer, None) for layer in range(NUM_LAYERS))
    for combination in itertools.product(layer_options, repeat=NUM_LAYERS):
        kept = tuple(each for each in combination if each is not None)
        if kept and found.predict(kept) <= limit:
            lost = sum(importance.lost(layer, each) for layer, each in enumerate(combination))
            best[len(kept)] = min(best.get(len(kept), np.inf), lost / total)
    assert solutions.keys() == best.keys()
    for count, solution in solutions.items():
        assert solution.latency_ms <= limit + 1e-9
        assert len(solution.kept) == count
        # Latency is rounded up to a thousandth: at the edge a solution may be missed.
        assert best[count] - 1e-9 <= solution.lost <= best[count] + 0.02
        shape = {each.layer: LayerShape(each.heads, each.ffn) for each in solution.kept}
        lost = sum(importance.lost(layer, shape.get(layer)) for layer in range(NUM_LAYERS))
        assert solution.lost == pytest.approx(lost / total)


def test_with_room_for_all_nothing_is_lost() -> None:
    solutions = solve(WHOLE, table(), curves(0), limit_ms=100.0)
    assert solutions[NUM_LAYERS].lost == pytest.approx(0, abs=1e-12)
    assert [each.layer for each in solutions[NUM_LAYERS].kept] == [0, 1, 2]


def test_where_nothing_fits_there_is_no_solution() -> None:
    assert solve(WHOLE, table(), curves(0), limit_ms=0.4) == {}
    assert solve(WHOLE, table(), curves(0), limit_ms=0.6) == {}


@pytest.mark.parametrize("layers", [(0, 2), (1, 2), (2,)])
def test_the_layers_that_are_asked_for_stay_and_no_others(layers: tuple[int, ...]) -> None:
    limit = 0.7 * time_of(WHOLE.layers)
    found = solve(WHOLE, table(), curves(1), limit_ms=limit, multiple=8, layers=layers)
    assert list(found) == [len(layers)]
    only = found[len(layers)]
    assert tuple(each.layer for each in only.kept) == layers
    assert only.latency_ms <= limit
    free = solve(WHOLE, table(), curves(1), limit_ms=limit, multiple=8)
    assert free[len(layers)].lost <= only.lost + 1e-9


def weights(shape: LayerShape) -> float:
    return 10.0 * shape.num_heads + shape.ffn_width


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("share", [0.8, 0.5, 0.3])
def test_no_shape_that_is_as_small_keeps_more(seed: int, share: float) -> None:
    limit = 0.9 * time_of(WHOLE.layers)
    room = Room(share * sum(map(weights, WHOLE.layers)), weights)
    found, importance = table(), curves(seed)
    solutions = solve(WHOLE, found, importance, limit_ms=limit, room=room)
    assert solutions
    layer_options = [None, *(LayerShape(h, f) for h in (1, 2, 3) for f in (8, 16, 24))]
    for count, solution in solutions.items():
        assert room.holds(solution.kept)
        assert len(solution.kept) == count
        assert solution.lost == pytest.approx(importance.lost_by(solution.kept) / importance.total)
        size = sum(weights(LayerShape(each.heads, each.ffn)) for each in solution.kept)
        for combination in itertools.product(layer_options, repeat=NUM_LAYERS):
            kept = tuple(each for each in combination if each is not None)
            fits = found.predict(kept) <= 0.999 * limit and sum(map(weights, kept)) <= size
            if len(kept) == count and fits:
                lost = sum(importance.lost(layer, each) for layer, each in enumerate(combination))
                assert solution.lost <= lost / importance.total + 0.02


def test_a_size_that_is_no_limit_changes_nothing_and_one_that_nothing_fits_leaves_nothing() -> None:
    limit = 0.7 * time_of(WHOLE.layers)
    free = solve(WHOLE, table(), curves(2), limit_ms=limit)
    assert solve(WHOLE, table(), curves(2), limit_ms=limit, room=Room(1e9, weights)) == free
    assert solve(WHOLE, table(), curves(2), limit_ms=limit, room=Room(17.0, weights)) == {}
    smallest = solve(WHOLE, table(), curves(2), limit_ms=limit, room=Room(18.0, weights))
    assert [(each.heads, each.ffn) for each in smallest[1].kept] == [(1, 8)]
