"""What ``compressor predict`` takes from the command line and from standard input."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from compressor.cli.predict import _lines
from targets.errors import InputError


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--chat", "--output", "out.npy"), "--output has no effect with --stream and --chat"),
        (("--stream", "--file", "a.png"), "--file has no effect with --stream and --chat"),
        (("--chat", "--jsonl"), "--jsonl has no effect with --stream and --chat"),
        (("--stream", "--min-score", "0.5"), "--min-score has no effect with"),
        (("--max-tokens", "9"), "--max-tokens has an effect only with --stream and --chat"),
        (("--system", "be brief"), "--system belongs to a chat: give --chat as well"),
    ],
)
def test_options_that_would_have_no_effect_are_refused(
    options: tuple[str, ...], words: str, compressor: Callable[..., Any], tmp_path: Path
) -> None:
    found = compressor("predict", tmp_path / "absent", "--text", "hi", *options)
    assert found.code == 2
    assert words in " ".join(found.err.replace("│", " ").split())


def test_lines_are_utf_8() -> None:
    stream = io.TextIOWrapper(io.BytesIO("who\ncafé\n".encode()), encoding="ascii")
    assert list(_lines(stream)) == ["who\n", "café\n"]
    assert list(_lines(io.StringIO("who\ncafé"))) == ["who\n", "café"]
    marked = io.TextIOWrapper(io.BytesIO(b"\xef\xbb\xbfwho\n\xef\xbb\xbfwho\n"))
    assert list(_lines(marked)) == ["who\n", "\ufeffwho\n"]


def test_another_encoding_is_told_with_its_line() -> None:
    stream = io.TextIOWrapper(io.BytesIO("who\ncafé\n".encode("latin1")))
    found = _lines(stream)
    assert next(found) == "who\n"
    with pytest.raises(InputError, match="a line is not UTF-8") as caught:
        next(found)
    assert caught.value.where == "line 2 of standard input"
    assert caught.value.given == r"b'\xe9' at byte 4"
    assert caught.value.exit_code == 3
