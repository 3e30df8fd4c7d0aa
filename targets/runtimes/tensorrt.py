"""NVIDIA TensorRT: engines are built on the GPU that they are for."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from pydantic import Field

from targets.base import Source
from targets.environment import GPU
from targets.errors import TargetError
from targets.runtimes._tensorrt.cuda import Gpu, find_gpu
from targets.runtimes._tensorrt.target import TensorRTTarget

__all__ = ["TensorRT"]

OLDEST = 75
"""Turing; version 10 dropped everything before it."""


class TensorRT(TensorRTTarget):
    """TensorRT on NVIDIA data-centre, desktop and embedded GPUs."""

    name: ClassVar[str] = "tensorrt"
    extra: ClassVar[str] = "tensorrt"
    module: ClassVar[str] = "tensorrt"
    libraries: ClassVar[tuple[str, ...]] = ("tensorrt",)
    build_needs: ClassVar[str] = "the GPU that the engine is for"

    workspace_mib: int | None = Field(default=None, ge=1, le=1 << 20)
    """Most scratch memory that a layer may use, in MiB; by default all of the GPU's."""

    def versions(self) -> dict[str, str]:
        """That of the library, and the GPU: an engine runs on the kind that it was built on."""
        gpu = find_gpu()
        if gpu is None:
            return super().versions()
        return super().versions() | {GPU: f"{gpu.name}, {gpu.compute_capability}"}

    @property
    def build_settings(self) -> dict[str, object]:
        """Build options that only this flavour has."""
        size = self.workspace_mib
        return {"workspace_bytes": None if size is None else size << 20}

    def cannot_lower(self) -> str | None:
        """Why no model can be lowered here, or None."""
        reason = super().cannot_lower()
        if reason is None and find_gpu() is None:
            return "it builds engines on the GPU that will run them, and there is none here"
        return reason

    def cannot_run_on(self, gpu: Gpu) -> str | None:
        """Why no bundle can run on a GPU, or None."""
        if gpu.compute_capability >= OLDEST:
            return None
        return f"{gpu.name} has compute capability {gpu.compute_capability}, it needs {OLDEST}"

    def hand_over(self, source: Source, folder: Path) -> tuple[str, ...]:
        """Leave the model and a script that builds its engine where TensorRT is installed."""
        try:
            script = self.write_build_script(source, folder)
        except TargetError as error:
            return (f"nothing was left for another machine: {error.what} ({error.given})",)
        return (f"run `python {script.name}` in {folder} on a machine with {self.build_needs}",)
