"""Labelled texts, words, images and the like from local tables and folders, as frozen splits."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from compressor.boxes import image_files, read_boxed, tables_of
from compressor.cells import read_cell
from compressor.class_folders import read_class_folders
from compressor.class_names import check_labels, class_indices, label_text, sorted_names
from compressor.errors import DataError, nearest
from compressor.masks import Masked, check_classes, class_names, read_classes
from compressor.questions import read_questions
from compressor.tables import read_columns, require_columns
from compressor.tagged import read_tagged
from compressor.written import Written, read_written
from targets.answers.spans import ENDS
from targets.average_precision import SCORE
from targets.bundle import hash_file
from targets.preprocessing import KINDS
from targets.wording import plural

__all__ = [
    "DataSpec",
    "Kind",
    "LabelField",
    "Split",
    "Splits",
    "data_fingerprint",
    "input_field",
    "read_splits",
    "split_hashes",
]

Kind: TypeAlias = str
"""Of the inputs: a key of `targets.preprocessing.KINDS`, and the field of its column."""

LabelField = Literal["label", "tags", "mask", "text", "answers", "boxes", "target"]
"""Of a `DataSpec`: a label for each input, word or pixel; the text itself, where its own tokens are
what is answered; parts of the context of a question; or a text to write. Boxes stand in files of
their own kind, see `compressor.boxes`, and have no column. None: there are no labels."""

LEAST_UNLABELLED = 3
"""Inputs of a split without labels: an order of the others takes two of them."""
VALIDATION_FRACTION = 0.1  # of the training data, where no validation file is given


class DataSpec(BaseModel):
    """Where the data lies and which columns to read."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    train: Path
    """Training file: .csv, .tsv, .json, .jsonl or .parquet. Of images and other files also a
    folder with one folder a class. Of images with boxes .json as COCO has it."""
    test: Path
    """Held-out file; every reported accuracy comes from all of it."""
    validation: Path | None = None
    """Choices are made on it. Without one, a seeded tenth of the training file is set apart."""
    text: str = "text"
    """Column with the text, where the model reads text."""
    image: str = "image"
    """Column with the image, where the model sees images: the path of a file, from the folder of
    the table, or the content of one, as Hugging Face writes it to Parquet."""
    audio: str = "audio"
    """Column with the recording, in the same way."""
    series: str = Field(default="series", exclude_if=lambda name: name == "series")
    """Column with the signal: a list of numbers, or of lists with one number a channel, in a CSV
    file as JSON; or the path of an .npy file, from the folder of the table."""
    video: str = Field(default="video", exclude_if=lambda name: name == "video")
    """Column with the video: the path of an animated image, of a folder of images or of an .npy
    file, from the folder of the table."""
    label: str = "label"
    """Column with the label: a class name or its index."""
    tokens: str = Field(default="tokens", exclude_if=lambda name: name == "tokens")
    """Column with the list of words of a text, where each word has a label."""
    tags: str = Field(default="tags", exclude_if=lambda name: name == "tags")
    """Column with the list of their labels, as long: class names or their indices."""
    mask: str = Field(default="mask", exclude_if=lambda name: name == "mask")
    """Column with the mask of an image, where each pixel has a label: in the same way, an image of
    the same size with a byte a pixel, the index of its class; 255 counts for nothing."""
    question: str = Field(default="question", exclude_if=lambda name: name == "question")
    """Column with the question, where the model answers questions about a text."""
    context: str = Field(default="context", exclude_if=lambda name: name == "context")
    """Column with the text that it is about."""
    answers: str = Field(default="answers", exclude_if=lambda name: name == "answers")
    """Column with the right answers, as SQuAD has them: an object with the lists ``text`` and
    ``answer_start``, where each begins in the context, in characters."""
    target: str = Field(default="target", exclude_if=lambda name: name == "target")
    """Column with the text that the model is to write: what is said in a recording, or the
    translation or summary of a text."""
    images: Path | None = Field(default=None, exclude_if=lambda folder: folder is None)
    """Folder that the images of files as COCO has them are read from; by default that of each
    file."""
    slices: tuple[str, ...] = ()
    """Columns by whose values the accuracy is broken down, such as the source of a text. The test
    file has to have them; where the validation data lacks one, it has no part in the choice."""
    max_length: int | None = Field(default=None, ge=2)
    """Longest input in tokens, or samples of a recording; the default is the model's limit."""

    @property
    def files(self) -> dict[str, Path]:
        """Split name -> file, for the splits that have one."""
        named = {"train": self.train, "validation": self.validation, "test": self.test}
        return {name: path for name, path in named.items() if path is not None}


@dataclass(frozen=True)
class Split:
    """Inputs and their labels.

    Attributes:
        inputs: N texts, or texts of words, see `targets.answers.token_labels.join_words`; or N
            questions, see `targets.preprocessing.Question`; or N images or recordings, each the
            path or the content of a file.
        labels: (N,) int64 indices into the label names; N arrays, one index a word; or N masks,
            each the path or the content of a file; or of N questions the right answers, each
            (start, end) in characters of the context; or N texts to write; or N tables of boxes,
            see `targets.average_precision`, in shares of the image. Where the data has none,
            (N, 0); or
            (N, size), what the untouched model answers.
        slices: Column -> its N values as text.
    """

    inputs: tuple[Any, ...]
    labels: NDArray[Any] | tuple[Any, ...]
    slices: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.inputs)

    def take(self, indices: Sequence[int]) -> Split:
        """The rows at the given indices."""
        labels = self.labels
        return Split(
            tuple(self.inputs[index] for index in indices),
            tuple(labels[index] for index in indices)
            if isinstance(labels, tuple)
            else labels[list(indices)],
            {
                name: tuple(values[index] for index in indices)
                for name, values in self.slices.items()
            },
        )


@dataclass(frozen=True)
class Splits:
    """Training, validation and held-out data, with the names of the classes."""

    train: Split
    validation: Split
    test: Split
    label_names: tuple[str, ...]

    def without_test(self) -> Splits:
        """What passes may see: the same with an empty test split."""
        return replace(self, test=self.test.take(()))


def split_hashes(
    spec: DataSpec, kind: Kind = "text", labels: LabelField | None = "label"
) -> dict[str, str]:
    """Split -> sha256 of its file and of all that it names, for the splits that have one."""
    hashes = {}
    for name, path in sorted(spec.files.items()):
        try:
            hashes[name] = _hash(path, spec, kind, labels)
        except OSError as error:
            raise DataError(
                "a file of the data cannot be read",
                where=error.filename or path,
                given=error.strerror or error,
                fix="correct the path, or the permissions of the file",
            ) from error
    return hashes


def _hash(path: Path, spec: DataSpec, kind: Kind, labels: LabelField | None) -> str:
    if not KINDS[kind].reads_files():
        if path.is_dir():
            raise _no_table(path, kind, f"the columns {spec.text} and {spec.label}")
        return hash_file(path)
    digest = hashlib.sha256()
    if path.is_file():
        digest.update(hash_file(path).encode())
    if labels == "mask":
        for _, *pair in _masked_files(path, spec)[0]:
            hashes = (hash_file(Path(each)) for each in pair if isinstance(each, str))
            digest.update(f"{' '.join(hashes)}\n".encode())
        return digest.hexdigest()
    if labels == "boxes":
        for each in image_files(path, spec.images):
            digest.update(f"{hash_file(each)}\n".encode())
        return digest.hexdigest()
    if labels == "target":
        written = _read_written(path, spec, kind)
        pairs = list(zip(written.inputs, written.texts, strict=True))
    else:
        rows = _read_rows(path, spec, kind)
        pairs = list(zip(rows.inputs, rows.all_labels, strict=True))
    for value, label in pairs:
        if isinstance(value, str):
            digest.update(f"{label}\n{_hash_input(Path(value))}\n".encode())
    return digest.hexdigest()


def _hash_input(path: Path) -> str:
    """The sha256 of a file; of a folder, that of the names and the content of its files."""
    if path.is_file():
        return hash_file(path)
    files = [each for each in sorted(path.iterdir()) if each.is_file()]
    listed = "".join(f"{each.name}\n{hash_file(each)}\n" for each in files)
    return hashlib.sha256(listed.encode()).hexdigest()


def data_fingerprint(
    spec: DataSpec,
    *,
    kind: Kind = "text",
    labels: LabelField | None = "label",
    seed: int = 0,
    hashes: Mapping[str, str] | None = None,
) -> str:
    """The sha256 over what :func:`read_splits` reads; paths do not count.

    Args:
        spec: Files and columns.
        kind: Of the inputs.
        labels: Where the labels are.
        seed: Of the split of the training data; counts only where it has an effect.
        hashes: Of the files, where they are known: see :func:`split_hashes`.
    """
    hashes = split_hashes(spec, kind, labels) if hashes is None else hashes
    parts = [f"{name} {value}" for name, value in sorted(hashes.items())]
    version = (2,) if labels == "boxes" else ()  # goes up where others are set apart
    set_apart = None if spec.validation is not None else (seed, VALIDATION_FRACTION, *version)
    columns: tuple[str | None, ...]
    columns = (_input_column(spec, kind, labels), labels and getattr(spec, labels, labels))
    if labels == "answers":
        columns = (*columns, spec.context)
    parts.append(repr((*columns, spec.max_length, set_apart)))
    if spec.slices:
        parts.append(repr(spec.slices))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def read_splits(
    spec: DataSpec,
    *,
    label_names: Sequence[str] | None,
    kind: Kind = "text",
    labels: LabelField | None = "label",
    seed: int = 0,
) -> Splits:
    """Read all splits; of images and recordings, where they lie.

    Labels are class names. Where none of them is one but all are whole numbers, they are indices
    into the class names; those of pixels always are.

    Args:
        spec: Files and columns.
        label_names: The model's class names, in the order of its logits; None takes the sorted
            labels of the training file.
        kind: Of the inputs.
        labels: Where the labels are; None where there are none.
        seed: Of the split of the training data where no validation file is given.

    Raises:
        DataError: A file is absent or unreadable, a column is missing, a split is empty, holds one
            class only, or has labels that the model does not know.
    """
    if labels is None:
        splits = _read_all_unlabelled(spec, kind)
        return _set_validation_apart(splits, (), seed, least=LEAST_UNLABELLED)
    if labels == "mask":
        return _set_validation_apart(*_read_all_masked(spec, label_names), seed)
    if labels == "boxes":
        return _set_validation_apart(*_read_all_boxed(spec, label_names), seed)
    if labels == "answers":
        return _set_validation_apart(_read_all_questions(spec), ENDS, seed)
    if labels == "target":
        return _set_validation_apart(_read_all_written(spec, kind), (), seed)
    if labels == "text":
        return _set_validation_apart(_read_all_unlabelled(spec, kind, least=1), (), seed)
    tagged = labels == "tags"
    rows = {
        name: _read_tagged(path, spec) if tagged else _read_rows(path, spec, kind)
        for name, path in spec.files.items()
    }
    _check_slices(spec, rows["test"].slices)
    if label_names is None:
        label_names = sorted_names(rows["train"].all_labels)
    found = {label for each in rows.values() for label in each.all_labels}
    indices = class_indices(label_names, found)
    column = getattr(spec, labels)
    splits = {}
    for name, each in rows.items():
        path = spec.files[name]
        where = str(path) if path.is_dir() else f"{path}, column {column!r}"
        check_labels(each.all_labels, indices, label_names, where, "word" if tagged else "row")
        numbers = tuple(
            np.array([indices[label] for label in labels], np.int64) for labels in each.labels
        )
        joined = numbers if tagged else np.concatenate(numbers)
        splits[name] = Split(each.inputs, joined, each.slices)
    return _set_validation_apart(splits, label_names, seed)


def _set_validation_apart(
    splits: dict[str, Split], label_names: Sequence[str], seed: int, *, least: int = 0
) -> Splits:
    """All splits; where there is no validation data, out of the training data."""
    train, validation = splits["train"], splits.get("validation")
    if validation is None:
        whole = len(train)
        train, validation = _set_apart(train, seed)
        if least and len(validation) < least:
            raise DataError(
                "the part of the training data set aside for validation is too small to judge by",
                where="data.validation",
                given=f"{len(validation)} of {plural(whole, 'row')}",
                fix=f"pass a validation file of at least {least} rows, or more to train on",
            )
    return Splits(train, validation, splits["test"], tuple(label_names))


def _read_all_unlabelled(
    spec: DataSpec, kind: Kind, *, least: int = LEAST_UNLABELLED
) -> dict[str, Split]:
    """Splits of inputs alone, of at least so many rows."""
    found = {name: _read_unlabelled(path, spec, kind) for name, path in spec.files.items()}
    _check_slices(spec, found["test"].slices)
    for name, path in spec.files.items():
        if len(found[name]) < least:
            raise DataError(
                f"the file has too few {KINDS[kind].noun}s to compare them with each other",
                where=path,
                given=plural(len(found[name]), "row"),
                fix=f"pass at least {least}; the figures need hundreds",
            )
    return found


def _read_unlabelled(path: Path, spec: DataSpec, kind: Kind) -> Split:
    column = _input_column(spec, kind)
    if path.is_dir():
        raise _no_table(path, kind, f"the column {column}")
    values = require_columns(path, {kind: column}, spec.slices)
    inputs = []
    for row, cell in enumerate(values[column], 1):
        found = read_cell(cell, kind, path.parent, f"{path}, row {row}")
        if found is None:
            raise DataError(
                f"a row has no {kind}",
                where=f"{path}, row {row}",
                given=f"{column}={cell!r:.200}",
                fix=f"remove the row, or write {KINDS[kind].wanted}",
            )
        inputs.append(found)
    return Split(tuple(inputs), np.empty((len(inputs), 0), np.float32), _sliced(spec, values))


def _read_all_written(spec: DataSpec, kind: Kind) -> dict[str, Split]:
    """Splits of inputs with the texts that are to be written."""
    found = {name: _read_written(path, spec, kind) for name, path in spec.files.items()}
    splits = {
        name: Split(each.inputs, each.texts, _sliced(spec, each.slices))
        for name, each in found.items()
    }
    _check_slices(spec, splits["test"].slices)
    return splits


def _read_written(path: Path, spec: DataSpec, kind: Kind) -> Written:
    source = _input_column(spec, kind)
    return read_written(path, kind, source=source, target=spec.target, slices=spec.slices)


def _read_all_questions(spec: DataSpec) -> dict[str, Split]:
    """Splits of questions."""
    columns = {"question": spec.question, "context": spec.context, "answers": spec.answers}
    found = {name: read_questions(path, columns, spec.slices) for name, path in spec.files.items()}
    splits = {
        name: Split(each.inputs, each.answers, _sliced(spec, each.slices))
        for name, each in found.items()
    }
    _check_slices(spec, splits["test"].slices, found["test"].names)
    return splits


def _read_all_boxed(
    spec: DataSpec, label_names: Sequence[str] | None
) -> tuple[dict[str, Split], Sequence[str]]:
    """Splits of images with boxes, and the names of the classes."""
    found = {name: read_boxed(path, spec.images, spec.slices) for name, path in spec.files.items()}
    _check_slices(spec, found["test"].slices, found["test"].fields)
    names = found["train"].names if label_names is None else label_names
    splits = {
        name: Split(
            each.images,
            tables_of(each, names, spec.files[name]),
            _sliced(spec, each.slices),
        )
        for name, each in found.items()
    }
    return splits, names


def _read_all_masked(
    spec: DataSpec, label_names: Sequence[str] | None
) -> tuple[dict[str, Split], Sequence[str]]:
    """Splits of images with masks, and the names of the classes."""
    found = {name: _read_masked(path, spec) for name, path in spec.files.items()}
    _check_slices(spec, found["test"].slices)
    if label_names is None:
        label_names = class_names(found["train"])
    for name, each in found.items():
        check_classes(each, label_names, spec.files[name], spec.mask)
    splits = {name: Split(each.images, each.masks, each.slices) for name, each in found.items()}
    return splits, label_names


def _read_masked(path: Path, spec: DataSpec) -> Masked:
    rows, slices = _masked_files(path, spec)
    classes = tuple(read_classes(image, mask, where) for where, image, mask in rows)
    _, images, masks = zip(*rows, strict=True)
    return Masked(images, masks, classes, slices)


def _masked_files(
    path: Path, spec: DataSpec
) -> tuple[list[tuple[str, str | bytes, str | bytes]], dict[str, tuple[str, ...]]]:
    """(what to call it, image, mask) of each row, the last two by path or content; and slices."""
    if path.is_dir():
        raise DataError(
            "the data is a folder, but masks are read from a table that names them and the images",
            where=path,
            fix=f"pass a file with the columns {spec.image} and {spec.mask}",
        )
    values = require_columns(path, {"image": spec.image, "mask": spec.mask}, spec.slices)
    rows = []
    for row, cells in enumerate(zip(values[spec.image], values[spec.mask], strict=True), 1):
        where = f"{path}, row {row}"
        image, mask = (
            read_cell(cell, "image", path.parent, where, name=name)
            for cell, name in zip(cells, ("image", "mask"), strict=True)
        )
        if image is None or mask is None:
            raise DataError(
                "a row has no image or no mask",
                where=where,
                given=f"{spec.image}={cells[0]!r:.100}, {spec.mask}={cells[1]!r:.100}",
                fix="remove the row, or write an image file and a mask file",
            )
        rows.append((where, image, mask))
    return rows, _sliced(spec, values)


class _Rows(NamedTuple):
    """A file, as it stands there."""

    inputs: tuple[Any, ...]
    labels: list[tuple[str, ...]]
    """Of each row: one, or one for each of its words."""
    slices: dict[str, tuple[str, ...]]

    @property
    def all_labels(self) -> list[str]:
        return [label for each in self.labels for label in each]


def _input_column(spec: DataSpec, kind: Kind, labels: LabelField | None = "label") -> str:
    """The column with the inputs."""
    return str(getattr(spec, input_field(kind, labels)))


def input_field(kind: Kind, labels: LabelField | None) -> str:
    """The field of `DataSpec` that names the column with the inputs."""
    return "tokens" if labels == "tags" else kind


def _no_table(folder: Path, kind: Kind, columns: str) -> DataError:
    return DataError(
        f"the data is a folder, but {KINDS[kind].noun}s are read from a table",
        where=folder,
        fix=f"pass a file with {columns}",
    )


def _read_rows(path: Path, spec: DataSpec, kind: Kind) -> _Rows:
    if path.is_dir():
        return _read_folder(path, spec, kind)
    source = _input_column(spec, kind)
    values = require_columns(path, {kind: source, "label": spec.label}, spec.slices)
    labels = [label_text(label) for label in values[spec.label]]
    inputs = []
    for row, (cell, label) in enumerate(zip(values[source], labels, strict=True), 1):
        where = f"{path}, row {row}"
        found = read_cell(cell, kind, path.parent, where)
        if found is None or label is None:
            raise DataError(
                f"a row has no {kind} or no label",
                where=where,
                given=f"{source}={cell!r:.200}, {spec.label}={values[spec.label][row - 1]!r}",
                fix=f"remove the row, or write {KINDS[kind].wanted} and a class name or index",
            )
        inputs.append(found)
    return _Rows(
        tuple(inputs),
        [(label,) for label in labels if label is not None],
        _sliced(spec, values),
    )


def _sliced(spec: DataSpec, values: Mapping[str, Sequence[Any]]) -> dict[str, tuple[str, ...]]:
    return {
        name: tuple(label_text(value) or str(value or "(empty)") for value in values[name])
        for name in spec.slices
        if name in values
    }


def _read_tagged(path: Path, spec: DataSpec) -> _Rows:
    """A file whose rows have a list of words, and a list of the labels of these words."""
    found = read_tagged(path, tokens=spec.tokens, tags=spec.tags, slices=spec.slices)
    return _Rows(found.texts, list(found.tags), _sliced(spec, found.slices))


def _read_folder(folder: Path, spec: DataSpec, kind: Kind) -> _Rows:
    """One folder a class, whose files are its members."""
    preprocessing = KINDS[kind]
    if not preprocessing.reads_files():
        raise _no_table(folder, kind, f"the columns {spec.text} and {spec.label}")
    rows = read_class_folders(folder, preprocessing)
    return _Rows(tuple(path for path, _ in rows), [(label,) for _, label in rows], {})


def _check_slices(
    spec: DataSpec, found: Collection[str], names: Sequence[str] | None = None
) -> None:
    """Refuse columns that the test file lacks; ``names`` are all it has, where that is known."""
    missing = [name for name in spec.slices if name not in found]
    if missing:
        if names is None:
            names = () if spec.test.is_dir() else read_columns(spec.test, ()).names
        guess = nearest(missing[0], names)
        raise DataError(
            f"the column {missing[0]!r} of data.slices is missing",
            where=spec.test,
            given=f"columns {', '.join(names)}" if names else "a folder, which has no columns",
            fix="correct data.slices, or add the column"
            + (f"; did you mean {guess!r}?" if guess else ""),
        )


def _has_objects(label: Any) -> bool:
    """Whether there is one to find in an image, by its table of boxes; False of other labels."""
    return getattr(label, "ndim", 0) == 2 and bool((label[:, SCORE] == 0).any())


def _set_apart(train: Split, seed: int) -> tuple[Split, Split]:
    """Split off a seeded part of the training data for validation, stratified by the class.

    At least one row of each class, as long as one is left to train on. Images of objects are
    stratified by whether they have any, other rows of several labels, or of none, not at all.
    """
    generator = random.Random(seed)
    chosen: set[int] = set()
    labels = train.labels
    if isinstance(labels, tuple) or labels.ndim > 1:
        labels = np.array([_has_objects(each) for each in labels])
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label).tolist()
        generator.shuffle(rows)
        wanted = max(1, round(len(rows) * VALIDATION_FRACTION))
        chosen.update(rows[: min(wanted, len(rows) - 1)])
    if not chosen:
        raise DataError(
            "the training data is too small to set part of it aside for validation",
            given=f"{plural(len(train), 'row')}, no two of the same class",
            fix="add rows, or set data.validation",
        )
    if labels.dtype == bool and labels.sum() == 1:
        raise DataError(
            "the training data is too small to set part of it aside for validation",
            given="a single image with objects",
            fix="add images, or set data.validation",
        )
    rest = [row for row in range(len(train)) if row not in chosen]
    return train.take(rest), train.take(sorted(chosen))
