"""Bundles: everything that is missing, changed, or leads out of the folder is found."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from targets import Bundle, Manifest, Signature, TensorSpec
from targets.answers import LabelAnswers
from targets.bundle import SCHEMA_VERSION, FileRecord, Measured, hash_file
from targets.errors import BundleError
from targets.preprocessing import TextPreprocessing
from targets.scoring import Accuracy

FILES = {"model.bin": b"weights", "tokenizer.json": b"{}", "sub/more.bin": b"\x00\xff" * 20}


def manifest(**changes: Any) -> Manifest:
    fields: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "name": "half",
        "task": "text-classification",
        "target": "onnxruntime",
        "target_settings": {"device": "cpu"},
        "precision": "int8",
        "signature": Signature(
            inputs=(TensorSpec(name="ids", dtype="int64", shape=("batch", "sequence")),),
            outputs=(TensorSpec(name="logits", dtype="float32", shape=("batch", 2)),),
        ),
        "model": "model.bin",
        "labels": ("no", "yes"),
        "preprocessing": TextPreprocessing(max_length=16, pad_token_id=0),
        "files": {},
    }
    return Manifest(**(fields | changes))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A bundle with three files."""
    folder = tmp_path / "bundle"
    for name, content in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    Bundle.create(folder, manifest())
    return folder


@pytest.fixture
def edit(folder: Path) -> Callable[..., None]:
    """Change fields of the written manifest."""

    def change(**fields: Any) -> None:
        path = folder / "manifest.json"
        document = json.loads(path.read_text())
        path.write_text(json.dumps(document | fields))

    return change


def refusal(folder: Path, *, verify: bool = True) -> BundleError:
    with pytest.raises(BundleError) as caught:
        Bundle.open(folder, verify=verify)
    assert caught.value.exit_code == 6
    assert caught.value.fix
    return caught.value


def test_a_bundle_opens_as_it_was_created(folder: Path) -> None:
    bundle = Bundle.open(folder)
    assert set(bundle.manifest.files) == set(FILES)
    assert bundle.manifest == manifest(files=bundle.manifest.files)
    assert bundle.size_bytes == sum(map(len, FILES.values()))
    assert bundle.model_path == folder / "model.bin"
    assert bundle.path("sub/more.bin").read_bytes() == FILES["sub/more.bin"]
    assert Bundle.open(str(folder)).manifest == bundle.manifest


def test_creating_again_records_what_lies_there_now(folder: Path) -> None:
    (folder / "model.bin").write_bytes(b"other")
    (folder / "sub" / "more.bin").unlink()
    (folder / "manifest.json.tmp").write_text("left by a process that was killed")
    Bundle.create(folder, Bundle.open(folder, verify=False).manifest)
    assert set(Bundle.open(folder).manifest.files) == {"model.bin", "tokenizer.json"}


def test_a_hash_is_the_sha256(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"abc")
    assert hash_file(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert FileRecord.of(path).size_bytes == 3


# Damage


@pytest.mark.parametrize("name", FILES)
def test_every_flipped_byte_of_every_file_is_found(folder: Path, name: str) -> None:
    path = folder / name
    content = path.read_bytes()
    for position in range(len(content)):
        damaged = bytearray(content)
        damaged[position] ^= 1 << (position % 8)
        path.write_bytes(damaged)
        error = refusal(folder)
        assert error.where == str(path)
        assert error.what == "a file of the bundle was changed after it was built"
    path.write_bytes(content)
    Bundle.open(folder)


def test_no_flipped_byte_of_the_manifest_is_more_than_a_bundle_error(folder: Path) -> None:
    path = folder / "manifest.json"
    content = path.read_bytes()
    before = Bundle.open(folder).manifest
    silent = 0
    for position in range(0, len(content), 3):
        damaged = bytearray(content)
        damaged[position] ^= 1 << (position % 8)
        path.write_bytes(damaged)
        with suppress(BundleError):
            silent += Bundle.open(folder).manifest == before
    # White space that became other white space, nothing else.
    assert silent < 0.05 * len(content)


@pytest.mark.parametrize("name", FILES)
def test_a_cut_or_longer_file_is_found(folder: Path, name: str) -> None:
    path = folder / name
    content = path.read_bytes()
    for damaged in (content[:-1], content + b"x", b""):
        path.write_bytes(damaged)
        error = refusal(folder)
        assert f"{len(damaged)} bytes, sha256 " in str(error.given)
        assert f"recorded {len(content)} bytes" in str(error.given)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    error = refusal(folder)
    assert error.what == "a file of the bundle is missing"
    assert error.where == str(folder / name)
    Bundle.open(folder, verify=False)


def test_a_folder_in_place_of_a_file_is_a_missing_file(folder: Path) -> None:
    (folder / "model.bin").unlink()
    (folder / "model.bin").mkdir()
    assert refusal(folder).what == "a file of the bundle is missing"


def test_a_file_that_cannot_be_read_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path) -> FileRecord:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(FileRecord, "of", fail)
    error = refusal(folder)
    assert error.what == "a file of the bundle cannot be read"
    assert error.where == str(folder / "model.bin")


def test_links_are_not_followed(folder: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside.bin"
    outside.write_bytes(FILES["model.bin"])
    (folder / "model.bin").unlink()
    (folder / "model.bin").symlink_to(outside)
    error = refusal(folder)
    assert error.where == str(folder / "model.bin")
    assert error.given == "a symbolic link"


def test_links_of_folders_are_not_followed(folder: Path, tmp_path: Path) -> None:
    (folder / "sub").rename(tmp_path / "elsewhere")
    (folder / "sub").symlink_to(tmp_path / "elsewhere")
    error = refusal(folder)
    assert error.where == str(folder / "sub" / "more.bin")
    assert error.given == "a symbolic link"


def test_the_bundle_itself_may_be_reached_by_a_link(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = tmp_path / "current"
    link.symlink_to(folder)
    assert Bundle.open(link).manifest.name == "half"
    monkeypatch.chdir(folder)
    assert Bundle.open(".").manifest.name == "half"


# Names that lead out


def test_the_identity_is_that_of_everything_but_what_was_measured(folder: Path) -> None:
    before = Bundle.open(folder).identity
    found = Accuracy(value=0.5, low=0.4, high=0.6, num_rows=9)
    measured = Measured(machine="other", libraries={}, accuracy=found)
    (folder / "README.md").write_text("half right")
    assert Bundle.create(folder, manifest(measured=measured)).identity == before
    assert Bundle.open(folder).identity == before
    path = folder / "manifest.json"
    without = json.loads(path.read_text())  # as before there were several kinds of answers
    del without["answers"]
    path.write_text(json.dumps(without))
    assert Bundle.open(folder).manifest.answers == LabelAnswers()
    assert Bundle.open(folder).identity == before
    assert Bundle.create(folder, manifest(labels=("yes", "no"))).identity != before
    (folder / "model.bin").write_bytes(b"weighty")
    assert Bundle.create(folder, manifest()).identity != before


BAD_NAMES = [
    "../secret",
    "sub/../../secret",
    "/etc/passwd",
    "..",
    "sub\\..\\..\\secret",
    "C:\\secret",
    "a\0b",
]


@pytest.mark.parametrize("name", BAD_NAMES)
@pytest.mark.parametrize("verify", [True, False])
def test_a_recorded_file_outside_is_refused(
    folder: Path, edit: Callable[..., None], name: str, verify: bool
) -> None:
    (folder.parent / "secret").write_text("secret")
    files = Bundle.open(folder).manifest.model_dump(mode="json")["files"]
    edit(files=files | {name: files["model.bin"]})
    error = refusal(folder, verify=verify)
    assert error.what == "the manifest names a file outside of the bundle"
    assert error.given == repr(name)
    assert "do not use this bundle" in str(error.fix)


@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_model_outside_is_refused(folder: Path, edit: Callable[..., None], name: str) -> None:
    edit(model=name)
    assert refusal(folder, verify=False).given == repr(name)


@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_tokenizer_outside_is_refused(folder: Path, edit: Callable[..., None], name: str) -> None:
    edit(preprocessing={"kind": "text", "tokenizer": name, "max_length": 8, "pad_token_id": 0})
    refusal(folder, verify=False)


@pytest.mark.parametrize("name", ["model.onnx", "", ".", "manifest.json"])
def test_needed_files_have_to_be_recorded(
    folder: Path, edit: Callable[..., None], name: str
) -> None:
    edit(model=name)
    error = refusal(folder, verify=False)
    assert error.what == "the manifest does not record a file that it needs"
    assert error.given == repr(name)


def test_an_unrecorded_tokenizer_is_refused(folder: Path, edit: Callable[..., None]) -> None:
    edit(
        preprocessing={"kind": "text", "tokenizer": "vocab.txt", "max_length": 8, "pad_token_id": 0}
    )
    assert refusal(folder).given == "'vocab.txt'"


# Manifests


def test_a_folder_without_a_manifest_is_no_bundle(tmp_path: Path) -> None:
    error = refusal(tmp_path)
    assert error.what == "this is not a bundle: its manifest cannot be read"
    assert error.where == str(tmp_path / "manifest.json")
    error = refusal(tmp_path / "none")
    assert error.what == "there is no such bundle"
    assert error.where == str(tmp_path / "none")
    file = tmp_path / "file"
    file.write_text("x")
    assert "not a bundle" in refusal(file).what


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"3", b"\xff\xfe", b'{"schema_version": 1}'])
def test_a_damaged_manifest_is_named(folder: Path, content: bytes) -> None:
    (folder / "manifest.json").write_bytes(content)
    assert str(folder / "manifest.json") in str(refusal(folder).where)


def test_a_wrong_field_is_named(folder: Path, edit: Callable[..., None]) -> None:
    edit(preprocessing={"kind": "text", "max_length": 0, "pad_token_id": 0})
    error = refusal(folder)
    assert error.what == "the manifest of the bundle is not valid"
    assert error.where == f"{folder / 'manifest.json'}, field preprocessing.text.max_length"


@pytest.mark.parametrize("sha256", ["", "00", "g" * 64, "0" * 63, "A" * 64])
def test_a_hash_has_64_hex_digits(folder: Path, edit: Callable[..., None], sha256: str) -> None:
    edit(files={"model.bin": {"size_bytes": 7, "sha256": sha256}})
    assert "files.model.bin.sha256" in str(refusal(folder).where)


@pytest.mark.parametrize("version", [0, 2, 99])
def test_another_schema_version_is_named_even_with_other_fields(
    folder: Path, edit: Callable[..., None], version: int
) -> None:
    edit(schema_version=version, a_new_field=[1], labels=None)
    error = refusal(folder)
    assert error.what == "the bundle has another schema version"
    assert error.given == str(version)
    assert (
        error.fix
        == f"this version reads schema {SCHEMA_VERSION}; install the version that built it"
    )


def test_unknown_fields_of_this_version_are_refused(
    folder: Path, edit: Callable[..., None]
) -> None:
    edit(a_new_field=1)
    assert "a_new_field" in str(refusal(folder).where)


def test_a_manifest_is_frozen() -> None:
    with pytest.raises(ValidationError):
        manifest().name = "x"  # type: ignore[misc]
