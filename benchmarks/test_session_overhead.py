"""What a session costs on top of the call of the runtime below it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from targets import Signature
from targets.feeds import FeedsSpec, synthetic_feeds
from targets.preprocessing import TextPreprocessing

LENGTH = 32  # about one millisecond
MAX_OVERHEAD_PERCENT = 3.0
PAIRS = 2000

Call = Callable[[], Any]


def onnxruntime_calls(path: Path, signature: Signature, feeds: Any) -> tuple[Call, Call]:
    """The runtime's own call, and the session's."""
    from targets.runtimes.onnxruntime import OnnxRuntimeSession, create_session

    raw = create_session(path)
    session = OnnxRuntimeSession(signature, raw)
    return lambda: raw.run(["logits"], feeds), lambda: session.run(feeds)


def openvino_calls(path: Path, signature: Signature, feeds: Any) -> tuple[Call, Call]:
    """The runtime's own call, and the session's."""
    openvino = pytest.importorskip("openvino")
    from targets.runtimes.openvino import OpenVINOSession

    options = {"INFERENCE_NUM_THREADS": 1, "PERFORMANCE_HINT": "LATENCY"}
    compiled = openvino.Core().compile_model(str(path), "CPU", options)
    session = OpenVINOSession(signature, compiled)
    request, output = compiled.create_infer_request(), compiled.output("logits")
    return (
        lambda: request.infer(feeds, share_inputs=True)[output],
        lambda: session.run(feeds),
    )


def time_pairs(first: Call, second: Call, pairs: int) -> tuple[list[int], list[int]]:
    """Times of both in nanoseconds, in turn, the one that begins alternating."""
    times: tuple[list[int], list[int]] = ([], [])
    calls = (first, second)
    for pair in range(pairs):
        for which in (0, 1) if pair % 2 else (1, 0):
            start = time.perf_counter_ns()
            calls[which]()
            times[which].append(time.perf_counter_ns() - start)
    return times


def lower_quartile(times_ns: list[int]) -> float:
    """What a call takes when left alone: other processes only ever add time."""
    return statistics.quantiles(times_ns, n=4)[0]


@pytest.mark.parametrize("make_calls", [onnxruntime_calls, openvino_calls])
def test_a_session_costs_less_than_three_percent(
    benchmark: BenchmarkFixture,
    onnx_path: Path,
    signature: Signature,
    make_calls: Callable[..., tuple[Call, Call]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    feeds = synthetic_feeds(
        signature,
        FeedsSpec(
            lengths=(LENGTH,),
            num_ids=2000,
            preprocessing=TextPreprocessing(max_length=512, pad_token_id=0),
        ),
    )
    raw, wrapped = make_calls(onnx_path, signature, feeds)
    time_pairs(raw, wrapped, 100)
    raw_ns, wrapped_ns = time_pairs(raw, wrapped, PAIRS)
    raw_quick_ns, wrapped_quick_ns = lower_quartile(raw_ns), lower_quartile(wrapped_ns)
    overhead = 100 * (wrapped_quick_ns / raw_quick_ns - 1)
    pairs = zip(raw_ns, wrapped_ns, strict=True)
    benchmark.extra_info |= {
        "pairs": PAIRS,
        "raw_lower_quartile_ms": raw_quick_ns / 1e6,
        "session_lower_quartile_ms": wrapped_quick_ns / 1e6,
        "raw_median_ms": statistics.median(raw_ns) / 1e6,
        "median_paired_difference_us": statistics.median(b - a for a, b in pairs) / 1e3,
        "overhead_percent": overhead,
    }
    with capsys.disabled():
        print(
            f"\n{make_calls.__name__.partition('_')[0]}: raw {raw_quick_ns / 1e6:.3f} ms, "
            f"session {(wrapped_quick_ns - raw_quick_ns) / 1e3:+.1f} us = {overhead:+.2f}%"
        )
    benchmark(wrapped)
    assert overhead < MAX_OVERHEAD_PERCENT
