"""The target interface for both flavours of TensorRT."""

from __future__ import annotations

import importlib.util
import pprint
import tempfile
from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from targets import qdq
from targets.base import Lowered, Precision, Session, Source, Target
from targets.errors import TargetError, UnsupportedModelError
from targets.runtimes._tensorrt import build, cuda, model
from targets.wording import plural

if TYPE_CHECKING:
    from targets.bundle import Bundle

__all__ = ["BUILD_SCRIPT", "TensorRTTarget"]

BUILD_SCRIPT = "build_engine.py"
MAX_NAMED = 5
"""Offenders that a message names; the rest is counted."""

PRODUCT_TYPES = {"fp16": "Half", "bf16": "BFloat16", "int8": "Int8"}
WEIGHT_TYPES = {"int8-weights": "Int8"}
"""What at least one matrix product has to be of; everything else may run in fp32."""

INTERFACE_TYPES = ("float32", "float16", "int64", "int32", "int8", "uint8", "bool")


class TensorRTTarget(Target):
    """What TensorRT and TensorRT-RTX have in common."""

    module: ClassVar[str]
    """The Python module of the runtime."""

    refuses: ClassVar[Mapping[Precision, str]] = {
        "int8-dynamic": "it has no integers with scales computed at run time",
        "int4-weights": "weights of 4 bits are not lowered to it",
    }

    cuda_graph: bool = True
    """Replay kernels as a CUDA graph instead of launching each of them."""

    tf32: bool = True
    """Let fp32 matrix products round their inputs to 10 bits of mantissa, the runtimes' default."""

    @property
    @abstractmethod
    def build_settings(self) -> dict[str, object]:
        """Build options that only this flavour has."""

    @abstractmethod
    def cannot_run_on(self, gpu: cuda.Gpu) -> str | None:
        """Why no bundle can run on a GPU, or None."""

    def cannot_lower(self) -> str | None:
        """Why no model can be lowered here, or None."""
        for library in (self.module, "onnx"):
            if not _installed(library):
                extra = "build" if library == "onnx" else self.extra
                return _missing(library.replace("_", "-"), extra)
        return None

    def cannot_run(self) -> str | None:
        """Why no bundle can run here, or None."""
        if not _installed(self.module):
            return _missing(self.module.replace("_", "-"), self.extra)
        if not _installed("cuda.bindings"):
            return _missing("cuda-python", self.extra)
        gpu = cuda.find_gpu()
        return "there is no CUDA driver or no GPU" if gpu is None else self.cannot_run_on(gpu)

    def native_precisions(self) -> tuple[Precision, ...]:
        """Fp32 and fp16; bf16 runs too, but on no GPU faster than fp16."""
        return ("fp32", "fp16")

    def requires(self, source: Source) -> None:
        """Check types, operators and quantization grids, and that every free dimension has a range.

        Raises:
            UnsupportedModelError: Names what the runtime does not take.
            TargetError: A free dimension has no usable range.
        """
        tensors = (*source.signature.inputs, *source.signature.outputs)
        found = [f"{t.name} is {t.dtype}" for t in tensors if t.dtype not in INTERFACE_TYPES]
        if source.precision in self.refuses:
            found.append(f"{source.precision}: {self.refuses[source.precision]}")
        loaded = model.load_structure(source.path)
        qdq.activations_to_int8(loaded)
        found += model.offenders(loaded, source.path.parent)
        if found:
            found = list(dict.fromkeys(found))
            rest = f"; and {len(found) - MAX_NAMED} more" if len(found) > MAX_NAMED else ""
            raise UnsupportedModelError(
                f"{self.name} does not run this model",
                where=source.path,
                given="; ".join(found[:MAX_NAMED]) + rest,
                fix="quantize with symmetric int8 (zero points 0, float biases), and keep "
                "float64 and the operators of other runtimes out of the model",
            )
        _shapes(source)

    def lower(self, source: Source, folder: Path) -> Lowered:
        """Build the engine, write it and a report of its layers, and check their data types.

        Raises:
            TargetError: The library or its GPU is missing, the runtime refused the model, or not
                one matrix product runs in the precision that the model asks for.
        """
        reason = self.cannot_lower()
        if reason is not None:
            raise TargetError(f"{self.name} cannot build an engine here", given=reason)
        self.check(source)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            path, options, notes = self._prepare(source, Path(scratch))
            try:
                built = build.build(path, options)
            except build.BuildError as error:
                raise TargetError(
                    f"{self.name} refused the model",
                    where=source.path,
                    given=error,
                    fix="keep the nodes that it names in float, or leave this target out",
                ) from error
        self._check_types(source, built, options)
        built.write(folder)
        return Lowered(build.ENGINE, notes=(*notes, *_describe(built)))

    def load(self, bundle: Bundle, *, threads: int) -> Session:
        """Open an engine on the GPU; the number of CPU threads has no effect on it.

        Raises:
            TargetError: A library or the GPU is missing, or the engine cannot run on it.
        """
        from targets.runtimes._tensorrt.session import EngineSession

        reason = self.cannot_run()
        if reason is not None:
            raise TargetError(f"{self.name} cannot run here", given=reason)
        return EngineSession(
            bundle.manifest.signature,
            bundle.model_path.read_bytes(),
            module=self.module,
            extra=self.extra,
            cuda_graph=self.cuda_graph,
        )

    def write_build_script(self, source: Source, folder: Path) -> Path:
        """Write ``model.onnx`` and a script that builds the engine from it on another machine.

        The script needs Python and the runtime only. It uses the same code, options and ranges as
        ``lower`` and writes the same two files beside itself.

        Returns:
            Path of the script.
        """
        self.check(source)
        folder.mkdir(parents=True, exist_ok=True)
        path, options, _ = self._prepare(source, folder, always_write=True)
        script = path.with_name(BUILD_SCRIPT)
        library = self.module.replace("_", "-")
        script.write_text(
            f"# Builds {build.ENGINE} from the {build.MODEL} beside this script, and writes\n"
            f"# {build.LAYERS}, which tells in which data type each layer runs.\n"
            f"# Needs: Python 3.11 or later; pip install {library}; {self.build_needs}.\n"
            f"# Run: python {BUILD_SCRIPT}\n"
            + Path(build.__file__).read_text(encoding="utf-8")
            + '\n\nif __name__ == "__main__":\n    main(\n'
            + "\n".join(" " * 8 + line for line in pprint.pformat(options).splitlines())
            + "\n    )\n",
            encoding="utf-8",
        )
        return script

    symmetric_activations: ClassVar[bool] = True
    build_needs: ClassVar[str] = "no GPU"
    """What else a machine needs to build an engine."""

    def _prepare(
        self, source: Source, folder: Path, *, always_write: bool = False
    ) -> tuple[Path, build.BuildOptions, list[str]]:
        """Rewrite the model where TensorRT needs it; returns its path, options and notes."""
        loaded = model.load_structure(source.path)
        widened = qdq.activations_to_int8(loaded)
        notes = model.rewrite(loaded, bf16=source.precision == "bf16")
        if widened:
            notes.append(f"{plural(widened, 'range')} of activations made symmetric")
        options = build.BuildOptions(
            module=self.module,
            shapes=_shapes(source),
            products=model.expected_products(loaded),
            product_type=PRODUCT_TYPES.get(source.precision),
            weight_type=WEIGHT_TYPES.get(source.precision),
            tf32=self.tf32,
            **self.build_settings,  # type: ignore[arg-type]  # checked by the fields of the target
        )
        if not notes and not always_write:
            return source.path, options, notes
        path = folder / build.MODEL
        model.save(loaded, path, weights=source.path.parent)
        return path, options, notes

    def _check_types(self, source: Source, built: build.Built, options: build.BuildOptions) -> None:
        if not built.layers or built.meets(options):
            return
        types = ", ".join(f"{count} {name}" for name, count in built.counts.items())
        raise TargetError(
            f"not one matrix product runs in {source.precision}",
            where=source.path,
            given=f"matrix products: {types or 'none'}",
            fix="check that the model was quantized or cast before it was lowered",
        )


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # the package around it is absent
        return False


def _missing(library: str, extra: str) -> str:
    return f"{library} is not installed: pip install 'compressor[{extra}]'"


def _describe(built: build.Built) -> list[str]:
    """Notes on the data types of the matrix products."""
    if not built.layers:
        return ["the builder reported no layers: data types are not checked"]
    counts = ", ".join(f"{count} {name}" for name, count in sorted(built.counts.items()))
    notes = [f"matrix products: {counts or 'none'}"]
    wrong = [f"{p.node} ({p.found}, not {p.expected})" for p in built.mismatches]
    if wrong:
        rest = f" and {len(wrong) - MAX_NAMED} more" if len(wrong) > MAX_NAMED else ""
        notes.append(
            f"built in another type than the model has: {', '.join(wrong[:MAX_NAMED])}{rest}"
        )
    return notes


def _shapes(
    source: Source,
) -> dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]:
    """Input -> (smallest, usual, largest) shape.

    Raises:
        TargetError: A free dimension has no range, or one that is not in order.
    """
    for dim in source.signature.free_dimensions:
        sizes = source.ranges.get(dim)
        if sizes is None:
            raise TargetError(
                f"the free dimension {dim!r} has no range",
                where=source.path,
                given=", ".join(map(repr, source.ranges)) or "no ranges",
                fix=f"give the smallest, usual and largest size of {dim!r}: an engine is built "
                "for a range of shapes",
            )
        if not 1 <= sizes[0] <= sizes[1] <= sizes[2]:
            raise TargetError(
                f"the range of the free dimension {dim!r} is not in order",
                given=sizes,
                fix="give 1 <= smallest <= usual <= largest",
            )

    def shape(dims: tuple[int | str, ...], index: int) -> tuple[int, ...]:
        return tuple(source.ranges[d][index] if isinstance(d, str) else d for d in dims)

    return {
        spec.name: (shape(spec.shape, 0), shape(spec.shape, 1), shape(spec.shape, 2))
        for spec in source.signature.inputs
    }
