"""Timing of the models of a latency table: again, where the machine was busy meanwhile."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytest

from compressor.progress import Silent
from compressor.search.probing import ATTEMPTS, Prober
from compressor.store import RunStore
from targets.benchmark import BenchmarkSettings
from targets.measurement import Measurement, Round
from targets.registry import get


def timed(*times_ms: float, noisy: int = 0, slowdown: float = 1.0) -> list[Measurement]:
    """One measurement a model; the first few of them with other processes beside them."""
    return [
        Measurement(
            rounds=(
                Round(
                    run_ns=(round(ms * 1e6),) * 5,
                    cpu_ns=round(5e6 * ms),
                    others_cpus=1.5 if number < noisy else 0.0,
                    reference_ns=round(1e6 * slowdown),
                ),
            )
            * 6,
            best_reference_ns=1_000_000,
            threads=2,
            batch_size=1,
            sequence_length=128,
            num_cpus=2,
            load_time_ms=1,
            peak_memory_bytes=1,
            size_bytes=1,
        )
        for number, ms in enumerate(times_ms)
    ]


@pytest.mark.parametrize(
    ("attempts", "kept", "made"),
    [
        ([timed(1, 2)], 0, 1),
        ([timed(3, 4, noisy=2), timed(1, 2), timed(1, 1)], 1, 2),
        ([timed(3, 4, slowdown=1.5), timed(2, 3, noisy=1), timed(1, 2)], 2, 3),
        ([timed(1, 1, noisy=2), timed(9, 9, noisy=1), timed(2, 2, noisy=2)] * 2, 1, ATTEMPTS),
        ([timed(4, 4, noisy=1), timed(3, 4, noisy=1), timed(4, 4, noisy=1)] * 2, 1, ATTEMPTS),
    ],
    ids=["quiet at once", "quiet later", "slow, then noisy", "the fewest", "the fastest"],
)
def test_probes_are_timed_until_the_machine_is_quiet(
    attempts: Sequence[Sequence[Measurement]],
    kept: int,
    made: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    left = list(attempts)

    def next_attempt(_self: Prober, *_: Any) -> Sequence[Measurement]:
        return left.pop(0)

    monkeypatch.setattr(Prober, "_timed", next_attempt)
    prober = Prober(
        store=RunStore(tmp_path),
        original=cast("Any", None),
        splits=cast("Any", None),
        settings=BenchmarkSettings(),
        multiple=16,
        progress=Silent(),
    )

    found = prober._quietest({}, get("onnxruntime"))

    assert found is attempts[kept]
    assert len(attempts) - len(left) == made
