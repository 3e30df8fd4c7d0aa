"""Real reports of two runs that differ in their seed only."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from compressor.report.files import read_report
from compressor.report.schema import Report

RESULTS = Path(__file__).parents[3] / "benchmarks" / "results"


@pytest.fixture(scope="session")
def now() -> Report:
    """Ships int8 on ONNX Runtime; OpenVINO misses the budget."""
    return read_report(RESULTS / "trec6_minilm_balanced_avx2.json")


@pytest.fixture(scope="session")
def before() -> Report:
    """Ships int8 on both."""
    return read_report(RESULTS / "trec6_minilm_balanced_avx2_seed1.json")


def answers_for(report: Report, wrong: dict[str, int]) -> dict[str, NDArray[np.generic]]:
    """Probabilities on 1000 rows of two classes, of which the first so many are wrong."""
    labels = np.arange(1000) % 2
    found: dict[str, NDArray[np.generic]] = {"labels": labels}
    for row in report.rows:
        predicted = labels.copy()
        predicted[: wrong.get(row.key, 0)] ^= 1
        found[row.key] = np.eye(2, dtype=np.float32)[predicted]
    return found
