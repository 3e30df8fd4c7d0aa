"""Keep the tokens that the data needs; the embedding table shrinks with the vocabulary."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

from pydantic import Field

from compressor.errors import PassError
from compressor.passes.base import Advice, Goal, Pass, PassContext, PassResult
from targets.base import Form

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from compressor.architecture import Architecture
    from compressor.model import Model, TorchModel

__all__ = ["TrimVocabulary"]

_NUM_COMPARED_TEXTS = 32  # the tables are compared bit for bit; this only shows it end to end


class TrimVocabulary(Pass):
    """Drop the tokens that the training data does not use; text of kept tokens is not changed.

    Kept are the tokens of the training texts, the beginning of the vocabulary, where the frequent
    tokens are, all special tokens, and the single characters of the training texts and of ASCII.
    Other text falls apart into shorter tokens, not into unknown ones. The size of the vocabulary
    depends on the data, so a plan shows it as it was.
    """

    name: ClassVar[str] = "trim_vocabulary"
    consumes: ClassVar[Form] = "torch"
    produces: ClassVar[Form] = "torch"
    paper: ClassVar[str] = (
        "Abdaoui et al., Load What You Need: Smaller Versions of Multilingual BERT, "
        "SustaiNLP 2020 (arXiv 2010.05609)"
    )
    libraries: ClassVar[tuple[str, ...]] = ("torch", "transformers", "tokenizers")
    advice: ClassVar[Mapping[Goal, Advice]] = {
        "accuracy": Advice(used="a larger keep_first for trim_vocabulary"),
        "size": Advice(absent="trim_vocabulary"),
    }

    keep_first: int = Field(default=10_000, ge=0)
    """Keep this many tokens from the beginning of the vocabulary, whatever the data. It is for
    words that the training data happens to lack: 0 keeps only what it has."""
    min_count: int = Field(default=1, ge=1)
    """Keep a token from this many occurrences in the training texts on."""
    max_tokens: int | None = Field(default=None, ge=1)
    """Keep no more than this many tokens, those that are the most frequent in the training texts.
    Special tokens and single characters stay, and of byte-pair encodings the parts of what stays;
    they may be more. None: no limit."""
    extra_text: tuple[Path, ...] = ()
    """UTF-8 text files; their tokens are kept too, such as those of unlabelled text from use."""
    keep_all_characters: bool = False
    """Keep the single characters of all scripts, not only those of the training texts and ASCII."""

    @classmethod
    def unsuited(cls, architecture: Architecture) -> str | None:
        """See the base class."""
        if architecture.is_decoder or architecture.writes:
            return "it writes text, so any token may be needed"
        return None if architecture.vocabulary_size else "it reads no tokens"

    @property
    def input_files(self) -> tuple[Path, ...]:
        """See the base class."""
        return self.extra_text

    def requires(self, model: Model, context: PassContext) -> None:
        """See the base class."""
        missing = [path for path in self.extra_text if not path.is_file()]
        if missing:
            raise PassError(
                "extra_text names files that do not exist",
                where=self.name,
                given=", ".join(map(str, missing)),
                fix="correct the paths in the recipe",
            )

    def run(self, model: TorchModel, context: PassContext) -> PassResult:
        """See the base class."""
        from dataclasses import replace

        from compressor.embeddings import trim_embeddings
        from compressor.tokenizer_json import trim_tokenizer
        from compressor.vocabulary import changed_tokenization_rate, unknown_token_rate

        kept = self.choose(model, context.splits.train.inputs)
        trimmed = model.clone()
        trim_embeddings(trimmed.module, kept)
        tokenizer = trim_tokenizer(model.processor, kept)
        trimmed = replace(trimmed, processor=tokenizer)
        texts = context.splits.validation.inputs
        changed = changed_tokenization_rate(model.processor, tokenizer, texts)
        saved = 4 * (model.num_parameters - trimmed.num_parameters)  # float32
        before = len(model.processor)
        return PassResult(
            model=trimmed,
            metrics={
                "num_tokens_before": float(before),
                "num_tokens": float(len(kept)),
                "saved_bytes": float(saved),
                "validation_unknown_rate_before": unknown_token_rate(model.processor, texts),
                "validation_unknown_rate": unknown_token_rate(tokenizer, texts),
                "validation_changed_rate": changed,
            },
            notes=(
                f"{len(kept)} of {before} tokens kept, {saved / 1e6:.1f} MB of float32 saved",
                f"{changed:.1%} of the validation texts contain a removed token "
                "and are split differently",
            ),
        )

    def ensures(self, model: Model, result: PassResult, context: PassContext) -> None:
        """See the base class. Covered text must get the same tokens, rows and outputs."""
        from compressor.vocabulary import covered_texts, kept_tokens

        before, after = cast("TorchModel", model), cast("TorchModel", result.model)
        kept = kept_tokens(before.processor, after.processor)
        _check_weights(before, after, kept)
        texts = [*context.splits.train.inputs, *context.splits.validation.inputs]
        covered, wrong = covered_texts(before.processor, after.processor, kept, texts)
        if wrong:
            raise PassError(
                "a text that has only kept tokens is split differently",
                where=f"text {wrong[0]!r}",
                given=f"{len(wrong)} such texts",
                fix="report the tokenizer; leave this pass out",
            )
        _check_outputs(before, after, covered[:: max(1, len(covered) // _NUM_COMPARED_TEXTS)])

    def choose(self, model: TorchModel, texts: Sequence[Any]) -> NDArray[np.int64]:
        """Ids of the tokens to keep, sorted.

        Args:
            model: Its tokenizer is asked, and which rows of its table must stay.
            texts: Those of the training data.
        """
        import numpy as np

        from compressor.embeddings import rows_that_stay
        from compressor.vocabulary import count_tokens, select_tokens

        counts = count_tokens(model.processor, texts)
        extra = count_tokens(model.processor, self._extra_lines())
        # What is in there is kept however rare.
        counts += np.where(extra > 0, np.maximum(extra, self.min_count), 0)
        chosen = select_tokens(
            model.processor,
            counts,
            min_count=self.min_count,
            keep_first=self.keep_first,
            max_tokens=self.max_tokens,
            all_characters=self.keep_all_characters,
        )
        fixed = np.array(rows_that_stay(model.module), np.int64)
        return np.union1d(chosen, fixed[fixed < len(counts)])

    def _extra_lines(self) -> Iterator[str]:
        for path in self.extra_text:
            try:
                yield from path.read_text(encoding="utf-8").splitlines()
            except (OSError, UnicodeError) as error:
                raise PassError(
                    "extra_text cannot be read", where=path, given=error, fix="save it as UTF-8"
                ) from error


def _check_weights(before: TorchModel, after: TorchModel, kept: NDArray[np.int64]) -> None:
    """Every weight is the old one, or the kept rows of the old one, bit for bit."""
    import torch

    rows = torch.from_numpy(kept)
    old = before.module.state_dict()
    for name, tensor in after.module.state_dict().items():
        wanted = old[name] if old[name].shape == tensor.shape else old[name][rows]
        if not torch.equal(wanted, tensor):
            raise PassError(
                "a weight that should have stayed the same was changed",
                where=name,
                fix="report the model; leave this pass out",
            )


def _check_outputs(before: TorchModel, after: TorchModel, texts: list[str]) -> None:
    """Covered texts give the same outputs, bit for bit."""
    import torch

    from compressor.tasks import get_task

    if not texts:
        return
    outputs = []
    for model in (before, after):
        task = get_task(model.task)
        batch = task.collate(model, task.encode(model, texts))
        feeds = {name: torch.from_numpy(array) for name, array in batch.items()}
        with torch.no_grad():
            outputs.append(model.module(**feeds)[0])
    if not torch.equal(*outputs):
        difference = (outputs[0] - outputs[1]).abs().max().item()
        raise PassError(
            "the outputs for texts that have only kept tokens have changed",
            given=f"largest difference {difference:.2g}",
            fix="report the model; leave this pass out",
        )
