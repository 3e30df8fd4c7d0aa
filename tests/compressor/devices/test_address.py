"""Addresses of devices."""

from __future__ import annotations

import pytest

from compressor.devices.address import Address


@pytest.mark.parametrize(
    ("text", "user", "host", "port"),
    [
        ("ssh://board", None, "board", None),
        ("ssh://me@board.local:2222", "me", "board.local", 2222),
        ("ssh://me@[fd00::1]:22", "me", "fd00::1", 22),
        ("ssh://MyBoard", None, "MyBoard", None),  # a Host of a configuration keeps its case
    ],
)
def test_parts_and_back(text, user, host, port):
    address = Address.parse(text)
    assert (address.user, address.host, address.port) == (user, host, port)
    assert str(address) == text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("board", "not the address of a device"),
        ("http://board", "not the address of a device"),
        ("ssh://", "not the address of a device"),
        ("ssh://me:secret@board", "cannot hold a password"),
        ("ssh://board/folder", "nothing else"),
        ("ssh://board?x", "nothing else"),
        ("ssh://board:0", "nothing else"),
        ("ssh://board:99999", "Port out of range"),
        ("ssh://board:two", "two"),
        ("ssh://[fd00::1", "not a valid address"),
    ],
)
def test_what_is_no_address(text, words):
    with pytest.raises(ValueError, match=words):
        Address.parse(text)


def test_a_trailing_slash_is_no_path():
    assert str(Address.parse("ssh://board/")) == "ssh://board"
