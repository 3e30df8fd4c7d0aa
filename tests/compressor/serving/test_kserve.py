"""An InferenceService says what KServe's own models say that it may, and names what lies beside."""

from __future__ import annotations

import importlib
import json
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from compressor.errors import PackageError
from compressor.serving import Packaged
from compressor.serving.kserve import KServe
from targets import Bundle

MakeBundle = Callable[..., Bundle]
Package = Callable[..., tuple[Path, Packaged]]
URI = "s3://bucket/models/small"
SDK = ("kserve==0.21.0", "six", "urllib3")


def read_service(folder: Path) -> dict[str, Any]:
    document = yaml.safe_load((folder / "inference-service.yaml").read_text(encoding="utf-8"))
    assert document["apiVersion"] == "serving.kserve.io/v1beta1"
    assert document["kind"] == "InferenceService"
    assert isinstance(document, dict)
    return document


def test_triton_serves_a_repository(make_bundle: MakeBundle, package: Package) -> None:
    options = {"storage_uri": URI, "cpus": 2, "memory_mib": 512, "max_replicas": 4}
    folder, packaged = package(make_bundle(), "kserve", **options)
    document = read_service(folder)
    assert document["metadata"] == {"name": "small"}
    predictor = document["spec"]["predictor"]
    assert (predictor["minReplicas"], predictor["maxReplicas"]) == (1, 4)
    amount = {"cpu": "2", "memory": "512Mi"}
    assert predictor["model"] == {
        "modelFormat": {"name": "triton", "version": "2"},
        "runtime": "kserve-tritonserver",
        "protocolVersion": "v2",
        "storageUri": URI,
        "resources": {"requests": amount, "limits": amount},
    }
    assert "storage/small/1/model.onnx" in packaged.files
    config = (folder / "storage/small/config.pbtxt").read_text()
    assert '"intra_op_thread_count"\n  value {\n    string_value: "2"' in config
    assert any(URI in note for note in packaged.notes)


def test_openvino_model_server_gets_one_model(make_bundle: MakeBundle, package: Package) -> None:
    options = {
        "storage_uri": "pvc://models/small",
        "server": "ovms",
        "runtime": "mine",
        "cpus": 3,
        "ovms": {"num_streams": 2, "num_requests": 4},
    }
    folder, packaged = package(make_bundle("openvino"), "kserve", **options)
    model = read_service(folder)["spec"]["predictor"]["model"]
    assert model["runtime"] == "mine"
    assert model["modelFormat"] == {"name": "openvino", "version": "10"}
    given = dict(each.removeprefix("--").split("=", 1) for each in model["args"])
    assert given["target_device"] == "CPU"
    assert given["nireq"] == "4"
    config = json.loads(given["plugin_config"])
    assert config["NUM_STREAMS"] == "2"
    assert config["INFERENCE_NUM_THREADS"] == 3  # as many as there are cores
    # The runtime reads versions from the root of the storage.
    inside = [each for each in packaged.files if each.startswith("storage/")]
    assert sorted(inside) == ["storage/1/model.bin", "storage/1/model.xml"]


def test_options_of_triton_are_handed_on(make_bundle: MakeBundle, package: Package) -> None:
    triton = {"max_batch_size": 4, "threads": 3, "text": True}
    folder, _ = package(make_bundle(), "kserve", storage_uri=URI, cpus=2, triton=triton)
    config = (folder / "storage/small/config.pbtxt").read_text()
    assert "max_batch_size: 4\n" in config
    assert 'string_value: "3"' in config
    assert (folder / "storage/small-text/config.pbtxt").is_file()


def test_names_are_those_that_kubernetes_takes(make_bundle: MakeBundle, package: Package) -> None:
    bundle = make_bundle(name="8bit_Größe: {{.Name}}\n---\nkind: Secret")
    folder, packaged = package(bundle, "kserve", storage_uri=URI)
    assert read_service(folder)["metadata"] == {"name": packaged.name}
    assert packaged.name == "m-8bit-gro-e-name-kind-secret"
    assert (folder / "storage" / packaged.name / "config.pbtxt").is_file()
    with pytest.raises(PackageError, match="not a valid service name") as caught:
        package(bundle, "kserve", storage_uri=URI, served_name="My.Model")
    assert "my-model" in str(caught.value.fix)
    folder, _ = package(bundle, "kserve", storage_uri=URI, served_name="my-model")
    assert read_service(folder)["metadata"]["name"] == "my-model"


def test_what_the_server_does_not_run_is_refused(make_bundle: MakeBundle, package: Package) -> None:
    made = make_bundle()
    engine = Bundle.create(made.folder, made.manifest.model_copy(update={"target": "tensorrt"}))
    with pytest.raises(PackageError, match="ovms does not run") as caught:
        package(engine, "kserve", storage_uri=URI, server="ovms")
    assert caught.value.given == "tensorrt"
    with pytest.raises(PackageError, match="needs a GPU") as caught:
        package(engine, "kserve", storage_uri=URI)
    assert caught.value.fix == "set gpus=1"
    folder, _ = package(engine, "kserve", storage_uri=URI, gpus=1)
    limits = read_service(folder)["spec"]["predictor"]["model"]["resources"]["limits"]
    assert limits["nvidia.com/gpu"] == "1"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "storage_uri"),
        ({"storage_uri": "/models"}, "pattern"),
        ({"storage_uri": "s3://a b"}, "pattern"),
        ({"storage_uri": "s3://a\nkind: x"}, "pattern"),
        ({"storage_uri": URI, "runtime": "A B"}, "pattern"),
        ({"storage_uri": URI, "min_replicas": 2}, "larger than max_replicas"),
        ({"storage_uri": URI, "ovms": {"threads": 2}}, "no effect with server=triton"),
        ({"storage_uri": URI, "triton": {"served_name": "x"}}, "served_name itself"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        KServe.model_validate(options)


# The published definition


@pytest.fixture
def sdk(
    published: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[str], Any]]:
    """Class of a resource in KServe's own SDK, by name, without the servers that it brings."""
    folder = published(*SDK)
    monkeypatch.syspath_prepend(str(folder))
    before = set(sys.modules)
    for name in ("kserve", "kserve.models"):
        package = types.ModuleType(name)
        package.__path__ = [str(folder.joinpath(*name.split(".")))]
        monkeypatch.setitem(sys.modules, name, package)

    def find(name: str) -> Any:
        words = "".join(f"_{each}" if each.isupper() else each for each in name).lstrip("_")
        module = importlib.import_module(f"kserve.models.{words.lower()}")
        return getattr(module, name)

    yield find
    for name in set(sys.modules) - before:
        if name.startswith("kserve"):
            del sys.modules[name]


def offenders(value: Any, kind: str, sdk: Callable[[str], Any], where: str = "") -> list[str]:
    """What of a document is not as the classes of the SDK declare it."""
    if kind == "str":
        return [] if isinstance(value, str) else [f"{where} is no text"]
    if kind == "int":
        return [] if type(value) is int else [f"{where} is no integer"]
    if kind == "list[str]":
        return [] if all(isinstance(each, str) for each in value) else [f"{where} is no list"]
    if not kind.startswith("V1beta1"):  # of Kubernetes itself
        return []
    cls = sdk(kind)
    names = {json_name: name for name, json_name in cls.attribute_map.items()}
    found = [f"{where}.{key} is unknown" for key in value if key not in names]
    for key, each in value.items():
        if key in names:
            found += offenders(each, cls.openapi_types[names[key]], sdk, f"{where}.{key}")
    return found


@pytest.mark.slow
@pytest.mark.parametrize("server", ["triton", "ovms"])
def test_the_published_definition_knows_every_field(
    server: str, make_bundle: MakeBundle, package: Package, sdk: Callable[[str], Any]
) -> None:
    folder, _ = package(make_bundle("openvino"), "kserve", storage_uri=URI, server=server)
    document = read_service(folder)
    assert offenders(document, "V1beta1InferenceService", sdk) == []
    document["spec"]["predictor"]["model"]["storage_uri"] = URI
    document["spec"]["predictor"]["minReplicas"] = "1"
    assert len(offenders(document, "V1beta1InferenceService", sdk)) == 2
