"""A model repository and its configuration for OpenVINO Model Server."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from compressor.errors import PackageError
from compressor.serving.base import (
    Format,
    copy_model,
    length_notes,
    tuning_notes,
    version_notes,
)
from targets.bundle import Bundle, Manifest
from targets.runtimes.onnxruntime import OnnxRuntime
from targets.runtimes.openvino import OpenVINO

__all__ = ["OVMS", "PluginConfig"]

CONFIG = "config.json"
PluginConfig = Mapping[str, str | int | bool]
"""Properties of OpenVINO by their own names."""

_FOREIGN = {OnnxRuntime.name: "CPU"}
"""Targets of other runtimes whose models OpenVINO reads -> the device that it runs them on."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class _Model(_Frozen):
    name: str
    base_path: str
    """Relative to the file."""
    target_device: str
    nireq: int | None
    plugin_config: PluginConfig


class _Entry(_Frozen):
    config: _Model


class _Config(_Frozen):
    model_config_list: tuple[_Entry, ...]


class OVMS(Format):
    """OpenVINO Model Server: a model repository with config.json."""

    name = "ovms"
    targets: ClassVar[tuple[str, ...]] = (OnnxRuntime.name, OpenVINO.name)

    performance_hint: Literal["LATENCY", "THROUGHPUT"] | None = None
    """What OpenVINO sets itself up for; by default LATENCY, as the bundle was measured."""

    num_streams: int | None = Field(default=None, ge=1, le=1024)
    """Requests that run at a time; takes the place of the hint."""

    threads: int = Field(default=0, ge=0, le=1024)
    """CPU threads of the model; 0 leaves it to OpenVINO, which takes every core; under KServe it is
    as many as the replica has."""

    num_requests: int | None = Field(default=None, ge=1, le=4096)
    """Length of the queue of requests; by default the server chooses."""

    @model_validator(mode="after")
    def _one_way_of_tuning(self) -> Self:
        if self.performance_hint is not None and self.num_streams is not None:
            raise ValueError("performance_hint and num_streams exclude each other; set one")
        return self

    def write(self, bundle: Bundle, folder: Path, name: str) -> Sequence[str]:
        """Write ``config.json`` and ``<name>/1/`` with the model.

        Batch and length stay free: OpenVINO takes every shape that the model takes.
        """
        copy_model(bundle, folder / name / "1")
        model = _Model(
            name=name,
            base_path=name,
            target_device=self.device(bundle.manifest),
            nireq=self.num_requests,
            plugin_config=self.plugin_config(bundle.manifest),
        )
        config = _Config(model_config_list=(_Entry(config=model),))
        text = json.dumps(config.model_dump(mode="json", exclude_none=True), indent=2)
        (folder / CONFIG).write_text(text + "\n", encoding="utf-8")
        return self.notes(bundle.manifest)

    def command(self, output: Path, name: str, manifest: Manifest) -> str:
        """How the server is started on the folder, for people."""
        return f"ovms --config_path {shlex.quote(str(output / CONFIG))} --rest_port 8000"

    def notes(self, manifest: Manifest) -> Sequence[str]:
        """In what the server differs from what was measured.

        Raises:
            PackageError: OpenVINO does not run the model in the precision that it was made for.
        """
        reason = OpenVINO.refuses.get(manifest.precision)
        if reason is not None:
            raise PackageError(
                f"OpenVINO Model Server does not run {manifest.precision} models as such: {reason}",
                where="precision",
                given=manifest.precision,
                fix="package a bundle of another precision, or use another format",
            )
        if manifest.target not in _FOREIGN:
            return (*version_notes(manifest), *length_notes(manifest), *tuning_notes(manifest))
        return (
            f"the bundle was measured with {manifest.target}, the server runs it with OpenVINO: "
            "measure latency and accuracy on the server",
        )

    def device(self, manifest: Manifest) -> str:
        """OpenVINO's name of the device that the bundle is for."""
        own = str(manifest.target_settings.get("device", "CPU"))
        return _FOREIGN.get(manifest.target, own)

    def plugin_config(self, manifest: Manifest) -> PluginConfig:
        """The properties with which the target opens its bundles, and what the options say."""
        hint = "INFERENCE_PRECISION_HINT"
        tuning: PluginConfig = (
            {"PERFORMANCE_HINT": self.performance_hint or "LATENCY"}
            if self.num_streams is None
            else {"NUM_STREAMS": str(self.num_streams)}  # the server wants it as text
        )
        return {
            hint: str(manifest.options.get(hint, "f32")),
            **({"DYNAMIC_QUANTIZATION_GROUP_SIZE": 0} if self.device(manifest) == "CPU" else {}),
            **tuning,
            **({"INFERENCE_NUM_THREADS": self.threads} if self.threads else {}),
        }
