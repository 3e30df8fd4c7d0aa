"""The shape of a network as its config tells it: enough to plan without loading weights."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from compressor.errors import CheckpointError
from targets.preprocessing import FIXED_SIZE
from targets.shapes import LayerShape, ShapeManifest, tensor_shapes

if TYPE_CHECKING:
    from torch import nn

__all__ = [
    "MID_POSITIONS",
    "TAPPED_LAYERS",
    "Architecture",
    "LayerShape",
    "kind_read",
    "reads_sound",
]

_OF_AN_ENCODER = {
    "hidden_size": "d_model",
    "num_hidden_layers": "encoder_layers",
    "num_attention_heads": "encoder_attention_heads",
    "intermediate_size": "encoder_ffn_dim",
}
"""A field's usual name -> that in configs of an encoder and a decoder."""

_OF_T5 = {
    "hidden_size": "d_model",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
    "intermediate_size": "d_ff",
}
"""The same in those of T5."""

_OTHER_NAMES: Mapping[str, Mapping[str, str]] = {
    "distilbert": {
        "hidden_size": "dim",
        "num_hidden_layers": "n_layers",
        "num_attention_heads": "n_heads",
        "intermediate_size": "hidden_dim",
    },
    "patchtst": {"hidden_size": "d_model", "intermediate_size": "ffn_dim"},
    "whisper": _OF_AN_ENCODER,
}
"""Family -> a field's usual name -> its own."""

_NUM_UNBIASED = {"whisper": 1, "videomae": 1}
"""Family -> projections into the heads that have no bias, of three."""

_OF_SPECTROGRAMS = ("num_mel_bins", "max_source_positions")
"""Those of networks that read spectrograms of one size."""

_OF_PATCHES = ("patch_size", "tubelet_size")
"""Those of networks that cut images, or videos, into patches."""

_OF_WHOLE_IMAGES = (
    "ForImageClassification",
    "ForImageClassificationWithTeacher",
    "ForVideoClassification",
)
"""How the class names of networks end that give one answer an image or a video."""

_OF_SERIES = ("context_length", "num_input_channels")
"""Fields that the configs of networks that read time series have, and no others."""

_KEY_HEADS = "num_key_value_heads"
TAPPED_LAYERS = "backbone_out_indices"
"""Where configs name the layers that another part of the network reads."""

MID_POSITIONS = "mid_position_embeddings"
"""The parameter of YOLOS with positions that are added behind each layer but the last."""

_NUM_HEADS = ("num_attention_heads", "num_heads", "encoder_attention_heads")
"""How configs call the numbers of heads of networks that attend."""

_DECODERS = ("ForCausalLM", "LMHeadModel")
"""How the class names of networks end that write text."""

_WRITERS = ("ForConditionalGeneration", "MTModel")
"""Of networks that read an input whole, and then write a text about it."""

_LONGEST_TEXT = 512
"""Longest input in tokens of a network whose positions have no end."""

_LONGEST = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")
"""How configs call the longest input in tokens."""

_HEADS_OF_ONE_LAYER = ("ForTokenClassification", "ForQuestionAnswering")
"""How the class names of networks end that give classes straight from the last hidden states."""

_WITHOUT_HEAD = ("Model",)
"""How those of bare encoders end."""

_POSITIONS_AFTER_PADDING = {
    "camembert",
    "data2vec-text",
    "esm",
    "ibert",
    "lilt",
    "longformer",
    "luke",
    "markuplm",
    "mpnet",
    "roberta",
    "roberta-prelayernorm",
    "xlm-roberta",
    "xlm-roberta-xl",
    "xmod",
}
"""Families that number positions from the padding index + 1: the table's first rows are unused."""


_WITHOUT_POSITIONS = {
    "bloom",
    "longt5",
    "mamba",
    "mamba2",
    "mt5",
    "rwkv",
    "switch_transformers",
    "t5",
    "umt5",
    "xlnet",
}
"""Families whose positions are relative, or that have none: no table ends a text."""


@dataclass(frozen=True)
class Architecture:
    """A network in numbers.

    Attributes:
        family: ``model_type`` of the config, such as ``bert``.
        layers: One shape a layer of a transformer encoder, the first first; empty where the network
            is none. The sizes below are then 0, but for the number of weights.
        head_size: Width of one attention head.
        hidden_size: Width of the residual stream.
        vocabulary_size: Number of tokens; 0 where it reads no tokens.
        num_labels: Number of classes; 0 where it has no head, and gives its hidden states out.
        max_positions: Longest input in tokens; `FIXED_SIZE` where it reads no tokens.
        position_offset: Unused rows at the start of the position table.
        num_token_types: Rows of the token-type table; 0 where there is none.
        embedding_size: Width of the embedding tables; None where it is the hidden size.
        num_other_parameters: Weights outside of the layers, where it reads no tokens.
        num_unbiased: Projections into the heads that have no bias, of three.
        has_inner_head: Whether a layer of the hidden size stands before the classes.
        has_unknown_layers: Whether it attends in layers that are not described by the sizes above,
            such as stages of unlike widths, or those of a backbone with a config of its own.
        tapped_layers: Numbers of layers that another part of the network reads, such as the neck
            of DPT: none may go.
        is_decoder: Whether it writes text: what it gives is the next token.
        has_gates: Whether the feed-forwards of its layers have gates.
        has_biases: Whether the projections of its layers have biases, and their norms shifts.
        queries_per_head: How many queries share the key and the value of a head.
        writes: Whether it has a decoder after its encoder, which writes a text.
        num_decoder_layers: So many of the layers are the decoder's, the last ones; each attends to
            the encoder as well.
        has_patches: Whether it attends to patches of images or videos, and answers for all of them.
        has_window: Whether it hears spectrograms of one size, however short a recording is.
        has_open_positions: Whether texts may be longer than ``max_positions``: positions are
            relative, as those of T5, or there are none.
    """

    family: str
    layers: tuple[LayerShape, ...]
    head_size: int
    hidden_size: int
    vocabulary_size: int
    num_labels: int
    max_positions: int
    position_offset: int = 0
    num_token_types: int = 0
    embedding_size: int | None = None
    num_other_parameters: int | None = None
    num_unbiased: int = 0
    has_inner_head: bool = True
    has_unknown_layers: bool = False
    tapped_layers: tuple[int, ...] = ()
    is_decoder: bool = False
    has_gates: bool = False
    has_biases: bool = True
    queries_per_head: int = 1
    writes: bool = False
    num_decoder_layers: int = 0
    has_patches: bool = False
    has_window: bool = False
    has_open_positions: bool = False

    @classmethod
    def read(cls, folder: Path) -> Architecture:
        """Read ``config.json`` and, of a checkpoint with resized layers, the shape manifest.

        Raises:
            CheckpointError: There is no config, or it does not tell what it is of.
        """
        config = _read_config(folder)
        manifest = ShapeManifest.read(folder)
        try:
            described = _from_config(config)
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                "the config does not say which network this is",
                where=folder / "config.json",
                given=f"model_type {config.get('model_type')!r}, missing or wrong: {error}",
                fix="pass a folder written by save_pretrained of transformers",
            ) from error
        if manifest is not None and manifest.layers:
            described = replace(
                described,
                layers=manifest.layers,
                head_size=manifest.head_size,
                hidden_size=manifest.hidden_size,
            )
        if described._is_counted:
            return described
        total = sum(math.prod(shape) for shape in tensor_shapes(folder).values())
        return described._with_total(total)

    @classmethod
    def of(cls, module: nn.Module) -> Architecture:
        """Measure a loaded network."""
        from targets.encoder import encoder_layers, layer_stacks

        config = module.config.to_dict()  # type: ignore[union-attr,operator]
        described = _from_config({**config, "architectures": [type(module).__name__]})
        layers = encoder_layers(module)
        if layers:
            described = replace(
                described,
                layers=tuple(LayerShape(each.num_heads, each.ffn_width) for each in layers),
                head_size=layers[0].head_size,
                queries_per_head=layers[0].queries_per_head,
                hidden_size=layers[0].query.in_features,
            )
            *_, decoder = map(len, layer_stacks(module))
            described = replace(described, num_decoder_layers=decoder if described.writes else 0)
        if described._is_counted:
            return described
        # Tables that serve twice, as those of decoders may, are one tensor in a checkpoint.
        stored = {each.data_ptr(): each.numel() for each in module.state_dict().values()}
        return described._with_total(sum(stored.values()))

    def _with_total(self, total: int) -> Architecture:
        """The same, of a network with so many weights in all."""
        return replace(self, num_other_parameters=total - self._num_in_layers)

    @property
    def _is_counted(self) -> bool:
        """Whether all of its weights follow from the sizes."""
        reads = bool(self.vocabulary_size) and not self.is_decoder and not self.writes
        return reads and bool(self.layers)

    @property
    def has_labels(self) -> bool:
        """Whether data says what is right: a class, or the tokens of a text."""
        return bool(self.num_labels) or self.is_decoder or self.writes

    @property
    def num_parameters(self) -> int:
        """Number of weights with a head.

        Exact for BERT, RoBERTa, DistilBERT, ELECTRA and Llama of any number of heads and widths,
        and for networks that read no tokens; an estimate where the hidden size was pruned, because
        the head keeps its inner width.
        """
        if self.num_other_parameters is not None:
            return self.num_other_parameters + self._num_in_layers
        hidden = self.hidden_size
        embedding = self.embedding_size or hidden
        rows = self.vocabulary_size + self.max_positions + self.position_offset
        norm = 2
        total = (rows + self.num_token_types + norm) * embedding
        if embedding != hidden:
            total += (embedding + 1) * hidden
        inner = (hidden + 1) * hidden if self.has_inner_head else 0
        return total + self._num_in_layers + inner + (hidden + 1) * self.num_labels

    @property
    def _num_in_layers(self) -> int:
        hidden, total = self.hidden_size, 0
        bias, norm = (1, 2) if self.has_biases else (0, 1)
        inputs = 2 if self.has_gates else 1
        for layer in self.layers:
            keys = layer.num_heads * self.head_size
            queries = keys * self.queries_per_head
            total += (hidden + bias) * (queries + 2 * keys) - self.num_unbiased * keys
            total += (queries + bias) * hidden
            total += inputs * (hidden + bias) * layer.ffn_width + (layer.ffn_width + bias) * hidden
            total += 2 * norm * hidden
        if self.num_decoder_layers:
            # Attention to the encoder, with a norm; no head of it is ever pruned.
            width = self.layers[-1].num_heads * self.head_size
            attention = (hidden + bias) * 3 * width - self.num_unbiased * width
            attention += (width + bias) * hidden + norm * hidden
            total += self.num_decoder_layers * attention
        return total

    def describe(self) -> str:
        """One line, such as ``6 layers x 12 heads x 1536 FFN, hidden 384, vocabulary 30522``."""
        if not self.layers:
            return self.family
        heads = _spread([layer.num_heads for layer in self.layers])
        if self.queries_per_head > 1:
            heads = f"{heads} heads of {self.queries_per_head} queries"
        else:
            heads = f"{heads} heads"
        widths = _spread([layer.ffn_width for layer in self.layers])
        vocabulary = f", vocabulary {self.vocabulary_size}" if self.vocabulary_size else ""
        decoder = self.num_decoder_layers
        number = f"{len(self.layers) - decoder} + {decoder}" if decoder else str(len(self.layers))
        return f"{number} layers x {heads} x {widths} FFN, hidden {self.hidden_size}{vocabulary}"


def _spread(values: list[int]) -> str:
    low, high = min(values), max(values)
    return str(low) if low == high else f"{low}-{high}"


def _from_config(config: Mapping[str, object]) -> Architecture:
    has_window = all(name in config for name in _OF_SPECTROGRAMS)
    found = _without_window(config)
    has_patches = (
        bool(found.layers)
        and not found.tapped_layers
        and "image_size" in config
        and _has_patches(config)
        and _names_head(config, _OF_WHOLE_IMAGES)
    )
    is_open = found.family in _WITHOUT_POSITIONS and found.max_positions != FIXED_SIZE
    return replace(
        found, has_window=has_window, has_patches=has_patches, has_open_positions=is_open
    )


def _without_window(config: Mapping[str, object]) -> Architecture:
    family = str(config["model_type"])
    if _names_head(config, _DECODERS):
        return _decoder(family, config)
    if _names_head(config, _WRITERS):
        return _writer(family, config)
    described = _transformer_or_unknown(family, config)
    if "vocab_size" not in config or reads_sound(config) or _has_patches(config):
        return described
    embedding_size = int(str(config.get("embedding_size", described.hidden_size)))
    offset = _position_offset(family, config)
    is_bare = _names_head(config, _WITHOUT_HEAD)
    return replace(
        described,
        vocabulary_size=_number(config, "vocab_size"),
        max_positions=_longest(config) - offset,
        position_offset=offset,
        num_token_types=int(str(config.get("type_vocab_size", 0))),
        embedding_size=None if embedding_size == described.hidden_size else embedding_size,
        num_labels=0 if is_bare else described.num_labels,
        has_inner_head=not is_bare and not _names_head(config, _HEADS_OF_ONE_LAYER),
    )


def _decoder(family: str, config: Mapping[str, object]) -> Architecture:
    """A network that writes text; its layers are known where they are those of Llama."""
    described = Architecture(family, (), 0, 0, 0, 0, FIXED_SIZE, has_unknown_layers=True)
    if _KEY_HEADS in config or family == "llama":  # which its first configs do not have
        with suppress(ValueError):  # such as a width for each layer
            described = _like_llama(family, config)
    return replace(
        described,
        vocabulary_size=_number(config, "vocab_size"),
        max_positions=_longest(config),
        num_labels=0,
        is_decoder=True,
    )


def _like_llama(family: str, config: Mapping[str, object]) -> Architecture:
    described = _transformer(family, config)
    queries, width = described.layers[0].num_heads, described.layers[0].ffn_width
    heads = queries if config.get(_KEY_HEADS) is None else _number(config, _KEY_HEADS)
    own = config.get("head_dim") is not None
    return replace(
        described,
        layers=(LayerShape(heads, width),) * len(described.layers),
        head_size=_number(config, "head_dim") if own else described.head_size,
        queries_per_head=queries // heads,
        has_gates=True,
        has_biases=False,
    )


def _writer(family: str, config: Mapping[str, object]) -> Architecture:
    """An encoder and a decoder; layers are known where they are those of BART or of T5."""
    described = Architecture(family, (), 0, 0, 0, 0, FIXED_SIZE, has_unknown_layers=True)
    with suppress(ValueError):  # of others that have one of these fields, such as ProphetNet
        if "decoder_ffn_dim" in config:
            described = _like_bart(family, config)
        elif "d_ff" in config:
            described = _like_t5(family, config)
    return replace(
        described,
        vocabulary_size=_number(config, "vocab_size"),
        max_positions=FIXED_SIZE if reads_sound(config) else _longest(config),
        num_labels=0,
        writes=True,
    )


def _like_bart(family: str, config: Mapping[str, object]) -> Architecture:
    named = {usual: config.get(name) for usual, name in _OF_AN_ENCODER.items()}
    described = _transformer("", named)
    layer = LayerShape(described.layers[0].num_heads, _number(config, "decoder_ffn_dim"))
    count = _number(config, "decoder_layers")
    return replace(
        described,
        family=family,
        layers=(*described.layers, *(layer,) * count),
        num_decoder_layers=count,
        num_unbiased=_NUM_UNBIASED.get(family, 0),
    )


def _like_t5(family: str, config: Mapping[str, object]) -> Architecture:
    named = {usual: config.get(name) for usual, name in _OF_T5.items()}
    described = _transformer("", named)
    count = int(str(config.get("num_decoder_layers") or len(described.layers)))
    return replace(
        described,
        family=family,
        head_size=_number(config, "d_kv"),
        layers=(*described.layers, *described.layers[:1] * count),
        num_decoder_layers=count,
        has_gates=str(config.get("feed_forward_proj")).startswith("gated"),
        has_biases=False,
    )


def _names_head(config: Mapping[str, object], heads: tuple[str, ...]) -> bool:
    names = config.get("architectures")
    return isinstance(names, list) and bool(names) and str(names[0]).endswith(heads)


def _transformer_or_unknown(family: str, config: Mapping[str, object]) -> Architecture:
    """A transformer encoder, or a network without layers of that kind."""
    try:
        return _transformer(family, config)
    except ValueError:
        attends = (
            "vocab_size" in config or _attends(config) or _attends(config.get("backbone_config"))
        )
        return Architecture(
            family, (), 0, 0, 0, _num_labels(config), FIXED_SIZE, has_unknown_layers=attends
        )


def _attends(config: object) -> bool:
    """Whether a config names numbers of heads; not where there is none."""
    return isinstance(config, Mapping) and any(name in config for name in _NUM_HEADS)


def _has_patches(config: Mapping[str, object]) -> bool:
    """Whether a config is of a network that sees; that of BEiT names a vocabulary too."""
    return any(name in config for name in _OF_PATCHES)


def reads_sound(config: Mapping[str, object]) -> bool:
    """Whether a config is that of a network that reads sound; it may name a vocabulary too.

    Wav2Vec2 and its like have a width for each of their convolutions, LFM2, which reads text, one.
    """
    return "num_mel_bins" in config or isinstance(config.get("conv_dim"), list)


def kind_read(config: Mapping[str, object], processor: Mapping[str, object]) -> str:
    """The kind of the inputs of a network; see `compressor.data.Kind`.

    Args:
        config: Of the network; empty where it cannot be read.
        processor: What the checkpoint says of its preprocessing; may be empty.
    """
    if reads_sound(config) or "sampling_rate" in processor:
        return "audio"
    if all(name in config for name in _OF_SERIES):
        return "series"
    if "num_frames" in config:
        return "video"
    if processor or (config and "vocab_size" not in config):
        return "image"
    return "text"


def _transformer(family: str, config: Mapping[str, object]) -> Architecture:
    hidden_size = _number(config, "hidden_size")
    heads = _number(config, "num_attention_heads")
    ratio, tapped = config.get("mlp_ratio"), config.get(TAPPED_LAYERS)
    if isinstance(ratio, int | float) and "intermediate_size" not in config:
        width = int(hidden_size * ratio)
    else:
        width = _number(config, "intermediate_size")
    return Architecture(
        family=family,
        layers=(LayerShape(num_heads=heads, ffn_width=width),)
        * _number(config, "num_hidden_layers"),
        head_size=hidden_size // heads,
        hidden_size=hidden_size,
        vocabulary_size=0,
        num_labels=_num_labels(config),
        max_positions=FIXED_SIZE,
        num_unbiased=_NUM_UNBIASED.get(family, 0),
        tapped_layers=tuple(tapped) if isinstance(tapped, list) else (),
    )


def _number(config: Mapping[str, object], name: str) -> int:
    other_names = _OTHER_NAMES.get(str(config.get("model_type")), {})
    value = config.get(other_names.get(name, name))
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} is {value!r}")
    return value


def _longest(config: Mapping[str, object]) -> int:
    """Longest input in tokens."""
    found = (config.get(name) for name in _LONGEST)
    return next((each for each in found if isinstance(each, int) and each > 0), _LONGEST_TEXT)


def _num_labels(config: Mapping[str, object]) -> int:
    labels = config.get("id2label")
    if isinstance(labels, dict) and labels:
        return len(labels)
    return 2  # what transformers takes where a config names no labels


def _position_offset(family: str, config: Mapping[str, object]) -> int:
    if family not in _POSITIONS_AFTER_PADDING:
        return 0
    padding = config.get("pad_token_id", 1)
    return padding + 1 if isinstance(padding, int) else 0


def _read_config(folder: Path) -> dict[str, object]:
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            "the checkpoint has no readable config",
            where=path,
            given=error,
            fix="pass a Hugging Face folder with config.json, model.safetensors and tokenizer.json",
        ) from error
    if not isinstance(config, dict):
        raise CheckpointError(
            "the config is not a JSON object",
            where=path,
            given=f"JSON of the kind {type(config).__name__}",
            fix="copy the checkpoint again",
        )
    return config
