"""A bundle in one file, ``.tar.zst`` or ``.zip``: always the same bytes, and opened with care.

An archive is input from outside. What it may hold is known before it is unpacked: the manifest
comes first, and names every other file with its size, but for a signature, which is small. Whatever
else is in an archive is refused, so that nothing is written outside of the folder and nothing grows
beyond what was announced.
"""

from __future__ import annotations

import io
import os
import shutil
import stat
import struct
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from targets.errors import BundleError, ToolkitError, is_disk_full

__all__ = ["SUFFIXES", "is_archive", "pack", "unpack"]

SUFFIXES = (".tar.zst", ".zip")
MANIFEST = "manifest.json"
SIGNATURE = "model.sig"
MAX_MANIFEST = 16 * 2**20
MAX_SIGNATURE = 2**20
MAX_RATIO = 1000
"""Weights shrink by a few per cent, zeros by far more: an archive that unpacks to a larger multiple
of its size is not a model."""

_FREE = 64 * 2**20  # bytes that any archive may unpack to, whatever its ratio
_WINDOW_LOG = 27  # bits: 128 MiB of memory is what decompression may take
_EPOCH = (1980, 1, 1, 0, 0, 0)
_CHUNK = 2**20

_FIX = "get the archive again from where it was built, or pack it anew: compressor pack FOLDER"
# What the libraries raise for bytes that are not what they should be.
_BROKEN = (
    OSError,
    EOFError,
    ValueError,
    KeyError,
    IndexError,
    OverflowError,
    RuntimeError,
    AssertionError,
    MemoryError,
    struct.error,
    zlib.error,
    zipfile.BadZipFile,
    zipfile.LargeZipFile,
    tarfile.TarError,
)


def is_archive(path: Path) -> bool:
    """Whether a path is named like an archive of a bundle."""
    return path.name.endswith(SUFFIXES)


def pack(folder: Path, archive: Path) -> None:
    """Write the bundle in ``folder`` as one file; equal bundles give equal bytes.

    Args:
        folder: A bundle, also an archive of one in another format; it is verified first.
        archive: Where to; its suffix says the format.

    Raises:
        BundleError: The folder is no intact bundle, or the archive cannot be written.
    """
    from targets.bundle import Bundle

    bundle = Bundle.open(folder)
    write = _write_zip if archive.name.endswith(".zip") else _write_tar
    if not is_archive(archive):
        raise BundleError(
            "a bundle cannot be packed in this format",
            where=archive,
            given=archive.suffix or "no suffix",
            fix=f"end the name in {' or '.join(SUFFIXES)}",
        )
    temporary = archive.with_name(f".{archive.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as stream:
            write(bundle.folder, bundle.names, stream)
        os.replace(temporary, archive)
    except OSError as error:
        raise BundleError(
            "the archive cannot be written",
            where=archive,
            given=error.strerror or error,
            fix="free some space there, or write it elsewhere",
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def unpack(archive: Path, folder: Path) -> None:
    """Unpack an archive into a folder that does not exist yet, or is empty.

    The folder holds a whole bundle afterwards, whose files have the sizes that its manifest says;
    on an error it holds nothing.

    Raises:
        BundleError: The archive is damaged, or holds what a bundle does not: names that lead out of
            the folder, links, files that the manifest does not name or that are larger than it
            says, or far more bytes than its own size lets one expect.
    """
    read = _read_zip if archive.name.endswith(".zip") else _read_tar
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with _broken(archive):
            read(archive, _Writer(archive, folder))
    except BaseException:
        for path in folder.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        raise


class _Writer:
    """Writes what an archive may hold, and nothing else.

    Args:
        archive: For messages, and for its size.
        folder: Where to.
    """

    def __init__(self, archive: Path, folder: Path) -> None:
        self.archive = archive
        self.folder = folder
        self._sizes: dict[str, int] = {}
        self._waiting: set[str] = set()

    def manifest(self, text: bytes) -> int:
        """Take the manifest; returns how many bytes the other files have."""
        from targets.bundle import parse_manifest

        where = self.archive / MANIFEST
        try:
            decoded = text.decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.refusal("the manifest of the archive is not text", error) from error
        manifest = parse_manifest(decoded, where)
        self._sizes = {name: record.size_bytes for name, record in manifest.files.items()}
        self._waiting = set(self._sizes)
        total = sum(self._sizes.values())
        packed = self.archive.stat().st_size
        if total > max(_FREE, MAX_RATIO * packed):
            raise self.refusal(
                "the archive would unpack to far more than it holds",
                f"{packed} bytes that become {total}",
            )
        free = shutil.disk_usage(self.folder).free
        if total > free:
            raise BundleError(
                "the disk has no room for the bundle in the archive",
                where=self.folder,
                given=f"{total / 1e6:.0f} MB needed, {free / 1e6:.0f} MB free",
                fix="free some space, or set TMPDIR to a folder with more",
            )
        (self.folder / MANIFEST).write_bytes(text)
        return total

    def file(self, name: str, stream: IO[bytes]) -> None:
        """Take one file that the manifest names, or the signature."""
        if name == SIGNATURE and name not in self._sizes and not (self.folder / name).exists():
            self._signature(stream)
            return
        if name not in self._waiting:
            twice = name in self._sizes or name in (MANIFEST, SIGNATURE)
            raise self.refusal(
                "the archive holds a file twice"
                if twice
                else "the archive holds a file that its manifest does not name",
                repr(name),
            )
        self._waiting.discard(name)
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        left = self._sizes[name]
        with path.open("xb") as output:
            while chunk := stream.read(min(_CHUNK, left + 1)):
                left -= len(chunk)
                if left < 0:
                    break
                output.write(chunk)
        if left:
            raise self.refusal(
                "a file in the archive has another size than its manifest says",
                f"{name!r}, {self._sizes[name]} bytes expected",
            )

    def _signature(self, stream: IO[bytes]) -> None:
        content = stream.read(MAX_SIGNATURE + 1)
        if len(content) > MAX_SIGNATURE:
            raise self.refusal("the signature in the archive is too large", repr(SIGNATURE))
        (self.folder / SIGNATURE).write_bytes(content)

    def finish(self) -> None:
        """Check that nothing is missing."""
        if self._waiting or not self._sizes:
            missing = ", ".join(sorted(self._waiting)[:5]) or MANIFEST
            raise self.refusal("the archive lacks files of the bundle", missing)

    def refusal(self, what: str, given: object) -> BundleError:
        """The error for something that the archive may not hold."""
        return BundleError(what, where=self.archive, given=given, fix=_FIX)


@contextmanager
def _broken(archive: Path) -> Iterator[None]:
    """Map what the libraries raise for broken bytes to one clear error."""
    try:
        yield
    except ToolkitError:
        raise
    except Exception as error:
        if is_disk_full(error) or not isinstance(error, (*_BROKEN, _zstd().ZstdError)):
            raise
        if not archive.exists():
            given: object = "no such file"
        else:
            given = f"{type(error).__name__}: {error}"
        raise BundleError(
            "the archive cannot be read", where=archive, given=given, fix=_FIX
        ) from error


def _zstd() -> Any:  # one module under two names; the types are those of neither
    """The zstd module of Python 3.14, or its backport."""
    if sys.version_info >= (3, 14):
        from compression import zstd
    else:
        from backports import zstd
    return zstd


def _write_tar(folder: Path, names: list[str], stream: IO[bytes]) -> None:
    with (
        _zstd().ZstdFile(stream, "w", level=10) as packed,
        tarfile.open(fileobj=packed, mode="w|", format=tarfile.PAX_FORMAT) as tar,
    ):
        for name in names:
            member = tarfile.TarInfo(name)  # no owner, no time: equal bundles give equal bytes
            member.size = (folder / name).stat().st_size
            member.mode = 0o644
            with (folder / name).open("rb") as source:
                tar.addfile(member, source)


def _write_zip(folder: Path, names: list[str], stream: IO[bytes]) -> None:
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as packed:
        for name in names:
            member = zipfile.ZipInfo(name, _EPOCH)
            member.compress_type = zipfile.ZIP_DEFLATED
            member.external_attr = (stat.S_IFREG | 0o644) << 16
            with (
                packed.open(member, "w", force_zip64=True) as output,
                (folder / name).open("rb") as source,
            ):
                shutil.copyfileobj(source, output, _CHUNK)


class _Limited(io.RawIOBase):
    """A stream that stops an archive which goes on for longer than it may."""

    def __init__(self, source: Any, refuse: Callable[[], BundleError]) -> None:
        self._source = source
        self._refuse = refuse
        self.left = MAX_MANIFEST

    def read(self, size: int = -1) -> bytes:
        """See the base class."""
        wanted = self.left + 1 if size < 0 else min(size, self.left + 1)
        data: bytes = self._source.read(wanted)
        self.left -= len(data)
        if self.left < 0:
            raise self._refuse()
        return data


def _read_tar(archive: Path, writer: _Writer) -> None:
    zstd = _zstd()

    def refuse() -> BundleError:
        return writer.refusal(
            "the archive goes on for longer than its manifest says",
            f"{archive.stat().st_size} bytes",
        )

    options = {zstd.DecompressionParameter.window_log_max: _WINDOW_LOG}
    with zstd.ZstdFile(archive, options=options) as unpacked:
        stream = _Limited(unpacked, refuse)
        with tarfile.open(fileobj=stream, mode="r|") as tar:
            first = True
            for member in tar:
                if not member.isreg():
                    raise writer.refusal(
                        "the archive holds something other than files", repr(member.name)
                    )
                content = tar.extractfile(member)
                assert content is not None  # a regular file has content
                if not first:
                    writer.file(member.name, content)
                    continue
                if member.name != MANIFEST or member.size > MAX_MANIFEST:
                    raise writer.refusal(
                        f"the archive does not begin with {MANIFEST}", repr(member.name)
                    )
                total = writer.manifest(content.read())
                stream.left = total + MAX_MANIFEST
                first = False
    writer.finish()


def _read_zip(archive: Path, writer: _Writer) -> None:
    with zipfile.ZipFile(archive) as packed:
        members = packed.infolist()
        for member in members:
            kind = stat.S_IFMT(member.external_attr >> 16)  # 0 where the writer did not say
            if member.is_dir() or kind not in (0, stat.S_IFREG):
                raise writer.refusal(
                    "the archive holds something other than files", repr(member.filename)
                )
            if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise writer.refusal(
                    "the archive is compressed in a way that is not supported",
                    f"{member.filename!r}, method {member.compress_type}",
                )
        found: Mapping[str, zipfile.ZipInfo] = {member.filename: member for member in members}
        if len(found) < len(members):
            raise writer.refusal("the archive holds a file twice", f"{len(members)} entries")
        if MANIFEST not in found or found[MANIFEST].file_size > MAX_MANIFEST:
            raise writer.refusal(
                f"the archive has no {MANIFEST}", ", ".join(sorted(found)[:5]) or "nothing"
            )
        with packed.open(found[MANIFEST]) as content:
            writer.manifest(content.read(MAX_MANIFEST))
        for member in members:
            if member is not found[MANIFEST]:
                with packed.open(member) as content:
                    writer.file(member.filename, content)
    writer.finish()
