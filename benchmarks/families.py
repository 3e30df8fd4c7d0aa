"""What each family of models becomes: one row each, of the published run.

``python -m benchmarks.families`` prints the table of the README. ``scripts/demo --task ...`` makes
the runs anew, but for what writes: `benchmarks.writing` and `benchmarks.transcribing` time that.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks import transcribing, writing
from compressor.report.files import read_report
from compressor.report.schema import Report
from compressor.report.wording import drop_interval, points
from targets.measurement import speedup

__all__ = ["RESULTS", "table"]

RESULTS = Path(__file__).parent / "results"
BASE = "onnxruntime"


@dataclass(frozen=True)
class Family:
    """A row of the table.

    Attributes:
        title: Of the family.
        page: With its whole table.
        given: The model and the data, in words.
        became: What was made of it, in words.
        result: File of the run.
        chosen: Variant and target, or the name of a bundle that writes.
        lost: What a language model lost, which its file does not say.
    """

    title: str
    page: str
    given: str
    became: str
    result: str
    chosen: tuple[str, ...]
    lost: str | None = None


FAMILIES = (
    Family(
        "labels of words", "docs/token-classification.md#in-numbers",
        "MiniLM-L6, parts of speech of the Brown corpus",
        "a quarter of the width, int8-dynamic on ONNX Runtime",
        "brown_minilm_words", ("int8-dynamic", "onnxruntime"),
    ),
    Family(
        "language model", "docs/generation.md#measured", "SmolLM2-135M, Brown corpus",
        "int8 weights on ONNX Runtime", "generation_smollm2_writing",
        ("ONNX Runtime int8-weights",), lost="perplexity 48.10 of 48.04",
    ),
    Family(
        "speech", "docs/speech.md#measured", "Whisper tiny.en, spoken prompts",
        "variable window, int8 weights on OpenVINO", "speech_whisper_transcribing",
        ("variable window, int8 weights on OpenVINO",),
    ),
    Family(
        "vision transformer", "docs/images.md#measured", "DINOv2-S, Fashion-MNIST",
        "half of the width, int8 on OpenVINO", "fashion_mnist_dinov2_image",
        ("int8", "openvino"),
    ),
    Family(
        "convolutional network", "docs/images.md#measured",
        "EfficientNet-Lite2, Fashion-MNIST",
        "residual blocks and a fifth of the channels gone, fp32 on ONNX Runtime",
        "fashion_mnist_efficientnet_lite2_cnn", ("fp32", "onnxruntime"),
    ),
)  # fmt: skip


def table() -> Iterator[str]:
    """Every family against its untouched model in fp32, in Markdown."""
    yield "| family | model and data | what it became | times as fast (95%) | lost, points (95%) |"
    yield "|---|---|---|---|---|"
    for family in FAMILIES:
        gain, lost = _figures(family)
        yield (
            f"| [{family.title}]({family.page}) | {family.given} | {family.became} "
            f"| {gain} | {lost} |"
        )


def _figures(family: Family) -> tuple[str, str]:
    path = RESULTS / f"{family.result}.json"
    document = json.loads(path.read_text(encoding="utf-8"))
    if "writing" in document:
        found = writing.read(document)
        first, chosen = next(iter(found.values())), found[family.chosen[0]]
        assert family.lost is not None
        return f"{writing.times_as_fast(first, chosen):.1f}x", family.lost
    if "transcribing" in document:
        heard = transcribing.read(document)
        before, after = next(iter(heard.values())), heard[family.chosen[0]]
        ratios = transcribing.times_as_fast(before, after)
        wrong = 100 * (after.word_error_rate - before.word_error_rate)
        return (
            _gain(float(np.median(ratios)), ratios.min(), ratios.max()),
            f"{wrong:.1f} more wrong words",
        )
    return _of_report(read_report(path), family)


def _of_report(report: Report, family: Family) -> tuple[str, str]:
    variant, target = family.chosen
    before = report.row(kind="baseline", target=BASE, precision="fp32")
    after = report.row(kind="candidate", variant=variant, target=target)
    ratio = speedup(*(each.latency[report.primary_shape] for each in (before, after)))
    assert after.test_comparison is not None
    drop = after.test_comparison
    lost = f"{points(drop.drop_points)} ({drop_interval(drop)})"
    return _gain(ratio.ratio, ratio.low, ratio.high), lost


def _gain(ratio: float, low: float, high: float) -> str:
    return f"{ratio:.1f}x ({low:.1f}-{high:.1f})"


if __name__ == "__main__":
    print("\n".join(table()))
    sys.exit(0)
