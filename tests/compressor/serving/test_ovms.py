"""OpenVINO itself runs what OpenVINO Model Server is given, by the server's own rules."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from compressor.errors import PackageError
from compressor.serving import Packaged
from compressor.serving.ovms import OVMS
from targets import Bundle, Predictor

MakeBundle = Callable[..., Bundle]
Package = Callable[..., tuple[Path, Packaged]]


def read_config(folder: Path) -> dict[str, Any]:
    """The one model of config.json, checked against what the server's schema says of it."""
    document = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert set(document) == {"model_config_list"}
    [entry] = document["model_config_list"]
    assert set(entry) == {"config"}
    config: dict[str, Any] = entry["config"]
    types = {
        "name": str,
        "base_path": str,
        "target_device": str,
        "nireq": int,
        "plugin_config": dict,
    }
    assert {"name", "base_path"} <= set(config) <= set(types)
    for key, value in config.items():
        assert type(value) is types[key], key
    for value in config["plugin_config"].values():
        assert isinstance(value, str | bool | int | float)
    assert config.get("nireq", 0) >= 0
    return config


def serve(model_folder: Path, device: str, plugin_config: dict[str, Any]) -> Any:
    """Open the newest version of a model as the server does."""
    import openvino

    versions = sorted(int(each.name) for each in model_folder.iterdir() if each.name.isdecimal())
    version = model_folder / str(versions[-1])
    [path] = [each for each in version.iterdir() if each.suffix in (".xml", ".onnx")]
    return openvino.Core().compile_model(str(path), device, plugin_config)


@pytest.mark.parametrize(
    ("target", "precision"),
    [("onnxruntime", "fp32"), ("openvino", "fp32"), ("openvino", "int8")],
)
def test_openvino_answers_as_the_bundle_does(
    target: str,
    precision: Any,
    make_bundle: MakeBundle,
    package: Package,
    texts: tuple[str, ...],
) -> None:
    bundle = make_bundle(target, precision=precision)
    folder, packaged = package(bundle, "ovms", threads=1)
    config = read_config(folder)
    assert config["name"] == packaged.name == "small"
    compiled = serve(folder / config["base_path"], config["target_device"], config["plugin_config"])
    with Predictor(bundle) as predictor:
        samples, expected = predictor.encode(texts), predictor.logits(texts)
    signature = bundle.manifest.signature
    answers = []
    for batch in samples.batches(3, signature):  # batch and length are free
        found = compiled(batch.feeds)
        answers.append((batch, {"logits": found[compiled.output("logits")]}))
    logits = samples.restore(answers, signature)["logits"]
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)


def test_options_become_properties_of_openvino(make_bundle: MakeBundle, package: Package) -> None:
    bundle = make_bundle("openvino")
    given = {"num_streams": 2, "threads": 3, "num_requests": 8}
    config = read_config(package(bundle, "ovms", **given)[0])
    assert config["nireq"] == 8
    assert config["plugin_config"] == {
        "INFERENCE_PRECISION_HINT": "f32",
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
        "NUM_STREAMS": "2",
        "INFERENCE_NUM_THREADS": 3,
    }
    config = read_config(package(bundle, "ovms", performance_hint="THROUGHPUT")[0])
    assert config["plugin_config"]["PERFORMANCE_HINT"] == "THROUGHPUT"
    assert "nireq" not in config
    config = read_config(package(bundle, "ovms")[0])
    assert config["plugin_config"]["PERFORMANCE_HINT"] == "LATENCY"


def test_the_device_and_precision_are_those_of_the_bundle(
    make_bundle: MakeBundle, package: Package
) -> None:
    options = {"INFERENCE_PRECISION_HINT": "f16"}
    bundle = make_bundle("openvino", settings={"device": "GPU"}, options=options)
    config = read_config(package(bundle, "ovms")[0])
    assert config["target_device"] == "GPU"
    assert config["plugin_config"]["INFERENCE_PRECISION_HINT"] == "f16"
    assert "DYNAMIC_QUANTIZATION_GROUP_SIZE" not in config["plugin_config"]
    bundle = make_bundle("onnxruntime", settings={"device": "cuda"})
    assert read_config(package(bundle, "ovms")[0])["target_device"] == "CPU"


def test_another_runtime_than_the_measured_one_is_told(
    make_bundle: MakeBundle, package: Package
) -> None:
    _, packaged = package(make_bundle("onnxruntime"), "ovms")
    assert any("measured with onnxruntime" in note for note in packaged.notes)
    _, packaged = package(make_bundle("openvino"), "ovms")
    [note] = packaged.notes
    assert "made with openvino 20" in note


def test_dynamic_int8_is_refused_as_the_target_refuses_it(
    tmp_path: Path, make_bundle: MakeBundle
) -> None:
    bundle = make_bundle("onnxruntime")
    manifest = bundle.manifest.model_copy(update={"precision": "int8-dynamic"})
    bundle = bundle.create(bundle.folder, manifest)
    with pytest.raises(PackageError, match="scales computed at run time") as caught:
        OVMS().package(bundle, tmp_path / "out")
    assert caught.value.given == "int8-dynamic"
    assert caught.value.fix


def test_a_hint_and_streams_exclude_each_other() -> None:
    with pytest.raises(ValidationError, match="exclude each other"):
        OVMS(performance_hint="LATENCY", num_streams=2)
