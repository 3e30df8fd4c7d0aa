"""Write the model as ONNX, the one form that every target reads."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, cast

from pydantic import Field

from compressor.errors import PassError
from compressor.model import Model, OnnxModel, TorchModel
from compressor.passes.base import Pass, PassContext, PassResult
from targets.base import Form

if TYPE_CHECKING:
    from compressor.architecture import Architecture
    from targets.answers import WrittenAnswers
    from targets.signature import Signature

__all__ = ["Export"]


class Export(Pass):
    """Export to ONNX with free batch and sequence, and prove that it computes the same."""

    name: ClassVar[str] = "export"
    version: ClassVar[int] = 4
    consumes: ClassVar[Form] = "torch"
    produces: ClassVar[Form] = "onnx"
    paper: ClassVar[str] = "no paper: torch.export and the ONNX exporter of PyTorch"
    libraries: ClassVar[tuple[str, ...]] = (
        "torch",
        "transformers",
        "onnx",
        "onnx-ir",
        "onnxscript",
        "onnxruntime",
    )

    max_batch: int = Field(default=32, ge=1)
    """Largest batch that targets prepare for. Those that compile for a range refuse larger ones."""
    usual_batch: int = Field(default=1, ge=1)
    """Batch that such targets are tuned for."""
    usual_length: int | None = Field(default=None, ge=1)
    """Length that such targets are tuned for, in tokens or samples of sound; the default is the
    data's median."""
    tolerance: float = Field(default=1e-4, gt=0)
    """Largest difference from torch allowed, as a part of the largest output or of 1."""
    opset: int = Field(default=21, ge=20, le=22)
    """Version of the ONNX operators. Older runtimes need lower ones."""
    cache: bool = Field(default=False, exclude_if=lambda cache: not cache)
    """Of a language model: keep the keys and values of the tokens that were read, so that a text
    goes on without being read again, as `predict --stream` does."""
    single_file_limit_bytes: int = Field(default=200_000_000, ge=0, le=1_900_000_000)
    """Weights above this many bytes go to a file beside the graph: in one file, which cannot pass
    2 GB, they are several times in memory while they are written."""

    def plan(self, architecture: Architecture, *, width_multiple: int = 8) -> Architecture:
        """See the base class."""
        if self.cache and not architecture.is_decoder:
            raise PassError(
                "a model with an encoder and a decoder always keeps its keys and values"
                if architecture.writes
                else "only language models have keys and values to keep",
                where=f"{self.name}.cache",
                given=architecture.describe(),
                fix="leave cache out",
            )
        return architecture

    def requires(self, model: Model, context: PassContext) -> None:
        """See the base class."""
        if self.usual_batch > self.max_batch:
            raise PassError(
                "usual_batch is larger than max_batch",
                where=self.name,
                given=f"{self.usual_batch} > {self.max_batch}",
                fix="raise max_batch or lower usual_batch",
            )
        if self.usual_length is not None and self.usual_length > model.max_length:
            from compressor.tasks import get_task

            unit = get_task(model.task).preprocessing_type.unit
            raise PassError(
                "usual_length is larger than the model's longest input",
                where=self.name,
                given=f"{self.usual_length} > {model.max_length} {unit}",
                fix="lower usual_length or raise data.max_length",
            )

    def run(self, model: TorchModel, context: PassContext) -> PassResult:
        """See the base class."""
        from compressor.export import export_onnx
        from compressor.parity import measure_parity
        from compressor.tasks import get_task

        task = get_task(model.task)
        signature = task.signature(model)
        if self.cache:
            signature = task.with_state(model, signature)
        folder = context.folder / "onnx"
        exported = OnnxModel(
            folder=folder,
            signature=signature,
            precision="fp32",
            task=model.task,
            labels=model.labels,
            max_length=model.max_length,
            ranges=self._ranges(model, signature, context),
        )
        context.progress(0.0, "tracing the model")
        export_onnx(
            model,
            signature,
            exported.path,
            opset=self.opset,
            single_file_limit_bytes=self.single_file_limit_bytes,
        )
        task.save_processor(model.processor, folder)
        context.progress(0.8, "comparing the ONNX model with torch")
        parity = measure_parity(model, exported.path, context.splits.validation.inputs, signature)
        return PassResult(
            model=exported,
            metrics={
                "max_abs_difference": parity.max_abs_difference,
                "max_relative_difference": parity.max_relative_difference,
                "num_nodes": float(_num_nodes(exported)),
                "size_bytes": float(exported.size_bytes),
            },
            notes=(
                f"{parity.num_batches} batches compared with torch; largest difference "
                f"{parity.max_abs_difference:.1g}, in {parity.worst_case}",
            ),
        )

    def ensures(self, model: Model, result: PassResult, context: PassContext) -> None:
        """See the base class."""
        from compressor.parity import measure_parity

        exported = cast("OnnxModel", result.model)
        difference = result.metrics["max_relative_difference"]
        if not difference <= self.tolerance:
            inputs = context.splits.validation.inputs
            parity = measure_parity(
                cast("TorchModel", model), exported.path, inputs, exported.signature
            )
            raise PassError(
                "the ONNX model does not compute what the torch model computes",
                where=parity.worst_case,
                given=f"largest difference {difference:.2g} relative to the largest output, "
                f"{result.metrics['max_abs_difference']:.2g} absolute",
                fix=f"report the model, or allow it with tolerance above {difference:.2g}",
            )
        _check_interface(exported)

    def _ranges(
        self, model: TorchModel, signature: Signature, context: PassContext
    ) -> dict[str, tuple[int, int, int]]:
        """Smallest, usual and largest size of each free dimension: the batch, and lengths."""
        from compressor.tasks import get_task

        batch, *lengths = signature.free_dimensions
        ranges = {batch: (1, self.usual_batch, self.max_batch)}
        task = get_task(model.task)
        written = {dim for spec in signature.going_on.inputs for dim in spec.shape}
        for name in lengths:
            if signature.context and name in written:
                longest = cast("WrittenAnswers", task.answers_with(model.processor)).longest
                ranges[name] = (1, 1, longest)
                continue
            usual = self.usual_length
            if usual is None:
                found = sorted(
                    map(task.length_read, task.encode(model, context.splits.validation.inputs))
                )
                usual = found[len(found) // 2]
            lengths_read = (task.shortest(model), usual, model.max_length)
            shortest, usual, longest = (task.extent(model, length) for length in lengths_read)
            ranges[name] = (shortest, usual, longest)
        return ranges


def _num_nodes(exported: OnnxModel) -> int:
    import onnx

    return len(onnx.load(exported.path, load_external_data=False).graph.node)


def _check_interface(exported: OnnxModel) -> None:
    """Compare the file's inputs and outputs with the signature."""
    import onnx

    from compressor.export import kept_outputs

    graph = onnx.load(exported.path, load_external_data=False).graph
    for specs, values in (
        ((*exported.signature.inputs, *exported.signature.state), graph.input),
        ((*exported.signature.outputs, *kept_outputs(exported.signature)), graph.output),
    ):
        wanted = {spec.name: spec.shape for spec in specs}
        found = {
            value.name: tuple(
                dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim
            )
            for value in values
        }
        if wanted != found:
            raise PassError(
                "the ONNX model has other inputs or outputs than the task",
                where=exported.path,
                given=found,
                fix=f"the task wants {wanted}; report the model",
            )
