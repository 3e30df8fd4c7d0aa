"""Names that servers take, made from names that anyone may have given."""

from __future__ import annotations

import re
import unicodedata

__all__ = ["SERVED_NAME", "file_name", "kubernetes_name", "one_line"]

SERVED_NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$"
"""A name that is a folder, a part of a URL and a word in every configuration."""

_LONGEST = 63
_LONGEST_SERVICE = 53
"""Kubernetes allows 63; the services that belong to the model get a suffix of up to 10."""


def file_name(name: str) -> str:
    """The nearest name of letters, digits, ``_``, ``.`` and ``-`` that is no path."""
    letters = unicodedata.normalize("NFKD", name)
    plain = "".join(each for each in letters if not unicodedata.combining(each))  # é -> e
    words = re.sub(r"[^A-Za-z0-9_.-]+", "-", plain)
    return words.lstrip("-_.")[:_LONGEST].rstrip("-_.") or "model"


def kubernetes_name(name: str) -> str:
    """The nearest DNS label (RFC 1035) that leaves room for the suffixes of its services."""
    words = re.sub(r"[^a-z0-9]+", "-", file_name(name).lower())
    letters = words if words[0].isalpha() else f"m-{words}"
    return letters[:_LONGEST_SERVICE].rstrip("-")


def one_line(text: str) -> str:
    """A text without line breaks and other control characters, for files of one entry a line."""
    return "".join(each if each.isprintable() else " " for each in text)
