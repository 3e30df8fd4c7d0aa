"""Write and read a Hugging Face model, also one whose layers were resized.

A model that its config describes is written as a plain Hugging Face folder. One with pruned heads
or channels, widths of its own in each layer or a narrower residual stream gets ``shapes.json``
beside it (see :mod:`targets.shapes`) and comes back bit-equal. Weights are safetensors only:
reading them runs no code.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from targets.encoder import (
    SIDES,
    EncoderLayer,
    encoder_layers,
    layer_stacks,
    set_head_counts,
    token_table,
)
from targets.errors import CheckpointError
from targets.networks import register_network
from targets.shapes import (
    SCHEMA_VERSION,
    SHAPES_FILE,
    LayerShape,
    MergedTokens,
    ShapeManifest,
    tensor_shapes,
    weight_files,
)

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = [
    "AUTO_CLASSES",
    "auto_class",
    "drop_auxiliary_head",
    "load_module",
    "save_module",
    "update_config",
]

AUTO_CLASSES: Mapping[str, str] = {
    "text-classification": "AutoModelForSequenceClassification",
    "token-classification": "AutoModelForTokenClassification",
    "question-answering": "targets.networks.question_answering.AutoModelForQuestionAnswering",
    "fill-mask": "AutoModelForMaskedLM",
    "feature-extraction": "AutoModel",
    "text-embedding": "targets.networks.text_embedding.AutoModelForTextEmbedding",
    "image-classification": "AutoModelForImageClassification",
    "semantic-segmentation": "AutoModelForSemanticSegmentation",
    "object-detection": "targets.networks.object_detection.AutoModelForObjectDetection",
    "audio-classification": "AutoModelForAudioClassification",
    "video-classification": "AutoModelForVideoClassification",
    "time-series-classification": "AutoModelForSequenceClassification",
    "text-generation": "AutoModelForCausalLM",
    "automatic-speech-recognition": "AutoModelForSpeechSeq2Seq",
    "translation": "AutoModelForSeq2SeqLM",
}
"""Task -> the class that loads its models: of transformers, or of a module that is named."""

Shapes = Mapping[str, tuple[int, ...]]
_NUM_NAMED = 3  # tensors that an error names before it counts the rest


def save_module(module: nn.Module, folder: Path) -> None:
    """Write config, weights and, where the config does not tell all sizes, the shape manifest.

    Args:
        module: A Hugging Face model; stays untouched.
        folder: Exists already.

    Raises:
        CheckpointError: The module holds tensors that no checkpoint of its class has.
    """
    from safetensors.torch import save_file

    config = copy.deepcopy(module.config)
    _set_sizes(config, module)
    state = _stored_tensors(module)
    manifest = _describe(
        module, config, {name: tuple(value.shape) for name, value in state.items()}
    )
    temporary = folder / "model.safetensors.tmp"
    save_file(state, temporary, metadata={"format": "pt"})
    os.replace(temporary, folder / "model.safetensors")
    config.save_pretrained(folder)  # type: ignore[union-attr,operator]
    (folder / SHAPES_FILE).unlink(missing_ok=True)
    if manifest is not None:
        manifest.write(folder)


def auto_class(task: str) -> Any:
    """The class that loads the models of a task."""
    module, _, name = AUTO_CLASSES[task].rpartition(".")
    return getattr(importlib.import_module(module or "transformers"), name)


def load_module(folder: Path, task: str) -> nn.Module:
    """Read a checkpoint: float32, eval mode, eager attention, tied weights tied.

    Args:
        folder: A plain Hugging Face folder, or what :func:`save_module` wrote.
        task: One of :data:`AUTO_CLASSES`.

    Raises:
        CheckpointError: The checkpoint is absent, damaged, or its files do not belong together.
    """
    import torch

    if task not in AUTO_CLASSES:
        known = ", ".join(AUTO_CLASSES)
        raise CheckpointError(f"no model class is known for the task {task!r}", fix=f"use {known}")
    register_network(folder)
    manifest = ShapeManifest.read(folder)
    found = tensor_shapes(folder)
    with _quiet_transformers(), torch.random.fork_rng(devices=[]):
        module: nn.Module = (
            _load_plain(folder, auto_class(task))
            if manifest is None
            else _load_resized(folder, auto_class(task), manifest, found)
        )
    drop_auxiliary_head(module)
    return module.eval()


def drop_auxiliary_head(module: nn.Module) -> None:
    """Take out, in place, a head that was only trained along: nothing reads what it says."""
    if getattr(module, "auxiliary_head", None) is not None:
        module.auxiliary_head = None  # type: ignore[assignment]
        module.config.use_auxiliary_head = False  # type: ignore[union-attr]


def update_config(module: nn.Module) -> None:
    """Write the real sizes of a resized encoder into its config, as far as a config can hold them.

    Where layers differ, the config gets the widest.
    """
    _set_sizes(module.config, module)


def _set_sizes(config: Any, module: nn.Module) -> None:
    config.architectures = [type(module).__name__]
    layers, stacks = encoder_layers(module), layer_stacks(module)
    if not layers:
        return
    if len(stacks) > 1 and hasattr(config, "d_ff"):
        config.num_layers, config.num_decoder_layers = map(len, stacks)
        for side, stack in zip(SIDES, stacks, strict=True):
            getattr(module, side).config.num_layers = len(stack)  # each side has one of its own
        config.d_ff = max(layer.ffn_width for layer in layers)
        return
    if len(stacks) > 1:
        for side, stack in zip(SIDES, stacks, strict=True):
            here, layers = layers[: len(stack)], layers[len(stack) :]
            setattr(config, f"{side}_layers", len(stack))
            setattr(config, f"{side}_ffn_dim", max(layer.ffn_width for layer in here))
        return
    config.hidden_size = layers[0].query.in_features
    config.num_hidden_layers = len(layers)
    if getattr(config, "stage_names", None):  # a backbone names each layer, and those it gives out
        config.stage_names = config.stage_names[: len(layers) + 1]
        config.set_output_features_output_indices(None, None)
    _set_heads(config, layers)
    for name in ("hidden_dim", "encoder_ffn_dim", "intermediate_size", "ffn_dim"):
        if hasattr(config, name):
            setattr(config, name, max(layer.ffn_width for layer in layers))
            break
    table = token_table(module)
    if table is not None:
        config.vocab_size = table.num_embeddings
        if hasattr(config, "embedding_size"):
            config.embedding_size = table.embedding_dim


def _set_heads(config: Any, layers: Sequence[EncoderLayer]) -> None:
    num_heads = max(layer.num_heads for layer in layers)
    if not hasattr(config, "num_key_value_heads"):
        config.num_attention_heads = num_heads
        return
    config.head_dim = layers[0].head_size
    num_queries = num_heads * layers[0].queries_per_head
    if config.hidden_size % num_queries == 0:  # others are refused when the config is read
        config.num_attention_heads = num_queries
        config.num_key_value_heads = num_heads


def _stored_tensors(module: nn.Module) -> dict[str, Tensor]:
    """The state without tied copies, each tensor with memory of its own (safetensors needs it)."""
    state: dict[str, Tensor] = module.state_dict()
    tied: Mapping[str, str] = getattr(module, "all_tied_weights_keys", None) or {}
    stored: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in state.items():
        source = state.get(tied.get(name, ""))
        if source is not None and source.data_ptr() == tensor.data_ptr():
            continue
        pointer = tensor.untyped_storage().data_ptr()
        stored[name] = tensor.clone() if pointer in seen else tensor.contiguous()
        seen.add(pointer)
    return stored


def _describe(module: nn.Module, config: Any, found: Shapes) -> ShapeManifest | None:
    """The manifest of a module, or None where the config tells all."""
    import torch

    from targets.networks.token_merging import merged_tokens

    with _quiet_transformers(), torch.random.fork_rng(devices=[]), torch.device("meta"):
        reference = type(module)(_constructible(config) if encoder_layers(module) else config)
    dropped = _drop_absent(reference, module)
    built = _shapes(reference)
    _check_names(found, reference)
    resized = {name: shape for name, shape in found.items() if built[name] != shape}
    layers = encoder_layers(module)
    merged = merged_tokens(module)
    if not resized and not dropped and merged is None:
        return None
    sizes = {layer.head_size for layer in layers} or {0}
    if len(sizes) != 1:
        raise CheckpointError(
            "an encoder whose sizes differ from its config can be saved only if all its heads have "
            "one size",
            where=type(module).__name__,
            given=f"head sizes {sorted(sizes)}; resized {_some(list(resized))}",
            fix="resize it with the prune pass only",
        )
    return ShapeManifest(
        schema_version=SCHEMA_VERSION,
        architecture=type(module).__name__,
        hidden_size=layers[0].query.in_features if layers else 0,
        head_size=sizes.pop(),
        layers=tuple(LayerShape(layer.num_heads, layer.ffn_width) for layer in layers),
        tensors=resized,
        dropped=dropped,
        merged=merged,
    )


def _drop_absent(reference: nn.Module, module: nn.Module) -> tuple[str, ...]:
    """Take out of a reference what another network of its class has dropped, and name it."""
    from torch import nn

    dropped = tuple(
        name
        for name, part in reference.named_modules()
        if any(True for _ in part.parameters()) and isinstance(_part(module, name), nn.Identity)
    )
    for name in dropped:
        reference.set_submodule(name, nn.Identity())
    return dropped


def _part(module: nn.Module, name: str) -> nn.Module | None:
    try:
        return module.get_submodule(name)
    except AttributeError:
        return None


def _constructible(config: Any) -> Any:
    """A config that every model class accepts: one head divides every hidden size.

    Networks that attend in stages have several numbers of heads, and keep all of their widths.
    """
    config = copy.deepcopy(config)
    if hasattr(config, "num_key_value_heads") or config.is_encoder_decoder:
        return config  # it names the width of a head, and numbers of heads that it takes
    if isinstance(getattr(config, "num_attention_heads", None), int):
        config.num_attention_heads = 1
    return config


def _load_plain(folder: Path, network: Any) -> nn.Module:
    import torch

    try:
        module, report = network.from_pretrained(
            folder,
            dtype=torch.float32,
            attn_implementation="eager",
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, KeyError, RuntimeError, TypeError, ImportError) as error:
        raise CheckpointError(
            "the checkpoint cannot be loaded: its weights and its config do not belong together",
            where=folder,
            given=_first_line(error),
            fix=f"a pruned checkpoint needs its {SHAPES_FILE}; copy the whole folder again",
        ) from error
    if report["missing_keys"]:
        raise CheckpointError(
            "the checkpoint lacks weights of its model",
            where=folder,
            given=_some(sorted(report["missing_keys"])),
            fix="pass a checkpoint that was fine-tuned for this task: compressor finetune",
        )
    loaded: nn.Module = module
    return loaded


def _load_resized(folder: Path, network: Any, manifest: ShapeManifest, found: Shapes) -> nn.Module:
    from safetensors.torch import load_file
    from torch import nn
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        module: nn.Module = network.from_config(
            _constructible(config) if manifest.layers else config,
            attn_implementation="eager",
            trust_remote_code=False,
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            "the config of the checkpoint cannot be used",
            where=folder / "config.json",
            given=_first_line(error),
            fix="copy the whole folder again from where it was written",
        ) from error
    if manifest.architecture != type(module).__name__:
        raise _foreign(
            folder, f"it describes a {manifest.architecture}, not {type(module).__name__}"
        )
    for name in manifest.dropped:
        if not name or _part(module, name) is None:
            raise _foreign(folder, f"it drops {name!r}, which is no part of the network")
        module.set_submodule(name, nn.Identity())
    expected = {**_shapes(module), **manifest.tensors}
    _compare(found, expected, module, where=folder / SHAPES_FILE)
    _resize(module.float(), expected)
    state = {
        name: value for path in weight_files(folder) for name, value in load_file(path).items()
    }
    _untie(module, state)
    module.load_state_dict(state, strict=False)  # compared above; tied copies are not stored
    module.tie_weights(recompute_mapping=False)  # type: ignore[operator]
    set_head_counts(module, manifest.head_size)
    layers = tuple(LayerShape(each.num_heads, each.ffn_width) for each in encoder_layers(module))
    if layers != manifest.layers:
        raise _foreign(folder, f"layers {_some(manifest.layers)} against weights {_some(layers)}")
    if manifest.merged is not None:
        _merge(module, manifest.merged, folder)
    update_config(module)
    return module


def _merge(module: nn.Module, merged: MergedTokens, folder: Path) -> None:
    from targets.networks.token_merging import merge_tokens

    (num_stacks, num_layers) = len(layer_stacks(module)), len(encoder_layers(module))
    if num_stacks != 1 or len(merged.counts) != num_layers:
        raise _foreign(
            folder, f"it merges tokens behind {len(merged.counts)} layers, of {num_layers}"
        )
    merge_tokens(module, merged)


def _untie(module: Any, state: Mapping[str, Tensor]) -> None:
    """Part weights that the config ties, and that are stored with values of their own (T5 v1.1)."""
    from torch import nn

    for name, source in list(module.all_tied_weights_keys.items()):
        if name not in state or source not in state or state[name].equal(state[source]):
            continue
        owner, _, attribute = name.rpartition(".")
        own = nn.Parameter(module.get_parameter(name).detach().clone())
        setattr(module.get_submodule(owner), attribute, own)
        del module.all_tied_weights_keys[name]


def _check_names(found: Shapes, reference: nn.Module) -> None:
    """Refuse a module whose tensors are not those of its class; their sizes may differ."""
    differences = _differences(found, {**_shapes(reference), **found}, reference)
    if differences:
        raise CheckpointError(
            f"the tensors of the module are not those of a {type(reference).__name__}: it could "
            "not be loaded again",
            where=type(reference).__name__,
            given=differences,
            fix="keep the modules and their names and change their sizes only, or put "
            "torch.nn.Identity in the place of one; to replace modules in other ways, write a pass "
            "on the ONNX form, after the export",
        )


def _compare(found: Shapes, expected: Shapes, module: nn.Module, *, where: object) -> None:
    differences = _differences(found, expected, module)
    if differences:
        raise CheckpointError(
            "the weights, the config and the shape manifest do not belong together",
            where=where,
            given=differences,
            fix="copy the whole folder again from where it was written",
        )


def _differences(found: Shapes, expected: Shapes, module: nn.Module) -> str:
    """Which tensors are missing, are none of the module's, or have another size; may be empty."""
    tied = getattr(module, "all_tied_weights_keys", None) or {}
    missing = [name for name in expected if name not in found and name not in tied]
    known = _shapes(module)
    surplus = [name for name in {**found, **expected} if name not in known]
    differing = [
        f"{name} {list(found[name])} instead of {list(shape)}"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    parts = (("missing", missing), ("unknown", surplus), ("differing", differing))
    return "; ".join(f"{kind}: {_some(names)}" for kind, names in parts if names)


def _resize(module: nn.Module, expected: Shapes) -> None:
    """Give every part the sizes of ``expected``; the new weights are not set."""
    import torch
    from torch import nn

    for prefix, part in module.named_modules():
        names = [name for name, _ in part.named_parameters(recurse=False)]
        names += [name for name, _ in part.named_buffers(recurse=False)]
        for name in names:
            shape = expected.get(f"{prefix}.{name}" if prefix else name)
            tensor = getattr(part, name)
            if shape is None or tuple(tensor.shape) == shape:
                continue  # the first are buffers that are not stored
            empty = torch.empty(shape, dtype=tensor.dtype)
            setattr(part, name, nn.Parameter(empty) if isinstance(tensor, nn.Parameter) else empty)
        if isinstance(part, nn.Linear):
            part.out_features, part.in_features = part.weight.shape
        elif isinstance(part, nn.Embedding):
            part.num_embeddings, part.embedding_dim = part.weight.shape
        elif isinstance(part, nn.LayerNorm):
            part.normalized_shape = tuple(part.weight.shape)
        elif isinstance(part, nn.modules.conv._ConvNd):
            channels = part.weight.shape[0]
            if part.groups > 1 and part.groups == part.in_channels:
                part.groups = channels  # each channel by itself, however many there are
            part.out_channels, part.in_channels = channels, part.weight.shape[1] * part.groups
        elif isinstance(part, nn.modules.batchnorm._BatchNorm):
            part.num_features = part.weight.shape[0]


def _shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in module.state_dict().items()}


def _foreign(folder: Path, given: str) -> CheckpointError:
    return CheckpointError(
        "the shape manifest belongs to another checkpoint",
        where=folder / SHAPES_FILE,
        given=given,
        fix="copy the whole folder again from where it was written",
    )


def _some(names: Any) -> str:
    rest = len(names) - _NUM_NAMED
    text = ", ".join(str(name) for name in names[:_NUM_NAMED])
    return f"{text} and {rest} more" if rest > 0 else text


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


@contextlib.contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Keep transformers from drawing progress bars and logging load reports."""
    from transformers.utils import logging

    verbosity, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()
