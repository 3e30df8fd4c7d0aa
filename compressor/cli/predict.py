"""What ``compressor predict`` reads, prints and writes."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import numpy as np
import typer

from compressor.cli.files import check_file, check_folder
from compressor.cli.options import flags_of, is_given
from targets.answers import (
    Answers,
    BoxAnswers,
    BoxesPrediction,
    ClassMapPrediction,
    EmbeddingAnswers,
    EmbeddingPrediction,
    PixelLabelAnswers,
    WrittenText,
)
from targets.errors import InputError
from targets.generation import load_generator
from targets.predictor import load, predict_lines, read_jsonl
from targets.preprocessing import Preprocessing

__all__ = ["Output", "Source", "check_options", "predict_inputs", "write_on"]

OF_WRITING = ("max_tokens",)
"""Parameters of the command that mean something to --stream and --chat only."""
OF_PREDICTIONS = ("jsonl", "field", "file", "masks", "output", "min_score")
"""Those that mean nothing to them."""


@dataclass(frozen=True)
class Source:
    """Where the inputs come from.

    Attributes:
        texts: Given with --text.
        files: Given with --file.
        jsonl: Whether standard input has JSON objects.
        field: Where the input stands in them; None for its kind.
    """

    texts: Sequence[str]
    files: Sequence[Path]
    jsonl: bool
    field: str | None


@dataclass(frozen=True)
class Output:
    """Where the answers go, beside standard output.

    Attributes:
        embeddings: The file for embeddings, in the place of JSON lines.
        masks: The folder for the classes of pixels.
        min_score: Least score of boxes that are told.
    """

    embeddings: Path | None
    masks: Path | None
    min_score: float | None


def check_options(context: typer.Context, *, writes: bool) -> None:
    """Refuse options that would have no effect.

    Args:
        context: The command.
        writes: Whether --stream or --chat is given.

    Raises:
        BadParameter: Names one.
    """
    flags = flags_of(context)
    stray = OF_PREDICTIONS if writes else OF_WRITING
    given = next((name for name in stray if is_given(context, name)), None)
    if given is not None:
        which = "has no effect with" if writes else "has an effect only with"
        raise typer.BadParameter(f"{flags[given]} {which} --stream and --chat")


def predict_inputs(bundle: Path, source: Source, output: Output, *, threads: int) -> None:
    """Print the answer to each input, or write it where asked for.

    Raises:
        BadParameter: An option does not suit the bundle.
    """
    count = truncated = 0
    embeddings: list[Sequence[float]] = []
    with load(bundle, threads=threads) as predictor:
        manifest = predictor.bundle.manifest
        preprocessing, answers = manifest.preprocessing, manifest.answers
        given = _inputs(preprocessing, source)
        _check_embeddings(answers, output.embeddings)
        _check_min_score(answers, output.min_score)
        masks = _mask_files(answers, given, output.masks)
        lists = preprocessing.reads_lists or answers.of_words
        lines = given or _read(preprocessing, source, lists=lists)
        # Who writes to a pipe may wait for the answer before the next line.
        chunk = None if given or _is_file(sys.stdin) else 1
        for prediction in predict_lines(predictor, lines, chunk=chunk):
            if output.min_score is not None and isinstance(prediction, BoxesPrediction):
                prediction = prediction.above(output.min_score)
            if output.embeddings is not None and isinstance(prediction, EmbeddingPrediction):
                embeddings.append(prediction.embedding)
            else:
                typer.echo(prediction.model_dump_json())
            if isinstance(prediction, ClassMapPrediction) and masks:
                prediction.save_mask(masks[count])
            count += 1
            truncated += prediction.truncated
    if output.embeddings is not None:
        _write_array(output.embeddings, embeddings)
    if truncated:
        typer.echo(
            f"warning: {truncated} of {count} {preprocessing.noun}s were longer than the "
            f"{preprocessing.longest} {preprocessing.unit} that the model reads, and were cut",
            err=True,
        )


def write_on(
    bundle: Path,
    texts: Sequence[str],
    *,
    chat: bool,
    system: str | None,
    stream: bool,
    max_tokens: int,
    threads: int,
) -> None:
    """Go on from a text, or answer messages: as it comes, or as JSON lines.

    Raises:
        BadParameter: There is no text, or several to stream.
    """
    if stream and len(texts) != 1:
        raise typer.BadParameter("--stream continues exactly one text: give it with --text")
    if not texts:
        raise typer.BadParameter("--chat answers messages: give them with --text")
    first = [] if system is None else [{"role": "system", "content": system}]
    with load_generator(bundle, threads=threads) as generator:
        for text in texts:
            if chat:
                messages = [*first, {"role": "user", "content": text}]
                pieces = generator.chat(messages, max_tokens=max_tokens)
            else:
                pieces = generator.stream(text, max_tokens=max_tokens)
            if not stream:
                typer.echo(WrittenText(text="".join(pieces)).model_dump_json())
                continue
            for piece in pieces:
                sys.stdout.write(piece)
                sys.stdout.flush()
            typer.echo()


def _inputs(preprocessing: Preprocessing, source: Source) -> list[str]:
    """What is given on the command line; of the kind that the bundle reads.

    Raises:
        BadParameter: It is of another kind.
    """
    reads_files = preprocessing.reads_files()
    if source.texts if reads_files else source.files:
        wanted = "--file" if reads_files else "--text"
        raise typer.BadParameter(f"the bundle reads {preprocessing.noun}s: give them with {wanted}")
    return [*source.texts, *map(str, source.files)]


def _read(
    preprocessing: Preprocessing, source: Source, *, lists: bool
) -> Iterable[str | list[str]]:
    """What stands on standard input, one input a line."""
    lines = _lines(sys.stdin)
    if preprocessing.reads_objects:
        return (line for line in lines if line.strip())
    if source.jsonl:
        return read_jsonl(lines, source.field or preprocessing.kind, lists=lists)
    return lines


def _lines(stream: TextIO) -> Iterator[str]:
    """The lines of a stream of UTF-8.

    Raises:
        InputError: Names the line that is none.
    """
    buffer = getattr(stream, "buffer", None)
    if buffer is None:  # such as in a test
        yield from stream
        return
    for number, line in enumerate(buffer, start=1):
        try:
            yield line.decode("utf-8" if number > 1 else "utf-8-sig")
        except UnicodeDecodeError as error:
            raise InputError(
                "a line is not UTF-8",
                where=f"line {number} of standard input",
                given=f"{error.object[error.start : error.start + 1]!r} at byte {error.start + 1}",
                fix="convert it, such as with iconv -f latin1 -t utf-8",
            ) from error


def _is_file(stream: TextIO) -> bool:
    """Whether a stream is a file, all of which is there already."""
    try:
        return stat.S_ISREG(os.fstat(stream.fileno()).st_mode)
    except (OSError, ValueError):  # such as in a test, where it is none of the system
        return True


def _check_embeddings(answers: Answers, output: Path | None) -> None:
    """Refuse a file of embeddings, before any work, where there are none or it cannot be written.

    Raises:
        BadParameter: There are none, or the name has another ending.
        ReportError: The file cannot be written.
    """
    if output is None:
        return
    if not isinstance(answers, EmbeddingAnswers):
        raise typer.BadParameter("the bundle gives no embeddings: leave out --output")
    if output.suffix != ".npy":
        raise typer.BadParameter(f"--output: {output} does not end with .npy")
    check_file(output)
    check_folder(output.absolute().parent)  # the file is replaced


def _check_min_score(answers: Answers, min_score: float | None) -> None:
    """Refuse a least score of boxes where there are none.

    Raises:
        BadParameter: There are none.
    """
    if min_score is not None and not isinstance(answers, BoxAnswers):
        raise typer.BadParameter("the bundle finds no objects: leave out --min-score")


def _write_array(path: Path, rows: Sequence[Sequence[float]]) -> None:
    """Write float32 rows as an .npy file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as stream:
        np.save(stream, np.asarray(rows, dtype=np.float32))
    os.replace(temporary, path)


def _mask_files(answers: Answers, given: Sequence[str], folder: Path | None) -> list[Path]:
    """Where the mask of each image goes; the folder is made. Empty where none is asked for.

    Raises:
        BadParameter: The bundle gives no masks, or what is given does not name one file each.
        ReportError: The folder cannot be written to.
    """
    if folder is None:
        return []
    if not isinstance(answers, PixelLabelAnswers):
        raise typer.BadParameter("the bundle gives no classes of pixels: leave out --masks")
    found = [folder / f"{Path(each).stem}.png" for each in given]
    if not found:
        raise typer.BadParameter("--masks names masks after images: give the images with --file")
    twice = next((each for each in found if found.count(each) > 1), None)
    if twice is not None:
        raise typer.BadParameter(f"--masks: two images would have the mask {twice}")
    inputs = {Path(each).resolve() for each in given}
    own = next((each for each in found if each.resolve() in inputs), None)
    if own is not None:
        raise typer.BadParameter(f"--masks: the mask would replace the image {own}")
    check_folder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    return found
