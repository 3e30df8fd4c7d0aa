"""The parts of a transformer's layers that can be resized, whatever its family calls them.

Every such layer has four attention projections and a feed-forward of two or, where it is gated, of
three. Families differ in names only, so a layer is recognised by the names it holds, not by its
family.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

__all__ = [
    "SIDES",
    "EncoderLayer",
    "encoder_layers",
    "layer_stacks",
    "set_head_counts",
    "token_table",
]

SIDES = ("encoder", "decoder")
"""The stacks of a network that reads its input whole and then writes a text about it."""


@dataclass(frozen=True)
class _Names:
    """Where a family keeps the parts of a layer, relative to the layer."""

    attention: str
    query: str
    key: str
    value: str
    attention_output: str
    ffn_input: str
    ffn_output: str
    num_heads: str | None
    """Name of the attribute of the attention module that counts its heads; None where it does not
    count them, but cuts projections into heads of their size."""
    head_size: str
    """Name of its attribute with the width of a head."""
    ffn_gate: str | None = None


_FAMILIES = (
    # BERT, RoBERTa, XLM-RoBERTa, ELECTRA, CamemBERT
    _Names(
        attention="attention.self",
        query="attention.self.query",
        key="attention.self.key",
        value="attention.self.value",
        attention_output="attention.output.dense",
        ffn_input="intermediate.dense",
        ffn_output="output.dense",
        num_heads="num_attention_heads",
        head_size="attention_head_size",
    ),
    # VideoMAE
    _Names(
        attention="attention.attention",
        query="attention.attention.query",
        key="attention.attention.key",
        value="attention.attention.value",
        attention_output="attention.output.dense",
        ffn_input="intermediate.dense",
        ffn_output="output.dense",
        num_heads="num_attention_heads",
        head_size="attention_head_size",
    ),
    # DistilBERT
    _Names(
        attention="attention",
        query="attention.q_lin",
        key="attention.k_lin",
        value="attention.v_lin",
        attention_output="attention.out_lin",
        ffn_input="ffn.lin1",
        ffn_output="ffn.lin2",
        num_heads="n_heads",
        head_size="attention_head_size",
    ),
    # Wav2Vec2, HuBERT, Data2VecAudio
    _Names(
        attention="attention",
        query="attention.q_proj",
        key="attention.k_proj",
        value="attention.v_proj",
        attention_output="attention.out_proj",
        ffn_input="feed_forward.intermediate_dense",
        ffn_output="feed_forward.output_dense",
        num_heads="num_heads",
        head_size="head_dim",
    ),
    # Whisper; the encoders and decoders of BART and Marian
    _Names(
        attention="self_attn",
        query="self_attn.q_proj",
        key="self_attn.k_proj",
        value="self_attn.v_proj",
        attention_output="self_attn.out_proj",
        ffn_input="fc1",
        ffn_output="fc2",
        num_heads="num_heads",
        head_size="head_dim",
    ),
    # PatchTST
    _Names(
        attention="self_attn",
        query="self_attn.q_proj",
        key="self_attn.k_proj",
        value="self_attn.v_proj",
        attention_output="self_attn.out_proj",
        ffn_input="ff.0",
        ffn_output="ff.3",
        num_heads="num_heads",
        head_size="head_dim",
    ),
    # Llama, Mistral, Qwen2, Qwen3, SmolLM3
    _Names(
        attention="self_attn",
        query="self_attn.q_proj",
        key="self_attn.k_proj",
        value="self_attn.v_proj",
        attention_output="self_attn.o_proj",
        ffn_input="mlp.up_proj",
        ffn_output="mlp.down_proj",
        num_heads=None,
        head_size="head_dim",
        ffn_gate="mlp.gate_proj",
    ),
    # T5, mT5, UMT5: the encoder and the decoder, without and with a gate
    *(
        _Names(
            attention="layer.0.SelfAttention",
            query="layer.0.SelfAttention.q",
            key="layer.0.SelfAttention.k",
            value="layer.0.SelfAttention.v",
            attention_output="layer.0.SelfAttention.o",
            ffn_input=f"layer.{place}.DenseReluDense.{inner}",
            ffn_output=f"layer.{place}.DenseReluDense.wo",
            num_heads=None,
            head_size="key_value_proj_dim",
            ffn_gate=None if gate is None else f"layer.{place}.DenseReluDense.{gate}",
        )
        for place in (1, 2)
        for inner, gate in (("wi", None), ("wi_1", "wi_0"))
    ),
    # ViT, DeiT, DINOv2, ViViT
    _Names(
        attention="attention",
        query="attention.q_proj",
        key="attention.k_proj",
        value="attention.v_proj",
        attention_output="attention.o_proj",
        ffn_input="mlp.fc1",
        ffn_output="mlp.fc2",
        num_heads="num_attention_heads",
        head_size="head_dim",
    ),
)


@dataclass(frozen=True)
class EncoderLayer:
    """The resizable parts of one layer; all projections are ``nn.Linear``.

    A head is a key and a value with all the queries that read them: one, or, in grouped-query
    attention, several that lie side by side (Ainslie et al., "GQA: Training Generalized Multi-Query
    Transformer Models from Multi-Head Checkpoints", 2023).

    Attributes:
        attention: The module that splits the projections into heads.
        query: (hidden_size -> heads * queries_per_head * head_size)
        key: (hidden_size -> heads * head_size)
        value: (hidden_size -> heads * head_size)
        attention_output: (heads * queries_per_head * head_size -> hidden_size)
        ffn_input: (hidden_size -> ffn_width)
        ffn_output: (ffn_width -> hidden_size)
        num_heads_name: The attribute of ``attention`` that counts the heads, if it has one.
        head_size_name: The attribute of ``attention`` with the width of a head.
        ffn_gate: (hidden_size -> ffn_width), whose activation multiplies what ``ffn_input`` gives;
            None where the feed-forward has no gate.
    """

    attention: Any  # the attributes of attention modules are not typed
    query: nn.Linear
    key: nn.Linear
    value: nn.Linear
    attention_output: nn.Linear
    ffn_input: nn.Linear
    ffn_output: nn.Linear
    num_heads_name: str | None
    head_size_name: str
    ffn_gate: nn.Linear | None = None

    @property
    def head_size(self) -> int:
        """Width of one head."""
        return int(getattr(self.attention, self.head_size_name))

    @property
    def num_heads(self) -> int:
        """Number of heads, from the width of the key projection."""
        return self.key.out_features // self.head_size

    @property
    def queries_per_head(self) -> int:
        """How many queries read the key and the value of a head."""
        return self.query.out_features // self.key.out_features

    @property
    def ffn_inputs(self) -> tuple[nn.Linear, ...]:
        """What gives the neurons of the feed-forward: one projection, or two with a gate."""
        return (self.ffn_input,) if self.ffn_gate is None else (self.ffn_gate, self.ffn_input)

    @property
    def ffn_width(self) -> int:
        """Width of the feed-forward."""
        return self.ffn_input.out_features


def layer_stacks(module: nn.Module) -> tuple[nn.ModuleList, ...]:
    """The list of layers of a transformer; of one with a decoder after its encoder both of `SIDES`.

    Empty where there is none: where several lists are stages between which the width changes, or
    the network is one around a backbone whose sizes are in a config of its own.
    """
    from torch import nn

    config = getattr(module, "config", None)
    if getattr(config, "backbone_config", None) is not None:
        return ()
    found = [
        part
        for part in module.modules()
        if isinstance(part, nn.ModuleList)
        if len(part) and all(_read_layer(layer) is not None for layer in part)
    ]
    # Networks that look for objects have two stacks as well, and no vocabulary.
    writes = getattr(config, "is_encoder_decoder", False) and hasattr(config, "vocab_size")
    return tuple(found) if len(found) == 1 or (writes and len(found) == len(SIDES)) else ()


def encoder_layers(module: nn.Module) -> tuple[EncoderLayer, ...]:
    """The layers of a transformer, the first first; empty where none are known.

    Those of a decoder follow those of the encoder before it.
    """
    found = (_read_layer(layer) for stack in layer_stacks(module) for layer in stack)
    return tuple(layer for layer in found if layer is not None)


def set_head_counts(module: nn.Module, head_size: int) -> None:
    """Make every attention module agree with the width of its projections.

    The scaling of the attention scores depends on the head size, which pruning whole heads keeps
    and which a config (hidden size / heads) no longer tells.
    """
    for layer in encoder_layers(module):
        attention = layer.attention
        if layer.num_heads_name is None:
            continue
        setattr(attention, layer.head_size_name, head_size)
        attention.scaling = head_size**-0.5
        setattr(attention, layer.num_heads_name, layer.query.out_features // head_size)
        if hasattr(attention, "all_head_size"):
            attention.all_head_size = layer.query.out_features


def token_table(module: nn.Module) -> nn.Embedding | None:
    """The embeddings of the tokens; None where a network reads none."""
    from torch import nn

    try:
        found = module.get_input_embeddings()  # type: ignore[operator]
    except NotImplementedError:
        return None
    return found if isinstance(found, nn.Embedding) else None


def _read_layer(layer: nn.Module) -> EncoderLayer | None:
    for names in _FAMILIES:
        try:
            found = EncoderLayer(
                attention=layer.get_submodule(names.attention),
                query=_linear(layer, names.query),
                key=_linear(layer, names.key),
                value=_linear(layer, names.value),
                attention_output=_linear(layer, names.attention_output),
                ffn_input=_linear(layer, names.ffn_input),
                ffn_output=_linear(layer, names.ffn_output),
                num_heads_name=names.num_heads,
                head_size_name=names.head_size,
                ffn_gate=None if names.ffn_gate is None else _linear(layer, names.ffn_gate),
            )
        except AttributeError:
            continue
        # Longformer and ConvBERT name the parts as BERT does, and put others beside them.
        reads_heads = found.attention_output.in_features == found.query.out_features
        if reads_heads and hasattr(found.attention, names.head_size):
            return found
    return None


def _linear(layer: nn.Module, name: str) -> nn.Linear:
    from torch import nn

    part = layer.get_submodule(name)
    if not isinstance(part, nn.Linear):
        raise AttributeError(f"{name} is no linear layer")
    return part
