"""What a user would pick instead, each as a target: the untouched model, as that tool ships it.

As targets they go through the same run as everything else: the same test data, the same rounds in
turn with the compressed bundles. They take the untouched model alone.
"""

from __future__ import annotations

import csv
import itertools
import json
import math
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from targets.base import Form, Lowered, Precision, Session, Source, Target
from targets.bundle import Bundle
from targets.errors import TargetError, UnsupportedModelError
from targets.runtimes.onnxruntime import OnnxRuntimeSession, create_session
from targets.runtimes.openvino import OpenVINO
from targets.runtimes.pytorch import PyTorch
from targets.shapes import tensor_shapes
from targets.signature import Arrays, Signature

MODEL = "model.onnx"
NUM_CALIBRATION_TEXTS = 300  # as NNCF's own default
_ONLY_UNTOUCHED = "it stands for the untouched model alone"


_WHOLE = 0.98
"""Share of the weights of a checkpoint that its export has, at least."""


def _refuse_compressed(source: Source, checkpoint: Path, num_weights: int) -> None:
    """Leave out our own students: they are measured on the targets of the toolkit.

    Raises:
        UnsupportedModelError: The model has not the weights of the checkpoint.
    """
    wanted = _num_weights(checkpoint)
    if num_weights < _WHOLE * wanted:
        raise UnsupportedModelError(
            "this target stands for what users would pick instead",
            where=source.path,
            given=f"a compressed model: {num_weights} weights instead of {wanted}",
            fix="measure it on a target of the toolkit",
        )


def _num_weights(checkpoint: Path) -> int:
    return sum(math.prod(shape) for shape in tensor_shapes(checkpoint).values())


def _config(checkpoint: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    return found


class _OnnxRival(Target):
    """Takes the exported fp32 graph."""

    extra: ClassVar[str] = "onnxruntime"
    refuses: ClassVar[Mapping[Precision, str]] = dict.fromkeys(
        ("fp16", "bf16", "int8", "int8-dynamic", "int8-weights"), _ONLY_UNTOUCHED
    )
    checkpoint: Path
    """The untouched checkpoint."""

    def cannot_lower(self) -> str | None:
        """Nothing: the package brings what it needs."""
        return None

    def cannot_run(self) -> str | None:
        """Nothing."""
        return None

    def native_precisions(self) -> tuple[Precision, ...]:
        """What it starts from."""
        return ("fp32",)

    def requires(self, source: Source) -> None:
        """Refuse what is not the untouched model."""
        import onnx

        constants = onnx.load(source.path, load_external_data=False).graph.initializer
        _refuse_compressed(source, self.checkpoint, sum(math.prod(each.dims) for each in constants))

    def load(self, bundle: Bundle, *, threads: int) -> Session:
        """Open the graph in ONNX Runtime."""
        session = create_session(bundle.model_path, threads=threads)
        known = {spec.name for spec in bundle.manifest.signature.inputs}
        extra = tuple(each.name for each in session.get_inputs() if each.name not in known)
        return _Session(bundle.manifest.signature, session, extra)


class _Session(OnnxRuntimeSession):
    """Feeds zeros to the inputs that other exporters keep, such as the segment of a token."""

    def __init__(self, signature: Signature, session: Any, extra: tuple[str, ...]) -> None:
        super().__init__(signature, session)
        self._extra = extra

    def _run(self, feeds: Mapping[str, NDArray[np.generic]]) -> Arrays:
        zeros = np.zeros_like(next(iter(feeds.values())))
        return super()._run({**feeds, **dict.fromkeys(self._extra, zeros)})


class OrtOptimizer(_OnnxRival):
    """ONNX Runtime's own optimizer for transformers: fused attention, GELU and LayerNorm, fp32."""

    name = "ort_optimizer"
    libraries: ClassVar[tuple[str, ...]] = ("onnxruntime", "onnx")

    def lower(self, source: Source, folder: Path) -> Lowered:
        """Fuse."""
        return Lowered(MODEL, notes=_fuse(source.path, folder / MODEL, self.checkpoint))


class OrtDynamicInt8(_OnnxRival):
    """ONNX Runtime's ``quantize_dynamic`` after its optimizer for transformers."""

    name = "ort_dynamic_int8"
    libraries: ClassVar[tuple[str, ...]] = ("onnxruntime", "onnx")

    def lower(self, source: Source, folder: Path) -> Lowered:
        """Fuse and quantize."""
        from onnx import TensorProto
        from onnxruntime.quantization import QuantType, quantize_dynamic

        fused = folder / "fused.onnx"
        notes = _fuse(source.path, fused, self.checkpoint)
        quantize_dynamic(
            fused,
            folder / MODEL,
            weight_type=QuantType.QInt8,
            # Shape inference does not see through the fused operators.
            extra_options={"DefaultTensorType": TensorProto.FLOAT},
        )
        fused.unlink()
        return Lowered(MODEL, notes=notes)


def _fuse(source: Path, destination: Path, checkpoint: Path) -> tuple[str, ...]:
    from onnxruntime.transformers.optimizer import optimize_model

    config = _config(checkpoint)
    optimized = optimize_model(
        str(source),
        model_type="bert",
        num_heads=config["num_attention_heads"],
        hidden_size=config["hidden_size"],
    )
    optimized.save_model_to_file(str(destination))
    fused = optimized.get_fused_operator_statistics().items()
    return (", ".join(f"{count} {name}" for name, count in fused if count),)


class NncfInt8(_OnnxRival):
    """NNCF post-training int8 in OpenVINO, its preset for transformers."""

    name = "nncf_int8"
    extra: ClassVar[str] = "openvino"
    libraries: ClassVar[tuple[str, ...]] = ("nncf", "openvino")
    data: Path
    """The training data, a CSV file with a column ``text``: calibration takes its first rows."""

    def lower(self, source: Source, folder: Path) -> Lowered:
        """Calibrate and quantize."""
        import nncf
        import openvino
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(self.checkpoint)
        with self.data.open(encoding="utf-8", newline="") as file:
            rows = itertools.islice(csv.DictReader(file), NUM_CALIBRATION_TEXTS)
            texts = [row["text"] for row in rows]
        names = [spec.name for spec in source.signature.inputs]

        def feed(text: str) -> dict[str, Any]:
            found = tokenizer(text, truncation=True, max_length=128, return_tensors="np")
            return {name: found[name] for name in names}

        model = nncf.quantize(
            openvino.Core().read_model(source.path),
            nncf.Dataset(texts, feed),
            model_type=nncf.ModelType.TRANSFORMER,
            subset_size=NUM_CALIBRATION_TEXTS,
        )
        openvino.save_model(model, folder / "model.xml", compress_to_fp16=False)
        return Lowered("model.xml", options={"INFERENCE_PRECISION_HINT": "f32"})

    def load(self, bundle: Bundle, *, threads: int) -> Session:
        """Open it as every bundle of OpenVINO."""
        return OpenVINO().load(bundle, threads=threads)


class OliveInt8(_OnnxRival):
    """Olive: export, its optimizer for transformers, dynamic int8; in an environment of its own.

    Its one-command form, ``olive optimize --precision int8``, is no rival to measure: it calibrates
    on a data set that it downloads, whatever the task.
    """

    name = "olive_int8"
    olive: Path
    """The command ``olive`` of that environment."""

    def versions(self) -> dict[str, str]:
        """See the base class: those of that environment."""
        found = (self.olive.parent.parent / "lib").glob("python*/site-packages/*.dist-info")
        parts = (path.name.removesuffix(".dist-info").rpartition("-") for path in found)
        named = {name: version for name, _, version in parts}
        wanted = ("olive_ai", "onnxruntime", "torch", "transformers")
        return super().versions() | {name: named[name] for name in wanted if name in named}

    def lower(self, source: Source, folder: Path) -> Lowered:
        """Let Olive go from the checkpoint to its ONNX file.

        Raises:
            TargetError: Olive failed or left no model.
        """
        work = folder / "olive"
        work.mkdir()
        passes = {
            "conversion": {"type": "OnnxConversion", "use_dynamo_exporter": True},
            "optimization": {"type": "OrtTransformersOptimization"},
            "quantization": {"type": "OnnxDynamicQuantization"},
        }
        cpu = {"device": "cpu", "execution_providers": ["CPUExecutionProvider"]}
        config = {
            "input_model": {
                "type": "HfModel",
                "model_path": str(self.checkpoint),
                "task": "text-classification",
            },
            "systems": {"here": {"type": "LocalSystem", "accelerators": [cpu]}},
            "host": "here",
            "target": "here",
            "passes": passes,
            "no_artifacts": True,
            "output_dir": str(work / "output"),
            "cache_dir": str(work / "cache"),
        }
        (work / "config.json").write_text(json.dumps(config), encoding="utf-8")
        command = [str(self.olive), "run", "--config", str(work / "config.json")]
        done = subprocess.run(
            [*command, "--disable_telemetry"], capture_output=True, text=True, check=False
        )
        found = work / "output" / MODEL
        if not found.is_file():  # it may well end with 0
            raise TargetError(
                "Olive left no model",
                where=self.olive,
                given=f"exit code {done.returncode}: {(done.stderr or done.stdout)[-600:]}",
                fix="run the command by hand",
            )
        shutil.move(found, folder / MODEL)
        shutil.rmtree(work)
        return Lowered(MODEL, notes=(" > ".join(each["type"] for each in passes.values()),))


class _TorchRival(PyTorch):
    """Takes the checkpoint."""

    form: ClassVar[Form] = "torch"
    refuses: ClassVar[Mapping[Precision, str]] = _OnnxRival.refuses
    checkpoint: Path
    """The untouched checkpoint."""

    def requires(self, source: Source) -> None:
        """Refuse what is not the untouched model."""
        _refuse_compressed(source, self.checkpoint, _num_weights(source.path))
        super().requires(source)

    def load(self, bundle: Bundle, *, threads: int) -> Session:
        """Load as eager PyTorch does, then let the tool have the module."""
        session = super().load(bundle, threads=threads)
        session._module = self.turned(session._module)
        return session

    def turned(self, module: Any) -> Any:
        """The module as the tool makes it."""
        raise NotImplementedError


class TorchCompile(_TorchRival):
    """``torch.compile`` with its defaults, fp32."""

    name = "torch_compile"

    def turned(self, module: Any) -> Any:
        """Compile; each new shape is compiled at its first run."""
        import torch

        return torch.compile(module)


class TorchDynamicInt8(_TorchRival):
    """``torch.ao.quantization.quantize_dynamic`` of all linear layers, eager."""

    name = "torch_dynamic_int8"

    def turned(self, module: Any) -> Any:
        """Quantize."""
        import torch
        from torch.ao.quantization import quantize_dynamic

        return quantize_dynamic(module, {torch.nn.Linear}, dtype=torch.qint8)


class TorchaoInt8(_TorchRival):
    """torchao's dynamic int8 activations and int8 weights, under ``torch.compile``."""

    name = "torchao_int8"
    libraries: ClassVar[tuple[str, ...]] = ("torch", "transformers", "torchao")

    def turned(self, module: Any) -> Any:
        """Quantize and compile."""
        import torch
        from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

        quantize_(module, Int8DynamicActivationInt8WeightConfig())
        return torch.compile(module)
