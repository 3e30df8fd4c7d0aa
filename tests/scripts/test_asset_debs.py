"""Assets out of Debian packages: hand-made ones, in a mirror that is a folder."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from assets import apt
from assets.archive import copy_member, read_member
from assets.asset import Archive, Asset, Deb, Licence
from assets.deb import licence_members, open_deb, stated_licence
from assets.download import sha256_of
from assets.errors import DownloadError, HashMismatchError, NoSpaceError, PackageError
from assets.store import Store

FILENAME = "tiny-data_1.0-1_all.deb"
COPYRIGHT = (
    "Files: *\nLicense: Expat\n\nFiles: debian/*\nLicense: Expat\n\nLicense: Expat\n Text.\n"
)

pytestmark = pytest.mark.skipif(
    not (shutil.which("apt-get") and shutil.which("dpkg-deb")), reason="needs apt-get and dpkg-deb"
)


def make_tar(members: Mapping[str, bytes | tarfile.TarInfo]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:xz") as tar:
        for name, content in members.items():
            info = content if isinstance(content, tarfile.TarInfo) else tarfile.TarInfo(name)
            data = b"" if isinstance(content, tarfile.TarInfo) else content
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return file.getvalue()


def make_deb(path: Path, members: Mapping[str, bytes | tarfile.TarInfo]) -> Path:
    """A package as deb(5) describes it; dpkg-deb itself would refuse to build an unsafe one."""
    control = b"Package: tiny-data\nVersion: 1.0-1\nArchitecture: all\n"
    parts = {
        "debian-binary": b"2.0\n",
        "control.tar.xz": make_tar({"./control": control}),
        "data.tar.xz": make_tar(members),
    }
    raw = b"!<arch>\n"
    for name, content in parts.items():
        raw += f"{name:16}{0:<12}{0:<6}{0:<6}{'100644':8}{len(content):<10}`\n".encode()
        raw += content + b"\n" * (len(content) % 2)
    path.write_bytes(raw)
    return path


def convert(deb: Archive, folder: Path) -> dict[str, object]:
    (folder / "data.txt").write_bytes(read_member(deb, "usr/share/tiny/data.txt"))
    copy_member(deb, "usr/share/tiny/data.txt", folder / "copy.txt")
    return {}


def make_asset(deb: Path) -> Asset:
    return Asset(
        name="tiny",
        summary="a tiny asset",
        source=Deb(
            package="tiny-data",
            version="1.0-1",
            filename=FILENAME,
            sha256=sha256_of(deb),
            size_bytes=deb.stat().st_size,
        ),
        licence=Licence(package="Expat", content="Expat"),
        citation="nobody",
        convert=convert,
        revision=1,
    )


def silent(line: str) -> None:
    pass


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "assets")


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that apt-get takes packages from, and nothing else, with no lists fetched yet."""
    folder, state = tmp_path / "mirror", tmp_path / "apt"
    for each in (folder, state / "lists" / "partial", state / "cache" / "archives" / "partial"):
        each.mkdir(parents=True)
    (state / "sources.list").write_text(f"deb [trusted=yes] file:{folder} ./\n")
    (state / "apt.conf").write_text(
        f'Dir::Etc::SourceList "{state}/sources.list"; Dir::Etc::SourceParts "/dev/null";\n'
        f'Dir::State::Lists "{state}/lists"; Dir::Cache "{state}/cache";\n'
        f'Dir::State::Status "{state}/status"; Acquire::Languages "none";\n'
    )
    (state / "status").touch()
    monkeypatch.setenv("APT_CONFIG", str(state / "apt.conf"))
    (folder / "Packages").touch()
    return folder


def serve(mirror: Path, members: Mapping[str, bytes | tarfile.TarInfo], version: str) -> Path:
    path = make_deb(mirror / FILENAME, members)
    (mirror / "Packages").write_text(
        f"Package: tiny-data\nVersion: {version}\nArchitecture: all\nMaintainer: nobody\n"
        f"Filename: ./{FILENAME}\nSize: {path.stat().st_size}\nSHA256: {sha256_of(path)}\n"
        "Description: tiny\n"
    )
    return path


@pytest.fixture
def served(mirror: Path) -> Path:
    members = {
        "./usr/share/tiny/data.txt": b"hello\n",
        "./usr/share/doc/tiny-data/copyright": COPYRIGHT.encode(),
    }
    return serve(mirror, members, "1.0-1")


def test_asset_is_built_from_a_package_that_apt_downloads(served: Path, store: Store) -> None:
    asset = make_asset(served)
    assert store.ensure(asset, report=silent).action == "built"
    assert (store.root / "tiny/data.txt").read_text() == "hello\n"
    assert (store.root / "tiny/copy.txt").read_text() == "hello\n"
    assert (store.root / "tiny/licences/copyright").read_text() == COPYRIGHT
    assert [path.name for path in (store.root / "downloads").iterdir()] == [FILENAME]
    record = json.loads((store.root / "tiny/asset.json").read_text())
    assert record["source"] == {
        "package": "tiny-data",
        "version": "1.0-1",
        "deb": FILENAME,
        "sha256": asset.source.sha256,
    }
    assert record["licence"]["deb_metadata"] == ["License: Expat"]
    assert record["licence"]["files"] == ["licences/copyright"]
    assert store.ensure(asset, report=silent).action == "unchanged"


def test_relative_folder_is_built_too(
    served: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert Store(Path("here")).ensure(make_asset(served), report=silent).action == "built"


def test_version_that_the_mirror_lacks_is_a_clear_error(mirror: Path, store: Store) -> None:
    asset = make_asset(serve(mirror, {"./usr/x": b"x"}, "2.0-1"))
    with pytest.raises(DownloadError, match=r"tiny-data=1\.0-1 cannot be downloaded") as caught:
        store.ensure(asset, report=silent)
    assert caught.value.given == "Version '1.0-1' for 'tiny-data' was not found"
    assert f"put {FILENAME} into {store.root / 'downloads'}" in caught.value.fix
    assert not list((store.root / "downloads").iterdir())


def test_other_content_than_the_pinned_is_a_clear_error(served: Path, store: Store) -> None:
    asset = make_asset(served)
    asset = replace(asset, source=replace(asset.source, sha256="0" * 64))
    with pytest.raises(HashMismatchError, match="is not the pinned one") as caught:
        store.ensure(asset, report=silent)
    assert caught.value.given == f"sha256 {sha256_of(served)}, expected {'0' * 64}"
    assert not list((store.root / "downloads").iterdir())


def test_package_under_another_name_is_a_clear_error(served: Path, store: Store) -> None:
    asset = make_asset(served)
    asset = replace(asset, source=replace(asset.source, filename="tiny-data_1.0-1_amd64.deb"))
    with pytest.raises(DownloadError, match="apt-get brought another file") as caught:
        store.ensure(asset, report=silent)
    assert caught.value.given == f"{FILENAME}, not tiny-data_1.0-1_amd64.deb"


def test_system_without_apt_is_a_clear_error(
    served: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    asset = make_asset(served)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(DownloadError, match="apt-get is needed") as caught:
        store.ensure(asset, report=silent)
    assert f"put {FILENAME} into {store.root / 'downloads'}" in caught.value.fix


def test_system_without_dpkg_is_a_clear_error(
    served: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(PackageError, match="dpkg-deb is needed"), open_deb(served):
        pass


def test_full_disk_under_apt_is_a_clear_error(served: Path, tmp_path: Path) -> None:
    source = make_asset(served).source
    assert isinstance(source, Deb)
    output = "E: Write error - write (28: No space left on device)\n"
    assert isinstance(apt.explain_failure(source, output, tmp_path), NoSpaceError)


# Unpacking


@pytest.mark.parametrize("name", ["/etc/evil", "../evil", "./a/../../evil", "..\\evil"])
def test_unsafe_member_is_refused(tmp_path: Path, name: str) -> None:
    path = make_deb(tmp_path / FILENAME, {name: b"x"})
    with pytest.raises(PackageError, match="unsafe member") as caught, open_deb(path):
        pass
    assert caught.value.given == repr(name)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
def test_link_or_pipe_is_refused(tmp_path: Path, kind: bytes) -> None:
    member = tarfile.TarInfo("./usr/share/tiny/link")
    member.type, member.linkname = kind, "/etc/passwd"
    path = make_deb(tmp_path / FILENAME, {"": member})
    with pytest.raises(PackageError, match="unsafe member") as caught, open_deb(path):
        pass
    assert "a link or device" in caught.value.given


def test_damaged_package_is_a_clear_error(tmp_path: Path) -> None:
    path = make_deb(tmp_path / FILENAME, {"./usr/x": b"x" * 1000})
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(PackageError, match="the package is damaged") as caught, open_deb(path):
        pass
    assert caught.value.where == str(path)


def test_missing_member_is_a_clear_error(tmp_path: Path) -> None:
    path = make_deb(tmp_path / FILENAME, {"./usr/x": b"x"})
    with open_deb(path) as deb:
        assert deb.namelist() == ["usr/x"]
        with pytest.raises(PackageError) as caught:
            read_member(deb, "usr/y")
        with pytest.raises(PackageError):
            copy_member(deb, "usr/y", tmp_path / "y")
    assert caught.value.where == str(path)
    assert caught.value.given == "no member usr/y"


def test_package_without_copyright_file_states_nothing(tmp_path: Path) -> None:
    with open_deb(make_deb(tmp_path / FILENAME, {"./usr/x": b"x"})) as deb:
        assert licence_members(deb) == []
        assert stated_licence(deb) == []
