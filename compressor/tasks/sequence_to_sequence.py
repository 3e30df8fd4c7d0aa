"""What tasks have in common whose models read an input whole and then write a text about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from compressor.checkpoint import read_config
from compressor.errors import CheckpointError, PassError
from compressor.tasks.attention_state import attention_state
from compressor.tasks.base import LABELS, Row, Task, padded
from compressor.tasks.generation_config import (
    GENERATION,
    Writing,
    read_writing,
    write_writing,
)
from compressor.tasks.text_classification import TextClassification
from compressor.tokenizer_files import TARGET, TOKENIZER, read_target_tokenizer, write_tokenizer
from targets.answers import IGNORED, TranscriptAnswers, TranslationAnswers, Units
from targets.answers.written import as_codes
from targets.preprocessing import AnyPreprocessing
from targets.preprocessing.base import DECODER_IDS
from targets.signature import Arrays, Signature, StateSpec, TensorSpec

if TYPE_CHECKING:
    from torch import Tensor, nn

    from compressor.data import LabelField, Split
    from compressor.model import Model, TorchModel
    from compressor.training.augmentation import Material, Noise
    from compressor.training.settings import DistillSettings

__all__ = ["Processor", "SequenceToSequence"]

_EXAMPLE_TOKENS = 5  # another number than those of the inputs
_TEXTS = TextClassification()
"""Reads and writes the tokenizer of the texts that are written."""


@dataclass(frozen=True)
class Processor:
    """What reads the inputs of a model, and what makes text of what it writes.

    Attributes:
        reader: The processor of the inputs; that of the task `SequenceToSequence.source`.
        tokenizer: Of what is written; `transformers.PreTrainedTokenizerFast`.
        writing: How the decoder begins and ends.
        file: Of the tokenizer; another one than that of a reader of texts that has its own.
    """

    reader: Any
    tokenizer: Any
    writing: Writing
    file: str = TOKENIZER


class SequenceToSequence(Task):
    """Transformers with an encoder and a decoder, trained and judged on texts that are given.

    Rows have ``decoder_input_ids``, the tokens up to each that is to be written, and as labels
    those themselves (teacher forcing). Without a text they have what the decoder goes on from.
    """

    source: ClassVar[Task]
    """Reads the inputs."""
    answers: ClassVar[TranscriptAnswers | TranslationAnswers]
    label_field: ClassVar[LabelField] = "target"
    fresh_head: ClassVar[bool] = False
    distillation: ClassVar[Mapping[str, Any]] = MappingProxyType(
        {**Task.distillation, "augmentation": 0.0}
    )
    trains_by_its_measure: ClassVar[bool] = False

    # The processor

    def check_processor(self, folder: Path) -> None:
        """See the base class."""
        self.source.check_processor(folder)
        _TEXTS.check_processor(folder)
        read_writing(folder)

    def load_processor(self, folder: Path) -> Processor:
        """See the base class."""
        self.check_processor(folder)
        reader, writing = self.source.load_processor(folder), read_writing(folder)
        target = read_target_tokenizer(folder)
        if target is not None:
            return Processor(reader, target, writing, file=TARGET)
        config = read_config(folder / "config.json") if (folder / "config.json").is_file() else {}
        if config.get("decoder_vocab_size") not in (None, config.get("vocab_size")):
            raise CheckpointError(
                "the checkpoint reads and writes different tokens, but has only one tokenizer",
                where=folder,
                given=f"{config['vocab_size']} tokens read, {config['decoder_vocab_size']} written",
                fix="copy source.spm, target.spm, vocab.json and target_vocab.json there",
            )
        return Processor(reader, _TEXTS.load_processor(folder), writing)

    def save_processor(self, processor: Processor, folder: Path) -> None:
        """See the base class."""
        self.source.save_processor(processor.reader, folder)
        if processor.file == TOKENIZER:
            _TEXTS.save_processor(processor.tokenizer, folder)
        else:
            write_tokenizer(processor.tokenizer, folder / processor.file)
        write_writing(processor.writing, folder)

    def processor_files(self, folder: Path) -> list[Path]:
        """See the base class."""
        files = (*self.source.processor_files(folder), *_TEXTS.processor_files(folder))
        target = (path for path in [folder / TARGET] if path.is_file())
        return [*dict.fromkeys(files), *target, folder / GENERATION]

    def answers_with(self, processor: Processor) -> TranscriptAnswers | TranslationAnswers:
        """See the base class."""
        writing = processor.writing
        return self.answers.model_copy(
            update={
                "tokenizer": processor.file,
                "end": writing.end,
                "suppressed": writing.suppressed,
                "suppressed_first": writing.suppressed_first,
                "longest": writing.longest,
                "shortest": writing.shortest,
                "no_repeat": writing.no_repeat,
                "forced_end": writing.forced_end,
                "beams": writing.beams,
            }
        )

    def longest(self, folder: Path, processor: Processor) -> int:
        """See the base class."""
        return self.source.longest(folder, processor.reader)

    def is_open(self, folder: Path) -> bool:
        """See the base class: of what is read."""
        return self.source.is_open(folder)

    def read_length(self, folder: Path, *, max_length: int | None = None) -> int:
        """See the base class: of what is read."""
        return self.source.read_length(folder, max_length=max_length)

    def preprocessing(self, folder: Path, max_length: int) -> AnyPreprocessing:
        """See the base class."""
        found = self.source.preprocessing(folder, max_length)
        return found.model_copy(update={"decoder_start": read_writing(folder).start})

    def shortened(self, network: nn.Module, processor: Processor, max_length: int) -> Processor:
        """See the base class."""
        reader = self.source.shortened(network, processor.reader, max_length)
        return replace(processor, reader=reader)

    def with_variable_window(self, processor: Processor, seconds: float) -> Processor:
        """See the base class."""
        reader = self.source.with_variable_window(processor.reader, seconds)
        return replace(processor, reader=reader)

    def shortest(self, model: TorchModel) -> int:
        """See the base class."""
        return self.source.shortest(_reading(model))

    def extent(self, model: TorchModel, length: int) -> int:
        """See the base class."""
        return self.source.extent(_reading(model), length)

    def adopt(self, student: TorchModel, model: TorchModel) -> Processor:
        """See the base class: both write the same tokens."""
        ours: Processor = student.processor
        theirs: Processor = model.processor
        if ours.tokenizer.get_vocab() != theirs.tokenizer.get_vocab():
            raise CheckpointError(
                "it does not write the same tokens as the model",
                where=ours.file,
                given=f"{len(ours.tokenizer)} tokens, where the model has {len(theirs.tokenizer)}",
                fix="take a student with the tokenizer of the model",
            )
        reader = self.source.adopt(_reading(student), _reading(model))
        return replace(theirs, reader=reader)

    # Classes, of which there are none

    def class_names(self, config: Any) -> tuple[str, ...]:
        """See the base class: none."""
        return ()

    def label_names(self, folder: Path) -> tuple[str, ...]:
        """See the base class: none."""
        return ()

    # The network

    def outputs(self, model: TorchModel) -> tuple[TensorSpec, ...]:
        """See the base class: logits of the token after each that the decoder was given."""
        shape = ("batch", "sequence", _num_written(model.module.config))
        return (TensorSpec(name="logits", dtype="float32", shape=shape),)

    def signature(self, model: TorchModel) -> Signature:
        """See the base class: the inputs of the encoder are read once, as the context."""
        read = []
        for spec in self.source.signature(_reading(model)).inputs:
            shape = tuple("source" if dim == "sequence" else dim for dim in spec.shape)
            read.append(spec.model_copy(update={"shape": shape}))
        given = TensorSpec(name=DECODER_IDS, dtype="int64", shape=("batch", "sequence"))
        return Signature(
            inputs=(*read, given),
            outputs=self.outputs(model),
            state=_state(model),
            context=tuple(spec.name for spec in read),
        )

    def example(self, network: nn.Module, processor: Processor) -> dict[str, Tensor]:
        """See the base class."""
        import torch

        found = self.source.example(network, processor.reader)
        rows = len(next(iter(found.values())))
        ids = torch.arange(rows * _EXAMPLE_TOKENS).reshape(rows, -1)
        return {**found, DECODER_IDS: ids % _num_written(network.config)}

    # Rows and batches

    def encode(self, model: Model, inputs: Sequence[Any]) -> list[Row]:
        """See the base class: with what the decoder goes on from."""
        start = list(model.processor.writing.start)
        return [{**row, DECODER_IDS: start} for row in self.source.encode(_reading(model), inputs)]

    def encode_labelled(self, model: Model, split: Split) -> list[dict[str, Any]]:
        """See the base class: the tokens of the text, cut where the decoder ends."""
        processor: Processor = model.processor
        writing, rows = processor.writing, self.source.encode(_reading(model), split.inputs)
        texts = [self.begun(text) for text in split.labels]
        tokens = processor.tokenizer(texts, add_special_tokens=False)["input_ids"]
        start = list(writing.start)
        unjudged = [IGNORED] * (len(start) - 1)
        wanted = ([*each, writing.end][: writing.longest] for each in tokens)
        return [
            {**row, DECODER_IDS: [*start, *each[:-1]], LABELS: [*unjudged, *each]}
            for row, each in zip(rows, wanted, strict=True)
        ]

    def begun(self, text: str) -> str:
        """A text as the model writes it after what the decoder goes on from."""
        return text

    def encode_unlabeled(self, model: Model, inputs: Sequence[Any]) -> list[dict[str, Any]]:
        """See the base class.

        Raises:
            PassError: What is written is learnt from texts.
        """
        raise PassError(
            "a model that writes texts cannot learn from inputs without target texts",
            where=self.name,
            given=f"{len(inputs)} inputs",
            fix="let the untouched model write their texts (compressor predict), and add both to "
            "the training data",
        )

    def collate(self, model: Model, rows: Sequence[Row]) -> Arrays:
        """See the base class."""
        read = self.source.collate(_reading(model), rows)
        return {**read, DECODER_IDS: padded([row[DECODER_IDS] for row in rows], 0)}

    def collate_unanswered(self, model: Model, rows: Sequence[Row]) -> Arrays:
        """See the base class: with what the decoder goes on from."""
        start = list(model.processor.writing.start)
        return self.collate(model, [{**row, DECODER_IDS: start} for row in rows])

    def collate_labels(self, rows: Sequence[Row]) -> NDArray[np.int64]:
        """See the base class: of each token that is to be written.  # (N, longest)"""
        return padded([row[LABELS] for row in rows], IGNORED)

    def length(self, row: Row) -> int:
        """See the base class: in tokens that are written."""
        return len(row[DECODER_IDS])

    def length_read(self, row: Row) -> int:
        """See the base class."""
        return self.source.length(row)

    def num_cut(self, model: TorchModel, inputs: Sequence[Any]) -> int:
        """See the base class."""
        return self.source.num_cut(_reading(model), inputs)

    def probes(self, model: TorchModel, rows: Sequence[Row]) -> Mapping[str, Arrays]:
        """See the base class: those of the inputs, with as many tokens of all kinds as not to be
        told from a real text."""
        tokens = list(dict.fromkeys(token for row in rows for token in row[DECODER_IDS]))
        found = {}
        for number, (what, feeds) in enumerate(self.source.probes(_reading(model), rows).items()):
            shape = (len(next(iter(feeds.values()))), 1 + number % 4)
            found[what] = {**feeds, DECODER_IDS: np.resize(np.array(tokens, np.int64), shape)}
        return found

    def noise(
        self, model: TorchModel, material: Material, settings: DistillSettings, seed: int
    ) -> Noise:
        """See the base class: the inputs change, what is written stays."""
        return self.source.noise(_reading(model), replace(material, inputs=()), settings, seed)

    # Answers

    def judged_rows(
        self, kept: NDArray[Any], rows: Sequence[Row], split: Split, places: NDArray[np.int64]
    ) -> Units:
        """See the base class: the texts."""
        texts = [split.labels[place] for place in places.tolist()]
        return self.answers.judged(kept, as_codes(texts), places)

    def answered(self, outputs: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        """See the base class: every token that is to be written; all, where none is named."""
        if LABELS not in batch:
            return outputs.flatten(0, 1)
        return outputs[batch[LABELS] != IGNORED]

    def evaluated(self, outputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """See the base class: the most probable tokens."""
        return outputs.argmax(dim=-1), labels

    def training_metrics(self, kept: NDArray[Any], labels: NDArray[Any]) -> dict[str, float]:
        """See the base class: the share of tokens that are right after those before them."""
        counted = labels != IGNORED
        return {"accuracy": float((kept == labels)[counted].mean())}

    # Losses

    def loss(
        self, outputs: Tensor, batch: Mapping[str, Tensor], *, label_smoothing: float = 0.0
    ) -> tuple[Tensor, Tensor]:
        """See the base class: cross-entropy of the tokens, in nats."""
        from torch.nn import functional

        labels = batch[LABELS]
        total = functional.cross_entropy(
            outputs.flatten(0, 1),
            labels.flatten(),
            ignore_index=IGNORED,
            label_smoothing=label_smoothing,
            reduction="sum",
        )
        return total, (labels != IGNORED).sum()

    def divergence(
        self,
        student: Tensor,
        teacher: Tensor,
        batch: Mapping[str, Tensor],
        *,
        temperature: float,
    ) -> Tensor:
        """See the base class: that of the tokens."""
        from compressor.training.losses import logits_kl

        return logits_kl(
            self.answered(student, batch), self.answered(teacher, batch), temperature=temperature
        )


def _reading(model: Model) -> Any:
    """The same model for the task that reads its inputs."""
    from compressor.model import TorchModel

    processor: Processor = model.processor
    if isinstance(model, TorchModel):
        return replace(model, processor=processor.reader)
    signature = model.signature
    read = tuple(spec for spec in signature.inputs if spec.name in signature.context)
    signature = signature.model_copy(update={"inputs": read})
    return _Reader(processor.reader, model.max_length, signature)


@dataclass(frozen=True)
class _Reader:
    """What of a model in ONNX form is needed to read its inputs."""

    processor: Any
    max_length: int
    signature: Signature


def _num_written(config: Any) -> int:
    """Tokens that a model may write; Marian may have a vocabulary of its own for them."""
    return int(getattr(config, "decoder_vocab_size", None) or config.vocab_size)


def _state(model: TorchModel) -> tuple[StateSpec, ...]:
    """The keys and values of the self-attention of each layer of the decoder."""
    import torch

    module: Any = model.module
    with torch.no_grad():
        states = torch.zeros((1, 1, module.config.hidden_size))
        ids = torch.zeros((1, 1), dtype=torch.long)
        found = module(encoder_outputs=(states,), decoder_input_ids=ids, use_cache=True)
    return attention_state(found.past_key_values.self_attention_cache.layers)
