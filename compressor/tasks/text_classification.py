"""Text classification: one label out of several for a text."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from compressor.architecture import Architecture
from compressor.errors import CheckpointError
from compressor.tasks.base import Task
from targets.predictor import softmax
from targets.signature import Signature, TensorSpec

if TYPE_CHECKING:
    from compressor.model import Model, TorchModel

__all__ = ["TextClassification"]


_USUAL_TOKENS = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}

# These families count positions from the id of the padding token on, not from 0.
_POSITIONS_FROM_PADDING = ("roberta", "xlm-roberta", "camembert", "xlm-roberta-xl")


class TextClassification(Task):
    """Sequence classification with a transformer encoder."""

    name: ClassVar[str] = "text-classification"
    head: ClassVar[str] = "ForSequenceClassification"

    def load_checkpoint(self, folder: Path, *, max_length: int | None = None) -> TorchModel:
        """See the base class."""
        from compressor.checkpoint import check_checkpoint, check_weights
        from compressor.model import TorchModel
        from targets.checkpoint import load_module

        check_checkpoint(folder, head=self.head)
        check_weights(folder)
        limit = Architecture.read(folder).max_positions
        return TorchModel(
            module=load_module(folder, self.name),
            tokenizer=self.load_tokenizer(folder),
            task=self.name,
            max_length=min(max_length or limit, limit),
        )

    def check_tokenizer(self, folder: Path) -> None:
        """See the base class."""
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise CheckpointError(
                "the checkpoint has no fast tokenizer",
                where=path,
                fix="save it with AutoTokenizer.from_pretrained(..., use_fast=True)"
                ".save_pretrained(folder)",
            )

    def load_tokenizer(self, folder: Path) -> Any:
        """See the base class."""
        from tokenizers import Tokenizer
        from transformers import PreTrainedTokenizerFast

        self.check_tokenizer(folder)
        path = folder / "tokenizer.json"
        vocabulary = Tokenizer.from_file(str(path))
        # The generic class reads exactly tokenizer.json: no model-specific code, no hub. A special
        # token that the vocabulary lacks would be added to it, beyond the rows of the model.
        special = {
            role: token
            for role, token in (_USUAL_TOKENS | _configured_tokens(folder)).items()
            if vocabulary.token_to_id(token) is not None
        }
        return PreTrainedTokenizerFast(tokenizer_file=str(path), **special)

    def signature(self, model: TorchModel) -> Signature:
        """See the base class."""
        free: tuple[int | str, ...] = ("batch", "sequence")
        names = ("input_ids", "attention_mask")
        return Signature(
            inputs=tuple(TensorSpec(name=name, dtype="int64", shape=free) for name in names),
            outputs=(
                TensorSpec(name="logits", dtype="float32", shape=("batch", len(model.labels))),
            ),
        )

    def encode(self, model: Model, texts: Sequence[str]) -> list[dict[str, list[int]]]:
        """See the base class."""
        encoded = model.tokenizer(
            list(texts),
            truncation=True,
            max_length=model.max_length,
            return_token_type_ids=False,
        )
        return [
            {"input_ids": ids, "attention_mask": mask}
            for ids, mask in zip(encoded["input_ids"], encoded["attention_mask"], strict=True)
        ]

    def collate(
        self, model: Model, rows: Sequence[dict[str, list[int]]]
    ) -> dict[str, NDArray[np.int64]]:
        """See the base class."""
        longest = max(len(row["input_ids"]) for row in rows)
        pad = model.tokenizer.pad_token_id
        batch = {
            "input_ids": np.full((len(rows), longest), 0 if pad is None else pad, np.int64),
            "attention_mask": np.zeros((len(rows), longest), np.int64),
        }
        for index, row in enumerate(rows):
            for name, array in batch.items():
                array[index, : len(row[name])] = row[name]
        return batch

    def predictions(self, outputs: NDArray[np.floating]) -> NDArray[np.int64]:
        """See the base class."""
        return np.asarray(np.asarray(outputs).argmax(axis=-1), dtype=np.int64)

    def probabilities(self, outputs: NDArray[np.floating]) -> NDArray[np.float64]:
        """See the base class."""
        return softmax(np.asarray(outputs, dtype=np.float64))


def _configured_tokens(folder: Path) -> dict[str, str]:
    """The special tokens that a checkpoint names: role -> token."""
    found: dict[str, str] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        try:
            config = json.loads((folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        for role, value in config.items():
            token = value.get("content") if isinstance(value, dict) else value
            if role.endswith("_token") and isinstance(token, str):
                found[role] = token
    return found
