"""PyTorch in eager mode: the model as it was trained, the baseline that everything is against."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from targets.base import Form, Lowered, Precision, Session, Source, Target
from targets.bundle import Bundle
from targets.errors import MissingLibraryError, TargetError, ToolkitError, UnsupportedModelError
from targets.preprocessing.text import MASK
from targets.signature import Arrays, Signature

if TYPE_CHECKING:
    import torch

__all__ = ["PyTorch", "PyTorchSession"]

CONFIG = "config.json"
SHAPES = "shapes.json"
INDEX = "model.safetensors.index.json"


class PyTorch(Target):
    """PyTorch on the CPU, eager, fp32: what users have before they compress anything."""

    name: ClassVar[str] = "pytorch"
    extra: ClassVar[str] = "build"
    form: ClassVar[Form] = "torch"
    libraries: ClassVar[tuple[str, ...]] = ("torch", "transformers")
    keeps_state: ClassVar[bool] = True

    def cannot_lower(self) -> str | None:
        """Nothing: lowering copies files."""
        return None

    def cannot_run(self) -> str | None:
        """Why torch cannot run here, or None."""
        for library in self.libraries:
            if importlib.util.find_spec(library) is None:
                return (
                    f"the library {library} is not installed: "
                    f"pip install 'compressor[{self.extra}]'"
                )
        return None

    def native_precisions(self) -> tuple[Precision, ...]:
        """Only fp32: this target stands for the untouched model."""
        return ("fp32",)

    def requires(self, source: Source) -> None:
        """Check for a whole fp32 checkpoint.

        Raises:
            CheckpointError: The weights are missing.
        """
        from targets.shapes import weight_files

        if not (source.path / CONFIG).is_file():
            raise UnsupportedModelError(
                f"the target {self.name} needs a checkpoint folder with {CONFIG}",
                where=source.path,
                fix="pass a folder that save_pretrained wrote",
            )
        if source.precision != "fp32":
            raise UnsupportedModelError(
                f"the target {self.name} runs fp32 only",
                where=source.path,
                given=source.precision,
                fix="give this target the model before it is quantized",
            )
        weight_files(source.path)

    def lower(self, source: Source, folder: Path) -> Lowered:
        """Copy the checkpoint."""
        from targets.shapes import weight_files

        weights = weight_files(source.path)
        others = [source.path / name for name in (CONFIG, SHAPES, INDEX)]
        for path in (*weights, *others):
            if path.is_file():
                shutil.copyfile(path, folder / path.name)
        return Lowered(model=weights[0].name)

    def load(self, bundle: Bundle, *, threads: int) -> Session:
        """Build the module and fill in its weights."""
        if self.cannot_run() is not None:
            raise MissingLibraryError.for_extra(
                " and ".join(self.libraries), self.extra, f"the target {self.name}"
            )
        import torch

        from targets.checkpoint import load_module

        torch.set_num_threads(threads)
        try:
            module = load_module(bundle.folder, bundle.manifest.task)
            if getattr(module, "_supports_sdpa", False):
                # What users have: the default of transformers, faster than its eager attention.
                module.set_attn_implementation("sdpa")  # type: ignore[operator]
        except ToolkitError:
            raise
        except Exception as error:  # torch and transformers raise of every kind here
            raise TargetError(
                "PyTorch could not load the checkpoint of the bundle",
                where=bundle.source,
                given=f"{type(error).__name__}: {error}",
                fix="build the bundle again with the installed versions of torch and transformers",
            ) from error
        return PyTorchSession(bundle.manifest.signature, module)


class PyTorchSession(Session):
    """A module of transformers.

    Args:
        signature: What it takes and gives.
        module: In eval mode.
    """

    def __init__(self, signature: Signature, module: torch.nn.Module) -> None:
        super().__init__(signature)
        self._module: torch.nn.Module | None = module
        self._kept: dict[str, Any] = {}

    def close(self) -> None:
        """Free the module and what it has kept."""
        self._module = None
        self._kept = {}

    def _run(self, feeds: Mapping[str, NDArray[np.generic]]) -> Arrays:
        if not self.signature.state:
            return self._computed(feeds)
        self._kept = {}
        return self._extend(feeds, None)

    def _extend(
        self, feeds: Mapping[str, NDArray[np.generic]], rows: NDArray[np.integer] | None
    ) -> Arrays:
        import torch

        if rows is not None:
            self._kept["past_key_values"].reorder_cache(torch.from_numpy(rows))
        return self._computed(feeds, **self._kept, use_cache=True)

    def _computed(self, feeds: Mapping[str, NDArray[np.generic]], **more: Any) -> Arrays:
        import torch

        if self._module is None:
            raise TargetError("the session is closed", fix="load the bundle again")
        with torch.inference_mode():
            # Copies, since torch warns about arrays that must not be written to.
            tensors = {name: torch.tensor(value) for name, value in feeds.items()}
            outputs = self._module(**tensors, **more)
            if self.signature.state:
                self._kept["past_key_values"] = outputs.past_key_values
            if self.signature.context and MASK in tensors:
                self._kept[MASK] = tensors[MASK]
            if self.signature.context:
                self._kept["encoder_outputs"] = (outputs.encoder_last_hidden_state,)
            return {spec.name: outputs[spec.name].numpy() for spec in self.signature.outputs}
