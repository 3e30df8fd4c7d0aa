"""Data that lies in files: one folder a class."""

from __future__ import annotations

from pathlib import Path

from compressor.errors import DataError
from targets.preprocessing import Preprocessing
from targets.wording import plural

__all__ = ["FILE_SUFFIXES", "read_class_folders"]

FILE_SUFFIXES = frozenset(
    {
        ".avif", ".bmp", ".gif", ".heic", ".heif", ".jfif", ".jp2", ".jpeg", ".jpg", ".jxl", ".png",
        ".tif", ".tiff", ".webp",
        ".aac", ".aif", ".aiff", ".flac", ".m4a", ".mp3", ".ogg", ".opus", ".wav", ".wma",
        ".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv",
        ".npy", ".npz", ".pt",
    }
)  # fmt: skip
"""Suffixes of files that somebody will have meant as inputs: notes and tables are none."""


def read_class_folders(folder: Path, preprocessing: type[Preprocessing]) -> list[tuple[str, str]]:
    """The paths of the inputs, each with the name of its class; what is hidden counts for nothing.

    Where folders are inputs as well, members are what lies directly in that of the class.

    Args:
        folder: Holds the folders of the classes.
        preprocessing: Says which files are inputs.

    Raises:
        DataError: There are none, or none of a class, or files beside them that cannot be read.
    """
    rows: list[tuple[str, str]] = []
    for each in sorted(folder.iterdir()):
        if not each.is_dir() or each.name.startswith("."):
            continue
        paths = [
            path
            for path in sorted(each.glob("*") if preprocessing.folders else each.rglob("*"))
            if not any(part.startswith(".") for part in path.relative_to(folder).parts)
        ]
        inputs = [path for path in paths if _is_input(path, preprocessing)]
        others = sorted({path.suffix for path in paths if path.is_file()})
        if others and not inputs:
            raise DataError(
                f"the folder of a class holds no {preprocessing.noun} of a supported format",
                where=each,
                given=f"files that end in {', '.join(others)}",
                fix=f"convert them to one of {', '.join(sorted(preprocessing.suffixes))}",
            )
        lost = [
            path
            for path in paths
            if path.suffix.lower() in FILE_SUFFIXES - {*preprocessing.suffixes}
        ]
        if lost:
            raise DataError(
                f"the folder of a class has files that cannot be read beside the "
                f"{preprocessing.noun}s",
                where=each,
                given=f"{plural(len(lost), 'file')}, such as {lost[0].name}, beside {len(inputs)}",
                fix=f"convert them to one of {', '.join(sorted(preprocessing.suffixes))}, or move "
                "them elsewhere",
            )
        rows += [(str(path), each.name) for path in inputs]
    if not rows:
        raise DataError(
            f"the folder holds no folders of {preprocessing.noun} files",
            where=folder,
            given=", ".join(sorted(each.name for each in folder.iterdir())[:5]) or "nothing",
            fix=f"put the files of each class ({', '.join(sorted(preprocessing.suffixes))}) into a "
            "folder with the name of the class",
        )
    return rows


def _is_input(path: Path, preprocessing: type[Preprocessing]) -> bool:
    is_file = path.suffix.lower() in preprocessing.suffixes
    return is_file or (preprocessing.folders and path.is_dir())
