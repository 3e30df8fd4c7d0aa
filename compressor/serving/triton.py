"""A model repository for NVIDIA Triton Inference Server."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Self

from pydantic import Field, PositiveInt, model_validator

from compressor.errors import PackageError
from compressor.serving._names import one_line
from compressor.serving._pbtxt import to_text
from compressor.serving._triton_backends import BACKENDS, Backend
from compressor.serving._triton_config import (
    LABELS,
    DynamicBatching,
    InstanceGroup,
    ModelConfig,
    Tensor,
    parameters,
    tensors,
)
from compressor.serving._triton_text import write_text_models
from compressor.serving.base import Format, copy_model, version_notes
from targets.bundle import Bundle, Manifest

__all__ = ["Triton"]


class Triton(Format):
    """NVIDIA Triton Inference Server: a model repository."""

    name = "triton"
    targets: ClassVar[tuple[str, ...]] = tuple(BACKENDS)

    max_batch_size: int | None = Field(default=None, ge=0, le=4096)
    """Largest batch that requests are gathered into, 0 for none; by default 32 with ONNX Runtime
    and 0 elsewhere."""

    queue_delay_us: int = Field(default=100, ge=0, le=10_000_000)
    """Longest time that a request waits for others to join its batch, in microseconds."""

    preferred_batch_sizes: tuple[PositiveInt, ...] = ()
    """Batch sizes that are sent on at once, without waiting; by default only the largest."""

    threads: int = Field(default=0, ge=0, le=1024)
    """CPU threads of the model; 0 leaves it to the runtime, which takes every core."""

    instances: int = Field(default=1, ge=1, le=1024)
    """Copies of the model that run at a time."""

    text: bool = False
    """Also write a tokenizer and an ensemble that takes text. The server's Python needs numpy and
    tokenizers."""

    length_multiple: int = Field(default=16, ge=1, le=4096)
    """The tokenizer pads to a multiple of this, so that more requests fit into one batch."""

    @model_validator(mode="after")
    def _settings_have_an_effect(self) -> Self:
        if "length_multiple" in self.model_fields_set and not self.text:
            raise ValueError("length_multiple has no effect without text=true")
        batching = {"queue_delay_us", "preferred_batch_sizes"} & self.model_fields_set
        if self.max_batch_size == 0 and batching:
            raise ValueError(f"{' and '.join(sorted(batching))} have no effect without batching")
        return self

    def write(self, bundle: Bundle, folder: Path, name: str) -> Sequence[str]:
        """Write ``<name>/config.pbtxt`` and ``<name>/1/`` with the model, and what takes text."""
        manifest = bundle.manifest
        backend = BACKENDS[manifest.target]
        model_file = copy_model(bundle, folder / name / "1")
        config = self._config(manifest, backend, name, model_file)
        _write(folder / name, config, manifest)
        if self.text:
            for each in write_text_models(bundle, folder, config, self.length_multiple):
                _write(folder / each.name, each, manifest)
        return (*version_notes(manifest), *backend.notes(manifest))

    def command(self, output: Path, name: str, manifest: Manifest) -> str:
        """How the server is started on the folder, for people."""
        return f"tritonserver --model-repository {shlex.quote(str(output))}"

    def _config(
        self, manifest: Manifest, backend: Backend, name: str, model_file: str
    ) -> ModelConfig:
        size = backend.max_batch_size if self.max_batch_size is None else self.max_batch_size
        self._check_batching(size)
        inputs, outputs = tensors(manifest.signature, batched=size > 0)
        options = backend.parameters(
            manifest, threads=self.threads, instances=self.instances, batched=size > 0
        )
        batching = DynamicBatching(
            preferred_batch_size=self.preferred_batch_sizes,
            max_queue_delay_microseconds=self.queue_delay_us,
        )
        return ModelConfig(
            name=name,
            backend=backend.name,
            default_model_filename=model_file,
            max_batch_size=size,
            input=inputs,
            output=_labelled(outputs, manifest),
            instance_group=(InstanceGroup(count=self.instances, kind=backend.kind(manifest)),),
            dynamic_batching=batching if size > 0 else None,
            parameters=parameters(options),
        )

    def _check_batching(self, size: int) -> None:
        unused = {"queue_delay_us", "preferred_batch_sizes"} & self.model_fields_set
        if size == 0 and unused:
            raise PackageError(
                "Triton does not batch bundles of this target unless max_batch_size is set",
                where=f"--set {' '.join(sorted(unused))}",
                fix="set max_batch_size as well, or leave these out",
            )
        if max(self.preferred_batch_sizes, default=0) > size:
            raise PackageError(
                "a preferred batch size is larger than max_batch_size",
                where="--set preferred_batch_sizes",
                given=self.preferred_batch_sizes,
                fix=f"use sizes up to max_batch_size, {size}",
            )


def _labelled(outputs: tuple[Tensor, ...], manifest: Manifest) -> tuple[Tensor, ...]:
    """Tell Triton where the class names of the logits are, if an input gets one class."""
    classes = len(manifest.labels) if manifest.answers.unit == "row" else 0
    return tuple(
        each.model_copy(update={"label_filename": LABELS})
        if index == 0 and classes and each.dims[-1:] == (classes,)
        else each
        for index, each in enumerate(outputs)
    )


def _write(folder: Path, config: ModelConfig, manifest: Manifest) -> None:
    (folder / "1").mkdir(parents=True, exist_ok=True)  # Triton wants it, be it empty
    (folder / "config.pbtxt").write_text(to_text(config), encoding="utf-8")
    if any(each.label_filename for each in config.output):
        lines = "".join(f"{one_line(label)}\n" for label in manifest.labels)
        (folder / LABELS).write_text(lines, encoding="utf-8")
