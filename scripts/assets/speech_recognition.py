"""Conversion to speech recognition data: a CSV file a split, and the WAV files that it names."""

import csv
import gzip
import re
import wave
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from assets.archive import copy_member, read_member
from assets.asset import Archive
from assets.errors import PackageError
from assets.splits import SEED, split_shuffled

PROMPTS = "usr/share/asterisk/sounds/en_US_f_Allison/"
TEXTS = "usr/share/doc/asterisk-core-sounds-en/core-sounds-en.txt.gz"
FOLDER = "recordings"
_NUM_TEST, _NUM_VALIDATION = 160, 50
_LINE = re.compile(r"([\w/-]+): *(\S.*?) *")
_NOISE = re.compile(r"[\[\](<>]")
"""In the text of a prompt that is not all speech, such as ``[ascending tones]``."""
_LONGEST_S = 30


class SpeechRow(NamedTuple):
    """The path of a WAV file below the table, and what is said in it."""

    audio: str
    target: str


def spoken_transcripts(debs: Archive, folder: Path) -> dict[str, object]:
    """Convert asterisk-core-sounds-en-wav with the texts of asterisk-core-sounds-en."""
    texts = gzip.decompress(read_member(debs, TEXTS)).decode("utf-8")
    rows = []
    for row in match_prompts(debs.namelist(), texts):
        path = folder / row.audio
        path.parent.mkdir(parents=True, exist_ok=True)
        copy_member(debs, PROMPTS + row.audio.removeprefix(f"{FOLDER}/"), path)
        with wave.open(str(path)) as sound:
            fits = sound.getnframes() <= _LONGEST_S * sound.getframerate()
        if fits:
            rows.append(row)
        else:
            path.unlink()
    splits = split_shuffled(rows, num_test=_NUM_TEST, num_validation=_NUM_VALIDATION, seed=SEED)
    return write_splits(splits, folder)


def match_prompts(members: Sequence[str], texts: str) -> list[SpeechRow]:
    """The prompts that are speech from end to end, with their texts; of one text the first only.

    Args:
        members: Of the packages.
        texts: ``name: text`` a line; what begins with a semicolon is a comment.

    Raises:
        PackageError: No prompt has a text.
    """
    recorded = set(members)
    rows, seen = [], set()
    for line in texts.splitlines():
        found = _LINE.fullmatch(line)
        if found is None or _NOISE.search(found[2]):
            continue
        name, text = found.groups()
        words = "".join(sign for sign in text.lower() if sign.isalnum() or sign.isspace()).split()
        key = tuple(words)
        if not words or key in seen or f"{PROMPTS}{name}.wav" not in recorded:
            continue
        seen.add(key)
        rows.append(SpeechRow(f"{FOLDER}/{name}.wav", text))
    if not rows:
        raise PackageError(
            "the packages have no prompt with its text",
            where=PROMPTS,
            given=f"{len(recorded)} members, {len(texts.splitlines())} lines of text",
            fix="check the pinned versions in scripts/assets/catalog.py",
        )
    return sorted(rows)


def write_splits(splits: Mapping[str, Sequence[SpeechRow]], folder: Path) -> dict[str, object]:
    """Write a CSV file a split.

    Returns:
        `split`, with the seed, the method and the rows by split.
    """
    for name, rows in splits.items():
        with (folder / f"{name}.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(SpeechRow._fields)
            writer.writerows(rows)
    return {
        "split": {
            "seed": SEED,
            "method": "shuffled: test, validation, then train",
            "num_rows": {name: len(rows) for name, rows in splits.items()},
        }
    }
