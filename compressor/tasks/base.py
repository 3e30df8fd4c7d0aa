"""What every task offers: how its models and tokenizers load and how text becomes batches."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from targets.signature import Signature

if TYPE_CHECKING:
    from compressor.data import Split
    from compressor.model import Model, TorchModel

__all__ = ["Task"]


class Task(ABC):
    """One kind of problem. Subclasses live in one file each in ``compressor/tasks/``."""

    name: ClassVar[str]
    """As Hugging Face names it."""

    head: ClassVar[str]
    """How the class names of checkpoints with this task's head end."""

    @abstractmethod
    def load_checkpoint(self, folder: Path, *, max_length: int | None = None) -> TorchModel:
        """Load a fine-tuned Hugging Face folder that a user brings.

        Raises:
            CheckpointError: Absent, damaged, pickle-only, with NaN weights, or another task's head.
        """

    @abstractmethod
    def check_tokenizer(self, folder: Path) -> None:
        """Check cheaply, without its library, that a checkpoint has the tokenizer that is needed.

        Raises:
            CheckpointError: It has none.
        """

    @abstractmethod
    def load_tokenizer(self, folder: Path) -> Any:
        """Load the fast tokenizer of a checkpoint folder.

        Raises:
            CheckpointError: There is none.
        """

    @abstractmethod
    def signature(self, model: TorchModel) -> Signature:
        """Inputs and outputs of the exported model, batch and sequence free."""

    @abstractmethod
    def encode(self, model: Model, texts: Sequence[str]) -> list[dict[str, list[int]]]:
        """Tokenise; one dict of ragged lists a text, cut at the model's longest input."""

    @abstractmethod
    def collate(
        self, model: Model, rows: Sequence[dict[str, list[int]]]
    ) -> dict[str, NDArray[np.int64]]:
        """Pad encoded rows into one batch, (B, T) for each input."""

    @abstractmethod
    def predictions(self, outputs: NDArray[np.floating]) -> NDArray[np.int64]:
        """Class indices (N,) from the model's outputs (N, num_labels)."""

    @abstractmethod
    def probabilities(self, outputs: NDArray[np.floating]) -> NDArray[np.float64]:
        """Probability of each class (N, num_labels) from the model's outputs (N, num_labels)."""

    def correct(self, outputs: NDArray[np.floating], split: Split) -> NDArray[np.bool_]:
        """Which rows are right, (N,): what accuracy and the paired test are computed from."""
        return np.asarray(self.predictions(outputs) == split.labels)
