"""Conversion to audio classification data: a CSV file a split, and the WAV files that it names."""

import csv
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from assets.archive import copy_member
from assets.asset import Archive
from assets.errors import PackageError
from assets.splits import SEED, describe_splits, take_stratified

_PROMPTS = "usr/share/asterisk/sounds/en_US_f_Allison/"
_FOLDER = "recordings"
_PROMPT_LABELS = (
    ("conference", re.compile(r"conf(bridge)?-.*")),
    ("number", re.compile(r"digits/.*")),
    ("spelling", re.compile(r"(letters|phonetic)/.*")),
    ("voicemail", re.compile(r"vm-.*")),
)
"""What a prompt is for, by the name of its file; the package has others too, of many kinds."""
_PROMPT_NUM_TEST, _PROMPT_NUM_VALIDATION = 110, 60


class AudioRow(NamedTuple):
    """The path of a WAV file below the table, and the name of its class."""

    audio: str
    label: str


def spoken_prompts(deb: Archive, folder: Path) -> dict[str, object]:
    """Convert asterisk-core-sounds-en-wav."""
    rows = label_prompts(deb.namelist())
    test, rest = take_stratified(rows, count=_PROMPT_NUM_TEST, seed=SEED)
    validation, train = take_stratified(rest, count=_PROMPT_NUM_VALIDATION, seed=SEED)
    for row in rows:
        (folder / row.audio).parent.mkdir(parents=True, exist_ok=True)
        copy_member(deb, _PROMPTS + row.audio.removeprefix(f"{_FOLDER}/"), folder / row.audio)
    return write_splits(
        {"train": train, "validation": validation, "test": test},
        folder,
        method="stratified by label: test, validation, then train",
    )


def label_prompts(members: Sequence[str]) -> list[AudioRow]:
    """The prompts among the members of a package whose file names say what they are for, sorted.

    Raises:
        PackageError: There are none of a class.
    """
    rows = []
    for member in sorted(members):
        name = member.removeprefix(_PROMPTS)
        if name == member or not name.endswith(".wav"):
            continue
        rows += [
            AudioRow(f"{_FOLDER}/{name}", label)
            for label, form in _PROMPT_LABELS
            if form.fullmatch(name)
        ]
    missing = {label for label, _ in _PROMPT_LABELS} - {row.label for row in rows}
    if missing:
        raise PackageError(
            "the package has no prompts of some kinds",
            where=_PROMPTS,
            given=f"none for {', '.join(sorted(missing))}",
            fix="check the pinned version in scripts/assets/catalog.py",
        )
    return rows


def write_splits(
    splits: Mapping[str, Sequence[AudioRow]], folder: Path, *, method: str
) -> dict[str, object]:
    """Write a CSV file a split.

    Returns:
        `split`, with the seed, the method, and the rows by split and label.
    """
    for name, rows in splits.items():
        with (folder / f"{name}.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(AudioRow._fields)
            writer.writerows(rows)
    return describe_splits(splits, method=method)
