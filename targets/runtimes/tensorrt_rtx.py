"""NVIDIA TensorRT for RTX: engines are built without a GPU and finished on the one they meet."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from targets.base import Source
from targets.errors import TargetError
from targets.runtimes._tensorrt.cuda import Gpu
from targets.runtimes._tensorrt.target import TensorRTTarget

__all__ = ["TensorRTRTX"]

ComputeCapability = Literal["SM75", "SM80", "SM86", "SM89", "SM120", "SM121"]
SUPPORTED = (75, 80, 86, 89, 120, 121)


class TensorRTRTX(TensorRTTarget):
    """TensorRT for RTX on GeForce and RTX GPUs, from Turing on."""

    name: ClassVar[str] = "tensorrt_rtx"
    extra: ClassVar[str] = "tensorrt-rtx"
    module: ClassVar[str] = "tensorrt_rtx"
    libraries: ClassVar[tuple[str, ...]] = ("tensorrt-rtx",)

    compute_capabilities: tuple[ComputeCapability, ...] = Field(default=(), max_length=6)
    """GPUs to build for; empty for all from Ampere on. SM75 runs no fp32 matrix products and no
    bf16, so it has to be asked for and needs a model without them."""

    @property
    def build_settings(self) -> dict[str, object]:
        """Build options that only this flavour has."""
        return {"compute_capabilities": self.compute_capabilities}

    def cannot_run_on(self, gpu: Gpu) -> str | None:
        """Why no bundle can run on a GPU, or None."""
        wanted = [int(each.removeprefix("SM")) for each in self.compute_capabilities]
        known = wanted or [each for each in SUPPORTED if each != 75]
        if gpu.compute_capability in known:
            return None
        return (
            f"{gpu.name} has compute capability {gpu.compute_capability}, engines are built for "
            f"{', '.join(map(str, known))}"
        )

    def requires(self, source: Source) -> None:
        """Check the model, and that the GPUs that it is built for have the precision asked for.

        Raises:
            UnsupportedModelError: Names what the runtime does not take.
            TargetError: A range is missing, or SM75 is asked for fp32 or bf16.
        """
        if "SM75" in self.compute_capabilities and source.precision in ("fp32", "bf16"):
            raise TargetError(
                f"SM75 runs no {source.precision} matrix products in {self.name}",
                where="compute_capabilities",
                given=", ".join(self.compute_capabilities),
                fix="leave SM75 out, or use fp16",
            )
        super().requires(source)
