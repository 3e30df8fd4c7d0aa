"""The two forms a model has on its way through the passes: torch and ONNX.

Both live on disk as a folder with ``model.json`` beside the weights, so that every step of a run
can be kept, verified and taken up again.
"""

from __future__ import annotations

import copy
import functools
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compressor.errors import CheckpointError
from targets.base import Form, Precision
from targets.signature import Signature

if TYPE_CHECKING:
    from torch import nn

__all__ = ["Model", "OnnxModel", "TorchModel", "load_model"]

ONNX_FILE = "model.onnx"
_DESCRIPTION = "model.json"


@dataclass(frozen=True)
class TorchModel:
    """A fine-tuned torch model and what reads its inputs.

    The module is a Hugging Face model in eval mode and float32; layers may have been resized.
    Passes treat it as frozen: they change a :meth:`clone`.

    Attributes:
        module: The network.
        processor: Its tokenizer, or how it reads other inputs; see `compressor.tasks.Task`.
        task: Name of the task (see ``compressor/tasks/``).
        max_length: Longest input, such as in tokens; longer ones are cut.
    """

    module: nn.Module
    processor: Any
    task: str
    max_length: int

    form: Form = field(default="torch", init=False)

    def clone(self) -> TorchModel:
        """A copy that shares nothing with this one."""
        return TorchModel(
            module=copy.deepcopy(self.module),
            processor=copy.deepcopy(self.processor),
            task=self.task,
            max_length=self.max_length,
        )

    @property
    def labels(self) -> tuple[str, ...]:
        """Class names, in the order of the logits; none where answers have no names."""
        from compressor.tasks import get_task

        return get_task(self.task).class_names(self.module.config)

    @property
    def num_parameters(self) -> int:
        """Number of weights, shared ones counted once."""
        return sum(parameter.numel() for parameter in self.module.parameters())

    def save(self, folder: Path) -> None:
        """Write safetensors, config, shape manifest and processor into ``folder``."""
        from compressor.tasks import get_task
        from targets.checkpoint import save_module

        folder.mkdir(parents=True, exist_ok=True)
        save_module(self.module, folder)
        get_task(self.task).save_processor(self.processor, folder)
        description = {"form": self.form, "task": self.task, "max_length": self.max_length}
        (folder / _DESCRIPTION).write_text(json.dumps(description, indent=2) + "\n")

    @classmethod
    def load(cls, folder: Path) -> TorchModel:
        """Read what :meth:`save` wrote; the weights come back bit-equal."""
        from compressor.tasks import get_task
        from targets.checkpoint import load_module

        description = _read_description(folder)
        task = get_task(description["task"])
        return cls(
            module=load_module(folder, task.name),
            processor=task.load_processor(folder),
            task=task.name,
            max_length=description["max_length"],
        )


@dataclass(frozen=True)
class OnnxModel:
    """An ONNX file with what is needed to feed it and read its outputs.

    Attributes:
        folder: Holds ``model.onnx``, its external data if any, and the processor.
        signature: Inputs and outputs.
        precision: Number format of the matrix products.
        task: Name of the task.
        labels: Class names, in the order of the logits.
        max_length: Longest input, such as in tokens.
        ranges: Free dimension -> (smallest, usual, largest) size.
    """

    folder: Path
    signature: Signature
    precision: Precision
    task: str
    labels: tuple[str, ...]
    max_length: int
    ranges: Mapping[str, tuple[int, int, int]]

    form: Form = field(default="onnx", init=False)

    @property
    def path(self) -> Path:
        """The ONNX file."""
        return self.folder / ONNX_FILE

    @functools.cached_property
    def processor(self) -> Any:
        """What lies beside the model to read its inputs; see `TorchModel`."""
        from compressor.tasks import get_task

        return get_task(self.task).load_processor(self.folder)

    @property
    def size_bytes(self) -> int:
        """Size of the model's files, external data included."""
        return sum(path.stat().st_size for path in self.folder.glob(ONNX_FILE + "*"))

    def save(self, folder: Path) -> None:
        """Write the model into ``folder``; files already there are left alone."""
        from compressor.tasks import get_task

        folder.mkdir(parents=True, exist_ok=True)
        if folder.resolve() != self.folder.resolve():
            for path in self.folder.glob(ONNX_FILE + "*"):
                shutil.copyfile(path, folder / path.name)
            for path in get_task(self.task).processor_files(self.folder):
                shutil.copyfile(path, folder / path.name)
        description = {
            "form": self.form,
            "task": self.task,
            "max_length": self.max_length,
            "precision": self.precision,
            "labels": list(self.labels),
            "signature": self.signature.model_dump(mode="json"),
            "ranges": {name: list(sizes) for name, sizes in self.ranges.items()},
        }
        (folder / _DESCRIPTION).write_text(json.dumps(description, indent=2) + "\n")

    @classmethod
    def load(cls, folder: Path) -> OnnxModel:
        """Read what :meth:`save` wrote."""
        description = _read_description(folder)
        return cls(
            folder=folder,
            signature=Signature.model_validate(description["signature"]),
            precision=description["precision"],
            task=description["task"],
            labels=tuple(description["labels"]),
            max_length=description["max_length"],
            ranges={name: tuple(sizes) for name, sizes in description["ranges"].items()},
        )


Model = TorchModel | OnnxModel


def load_model(folder: Path) -> Model:
    """Load a model of either form from its folder.

    Raises:
        CheckpointError: The folder does not hold a model of the toolkit.
    """
    form = _read_description(folder)["form"]
    return TorchModel.load(folder) if form == "torch" else OnnxModel.load(folder)


def _read_description(folder: Path) -> dict[str, Any]:
    path = folder / _DESCRIPTION
    try:
        description: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            "the folder does not hold a model that a pass wrote",
            where=path,
            given=error,
            fix="pass the original checkpoint folder, or run the recipe again",
        ) from error
    return description
