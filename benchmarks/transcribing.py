"""How fast bundles write down what is said in recordings, side by side, against the first of them.

``python -m benchmarks.transcribing TABLE NAME=BUNDLE ...`` lets each answer every recording of a
table, one at a time from its file to its text, in rounds that alternate, and keeps every time.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

import targets
from benchmarks.named_bundles import add_bundles, named_bundles
from targets.answers.written import word_errors, words_of
from targets.environment import Environment
from targets.preprocessing.wav import read_wav

THREADS = 2


class Transcribing(BaseModel):
    """What a bundle wrote, and how long it took.

    Attributes:
        errors: Wrong words of each recording, N >= 1.
        words: Words said in each.
        seconds: Length of each.
        rounds_ns: Time of each recording, by round, (rounds, N).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    errors: tuple[int, ...]
    words: tuple[int, ...]
    seconds: tuple[float, ...]
    rounds_ns: tuple[tuple[int, ...], ...]

    @property
    def word_error_rate(self) -> float:
        """Wrong words over words said."""
        return sum(self.errors) / sum(self.words)

    @property
    def times_real_time(self) -> float:
        """Seconds of sound that are written down in a second: the median over the rounds."""
        return float(sum(self.seconds) / np.median(self.totals_s))

    @property
    def totals_s(self) -> list[float]:
        """Time of all recordings, by round."""
        return [sum(each) / 1e9 for each in self.rounds_ns]

    @property
    def usual_ms(self) -> float:
        """Time of a recording: the median over recordings and rounds."""
        return float(np.median(self.rounds_ns)) / 1e6


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, write the raw times, and print the table."""
    parser = argparse.ArgumentParser(prog="benchmarks.transcribing", description=__doc__)
    parser.add_argument("table", type=Path, help="CSV with the columns audio and target")
    add_bundles(parser)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args(arguments)
    named = named_bundles(parser, options.bundles)
    options.output.parent.mkdir(parents=True, exist_ok=True)  # before the work, not after it
    found = measure(options.table, named, num_rounds=options.rounds)
    document = {
        "environment": Environment.here().model_dump(mode="json"),
        "transcribing": {name: each.model_dump(mode="json") for name, each in found.items()},
    }
    options.output.write_text(json.dumps(document) + "\n", encoding="utf-8")
    print("\n".join(table(found)))
    return 0


def measure(path: Path, bundles: Mapping[str, str], *, num_rounds: int) -> dict[str, Transcribing]:
    """Let each bundle answer all recordings of a table, round after round.

    The first recordings are answered once before anything is timed.
    """
    with path.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    recordings = [str(path.parent / row["audio"]) for row in rows]
    lengths = []
    for each in recordings:
        waveform, rate = read_wav(each, where=each)
        lengths.append(len(waveform) / rate)
    opened = {name: targets.load(bundle, threads=THREADS) for name, bundle in bundles.items()}
    times: dict[str, list[tuple[int, ...]]] = {name: [] for name in opened}
    texts: dict[str, list[str]] = {name: [] for name in opened}
    for number in range(num_rounds):
        for name, predictor in opened.items():
            if not number:
                predictor.predict(recordings[:3])
            taken, texts[name] = [], []
            for recording in recordings:
                start = time.perf_counter_ns()
                [answer] = predictor.predict([recording])
                taken.append(time.perf_counter_ns() - start)
                texts[name].append(str(answer.text))
            times[name].append(tuple(taken))
            print(f"round {number + 1}: {name}, {sum(taken) / 1e9:.1f} s", file=sys.stderr)
    for predictor in opened.values():
        predictor.close()
    found = {}
    for name, written in texts.items():
        counts = [
            word_errors(words_of(text), words_of(row["target"]))
            for row, text in zip(rows, written, strict=True)
        ]
        errors, words = zip(*counts, strict=True)
        found[name] = Transcribing(
            errors=errors, words=words, seconds=tuple(lengths), rounds_ns=tuple(times[name])
        )
    return found


def read(document: Mapping[str, Any]) -> dict[str, Transcribing]:
    """What a file of raw times holds, by the name of the bundle."""
    return {
        name: Transcribing.model_validate(each) for name, each in document["transcribing"].items()
    }


def table(found: Mapping[str, Transcribing]) -> Iterator[str]:
    """The bundles in Markdown; the first one is what the others are compared with."""
    yield "| bundle | word errors | a recording, ms | times real time | times as fast (rounds) |"
    yield "|---|---|---|---|---|"
    first = next(iter(found.values()))
    for name, each in found.items():
        ratios = times_as_fast(first, each)
        yield (
            f"| {name} | {each.word_error_rate:.1%} | {each.usual_ms:.0f} "
            f"| {each.times_real_time:.1f} | {np.median(ratios):.2f}x "
            f"({ratios.min():.2f}-{ratios.max():.2f}) |"
        )


def times_as_fast(first: Transcribing, other: Transcribing) -> NDArray[np.float64]:
    """How many times as fast all recordings are written down, round by round.  # (rounds,)"""
    return np.divide(first.totals_s, other.totals_s)


if __name__ == "__main__":
    sys.exit(main())
