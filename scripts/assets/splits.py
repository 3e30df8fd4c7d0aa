"""Seeded splits of labelled rows."""

import random
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Protocol, TypeVar

from assets.errors import PackageError

SEED = 0


class Labelled(Protocol):
    """A row of a data set with the name of its class."""

    @property
    def label(self) -> str:
        """Name of the class."""


R = TypeVar("R", bound=Labelled)
T = TypeVar("T")
K = TypeVar("K", bound=Hashable)


def split_shuffled(
    rows: Sequence[T], *, num_test: int, num_validation: int, seed: int
) -> dict[str, list[T]]:
    """Shuffle, then cut: the first rows are test, the next validation, the rest train."""
    shuffled = list(rows)
    random.Random(seed).shuffle(shuffled)
    start_of_train = num_test + num_validation
    _require_rows(len(rows), start_of_train)
    return {
        "train": shuffled[start_of_train:],
        "validation": shuffled[num_test:start_of_train],
        "test": shuffled[:num_test],
    }


def take_stratified(rows: Sequence[R], *, count: int, seed: int) -> tuple[list[R], list[R]]:
    """Take `count` rows at random, each label in its share (largest remainders get one more).

    Returns:
        The rows taken and the rows left, both shuffled.
    """
    _require_rows(len(rows), count)
    generator = random.Random(seed)
    by_label = _grouped(rows, lambda row: row.label)
    quotas = {label: count * len(group) / len(rows) for label, group in by_label.items()}
    takes = {label: int(quota) for label, quota in quotas.items()}
    by_remainder = sorted(quotas, key=lambda label: (takes[label] - quotas[label], label))
    for label in by_remainder[: count - sum(takes.values())]:
        takes[label] += 1
    taken: list[R] = []
    left: list[R] = []
    for label in sorted(by_label):
        group = by_label[label]
        generator.shuffle(group)
        taken += group[: takes[label]]
        left += group[takes[label] :]
    generator.shuffle(taken)
    generator.shuffle(left)
    return taken, left


def take_whole_groups(
    rows: Sequence[R], *, count: int, group: Callable[[R], Hashable], seed: int
) -> tuple[list[R], list[R]]:
    """Take about `count` rows at random, each label in its share, and no group in part.

    Of each label groups are taken until they have its share: what is taken is a little more.

    Args:
        rows: To choose from.
        count: How many to take at least.
        group: What the rows of one group have in common, such as the thread of a message.
        seed: Of the choice.

    Returns:
        The rows taken and the rows left, both shuffled.
    """
    _require_rows(len(rows), count)
    generator = random.Random(seed)
    taken: list[R] = []
    left: list[R] = []
    for _, of_label in sorted(_grouped(rows, lambda row: row.label).items()):
        groups = list(_grouped(of_label, group).values())
        generator.shuffle(groups)
        wanted = len(taken) + count * len(of_label) / len(rows)
        for each in groups:
            (taken if len(taken) < wanted else left).extend(each)
    generator.shuffle(taken)
    generator.shuffle(left)
    return taken, left


def _grouped(rows: Sequence[R], key: Callable[[R], K]) -> dict[K, list[R]]:
    groups: dict[K, list[R]] = defaultdict(list)
    for row in rows:
        groups[key(row)].append(row)
    return groups


def _require_rows(num_rows: int, needed: int) -> None:
    if num_rows <= needed:
        raise PackageError(
            "the data set is too small to split",
            where="the conversion to splits",
            given=f"{num_rows} rows, of which {needed} are to be held out",
            fix="check the pinned version in scripts/assets/catalog.py",
        )


def describe_splits(splits: Mapping[str, Sequence[Labelled]], *, method: str) -> dict[str, object]:
    """What to record about splits: the seed, the method, and the rows by split and label."""
    labels = {
        name: dict(sorted(Counter(row.label for row in rows).items()))
        for name, rows in splits.items()
    }
    return {
        "split": {
            "seed": SEED,
            "method": method,
            "num_rows": {name: len(rows) for name, rows in splits.items()},
            "num_rows_by_label": labels,
        }
    }
