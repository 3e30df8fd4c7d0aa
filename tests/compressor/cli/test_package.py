"""`compressor package`: bundles of a real run in, what servers accept out."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from compressor.serving import available_formats

DOCUMENT = Path(__file__).parents[3] / "docs" / "serving.md"


@pytest.fixture
def bundles(finished: Any) -> Path:
    """The bundles of one run of a whole recipe."""
    return Path(finished.output) / "bundles"


@pytest.mark.parametrize("name", ["int8-onnxruntime", "int8-openvino"])
@pytest.mark.parametrize("server", ["triton", "ovms", "kserve"])
def test_bundles_of_a_run_are_packaged(
    name: str, server: str, bundles: Path, tmp_path: Path, compressor: Callable[..., Any]
) -> None:
    options = ("--set", "storage_uri=s3://bucket/m") if server == "kserve" else ()
    output = tmp_path / "out"
    done = compressor("package", bundles / name, "--for", server, "--output", output, *options)
    assert done.code == 0, done.err
    printed = done.out.splitlines()
    files = sorted(str(path) for path in output.rglob("*") if path.is_file())
    assert sorted(printed[:-1]) == files
    assert printed[-1].startswith("start: ")
    assert str(output) in printed[-1]


def test_options_are_given_as_settings_are(
    bundles: Path, tmp_path: Path, compressor: Callable[..., Any]
) -> None:
    given = ("performance_hint=THROUGHPUT", "threads=2", "served_name=questions")
    options = [part for each in given for part in ("--set", each)]
    arguments = (bundles / "int8-openvino", "--for", "ovms", "--output", tmp_path / "out")
    assert compressor("package", *arguments, *options).code == 0
    document = json.loads((tmp_path / "out" / "config.json").read_text())
    config = document["model_config_list"][0]["config"]
    assert config["name"] == "questions"
    assert config["plugin_config"]["PERFORMANCE_HINT"] == "THROUGHPUT"
    assert config["plugin_config"]["INFERENCE_NUM_THREADS"] == 2


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--for", "tritn"), 6, ("no such format", "tritn", "did you mean 'triton'")),
        (
            ("--for", "zzz"),
            6,
            ("known: docker, kserve, onnxruntime_genai, openvino_genai, ovms, triton",),
        ),
        (
            ("--for", "triton", "--set", "max_batch=3"),
            3,
            ("no setting 'max_batch'", "did you mean 'max_batch_size'"),
        ),
        (("--for", "triton", "--set", "threads=-1"), 3, ("threads", "greater than or equal to 0")),
        (("--for", "triton", "--set", "threads"), 3, ("has no value",)),
        (("--for", "kserve"), 3, ("'storage_uri' is missing", "--set storage_uri=...")),
        (
            ("--for", "ovms", "--set", "num_streams=2", "--set", "performance_hint=LATENCY"),
            3,
            ("exclude each other",),
        ),
    ],
)
def test_a_wrong_command_says_what_to_do(
    arguments: tuple[str, ...],
    code: int,
    words: tuple[str, ...],
    bundles: Path,
    tmp_path: Path,
    compressor: Callable[..., Any],
) -> None:
    output = tmp_path / "out"
    done = compressor("package", bundles / "int8-onnxruntime", "--output", output, *arguments)
    assert done.code == code
    for each in words:
        assert each in done.err
    assert not output.exists()


def test_a_bundle_that_no_server_runs_is_refused(
    bundles: Path, tmp_path: Path, compressor: Callable[..., Any]
) -> None:
    [bundle] = list(bundles.glob("*-pytorch"))[:1]
    done = compressor("package", bundle, "--for", "ovms", "--output", tmp_path / "out")
    assert done.code == 6
    assert "ovms does not run bundles of this target" in done.err
    assert "pytorch" in done.err
    done = compressor("package", tmp_path, "--for", "ovms", "--output", tmp_path / "out")
    assert done.code == 6
    assert "not a bundle" in done.err


def test_the_help_lists_the_formats_with_their_options(compressor: Callable[..., Any]) -> None:
    done = compressor("package", "--help")
    assert done.code == 0
    text = " ".join(done.out.split())
    for name, cls in available_formats().items():
        assert f"{name}: " in text
        for field in cls.model_fields:
            assert field in text


def test_the_page_names_every_format_and_option() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    for name, cls in available_formats().items():
        assert f"--for {name}" in text
        sections = re.split(r"\n## ", text)[1:]
        [about] = [each for each in sections if f"--for {name}" in each]
        for field in cls.model_fields:
            assert f"`{field}`" in about or field == "served_name", f"{name}.{field}"
