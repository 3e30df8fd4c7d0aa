"""Opening a wheel, and what it says about its licence."""

import email
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from zipfile import BadZipFile, ZipFile

from assets.archive import damaged, read_member, require_safe
from assets.asset import Archive

_LICENCE_MEMBER = re.compile(
    r"[^/]+\.dist-info/(licenses/)?(LICEN[SC]E|COPYING|NOTICE|AUTHORS)[^/]*", re.IGNORECASE
)


@contextmanager
def open_wheel(path: Path) -> Iterator[ZipFile]:
    """Open a wheel after checking that its members are safe.

    Raises:
        PackageError: A member is unsafe, or the file is not a whole zip archive.
    """
    try:
        with ZipFile(path) as archive:
            for member in archive.infolist():
                # ZipFile keeps `filename` up to the first NUL; this is what the archive says.
                name = member.orig_filename
                require_safe(name, path, is_special=stat.S_ISLNK(member.external_attr >> 16))
            yield archive
    except BadZipFile as error:
        raise damaged(path, error) from error


def licence_members(archive: Archive) -> list[str]:
    """The wheel's licence files."""
    return [name for name in archive.namelist() if _LICENCE_MEMBER.fullmatch(name)]


def stated_licence(archive: Archive) -> list[str]:
    """The lines of the wheel's METADATA that state a licence, in their order."""
    names = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
    if not names:
        return []
    metadata = email.message_from_bytes(read_member(archive, names[0]))
    return [
        f"{field}: {' '.join(value.split())}"
        for field, value in metadata.items()
        if field in ("License", "License-Expression")
        or (field == "Classifier" and value.startswith("License ::"))
    ]
