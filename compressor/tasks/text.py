"""What tasks have in common whose models read texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from compressor.architecture import Architecture
from compressor.errors import CheckpointError
from compressor.tasks.base import Row, Task
from compressor.tokenizer_files import (
    TOKENIZER,
    check_tokenizer,
    read_tokenizer,
    write_tokenizer,
)
from targets.encoder import token_table
from targets.preprocessing import Preprocessing, TextPreprocessing
from targets.preprocessing.text import IDS, MASK
from targets.signature import Arrays, Signature, TensorSpec

if TYPE_CHECKING:
    from torch import Tensor, nn

    from compressor.data import Kind
    from compressor.model import Model, TorchModel
    from compressor.training.augmentation import Material, TokenNoise
    from compressor.training.settings import DistillSettings

__all__ = ["TextTask", "text_rows"]

NUM_SINGLE = 3
"""Real texts that are compared one by one."""
_EXAMPLE_SHAPE = (2, 8)  # a size of 1 would be taken for a fixed one
_FILES = (TOKENIZER, "tokenizer_config.json", "special_tokens_map.json")


class TextTask(Task):
    """Reads texts with a tokenizer."""

    kind: ClassVar[Kind] = "text"
    preprocessing_type: ClassVar[type[Preprocessing]] = TextPreprocessing
    reads_stretches: ClassVar[bool] = False
    """Whether any stretch of a text is as much an input as its beginning."""

    def check_processor(self, folder: Path) -> None:
        """See the base class."""
        check_tokenizer(folder)

    def load_processor(self, folder: Path) -> Any:
        """See the base class."""
        return read_tokenizer(folder)

    def check_fit(self, network: nn.Module, processor: Any) -> None:
        """See the base class: each token has an embedding."""
        table = token_table(network)
        size = max(processor.get_vocab().values(), default=-1) + 1
        if table is not None and size > table.num_embeddings:
            raise CheckpointError(
                "the tokenizer has tokens that the network has no embeddings for",
                where=type(network).__name__,
                given=f"{size} tokens, {table.num_embeddings} embeddings",
                fix="copy the tokenizer that belongs to the network; if tokens were added, call "
                "model.resize_token_embeddings(len(tokenizer)) and save the model",
            )

    def save_processor(self, processor: Any, folder: Path) -> None:
        """See the base class: without what its last call left in it, padding and truncation."""
        processor.save_pretrained(folder)
        write_tokenizer(processor, folder / TOKENIZER)

    def processor_files(self, folder: Path) -> list[Path]:
        """See the base class."""
        return [folder / name for name in _FILES if (folder / name).is_file()]

    def longest(self, folder: Path, processor: Any) -> int:
        """See the base class."""
        return Architecture.read(folder).max_positions

    def is_open(self, folder: Path) -> bool:
        """See the base class."""
        return Architecture.read(folder).has_open_positions

    def preprocessing(self, folder: Path, max_length: int) -> TextPreprocessing:
        """See the base class."""
        processor = self.load_processor(folder)
        return TextPreprocessing(
            max_length=max_length,
            pad_token_id=int(processor.pad_token_id or 0),
            truncation_side=processor.truncation_side,
        )

    def signature(self, model: TorchModel) -> Signature:
        """See the base class."""
        free: tuple[int | str, ...] = ("batch", "sequence")
        return Signature(
            inputs=tuple(TensorSpec(name=name, dtype="int64", shape=free) for name in (IDS, MASK)),
            outputs=self.outputs(model),
        )

    def example(self, network: nn.Module, processor: Any) -> dict[str, Tensor]:
        """See the base class: token ids and a mask, with a padded row."""
        import torch

        config: Any = network.config
        pad = config.pad_token_id or 0
        rows, length = _EXAMPLE_SHAPE
        usable = [token for token in range(config.vocab_size) if token != pad][: rows * length]
        ids = torch.tensor(usable * (rows * length))[: rows * length].reshape(rows, length)
        mask = torch.ones_like(ids)
        mask[-1, length // 2 :] = 0
        ids[mask == 0] = pad
        return {IDS: ids, MASK: mask}

    def adopt(self, student: TorchModel, model: TorchModel) -> Any:
        """See the base class: its own tokens, which distillation matches by their text."""
        return student.processor

    def encode(self, model: Model, inputs: Sequence[Any]) -> list[Row]:
        """See the base class: lists of token ids and their mask."""
        return text_rows(self.tokenized(model, inputs))

    def tokenized(self, model: Model, inputs: Sequence[Any]) -> Any:
        """What the tokenizer of a model makes of texts, cut at its longest input."""
        return model.processor(
            list(inputs),
            truncation=True,
            max_length=model.max_length,
            return_token_type_ids=False,
        )

    def collate(self, model: Model, rows: Sequence[Row]) -> Arrays:
        """See the base class.  # (N, longest) int64"""
        longest = max(map(self.length, rows))
        pad = model.processor.pad_token_id
        batch: Arrays = {
            IDS: np.full((len(rows), longest), 0 if pad is None else pad, np.int64),
            MASK: np.zeros((len(rows), longest), np.int64),
        }
        for index, row in enumerate(rows):
            for name, array in batch.items():
                array[index, : len(row[name])] = row[name]
        return batch

    def length(self, row: Row) -> int:
        """See the base class."""
        return len(row[IDS])

    def num_cut(self, model: TorchModel, inputs: Sequence[Any]) -> int:
        """See the base class."""
        return len(_uncut(model, inputs))

    def probes(self, model: TorchModel, rows: Sequence[Row]) -> Mapping[str, Arrays]:
        """See the base class: short and long, with and without padding."""
        longest = _repeated(max(rows, key=self.length), model.max_length)
        shortest = _repeated(min(rows, key=self.length), 1)
        empty = self.collate(model, rows[:2] if len(rows) > 1 else [rows[0], rows[0]])
        empty[MASK][-1] = 0
        several = {
            **{
                f"one text, number {number + 1}": [row]
                for number, row in enumerate(rows[:NUM_SINGLE])
            },
            "one token": [shortest],
            "several texts": rows,
            "the longest input beside one token": [longest, shortest],
        }
        batches = {what: self.collate(model, each) for what, each in several.items()}
        batches["a row of padding only"] = empty
        return {
            "{}: batch {} x {} tokens".format(what, *batch[IDS].shape): batch
            for what, batch in batches.items()
        }

    def noise(
        self, model: TorchModel, material: Material, settings: DistillSettings, seed: int
    ) -> TokenNoise:
        """See the base class."""
        from compressor.training.augmentation import TokenNoise, nearest_tokens

        nearest = None
        table = token_table(model.module)
        if settings.augmentation_neighbours and settings.augmentation and table is not None:
            weights = table.weight.detach().float().cpu().numpy()
            nearest = nearest_tokens(
                weights,
                material.rows,
                settings.augmentation_neighbours,
                special_ids=model.processor.all_special_ids,
            )
        windows = settings.augmentation_windows if self.reads_stretches else 0.0
        return TokenNoise(
            material.rows,
            share=settings.augmentation or 0.0,
            mixup=settings.augmentation_mixup,
            windows=windows,
            uncut=_uncut(model, material.inputs) if windows else {},
            copies=settings.augmentation_copies,
            special_ids=model.processor.all_special_ids,
            unknown_id=model.processor.unk_token_id,
            nearest=nearest,
            seed=seed,
        )


def text_rows(tokenized: Any) -> list[Row]:
    """Rows out of what a tokenizer made of texts."""
    return [
        {IDS: ids, MASK: mask}
        for ids, mask in zip(tokenized["input_ids"], tokenized["attention_mask"], strict=True)
    ]


def _uncut(model: TorchModel, inputs: Sequence[Any]) -> dict[int, list[int]]:
    """All tokens of those texts that are longer than the model's longest input, by their place."""
    if not inputs:
        return {}  # the tokenizer takes no empty list
    encoded = model.processor(list(inputs), truncation=False, verbose=False)["input_ids"]
    return {place: ids for place, ids in enumerate(encoded) if len(ids) > model.max_length}


def _repeated(row: Row, length: int) -> Row:
    """The row cut to, or repeated up to, a length."""
    times = -(-length // len(row[IDS]))
    return {name: (values * times)[:length] for name, values in row.items()}
