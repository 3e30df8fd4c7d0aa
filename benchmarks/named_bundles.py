"""Bundles on a command line, each with the name that it has in a table."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

__all__ = ["add_bundles", "named_bundles"]


def add_bundles(parser: argparse.ArgumentParser) -> None:
    """Let a command take bundles."""
    parser.add_argument("bundles", nargs="+", metavar="NAME=BUNDLE", type=_pair)


def named_bundles(
    parser: argparse.ArgumentParser, pairs: Sequence[tuple[str, str]]
) -> dict[str, str]:
    """Name -> path of a bundle; ends the command where two have one name."""
    found = dict(pairs)
    if len(found) < len(pairs):
        parser.error("two bundles have one name: " + ", ".join(name for name, _ in pairs))
    return found


def _pair(text: str) -> tuple[str, str]:
    name, equals, path = text.partition("=")
    if not (name and equals and path):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=BUNDLE")
    return name, path
