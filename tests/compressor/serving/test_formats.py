"""What every format has to stand, found by discovery: its bundles, hostile names, its folder."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import compressor.serving
from compressor.errors import PackageError
from compressor.serving import Format, Packaged, available_formats
from compressor.serving._names import SERVED_NAME, file_name, kubernetes_name, one_line
from targets import Bundle
from targets.registry import available

Package = Callable[..., tuple[Path, Packaged]]
Required = dict[str, dict[str, Any]]
Digests = Callable[[Path], dict[str, str]]
MakeBundle = Callable[..., Bundle]

FORMATS = sorted(name for name, each in available_formats().items() if not each.needs_state)
HOSTILE = (
    "../../etc/passwd",
    "a/b\\c",
    'quote" name: "other',
    "new\nline: yes",
    "  spaces  ",
    "größe-日本語",
    "日本語",
    "..",
    ".hidden",
    "-rf",
    "$(touch x)`id`;&|",
    "{{.Name}}",
    "%s%n\x00\x1b[31m",
    "x" * 300,
    "",
)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
def test_every_format_takes_bundles_and_leaves_them_as_they_are(
    digests: Digests,
    name: str,
    target: str,
    make_bundle: MakeBundle,
    package: Package,
    required: Required,
) -> None:
    bundle = make_bundle(target)
    before = digests(bundle.folder)
    folder, packaged = package(bundle, name, **required.get(name, {}))
    assert digests(bundle.folder) == before
    assert tuple(digests(folder)) == packaged.files
    assert str(folder) in packaged.command
    model = (bundle.folder / bundle.manifest.model).read_bytes()
    assert any((folder / each).read_bytes() == model for each in packaged.files)
    assert list(folder.parent.glob(".package-*")) == []


@pytest.mark.parametrize("name", FORMATS)
def test_an_archive_is_taken_as_a_folder_is(
    digests: Digests,
    name: str,
    tmp_path: Path,
    make_bundle: MakeBundle,
    package: Package,
    required: Required,
) -> None:
    from targets.archive import pack

    bundle = make_bundle()
    archive = tmp_path / "small.tar.zst"
    pack(bundle.folder, archive)
    options = required.get(name, {})
    first, _ = package(bundle, name, **options)
    second, _ = package(Bundle.open(archive), name, **options)
    assert digests(first) == digests(second)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("given", HOSTILE)
def test_no_name_leaves_the_folder(
    name: str,
    given: str,
    tmp_path: Path,
    make_bundle: MakeBundle,
    package: Package,
    required: Required,
) -> None:
    bundle = make_bundle(name=given, labels=(given, "b\nc", "d"))
    outside = set(tmp_path.iterdir())
    folder, packaged = package(bundle, name, **required.get(name, {}))
    assert set(tmp_path.iterdir()) == {*outside, folder}
    assert re.fullmatch(SERVED_NAME.removesuffix("$"), packaged.name)
    for each in packaged.files:
        assert (folder / each).resolve().is_relative_to(folder.resolve())


@pytest.mark.parametrize("given", HOSTILE)
def test_names_are_words_everywhere(given: str) -> None:
    assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}", file_name(given))
    assert re.fullmatch(r"[a-z]([a-z0-9-]{0,51}[a-z0-9])?", kubernetes_name(given))
    assert one_line(given).isprintable()
    assert file_name(file_name(given)) == file_name(given)
    assert kubernetes_name(kubernetes_name(given)) == kubernetes_name(given)


def test_plain_names_stay() -> None:
    assert file_name("int8-v1.2_x") == "int8-v1.2_x"
    assert kubernetes_name("int8-v1") == "int8-v1"
    assert kubernetes_name("8bit_Model.v1") == "m-8bit-model-v1"


@pytest.mark.parametrize("name", FORMATS)
def test_the_same_bundle_gives_the_same_bytes(
    digests: Digests, name: str, make_bundle: MakeBundle, package: Package, required: Required
) -> None:
    bundle, options = make_bundle(), required.get(name, {})
    first, _ = package(bundle, name, **options)
    second, _ = package(bundle, name, **options)
    assert digests(first) == digests(second)


def renamed(bundle: Bundle, target: str) -> Bundle:
    return Bundle.create(bundle.folder, bundle.manifest.model_copy(update={"target": target}))


@pytest.mark.parametrize("name", FORMATS)
def test_other_targets_are_refused_by_name(
    name: str, make_bundle: MakeBundle, package: Package, required: Required
) -> None:
    takes = available_formats()[name].targets
    refused = sorted({*available(), "unheard-of"} - {*takes})
    assert set(takes) <= set(available())
    for target in refused:
        with pytest.raises(PackageError, match="does not run bundles of this target") as caught:
            package(renamed(make_bundle(), target), name, **required.get(name, {}))
        assert caught.value.given == target
        assert all(each in str(caught.value.fix) for each in takes)
        assert caught.value.exit_code == 6


def test_a_folder_that_holds_something_is_not_written_to(
    digests: Digests, tmp_path: Path, make_bundle: MakeBundle
) -> None:
    bundle, triton = make_bundle(), available_formats()["triton"]()
    output = tmp_path / "out"
    output.mkdir()
    triton.package(bundle, output)  # an empty one is fine
    before = digests(output)
    with pytest.raises(PackageError, match="output folder is not empty") as caught:
        triton.package(bundle, output)
    assert caught.value.given == "small"
    assert digests(output) == before
    file = tmp_path / "file"
    file.write_text("mine")
    with pytest.raises(PackageError, match="output folder is not empty") as caught:
        triton.package(bundle, file)
    assert caught.value.given == "a file"
    assert file.read_text() == "mine"


def test_the_output_may_not_lie_in_the_bundle(digests: Digests, make_bundle: MakeBundle) -> None:
    bundle = make_bundle()
    before = digests(bundle.folder)
    with pytest.raises(PackageError, match="inside of the bundle"):
        available_formats()["triton"]().package(bundle, bundle.folder / "sub" / "out")
    assert digests(bundle.folder) == before


def test_an_output_that_cannot_be_made_is_an_error(tmp_path: Path, make_bundle: MakeBundle) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(PackageError, match="cannot be written"):
        available_formats()["triton"]().package(make_bundle(), tmp_path / "file" / "out")


def test_a_failure_leaves_nothing(tmp_path: Path, make_bundle: MakeBundle) -> None:
    bundle = make_bundle(
        signature=make_bundle().manifest.signature.model_copy(update={"inputs": ()})
    )
    bundle.path("tokenizer.json").unlink()
    with pytest.raises(PackageError):
        available_formats()["triton"](text=True).package(bundle, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert list(tmp_path.glob(".package-*")) == []


def test_weights_in_a_file_of_their_own_come_along(
    make_bundle: MakeBundle, package: Package
) -> None:
    bundle = make_bundle()
    (bundle.folder / "model.onnx.data").write_bytes(b"weights")
    bundle = Bundle.create(bundle.folder, bundle.manifest)
    for name in ("triton", "ovms"):
        _, packaged = package(bundle, name)
        assert "small/1/model.onnx.data" in packaged.files
        assert not any("manifest" in each or "evaluation" in each for each in packaged.files)


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_says_what_it_is(name: str) -> None:
    cls = available_formats()[name]
    assert issubclass(cls, Format)
    assert cls.__module__ == f"compressor.serving.{name}"
    assert cls.summary().endswith(".")
    for field, info in cls.model_fields.items():
        assert info.description, f"{name}.{field}"


def test_settings_survive_a_round_trip(required: Required) -> None:
    for name, cls in available_formats().items():
        made = cls(**required.get(name, {}))
        assert cls.model_validate(made.model_dump(exclude_unset=True)) == made


def test_every_public_module_is_a_format() -> None:
    folder = Path(str(compressor.serving.__file__)).parent
    public = {path.stem for path in folder.glob("[!_]*.py")} - {"base"}
    assert public == set(available_formats())
