"""Archives of bundles: what goes in comes out, and nothing else ever does."""

from __future__ import annotations

import io
import json
import os
import stat
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from targets import Bundle
from targets.archive import MAX_MANIFEST, _zstd, pack, unpack
from targets.errors import BundleError

from .conftest import write_bundle

EXAMPLES = int(os.environ.get("COMPRESSOR_FUZZ_EXAMPLES", "400"))
FILES = {"model.bin": b"weights" * 40, "tokenizer.json": b"{}", "sub/more.bin": b"\x00\xff" * 20}
FORMATS = [".tar.zst", ".zip"]
zstd = _zstd()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_bundle(tmp_path / "bundle", FILES)


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def members(folder: Path) -> dict[str, bytes]:
    """Name -> content of a bundle, the manifest first."""
    found = contents(folder)
    return {"manifest.json": found.pop("manifest.json"), **found}


def write(path: Path, files: Any, *, extra: tuple[Any, ...] = ()) -> Path:
    """Write an archive by hand: pairs of name and content, and ready-made members after them."""
    pairs = list(files.items()) if isinstance(files, dict) else list(files)
    if path.name.endswith(".zip"):
        with zipfile.ZipFile(path, "w") as packed:
            for name, content in pairs:
                packed.writestr(name, content)
            for info in extra:
                packed.writestr(info, b"target")
        return path
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in pairs:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
        for member in extra:
            tar.addfile(member)
    path.write_bytes(zstd.compress(buffer.getvalue()))
    return path


def refusal(archive: Path, folder: Path) -> BundleError:
    before = contents(folder.parent)
    with pytest.raises(BundleError) as caught:
        unpack(archive, folder)
    assert caught.value.exit_code == 6
    assert caught.value.fix
    assert list(folder.iterdir()) == []
    assert contents(folder.parent) == before
    return caught.value


@pytest.mark.parametrize("suffix", FORMATS)
def test_what_goes_in_comes_out(folder: Path, tmp_path: Path, suffix: str) -> None:
    archive = tmp_path / f"half{suffix}"
    pack(folder, archive)
    unpack(archive, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(folder)
    bundle = Bundle.open(archive)
    assert bundle.manifest == Bundle.open(folder).manifest
    assert bundle.path("sub/more.bin").read_bytes() == FILES["sub/more.bin"]


@pytest.mark.parametrize("suffix", FORMATS)
def test_equal_bundles_give_equal_bytes(folder: Path, tmp_path: Path, suffix: str) -> None:
    for name in ("a", "b"):
        pack(folder, tmp_path / f"{name}{suffix}")
        os.utime(folder / "model.bin", (1, 1))
        (folder / "model.bin").chmod(0o600)
    assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_bundle_from_an_archive_cleans_up_behind_itself(
    folder: Path, tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    archive = tmp_path / f"half{suffix}"
    pack(folder, archive)
    bundle = Bundle.open(archive)
    assert bundle.folder.parent == tmp_path / "temporary"
    del bundle
    assert list((tmp_path / "temporary").iterdir()) == []
    archive.write_bytes(archive.read_bytes()[:-40])
    with pytest.raises(BundleError):
        Bundle.open(archive)
    assert list((tmp_path / "temporary").iterdir()) == []


def test_other_options_keep_the_folder_of_an_archive(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    pack(folder, tmp_path / "half.zip")
    bundle = Bundle.open(tmp_path / "half.zip").with_options({"x": 1})
    bundle.verify()
    del bundle
    assert list((tmp_path / "temporary").iterdir()) == []


def test_an_archive_becomes_one_of_another_format(folder: Path, tmp_path: Path) -> None:
    first, second = FORMATS
    pack(folder, tmp_path / f"a{first}")
    pack(folder, tmp_path / f"b{second}")
    pack(tmp_path / f"a{first}", tmp_path / f"c{second}")
    assert (tmp_path / f"c{second}").read_bytes() == (tmp_path / f"b{second}").read_bytes()


def test_a_damaged_bundle_is_not_packed(folder: Path, tmp_path: Path) -> None:
    (folder / "model.bin").write_bytes(b"other")
    with pytest.raises(BundleError, match="changed after it was built"):
        pack(folder, tmp_path / "half.zip")
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_an_unknown_format_names_the_known_ones(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="cannot be packed in this format") as caught:
        pack(folder, tmp_path / "half.rar")
    assert caught.value.fix == "end the name in .tar.zst or .zip"


def test_an_archive_that_cannot_be_written_says_so(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="the archive cannot be written"):
        pack(folder, tmp_path / "none" / "half.zip")


@pytest.mark.parametrize("suffix", FORMATS)
def test_an_absent_archive_says_so(tmp_path: Path, suffix: str) -> None:
    with pytest.raises(BundleError, match="the archive cannot be read") as caught:
        Bundle.open(tmp_path / f"none{suffix}")
    assert caught.value.given == "no such file"


# What an archive may not hold


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("name", ["../secret", "/secret/file", "sub/../../secret", "a\\..\\secret"])
def test_names_that_lead_out_of_the_folder(
    folder: Path, tmp_path: Path, suffix: str, name: str
) -> None:
    files = members(folder)
    document = json.loads(files["manifest.json"])
    document["files"][name] = document["files"].pop("sub/more.bin")
    files["manifest.json"] = json.dumps(document).encode()
    files[name] = files.pop("sub/more.bin")
    archive = write(tmp_path / f"x{suffix}", files)
    error = refusal(archive, tmp_path / "out")
    assert error.what == "the manifest names a file outside of the bundle"
    assert not (tmp_path / "secret").exists()


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("name", ["../secret", "more.bin"])
def test_files_that_the_manifest_does_not_name(
    folder: Path, tmp_path: Path, suffix: str, name: str
) -> None:
    archive = write(tmp_path / f"x{suffix}", [*members(folder).items(), (name, b"x")])
    error = refusal(archive, tmp_path / "out")
    assert error.what == "the archive holds a file that its manifest does not name"
    assert error.given == repr(name)


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("name", ["model.bin", "manifest.json"])
def test_a_file_that_comes_twice(folder: Path, tmp_path: Path, suffix: str, name: str) -> None:
    files = members(folder)
    again = [*files.items(), (name, files[name])]
    error = refusal(write(tmp_path / f"x{suffix}", again), tmp_path / "out")
    assert error.what == "the archive holds a file twice"


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("content", [b"", b"weights" * 39, b"weights" * 40 + b"x"])
def test_a_file_of_another_size(folder: Path, tmp_path: Path, suffix: str, content: bytes) -> None:
    files = members(folder) | {"model.bin": content}
    error = refusal(write(tmp_path / f"x{suffix}", files), tmp_path / "out")
    assert error.what == "a file in the archive has another size than its manifest says"


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_changed_file_is_named_with_its_archive(
    folder: Path, tmp_path: Path, suffix: str
) -> None:
    files = members(folder)
    changed = files | {"model.bin": files["model.bin"][::-1], "tokenizer.json": b"[]"}
    archive = write(tmp_path / f"x{suffix}", changed)
    with pytest.raises(BundleError, match="was changed after it was built") as caught:
        Bundle.open(archive)
    assert caught.value.where == str(archive / "model.bin")
    opened = Bundle.open(archive, verify=False)
    with pytest.raises(BundleError, match="the tokenizer of the bundle cannot be read") as caught:
        opened.manifest.preprocessing.open(opened.folder, source=opened.source)
    assert caught.value.where == str(archive / "tokenizer.json")


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_file_that_is_missing(folder: Path, tmp_path: Path, suffix: str) -> None:
    files = members(folder)
    del files["model.bin"]
    error = refusal(write(tmp_path / f"x{suffix}", files), tmp_path / "out")
    assert (error.what, error.given) == ("the archive lacks files of the bundle", "model.bin")


@pytest.mark.parametrize("suffix", FORMATS)
def test_no_manifest_or_not_first(folder: Path, tmp_path: Path, suffix: str) -> None:
    files = members(folder)
    text = files.pop("manifest.json")
    assert "manifest.json" in refusal(write(tmp_path / f"x{suffix}", files), tmp_path / "out").what
    last = write(tmp_path / f"y{suffix}", files | {"manifest.json": text})
    if suffix == ".zip":  # has a table of contents
        unpack(last, tmp_path / "out")
    else:
        assert "does not begin with" in refusal(last, tmp_path / "out").what


def link(name: str, kind: bytes) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type = kind
    member.linkname = "/etc/passwd"
    return member


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE]
)
def test_a_tar_with_something_other_than_files(folder: Path, tmp_path: Path, kind: bytes) -> None:
    archive = write(tmp_path / "x.tar.zst", members(folder), extra=(link("odd", kind),))
    assert "other than files" in refusal(archive, tmp_path / "out").what


@pytest.mark.parametrize("mode", [stat.S_IFLNK, stat.S_IFDIR, stat.S_IFIFO])
def test_a_zip_with_something_other_than_files(folder: Path, tmp_path: Path, mode: int) -> None:
    odd = zipfile.ZipInfo("odd")
    odd.external_attr = (mode | 0o777) << 16
    archive = write(tmp_path / "x.zip", members(folder), extra=(odd,))
    assert "other than files" in refusal(archive, tmp_path / "out").what


# Bombs


def inflate(folder: Path, size: int) -> dict[str, bytes]:
    """The members of the bundle, with a manifest that announces a larger model."""
    files = members(folder)
    document = json.loads(files["manifest.json"])
    document["files"]["model.bin"]["size_bytes"] = size
    return files | {"manifest.json": json.dumps(document).encode()}


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("size", [2**31, 2**62])
def test_an_announced_bomb_is_refused_before_anything_is_written(
    folder: Path, tmp_path: Path, suffix: str, size: int
) -> None:
    error = refusal(write(tmp_path / f"x{suffix}", inflate(folder, size)), tmp_path / "out")
    assert error.what == "the archive would unpack to far more than it holds"


@pytest.mark.parametrize("method", [zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2])
def test_a_zip_compressed_in_another_way(folder: Path, tmp_path: Path, method: int) -> None:
    archive = tmp_path / "x.zip"
    with zipfile.ZipFile(archive, "w", method) as packed:
        for name, content in members(folder).items():
            packed.writestr(name, content)
    with pytest.raises(BundleError, match="compressed in a way that is not supported") as caught:
        unpack(archive, tmp_path / "out")
    assert f"method {method}" in str(caught.value.given)


def test_a_zip_bomb_stops_at_the_announced_size(folder: Path, tmp_path: Path) -> None:
    archive = tmp_path / "x.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, content in members(folder).items():
            packed.writestr(name, bytes(2**28) if name == "model.bin" else content)
    error = refusal(archive, tmp_path / "out")
    assert "another size" in error.what


def test_a_tar_that_goes_on_is_stopped(folder: Path, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    write(tmp_path / "y.tar.zst", members(folder))
    plain = zstd.decompress((tmp_path / "y.tar.zst").read_bytes())
    buffer.write(plain.rstrip(b"\0") + bytes(512 - len(plain.rstrip(b"\0")) % 512))
    endless = tarfile.TarInfo("model.bin")
    endless.size = 2**33
    buffer.write(endless.tobuf())
    packer = zstd.ZstdCompressor()
    with (tmp_path / "x.tar.zst").open("wb") as stream:
        stream.write(packer.compress(buffer.getvalue()))
        for _ in range(64):
            stream.write(packer.compress(bytes(2**20)))
        stream.write(packer.flush())
    assert refusal(tmp_path / "x.tar.zst", tmp_path / "out")


def test_a_long_header_takes_no_memory(folder: Path, tmp_path: Path) -> None:
    header = tarfile.TarInfo("././@LongLink")
    header.type = tarfile.GNUTYPE_LONGNAME
    header.size = 2**30
    packer = zstd.ZstdCompressor()
    with (tmp_path / "x.tar.zst").open("wb") as stream:
        stream.write(packer.compress(header.tobuf(tarfile.GNU_FORMAT)))
        for _ in range(2 * MAX_MANIFEST // 2**20):
            stream.write(packer.compress(bytes(2**20)))
        stream.write(packer.flush())
    error = refusal(tmp_path / "x.tar.zst", tmp_path / "out")
    assert error.what == "the archive goes on for longer than its manifest says"


def test_no_room_on_the_disk_is_said_before_anything_is_written(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = tmp_path / "x.zip"
    pack(folder, archive)
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 10})())
    assert "no room" in refusal(archive, tmp_path / "out").what


# Whatever the bytes are


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = write_bundle(tmp_path_factory.mktemp("intact") / "bundle", FILES)
    found = {}
    for suffix in FORMATS:
        archive = folder.parent / f"x{suffix}"
        pack(folder, archive)
        found[suffix] = archive.read_bytes()
    return found


@pytest.fixture(scope="module")
def arena(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("arena")


def try_to_open(arena: Path, suffix: str, data: bytes) -> Iterator[str]:
    """Open bytes as an archive; yields what went wrong, if something but a clean error did."""
    with tempfile.TemporaryDirectory(dir=arena) as place:
        archive, out = Path(place) / f"x{suffix}", Path(place) / "inner" / "out"
        archive.write_bytes(data)
        try:
            unpack(archive, out)
        except BundleError:
            if any(out.iterdir()):
                yield "a refused archive left files"
        if {path.name for path in Path(place).iterdir()} != {archive.name, "inner"}:
            yield "something was written outside"
        if [path.name for path in out.parent.iterdir()] != ["out"]:
            yield "something was written beside the folder"


damage = st.lists(
    st.one_of(
        st.tuples(st.just("flip"), st.floats(0, 1), st.integers(1, 255)),
        st.tuples(st.just("cut"), st.floats(0, 1), st.integers(1, 64)),
        st.tuples(st.just("put"), st.floats(0, 1), st.binary(min_size=1, max_size=16)),
    ),
    min_size=1,
    max_size=4,
)


def damaged(data: bytes, changes: list[tuple[str, float, Any]]) -> bytes:
    found = bytearray(data)
    for kind, share, value in changes:
        place = min(int(share * len(found)), max(len(found) - 1, 0))
        if kind == "flip" and found:
            found[place] ^= value
        elif kind == "cut":
            del found[place : place + value]
        elif kind == "put":
            found[place:place] = value
    return bytes(found)


@settings(max_examples=EXAMPLES, deadline=None)
@given(suffix=st.sampled_from(FORMATS), changes=damage)
def test_a_damaged_archive_is_a_clean_error(
    intact: dict[str, bytes], arena: Path, suffix: str, changes: list[tuple[str, float, Any]]
) -> None:
    assert not list(try_to_open(arena, suffix, damaged(intact[suffix], changes)))


@settings(max_examples=EXAMPLES, deadline=None)
@given(changes=damage)
def test_a_damaged_tar_inside_good_compression_is_a_clean_error(
    intact: dict[str, bytes], arena: Path, changes: list[tuple[str, float, Any]]
) -> None:
    plain = zstd.decompress(intact[".tar.zst"])
    data = zstd.compress(damaged(plain, changes))
    assert not list(try_to_open(arena, ".tar.zst", data))


@settings(max_examples=EXAMPLES, deadline=None)
@given(suffix=st.sampled_from(FORMATS), data=st.binary(max_size=400))
def test_bytes_that_are_no_archive_are_a_clean_error(arena: Path, suffix: str, data: bytes) -> None:
    assert not list(try_to_open(arena, suffix, data))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=5,
)


@settings(max_examples=EXAMPLES, deadline=None)
@given(data=st.data())
def test_a_manifest_with_any_values_is_a_clean_error_or_a_bundle(
    intact: dict[str, bytes], arena: Path, data: st.DataObject
) -> None:
    with zipfile.ZipFile(io.BytesIO(intact[".zip"])) as packed:
        document = json.loads(packed.read("manifest.json"))
    name = data.draw(st.sampled_from([*document, "odd"]))
    inner = document.get(name)
    value = data.draw(json_values)
    if isinstance(inner, dict) and inner and data.draw(st.booleans()):
        inner[data.draw(st.sampled_from([*inner, "odd", "../x"]))] = value
    else:
        document[name] = value
    with tempfile.TemporaryDirectory(dir=arena) as place:
        folder = write_bundle(Path(place) / "bundle", FILES)
        (folder / "manifest.json").write_text(json.dumps(document))
        with suppress(BundleError):
            bundle = Bundle.open(folder)
            assert bundle.model_path.resolve().is_relative_to(folder.resolve())
