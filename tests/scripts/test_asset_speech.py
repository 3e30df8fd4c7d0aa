"""Spoken prompts with their texts: which of them are taken."""

from __future__ import annotations

import pytest
from assets.archive import JoinedArchive, read_member
from assets.errors import PackageError
from assets.speech_recognition import PROMPTS, match_prompts

TEXTS = """; Core sounds

hello: Hello there.
again: hello, there!
beep: [this is a beep]
vm/bye:  Good-bye
unrecorded: Nobody read this.
empty: ...
"""


def members(*names: str) -> list[str]:
    return [f"{PROMPTS}{name}.wav" for name in names]


def test_prompts_that_are_speech_get_their_texts() -> None:
    rows = match_prompts(members("vm/bye", "hello", "again", "beep", "empty"), TEXTS)
    assert rows == [
        ("recordings/hello.wav", "Hello there."),  # again has the same words
        ("recordings/vm/bye.wav", "Good-bye"),
    ]


def test_a_package_without_such_prompts_is_refused() -> None:
    with pytest.raises(PackageError, match="no prompt with its text"):
        match_prompts(members("beep"), TEXTS)


class _Members(dict[str, bytes]):
    filename = "a.deb"

    def namelist(self) -> list[str]:
        return list(self)

    def open(self, name: str, /) -> object:
        import io

        return io.BytesIO(self[name])


def test_several_packages_are_read_as_one() -> None:
    joined = JoinedArchive((_Members(a=b"1"), _Members(a=b"2", b=b"3")))  # type: ignore[arg-type]
    assert joined.namelist() == ["a", "b"]
    assert [read_member(joined, name) for name in "ab"] == [b"1", b"3"]
    with pytest.raises(PackageError, match="lacks a file"):
        read_member(joined, "c")
    assert joined.filename == "a.deb, a.deb"
