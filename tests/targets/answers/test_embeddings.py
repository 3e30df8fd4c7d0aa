"""Embeddings: how well they keep the order of the texts, against scipy and by hand."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import spearmanr

from targets.answers import EmbeddingAnswers, embeddings
from targets.answers.embeddings import nearest, neighbour_recall, rank_correlations
from targets.evaluation_pack import EvaluationPack
from targets.preprocessing import Encoded, TextPreprocessing
from targets.scoring import resampled_ratios

ANSWERS = EmbeddingAnswers()


def random(count: int = 40, size: int = 8, *, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=(count, size)).astype(np.float32)


def cosines(vectors: NDArray[np.float32]) -> NDArray[np.float64]:
    wide = vectors.astype(np.float64)
    wide /= np.linalg.norm(wide, axis=1, keepdims=True)
    return np.asarray(wide @ wide.T)


@pytest.mark.parametrize("rounded", [False, True])
def test_rank_correlations_are_those_of_scipy(rounded: bool) -> None:
    first, second = random(), random() + random(seed=1)
    if rounded:  # few different vectors: many texts are equally near
        first, second = np.sign(first[:, :2]), np.sign(second[:, :3])
    wanted = [
        spearmanr(np.delete(one, row), np.delete(other, row)).statistic
        for row, (one, other) in enumerate(
            zip(cosines(first).round(6), cosines(second).round(6), strict=True)
        )
    ]
    found = rank_correlations(first, second)
    assert found == pytest.approx(wanted)


def test_what_does_not_change_an_angle_changes_no_rank() -> None:
    vectors = random()
    turn, _ = np.linalg.qr(random(8, 8, seed=3))
    scale = np.linspace(0.1, 9, len(vectors))[:, None]
    assert rank_correlations(vectors, scale * (vectors @ turn)) == pytest.approx(1)
    assert rank_correlations(vectors, vectors[:, ::-1]) == pytest.approx(1)


def test_where_all_are_equally_near_there_is_no_order() -> None:
    same = np.ones((5, 3), np.float32)
    assert rank_correlations(same, same).tolist() == [1] * 5
    assert rank_correlations(random(5, 3), same).tolist() == [0] * 5
    assert rank_correlations(np.zeros((5, 3)), same).tolist() == [1] * 5


def test_copies_of_a_text_are_as_near_as_each_other() -> None:
    generator = np.random.default_rng(0)
    first = np.repeat(generator.standard_normal((30, 8)), 15, axis=0)
    second = np.repeat(generator.standard_normal((30, 8)), 15, axis=0)
    second += 1e-9 * generator.standard_normal(second.shape)  # how a batch was padded
    assert neighbour_recall(first, second).tolist() == [1] * len(first)
    assert (nearest(first) == nearest(second)).all()
    assert neighbour_recall(first, np.ones_like(second)).mean() < 0.1  # of what tells nothing apart


def test_neighbours_by_hand() -> None:
    """On a half circle: 0, 10, 25 and 60 degrees; in the other model the last lies at 5."""
    first, second = (
        np.stack([np.cos(np.radians(each)), np.sin(np.radians(each))], axis=1)
        for each in ([0.0, 10, 25, 60], [0.0, 10, 25, 5])
    )
    assert nearest(first).tolist() == [1, 0, 1, 2]
    assert nearest(second)[:3].tolist() == [3, 3, 1]
    assert neighbour_recall(first, second, count=1).tolist() == [0, 0, 1, 0]
    # {1, 2} and {3, 1}; {0, 2} and {3, 0}; {1, 0} and {1, 3}; {2, 1} and {0, 1}
    assert neighbour_recall(first, second, count=2).tolist() == [0.5] * 4
    assert neighbour_recall(first, second).tolist() == [1] * 4  # there are three others


def test_many_texts_are_compared_with_some(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embeddings, "MAX_CORPUS", 10)
    first, second = random(30), random(30) + random(30, seed=1)
    chosen = np.linspace(0, 29, 10).astype(int)
    one, other = (cosines(each)[:, chosen].round(6) for each in (first, second))
    wanted = [
        spearmanr(*(each[row][chosen != row] for each in (one, other))).statistic
        for row in range(30)
    ]
    whole = rank_correlations(first, second)
    assert whole == pytest.approx(wanted)
    monkeypatch.setattr(embeddings, "_CELLS", 40)  # four texts at a time
    assert rank_correlations(first, second).tolist() == pytest.approx(whole.tolist())
    assert len(nearest(first)) == len(neighbour_recall(first, second)) == 30


def test_the_score_is_a_mean_with_an_interval_over_the_texts() -> None:
    first, second = random(), random() + random(seed=1)
    units = ANSWERS.judged(second, first)
    values = rank_correlations(first, second)
    found = ANSWERS.score(units)
    assert found.value == pytest.approx(values.mean())
    spread = values.std() / np.sqrt(len(values))
    assert found.value - found.low == pytest.approx(1.96 * spread, rel=0.15)
    assert found.high - found.value == pytest.approx(1.96 * spread, rel=0.15)
    assert (found.measure, found.num_rows, found.num_units) == ("rank correlation", 40, None)
    first, again = (resampled_ratios(values, np.ones(len(values))) for _ in range(2))
    assert first.tolist() == again.tolist()


def test_a_pack_keeps_a_vector_for_each_text(tmp_path: pytest.TempPathFactory) -> None:
    rows = {"input_ids": [np.array([2, 5, 3]), np.array([2, 3]), np.array([2, 7, 8, 3])]}
    labels = random(3, 4)
    pack = EvaluationPack.from_rows(
        rows, labels, preprocessing=TextPreprocessing(max_length=8, pad_token_id=0)
    )
    pack.save(tmp_path / "pack.safetensors")  # type: ignore[operator]
    kept = EvaluationPack.load(tmp_path / "pack.safetensors")  # type: ignore[operator]
    assert kept.labels.tolist() == labels.tolist()
    assert kept.label_counts is None
    assert kept.head(2).labels.tolist() == labels[:2].tolist()
    units = ANSWERS.units(2 * labels, kept)
    assert units.rows.tolist() == [0, 1, 2]
    assert ANSWERS.score(units).value == pytest.approx(1)


def test_predictions_are_the_outputs() -> None:
    encoded = Encoded(rows={}, truncated=[False, True])
    found = ANSWERS.predictions(random(2, 3), (), ["a", "b"], encoded)
    assert np.array([each.embedding for each in found]) == pytest.approx(random(2, 3))
    assert [each.truncated for each in found] == [False, True]
