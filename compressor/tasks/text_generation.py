"""Text generation: how a text goes on, token by token."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from compressor.errors import CheckpointError, PassError
from compressor.tasks.attention_state import attention_state
from compressor.tasks.base import LABELS, Row, Task
from compressor.tasks.generation_config import GENERATION, read_ends, write_ends
from compressor.tasks.token_level import TokenLevel
from targets.answers import IGNORED, NextTokenAnswers, Units
from targets.answers.next_token import next_tokens
from targets.chat import CHAT_TEMPLATE
from targets.preprocessing.text import IDS, MASK
from targets.scoring import perplexity
from targets.signature import TOTAL, Arrays, Signature, TensorSpec

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from compressor.data import LabelField, Split
    from compressor.model import Model, TorchModel
    from compressor.report.schema import Comparison

__all__ = ["TextGeneration"]

USUAL_LENGTH = 512
"""Longest text in tokens where none is asked for: the scores of every token of the vocabulary at
each of its tokens have to fit in memory."""
_LONGEST_PROBE = 128


class TextGeneration(TokenLevel):
    """Causal language models: transformers that see what stands before a token only.

    A text is its own label: at each token the one that follows.
    """

    name: ClassVar[str] = "text-generation"
    heads: ClassVar[tuple[str, ...]] = ("ForCausalLM", "LMHeadModel")
    answers: ClassVar[NextTokenAnswers] = NextTokenAnswers()
    metrics: ClassVar[Collection[str]] = ()
    not_compared: ClassVar[frozenset[str]] = Task.not_compared - {"max_perplexity_rise"}
    label_field: ClassVar[LabelField] = "text"
    fresh_head: ClassVar[bool] = False
    distillation: ClassVar[Mapping[str, Any]] = MappingProxyType(
        {**Task.distillation, "augmentation": 0.0}
    )
    keeps_state: ClassVar[bool] = True
    trained_for: ClassVar[Literal["accuracy", "perplexity"]] = "perplexity"

    def load_checkpoint(self, folder: Path, *, max_length: int | None = None) -> TorchModel:
        """See the base class; the length is one to judge texts by, and may be below the limit."""
        return super().load_checkpoint(folder, max_length=max_length or USUAL_LENGTH)

    def read_length(self, folder: Path, *, max_length: int | None = None) -> int:
        """See the base class: as it is loaded."""
        return super().read_length(folder, max_length=max_length or USUAL_LENGTH)

    def check_fit(self, network: nn.Module, processor: Any) -> None:
        """See the base class; and it does not see the tokens that it is to predict."""
        super().check_fit(network, processor)
        import torch

        texts = torch.tensor([[1, 2, 3], [1, 2, 4]]) % network.config.vocab_size  # type: ignore[union-attr,operator]
        with torch.no_grad():
            before = network(input_ids=texts, attention_mask=torch.ones_like(texts)).logits[:, :2]
        if not torch.allclose(before[0], before[1], rtol=1e-3, atol=1e-4):
            raise CheckpointError(
                "the network sees the tokens that it is to predict",
                where=type(network).__name__,
                given="outputs that change with the token after them",
                fix="use a causal language model; for BERT and the like set is_decoder in "
                "config.json, if it was trained so",
            )

    def load_processor(self, folder: Path) -> Any:
        """See the base class: with the chat template, where there is one, and ``ends``.

        Those are the tokens that end what the model writes.
        """
        processor = super().load_processor(folder)
        processor.chat_template = _chat_template(folder)
        processor.ends = read_ends(folder)
        return processor

    def save_processor(self, processor: Any, folder: Path) -> None:
        """See the base class."""
        super().save_processor(processor, folder)
        write_ends(_ends(processor), folder)

    def processor_files(self, folder: Path) -> list[Path]:
        """See the base class."""
        own = (folder / name for name in (CHAT_TEMPLATE, GENERATION))
        return [*super().processor_files(folder), *(path for path in own if path.is_file())]

    def answers_with(self, processor: Any) -> NextTokenAnswers:
        """See the base class."""
        return self.answers.model_copy(update={"ends": _ends(processor)})

    def class_names(self, config: Any) -> tuple[str, ...]:
        """See the base class: tokens are no classes that the data names."""
        return ()

    def label_names(self, folder: Path) -> tuple[str, ...]:
        """See the base class."""
        return ()

    def outputs(self, model: TorchModel) -> tuple[TensorSpec, ...]:
        """See the base class: logits of the token after each."""
        config: Any = model.module.config
        shape = ("batch", "sequence", config.vocab_size)
        return (TensorSpec(name="logits", dtype="float32", shape=shape),)

    def with_state(self, model: TorchModel, signature: Signature) -> Signature:
        """See the base class: the keys and values of each layer, as the network keeps them."""
        import torch

        module: Any = model.module
        with torch.no_grad():
            ids = torch.zeros((1, 1), dtype=torch.long)
            kept = getattr(module(input_ids=ids, use_cache=True), "past_key_values", None)
        layers = getattr(kept, "layers", None) or [None]
        if any(getattr(layer, "keys", None) is None for layer in layers):
            raise PassError(
                "the network keeps something other than keys and values from token to token",
                where="export.cache",
                given=f"model_type {module.config.model_type}",
                fix="set cache: false in the pass export: its perplexity can be measured, and each "
                "token that it writes costs a run over the whole text",
            )
        mask = TensorSpec(name=MASK, dtype="int64", shape=("batch", TOTAL))
        inputs = tuple(mask if each.name == MASK else each for each in signature.inputs)
        return signature.model_copy(update={"inputs": inputs, "state": attention_state(layers)})

    def encode_labelled(self, model: Model, split: Split) -> list[dict[str, Any]]:
        """See the base class: each token is the label of the one before it."""
        rows = self.encode(model, split.inputs)
        return [{**row, LABELS: next_tokens(row[IDS]).tolist()} for row in rows]

    def evaluated(self, outputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """See the base class: what `NextTokenAnswers.reduced` keeps."""
        from torch import stack
        from torch.nn import functional

        losses = functional.cross_entropy(
            outputs.float().flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="none"
        )
        kept = (outputs.argmax(dim=-1).float(), losses.view(labels.shape))
        return stack(kept, dim=-1), labels

    def training_metrics(self, kept: NDArray[Any], labels: NDArray[Any]) -> dict[str, float]:
        """See the base class."""
        judged = self.answers.judged(kept, labels)
        assert judged.losses is not None
        return {
            "accuracy": self.answers.overall(judged),
            "perplexity": perplexity(judged.losses),
        }

    def compare(
        self,
        reference: Units,
        candidate: Units,
        *,
        label_names: Sequence[str],
        slices: Mapping[str, Sequence[str]],
    ) -> Comparison:
        """See the base class: the perplexity as well."""
        from compressor.evaluation import paired_perplexity

        compared = super().compare(reference, candidate, label_names=label_names, slices=slices)
        assert reference.losses is not None
        assert candidate.losses is not None
        found = paired_perplexity(reference.losses, candidate.losses, candidate.rows)
        return compared.model_copy(update={"perplexity": found})

    def probes(self, model: TorchModel, rows: Sequence[Row]) -> Mapping[str, Arrays]:
        """See the base class; no longer than fits in memory with the scores of a vocabulary."""
        length = min(model.max_length, _LONGEST_PROBE)
        few = rows[: self.answers.rows_at_once]
        cut = [{name: values[:length] for name, values in row.items()} for row in few]
        return super().probes(replace(model, max_length=length), cut)


def _ends(processor: Any) -> tuple[int, ...]:
    """The tokens that end what a model writes, that of its tokenizer the last."""
    own = processor.eos_token_id
    found = (*getattr(processor, "ends", ()), *(() if own is None else (own,)))
    return tuple(dict.fromkeys(found))


def _chat_template(folder: Path) -> str | None:
    """The Jinja template of a checkpoint's chats, which stands by itself or in a config."""
    try:
        return (folder / CHAT_TEMPLATE).read_text(encoding="utf-8")
    except OSError:
        pass
    try:
        config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    found = config.get("chat_template")
    if isinstance(found, list):  # several with a name each
        found = {each["name"]: each["template"] for each in found}.get("default")
    return found if isinstance(found, str) else None
