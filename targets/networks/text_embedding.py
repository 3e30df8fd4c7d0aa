"""Encoders of texts that give one vector a text: those of transformers, with their pooling inside.

They are classes of transformers of the same name and with the same weights, so that transformers
reads what they write. How they pool stands in the config, as ``embedding_pooling`` and
``embedding_normalize``; where it does not, what the files of the sentence-transformers library
beside it say counts, and else the mean over all tokens, normalized (Reimers and Gurevych,
"Sentence-BERT: Sentence Embeddings using Siamese BERT-Networks", 2019).
"""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import transformers
from torch import Tensor
from transformers import AutoConfig
from transformers.utils import ModelOutput

from targets.errors import CheckpointError

__all__ = ["AutoModelForTextEmbedding", "EmbeddingOutput", "Pooling", "embedder", "read_pooling"]

MODULES = "modules.json"
_TRANSFORMER, _POOLING, _NORMALIZE = "Transformer", "Pooling", "Normalize"
_LEAST_NORM = 1e-4  # unlike a smaller one it stays above 0 in float16


class Pooling(NamedTuple):
    """What becomes of the last hidden states of a text."""

    mode: str
    """``mean`` over the tokens, or ``cls``: that of the first token."""
    normalize: bool
    """Whether embeddings get the length 1."""


@dataclass
class EmbeddingOutput(ModelOutput):  # type: ignore[misc]  # transformers has no types
    """What an encoder gives.

    Attributes:
        embeddings: (N, hidden size)
        hidden_states: As of the network that it is made of.
    """

    embeddings: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None


class AutoModelForTextEmbedding:
    """Loads encoders, as the Auto classes of transformers load other networks."""

    @classmethod
    def from_pretrained(cls, folder: Path, **options: Any) -> Any:
        """Read a checkpoint folder.

        Args:
            folder: A bare encoder, with or without the files of sentence-transformers.
            options: Of ``from_pretrained`` of transformers.

        Raises:
            CheckpointError: Its pooling is none that is known.
        """
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        if getattr(config, "embedding_pooling", None) is None:
            config.embedding_pooling, config.embedding_normalize = read_pooling(Path(folder))
        del options["trust_remote_code"]  # the class is known
        return _class_for(config).from_pretrained(folder, config=config, **options)

    @classmethod
    def from_config(cls, config: Any, *, trust_remote_code: bool = False, **options: Any) -> Any:
        """Make a network without weights; its config says how it pools."""
        return _class_for(config)._from_config(config, **options)


def _class_for(config: Any) -> Any:
    return embedder(transformers.AutoModel._model_mapping[type(config)].__name__)


@functools.cache
def embedder(name: str) -> type:
    """A class of transformers without a head, such as ``BertModel``, that pools what it gives."""
    base: Any = getattr(transformers, name)
    has_pooler = "add_pooling_layer" in inspect.signature(base.__init__).parameters

    class Embedder(base):  # type: ignore[misc]  # transformers has no types
        # Of the pooler that some have for classes nothing is used here.
        _keys_to_ignore_on_load_unexpected: ClassVar[list[str]] = [r"(^|\.)pooler\."]

        def __init__(self, config: Any) -> None:
            super().__init__(config, **({"add_pooling_layer": False} if has_pooler else {}))

        @functools.wraps(base.forward)
        def forward(
            self, input_ids: Tensor, attention_mask: Tensor, **options: Any
        ) -> EmbeddingOutput:
            outputs = super().forward(input_ids, attention_mask=attention_mask, **options)
            return EmbeddingOutput(
                embeddings=_pooled(outputs.last_hidden_state, attention_mask, self.config),
                hidden_states=outputs.get("hidden_states"),
            )

    Embedder.__name__ = Embedder.__qualname__ = name
    return Embedder


def __getattr__(name: str) -> type:
    """The classes by their names, so that networks can be sent to other processes."""
    if name.startswith("__") or not hasattr(transformers, name):
        raise AttributeError(name)
    return embedder(name)


def _pooled(states: Tensor, mask: Tensor, config: Any) -> Tensor:
    """The embeddings of the texts of a batch, (N, d).

    Args:
        states: (N, L, d)
        mask: (N, L), 1 for a token and 0 for padding; or (N, 1, 1, L) as attention adds it to its
            scores, 0 for a token and less for padding.
        config: Says how.
    """
    if config.embedding_pooling == "cls":
        pooled = states[:, 0]
    else:
        tokens = mask != 0 if mask.dim() == 2 else mask[:, 0, 0] == 0
        weights = tokens.to(states.dtype)[:, :, None]
        pooled = (states * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)
    if config.embedding_normalize:
        pooled = pooled / pooled.norm(dim=-1, keepdim=True).clamp(min=_LEAST_NORM)
    return pooled


def read_pooling(folder: Path) -> Pooling:
    """How the files of sentence-transformers in a folder say that texts are pooled.

    Args:
        folder: Without a ``modules.json``, the mean of all tokens is normalized.

    Raises:
        CheckpointError: They cannot be read, or ask for something else than the mean or the first
            token, and a normalization.
    """
    path = folder / MODULES
    if not path.is_file():
        return Pooling("mean", normalize=True)
    mode = None
    normalize = False
    for module in _read_json(path, list):
        kind = str(module.get("type")).rpartition(".")[2] if isinstance(module, Mapping) else module
        if kind == _TRANSFORMER and not module.get("path"):
            continue
        if kind == _POOLING and mode is None:
            mode = _mode(folder / str(module.get("path")) / "config.json")
        elif kind == _NORMALIZE and mode is not None:
            normalize = True
        else:
            raise CheckpointError(
                "the checkpoint computes its embeddings in a way that is not known",
                where=path,
                given=module,
                fix="pass one that has a Transformer in the folder itself, a Pooling, and "
                "optionally a Normalize, in this order",
            )
    if mode is None:
        raise CheckpointError(
            "the checkpoint does not say how it pools",
            where=path,
            given="no module Pooling",
            fix=f"save it with its Pooling, or leave {MODULES} out: the mean is then used",
        )
    return Pooling(mode, normalize)


def _mode(path: Path) -> str:
    """``mean`` or ``cls``, as the config of a pooling says."""
    config = _read_json(path, dict)
    names = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}
    asked = [name for name, value in config.items() if name.startswith("pooling_mode_") and value]
    if isinstance(config.get("pooling_mode"), str):  # as version 5 of the library writes it
        asked = [f"pooling_mode_{config['pooling_mode']}"]
        names |= {"pooling_mode_mean": "mean", "pooling_mode_cls": "cls"}
    if len(asked) != 1 or asked[0] not in names:
        raise CheckpointError(
            "the checkpoint pools its hidden states in a way that is not known",
            where=path,
            given=", ".join(asked) or "no pooling_mode",
            fix="pass one that takes the mean of all tokens, or the first one (cls)",
        )
    return names[asked[0]]


def _read_json(path: Path, kind: type) -> Any:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            "a file of sentence-transformers in the checkpoint cannot be read",
            where=path,
            given=error,
            fix="copy the whole folder again",
        ) from error
    if not isinstance(found, kind):
        raise CheckpointError(
            "a file of sentence-transformers in the checkpoint has an unexpected form",
            where=path,
            given=type(found).__name__,
            fix="copy the whole folder again",
        )
    return found
