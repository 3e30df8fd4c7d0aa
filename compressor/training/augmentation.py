"""Make more inputs for the teacher to label, out of those of the training data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "AudioNoise",
    "ImageNoise",
    "Material",
    "Noise",
    "SeriesNoise",
    "TokenNoise",
    "VideoNoise",
    "nearest_tokens",
]

Row = dict[str, Any]

_ROWS_AT_ONCE = 1024
_GAIN_DB = 6.0  # louder or softer by at most a factor of 2
_BELOW_DB = (10.0, 25.0)  # backgrounds lie so far below what they were


@dataclass(frozen=True)
class Material:
    """What more rows are made of.

    Attributes:
        rows: Of the training data.
        inputs: What they were read from, one each, where more of it may be read; empty elsewhere.
    """

    rows: Sequence[Mapping[str, Any]]
    inputs: Sequence[Any] = ()


class Noise:
    """Changes every second row: it is noisy in one epoch and clean in the next.

    The rows it makes have two entries more: ``noisy``, 0 or 1, and ``slot``, the place of the
    teacher's outputs for exactly this row; see :meth:`variants`. This class alone changes nothing.

    Args:
        active: Whether any row is changed.
        copies: Different noisy versions of each row, or None for a new one each time.
        num_rows: So many of the first rows are changed in turn; those after them stay clean. None
            is all.
        seed: Of the noise.
    """

    def __init__(
        self,
        *,
        active: bool = False,
        copies: int | None = 0,
        num_rows: int | None = None,
        seed: int = 0,
    ) -> None:
        self.active = active
        self.copies = copies if active else 0
        self.num_rows = num_rows
        self.seed = seed

    def __call__(self, row: Row, index: int, epoch: int) -> Row:
        """The row as it looks in an epoch; a pure function of its arguments."""
        if not self.active or self._stays_clean(index) or (index + epoch) % 2 == 0:
            return {**row, "noisy": 0, "slot": self._slot(index)}
        version = epoch // 2 if self.copies is None else epoch // 2 % self.copies
        return self._noisy(row, index, version)

    def variants(self, rows: Sequence[Row]) -> Sequence[Row]:
        """All forms that rows take, by slot, each made when it is asked for. Needs ``copies``."""
        return _Variants(self, rows)

    @property
    def beyond(self) -> Sequence[NDArray[np.int64]]:
        """What noisy rows are made of beside the rows."""
        return []

    def num_forms(self, num_rows: int) -> NDArray[np.int64]:
        """How many forms each of the first rows takes, (num_rows,)."""
        changed = num_rows if self.num_rows is None else min(self.num_rows, num_rows)
        forms = np.ones(num_rows, dtype=np.int64)
        forms[:changed] += self.copies or 0
        return forms

    def _stays_clean(self, index: int) -> bool:
        return self.num_rows is not None and index >= self.num_rows

    def _slot(self, index: int) -> int:
        """The place of the clean form of a row: behind all forms of those before it."""
        changed = index if self.num_rows is None else min(self.num_rows, index)
        return index + changed * (self.copies or 0)

    def _noisy(self, row: Row, index: int, version: int) -> Row:
        generator = np.random.default_rng((self.seed, index, version))
        changed = self.change(row, index, generator)
        return {**row, **changed, "noisy": 1, "slot": self._slot(index) + 1 + version}

    def change(self, row: Row, index: int, generator: np.random.Generator) -> Row:
        """The entries of a row that differ in its noisy form; its length stays."""
        return {}


class _Variants(Sequence[Row]):
    """Of each row the clean form and its copies, one after the other."""

    def __init__(self, noise: Noise, rows: Sequence[Row]) -> None:
        self.noise = noise
        self.rows = rows
        self.ends = np.cumsum(noise.num_forms(len(rows)))

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def __getitem__(self, slot: Any) -> Any:
        if slot >= len(self):
            raise IndexError(slot)
        index = int(np.searchsorted(self.ends, slot, side="right"))
        number = slot - self.noise._slot(index)
        row = self.rows[index]
        if number == 0:
            return {**row, "noisy": 0, "slot": slot}
        return self.noise._noisy(row, index, number - 1)


class TokenNoise(Noise):
    """Changes texts, in one of three ways.

    Some noisy rows of texts that were cut are another stretch of the same text, as it stands. Some
    of the others get the beginning or the end of another row, after Yoon et al., "SSMix:
    Saliency-Based Span Mixup for Text Classification", 2021; here the span is drawn at random, and
    no label is mixed, for the teacher gives it. In the rest a share of the tokens is replaced, in
    the spirit of Jiao et al., "TinyBERT", 2020, section 3.2, where a language model or the
    neighbours among GloVe's vectors propose the replacements; here they are drawn by their
    frequency in the training data, which costs nothing, or from the neighbours in the student.

    Args:
        rows: All training rows.
        share: Share of the tokens to replace, in [0, 1); with 0 no row is changed.
        mixup: Share of the other noisy rows that get a span of another row, in [0, 1].
        windows: Share of the noisy rows of a text that was cut that are another stretch of it.
        uncut: All tokens of the texts that were cut, by the place of their row.
        unknown_id: The special token that stands for what a text has, and the vocabulary has not.
        nearest: Tokens to replace each token by, (vocabulary, count); None draws by frequency.
        copies: See the base class.
        special_ids: Tokens that are neither replaced nor drawn.
        seed: Of the noise.
    """

    def __init__(
        self,
        rows: Sequence[Mapping[str, Any]],
        *,
        share: float,
        mixup: float,
        copies: int | None,
        special_ids: Sequence[int],
        seed: int,
        windows: float = 0.0,
        uncut: Mapping[int, Sequence[int]] | None = None,
        unknown_id: int | None = None,
        nearest: NDArray[np.int64] | None = None,
    ) -> None:
        self.nearest = nearest
        self.share = share
        self.mixup = mixup
        self.windows = windows
        self.special: NDArray[np.int64] = np.asarray(sorted(special_ids), dtype=np.int64)
        tokens = [np.asarray(row["input_ids"], dtype=np.int64) for row in rows]
        self.texts = [each[~np.isin(each, self.special)] for each in tokens]
        self.around = self.special[self.special != unknown_id]
        self.uncut = {
            place: self._inside(np.asarray(ids, dtype=np.int64))
            for place, ids in (uncut or {}).items()
        }
        self.pool = np.concatenate(self.texts)
        super().__init__(
            active=share > 0 and len(self.pool) > 0,
            copies=copies,
            num_rows=len(rows),
            seed=seed,
        )

    def change(self, row: Row, index: int, generator: np.random.Generator) -> Row:
        """See the base class."""
        ids = np.array(row["input_ids"], dtype=np.int64)
        whole = self.uncut.get(index)
        if whole is not None and generator.random() < self.windows:
            inside = ~np.isin(ids, self.around)
            count = min(int(inside.sum()), len(whole))
            start = int(generator.integers(0, len(whole) - count + 1))
            ids[np.flatnonzero(inside)[:count]] = whole[start : start + count]
            return {"input_ids": ids.tolist()}
        places = np.flatnonzero(~np.isin(ids, self.special))
        mixed = len(places) > 1 and generator.random() < self.mixup
        change = self._mix if mixed else self._replace
        ids[places] = change(ids[places], generator)
        return {"input_ids": ids.tolist()}

    @property
    def beyond(self) -> Sequence[NDArray[np.int64]]:
        """See the base class."""
        return [*self.uncut.values(), *([] if self.nearest is None else [self.nearest])]

    def _inside(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """The tokens of a text without those that stand around it."""
        return ids[~np.isin(ids, self.around)]

    def _mix(self, text: NDArray[np.int64], generator: np.random.Generator) -> NDArray[np.int64]:
        """Another beginning or another end, as long as what it stands for or a little shorter."""
        other = self.texts[generator.integers(len(self.texts))]
        cut = int(generator.integers(1, len(text)))
        if generator.random() < 0.5:
            span = other[:cut]
            return np.concatenate([span, text[len(span) :]])
        start = int(generator.integers(0, max(len(other), 1)))
        span = other[start : start + len(text) - cut]
        return np.concatenate([text[:cut], span, text[cut + len(span) :]])

    def _replace(
        self, text: NDArray[np.int64], generator: np.random.Generator
    ) -> NDArray[np.int64]:
        if self.nearest is None:
            drawn = self.pool[generator.integers(0, len(self.pool), len(text))]
        else:
            drawn = self.nearest[text, generator.integers(0, self.nearest.shape[1], len(text))]
        return np.where(generator.random(len(text)) < self.share, drawn, text)


def nearest_tokens(
    table: NDArray[np.float32],
    rows: Sequence[Mapping[str, Any]],
    count: int,
    *,
    special_ids: Sequence[int],
) -> NDArray[np.int64]:
    """Of each token of some texts the others of them whose embeddings have the smallest angles.

    Args:
        table: Embeddings, (vocabulary, width).
        rows: With ``input_ids``.
        count: How many there are of each token.
        special_ids: Tokens that have no neighbours and are none.

    Returns:
        (vocabulary, count), the nearest first; a token that the texts do not have, and one of too
        few tokens, stands for itself.
    """
    found = np.repeat(np.arange(len(table))[:, None], count, axis=1)
    tokens = np.unique(np.concatenate([np.asarray(row["input_ids"]) for row in rows]))
    tokens = np.setdiff1d(tokens, np.asarray(special_ids))
    units = table[tokens]
    units = units / np.maximum(np.linalg.norm(units, axis=1, keepdims=True), 1e-12)
    some = max(0, min(count, len(tokens) - 1))
    for start in range(0, len(tokens), _ROWS_AT_ONCE):
        part = slice(start, start + _ROWS_AT_ONCE)
        cosines = units[part] @ units.T
        np.fill_diagonal(cosines[:, start:], -np.inf)  # a token is no neighbour of its own
        best = np.argpartition(-cosines, max(some - 1, 0), axis=1)[:, :some]
        order = np.argsort(-np.take_along_axis(cosines, best, axis=1), axis=1)
        found[tokens[part], :some] = tokens[np.take_along_axis(best, order, axis=1)]
    return found


class _MovingNoise(Noise):
    """Moves inputs, and mixes some with others.

    Args:
        rows: All training rows.
        share: Largest move, as a share of the sides of an image or of the length of a recording or
            signal, in [0, 1); with 0 no row is changed.
        mixup: Share of the noisy rows that are mixed with another, in [0, 1].
        copies: See the base class.
        seed: Of the noise.
    """

    def __init__(
        self,
        rows: Sequence[Mapping[str, Any]],
        *,
        share: float,
        mixup: float,
        copies: int | None,
        seed: int,
    ) -> None:
        self.rows = rows
        self.share = share
        self.mixup = mixup
        super().__init__(active=share > 0, copies=copies, num_rows=len(rows), seed=seed)


class ImageNoise(_MovingNoise):
    """Changes images: each is mirrored by chance, and moved by a few pixels or mixed with another.

    Mixing is that of Zhang et al., "mixup: Beyond Empirical Risk Minimization", 2018; the label of
    the mixture is the teacher's, as in Beyer et al., "Knowledge distillation: A good teacher is
    patient and consistent", 2022.
    """

    mirrors = True
    """Whether images may be seen from the other side."""

    def change(self, row: Row, index: int, generator: np.random.Generator) -> Row:
        """See the base class."""
        pixels: NDArray[np.uint8] = row["pixel_values"]
        if self.mirrors and generator.random() < 0.5:
            pixels = pixels[..., ::-1, :]
        if generator.random() < self.mixup:
            other = self.rows[int(generator.integers(len(self.rows)))]["pixel_values"]
            share = generator.random()
            mixed = share * pixels.astype(np.float32) + (1 - share) * other.astype(np.float32)
            return {"pixel_values": np.rint(mixed).astype(np.uint8)}
        *frames, height, width, _ = pixels.shape
        margin = [round(self.share * side) for side in (height, width)]
        padding = [(0, 0)] * len(frames) + [(each, each) for each in margin] + [(0, 0)]
        wide = np.pad(pixels, padding, mode="reflect")
        top, left = (int(generator.integers(0, 2 * each + 1)) for each in margin)
        moved = wide[..., top : top + height, left : left + width, :]
        return {"pixel_values": np.ascontiguousarray(moved)}


class VideoNoise(ImageNoise):
    """Changes videos: all frames of one are moved alike, or mixed with those of another.

    None is mirrored: whether something goes to the left or to the right may be what counts.
    """

    mirrors = False


class AudioNoise(_MovingNoise):
    """Changes recordings: each is moved in time and made louder or softer, some over a background.

    The background is another recording, however loud that was, so soft that the first is still the
    one to be heard, as in
    Snyder et al., "MUSAN: A Music, Speech, and Noise Corpus", 2015; the label is the teacher's.
    """

    def change(self, row: Row, index: int, generator: np.random.Generator) -> Row:
        """See the base class."""
        samples = row["samples"].astype(np.float32)
        count = len(samples)
        move = round(generator.uniform(-self.share, self.share) * count)
        moved = np.zeros_like(samples)
        moved[max(move, 0) : count + min(move, 0)] = samples[max(-move, 0) : count - max(move, 0)]
        moved *= _ratio(generator.uniform(-_GAIN_DB, _GAIN_DB))
        if generator.random() < self.mixup:
            other = self.rows[int(generator.integers(len(self.rows)))]["samples"]
            background = np.resize(other, count).astype(np.float32)
            loudness = np.sqrt([np.square(each).mean() for each in (moved, background)])
            level = loudness[0] / max(float(loudness[1]), 1.0)  # of a silent one nothing is left
            moved += background * (_ratio(-generator.uniform(*_BELOW_DB)) * np.float32(level))
        limits = np.iinfo(np.int16)
        return {"samples": np.clip(np.rint(moved), limits.min, limits.max).astype(np.int16)}


class SeriesNoise(_MovingNoise):
    """Changes signals: each is moved in time, or mixed with another.

    What moves in repeats the first or last value. Mixing is that of `ImageNoise`.
    """

    def change(self, row: Row, index: int, generator: np.random.Generator) -> Row:
        """See the base class."""
        values: NDArray[np.float32] = row["past_values"]
        if generator.random() < self.mixup:
            other = self.rows[int(generator.integers(len(self.rows)))]["past_values"]
            share = np.float32(generator.random())
            return {"past_values": share * values + (1 - share) * other}
        margin = round(self.share * len(values))
        wide = np.pad(values, [(margin, margin), (0, 0)], mode="edge")
        start = int(generator.integers(0, 2 * margin + 1))
        return {"past_values": wide[start : start + len(values)]}


def _ratio(decibels: float) -> np.float32:
    return np.float32(10 ** (decibels / 20))
