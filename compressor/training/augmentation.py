"""Make more sentences for the teacher to label: replace tokens at random."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["TokenNoise"]

Row = dict[str, Any]


class TokenNoise:
    """Replaces a share of the tokens of every second row by tokens of the training data.

    A row is noisy in one epoch and clean in the next. In the spirit of Jiao et al., "TinyBERT",
    2020, section 3.2, where a language model proposes the replacements; here they are drawn by
    their frequency in the training data, which costs nothing.

    The rows it makes have two entries more: ``noisy``, 0 or 1, and ``slot``, the place of the
    teacher's outputs for exactly these tokens; see :meth:`variants`.

    Args:
        rows: All training rows.
        share: Share of the tokens to replace, in [0, 1).
        copies: Different noisy versions of each row, or None for a new one each time.
        special_ids: Tokens that are neither replaced nor drawn.
        seed: Of the noise.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        *,
        share: float,
        copies: int | None,
        special_ids: Sequence[int],
        seed: int,
    ) -> None:
        self.share = share
        self.copies = copies if share else 0
        self.seed = seed
        self.special: NDArray[np.int64] = np.asarray(sorted(special_ids), dtype=np.int64)
        tokens = np.concatenate([np.asarray(row["input_ids"], dtype=np.int64) for row in rows])
        self.pool = tokens[~np.isin(tokens, self.special)]

    def __call__(self, row: Row, index: int, epoch: int) -> Row:
        """The row as it looks in an epoch; a pure function of its arguments."""
        if not self.share or not len(self.pool) or (index + epoch) % 2 == 0:
            return {**row, "noisy": 0, "slot": index * (1 + (self.copies or 0))}
        version = epoch // 2 if self.copies is None else epoch // 2 % self.copies
        return self._noisy(row, index, version)

    def variants(self, row: Row, index: int) -> list[Row]:
        """All forms that a row takes, by slot: the clean one first. Needs ``copies``."""
        clean = {**row, "noisy": 0, "slot": index * (1 + (self.copies or 0))}
        return [clean, *(self._noisy(row, index, copy) for copy in range(self.copies or 0))]

    def _noisy(self, row: Row, index: int, version: int) -> Row:
        generator = np.random.default_rng((self.seed, index, version))
        ids = np.asarray(row["input_ids"], dtype=np.int64)
        replaced = (generator.random(len(ids)) < self.share) & ~np.isin(ids, self.special)
        drawn = self.pool[generator.integers(0, max(len(self.pool), 1), len(ids))]
        slot = index * (1 + (self.copies or 0)) + 1 + version
        return {
            **row,
            "input_ids": np.where(replaced, drawn, ids).tolist(),
            "noisy": 1,
            "slot": slot,
        }
