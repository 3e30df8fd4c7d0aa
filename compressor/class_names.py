"""Labels as data writes them, and the names of the classes of a model."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Sequence

from compressor.errors import DataError
from targets.wording import plural

__all__ = ["check_labels", "class_indices", "label_text", "sorted_names"]


_UNNAMED = re.compile(r"LABEL_\d+")  # how transformers numbers classes that have no names


def label_text(label: object) -> str | None:
    """A label as text; None for what is no label."""
    if isinstance(label, float) and label.is_integer():
        label = int(label)  # a column of whole numbers with gaps is stored as floats
    if isinstance(label, str | int):
        return str(label) if str(label).strip() else None
    return None


def sorted_names(labels: Sequence[str]) -> tuple[str, ...]:
    """The different labels in their order: of numbers by their value."""
    kinds = set(labels)
    if all(label.isdecimal() for label in kinds):
        return tuple(sorted(kinds, key=lambda label: (int(label), label)))
    return tuple(sorted(kinds))


def class_indices(label_names: Sequence[str], labels: Collection[str]) -> dict[str, int]:
    """How the data writes a class -> its index.

    Args:
        label_names: Of the model, in the order of its logits.
        labels: All that the data has. Where none is a name, but all are whole numbers, they are
            indices.

    Raises:
        DataError: The data has names, and two classes of the model have one.
    """
    names = {name: index for index, name in enumerate(label_names)}
    if all(label.isdecimal() and label not in names for label in labels):
        return {str(index): index for index in range(len(label_names))}
    if len(names) < len(label_names):
        raise DataError(
            "the model has two classes with the same name",
            given=", ".join(map(repr, label_names)),
            fix="give each class a name of its own in id2label",
        )
    return names


def check_labels(
    labels: Sequence[str],
    known: Collection[str],
    label_names: Sequence[str],
    where: str,
    unit: str,
) -> None:
    """Refuse labels that the model does not know, and a split with one class.

    Args:
        labels: Of a split.
        known: How the data writes the classes.
        label_names: Of the model.
        where: What to call the split in messages.
        unit: What has a label, such as ``row``.

    Raises:
        DataError: There is such a label, or one class only.
    """
    counts = Counter(labels)
    unknown = Counter({label: n for label, n in counts.items() if label not in known})
    if unknown:
        names = ", ".join(
            f"{name!r} ({plural(count, unit)})" for name, count in unknown.most_common(5)
        )
        rest = len(label_names) - 20
        fix = "correct the labels, name another label column, or fine-tune a model on these"
        if all(_UNNAMED.fullmatch(name) for name in label_names):
            fix = (
                "its classes have no names: write them into id2label of its config.json, in the "
                f"order of its outputs, or the numbers 0 to {len(label_names) - 1} into the data"
            )
        raise DataError(
            "the data has labels that the model does not know",
            where=where,
            given=names + (f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""),
            fix=f"the model knows {', '.join(map(repr, label_names[:20]))}"
            + (f" and {rest} more" if rest > 0 else "")
            + f"; {fix}",
        )
    if len(counts) < 2:
        raise DataError(
            "the data has one class only",
            where=where,
            given=f"{plural(len(labels), unit)}, all {labels[0]!r}",
            fix="pass data with at least two classes",
        )
