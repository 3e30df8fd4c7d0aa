"""An InferenceService for KServe, with the model repository that it points at."""

from __future__ import annotations

import json
import shlex
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.alias_generators import to_camel

from compressor.errors import PackageError
from compressor.serving._names import kubernetes_name
from compressor.serving._triton_backends import BACKENDS
from compressor.serving._triton_config import Kind
from compressor.serving.base import Format, copy_model
from compressor.serving.ovms import OVMS
from compressor.serving.triton import Triton
from targets.bundle import Bundle, Manifest

__all__ = ["KServe"]

MANIFEST = "inference-service.yaml"
STORAGE = "storage"


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", alias_generator=to_camel)


class _Metadata(_Document):
    name: str


class _ModelFormat(_Document):
    name: str
    version: str


class _Resources(_Document):
    requests: Mapping[str, str]
    limits: Mapping[str, str]


class _Model(_Document):
    model_format: _ModelFormat
    runtime: str
    protocol_version: str
    storage_uri: str
    args: tuple[str, ...] | None
    resources: _Resources


class _Predictor(_Document):
    min_replicas: int
    max_replicas: int
    model: _Model


class _Spec(_Document):
    predictor: _Predictor


class _InferenceService(_Document):
    api_version: str = "serving.kserve.io/v1beta1"
    kind: str = "InferenceService"
    metadata: _Metadata
    spec: _Spec


@dataclass(frozen=True)
class _Served:
    """What the storage has to look like for a runtime, and what the runtime is told."""

    model_format: _ModelFormat
    args: tuple[str, ...]
    notes: Sequence[str]


class _Runtime(ABC):
    """A serving runtime that KServe brings along."""

    cluster_name: ClassVar[str]

    @abstractmethod
    def write(self, service: KServe, bundle: Bundle, folder: Path, name: str) -> _Served:
        """Write what the storage holds into ``folder``."""


class _TritonRuntime(_Runtime):
    cluster_name = "kserve-tritonserver"

    def write(self, service: KServe, bundle: Bundle, folder: Path, name: str) -> _Served:
        kind = BACKENDS[bundle.manifest.target].kind(bundle.manifest)
        if kind is Kind.KIND_GPU and service.gpus == 0:
            raise PackageError(
                "the bundle needs a GPU",
                where="--set gpus",
                given=service.gpus,
                fix="set gpus=1",
            )
        triton = service.triton
        if triton.threads == 0:  # else the runtime starts a thread for each core of the node
            triton = triton.model_copy(update={"threads": service.cpus})
        notes = triton.write(bundle, folder, name)
        return _Served(_ModelFormat(name="triton", version="2"), (), notes)


class _OVMSRuntime(_Runtime):
    cluster_name = "kserve-openvino"

    def write(self, service: KServe, bundle: Bundle, folder: Path, name: str) -> _Served:
        ovms, manifest = service.ovms, bundle.manifest
        if ovms.threads == 0 and ovms.device(manifest) == "CPU":
            ovms = ovms.model_copy(update={"threads": service.cpus})
        notes = ovms.notes(manifest)
        copy_model(bundle, folder / "1")
        plugin_config = json.dumps(ovms.plugin_config(manifest))
        options = {"target_device": ovms.device(manifest), "plugin_config": plugin_config}
        if ovms.num_requests is not None:
            options["nireq"] = str(ovms.num_requests)
        args = tuple(f"--{key}={value}" for key, value in options.items())
        return _Served(_ModelFormat(name="openvino", version="10"), args, notes)


_RUNTIMES: Mapping[str, _Runtime] = {Triton.name: _TritonRuntime(), OVMS.name: _OVMSRuntime()}


class KServe(Format):
    """KServe: an InferenceService of the v2 protocol, and the storage it points at."""

    name = "kserve"
    targets: ClassVar[tuple[str, ...]] = tuple(sorted({*Triton.targets, *OVMS.targets}))

    storage_uri: str = Field(pattern=r"^(s3|gs|hf|oci|pvc|hdfs|webhdfs|https?)://[!-~]+$")
    """Where the folder storage/ will lie: s3://bucket/models/questions."""

    server: Literal["triton", "ovms"] = "triton"
    """What runs the model: Triton, or OpenVINO Model Server."""

    runtime: str | None = Field(default=None, pattern=r"^[a-z0-9][a-z0-9.-]*$", max_length=253)
    """The cluster's ServingRuntime; by default kserve-tritonserver or kserve-openvino."""

    cpus: int = Field(default=1, ge=1, le=1024)
    """CPU cores of a replica; the model runs with as many threads."""

    memory_mib: int = Field(default=2048, ge=64)
    """Memory of a replica, in MiB."""

    gpus: int = Field(default=0, ge=0, le=64)
    """NVIDIA GPUs of a replica."""

    min_replicas: int = Field(default=1, ge=0)
    """Smallest number of replicas."""

    max_replicas: int = Field(default=1, ge=1)
    """Largest number of replicas."""

    triton: Triton = Triton()
    """Options of the format triton: triton.max_batch_size=16."""

    ovms: OVMS = OVMS()
    """Options of the format ovms: ovms.num_streams=2."""

    @model_validator(mode="after")
    def _settings_fit_together(self) -> Self:
        if self.min_replicas > self.max_replicas:
            raise ValueError("min_replicas is larger than max_replicas")
        for each in _RUNTIMES:
            if each in self.model_fields_set and each != self.server:
                raise ValueError(f"options of {each} have no effect with server={self.server}")
        inner: Format = getattr(self, self.server)
        if inner.served_name is not None:
            raise ValueError(f"set served_name itself instead of {self.server}.served_name")
        return self

    def write(self, bundle: Bundle, folder: Path, name: str) -> Sequence[str]:
        """Write ``inference-service.yaml`` and ``storage/``."""
        inner: Format = getattr(self, self.server)
        inner.check_target(bundle)
        served_by = _RUNTIMES[self.server]
        storage = folder / STORAGE
        storage.mkdir()
        served = served_by.write(self, bundle, storage, name)
        model = _Model(
            modelFormat=served.model_format,
            runtime=self.runtime or served_by.cluster_name,
            protocolVersion="v2",
            storageUri=self.storage_uri,
            args=served.args or None,
            resources=self._resources(),
        )
        predictor = _Predictor(
            minReplicas=self.min_replicas, maxReplicas=self.max_replicas, model=model
        )
        service = _InferenceService(metadata=_Metadata(name=name), spec=_Spec(predictor=predictor))
        document: Any = service.model_dump(mode="json", by_alias=True, exclude_none=True)
        text = yaml.safe_dump(document, sort_keys=False, allow_unicode=True)
        (folder / MANIFEST).write_text(text, encoding="utf-8")
        return (f"copy {STORAGE}/ to {self.storage_uri} before you apply it", *served.notes)

    def command(self, output: Path, name: str, manifest: Manifest) -> str:
        """How the server is started on the folder, for people."""
        return f"kubectl apply --filename {shlex.quote(str(output / MANIFEST))}"

    def name_for(self, manifest: Manifest) -> str:
        """The name of the service, which is that of the model."""
        if self.served_name is None:
            return kubernetes_name(manifest.name)
        if kubernetes_name(self.served_name) != self.served_name:
            raise PackageError(
                "this is not a valid service name",
                where="--set served_name",
                given=self.served_name,
                fix="use up to 53 lower-case letters, digits and '-', a letter first: "
                f"{kubernetes_name(self.served_name)}",
            )
        return self.served_name

    def _resources(self) -> _Resources:
        each = {"cpu": str(self.cpus), "memory": f"{self.memory_mib}Mi"}
        if self.gpus:
            each["nvidia.com/gpu"] = str(self.gpus)
        return _Resources(requests=each, limits=each)
