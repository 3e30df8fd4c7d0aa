"""How fast bundles of one language model read and write, side by side, against the first of them.

``python -m benchmarks.writing NAME=BUNDLE ...`` lets each read the same number of random tokens and
write after it, in rounds that alternate, and keeps every time.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.named_bundles import add_bundles, named_bundles
from targets.bundle import Bundle
from targets.environment import Environment
from targets.writing import Writing, measure_writing

THREADS = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, write the raw times, and print the table."""
    parser = argparse.ArgumentParser(prog="benchmarks.writing", description=__doc__)
    add_bundles(parser)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args(arguments)
    named = named_bundles(parser, options.bundles)
    options.output.parent.mkdir(parents=True, exist_ok=True)  # before the work, not after it
    found = measure_writing(
        {name: Bundle.open(path) for name, path in named.items()},
        threads=THREADS,
        prompt_tokens=options.prompt_tokens,
        num_tokens=options.tokens,
        num_rounds=options.rounds,
    )
    document = {
        "environment": Environment.here().model_dump(mode="json"),
        "writing": {name: each.model_dump(mode="json") for name, each in found.items()},
    }
    options.output.write_text(json.dumps(document) + "\n", encoding="utf-8")
    print("\n".join(table(found)))
    return 0


def read(document: Mapping[str, Any]) -> dict[str, Writing]:
    """What a file of raw times holds, by the name of the bundle."""
    return {name: Writing.model_validate(each) for name, each in document["writing"].items()}


def table(found: Mapping[str, Writing]) -> Iterator[str]:
    """The bundles in Markdown; the first one is what the others are compared with."""
    yield "| bundle | first token, ms | tokens read a second | written a second (95%) | times |"
    yield "|---|---|---|---|---|"
    first = next(iter(found.values()))
    for name, each in found.items():
        low, high = each.written_interval
        times = times_as_fast(first, each)
        yield (
            f"| {name} | {each.first_token_ms:.0f} | {each.read_per_s:.0f} "
            f"| {each.written_per_s:.1f} ({low:.1f}-{high:.1f}) | {times:.2f}x |"
        )


def times_as_fast(first: Writing, other: Writing) -> float:
    """How many times as fast tokens are written: the median over the rounds, each by itself."""
    ratios = [
        np.mean(slow.run_ns[1:]) / np.mean(fast.run_ns[1:])
        for slow, fast in zip(first.rounds, other.rounds, strict=True)
    ]
    return float(np.median(ratios))


if __name__ == "__main__":
    sys.exit(main())
