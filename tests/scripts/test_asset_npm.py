"""Assets out of npm packages: hand-made ones, which a command in the place of npm brings."""

from __future__ import annotations

import io
import json
import tarfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import pytest
from assets.archive import read_member
from assets.asset import Archive, Asset, Licence, Npm
from assets.download import sha256_of
from assets.errors import DownloadError, HashMismatchError, NoSpaceError, PackageError
from assets.npm import explain_failure, licence_members, open_npm, stated_licence
from assets.store import Store
from assets.token_classification import (
    RARE,
    Sentence,
    base_tag,
    brown,
    merge_rare,
    parse_brown,
    write_splits,
)

FILENAME = "tiny-data-1.0.0.tgz"
MEMBERS = {
    "package/package.json": b'{"license": "MIT"}',
    "package/LICENSE": b"Text.\n",
    "package/data.txt": b"hello\n",
}


def make_package(path: Path, members: Mapping[str, bytes | tarfile.TarInfo]) -> Path:
    with tarfile.open(path, mode="w:gz") as tar:
        for name, content in members.items():
            info = content if isinstance(content, tarfile.TarInfo) else tarfile.TarInfo(name)
            data = b"" if isinstance(content, tarfile.TarInfo) else content
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def convert(package: Archive, folder: Path) -> dict[str, object]:
    (folder / "data.txt").write_bytes(read_member(package, "data.txt"))
    return {}


def make_asset(path: Path) -> Asset:
    return Asset(
        name="tiny",
        summary="a tiny asset",
        source=Npm(
            package="tiny-data",
            version="1.0.0",
            filename=FILENAME,
            sha256=sha256_of(path),
            size_bytes=path.stat().st_size,
        ),
        licence=Licence(package="MIT", content="MIT"),
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
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the command ``npm pack`` puts into the folder where it is called."""
    command = tmp_path / "bin" / "npm"
    command.parent.mkdir()
    path = make_package(tmp_path / FILENAME, MEMBERS)
    command.write_text(
        f'#!/bin/sh\n[ "$1 $2 $3" = "pack tiny-data@1.0.0 --ignore-scripts" ] || exit 9\n'
        f"cp {path} .\n"
    )
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{command.parent}:/usr/bin:/bin")
    return path


def test_asset_is_built_from_a_package_that_npm_downloads(served: Path, store: Store) -> None:
    assert store.ensure(make_asset(served), report=silent).action == "built"
    assert (store.root / "tiny/data.txt").read_text() == "hello\n"
    assert (store.root / "tiny/licences/LICENSE").read_text() == "Text.\n"
    assert [path.name for path in (store.root / "downloads").iterdir()] == [FILENAME]
    record = json.loads((store.root / "tiny/asset.json").read_text())
    assert record["source"]["npm"] == FILENAME
    assert record["licence"]["npm_metadata"] == ["license: MIT"]


def test_another_package_than_the_pinned_one(served: Path, store: Store) -> None:
    asset = make_asset(served)
    make_package(served, {**MEMBERS, "package/data.txt": b"other\n"})
    with pytest.raises(HashMismatchError, match="not the pinned one"):
        store.ensure(asset, report=silent)
    assert not (store.root / "tiny").exists()


def test_without_npm(served: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(DownloadError, match="npm is needed to download") as caught:
        store.ensure(make_asset(served), report=silent)
    assert f"put {FILENAME} into" in caught.value.fix


def test_npm_that_fails_says_why(served: Path, store: Store, tmp_path: Path) -> None:
    (tmp_path / "bin" / "npm").write_text(
        "#!/bin/sh\necho 'npm error code E404'\necho 'npm error 404 No match found'\nexit 1\n"
    )
    with pytest.raises(DownloadError, match="cannot be downloaded") as caught:
        store.ensure(make_asset(served), report=silent)
    assert caught.value.given == "404 No match found"


def test_a_full_disk_is_named(served: Path) -> None:
    source = make_asset(served).source
    assert isinstance(source, Npm)
    found = explain_failure(source, "npm ERR! code ENOSPC\nnpm ERR! nospc no space", Path("x"))
    assert isinstance(found, NoSpaceError)
    assert found.given == "nospc no space"


@pytest.mark.parametrize("name", ["../outside", "/outside", "package/../../outside"])
def test_unsafe_members_are_refused(name: str, tmp_path: Path) -> None:
    path = make_package(tmp_path / FILENAME, {name: b""})
    with pytest.raises(PackageError, match="unsafe member"), open_npm(path):
        pass


def test_links_are_refused(tmp_path: Path) -> None:
    link = tarfile.TarInfo("package/link")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    path = make_package(tmp_path / FILENAME, {"package/link": link})
    with pytest.raises(PackageError, match="unsafe member"), open_npm(path):
        pass


@pytest.mark.parametrize("cut", [40, 0])
def test_a_damaged_package(cut: int, tmp_path: Path) -> None:
    path = make_package(tmp_path / FILENAME, MEMBERS)
    path.write_bytes(path.read_bytes()[:-cut] if cut else b"no package")
    with pytest.raises(PackageError, match="damaged"), open_npm(path):
        pass


def test_a_package_may_say_nothing_about_its_licence(tmp_path: Path) -> None:
    with open_npm(make_package(tmp_path / FILENAME, {"package/a": b""})) as archive:
        assert licence_members(archive) == []
        assert stated_licence(archive) == []


# Brown


@pytest.mark.parametrize(
    ("tag", "base"),
    [
        ("nn", "nn"), ("np-tl", "np"), ("fw-in+at-tl", "in"), ("nn$-tl-hl", "nn"), ("md*", "md"),
        ("ppss+hvd", "ppss"), ("pp$$", "pp"), ("dod*-hl", "dod"), ("--", "--"), ("---hl", "--"),
        ("*", "*"), ("*-hl", "*"), (".-hl", "."), ("''", "''"), ("(-hl", "("), ("fw-*", "*"),
    ],
)  # fmt: skip
def test_tags_lose_what_the_corpus_adds_to_them(tag: str, base: str) -> None:
    assert base_tag(tag) == base


def test_lines_become_sentences() -> None:
    raw = b"\n\n\tThe/at 1/2/cd jury/nn-tl ./.\n\n\tIt's/pps+bez\n"
    assert parse_brown(raw, "ca01") == [
        Sentence(("The", "1/2", "jury", "."), ("at", "cd", "nn", ".")),
        Sentence(("It's",), ("pps",)),
    ]


def test_a_word_without_a_tag() -> None:
    with pytest.raises(PackageError, match="a line that cannot be read") as caught:
        parse_brown(b"The/at jury\n", "ca01")
    assert caught.value.where == "ca01, line 1"


def test_rare_tags_are_one() -> None:
    found = merge_rare([Sentence(("a", "b"), ("x", "y")), Sentence(("c",), ("x",))], least=2)
    assert [each.tags for each in found] == [("x", RARE), ("x",)]


def test_the_corpus_becomes_splits_of_the_same_sentences_each_time(tmp_path: Path) -> None:
    lines = "".join(f"word{n}/nn ./.\n" for n in range(8000))
    files = {f"package/ca{n:02}": lines.encode() for n in range(1, 5)}
    members = {**files, "package/README": b"redistribution permitted", "package/cats.txt": b"x"}
    path = make_package(tmp_path / FILENAME, members)
    written = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        with open_npm(path) as package:
            details = brown(package, tmp_path / name)
        written.append([(tmp_path / name / f"{s}.jsonl").read_bytes() for s in ("train", "test")])
    assert written[0] == written[1]
    assert details["split"]["num_rows"] == {"train": 20_000, "validation": 1_000, "test": 5_000}  # type: ignore[index]
    row = json.loads(written[0][0].splitlines()[0])
    assert row["tags"] == ["nn", "."]
    assert (tmp_path / "one" / "licences" / "README").read_text() == "redistribution permitted"


def test_words_are_counted_by_tag(tmp_path: Path) -> None:
    found = write_splits(
        {"train": [Sentence(("a", "b", "c"), ("x", "y", "x"))]}, tmp_path, method="by hand"
    )
    assert found["split"]["num_words_by_tag"] == {"train": Counter({"x": 2, "y": 1})}  # type: ignore[index]
