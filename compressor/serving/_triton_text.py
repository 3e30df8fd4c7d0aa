"""Two more models for Triton: a tokenizer, and an ensemble that takes text."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from compressor.errors import PackageError
from compressor.serving import _tokenizer_model
from compressor.serving._triton_config import (
    DataType,
    EnsembleScheduling,
    EnsembleStep,
    InstanceGroup,
    Kind,
    ModelConfig,
    Tensor,
    parameters,
)
from targets.bundle import Bundle
from targets.preprocessing import TextPreprocessing
from targets.preprocessing.text import IDS, MASK, ZEROS_IF_ABSENT

__all__ = ["TEXT", "write_text_models"]

TEXT = "text"
"""The ensemble's input."""

TOKENIZER = "tokenizer.json"


def write_text_models(
    bundle: Bundle, folder: Path, model: ModelConfig, length_multiple: int
) -> Iterator[ModelConfig]:
    """Write the files of the tokenizer, and say how both models are configured.

    Args:
        bundle: Of a text model.
        folder: The model repository.
        model: Configuration of the model that takes token ids.
        length_multiple: Texts are padded to a multiple of this many tokens.

    Raises:
        PackageError: The model takes no text, or an input that text does not provide.
    """
    preprocessing = bundle.manifest.preprocessing
    if not isinstance(preprocessing, TextPreprocessing) or preprocessing.kind != "text":
        raise PackageError(
            "the model takes no text",
            where="preprocessing",
            given=f"a model of {preprocessing.noun}s",
            fix="leave text=true out",
        )
    names = tuple(each.name for each in model.input)
    unknown = sorted({*names} - {IDS, MASK, *ZEROS_IF_ABSENT})
    if unknown:
        raise PackageError(
            "the model takes an input that text does not provide",
            where="signature",
            given=", ".join(unknown),
            fix="leave text=true out",
        )
    batched = model.max_batch_size > 0
    text = Tensor(name=TEXT, data_type=DataType.TYPE_STRING, dims=(1 if batched else -1,))
    tokenizer = ModelConfig(
        name=f"{model.name}-tokenizer",
        backend="python",
        max_batch_size=model.max_batch_size,
        input=(text,),
        output=model.input,
        instance_group=(InstanceGroup(count=1, kind=Kind.KIND_CPU),),
        parameters=parameters(
            {
                "max_length": str(preprocessing.max_length),
                **preprocessing.model_dump(include={"truncation_side"}),  # where it is not usual
                "pad_token_id": str(preprocessing.pad_token_id),
                "length_multiple": str(length_multiple),
            }
        ),
    )
    target = folder / tokenizer.name / "1"
    target.mkdir(parents=True)
    shutil.copyfile(bundle.path(preprocessing.tokenizer), target / TOKENIZER)
    shutil.copyfile(Path(_tokenizer_model.__file__), target / "model.py")
    yield tokenizer
    yield ModelConfig(
        name=f"{model.name}-text",
        platform="ensemble",
        max_batch_size=model.max_batch_size,
        input=(text,),
        output=model.output,
        ensemble_scheduling=EnsembleScheduling(
            step=(
                _step(tokenizer.name, (TEXT,), names),
                _step(model.name, names, tuple(each.name for each in model.output)),
            )
        ),
    )


def _step(name: str, inputs: tuple[str, ...], outputs: tuple[str, ...]) -> EnsembleStep:
    return EnsembleStep(
        model_name=name,
        model_version=-1,
        input_map={each: each for each in inputs},
        output_map={each: each for each in outputs},
    )
